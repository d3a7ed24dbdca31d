#!/bin/sh
# GRPO with ms-swift on 7 GPUs, the judge's server on GPU 0. Not run by us at this size.
set -e
CUDA_VISIBLE_DEVICES=0 vllm serve jongwooko/Flex-VL-7B --port 8001 --limit-mm-per-prompt '{"image": 4}' &
export FLEXJUDGE_BASE_URL=http://localhost:8001/v1 FLEXJUDGE_FORMAT=listwise FLEXJUDGE_MEDIA_ROOT="$PWD/images"
CUDA_VISIBLE_DEVICES=1,2,3,4,5,6,7 NPROC_PER_NODE=7 swift rlhf --rlhf_type grpo --model Qwen/Qwen2.5-VL-3B-Instruct \
    --dataset rows.jsonl --external_plugins "$(flexjudge path ms-swift)" --reward_funcs flexjudge \
    --num_generations 7 --per_device_train_batch_size 7 --max_completion_length 1024 --learning_rate 1e-6 \
    --torch_dtype bfloat16 --output_dir runs/ms_swift
