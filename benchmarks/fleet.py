"""Several judge servers behind vllm-router: nothing is lost, the load scales, a group's prefix is read once.

    python -m venv /tmp/router && /tmp/router/bin/pip install vllm-router
    python benchmarks/fleet.py --router /tmp/router/bin/vllm-router             all three, recorded; six minutes
    python benchmarks/fleet.py loss scale --router ...                          without the two real vLLM servers

    loss      4,000 requests, 256 in flight; one of two servers dies and comes back: `fleet.rows_lost`
    scale     servers that work on 32 requests at once, one against two: `fleet.scaling`
    prefix    groups of eight on two real vLLM servers, the embedded judge: `fleet.prefix_hit_ratio`, the share of
              prompt tokens from the prefix cache behind the router, relative to one server without a router

The router is the released one, with its default policy (cache_aware). Every part checks that the cache key is the same
with and without it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from flexjudge_recipes.nano import shapes

from figures import record
from storm import Replica, lost, requests

from flexjudge_reward import Example, Judge, Media, Pointwise, ServerEngine
from flexjudge_reward.nano import path

ROWS, FLIGHT, WORK = 4_000, 256, 32
GROUPS, SIZE = 24, 8
_OPTIONS = ("--dtype", "float32", "--enforce-eager", "--served-model-name", "nano", "--block-size", "32")
WORDS = "red blue green yellow star circle square triangle top bottom left right small large is a the of".split()
VLLM = [{"id": "judge", "root": "/weights", "owned_by": "vllm"}]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def routed(router: str, replicas: Sequence[str], policy: str = "cache_aware") -> Iterator[str]:
    """The address of a router before the servers at these addresses."""
    port, workers = free_port(), [url.removesuffix("/v1") for url in replicas]
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--policy", policy]
    options += ["--health-check-interval-secs", "1", "--cb-timeout-duration-secs", "2"]
    with tempfile.TemporaryFile("w+") as log:
        command = [router, *options, "--worker-urls", *workers]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end and process.poll() is None:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2):
                    break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise RuntimeError(f"the router did not start: {log.read()[-2000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(20)


def same_key(routed_url: str, replica: str) -> None:
    """Raises AssertionError if the cache key changes with the router."""
    with ServerEngine(routed_url) as one, ServerEngine(replica) as other:
        assert one.identity() == other.identity(), "the cache key is another one behind the router"


def loss(put: Any, router: str) -> None:
    """One server dies at an eighth of the requests, and is there again three seconds later."""
    with ExitStack() as stack:
        stays, first = (stack.enter_context(Replica(dies)) for dies in (None, ROWS // 8))
        for server in (stays, first):
            server.models = VLLM
        url = stack.enter_context(routed(router, [stays.url, first.url]))
        same_key(url, stays.url)
        again = Replica(port=first.port)
        again.models = VLLM

        def revive() -> None:
            first._thread.join()
            time.sleep(3)
            stack.enter_context(again)

        helper = threading.Thread(target=revive)
        helper.start()
        start = time.perf_counter()
        with ServerEngine(url, concurrency=FLIGHT) as engine:
            wrong = lost(engine.generate(requests(ROWS)), lambda number: None)
        seconds = time.perf_counter() - start
        helper.join()
    note = f"{ROWS} rows, {seconds:.0f} s: {first.seen} and then {again.seen} by the one that died, {stays.seen} by the"
    note += f" other; wrong {dict(wrong)}"
    print(note)
    put("fleet.rows_lost", wrong.total(), unit="rows", target="<= 0", note=note)


class Busy(Replica):
    """Works on so many requests at once, and the others wait."""

    def __init__(self) -> None:
        super().__init__()
        self.delay, self.models = 0.0, VLLM
        self.places = asyncio.Semaphore(WORK)

    async def _answer(self, request: Any) -> Any:
        async with self.places:
            await asyncio.sleep(0.3)
            return await super()._answer(request)


def scale(put: Any, router: str) -> None:
    """The same requests on one server and on two, with 64 in flight for each."""
    rates = {}
    for count in (1, 2):
        with ExitStack() as stack:
            servers = [stack.enter_context(Busy()) for _ in range(count)]
            url = stack.enter_context(routed(router, [server.url for server in servers]))
            with ServerEngine(url, concurrency=64 * count) as engine:
                engine.generate(requests(8))
                start = time.perf_counter()
                wrong = lost(engine.generate(requests(1000 * count)), lambda number: None)
            rates[count] = 1000 * count / (time.perf_counter() - start)
        assert not wrong, wrong
        print(f"{count}: {rates[count]:.0f}/s, {[server.seen for server in servers]}")
    note = f"{rates[1]:.0f} and {rates[2]:.0f} requests per second; a server has {WORK} places of 0.3 s"
    put("fleet.scaling", rates[2] / rates[1], unit="ratio", target=">= 1.8", note=note)


def judgements() -> list[Example]:
    """Groups of eight answers to one question about one picture, with a page of words that only the group shares."""
    rng, examples = random.Random(5), []
    for _ in range(GROUPS):
        scene = shapes.scene(rng)
        question, image = shapes.question(rng, scene), Media.image(shapes.draw(scene, rng))
        page = " ".join(rng.choices(WORDS, k=300))
        examples += [Example([image, f"{page} . {question.text}"], [f"{question.truth} {n}"]) for n in range(SIZE)]
    return examples


def cached_tokens(servers: Sequence[str]) -> tuple[float, float]:
    """Prompt tokens that were looked up in the servers' prefix caches, and found there."""
    sums = [0.0, 0.0]
    for server in servers:
        text = urllib.request.urlopen(server.removesuffix("/v1") + "/metrics", timeout=20).read().decode()
        for index, name in enumerate(("queries", "hits")):
            found = re.findall(rf"^vllm:prefix_cache_{name}_total{{.*?}} (\S+)", text, re.MULTILINE)
            sums[index] += sum(map(float, found))
    return sums[0], sums[1]


