"""The values that move through the package, one way:

    Example --render--> Prompt --generate--> Generation --read--> Verdict --> float | None

All are frozen and compared by content. None knows a model, a trainer or a file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.media.base import Media
from flexjudge_reward.rubric import Criterion, Rubric, Scale

FailureKind = Literal[
    "truncated",  # the token limit cut the reply, or the reasoning never closed
    "malformed",  # finished, but the part after the reasoning is not the requested answer
    "out_of_range",  # a readable number outside the scale, or a letter that is not an option
    "wrong_count",  # readable, but not one score per candidate
    "refused",  # the judge declined, or its server declines this one request
    "unsupported",  # it needs something that the server or the model does not know; the detail names it
    "prompt_cut",  # the server dropped a part of the prompt, so that the judge did not see what it judged
    "empty",  # the reply has no text
    "media",  # an image, a video, an audio clip or a molecule could not be used
    "unfinished",  # the completion ended inside its own reasoning: there is no answer, and no judge was asked
    "transport",  # the server could not be reached or broke the reply, after retries
    "timeout",  # no reply within the time limit
    "engine",  # the engine failed on this request
    "check",  # a criterion's own check raised, or gave no yes or no
    "uncertain",  # there is a score, and the judge is less sure of it than the setting `min_confidence`
]
"""The closed list of ways a judgement can fail."""

Cause = Literal["ours", "unclear", "candidate"]


@dataclass(frozen=True)
class Failure:
    """Why there is no score. It never becomes a score; `judge/rewards.py` decides what a trainer gets."""

    kind: FailureKind
    detail: str = ""
    """Human-readable: expected against found."""
    cause: Cause | None = None
    """Whether the candidate caused it, where that was found out (`judge/groups.py`); else the kind says it. "unclear"
    where no candidate was shown yet: it is asked once more, and then is ours."""


NOT_SHOWN: tuple[FailureKind, ...] = ("media", "unfinished")
"""Failures of a candidate that no judge can be shown: its group is judged without it."""


@dataclass(frozen=True)
class Untrusted:
    """Text from outside: a question, an answer, a reference. Engines neutralise control tokens in it."""

    text: str


class Unfinished(str):
    """A completion that ended inside its own reasoning (`data/completion.py`): the only part of its candidate."""

    @property
    def failure(self) -> Failure:
        """What its judgement is."""
        detail = f"the completion ended inside its reasoning, after {len(self)} characters"
        return Failure("unfinished", detail, "candidate")


class OwnAnswer(str):
    """The judge's own answer in the place of a reference (`formats/commit.py`); a criterion's check does not see it."""


Part = str | Untrusted | Media
Content = tuple[str | Media, ...]
ContentLike = str | Media | Sequence[str | Media]


def content(value: ContentLike, what: str) -> Content:
    """`value` as a tuple of texts and media; `what` names it in the error. Raises ConfigError."""
    if isinstance(value, str):
        return (value,)
    parts = tuple(value) if isinstance(value, Sequence) else (value,)
    for part in parts:
        if not isinstance(part, (str, Media)):
            raise ConfigError(f"{what} must be text, Media or a list of these, found {type(part).__name__}")
    return parts


@dataclass(frozen=True, init=False)
class Example:
    """One question and its candidate answers, each a sequence of text and media."""

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

    def with_candidates(self, candidates: Sequence[ContentLike]) -> Example:
        """The same question with other candidates."""
        return Example(self.question, candidates, self.reference, self.rubric)

    @property
    def media(self) -> tuple[Media, ...]:
        """Every media item, in prompt order: question, reference, candidates."""
        contents = (self.question, self.reference or (), *self.candidates)
        return tuple([part for parts in contents for part in parts if isinstance(part, Media)])

    def digest(self, salt: object = "", by_source: bool = False) -> str:
        """SHA-256 over the content, in hex: equal examples have equal digests, in every process.

        Media that cannot be read count by kind only, so that this never raises.

        Args:
            salt: anything with a stable `repr`; other salts give other digests.
            by_source: media count by their sources, so that no image is decoded.
        """
        parts = (self.question, self.reference or (), *self.candidates)
        texts = [[_name(part, by_source) for part in content] for content in parts]
        return hashlib.sha256(repr((salt, texts, self.rubric)).encode("utf-8", "surrogatepass")).hexdigest()


def _name(part: str | Media, by_source: bool) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    try:
        return part.kind, part.source_name() if by_source else part.digest
    except MediaError:
        return part.kind, "unusable"


@dataclass(frozen=True)
class Message:
    """One chat turn; `parts` are trusted text, untrusted text and media, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """What one judge call sees. Structured content: only an engine turns media into a model's own markers.

    A trailing assistant message is a prefill that the model continues.
    """

    messages: tuple[Message, ...]
    media: tuple[Media, ...] = field(init=False, repr=False, compare=False)
    """Every media item, in order."""

    def __post_init__(self) -> None:
        media = [part for message in self.messages for part in message.parts if isinstance(part, Media)]
        object.__setattr__(self, "media", tuple(media))

    def without_system_turn(self) -> Prompt:
        """The same prompt for a judge without a system turn: its instructions are in front of the first user turn."""
        first, *rest = self.messages
        if first.role != "system" or not rest or rest[0].role != "user":
            return self
        return Prompt((Message("user", (*first.parts, "\n\n", *rest[0].parts)), *rest[1:]))

    @property
    def shown(self) -> tuple[Media, ...]:
        """Every image, video, sound and molecule as tokens that the model gets, in order; of a drawn one, the image.

        Raises MediaError.
        """
        if not self.media:
            return ()
        return tuple(part for media in self.media for part in media.as_judge_input() if isinstance(part, Media))


