"""The reward server: kills, throughput, fuzzed bodies. All on loopback.

    python benchmarks/server.py                            all three, recorded; about four minutes on two busy cores
    python benchmarks/server.py lost --groups 200          smaller, nothing recorded

    lost         groups of 8 with an image at 64 in flight; the server is killed in the middle and starts again:
                 `server.lost`, groups without their own scores, or whose answered judgements were made again
    throughput   rows per second through the server, relative to the engine behind it: `server.throughput_ratio`
    fuzz         random and broken bodies at every route: `server.fuzz_crashes`, with reads of a file and addresses

The server of `lost` is `flexjudge serve` in a process of its own, before a judge server that counts. The engine of
`throughput` serves 8 requests at once, 20 ms each.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from figures import record

from flexjudge_reward import Example, Generation, Judge, Media, Pointwise, Request, RewardSession, ScriptedEngine
from flexjudge_reward.judge.groups import judge_groups
from flexjudge_reward.trainers.client import RemoteJudge
from support.fault_server import Fault, FaultServer, reply
from support.images import noise, saved
from support.serving import Serving

GROUP, FLIGHT = 8, 64
SLOTS, SERVICE_S = 8, 0.02


class Counting(FaultServer):
    """A judge server that notes when it replied to which item."""

    def __init__(self) -> None:
        super().__init__(delay=SERVICE_S)
        self.replied: dict[str, list[float]] = {}

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        self.requests.clear()
        if not name:
            return None  # a request by which the engine gets to know this server
        self.replied.setdefault(name, []).append(time.monotonic())
        number = int(name.split()[1])
        return Fault(body=reply(f"<think>so</think><answer>{1 + number % 10}</answer>").replace('": 3', '": 500'))


class Killed:
    """`flexjudge serve` on a port, which is killed and starts again."""

    def __init__(self, judge: str, folder: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = f"serve --serve-port {self.port} --base-url {judge} --cache {folder}/cache.sqlite".split()
        self._command = [sys.executable, "-m", "flexjudge_reward", *words]
        self.start()

    def start(self) -> None:
        # Without probes: controls judge earlier rows once more on purpose, which would count as judged again.
        self.process = subprocess.Popen(
            self._command, env={**os.environ, "FLEXJUDGE_PROBES": "0"}, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def lost(put: Callable[..., None], groups: int) -> None:
    """A kill in the middle."""
    image = Media.image(noise(64, 64))
    examples = [
        Example([image, f"group {n}"], [f"item {n * GROUP + place} " for place in range(GROUP)]) for n in range(groups)
    ]
    answered: dict[int, float] = {}
    with Counting() as judge, tempfile.TemporaryDirectory() as folder:
        server = Killed(judge.url, folder)
        remote = RemoteJudge(server.url, 600.0)
        ask = remote._ask

        async def noted(http: Any, body: bytes, patience: float, count: int = 0) -> Any:
            found = await ask(http, body, patience, count)
            answered[int(json.loads(body)["groups"][0]["question"][1].split()[1])] = time.monotonic()
            return found

        remote._ask = noted  # type: ignore[method-assign]

        def interrupt() -> None:
            while len(answered) < groups // 2:
                time.sleep(0.01)
            server.kill()
            print(f"killed after {len(answered)} groups", flush=True)
            server.start()

        helper = threading.Thread(target=interrupt)
        helper.start()
        start = time.perf_counter()
        results = remote.judge_groups(examples)
        seconds = time.perf_counter() - start
        helper.join()
        server.process.terminate()
        code = server.process.wait(60)
    wrong = Counter[str]()
    for n, result in enumerate(results):
        expected = tuple((n * GROUP + place) % 10 / 9 for place in range(GROUP))
        if result.outcomes != expected:
            wrong["not its own scores"] += 1
        times = [at for place in range(GROUP) for at in judge.replied.get(f"item {n * GROUP + place}", ())[1:]]
        wrong["judged again after it was answered"] += any(at > answered[n] for at in times)
    twice = sum(len(times) - 1 for times in judge.replied.values())
    again = f"{twice} rows in flight at the kill were judged again"
    note = f"{groups} groups of {GROUP} with an image, {seconds:.0f} s; {again}; exit code {code}"
    print(note, dict(wrong))
    put("server.lost", wrong.total(), unit="groups", target="<= 0", note=note)


class Slots(ScriptedEngine):
    """Serves `SLOTS` requests at once, `SERVICE_S` seconds each."""

    def __init__(self) -> None:
        super().__init__(lambda request: "<think>so</think><answer>7</answer>")
        self._slots = threading.Semaphore(SLOTS)

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        def serve() -> None:
            while waiting:
                with self._slots:
                    try:
                        waiting.pop()
                    except IndexError:
                        return
                    time.sleep(SERVICE_S)

        waiting = list(requests)
        threads = [threading.Thread(target=serve) for _ in range(min(SLOTS, len(requests)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.requests.clear()
        return super().complete(requests)


def throughput(put: Callable[..., None], groups: int) -> None:
    """The same groups, in one call of the judge and through the server; the mean of three rounds in turn."""
    examples = [Example(f"question {n}", [f"answer {n} {place}" for place in range(GROUP)]) for n in range(groups)]
    bare, served = [], []
    with Serving(RewardSession(Judge(Pointwise(), Slots()))) as serving:
        remote, here = RemoteJudge(serving.url, 600.0), Judge(Pointwise(), Slots())
        for _ in range(3):
            for times, judge_all in (
                (bare, lambda: judge_groups(here, examples, again=True)),
                (served, lambda: remote.judge_groups(examples)),
            ):
                start = time.perf_counter()
                results = judge_all()
                times.append(time.perf_counter() - start)
                assert all(outcome == 6 / 9 for result in results for outcome in result.outcomes)
    rates = [groups * GROUP * 3 / sum(times) for times in (bare, served)]
    work = f"{SLOTS} requests of {SERVICE_S * 1000:g} ms at once"
    note = f"{groups} groups of {GROUP}, {work}; {rates[0]:.0f} and {rates[1]:.0f} rows/s"
    print(note, bare, served)
    put("server.throughput_ratio", rates[1] / rates[0], unit="of the engine's rate", target=">= 0.9", note=note)


ROUTES = {
    "/judge": ["groups"],
    "/get_reward": ["query", "prompts", "labels"],
    "/rm": ["prompt", "response", "label"],
    "/scores": ["messages"],
    "/metrics": ["groups"],
    "/": ["groups"],
}


def body_for(route: str, rng: random.Random, secret: str, address: str) -> bytes:
    """One random body: noise, broken JSON, or a request with wrong values at random places."""
    png = base64.b64encode(saved(noise(8, 8))).decode()
    odd: list[Any] = [
        None, True, -1, 1e308, 10**30, "", "\ud800", "\0", "<think>", "x" * 10_000, [], {}, [[]], {"": 0}, png, secret,
        f"file://{secret}", address, {"image": secret}, {"image": address}, {"image": {"path": secret}},
        {"type": "image", "url": address}, {"image_url": {"url": address}}, {"video": [secret]}, {"audio": png},
        {"molecule": "C" * 600}, {"image": png[: rng.randrange(len(png))]}, {"role": "user", "content": secret},
        [{"role": "system"}], {"type": "image"}, {"rubric": secret}, {"id": "g", "size": 2}, {"unfinished": 7},
    ]  # fmt: skip
    whole: dict[str, Any] = {
        "groups": [{"question": ["q", {"image": png}], "candidates": ["a", ["b"]], "reference": "r", "rubric": "true?",
                    "group": {"id": str(rng.random()), "size": 2}, "completion": "all"}],
        "query": ["pa"], "prompts": ["p"], "labels": ["l"], "prompt": "p", "response": "r", "label": "l",
        "messages": ["m"],
    }  # fmt: skip
    names = ROUTES[route if rng.random() < 0.9 else rng.choice(list(ROUTES))]
    body: Any = {name: whole[name] for name in names}
    for _ in range(rng.randrange(4)):
        place: Any = body
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if rng.random() < 0.4 or not isinstance(place[key], dict | list):
                place[key] = copy.deepcopy(rng.choice(odd))
                break
            place = place[key]
    raw = json.dumps(body).encode()
    match rng.randrange(20):
        case 0:
            return rng.randbytes(rng.randrange(2_000))
        case 1:
            return raw[: rng.randrange(len(raw))]
        case 2:
            return b"[" * rng.randrange(1, 200_000)
    return raw


def fuzz(put: Callable[..., None], count: int) -> None:
    """A crash is a 500, a hang, or a server that does not serve afterwards; a read opens the file or the address."""
    rng, seen = random.Random(0), Counter[int]()
    opened: list[str] = []
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        secret, address = str(Path(folder, "secret.png")), f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        Path(secret).write_bytes(saved(noise()))
        sys.addaudithook(lambda event, given: opened.append(event) if event == "open" and given[0] == secret else None)
        engine = ScriptedEngine(lambda request: "<think>so</think><answer>7</answer>")
        session = RewardSession(Judge(Pointwise(), engine), {"media_root": folder})
        with Serving(session, deadline=0.2) as serving:
            for _ in range(count):
                route = rng.choice([*ROUTES, "/judge", "/judge"])
                seen[serving.ask(route, body_for(route, rng, secret, address))[0]] += 1
            seen[500] += serving.ask("/rm", {"prompt": "q", "response": "a"}) != (200, 6 / 9)
        try:
            listener.accept()
            opened.append("address")
        except BlockingIOError:
            pass
    note = f"{count} bodies, statuses {dict(sorted(seen.items()))}; {len(opened)} reads"
    print(note)
    put("server.fuzz_crashes", seen[500] + len(opened), unit="crashes and reads", target="<= 0", note=note)


def main() -> None:
    """Runs what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="lost, throughput, fuzz")
    parser.add_argument("--groups", type=int)
    parser.add_argument("--bodies", type=int)
    arguments = parser.parse_args()
    os.environ.pop("FLEXJUDGE_SERVE_TOKEN", None)
    small = arguments.groups or arguments.bodies
    put = (lambda *_, **__: None) if small else record
    jobs = {"lost": (lost, arguments.groups or 1000), "throughput": (throughput, arguments.groups or 250)}
    jobs["fuzz"] = fuzz, arguments.bodies or 3000
    for name in arguments.what or jobs:
        job, size = jobs[name]
        job(put, size)


if __name__ == "__main__":
    main()
