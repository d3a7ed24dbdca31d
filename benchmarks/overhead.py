"""What the package costs on top of aiohttp and vLLM.

    python benchmarks/overhead.py server    ServerEngine against bare aiohttp, 64 to 1,024 requests in flight
    python benchmarks/overhead.py images    the same with a picture in each request
    python benchmarks/overhead.py python    the whole of our Python: Judge on ServerEngine, text and pictures
    python benchmarks/overhead.py memory    what a row of one large call holds, in groups with a picture
    python benchmarks/overhead.py vllm      Judge on VLLMEngine against raw vllm.LLM, 512 prompts

Both sides see the same prompts in the same process, in turn, and the order changes from round to round, because the
machine's speed drifts; the figure is the median over the rounds of the ratio within a round. The load of the machine
when it began is noted beside it.

server: a loopback server in a process of its own replies to each request after 20 ms, so that the client is what is
measured. The bare side is the shortest program with aiohttp: one session, 64 tasks, `json=` and `.json()`, no retries,
time limits or checks. Ratio of requests per second; 1 is as fast. On a busy machine compare the CPU time per request of
both sides, which is noted beside it.

images: groups of eight share a picture. Ratio of CPU time, decoding and digest of each picture included; the bare side
decodes nothing. python: judgements per second of this process's CPU time. memory: the peak of one call of many rows
less that of a call of few, per row; the picture files themselves are not in it.

vllm: the embedded judge, 512 prompts, half of them with an image. The raw side gets the finished chat texts and calls
`LLM.generate` once; ours gets examples and returns verdicts. Both use one engine, whose caches are emptied before each
turn. Ratio of seconds; 1 is as fast. With a larger judge the share of our own work is smaller.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from figures import record

from flexjudge_reward import (
    Example,
    Generation,
    Judge,
    Media,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ServerEngine,
    Untrusted,
    Verdict,
    VLLMEngine,
)

if TYPE_CHECKING:
    from vllm import LLM

SERVICE_S = 0.020
IN_FLIGHT = (64, 256, 1024)
REQUESTS, SERVER_ROUNDS = 2048, 9
PICTURES, GROUP, IMAGE_ROUNDS, PYTHON_ROUNDS = 32, 8, 5, 5
PROMPTS, VLLM_ROUNDS = 512, 7
MEMORY_ROWS = (2048, 8192)  # both beyond what media/frames.py keeps decoded, whatever the number of rows
QUESTION = "What is shown, and is every part of the answer true? Name each part, say what speaks for it, and compare. "

MESSAGE = {"role": "assistant", "content": "<think>" + "All of it is right. " * 20 + "</think><answer>7</answer>"}
REPLY = {
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 600, "completion_tokens": 100},
}
MODELS = {"data": [{"id": "judge", "object": "model"}]}


class Cost(NamedTuple):
    """What one side of a round takes."""

    seconds: float
    cpu: float


class Loopback(asyncio.Protocol):
    """The smallest HTTP server that can answer a chat completion, so that it takes little of the machine."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(body) < int(lengths[0] if lengths else 0):
            return
        self.buffer = b""
        answer, seconds = self.answer(b"" if head.startswith(b"GET") else body)
        header = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
        asyncio.get_running_loop().call_later(seconds, self.transport.write, header + answer)

    @classmethod
    def answer(cls, body: bytes) -> tuple[bytes, float]:
        """The answer to a request, and after how many seconds; an empty body asks for the models."""
        # An image has tokens, else the engine finds that they do not reach the model.
        shown = b'"image_url"' in body[:4096]
        reply = {**REPLY, "usage": {"prompt_tokens": 1200 if shown else 600, "completion_tokens": 100}}
        return json.dumps(reply if body else MODELS).encode(), SERVICE_S

    @classmethod
    def serve(cls, port: Any) -> None:
        async def run() -> None:
            server = await asyncio.get_running_loop().create_server(cls, "127.0.0.1", 0)
            port.send(server.sockets[0].getsockname()[1])
            await server.serve_forever()

        asyncio.run(run())


def alternating(rounds: int, ours: Callable[[], Cost], theirs: Callable[[], Cost]) -> list[tuple[Cost, Cost]]:
    """The cost of both sides per round, after one round that does not count."""
    costs = []
    for number in range(rounds + 1):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        cost = {first: first(), second: second()}
        costs.append((cost[ours], cost[theirs]))
        clocks = [f"{name} {one.seconds:.3f} s, CPU {one.cpu:.3f} s" for name, one in zip("ab", costs[-1], strict=True)]
        print(f"round {number}: ours (a), theirs (b): {'; '.join(clocks)}", flush=True)
    return costs[1:]


