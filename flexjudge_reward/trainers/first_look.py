"""A first look at the judge: a burst of probes at the first call with well paid answers, before GPU-hours are spent.

    run_on                  an answer that was just paid well, with one to another question after it
    forged, master_key      as in `probes.py`
    other_answer            what `alarms.py` compares later ones with: how often it is right before the policy learns

The share of tokens of `probes.py` pays for one probe in some fifty rows, and a judge that accepts nearly everything is
an alarm after hundreds. A weakness of the judge itself is there before the policy knows it, so a burst can show it: 16
probes, in a batch of their own after the rows, and 18 more of the kinds that look wrong. `run_on` is asked here
only: later, where most answers have the full score, it says nothing of a judge with noise.

`run_on` is wrong where it is paid as much as the answer alone. `alarms.py` says it where half of them being wrong would
give so many in less than one look of 5,000: 21 of 24. A judge that reads to the end is far from that, whatever its
noise. One for which the second answer neither counts nor harms comes to less than half by noise of a point, since well
paid answers are those that noise has favoured; without noise it is an alarm. That is right where an answer has to end,
and wrong where only its beginning is to count, as before a free explanation: `ignored_probes="run_on,half"`.
`python benchmarks/alarms.py looks` measures these judges.

The burst is a loan: the probes of `probes.py` wait until their share has paid for it, 920 rows after 16, 1,950 after
34 (at the default of 2 %; for groups 1,070 and 2,270 calls of a list or a pair):

    rows of a call                     16     64    128    512
    calls without probes after 16      58     15      8      2
    after 34                          122     31     16      4

It begins once 16 rows are judged, takes at most half as many probes as a call has rows, and at most two `run_on` of
each answer; several ranks have a part of it each. More than 34 judgements it never takes: a run of fewer rows than
above spends more than its share, by these at most. A run that continues in a new process looks again.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from flexjudge_reward.errors import ConfigError, FlexJudgeError
from flexjudge_reward.judge.groups import GroupResult, judge_groups
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.machine import training_processes
from flexjudge_reward.trainers.gather import rank
from flexjudge_reward.trainers.probes import RUN_ON, Probe, ProbeResult, Probes, best_paid, joined, wrong
from flexjudge_reward.types import Example

PLAN = (RUN_ON, "other_answer", "forged", RUN_ON, "other_answer", "master_key", RUN_ON, "other_answer") * 2
MORE = 18
_SUSPECT = {RUN_ON: 0.8, "forged": 0.5, "master_key": 0.5}  # wrong ones of a kind, of which more are asked
_ROWS = 16  # that are judged before the first probe
_EACH, _KEPT = 2, 64  # run_on of an answer; well paid answers that are kept
_log = logging.getLogger("flexjudge_reward")


class FirstLook:
    """The first look of one process."""

    def __init__(self, probes: Probes) -> None:
        """`probes` lend the tokens; without a share there is no look."""
        self._probes = probes
        self._plan: list[str] | None = None  # kinds that are still to be asked; None before the first call
        self._more, self._rows, self._in_groups = 0, 0, False
        self._asked: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._paid: list[tuple[float, Example]] = []  # of each question the best answer with its score, if that is good

    def check(
        self,
        judge: Judge,
        examples: Sequence[Example],
        results: Sequence[GroupResult],
        label: Mapping[str, object] = {},
    ) -> tuple[list[GroupResult], tuple[ProbeResult, ...]]:
        """Probes beside a call's examples and their results: what was judged for them, and what became of them.

        Args:
            label: of the call, for the record.
        """
        if self._plan is None:
            self._begin()
        if not self._plan:
            return [], ()
        self._in_groups = len(examples[0].candidates) > 1
        self._paid += [one for one in best_paid(examples, results) if one[0] > 0.5][: _KEPT - len(self._paid)]
        judged: list[GroupResult] = []
        found: list[ProbeResult] = []
        self._rows += sum(len(one.candidates) for one in examples)
        room = max(1, len(examples) // 2) if self._rows >= _ROWS else 0
        while room and (probes := self._drawn(examples, room)):
            try:
                own = [{**label, "probe": probe.kind} for probe in probes]
                probed = judge_groups(judge, [probe.example for probe in probes], own, True)
            except FlexJudgeError as error:  # the rows are judged; whether the next ones can be, these show
                _log.debug("the first look at the judge has no verdicts: %s", error)
                if isinstance(error, ConfigError):  # nor will it have any
                    self._plan = []
                break
            room -= len(probes)
            judged += probed
            found += self._read(probes, results, probed)
        return judged, tuple(found)

    def _begin(self) -> None:
        processes = training_processes()
        share = self._probes.share > 0
        self._plan = [kind for kind in PLAN[rank() :: processes] if share and kind not in self._probes.ignored]
        self._more = -(-MORE // processes)

    def _drawn(self, examples: Sequence[Example], room: int) -> list[Probe]:
        """The next probes that can be made, at most as many as there is room for."""
        probes: list[Probe] = []
        run_on = self._asked[RUN_ON]
        for kind in self._plan or ():
            if len(probes) == room:
                break
            chance = random.Random(f"look {self._asked.total() + len(probes)}")
            made = self._run_on(run_on, chance) if kind == RUN_ON else self._probes.made(kind, examples, chance)
            run_on += kind == RUN_ON
            probes += [made] if made else []
        return probes

    def _run_on(self, turn: int, chance: random.Random) -> Probe | None:
        """A well paid answer, then one to another question; None where the well paid ones have had their turns."""
        if turn >= _EACH * len(self._paid):
            return None
        score, paid = self._paid[turn % len(self._paid)]
        (own,) = paid.candidates
        others = [one for _, one in self._paid if one.question != paid.question and one.candidates != paid.candidates]
        if not others:
            return None
        made = joined(own, chance.choice(others).candidates[0])
        beside = [own] if self._in_groups else []
        return Probe(RUN_ON, paid.with_candidates([made, *beside]), None, score)

    def _read(
        self, probes: Sequence[Probe], results: Sequence[GroupResult], probed: Sequence[GroupResult]
    ) -> list[ProbeResult]:
        """What became of probes; plans more of the kinds that look wrong when the first ones are done."""
        self._probes.lend(probed)
        found = [one for one in map(wrong, probes, [results] * len(probes), probed) if one is not None]
        plan = self._plan or []
        for probe in probes:
            plan.remove(probe.kind)
            self._asked[probe.kind] += 1
        self._wrong.update(one.kind for one in found if one.failed)
        if not plan and self._more:
            suspects = [
                kind for kind, least in _SUSPECT.items() if self._wrong[kind] >= max(1, least * self._asked[kind])
            ]
            plan += islice(cycle(suspects), self._more)
            self._more = 0
        return found
