"""Recipes that are not GRPO, run short: what they leave, what a second run finds, what bad input gets."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl")

from support.hub import fake_hub

from flexjudge_reward import ConfigError, EngineError, Example, Generation, Judge, JudgeConfig, Score

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/dpo_vlm.py as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("dpo_vlm")


@pytest.fixture
def common(recipe: Any) -> Any:
    """recipes/common.py as a module."""
    return importlib.import_module("common")


# ------------------------------------------------------------------------------------------------------------- DPO


def run(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    flags = {"questions": 24, "answers": 4, "held_out": 20, "num_train_epochs": 1, "fewest_pairs": 2} | flags
    flags |= {"output_dir": folder, "judge_cache": "off", "logging_steps": 1}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["dpo_vlm.py", "--config", str(RECIPES / "configs" / "dpo_nano.yaml"), *words])
    recipe.main()


def test_dpo_samples_judges_and_trains_and_a_second_run_only_trains(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, tmp_path, monkeypatch, prepare_only=True)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows and all(row["scores"][0] - row["scores"][1] >= 1 for row in rows)
    assert not (tmp_path / "report.json").exists()
    first = capsys.readouterr().out
    assert "judge          {" in first

    run(recipe, tmp_path, monkeypatch)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pairs"] == len(rows) and 0 <= report["accuracy_after"] <= 1
    card = (tmp_path / "README.md").read_text()
    assert "base_model: nano" in card and "Judge: nano, format score, rubric helpfulness." in card
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "curve.png").stat().st_size > 1000
    output = capsys.readouterr().out
    assert "ground truth" in output and "well-formed" in output and "judge   " not in output


def test_too_few_pairs_are_counted_and_nothing_is_trained(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"0 pairs are too few to train on .*pairs.md counts why"):
        run(recipe, tmp_path, monkeypatch, questions=2, margin=9.5)
    with pytest.raises(ConfigError, match="no column 'problem'; it has id, answer"):
        data = tmp_path / "data"
        data.mkdir()
        (data / "train.jsonl").write_text('{"id": 1, "answer": "a"}\n')
        run(recipe, tmp_path / "other", monkeypatch, dataset_name=data)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        pytest.param(None, None, id="not given"),
        pytest.param("false", None, id="false on the command line"),
        pytest.param(False, None, id="false in a file"),
        pytest.param("true", "checkpoint-20", id="true on the command line"),
        pytest.param(True, "checkpoint-20", id="true in a file"),
        pytest.param("checkpoint-4", "checkpoint-4", id="a folder"),
        pytest.param("checkpoint-5", "there is no checkpoint at", id="a folder that is not there"),
    ],
)
def test_recipes_go_on_from_the_checkpoint_that_is_named(
    wanted: Any, found: str | None, tmp_path: Path, common: Any
) -> None:
    for step in (4, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    named = tmp_path / wanted if isinstance(wanted, str) and "-" in wanted else wanted
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=named)
    if found and found.startswith("there"):
        with pytest.raises(ConfigError, match=found):
            common.checkpoint(args, {})
    else:
        assert common.checkpoint(args, {"seed": 1}) == (found and str(tmp_path / found))
    with pytest.raises(ConfigError, match=r"no checkpoint in .*nowhere to go on from"):
        common.checkpoint(SimpleNamespace(output_dir=str(tmp_path / "nowhere"), resume_from_checkpoint=True), {})


# ------------------------------------------------------------------------------- what another run left, and resuming


@pytest.fixture
def judge_asked(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two answers to each question that no policy samples, and a scripted judge of them; what it was asked."""
    from flexjudge_reward import Judge, JudgeConfig, Score
    from flexjudge_reward.engines.scripted import ScriptedEngine
    from flexjudge_reward.prompts.quoting import flatten

    asked: list[str] = []

    def reply(prompt: Any) -> str:
        asked.append("".join(map(str, flatten(prompt.messages[-1]))))
        return f"<think>x</think><answer>{7 if 'zebra' in asked[-1] else 4}</answer>"

    monkeypatch.setattr(
        recipe, "_answers", lambda options, policy, folder, seed, rows: [["zebra", "gnu"] for _ in rows]
    )
    monkeypatch.setattr(JudgeConfig, "build", lambda self: Judge(Score(), ScriptedEngine(reply)))
    return asked


