"""ExpectedScore: the probability-weighted score, from the judge's distribution over its answer (as in G-Eval).

An integer judge ties most of a group; the mean of its distribution does not. For each answer tag the engine returns the
most likely tokens at the position of the answer (log probabilities). The score is their weighted mean over the answers
that the format allows. Numbers of several digits are followed token by token: where likely digits could begin a longer
number that the judge did not write, a one-token request returns the distribution of the next token, round by round.

Needs an engine that returns log probabilities and can continue a reply. The mean over k reasonings is
`MajorityVote(ExpectedScore(format), k, by="mean")`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import UNIT, Wrapper
from flexjudge_reward.formats.onecall import LETTERS, OneCall
from flexjudge_reward.formats.reply import THINK_CLOSE, continued
from flexjudge_reward.formats.rounds import Ask
from flexjudge_reward.rubric import Scale
from flexjudge_reward.types import Example, Failure, Generation, Prompt, TokenLogprob, Verdict

TOP = 20  # alternatives per position; what servers allow
_NOTHING = Failure("engine", "the judge's distribution holds no valid answer")
_ANSWER = re.compile("<answer>(.*?)</answer>", re.DOTALL)
_DIGITS = re.compile("[0-9]{1,4}")
_WORTH_ASKING = 0.01  # digits less likely than this move a score by less than a hundredth of the scale


class ExpectedScore(Wrapper):
    """Scores as expectations; for a multiple choice, each candidate's probability of being chosen."""

    inner: OneCall

    def __init__(self, inner: OneCall) -> None:
        if not isinstance(inner, OneCall) or inner.answers == "option":
            raise ConfigError(
                "expected scores need a format of one call that answers with numbers or a letter (pointwise, pairwise,"
                f" listwise, multiple_choice), found {inner.described()}"
            )
        if inner.answers == "numbers" and (unfit := _unfit(inner.rubric.scale or Scale())):
            raise ConfigError(unfit)
        super().__init__(inner)
        self.answers, self.measures_spread = "numbers", True

    async def judge(self, example: Example, ask: Ask) -> Verdict:
        """The judgement, then a round for each digit prefix whose continuation is missing."""
        if unfit := _unfit(self.inner.scale(example)):
            return Verdict.failed(Failure("unsupported", unfit))
        (prompt,) = self.inner.render(example)
        (reply,) = await ask.changed(logprobs=TOP)([prompt])
        verdict = self.inner.read(example, [reply])
        if verdict.scores is None:
            return verdict
        answers = find_answers(reply)
        if isinstance(answers, Failure):
            return verdict.without_scores(answers)
        if self.inner.answers == "letter":
            return _letter_probabilities(verdict, answers[0], len(example.candidates))
        return await _means(prompt, reply, verdict, answers, ask)


def _unfit(scale: Scale) -> str:
    whole = float(scale.low).is_integer() and float(scale.high).is_integer()
    fits = whole and not scale.decimals and scale.low >= 0
    return "" if fits else "expected scores need a scale of whole numbers, none of them negative"


async def _means(prompt: Prompt, reply: Generation, verdict: Verdict, answers: Sequence[Answer], ask: Ask) -> Verdict:
    scale, one_token = verdict.scale, ask.changed(logprobs=TOP, max_tokens=1)
    while missing := [(answer, digits) for answer in answers for digits in answer.missing(scale)]:
        replies = await one_token([continued(prompt, reply.text[: one.start] + digits) for one, digits in missing])
        verdict = replace(verdict, generations=(*verdict.generations, *replies))
        for (answer, digits), continuation in zip(missing, replies, strict=True):
            if continuation.failure is not None or not continuation.logprobs:
                silent = Failure("engine", f"no log probabilities came for what follows {digits!r}")
                return verdict.without_scores(continuation.failure or silent)
            answer.following[digits] = _chances(continuation.logprobs[0])
    moments = [moments for answer in answers if (moments := answer.moments(scale)) is not None]
    if len(moments) < len(answers):
        return verdict.without_scores(_NOTHING)
    means, spread = zip(*moments, strict=True)
    return replace(verdict, scores=means, spread=spread, scale=replace(scale, decimals=True))


