#!/bin/sh
# GRPO with OpenRLHF, groups of 8 judged in lists, the judge's server on GPU 0. Not run by us at this size.
set -e
CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 &
export FLEXJUDGE_BASE_URL=http://localhost:8001/v1 FLEXJUDGE_FORMAT=listwise FLEXJUDGE_NUM_GENERATIONS=8
CUDA_VISIBLE_DEVICES=1,2,3,4 python -m openrlhf.cli.train_ppo_ray --actor.model_name_or_path Qwen/Qwen2.5-3B-Instruct \
    --data.prompt_dataset prompts.jsonl --data.label_key answer --rollout.n_samples_per_prompt 8 \
    --algo.advantage.estimator group_norm --train.agent_func_path "$(flexjudge path openrlhf-agent)" \
    --ckpt.output_dir runs/openrlhf