def prepare(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    run(recipe, folder, monkeypatch, **{"questions": 3, "prepare_only": True} | flags)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        pytest.param({"seed": 2}, "seed was 1 and is 2", id="seed"),
        pytest.param({"model_name_or_path": "other"}, "model_name_or_path was 'base .*' and is 'other'", id="model"),
        pytest.param({"questions": 4}, "questions was 3 and is 4", id="questions"),
        pytest.param({"answer_tokens": 9}, "answer_tokens was 8 and is 9", id="tokens"),
        pytest.param({"dataset_name": "org/name"}, "dataset_name was 'nano' and is 'org/name'", id="data set"),
    ],
)
def test_answers_of_other_settings_are_an_error_that_says_which(
    flag: dict[str, Any],
    message: str,
    tmp_path: Path,
    recipe: Any,
    judge_asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(recipe, tmp_path, monkeypatch)
    held = (tmp_path / "candidates.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=rf"sampled with other settings: {message}\. Set it back, give another"):
        prepare(recipe, tmp_path, monkeypatch, **flag)
    assert (tmp_path / "candidates.jsonl").read_bytes() == held
    prepare(recipe, tmp_path, monkeypatch)  # nothing was spoilt by it


def test_a_run_that_sampled_nothing_holds_up_no_other(
    tmp_path: Path, recipe: Any, judge_asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"id": 1, "answer": "a"}\n')
    with pytest.raises(ConfigError, match="no column 'problem'"):
        prepare(recipe, tmp_path, monkeypatch, dataset_name=data)
    prepare(recipe, tmp_path, monkeypatch)
    assert len(judge_asked) == 6


def test_pairs_of_another_margin_or_judge_are_judged_again(
    tmp_path: Path,
    recipe: Any,
    judge_asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match=r"Lower the margin, or ask .* in another output_dir"):
        prepare(recipe, tmp_path, monkeypatch, margin=5)
    prepare(recipe, tmp_path, monkeypatch, margin=3)
    assert "judge          again, because margin was 5.0 and is 3.0" in capsys.readouterr().out
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 3 and len(judge_asked) == 12
    prepare(recipe, tmp_path, monkeypatch, margin=3)
    assert len(judge_asked) == 12
    prepare(recipe, tmp_path, monkeypatch, margin=3, judge_rubric="molecule")
    assert "judge_rubric was 'helpfulness " in capsys.readouterr().out and len(judge_asked) == 18


def test_an_unfinished_annotation_of_another_margin_is_no_obstacle(
    tmp_path: Path, recipe: Any, judge_asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexjudge_reward.offline import annotate

    monkeypatch.setattr(annotate, "BATCH", 1)
    with monkeypatch.context() as killed:
        killed.setattr(annotate.Journal, "finish", lambda self, card: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, tmp_path, monkeypatch, margin=1)
    assert (tmp_path / "pairs.jsonl.progress").exists()
    prepare(recipe, tmp_path, monkeypatch, margin=2)
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 3


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, common: Any) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint="true", seed=1, beta=0.1, max_steps=4)
    here, there = tmp_path / "here" / "policy", tmp_path / "there" / "policy"
    for folder in (here, there):
        folder.mkdir(parents=True)
    model = SimpleNamespace(model_name_or_path=str(here), model_revision="main", use_peft=True, lora_r=8, lora_alpha=8)
    model.lora_target_modules = ["q_proj"]
    found = tmp_path / "checkpoint-2"
    found.mkdir()
    noted = common.Noted(common.training(args, model) | {"judge_model": "nano"})
    noted.on_save(args, SimpleNamespace(is_world_process_zero=True, global_step=2), None)
    args.max_steps, model.model_name_or_path = 8, str(there)  # trained on, and in a folder that was moved
    assert common.checkpoint(args, common.training(args, model)) == str(found)
    args.beta, model.lora_r = 0.2, 16
    with pytest.raises(ConfigError, match=r"of another run: beta was 0.1 and is 0.2, lora_r was 8 and is 16. Set it"):
        common.checkpoint(args, common.training(args, model))


def test_a_model_is_known_by_its_weights_and_not_by_where_it_lies(common: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder, weights in ((here, b"1" * 5_000_000), (there, b"1" * 5_000_000)):
        (folder / "checkpoint-1").mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
    (there / "checkpoint-1" / "model.safetensors").write_bytes(b"of a run that goes on")
    assert common.model_of(str(here)) == common.model_of(str(there))
    (there / "model.safetensors").write_bytes(b"1" * 4_999_999 + b"2")
    assert common.model_of(str(here)) != common.model_of(str(there))
    assert common.model_of("org/name") == common.model_of("org/name", "main") != common.model_of("org/name", "v2")


def test_pairs_outlive_the_server_that_judged_them(common: Any, tmp_path: Path) -> None:
    candidates, pairs = tmp_path / "candidates.jsonl", tmp_path / "pairs.jsonl"
    candidates.write_text("{}\n")
    judge = [JudgeConfig.resolve({"base_url": f"http://{host}:8001/v1", "model": "m"}) for host in ("one", "two")]
    assert not common.judged(pairs, judge[0], 1.0, candidates)
    pairs.write_text("{}\n")
    assert common.judged(pairs, judge[1], 1.0, candidates) and pairs.exists()


def test_what_was_trained_is_pushed_and_not_what_it_was_made_from(
    common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["README.md", "config.json", "merges.txt", "model.safetensors"]
    made_from = ["candidates.jsonl", "curve.json", "judge.sqlite", "pairs.jsonl", "pairs.jsonl.settings.json"]
    for name in (*kept, *made_from, "report.json", "pictures/0.png", "checkpoint-1/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pushed = fake_hub(common, monkeypatch)
    common.publish(SimpleNamespace(hub_token="secret", hub_model_id="mine", hub_private_repo=None), tmp_path)
    assert pushed == {"token": "secret", "repo": "someone/mine", "files": kept}


def test_a_judge_is_known_by_what_it_is_and_not_where(common: Any, tmp_path: Path) -> None:
    def noted(**given: Any) -> Any:
        return common.judged_by(JudgeConfig.resolve({"rubric": str(rubric), **given}, {}, lambda: False))

    rubric = tmp_path / "mine.toml"
    rubric.write_text('criteria = "Be right."\n')
    here = noted(model="org/judge", base_url="http://one:8001/v1", cache="a.sqlite")
    assert here == noted(model="org/judge", base_url="http://two:8001/v1", cache="off")
    assert here["judge_rubric"].startswith("mine.toml ") and json.dumps(here)
    assert here != noted(model="org/other", base_url="http://one:8001/v1")
    rubric.write_text('criteria = "Be brief."\n')
    assert here != noted(model="org/judge", base_url="http://one:8001/v1")


def grpo(folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> dict[str, Any]:
    """grpo_vlm.py, run short with a checkpoint after each step; its report."""
    flags = {"output_dir": folder, "judge_cache": folder / "judge.sqlite", "held_out": 20, "questions": 32} | flags
    flags |= {"num_generations": 4, "per_device_train_batch_size": 16, "save_strategy": "steps", "save_steps": 1}
    words = [str(word) for name, value in ({"measure_every": 1} | flags).items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["grpo_vlm.py", "--config", str(RECIPES / "configs" / "grpo_nano.yaml"), *words])
    importlib.import_module("grpo_vlm").main()
    return dict(json.loads((folder / "report.json").read_text()))


def test_grpo_that_is_resumed_reports_the_before_of_the_unbroken_run(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The accuracies of untrained steps may be equal, so that each measurement is told apart by its number.
    measured = iter(range(100))
    monkeypatch.setattr(importlib.import_module("grpo_vlm").HeldOut, "accuracy", lambda *_: next(measured) / 100)
    unbroken = grpo(tmp_path, monkeypatch, max_steps=2)
    assert unbroken["accuracy"] == {"0": 0.0, "1": 0.01, "2": 0.02}
    resumed = grpo(tmp_path, monkeypatch, max_steps=2, resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert resumed["accuracy"] == {"0": 0.0, "1": 0.01, "2": 0.03} and resumed["accuracy_before"] == 0.0
    assert "| 0.0% | 3.0% |" in (tmp_path / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"beta was 0.0 and is 0.5"):
        grpo(tmp_path, monkeypatch, max_steps=3, resume_from_checkpoint=True, beta=0.5)
    (tmp_path / "curve.json").unlink()
    assert grpo(tmp_path, monkeypatch, max_steps=3, resume_from_checkpoint=True)["accuracy_before"] is None
    assert grpo(tmp_path, monkeypatch, max_steps=1)["accuracy"] == {"0": 0.05, "1": 0.06}  # begins with nothing


def test_dpo_that_is_resumed_reports_the_before_of_the_unbroken_run(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 0.001}
    run(recipe, tmp_path, monkeypatch, **flags)
    unbroken = json.loads((tmp_path / "report.json").read_text())
    run(recipe, tmp_path, monkeypatch, **flags, resume_from_checkpoint=tmp_path / "checkpoint-1")
    resumed = json.loads((tmp_path / "report.json").read_text())
    assert resumed["shares"] == unbroken["shares"]
    # The loss of the second step tells whether the weights of the first were there.
    assert [row["loss"] for row in resumed["log"][:2]] == pytest.approx([row["loss"] for row in unbroken["log"][:2]])
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ConfigError, match=r"beta was 0.1 and is 0.3, pairs was '.*' and is '"):
        run(recipe, tmp_path, monkeypatch, **flags, resume_from_checkpoint="true", beta=0.3)


def test_grpo_names_the_columns_that_there_are(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grpo_vlm: Any = importlib.import_module("grpo_vlm")
    (tmp_path / "train.jsonl").write_text('{"id": 1, "query": "a"}\n')
    options = grpo_vlm.RecipeArguments(dataset_name=str(tmp_path))
    with pytest.raises(ConfigError, match="no column 'problem'; it has id, query"):
        grpo_vlm.training_data(options, 1)
    options.question_column, options.reference_column = "query", "solution"
    with pytest.raises(ConfigError, match="no column 'solution'; it has id, query"):
        grpo_vlm.training_data(options, 1)
    words = ["--config", str(RECIPES / "configs" / "grpo_nano.yaml"), "--output_dir", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["grpo_vlm.py", *words, "--resume_from_checkpoint", "true"])
    with pytest.raises(SystemExit, match="grpo_vlm: there is no checkpoint in"):
        runpy.run_path(str(RECIPES / "grpo_vlm.py"), run_name="__main__")


def test_samples_that_failed_are_left_out_and_counted(recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failed = Generation.failed("engine", "out of memory")
    replies = [Generation("a "), failed, failed, failed, Generation(" b"), Generation("c")]
    assert recipe.written(replies, 2) == [["a"], [], ["b", "c"]]
    assert "3 of 6 failed, the first: out of memory" in capsys.readouterr().out
    with pytest.raises(EngineError, match="gave no answer at all: out of memory"):
        recipe.written([failed] * 4, 2)


def test_a_policy_that_answers_nothing_leaves_no_samples(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexjudge_reward.engines import ScriptedEngine

    options = recipe.RecipeArguments(questions=3)
    fails = lambda prompt: Generation.failed("engine", "takes text only")  # noqa: E731
    one_fails = lambda prompt: fails(prompt) if prompt.sample else "red circle"  # noqa: E731
    for reply in (fails, one_fails):
        monkeypatch.setattr(recipe, "policy_engine", lambda *given, reply=reply: ScriptedEngine(reply))
        if reply is fails:
            with pytest.raises(EngineError, match="takes text only"):
                recipe.sample_answers(options, "policy", tmp_path, 1)
            assert not (tmp_path / "candidates.jsonl").exists()
    rows = recipe.sample_answers(options, "policy", tmp_path, 1).read_text().splitlines()
    assert [json.loads(row)["candidates"] for row in rows] == [["red circle"] * 2] * 3
    cold_fails = lambda prompt: fails(prompt) if prompt.sample or "B" in str(prompt) else "red circle"  # noqa: E731
    monkeypatch.setattr(recipe, "policy_engine", lambda *given: ScriptedEngine(cold_fails))
    asked = [(name, importlib.import_module("PIL.Image").new("RGB", (8, 8))) for name in ("A", "B", "C")]
    monkeypatch.setattr(recipe, "questions", lambda *given: iter(asked))
    rows = recipe.sample_answers(options, "policy", tmp_path / "fewer", 1).read_text().splitlines()
    assert [json.loads(row)["question"] for row in rows] == ["A", "C"]


def test_the_policy_has_the_device_for_itself(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    engine = recipe.policy_engine("a/b", None, 0.8)
    assert (engine.model, engine.gpu_memory_utilization, engine.limits) == ("a/b", 0.8, {"image": 1, "video": 0})


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"answers": 1}, {}, "sampled at 2 temperatures: ask for 2, 4 or so, not 1"),
        ({"answers": 5}, {}, "not 5"),
        ({}, {"FLEXJUDGE_VOTES": "3"}, "3 votes at temperature 0"),
        ({"judge_format": "rank"}, {}, "'format' must be one of"),
    ],
    ids=["one_answer", "odd_answers", "votes", "format"],
)
def test_what_cannot_be_judged_is_not_sampled(
    tmp_path: Path,
    recipe: Any,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    environ: dict[str, str],
    message: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        run(recipe, tmp_path, monkeypatch, **flags)
    assert not (tmp_path / "candidates.jsonl").exists() and not (tmp_path / "pictures").exists()


def test_best_of_n_leaves_out_what_the_judge_did_not_score(recipe: Any, tmp_path: Path) -> None:
    from flexjudge_reward.engines import ScriptedEngine
    from flexjudge_reward.offline.rerank import rerank

    best_of_n: Any = importlib.import_module("best_of_n")
    asked = [best_of_n.Asked((f"question {n}",), lambda reply: "right" in reply) for n in range(3)]
    left = list(zip(asked, [["right", "wrong"], ["wrong", "right"], ["wrong", "right"]], strict=True))
    examples = [Example(one.question, texts) for one, texts in left]
    reply = lambda prompt: "?" if "question 2" in str(prompt) else "<think></think><answer>7</answer>"  # noqa: E731
    found = best_of_n.shares(left, rerank(examples, Judge(Score(), ScriptedEngine(reply))))
    assert (found["first"], found["oracle"]) == (0.5, 1.0)
    with pytest.raises(EngineError, match=r"scored no answer at all: {'malformed': 6}"):
        best_of_n.shares(left, rerank(examples, Judge(Score(), ScriptedEngine(lambda prompt: "?"))))
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "images": []}\n')
    with pytest.raises(ConfigError, match=r"line 1: a row has 'question', 'images' and 'answer', not \['images', 'q"):
        best_of_n.file_questions(tmp_path / "rows.jsonl", tmp_path, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grpo_vlm", ["--config", str(RECIPES / "configs" / "grpo_nano.yaml")]),
        ("dpo_vlm", ["--config", str(RECIPES / "configs" / "dpo_nano.yaml")]),
        ("molecules", ["dpo", "--config", str(RECIPES / "configs" / "molecules_dpo.yaml")]),
    ],
    ids=["grpo_vlm", "dpo_vlm", "molecules"],
)
def test_a_tracker_that_is_missing_is_an_error_before_the_first_sample(
    name: str, words: list[str], tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "molecules":
        pytest.importorskip("rdkit")
    module: Any = importlib.import_module(name)
    words = [*words, "--output_dir", str(tmp_path / "run"), "--report_to", "trackio"]
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(ConfigError, match=r"report_to trackio: .*pip install trackio.* Or set --report_to none"):
        module.main(words) if name == "molecules" else module.main()
    assert not (tmp_path / "run").exists()
