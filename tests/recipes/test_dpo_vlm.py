"""recipes/dpo_vlm: what a run leaves, what a resumed run keeps, what bad input gives. A real trainer and judge."""

from __future__ import annotations

import json
import runpy
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.nano import shapes

import pytest
from PIL import Image

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Generation,
    Judge,
    JudgeConfig,
    Pointwise,
    Request,
    Sampling,
    ScriptedEngine,
    TransformersEngine,
)
from support.jsonl import read
from support.late import late, needs
from support.recipe_runs import Run, pushed, words

needs("trl")
common = late("flexjudge_recipes.common")
sampling = late("flexjudge_recipes.dpo_vlm.sampling")
train = late("flexjudge_recipes.dpo_vlm.train")
vlm_task = late("flexjudge_recipes.nano.vlm_task")
datasets = late("datasets")
trl = late("trl")

PROGRAM = Path(flexjudge_recipes.__file__).parent / "dpo_vlm" / "train.py"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    """The program, short: 24 questions, two steps with a checkpoint each, 20 held-out images."""
    flags = {"questions": 24, "min_pairs": 2, "max_steps": 2, "logging_steps": 1, "measure_every": 1} | flags
    flags = {"output_dir": folder, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.001} | flags
    flags = {"judge": '{"model": "nano", "cache": "off"}'} | flags
    monkeypatch.setattr(sys, "argv", words(PROGRAM, flags))
    held_out = vlm_task.HeldOut.draw(20)
    monkeypatch.setattr(vlm_task.HeldOut, "draw", lambda count: held_out)
    train.main()


# ------------------------------------------------------------------------------------------------- a run, cut and whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pushed(run, tmp_path_factory.mktemp("dpo") / "run") as finished:
        yield finished


def test_a_run_leaves_pairs_a_model_a_card_and_a_curve(whole: Run) -> None:
    pairs = read(whole.folder / "_work" / "pairs" / "pairs.jsonl")
    assert pairs and all(row["scores"][0] - row["scores"][1] >= 1 for row in pairs)
    assert whole.report["pairs"] == len(pairs)
    assert list(whole.report["accuracy"]) == list(whole.report["well_formed"]) == ["0", "1", "2"]
    assert whole.report["accuracy_before"] == whole.report["accuracy"]["0"]
    card = (whole.folder / "README.md").read_text()
    assert "base_model" not in card and "fine-tuned version of nano" not in card.split("---")[1]
    for part in ("* rubric: ", "### Margins", "### Examples", "/train --config nano"):
        assert part in card
    assert str(whole.folder) not in card and socket.gethostname() not in card and str(whole.folder.parent) not in card
    assert "The judge was nano, format pointwise." in card and "| right on held-out images, by the truth | " in card
    assert (whole.folder / "model.safetensors").exists() and (whole.folder / "curve.png").stat().st_size > 1000


