"""What a cache key is made of, and how two of them differ."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    CachedEngine,
    ConfigError,
    EngineError,
    Generation,
    Media,
    Message,
    Prompt,
    Request,
    Sampling,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.engines.cache.engine import is_intact
from flexjudge_reward.engines.cache.keys import canonical, differences, document_of, request_key
from support.cache_files import ask, cached, echo

# ---- keys


@dataclass(frozen=True)
class MoreSampling(Sampling):
    grammar: str = ""


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
    Message("user", ("Question: ", Untrusted("what?"), Media.image(RED), "Answer: ", Untrusted("that"))),
)
SYSTEM, USER = MESSAGES


def key(identity: object = None, messages: Any = MESSAGES, sampling: Sampling = Sampling()) -> str:
    engine = Named(**(IDENTITY if identity is None else identity))  # type: ignore[arg-type]
    return request_key(engine, Request(Prompt(tuple(messages)), sampling))


def user(*parts: Any) -> Any:
    return (SYSTEM, Message("user", parts))


SAMPLINGS = {
    "temperature": {"temperature": 0.1},
    "temperature one": {"temperature": 1.0},
    "top_p": {"top_p": 0.9},
    "max_tokens": {"max_tokens": 2047},
    "seed": {"seed": 1},
    "second vote": {"seed": 2},
    "stop": {"stop": ("a", "b")},
    "stop swapped": {"stop": ("b", "a")},
    "stop joined": {"stop": ("ab",)},
    "stop comma": {"stop": ("a,b",)},
    "logprobs": {"logprobs": 0},
    "logprobs one": {"logprobs": 1},
}
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
    **{
        name: lambda fields=fields: key(sampling=Sampling(**fields))  # type: ignore[misc]
        for name, fields in SAMPLINGS.items()
    },
    "a later field": lambda: key(sampling=MoreSampling(grammar="x")),
    "a later field by default": lambda: key(sampling=MoreSampling()),
    "role": lambda: key(messages=(SYSTEM, replace(USER, role="assistant"))),
    "order": lambda: key(messages=(USER, SYSTEM)),
    "no system": lambda: key(messages=(USER,)),
    "a turn more": lambda: key(messages=(*MESSAGES, Message("assistant", ("<think>",)))),
    "a turn without parts": lambda: key(messages=(*MESSAGES, Message("assistant", ()))),
    "instruction": lambda: key(messages=(Message("system", ("Judge!",)), USER)),
    "instruction with a space": lambda: key(messages=(Message("system", ("Judge. ",)), USER)),
    "question": lambda: key(messages=user("Question: ", Untrusted("What?"), *USER.parts[2:])),
    "answer": lambda: key(messages=user(*USER.parts[:4], Untrusted("this"))),
    "composed": lambda: key(messages=user(*USER.parts[:4], Untrusted("é"))),
    "decomposed": lambda: key(messages=user(*USER.parts[:4], Untrusted("e\u0301"))),
    "trusted": lambda: key(messages=user(*USER.parts[:4], "that")),
    "untrusted instruction": lambda: key(messages=user(Untrusted("Question: "), *USER.parts[1:])),
    "cut elsewhere": lambda: key(messages=user("Question: w", Untrusted("hat?"), *USER.parts[2:])),
    "surrogates": lambda: key(messages=user(*USER.parts[:4], Untrusted("\ud83d\ude00"))),
    "what they would spell": lambda: key(messages=user(*USER.parts[:4], Untrusted("\U0001f600"))),
    "their escape": lambda: key(messages=user(*USER.parts[:4], Untrusted("\\ud83d\\ude00"))),
    "image": lambda: key(messages=user(*USER.parts[:2], Media.image(BLUE), *USER.parts[3:])),
    "image gone": lambda: key(messages=user(*USER.parts[:2], *USER.parts[3:])),
    "image twice": lambda: key(messages=user(*USER.parts[:3], *USER.parts[2:])),
    "image later": lambda: key(messages=user(*USER.parts[:2], *USER.parts[3:], USER.parts[2])),
    "image as a video": lambda: key(messages=user(*USER.parts[:2], Media.video([RED]), *USER.parts[3:])),
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
    "image from bytes": lambda: key(messages=user(*USER.parts[:2], Media.image(png(RED)), *USER.parts[3:])),
    "image copied": lambda: key(messages=user(*USER.parts[:2], Media.image(RED.copy()), *USER.parts[3:])),
    "messages as list": lambda: key(messages=list(MESSAGES)),
}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_every_relevant_change_gives_a_key_of_its_own() -> None:
    keys = {name: make() for name, make in RELEVANT.items()} | {"unchanged": key()}
    equal = [(a, b) for a in keys for b in keys if a < b and keys[a] == keys[b]]
    assert len(keys) >= 46 and equal == []


def test_every_field_of_sampling_is_among_them() -> None:
    assert {name for fields in SAMPLINGS.values() for name in fields} == {f.name for f in dataclasses.fields(Sampling)}


@pytest.mark.parametrize("make", IRRELEVANT.values(), ids=IRRELEVANT)
def test_no_irrelevant_change_gives_another_key(make: Callable[[], str]) -> None:
    assert make() == key()


def test_votes_are_separate_requests(cache_file: Path) -> None:
    """Vote number n is sampled with seed + n: k votes are k keys, and k - 1 of them serve k - 1 votes again."""
    votes = [ask("a", Sampling(temperature=1.0, seed=7 + number)) for number in range(5)]
    assert len({request_key(Named(model="a"), vote) for vote in votes}) == 5
    engine, judge = cached(cache_file)
    assert len({reply.text for reply in engine.generate(votes[:4])}) == 4
    assert [reply.cached for reply in engine.generate(votes)] == [True] * 4 + [False]
    assert judge.requests == votes


def test_images_of_the_same_bytes_do_not_share_a_key() -> None:
    rng = random.Random(0)
    pairs: list[tuple[Any, Any]] = []
    for _ in range(20):
        width, height = rng.sample(range(3, 40), 2)
        data = rng.randbytes(width * height * 3)
        first = raw(data, width, height)
        pairs += [
            (first, raw(data, height, width)),
            (first, raw(data[3:] + data[:3], width, height)),
            (paletted(data, width, height, 0), paletted(data, width, height, 1)),
            ([first, first.copy()], [first]),
        ]
    pairs += [
        (Image.new("RGB", (30, 150)), Image.new("RGB", (150, 30))),
        ([RED, BLUE], [BLUE, RED]),
        (Media.video([RED, BLUE], fps=1), Media.video([RED, BLUE], fps=2)),
    ]
    for one, other in pairs:
        assert key(messages=user(shown(one))) != key(messages=user(shown(other)))


def shown(source: Any) -> Media:
    if isinstance(source, Media):
        return source
    return Media.video(source) if isinstance(source, list) else Media.image(source)


def raw(data: bytes, width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), data)


def paletted(data: bytes, width: int, height: int, shift: int) -> Image.Image:
    image = Image.frombytes("P", (width, height), data[: width * height])
    image.putpalette([(i + shift) % 256 for i in range(768)])
    return image


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
def test_an_identity_that_is_not_json_is_rejected(cache_file: Path, identity: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        CachedEngine(Named(**identity), cache_file).generate([ask("a")])


def test_numbers_have_one_spelling() -> None:
    assert canonical([1.0, -0.0, 0.5, True, 10**20, 1e20], "x") == [1, 0, 0.5, True, 10**20, 10**20]
    assert [type(value) for value in canonical([1.0, 0.5, True], "x")] == [int, float, bool]


def test_prompts_are_in_the_file_as_digests_only(cache_file: Path) -> None:
    engine, _ = cached(cache_file, ["<think>fine</think><answer>7</answer>"])
    engine.generate([ask("the patient's name")])
    (row,) = engine.store.newest(1)
    engine.close()
    everything = cache_file.read_bytes() + json.dumps(document_of(row)).encode()
    assert b"fine" in everything and b"untrusted" in everything and b"patient" not in everything


# ---- differences


@pytest.mark.parametrize(
    ("identity", "changed", "fields"),
    [
        pytest.param({"model": "b"}, ask("a"), ["engine.model"], id="model"),
        pytest.param({"x": [1]}, ask("a"), ["engine.x[0]"], id="a field more"),
        pytest.param({}, ask("a", Sampling(seed=3)), ["sampling.seed"], id="seed"),
        pytest.param({}, ask("a", Sampling(stop=("x",))), ["sampling.stop", "sampling.stop[0]"], id="stop"),
        pytest.param({}, ask("b"), ["messages[0].parts[1].untrusted"], id="candidate"),
        pytest.param({"model": "b"}, ask("b"), ["engine.model", "messages[0].parts[1].untrusted"], id="two"),
    ],
)
def test_differences_name_the_fields(
    cache_file: Path, identity: dict[str, object], changed: Request, fields: list[str]
) -> None:
    CachedEngine(Named(model="a"), cache_file).generate([ask("a")])
    engine = CachedEngine(Named(**{"model": "a", **identity}), cache_file)
    engine.generate([changed])
    new, old = engine.store.newest(2)
    assert [difference.field for difference in differences(new, old)] == fields
    assert differences(new, new) == ()


def test_differences_show_both_sides(cache_file: Path) -> None:
    engine, _ = cached(cache_file)
    engine.generate([ask("a"), ask("abc", Sampling(stop=("x",)))])
    other, one = engine.store.newest(2)
    length, text, stop, first_stop = differences(one, other)
    assert (length.one, length.other) == ("1", "3")
    assert (text.one or "").startswith('"ca978112ca1b') and text.other != text.one
    assert [(d.one, d.other) for d in (stop, first_stop)] == [("[]", None), (None, '"x"')]


def test_damaged_requests_are_named(cache_file: Path) -> None:
    engine, _ = cached(cache_file)
    engine.generate([ask("a"), ask("b")])
    one, other = engine.store.newest(2)
    for request in (b"", other.request, one.request[:-3]):
        bad = replace(one, request=request)
        with pytest.raises(ConfigError, match="is damaged"):
            differences(bad, other)
        assert not is_intact(replace(bad, value=REPLY))
    assert is_intact(replace(one, value=REPLY)) and not is_intact(replace(one, value=b'{"text": 1}'))


REPLY = b'{"text": "x", "prompt_tokens": 1, "completion_tokens": 1, "logprobs": null}'


@pytest.mark.parametrize("gone", [pytest.param(False, id="there"), pytest.param(True, id="gone_after_the_reply")])
def test_a_reply_about_a_video_is_stored_if_it_is_known_how_it_was_shown(tmp_path: Path, gone: bool) -> None:
    replied: list[str] = []

    class Shows(ScriptedEngine):
        def shows_stills(self, prompt: Prompt) -> bool:
            if gone and replied:
                raise EngineError("the server is gone")
            return False

    clip = Media.video([Image.new("RGB", (56, 56), colour) for colour in ("red", "blue")], fps=2.0)
    request = Request(Prompt((Message("user", (clip, "What moves?")),)), Sampling(max_tokens=8))

    def reply(asked: Request) -> Generation:
        replied.append("a square")
        return Generation("a square")

    inner = CachedEngine(Shows(reply), tmp_path / "inner.sqlite")
    with CachedEngine(inner, tmp_path / "outer.sqlite") as engine:
        assert engine.shows_stills(request.prompt) is False
        assert [one.text for one in engine.generate([request])] == ["a square"]
        replied.clear()  # the server is there again
        assert [one.text for one in engine.generate([request])] == ["a square"]
    assert bool(replied) is gone
