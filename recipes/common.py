"""What the recipes do the same way: going on with what an earlier run left, loading, and the model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from flexjudge_reward import ConfigError, JudgeConfig, Rubric

# ------------------------------------------------------------------------------------------- what an earlier run left


def changed(file: Path, settings: Mapping[str, Any]) -> str:
    """What is set otherwise now than when `file` was begun, in words; "" if nothing is, or if this begins it.

    The settings are noted beside the file, before it is made, so that half-finished work counts too.
    """
    note = file.with_name(file.name + ".settings.json")
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        _write(note, settings)
    return _difference(note, settings)


def begin_again(file: Path) -> None:
    """Forgets a file that `changed` knows, and how far `annotate_file` was with it, so that it is made anew."""
    for ending in ("", ".progress", ".settings.json"):  # the note last: without it, what is left would be taken up
        file.with_name(file.name + ending).unlink(missing_ok=True)


def sampled(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `file` holds the samples of these settings already.

    Raises:
        ConfigError: it holds those of others. Samples are expensive, so they are never replaced without being asked.
    """
    if not file.exists():
        begin_again(file)  # a run that left none may have noted what it could not do
    if other := changed(file, settings):
        raise ConfigError(
            f"{file} was sampled with other settings: {other}."
            f" Set it back, give another output_dir, or remove the folder {file.parent}"
        )
    return file.exists()


def judged(file: Path, judge: JudgeConfig, margin: float, candidates: Path) -> bool:
    """Whether `file` holds the pairs of these settings already; those of others are forgotten, with a line.

    Judging again is cheap: the replies to what was asked before come from the judge's cache. Where the judge runs does
    not count: its server is often gone, or has moved, when the pairs are trained on.
    """
    settings = judged_by(judge) | {"margin": margin, "candidates": digest(candidates)}
    if other := changed(file, settings):
        print(f"judge          again, because {other}", flush=True)
        begin_again(file)
        changed(file, settings)
    return file.exists()


def digest(*files: Path) -> str:
    """What tells the contents of these files from others."""
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:12]


def model_of(name: str, revision: str | None = None) -> str:
    """A model's name with what tells it from others of that name: a revision, or of a folder what is in its weights.

    The same wherever the folder lies. Of each file of weights the beginning and the end are read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name if revision in (None, "main") else f"{name}@{revision}"
    seen = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        if not file.relative_to(folder).parts[0].startswith("checkpoint-"):
            with file.open("rb") as weights:
                seen.update(weights.read(_ENDS))
                weights.seek(max(0, file.stat().st_size - _ENDS))
                seen.update(weights.read())
    return f"{folder.absolute().name} {seen.hexdigest()[:12]}"


_ENDS = 1 << 20  # bytes


def data_of(name: str) -> str:
    """A data set's name; of a folder or file only the last part, because it may be named from elsewhere."""
    return Path(name).absolute().name if Path(name).exists() else name


_REACHED = {"model", "engine", "base_url", "api_key_env", "cache", "device", "gpu_memory_utilization", "why"}


def judged_by(judge: JudgeConfig) -> dict[str, Any]:
    """What decides a judgement, and not where the judge runs. Of folders and files only the names: they may move."""
    names = [one.name for one in dataclasses.fields(judge) if one.name not in _REACHED]
    found = {f"judge_{name}": getattr(judge, name) for name in names}
    rubric = judge.rubric if isinstance(judge.rubric, Rubric) else Rubric.load(judge.rubric)
    words = hashlib.sha256(repr(rubric).encode()).hexdigest()[:12]  # a file may have been edited
    return found | {
        "judge_model": judge.model and Path(judge.model).name,
        "judge_prompts": Path(judge.prompts).name,
        "judge_rubric": f"{Path(str(judge.rubric)).name} {words}",
    }


_KEPT = ("seed", "beta", "loss_type", "num_generations")
_KEPT_LORA = ("lora_r", "lora_alpha", "lora_target_modules")


def training(args: Any, model_args: Any) -> dict[str, Any]:
    """What no run changes of its trainer's settings. Steps, epochs and learning rate are changed to train on."""
    found = {name: getattr(args, name) for name in _KEPT if hasattr(args, name)}
    found |= {"model_name_or_path": model_of(model_args.model_name_or_path, model_args.model_revision)}
    found |= {"use_peft": model_args.use_peft}
    return found | ({name: getattr(model_args, name) for name in _KEPT_LORA} if model_args.use_peft else {})


class Noted(TrainerCallback):  # type: ignore[misc]
    """Notes in every checkpoint which settings it belongs to, for `checkpoint` to compare."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Into the folder that the trainer has just written."""
        if state.is_world_process_zero:
            _write(Path(args.output_dir, f"checkpoint-{state.global_step}", _NOTE), self.settings)


_NOTE = "recipe_settings.json"


