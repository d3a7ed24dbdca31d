"""What the package costs on top of what it stands on.

    python benchmarks/overhead.py server    ServerEngine against bare aiohttp, 64 requests in flight
    python benchmarks/overhead.py vllm      Judge on VLLMEngine against raw vllm.LLM, 512 prompts

Both sides see the same prompts in the same process, in turn, and the order changes from round to round, because the
machine's speed drifts; the figure is the median over the rounds of the ratio within a round.

server: a loopback server in a process of its own answers each request 20 ms after it came, so that the client is what
is measured. The bare side is what one writes with aiohttp and no more: one session, 64 tasks, `json=` and `.json()`,
no retries, deadlines or checks. Ratio of requests per second; 1 is as fast.

vllm: the embedded judge, 512 prompts, half of them with a picture. The raw side gets the finished chat texts and calls
`LLM.generate` once; ours gets examples and returns verdicts. Both use one engine, whose caches are emptied before each
turn. Ratio of seconds; 1 is as fast. With a larger judge the share of our own work is smaller.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import record
from nano import SAMPLING, cases
from support import real

from flexjudge_reward import Example, Judge, Message, Prompt, Quoted, Sampling, Score
from flexjudge_reward.engines import ServerEngine, VLLMEngine

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
    prompts = [Prompt((Message("system", (QUESTION,)), Message("user", (Quoted(text),)))) for text in texts]
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

    def ours() -> float:
        start = perf_counter()
        generations = engine.generate(prompts, Sampling())
        spent = perf_counter() - start
        assert all(generation.failure is None for generation in generations)
        return spent

    def theirs() -> float:
        start = perf_counter()
        asyncio.run(bare())
        return perf_counter() - start

    seconds = alternating(SERVER_ROUNDS, ours, theirs)
    engine.close()
    process.terminate()
    ratio = median(theirs / ours for ours, theirs in seconds)
    rates = [REQUESTS / median(side) for side in zip(*seconds, strict=True)]
    note = f"ServerEngine {rates[0]:.0f}/s, bare aiohttp {rates[1]:.0f}/s, {IN_FLIGHT} in flight, 20 ms service"
    record("overhead.server_ratio", ratio, unit="ratio of requests per second", target=">= 0.95", note=note)


def vllm() -> None:
    real.prepare()
    from vllm import SamplingParams

    engine = VLLMEngine("nano", dtype="float32", enforce_eager=True)
    judge = Judge(Score(prompts="nano"), engine, SAMPLING)
    judge(examples()[:2])  # starts the engine
    assert engine._llm is not None  # one engine for both sides: two would share the processor and disturb each other
    llm, params = engine._llm, SamplingParams(temperature=0.0, max_tokens=SAMPLING.max_tokens)

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
    note = f"Judge {rates[0]:.0f} prompts/s, raw vLLM {rates[1]:.0f}/s, half of them with a picture"
    record("overhead.vllm_ratio", ratio, unit="ratio of seconds", target="<= 1.05", note=note)


def examples() -> list[Example]:
    """The same examples each time, as new objects: half with a picture."""
    half = PROMPTS // 2
    return [case.example for medium in ("words", "picture") for case in cases("score", medium, half, 1, seed=5)]


def plain(engine: VLLMEngine, judge: Judge, example: Example) -> dict[str, object]:
    """What one hands to `LLM.generate` oneself: the finished chat text, and the picture."""
    (prompt,) = judge.format.render(example)
    assert engine._chat is not None
    pictures = [media.images()[0] for media in prompt.media]
    return {"prompt": engine._chat.render(prompt), **({"multi_modal_data": {"image": pictures}} if pictures else {})}


def forget(llm: LLM) -> None:
    """Both sides begin with empty caches."""
    llm.reset_prefix_cache()
    llm.reset_mm_cache()


if __name__ == "__main__":
    {"server": server, "vllm": vllm}[sys.argv[1]]()
