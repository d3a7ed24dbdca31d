"""Traces as training rows: the very text that an engine will send to the trained judge, and the reply to learn.

A trace is a row of `flexjudge traces`, of `judge_training/seed` (`flexjudge_reward/offline/traces.py`) or of
`judge_training/mr_judge`, whose images go before the question. Promised: not trained on, and counted with their
reasons, are a reply that the judge's own format cannot read, a thought with control tokens or tags, images that cannot
be shown, and a row that is longer than the model may see. A cut trace would be one without its verdict. An image counts
as one token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from datasets import Dataset, Image, List

from flexjudge_reward import ConfigError, Example, Generation, MediaError, OneCall, Prompt, Rubric, Scale
from flexjudge_reward.data.cells import MEDIA_COLUMNS, columns_of, is_number, source_media, with_media
from flexjudge_reward.data.tables import Table
from flexjudge_reward.engines.model import Chat, Source, load_tokenizer
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.formats.reply import THINK_CLOSE, THINK_OPEN, reasoning
from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.quoting import encodable, neutralise


def stored(name: str, split: str | None = None) -> Iterable[Mapping[str, Any]]:
    """The rows of a parquet file, a folder or a data set of the Hub. Raises ConfigError: a column is missing."""
    table = Table.open(name, split)
    if missing := [column for column in _FITS if column not in table.columns]:
        raise ConfigError(
            f"{name} has no column {missing[0]!r}, so it holds no traces; flexjudge traces rows.jsonl -o traces.parquet"
            " makes such a file"
        )
    return table.rows()


@dataclass(frozen=True)
class Renderer:
    """Renders traces for one model in one wording."""

    chat: Chat
    prompt_set: str
    max_length: int
    end: str
    """The token that ends a reply, which the judge learns to write."""
    answer_first: bool = False
    """The verdict before the reasoning: the ablation that shows what reasoning is worth."""

    @classmethod
    def of(cls, model: str, revision: str | None, end: str | None = None, **options: Any) -> Renderer:
        """Reads the model's tokenizer and chat template, and no weights.

        Args:
            end: by default the tokenizer's `eos_token`.

        Raises:
            EngineError: the model has no tokenizer, or no chat template.
            ConfigError: its tokenizer has no such end.
        """
        source = Source.find(model, revision, False)
        tokenizer = load_tokenizer(source)
        end = end or tokenizer.eos_token
        if not end or end not in tokenizer.get_vocab():
            found = f"no token {end!r}" if end else "no eos_token"
            raise ConfigError(f"the tokenizer of {model} has {found}: give the one that ends a turn with --eos_token")
        return cls(Chat(tokenizer, source.template()), end=end, **options)

    def dataset(self, rows: Iterable[Mapping[str, Any]]) -> tuple[Dataset, Counter[str]]:
        """Rows for TRL's trainer, and why others are left out.

        Texts are `input_ids` and `labels`, which are an engine's tokens whatever the tokenizer writes around a text.
        Where a row has images, all rows are `prompt`, `completion` and `images`, for the processor. Raises ConfigError:
        no row is left.
        """
        kept: list[dict[str, Any]] = []
        skipped, first = Counter[str](), ""
        for number, row in enumerate(rows):
            try:
                kept.append(self.row(row))
            except ConfigError as error:
                why, _, detail = str(error).partition(": ")
                skipped[why] += 1
                first = first or f"row {number}: {why}: {detail}"
        if not kept:
            raise ConfigError(f"no trace can be trained on; {first or 'there are no rows'}")
        if any(row["images"] for row in kept):
            return Dataset.from_list(kept).cast_column("images", List(Image())), skipped
        return Dataset.from_list([self._encoded(row) for row in kept]), skipped

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One training row. Raises ConfigError "REASON: DETAIL" if it cannot be trained on."""
        given = row.get("prompt")  # a page of `nano`, no column of a file
        prompt, reply = (given, row["reply"]) if isinstance(given, Prompt) else self._judgement(row)
        try:
            images = [media.images()[0] for media in prompt.shown]
            text = self.chat.render(prompt)
        except ValueError as error:
            raise ConfigError(f"{'media' if isinstance(error, MediaError) else 'template'}: {error}") from None
        if text.rstrip().endswith(THINK_OPEN):  # the template has opened the reasoning
            reply = reply.removeprefix(THINK_OPEN).lstrip("\n")
        length = len(self._ids(text)) + len(self._ids(reply))
        if length > self.max_length:
            raise ConfigError(f"too long: {length} tokens, and max_length is {self.max_length}")
        return {"prompt": text, "completion": reply, "length": length, "images": images}

    def _judgement(self, row: Mapping[str, Any]) -> tuple[Prompt, str]:
        """The prompt of a trace in this wording, and its reply with the end of the turn."""
        if wrong := next((name for name, fits in _FITS.items() if not fits(row[name])), None):
            raise ConfigError(f"column: {wrong!r} cannot be {row[wrong]!r:.80}")
        format = _format(row["format"], row["criteria"], row["low"], row["high"], self.prompt_set)
        example = Example(_question(row), row["candidates"], row.get("reference"))
        format.check(example)
        failure = format.read(example, [Generation(row["reply"])]).failure
        if failure is not None:
            raise ConfigError(f"{failure.kind}: {failure.detail}")
        reply = str(row["reply"]).strip()
        if neutralise(reasoning(reply), self.chat.tokens) != encodable(reasoning(reply)):
            raise ConfigError("control: the reasoning has a control token or a tag of a reply")
        thought, closed, answer = reply.rpartition(THINK_CLOSE)
        reply = answer.strip() + thought + closed if self.answer_first else reply
        (prompt,) = format.render(example)
        return prompt, reply + self.end

    def _encoded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        prompt, reply = self._ids(row["prompt"]), self._ids(row["completion"])
        return {"input_ids": [*prompt, *reply], "labels": [-100] * len(prompt) + reply, "length": row["length"]}

    def _ids(self, text: str) -> list[int]:
        return list(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value))


_FITS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("format", "question", "criteria", "reply"), _is_text),
    **dict.fromkeys(("low", "high"), is_number),
    "candidates": _are_texts,
}
"""What each column of a trace holds."""


def _question(row: Mapping[str, Any]) -> list[str | Media]:
    """The question with the images of the row before it. Raises ConfigError: other media, or an image by its path."""
    if other := [kind for kind in MEDIA_COLUMNS if kind != "image" and columns_of(kind, row)]:
        raise ConfigError(f"media: a trace can show images only, found {other[0]}")
    try:
        images = [source_media("image", with_media(one, "image"), (), {}) for one in columns_of("image", row)]
    except ValueError as error:
        raise ConfigError(f"media: {error}") from None
    return [*images, row["question"]]


@lru_cache(maxsize=256)
def _format(name: str, criteria: str, low: float, high: float, prompt_set: str) -> OneCall:
    if name not in FORMATS:
        raise ConfigError(f"format: {name!r} is none of {', '.join(FORMATS)}")
    return FORMATS[name](Rubric(criteria, Scale(low, high)), prompt_set)
