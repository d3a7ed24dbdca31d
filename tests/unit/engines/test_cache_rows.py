"""What a row of the cache takes, files of earlier versions that stay warm, pictures that are known by their files."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import CachedEngine, Judge, Media, Message, Pointwise, Prompt, Request, Sampling, Untrusted
from flexjudge_reward.engines.cache.engine import decode, encode, is_intact
from flexjudge_reward.engines.cache.keys import Key, document_of, keys_of
from flexjudge_reward.engines.cache.store import Store
from flexjudge_reward.engines.cache.tables import Row, checksum_of
from flexjudge_reward.media import image
from flexjudge_reward.types import Example, Generation, TokenLogprob
from support.cache_files import NAMES, ask, ask_all, cached, echo, use
from support.images import noise, saved

VERSION_2 = """
CREATE TABLE replies (
    key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, stored INTEGER NOT NULL, model BLOB NOT NULL,
    checksum BLOB NOT NULL, value BLOB NOT NULL, request BLOB NOT NULL
);
CREATE INDEX replies_by_use ON replies (used);
PRAGMA journal_mode = WAL; PRAGMA application_id = 1179275825; PRAGMA user_version = 2;
"""


def version_2(path: Path, names: list[str]) -> None:
    """A file as release 0.2 wrote it."""
    path.parent.mkdir(parents=True)
    identity = cached(path)[1].identity()
    with sqlite3.connect(path, isolation_level=None) as db:
        db.executescript(VERSION_2)
        for request in map(ask, names):
            (key,) = keys_of(identity, [request])
            value = b'{"text":"%s","finish_reason":"stop","prompt_tokens":0,"completion_tokens":0,"logprobs":null}'
            value %= echo(request).encode()
            row = (key.digest, 1, 1, b"m", checksum_of(key.digest, value), value, zlib.compress(key.document, 1))
            db.execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    db.close()


def test_a_file_of_version_2_stays_warm_and_takes_new_rows(cache_file: Path) -> None:
    version_2(cache_file, NAMES[:20])
    assert use(cache_file, NAMES[:20]) == 20
    assert sqlite3.connect(cache_file).execute("PRAGMA user_version").fetchone() == (2,), "reading changes nothing"
    assert use(cache_file, NAMES) == 20 and use(cache_file, NAMES) == 60
    with cached(cache_file)[0] as engine:
        assert {document_of(row) is None for row in engine.store.newest(60)} == {False}
        assert engine.store.verify(is_intact) == (60, 0)


def test_a_file_of_version_2_that_another_process_brings_up_stays_in_use(cache_file: Path) -> None:
    version_2(cache_file, NAMES[:20])
    (first, _), (second, _) = cached(cache_file), cached(cache_file)
    with first, second:
        ask_all(first, NAMES[:20])
        assert first.store.pictures([b"f" * 32]) == {}
        ask_all(second, NAMES[20:40])
        second.store.name_pictures({b"f" * 32: b"d" * 32})
        assert first.store.pictures([b"f" * 32]) == {b"f" * 32: b"d" * 32}
        ask_all(first, NAMES)
        assert first.stats.hits == 60 and second.store.verify(is_intact) == (60, 0)
        assert not first.store.set_aside and not second.store.set_aside


def test_keys_are_those_of_earlier_releases() -> None:
    parts = ("Question: ", Untrusted("wh\u00e4t?\ud83d"), Media.image(Image.new("RGB", (8, 8), "red")), "")
    request = Request(
        Prompt((Message("system", ("Judge.",)), Message("user", parts))), Sampling(temperature=0.5, stop=("é",))
    )
    identity = {"engine": "vllm", "model": "judge", "limits": {"pixels": [1, 2.0]}, "adapter": None}
    assert keys_of(identity, [request])[0].digest.hex() == (
        "81d8f04705ab61601b0e1c248a1e7c1e1f01469eedbe894f1bcbb7058924d00a"
    )


def test_a_short_row_takes_at_most_700_bytes(cache_file: Path) -> None:
    judge = Pointwise()
    examples = [Example(f"Question {number}?", [f"answer {number}"]) for number in range(2000)]
    requests = [judge.render(example)[0] for example in examples]
    engine, _ = cached(cache_file, lambda request: "<think>" + "It is right. " * 12 + "</think><answer>7</answer>")
    engine.generate([Request(prompt) for prompt in requests])
    engine.close()
    assert cache_file.stat().st_size / 2000 <= 700


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Generation("<think>a</think><answer>7</answer>", prompt_tokens=3), id="short"),
        pytest.param(Generation("because " * 2000, completion_tokens=3), id="long"),
        pytest.param(
            Generation("\ud83d{", logprobs=(TokenLogprob("7", -0.5, {"7": -0.5}),) * 99), id="log_probabilities"
        ),
    ],
)
def test_replies_come_back_as_they_were(reply: Generation) -> None:
    found = decode(value := encode(reply))
    assert found is not None and found.cached and vars(found) | {"cached": False} == vars(reply)
    assert len(value) <= 256 or len(value) < len(reply.text) or reply.logprobs
    assert decode(value[:-3]) is None and decode(b"x" + value) is None and decode(b"") is None
    assert decode(encode(Generation("a")) + b"x") is None


def test_the_first_eviction_is_said_once(cache_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, rng = CachedEngine(cached(cache_file)[1], cache_file, 1 << 20), random.Random(1)
    for _ in range(6):
        ask_all(engine, [rng.randbytes(800).hex() for _ in range(300)])
    engine.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "has reached its limit of 1,048,576 bytes" in said[0] and "cache_bytes" in said[0]


def test_frames_and_pictures_do_not_crowd_the_replies_out(cache_file: Path) -> None:
    store = Store(cache_file, 1 << 20)
    for start in range(400):
        store.name_pictures({f"{start} {number}".encode() * 4: bytes(32) for number in range(60)})
        frame = f"{start}".encode() * 1500
        key = Key(hashlib.sha256(frame).digest(), frame, "m", frame)
        assert store.put([Row(key.digest, encode(Generation("yes")), key.packed(), "m", frame=frame)]) == 1
    found = store.newest(1000)
    assert len(found) > 200
    assert store.disk_bytes <= 1 << 20
    assert all(
        hashlib.sha256(zlib.decompressobj(zdict=row.frame).decompress(row.request)).digest() == row.key for row in found
    )
    store.prune(unused_seconds=-7200)
    assert sqlite3.connect(cache_file).execute("SELECT COUNT(*) FROM frames").fetchone() == (0,)


def test_rows_that_another_process_adds_are_intact(cache_file: Path) -> None:
    first, _ = cached(cache_file)
    ask_all(first, [f"a {number}" for number in range(300)])
    second, _ = cached(cache_file, lambda request: "yes")

    def adding(row: Row) -> bool:
        if row.key == oldest:
            system = Message("system", ("Another frame.",))
            second.generate([Request(Prompt((system, Message("user", ("q",)))))])
        return is_intact(row)

    oldest = first.store.newest(300)[-1].key
    assert first.store.verify(adding) == (301, 0)


# ---- pictures


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files that are decoded."""
    found: list[Any] = []
    upright, again = image.upright_rgb, image.decode_again
    monkeypatch.setattr(image, "upright_rgb", lambda *args, **more: found.append(args) or upright(*args, **more))
    monkeypatch.setattr(image, "decode_again", lambda *args: found.append(args) or again(*args))
    return found


