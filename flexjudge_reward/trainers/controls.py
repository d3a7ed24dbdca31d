"""Controls: rows of the training judged again in another way, to see whether the judge is still one to be trusted.

    swapped        the best and the worst answer of a group in both orders: does the order decide?
    frozen         rows of the first calls, judged again with another seed, so not by the cache: is it the same judge?
    second_judge   two answers of a question by another judge: does it order them the same way?

Where `probes.py` makes answers of known worth, these have no label: a control fails where two verdicts disagree, and
`alarms.py` says when too many do. Swaps that the judge makes anyway (`PositionSwap`) are counted there for nothing.

Controls cost at most a share of the judge's tokens, the second judge's counted with them; each call has controls of one
kind at most, in a batch of their own, after the rows. Each kind waits until the share pays for it; only what the first
of a kind costs is not known before. None of them reaches a reward. A control that cannot be judged, or not by the
deadline, tells nothing and harms no row; a second judge that does not answer is asked no more, with one warning.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from flexjudge_reward.errors import ConfigError, FlexJudgeError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.formats.groups import GroupFormat
from flexjudge_reward.formats.swap import PositionSwap
from flexjudge_reward.formats.votes import MajorityVote
from flexjudge_reward.judge.config import KNOWN_SETTINGS, JudgeConfig, RewardConfig
from flexjudge_reward.judge.groups import GroupResult, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.settings import declared_names
from flexjudge_reward.trainers.probes import ProbeResult
from flexjudge_reward.types import Content, Example, Failure

KINDS = ("swapped", "frozen", "second_judge")
_FROZEN, _MOST = 8, 4  # rows that are kept; controls of a call
_MOVED = 0.25  # how far a score in [0, 1] moves where a lone answer is judged as another
_SEEDS = 2_000_003  # added to the judge's, and counted on: farther away than those of votes and of second attempts
_COMPARED, _ALONE = 0.25, 0.125  # of the probes' share; lone answers without a second judge are only frozen
_log = logging.getLogger("flexjudge_reward")
Sign = int | None


@dataclass
class _Kept:
    """A row of the first calls."""

    example: Example
    verdict: float | Sign = None
    """What the judge said of it first: of one answer its score, of two their order; None before."""


class Controls:
    """The controls of one process."""

    def __init__(self, share: float, second: Judge | None = None, ignored: Collection[str] = ()) -> None:
        """
        Args:
            share: the most of the judge's tokens that they may take, 0 to 1; 0 makes none.
            second: another judge.
            ignored: kinds that are not made.
        """
        self.share, self.second, self.judged_tokens = share, second, 0
        self._kinds = [kind for kind in KINDS if kind not in ignored]
        # Tokens and controls of each kind; all are there, so that none comes while another thread adds them up.
        self._spent, self._made = (Counter(dict.fromkeys(KINDS, 0)) for _ in range(2))
        self._turns = self._place = 0
        self._asks_second = False
        self._frozen: list[_Kept] = []
        self._mean = 0.0  # tokens of an example

    @property
    def tokens(self) -> int:
        """What all controls took."""
        return self._spent.total()

    def check(
        self,
        judge: Judge,
        examples: Sequence[Example],
        results: Sequence[GroupResult],
        labels: Mapping[str, object] = {},
    ) -> tuple[list[GroupResult], tuple[ProbeResult, ...]]:
        """Controls of a call's examples and their results: what was judged for them, and what became of them.

        Args:
            labels: of the call, for the record.
        """
        if not self.share:
            return [], ()
        self._note(judge, examples, results)
        kind = self._kind(judge.format)
        count = 0 if kind is None else self._count(kind)
        if kind is None or count <= 0:
            return [], ()
        self._turns += 1
        make: dict[str, Callable[..., tuple[list[GroupResult], list[bool | None]]]] = {
            "swapped": self._swapped,
            "frozen": self._again,
            "second_judge": self._by_second,
        }
        label = {"step": labels.get("step"), "rank": labels.get("rank"), "probe": kind}
        try:
            judged, failed = make[kind](judge, _pairs(examples, results)[:count], count, label)
        except FlexJudgeError as error:  # the rows of this call are judged; whether the next ones can be, these show
            _log.debug("controls of the kind %s cannot be judged: %s", kind, error)
            return [], ()
        self._made[kind] += len(failed)
        self._spent[kind] += sum(verdict.tokens for result in judged for verdict in result.verdicts)
        return judged, tuple(ProbeResult(kind, one) for one in failed if one is not None)

    def late(self) -> None:
        """Notes that a deadline has passed: a second judge that made it pass is asked no more."""
        if self._asks_second:
            self._leave_second("it does not answer within the deadline")

    def _note(self, judge: Judge, examples: Sequence[Example], results: Sequence[GroupResult]) -> None:
        tokens = sum(verdict.tokens for result in results for verdict in result.verdicts)
        self.judged_tokens += tokens
        self._mean = tokens / max(1, len(results))
        if judge.format.max_candidates == 1:
            alike = type(judge) is Judge and _base(judge.format) is judge.format  # as `_again` judges
            rows = [
                _Kept(example, result.outcomes[0] if alike else None)
                for example, result in zip(examples, results, strict=True)
                if not isinstance(result.outcomes[0], Failure)
            ]
        else:
            rows = [_Kept(pair) for pair in _pairs(examples, results)]
        self._frozen += rows[: max(0, _FROZEN - len(self._frozen))]

    def _count(self, kind: str) -> int:
        """How many of a kind the share pays for; at most one where none has shown what it costs."""
        left, made = self.share * self.judged_tokens - self.tokens, self._made[kind]
        cost = self._spent[kind] / made if self._spent[kind] else 2 * self._mean
        return min(_MOST if made else 1, int(left / cost)) if cost else 0

    def _kind(self, format: Format) -> str | None:
        """The kind in turn, of those that there can be."""
        swaps = any(isinstance(layer, PositionSwap) for layer in format.layers())
        can = {
            "swapped": _base(format).max_candidates > 1 and _base(format).min_candidates <= 2 and not swaps,
            "frozen": bool(self._frozen) and (_base(format).max_candidates == 1 or _base(format).min_candidates <= 2),
            "second_judge": self.second is not None,
        }
        kinds = [kind for kind in self._kinds if can[kind]]
        return kinds[self._turns % len(kinds)] if kinds else None

    def _swapped(
        self, judge: Judge, pairs: Sequence[Example], count: int, label: Mapping[str, object]
    ) -> tuple[list[GroupResult], list[bool | None]]:
        orders = [one for pair in pairs for one in (pair, pair.with_candidates(pair.candidates[::-1]))]
        judged = _judged(judge.with_format(_base(judge.format)), orders, label)
        signs = [_sign(result) for result in judged]
        both = zip(signs[::2], signs[1::2], strict=True)
        return judged, [None if one is None or other is None else one != -other for one, other in both]

    def _again(
        self, judge: Judge, pairs: Sequence[Example], count: int, label: Mapping[str, object]
    ) -> tuple[list[GroupResult], list[bool | None]]:
        kept = [self._frozen[(self._place + n) % len(self._frozen)] for n in range(min(count, len(self._frozen)))]
        self._place += len(kept)
        sampling = replace(judge.sampling, seed=judge.sampling.seed + _SEEDS + self._place)
        own = Judge(_base(judge.format), judge.engine, sampling, judge.record)
        judged = _judged(own, [one.example for one in kept], label)
        failed: list[bool | None] = []
        for one, result in zip(kept, judged, strict=True):
            alone = result.outcomes[0] if len(result.outcomes) == 1 else _sign(result)
            said = None if isinstance(alone, Failure) else alone
            known = one.verdict is not None and said is not None
            failed.append(abs(said - one.verdict) > _MOVED if known else None)  # type: ignore[operator]
            one.verdict = said if one.verdict is None else one.verdict
        return judged, failed

    def _by_second(
        self, judge: Judge, pairs: Sequence[Example], count: int, label: Mapping[str, object]
    ) -> tuple[list[GroupResult], list[bool | None]]:
        if self.second is None:
            return [], []
        own = Judge(self.second.format, self.second.engine, self.second.sampling, judge.record)
        self._asks_second = True
        try:
            judged = _judged(own, pairs, label)
        except FlexJudgeError as error:
            self._leave_second(str(error))
            return [], []
        finally:
            self._asks_second = False
        outcomes = [outcome for result in judged for outcome in result.outcomes]
        if outcomes and all(isinstance(one, Failure) and one.kind in ("transport", "timeout") for one in outcomes):
            self._leave_second(str(outcomes[0]))  # the training would wait for it again and again
        return judged, [None if (sign := _sign(result)) in (None, 0) else sign < 0 for result in judged]  # type: ignore[operator]

    def _leave_second(self, why: str) -> None:
        if self.second is not None:
            _log.warning("the second judge is asked no more in this run: %s", why)
        self.second = None


def controls_of(config: RewardConfig, format: Format, ignored: Collection[str]) -> Controls:
    """The controls of a reward, from the share of its probes. Raises ConfigError: there is no such second judge."""
    second, name = None, config.second_judge
    if name is not None:
        if name not in (known := declared_names(KNOWN_SETTINGS, os.environ)):
            raise ConfigError(
                f"second_judge={name!r} names no judge: give it settings, FLEXJUDGE_{name.upper()}__MODEL=..., or"
                f" [{name}] in the file of FLEXJUDGE_CONFIG; known are {', '.join(known) or 'none'}"
            )
        second = JudgeConfig.resolve(name=name).build()
    part = _COMPARED if second is not None or format.max_candidates > 1 else _ALONE
    made = Controls(part * config.probes, second, ignored)
    if second is not None:
        weakref.finalize(made, second.close)  # at the latest when the process ends
    return made


def _judged(judge: Judge, examples: Sequence[Example], label: Mapping[str, object]) -> list[GroupResult]:
    return judge_groups(judge, examples, [label] * len(examples)) if examples else []


def _base(format: Format) -> Format:
    """The format without groups, votes and swaps, which would draw the orders themselves."""
    while isinstance(format, GroupFormat | MajorityVote | PositionSwap):
        format = format.inner
    return format


def _sign(result: GroupResult) -> Sign:
    """The order of two answers: 1 if the first is better, -1 if the second is, 0 for a tie, None for a failure."""
    one, other = result.outcomes
    return None if isinstance(one, Failure) or isinstance(other, Failure) else (one > other) - (one < other)


def _pairs(examples: Sequence[Example], results: Sequence[GroupResult]) -> list[Example]:
    """Of each question with scores that differ the best answer and the worst, in this order."""
    scored: dict[Example, list[tuple[float, Content]]] = defaultdict(list)
    for example, result in zip(examples, results, strict=True):
        outcomes = zip(result.outcomes, example.candidates, strict=True)
        found = [(outcome, candidate) for outcome, candidate in outcomes if not isinstance(outcome, Failure)]
        scored[example.with_candidates([])] += found
    made = []
    for question, found in scored.items():
        best, worst = (pick(found, key=lambda one: one[0], default=None) for pick in (max, min))
        if best is not None and worst is not None and best[0] > worst[0] and best[1] != worst[1]:
            made.append(question.with_candidates([best[1], worst[1]]))
    return made
