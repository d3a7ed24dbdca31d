"""BudgetForcing: reasoning that the token limit cuts is closed, and the judge answers in a short continuation.

The judge sees its own reasoning again, which a prefix cache has paid for, and continues after the closing tag. The
continuation is read like any other reply. An engine that closes the reasoning itself at that limit needs no second call
(vLLM's server, by `thinking_token_budget`). Counters: `reasonings` (replies that could have been cut) and `forced`
(those that were closed). Needs an engine that can continue a reply.
"""

from __future__ import annotations

from dataclasses import replace

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format, Wrapper, add_counters
from flexjudge_reward.formats.reply import THINK_CLOSE, THINK_OPEN, continued
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.types import Example, Generation, Request, TokenLogprob, Verdict


class BudgetForcing(Wrapper):
    """Every round of the inner format is followed by one for the reasonings that were cut in it."""

    def __init__(self, inner: Format, answer_tokens: int = 64) -> None:
        """`answer_tokens` is the most tokens of the continuation."""
        super().__init__(inner)
        if answer_tokens < 1:
            raise ConfigError(f"answer_tokens must be at least 1, found {answer_tokens!r}")
        self.answer_tokens = answer_tokens

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The inner judgement, with an `ask` that closes what was cut."""
        counters = {"forced": 0.0, "reasonings": 0.0}

        async def forcing(requests: list[Request]) -> list[Generation]:
            # A continuation of the judge's own words is short on purpose, and no reasoning.
            fresh = [i for i, request in enumerate(requests) if request.prompt.messages[-1].role != "assistant"]
            sent = list(requests)
            for i in fresh:
                sent[i] = replace(requests[i], answer_tokens=self.answer_tokens)
            replies = list(await ask.send(sent))
            cut = [i for i in fresh if replies[i].finish_reason == "length" and THINK_CLOSE not in replies[i].text]
            if cut:
                closed = await ask.send([self._continuation(requests[i], replies[i]) for i in cut])
                for index, reply in zip(cut, closed, strict=True):
                    replies[index] = _joined(replies[index], reply)
            counters["forced"] += len(cut) + sum(replies[i].closed for i in fresh)
            counters["reasonings"] += len(fresh)
            return replies

        verdict = await self.inner.judge(example, Ask(ask.sampling, forcing))
        return replace(verdict, counters=add_counters(verdict.counters, counters))

    def _continuation(self, request: Request, reply: Generation) -> Request:
        prompt = continued(request.prompt, reply.text + THINK_CLOSE)
        return replace(request, prompt=prompt).changed(max_tokens=self.answer_tokens)


def _joined(reasoning: Generation, answer: Generation) -> Generation:
    if answer.failure is not None and answer.failure.kind in ("transport", "timeout"):
        return answer
    if answer.failure is not None:  # what went wrong is the limit, not that this judge cannot continue a reply
        return reasoning
    text = answer.text
    if text.startswith(THINK_OPEN) and text.endswith(THINK_CLOSE):
        # A server that splits off reasoning took the whole continuation for it: the closing tag was in the prompt.
        text = text.removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE)
    return replace(
        answer,
        text=reasoning.text + THINK_CLOSE + text,
        prompt_tokens=reasoning.prompt_tokens,
        completion_tokens=reasoning.completion_tokens + answer.completion_tokens,
        # The forced tag has probability 1.
        logprobs=answer.logprobs and (*(reasoning.logprobs or ()), TokenLogprob(THINK_CLOSE, 0.0), *answer.logprobs),
        cached=reasoning.cached and answer.cached,
    )
