"""`evaluate`: rows judged once in both orders, figures from what was stored, and files that survive a kill."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    Cascade,
    ConfigError,
    EngineError,
    Format,
    Generation,
    Judge,
    MajorityVote,
    MultipleChoice,
    Pairwise,
    Pointwise,
    PositionSwap,
    Request,
    Sampling,
    ScriptedEngine,
    evaluate,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.media.audio import floats
from flexjudge_reward.offline.evaluate import job, table
from flexjudge_reward.offline.evaluate.benchmark import Benchmark
from flexjudge_reward.offline.evaluate.metrics import Judged, Judgement, Metric, measure
from support import benchmark_cases, sounds
from support.jsonl import write
from support.judging import candidates, scores, tags

_PLOT = table._plot


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot, and intervals of few resamples: both take most of the time of a run, whatever it is about."""
    monkeypatch.setattr(table, "_plot", lambda *_: None)
    monkeypatch.setattr(job, "measure", lambda metrics, rows, *_: measure(metrics, rows, 50))


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_plot", _PLOT)


PAIRS = [
    {"id": 1, "question": "q", "candidates": ["7 a", "3 b"], "label": "A"},
    {"id": 2, "question": "q", "candidates": ["7 c", "3 d"], "label": [1, 5]},
    {"id": 3, "question": "q", "candidates": ["4 e", "4 f"], "label": "B"},
    {"id": 4, "question": "q", "candidates": ["1 g", "9 h"], "label": "tie"},
]


def first(request: Request) -> str:
    """Prefers what is shown first."""
    return tags(*range(9, 9 - len(candidates(request)), -1))


def judge(reply: Any = scores, format: Format | None = None, **sampling: Any) -> Judge:
    return Judge(format or Pairwise(), ScriptedEngine(reply), Sampling(**sampling))


def test_a_labelled_file_gets_every_reading_from_one_pass(plots: None, tmp_path: Path) -> None:
    own = judge()
    found = evaluate(write(tmp_path / "mine.jsonl", PAIRS), own, tmp_path / "out")
    values = {name: one.value for name, one in found.metrics.items()}
    assert values == {"agreement": 0.5, "all": 1 / 3, "decided": 0.5, "both_orders": 1 / 3, "best": 0.5}
    assert len(own.engine.requests) == 8  # type: ignore[attr-defined]  # four rows in both orders
    assert found.always["ties"] == 0.25 and found.always["swap_consistent"] == 1 and found.always["first_place"] == 0.5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"mine.md", "mine.png"}
    line = json.loads(found.files[0].read_text().splitlines()[1])
    assert set(line) == {"row", "id", "part", "merits", "groups", "listed", "draws"} and len(line["draws"][0]) == 2


def test_both_orders_are_stored_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    found = evaluate(write(tmp_path / "mine.jsonl", PAIRS), judge(first), tmp_path / "out")
    assert found.always["first_place"] == 1 and found.always["swap_consistent"] == 0
    assert found.metrics["agreement"].value == 0.5 and found.metrics["both_orders"].value == 0
    for row in found.rows:
        (draw,) = row.draws
        assert {one.scores for one in draw} == {(9, 8), (8, 9)} and draw[row.listed].scores == (9, 8)


@pytest.mark.parametrize(
    ("format", "calls"),
    [
        pytest.param(PositionSwap(Pairwise()), 8, id="a swap of its own is not needed"),
        pytest.param(Pointwise(), 8, id="one candidate at a time has one order"),
        pytest.param(MajorityVote(Pairwise(), 3), 24, id="votes are stored each by itself"),
    ],
)
def test_formats_and_wrappers(format: Format, calls: int, tmp_path: Path) -> None:
    own = judge(scores, format, temperature=1.0)
    found = evaluate(write(tmp_path / "mine.jsonl", PAIRS), own, tmp_path / "out")
    assert len(own.engine.requests) == calls  # type: ignore[attr-defined]
    assert found.metrics["agreement"].value == 0.5


