"""Which part of a completion is judged: the same for files and trainers."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Judge,
    Listwise,
    Media,
    Pairwise,
    Pointwise,
    ScriptedEngine,
    annotate_file,
    best_of_n,
    score_file,
)
from flexjudge_reward.data.completion import Completion
from flexjudge_reward.data.messages import Columns, examples
from flexjudge_reward.data.rows import Row, Rows
from flexjudge_reward.types import Content, Unfinished
from support.images import noise
from support.judging import scores

IMAGE = Media.image(noise())


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def from_trainer(completion: Any, shown: Completion = "answer", prompt: Any = "q") -> Content:
    (row,) = examples([prompt], [completion], {}, Columns(completion=shown))
    return row.candidates[0]


def from_file(folder: Path, completion: Any, shown: Completion = "answer", prompt: Any = "q") -> Content:
    (folder / "in.jsonl").write_text(json.dumps({"question": prompt, "answer": completion}) + "\n")
    (row,) = Rows(folder / "in.jsonl", completion=shown, strict=True).read(lambda row: None)
    assert isinstance(row, Row)
    return row.example.candidates[0]


CALL = [{"name": "look"}]
THOUGHTS = {
    "none": ("a", "a"),
    "tags": ("<think>hm</think>\n\na", "a"),
    "blanks_before": ("\n <think>hm</think>a", "a"),
    "opened_by_the_prompt": ("hm\n</think>\na", "a"),
    "longer_name": ("<thinking>hm</thinking>a", "a"),
    "mistral": ("[THINK]hm[/THINK]a", "a"),
    "two": ("<think>hm</think><think>and</think>a", "a"),
    "capitals": ("<Think>hm</Think>a", "a"),
    "exaone": ("<thought>\nhm\n</thought>\n\na", "a"),
    "seed": ("<seed:think>hm</seed:think>a", "a"),
    "kimi": ("◁think▷hm◁/think▷a", "a"),
    "gemma": ("<|channel>thought\nhm<channel|>a", "a"),
    "cohere": ("<|START_THINKING|>hm<|END_THINKING|>a", "a"),
    "gpt_oss": ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>a", "a"),
    "gpt_oss_without_control_tokens": ("analysisThe user asks.\n\nassistantfinala", "a"),
    "a_word_and_no_channel": ("analysis of variance", "analysis of variance"),
    "another_tag": ("<b>hm</b>a", "<b>hm</b>a"),
    "an_answer_in_a_tag": ("<analysis>a</analysis>\n", "<analysis>a</analysis>\n"),
    "an_answer_in_a_tag_behind_a_thought": ("<think>hm</think><thought>a</thought>", "<thought>a</thought>"),
    "an_answer_in_tags": ("<swot_analysis>a</swot_analysis><b/>", "<swot_analysis>a</swot_analysis><b/>"),
    "a_tag_for_the_thought": ("<reasoning>hm</reasoning><answer>a</answer>", "<answer>a</answer>"),
    "gpt_oss_that_names_a_tag": ("analysisHm.assistantfinala </think> b", "a </think> b"),
    "empty": ("<think>\n\n</think>\n\na", "a"),
    "later_in_the_answer": ("a <think>not at the beginning</think> b", "a <think>not at the beginning</think> b"),
    "quoted_in_the_thought": ("<think>a <think> tag</think>a", "a"),
    "no_answer": ("<think>hm</think>", ""),
    "message": ([said("<think>hm</think>a")], "a"),
    "field": ([said("a", reasoning_content="hm")], "a"),
    "other_field": ([said("a", thinking="hm")], "a"),
    "part": ([said([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}])], "a"),
    "part_with_parts": (
        [said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "a"}])],
        "a",
    ),
    "over_several_parts": ([said(["<think>hm", "so</think>a"])], "a"),
    "of_each_turn": (
        [said("<think>1</think>look", tool_calls=CALL), {"role": "tool", "content": "3"}, said("<think>2</think>a")],
        '```assistant\nlook\n[{"name": "look"}]\n```\n```tool\n3\n```\n```assistant\na\n```\n',
    ),
    "left_open_before_a_tool": (
        [said("<think>1", tool_calls=CALL), {"role": "tool", "content": "3"}, said("a")],
        '```assistant\n[{"name": "look"}]\n```\n```tool\n3\n```\n```assistant\na\n```\n',
    ),
    "an_old_call": (
        [said(None, function_call={"name": "f"}), {"role": "function", "name": "f", "content": 42}, said("a")],
        '```assistant\n{"name": "f"}\n```\n```function\n42\n```\n```assistant\na\n```\n',
    ),
    "a_tool_that_returns_an_object": (
        [said("", tool_calls=CALL), {"role": "tool", "content": {"x": 1}}, said("a")],
        '```assistant\n[{"name": "look"}]\n```\n```tool\n{"x": 1}\n```\n```assistant\na\n```\n',
    ),
    "a_tool_that_returns_rows_with_addresses": (
        [{"role": "tool", "content": [{"type": "product", "image_url": "https://x/y.png"}]}, said("a")],
        '```tool\n[{"type": "product", "image_url": "https://x/y.png"}]\n```\n```assistant\na\n```\n',
    ),
    "calls_as_parts": (
        [said([{"type": "tool_use", "name": "f"}]), {"role": "user", "content": [{"type": "tool_result"}]}, said("a")],
        '```assistant\n{"type": "tool_use", "name": "f"}\n```\n```user\n{"type": "tool_result"}\n```\n'
        "```assistant\na\n```\n",
    ),
    "a_refusal": ([said(None, refusal="I will not.")], "I will not."),
    "tags_of_a_tool_stay": (
        [{"role": "tool", "content": "<think>3</think>"}, said("a")],
        "```tool\n<think>3</think>\n```\n```assistant\na\n```\n",
    ),
}


@pytest.mark.parametrize(("completion", "answer"), THOUGHTS.values(), ids=THOUGHTS)
def test_the_thought_of_the_policy_is_not_shown(tmp_path: Path, completion: Any, answer: str) -> None:
    for found in (from_trainer(completion), from_file(tmp_path, completion)):
        assert "".join(map(str, found)) == answer


UNFINISHED = {
    "tag": "<think>hm",
    "tag_alone": "<think>",
    "blanks_before": "\n<think>\nhm",
    "mistral": "[THINK]hm",
    "seed": "<seed:think>hm",
    "gpt_oss": "<|channel|>analysis<|message|>hm",
    "other_closing": "<think>hm</thinking>a",
    "second_thought": "<think>hm</think><think>and",
    "cut_in_the_closing_tag": "<think>hm</thi",
    "message": [said("<think>hm")],
    "field_without_content": [said("", reasoning_content="hm")],
    "part_alone": [said([{"type": "thinking", "thinking": "hm"}])],
    "last_of_several_turns": [said("<think>1</think>a"), {"role": "user", "content": "b?"}, said("<think>2")],
}


@pytest.mark.parametrize("completion", UNFINISHED.values(), ids=UNFINISHED)
def test_a_thought_that_never_closes_is_an_outcome_of_its_own(tmp_path: Path, completion: Any) -> None:
    for found in (from_trainer(completion), from_file(tmp_path, completion)):
        (part,) = found
        assert isinstance(part, Unfinished) and part.failure.kind == "unfinished"
        assert "inside its reasoning" in part.failure.detail


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("Q? <think>\n", id="text"),
        pytest.param([{"role": "user", "content": "Q?"}, said("<think>")], id="prefill"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_seen_without_its_tag(tmp_path: Path, prompt: Any) -> None:
    for read in (from_trainer, lambda *arguments: from_file(tmp_path, *arguments)):
        assert isinstance(read("hm", "answer", prompt)[0], Unfinished)
        assert read("hm</think>a", "answer", prompt) == ("a",)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        pytest.param("<thinking>", "</thinking>", id="thinking"),
        pytest.param("[THINK]", "[/THINK]", id="mistral"),
        pytest.param("◁think▷", "◁/think▷", id="kimi"),
        pytest.param("<seed:think>", "</seed:think>", id="seed"),
        pytest.param("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", id="gpt_oss"),
    ],
)
def test_a_thought_that_the_prompt_opens_ends_as_it_began(opening: str, closing: str) -> None:
    assert from_trainer(f"hm{closing}a", prompt=f"Q? {opening}") == ("a",)
    assert isinstance(from_trainer("hm", prompt=f"Q? {opening}")[0], Unfinished)


def test_a_prompt_that_names_a_tag_of_answers_opens_no_thought() -> None:
    assert from_trainer("a", prompt="Answer in <analysis>") == ("a",)


@pytest.mark.parametrize(
    ("completion", "shown"),
    [
        pytest.param("<think>hm</think>a", "<think>hm</think>a", id="tags"),
        pytest.param("<think>hm", "<think>hm", id="unfinished"),
        pytest.param([said("a", reasoning_content="hm")], "<think>\nhm\n</think>\n\na", id="field"),
        pytest.param([said("a", reasoning="hm", reasoning_content="hm")], "<think>\nhm\n</think>\n\na", id="two_names"),
        pytest.param([said([{"type": "thinking", "thinking": "hm"}, "a"])], "<think>\nhm\n</think>\n\na", id="part"),
        pytest.param("a", "a", id="none"),
    ],
)
def test_all_of_a_completion_is_shown_if_the_setting_says_so(tmp_path: Path, completion: Any, shown: str) -> None:
    for found in (from_trainer(completion, "all"), from_file(tmp_path, completion, "all")):
        assert "".join(map(str, found)) == shown


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<think></think>" * 60_000 + "a", id="thoughts"),
        pytest.param(" " * 900_000 + "a", id="blanks"),
        pytest.param("<think>" * 120_000 + "</think>a", id="openings"),
        pytest.param("</think>" * 100_000 + "a", id="closings"),
        pytest.param([said(["<think>"] * 20_000 + ["</think>a"])], id="parts"),
        pytest.param([said(["<think></think>", " "] * 20_000 + ["a"])], id="blank_parts"),
    ],
)
def test_a_hostile_completion_is_read_in_a_moment(text: Any) -> None:
    started = time.process_time()
    assert "".join(map(str, from_trainer(text))).endswith("a")
    assert time.process_time() - started < 5


def test_an_unfinished_thought_survives_the_way_between_processes() -> None:
    sent = pickle.loads(pickle.dumps(from_trainer("<think>hm")[0]))
    assert isinstance(sent, Unfinished) and sent.failure.kind == "unfinished"


def test_media_of_an_answer_stay() -> None:
    assert from_trainer([said(["<think>hm</think>see ", IMAGE])]) == ("see ", IMAGE)
    assert from_trainer([said([IMAGE, "<think>no thought</think>"])]) == (IMAGE, "<think>no thought</think>")


# ---------------------------------------------------------------- what becomes of them


def reward(*formats: Any, **settings: Any) -> FlexJudgeReward:
    return FlexJudgeReward(Judge(formats[0] if formats else Pointwise(), ScriptedEngine(scores)), **settings)


def asked(one: FlexJudgeReward) -> int:
    engine = one.session.judge.engine
    assert isinstance(engine, ScriptedEngine)
    return len(engine.requests)


@pytest.mark.parametrize(
    ("format", "requests"),
    [
        pytest.param(Pointwise(), 2, id="alone"),
        pytest.param(Listwise(), 1, id="list"),
        pytest.param(Pairwise(), 1, id="pair"),
    ],
)
def test_an_unfinished_thought_costs_nothing_and_its_siblings_are_judged(format: Any, requests: int) -> None:
    one = reward(format, max_failure_rate=0)
    logged: dict[str, Any] = {}
    found = one(["q"] * 3, ["<think>h</think>9 a", "<think>h", "3 b"], log_extra=logged.__setitem__)
    assert asked(one) == requests and found[0] is not None and found[2] is not None and found[0] > found[2]
    assert one.summary.failures == {"unfinished": 1}
    ((_, reasoning, _),) = logged.values()
    assert reasoning.startswith("[unfinished: the completion ended inside its reasoning")


@pytest.mark.parametrize("format", [Pointwise(), Listwise(), Pairwise()], ids=["alone", "list", "pair"])
def test_a_group_of_unfinished_thoughts_asks_nothing(format: Any) -> None:
    one = reward(format)
    assert one(["q"] * 3, ["<think>h"] * 3) == [0.0] * 3 and not asked(one)
    assert one.summary.failures == {"unfinished": 3}


def test_many_unfinished_thoughts_do_not_stop_a_training() -> None:
    one = reward(max_failure_rate=0)
    for _ in range(30):
        one(["q"] * 4, ["<think>h"] * 3 + ["9 a"])
    assert one.summary.failures == {"unfinished": 90}


def test_the_setting_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    one = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(lambda request: "<think></think><answer>7</answer>")))
    one(["q"], ["<think>secret</think>a"])
    monkeypatch.setenv("FLEXJUDGE_COMPLETION", "all")
    other = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(lambda request: "<think></think><answer>7</answer>")))
    other(["q"], ["<think>secret</think>a"])
    shown = ["secret" in str(reward.session.judge.engine.prompts) for reward in (one, other)]  # type: ignore[attr-defined]
    assert shown == [False, True]
    with pytest.raises(ConfigError, match="'completion' must be one of answer, all, found 'half'"):
        FlexJudgeReward(completion="half")


def test_files_skip_what_is_unfinished_and_write_completions_whole(tmp_path: Path) -> None:
    candidates = ["<think>x</think>9 a", "<think>y</think>3 b", "<think>z"]
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": 1, "question": "q", "candidates": candidates}) + "\n")
    judge = Judge(Pointwise(), ScriptedEngine(scores))
    score_file(tmp_path / "in.jsonl", judge, tmp_path / "scores.jsonl")
    (row,) = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert row["scores"] == [9, 3, None] and row["failures"][2]["kind"] == "unfinished"
    counts = annotate_file(tmp_path / "in.jsonl", judge, tmp_path / "pairs.jsonl", which="all")
    (pair,) = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    assert pair["chosen"][0]["content"] == candidates[0] and counts["unfinished"] == 2
    with pytest.raises(ConfigError, match="completion is one of answer, all, found 'none'"):
        Rows(tmp_path / "in.jsonl", completion="none")  # type: ignore[typeddict-item]


def test_what_a_program_asks_is_judged_as_it_is() -> None:
    judge = Judge(Pointwise(), engine := ScriptedEngine(lambda request: "<think></think><answer>7</answer>"))
    best_of_n("q", ["<think>kept</think>a", "b"], judge)
    judge([Example("q", ["<think>open"])])
    assert "kept" in str(engine.prompts) and len(engine.prompts) == 3