def _letter_probabilities(verdict: Verdict, answer: Answer, count: int) -> Verdict:
    letters = [answer.following[""].get(letter, 0.0) for letter in LETTERS[:count]]
    total = math.fsum(letters)
    if not total > 0:
        return verdict.without_scores(_NOTHING)
    chances = [chance / total for chance in letters]
    spread = tuple(math.sqrt(chance * max(0.0, 1 - chance)) for chance in chances)
    return replace(verdict, scores=tuple(chances), spread=spread, scale=UNIT)


@dataclass
class Answer:
    """The distribution in the place of one written answer."""

    start: int  # where the written answer begins in the reply
    following: dict[str, Mapping[str, float]]
    """The probabilities of the next token after each beginning: along the written answer known, elsewhere requested."""

    def missing(self, scale: Scale) -> list[str]:
        """Likely beginnings of longer numbers of the scale whose next token is not known."""
        likely = {digits for digits, chance, _ in self._beginnings() if chance >= _WORTH_ASKING}
        # A longer number is at least ten times this one; after a zero it counts only if the judge wrote it.
        return sorted(digits for digits in likely - self.following.keys() if 0 < int(digits) <= scale.high / 10)

    def moments(self, scale: Scale) -> tuple[float, float] | None:
        """Mean and standard deviation over the numbers of the scale; None if none of them has any probability."""
        numbers = [(int(digits), chance) for digits, _, chance in self._beginnings() if digits]
        inside = [(number, chance) for number, chance in numbers if scale.low <= number <= scale.high]
        total = math.fsum(chance for _, chance in inside)
        if not total > 0:
            return None
        mean = math.fsum(number * chance for number, chance in inside) / total
        variance = math.fsum((number - mean) ** 2 * chance for number, chance in inside) / total
        return min(max(mean, scale.low), scale.high), math.sqrt(variance)  # rounding may put it one step outside

    def _beginnings(self) -> Iterator[tuple[str, float, float]]:
        """Digits, the probability that the answer begins with them, and the probability that it ends there."""
        begun = [("", 1.0)]
        while begun:
            digits, chance = begun.pop()
            longer = {token: p for token, p in self.following.get(digits, {}).items() if _DIGITS.fullmatch(token)}
            yield digits, chance, chance * max(0.0, 1.0 - math.fsum(longer.values()))
            begun += [(digits + token, chance * p) for token, p in longer.items()]


def find_answers(reply: Generation) -> list[Answer] | Failure:
    """The answers of a readable reply, with the distributions along them; or why there are none."""
    if not reply.logprobs:
        needs = "use VLLMEngine, TransformersEngine or a server that supports `logprobs`"
        return Failure("unsupported", f"no log probabilities came, which expected scores are made of: {needs}")
    tokens = [token.token for token in reply.logprobs]
    spelled = "".join(tokens)
    place, tail = spelled.rfind(THINK_CLOSE), reply.text.rfind(THINK_CLOSE)
    # Only the tail must agree: half a character is a token of its own in some reasoning, and has another text there.
    if place < 0 or not spelled[place:].startswith(reply.text[tail:].rstrip()):
        return Failure("engine", "the reply's tokens do not spell its answer")
    starts = [start + tail - place for start in accumulate(map(len, tokens), initial=0)]  # in the reply's text
    answers = []
    for match in _ANSWER.finditer(reply.text, tail):
        own = [i for i, token in enumerate(tokens) if match.start(1) <= starts[i] < match.end(1) and token.strip()]
        if not own or own[-1] + 1 == len(tokens) or "".join(tokens[i] for i in own).strip() != match[1].strip():
            return Failure("engine", "the answer does not begin and end with a token, so it has no distribution")
        following, written = {}, ""
        for i in (*own, own[-1] + 1):
            following[written] = _chances(reply.logprobs[i])
            written += tokens[i].strip()
        answers.append(Answer(starts[own[0]], following))
    return answers or Failure("engine", "the reply has no answer tag")


def _chances(token: TokenLogprob) -> Mapping[str, float]:
    """Probabilities of the alternatives at one place, by their text without white space."""
    found: dict[str, float] = {}
    # The written token only where it is not among the alternatives: there its text may stand for more tokens than it.
    for text, logprob in {token.token: token.logprob, **token.top}.items():
        found[text.strip()] = found.get(text.strip(), 0.0) + math.exp(logprob)
    return found
