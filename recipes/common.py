"""What every recipe does the same way: arguments, the one rule of resuming, loading, the plot, the model card.

Import it before TRL: it leaves out the bars and the repeated warnings that tell the user of a recipe nothing.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, HfApi, ModelCard
from huggingface_hub.utils import enable_progress_bars
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from flexjudge_reward import ConfigError, FlexJudgeError

PACKAGES = ("flexjudge_reward", "trl", "transformers", "torch", "datasets", "peft", "diffusers", "vllm", "rdkit")

disable_progress_bar()  # of weights, which fills a log; the recipe says what it does
enable_progress_bars()  # of downloads, which take minutes; the line above stops them, too
warnings.filterwarnings("ignore", message="TRL currently supports vLLM")  # at each of five imports; see `begin`
logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)  # of Triton, which no CPU has


def parsed(kinds: Sequence[type], words: Sequence[str] | None = None) -> tuple[Any, ...]:
    """The arguments of a recipe, of TRL and of the model, from the file of --config and the command line.

    Args:
        kinds: the dataclasses that have them.
        words: the command line; by default that of this process.

    Raises:
        ConfigError: there are none, and a model is needed; no such file; or an unknown or wrong argument.
    """
    from trl import ModelConfig, TrlParser  # best_of_n does without TRL
    from yaml import YAMLError

    words = sys.argv[1:] if words is None else list(words)
    needs_model = ModelConfig in kinds
    hint = "name a configuration, such as --config nano.yaml; `flexjudge recipes list` shows those of this recipe"
    if needs_model and not words:
        raise ConfigError(f"this recipe needs arguments: {hint}, and --help the flags")
    try:
        found = TrlParser(kinds).parse_args_and_config(words)
    except OSError as error:
        raise ConfigError(f"--config {error.filename} cannot be read ({error.strerror}): {hint}") from None
    except IndexError:
        raise ConfigError(f"--config needs a file: {hint}") from None
    except FlexJudgeError:  # of the recipe's own arguments
        raise
    except (ValueError, TypeError, YAMLError) as error:  # of TRL, of transformers
        raise ConfigError(f"wrong arguments: {error}") from None
    if needs_model and found[-1].model_name_or_path is None:
        raise ConfigError("no model: set model_name_or_path in the configuration, or --model_name_or_path")
    return tuple(found)


def say(what: str, text: str) -> None:
    """A line before a step that takes a while, by the main process."""
    if PartialState().is_main_process:
        print(f"{what:14} {text}", flush=True)


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
    if getattr(args, "use_vllm", False):  # now it concerns the user that TRL has not seen this vLLM
        from trl.import_utils import is_vllm_available

        with warnings.catch_warnings():
            warnings.simplefilter("default")
            is_vllm_available()
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


def counted(counts: Mapping[str, int]) -> str:
    """What `annotate_file` counted, in words."""
    reasons = sorted(counts.keys() - {"rows", "pairs"})
    skipped = [f"{counts[why]} {why.replace('_', ' ')}" for why in reasons]
    return f"{counts['pairs']} pairs of {counts['rows']} rows; not kept: {', '.join(skipped) or 'none'}"


def pairs_of(folder: Path, least: int) -> Dataset:
    """The pairs that `annotate_file` wrote to `folder`. Raises ConfigError if there are fewer than `least`."""
    with (folder / "pairs.jsonl").open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    if count < max(1, least):
        raise ConfigError(
            f"{count} pairs are too few to train on (min_pairs={least}); {folder / 'README.md'} counts why the others"
            f" were skipped. For another margin remove {folder} and continue with --resume true; for more samples"
            " choose another output_dir"
        )
    return load_dataset(str(folder), split="train")


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


def publish(trainer: Any, rows: Sequence[tuple[str, str, str]], judge: str, pairs: Path | None = None) -> None:
    """Completes the trainer's model card, made to be shared; pushes it, and the curve, if the trainer pushes.

    Args:
        rows: what was measured, before and after.
        judge: who judged, in which format and by which rubric.
        pairs: the folder of `pairs_of`, whose card becomes a part.
    """
    trainer.create_model_card()
    folder = Path(trainer.args.output_dir)
    card = ModelCard.load(folder / "README.md")
    base = str(card.data.get("base_model") or "")
    if base.count("/") != 1 or Path(base).exists():  # no name on the Hub
        card.data.base_model = None
        card.text = card.text.replace(f"[{base}](https://huggingface.co/{base})", Path(base).name)
    if card.data.get("license") == "license":  # TRL's draft
        card.data.license = None
    table = "".join(f"| {what} | {before} | {after} |\n" for what, before, after in rows)
    loaded = [f"{name} {sys.modules[name].__version__}" for name in PACKAGES if sys.modules.get(name)]
    card.text += f"""
## Measured

The judge was {shareable(judge)}.

| | before | after |
|---|---|---|
{table}
![curve](curve.png)

* made by `{command(sys.argv)}`
* packages: {", ".join(loaded)}
* licence: that of the base model and of its data hold; the recipe adds none
"""
    if pairs is not None:
        about = DatasetCard.load(pairs / "README.md").text
        card.text += about.replace("\n## ", "\n### ").replace("# Pref", "\n## Pref")
    card.save(folder / "README.md")
    if trainer.args.push_to_hub:
        where = {"repo_id": trainer.hub_model_id, "revision": trainer.args.hub_revision}
        for name in ("curve.png", "README.md"):
            HfApi(token=trainer.args.hub_token).upload_file(path_or_fileobj=folder / name, path_in_repo=name, **where)


def command(words: Sequence[str]) -> str:
    """The command line of a recipe as a card shows it: no folder of this machine, no address, no key."""
    program = Path(words[0])
    shown, private = ["flexjudge", "recipes", "run", f"{program.parent.name}/{program.stem}"], False
    for word in words[1:]:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            private = re.search("token|key|host|url|server|dir|name|judge", name) is not None
            shown += [] if private else [f"{name}={shareable(value)}" if value else name]
        elif not private:
            shown.append(Path(word).stem if word.endswith(".yaml") else shareable(word))
    return shlex.join(shown)


def shareable(text: str) -> str:
    """A text without the folders of this machine and without addresses."""
    words = ["ADDRESS" if "://" in word else word for word in text.split(" ")]
    return " ".join(Path(word).name if word.startswith(("/", "~", "./", "../")) else word for word in words)
