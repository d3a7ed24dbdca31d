"""Groups over gloo processes: every way a trainer may split them, and ranks that raise, hang or are slow.

`run(world, jobs, folder)` starts `world` processes that train together, calls every job in each, and returns what each
returned. Used by tests/system/test_ranks.py and benchmarks/groups.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from flexjudge_reward import (
    Example,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.media.base import Limits
from support.attacks import slow_smiles
from support.judging import candidates, tags

FORMATS: tuple[Format, ...] = (Listwise(), Pairwise(), MultipleChoice(), Pointwise())
Job = Callable[[int, int], Any]
"""What a process does, given its rank and the number of processes."""
_OVER = threading.Event()  # all jobs are done: nothing is slow to read any more, because a process waits for readers


def layouts(world: int) -> list[tuple[int, int]]:
    """(rows per rank, G) of every layout TRL accepts: the rows of all ranks are a multiple of G."""
    sizes = []
    for members in (2, 4, 8):
        for per_device in (1, 2, 3, 4):
            steps = next(
                n for n in range(1, 33) if per_device * world * n % members == 0 and per_device * world * n >= members
            )
            sizes.append((per_device * steps, members))
    return sizes


def replies(request: Request) -> str:
    """A judge whose replies depend on the texts and on which of them are together; one of eleven is malformed."""
    texts = [part.text for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
    digests = [int(hashlib.sha256(f"{texts} {i}".encode()).hexdigest(), 16) for i in range(1, len(texts))]
    if sum(digests) % 11 == 0:
        return "I would rather not."
    if "the letter" in str(request.prompt.messages[0]):
        return tags("ABCDEFGH"[digests[0] % len(digests)])
    return tags(*(digest % 10 + 1 for digest in digests))


def in_order(request: Request) -> str:
    """A judge whose every reply can be read."""
    return tags(*range(1, len(candidates(request)) + 1))


def rows(total: int, members: int) -> tuple[list[str], list[str]]:
    """Prompts and completions of a whole batch, as one process would see it; every third completion is a repetition."""
    return [f"question {i // members}" for i in range(total)], [f"answer {i - (i % 3 == 2)}" for i in range(total)]


def reward(format: Format, engine: ScriptedEngine | None = None, **settings: Any) -> FlexJudgeReward:
    """A reward with the scripted judge that by default never stops for failures."""
    judge = Judge(format, engine or ScriptedEngine(replies))
    return FlexJudgeReward(judge, name="groups", **{"max_failure_rate": 1.0, **settings})


def own_rows(rank: int, world: int) -> list[list[list[float | None]]]:
    """What this rank's rewards give for its slice of the batch, in every layout, by every format."""
    found = []
    for per_rank, members in layouts(world):
        prompts, completions = rows(per_rank * world, members)
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        found.append([reward(format)(prompts[mine], completions[mine]) for format in FORMATS])
    return found


def mismatches(world: int, folder: Path) -> tuple[int, int]:
    """(rows whose reward differs from that of a single process, all rows), over every layout and format."""
    (ranks,) = run(world, [own_rows], folder, start="forkserver")
    wrong = total = 0
    for index, (per_rank, members) in enumerate(layouts(world)):
        for number, format in enumerate(FORMATS):
            alone = reward(format)(*rows(per_rank * world, members))
            together = [value for rank in ranks for value in rank[index][number]]
            wrong += sum(one != other for one, other in zip(alone, together, strict=True))
            total += len(alone)
    return wrong, total


class Misbehaving(ScriptedEngine):
    """An engine that raises, sleeps, computes without end or gives no answer."""

    def __init__(self, how: str, seconds: float) -> None:
        super().__init__(in_order)
        self.how, self.seconds = how, seconds

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        if self.how == "raises":
            raise RuntimeError("the judge broke")
        if self.how == "fails":
            return [Generation("?")] * len(requests)
        if self.how == "computes":
            import torch

            numbers = torch.ones(64, 64)
            while True:  # in torch's own code nearly all of the time, as a model is
                numbers @ numbers
        time.sleep(self.seconds)
        return super().complete(requests)


class Slow:
    """What torch's tensors are to numpy, only slow."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        import numpy as np

        _OVER.wait(self.seconds)
        return np.zeros((4, 4), np.uint8)


def slow_rows(what: str, seconds: float) -> list[Example]:
    """Four rows of two questions, slow to read, with slow media in prompts or in a candidate, or molecules there."""
    if what == "rows":
        _OVER.wait(seconds)
    media = [Media.image(Slow(seconds if what == "prompts" else 0))] * 4
    if what == "molecules":
        media = [Media("molecule", smiles, limits=Limits(seconds=3), as_="text") for smiles in slow_smiles(4)]
    first = Media.image(Slow(seconds)) if what == "candidates" else "1"
    return [Example([media[n], f"question {n // 2}"], [one]) for n, one in enumerate([first, "2", "3", "4"])]


def reads(what: str, format: Format, seconds: float, deadline: float) -> Job:
    """A job: how a call ends, and after how many seconds, while something that rank 0 reads is slow."""
    return partial(_read, what, format, seconds, deadline)


def _read(what: str, format: Format, seconds: float, deadline: float, rank: int, world: int) -> tuple[float, str]:
    judge = Judge(format, ScriptedEngine(in_order))
    session = RewardSession(judge, {"deadline": deadline, "max_failure_rate": 1.0, "on_failure": "abstain"})
    slow = what if rank == 0 else "nothing"
    start = time.perf_counter()
    try:
        values = session.score(lambda columns: slow_rows(slow, seconds)).rewards
        ended = "none" if all(value is None for value in values) else "rewards"
    except Exception as error:
        ended = type(error).__name__
    return time.perf_counter() - start, ended


def waits(how: str, seconds: float, deadline: float) -> Job:
    """A job: how a call ends, and after how many seconds, while rank 0's judge misbehaves."""
    return partial(_waited, how, seconds, deadline)


