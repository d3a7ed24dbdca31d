"""What the recipes do the same way: going on with what an earlier run left, and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from flexjudge_reward import ConfigError, JudgeConfig


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
    """Forgets a file that `changed` knows, so that it is made anew."""
    for one in (file, file.with_name(file.name + ".settings.json")):
        one.unlink(missing_ok=True)


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


def _write(file: Path, settings: Mapping[str, Any]) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_text(json.dumps(settings, indent=2, default=str) + "\n", "utf-8")
    fresh.replace(file)


def _difference(note: Path, settings: Mapping[str, Any]) -> str:
    """The settings that the note has otherwise; "" if there is no note."""
    before = json.loads(note.read_text("utf-8")) if note.exists() else {}
    now = json.loads(json.dumps(settings, default=str))
    others = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in others)


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


def publish(trainer: Any, dataset: str | None = None) -> None:
    """Pushes the trained model to the Hub, with the card of its folder in the place of the trainer's own."""
    from huggingface_hub import upload_file

    file = Path(trainer.args.output_dir, "README.md")
    text = file.read_bytes() if file.exists() else b""
    trainer.push_to_hub(dataset_name=dataset)
    if text and trainer.is_world_process_zero():
        upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=trainer.hub_model_id)