@dataclass(frozen=True)
class Sampling:
    """How the judge decodes one reply."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048
    """Longest reply, reasoning included, in tokens."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many alternatives to return with each token, 0 to 20; None returns no log probabilities."""

    def __post_init__(self) -> None:
        checks = {
            "temperature must be in [0, 2]": 0.0 <= self.temperature <= 2.0,
            "top_p must be in (0, 1]": 0.0 < self.top_p <= 1.0,
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "logprobs must be None or 0 to 20": self.logprobs is None or 0 <= self.logprobs <= 20,
            "stop must be a list of texts": not isinstance(self.stop, str),
        }
        for rule, holds in checks.items():
            if not holds:
                raise ConfigError(f"{rule}, found {self!r}")
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True)
class Request:
    """One judge call: the prompt and how to sample its reply."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    answer_tokens: int = 0
    """Tokens for an answer beyond `max_tokens`, where an engine can close the reasoning there itself; others ignore
    it."""

    def changed(self, **fields: object) -> Request:
        """The same request with other fields of `Sampling`."""
        return replace(self, sampling=replace(self.sampling, **fields))  # type: ignore[arg-type]


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token, with the alternatives the engine returned for its position."""

    token: str
    logprob: float
    top: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def merged(cls, token: str, logprob: float, alternatives: Iterable[tuple[str, float]]) -> TokenLogprob:
        """Alternatives with equal text are one: Llama's tokenizer has "▁7" and "7", and both read "7"."""
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
    reasoning in a separate field.
    """

    text: str
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached: bool = False
    closed: bool = False
    """Whether the engine closed the reasoning itself, at the limit (`Request.answer_tokens`)."""
    failure: Failure | None = None
    """Set exactly when `finish_reason` is "error": media, transport, timeout or engine."""

    @classmethod
    def failed(cls, kind: FailureKind, detail: str) -> Generation:
        """The value an engine returns for a request it could not serve."""
        return cls("", "error", failure=Failure(kind, detail))


@dataclass(frozen=True)
class CriterionAnswer:
    """Whether a candidate meets one criterion of a checklist, by the judge or by the criterion's own check."""

    criterion: Criterion
    met: bool


@dataclass(frozen=True)
class Verdict:
    """One finite score per candidate, or one named failure; never both."""

    scores: tuple[float, ...] | None
    """On the scale of this verdict, one per candidate in the example's order, higher is better. Ties stay ties."""
    failure: Failure | None = None
    scale: Scale = field(default_factory=Scale)
    reasoning: str = ""
    generations: tuple[Generation, ...] = ()
    """Every reply behind this verdict, unreadable ones included."""
    counters: Mapping[str, float] = field(default_factory=dict)
    """Votes, swaps, forced answers and comparisons; each format wrapper documents its own."""
    outcomes: tuple[Failure | None, ...] = ()
    """Per judgement that this verdict combines (votes, comparisons, lists; else itself): its failure, or None."""
    comparisons: tuple[PairVerdict, ...] = ()
    """Of a tournament: the verdict on every pair that was compared."""
    answers: tuple[CriterionAnswer, ...] = ()
    """Of a checklist: every criterion that was answered, in order."""
    own_answer: str = ""
    """The judge's own answer to the question, where it gave one before it saw the candidates (`formats/commit.py`)."""
    spread: tuple[float, ...] = ()
    """How unsure the judge is of each score: the standard deviation over votes, orders or the answer's distribution, on
    `scale`. Empty where a single answer does not tell."""

    def __post_init__(self) -> None:
        if (self.scores is None) == (self.failure is None):
            raise ConfigError("a verdict has either scores or a failure")
        if not self.outcomes:
            object.__setattr__(self, "outcomes", (self.failure,))

    @classmethod
    def failed(cls, failure: Failure, generations: Sequence[Generation] = (), reasoning: str = "") -> Verdict:
        """A verdict without a score."""
        return cls(None, failure, reasoning=reasoning, generations=tuple(generations))

    def without_scores(self, failure: Failure) -> Verdict:
        """The same verdict with a failure instead of scores; replies and counters stay."""
        outcomes = self.outcomes if len(self.outcomes) > 1 else (failure,)
        return replace(self, scores=None, failure=failure, outcomes=outcomes)

    @property
    def confidence(self) -> float | None:
        """1 where the judge is sure of all scores, 0 where it says both ends of the scale alike; None if unknown."""
        half = (self.scale.high - self.scale.low) / 2
        return max(0.0, 1 - max(self.spread) / half) if self.spread else None

    def is_unsure(self, least: float) -> bool:
        """Whether `confidence` is below `least`, or failures, as of votes, left an answer that does not tell it."""
        return any(self.outcomes) if self.confidence is None else self.confidence < least

    @property
    def cached(self) -> bool:
        """Whether there are replies and all of them came from the cache."""
        return bool(self.generations) and all(generation.cached for generation in self.generations)

    @property
    def tokens(self) -> int:
        """Tokens the judge wrote for this verdict, those of cached replies included."""
        return sum(generation.completion_tokens for generation in self.generations)


@dataclass(frozen=True)
class PairVerdict:
    """The verdict on two of several candidates, by their indices; its scores are in the order first, second."""

    first: int
    second: int
    verdict: Verdict
