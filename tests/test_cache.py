"""CachedEngine: what it asks, what it keeps, what its keys are made of. The file under it has `test_store.py`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.caches import ask, cached, echo

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    Generation,
    Judge,
    Media,
    Message,
    Prompt,
    Quoted,
    Rubric,
    Sampling,
    Scale,
    Score,
)
from flexjudge_reward.engines.cache import engine as cache_module
from flexjudge_reward.engines.cache.engine import (
    CachedEngine,
    CacheStats,
    default_path,
    request_key,
)
from flexjudge_reward.engines.cache.store import Row
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.types import TokenLogprob

GREEDY = Sampling()


@pytest.fixture
def path(cache_file: Path) -> Path:
    return cache_file


# ---- asking


def test_a_request_is_asked_once_and_served_after(path: Path) -> None:
    engine, judge = cached(path)
    first = engine.generate([ask("a"), ask("b")], GREEDY)
    again = engine.generate([ask("c"), ask("b"), ask("a")], GREEDY)
    assert [g.text for g in again] == [echo(ask(t)) for t in "cba"]
    assert [g.cached for g in first + again] == [False, False, False, True, True]
    assert len(judge.prompts) == 3
    assert engine.stats == CacheStats(hits=2, misses=3, stored=3)
    assert engine.identity() == judge.identity()


def test_another_process_is_served_too(path: Path) -> None:
    cached(path)[0].generate([ask("a")], GREEDY)
    engine, judge = cached(path)
    assert engine.generate([ask("a")], GREEDY)[0].cached
    assert judge.prompts == []


def test_twins_in_a_batch_are_asked_once(path: Path) -> None:
    engine, judge = cached(path)
    replies = engine.generate([ask("a"), ask("b"), ask("a"), ask("a")], GREEDY)
    assert [g.text for g in replies] == [echo(ask(t)) for t in "abaa"]
    assert [g.cached for g in replies] == [False, False, True, True]
    assert [prompt.messages[1].parts[1] for prompt in judge.prompts] == [Quoted("a"), Quoted("b")]
    assert engine.stats == CacheStats(hits=2, misses=2, stored=2)


def test_twins_share_a_failure_that_is_not_called_cached(path: Path) -> None:
    engine, _ = cached(path, [Generation.failed("timeout", "late")])
    replies = engine.generate([ask("a"), ask("a")], GREEDY)
    assert [(g.failure is not None, g.cached) for g in replies] == [(True, False), (True, False)]


def test_votes_are_separate_draws(path: Path) -> None:
    engine, judge = cached(path)
    for _ in range(2):
        replies = engine.generate([ask("a", sample) for sample in range(3)], GREEDY)
        assert len({g.text for g in replies}) == 3
    assert len(judge.prompts) == 3


def test_a_judge_reads_stored_replies_anew(path: Path) -> None:
    """The file holds what the judge said, not what it was worth: another reader gives another verdict."""
    engine, _ = cached(path, lambda prompt: "<think>so so</think><answer>7.5</answer>")
    whole, halves = (Score(Rubric("Is it true?", Scale(1, 10, decimals))) for decimals in (False, True))
    prompt = whole.render(Example("q", ["a"]))[0]
    stored = engine.generate([prompt, prompt], GREEDY)
    assert whole.read(Example("q", ["a"]), stored[1:]).failure
    assert halves.read(Example("q", ["a"]), stored[1:]).scores == (7.5,)


def test_an_empty_batch_asks_nobody(path: Path) -> None:
    engine, _ = cached(path)
    assert engine.generate([], GREEDY) == [] and not path.exists()


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
def test_a_reply_comes_back_as_it_was(path: Path, reply: Generation) -> None:
    engine, _ = cached(path, [reply])
    assert engine.generate([ask("a")], GREEDY) == [reply]
    served = engine.generate([ask("a")], GREEDY)[0]
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
def test_an_incomplete_reply_is_asked_for_again(path: Path, reply: Generation) -> None:
    engine, judge = cached(path, lambda prompt: reply)
    for _ in range(2):
        assert engine.generate([ask("a")], GREEDY) == [reply]
    assert len(judge.prompts) == 2 and engine.stats.stored == 0


def test_one_token_is_a_whole_reply_where_one_was_asked_for(path: Path) -> None:
    reply = Generation("\n", "length", 3, 1, (TokenLogprob("\n", -0.1, {"\n": -0.1}),))
    engine, judge = cached(path, lambda prompt: reply)
    one = Sampling(max_tokens=1)
    assert engine.generate([ask("a")], one) == [reply]
    assert engine.generate([ask("a")], one) == [replace(reply, cached=True)]
    assert len(judge.prompts) == 1


def test_unreadable_media_fail_alone(path: Path) -> None:
    broken = Prompt((Message("user", (Media.image(b"not a picture"),)),))

    def reply(prompt: Prompt) -> str | Generation:
        return Generation.failed("media", "unreadable") if prompt.media else echo(prompt)

    engine, judge = cached(path, reply)
    for _ in range(2):
        replies = engine.generate([ask("a"), broken, broken, ask("b")], GREEDY)
        assert [g.failure and g.failure.kind for g in replies] == [None, "media", "media", None]
    assert len(judge.prompts) == 2 + 4
    with pytest.raises(Exception, match="picture"):
        request_key(engine, broken, GREEDY)


def test_a_large_batch_that_fails_late_keeps_what_it_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    prompts = [ask(str(i)) for i in range(10)]
    engine, judge = cached(path, [f"reply {i}" for i in range(8)])
    with pytest.raises(EngineError):
        engine.generate(prompts, GREEDY)
    assert engine.stats.stored == 8

    monkeypatch.setattr(judge, "replies", echo)  # the server is back
    monkeypatch.setattr(judge, "identity", ScriptedEngine([f"reply {i}" for i in range(8)]).identity)
    judge.prompts.clear()
    replies = engine.generate(prompts, GREEDY)
    assert [g.text for g in replies] == [f"reply {i}" for i in range(8)] + [echo(p) for p in prompts[8:]]
    assert len(judge.prompts) == 2


def test_an_engine_that_loses_replies_is_named(path: Path) -> None:
    class Loses(ScriptedEngine):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
            return super().generate(prompts, sampling)[1:]

    with pytest.raises(ConfigError, match=r"Loses.generate returned 1 replies for 2 prompts"):
        CachedEngine(Loses(echo), path).generate([ask("a"), ask("b")], GREEDY)


def test_it_pickles_and_closes(path: Path) -> None:
    engine, judge = cached(path, ["reply"])
    engine.generate([ask("a")], GREEDY)
    copy = pickle.loads(pickle.dumps(engine))
    assert copy.generate([ask("a")], GREEDY)[0].cached
    assert copy.store.max_bytes == engine.store.max_bytes and copy.stats == CacheStats(hits=1)
    for _ in range(2):
        engine.close()
    assert judge.closed
    assert engine.generate([ask("a")], GREEDY)[0].cached, "the file opens again"


def test_threads_share_one_engine(path: Path) -> None:
    engine, _ = cached(path)
    wrong: list[object] = []

    def work(number: int) -> None:
        for i in range(30):
            prompts = [ask(f"{(number + i) % 20}-{j}") for j in range(4)]
            wrong.extend(p for p, g in zip(prompts, engine.generate(prompts, GREEDY), strict=True) if g.text != echo(p))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = engine.stats
    assert not wrong and stats.hits + stats.misses == 8 * 30 * 4
    assert engine.store.summary().rows == 80


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"FLEXJUDGE_CACHE": "/a/b.sqlite", "XDG_CACHE_HOME": "/x"}, "/a/b.sqlite", id="own variable"),
        pytest.param({"XDG_CACHE_HOME": "/x"}, "/x/flexjudge_reward/replies.sqlite", id="user's cache folder"),
        pytest.param({"XDG_CACHE_HOME": ""}, "/h/.cache/flexjudge_reward/replies.sqlite", id="home"),
    ],
)
def test_where_the_file_is(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_path().expanduser() == Path(expected)
    assert CachedEngine(ScriptedEngine([])).store.path == Path(expected)


def test_a_limit_below_a_megabyte_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1048576 bytes, found 5"):
        CachedEngine(ScriptedEngine([]), path, max_bytes=5)


def test_a_stored_value_that_is_no_reply_is_a_miss(path: Path) -> None:
    engine, _ = cached(path)
    request = bytes.fromhex(request_key(engine, ask("a"), GREEDY))
    engine.store.put([Row(request, b"[]", b"")])
    assert not engine.generate([ask("a")], GREEDY)[0].cached


def test_a_judge_uses_it_like_any_engine(path: Path) -> None:
    engine, judge = cached(path, lambda prompt: "<think>fine</think><answer>7</answer>")
    examples = [Example("q", [answer]) for answer in "abca"]
    for _ in range(2):
        assert [verdict.scores for verdict in Judge(Score(), engine)(examples)] == [(7.0,)] * 4
    assert len(judge.prompts) == 3