def test_what_is_left_out_counts_in_no_interval_and_gives_no_warning(tmp_path: Path) -> None:
    """40 ties, and 2 pairs that are decided against the labels."""
    rows = [{"id": n, "question": f"q{n}", "candidates": ["5 a", "5 b"], "label": "A"} for n in range(40)]
    rows += [{"id": n, "question": f"q{n}", "candidates": ["1 a", "9 b"], "label": "A"} for n in (40, 41)]
    found = evaluate(write(tmp_path / "mine.jsonl", rows), judge(), tmp_path / "out")
    decided, every = found.metrics["decided"], found.metrics["all"]
    assert (decided.rows, every.rows) == (2, 42) and decided.value == 0 and decided.high > 0.6 and not found.warnings


def test_a_metric_of_nothing_leaves_an_average_of_it_without_a_value() -> None:
    row = Judged(1, "a", (1.0, 0.0), {}, ((Judgement((9.0, 1.0)),),))
    metrics = [Metric("one", "pairs", parts=["a"]), Metric("none", "pairs", parts=["b"])]
    found = measure([*metrics, Metric("both", "average", over=["one", "none"])], [row])
    assert found["one"].value == 1 and math.isnan(found["both"].value) and math.isnan(found["both"].low)


def test_both_judges_of_a_cascade_are_asked_and_a_run_is_of_both(tmp_path: Path) -> None:
    """A small judge that is never sure, and a large one that is right; then another large one."""
    source = write(tmp_path / "mine.jsonl", PAIRS[:2])
    values = []
    for large, model in ((scores, "right"), (reversed_scores, "wrong")):
        small = Judge(MajorityVote(Pairwise(), 2), Named(coin), Sampling(temperature=1.0))
        other = Judge(Pairwise(), ScriptedEngine(large))
        other.engine.identity = lambda name=model: {"engine": "scripted", "model": name}  # type: ignore[method-assign,misc]
        found = evaluate(source, Cascade(small, other, 1.0), tmp_path / "out", name="one")
        values.append(found.metrics["both_orders"].value)
        assert other.engine.requests  # type: ignore[attr-defined]
    assert values == [0.5, 0.5] and found.metrics["agreement"].rows == 2
    assert [row.draws[0][0].scores[0] > 0.5 for row in found.rows] == [False, False]  # type: ignore[index]


def reversed_scores(request: Request) -> str:
    return tags(*(10 - int(text.split()[0]) for text in candidates(request)))


def coin(request: Request) -> str:
    """Every second vote the other way."""
    return tags(*(5 + (request.sampling.seed + place) % 2 for place in range(2)))


def test_a_judge_with_votes_is_measured_by_their_majority(tmp_path: Path) -> None:
    """Two of three votes are right, in every order."""
    rows = [{"id": n, "question": f"q{n}", "candidates": ["7 a", "3 b"], "label": "A"} for n in range(10)]

    def mostly(request: Request) -> str:
        return reversed_scores(request) if request.sampling.seed == 1 else scores(request)

    own = judge(mostly, MajorityVote(Pairwise(), 3), temperature=1.0)
    found = evaluate(write(tmp_path / "mine.jsonl", rows), own, tmp_path / "out")
    assert [found.metrics[name].value for name in ("agreement", "all", "decided", "both_orders")] == [1, 1, 1, 1]


def test_single_answers_are_correlated(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "answer": f"{n} a", "label": n * 2} for n in (1, 2, 4)]
    found = evaluate(write(tmp_path / "mine.jsonl", rows), judge(scores, Pointwise()), tmp_path / "out")
    assert found.metrics["pearson"].value == pytest.approx(1) and found.metrics["spearman"].value == pytest.approx(1)


def test_a_failure_is_counted_and_never_a_number(tmp_path: Path) -> None:
    def some(request: Request) -> str | Generation:
        return "no verdict" if "7 a" in candidates(request) else scores(request)

    found = evaluate(write(tmp_path / "mine.jsonl", PAIRS), judge(some), tmp_path / "out")
    assert found.always["failed"] == 0.25 and found.metrics["agreement"].value == (0 + 0 + 0.5) / 3
    assert found.metrics["decided"].value == 0


# ---------------------------------------------------------------- runs that are cut off, repeated, or compared


