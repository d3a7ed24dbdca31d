"""CommitFirst: the judge answers the question itself before it sees the candidates, and then judges beside its answer.

A judge that reads a confident wrong answer first tends to agree with it; one that has its own answer compares. One call
more per judgement: the question alone, with the prompt set's text `answer.toml`. What the judge writes after its
reasoning is the reference answer in the inner format's prompt, fenced as data like any other, and in
`Verdict.own_answer`. An example with a reference is judged by that, without the extra call. A judge that gives no
answer fails the judgement, and no candidate caused that.

The call is the same for all candidates of a question and for both orders of a swap, so a cache answers it once; k votes
commit k times, each with its own seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flexjudge_reward.formats.base import Format, Wrapper
from flexjudge_reward.formats.onecall import OneCall
from flexjudge_reward.formats.reply import plain_answer
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.types import Cause, Example, Failure, Generation, OwnAnswer, Verdict


class _Question(OneCall):
    """Only the question."""

    name = "answer"


class CommitFirst(Wrapper):
    """Two rounds: the judge's own answer, then the inner format with it as the reference."""

    def __init__(self, inner: Format, prompt_set: str | Path = "flex") -> None:
        """`prompt_set` has the text `answer`; raises ConfigError if it has none, as the embedded judge's."""
        super().__init__(inner)
        self.question = _Question(prompt_set=prompt_set)

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The inner verdict, with the judge's own answer."""
        if example.reference is not None:
            return await self.inner.judge(example, ask)
        (reply,) = await ask(self.question.render(Example(example.question, [])))
        own = self.answer_of(reply)
        if isinstance(own, Failure):
            # The judge has not seen the candidates: unclear, it is asked once more, and never theirs.
            cause: Cause = "unclear" if own.kind in ("malformed", "empty", "refused") else "ours"
            return Verdict.failed(replace(own, cause=cause), [reply])
        beside = Example(example.question, example.candidates, OwnAnswer(own), example.rubric)
        verdict = await self.inner.judge(beside, ask)
        return replace(verdict, own_answer=own, generations=(reply, *verdict.generations))

    def answer_of(self, reply: Generation) -> str | Failure:
        """The judge's answer in its reply to the question."""
        return plain_answer(reply)