def _waited(how: str, seconds: float, deadline: float, rank: int, world: int) -> tuple[float, str]:
    settings = {"deadline": deadline, "max_failure_rate": 0.0 if how == "fails" else 1.0}
    one = reward(Listwise(), Misbehaving(how, seconds) if rank == 0 else ScriptedEngine(in_order), **settings)
    prompts, completions = rows(4 * world, 4)
    mine = slice(rank * 4, (rank + 1) * 4)
    if how == "wrong batch" and rank == 0:
        completions = completions[: mine.stop - 1]
    start = time.perf_counter()
    try:
        values = one(prompts[mine], completions[mine])
        ended = "none" if all(value is None for value in values) else "rewards"
    except Exception as error:
        ended = type(error).__name__
    return time.perf_counter() - start, ended


class Remote(ScriptedEngine):
    """A judge on a server as far as a reward can tell: it answers once the others of `meeting` are asked, too."""

    remote = True

    def __init__(self, meeting: threading.Barrier, seconds: float = 0.0) -> None:
        super().__init__(in_order)
        self.meeting, self.seconds = meeting, seconds

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        self.meeting.wait(30)
        time.sleep(self.seconds)
        return super().complete(requests)


def gathered(*calls: Callable[[], Any]) -> list[Any]:
    """What awaited rewards give, as TRL gathers them: on a loop in a thread of its own."""
    found: list[Any] = []

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(call() for call in calls), return_exceptions=True)

    thread = threading.Thread(target=lambda: found.extend(asyncio.run(all_of_them())))
    thread.start()
    thread.join(60)
    return found


def overlap(rank: int, world: int) -> list[str]:
    """A job: what two rewards of two formats give that overlap and end in another order on each rank; then an error."""
    meeting, ended = threading.Barrier(2), []
    engines = [Remote(meeting, 0.3 * (rank == number)) for number in (0, 1)]
    pair = [reward(format, engine) for format, engine in zip((Pointwise(), Listwise()), engines, strict=True)]
    prompts, completions = rows(4 * world, 4)
    mine = slice(rank, None, world)  # every rank has rows of every group, and judges one of them
    for broken in (False, True):
        given = completions[mine] if not (broken and rank == 0) else [None] * 4  # one of them breaks on one rank
        calls = [partial(pair[0], prompts[mine], given), partial(pair[1], prompts[mine], completions[mine])]
        if broken:
            engines[0].meeting = engines[1].meeting = threading.Barrier(1)
        ended += [type(one).__name__ if isinstance(one, Exception) else str(one) for one in gathered(*calls)]
    return [*ended, str(reward(Listwise(), ScriptedEngine(in_order))(prompts[mine], completions[mine]))]


def spends(rank: int, world: int) -> str:
    """A job: how a call ends whose cost only all ranks together take past the ceiling."""
    judge = Judge(Pointwise(), ScriptedEngine(lambda request: Generation(tags(7), completion_tokens=100 * (rank + 1))))
    one = FlexJudgeReward(judge, max_judge_tokens=100 * world, name="costs")
    try:
        return str(one(["q"], ["a"]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run(world: int, jobs: Sequence[Job], folder: Path, start: str = "spawn") -> list[list[Any]]:
    """Every job in `world` gloo processes; per job, the results in rank order. The processes must end well.

    With `start="forkserver"` torch is imported once for all runs, and the processes skip the interpreter's end.
    """
    context: Any = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torch.distributed", "flexjudge_reward.trainers.trl", __name__])
    meeting = folder / f"meeting-{time.time_ns()}"
    results: Any = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, world, str(meeting), results, jobs), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    by_rank: dict[int, list[Any]] = {}
    while len(by_rank) < world and not any(process.exitcode for process in processes):
        with suppress(queue.Empty):
            rank, found = results.get(timeout=1)
            by_rank[rank] = found
    for process in processes if len(by_rank) == world else ():
        process.join(120)
    codes = [process.exitcode for process in processes]
    if codes != [0] * world:
        for process in processes:
            process.kill()
        raise RuntimeError(f"the processes ended with the codes {codes}; None is one that did not end")
    return [[by_rank[rank][job] for rank in range(world)] for job in range(len(jobs))]


def _process(rank: int, world: int, meeting: str, results: Any, jobs: Sequence[Job]) -> None:
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=240)
    )
    results.put((rank, [job(rank, world) for job in jobs]))
    _OVER.set()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