def test_a_killed_run_continues_and_a_finished_one_judges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "BATCH", 2)
    source, asked = write(tmp_path / "mine.jsonl", PAIRS), []

    def dies(request: Request) -> str:
        if len(asked) >= 6:
            raise EngineError("the machine is gone")
        asked.append(request)
        return scores(request)

    with pytest.raises(EngineError):
        evaluate(source, Judge(Pairwise(), Named(dies)), tmp_path / "out")
    rest = Judge(Pairwise(), Named(scores))
    cut = evaluate(source, rest, tmp_path / "out")
    assert len(rest.engine.requests) == 4  # type: ignore[attr-defined]
    whole = evaluate(source, Judge(Pairwise(), Named(scores)), tmp_path / "other")
    assert cut.files[0].read_bytes() == whole.files[0].read_bytes() and cut.metrics == whole.metrics
    again = Judge(Pairwise(), Named(scores))
    assert evaluate(source, again, tmp_path / "out").metrics == cut.metrics and not again.engine.requests  # type: ignore[attr-defined]


class Cut(Exception):
    """A kill."""


def cut(*_: object) -> None:
    raise Cut


def test_verdicts_are_those_of_the_run_that_their_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "mine.jsonl", PAIRS)
    evaluate(source, Judge(Pairwise(), Named(scores)), tmp_path / "out")
    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(job.table, "write", cut)
        evaluate(source, Judge(Pairwise(), Named(scores)), tmp_path / "out", limit=2)
    kept = Judge(Pairwise(), Named(scores))
    assert evaluate(source, kept, tmp_path / "out", limit=2).always["rows"] == 2 and not kept.engine.requests  # type: ignore[attr-defined]
    assert evaluate(source, kept, tmp_path / "out").always["rows"] == 4


def test_other_settings_of_a_judge_are_another_judge(tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", PAIRS)
    for tokens in (64, 128):
        evaluate(source, Judge(Pairwise(), Named(scores), Sampling(max_tokens=tokens)), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("mine.m-pairwise-*.json"))) == 2
    assert (tmp_path / "out/mine.md").read_text().count("| m-pairwise-") == 2


