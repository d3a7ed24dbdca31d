"""The values that move through the package, one way:

    Example --render--> Prompt --generate--> Generation --read--> Verdict --> float | None

All are frozen and compared by content; none knows a model, a trainer or a file. Identity for storage is computed where
it is needed (`cache.py`).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import Media
from flexjudge_reward.rubric import Rubric, Scale

FailureKind = Literal[
    "truncated",  # the token limit cut the reply, or the reasoning never closed
    "malformed",  # finished, but the part after the reasoning is not the answer that was asked for
    "out_of_range",  # a readable number outside the scale, or a letter that is not an option
    "wrong_count",  # readable, but not one score per candidate
    "refused",  # the judge or its server declined
    "empty",  # nothing at all came back
    "media",  # a picture, clip, sound or molecule could not be used
    "transport",  # the server could not be reached or broke the answer, after retries
    "timeout",  # it took too long
    "engine",  # the engine failed on this request
]
"""The closed list of ways a judgement can fail."""


@dataclass(frozen=True)
class Failure:
    """Why there is no score. It becomes a number in no place; `rewards.py` decides what a trainer gets."""

    kind: FailureKind
    detail: str = ""
    """One sentence for a person: what was found, what was expected."""


@dataclass(frozen=True)
class Quoted:
    """Text from outside: a question, an answer, a reference. Engines neutralise control tokens in it (`fence.py`)."""

    text: str


Part = str | Quoted | Media
Content = tuple[str | Media, ...]
ContentLike = str | Media | Sequence[str | Media]


def content(value: ContentLike, what: str) -> Content:
    """`value` as a tuple of texts and media; `what` names it in the error.

    Raises:
        ConfigError: a part is neither text nor `Media`.
    """
    parts = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for part in parts:
        if not isinstance(part, str | Media):
            raise ConfigError(f"{what} must be text, Media or a list of these, found {type(part).__name__}")
    return parts


@dataclass(frozen=True, init=False)
class Example:
    """One thing to judge: a question and its candidate answers, each a sequence of text and media."""

    question: Content
    candidates: tuple[Content, ...]
    reference: Content | None
    rubric: Rubric | None
    """Overrides the format's rubric for this example."""

    def __init__(
        self,
        question: ContentLike,
        candidates: Sequence[ContentLike],
        reference: ContentLike | None = None,
        rubric: Rubric | None = None,
    ) -> None:
        if isinstance(candidates, str | Media):
            raise ConfigError("candidates must be a list with one entry per candidate, found a single text or Media")
        put = object.__setattr__
        put(self, "question", content(question, "the question"))
        put(self, "candidates", tuple(content(c, f"candidate {i}") for i, c in enumerate(candidates)))
        put(self, "reference", None if reference is None else content(reference, "the reference"))
        put(self, "rubric", rubric)

    @property
    def media(self) -> tuple[Media, ...]:
        """Every media item, in prompt order: question, reference, candidates."""
        parts = [*self.question, *(self.reference or ()), *(p for c in self.candidates for p in c)]
        return tuple(part for part in parts if isinstance(part, Media))


@dataclass(frozen=True)
class Message:
    """One chat turn; `parts` are trusted text, quoted text and media, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """What one judge call sees. Structured content: only an engine turns media into a model's own markers.

    A last message of the assistant is the beginning of the reply, which the judge goes on with.
    """

    messages: tuple[Message, ...]
    sample: int = 0
    """Numbers repeated draws of the same messages, so that each has its own seed and its own cache key."""
    changes: tuple[tuple[str, object], ...] = ()
    """Fields of Sampling that this prompt alone needs otherwise; `Judge` applies them, engines do not see them."""

    @property
    def media(self) -> tuple[Media, ...]:
        """Every media item, in order."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Media))

    @property
    def seen(self) -> tuple[Media, ...]:
        """Every picture and clip that the model gets beside its text, in order: of a molecule, its drawing.

        Raises MediaError.
        """
        return tuple(part for media in self.media for part in media.shown() if isinstance(part, Media))


