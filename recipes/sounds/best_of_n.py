"""Best of N on sounds: a generator writes N recordings for each request, a judge that hears picks one.

    python recipes/sounds/best_of_n.py --config recipes/sounds/best_of_n.yaml

Two CPU cores, nothing to download: the tiny generator of `train.py`, and the embedded judge that hears, which never
sees what a recording was made from. The share of right ones is that of the first recording, of the judge's choice, and
of groups that have any.

    vllm serve jongwooko/Flex-Omni-7B --port 8001
    python recipes/sounds/best_of_n.py --config recipes/sounds/best_of_n_llasa_1b.yaml

`output_dir` gets ranked.jsonl, the scores of every group in order, the chosen recordings as WAV files, report.json, and
judgements.jsonl, which `flexjudge report` plays.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexjudge_recipes.common import loading, mapping, parsed, say
from flexjudge_recipes.nano import sound_generator
from flexjudge_recipes.program import run
from flexjudge_recipes.sounds import train
from flexjudge_recipes.sounds.codecs import codec, written

import torch
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from flexjudge_reward import ConfigError, EngineError, Example, Failure, Judge, Media, Ranking, rerank
from flexjudge_reward.media.audio import wav

# ------------------------------------------------------------------------------------------------------- arguments


@dataclass
class RecipeArguments:
    """What is asked for, how the model writes sounds, who judges, and how much is sampled."""

    output_dir: str = field(default="runs/sounds_best_of_n", metadata={"help": "A new or empty folder."})
    dataset_name: str = field(default="nano", metadata={"help": "Requests: a data set's name or folder, or nano."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split of the requests."})
    text_column: str = field(default="text", metadata={"help": "The request, such as the text to speak."})
    codec: str = field(default="nano", metadata={"help": "How the model writes sounds: nano or xcodec2."})
    prepared: str = field(default="runs/sounds", metadata={"help": "The folder of the tiny generator."})
    judge: dict[str, Any] | str | None = field(default=None, metadata={"help": "The settings of Judge, as JSON."})
    requests: int = field(default=120, metadata={"help": "How many requests."})
    n: int = field(default=8, metadata={"help": "Recordings for each."})
    longest: int = field(default=9, metadata={"help": "Most tokens of a recording."})
    seed: int = field(default=1, metadata={"help": "Of the samples, of ties, and of the tiny generator."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "Of the generator."})


def check(options: RecipeArguments) -> None:
    """Raises ConfigError for a wrong number, or an output folder with files."""
    for name, least in (("n", 2), ("requests", 1), ("longest", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} is at least {least}, found {getattr(options, name)}")
    folder = Path(options.output_dir)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds an earlier run: remove it, or give another output_dir")


# --------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Group:
    """What was written for a request, as text and as sound; what is no sound is left out, but for `first`."""

    request: str
    first: str
    """The first text, a sound or not."""
    texts: list[str]
    sounds: list[Media]


def sampled(options: RecipeArguments, model_args: ModelConfig) -> list[Group]:
    """Groups with at least two sounds. Raises ConfigError: there are none."""
    kind = codec(options.codec)
    policy = sound_generator.folder_of(model_args.model_name_or_path, Path(options.prepared), options.seed)
    tokenizer = train.load_tokenizer(policy, model_args.model_revision, kind)
    model = AutoModelForCausalLM.from_pretrained(policy, **loading(model_args, {"device_map": options.device}))
    rows = train.training_data(options, kind, options.seed, options.requests)
    prompts = [prompt for prompt in rows["prompt"] for _ in range(options.n)]
    texts = written(model, tokenizer, prompts, options.longest, options.seed)
    groups = []
    for number, request in enumerate(rows["text"]):
        own = [(text, kind.sound(text)) for text in texts[number * options.n : (number + 1) * options.n]]
        whole = [(text, sound) for text, sound in own if sound is not None]
        if len(whole) > 1:
            groups.append(Group(request, own[0][0], [text for text, _ in whole], [sound for _, sound in whole]))
    say("sampled", f"{len(groups)} of {len(rows)} requests have two sounds or more; the others are left out")
    if not groups:
        raise ConfigError(f"no request has two sounds of {options.n} samples: is the codec right, and longest enough?")
    return groups


# ----------------------------------------------------------------------------------------------------------- report


def measured(groups: Sequence[Group], rankings: Sequence[Ranking], nano: bool) -> dict[str, float]:
    """The judge's mean score, 0 to 1, and in the nano world the share of right ones: first, choice, any.

    Raises:
        EngineError: the judge scored nothing.
    """
    judged = [(group, one, one.best) for group, one in zip(groups, rankings, strict=True) if one.best is not None]
    if not judged:
        raise EngineError("the judge scored no recording at all")
    scores = [[None if isinstance(o, Failure) else o for o in ranking.outcomes] for _, ranking, _ in judged]
    first = [own[0] for own in scores if own[0] is not None]
    chosen = [one for own, (_, _, best) in zip(scores, judged, strict=True) if (one := own[best]) is not None]
    found = {"score_first": statistics.fmean(first or [0.0]), "score_choice": statistics.fmean(chosen)}
    if nano:
        right = [[sound_generator.is_right(group.request, text) for text in group.texts] for group, _, _ in judged]
        found["first"] = statistics.fmean(
            sound_generator.is_right(group.request, group.first) for group, _, _ in judged
        )
        found["judge"] = statistics.fmean(own[best] for own, (_, _, best) in zip(right, judged, strict=True))
        found["oracle"] = statistics.fmean(any(own) for own in right)
    return found


def keep(folder: Path, groups: Sequence[Group], rankings: Sequence[Ranking]) -> None:
    """Writes ranked.jsonl, and the chosen recordings as chosen/NUMBER.wav."""
    (folder / "chosen").mkdir()
    with (folder / "ranked.jsonl").open("w", encoding="utf-8") as lines:
        for number, (group, ranking) in enumerate(zip(groups, rankings, strict=True)):
            scores = [None if isinstance(one, Failure) else one for one in ranking.outcomes]
            row = {"id": number, "request": group.request, "order": list(ranking.order), "best": ranking.best}
            lines.write(json.dumps(row | {"scores": scores, "texts": group.texts}) + "\n")
            if ranking.best is not None:
                (folder / "chosen" / f"{number}.wav").write_bytes(wav(group.sounds[ranking.best].samples()))


def main(words: Sequence[str]) -> None:
    """Reads the arguments, samples, judges, reports."""
    options, model_args = parsed((RecipeArguments, ModelConfig), words)
    check(options)
    folder = Path(options.output_dir)
    with Judge.load(**{"record": str(folder / "judgements.jsonl")} | mapping(options.judge)) as judge:
        say("sampling", f"{options.n} recordings for each of {options.requests} requests")
        groups = sampled(options, model_args)
        folder.mkdir(parents=True, exist_ok=True)
        say("judging", f"{sum(len(group.texts) for group in groups)} recordings")
        rankings = rerank([Example(group.request, group.sounds) for group in groups], judge, options.seed)
    found = measured(groups, rankings, options.dataset_name == "nano")
    keep(folder, groups, rankings)
    (folder / "report.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:14} {value:.3f}")
    print(f"recordings     {folder / 'chosen'}; `flexjudge report {folder}` plays all of them")


if __name__ == "__main__":
    run("sounds", lambda: main(sys.argv[1:]))
