"""`doctor`: the right recommendation for judges that are known, and what too little to say anything gets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import ConfigError, EngineError, Generation, Request, ScriptedEngine
from flexjudge_reward.cli.main import main
from flexjudge_reward.offline.evaluate.doctor import Thresholds, doctor
from flexjudge_reward.offline.evaluate.labels import user_rows
from flexjudge_reward.offline.evaluate.metrics import Judged, Judgement
from flexjudge_reward.offline.evaluate.planted import planted_rows
from flexjudge_reward.offline.evaluate.settings import Setting, clustered, clusters, compared, pairs_of, settings_of
from support import doctor_cases, images, sounds
from support.doctor_cases import CASES, good, labelled, scripted
from support.jsonl import write


@pytest.mark.parametrize("name", CASES)
def test_the_recommendation_is_right(name: str, tmp_path: Path) -> None:
    found = doctor_cases.examined(CASES[name], tmp_path)
    assert doctor_cases.is_right(CASES[name], found), str(found)


def setting(found: Any, name: str) -> Setting:
    (one,) = [one for one in found.settings if one.name.rpartition(" (")[0] == name]
    return one


def test_a_biased_judge_shows_its_bias(tmp_path: Path) -> None:
    found = doctor_cases.examined(CASES["position-biased"], tmp_path)
    plain, swapped, alone = (setting(found, name) for name in ("pairwise", "pairwise + position swap", "pointwise"))
    assert plain.flips > 0.3 and plain.first_place > 0.6 and plain.ties < 0.2 < swapped.ties
    assert alone.agreement.value == 1 and math.isnan(alone.flips) and math.isnan(alone.first_place)
    assert any("position_swap=True makes ties of these" in reason for reason in found.reasons)
    assert swapped.tokens == 2 * plain.tokens


def test_a_noisy_judge_shows_that_votes_help(tmp_path: Path) -> None:
    found = doctor_cases.examined(CASES["noisy, pairs too"], tmp_path)
    one, nine = setting(found, "pointwise"), setting(found, "pointwise + 9 votes")
    assert one.agreement.value < nine.agreement.value - 0.05 and 0.5 < nine.consistency < 0.95
    assert math.isnan(one.consistency)
    assert any("so it is noise: votes" in reason for reason in found.reasons)


def test_a_row_that_one_of_the_formats_cannot_judge_is_found_before_another_is_asked(tmp_path: Path) -> None:
    asked: list[Request] = []

    def reply(request: Request) -> str:
        asked.append(request)
        return good(request)

    source = write(tmp_path / "labelled.jsonl", labelled(10, 9))
    with pytest.raises(ConfigError, match=r"row 1 \(id 0\): Listwise judges 2 to 8 candidates"):
        doctor(source, scripted(reply), formats=["pointwise", "listwise"])
    assert not asked


@pytest.mark.parametrize(
    ("part", "says"),
    [
        pytest.param({"audio": images.uri(sounds.wav(0.1), "audio/wav")}, "cannot hear sounds", id="sounds"),
        pytest.param({"molecule": "CCO", "as_": "tokens"}, "cannot read molecule tokens", id="molecule tokens"),
    ],
)
def test_what_the_judge_cannot_be_shown_is_no_verdict_on_the_judge(
    part: dict[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "question": [part, row["question"]]} for row in labelled(10)]
    assert main(["doctor", str(write(tmp_path / "labelled.jsonl", rows)), *NANO]) == 2
    assert says in capsys.readouterr().err


def test_budgets_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "labelled.jsonl", labelled())
    found = doctor(source, scripted(good), formats=["pointwise"], budgets=[32, 512])
    assert [one.max_tokens for one in found.settings] == [32, 512] and found.outcome == "go"


def test_too_few_labels_say_how_many_are_needed(tmp_path: Path) -> None:
    engine = ScriptedEngine(good)
    with pytest.raises(ConfigError, match=r"15 pairs of candidates .* at least 20; .* about 73 pairs"):
        doctor(write(tmp_path / "labelled.jsonl", labelled(5)), scripted(good))
    assert not engine.requests
    source, strict = write(tmp_path / "labelled.jsonl", labelled(8)), Thresholds(min_agreement=0.75)
    few = doctor(source, scripted(doctor_cases.noisy), formats=["pointwise"], thresholds=strict)
    assert few.outcome == "undecided" and few.needed > few.labels == 24
    assert f"about {few.needed} labelled pairs would decide, there are 24" in few.reasons[0]


def test_labels_that_decide_are_more_than_those_of_an_undecided_interval(tmp_path: Path) -> None:
    """Pairs of one row are right or wrong together, so that 180 pairs say no more than 30 rows."""
    rows = [
        {"id": n, "question": f"q{n}", "candidates": [f"{s} x{n}" for s in (9, 7, 5, 3)], "label": [4, 3, 2, 1]}
        for n in range(30)
    ]
    for row in rows[::10] + rows[1::10] + rows[2::10]:
        row["label"] = [1, 2, 3, 4]
    found = doctor(write(tmp_path / "labelled.jsonl", rows), scripted(good), formats=["pointwise"])
    assert found.outcome == "undecided" and found.labels == 180 and 300 < found.needed < 900


@pytest.mark.parametrize("planted", [False, True], ids=["labelled", "planted"])
def test_a_limit_draws_rows_at_random(planted: bool, tmp_path: Path) -> None:
    seen: dict[int, set[str]] = {}
    source = write(tmp_path / "labelled.jsonl", labelled(90))
    for seed in (1, 2):
        seen[seed] = set()

        def reply(request: Any, own: set[str] = seen[seed]) -> str:
            own.update(text.split("x")[-1] for text in doctor_cases.candidates(request))
            return doctor_cases.tags(5)

        doctor(source, scripted(reply), formats=["pointwise"], planted=planted, limit=30, seed=seed)
    assert seen[1] != seen[2] and not seen[1] <= {str(n) for n in range(31)}


def test_thresholds_decide(tmp_path: Path) -> None:
    source, judge = write(tmp_path / "labelled.jsonl", labelled()), scripted(doctor_cases.mute)
    assert doctor(source, judge, formats=["pointwise"], thresholds=Thresholds(0.7, 0.5)).outcome == "no-go"
    lenient = Thresholds(min_agreement=0.4, max_failed=0.6)
    assert doctor(source, judge, formats=["pointwise"], thresholds=lenient).outcome == "go"


def test_rows_that_always_time_out_are_failed_judgements(tmp_path: Path) -> None:
    def slow(request: Request) -> str | Generation:
        texts = doctor_cases.candidates(request)
        return Generation.failed("timeout", "late") if any(text.endswith("x7") for text in texts) else good(request)

    found = doctor(write(tmp_path / "labelled.jsonl", labelled()), scripted(slow), formats=["pairwise"])  # type: ignore[arg-type]
    assert found.outcome == "go" and found.settings[0].failed == 3 / 120
    with pytest.raises(EngineError, match="answers nothing now"):
        down = scripted(lambda _: Generation.failed("timeout", "late"))  # type: ignore[arg-type,return-value]
        doctor(write(tmp_path / "labelled.jsonl", labelled()), down, formats=["pairwise"])


# ---------------------------------------------------------------- figures, counted by hand


def test_cycles_ties_and_biases_are_counted(tmp_path: Path) -> None:
    row = {"id": 1, "question": "q", "candidates": ["**long** answer", "short", "mid one"], "label": [3, 2, 1]}
    rows = user_rows(write(tmp_path / "one.jsonl", [row]))[1]
    asked = pairs_of(rows)
    assert [one.id for one in asked] == [(1, 0, 1), (1, 0, 2), (1, 1, 2)]
    said = [((9.0, 1.0), (9.0, 1.0)), ((1.0, 9.0), (9.0, 1.0)), ((9.0, 1.0), (5.0, 5.0))]  # 0 > 1, 2 > 0, 1 > 2
    judged = [
        Judged(one.id, "", one.merits, {}, (tuple(Judgement(scores, tokens=10) for scores in orders),))
        for one, orders in zip(asked, said, strict=True)
    ]
    plain, swapped = settings_of("pairwise", 64, compared(asked, judged), judged, rollouts=3, seconds=6.0)
    assert plain.cycles == 1 and swapped.cycles == 0 and plain.flips == 2 / 3
    assert plain.agreement.value == 2 / 3 and swapped.agreement.value == (1 + 0.5 + 0.5) / 3 and swapped.ties == 2 / 3
    assert plain.tokens == 10_000 and swapped.tokens == 20_000 and plain.seconds == 1000
    # Labels prefer the longer twice in three and the judge once; of two pairs with Markdown the judge prefers it once.
    assert plain.longer == pytest.approx(1 / 3 - 2 / 3) and plain.styled == 0.5 - 1


def test_pairs_of_one_row_widen_the_interval() -> None:
    values = [1.0, 1.0, 0.0, 0.0] * 10
    together = clustered([n // 2 for n in range(40)], values)
    apart = clustered(list(range(40)), values)
    assert together.value == apart.value == 0.5 and together.high - together.low > 1.2 * (apart.high - apart.low)


TOGETHER: list[Any] = [
    pytest.param([("q", "a", "b"), ("r", "a", "b")], 2, id="two questions"),
    pytest.param([("q", "a", "b"), ("q", "c", "d")], 2, id="one question and no answer in common"),
    pytest.param([("q", "a", "b"), ("q", "a", "b")], 1, id="a row that is there twice"),
    pytest.param([("q", "a", "b"), ("q", "c", "d"), ("q", "d", "a")], 1, id="joined by a third"),
]


@pytest.mark.parametrize(("rows", "count"), TOGETHER)
def test_rows_with_an_answer_in_common_are_one_cluster(rows: list[Any], count: int, tmp_path: Path) -> None:
    given = [
        {"id": n, "question": question, "candidates": texts, "label": "A"} for n, (question, *texts) in enumerate(rows)
    ]
    assert len(set(clusters(user_rows(write(tmp_path / "rows.jsonl", given))[1]))) == count


def test_pairs_in_rows_of_their_own_say_no_more_than_in_one_row(tmp_path: Path) -> None:
    whole = labelled(12)
    apart = [
        {**row, "candidates": [row["candidates"][i] for i in pair], "label": [row["label"][i] for i in pair]}
        for row in whole
        for pair in ((0, 1), (0, 2), (1, 2))
    ]
    found = [
        doctor(write(tmp_path / "labelled.jsonl", rows), scripted(doctor_cases.noisy), formats=["pointwise"])
        for rows in (whole, apart, apart * 3)
    ]
    one, two, thrice = (own.settings[0].agreement for own in found)
    assert (two.value, two.low, two.high) == (one.value, one.low, one.high) and thrice.rows == 108
    assert thrice.value == one.value and abs(thrice.high - one.high) < 0.03


# ---------------------------------------------------------------- planted faults


def test_planted_faults_have_a_known_order(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "question": "q", "answer": "one two three four five six"},
        {"id": 2, "question": "r", "candidates": ["seven eight"], "reference": "nine ten eleven twelve"},
    ]
    first, second = planted_rows(write(tmp_path / "rows.jsonl", rows))
    assert first.merits == second.merits == (3, 2, 2, 1, 0)
    own, cut, run_on, mixed, other = (candidate[0] for candidate in first.example.candidates)
    assert run_on == f"{own} {other}" and (own, cut, other) == (
        "one two three four five six",
        "one two three",
        "nine ten eleven twelve",
    )
    assert sorted(mixed.split()) == sorted(cut.split()) and mixed != cut  # type: ignore[union-attr]


def test_planted_faults_need_answers_in_words(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": "q", "answer": ["", {"image": "data:image/png;base64,AAAA"}]}]
    with pytest.raises(ConfigError, match="faults are planted in answers in words"):
        planted_rows(write(tmp_path / "rows.jsonl", rows))


def test_doctor_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that counts words finds what was cut, not what was put out of order, and likes what runs on."""
    rows = [{"id": n, "question": f"q{n}", "answer": f"{'so ' * (3 + n)}it is {n}"} for n in range(12)]
    source = write(tmp_path / "rows.jsonl", rows)

    def words(request: Any) -> str:
        return doctor_cases.tags(*(min(10, len(text.split())) for text in doctor_cases.candidates(request)))

    found = doctor(source, scripted(words), formats=["pointwise"], planted=True)
    assert found.labels == 60 and 0.4 < found.settings[0].agreement.value < 0.95 and found.settings[0].longer > 0