@contextmanager
def loopback(kind: type[Loopback] = Loopback) -> Iterator[str]:
    """The address of a server in a process of its own."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=kind.serve, args=(send,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receive.recv()}/v1"
    finally:
        process.terminate()


async def bare(url: str, contents: Sequence[Any], in_flight: int) -> None:
    """The shortest program with aiohttp that asks about these contents."""
    import aiohttp

    waiting, answers = iter(contents), []

    async def work(session: aiohttp.ClientSession) -> None:
        for content in waiting:
            messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": content}]
            body = {"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 2048, "seed": 0}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                answers.append((await response.json())["choices"][0]["message"]["content"])

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:
        await asyncio.gather(*(work(session) for _ in range(in_flight)))
    assert len(answers) == len(contents)


def spent(work: Callable[[], object]) -> Cost:
    """What `work` takes of the clock and of this process's processors."""
    start, start_cpu = perf_counter(), process_time()
    work()
    return Cost(perf_counter() - start, process_time() - start_cpu)


def server() -> None:
    texts = [f"Question {number}. " + QUESTION * 5 for number in range(REQUESTS)]
    system = Message("system", (QUESTION,))
    requests = [Request(Prompt((system, Message("user", (Untrusted(text),))))) for text in texts]
    for in_flight in IN_FLIGHT:
        load = os.getloadavg()[0]
        with loopback() as url, ServerEngine(url, concurrency=in_flight) as engine:

            def ours(engine: ServerEngine = engine) -> Cost:
                return spent(lambda: answered(engine.generate(requests)))

            def theirs(url: str = url, in_flight: int = in_flight) -> Cost:
                return spent(lambda: asyncio.run(bare(url, texts, in_flight)))

            costs = alternating(SERVER_ROUNDS, ours, theirs)
        ratio = median(theirs.seconds / ours.seconds for ours, theirs in costs)
        rates = [REQUESTS / median(cost.seconds for cost in side) for side in zip(*costs, strict=True)]
        micros = [1e6 * median(cost.cpu for cost in side) / REQUESTS for side in zip(*costs, strict=True)]
        note = (
            f"text; ServerEngine {rates[0]:.0f}/s, bare aiohttp {rates[1]:.0f}/s;"
            f" CPU {micros[0]:.0f} and {micros[1]:.0f} us per request; {_load(load)}"
        )
        record(
            f"overhead.server_ratio_{in_flight}",
            ratio,
            unit="ratio of requests per second",
            target=">= 0.97",
            note=note,
        )


def images() -> None:
    load, files = os.getloadavg()[0], pictures()
    system = Message("system", (QUESTION,))
    uris = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    contents = [
        [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": f"{QUESTION} {number}"}]
        for uri in uris
        for number in range(GROUP)
    ]

    def requests() -> list[Request]:
        shown = [Media.image(file) for file in files]
        texts = [(media, Untrusted(f"{QUESTION} {number}")) for media in shown for number in range(GROUP)]
        return [Request(Prompt((system, Message("user", parts)))) for parts in texts]

    with loopback() as url, ServerEngine(url, concurrency=IN_FLIGHT[0]) as engine:

        def ours() -> Cost:
            return spent(lambda: answered(engine.generate(requests())))

        costs = alternating(IMAGE_ROUNDS, ours, lambda: spent(lambda: asyncio.run(bare(url, contents, IN_FLIGHT[0]))))
    ratio = median(ours.cpu / theirs.cpu for ours, theirs in costs)
    millis = [1e3 * median(cost.cpu for cost in side) / len(contents) for side in zip(*costs, strict=True)]
    walls = median(theirs.seconds / ours.seconds for ours, theirs in costs)
    note = (
        f"a PNG of {len(files[0]) / 1e3:.0f} KB, 448 x 448, in each, groups of {GROUP}, {IN_FLIGHT[0]} in flight;"
        f" CPU {millis[0]:.2f} and {millis[1]:.2f} ms per request; rate {walls:.2f} of bare aiohttp, which sends the"
        f" file's bytes and encodes each once; {_load(load)}"
    )
    record("overhead.server_image_cpu_ratio", ratio, unit="ratio of CPU time", target="<= 2.0", note=note)


def python() -> None:
    files = pictures()

    def text() -> list[Example]:
        return [Example(f"Question {number}. {QUESTION}", [f"{QUESTION} {number}"]) for number in range(REQUESTS)]

    def shown() -> list[Example]:
        media = [Media.image(file) for file in files]
        return [Example([one, QUESTION], [f"{QUESTION} {number}"]) for one in media for number in range(GROUP)]

    for name, make, target in (("text", text, 8000), ("image", shown, 600)):
        load = os.getloadavg()[0]
        with loopback() as url, Judge(Pointwise(), ServerEngine(url, concurrency=256)) as judge:
            rates = []
            for _ in range(PYTHON_ROUNDS + 1):
                examples = make()
                cost = spent(lambda: scored(judge(examples)))  # noqa: B023
                rates.append(len(examples) / cost.cpu)
                print(f"{name}: {rates[-1]:.0f} per CPU-second, {len(examples) / cost.seconds:.0f}/s", flush=True)
        note = f"Judge on ServerEngine, pointwise, no cache, 256 in flight; {_load(load)}"
        record(f"python.{name}_per_cpu_s", median(rates[1:]), unit="1/CPU-s", target=f">= {target}", note=note)


def memory() -> None:
    load, spawn = os.getloadavg()[0], multiprocessing.get_context("spawn")
    with loopback() as url, spawn.Pool(1, maxtasksperchild=1) as pool:
        few, many = (pool.apply(held, (url, rows)) for rows in MEMORY_ROWS)
    note = f"calls of {MEMORY_ROWS[0]} and {MEMORY_ROWS[1]} rows, {few:.0f} and {many:.0f} MB; load average {load:.1f}"
    each = (many - few) / (MEMORY_ROWS[1] - MEMORY_ROWS[0])
    record("python.memory_mb_per_row", each, unit="MB", target="<= 0.1", note=note)


def held(url: str, rows: int) -> float:
    """MB at the peak of one call, above what this process has before it, with all files."""
    files = pictures(rows // GROUP)
    media = [Media.image(file) for file in files]
    with Judge(Pointwise(), ServerEngine(url, concurrency=256)) as judge:
        judge([Example([Media.image(files[0]), QUESTION], [QUESTION])])
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = _resident("VmRSS")
        scored(judge([Example([one, QUESTION], [f"{QUESTION} {number}"]) for one in media for number in range(GROUP)]))
        return _resident("VmHWM") - before


def _resident(field: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def pictures(count: int = PICTURES) -> list[bytes]:
    """PNG files of 448 x 448 that an encoder finds as hard as photographs, of about 370 KB."""
    import numpy as np
    import PIL.Image

    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shapes = PIL.Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8)).resize((448, 448))
        pixels = np.asarray(shapes, np.int16) + rng.normal(0, 4, (448, 448, 1)).astype(np.int16)
        PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "PNG")
        files.append(file.getvalue())
    return files


