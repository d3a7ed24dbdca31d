"""The parts of the molecule recipes: prompts, the reward, the figures, the tiny judge and policy."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path

from flexjudge_recipes.molecules import properties

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Judge,
    Media,
    Pointwise,
    Request,
    Sampling,
    ScriptedEngine,
    TransformersEngine,
)
from support.attacks import slow_smiles
from support.late import late, needs
from support.molecules import LATE, TEN, text_of, with_template

needs("trl", "rdkit")
measure = late("flexjudge_recipes.molecules.measure")
sampling = late("flexjudge_recipes.molecules.sampling")
molecule_reward = late("flexjudge_recipes.molecules.reward")
molecule_judge = late("flexjudge_recipes.nano.molecule_judge")
molecule_policy = late("flexjudge_recipes.nano.molecule_policy")
molecules = late("flexjudge_recipes.nano.molecules")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.parametrize(
    ("template", "given", "expected"),
    [
        pytest.param(None, None, "<bos>", id="bos"),
        pytest.param(None, "<bos>CC", "<bos>CC", id="prompt"),
        pytest.param("<bos> $A", None, "", id="bos_added_by_the_tokenizer"),
        pytest.param("<bos> $A", "CC", "CC", id="prompt_after_an_added_bos"),
        pytest.param("<bos> $A", "<bos>CC", "<bos>, which the tokenizer of .* adds itself", id="two_bos"),
        pytest.param("<bos> $A <eos>", None, "ends every text", id="ended"),
        pytest.param("$A <eos>", "CC", "ends every text", id="ended_prompt"),
    ],
)
def test_a_prompt_begins_once_and_is_not_ended(template: str | None, given: str | None, expected: str) -> None:
    tokenizer = with_template(template)
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            sampling.policy_prompt(given, tokenizer)
    else:
        assert sampling.policy_prompt(given, tokenizer) == expected


def test_a_policy_without_a_bos_token_needs_a_prompt() -> None:
    tokenizer = with_template(None)
    tokenizer.bos_token = None
    with pytest.raises(ConfigError, match="has no BOS token: set policy_prompt"):
        sampling.policy_prompt(None, tokenizer)
    assert sampling.policy_prompt("CC", tokenizer) == "CC"


def reward(engine: ScriptedEngine, diversity: float = 0.0) -> molecule_reward.MoleculeReward:
    judge = FlexJudgeReward(Judge(Pointwise("molecule", "nano"), engine), name="judge", max_failure_rate=1.0)
    return molecule_reward.MoleculeReward(judge, "Write a molecule.", diversity)


def test_what_is_no_molecule_is_a_fact_without_a_judge_call() -> None:
    engine, logged = ScriptedEngine(lambda request: TEN), dict[str, float]()
    give = reward(engine)
    assert give([""] * 3, ["CCO", "C1", "not one"]) == [1.0, 0.0, 0.0]
    assert len(engine.requests) == 1
    assert give([""] * 3, ["OCC", "CC", "CC"]) == [0.5, 1.0, 0.5]  # repeats: however written, and within a batch
    assert give([""] * 2, ["C1", ""], log_metric=logged.__setitem__) == [0.0, 0.0]
    assert len(engine.requests) == 4 and logged == {"molecule/valid": 0.0}


def test_a_failed_judgement_is_never_a_score_of_its_own() -> None:
    give = reward(ScriptedEngine(lambda request: LATE if "CCO" in text_of(request) else TEN))
    assert give([""] * 3, ["CCO", "CC", "C1"]) == [1.0, 1.0, 0.0]  # the mean of its judged siblings
    logged = dict[str, float]()
    assert give([""] * 2, ["OCC", "C1"], log_metric=logged.__setitem__) == [None, None]  # nothing judged or learned
    assert logged["judge/failure_rate"] == 1.0 and "judge/score" not in logged
    # Asked twice, the molecule caused it: the low end of the judge's scale, and it is a molecule all the same.
    assert reward(ScriptedEngine(lambda request: "no answer"))([""] * 2, ["CC", "C1"]) == [0.5, 0.0]


def test_similarity_has_a_penalty() -> None:
    engine = ScriptedEngine(lambda request: TEN)
    alike, other = "Cc1ccccc1", "Cc1ccccc1C"
    first, second, lone = reward(engine, diversity=1.0)([""] * 3, [alike, other, "C#N"])
    assert first is not None and second is not None and first < 1.0 and second < 1.0 == lone
    steep = reward(engine, diversity=4.0)([""] * 4, [alike, alike, other, "C1"])
    assert steep == [0.0] * 4  # never less than what is no molecule


def test_figures_of_samples() -> None:
    found = measure.figures(["CCO", "OCC", "c1ccccc1", "C1"], {"CCO"})
    assert (found["validity"], found["uniqueness"], found["novelty"]) == (0.75, pytest.approx(2 / 3), 0.5)
    assert 0 < found["qed_all"] < found["qed"] < 1 and 1 <= found["sa"] <= 10 and found["diversity"] == 1.0
    nothing = {"validity": 0.0, "uniqueness": 0.0, "diversity": 0.0, "qed": 0.0, "qed_all": 0.0, "sa": 10.0}
    assert measure.figures(["C1"]) == nothing


def test_rules_make_different_canonical_molecules() -> None:
    made = molecules.molecules(30, "test")
    assert len(set(made)) == 30 and made == molecules.molecules(30, "test") != molecules.molecules(30, "other")
    assert all(measure.canonical(text) == text for text in made)


def test_the_judge_is_trained_on_what_it_sees_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    molecule_judge.train(folder, steps=2, pool=60, held_out=2)
    assert "What it cannot: anything else." in (folder / "README.md").read_text()
    assert json.loads((folder / "measured.json").read_text())["held_out"] == 2
    molecule, format = Media.molecule("CC(=O)Oc1ccccc1C(=O)O"), Pointwise("molecule", "nano")
    tokenizer = molecule_judge.make_tokenizer()
    asked = molecule_judge.prompt(molecule_judge.shown("CC(=O)Oc1ccccc1C(=O)O"), tokenizer, format)
    ids = tokenizer.encode(asked, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids
    (prompt,) = format.render(Example(molecule_judge.QUESTION, [molecule]))
    with TransformersEngine(str(folder), device="cpu") as engine:
        (reply,) = engine.generate([Request(prompt, Sampling(max_tokens=2))])
        assert engine._loaded().chat.render(prompt) == asked
    assert reply.prompt_tokens == len(ids)


def test_the_teacher_reads_and_counts() -> None:
    ethanol = molecule_judge.shown("CCO")
    assert molecule_judge.score(ethanol) == 4
    assert molecule_judge.trace(ethanol).startswith(
        "<think>molecular weight 46 poor 0\nlogP 0.0 fair 1\nH-bond donors 1 good 3\n"
    )
    found = [molecule_judge.points("TPSA", value) for value in (14, 15, 30, 100, 101, 130, 131)]
    assert found == [0, 1, 2, 2, 1, 1, 0]
    values = molecule_judge.read(molecule_judge.randomised(ethanol, random.Random(1)))
    assert list(values) == list(molecule_judge.read(ethanol)) and values != molecule_judge.read(ethanol)


def test_settings_of_a_judge(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    own = molecule_judge.settings({"model": "nano", "max_tokens": 64}, tmp_path)
    assert own == molecule_judge.SETTINGS | {"model": str(tmp_path / "judge"), "max_tokens": 64}
    served = {"model": "nano", "base_url": "http://localhost:1/v1"}
    assert molecule_judge.settings(served, tmp_path) == {"rubric": "molecule", **served}
    assert molecule_judge.settings({"rubric": "helpfulness"}, tmp_path) == {"rubric": "helpfulness"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    with contextlib.suppress(KeyboardInterrupt), molecule_policy.appears_whole(folder) as unfinished:
        (unfinished / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert not folder.exists()
    shutil.rmtree(unfinished)
    for number in ("first", "second"):  # of two processes at once, the faster one
        with molecule_policy.appears_whole(folder) as unfinished:
            (unfinished / "config.json").write_text(number)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (folder / "config.json").read_text() == "first"


@pytest.mark.parametrize(
    "smiles",
    [
        pytest.param(slow_smiles(1)[0], id="a_cage_that_holds_RDKit"),
        pytest.param("C1CC", id="an_open_ring"),
        pytest.param("", id="no_atoms"),
    ],
)
def test_what_RDKit_cannot_work_out_in_time_has_no_properties(smiles: str) -> None:
    assert properties.properties("CCO") is not None and properties.properties(smiles) is None
    assert properties.similarities(["CCO", "CCO", smiles]) == [0.5, 0.5, 0.0]
    assert properties.similarities(["CCO"]) == [0.0]
