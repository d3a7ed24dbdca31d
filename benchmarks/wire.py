"""What goes over the wire to a real vLLM server: bytes of images, and calls for reasonings that are cut.

    python benchmarks/wire.py        three minutes

Twelve groups of eight answers, a picture of 448 x 448 each, on the embedded judge. `wire.image_bytes_ratio` is the
bytes sent where images go by name after the first time, relative to sending them each time; the verdicts have to be
the same. `wire.forced_calls_ratio` is the calls for 24 reasonings that the limit cuts, on a server that closes them
itself, relative to one that is asked a second time.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from flexjudge_recipes.nano import shapes

from figures import record

from flexjudge_reward import BudgetForcing, Example, Judge, Media, Pointwise, Sampling, ServerEngine, Verdict
from flexjudge_reward.nano import path
from support import real

GROUPS, SIZE, SIDE = 12, 8, 448
THINKS = '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}'
OPTIONS = ("--dtype", "float32", "--enforce-eager", "--served-model-name", "nano", "--reasoning-config", THINKS)


class Counter:
    """A relay on loopback that counts the bytes and the requests that clients send."""

    def __init__(self, target: str) -> None:
        self.target, self.bytes, self.calls = urlsplit(target), 0, 0

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self.target.hostname), int(self.target.port or 80)
        back, forth = await asyncio.open_connection(host, port, limit=2**24)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter, counted: bool) -> None:
            while data := await source.read(2**18):
                if counted:
                    self.bytes += len(data)
                    self.calls += data.count(b"POST /v1/chat/completions")
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(copy(reader, forth, True), copy(back, writer, False), return_exceptions=True)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address."""
        loop, started = asyncio.new_event_loop(), threading.Event()

        async def serve() -> None:
            self.server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
            started.set()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.set_exception_handler(lambda *_: None)  # of relays that end with it
            loop.run_until_complete(serve())
            loop.run_forever()
            self.server.close()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        started.wait()
        yield f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def examples(groups: int) -> list[Example]:
    """Groups of eight answers to a question about one picture."""
    rng, found = random.Random(11), []
    for _ in range(groups):
        scene = shapes.scene(rng)
        question, image = shapes.question(rng, scene), Media.image(shapes.draw(scene, rng).resize((SIDE, SIDE)))
        found += [Example([image, question.text], [f"{question.truth} {n}"]) for n in range(SIZE)]
    return found


def counted(
    url: str, format: BudgetForcing | Pointwise, asked: Sequence[Example], limit: int, refuses: bool = False
) -> tuple[list[Verdict], int, int]:
    """The verdicts, the bytes and the calls; with `refuses`, as if the server took neither names nor budgets."""
    counter = Counter(url)
    with counter.serving() as relay, ServerEngine(relay) as engine:
        if refuses:
            client = engine._opened()
            client._references._usable = False
            client.dialect.drop("thinking_token_budget")
        verdicts = Judge(format, engine, Sampling(max_tokens=limit))(asked)
    return verdicts, counter.bytes, counter.calls


def main() -> None:
    """Measures and records."""
    plain, forcing = Pointwise(prompt_set="nano"), BudgetForcing(Pointwise(prompt_set="nano"), 16)
    with real.serve(str(path("judge")), *OPTIONS) as url:
        by_bytes, many, _ = counted(url, plain, examples(GROUPS), 160, refuses=True)
        by_name, few, calls = counted(url, plain, examples(GROUPS), 160)
        twice, _, both = counted(url, forcing, examples(3), 20, refuses=True)
        once, _, one = counted(url, forcing, examples(3), 20)
    other = sum(a.scores != b.scores for a, b in zip(by_bytes, by_name, strict=True))
    note = f"{many / 1e6:.2f} MB each time, {few / 1e6:.2f} MB by name; {calls} calls for {GROUPS * SIZE} judgements"
    record(
        "wire.image_bytes_ratio", few / many, unit="ratio", target="<= 0.25", note=f"{note}; {other} verdicts differ"
    )
    forced = [sum(verdict.counters["forced"] for verdict in verdicts) for verdicts in (twice, once)]
    other = sum(a.scores != b.scores for a, b in zip(twice, once, strict=True))
    note = f"{both} and {one} calls; forced {forced[0]:.0f} and {forced[1]:.0f} of 24; {other} verdicts differ"
    record("wire.forced_calls_ratio", one / both, unit="ratio", target="<= 0.5", note=note)


if __name__ == "__main__":
    main()
