"""CachedEngine: what it generates, serves and stores. Its keys have `test_cache_keys.py`, its file `test_store.py`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    EngineError,
    Example,
    Generation,
    Judge,
    Media,
    MediaError,
    Message,
    Pointwise,
    Prompt,
    Request,
    Rubric,
    Sampling,
    Scale,
    ScriptedEngine,
    ServerEngine,
    TokenLogprob,
)
from flexjudge_reward.engines.cache import engine as cache_module
from flexjudge_reward.engines.cache.engine import CacheStats, default_path
from flexjudge_reward.engines.cache.keys import request_key
from flexjudge_reward.engines.cache.store import Row
from support.cache_files import ask, cached, echo
from support.fault_server import FaultServer


def test_a_request_is_generated_once(cache_file: Path) -> None:
    engine, judge = cached(cache_file)
    first = engine.generate([ask("a"), ask("b")])
    again = engine.generate([ask("c"), ask("b"), ask("a")])
    assert [reply.text for reply in again] == [echo(ask(name)) for name in "cba"]
    assert [reply.cached for reply in first + again] == [False, False, False, True, True]
    assert judge.requests == [ask(name) for name in "abc"]
    assert engine.stats == CacheStats(hits=2, misses=3, stored=3)
    assert engine.identity() == judge.identity()


def test_another_engine_on_the_same_file_is_served(cache_file: Path) -> None:
    cached(cache_file)[0].generate([ask("a")])
    engine, judge = cached(cache_file)
    assert engine.generate([ask("a")])[0].cached and judge.requests == []


class Restarted(ScriptedEngine):
    """A server that ends with its first batch; then another one is there, or none."""

    def __init__(self, afterwards: str | None) -> None:
        super().__init__(echo)
        self.afterwards = afterwards

    def identity(self) -> dict[str, object]:
        if self.requests and self.afterwards is None:
            raise EngineError("no server answers")
        return {"engine": "server", "model": "judge", "root": self.afterwards if self.requests else "/one"}


@pytest.mark.parametrize(
    ("afterwards", "stored"),
    [
        pytest.param("/one", 1, id="the-same"),
        pytest.param("/other", 0, id="other-weights"),
        pytest.param(None, 1, id="none"),
    ],
)
def test_a_reply_is_stored_only_under_who_gave_it(afterwards: str | None, stored: int, cache_file: Path) -> None:
    """Whose weights replied is not known where a server with others has taken its place meanwhile."""
    engine = CachedEngine(Restarted(afterwards), cache_file)
    assert engine.generate([ask("a")])[0].text == echo(ask("a")) and engine.stats.stored == stored


def test_duplicates_in_a_batch_are_generated_once(cache_file: Path) -> None:
    engine, judge = cached(cache_file)
    replies = engine.generate([ask(name) for name in "abaa"])
    assert [reply.text for reply in replies] == [echo(ask(name)) for name in "abaa"]
    assert [reply.cached for reply in replies] == [False, False, True, True]
    assert judge.requests == [ask("a"), ask("b")]
    assert engine.stats == CacheStats(hits=2, misses=2, stored=2)


def test_duplicates_share_a_failure_that_is_not_called_cached(cache_file: Path) -> None:
    engine, _ = cached(cache_file, [Generation.failed("timeout", "late")])
    replies = engine.generate([ask("a"), ask("a")])
    assert [(reply.failure is not None, reply.cached) for reply in replies] == [(True, False), (True, False)]


def test_requests_of_one_batch_may_differ_in_their_sampling(cache_file: Path) -> None:
    """Votes differ in the seed, continuations in the token limit; each is a request of its own, served apart."""
    samplings = [
        *(Sampling(seed=seed) for seed in range(3)),
        Sampling(max_tokens=16),
        Sampling(temperature=1.0),
        Sampling(logprobs=20),
    ]

    def reply(request: Request) -> str:
        return f"<think>{request.sampling}</think>"

    engine, judge = cached(cache_file, reply)
    engine.generate([ask("a", samplings[1]), ask("b", samplings[3])])
    requests = [ask(name, sampling) for name in "ab" for sampling in samplings]
    first, again = engine.generate(requests), engine.generate(requests[::-1])[::-1]
    assert [r.text for r in first] == [r.text for r in again] == [reply(request) for request in requests]
    assert [i for i, r in enumerate(first) if r.cached] == [1, 9] and all(r.cached for r in again)
    assert len(judge.requests) == len(set(judge.requests)) == len(requests)


def test_a_judge_reads_stored_replies_anew(cache_file: Path) -> None:
    """The file holds the judge's reply, not a score: another reader gives another verdict."""
    engine, _ = cached(cache_file, lambda request: "<think>so so</think><answer>7.5</answer>")
    whole, halves = (Pointwise(Rubric("Is it true?", Scale(1, 10, decimals))) for decimals in (False, True))
    example = Example("q", ["a"])
    stored = engine.generate([Request(whole.render(example)[0])] * 2)
    assert whole.read(example, stored[1:]).failure
    assert halves.read(example, stored[1:]).scores == (7.5,)


