"""The benchmarks: rows as the data sets have them, labels, metrics counted by hand, and what a changed schema gets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError
from flexjudge_reward.offline.evaluate.benchmark import FOLDER, Benchmark, benchmark_names
from flexjudge_reward.offline.evaluate.formulas import edit_distance, labels_needed, pearson, spearman
from flexjudge_reward.offline.evaluate.metrics import Judged, Judgement, Metric, measure
from flexjudge_reward.offline.evaluate.rows import BenchmarkRows
from support import benchmark_cases
from support.benchmark_cases import CASES
from support.late import late

datasets = late("datasets")

METRIC = "[[metric]]\nname='a'\nof='pairs'\n"


def test_every_benchmark_has_a_case_and_a_file_of_under_80_lines() -> None:
    assert sorted(CASES) == list(benchmark_names())
    assert [name for name in CASES if len((FOLDER / f"{name}.toml").read_text().splitlines()) >= 80] == []


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_what_was_counted_by_hand(name: str) -> None:
    assert benchmark_cases.mismatches(name) == []


# ---------------------------------------------------------------- rows that are not as known


def rows_of(name: str, folder: Path, change: Callable[[dict[str, Any]], None]) -> BenchmarkRows:
    """The rows of a case, the last one of its last file changed."""
    files = {file: json.loads(json.dumps(rows)) for file, rows in CASES[name].files.items()}
    change(list(files.values())[-1][-1])
    return BenchmarkRows(Benchmark.load(name), benchmark_cases.written(files, folder), folder)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        pytest.param(
            "vl_rewardbench",
            lambda row: row.pop("human_ranking"),
            r"test.jsonl \(content [0-9a-f]{12}\): column 'human_ranking' is missing; it has id, .*schema changed",
            id="a column is gone",
        ),
        pytest.param(
            "mllm_judge_pair",
            lambda row: row.pop("human"),
            "column 'human' or 'human_answer' is missing",
            id="a column with two names is gone",
        ),
        pytest.param(
            "rewardbench2",
            lambda row: row.pop("subset"),
            "column 'subset' is missing",
            id="the column of a part is gone",
        ),
        pytest.param(
            "vl_rewardbench",
            lambda row: row.update(human_ranking=[1, 2]),
            r"row 5: column 'human_ranking' holds \[1, 2\], and the ranks 0 to 1 are expected",
            id="ranks from 1: another direction",
        ),
        pytest.param(
            "mj_bench_2025",
            lambda row: row.update(label=1),
            "column 'label' holds 1; known are 0",
            id="the second image is the good one",
        ),
        pytest.param(
            "judgebench",
            lambda row: row.update(label="A=B"),
            "column 'label' holds A=B; known are A>B, B>A",
            id="another spelling",
        ),
        pytest.param(
            "mj_bench",
            lambda row: row.update(label="0"),
            "column 'label' holds 0, and number is expected",
            id="a text where a number was",
        ),
        pytest.param(
            "nano_world",
            lambda row: row.update(scores=["10", "5"]),
            r"column 'scores' holds \['10', '5'\], and numbers is expected",
            id="scores as texts",
        ),
        pytest.param(
            "mllm_judge_score",
            lambda row: row.update(human="four"),
            "column 'human' holds four, and number or text is expected",
            id="a score in words",
        ),
        pytest.param(
            "mllm_judge_batch",
            lambda row: row.update(human_answer="AA"),
            "column 'human' holds AA, which is no label of the kind 'order'",
            id="an order that is none",
        ),
        pytest.param(
            "vl_rewardbench",
            lambda row: row.update(response=["a"]),
            "the ranks 0 to 0 are expected",
            id="one candidate is missing",
        ),
    ],
)
def test_a_changed_schema_names_the_column_and_the_revision(
    name: str, change: Callable[[dict[str, Any]], None], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        rows_of(name, tmp_path, change).check()


def test_a_reversed_label_shows_in_the_balance_of_the_whole_set(tmp_path: Path) -> None:
    """193 A>B and 157 B>A are known of JudgeBench; the other way round, each label means its opposite."""
    labels = ["B>A"] * 193 + ["A>B"] * 157
    rows = [benchmark_cases.jb(str(number), "mmlu", label) for number, label in enumerate(labels)]
    files = {"gpt.jsonl": rows, "claude.jsonl": CASES["judgebench"].files["claude.jsonl"]}
    found = BenchmarkRows(Benchmark.load("judgebench"), benchmark_cases.written(files, tmp_path), None)
    with pytest.raises(ConfigError, match=r"gpt.jsonl .content .*direction of column 'label' is reversed.*193"):
        found.check()


def test_labels_point_to_the_better_answer(tmp_path: Path) -> None:
    """The same meaning in every benchmark: a number per candidate, higher is better."""
    merits = {}
    for name in CASES:
        folder = tmp_path / name
        folder.mkdir()
        rows = BenchmarkRows(Benchmark.load(name), benchmark_cases.written(CASES[name].files, folder), folder)
        first, *_ = sorted(rows.read(), key=lambda row: (rows.benchmark.parts.index(row.part), row.number))
        merits[name] = first.merits
    assert merits["vl_rewardbench"] == (0, -1) and merits["judgebench"] == (1, 0) and merits["mmrb2"] == (1, 0)
    assert merits["mllm_judge_batch"] == (2, 1, 3) and merits["rewardbench2"] == (1, 0, 0, 0)
    assert merits["mllm_judge_score"] == (1,) and merits["genai_bench"] == (1, 0) and merits["bvcc"] == (2,)


def test_a_row_becomes_what_a_judge_is_shown(tmp_path: Path) -> None:
    def example(name: str) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        rows = BenchmarkRows(Benchmark.load(name), benchmark_cases.written(CASES[name].files, folder), folder)
        return next(row.example for row in rows.read() if row.part is rows.benchmark.parts[0])

    def kinds(content: Any) -> list[str]:
        return [part if isinstance(part, str) else part.kind for part in content]

    shown = example("mmrb2")
    assert kinds(shown.question) == ["p", "image", "image"]
    assert list(map(kinds, shown.candidates)) == [["a"], ["image"]]
    shown = example("genai_bench")
    assert kinds(shown.question) == ["p"] and list(map(kinds, shown.candidates)) == [["image"], ["image"]]
    assert example("omni_rewardbench").rubric.criteria == "Is it short and to the point?"
    assert kinds(example("pampa").question)[0] == "molecule"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("title = 1\ntask = 'pair'\ncolour = 2", "unknown entry 'colour'", id="an unknown entry"),
        pytest.param("title = 'x'\ntask = 'guess'", "the task is one of", id="an unknown task"),
        pytest.param("title = 'x'", "missing 3 required .* 'columns'", id="no rows"),
        pytest.param("title =", "cannot be read", id="no TOML"),
        pytest.param(
            "title='x'\ntask='pair'\n[[metric]]\nname='a'\nof='luck'", "of is one of accuracy", id="an unknown metric"
        ),
        pytest.param(
            "title='x'\ntask='pair'\n[[metric]]\nname='a'\nof='accuracy'\nby='b'",
            "no group has that name",
            id="no group",
        ),
        pytest.param("title = 'x'\ntask = 'pair'", "needs 'question'", id="no question"),
        pytest.param(
            "title='x'\ntask='pair'\n[[metric]]\nname='a'\nof='accuracy'\n"
            "[[published]]\norigin='o'\ncolumns=['b']\nrows={ c=[1] }",
            "does not fit its metrics",
            id="figures without a metric",
        ),
        *(
            pytest.param(f"title='x'\ntask='pair'\n{entry}", says, id=name)
            for name, (entry, says) in {
                "a number for a title": ("licence=3", "'licence' must be of the type str, found 3"),
                "a text for a number": ("scale='many'", "'scale' must be of the type float, found 'many'"),
                "a number for a column": ("where={a=3}", "'where' must be of the type Mapping.*, found"),
                "a text for tables": ("metric='x'", r"'metric' must be tables, \[\[metric\]\]"),
                "a metric twice": (METRIC * 2, "metric 'a' is there twice"),
                "an unknown part": (METRIC + "parts=['b']\n", "no part has that name"),
                "an average of nothing": (METRIC.replace("pairs", "average"), "name metrics that are above it"),
                "an average of later ones": (
                    METRIC.replace("pairs", "average") + "over=['b']\n" + METRIC.replace("'a'", "'b'"),
                    "name metrics that are above it",
                ),
                "a weight too few": (
                    METRIC + METRIC.replace("pairs", "average").replace("'a'", "'b'") + "over=['a','a']\nweights=[1]",
                    "needs a weight for each",
                ),
            }.items()
        ),
    ],
)
def test_a_benchmark_file_that_is_wrong_says_what(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text.replace("task", "columns = {}\nexample = {}\nlabel = {}\ntask"))
    with pytest.raises(ConfigError, match=says):
        Benchmark.load(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('{ text = "scene" }', '{ txt = "scene" }', id="an unknown kind of part"),
        pytest.param('[{ text = "scene" }, { image = "image" }, { text = "question" }]', '"scene"', id="no list"),
        pytest.param('column = "medium"', 'column = "medium"\npattern = "("', id="an open pattern"),
        pytest.param('column = "medium"', 'column = "medium"\npattern = "i"', id="a pattern without a group"),
    ],
)
def test_a_benchmark_file_that_does_not_fit_its_rows_says_so_before_a_judge_is_asked(
    old: str, new: str, tmp_path: Path
) -> None:
    text = (FOLDER / "nano_world.toml").read_text()
    assert text.count(old) == 1
    (tmp_path / "own.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=r"nano_world.jsonl .*, row \d+: own cannot read it: "):
        BenchmarkRows(Benchmark.load(tmp_path / "own.toml"), FOLDER / "nano_world.jsonl").check()


def test_a_metric_that_does_not_fit_its_rows_is_named() -> None:
    row = Judged(1, "", (1.0, 0.0, 0.5), {}, ((Judgement((9.0, 1.0, 2.0)),),))
    for of in ("accuracy", "pearson", "spearman"):
        with pytest.raises(ConfigError, match=f"metric 'a', {of}, does not fit these rows"):
            measure([Metric("a", of)], [row])  # type: ignore[arg-type]


def test_data_that_is_not_on_the_hub_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run the download script .* then give it as --data"):
        BenchmarkRows(Benchmark.load("multimodal_rewardbench"))
    with pytest.raises(ConfigError, match="there is no file or folder"):
        BenchmarkRows(Benchmark.load("multimodal_rewardbench"), tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("[{", "cannot be read as JSON rows", id="damaged"),
        pytest.param('{"pairs": []}', "a list of rows is expected", id="no list"),
        pytest.param("[1]", "row 0: expected an object with columns, found 1", id="no object"),
        pytest.param("[]", "has no rows for Multimodal RewardBench", id="empty"),
    ],
)
def test_a_file_that_is_no_list_of_rows(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "all_data.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        BenchmarkRows(Benchmark.load("multimodal_rewardbench"), path).check()


def test_a_data_set_of_the_hub_is_read_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, asked = datasets.load_dataset_builder, []

    def builder(name: str, config: str | None = None, revision: str | None = None) -> Any:
        asked.append((name, revision))
        made = build(str(tmp_path))
        made.hash = revision or "newest"
        return made

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s after a stream that was left
    rows = [{**row, "image": {"bytes": b"png", "path": "x.png"}} for row in CASES["vl_rewardbench"].files["test.jsonl"]]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "test.parquet")
    found = BenchmarkRows(Benchmark.load("vl_rewardbench"), revision="c0ffee")
    found.check()
    assert [row.id for row in found.read()] == [row["id"] for row in rows] and found.version.endswith("@c0ffee")
    assert [part.kind for part in next(found.read()).example.question[:1]] == ["image"]  # type: ignore[union-attr]
    sampled = BenchmarkRows(Benchmark.load("vl_rewardbench"), seed=1, limit=2)
    assert len(list(sampled.read())) == 2 and asked[-1] == ("MMInstruction/VL-RewardBench", None)
    datasets.Dataset.from_list(rows).rename_column("human_ranking", "ranking").to_parquet(tmp_path / "test.parquet")
    changed = BenchmarkRows(Benchmark.load("vl_rewardbench"), revision="beef")
    with pytest.raises(ConfigError, match="VL-RewardBench at revision beef: column 'human_ranking' is missing"):
        changed.check()


# ---------------------------------------------------------------- identities of the papers' own figures

SIZES = {"general": 183, "hallucination": 749, "reasoning": 318}  # of VL-RewardBench


def made(groups: dict[str, tuple[int, float]], grouping: str, draws: int = 10) -> list[Judged]:
    """Verdicts whose share of right ones in each group is as printed."""
    rows = []
    for group, (size, share) in groups.items():
        right = round(share / 100 * size * draws)
        for number in range(size):
            hits = [number * draws + draw < right for draw in range(draws)]
            said = tuple((Judgement((1.0, 0.0) if hit else (0.0, 1.0)),) for hit in hits)
            rows.append(Judged(number, group, (1.0, 0.0), {grouping: group}, said))
    return rows


@pytest.mark.parametrize(
    ("printed", "overall", "macro"),
    [
        pytest.param((47.01, 42.72, 61.08), 48.02, 50.27, id="Flex-Omni, exact"),
        pytest.param((46.11, 43.39, 62.87), 48.74, 50.79, id="Flex-VL, printed as 48.60"),
        pytest.param((68.7, 83.2, 61.4), 75.5, 71.1, id="MR. Judge"),
        pytest.param((50.8, 72.5, 64.2), 67.2, 62.5, id="Gemini-1.5-Pro, printed one column further"),
    ],
)
def test_vl_rewardbench_pools_rows_for_overall_and_groups_for_macro(
    printed: tuple[float, ...], overall: float, macro: float
) -> None:
    groups = {name: (size, share) for (name, size), share in zip(SIZES.items(), printed, strict=True)}
    metrics = [metric for metric in Benchmark.load("vl_rewardbench").metrics if metric.name in ("overall", "macro")]
    found = measure(metrics, made(groups, "official"), resamples=2)
    assert found["overall"].value * 100 == pytest.approx(overall, abs=0.06)
    assert found["macro"].value * 100 == pytest.approx(macro, abs=0.06)


@pytest.mark.parametrize(
    ("printed", "overall"),
    [
        pytest.param((43.32, 47.41, 44.78), 45.17, id="Flex-VL"),
        pytest.param((38.15, 46.73, 37.10), 40.66, id="Flex-Omni"),
        pytest.param((46.34, 54.19, 47.34), 49.29, id="Flex-VL with votes, 4.12 more"),
        pytest.param((41.67, 52.01, 44.25), 45.98, id="Flex-Omni with votes, 5.32 more"),
    ],
)
def test_genai_bench_is_the_plain_mean_of_its_tracks(printed: tuple[float, ...], overall: float) -> None:
    tracks = ("image_generation", "image_edition", "video_generation")
    groups = {name: (size, share) for name, size, share in zip(tracks, (1735, 919, 1000), printed, strict=True)}
    (metric,) = [metric for metric in Benchmark.load("genai_bench").metrics if metric.name == "overall"]
    found = measure([metric], made(groups, "track"), resamples=2)
    assert found["overall"].value * 100 == pytest.approx(overall, abs=0.011)


def test_published_rows_hold_their_own_identities() -> None:
    """Overall of GenAI-Bench from the tracks that stand beside it, macro of VL-RewardBench from the groups."""
    off = []
    for name, count, mean in (("genai_bench", 3, 3), ("vl_rewardbench", 3, 4)):
        for published in Benchmark.load(name).published:
            for judge, values in published.rows.items():
                if abs(sum(values[:count]) / count - values[mean]) > 0.08:
                    off.append((judge, values[mean]))
    assert off == []


def test_pampa_has_the_accuracy_of_its_bins() -> None:
    bins = [(116, 133), (109, 122), (25, 86), (7, 40), (2, 12), (1, 13)]
    rows = [
        Judged((place, number), "", (float(number < right),), {}, ((Judgement((5.0,)),),))
        for place, (right, size) in enumerate(bins)
        for number in range(size)
    ]
    (first,) = [metric for metric in Benchmark.load("pampa").metrics if metric.name == "first"]
    found = measure([first], rows, resamples=2)["first"]
    assert found.rows == 406 and found.value == 260 / 406 and round(found.value, 3) == 0.640


# ---------------------------------------------------------------- formulas


def test_correlations_distances_and_sizes() -> None:
    import numpy as np

    x, y = np.array([1.0, 2.0, 2.0, math.nan, 4.0]), np.array([1.0, 3.0, 2.0, 9.0, 4.0])
    assert spearman(x, y) == pytest.approx(0.948683298)  # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert pearson(x, y) == pytest.approx(4.5 / math.sqrt(4.75 * 5))
    assert math.isnan(pearson(np.ones(3), y[:3])) and math.isnan(pearson(x[:0], y[:0]))
    assert [edit_distance("CAB", other) for other in ("CAB", "CBA", "ABC", "")] == [0, 2, 2, 3]
    assert labels_needed(0.5, 0.1) == 97 and labels_needed(0.9, 0.05) == 139 and labels_needed(0.99, 0.5) == 30


def test_an_interval_holds_the_value_and_narrows_with_rows() -> None:
    def rows(count: int) -> list[Judged]:
        said = [(2.0, 1.0) if number % 4 else (1.0, 2.0) for number in range(count)]
        return [Judged(n, "", (1.0, 0.0), {}, ((Judgement(one),),)) for n, one in enumerate(said)]

    few, many = (measure([Metric("a", "accuracy")], rows(count))["a"] for count in (40, 400))
    assert few.low < few.value == 0.75 < few.high
    alike = measure([Metric("a", "accuracy")], rows(1))["a"]  # a single row that is wrong
    assert (alike.value, alike.low) == (0, 0) and alike.high == pytest.approx(0.7935, abs=1e-4)
    assert 0.07 < many.high - many.low < 0.1 < few.high - few.low < 0.35
