"""How the CPU time of our own Python grows with its input: rows, groups, texts.

    python benchmarks/growth.py        about five minutes on an idle machine

Each input is doubled several times; the exponent is the slope of the last two doublings on a double logarithmic scale:
1 is linear, 1.1 is n log n. What counts pairs by their nature (all pairs of a group, draws from them) is measured
against the number of pairs. python.worst_exponent is the largest; the note names it.
"""

from __future__ import annotations

import gc
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from figures import record

from flexjudge_reward import (
    CachedEngine,
    Engine,
    Example,
    Generation,
    Judge,
    Listwise,
    Message,
    Pairwise,
    Pointwise,
    Request,
    Tournament,
    Untrusted,
    rerank,
)
from flexjudge_reward.data.messages import Columns, examples
from flexjudge_reward.engines.cache.keys import keys_of
from flexjudge_reward.formats.pairings import Comparison, all_pairs, swiss_pairs
from flexjudge_reward.formats.reply import read_reply
from flexjudge_reward.judge.rewards import group_ids, rewards
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, fence, flatten, neutralise

ROUNDS, AT_LEAST_S = 5, 0.3
HOSTILE = ("<|im_end|>", "`" * 7, "<answer>", "\u200b<", "e\u0301", "[/INST]", "\ud83d", "<think>\n")


class Zero(Engine):
    """A judge that costs nothing."""

    def complete(self, requests: Any) -> list[Generation]:
        return [Generation(f"<think></think>{'<answer>7</answer>' * _asked(request)}") for request in requests]

    def identity(self) -> dict[str, object]:
        return {"engine": "zero"}


def _asked(request: Request) -> int:
    return sum(isinstance(part, Untrusted) for part in request.prompt.messages[-1].parts) - 1


def rows(count: int) -> list[Example]:
    return [Example(f"Question {number}?", [f"answer {number}"]) for number in range(count)]


def group(count: int) -> Example:
    return Example("Which is best?", [f"{number} {'word ' * 20}" for number in range(count)])


def judged(format: Any, make: Callable[[int], list[Example]]) -> Callable[[int], Callable[[], object]]:
    return lambda count: (lambda judge, batch: lambda: judge(batch))(Judge(format, Zero()), make(count))


def cached(count: int) -> Callable[[], object]:
    folder = tempfile.TemporaryDirectory()
    judge = Judge(Pointwise(), CachedEngine(Zero(), Path(folder.name) / "replies.sqlite"))
    batch = rows(count)
    judge(batch)
    return lambda: (judge(batch), folder)


def key(count: int) -> Callable[[], object]:
    (prompt,) = Listwise().render(group(8))
    messages = (*prompt.messages, Message("user", tuple(Untrusted(f"part {number}") for number in range(count))))
    return lambda: keys_of({"engine": "x"}, [Request(type(prompt)(messages))])


def parts(count: int) -> Callable[[], object]:
    message = Message(
        "user", tuple(f"part {number} " if number % 3 else Untrusted("x" * 64) for number in range(count))
    )
    return lambda: flatten(message)


def swiss(count: int) -> Callable[[], object]:
    played = [Comparison(*pair, 1.0) for pair in swiss_pairs(count, [], count)]
    return lambda: swiss_pairs(count, played, count)


def grouped(count: int) -> Callable[[], object]:
    rng, keys = random.Random(0), [str(number // 8) for number in range(count)]
    outcomes = [rng.random() for _ in keys]
    return lambda: rewards(outcomes, group_ids(keys), "group_mean", "lowest")


def trainer_rows(count: int) -> Callable[[], object]:
    prompts = [[{"role": "user", "content": f"Question {number // 8}"}] for number in range(count)]
    answers = [[{"role": "assistant", "content": f"<think>so</think> {number}"}] for number in range(count)]
    return lambda: examples(prompts, answers, {}, Columns())


def reply(count: int) -> Callable[[], object]:
    text = "<think>" + "so <answer>1</answer> </think> <think>" * count + "</think><answer>7</answer>"
    return lambda: read_reply(Generation(text))


SERIES: dict[str, tuple[Callable[[int], Callable[[], object]], tuple[int, ...]]] = {
    "rows of a judge": (judged(Pointwise(), rows), (1024, 2048, 4096, 8192)),
    "warm rows": (cached, (1024, 2048, 4096)),
    "rows of a trainer": (trainer_rows, (2048, 4096, 8192, 16384)),
    "rewards": (grouped, (8192, 16384, 32768)),
    "candidates of lists": (judged(Listwise(), lambda count: [group(8)] * (count // 8)), (512, 1024, 2048)),
    "candidates that are ranked": (
        lambda count: lambda: rerank([group(count)], Judge(Pointwise(), Zero())),
        (256, 512, 1024),
    ),
    "parts of a message": (parts, (4096, 8192, 16384, 32768)),
    "parts of a key": (key, (1024, 2048, 4096)),
    "thoughts of a reply": (reply, (4096, 8192, 16384)),
    **{
        f"characters {text!r}": (lambda count, text=text: lambda: neutralise(text * count, KNOWN_CONTROL_TOKENS), sizes)
        for text in HOSTILE
        for sizes in [(8192, 16384, 32768)]
    },
    "characters of a fence": (lambda count: lambda: fence(("`` ` " * count,)), (65536, 131072, 262144)),
    "a round of Swiss": (swiss, (128, 256, 512)),
}
PAIRS: dict[str, tuple[Callable[[int], Callable[[], object]], tuple[int, ...]]] = {
    "pairs under a budget": (lambda members: lambda: all_pairs(members, 4 * members), (64, 128, 256)),
    "a tournament of all pairs": (judged(Tournament(Pairwise()), lambda members: [group(members)]), (16, 32, 64)),
}


def seconds(run: Callable[[], object]) -> float:
    """The least CPU time of several runs, more of short ones: what else happens on the machine only adds to it."""
    found: list[float] = []
    while len(found) < ROUNDS or sum(found) < AT_LEAST_S:
        start = process_time()
        run()
        found.append(process_time() - start)
    return min(found)


def main() -> None:
    worst = (0.0, "")
    gc.collect()
    gc.freeze()  # what was imported is not looked at again with each new object
    for counted, series in (((lambda n: n), SERIES), ((lambda n: n * (n - 1) / 2), PAIRS)):
        for name, (make, sizes) in series.items():
            times = [seconds(make(size)) for size in sizes]
            exponent = math.log(times[-1] / times[-3]) / math.log(counted(sizes[-1]) / counted(sizes[-3]))
            worst = max(worst, (exponent, name))
            print(f"{exponent:5.2f}  {name}: {', '.join(f'{1e3 * one:.1f}' for one in times)} ms", flush=True)
    note = f"of {len(SERIES) + len(PAIRS)} series; {worst[1]}"
    record("python.worst_exponent", worst[0], unit="exponent", target="<= 1.1", note=note)


if __name__ == "__main__":
    main()
