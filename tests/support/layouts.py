"""Groups over gloo processes: every way a trainer may split them, and ranks that raise, hang or are slow.

`run(world, job)` starts `world` processes that train together, calls `job` in each, and returns what each returned.
Used by tests/test_groups.py and benchmarks/groups.py.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flexjudge_reward import Choice, Generation, Judge, Listwise, Pair, Prompt, Sampling, Score
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.trainers.trl import FlexJudgeReward

FORMATS = {"listwise": Listwise, "pair": Pair, "score": Score, "choice": Choice}


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


def grades(prompt: Prompt) -> str:
    """A judge whose scores depend on the texts and on who stands beside whom; some of its replies are malformed."""
    texts = [part.text for part in prompt.messages[1].parts if hasattr(part, "text")]
    lots = [int(hashlib.sha256(f"{texts} {i}".encode()).hexdigest(), 16) for i in range(1, len(texts))]
    if sum(lots) % 11 == 0:
        return "I would rather not."
    return "<think>so</think>" + "".join(f"<answer>{lot % 10 + 1}</answer>" for lot in lots)


def chosen(prompt: Prompt) -> str:
    """The same for choices."""
    texts = [part.text for part in prompt.messages[1].parts if hasattr(part, "text")]
    lot = int(hashlib.sha256(f"{texts}".encode()).hexdigest(), 16)
    return f"<think>so</think><answer>{'ABCDEFGH'[lot % (len(texts) - 1)]}</answer>" if lot % 11 else "None of these."


def rows(total: int, members: int) -> tuple[list[str], list[str]]:
    """Prompts and completions of a whole batch, as one process would see it; every third completion is a repetition."""
    return [f"question {i // members}" for i in range(total)], [f"answer {i - (i % 3 == 2)}" for i in range(total)]


def reward(form: str, **settings: Any) -> FlexJudgeReward:
    """A reward with the scripted judge that never stops for failures."""
    judge = Judge(FORMATS[form](), ScriptedEngine(chosen if form == "choice" else grades))
    return FlexJudgeReward(judge, name="groups", max_failure_rate=1.0, **settings)


def rewarded(forms: str, prompts: list[str], completions: list[str]) -> list[tuple[float | None, ...]]:
    """What each of the rewards gives every row; `forms` are joined by a plus sign."""
    return list(zip(*(reward(form)(prompts, completions) for form in forms.split("+")), strict=True))


def own_rows(rank: int, world: int, forms: str) -> list[list[tuple[float | None, ...]]]:
    """What this rank's rewards give for its slice of the batch, in every layout."""
    found = []
    for per_rank, members in layouts(world):
        prompts, completions = rows(per_rank * world, members)
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        found.append(rewarded(forms, prompts[mine], completions[mine]))
    return found


def mismatches(world: int, forms: str, folder: Path) -> tuple[int, int]:
    """(rows whose reward differs from that of a single process, all rows), over every layout."""
    ranks = run(world, own_rows, folder, forms)
    wrong = total = 0
    for index, (per_rank, members) in enumerate(layouts(world)):
        alone = rewarded(forms, *rows(per_rank * world, members))
        together = [value for rank in ranks for value in rank[index]]
        wrong += sum(one != other for one, other in zip(alone, together, strict=True))
        total += len(alone)
    return wrong, total


class Misbehaving(ScriptedEngine):
    """An engine that raises, hangs or is slow, on one rank only."""

    def __init__(self, how: str, seconds: float) -> None:
        super().__init__(grades)
        self.how, self.seconds = how, seconds

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        if self.how == "raises":
            raise RuntimeError("the judge broke")
        time.sleep(self.seconds)
        return super().generate(prompts, sampling)


def waited(rank: int, world: int, how: str, seconds: float, deadline: float) -> tuple[float, str]:
    """Seconds that this rank's call took while rank 0's judge misbehaves, and how it ended."""
    given = reward("listwise", deadline=deadline)
    if rank == 0:
        judge = Judge(Listwise(), Misbehaving(how, seconds))
        given = FlexJudgeReward(judge, name="groups", max_failure_rate=1.0, deadline=deadline)
    prompts, completions = rows(4 * world, 4)
    mine = slice(rank * 4, (rank + 1) * 4)
    start = time.perf_counter()
    try:
        values = given(prompts[mine], completions[mine])
        ended = "none" if all(value is None for value in values) else "rewards"
    except Exception as error:
        ended = type(error).__name__
    return time.perf_counter() - start, ended


def run(world: int, job: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """`job(rank, world, *arguments)` in `world` gloo processes; their results in rank order."""
    context = multiprocessing.get_context("spawn")
    meeting = folder / f"meeting-{time.time_ns()}"
    results: Any = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, world, str(meeting), results, job, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(30)
        if process.is_alive():
            process.kill()
    return [found[rank] for rank in range(world)]


def _process(rank: int, world: int, meeting: str, results: Any, job: Callable[..., Any], arguments: Any) -> None:
    import torch.distributed

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=240)
    )
    results.put((rank, job(rank, world, *arguments)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
