"""Which class a base model is, what of it learns, and the folder that becomes the judge.

Only the language model learns: what a model sees and hears does not change by reading about judgements. Of an Omni
model that is part of its Thinker, which is put back into the files of the whole model; nothing else is changed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import Linear
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.pytorch_utils import Conv1D

from flexjudge_reward import ConfigError
from flexjudge_reward.engines import decode

THINKER = "thinker."
"""Before the names of the Thinker's weights in the files of an Omni model."""


def model_class(config: Any) -> Any:
    """The class to load for a configuration: of an Omni model its Thinker.

    Raises ConfigError: the installed transformers has no such class.
    """
    if hasattr(config, "thinker_config"):
        name = type(config).__name__.removesuffix("Config") + "ThinkerForConditionalGeneration"
    else:
        name = (config.architectures or ["a class that it names"])[0]
    found = getattr(transformers, name, None)
    if found is None:
        installed = f"transformers {transformers.__version__}, which is installed, does not have"
        raise ConfigError(f"the model's config.json wants {name}, which {installed}: install a newer one")
    return found


def read_config(model: str, revision: str | None) -> Any:
    """The configuration of a model. Raises ConfigError: none that the installed transformers knows."""
    try:
        return transformers.AutoConfig.from_pretrained(model, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the model {model!r} cannot be used: {' '.join(str(error).split()):.300}") from None


def load(model: str, revision: str | None, options: Mapping[str, Any]) -> Any:
    """The model with its weights, as it is trained."""
    loaded = model_class(read_config(model, revision)).from_pretrained(model, revision=revision, **options)
    if is_thinker(loaded):
        loaded.base_model_prefix = "model"  # TRL's loss calls `base_model`, and the class names one it does not have
    return loaded


def load_processor(model: str, revision: str | None) -> Any:
    """What turns text, and media if the model takes any, into its inputs."""
    config = read_config(model, revision)
    if hasattr(config, "vision_config") or hasattr(config, "thinker_config"):
        return decode.load_processor(model, config, {"revision": revision})
    return transformers.AutoTokenizer.from_pretrained(model, revision=revision)


def is_thinker(model: Any) -> bool:
    """Whether it is the Thinker of an Omni model."""
    return "Thinker" in type(model).__name__


def freeze_encoders(model: Any) -> list[str]:
    """Leaves only the language model and its head to be trained; the names of the modules that are frozen whole.

    What is frozen already, such as all but the adapters of a PeftModel, stays so.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    parts = (part for part in (whole.get_decoder(), whole.get_output_embeddings()) if part is not None)
    learns = {id(weight) for part in parts for weight in part.parameters()}
    for weight in whole.parameters():
        weight.requires_grad_(weight.requires_grad and id(weight) in learns)
    frozen = list[str]()
    for name, module in whole.named_modules():
        weights = list(module.parameters())
        inside = any(name.startswith(f"{outer}.") for outer in frozen)
        if weights and not inside and not any(id(weight) in learns for weight in weights):
            frozen.append(name)
    return frozen


def lora_targets(model: Any) -> str:
    """A pattern of the linear layers of the language model. "all-linear" would adapt the encoders, too."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    layers = (name for name, module in decoder.named_modules() if isinstance(module, Linear | Conv1D))
    names = {name.rpartition(".")[2] for name in layers}
    chosen = sorted(name for name in names if name.endswith("_proj")) or sorted(names)  # of older families all
    return rf"{re.escape(prefix)}\..*({'|'.join(map(re.escape, chosen))})"


def save_judge(trainer: Any, base: str, revision: str | None, options: Mapping[str, Any]) -> None:
    """Makes the output folder the judge: whole weights, with adapters merged, and of an Omni model all its files.

    Every process calls it, since the weights may be split over them. Adapters are in `adapter/`, a Thinker alone in
    `thinker/`.
    """
    out = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = isinstance(model, PeftModel)
    model = model.get_base_model() if adapted else model
    thinker = is_thinker(model)
    folder = out / "thinker" if thinker else out
    if thinker:
        model.base_model_prefix = type(model).base_model_prefix
    trainer.save_model(str(out / "adapter" if adapted else folder))
    if not trainer.accelerator.is_main_process:
        return
    if adapted:
        unset_hf_deepspeed_config()  # else one process alone would wait for the others to take their shares
        whole = PeftModel.from_pretrained(load(base, revision, options), out / "adapter").merge_and_unload()
        whole.base_model_prefix = type(whole).base_model_prefix
        whole.generation_config = model.generation_config  # with the end that was learned
        whole.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
    if thinker:
        put_back(folder, local(base, revision), out)


def local(model: str, revision: str | None) -> Path:
    """The folder with all files of a model; those of the Hub are fetched."""
    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model, revision=revision))


def put_back(thinker: Path, base: Path, out: Path) -> None:
    """Writes the files of the Omni model `base` to `out`, with the weights of its Thinker replaced, file by file.

    The talker is never loaded, and its files, such as spk_dict.pt, stay byte for byte. Raises ConfigError: a weight of
    the Thinker is not in the base, or has another shape there.
    """
    trained = {
        name: file
        for file in thinker.glob("*.safetensors")
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    }
    left = set(trained)
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors":
            if path.is_dir():
                shutil.copytree(path, out / path.name, dirs_exist_ok=True)  # a run that was cut off left it there
            else:
                shutil.copyfile(path, out / path.name)
            continue
        weights = load_file(path)
        for name in weights:
            own = name.removeprefix(THINKER)
            if name.startswith(THINKER) and own in left:
                with safe_open(trained[own], "pt") as file:
                    new = file.get_tensor(own)
                if new.shape != weights[name].shape:
                    raise ConfigError(f"{own} is {tuple(new.shape)}, and {tuple(weights[name].shape)} in {base}")
                weights[name] = new.to(weights[name].dtype)
                left.remove(own)
        save_file(weights, out / path.name, metadata={"format": "pt"})
    if left:
        raise ConfigError(f"{len(left)} weights of the Thinker are not in {base}, such as {min(left)}")
