"""Judge: examples in, verdicts out. The one place where format, engine and media meet.

    judge = Judge.load()                                        # arguments, FLEXJUDGE_* and the machine decide which
    verdict = judge.score("What is 2 + 2?", "4")
    print(verdict.scores, verdict.failure, verdict.reasoning)

All examples of a call go to the engine as one batch; formats with several rounds go round by round together. An example
whose media cannot be used gets a `media` failure and the others are judged as if it were not there. An example that
does not fit the format is the caller's mistake and raises before anything is generated.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flexjudge_reward.engines.base import Closable, Engine
from flexjudge_reward.errors import ConfigError, FlexJudgeError, MediaError, MissingExtra
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.groups import for_group_size
from flexjudge_reward.formats.rounds import Ask, gather, run, send
from flexjudge_reward.judge.record import Record
from flexjudge_reward.media.ahead import MOST_THREADS, read_all
from flexjudge_reward.media.base import KINDS
from flexjudge_reward.media.molecule import TOKENS
from flexjudge_reward.types import ContentLike, Example, Failure, Sampling, Unfinished, Verdict

_SHOWN = ("image", "video", "audio")  # the channels that engines encode
_READS = "use a folder that flexjudge_reward.engines.molecules.convert made, with the engine transformers"
_HEARS = "jongwooko/Flex-Omni-7B with the engine vllm or transformers"


class Judge(Closable):
    """A format, an engine and a way of sampling. Cheap to build: engines load on first use."""

    def __init__(
        self, format: Format, engine: Engine, sampling: Sampling = Sampling(), record: Record | None = None
    ) -> None:
        """With a `record`, every judgement is noted there (`record.py`)."""
        self.format, self.engine, self.sampling, self.record = format, engine, sampling, record

    @classmethod
    def load(cls, **settings: Any) -> Judge:
        """The judge that arguments, FLEXJUDGE_* and the machine choose, behind its cache.

        Args:
            settings: model, base_url, format, rubric and so on: the fields of `JudgeConfig`.

        Raises:
            ConfigError: a wrong setting. Nothing is loaded.
        """
        from flexjudge_reward.judge.config import JudgeConfig

        return JudgeConfig.resolve(settings).build()

    def __call__(
        self, examples: Sequence[Example], labels: Sequence[Mapping[str, object]] | None = None
    ) -> list[Verdict]:
        """One verdict per example, in order.

        Args:
            labels: per example, what the record notes beside it, such as {"step": 7}.

        Raises:
            ConfigError: no examples, or one that does not fit the format (its index is in the message).
            EngineError: the engine cannot answer anything.
        """
        if not examples:
            raise ConfigError("nothing to judge: the list of examples is empty")
        start = time.perf_counter()
        ask = Ask(self.sampling, send)
        self.read(examples)
        judgements = gather(*(self._judged(index, example, ask) for index, example in enumerate(examples)))
        verdicts = run(judgements, self.engine.generate)
        if self.record is not None:
            seconds = time.perf_counter() - start
            self.record.add(self.described(), examples, verdicts, labels or [{}] * len(examples), seconds)
        return verdicts

    def score(self, question: ContentLike, answer: ContentLike, reference: ContentLike | None = None) -> Verdict:
        """The verdict on one answer; for many, calling the judge with a list is faster. Raises as a call does."""
        return self([Example(question, [answer], reference)])[0]

    def with_format(self, format: Format) -> Judge:
        """The same judge with another format."""
        return Judge(format, self.engine, self.sampling, self.record)

    def with_sampling(self, sampling: Sampling) -> Judge:
        """The same judge with another way of sampling."""
        return Judge(self.format, self.engine, sampling, self.record)

    def for_group_size(self) -> Judge:
        """The same judge for groups of any size, if its format compares candidates (`formats/groups.py`)."""
        return self.with_format(for_group_size(self.format))

    def described(self) -> dict[str, object]:
        """Who judges, for records and cards: model, engine, format, rubric, sampling. No address and no path."""
        identity, plain = self.engine.identity(), self.format.innermost()
        return {
            "model": identity.get("root") or identity.get("model"),
            "engine": identity.get("engine"),
            "version": identity.get("revision") or identity.get("weights") or identity.get("build"),
            "format": self.format.described(),
            "rubric": getattr(getattr(plain, "rubric", None), "criteria", None),
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
            "seed": self.sampling.seed,
            **self.engine.findings(),
        }

    def check_media(self, example: Example) -> None:
        """Whether the judge can be shown the media of `example`, as far as its files say.

        Only an engine that loads a model itself can know; a server that rejects images does so row by row.

        Raises:
            ConfigError: it cannot.
            EngineError: there is no such model.
        """
        self.check_kinds({media.needs for media in example.media})

    def check_kinds(self, kinds: Collection[str]) -> None:
        """The same for the names of modalities, and "molecule tokens". Raises as `check_media`."""
        if TOKENS in kinds and not self.engine.supports(TOKENS):
            name = self.engine.identity().get("model")
            raise ConfigError(f"the judge {name} cannot read {TOKENS}: {_READS}, or show the molecule with as_='text'")
        if unknown := next(
            (kind for kind in kinds if kind in KINDS and KINDS[kind].channel and kind not in _SHOWN), None
        ):
            raise ConfigError(f"no engine can show a model {unknown}: leave it out, or describe it in text")
        unsupported = [kind for kind in _SHOWN if kinds and not self.engine.supports(kind)]
        for kind in unsupported:
            if kind in kinds:
                name = self.engine.identity().get("model")
                reads = "reads text only and " if len(unsupported) == len(_SHOWN) else ""
                can = f"hear sounds: use one that can, such as {_HEARS}"
                shown = f"be shown {kind}s: use a model that can"
                raise ConfigError(f"the judge {name} {reads}cannot {can if kind == 'audio' else shown}")

    def read(self, examples: Sequence[Example], threads: int = MOST_THREADS) -> None:
        """Reads the media of examples ahead of their judging, except those that the engine knows by their files."""
        media = list({id(one): one for example in examples for one in example.media}.values())
        if media:
            self.engine.recognise(media)
            read_all(media, threads)

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    async def _judged(self, index: int, example: Example, ask: Ask) -> Verdict:
        try:
            self.format.check(example)
            if unusable := _unusable(example):
                return Verdict.failed(unusable)
            return _finite(await self.format.judge(example, ask))
        except MissingExtra:
            raise
        except ConfigError as error:
            raise ConfigError(f"example {index}: {error}") from error
        except MediaError as error:
            return Verdict.failed(Failure("media", str(error)))
        except (FlexJudgeError, NotImplementedError):
            raise
        except Exception as error:  # of a format of the user's own: its row fails, not the batch
            detail = f"{self.format.described()} failed on this reply: {type(error).__name__}: {error}"
            return Verdict.failed(Failure("engine", detail))


def _unusable(example: Example) -> Failure | None:
    """Why an example cannot be shown. Only a candidate's own media, or its thought without an end, are its doing."""
    for candidate in example.candidates:
        for part in candidate:
            if isinstance(part, Unfinished):
                return part.failure
    shown = example.media
    shared = len(example.with_candidates([]).media) if shown else 0
    for number, media in enumerate(shown):
        try:
            media.check()
        except MediaError as error:
            return Failure("media", str(error), "ours" if number < shared else "candidate")
    return None


def _finite(verdict: Verdict) -> Verdict:
    """The verdict, or its failure where a score is no finite number, which no file and no later code could take."""
    for score in verdict.scores or ():
        if not (isinstance(score, (float, numbers.Real)) and math.isfinite(score)):  # float first: it is seen at once
            return verdict.without_scores(Failure("out_of_range", f"a score must be a finite number, found {score!r}"))
    return verdict
