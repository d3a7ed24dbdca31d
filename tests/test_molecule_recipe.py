"""The molecule recipes, run short: every stage, what a second run finds, and what bad input gets.

The policy is a real one that knows a dozen molecules by heart; except where it is itself trained, the judge is its own
teacher behind the scripted engine.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("rdkit")

from flexjudge_reward import (
    ConfigError,
    EngineError,
    Example,
    FlexJudgeReward,
    Generation,
    Judge,
    JudgeConfig,
    Media,
    Prompt,
    Sampling,
    Score,
    TransformersEngine,
)
from flexjudge_reward.engines.scripted import ScriptedEngine
from flexjudge_reward.prompts.quoting import flatten

RECIPES = Path(__file__).parent.parent / "recipes"
# Short and canonical, to be learned by heart in seconds.
DOZEN = [
    *("Cc1ccccc1", "Cc1ccco1", "OC1CCCCC1", "CN1CCOCC1", "Clc1ccccc1", "FC1CCCCC1", "CCOc1ccccc1", "NC1CCCC1"),
    *("O=C(O)c1ccccc1", "c1ccsc1", "CC(=O)NC1CC1", "CCN1CCCCC1"),
]
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """recipes/molecules.py as a module."""
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("molecules")


def teacher(prompt: Prompt) -> str:
    judge: Any = importlib.import_module("molecule_judge")
    return str(judge.trace("".join(map(str, flatten(prompt.messages[-1])))))


@pytest.fixture
def taught(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's teacher in place of the judge, wherever settings would build one."""
    monkeypatch.setattr(JudgeConfig, "build", lambda self: Judge(Score("molecule", "nano"), ScriptedEngine(teacher)))
    monkeypatch.setattr(recipe.stages, "prepared_judge", lambda options: "nano")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a policy that knows a dozen molecules."""
    folder = tmp_path_factory.mktemp("molecules")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))
        policy: Any = importlib.import_module("molecule_policy")
        patch.setattr(policy, "known", lambda seed: DOZEN)
        patch.setattr(policy, "BATCH", 16)
        policy.pretrain(folder / "policy-1", 1, 140)
        yield folder


def run(recipe: Any, stage: str, prepared: Path, folder: Path, **flags: Any) -> None:
    flags = {"prepared": prepared, "output_dir": folder, "judge_cache": "off", "samples": 24, "judged": 8} | flags
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    config = RECIPES / "configs" / f"molecules_{stage}.yaml"
    recipe.main([stage, "--config", str(config), *words])


def test_a_command_line_that_names_no_stage_or_setting(recipe: Any) -> None:
    with pytest.raises(SystemExit, match="the first word is one of pretrain, judge, best_of_n, dpo, grpo"):
        recipe.main(["ppo"])
    with pytest.raises(ValueError, match="--no_such_setting"):
        recipe.main(["grpo", "--output_dir", "x", "--use_cpu", "true", "--bf16", "false", "--no_such_setting", "1"])


def test_best_of_n_rises_to_what_the_judge_can_see(recipe: Any, taught: None, prepared: Path, tmp_path: Path) -> None:
    run(recipe, "best_of_n", prepared, tmp_path, most=4, groups=12)
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found["judge"]) == ["1", "2", "4"] and found["samples"] == 48
    assert found["judge"]["1"] == found["best"]["1"] <= found["best"]["2"] <= found["best"]["4"]
    assert found["judge"]["4"] > found["judge"]["1"]
    assert (tmp_path / "best_of_n.png").stat().st_size > 1000


def test_a_judge_that_fails_chooses_nothing(
    recipe: Any, taught: None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def judged_by(reply: Any) -> None:
        judge = Judge(Score("molecule", "nano"), ScriptedEngine(reply))
        monkeypatch.setattr(JudgeConfig, "build", lambda self: judge)

    judged_by(lambda prompt: "no answer")
    with pytest.raises(EngineError, match="scored no molecule at all"):
        run(recipe, "best_of_n", prepared, tmp_path, most=2, groups=6)
    late = Generation.failed("timeout", "late")
    judged_by(lambda prompt: late if "O" in str(prompt) else teacher(prompt))
    capsys.readouterr()
    run(recipe, "best_of_n", prepared, tmp_path, most=2, groups=6)
    assert "molecules without a score: {'timeout': " in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert all(found["judge"][size] <= found["best"][size] for size in ("1", "2"))
    assert found["judge"]["1"] == found["best"]["1"]  # over the same molecules


def test_dpo_samples_judges_and_trains_and_a_second_run_only_trains(
    recipe: Any, taught: None, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"rows": 12, "answers": 8, "fewest_pairs": 2, "per_device_train_batch_size": 4, "max_steps": 2}
    run(recipe, "dpo", prepared, tmp_path, **few)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) >= 2 and all(pair["scores"][0] - pair["scores"][1] >= 1 for pair in pairs)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"validity", "uniqueness", "novelty", "diversity", "qed", "sa", "judge"} <= set(report["after"])
    card = (tmp_path / "README.md").read_text()
    assert "| validity |" in card and "rubric molecule: Weigh how drug-like" in card
    assert (tmp_path / "curve.png").stat().st_size > 1000 and (tmp_path / "model.safetensors").exists()
    assert "judge          {" in capsys.readouterr().out
    run(recipe, "dpo", prepared, tmp_path, **few)
    assert "judge          {" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"judged pairs are too few to train on .*pairs.md counts why"):
        run(recipe, "dpo", prepared, tmp_path, **few | {"fewest_pairs": 999})
    with pytest.raises(ConfigError, match=r"sampled with other settings: seed was 1 and is 2\. Set it back, give"):
        run(recipe, "dpo", prepared, tmp_path, **few | {"seed": 2, "model_name_or_path": prepared / "policy-1"})
    with pytest.raises(ConfigError, match="Lower the margin, or ask for more rows or answers in another"):
        run(recipe, "dpo", prepared, tmp_path, **few | {"margin": 9.5})
    assert "judge          again, because margin was 1.0 and is 9.5" in capsys.readouterr().out


def test_novelty_is_measured_where_it_is_known_what_a_policy_was_pretrained_on(
    recipe: Any, taught: None, prepared: Path, tmp_path: Path
) -> None:
    few = {"num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 1}
    run(recipe, "grpo", prepared, tmp_path / "one", **few)
    run(recipe, "grpo", prepared, tmp_path / "two", model_name_or_path=tmp_path / "one", **few)
    found = json.loads((tmp_path / "two" / "report.json").read_text())
    assert "novelty" in found["before"] and "novelty" in found["after"]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(prepared / "policy-1", elsewhere, ignore=shutil.ignore_patterns("pretrained.json"))
    run(recipe, "grpo", prepared, tmp_path / "two", model_name_or_path=elsewhere, **few)  # `prepared` has a policy-1
    found = json.loads((tmp_path / "two" / "report.json").read_text())
    assert "novelty" not in found["before"] and "novelty" not in found["after"]
    assert not (tmp_path / "two" / "pretrained.json").exists()


def test_a_resumed_run_reports_the_before_of_the_unbroken_one(
    recipe: Any, taught: None, prepared: Path, tmp_path: Path
) -> None:
    few = {"num_generations": 8, "per_device_train_batch_size": 8, "measure_every": 1, "learning_rate": 0.002}
    few |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run(recipe, "grpo", prepared, tmp_path, **few)
    unbroken = json.loads((tmp_path / "report.json").read_text())
    run(recipe, "grpo", prepared, tmp_path, **few, resume_from_checkpoint=tmp_path / "checkpoint-1")
    resumed = json.loads((tmp_path / "report.json").read_text())
    assert resumed["before"] == unbroken["before"] != unbroken["curve"]["1"]
    assert list(resumed["curve"]) == ["0", "1", "2"] and resumed["curve"]["1"] == unbroken["curve"]["1"]
    with pytest.raises(ConfigError, match=r"beta was 0.04 and is 0.1, diversity was 0.0 and is 0.5"):
        run(recipe, "grpo", prepared, tmp_path, **few, resume_from_checkpoint="true", beta=0.1, diversity=0.5)


def test_grpo_trains_and_measures(recipe: Any, taught: None, prepared: Path, tmp_path: Path) -> None:
    few = {"num_generations": 8, "per_device_train_batch_size": 8, "max_steps": 2, "measure_every": 1}
    run(recipe, "grpo", prepared, tmp_path, diversity=0.5, logging_steps=1, **few)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["curve"]) == ["0", "1", "2"] and report["about"]["diversity"] == 0.5
    (first, *_) = [row for row in report["log"] if "molecule/valid" in row]
    assert 0 <= first["molecule/judge"] <= 1


# ------------------------------------------------------------------------------------------------------------ reward


def reward(recipe: Any, engine: ScriptedEngine, **options: Any) -> Any:
    judge = FlexJudgeReward(Judge(Score("molecule", "nano"), engine), max_failure_rate=1.0)
    return recipe.MoleculeReward(judge, "Write a molecule.", options.get("diversity", 0.0))


def test_a_policy_goes_on_from_its_prompt(recipe: Any, taught: None, prepared: Path, tmp_path: Path) -> None:
    """As a language model does that is asked; what it is given is not part of what it wrote."""
    few = {"max_steps": 2, "per_device_train_batch_size": 16, "num_generations": 16, "policy_prompt": "<bos>CC"}
    run(recipe, "grpo", prepared, tmp_path, **few)
    policy, models = recipe.molecule_policy, importlib.import_module("trl").ModelConfig()
    model, tokenizer = policy.load(str(tmp_path), models, "cpu")
    (text,) = policy.sample(model, tokenizer, 1, 1, 0.01)
    (rest,) = policy.sample(model, tokenizer, 1, 1, 0.01, prompt=f"<bos>{text[:3]}")
    assert len(rest) > 3 and text == text[:3] + rest
    tokenizer.bos_token = None
    with pytest.raises(ConfigError, match="has no token that begins a text: say as policy_prompt"):
        policy.sample(model, tokenizer, 1, 1)


@pytest.mark.parametrize(
    ("template", "given", "found"),
    [
        pytest.param(None, None, "<bos>", id="the_token_itself"),
        pytest.param("<bos> $A", None, "", id="written_by_the_tokenizer"),
        pytest.param("<bos> $A", "CC", "CC", id="a_prompt_after_it"),
        pytest.param("<bos> $A", "<bos>CC", "<bos>, which the tokenizer of .* writes itself", id="twice"),
        pytest.param("<bos> $A <eos>", None, "ends every text, so nothing can go on", id="ended"),
        pytest.param("$A <eos>", "CC", "ends every text, so nothing can go on", id="ended_prompt"),
    ],
)
def test_a_text_begins_once_and_does_not_end_at_once(
    recipe: Any, taught: None, prepared: Path, tmp_path: Path, template: str | None, given: str | None, found: str
) -> None:
    from tokenizers.processors import TemplateProcessing

    policy = recipe.molecule_policy
    tokenizer = policy.make_tokenizer()
    if template:
        ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>") if name in template]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    if "which" in found or "ends" in found:
        with pytest.raises(ConfigError, match=found):
            policy.beginning(given, tokenizer)
        return
    assert policy.beginning(given, tokenizer) == found
    if found == "":  # what it writes is what it writes when it is given the token
        model, plain = policy.load(str(prepared / "policy-1"), importlib.import_module("trl").ModelConfig(), "cpu")
        assert policy.sample(model, tokenizer, 4, 1) == policy.sample(model, plain, 4, 1)
        policy.whole(tmp_path / "own", model, tokenizer, {})
        few = {"max_steps": 1, "per_device_train_batch_size": 16, "num_generations": 16, "max_completion_length": 70}
        run(recipe, "grpo", prepared, tmp_path / "grpo", model_name_or_path=tmp_path / "own", **few)
        report = json.loads((tmp_path / "grpo" / "report.json").read_text())
        assert report["before"]["validity"] > 0.1 and report["about"]["policy_tokens"] == 70


def test_of_two_runs_that_make_the_policy_at_once_the_first_counts(recipe: Any, prepared: Path, tmp_path: Path) -> None:
    policy, models = recipe.molecule_policy, importlib.import_module("trl").ModelConfig()
    model, tokenizer = policy.load(str(prepared / "policy-1"), models, "cpu")
    for number in (1, 2):
        policy.whole(tmp_path / "policy", model, tokenizer, {"run.json": number})
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (tmp_path / "policy" / "run.json").read_text() == "1\n"


def test_what_is_no_molecule_is_a_fact_and_no_judge_is_asked(recipe: Any) -> None:
    engine = ScriptedEngine(lambda prompt: "<think>x</think><answer>10</answer>")
    give = reward(recipe, engine)
    assert give([""] * 3, ["CCO", "C1", "not one"]) == [1.0, 0.0, 0.0]
    assert len(engine.prompts) == 1
    assert give([""] * 3, ["OCC", "CC", "CC"]) == [0.5, 1.0, 0.5]  # however it is written, and within a batch
    assert give([""] * 2, ["C1", ""]) == [0.0, 0.0]


def test_a_failed_judgement_is_never_a_score_of_its_own(recipe: Any) -> None:
    def fails_on_oxygen(prompt: Prompt) -> str | Generation:
        shown = "".join(map(str, flatten(prompt.messages[-1])))
        return Generation.failed("timeout", "late") if "CCO" in shown else "<think>x</think><answer>10</answer>"

    give = reward(recipe, ScriptedEngine(fails_on_oxygen))
    assert give([""] * 3, ["CCO", "CC", "C1"]) == [1.0, 1.0, 0.0]  # the mean of its judged siblings
    assert give([""] * 2, ["OCC", "C1"]) == [None, None]  # nothing judged, nothing learned
    mixed = reward(recipe, ScriptedEngine(lambda prompt: "no answer"))
    assert mixed([""] * 2, ["CC", "C1"]) == [None, None]


def test_similarity_has_a_price(recipe: Any) -> None:
    engine = ScriptedEngine(lambda prompt: "<think>x</think><answer>10</answer>")
    alike, other = "Cc1ccccc1", "Cc1ccccc1C"
    first, second, lone = reward(recipe, engine, diversity=1.0)([""] * 3, [alike, other, "C#N"])
    assert first < lone and second < lone == 1.0
    steep = reward(recipe, engine, diversity=4.0)([""] * 4, [alike, alike, other, "C1"])
    assert steep == [0.0] * 4  # never less than what is no molecule, which a repeat could then come closer to


# ------------------------------------------------------------------------------------------------- judge and policy


def test_the_judge_is_trained_on_what_it_sees_in_use(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge: Any = importlib.import_module("molecule_judge")
    monkeypatch.setattr(judge, "POOL", 300)
    monkeypatch.setattr(judge, "HELD_OUT", 8)
    folder = judge.train(tmp_path / "judge", 3)
    assert "What it cannot: anything else." in (folder / "README.md").read_text()
    assert json.loads((folder / "measured.json").read_text())["held_out"] == judge.HELD_OUT
    molecule, format = Media.molecule("CC(=O)Oc1ccccc1C(=O)O"), Score("molecule", "nano")
    asked = judge.prompt(str(molecule.shown()[0]), tokenizer := judge.make_tokenizer(), format)
    ids = tokenizer.encode(asked, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    engine = TransformersEngine(str(folder), device="cpu")
    (prompt,) = format.render(Example(judge.QUESTION, [molecule]))
    (reply,) = engine.generate([prompt], Sampling(max_tokens=2))
    chat: Any = engine._loaded().chat
    engine.close()
    assert chat.render(prompt) == asked and reply.prompt_tokens == len(ids)


def test_the_teacher_reads_and_counts(recipe: Any) -> None:
    judge: Any = importlib.import_module("molecule_judge")
    (ethanol,) = Media.molecule("CCO").shown()
    assert judge.score(ethanol) == 4
    assert judge.trace(ethanol).startswith(
        "<think>molecular weight 46 poor 0\nlogP 0.0 fair 1\nH-bond donors 1 good 3\n"
    )
    assert [judge.points("TPSA", value) for value in (14, 15, 30, 100, 101, 130, 131)] == [0, 1, 2, 2, 1, 1, 0]


def test_rules_make_molecules_and_the_truth_is_measured(recipe: Any) -> None:
    world: Any = importlib.import_module("molecule_world")
    made = world.molecules(30, "test")
    assert len(set(made)) == 30 and made == world.molecules(30, "test")
    assert all(world.canonical(one) == one for one in made)
    found = world.truth(["CCO", "OCC", "c1ccccc1", "C1"], {"CCO"})
    assert (found["validity"], found["uniqueness"], found["novelty"]) == (0.75, pytest.approx(2 / 3), 0.5)
    assert 0 < found["qed_all"] < found["qed"] < 1 and 1 <= found["sa"] <= 10 and found["diversity"] == 1.0
    assert world.truth(["C1"], ()) == {
        "validity": 0.0, "uniqueness": 0.0, "novelty": 0.0, "diversity": 0.0, "qed": 0.0, "qed_all": 0.0, "sa": 10.0
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- PAMPA


def test_pampa_picks_the_better_analysis(recipe: Any, tmp_path: Path) -> None:
    pampa: Any = importlib.import_module("pampa")
    file = tmp_path / "answers.jsonl"
    answers = [
        "Greasy. Final answer: High permeability",
        "Polar.\nFinal Answer: **Low**",
        "It is",
        "Big. final answer high",
    ]
    rows = [{"smiles": "c1ccccc1", "label": 1, "answers": answers}, {"smiles": "CCO", "label": 0, "answers": answers}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = pampa.read(file)
    assert [[one.is_right(i) for i in range(4)] for one in asked] == [[1, 0, 0, 1], [0, 1, 0, 0]]

    def prefers_greasy(prompt: Prompt) -> str:
        shown = "".join(map(str, flatten(prompt.messages[-1])))
        assert "Descriptors: molecular weight" in shown and "Final answer" not in shown
        return f"<think>x</think><answer>{9.5 if 'Greasy' in shown else 2.0}</answer>"

    judge = Judge(Score("permeability"), ScriptedEngine(prefers_greasy))
    found = pampa.best_of_n(asked, judge, cut=True, seed=0)
    assert list(found) == [1, 2, 4] and found[4] == 0.5
    file.write_text('{"smiles": "CCO", "label": 2, "answers": ["a", "b"]}\n')
    with pytest.raises(ConfigError, match="line 1: a row has 'smiles', 'label'"):
        pampa.read(file)


def test_pampa_leaves_out_what_the_judge_did_not_score(recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pampa: Any = importlib.import_module("pampa")
    right, wrong = "Final answer: high", "Final answer: low"
    asked = [pampa.Asked("CCO", True, (f"late {right}", wrong)), pampa.Asked("no molecule", True, (right, right))]
    late = Generation.failed("timeout", "late")
    engine = ScriptedEngine(lambda prompt: late if "late" in str(prompt) else "<think>x</think><answer>7</answer>")
    found = pampa.best_of_n(asked, Judge(Score("permeability"), engine), cut=False, seed=0)
    assert found == {1: 0.0, 2: 0.0}  # the wrong one is all that was scored
    assert capsys.readouterr().out == "without a score: {'timeout': 1, 'media': 2}\n"
    with pytest.raises(EngineError, match="scored no analysis at all"):
        pampa.best_of_n(asked[1:], Judge(Score("permeability"), engine), cut=False, seed=0)
