"""Installation as a newcomer does it: the wheel in empty environments, and the README's first lines there.

    python3 benchmarks/install.py                     Python 3.11 to 3.13, and every extra on each (an hour)
    python3 benchmarks/install.py 3.13 core report    one Python, these extras
    python3 benchmarks/install.py readme              the README word for word, on each Python

Records door.core_install_seconds and door.first_judgement_seconds, of the slowest Python. An environment is made,
used and removed before the next. The time of pip is that of the index that it uses; `torch==2.13.0`, the build for
CPUs, is installed first and in no figure. Every other check is one of these lines; a line that fails ends the run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from figures import record

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
TORCH = "torch==2.13.0"
ROWS = [
    {"id": 1, "question": "What is top-left?", "images": ["1.png"], "answer": "a red circle"},
    {"id": 2, "question": "What is top-left?", "images": ["1.png"], "answer": "a cat"},
]
PICTURE = "from PIL import Image; Image.new('RGB', (56, 56), 'red').save('1.png')"
SCORE = "flexjudge score rows.jsonl --media-root ."
ONE_LINE = "from flexjudge_reward import Judge; v = Judge.load().score('What is top-left?', 'a cat'); print(v.scores)"
REWARD = "from flexjudge_reward import FlexJudgeReward; print(FlexJudgeReward()(['q'], ['a']))"
REFUSED = """from flexjudge_reward import FlexJudgeReward, MissingExtra
try: FlexJudgeReward()(['q'], ['a'])
except MissingExtra as error: print(error)"""
MOLECULE = "from flexjudge_reward import Media; print(Media.molecule('CCO').as_judge_input())"
VIDEO = "from flexjudge_reward import Media; Media.video(open('1.png', 'rb').read()).is_usable; import av"
PROCESSOR = """from transformers import AutoProcessor
from flexjudge_reward.nano import path
print(type(AutoProcessor.from_pretrained(path('base'))))"""
TRAINER = "from trl import GRPOTrainer; from flexjudge_reward import FlexJudgeReward; FlexJudgeReward()"
POLICY = """from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from flexjudge_reward.nano import path
words = dict(eos_token='<|im_end|>', pad_token='<|endoftext|>')
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path('base') / 'tokenizer.json'), **words)
tokenizer.save_pretrained('policy')
layers = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
ids = dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
Qwen2ForCausalLM(Qwen2Config(**layers, **ids)).save_pretrained('policy')"""
SETTINGS = {
    "model_name_or_path": "policy",
    "dataset_name": "prompts",
    "reward_funcs": ["flexjudge_reward.helpful"],
    "env": {"FLEXJUDGE_MODEL": "nano", "FLEXJUDGE_HELPFUL__SEED": 7},
    "output_dir": "out",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 4,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
}
GRPO = "trl grpo --config grpo.yaml --num_processes"


@dataclass(frozen=True)
class Line:
    """A command, as words for a shell or as Python, and what a user must see."""

    command: str
    code: int = 0
    says: str = ""
    seconds: str = ""  # the figure that its time is

    def run(self, folder: Path) -> float:
        """Its seconds. Raises SystemExit if it does anything else."""
        words = shlex.split(self.command, comments=True)
        command = words if words[0] in ("flexjudge", "python", "trl") else ["python", "-c", self.command]
        environment = clean() | {"PATH": f"{folder}/env/bin:{os.environ['PATH']}", "XDG_CACHE_HOME": f"{folder}/cache"}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        shown = done.stdout + done.stderr
        if done.returncode != self.code or self.says not in shown or "Traceback" in shown:
            sys.exit(f"{self.command}\nended with {done.returncode}, expected {self.code} and {self.says!r}:\n{shown}")
        return seconds


def clean() -> dict[str, str]:
    """The environment without what this process was given: pip would find packages on PYTHONPATH, and install none."""
    hidden = ("FLEXJUDGE_", "VIRTUAL_ENV", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)}


def missing(extra: str) -> str:
    """What the one line says where an extra is missing."""
    return f"pip install 'flexjudge-reward[{extra}]'"


def readme() -> list[Line]:
    """Its Python blocks, as files that are run, and its commands; what needs a network or a GPU apart."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    commands = re.findall(r"^    (flexjudge .*)", text, re.MULTILINE)
    return [*map(Line, blocks), Line("flexjudge recipes list", says="grpo_vlm"), *map(Line, commands)]