BENCHMARK = """title = "t"
task = "pair"
get = "rows.jsonl"
columns = {id = "text", win = "text"}
example = {question = [{text = "id"}], candidates = [[{words = "3 a"}], [{words = "7 b"}]]}
label = {column = "win", read = "map", map = {A = [1, 0]}}
groups = {g = {column = "win"}}
metric = [{name = "all", of = "pairs", by = "g"}]
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        pytest.param("A = [1, 0]", "A = [0, 1]", {"all/A": 1, "all": 1}, id="a corrected map"),
        pytest.param('{column = "win"}', '{column = "id"}', {"all/x": 0, "all": 0}, id="another group"),
    ],
)
def test_a_corrected_benchmark_is_read_anew(old: str, new: str, found: dict[str, float], tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"id": "x", "win": "A"}])
    own, values = tmp_path / "mine.toml", []
    for text in (BENCHMARK, BENCHMARK.replace(old, new)):
        own.write_text(text)
        metrics = evaluate(own, Judge(Pairwise(), Named(scores)), tmp_path / "out").metrics
        values.append({name: one.value for name, one in metrics.items()})
    assert values == [{"all/A": 0, "all": 0}, found]


class Named(ScriptedEngine):
    """The same judge, whatever function plays it."""

    def identity(self) -> dict[str, object]:
        return {"engine": "scripted", "model": "m"}


def test_several_judges_share_a_table_with_published_figures(plots: None, tmp_path: Path) -> None:
    rows = benchmark_cases.written(benchmark_cases.CASES["judgebench"].files, tmp_path)
    for name, reply in (("by length", lambda request: tags(5, 5)), ("first | place", first)):
        evaluate("judgebench", judge(reply), tmp_path / "out", data=rows, name=name)
    table = (tmp_path / "out/judgebench.md").read_text()
    assert "| by length | 0.0 [0.0, 79.3] |" in table and "| first / place |" in table
    assert "official code: both orders" in table and (tmp_path / "out/judgebench.png").stat().st_size > 5_000


def test_judges_of_other_rows_have_a_warning(tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", PAIRS)
    evaluate(source, judge(), tmp_path / "out", name="all")
    evaluate(source, judge(first), tmp_path / "out", name="some", limit=2)
    evaluate(source, judge(first), tmp_path / "out", name="as some", limit=2)
    table = (tmp_path / "out/mine.md").read_text()
    assert (
        "* **Warning**, all: it judged other rows than as some" in table and "Warning**, some: it judged" not in table
    )


def test_files_that_differ_in_a_part_of_their_names_are_two_benchmarks(tmp_path: Path) -> None:
    for name in ("mine.de.jsonl", "mine.en.jsonl"):
        evaluate(write(tmp_path / name, PAIRS), judge(), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("mine-??.md"))) == 2 and not list((tmp_path / "out").glob("*.new"))


def test_names_and_groups_are_text_in_the_table_and_the_plot(plots: None, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"id": "x", "win": "A", "kind": "<img src=x>![a](b)`$_{"}])
    (tmp_path / "mine.toml").write_text(
        BENCHMARK.replace('"t"', '"$_{ <b>"').replace('{column = "win"}', '{column = "kind"}')
    )
    evaluate(tmp_path / "mine.toml", judge(), tmp_path / "out", name="run $x_{$ <script>")
    table = (tmp_path / "out/mine.md").read_text()
    assert "| all/&#60;img src=x&#62;!&#91;a&#93;(b)&#96;$_{ |" in table and "| run $x_{$ &#60;script&#62; |" in table
    assert not re.search(r"<\w|\]\(", table) and (tmp_path / "out/mine.png").stat().st_size > 5_000


def test_parts_are_judged_in_their_own_formats(tmp_path: Path) -> None:
    rows = benchmark_cases.written(benchmark_cases.CASES["rewardbench2"].files, tmp_path)
    asked: list[tuple[str, str]] = []

    def made(format: str, rubric: str) -> Judge:
        asked.append((format, rubric))
        if format == "pointwise":
            return Judge(Pointwise(), ScriptedEngine(lambda request: tags(5)))
        return Judge(MultipleChoice(), ScriptedEngine(lambda request: tags("A")))

    found = evaluate("rewardbench2", made, tmp_path / "out", data=rows)
    assert sorted(asked) == [("multiple_choice", "helpfulness"), ("pointwise", "helpfulness")]
    assert found.metrics["ties"].value == 0.0  # equal scores prefer nothing


def test_a_judge_against_the_labels_asks_whether_they_are_reversed(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"q{n}", "candidates": ["7 a", "3 b"], "label": "B"} for n in range(40)]
    found = evaluate(write(tmp_path / "mine.jsonl", rows), judge(), tmp_path / "out")
    assert "0.0%, below chance: is the direction of column 'label' reversed" in found.warnings[0]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param({"label": "C"}, "a list of 2 numbers, a letter from A to B, or 'tie'", id="no such candidate"),
        pytest.param({"label": 1}, "found 1", id="an index"),
        pytest.param({"label": [1, 2, 3]}, "a list of 2 numbers", id="another count"),
        pytest.param({"label": ["1", "2"]}, "a list of 2 numbers", id="texts"),
        pytest.param({}, "the entry 'label' is missing", id="none"),
    ],
)
def test_a_label_that_cannot_be_used_is_named(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", [{"id": 1, "question": "q", "candidates": ["1 a", "2 b"], **row}])
    with pytest.raises(ConfigError, match=f"no row with a label that can be used: line 1: .*{says}"):
        evaluate(source, judge(), tmp_path / "out")
    write(source, [*PAIRS, {"id": 9, "question": "q", "candidates": ["1 a", "2 b"], **row}])
    found = evaluate(source, judge(), tmp_path / "out")
    assert len(found.rows) == 4 and says in found.files[0].with_suffix(".skipped.jsonl").read_text()


def test_what_cannot_be_evaluated_is_refused_before_a_judge_is_asked(tmp_path: Path) -> None:
    own = judge()
    rows = benchmark_cases.written(benchmark_cases.CASES["genai_bench"].files, tmp_path)
    for name, data, says in (
        ("genai_bench", rows, "needs the format pairwise_verdict, and the judge's is 'pairwise'"),
        ("no_such_benchmark", None, "no_such_benchmark"),
    ):
        with pytest.raises(ConfigError, match=says):
            evaluate(name, own, tmp_path / "out", data=data, media_root=tmp_path)
    mixed = [PAIRS[0], {"id": 5, "question": "q", "answer": "1 a", "label": 3}]
    with pytest.raises(ConfigError, match="evaluate them in two files"):
        evaluate(write(tmp_path / "mixed.jsonl", mixed), own, tmp_path / "out")
    assert not own.engine.requests  # type: ignore[attr-defined]


class Deaf(ScriptedEngine):
    def supports(self, modality: str) -> bool:
        return modality != "audio"


def test_a_row_at_the_end_that_does_not_fit_is_found_at_the_beginning(tmp_path: Path) -> None:
    rows = [{"id": n, "question": f"q{n}", "candidates": ["1 a", "2 b"], "label": "A"} for n in range(200)]
    own = judge()
    with pytest.raises(ConfigError, match=r"row 201 \(id 9\): Pairwise judges 2 candidates at a time, .* has 3"):
        more = {"id": 9, "question": "q", "candidates": ["1 a", "2 b", "3 c"], "label": "A"}
        evaluate(write(tmp_path / "mine.jsonl", [*rows, more]), own, tmp_path / "out")
    assert not own.engine.requests and not (tmp_path / "out").exists()  # type: ignore[attr-defined]


SPEECH = ("nisqa", "bvcc", "somos", "voxsim", "speechjudge_eval")


@pytest.mark.parametrize("name", SPEECH)
def test_a_benchmark_of_speech_needs_a_judge_that_hears(name: str, tmp_path: Path) -> None:
    """Each sound of the fixture is louder than the one before, and the scripted judge scores loudness."""
    rows = benchmark_cases.written(benchmark_cases.CASES[name].files, tmp_path)
    files = sorted(set(re.findall(r"[\w-]+\.wav", rows.read_text())))
    for number, file in enumerate(files):
        (tmp_path / file).write_bytes(sounds.wav(0.1, loud=0.1 + 0.8 * number / len(files)))
    format = Pairwise() if name == "speechjudge_eval" else Pointwise()

    def loudness(request: Request) -> str:
        heard = [floats(media.samples()).std() for media in request.prompt.media]
        return tags(*(round(1 + 8 * float(one)) for one in (heard if format.name == "pairwise" else heard[-1:])))

    with pytest.raises(ConfigError, match="cannot hear sounds: use one that can"):
        evaluate(name, Judge(format, Deaf(loudness)), tmp_path / "out", data=rows, media_root=tmp_path)
    found = evaluate(name, Judge(format, Named(loudness)), tmp_path / "out", data=rows, media_root=tmp_path)
    assert found.always["failed"] == 0 and found.always["rows"] == len(benchmark_cases.CASES[name].said)
    (tmp_path / files[0]).write_bytes(b"RIFF")
    again = evaluate(name, Judge(format, Named(loudness)), tmp_path / "new", data=rows, media_root=tmp_path)
    assert 0 < again.always["failed"] <= 1


@pytest.mark.parametrize("name", SPEECH)
def test_a_benchmark_of_speech_asks_for_speech_with_one_decimal(name: str, tmp_path: Path) -> None:
    """As NISQA and VoxSim were asked: what is said does not count."""
    rubrics = {part.rubric for part in Benchmark.load(name).parts}
    assert rubrics == {"speaker-similarity" if name == "voxsim" else "naturalness"}
    rows = benchmark_cases.written(benchmark_cases.CASES[name].files, tmp_path)
    for file in set(re.findall(r"[\w-]+\.wav", rows.read_text())):
        (tmp_path / file).write_bytes(sounds.wav(0.1))

    def built(format: str, rubric: str) -> Judge:
        own = Pairwise(rubric) if format == "pairwise" else Pointwise(rubric)
        return Judge(own, Named(lambda request: tags(*([3.8] * (2 if format == "pairwise" else 1)))))

    found = evaluate(name, built, tmp_path / "out", data=rows, media_root=tmp_path)
    assert found.always["failed"] == 0


def test_a_judge_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    down = judge(lambda request: Generation.failed("transport", "refused"))
    with pytest.raises(EngineError, match=r"no answer to 4 of 4 rows, the first with id .*transport"):
        evaluate(write(tmp_path / "mine.jsonl", PAIRS), down, tmp_path / "out")


def test_an_outage_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of row 1 fail: two of both orders, and one of the retry."""
    monkeypatch.setattr(job, "BATCH", 2)
    source, left = write(tmp_path / "mine.jsonl", PAIRS), [3]

    def flaky(request: Request) -> str | Generation:
        if "7 a" in candidates(request) and left[0]:
            left[0] -= 1
            return Generation.failed("timeout", "too late")
        return scores(request)

    with pytest.raises(EngineError, match=r"no answer to 1 rows, the first with id 1 \(timeout\); all others are kept"):
        evaluate(source, Judge(Pairwise(), Named(flaky)), tmp_path / "out")
    again = Judge(Pairwise(), Named(flaky))
    found = evaluate(source, again, tmp_path / "out")
    assert found.always["failed"] == 0 and found.always["rows"] == 4
    assert len(again.engine.requests) == 2  # type: ignore[attr-defined]
    left[0] = 1
    once = evaluate(source, Judge(Pairwise(), Named(flaky)), tmp_path / "other")
    assert once.always["failed"] == 0 and not left[0]  # what fails once is asked again