def test_the_pairs_train_from_any_folder(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(shutil.copytree(whole.folder / "_work" / "pairs", tmp_path / "copy"), tmp_path / "pairs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pairs = datasets.load_dataset(str(tmp_path / "pairs"), split="train")
    assert pairs[0]["images"][0].size == (56, 56) and len(pairs[0]["reasoning"]) == 2 and all(pairs[0]["reasoning"])
    trainer = trl.DPOTrainer(
        model=vlm_task.policy(),
        processing_class=vlm_task.processor(),
        train_dataset=pairs,
        args=trl.DPOConfig("out", max_steps=1, use_cpu=True, bf16=False, report_to="none", max_length=None),
    )
    assert trainer.train().training_loss > 0


def test_only_the_model_and_its_card_are_pushed(whole: Run) -> None:
    assert list(whole.pushed) == ["me/mine"]
    files = whole.pushed["me/mine"]
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= files
    known = {"generation_config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"}
    known |= {"README.md", "model.safetensors", "config.json", "tokenizer.json", "training_args.bin"}
    assert files <= known | {"chat_template.jinja", "curve.png"}
    assert "secret" not in (whole.folder / "README.md").read_text()


def test_a_cut_run_continues_as_the_whole_one(whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    for name in ("checkpoint-2", "report.json", "model.safetensors"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(train, "write_candidates", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(train, "annotate_file", lambda *_, **__: pytest.fail("judged again"))
    with pytest.raises(ConfigError, match=r"run holds an earlier run \(README.md, _work, .*--resume true"):
        run(tmp_path / "run", monkeypatch)
    run(tmp_path / "run", monkeypatch, resume=True)
    resumed = json.loads((tmp_path / "run" / "report.json").read_text())
    assert resumed["accuracy"] == whole.report["accuracy"]
    # The loss of the second step shows whether the weights of the first were loaded.
    first, second = ([row["loss"] for row in one["log"] if "loss" in row] for one in (resumed, whole.report))
    assert first == pytest.approx(second)


# ------------------------------------------------------------------------------------------------- samples and pairs


def judged_by(monkeypatch: pytest.MonkeyPatch, reply: Callable[[Request], str | Generation]) -> ScriptedEngine:
    """Puts in a policy that knows two answers, and this judge."""
    policy, judge = ScriptedEngine(lambda request: ("zebra", "gnu")[request.sampling.seed % 2]), ScriptedEngine(reply)
    monkeypatch.setattr(train, "policy_engine", lambda *_: policy)
    monkeypatch.setattr(JudgeConfig, "build", lambda self: Judge(Pointwise(), judge))
    return judge


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """A judge that prefers one of the two answers."""
    return judged_by(
        monkeypatch, lambda request: f"<think></think><answer>{4 + 3 * ('zebra' in str(request))}</answer>"
    )


def test_samples_wait_for_the_judge_and_are_kept(
    scripted: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"questions": 3, "prepare_only": True}
    with monkeypatch.context() as cut:
        cut.setattr(train, "annotate_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, monkeypatch, **flags)
    samples = (tmp_path / "_work" / "candidates.jsonl").read_bytes()
    run(tmp_path, monkeypatch, **flags, resume=True)
    assert (tmp_path / "_work" / "candidates.jsonl").read_bytes() == samples
    pairs = read(tmp_path / "_work" / "pairs" / "pairs.jsonl")
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs] == [("zebra", "gnu")] * 3
    asked = len(scripted.requests)
    run(tmp_path, monkeypatch, **flags, resume=True)
    assert len(scripted.requests) == asked and not (tmp_path / "report.json").exists()


def test_too_few_pairs_train_nothing_and_say_what_to_do(
    scripted: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"0 pairs are too few .*README.md counts why .* remove .*_work/pairs "):
        run(tmp_path, monkeypatch, questions=3, margin=5)
    shutil.rmtree(tmp_path / "_work" / "pairs")
    run(tmp_path, monkeypatch, questions=3, margin=3, prepare_only=True, resume=True)
    assert len(read(tmp_path / "_work" / "pairs" / "pairs.jsonl")) == 3


def test_a_failed_judgement_is_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_by(monkeypatch, lambda request: "<think></think><answer>7</answer>" if "zebra" in str(request) else "?")
    with pytest.raises(ConfigError, match="0 pairs are too few"):
        run(tmp_path / "some", monkeypatch, questions=3)
    skipped = read(tmp_path / "some" / "_work" / "pairs" / "pairs.skipped.jsonl")
    assert {row["why"] for row in skipped} == {"identical", "malformed"}  # samples may be equal
    assert len(skipped) == 3 * 6
    judged_by(monkeypatch, lambda request: Generation.failed("transport", "connection refused"))
    with pytest.raises(EngineError, match="connection refused"):
        run(tmp_path / "all", monkeypatch, questions=3)
    assert not (tmp_path / "all" / "_work" / "pairs" / "pairs.jsonl").exists()


def test_questions_are_the_same_for_a_seed() -> None:
    options = train.RecipeArguments(questions=4)
    one, other = ([(text, image.tobytes()) for text, image in train.questions(options, 1)] for _ in range(2))
    assert one == other and one != [(text, image.tobytes()) for text, image in train.questions(options, 2)]
    assert {text.split()[0] for text, _ in one} <= {"What", "How"} and shapes.CELL * 2 == 56


# --------------------------------------------------------------------------------------------------- failed samples


def failing(*seeds: int) -> ScriptedEngine:
    """A policy that fails for these seeds."""

    def reply(request: Request) -> Generation:
        if request.sampling.seed in seeds:
            return Generation.failed("engine", "out of memory")
        return Generation(f" answer {request.sampling.seed} ")

    return ScriptedEngine(reply)


def test_failed_samples_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert sampling.sample(failing(2), [("a",), ("b",)], 2, Sampling(seed=1)) == [["answer 1"], ["answer 1"]]
    assert "2 of 4 failed, the first: out of memory" in capsys.readouterr().out
    with pytest.raises(EngineError, match="gave no answer at all: out of memory"):
        sampling.sample(failing(1, 2), [("a",), ("b",)], 2, Sampling(seed=1))


def test_a_question_with_fewer_than_two_answers_is_no_row(tmp_path: Path) -> None:
    def reply(request: Request) -> Generation:
        wrong = "B" in str(request) and request.sampling.temperature < 1
        return Generation.failed("engine", "unlucky") if wrong else Generation("red circle")

    questions = [(name, Image.new("RGB", (8, 8))) for name in ("A", "B", "C")]
    sampling.write_candidates(tmp_path / "rows.jsonl", questions, ScriptedEngine(reply), 2, Sampling())
    assert [row["question"] for row in read(tmp_path / "rows.jsonl")] == ["A", "C"]
    with pytest.raises(EngineError):
        sampling.write_candidates(tmp_path / "none.jsonl", questions, failing(0), 2, Sampling())
    assert not (tmp_path / "none.jsonl").exists()


def test_the_policy_has_the_gpu_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "has_gpu_engine", lambda: True)
    engine: Any = sampling.policy_engine("a/b", None, 0.8)
    assert (engine.model, engine.gpu_memory_utilization) == ("a/b", 0.8)
    assert engine.limits == {"image": 1, "video": 0, "audio": 4}


def test_a_gpu_without_vllm_samples_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # vLLM is hidden from the tests
    assert isinstance(sampling.policy_engine("a/b", None, 0.8), TransformersEngine)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"answers": 1}, "sampled at 2 temperatures: 2, 4, ..., not 1"),
        ({"answers": 5}, "not 5"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"judge": '{"model": "nano", "votes": 3}'}, "3 votes at temperature 0"),
        ({"judge": '{"format": "rank"}'}, "format must be one of"),
        ({"judge": "nano"}, r"expected settings such as '\{\"model\": \"nano\"\}', found 'nano'"),
        ({"report_to": "trackio"}, r"report_to trackio: .*pip install trackio.* Or set --report_to none"),
        ({"dataset_name": "DATA"}, "no column 'problem'; it has id, answer"),
    ],
    ids=["one_answer", "odd_answers", "margin", "votes", "format", "judge", "tracker", "column"],
)
def test_bad_input_is_an_error_before_any_sampling(
    flags: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"id": 1, "answer": "a"}\n')
    flags = {name: tmp_path / "data" if value == "DATA" else value for name, value in flags.items()}
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", monkeypatch, **flags)
    assert not (tmp_path / "run").exists()


