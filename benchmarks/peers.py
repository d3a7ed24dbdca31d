"""How much faster a judge on a server is asked than by the programs that users would write with the `openai` package.

    python benchmarks/peers.py        about two minutes

A loopback server in a process of its own replies to each request after 20 ms. All sides ask about the same texts, in
turn, three rounds; the figure is the median of the ratios within a round. peers.sequential_ratio: one request after the
other. peers.async_openai_ratio: `AsyncOpenAI` with 64 tasks.
"""

from __future__ import annotations

import asyncio
import os
from statistics import median

from figures import record
from overhead import QUESTION, Cost, answered, loopback, spent

from flexjudge_reward import Message, Prompt, Request, ServerEngine, Untrusted

REQUESTS, FEW, IN_FLIGHT, ROUNDS = 1024, 64, 64, 3


def main() -> None:
    from openai import AsyncOpenAI, OpenAI

    texts = [f"Question {number}. {QUESTION * 5}" for number in range(REQUESTS)]
    requests = [Request(Prompt((Message("system", (QUESTION,)), Message("user", (Untrusted(one),))))) for one in texts]
    load, ratios = os.getloadavg()[0], {"sequential": [0.0], "async_openai": [0.0]}
    with loopback() as url, ServerEngine(url, concurrency=IN_FLIGHT) as engine:
        client = OpenAI(base_url=url, api_key="none")

        def body(text: str) -> dict[str, object]:
            messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": text}]
            return {"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 2048, "seed": 0}

        async def side_by_side() -> None:
            waiting = iter(texts)
            async with AsyncOpenAI(base_url=url, api_key="none") as many:

                async def work() -> None:
                    for text in waiting:
                        await many.chat.completions.create(**body(text))  # type: ignore[call-overload]

                await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

        def one_by_one() -> None:
            for text in texts[:FEW]:
                client.chat.completions.create(**body(text))  # type: ignore[call-overload]

        for number in range(ROUNDS + 1):
            ours: Cost = spent(lambda: answered(engine.generate(requests)))
            theirs = spent(lambda: asyncio.run(side_by_side())), spent(one_by_one)
            rates = [REQUESTS / ours.seconds, REQUESTS / theirs[0].seconds, FEW / theirs[1].seconds]
            print(
                f"round {number}: ours, AsyncOpenAI, OpenAI: {', '.join(f'{rate:.0f}/s' for rate in rates)}", flush=True
            )
            if number:
                ratios["async_openai"].append(rates[0] / rates[1])
                ratios["sequential"].append(rates[0] / rates[2])
    for name, target in (("sequential", ">= 20"), ("async_openai", ">= 9")):
        note = f"20 ms a reply, {IN_FLIGHT} in flight; load average {load:.1f} on {os.cpu_count()} cores"
        record(
            f"peers.{name}_ratio",
            median(ratios[name][1:]),
            unit="ratio of requests per second",
            target=target,
            note=note,
        )


if __name__ == "__main__":
    main()
