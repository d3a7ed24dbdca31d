"""Judge: examples in, verdicts out. The one place where format, engine and media meet.

All examples of a call go to the engine as one batch; formats that ask in rounds go round by round together. An example
whose media cannot be used gets a `media` failure and its batch-mates are judged as if it had not been there; an example
that does not fit the format is the caller's mistake and raises before anything is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.formats.builtin import steps, together
from flexjudge_reward.types import AnyFormat, Engine, Example, Failure, Generation, Prompt, Sampling, Steps, Verdict


class Judge:
    """A format and an engine, with one way of sampling. Cheap to build: engines load on first use."""

    def __init__(self, format: AnyFormat, engine: Engine, sampling: Sampling = Sampling()) -> None:
        self.format, self.engine, self.sampling = format, engine, sampling

    def __call__(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example, in order.

        Raises:
            ConfigError: no examples, or one that does not fit the format (its index is in the message).
            EngineError: the engine cannot answer anything.
        """
        if not examples:
            raise ConfigError("nothing to judge: the list of examples is empty")
        run = together([self._steps(index, example) for index, example in enumerate(examples)])
        replies: list[Generation] | None = None
        while True:
            try:
                prompts = next(run) if replies is None else run.send(replies)
            except StopIteration as stop:
                verdicts: list[Verdict] = stop.value
                return verdicts
            replies = self._generate(prompts)

    def check_media(self, example: Example) -> None:
        """Whether the judge can be shown the pictures and clips of `example`, as far as its files say.

        Only an engine that loads a model itself can know; what a server cannot show fails row by row.

        Raises:
            ConfigError: it cannot.
            EngineError: there is no such model.
        """
        takes = getattr(self.engine, "takes", None)
        for kind in sorted({media.kind for media in example.media} & {"image", "video"}):
            if takes is not None and not takes(kind):
                name = self.engine.identity().get("model")
                raise ConfigError(f"the judge {name} reads text only and cannot be shown {kind}s: take one that sees")

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    def _steps(self, index: int, example: Example) -> Steps:
        run = steps(self.format, example)
        try:
            prompts = next(run)
            for media in example.media:
                media.load()
            while True:
                prompts = run.send((yield prompts))
        except StopIteration as stop:
            verdict: Verdict = stop.value
            return verdict
        except ConfigError as error:
            raise ConfigError(f"example {index}: {error}") from error
        except MediaError as error:
            return Verdict.failed(Failure("media", str(error)))

    def _generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """One round: one call to the engine for each way of sampling in it, which is one unless prompts change it."""
        ways: dict[tuple[tuple[str, object], ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            ways.setdefault(prompt.changes, []).append(index)
        replies: dict[int, Generation] = {}
        for changes, indices in ways.items():
            sampling = replace(self.sampling, **dict(changes))  # type: ignore[arg-type]
            plain = [replace(prompts[index], changes=()) if changes else prompts[index] for index in indices]
            replies.update(zip(indices, self._asked(plain, sampling), strict=True))
        return [replies[index] for index in range(len(prompts))]

    def _asked(self, prompts: list[Prompt], sampling: Sampling) -> list[Generation]:
        generations = self.engine.generate(prompts, sampling)
        if len(generations) != len(prompts):
            raise ConfigError(
                f"{type(self.engine).__name__}.generate returned {len(generations)} replies for {len(prompts)} prompts;"
                " an engine returns one per prompt, in order"
            )
        return generations