def test_a_judge_that_does_not_read_to_the_end_is_refused_whatever_its_agreement(tmp_path: Path) -> None:
    found = doctor_cases.examined(CASES["does not read to the end"], tmp_path)
    assert all(one.agreement.value == 1 and one.unread == 1 and one.unread_of == 40 for one in found.settings)
    assert sum("does not read to the end: 100.0% of 40 answers" in reason for reason in found.reasons) == len(
        found.settings
    )
    source, beginning = str(tmp_path / "labelled.jsonl"), Thresholds(max_unread=1)
    assert doctor(source, scripted(doctor_cases.hasty), formats=["pairwise"], thresholds=beginning).outcome == "go"
    assert setting(doctor(source, scripted(good), formats=["pairwise"]), "pairwise").unread == 0


def test_endings_need_texts_and_another_question(tmp_path: Path) -> None:
    alike = [{**row, "question": "q"} for row in labelled(10)]
    found = doctor(write(tmp_path / "labelled.jsonl", alike), scripted(good), formats=["pointwise"])
    assert found.outcome == "go" and math.isnan(found.settings[0].unread) and found.settings[0].unread_of == 0
    assert found.as_dict()["settings"][0]["unread"] is None


# ---------------------------------------------------------------- the command line, and the embedded judge


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    engine = ScriptedEngine(good)
    monkeypatch.setattr("flexjudge_reward.engines.transformers.TransformersEngine", lambda *_, **__: engine)
    return str(write(tmp_path / "labelled.jsonl", labelled(10)))


NANO = ("--model", "nano", "--cache", "off")


def test_the_exit_code_is_for_ci(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", source, *NANO, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "go" and found["recommended"] == "pointwise (256 tokens)" and found["labels"] == 30
    assert main(["doctor", source, *NANO, "--min-agreement", "1", "--budgets", "64,128"]) == 1
    out = capsys.readouterr().out
    assert "no-go: 30 labelled pairs" in out and "| pairwise + position swap (128 tokens) | 100.0%" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param((), "name the labelled file", id="no file"),
        pytest.param(("x.jsonl", "--formats", "best"), "formats are pointwise", id="an unknown format"),
        pytest.param(("x.jsonl", "--format", "pairwise"), "give --formats pairwise", id="one format"),
        pytest.param(("x.jsonl", "--budgets", "many"), "whole numbers such as 256,1024", id="no number"),
        pytest.param(("none.jsonl",), "no file or folder", id="no such file"),
        pytest.param(("x.jsonl", "--min-agreement", "60"), "min_agreement is a share from 0 to 1", id="a percentage"),
        pytest.param(("x.jsonl", "--max-failed", "nan"), "max_failed is a share from 0 to 1", id="no share"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments, *NANO]) == 2
    assert says in capsys.readouterr().err
