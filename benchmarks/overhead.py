"""What the package costs on top of aiohttp and vLLM.

    python benchmarks/overhead.py server    ServerEngine against bare aiohttp, 64 requests in flight
    python benchmarks/overhead.py vllm      Judge on VLLMEngine against raw vllm.LLM, 512 prompts

Both sides see the same prompts in the same process, in turn, and the order changes from round to round, because the
machine's speed drifts; the figure is the median over the rounds of the ratio within a round. The load of the machine
when it began is noted beside it.

server: a loopback server in a process of its own replies to each request after 20 ms, so that the client is what is
measured. The bare side is the shortest program with aiohttp: one session, 64 tasks, `json=` and `.json()`, no retries,
time limits or checks. Ratio of requests per second; 1 is as fast. On a busy machine compare the CPU time per request of
both sides, which is noted beside it.

vllm: the embedded judge, 512 prompts, half of them with an image. The raw side gets the finished chat texts and calls
`LLM.generate` once; ours gets examples and returns verdicts. Both use one engine, whose caches are emptied before each
turn. Ratio of seconds; 1 is as fast. With a larger judge the share of our own work is smaller.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from figures import record

from flexjudge_reward import (
    Example,
    Judge,
    Message,
    Pointwise,
    Prompt,
    Request,
    Sampling,
    ServerEngine,
    Untrusted,
    VLLMEngine,
)

if TYPE_CHECKING:
    from vllm import LLM

SERVICE_S = 0.020
IN_FLIGHT = 64
REQUESTS, SERVER_ROUNDS = 2048, 15
PROMPTS, VLLM_ROUNDS = 512, 7
QUESTION = "What is shown, and is every part of the answer true? Name each part, say what speaks for it, and compare. "

MESSAGE = {"role": "assistant", "content": "<think>" + "All of it is right. " * 20 + "</think><answer>7</answer>"}
REPLY = {
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 100},
}
MODELS = {"data": [{"id": "judge", "object": "model"}]}


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
        answer = json.dumps(MODELS if head.startswith(b"GET") else REPLY).encode()
        header = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(answer)
        asyncio.get_running_loop().call_later(SERVICE_S, self.transport.write, header + answer)

    @classmethod
    def serve(cls, port: Any) -> None:
        async def run() -> None:
            server = await asyncio.get_running_loop().create_server(cls, "127.0.0.1", 0)
            port.send(server.sockets[0].getsockname()[1])
            await server.serve_forever()

        asyncio.run(run())


def alternating(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> list[tuple[float, float]]:
    """Seconds of both sides per round, after one round that does not count."""
    seconds = []
    for number in range(rounds + 1):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        spent = {first: first(), second: second()}
        seconds.append((spent[ours], spent[theirs]))
        print(f"round {number}: ours {spent[ours]:.3f} s, theirs {spent[theirs]:.3f} s", flush=True)
    return seconds[1:]


def server() -> None:
    import aiohttp

    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=Loopback.serve, args=(send,), daemon=True)
    process.start()
    url = f"http://127.0.0.1:{receive.recv()}/v1"
    texts = [f"Question {number}. " + QUESTION * 5 for number in range(REQUESTS)]
    system = Message("system", (QUESTION,))
    requests = [Request(Prompt((system, Message("user", (Untrusted(text),))))) for text in texts]
    engine = ServerEngine(url, concurrency=IN_FLIGHT)

    async def bare() -> None:
        waiting = iter(texts)

        async def work(session: aiohttp.ClientSession) -> None:
            for text in waiting:
                messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
                body = {"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 2048, "seed": 0}
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    answers.append((await response.json())["choices"][0]["message"]["content"])

        answers: list[str] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:
            await asyncio.gather(*(work(session) for _ in range(IN_FLIGHT)))
        assert len(answers) == REQUESTS

    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}

    def ours() -> float:
        start, start_cpu = perf_counter(), process_time()
        generations = engine.generate(requests)
        spent = perf_counter() - start
        cpu["ours"].append(process_time() - start_cpu)
        assert all(generation.failure is None for generation in generations)
        return spent

    def theirs() -> float:
        start, start_cpu = perf_counter(), process_time()
        asyncio.run(bare())
        cpu["theirs"].append(process_time() - start_cpu)
        return perf_counter() - start

    load = os.getloadavg()[0]
    seconds = alternating(SERVER_ROUNDS, ours, theirs)
    engine.close()
    process.terminate()
    ratio = median(theirs / ours for ours, theirs in seconds)
    rates = [REQUESTS / median(side) for side in zip(*seconds, strict=True)]
    costs = [1e6 * median(cpu[side]) / REQUESTS for side in ("ours", "theirs")]
    note = (
        f"ServerEngine {rates[0]:.0f}/s, bare aiohttp {rates[1]:.0f}/s, {IN_FLIGHT} in flight;"
        f" CPU {costs[0]:.0f} and {costs[1]:.0f} us per request; {_load(load)}"
    )
    record("overhead.server_ratio", ratio, unit="ratio of requests per second", target=">= 0.95", note=note)


def vllm() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import SamplingParams

    load, sampling = os.getloadavg()[0], Sampling(max_tokens=160)
    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    judge = Judge(Pointwise(prompt_set="nano"), engine, sampling)
    judge(examples()[:2])  # starts the engine
    assert engine._llm is not None  # one engine for both sides: two would share the processor and disturb each other
    llm, params = engine._llm, SamplingParams(temperature=0.0, max_tokens=sampling.max_tokens)

    def ours() -> float:
        batch = examples()
        forget(llm)
        start = perf_counter()
        verdicts = judge(batch)
        spent = perf_counter() - start
        assert sum(verdict.scores is not None for verdict in verdicts) > 0.9 * PROMPTS
        return spent

    def theirs() -> float:
        batch = [plain(engine, judge, example) for example in examples()]
        forget(llm)
        start = perf_counter()
        llm.generate(batch, params, use_tqdm=False)
        return perf_counter() - start

    seconds = alternating(VLLM_ROUNDS, ours, theirs)
    engine.close()
    ratio = median(ours / theirs for ours, theirs in seconds)
    rates = [PROMPTS / median(side) for side in zip(*seconds, strict=True)]
    note = f"Judge {rates[0]:.0f} prompts/s, raw vLLM {rates[1]:.0f}/s, half with an image; {_load(load)}"
    record("overhead.vllm_ratio", ratio, unit="ratio of seconds", target="<= 1.03", note=note)


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
    {"server": server, "vllm": vllm}[sys.argv[1]]()