def test_the_program_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "earlier").touch()
    monkeypatch.setattr(sys, "argv", words(PROGRAM, {"output_dir": tmp_path}))
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    said = capsys.readouterr().err
    assert said.startswith("dpo_vlm: error: ") and "holds an earlier run (earlier)" in said and said.count("\n") == 1


# ------------------------------------------------------------------------------------------------- card and plot


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--config", "/home/me/x/nano.yaml", "--max_steps", "2"], "--config nano --max_steps 2"),
        (["--hub_token", "hf_secret", "--hub_token=hf_secret", "--beta=0.2"], "--beta=0.2"),
        (["--judge", '{"base_url": "http://gpu-7:8001/v1"}', "--use_peft"], "--use_peft"),
        (["--model_init", "/data/models/m", "--vllm_server_host", "gpu-7"], "--model_init m"),
        (["--x", "http://gpu-7:8001/v1", "--dataset_name", "/data/d"], "--x ADDRESS"),
    ],
    ids=["config", "token", "judge", "host", "address"],
)
def test_the_command_in_a_card_names_no_host_folder_or_key(words: list[str], shown: str) -> None:
    assert common.command(["/opt/r/dpo_vlm/train.py", *words]) == f"flexjudge recipes run dpo_vlm/train {shown}"


def test_no_label_of_a_plot_lies_on_its_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file: figures.append(self))
    wide = {"log-probability of an answer": {"chosen": {1: -123456.5, 2: -3.0}}}
    common.plot(tmp_path / "curve.png", "title", {"loss": {"loss": {1: 2.0, 2: 1.0}}, **wide})
    (figure,) = figures
    figure.draw_without_rendering()
    left, right = figure.axes
    assert left.get_tightbbox().x1 <= right.get_tightbbox().x0