def test_an_empty_batch_opens_nothing(cache_file: Path) -> None:
    engine, _ = cached(cache_file)
    assert engine.generate([]) == [] and not cache_file.exists()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Generation("<think>a</think><answer>7</answer>", "stop", 31, 12), id="plain"),
        pytest.param(Generation("no tags at all"), id="malformed but finished"),
        pytest.param(Generation("汉字 \U0001f600 \x00 \ud83d\ude00 \udcff"), id="odd characters"),
        pytest.param(Generation("x", logprobs=()), id="empty logprobs"),
        pytest.param(
            Generation(
                "x", logprobs=(TokenLogprob("x", -0.5, {"x": -0.5, "a": -1.5}), TokenLogprob("y", -float("inf")))
            ),
            id="logprobs",
        ),
    ],
)
def test_a_reply_comes_back_unchanged(cache_file: Path, reply: Generation) -> None:
    engine, _ = cached(cache_file, [reply])
    assert engine.generate([ask("a")]) == [reply]
    served = engine.generate([ask("a")])[0]
    assert served == replace(reply, cached=True)
    if reply.logprobs:
        assert list((served.logprobs or ())[0].top) == ["x", "a"]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Generation.failed("transport", "reset"), id="transport"),
        pytest.param(Generation.failed("engine", "dead"), id="engine"),
        pytest.param(Generation("<think>and then", "length"), id="cut"),
        pytest.param(Generation("I can", "filter"), id="filtered"),
        pytest.param(Generation(""), id="empty"),
        pytest.param(Generation(" \n"), id="blank"),
    ],
)
def test_an_incomplete_reply_is_generated_again(cache_file: Path, reply: Generation) -> None:
    engine, judge = cached(cache_file, lambda request: reply)
    for _ in range(2):
        assert engine.generate([ask("a")]) == [reply]
    assert len(judge.requests) == 2 and engine.stats.stored == 0


def test_one_token_is_complete_where_one_was_requested(cache_file: Path) -> None:
    reply = Generation("\n", "length", 3, 1, (TokenLogprob("\n", -0.1, {"\n": -0.1}),))
    engine, judge = cached(cache_file, lambda request: reply)
    one, two = (ask("a", Sampling(max_tokens=limit)) for limit in (1, 2))
    assert engine.generate([one]) == [reply]
    assert engine.generate([one, two]) == [replace(reply, cached=True), reply]
    assert engine.generate([two]) == [reply] and judge.requests == [one, two, two]


def test_requests_with_unusable_media_never_reach_the_engine(cache_file: Path) -> None:
    broken = Request(Prompt((Message("user", (Media.image(b"not an image"),)),)))
    engine, judge = cached(cache_file)
    for _ in range(2):
        replies = engine.generate([ask("a"), broken, broken, ask("b")])
        assert [reply.failure and reply.failure.kind for reply in replies] == [None, "media", "media", None]
    assert judge.requests == [ask("a"), ask("b")]
    assert engine.stats == CacheStats(hits=2, misses=2, stored=2)
    assert engine.generate([broken])[0].failure
    with pytest.raises(MediaError, match="image"):
        request_key(engine, broken)


def test_a_large_batch_that_fails_late_keeps_its_finished_chunks(
    cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "REQUESTS_PER_CALL", 4)
    requests = [ask(str(i)) for i in range(10)]
    engine, judge = cached(cache_file, [f"reply {i}" for i in range(8)])
    with pytest.raises(EngineError):
        engine.generate(requests)
    assert engine.stats.stored == 8

    monkeypatch.setattr(judge, "identity", lambda identity=judge.identity(): identity)
    monkeypatch.setattr(judge, "replies", echo)  # the server is back
    judge.requests.clear()
    replies = engine.generate(requests)
    assert [reply.text for reply in replies] == [f"reply {i}" for i in range(8)] + [echo(r) for r in requests[8:]]
    assert judge.requests == requests[8:]


def test_an_engine_that_loses_replies_is_named(cache_file: Path) -> None:
    class Loses(ScriptedEngine):
        def complete(self, requests: Sequence[Request]) -> list[Generation]:
            return super().complete(requests)[1:]

    with pytest.raises(ConfigError, match=r"Loses\.complete returned 1 replies for 2 requests"):
        CachedEngine(Loses(echo), cache_file).generate([ask("a"), ask("b")])


def test_the_engine_inside_says_what_it_supports(cache_file: Path) -> None:
    class TextOnly(ScriptedEngine):
        def supports(self, modality: str) -> bool:
            return modality == "video"

    engine = CachedEngine(TextOnly(echo), cache_file)
    assert not engine.supports("image") and engine.supports("video")