def prefix(put: Any, router: str) -> None:
    """The share of prompt tokens that the prefix cache serves: one server, and two behind the router."""
    from support import real

    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    examples, shares = judgements(), {}
    with ExitStack() as stack:
        servers = [stack.enter_context(real.serve(str(path("judge")), *_OPTIONS)) for _ in range(2)]
        for policy in ("one server", "cache_aware", "round_robin"):
            for server in servers:  # the same work starts with empty caches
                urllib.request.urlopen(
                    urllib.request.Request(server.removesuffix("/v1") + "/reset_prefix_cache", b"", method="POST")
                )
            with ExitStack() as own:
                url = servers[0] if policy == "one server" else own.enter_context(routed(router, servers, policy))
                same_key(url, servers[0])
                before, each = cached_tokens(servers), [cached_tokens([server])[0] for server in servers]
                with ServerEngine(url) as engine:
                    verdicts = Judge(Pointwise(prompt_set="nano"), engine)(examples)
            after = cached_tokens(servers)
            work = [cached_tokens([server])[0] - one for server, one in zip(servers, each, strict=True)]
            shares[policy] = (after[1] - before[1]) / (after[0] - before[0])
            failed = Counter(verdict.failure.kind for verdict in verdicts if verdict.failure)
            print(f"{policy}: {shares[policy]:.1%} of the prompt tokens; tokens {work}; failed {dict(failed)}")
    note = ", ".join(f"{policy} {share:.1%}" for policy, share in shares.items())
    put(
        "fleet.prefix_hit_ratio", shares["cache_aware"] / shares["one server"], unit="ratio", target=">= 0.9", note=note
    )


PARTS = {"loss": loss, "scale": scale, "prefix": prefix}


def main() -> None:
    """Runs the named parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[], choices=[*PARTS, []])
    parser.add_argument("--router", default=shutil.which("vllm-router"), help="the program vllm-router")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    options = parser.parse_args()
    if not options.router:
        parser.error("vllm-router is not on the path: pip install vllm-router in an environment of its own, --router")
    put = (lambda name, value, **_: print(f"{name} = {value:g}")) if options.dry else record
    for name in options.parts or PARTS:
        print(f"{name}:", flush=True)
        PARTS[name](put, options.router)


if __name__ == "__main__":
    main()
