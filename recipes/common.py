"""What every recipe does the same way: the one rule of resuming, loading, the plot, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState
from huggingface_hub import HfApi
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint

from flexjudge_reward import ConfigError


def begin(args: Any, resume: bool) -> str | None:
    """The checkpoint to continue from, or None. The one rule: the output folder is empty, or `resume` is set.

    Raises ConfigError if it is not, or if a tracker of `report_to` cannot be used.
    """
    folder = Path(args.output_dir)
    left = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if left and not resume:
        raise ConfigError(f"{folder} holds an earlier run ({', '.join(left[:5])}): --resume true or another output_dir")
    try:  # the trainer would find out after hours of sampling
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"report_to {', '.join(args.report_to)}: {error} Or set --report_to none") from None
    PartialState().wait_for_everyone()  # no process may write before all have looked
    return get_last_checkpoint(folder) if left else None


def mapping(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Settings as a YAML file gives them, or as JSON on the command line. Raises ConfigError for anything else."""
    try:
        return dict(json.loads(given) if isinstance(given, str) else given or {})
    except (TypeError, ValueError):
        raise ConfigError(f'expected settings such as \'{{"model": "nano"}}\', found {given!r}') from None


def loading(model_args: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a trainer loads the policy: what ModelConfig says, overridden by `model_init_kwargs`."""
    own = {name: getattr(model_args, name) for name in ("attn_implementation", "dtype")}
    return own | {"revision": model_args.model_revision} | dict(given or {})


class Restored(TrainerCallback):  # type: ignore[misc]
    """Loads a checkpoint's weights into Qwen2.5-VL; the trainer does not, and only warns (transformers 5.19).

    It looks for the model's own names, and the checkpoint has those of its files. Split weights load in another way.
    """

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        split = AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if self.checkpoint is not None and Path(self.checkpoint, "config.json").exists() and not split:
            model.load_state_dict(type(model).from_pretrained(self.checkpoint, dtype=model.dtype).state_dict())


def plot(file: Path, title: str, panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> None:
    """One panel per y label, with its lines by name over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(panels), 4), dpi=120, layout="constrained")
    figure.suptitle(title)
    for axis, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, values in lines.items():
            axis.plot(list(values), list(values.values()), "o-" if len(values) < 20 else "-", label=name)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file)


def publish(trainer: Any, rows: Sequence[tuple[str, str, str]], judge: str) -> None:
    """Adds what was measured, before and after, to the trainer's model card; pushes that too if the trainer pushes."""
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md")
    text = f"\n## Measured\n\nThe judge was {judge}.\n\n| | before | after |\n|---|---|---|\n"
    text += "".join(f"| {what} | {before} | {after} |\n" for what, before, after in rows)
    card.write_text(card.read_text("utf-8") + text, "utf-8")
    if trainer.args.push_to_hub:
        where = {"repo_id": trainer.hub_model_id, "revision": trainer.args.hub_revision}
        HfApi(token=trainer.args.hub_token).upload_file(path_or_fileobj=card, path_in_repo="README.md", **where)
