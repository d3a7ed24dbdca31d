"""The card of a file or data set of preference pairs: who judged what and how, and what came of it.

It is made to be shared: it names the source without its folder and the judge without its address. The texts of its
examples come from the data, so they are fenced, and cannot become a heading, a link or HTML.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from flexjudge_reward.data.rows import RowOptions, Rows
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.formats.groups import Tournament
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.judge.config import JudgeConfig
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.pairs import Which
from flexjudge_reward.prompts.quoting import fence_line
from flexjudge_reward.prompts.template import built_in_name, own_prompt_set
from flexjudge_reward.rubric import Rubric, rubric_names

EXAMPLES, LONGEST = 3, 600  # how many, and characters of one of their texts
_BINS, _BAR = 10, 40
_LAYERS = {
    "PositionSwap": "both orders",
    "MajorityVote": "votes",
    "ExpectedScore": "expected scores",
    "BudgetForcing": "a budget of thought",
    "Tournament": "the pairs of a row",
    "AnchoredChunks": "anchored chunks",
    "Knockout": "knockouts",
}
_SETTINGS = {  # of each layer: the fields of `JudgeConfig` and the attributes that they set
    "PositionSwap": {"swap_margin": "margin"},
    "MajorityVote": {"votes": "k"},
    "BudgetForcing": {"answer_tokens": "answer_tokens"},
    "MinConfidence": {"min_confidence": "least"},
    "Tournament": {"schedule": "schedule", "budget": "budget"},
    "Checklist": {"criteria_per_call": "per_call"},
}
_SWITCHES = {"PositionSwap": "position_swap", "ExpectedScore": "expected_score", "CommitFirst": "commit_first"}
_REASONS = {
    "tie": "equal scores",
    "order_inconsistent": "the winner changes with the order",
    "below_margin": "the scores are too close",
    "identical": "the candidates are equal",
    "not_selected": "a pair further apart was kept for the row",
    "row": "the row cannot be used",
}
_PACKAGES = ("flexjudge_reward", "datasets", "huggingface_hub", "torch", "transformers", "vllm", "rdkit")


@dataclass(frozen=True)
class Making:
    """The input and the settings of a run of `annotate`."""

    rows: Rows
    judge: Judge
    which: Which
    margin: float
    options: RowOptions
    license: str | None

    def card(self, kept: Iterable[Mapping[str, Any]], counts: Mapping[str, int]) -> str:
        """The card in Markdown. `kept` are the lines of the pairs."""
        margins: list[float] = []
        shown: list[Mapping[str, Any]] = []
        for line in kept:
            margins.append(line["scores"][0] - line["scores"][1])
            if len(shown) < EXAMPLES:
                shown.append(line)
        best = "the best of each row" if self.which == "best" else "all"
        return "\n".join(
            [
                f"# Preference pairs of {self.rows}",
                "",
                f"{counts['pairs']} pairs from {counts['rows']} rows; {best}",
                f"with a margin of at least {self.margin:g}.",
                "",
                *self._settings(),
                "## Margins",
                "",
                "Score of the chosen answer less that of the rejected one.",
                "",
                *_fenced(_histogram(margins) or "no pairs"),
                "## Examples",
                "",
                *(text for line in shown for text in _example(line)),
                "## Not kept",
                "",
                "| skipped because | pairs | |",
                "|---|---|---|",
                *_skipped(counts),
                "",
            ]
        )

    def front_matter(self, pairs: int, tags: Iterable[str] = ()) -> str:
        """The metadata of the Hub. Needs huggingface_hub.

        Without `configs`: with them `load_dataset` keeps what it read by the name of the folder alone (datasets 5.2),
        and gives the pairs of another folder, or of an earlier run.
        """
        from huggingface_hub import DatasetCard, DatasetCardData

        size = next((f"{low}<n<{high}" for low, high, most in _SIZES if pairs < most), "n>1M")
        data = DatasetCardData(
            license=self.license,
            tags=["preference", "dpo", "flexjudge-reward", *tags],
            size_categories=[size if size != "0<n<1K" else "n<1K"],
        )
        return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n"))

    def command(self) -> str:
        """The command that makes these pairs again, where the source and the judge are.

        A word in capitals is a place that the card does not name: an address, a folder or a file of the user's own.
        """
        described = self.judge.described()
        words = ["flexjudge", "annotate", self._source(), "-o", "pairs", "--pairs", self.which]
        words += ["--margin", f"{self.margin:g}", "--format", _format_name(self.judge.format.innermost())]
        if described["model"] is not None:
            words += ["--model", _named(described["model"])]
        if described["engine"] in ("server", "vendor"):
            words += ["--base-url", "ADDRESS"] if described["engine"] == "server" else ["--engine", "vendor"]
        words += _flags(_judge_settings(self.judge))
        for entry, columns in (self.options.get("columns") or {}).items():
            words += [word for column in columns or [""] for word in ("--column", f"{entry}={column}")]
        named = ("split", "config_name", "limit", "shuffle_seed", "completion", "ignored_columns")
        read = {name: self.options.get(name) for name in named}
        return shlex.join([*words, *_flags({"media_root": self.options.get("media_root") and "FOLDER", **read})])

    def _source(self) -> str:
        local = Path(self.rows.name)
        return local.name if local.exists() else self.rows.name

    def _settings(self) -> list[str]:
        described, format = self.judge.described(), self.judge.format
        names = [_LAYERS.get(type(layer).__name__, type(layer).__name__) for layer in list(format.layers())[:-1]]
        settings = {
            "judge": described["model"] and _named(described["model"]),
            "engine": described["engine"],
            "version": described["version"],
            "format": ", ".join([format.innermost().name, *reversed(names)]),
            "rubric": described["rubric"],
            "sampling": f"temperature {described['temperature']:g}, at most {described['max_tokens']} tokens,"
            f" seed {described['seed']}",
            "licence": self.license or "not stated: that of the source, and of the judge's model, hold",
            "packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        lines = [f"* {name}: {' '.join(str(value).split())}" for name, value in settings.items() if value is not None]
        return [*lines, "", *_fenced(self.command())]


def _judge_settings(judge: Judge) -> dict[str, object]:
    """The fields of `JudgeConfig` that make this format and this sampling, where they differ from the defaults."""
    sampling, plain = judge.sampling, judge.format.innermost()
    found: dict[str, object] = {name: getattr(sampling, name) for name in ("temperature", "max_tokens", "seed")}
    found["answer_tokens"] = 0
    if isinstance(plain, OneCall):
        named = (name for name in rubric_names() if Rubric.load(name) == plain.rubric)
        found["rubric"] = next(named, "RUBRIC")
        own = own_prompt_set(str(judge.engine.identity().get("model")))
        if not (own and plain.template.is_of(own, plain.name)):
            found["prompt_set"] = built_in_name(plain.template, plain.name) or "PROMPTS"
    outer: Format | None = None
    for layer in judge.format.layers():
        name = type(layer).__name__
        found |= {setting: getattr(layer, own) for setting, own in _SETTINGS.get(name, {}).items()}
        if name in _SWITCHES and not (name == "PositionSwap" and isinstance(outer, Tournament)):  # swapped without it
            found[_SWITCHES[name]] = True
        outer = layer
    found["position_swap"] = found.get("position_swap") or found.get("swap_margin") is not None
    defaults = {field.name: field.default for field in dataclasses.fields(JudgeConfig)}
    return {name: value for name, value in found.items() if value != defaults[name]}


def _flags(settings: Mapping[str, object]) -> list[str]:
    """The flags of settings; None is one that was not given."""
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _format_name(plain: Format) -> str:
    kind = type(plain)
    return plain.name if FORMATS.get(plain.name) is kind else f"{kind.__module__}:{kind.__name__}"


def versions() -> dict[str, str]:
    """The version of each package that decided the result: of this one, and of those that are loaded."""
    loaded = {name: sys.modules.get(name) for name in _PACKAGES}  # None also where an import is blocked
    return {name: str(module.__version__) for name, module in loaded.items() if module is not None}


_SIZES = (("0", "1K", 1_000), ("1K", "10K", 10_000), ("10K", "100K", 100_000), ("100K", "1M", 1_000_000))


def _named(model: object) -> str:
    """A model's name; of a folder, here or on the judge's server, its own."""
    name = str(model)
    if "://" in name:
        name = name.split("://", 1)[1]
    local = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name[:1] in (".", "~")
    return PureWindowsPath(name).name if local else name


def _histogram(margins: list[float]) -> str:
    """A line per bin, with a bar and a count."""
    if not margins:
        return ""
    low, high = min(margins), max(margins)
    width = (high - low) / _BINS
    bins = Counter(min(int((margin - low) / width), _BINS - 1) if width else 0 for margin in margins)
    most, lines = max(bins.values()), []
    for number in range(_BINS if width else 1):
        span = f"{low + number * width:8.2f} to {low + (number + 1) * width:8.2f}" if width else f"{low:8.2f}"
        lines.append(f"{span}  {'#' * -(-_BAR * bins[number] // most):{_BAR}}  {bins[number]}")
    return "\n".join(lines)


def _example(line: Mapping[str, Any]) -> list[str]:
    scores, thoughts = line["scores"], [*line.get("reasoning", ())]
    said = [
        ("Question", _said(line["prompt"], line.get("images"))),
        *zip(_CHOSEN, map(_answer, _pair(line)), strict=True),
    ]
    alone = len(thoughts) == 2
    said += [
        (f"Reasoning, {side}" if alone else "Reasoning", text) for side, text in zip(_CHOSEN, thoughts, strict=False)
    ]
    lines = [f"### Row {_plain(line['id'])}: {scores[0]:g} against {scores[1]:g}", ""]
    for name, text in said:
        lines += [f"{name}:", "", *_fenced(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")]
    return lines


_CHOSEN = ("Chosen", "Rejected")


def _pair(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line["chosen"], line["rejected"]


def _answer(value: Any) -> str:
    return "[image]" if isinstance(value, str) else _said(value)


def _said(value: Any, images: Any = None) -> str:
    """Messages as text, with places for media; never a path."""
    texts = ["[image]"] * len(images or ())
    for message in value if isinstance(value, list) else [{"content": value}]:
        content = message.get("content")
        for block in content if isinstance(content, list) else [{"text": content or ""}]:
            media = "text" not in block if isinstance(block, dict) else False
            texts.append(
                f"[{block.get('type', 'media')}]" if media else str(block["text"] if isinstance(block, dict) else block)
            )
    return "\n".join(texts)


def _plain(value: object) -> str:
    return "".join(char if char.isalnum() or char in "-_. " else " " for char in str(value))[:60]


def _fenced(text: str) -> list[str]:
    """A text as a block that it cannot end."""
    fence = fence_line([text])
    return [f"{fence}text", text, fence, ""]


def _skipped(counts: Mapping[str, int]) -> list[str]:
    reasons = sorted((why, count) for why, count in counts.items() if why not in ("rows", "pairs") and count)
    return [f"| {why} | {count} | {_REASONS.get(why, 'the judgement failed')} |" for why, count in reasons]