EXTRAS: dict[str, list[Line]] = {
    "core": [
        Line("flexjudge --version", says="flexjudge 0."),
        Line("python -m flexjudge_reward --help", says="COMMAND"),
        Line(SCORE, 2, missing("transformers")),
        Line("flexjudge rerank samples.jsonl", 2, missing("transformers")),
        Line("flexjudge annotate samples.jsonl -o pairs.jsonl", 2, missing("transformers")),
        Line("flexjudge annotate samples.jsonl -o pairs", 2, missing("datasets")),
        Line("flexjudge score rows.parquet", 2, missing("datasets")),
        Line("flexjudge report rows.jsonl -o report.html", 2, missing("report")),
        Line("flexjudge doctor samples.jsonl", 2, missing("evaluate")),
        Line("flexjudge completion bash", 2, missing("completion")),
        Line("flexjudge score rows.jsonl --config judge.yaml", 2, missing("yaml")),
        Line("flexjudge recipes run grpo_vlm --config nano", 2, missing("trl")),
        Line(REFUSED, says=missing("transformers")),
        Line("flexjudge recipes list", says="grpo_vlm"),
        Line("flexjudge nano", says="judge"),
    ],
    "transformers": [
        Line(SCORE, says='"scores"', seconds="door.first_judgement_seconds"),
        Line(ONE_LINE, says="("),
        Line(REWARD, says="["),
    ],
    "datasets": [Line("flexjudge score rows.parquet", 2, "rows.parquet")],  # what it reads is no table
    "trl": [
        Line(TRAINER),
        Line("flexjudge recipes run grpo_vlm --config nano --max_steps 2", says="step"),
        Line(POLICY),
        Line(f"{GRPO} 1", says="rewards/helpful/mean"),
        Line(f"{GRPO} 2", says="rewards/helpful/mean"),
    ],
    "readme": readme(),
    "vlm": [Line(PROCESSOR, says="Qwen2_5_VLProcessor")],
    "yaml": [Line(f"{SCORE} --config judge.yaml", 2, missing("transformers"))],
    "completion": [Line("flexjudge completion bash", says="_shtab_compgen_files")],
    "evaluate": [
        Line("flexjudge doctor samples.jsonl", 2, "label"),
        Line("flexjudge evaluate labelled.jsonl -o check", 2, missing("transformers")),
    ],
    "report": [Line("flexjudge report verdicts.jsonl -o report.html", says="report.html")],
    "molecules": [Line(MOLECULE, says="SMILES")],
    "video": [Line(VIDEO)],
    "vendors": [Line("import any_llm")],
    "diffusers": [Line("import diffusers")],
}
INSTALLED = {"core": "", "readme": "[trl,report]"}  # of all others, the extra of that name
WITH_TORCH = ("transformers", "trl", "readme", "diffusers")  # of "vlm", torch and torchvision must be one build


def main() -> None:
    """Checks the Pythons and extras named on the command line, or all."""
    words = sys.argv[1:]
    pythons = [word for word in words if word[0].isdigit()] or list(PYTHONS)
    extras = [word for word in words if word in EXTRAS] or list(EXTRAS)
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        for python in pythons:
            for extra in extras:
                for name, seconds in tried(python, extra, wheel, Path(folder, "try")).items():
                    measured.setdefault(name, []).append(seconds)
    note = f"the slowest of Python {', '.join(pythons)}"
    for name, target in (("door.core_install_seconds", "<= 15"), ("door.first_judgement_seconds", "<= 10")):
        if name in measured:
            record(name, max(measured[name]), unit="s", target=target, note=note)


def tried(python: str, extra: str, wheel: Path, folder: Path) -> dict[str, float]:
    """Installs the wheel with one extra into an empty environment, runs its lines; the figures among their times."""
    folder.mkdir()
    subprocess.run([interpreter(python), "-m", "venv", folder / "env"], check=True)
    pip = [folder / "env/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if extra in WITH_TORCH:
        subprocess.run([*pip, TORCH], check=True, env=clean())
    start = time.perf_counter()
    subprocess.run([*pip, f"{wheel}{INSTALLED.get(extra, f'[{extra}]')}"], check=True, env=clean())
    times = {"door.core_install_seconds": time.perf_counter() - start} if extra == "core" else {}
    installed = f"{extra:13} pip {time.perf_counter() - start:6.1f} s"
    Line(PICTURE).run(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    samples = {"id": 1, "question": "2 + 2?", "candidates": ["4", "5"]}
    (folder / "samples.jsonl").write_text(json.dumps(samples) + "\n")
    labelled = samples | {"label": [5, 1]}
    (folder / "labelled.jsonl").write_text(json.dumps(labelled) + "\n")
    (folder / "images").mkdir()
    shutil.copy(folder / "1.png", folder / "images")
    (folder / "answers.jsonl").write_text((folder / "rows.jsonl").read_text())
    (folder / "rows.parquet").write_bytes(b"PAR1")
    (folder / "judge.yaml").write_text("model: nano\n")
    (folder / "grpo.yaml").write_text(json.dumps(SETTINGS))  # JSON is YAML
    (folder / "prompts").mkdir()
    (folder / "prompts/train.jsonl").write_text(json.dumps({"prompt": "What is here?"}) + "\n")
    verdict = {"line": 1, "id": 1, "scores": [7], "failures": [None], "scale": [1, 10], "reasoning": ["fine"]}
    (folder / "verdicts.jsonl").write_text(json.dumps(verdict) + "\n")
    for line in EXTRAS[extra]:
        seconds = line.run(folder)
        times |= {line.seconds: seconds} if line.seconds else {}
        print(f"python {python}   {installed}   {seconds:6.1f} s   {line.command[:80]!r}", flush=True)
    shutil.rmtree(folder)
    return times


def interpreter(version: str) -> str:
    """The program of a Python version; one of pyenv is found where it is not the chosen one."""
    shim = shutil.which(f"python{version}")
    if shim and subprocess.run([shim, "--version"], capture_output=True).returncode == 0:
        return shim
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not found:
        sys.exit(f"there is no Python {version} on this machine")
    return str(found[-1])


if __name__ == "__main__":
    main()
