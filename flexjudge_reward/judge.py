"""Judge: examples in, verdicts out. The one place where format, engine and media meet.

All examples of a call go to the engine as one batch. An example whose media cannot be used gets a `media` failure and
its batch-mates are judged as if it had not been there; an example that does not fit the format is the caller's mistake
and raises before anything is generated.

Axes of nested lists: _E examples, _P prompts of one example.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexjudge_reward.errors import ConfigError, MediaError
from flexjudge_reward.types import Engine, Example, Failure, Format, Generation, Prompt, Sampling, Verdict


class Judge:
    """A format and an engine, with one way of sampling. Cheap to build: engines load on first use."""

    def __init__(self, format: Format, engine: Engine, sampling: Sampling = Sampling()) -> None:
        self.format, self.engine, self.sampling = format, engine, sampling

    def __call__(self, examples: Sequence[Example]) -> list[Verdict]:
        """One verdict per example, in order.

        Raises:
            ConfigError: no examples, or one that does not fit the format (its index is in the message).
            EngineError: the engine cannot answer anything.
        """
        if not examples:
            raise ConfigError("nothing to judge: the list of examples is empty")
        prompts_E_P = [self._render(index, example) for index, example in enumerate(examples)]
        flat = [prompt for prompts_P in prompts_E_P if not isinstance(prompts_P, Failure) for prompt in prompts_P]
        generations = iter(self._generate(flat))
        return [
            Verdict.failed(prompts_P)
            if isinstance(prompts_P, Failure)
            else self.format.read(example, [next(generations) for _ in prompts_P])
            for example, prompts_P in zip(examples, prompts_E_P, strict=True)
        ]

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    def _render(self, index: int, example: Example) -> list[Prompt] | Failure:
        try:
            prompts = self.format.render(example)
        except ConfigError as error:
            raise ConfigError(f"example {index}: {error}") from error
        for media in example.media:
            try:
                media.load()
            except MediaError as error:
                return Failure("media", str(error))
        return prompts

    def _generate(self, prompts: list[Prompt]) -> list[Generation]:
        generations = self.engine.generate(prompts, self.sampling) if prompts else []
        if len(generations) != len(prompts):
            raise ConfigError(
                f"{type(self.engine).__name__}.generate returned {len(generations)} replies for {len(prompts)} prompts;"
                " an engine returns one per prompt, in order"
            )
        return generations
