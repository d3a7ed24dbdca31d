"""The fuzz front: drawn inputs against the promises, for a moment in `make test`, for FUZZ_SECONDS in `make fuzz`.

What is found becomes a named case in the tests of the module that it was found in.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexjudge_reward import (
    BudgetForcing,
    ConfigError,
    Example,
    ExpectedScore,
    Failure,
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    MajorityVote,
    Media,
    MediaError,
    MultipleChoice,
    Pairwise,
    PairwiseVerdict,
    Pointwise,
    PositionSwap,
    Request,
    Sampling,
    ScriptedEngine,
    for_group_size,
    judge_groups,
)
from flexjudge_reward.engines import answers
from flexjudge_reward.engines.answers import Passing, Refusal, Reply
from flexjudge_reward.engines.chat_codec import ChatCodec
from flexjudge_reward.engines.dialect import Dialect
from flexjudge_reward.offline.score import score_file
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, TAGS, neutralise
from support import strategies
from support.images import noise
from support.judging import candidates, tags

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
_checks: list[str] = []


def fuzz(**drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """A check of drawn inputs as a test: a few, the same each time, or as many as fit into its share of the time."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        _checks.append(check.__name__)
        limits = settings(
            max_examples=500 if SECONDS else 15,
            deadline=None,
            derandomize=not SECONDS,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        once = limits(given(**drawn)(check))

        def test() -> None:
            workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
            end = time.monotonic() + SECONDS * workers / len(_checks)
            once()
            while time.monotonic() < end:
                once()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return pytest.mark.timeout(int(SECONDS) + 120)(test)  # type: ignore[no-any-return]

    return decorate


# ---- replies

SINGLE = [Pointwise(), ExpectedScore(Pointwise()), BudgetForcing(Pointwise()), MajorityVote(Pointwise(), 3)]
SEVERAL = [
    *(Pairwise(), PositionSwap(Pairwise()), PairwiseVerdict(), Listwise(), MultipleChoice()),
    *(ExpectedScore(Listwise()), ExpectedScore(MultipleChoice()), BudgetForcing(Listwise())),
    *(MajorityVote(PositionSwap(PairwiseVerdict()), 3), MajorityVote(Listwise(), 2, "mean")),
]
FORMATS = st.sampled_from([*SINGLE, *map(for_group_size, SEVERAL)])
_GRAMMAR = {
    "numbers": r"-?[0-9]{1,6}(\.[0-9]{1,6})?",
    "letter": r"[A-H]",
    "option": r"\[\[(A>B|B>A|A=B=Good|A=B=Bad)\]\]",
}


def readable(format: Format, reply: Generation) -> bool:
    """Whether a reply is a verdict at all, by a grammar of its own."""
    tail = reply.text.rpartition("</think>")[2]
    inner = rf"<answer>[ \t\r\n]*{_GRAMMAR[format.answers]}[ \t\r\n]*</answer>[ \t\r\n]*"
    finished = reply.failure is None and reply.finish_reason == "stop" and "</think>" in reply.text
    return finished and re.fullmatch(rf"[ \t\r\n]*({inner})+", tail) is not None


def sound(outcome: Any) -> bool:
    """A failure with a kind, or a finite number in [0, 1]."""
    return isinstance(outcome, Failure) or (math.isfinite(outcome) and 0.0 <= outcome <= 1.0)


@fuzz(
    format=st.sampled_from([Pointwise(), Pairwise(), Listwise(), MultipleChoice(), PairwiseVerdict()]),
    reply=strategies.REPLIES,
)
def test_no_number_from_a_reply_that_is_no_verdict(format: Format, reply: Generation) -> None:
    example = Example("q", [f"answer {n}" for n in range(format.min_candidates)])  # type: ignore[call-overload]
    verdict = format.read(example, [reply])
    assert (verdict.scores is None) != (verdict.failure is None)
    if verdict.scores is not None:
        assert readable(format, reply) and len(verdict.scores) == len(example.candidates)
        assert all(verdict.scale.low <= score <= verdict.scale.high for score in verdict.scores)


@fuzz(
    format=FORMATS,
    replies=st.lists(strategies.REPLIES, min_size=1, max_size=6),
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    again=st.booleans(),
)
def test_every_format_ends_in_sound_outcomes(
    format: Format, replies: list[Generation], sizes: list[int], again: bool
) -> None:
    """Whatever the judge says in whatever round."""
    asked = iter(range(10**9))
    engine = ScriptedEngine(lambda request: replies[next(asked) % len(replies)])
    groups = [Example(f"q{n}", [f"{n} {m}" for m in range(size)]) for n, size in enumerate(sizes)]
    found = judge_groups(Judge(format, engine, Sampling(temperature=1.0)), groups, again=again)
    assert [len(result.outcomes) for result in found] == sizes
    assert all(sound(outcome) for result in found for outcome in result.outcomes)
    for result in found:
        raw = [result.raw_score(number) for number in range(len(result.outcomes))]
        assert [score is None for score in raw] == [isinstance(outcome, Failure) for outcome in result.outcomes]


@fuzz(rows=st.lists(st.one_of(st.integers(1, 10), strategies.REPLIES), min_size=1, max_size=12))
def test_one_bad_reply_never_harms_its_batch(rows: list[Any]) -> None:
    """The good rows have their own scores, in their order, whatever is beside them."""

    def reply(request: Request) -> Generation | str:
        said = rows[int(candidates(request)[0])]
        return said if isinstance(said, Generation) else tags(said)

    one = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(reply)), max_failure_rate=1.0)
    found = one([f"p{n}" for n in range(len(rows))], [str(n) for n in range(len(rows))])
    assert [value for value, row in zip(found, rows, strict=True) if isinstance(row, int)] == pytest.approx(
        [(row - 1) / 9 for row in rows if isinstance(row, int)]
    )
    assert all(value is None or sound(value) for value in found)
    for value, row in zip(found, rows, strict=True):
        if isinstance(row, Generation) and not readable(Pointwise(), row):
            assert not value  # None, or the low end of the scale for what the candidate caused


