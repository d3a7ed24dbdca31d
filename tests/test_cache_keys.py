"""What a cache key is made of, and why a request was not found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.caches import ask, cached, echo

from flexjudge_reward import (
    ConfigError,
    Media,
    Message,
    Prompt,
    Quoted,
    Sampling,
)
from flexjudge_reward.engines.cache.engine import (
    CachedEngine,
    canonical,
    differences,
    explain_miss,
    nearest,
    request_key,
    sound,
)
from flexjudge_reward.engines.cache.store import Row
from flexjudge_reward.engines.scripted import ScriptedEngine

GREEDY = Sampling()


@pytest.fixture
def path(cache_file: Path) -> Path:
    return cache_file


# ---- keys


@dataclass(frozen=True)
class MoreSampling(Sampling):
    grammar: str = ""
    timeout: float = 1.0
    retries: int = 3


class Named(ScriptedEngine):
    def __init__(self, **identity: object) -> None:
        super().__init__(echo)
        self.named = identity

    def identity(self) -> dict[str, object]:
        return self.named


RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
IDENTITY: dict[str, object] = {
    "engine": "vllm",
    "model": "judge",
    "revision": "abc",
    "limits": {"pixels": [1, 2]},
    "adapter": None,
}
MESSAGES = (
    Message("system", ("Judge.",)),
    Message("user", ("Question: ", Quoted("what?"), Media.image(RED), "Answer: ", Quoted("that"))),
)
SYSTEM, USER = MESSAGES


def key(identity: object = None, messages: Any = MESSAGES, sample: int = 0, sampling: Sampling = GREEDY) -> str:
    engine = Named(**(IDENTITY if identity is None else identity))  # type: ignore[arg-type]
    return request_key(engine, Prompt(tuple(messages), sample), sampling)


def user(*parts: Any) -> Any:
    return (SYSTEM, Message("user", parts))


RELEVANT: dict[str, Callable[[], str]] = {
    "engine kind": lambda: key({**IDENTITY, "engine": "server"}),
    "model": lambda: key({**IDENTITY, "model": "judge2"}),
    "revision": lambda: key({**IDENTITY, "revision": "abd"}),
    "adapter": lambda: key({**IDENTITY, "adapter": "lora"}),
    "adapter empty": lambda: key({**IDENTITY, "adapter": ""}),
    "adapter false": lambda: key({**IDENTITY, "adapter": False}),
    "adapter zero": lambda: key({**IDENTITY, "adapter": 0}),
    "field gone": lambda: key({k: v for k, v in IDENTITY.items() if k != "adapter"}),
    "field more": lambda: key({**IDENTITY, "dtype": "bfloat16"}),
    "limits": lambda: key({**IDENTITY, "limits": {"pixels": [1, 3]}}),
    "limits swapped": lambda: key({**IDENTITY, "limits": {"pixels": [2, 1]}}),
    "limits nested": lambda: key({**IDENTITY, "limits": {"pixels": [[1], 2]}}),
    "limits as text": lambda: key({**IDENTITY, "limits": {"pixels": ["1", 2]}}),
    "sample": lambda: key(sample=1),
    "temperature": lambda: key(sampling=Sampling(temperature=0.1)),
    "temperature one": lambda: key(sampling=Sampling(temperature=1.0)),
    "top_p": lambda: key(sampling=Sampling(top_p=0.9)),
    "max_tokens": lambda: key(sampling=Sampling(max_tokens=2047)),
    "seed": lambda: key(sampling=Sampling(seed=1)),
    "seed and not sample": lambda: key(sampling=Sampling(seed=1), sample=1),
    "stop": lambda: key(sampling=Sampling(stop=("a", "b"))),
    "stop joined": lambda: key(sampling=Sampling(stop=("ab",))),
    "stop comma": lambda: key(sampling=Sampling(stop=("a,b",))),
    "logprobs": lambda: key(sampling=Sampling(logprobs=0)),
    "logprobs one": lambda: key(sampling=Sampling(logprobs=1)),
    "a later field": lambda: key(sampling=MoreSampling(grammar="x")),
    "a later field by default": lambda: key(sampling=MoreSampling()),
    "role": lambda: key(messages=(SYSTEM, replace(USER, role="assistant"))),
    "order": lambda: key(messages=(USER, SYSTEM)),
    "no system": lambda: key(messages=(USER,)),
    "a turn more": lambda: key(messages=(*MESSAGES, Message("assistant", ("<think>",)))),
    "a turn without parts": lambda: key(messages=(*MESSAGES, Message("assistant", ()))),
    "instruction": lambda: key(messages=(Message("system", ("Judge!",)), USER)),
    "instruction with a space": lambda: key(messages=(Message("system", ("Judge. ",)), USER)),
    "question": lambda: key(messages=user("Question: ", Quoted("What?"), *USER.parts[2:])),
    "answer": lambda: key(messages=user(*USER.parts[:4], Quoted("this"))),
    "composed": lambda: key(messages=user(*USER.parts[:4], Quoted("é"))),
    "decomposed": lambda: key(messages=user(*USER.parts[:4], Quoted("e\u0301"))),
    "trusted": lambda: key(messages=user(*USER.parts[:4], "that")),
    "quoted instruction": lambda: key(messages=user(Quoted("Question: "), *USER.parts[1:])),
    "cut elsewhere": lambda: key(messages=user("Question: w", Quoted("hat?"), *USER.parts[2:])),
    "surrogates": lambda: key(messages=user(*USER.parts[:4], Quoted("\ud83d\ude00"))),
    "what they would spell": lambda: key(messages=user(*USER.parts[:4], Quoted("\U0001f600"))),
    "their escape": lambda: key(messages=user(*USER.parts[:4], Quoted("\\ud83d\\ude00"))),
    "picture": lambda: key(messages=user(*USER.parts[:2], Media.image(BLUE), *USER.parts[3:])),
    "picture gone": lambda: key(messages=user(*USER.parts[:2], *USER.parts[3:])),
    "picture twice": lambda: key(messages=user(*USER.parts[:3], *USER.parts[2:])),
    "picture later": lambda: key(messages=user(*USER.parts[:2], *USER.parts[3:], USER.parts[2])),
    "picture as a clip": lambda: key(messages=user(*USER.parts[:2], Media.video([RED]), *USER.parts[3:])),
    "its digest as text": lambda: key(messages=user(*USER.parts[:2], Media.image(RED).digest, *USER.parts[3:])),
}

IRRELEVANT: dict[str, Callable[[], str]] = {
    "again": key,
    "field order": lambda: key(dict(reversed(IDENTITY.items()))),
    "tuple for list": lambda: key({**IDENTITY, "limits": {"pixels": (1, 2)}}),
    "1.0 for 1": lambda: key({**IDENTITY, "limits": {"pixels": [1.0, 2]}}),
    "temperature as int": lambda: key(sampling=Sampling(temperature=0)),
    "temperature minus zero": lambda: key(sampling=Sampling(temperature=-0.0)),
    "defaults spelled out": lambda: key(sampling=Sampling(0.0, 1.0, 2048, 0, (), None)),
    "stop as list": lambda: key(sampling=Sampling(stop=[])),  # type: ignore[arg-type]
    "picture from bytes": lambda: key(messages=user(*USER.parts[:2], Media.image(png(RED)), *USER.parts[3:])),
    "picture copied": lambda: key(messages=user(*USER.parts[:2], Media.image(RED.copy()), *USER.parts[3:])),
    "messages as list": lambda: key(messages=list(MESSAGES)),
}


def png(picture: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_every_relevant_change_gives_a_key_of_its_own() -> None:
    keys = {name: make() for name, make in RELEVANT.items()} | {"unchanged": key()}
    twins = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert len(keys) >= 46 and twins == []


@pytest.mark.parametrize("name", IRRELEVANT)
def test_no_irrelevant_change_gives_another_key(name: str) -> None:
    assert IRRELEVANT[name]() == key()


@pytest.mark.parametrize("field", ["timeout", "retries"])
def test_patience_is_not_part_of_a_key(field: str) -> None:
    assert key(sampling=replace(MoreSampling(), **{field: 9})) == key(sampling=MoreSampling())


def test_keys_agree_between_processes(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_cache_keys as t;"
        "print(*[make() for make in t.RELEVANT.values()])"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "1", "77")
    ]
    here = " ".join(make() for make in RELEVANT.values())
    assert [child.communicate()[0].strip() for child in children] == [here] * 3


def test_pictures_that_look_alike_in_bytes_do_not_share_a_key() -> None:
    rng = random.Random(0)
    pairs = []
    for _ in range(75):
        width, height = rng.sample(range(3, 40), 2)
        data = rng.randbytes(width * height * 3)
        pairs.append((raw(data, width, height), raw(data, height, width)))
        pairs.append((raw(data, width, height), raw(data[3:] + data[:3], width, height)))
        pairs.append((paletted(data, width, height, 0), paletted(data, width, height, 1)))
        one = raw(data, width, height)
        pairs.append(([one, one.copy()], [one]))
    for one, other in pairs:
        left, right = (Media.video(m) if isinstance(m, list) else Media.image(m) for m in (one, other))
        assert key(messages=user(left)) != key(messages=user(right))
    wide, tall = Image.new("RGB", (30, 150)), Image.new("RGB", (150, 30))
    assert key(messages=user(Media.image(wide))) != key(messages=user(Media.image(tall)))
    assert key(messages=user(Media.video([RED, BLUE]))) != key(messages=user(Media.video([BLUE, RED])))
    assert key(messages=user(Media.video([RED, BLUE], fps=1))) != key(messages=user(Media.video([RED, BLUE], fps=2)))


def raw(data: bytes, width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), data)


def paletted(data: bytes, width: int, height: int, shift: int) -> Image.Image:
    picture = Image.frombytes("P", (width, height), data[: width * height])
    picture.putpalette([(i + shift) % 256 for i in range(768)])
    return picture


@pytest.mark.parametrize(
    ("identity", "where"),
    [
        pytest.param({"a": {"b": [1, object()]}}, r"the engine's identity\.a\.b\[1\]", id="object"),
        pytest.param({"a": float("nan")}, r"the engine's identity\.a", id="nan"),
        pytest.param({"a": {1: 2}}, r"the engine's identity\.a", id="number as name"),
        pytest.param({"a": {"x"}}, r"the engine's identity\.a", id="set"),
        pytest.param({"a": b"x"}, r"the engine's identity\.a", id="bytes"),
    ],
)
def test_what_processes_might_not_agree_on_is_refused(path: Path, identity: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        CachedEngine(Named(**identity), path).generate([ask("a")], GREEDY)


def test_numbers_have_one_spelling() -> None:
    assert canonical([1.0, -0.0, 0.5, True, 10**20, 1e20], "x") == [1, 0, 0.5, True, 10**20, 10**20]
    assert [type(v) for v in canonical([1.0, 0.5, True], "x")] == [int, float, bool]


def test_prompts_are_in_the_file_as_digests_only(path: Path) -> None:
    engine, _ = cached(path, ["<think>fine</think><answer>7</answer>"])
    engine.generate([ask("the patient's name")], GREEDY)
    (row,) = engine.store.newest(1)
    engine.close()
    everything = path.read_bytes() + zlib.decompress(row.request)
    assert b"fine" in everything and b"quoted" in everything and b"patient" not in everything


# ---- why a request was not found


def rows(engine: CachedEngine) -> list[Row]:
    return engine.store.newest(100)


@pytest.mark.parametrize(
    ("identity", "sampling", "prompt", "fields"),
    [
        pytest.param({"model": "b"}, GREEDY, ask("a"), ["engine.model"], id="model"),
        pytest.param({"model": "a", "x": [1]}, GREEDY, ask("a"), ["engine.x[0]"], id="a field more"),
        pytest.param({}, Sampling(seed=3), ask("a"), ["sampling.seed"], id="seed"),
        pytest.param({}, Sampling(stop=("x",)), ask("a"), ["sampling.stop", "sampling.stop[0]"], id="stop"),
        pytest.param({}, GREEDY, ask("a", 2), ["sample"], id="sample"),
        pytest.param({}, GREEDY, ask("b"), ["messages[1].parts[1].quoted"], id="candidate"),
        pytest.param({}, GREEDY, ask("a"), [], id="it is stored"),
    ],
)
def test_a_miss_names_the_fields(
    path: Path, identity: dict[str, object], sampling: Sampling, prompt: Prompt, fields: list[str]
) -> None:
    CachedEngine(Named(model="a"), path).generate([ask("a")], GREEDY)
    miss = explain_miss(CachedEngine(Named(**({"model": "a"} | identity)), path), prompt, sampling)
    assert miss is not None and [d.field for d in miss.differences] == fields
    assert miss.stored > 1_600_000_000


def test_differences_show_both_sides(path: Path) -> None:
    engine = CachedEngine(Named(model="a"), path)
    assert explain_miss(engine, ask("a"), GREEDY) is None
    engine.generate([ask("a")], GREEDY)
    miss = explain_miss(engine, ask("abc"), Sampling(stop=("x",)))
    assert miss is not None
    shown = [str(difference) for difference in miss.differences]
    assert shown[0].startswith("messages[1].parts[1].quoted: 1 characters, sha256 ") and "| 3 characters" in shown[0]
    assert shown[1:] == ["sampling.stop: [] | nothing", 'sampling.stop[0]: nothing | "x"']


def test_the_nearest_is_the_same_data_asked_in_another_way(path: Path) -> None:
    CachedEngine(Named(model="a", revision="1", dtype="x"), path).generate([ask("a")], GREEDY)
    engine = CachedEngine(Named(model="a", revision="2", dtype="y"), path)
    engine.generate([ask("b"), ask("c")], GREEDY)
    miss = explain_miss(engine, ask("a"), GREEDY)
    assert miss is not None and [d.field for d in miss.differences] == ["engine.dtype", "engine.revision"]
    picture = Prompt((Message("user", (Media.image(RED),)),))
    miss = explain_miss(engine, picture, GREEDY)
    assert miss is not None and "messages[0].parts[0].image" in [d.field for d in miss.differences]


def test_damaged_requests_are_skipped_or_named(path: Path) -> None:
    engine, _ = cached(path)
    engine.generate([ask("a"), ask("b")], GREEDY)
    one, other = rows(engine)
    for request in (b"", other.request, other.request[:-3]):
        bad = replace(one, request=request)
        assert not sound(replace(bad, value=b"{}"))
        assert nearest(other, [bad]) is None
        with pytest.raises(ConfigError, match="was damaged"):
            differences(bad, other)
    assert not sound(replace(one, value=b'{"text": 1}'))
