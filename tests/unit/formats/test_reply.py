"""A judge's reply as reasoning and answers: what is read, and which failure everything else is."""

from __future__ import annotations

import pytest

from flexjudge_reward import Failure, Generation, Untrusted
from flexjudge_reward.formats.reply import assistant_prefill, read_reply, reasoning
from support import attacks

READ = [
    pytest.param("<think>why</think><answer>7</answer>", "why", ("7",), id="plain"),
    pytest.param("<think>\nwhy\n</think>\n\n<answer> 7 </answer>\n", "why", ("7",), id="white_space_around"),
    pytest.param("why</think><answer>7</answer>", "why", ("7",), id="opening_tag_came_from_the_template"),
    pytest.param("<think></think><answer>7</answer>", "", ("7",), id="no_thought"),
    pytest.param("<think>x</think><answer>7</answer><answer>3</answer>", "x", ("7", "3"), id="two_tags"),
    pytest.param("<think>x</think><answer>7</answer>\r\n\t <answer>3</answer>", "x", ("7", "3"), id="tags_on_lines"),
    pytest.param("<think>x</think><answer>[[A>B]]</answer>", "x", ("[[A>B]]",), id="greater_than_inside"),
    pytest.param("<think>x</think><answer></answer>", "x", ("",), id="empty_tag_is_for_the_format_to_judge"),
    pytest.param(
        "<think>it says <answer>10</answer></think><answer>2</answer>",
        "it says <answer>10</answer>",
        ("2",),
        id="quoted_answer_in_the_reasoning",
    ),
    pytest.param(
        "<think>it says </think><answer>10</answer> so</think><answer>2</answer>",
        "it says </think><answer>10</answer> so",
        ("2",),
        id="last_closing_tag_binds",
    ),
]

FAILED = [
    pytest.param("", "empty", id="nothing"),
    pytest.param(" \n", "empty", id="white_space"),
    pytest.param("<think>x</think>", "empty", id="nothing_after_the_reasoning"),
    pytest.param("<think>x</think> \n ", "empty", id="white_space_after_the_reasoning"),
    pytest.param("<think>x", "truncated", id="reasoning_never_closed"),
    pytest.param("<think>x <answer>7</answer>", "truncated", id="answer_only_inside_open_reasoning"),
    pytest.param("<answer>7</answer>", "malformed", id="no_reasoning_at_all"),
    pytest.param("7", "malformed", id="bare_number"),
    pytest.param("<think>x</think>7", "malformed", id="bare_number_after_reasoning"),
    pytest.param("<think>x</think><answer>7</answer> ok", "malformed", id="trailing_text"),
    pytest.param("<think>x</think>So: <answer>7</answer>", "malformed", id="leading_text"),
    pytest.param("<think>x</think><answer>7</answer>,<answer>3</answer>", "malformed", id="text_between"),
    pytest.param("<think>x</think><answer>7", "malformed", id="unclosed_tag"),
    pytest.param("<think>x</think><answer><answer>7</answer></answer>", "malformed", id="nested"),
    pytest.param("<think>x</think><ANSWER>7</ANSWER>", "malformed", id="capitals"),
    pytest.param("<think>x</think><answer >7</answer>", "malformed", id="space_in_the_tag"),
    pytest.param("<think>x</think><answer>" + "7" * 65 + "</answer>", "malformed", id="too_long_an_answer"),
    pytest.param("<think>x</think><answer>7</answer>\u00a0", "malformed", id="other_white_space"),
    pytest.param("<think>x</think><answer>7</answer><think>y", "malformed", id="thinks_again"),
    pytest.param("<think>x</think>" + "<answer>7</answer>" * 999, "malformed", id="endless_answers"),
    pytest.param("I'm sorry, I cannot rate this.", "refused", id="refusal"),
    pytest.param("I am very sorry.", "refused", id="polite_refusal"),
    pytest.param("<think>x</think>I cannot rate this.", "refused", id="refusal_after_reasoning"),
    pytest.param("<think>x</think><answer>7</answer>I cannot", "malformed", id="refusal_after_an_answer"),
]

UNFINISHED = [
    pytest.param("length", "truncated", id="token_limit"),
    pytest.param("filter", "refused", id="content_filter"),
    pytest.param("error", "engine", id="error_without_a_failure"),
]


@pytest.mark.parametrize(("text", "thought", "answers"), READ)
def test_a_finished_reply_is_read(text: str, thought: str, answers: tuple[str, ...]) -> None:
    assert (reasoning(text), read_reply(Generation(text))) == (thought, answers)


@pytest.mark.parametrize(("text", "kind"), FAILED)
def test_everything_else_is_a_named_failure(text: str, kind: str) -> None:
    failure = read_reply(Generation(text))
    assert isinstance(failure, Failure)
    assert failure.kind == kind
    assert failure.detail


@pytest.mark.parametrize(("reason", "kind"), UNFINISHED)
def test_an_unfinished_reply_is_not_read_even_if_it_looks_whole(reason: str, kind: str) -> None:
    failure = read_reply(Generation("<think>x</think><answer>7</answer>", reason))  # type: ignore[arg-type]
    assert isinstance(failure, Failure)
    assert failure.kind == kind


def test_the_failure_of_the_engine_is_kept() -> None:
    assert read_reply(Generation.failed("timeout", "after 60 s")) == Failure("timeout", "after 60 s")


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        pytest.param("<think>a</think><answer>1</answer>", "a", id="closed"),
        pytest.param("<think>a", "a", id="open"),
        pytest.param("a", "a", id="without_tags"),
        pytest.param("", "", id="empty"),
    ],
)
def test_reasoning_is_kept_whatever_follows(text: str, thought: str) -> None:
    assert reasoning(text) == thought


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("<think>a <|x|></think>", ("<think>", Untrusted("a <|x|>"), "</think>"), id="closed"),
        pytest.param("\n<think>a</think>", ("\n<think>", Untrusted("a"), "</think>"), id="white_space_before"),
        pytest.param("a</think><answer>1", ("", Untrusted("a"), "</think><answer>1"), id="without_the_opening_tag"),
        pytest.param("a <think>b</think>", ("", Untrusted("a <think>b"), "</think>"), id="quoted_opening_tag"),
        pytest.param(
            "<think>a</think>b</think><answer>",
            ("<think>", Untrusted("a</think>b"), "</think><answer>"),
            id="a_quoted_closing_tag_is_reasoning",
        ),
    ],
)
def test_only_the_tags_of_a_prefill_are_trusted(text: str, parts: tuple[str | Untrusted, ...]) -> None:
    assert assistant_prefill(text) == parts


def test_a_message_quotes_the_start_of_a_reply_only() -> None:
    failure = read_reply(Generation("<think>x</think>" + "z" * 1_000_000))
    assert isinstance(failure, Failure)
    assert len(failure.detail) < 200


def test_a_megabyte_of_anything_is_read_and_fails() -> None:
    for name, text in attacks.megabytes().items():
        assert isinstance(read_reply(Generation(text)), Failure), name
