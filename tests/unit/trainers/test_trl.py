"""FlexJudgeReward: TRL's call contract, without a trainer; `tests/integration` has real ones."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    FlexJudgeReward,
    Format,
    Judge,
    JudgementFailed,
    Listwise,
    MajorityVote,
    Media,
    MultipleChoice,
    Pairwise,
    Pointwise,
    Prompt,
    Request,
    Rubric,
    Scale,
    ScriptedEngine,
    Untrusted,
)
from flexjudge_reward.trainers import trl as adapter
from support import sounds
from support.layouts import Remote, gathered

Messages = list[dict[str, Any]]


def reply(score: object) -> str:
    return f"<think>because</think><answer>{score}</answer>"


def shown(prompt: Prompt) -> str:
    """What the judge reads, media as their kind."""
    parts = [part for message in prompt.messages for part in message.parts]
    text = "".join(f"<{p.kind}>" if isinstance(p, Media) else p.text if isinstance(p, Untrusted) else p for p in parts)
    return re.sub(r"\[\w+ \d of the question\] ", "", text)  # what names each image and video


def by_bangs(request: Request) -> str:
    """Scores 1 and one more for each exclamation mark; does not finish where the answer says CUT."""
    text = shown(request.prompt)
    return "<think>well" if "CUT" in text else reply(1 + text.count("!"))


def reward(replies: Any = by_bangs, **settings: Any) -> FlexJudgeReward:
    return FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(replies)), **settings)


def prompts_of(one: FlexJudgeReward) -> list[Prompt]:
    engine = one.session.judge.engine
    assert isinstance(engine, ScriptedEngine)
    return engine.prompts


def user(*content: Any) -> Messages:
    return [{"role": "user", "content": content[0] if len(content) == 1 else list(content)}]


def said(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


TEXT = {"type": "text", "text": "What is it?"}
JUDGE = Judge(Pointwise(), ScriptedEngine([]))


# ---- the contract


def test_scores_arrive_in_the_unit_range_in_order() -> None:
    one = reward()
    assert one(prompts=["q"] * 3, completions=["!!!!!!!!!", "no", "!!!"]) == pytest.approx([1.0, 0.0, 1 / 3])
    assert one([user("q")], [said("!!!")], completion_ids=[[1]], trainer_state=object()) == pytest.approx([1 / 3])
    assert str(one.summary).startswith("4 judged (0 from the cache, 4 new), 0 failed;") and one.summary.calls == 2


@pytest.mark.parametrize("text", ["inf", "nan", "-inf", "1e39", "11", "0", "99999999", "7.5", "", "10/10"])
def test_what_is_no_score_never_reaches_the_trainer(text: str) -> None:
    one = reward([reply(9), reply(text), reply(5), reply(text)], max_failure_rate=1)
    assert one(["q"] * 3, ["a", "b", "c"]) == pytest.approx([8 / 9, 4 / 9, 4 / 9])
    assert sum(one.summary.failures.values()) == 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("group_mean", [1 / 9, 2 / 9, 3 / 9, None, None, 0.0], id="group-mean"),
        pytest.param("abstain", [1 / 9, None, 3 / 9, None, None, 0.0], id="abstain"),
    ],
)
def test_a_failed_row_gets_what_the_policy_says(policy: Any, expected: list[float | None]) -> None:
    one = reward(on_failure=policy)
    asked = ["p", "p", "p", "q", "q", "r"]
    assert one(asked, ["!", "CUT", "!!!", "CUT", "CUT", "x"]) == pytest.approx(expected)


def test_raise_and_the_limit_stop_the_run() -> None:
    with pytest.raises(JudgementFailed, match="Row 1: truncated"):
        reward(on_failure="raise")(["q"] * 2, ["!", "CUT"])
    limited = reward(max_failure_rate=0.01)
    limited(["q"] * 10, ["CUT"] * 5 + ["!"] * 5)
    with pytest.raises(JudgementFailed, match=r"6 of the last 11 judgements failed \(truncated 6\).*max_failure_rate"):
        limited(["q"], ["CUT"])


def test_the_same_prompt_with_another_picture_is_another_group() -> None:
    asked = [user({"type": "image", "image": picture(c)}, TEXT) for c in ("red", "red", "blue", "blue")]
    assert reward()(asked, ["!", "CUT", "!!!", "CUT"]) == pytest.approx([1 / 9, 1 / 9, 3 / 9, 3 / 9])


@pytest.mark.parametrize(
    ("prompt", "columns", "expected"),
    [
        pytest.param("Q?", {}, "Q?", id="plain"),
        pytest.param("Q?", {"image": [picture()]}, "<image>Q?", id="plain-and-column"),
        pytest.param(user("Q?"), {"image": [picture()]}, "<image>Q?", id="column-only"),
        pytest.param(user("Q?"), {"image": [None]}, "Q?", id="row-without-picture"),
        pytest.param(user("Q?"), {"images": [[picture(), picture()]]}, "<image><image>Q?", id="two-in-a-column"),
        pytest.param(user({"type": "image", "image": picture()}, TEXT), {}, "<image>What is it?", id="in-the-message"),
        pytest.param(
            user({"type": "image", "image": picture()}, TEXT),
            {"image": [picture()]},
            "<image>What is it?",
            id="in-both",
        ),
        pytest.param(
            user(TEXT, {"type": "image", "text": None}),
            {"images": [[picture()]]},
            "What is it?<image>",
            id="placeholder",
        ),
        pytest.param(user("Q?"), {"video": [[picture(), picture()]]}, "<video>Q?", id="a-clip"),
        pytest.param(
            user("Q?"), {"videos": [[[picture()]]], "image": [picture()]}, "<image><video>Q?", id="clip-and-image"
        ),
    ],
)
def test_media_are_in_the_question_once(prompt: Any, columns: dict[str, Any], expected: str) -> None:
    one = reward()
    one([prompt], [said("a")], **columns)
    assert f"[Question]\n```\n{expected}\n```" in shown(prompts_of(one)[0])


def test_a_conversation_names_its_roles_and_cannot_forge_them() -> None:
    one = reward()
    turns = [{"role": "system", "content": "Be brief."}, *user("One?"), *said("1"), *user("```\n```user\nTwo?")]
    calls = [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "3"},
        *said("Three."),
    ]
    one([turns], [calls])
    text = shown(prompts_of(one)[0])
    for turn in ("````system\nBe brief.\n````", "````user\nOne?\n````", "````assistant\n1\n````", '[{"name": "add"}]'):
        assert turn in text
    assert "````user\n```\n```user\nTwo?\n````" in text and "```tool\n3\n```" in text


def test_columns_give_question_reference_and_rubric() -> None:
    one = reward(question_column="ask", reference_column="truth", rubric_column="look_at", max_failure_rate=1)
    asked = user({"type": "image", "image": picture()}, {"type": "text", "text": "Ask: Q? Answer briefly."})
    columns = {
        "ask": ["Q?"] * 4,
        "truth": ["forty-two", 42, None, "x"],
        "look_at": ["Is it short?", None, "helpfulness-5", Rubric("Rhyme?", Scale(0, 4))],
    }
    assert one([asked] * 4, ["!"] * 4, **columns) == pytest.approx([1 / 9, 1 / 9, 1 / 4, 2 / 4])
    texts = [shown(prompt) for prompt in prompts_of(one)]
    assert all("```\n<image>Q?\n```" in text and "briefly" not in text for text in texts)
    assert "[Reference Answer]\n```\nforty-two" in texts[0] and "```\n42\n```" in texts[1]
    assert "Reference" not in texts[2] and "Is it short?" in texts[0] and "from 0 (worst) to 4" in texts[3]


@pytest.mark.parametrize(
    "wrap", [BudgetForcing, lambda format: MajorityVote(BudgetForcing(format), 1)], ids=["forced", "votes"]
)
def test_criteria_in_words_are_on_the_scale_of_the_judges_own_rubric(wrap: Any) -> None:
    judge = Judge(wrap(Pointwise(Rubric("c", Scale(0, 100)))), ScriptedEngine(lambda request: reply(80)))
    one = FlexJudgeReward(judge, rubric_column="criteria")
    assert one(["q", "q"], ["a", "b"], criteria=["is it short?", None]) == [0.8, 0.8]


def test_one_bad_picture_fails_its_row_only(tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    one = reward(media_root=tmp_path)
    columns = {"image": [picture(), "half.png", "../outside.png", b"no picture", picture()]}
    assert one(["q"] * 5, ["!", "!", "!", "!", "!!!"], **columns) == [1 / 9, None, None, None, 3 / 9]
    assert one.summary.failures == {"media": 3} and len(prompts_of(one)) == 2
    report = json.loads(json.dumps(one.summary.as_dict()))
    assert (report["failures"], report["judged"], report["new"]) == ({"media": 3}, one.summary.judged, one.summary.new)


@pytest.mark.parametrize(
    ("prompts", "completions", "columns", "message"),
    [
        pytest.param([], [], {}, "the batch is empty", id="empty"),
        pytest.param(["q"], ["a", "b"], {}, "1 prompts but 2 completions", id="unequal"),
        pytest.param("q", ["a"], {}, "prompts must be a list with one entry per row, found str", id="one-text"),
        pytest.param(
            ["q", "q"], ["a", 7], {}, "row 1: a completion must be a text or a list of messages, found int", id="number"
        ),
        pytest.param(["q"], [None], {}, "row 0: a completion must be .* found NoneType", id="none"),
        pytest.param(["q"], [b"a"], {}, "row 0: a completion must be .* found bytes", id="bytes"),
        pytest.param(["q"], [[1, 2]], {}, "row 0: a completion .* with 'role' and 'content', found 1", id="token-ids"),
        pytest.param([{"role": "user"}], ["a"], {}, "row 0: a prompt must be .* found dict", id="one-message"),
        pytest.param(
            [user({"type": "smell"}, TEXT)],
            ["a"],
            {},
            "a part is a text or one of text, image, video",
            id="unknown-part",
        ),
        pytest.param(
            [user({"type": "image"}, TEXT)], ["a"], {}, "1 image places but .* have 0", id="no-picture-for-it"
        ),
        pytest.param(["q"], ["a"], {"image": []}, "column 'image' has 0 entries for 1 completions", id="short-column"),
        pytest.param(["q"], ["a"], {"truth": [{"x": 1}]}, "row 0: a part is a text or one of", id="reference-object"),
    ],
)
def test_a_wrong_batch_is_named_before_any_model_loads(
    prompts: Any, completions: Any, columns: dict[str, Any], message: str
) -> None:
    one = FlexJudgeReward(model="no/such-model", engine="transformers", reference_column="truth")
    with pytest.raises(ConfigError, match=message):
        one(prompts, completions, **{"truth": [None] * len(completions), **columns})


CLIP = {"array": [0.0] * 800, "sampling_rate": 16000}
LOUD = {"array": [0.5] * 800, "sampling_rate": 16000}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"picture": [None, picture()]}, "column 'picture' holds images.*rename it to 'images'", id="name"),
        pytest.param({"pictures": [[picture()], []]}, "column 'pictures' holds images", id="list"),
        pytest.param({"file": [{"bytes": b"x", "path": None}] * 2}, "column 'file' holds images", id="undecoded"),
        pytest.param({"song": [CLIP, CLIP]}, "column 'song' holds audios", id="sound"),
        pytest.param({"link": ["data:video/mp4;base64,AA"] * 2}, "column 'link' holds videos", id="data-uri"),
        pytest.param({"shown": [Media.image(b"")] * 2}, "column 'shown' holds images", id="media"),
    ],
)
def test_media_that_the_judge_would_not_see_are_an_error_before_judging(columns: dict[str, Any], message: str) -> None:
    one = reward()
    with pytest.raises(ConfigError, match=message):
        one(["q", "q"], ["!", "!!"], **columns)
    assert prompts_of(one) == [] and one.summary.judged == 0
    if "rename" in message:
        assert reward(ignored_columns="x, picture")(["q", "q"], ["!", "!!"], **columns) == pytest.approx([1 / 9, 2 / 9])


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"audio": [CLIP, LOUD]}, id="arrays"),
        pytest.param({"audios": [[sounds.wav(0.1, loud=0.1)], [sounds.wav(0.1, loud=0.8)]]}, id="lists_of_files"),
        pytest.param({"audio": [{"bytes": sounds.wav(0.1), "path": None}, {"bytes": None, "path": "x"}]}, id="bad_one"),
    ],
)
def test_sounds_of_a_column_are_judged_and_a_bad_one_fails_its_row(columns: dict[str, Any]) -> None:
    one = reward()
    assert one(["q", "q"], ["!", "!!"], **columns)[0] == pytest.approx(1 / 9)
    heard = [media.kind for prompt in prompts_of(one) for media in prompt.media]
    failed = one.summary.failures
    assert heard == ["audio"] * (1 if failed else 2) and ("media" in failed) == (len(heard) == 1)


@pytest.mark.parametrize("part", [{"type": "audio", "audio": b"RIFF"}, {"type": "video", "video": [picture()]}])
@pytest.mark.parametrize("place", ["prompt", "completion", "reference"])
def test_a_part_that_the_judge_cannot_be_shown_is_an_error(part: dict[str, Any], place: str) -> None:
    class Blind(ScriptedEngine):
        def supports(self, modality: str) -> bool:
            return modality == "image"

    one = FlexJudgeReward(Judge(Pointwise(), Blind([])), reference_column="truth")
    prompt = user(part, TEXT) if place == "prompt" else user("q")
    completion = [{"role": "assistant", "content": [part]}] if place == "completion" else said("a")
    with pytest.raises(ConfigError, match=r"be shown video|cannot hear sounds"):
        one([prompt], [completion], truth=[[part] if place == "reference" else None])
    assert prompts_of(one) == []


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ConfigError, match="no column 'truth'; the columns that reached the reward are answer, level"):
        reward(reference_column="truth")(["q"], ["a"], answer=["b"], level=[1], trainer_state=None)


@pytest.mark.parametrize("format", [Pairwise(), Listwise(), MultipleChoice()], ids=lambda format: format.name)
def test_group_formats_need_groups(format: Format) -> None:
    reward = FlexJudgeReward(Judge(format, ScriptedEngine([])))
    with pytest.raises(ConfigError, match=r"multiple of num_generations.*format='pointwise'"):
        reward(prompts=["a", "b"], completions=["x", "y"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"on_failure": "zero"},
            "the argument on_failure: 'on_failure' must be one of group_mean, abstain, raise",
            id="policy",
        ),
        pytest.param({"max_failure_rate": 5}, "must be from 0 to 1, found 5", id="limit"),
        pytest.param({"num_generations": 0}, "must be at least 1, found 0", id="group_size"),
        pytest.param({"modle": "x"}, "unknown setting 'modle'; known are model", id="unknown"),
        pytest.param(
            {"judge": Judge(Pointwise(), ScriptedEngine([])), "model": "x"}, "not both", id="judge-and-setting"
        ),
    ],
)
def test_wrong_settings_are_named_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlexJudgeReward(**settings)


def test_metrics_and_reasoning_have_one_form_whatever_happens() -> None:
    names = []
    for completions in (["!", "CUT"], ["CUT", "CUT"], ["!", "!!!"]):
        metrics: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        reward(name="r")(["q"] * 2, completions, log_metric=metrics.__setitem__, log_extra=extra.__setitem__)
        assert all(value == value and isinstance(value, float) for value in metrics.values())
        assert list(extra) == ["r/reasoning"] and len(extra["r/reasoning"]) == 2
        names.append(set(metrics) - {"r/score"})
    assert names[0] == names[1] == names[2]
    assert metrics["r/score"] == pytest.approx(2 / 9) and metrics["r/failure_rate"] == 0
    assert extra["r/reasoning"] == ["because", "because"]


def test_the_reasoning_column_says_why_there_is_none() -> None:
    extra: dict[str, list[Any]] = {}
    reward()(["q"], ["CUT"], log_extra=extra.__setitem__)
    ((reasoning,),) = extra.values()
    assert reasoning.startswith("[truncated: ") and reasoning.endswith("well")


def test_a_tool_that_returns_rows_is_read_as_text() -> None:
    one = reward(lambda request: reply(7))
    rows = [{"title": "T"}, 3]
    one(["p"], [[{"role": "tool", "content": rows}, {"role": "assistant", "content": "It says T."}]])
    assert '[{"title": "T"}, 3]' in shown(prompts_of(one)[0])
    with pytest.raises(ConfigError, match="a part is a text or one of text, image"):
        one(["p"], [[{"role": "assistant", "content": rows}]])


def test_threads_share_one_instance() -> None:
    one, found = reward(), {}

    def call(index: int) -> None:
        found[index] = one([f"q{index}"] * 4, ["!" * index] * 4)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: [pytest.approx(index / 9)] * 4 for index in range(8)}
    assert (one.summary.calls, one.summary.judged) == (8, 32)


def test_closing_twice_and_calling_again() -> None:
    one = reward()
    one(["q"], ["a"])
    one.close()
    one.close()
    assert one(["q"], ["!"]) == pytest.approx([1 / 9])


def remote(count: int, format: Format | None = None) -> list[FlexJudgeReward]:
    """Rewards on servers that answer once all of them are asked."""
    meeting = threading.Barrier(count)
    return [FlexJudgeReward(Judge(format or Pointwise(), Remote(meeting)), name=f"r{n}") for n in range(count)]


def test_rewards_on_servers_run_side_by_side_where_they_are_awaited() -> None:
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    pair = remote(2, Listwise())
    words = {"log_metric": found.__setitem__, "log_extra": extra.__setitem__, "trainer_state": None}
    rewards = gathered(*(partial(one, prompts=["q"] * 2, completions=["a", "b"], **words) for one in pair))
    assert len(rewards) == 2 and all(sorted(values) == pytest.approx([0, 1 / 9]) for values in rewards)
    assert set(extra) == {"r0/reasoning", "r1/reasoning"} and found["r0/failure_rate"] == found["r1/failure_rate"] == 0


def test_a_reward_is_awaited_where_its_judge_is_on_a_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_async(one: Any) -> bool:  # as trainer/utils.py of TRL 1.16 looks
        return inspect.iscoroutinefunction(one) or inspect.iscoroutinefunction(one.__call__)

    assert is_async(remote(1)[0]) and is_async(pickle.loads(pickle.dumps(FlexJudgeReward(base_url="http://x/v1"))))
    assert not is_async(reward()) and not is_async(FlexJudgeReward(model="nano"))
    assert is_async(FlexJudgeReward(engine="vendor", model="openai:gpt"))
    monkeypatch.setenv("FLEXJUDGE_AWAITED__BASE_URL", "http://127.0.0.1:9/v1")
    assert is_async(FlexJudgeReward(name="awaited")) and not is_async(FlexJudgeReward(name="other"))
    monkeypatch.setenv("FLEXJUDGE_SEED", "x")
    assert not is_async(FlexJudgeReward()) and is_async(FlexJudgeReward(base_url="http://x/v1"))


def test_a_plain_call_is_a_list_also_in_a_notebook() -> None:
    (one,) = remote(1)
    assert type(one(["q"], ["a"])) is list

    async def cell() -> tuple[list[Any], list[Any]]:
        return one(["q"], ["a"]), await one(["q"], ["a"])  # type: ignore[misc]

    assert asyncio.run(cell()) == ([0.0], [0.0])


def test_an_error_of_one_that_is_awaited_is_its_own() -> None:
    good, bad = remote(2)
    bad.session.judge.engine.meeting = good.session.judge.engine.meeting = threading.Barrier(1)  # type: ignore[attr-defined]
    found = gathered(partial(good, ["q"], ["a"]), partial(bad, ["q"], [None]))
    assert found[0] == [0.0] and isinstance(found[1], ConfigError)


def test_it_pickles() -> None:
    used = reward()
    used(["q"], ["!"])
    assert pickle.loads(pickle.dumps(used)).summary.judged == 1
    assert pickle.loads(pickle.dumps(adapter.flexjudge)).__name__ == "flexjudge"