def checkpoint(args: Any, settings: Mapping[str, Any]) -> str | None:
    """The checkpoint that a trainer's `resume_from_checkpoint` names: a folder, or with "true" the last of the run.

    On the command line "true" is a text, which the trainer would take for a folder's name.

    Args:
        settings: those that must not change in a run, as `Noted` has left them.

    Raises:
        ConfigError: there is none, or it is of a run with other settings.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        return None
    if wanted.lower() == "true":
        found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    else:
        found = wanted if Path(wanted).is_dir() else None
    if found is None:
        where = f"in {args.output_dir}" if wanted.lower() == "true" else f"at {wanted}"
        raise ConfigError(f"there is no checkpoint {where} to go on from; leave --resume_from_checkpoint out to begin")
    if other := _difference(Path(found, _NOTE), settings):
        raise ConfigError(f"{found} is of another run: {other}. Set it back, or begin in another output_dir")
    return found


class Restored(TrainerCallback):  # type: ignore[misc]
    """Puts a checkpoint's weights into the model. For Qwen2.5-VL the trainer does not, and only warns of missing keys.

    It saves them by the names of the model's files and looks for the model's own names (transformers 5.17). What is
    split over devices it loads in another way, and adapters have the right names.
    """

    def __init__(self, begun: str | None) -> None:
        self.begun = begun

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """After the trainer's own try."""
        split = AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.begun is not None and Path(self.begun, "config.json").exists() and not split:
            model.load_state_dict(type(model).from_pretrained(self.begun, dtype=model.dtype).state_dict())


_CURVE = "curve.json"


def keep_curve(folder: str | Path, curve: Mapping[int, Any]) -> None:
    """Leaves what was measured so far, by step, for a run that goes on from a checkpoint of this one."""
    _write(Path(folder, _CURVE), curve)


def earlier_curve(begun: str | None) -> dict[int, Any]:
    """What the run of a checkpoint had measured up to it; nothing for a run that begins.

    A resumed run cannot measure what was before: its weights are those of the checkpoint from the start.
    """
    if begun is None or not Path(begun).with_name(_CURVE).exists():
        return {}
    last = json.loads(Path(begun, "trainer_state.json").read_text("utf-8"))["global_step"]
    curve = json.loads(Path(begun).with_name(_CURVE).read_text("utf-8"))
    return {int(step): found for step, found in curve.items() if int(step) <= last}


def _write(file: Path, settings: Mapping[Any, Any]) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(json.dumps(settings, indent=2, default=str) + "\n", "utf-8")
    fresh.replace(file)


def _difference(note: Path, settings: Mapping[str, Any]) -> str:
    """The settings that the note has otherwise; "" if there is no note."""
    before = json.loads(note.read_text("utf-8")) if note.exists() else {}
    now = json.loads(json.dumps(settings, default=str))
    others = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in others)


# ------------------------------------------------------------------------------------ trackers, loading, publishing


def check_trackers(args: TrainingArguments) -> None:
    """Raises ConfigError if a tracker of `report_to` cannot be used: the trainer finds that after hours of sampling."""
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"report_to {', '.join(args.report_to)}: {error} Or set --report_to none") from None


def loading(model_args: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """How a trainer loads the policy: what ModelConfig says, and over it `model_init_kwargs` as given."""
    from trl import get_quantization_config  # the diffusion recipe has no use for TRL

    found = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(given or {}),
    }
    if quantization := get_quantization_config(model_args):  # TRL 1.6 has no argument for it yet
        found["quantization_config"] = quantization
    return found


def judge_named(judge: JudgeConfig) -> str:
    """Who judged and by what, in words."""
    where = f" at {judge.base_url}" if judge.base_url else ""
    return f"{judge.model}{where}, format {judge.format}, rubric {judge.rubric}"


def card(
    base: str, how: str, judge: str, rows: Sequence[tuple[str, str, str]], library: str = "transformers", more: str = ""
) -> str:
    """A model card in Markdown.

    Args:
        base: the model that was trained.
        how: method and data, the end of "Trained by ..".
        judge: who judged; see `judge_named`.
        rows: what was measured, its value before, and after.
        more: what stands below the table.
    """
    name = Path(base).name
    lines = ["---", f"library_name: {library}", f"base_model: {base}", "tags: [flexjudge_reward]", "---", ""]
    lines += [f"# {name}, as a judge prefers it", "", f"Trained by {how}.", "", f"Judge: {judge}.", ""]
    if rows:
        lines += ["| | before | after |", "|---|---|---|"]
        lines += [f"| {what} | {before} | {after} |" for what, before, after in rows]
        lines += [""]
    return "\n".join([*lines, more])


def publish(args: Any, folder: Path) -> None:
    """Pushes what was trained and its card to the Hub, and nothing of what it was made from.

    Not by the trainer, which would push the whole folder: pictures, pairs and the judge's replies.
    """
    hub = HfApi(token=args.hub_token)
    made = hub.create_repo(args.hub_model_id or folder.absolute().name, private=args.hub_private_repo, exist_ok=True)
    hub.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=_PUSHED, ignore_patterns=_KEPT_HERE)


_PUSHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
# A pattern's * also stands for slashes: the first keeps what lies in folders, such as checkpoints.
_KEPT_HERE = ["*/*", "*.settings.json", "report.json", _CURVE, "pretrained.json"]