def answered(generations: Sequence[Generation]) -> None:
    assert all(generation.failure is None for generation in generations)


def scored(verdicts: Sequence[Verdict]) -> None:
    assert all(verdict.scores == (7.0,) for verdict in verdicts)


def vllm() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import SamplingParams

    load, sampling = os.getloadavg()[0], Sampling(max_tokens=160)
    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    judge = Judge(Pointwise(prompt_set="nano"), engine, sampling)
    judge(examples()[:2])  # starts the engine
    assert engine._llm is not None  # one engine for both sides: two would share the processor and disturb each other
    llm, params = engine._llm, SamplingParams(temperature=0.0, max_tokens=sampling.max_tokens)

    def ours() -> Cost:
        batch, verdicts = examples(), []
        forget(llm)
        cost = spent(lambda: verdicts.extend(judge(batch)))
        assert sum(verdict.scores is not None for verdict in verdicts) > 0.9 * PROMPTS
        return cost

    def theirs() -> Cost:
        batch = [plain(engine, judge, example) for example in examples()]
        forget(llm)
        return spent(lambda: llm.generate(batch, params, use_tqdm=False))

    costs = alternating(VLLM_ROUNDS, ours, theirs)
    engine.close()
    ratio = median(ours.seconds / theirs.seconds for ours, theirs in costs)
    rates = [PROMPTS / median(cost.seconds for cost in side) for side in zip(*costs, strict=True)]
    note = f"Judge {rates[0]:.0f} prompts/s, raw vLLM {rates[1]:.0f}/s, half with an image; {_load(load)}"
    record("overhead.vllm_ratio", ratio, unit="ratio of seconds", target="<= 1.02", note=note)


def examples() -> list[Example]:
    """The same examples each time, as new objects: half with an image."""
    from nano import cases

    half = PROMPTS // 2
    return [case.example for medium in ("words", "image") for case in cases("pointwise", medium, half, 1, seed=5)]


def plain(engine: VLLMEngine, judge: Judge, example: Example) -> dict[str, object]:
    """The input of `LLM.generate`: the finished chat text, and the image."""
    (prompt,) = judge.format.render(example)
    assert engine._chat is not None
    images = [media.images()[0] for media in prompt.media]
    return {"prompt": engine._chat.render(prompt), **({"multi_modal_data": {"image": images}} if images else {})}


def forget(llm: LLM) -> None:
    """Both sides begin with empty caches."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()


def _load(before: float) -> str:
    return f"load average {before:.1f} before and {os.getloadavg()[0]:.1f} after on {os.cpu_count()} cores"


if __name__ == "__main__":
    {"server": server, "images": images, "python": python, "memory": memory, "vllm": vllm}[sys.argv[1]]()