def judged(path: Path, files: list[bytes], reply: Any = None) -> tuple[list[Any], int]:
    """The scores of answers about these pictures, and how many requests reached the judge."""
    engine, judge = cached(path, reply or (lambda request: "<think></think><answer>7</answer>"))
    with engine:
        verdicts = Judge(Pointwise(), engine)([Example([Media.image(file), "?"], ["a"]) for file in files])
    return [verdict.scores or verdict.failure for verdict in verdicts], len(judge.requests)


def test_a_warm_cache_decodes_no_picture(cache_file: Path, decoded: list[Any]) -> None:
    files = [saved(noise(seed=seed), kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    assert judged(cache_file, files) == ([(7.0,)] * 3, 3) and len(decoded) == 3
    assert judged(cache_file, files) == ([(7.0,)] * 3, 0) and len(decoded) == 3
    assert judged(cache_file, [saved(noise(seed=9)), *files])[1] == 1 and len(decoded) == 4


def test_a_picture_that_is_known_is_decoded_where_it_is_shown(cache_file: Path) -> None:
    file, seen = saved(noise(seed=3)), []

    def look(request: Request) -> str:
        seen.append(request.prompt.media[0].images()[0].tobytes())
        return "<think></think><answer>8</answer>"

    judged(cache_file, [file])
    engine, _ = cached(cache_file, look)
    with engine:
        Judge(Pointwise(), engine)([Example([Media.image(file), "other?"], ["a"])])
    assert seen == [noise(seed=3).tobytes()]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("digest = x'0102'", id="short"),
        pytest.param("digest = 7", id="a_number"),
        pytest.param("digest = 'text'", id="a_text"),
        pytest.param("digest = substr(digest, 1, 32)", id="of_an_earlier_release"),
        pytest.param("digest = (SELECT max(digest) FROM pictures)", id="that_of_another_picture"),
        pytest.param("digest = zeroblob(32) || substr(digest, 33)", id="other_bits"),
    ],
)
def test_a_damaged_picture_is_not_known(change: str, cache_file: Path, decoded: list[Any]) -> None:
    """It is decoded again, and named again with the next reply about it."""
    files = [saved(noise(seed=seed)) for seed in range(2)]

    def by_pixels(request: Request) -> str:
        image = request.prompt.media[0].images()[0]
        return f"<think></think><answer>{1 + (image.tobytes() == noise(seed=1).tobytes())}</answer>"

    judged(cache_file, files, by_pixels)
    with contextlib.closing(sqlite3.connect(cache_file)) as db, db:
        db.execute(f"UPDATE pictures SET {change}")
    decoded.clear()
    assert judged(cache_file, files, by_pixels) == ([(1.0,), (2.0,)], 0) and decoded
    with (engine := cached(cache_file, by_pixels)[0]):
        Judge(Pointwise(), engine)([Example([Media.image(file), "other?"], ["a"]) for file in files])
    decoded.clear()
    assert judged(cache_file, files, by_pixels) == ([(1.0,), (2.0,)], 0) and not decoded


def test_verify_removes_damaged_pictures(cache_file: Path) -> None:
    engine, _ = cached(cache_file)
    with engine:
        ask_all(engine, NAMES[:1])
        engine.store.name_pictures({name * 32: b"d" * 32 for name in (b"f", b"g")})
        with contextlib.closing(sqlite3.connect(cache_file)) as db, db:
            db.execute("UPDATE pictures SET digest = zeroblob(48) WHERE file = ?", (b"f" * 32,))
        assert engine.store.verify(is_intact) == (1, 0)
        with contextlib.closing(sqlite3.connect(cache_file)) as db:
            assert db.execute("SELECT file FROM pictures").fetchall() == [(b"g" * 32,)]


def test_a_damaged_file_is_not_known(cache_file: Path) -> None:
    file = saved(noise())[:900]
    for _ in range(2):
        (failure,), asked = judged(cache_file, [file])
        assert failure.kind == "media" and asked == 0
