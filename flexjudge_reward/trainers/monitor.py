"""What is judged beside the rows of one process: probes, the first look, controls. None of it reaches a reward."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.formats.base import Format
from flexjudge_reward.judge.config import RewardConfig
from flexjudge_reward.judge.groups import GroupResult
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.window import judge_side_by_side
from flexjudge_reward.trainers import controls
from flexjudge_reward.trainers.client import RemoteJudge
from flexjudge_reward.trainers.first_look import FirstLook
from flexjudge_reward.trainers.gather import Deadline
from flexjudge_reward.trainers.probes import KINDS, RUN_ON, Probe, ProbeResult, Probes
from flexjudge_reward.types import Example

ALL_KINDS = (RUN_ON, *KINDS, *controls.KINDS)
Labels = Sequence[Mapping[str, object]]


class Monitor:
    """The probes, the first look and the controls of one process. Thread-safe; pickles."""

    def __init__(self, config: RewardConfig, format: Format) -> None:
        """Raises ConfigError: there is no such second judge, or no such kind of probes."""
        ignored = _ignored(config)
        self.controls = controls.controls_of(config, format, ignored)
        self.probes = Probes(config.probes - self.controls.share, ignored)
        self.first_look = FirstLook(self.probes)
        self._lock, self._looking = threading.Lock(), threading.Lock()

    def judge(
        self, judge: Judge, examples: Sequence[Example], labels: Labels, suspects: Sequence[str], deadline: Deadline
    ) -> tuple[list[GroupResult] | None, tuple[ProbeResult, ...]]:
        """The results of the examples and then of all that was judged beside them, and what became of that.

        None where the examples and their probes pass the deadline; what passes it later tells nothing.

        Args:
            labels: of each example, for the record.
            suspects: kinds of probes that look wrong so far.
        """
        if isinstance(judge, RemoteJudge):  # a server has a monitor of its own
            return deadline.run(lambda: judge.judge_groups(examples)), ()
        with self._lock:
            probes = self.probes.draw(examples, suspects)
        of_call = {name: labels[0].get(name) for name in ("step", "rank")}
        named = [*labels, *({**of_call, "probe": probe.kind} for probe in probes)]
        judged = deadline.run(lambda: _with_probes(judge, examples, probes, named))
        if judged is None:
            return None, ()
        results, probed = judged[: len(examples)], judged[len(examples) :]
        with self._lock:
            found = self.probes.read(examples, probes, results, probed)
        looked = deadline.run(lambda: self._looked(judge, examples, results, of_call)) or ([], ())
        checked = deadline.run(lambda: self.controls.check(judge, examples, results, of_call))
        if checked is None:
            self.controls.late()
            checked = [], ()
        return [*judged, *looked[0], *checked[0]], (*found, *looked[1], *checked[1])

    def _looked(
        self, judge: Judge, examples: Sequence[Example], results: Sequence[GroupResult], label: Mapping[str, object]
    ) -> tuple[list[GroupResult], tuple[ProbeResult, ...]]:
        """The first look's part in this call; none while another thread looks."""
        if not self._looking.acquire(blocking=False):
            return [], ()
        try:
            return self.first_look.check(judge, examples, results, label)
        finally:
            self._looking.release()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_looking")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _looking=threading.Lock())


def _ignored(config: RewardConfig) -> frozenset[str]:
    """The kinds of `ignored_probes`. Raises ConfigError for one that there is not."""
    kinds = frozenset(name.strip() for name in (config.ignored_probes or "").split(",")) - {""}
    if unknown := sorted(kinds.difference(ALL_KINDS)):
        raise ConfigError(f"ignored_probes: there are no probes {', '.join(unknown)}; there are {', '.join(ALL_KINDS)}")
    return kinds


def _with_probes(judge: Judge, examples: Sequence[Example], probes: list[Probe], labels: Labels) -> list[GroupResult]:
    """The results of examples and probes. Empties `probes` where the format cannot judge them."""
    try:
        return judge_side_by_side(judge, [*examples, *(probe.example for probe in probes)], labels, True)
    except ConfigError:  # as a rule before anything was asked
        if not probes:
            raise
        probes.clear()
        return judge_side_by_side(judge, examples, labels[: len(examples)], True)
