"""A judge's reply, split into reasoning and answers. Pure text: it does not know what an answer means.

The reply is `<think>reasoning</think>` and then nothing but answer tags, `<answer>..</answer>`, with white space around
them. It is read only if it is finished, only after the *last* closing think tag, and only if the whole tail matches:
whatever a candidate made the judge quote in its reasoning cannot be read as the verdict. There is no fallback.

Time is linear in the length of the reply.
"""

from __future__ import annotations

import re

from flexjudge_reward.types import Failure, FailureKind, Generation, Message, Part, Prompt, Untrusted

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_ANSWER = re.compile(r"<answer>([^<]{0,64})</answer>[ \t\r\n]{0,64}")  # ">" is part of [[A>B]]
_REFUSAL = re.compile(
    r"(i['’]m|i am) (very |really )?(sorry|unable|not able)|i (can['’]t|cannot|won['’]t|must decline)"
    r"|sorry,|as an ai\b",
    re.IGNORECASE,
)
_LONGEST = 10_000  # characters after the reasoning; every format's answers are shorter
_SHOWN = 80  # characters of a reply in an error message


def read_reply(generation: Generation) -> tuple[str, ...] | Failure:
    """The inner texts of a reply's answer tags, at least one; or why it cannot be read. Never raises."""
    tail = _after_reasoning(generation)
    return tail if isinstance(tail, Failure) else _answers(tail)


def plain_answer(generation: Generation) -> str | Failure:
    """All that follows the reasoning, in the judge's own words; or why it cannot be read. Never raises."""
    tail = _after_reasoning(generation)
    if isinstance(tail, Failure):
        return tail
    if not tail or len(tail) > _LONGEST:
        kind: FailureKind = "malformed" if tail else "empty"
        return Failure(kind, f"expected an answer of up to {_LONGEST:,} characters, found {len(tail):,}")
    return tail


def _after_reasoning(generation: Generation) -> str | Failure:
    if generation.failure is not None:
        return generation.failure
    if generation.finish_reason == "filter":
        return Failure("refused", "the server's content filter stopped the reply")
    if generation.finish_reason == "error":
        return Failure("engine", "the engine reported an error without saying which")
    if generation.finish_reason != "stop":
        return Failure("truncated", "the token limit cut the reply; raise max_tokens")
    text = generation.text
    if not text.strip():
        return Failure("empty", "the reply is empty")
    _, closed, tail = text.rpartition(THINK_CLOSE)
    return tail.strip(" \t\r\n") if closed else _without_reasoning(text)


def reasoning(text: str) -> str:
    """The part of a reply before its last closing think tag, without the opening tag; all of it if never closed."""
    head, closed, _ = text.rpartition(THINK_CLOSE)
    return (head if closed else text).strip().removeprefix(THINK_OPEN).strip()


def assistant_prefill(text: str) -> tuple[Part, ...]:
    """The beginning of a judge's own reply, for it to continue: its tags are trusted, its reasoning is not.

    The reasoning may quote a candidate, so it is untrusted like any other text.
    """
    head, closed, tail = text.rpartition(THINK_CLOSE)
    before, opened, inside = head.partition(THINK_OPEN)
    if before.strip():  # the chat template wrote the opening tag
        before, opened, inside = "", "", head
    return (before + opened, Untrusted(inside), closed + tail)


def continued(prompt: Prompt, text: str) -> Prompt:
    """`prompt` with the beginning of the judge's own reply, for it to continue."""
    return Prompt((*prompt.messages, Message("assistant", assistant_prefill(text))))


def _without_reasoning(text: str) -> Failure:
    if THINK_OPEN in text:
        return Failure("truncated", "the reply ended inside the reasoning: no closing think tag")
    if _REFUSAL.match(text.lstrip()[:_SHOWN]):
        return Failure("refused", f"the judge declined: {_shown(text)}")
    return Failure("malformed", f"no closing think tag in the reply: {_shown(text)}")


def _answers(tail: str) -> tuple[str, ...] | Failure:
    if not tail:
        return Failure("empty", "nothing follows the reasoning")
    if len(tail) > _LONGEST:
        return Failure("malformed", f"{len(tail):,} characters after the reasoning, beginning with {_shown(tail)}")
    answers, end = [], 0
    while match := _ANSWER.match(tail, end):
        answers.append(match.group(1).strip(" \t\r\n"))
        end = match.end()
    if end == len(tail):
        return tuple(answers)
    if not answers and _REFUSAL.match(tail):
        return Failure("refused", f"the judge declined: {_shown(tail)}")
    return Failure("malformed", f"expected only <answer> tags after the reasoning, found {_shown(tail[end:])}")


def _shown(text: str) -> str:
    return repr(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")
