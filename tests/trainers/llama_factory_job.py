"""A PPO training of LLaMA-Factory on a CPU with the judge as its reward server; run with its packages on the path.

python llama_factory_job.py http://any:TOKEN@HOST:8900/scores
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

from tiny_policy import policy


def main() -> None:
    """Trains two steps."""
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # for sound, which this training has not
    # Its entrance also imports other trainings, which want another release of TRL than this one.
    from llamafactory.hparams import get_train_args
    from llamafactory.train.ppo import run_ppo

    rows = [{"instruction": f"What is in place {number}?", "input": "", "output": "a star"} for number in range(8)]
    Path("rows.json").write_text(json.dumps(rows))
    Path("dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    arguments = get_train_args(
        {
            "stage": "ppo", "do_train": True, "model_name_or_path": policy(Path("policy")), "template": "qwen",
            "reward_model_type": "api", "reward_model": sys.argv[1], "dataset": "rows", "dataset_dir": ".",
            "finetuning_type": "full", "output_dir": "out", "per_device_train_batch_size": 4, "cutoff_len": 256,
            "gradient_accumulation_steps": 1, "max_new_tokens": 8, "learning_rate": 1e-4, "max_steps": 2,
            "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        }
    )  # fmt: skip
    run_ppo(*arguments, callbacks=[])


if __name__ == "__main__":
    main()