# ---- candidates


@fuzz(text=strategies.CANDIDATES, extra=st.lists(strategies.TEXT, max_size=2))
def test_no_control_token_passes(text: str, extra: list[str]) -> None:
    tokens = KNOWN_CONTROL_TOKENS | {token for token in extra if len(token.strip()) > 1}
    plain = neutralise(text, tokens)
    assert not any(token in plain for token in (KNOWN_CONTROL_TOKENS | set(TAGS)))
    assert neutralise(plain, tokens) == plain
    plain.encode()


@fuzz(
    format=st.sampled_from([Pointwise(), Listwise(), PairwiseVerdict()]),
    texts=st.lists(strategies.CANDIDATES, min_size=2, max_size=2),
    question=strategies.CANDIDATES,
    reference=st.none() | strategies.CANDIDATES,
)
def test_no_control_token_is_sent(format: Format, texts: list[str], question: str, reference: str | None) -> None:
    """Beside those of the instruction, which are the same with harmless texts."""
    codec, most = ChatCodec({"model": "x"}, KNOWN_CONTROL_TOKENS), int(min(format.max_candidates, 2))

    def sent(*shown: str | None) -> dict[str, int]:
        asked, about, *answers = shown
        prompt = format.render(Example(str(asked), [str(answer) for answer in answers[:most]], about))[0]
        body = json.loads(codec.encode(Request(prompt), Dialect("x")).data)
        whole = "".join(message["content"] for message in body["messages"])
        return {token: whole.count(token) for token in KNOWN_CONTROL_TOKENS | set(TAGS)}

    assert sent(question, reference, *texts) == sent("q", None if reference is None else "r", "a", "b")


# ---- servers


@fuzz(status=strategies.STATUSES, headers=strategies.HEADERS, raw=strategies.BODIES, format=st.sampled_from(SINGLE[:1]))
def test_a_servers_answer_is_a_reply_or_typed(status: int, headers: dict[str, str], raw: bytes, format: Format) -> None:
    found = answers.read(status, headers, raw, lambda text: text)
    assert isinstance(found, Reply | Refusal | Passing)
    if isinstance(found, Refusal):
        dialect = Dialect("x")
        known = {"seed", "top_p", "temperature", "max_tokens", "logprobs"}
        learned = dialect.learn(found.message, found.fields, known, ("system", "user"))
        assert isinstance(learned, bool) and set(dialect.fields(dict.fromkeys(known, 1)).values()) <= {1}
    if isinstance(found, Passing):
        assert found.problem and (found.pause is None or isinstance(found.pause, float))
    if not isinstance(found, Reply):
        return
    assert 200 <= status < 300
    example = Example("q", ["a"])
    reply = ChatCodec({"model": "x"}, KNOWN_CONTROL_TOKENS).decode(found.body)
    assert isinstance(reply, Generation) and (reply.failure is not None) == (reply.finish_reason == "error")
    assert all(isinstance(count, int) for count in (reply.prompt_tokens, reply.completion_tokens))
    assert all(one.logprob <= 0 for one in reply.logprobs or ())
    verdict = format.read(example, [reply])
    assert verdict.scores is None or (readable(format, reply) and 1 <= verdict.scores[0] <= 10)