@dataclass(frozen=True)
class Sampling:
    """How the judge decodes. A prompt's own seed is `seed + prompt.sample`."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048
    """Longest reply, reasoning included, in tokens."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives to return with each token; None asks for none."""

    def __post_init__(self) -> None:
        checks = {
            "temperature must be in [0, 2]": 0.0 <= self.temperature <= 2.0,
            "top_p must be in (0, 1]": 0.0 < self.top_p <= 1.0,
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "logprobs must be None or 0 to 20": self.logprobs is None or 0 <= self.logprobs <= 20,
        }
        for rule, holds in checks.items():
            if not holds:
                raise ConfigError(f"{rule}, found {self!r}")


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token, with the alternatives the engine returned for its place."""

    token: str
    logprob: float
    top: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def among(cls, token: str, logprob: float, alternatives: Iterable[tuple[str, float]]) -> TokenLogprob:
        """From tokens, of which several may have one text, as "▁7" and "7" of Llama's: these are one alternative."""
        top: dict[str, float] = {}
        for text, value in alternatives:
            high, low = max(value, top.get(text, -math.inf)), min(value, top.get(text, -math.inf))
            top[text] = high + math.log1p(math.exp(low - high)) if math.isfinite(high) else high
        return cls(token, logprob, top)


FinishReason = Literal["stop", "length", "filter", "error"]


@dataclass(frozen=True)
class Generation:
    """One judge reply, or the reason why there is none.

    `text` is the whole reply with the reasoning inline (`<think>..</think>answer`), also where a server returned the
    reasoning in a field of its own.
    """

    text: str
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached: bool = False
    failure: Failure | None = None
    """Set exactly when `finish_reason` is "error": media, transport, timeout or engine."""

    @classmethod
    def failed(cls, kind: FailureKind, detail: str) -> Generation:
        """The value an engine returns for a request it could not serve."""
        return cls("", "error", failure=Failure(kind, detail))


@dataclass(frozen=True)
class Verdict:
    """One finite score per candidate, or one named failure; never both."""

    scores: tuple[float, ...] | None
    """On the scale of this verdict, one per candidate in the example's order, higher is better. Ties stay ties."""
    failure: Failure | None = None
    scale: Scale = field(default_factory=Scale)
    reasoning: str = ""
    generations: tuple[Generation, ...] = ()
    """What was paid for, kept also when it could not be read."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """Counts of what was done to get here: votes, swaps, forced thoughts; see `adaptive.py`."""
    parts: tuple[Failure | None, ...] = ()
    """What became of each judgement it was made of (votes, comparisons, lists), None for a good one; empty for one."""

    @property
    def judgements(self) -> tuple[Failure | None, ...]:
        """Its parts; itself where it has none."""
        return self.parts or (self.failure,)

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.failure is None):
            raise ConfigError("a verdict has either scores or a failure")

    @classmethod
    def failed(cls, failure: Failure, generations: Sequence[Generation] = (), reasoning: str = "") -> Verdict:
        """A verdict without a score."""
        return cls(None, failure, reasoning=reasoning, generations=tuple(generations))


Steps = Generator[list[Prompt], list[Generation], Verdict]
"""A judgement in rounds: yields prompts, gets their replies in order, returns the verdict."""


class Format(Protocol):
    """The first seam: how to ask, and how to read the reply. `formats.py` has those of the papers."""

    def render(self, example: Example) -> list[Prompt]:
        """The judge calls this example needs. Raises ConfigError if the example does not fit the format."""
        ...

    def read(self, example: Example, generations: Sequence[Generation]) -> Verdict:
        """The replies, in the order of `render`, as a verdict. Never raises on any reply."""
        ...


@runtime_checkable
class Rounds(Protocol):
    """A format that must see replies before it asks more; see `adaptive.py`."""

    def steps(self, example: Example) -> Steps:
        """The judgement in rounds. Raises ConfigError, before the first of them, if the example does not fit."""
        ...


AnyFormat = Format | Rounds


class Engine(Protocol):
    """The second seam: text generation. An engine does not know what a score is.

    `generate` returns one Generation per prompt in the same order. A request that fails alone is a Generation with a
    `failure`; EngineError is for an engine that can answer nothing. An engine that knows which media its model can be
    shown also has `takes(kind) -> bool`.
    """

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]: ...

    def identity(self) -> dict[str, object]:
        """Everything about the engine that could change a reply, as JSON values. Part of every cache key."""
        ...

    def close(self) -> None:
        """Releases the model or the connections; may be called twice."""
        ...
