"""Candidates as whole conversations: the beginning that they share is the prompt, and pairs are written so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import Judge, Media, Pointwise, ScriptedEngine, annotate_file
from flexjudge_reward.data.rows import Row, Rows
from support.images import noise, saved
from support.judging import grade, tags
from support.late import late

datasets = late("datasets")


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, USER, MORE = turn("system", "be short"), turn("user", "0 hi"), turn("user", "0 and then?")
SAID, GOOD, BAD = turn("assistant", "hello"), turn("assistant", "9 a"), turn("assistant", "3 b")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}
TOOL = turn("tool", "7")
PREFERENCES = {"question": ["prompt"], "candidates": ["chosen", "rejected"]}
CHOICES = {"chosen": "9 a", "rejected": "3 b"}
IMPLICIT = {"candidates": ["chosen", "rejected"]}

CASES: dict[str, tuple[dict[str, Any], dict[str, list[str]], list[Any], list[Any], list[Any]]] = {
    "system_turn": ({"question": [SYSTEM, USER], "candidates": ["9 a", "3 b"]}, {}, [SYSTEM, USER], [GOOD], [BAD]),
    "several_turns": (
        {"question": [USER, SAID, MORE], "candidates": [[GOOD], [BAD]]},
        {},
        [USER, SAID, MORE],
        [GOOD],
        [BAD],
    ),
    "prompt_as_text": (
        {"prompt": "0 hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PREFERENCES,
        [USER],
        [GOOD],
        [BAD],
    ),
    "prompt_as_messages": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        PREFERENCES,
        [SYSTEM, USER],
        [GOOD],
        [BAD],
    ),
    "prompt_is_the_last_turn": (
        {"prompt": "0 and then?", "chosen": [USER, SAID, MORE, GOOD], "rejected": [USER, SAID, MORE, BAD]},
        PREFERENCES,
        [USER, SAID, MORE],
        [GOOD],
        [BAD],
    ),
    "prompt_has_a_system_turn_more": (
        {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PREFERENCES,
        [SYSTEM, USER],
        [GOOD],
        [BAD],
    ),
    "no_prompt": (
        {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
        IMPLICIT,
        [SYSTEM, USER],
        [GOOD],
        [BAD],
    ),
    "prompt_is_another_text": (
        {"prompt": "0 hi", "chosen": [MORE, GOOD], "rejected": [MORE, BAD]},
        PREFERENCES,
        [USER, MORE],
        [GOOD],
        [BAD],
    ),
    "beginning_with_a_call": (
        {"prompt": "0 hi", "chosen": [USER, CALL, TOOL, GOOD], "rejected": [USER, CALL, TOOL, BAD]},
        PREFERENCES,
        [USER, CALL, TOOL],
        [GOOD],
        [BAD],
    ),
    "of_unequal_length": (
        {"prompt": "0 hi", "chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, BAD]},
        PREFERENCES,
        [USER],
        [GOOD, MORE, GOOD],
        [BAD],
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "system", "value": "be short"}, {"from": "human", "value": "0 hi"}],
            "chosen": [{"from": "gpt", "value": "9 a"}],
            "rejected": [{"from": "gpt", "value": "3 b"}],
        },
        {"question": ["conversations"], "candidates": ["chosen", "rejected"]},
        [SYSTEM, USER],
        [GOOD],
        [BAD],
    ),
    "lone_messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PREFERENCES, [USER], [GOOD], [BAD]),
    "blanks_at_the_end_of_the_prompt": (
        {"prompt": "0 hi\n", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        PREFERENCES,
        [USER],
        [GOOD],
        [BAD],
    ),
}


def judged(request: Any) -> str:
    texts = [part.text for part in request.prompt.messages[1].parts if hasattr(part, "text")]
    return tags(next(grade(text) for text in reversed(texts) if text[:1].isdigit()))


@pytest.mark.parametrize("stored", ["jsonl", "parquet"])
@pytest.mark.parametrize(("row", "columns", "prompt", "chosen", "rejected"), CASES.values(), ids=CASES)
def test_the_prompt_has_the_shared_beginning(
    tmp_path: Path, stored: str, row: Any, columns: Any, prompt: Any, chosen: Any, rejected: Any
) -> None:
    source = tmp_path / f"in.{stored}"
    if stored == "jsonl":
        source.write_text(json.dumps({"id": 1, **row}) + "\n")
    else:
        datasets.Dataset.from_list([{"id": 1, **row}]).to_parquet(source)
    counts = annotate_file(source, Judge(Pointwise(), ScriptedEngine(judged)), tmp_path / "out.jsonl", columns=columns)
    assert counts["pairs"] == 1
    pair = json.loads((tmp_path / "out.jsonl").read_text())
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("row", "columns", "answer"),
    [
        pytest.param({"messages": [USER, GOOD]}, {"answer": ["messages"]}, ["9 a"], id="messages_alone"),
        pytest.param({"question": "0 hi", "answer": [USER, GOOD]}, {}, ["9 a"], id="prompt_and_whole"),
        pytest.param({"question": [USER], "answer": [USER, GOOD]}, {}, ["9 a"], id="turns_and_whole"),
        pytest.param({"question": "0 hi", "answer": [GOOD]}, {}, ["9 a"], id="completion_alone"),
        pytest.param({"question": "0 hi", "answer": GOOD}, {}, ["9 a"], id="one_message"),
        pytest.param({"question": USER, "answer": GOOD}, {}, ["9 a"], id="one_message_each"),
        pytest.param({"question": "0 hi", "answer": {"from": "gpt", "value": "9 a"}}, {}, ["9 a"], id="llama_factory"),
        pytest.param({"question": "0 hi", "answer": [MORE, GOOD]}, {}, ["user", "assistant"], id="environment_turn"),
        pytest.param(
            {"messages": [USER, CALL, TOOL, GOOD]},
            {"answer": ["messages"]},
            ["assistant", "tool", "assistant"],
            id="with_a_tool",
        ),
    ],
)
def test_one_candidate_may_be_a_whole_conversation(tmp_path: Path, row: Any, columns: Any, answer: list[str]) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = Rows(tmp_path / "in.jsonl", columns=columns).read(lambda row: None)
    assert isinstance(found, Row) and found.example.question == ("0 hi",)
    (candidate,) = found.example.candidates
    roles = [str(part)[3:-1] for part in candidate if str(part)[:3] == "```"]  # turns are enclosed, with their roles
    assert (roles or list(candidate)) == answer


def test_an_image_stays_in_its_place_in_the_shared_beginning(tmp_path: Path) -> None:
    data = saved(noise())
    parts = [{"type": "text", "text": "0 hi"}, {"type": "image", "text": None}]
    beginning = {"role": "user", "content": parts}
    row = {"prompt": "0 hi", "images": [data]}
    row |= {name: [beginning, turn("assistant", [{"type": "text", "text": text}])] for name, text in CHOICES.items()}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "in.parquet")
    (found,) = Rows(tmp_path / "in.parquet", columns=PREFERENCES).read(lambda row: None)
    assert isinstance(found, Row)
    assert found.example.question == ("0 hi", Media.image(noise())) and found.example.candidates == (("9 a",), ("3 b",))
    annotate_file(
        tmp_path / "in.parquet",
        Judge(Pointwise(), ScriptedEngine(judged)),
        tmp_path / "out.jsonl",
        columns=PREFERENCES,
    )
    pair = json.loads((tmp_path / "out.jsonl").read_text())
    assert [part["type"] for part in pair["prompt"][0]["content"]] == ["text", "image"] and len(pair["images"]) == 1


def test_what_tools_get_and_return_is_no_media(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "open", "arguments": {"path": "a.txt"}}]}
    results = [turn("tool", [{"path": "a.txt"}]), turn("tool", [{"bytes": "b", "path": "c"}])]
    candidates = [[call, *results, GOOD], [BAD]]
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": 1, "question": "0 q", "candidates": candidates}) + "\n")
    annotate_file(tmp_path / "in.jsonl", Judge(Pointwise(), ScriptedEngine(judged)), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["chosen"] == candidates[0]


def test_equal_conversations_are_identical_and_not_empty(tmp_path: Path) -> None:
    row = {"id": 1, "question": "0 hi", "candidates": [[USER, GOOD], [USER, GOOD], [USER, BAD]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    judge = Judge(Pointwise(), ScriptedEngine(judged))
    counts = annotate_file(tmp_path / "in.jsonl", judge, tmp_path / "out.jsonl", which="all")
    assert (counts["pairs"], counts["identical"]) == (2, 1)
    pair = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ([USER], [GOOD], [BAD])