# ---- rows


def graded(request: Request) -> str:
    return tags(4)


@fuzz(
    rows=st.lists(st.tuples(strategies.CELLS, strategies.CELLS, strategies.CELLS), min_size=1, max_size=4),
    column=st.sampled_from(["image", "images", "video", "truth", "look_at", "ask", "other"]),
)
def test_a_trainers_rows_are_scored_or_refused_by_name(rows: list[tuple[Any, Any, Any]], column: str) -> None:
    names = {"reference_column": "truth", "rubric_column": "look_at", "question_column": "ask"}
    used = {name: value for name, value in names.items() if value == column}
    one = FlexJudgeReward(Judge(Pointwise(), ScriptedEngine(graded)), max_failure_rate=1.0, **used)
    prompts, completions, cells = ([row[n] for row in rows] for n in range(3))
    try:
        found = one(prompts, completions, **{column: cells})
    except ConfigError:
        return
    assert len(found) == len(rows) and all(value is None or sound(value) for value in found)


ENTRIES = st.sampled_from(["question", "answer", "candidates", "reference", "rubric", "images"])
ROWS = st.one_of(
    st.builds(lambda text: {"question": "q", "answer": text}, strategies.CANDIDATES.filter(str.strip)),
    st.dictionaries(ENTRIES, strategies.CELLS),
    strategies.mutated(
        st.just({"question": [{"role": "user", "content": "q"}], "candidates": ["a", "b"]}), strategies.CELLS
    ),
)


@fuzz(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_a_files_rows_are_scored_or_refused_by_name(rows: list[Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "rows.jsonl"), Path(folder, "out.jsonl")
        source.write_text("\n".join(json.dumps(row) for row in rows))
        try:
            score_file(source, Judge(Pointwise(), ScriptedEngine(graded)), output)
        except ConfigError:
            return
        written = [json.loads(line) for line in output.read_text().splitlines()]
        lines = [row["line"] for row in written]
        assert 1 <= len(written) <= len(rows) and lines == sorted(lines)
        for row in written:
            assert [score is None for score in row["scores"]] == [failure is not None for failure in row["failures"]]
            assert set(row["scores"]) <= {4.0, None}


# ---- images


@fuzz(data=strategies.image_files())
def test_an_image_is_decoded_or_refused(data: bytes) -> None:
    try:
        (frame,) = Media.image(data).images()
    except MediaError as error:
        assert str(error)
    else:
        assert frame.mode == "RGB" and frame.width * frame.height <= 64_000_000
        frame.save(io.BytesIO(), "PNG")


@fuzz(
    files=st.lists(strategies.image_files(), min_size=1, max_size=3), format=st.sampled_from([Pointwise(), Listwise()])
)
def test_a_damaged_image_fails_alone(files: list[bytes], format: Format) -> None:
    group = [Media.image(noise(8, 8, 1)), *map(Media.image, files), Media.image(noise(8, 8, 2))]

    def equal(request: Request) -> str:
        return tags(*([4] * sum(media.kind == "image" for media in request.prompt.media)))

    (found,) = judge_groups(Judge(for_group_size(format), ScriptedEngine(equal)), [Example("q", group)], again=True)
    assert found.outcomes[0] == found.outcomes[-1] == pytest.approx(1 / 3)
    for outcome, media in zip(found.outcomes, group, strict=True):
        try:
            media.load()
        except MediaError:
            assert isinstance(outcome, Failure) and (outcome.kind, outcome.cause) == ("media", "candidate")
        else:
            assert outcome == pytest.approx(1 / 3)
