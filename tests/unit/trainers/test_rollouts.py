"""The judge in environments of verifiers and NeMo Gym, against the forms of their rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Generation,
    Judge,
    JudgementFailed,
    Listwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.media.base import Media
from flexjudge_reward.trainers import rows
from flexjudge_reward.trainers.rollouts import nemo_gym_reward, verifiers_reward
from support.images import noise, saved
from support.judging import tags


class Model(SimpleNamespace):
    """A model of pydantic, as far as it is used."""

    def model_dump(self, exclude_none: bool = False) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None or not exclude_none}


def text_of(request: Request) -> str:
    parts = request.prompt.messages[1].parts
    return " ".join(
        "MEDIA" if isinstance(one, Media) else one.text for one in parts if isinstance(one, Untrusted | Media)
    )


def grade(request: Request) -> Generation | str:
    text = text_of(request)
    return Generation.failed("transport", "no route") if "broken" in text else tags(9 if "red star" in text else 3)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine(grade)
    monkeypatch.setattr(RewardSession, "judge", Judge(Pointwise(), engine))
    rows._shared.cache_clear()
    yield engine
    rows.meeting().close()
    rows._shared.cache_clear()


def uri() -> str:
    return Media.of("image", saved(noise())).data_uri(image_format="png")


def trace(answer: str) -> Any:
    """A rollout of verifiers."""
    call = {"id": "1", "type": "function", "name": "look", "arguments": '{"place": "left"}'}
    image = {"type": "image_url", "image_url": {"url": uri()}}
    shown = [image, {"type": "text", "text": "the left"}]
    return SimpleNamespace(
        messages=[
            Model(role="system", content="Be brief."),
            Model(role="user", content=[image, {"type": "text", "text": "What is there?"}]),
            Model(role="assistant", content=None, reasoning_content="I look.", tool_calls=[call]),
            Model(role="tool", tool_call_id="1", content=shown, name=None),
            Model(role="assistant", content=answer, reasoning_content=None, tool_calls=None),
        ]
    )


def body(answer: str, **more: Any) -> Any:
    """A request to NeMo Gym's /verify."""
    asked = [
        {"type": "input_image", "image_url": uri(), "detail": "auto"},
        {"type": "input_text", "text": "What is there?"},
    ]
    wrote = [
        Model(type="reasoning", id="1", summary=[{"type": "summary_text", "text": "I look."}]),
        Model(type="function_call", call_id="2", name="look", arguments='{"place": "left"}'),
        Model(type="function_call_output", call_id="2", output="the left"),
        Model(type="message", id="3", role="assistant", content=[{"type": "output_text", "text": answer}]),
    ]
    given = SimpleNamespace(input=[Model(role="user", content=asked)], instructions="Be brief.")
    return SimpleNamespace(responses_create_params=given, response=SimpleNamespace(output=wrote), **more)


def in_order(text: str, *words: str) -> bool:
    return sorted(words, key=text.index) == list(words)


def test_a_rollout_of_verifiers_is_judged_whole(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_REFERENCE_COLUMN", "answer")
    task = SimpleNamespace(answer="the truth", image="a/docker:image", prompt="What is there?")

    async def both() -> list[float]:
        return await asyncio.gather(verifiers_reward(task, trace("a red star")), verifiers_reward(task, trace("a cat")))

    assert asyncio.run(both()) == pytest.approx([8 / 9, 2 / 9])
    assert [len(prompt.media) for prompt in engine.prompts] == [2, 2]
    seen = text_of(engine.requests[0])
    assert in_order(seen, "Be brief.", "What is there?", '\\"place\\"', "the left", "a red star") and "truth" in seen
    assert "I look." not in seen


def test_a_rollout_of_nemo_gym_is_judged_whole(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXJUDGE_REFERENCE_COLUMN", "expected")
    monkeypatch.setenv("FLEXJUDGE_COMPLETION", "all")
    assert asyncio.run(nemo_gym_reward(body("a red star", expected="the truth"))) == pytest.approx(8 / 9)
    assert len(engine.prompts[0].media) == 1
    seen = text_of(engine.requests[0])
    assert in_order(seen, "Be brief.", "What is there?", "I look.", '\\"place\\"', "the left", "a red star")


def test_a_text_alone_is_a_question(engine: ScriptedEngine) -> None:
    given = body("a cat")
    given.responses_create_params = SimpleNamespace(input="What is there?", instructions=None)
    assert asyncio.run(nemo_gym_reward(given)) == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    "reward",
    [
        pytest.param(lambda: verifiers_reward(SimpleNamespace(), trace("broken")), id="verifiers"),
        pytest.param(lambda: nemo_gym_reward(body("broken")), id="nemo_gym"),
    ],
)
def test_a_failure_is_an_error_and_never_a_number(reward: Any, engine: ScriptedEngine) -> None:
    with pytest.raises(JudgementFailed, match="transport: no route"):
        asyncio.run(reward())


def test_an_address_of_an_image_fails_its_rollout_and_is_not_fetched(engine: ScriptedEngine) -> None:
    given = body("a red star")
    given.responses_create_params.input[0].content[0]["image_url"] = "http://127.0.0.1:9/a.png"
    with pytest.raises(JudgementFailed, match="URLs are not fetched"):
        asyncio.run(nemo_gym_reward(given))


def test_what_cannot_work_is_an_error(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    given = body("a cat")
    given.response.output.append(Model(type="web_search_call"))
    with pytest.raises(ConfigError, match="web_search_call"):
        asyncio.run(nemo_gym_reward(given))
    monkeypatch.setattr(RewardSession, "judge", Judge(Listwise(), engine).for_group_size())
    with pytest.raises(ConfigError, match="pointwise"):
        asyncio.run(nemo_gym_reward(body("a cat")))