def test_rows_that_always_time_out_are_failures_of_the_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of their own: one more run is enough for all of them, and it asks nothing else."""
    monkeypatch.setattr(job, "BATCH", 1)
    source = write(tmp_path / "mine.jsonl", PAIRS)

    def slow(request: Request) -> str | Generation:
        shown = candidates(request)
        return Generation.failed("timeout", "too late") if {"7 a", "9 h"} & {*shown} else scores(request)

    with pytest.raises(EngineError, match="no answer to 2 rows"):
        evaluate(source, Judge(Pairwise(), Named(slow)), tmp_path / "out")
    again = Judge(Pairwise(), Named(slow))
    found = evaluate(source, again, tmp_path / "out")
    assert found.always["failed"] == 0.5 and found.always["rows"] == 4 and found.metrics["agreement"].value == 0.5 / 3
    assert {one.failure for row in found.rows for one in row.judgements} == {"timeout", None}
    assert all({"7 a", "9 h"} & {*candidates(one)} for one in again.engine.requests if candidates(one))  # type: ignore[attr-defined]
    done = Judge(Pairwise(), Named(slow))
    assert evaluate(source, done, tmp_path / "out").always == found.always and not done.engine.requests  # type: ignore[attr-defined]


def test_a_dead_judge_makes_no_failures_however_often_it_is_asked(tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", PAIRS)
    for _ in range(3):
        with pytest.raises(EngineError, match="answers nothing now"):
            evaluate(source, Judge(Pairwise(), Named(lambda _: Generation.failed("timeout", "late"))), tmp_path / "out")
    assert evaluate(source, Judge(Pairwise(), Named(scores)), tmp_path / "out").always["failed"] == 0


def test_votes_need_a_temperature(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 votes at temperature 0"):
        evaluate(write(tmp_path / "mine.jsonl", PAIRS), judge(scores, MajorityVote(Pairwise(), 3)), tmp_path / "out")


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(("-o", "mine.jsonl"), "'mine.jsonl' is a file, or below one: give a folder", id="a file"),
        pytest.param(("-o", "mine.jsonl/x"), "is a file, or below one", id="below a file"),
        pytest.param(("-o", "out", "--max-failure-rate", "5"), "'max_failure_rate' must be", id="a percentage"),
        pytest.param(("-o", "out", "--max-failure-rate", "nan"), "'max_failure_rate' must be", id="no share"),
        pytest.param(("-o", "out", "--data", "x"), "'data' is for a benchmark", id="data of a file"),
        pytest.param(("-o", "out", "--limit", "0"), "limit must be at least 1", id="no rows of a file"),
        pytest.param(("nano_world", "-o", "out", "--limit", "0"), "limit must be at least 1", id="no rows"),
        pytest.param(("nano_world", "-o", "out", "--limit", "-1"), "limit must be at least 1", id="fewer than none"),
        pytest.param(("nano_world", "-o", "out", "--column", "a=b"), "'columns' is for a labelled file", id="columns"),
        pytest.param(("bvcc", "-o", "out", "--data", "utf16.csv"), "cannot be read as text", id="no text"),
    ],
)
def test_bad_arguments(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = ScriptedEngine(scores)
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: engine)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.jsonl", PAIRS)
    flags = ("--model", "nano", "--cache", "off", "--format", "pairwise")
    source = () if words[0][0] != "-" else ("mine.jsonl",)
    (tmp_path / "utf16.csv").write_bytes("a,b".encode("utf-16"))
    assert main(["evaluate", *source, *words, *flags]) == 2
    assert says in capsys.readouterr().err and not engine.requests


def test_without_a_name_the_benchmarks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 0
    out = capsys.readouterr().out
    assert "vl_rewardbench" in out and len(out.splitlines()) == len(benchmark_cases.CASES)
    assert main(["evaluate", "nano_world"]) == 2
