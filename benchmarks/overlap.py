"""Whether two judges on servers cost a trainer's step the time of one.

    python benchmarks/overlap.py

Two local servers answer every request after 1 s. GRPOTrainer of a tiny text policy has two rewards, one pointwise and
one listwise, in one process and in two ranks; the seconds in its `_calculate_rewards` are taken, without the first
step, in which the servers are found. Records `judges.overlap_seconds`: the slowest step of both. Takes two minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from figures import record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.fault_server import Fault, FaultServer, reply

DELAY, STEPS, SIZE = 1.0, 4, 4


def main() -> None:
    """Starts the servers and the trainers, and records the slowest step."""
    if len(sys.argv) == 2:
        train(Path(sys.argv[1]))
        return
    headers = {"Content-Type": "application/json"}
    one, several = ("<think>so</think>" + "<answer>7</answer>" * count for count in (1, SIZE))
    answers = [Fault(body=reply(text), headers=headers) for text in (one, several)]
    slowest = {}
    for ranks in (1, 2):
        servers = [FaultServer(lambda name, nth, fault=fault: fault, delay=DELAY) for fault in answers]
        with servers[0], servers[1], tempfile.TemporaryDirectory() as folder:
            seconds = launched(ranks, [server.url for server in servers], Path(folder))
        print(f"{ranks} ranks: {', '.join(f'{one:.3f}' for one in seconds)} s")
        slowest[ranks] = max(seconds)
    note = ", ".join(f"{ranks} ranks {seconds:.3f} s" for ranks, seconds in slowest.items())
    note = f"slowest step in GRPOTrainer, pointwise and listwise, {DELAY:g} s each: {note}"
    record("judges.overlap_seconds", max(slowest.values()), unit="s", target="<= 1.15", note=note)


def launched(ranks: int, urls: list[str], folder: Path) -> list[float]:
    """The seconds of the later steps, of all ranks."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    if ranks > 1:
        flags = f"--multi_gpu --num_processes {ranks} --num_machines 1 --main_process_port 0 --mixed_precision no"
        launch = ["-m", "accelerate.commands.launch", *flags.split(), "--dynamo_backend", "no"]
        command = [sys.executable, *launch, *command[1:]]
    named = {"ONE__BASE_URL": urls[0], "SEVERAL__BASE_URL": urls[1], "SEVERAL__FORMAT": "listwise", "CACHE": "off"}
    environment = {f"FLEXJUDGE_{name}": value for name, value in named.items()}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    return [one for file in folder.glob("rank*.json") for one in json.loads(file.read_text())[1:]]


def train(folder: Path) -> None:
    """One rank's training; leaves the seconds that its rewards took."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl_failure import policy

    import flexjudge_reward

    model, tokenizer = policy()
    args = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        max_steps=STEPS,
        per_device_train_batch_size=SIZE,
        steps_per_generation=1,
        num_generations=SIZE,
        max_completion_length=8,
        report_to="none",
        save_strategy="no",
    )
    rows = Dataset.from_list([{"prompt": f"What is item {n}?"} for n in range(4 * STEPS)])
    judges = [flexjudge_reward.one, flexjudge_reward.several]
    trainer = GRPOTrainer(model, judges, args=args, train_dataset=rows, processing_class=tokenizer)
    calculate, seconds = trainer._calculate_rewards, []

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        found = calculate(*given)
        seconds.append(time.perf_counter() - start)
        return found

    trainer._calculate_rewards = timed
    trainer.train()
    assert all(judge.summary.failed == 0 and judge.summary.judged for judge in judges)
    folder.joinpath(f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(seconds))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that ends (pytorch issue 190489)


if __name__ == "__main__":
    main()
