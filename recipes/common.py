"""What the recipes do the same way: going on from a checkpoint, and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from flexjudge_reward import ConfigError, JudgeConfig


def checkpoint(args: Any) -> str | None:
    """The checkpoint that a trainer's `resume_from_checkpoint` names: a folder, or with "true" the last of the run.

    On the command line "true" is a text, which the trainer would take for a folder's name.

    Raises:
        ConfigError: there is none.
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


def publish(trainer: Any, dataset: str | None = None) -> None:
    """Pushes the trained model to the Hub, with the card of its folder in the place of the trainer's own."""
    from huggingface_hub import upload_file

    file = Path(trainer.args.output_dir, "README.md")
    text = file.read_bytes() if file.exists() else b""
    trainer.push_to_hub(dataset_name=dataset)
    if text and trainer.is_world_process_zero():
        upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id=trainer.hub_model_id)