def test_it_pickles_and_closes(cache_file: Path) -> None:
    engine, judge = cached(cache_file, ["reply"])
    engine.generate([ask("a")])
    copy = pickle.loads(pickle.dumps(engine))
    assert copy.generate([ask("a")])[0].cached
    assert copy.store.max_bytes == engine.store.max_bytes and copy.stats == CacheStats(hits=1)
    for _ in range(2):
        engine.close()
    assert judge.closed
    assert engine.generate([ask("a")])[0].cached, "the file opens again"
    judge.closed = False
    with engine:
        pass
    assert judge.closed


def test_threads_share_one_engine(cache_file: Path) -> None:
    engine, _ = cached(cache_file)
    wrong: list[object] = []

    def work(number: int) -> None:
        for i in range(30):
            requests = [ask(f"{(number + i) % 20}-{j}") for j in range(4)]
            wrong.extend(
                r for r, reply in zip(requests, engine.generate(requests), strict=True) if reply.text != echo(r)
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = engine.stats
    assert not wrong and stats.hits + stats.misses == 8 * 30 * 4 and stats.misses == 80
    assert engine.store.summary().rows == 80


@pytest.mark.parametrize("fails", [False, True], ids=["which_answers", "which_fails"])
def test_what_another_thread_generates_is_waited_for(cache_file: Path, fails: bool) -> None:
    asked, gate, calls = threading.Event(), threading.Event(), []

    def reply(request: Request) -> str:
        calls.append(request)
        if len(calls) == 1:
            asked.set()
            assert gate.wait(20)
            if fails:
                raise EngineError("gone")
        return echo(request)

    engine, found = CachedEngine(ScriptedEngine(reply), cache_file), []

    def generate(*names: str) -> None:
        with suppress(EngineError):
            found.extend(engine.generate([ask(name) for name in names]))

    first = threading.Thread(target=generate, args=("a",))
    second = threading.Thread(target=generate, args=("b", "a"))
    first.start()
    assert asked.wait(20)
    second.start()
    while len(calls) < 2:  # its own is generated meanwhile
        threading.Event().wait(0.001)
    gate.set()
    first.join()
    second.join()
    assert [one.prompt for one in calls] == [ask(name).prompt for name in ("aba" if fails else "ab")]
    assert {reply.text for reply in found} == {echo(ask("a")), echo(ask("b"))}
    assert [reply.cached for reply in found].count(True) == (not fails)


@pytest.mark.parametrize(
    ("listed", "served"),
    [
        pytest.param({"id": "judge", "root": "/weights"}, True, id="root listed"),
        pytest.param({"id": "judge"}, False, id="no root"),
    ],
)
def test_a_server_at_another_port(cache_file: Path, listed: dict[str, Any], served: bool) -> None:
    """The same judge where the server lists what it serves; where it does not, the address is part of the key."""
    keys = set()
    for expected in (False, served):
        with FaultServer(models=[listed]) as server, CachedEngine(ServerEngine(server.url), cache_file) as engine:
            keys.add(request_key(engine, ask("a")))
            assert engine.generate([ask("a")])[0].cached == expected
            assert len(server.requests) == (not expected)
    assert len(keys) == (1 if served else 2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"FLEXJUDGE_CACHE": "/a/b.sqlite", "XDG_CACHE_HOME": "/x"}, "/a/b.sqlite", id="own variable"),
        pytest.param({"XDG_CACHE_HOME": "/x"}, "/x/flexjudge_reward/replies-2.sqlite", id="user's cache folder"),
        pytest.param({"XDG_CACHE_HOME": ""}, "/h/.cache/flexjudge_reward/replies-2.sqlite", id="home"),
    ],
)
def test_the_default_path(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_path().expanduser() == Path(expected)
    assert CachedEngine(ScriptedEngine([])).store.path == Path(expected)


def test_a_limit_below_a_megabyte_is_rejected(cache_file: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1048576 bytes, found 5"):
        CachedEngine(ScriptedEngine([]), cache_file, max_bytes=5)


@pytest.mark.parametrize("value", [b"[]", b"7", b"{", b"\xff", b'{"text": "x"}', b'{"text": "x", "logprobs": [1]}'])
def test_a_stored_value_that_is_no_reply_is_a_miss(cache_file: Path, value: bytes) -> None:
    engine, _ = cached(cache_file)
    engine.store.put([Row(bytes.fromhex(request_key(engine, ask("a"))), value, b"")])
    reply = engine.generate([ask("a")])[0]
    assert reply.text == echo(ask("a")) and not reply.cached


def test_a_judge_uses_it_like_any_engine(cache_file: Path) -> None:
    engine, judge = cached(cache_file, lambda request: "<think>fine</think><answer>7</answer>")
    examples = [Example("q", [answer]) for answer in "abca"]
    for cached_verdicts in ([False, False, False, True], [True] * 4):
        verdicts = Judge(Pointwise(), engine)(examples)
        assert [verdict.scores for verdict in verdicts] == [(7.0,)] * 4
        assert [verdict.cached for verdict in verdicts] == cached_verdicts
    assert len(judge.requests) == 3
