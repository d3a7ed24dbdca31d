#!/bin/sh
# GRPO with verl on 7 GPUs, the judge's server on GPU 0. Not run by us at this size.
set -e
CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}' &
export FLEXJUDGE_BASE_URL=http://localhost:8001/v1
CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \
    data.train_files=train.parquet data.val_files=test.parquet data.image_key=images data.train_batch_size=256 \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-VL-3B-Instruct actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 trainer.n_gpus_per_node=7 trainer.nnodes=1 \
    reward.reward_manager.source=importlib reward.reward_manager.name=FlexJudgeRewardManager \
    reward.reward_manager.module.path=pkg://flexjudge_reward.trainers.verl +reward.flexjudge.format=listwise
