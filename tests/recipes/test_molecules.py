"""The molecule recipes, run short through their programs: what they leave, how they resume, what never happens.

The policy is a real one that knows a dozen molecules by heart. Its judge is the tiny judge's teacher behind a scripted
engine. The parts have tests of their own (`test_molecule_parts.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flexjudge_recipes

import pytest

from flexjudge_reward import ConfigError, EngineError, Judge, JudgeConfig
from support.late import late, needs
from support.molecules import DOZEN, LATE, judge_of, judged_by, teacher, text_of, with_template

needs("trl", "rdkit")
best_of_n = late("flexjudge_recipes.molecules.best_of_n")
measure = late("flexjudge_recipes.molecules.measure")
pairs = late("flexjudge_recipes.molecules.pairs")
sampling = late("flexjudge_recipes.molecules.sampling")
train = late("flexjudge_recipes.molecules.train")
molecule_policy = late("flexjudge_recipes.nano.molecule_policy")
torch = late("torch")
hub = late("huggingface_hub")
safe = late("safetensors.torch")
transformers = late("transformers")
trl = late("trl")

FOLDER = Path(flexjudge_recipes.__file__).parent / "molecules"
FEW = {"rows": 12, "answers": 8, "min_pairs": 2, "per_device_train_batch_size": 4}
EIGHT = {"num_generations": 8, "per_device_train_batch_size": 8}
EVERY = {"max_steps": 2, "measure_every": 1, "save_strategy": "steps", "save_steps": 1}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that knows a dozen molecules, and a folder in the judge's place."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "judge").mkdir()
    molecule_policy.pretrain(folder / "policy-1", 1, DOZEN, steps=120, batch=16)
    return folder


@pytest.fixture(scope="module")
def policy(prepared: Path) -> tuple[Any, Any]:
    """The same policy, loaded, with its tokenizer."""
    folder = str(prepared / "policy-1")
    return transformers.AutoModelForCausalLM.from_pretrained(folder), sampling.load_tokenizer(folder, None)


def run(words: list[str], prepared: Path, folder: Path, **flags: Any) -> str:
    """Runs a program as a user does, and returns what it printed."""
    flags = {"prepared": prepared, "output_dir": folder, "judge": '{"model": "nano", "cache": "off"}'} | flags
    method, *_ = words or ["best_of_n"]
    config = ["--config", str(FOLDER / f"{method}.yaml")]
    given = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        (train if words else best_of_n).main([*words, *config, *given])
    return printed.getvalue()


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def test_best_of_n_rises_to_what_the_judge_can_see(prepared: Path, tmp_path: Path) -> None:
    with judged_by(teacher):
        run([], prepared, tmp_path / "out", n=4, groups=12)
    report = report_of(tmp_path / "out")
    assert list(report["judge"]) == ["1", "2", "4"] and report["samples"] == 48
    assert report["judge"]["1"] == report["best"]["1"] <= report["best"]["2"] <= report["best"]["4"]
    assert report["judge"]["4"] > report["judge"]["1"]
    assert (tmp_path / "out" / "best_of_n.png").stat().st_size > 1000
    kept = [json.loads(line) for line in (tmp_path / "out" / "molecules.jsonl").read_text().splitlines()]
    assert len(kept) == report_of(tmp_path / "out")["samples"] and kept[0]["rank"] == 0
    assert {"group", "rank", "smiles", "qed"} < set(kept[0])
    assert (tmp_path / "out" / "choices.png").stat().st_size > 1000


def test_a_judge_that_fails_chooses_nothing(prepared: Path, tmp_path: Path) -> None:
    with judged_by(lambda request: "no answer"), pytest.raises(EngineError, match="scored no molecule at all"):
        run([], prepared, tmp_path / "out", n=2, groups=6)
    with judged_by(lambda request: LATE if "O" in text_of(request).split("\n")[0] else teacher(request)):
        printed = run([], prepared, tmp_path / "out", n=2, groups=6)
    assert "molecules without a score: {'timeout': " in printed
    report = report_of(tmp_path / "out")
    assert all(report["judge"][size] <= report["best"][size] for size in ("1", "2"))
    assert report["judge"]["1"] == report["best"]["1"]  # over the same molecules


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param({"n": 3}, "n must be a power of 2, at least 2, found 3", id="n"),
        pytest.param({"groups": 0}, "groups must be at least 1", id="groups"),
        pytest.param({"output_dir": FOLDER}, "holds an earlier run", id="folder"),
        pytest.param({"judge": '{"model": "nano", "tokens": 1}'}, "tokens", id="judge"),
    ],
)
def test_wrong_settings_of_best_of_n_are_errors_before_any_sample(
    tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run([], tmp_path / "prepared", tmp_path / "out", **flags)
    assert not list(tmp_path.iterdir())


@dataclass
class Run:
    """A run that was not cut off, with a judge that counts and a Hub that takes notes."""

    folder: Path
    requests: int = 0
    pushed: set[str] = field(default_factory=set)
    card: str = ""


@pytest.fixture(scope="module")
def dpo(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """DPO of two steps, with a checkpoint after each, pushed at the end."""
    own = Run(tmp_path_factory.mktemp("runs") / "dpo")

    def upload_folder(api: hub.HfApi, *, folder_path: str, ignore_patterns: list[str], **kwargs: Any) -> None:
        names = [str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()]
        own.pushed |= set(hub.utils.filter_repo_objects(names, ignore_patterns=ignore_patterns))

    def upload_file(api: hub.HfApi, *, path_or_fileobj: Path, path_in_repo: str, **kwargs: Any) -> None:
        own.pushed.add(path_in_repo)
        own.card = path_or_fileobj.read_text() if path_in_repo == "README.md" else own.card

    with judged_by(teacher) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub.HfApi, "create_repo", lambda api, name, **kwargs: SimpleNamespace(repo_id=f"me/{name}"))
        patch.setattr(hub.HfApi, "upload_folder", upload_folder)
        patch.setattr(hub.HfApi, "upload_file", upload_file)
        flags = {"push_to_hub": True, "hub_strategy": "end", "samples": 24, "judged": 8}
        run(["dpo"], prepared, own.folder, **FEW, **EVERY | {"measure_every": 0}, **flags)
    own.requests = len(engine.requests)
    return own


def test_dpo_trains_on_pairs_and_measures_before_and_after(dpo: Run) -> None:
    preferred = [json.loads(line) for line in (dpo.folder / "_work" / "pairs" / "pairs.jsonl").read_text().splitlines()]
    assert len(preferred) >= 2 and all(pair["scores"][0] - pair["scores"][1] >= 1 for pair in preferred)
    invalid = [json.loads(line) for line in (dpo.folder / "_work" / "invalid.jsonl").read_text().splitlines()]
    assert invalid and all(measure.canonical(pair["chosen"]) in pair["chosen"] for pair in invalid)
    assert all(measure.canonical(pair["rejected"]) is None for pair in invalid)
    report = report_of(dpo.folder)
    assert list(report["curve"]) == ["0", "2"] and report["after"] == report["curve"]["2"]
    assert {"validity", "uniqueness", "novelty", "diversity", "qed", "sa", "judge"} <= set(report["before"])
    assert (dpo.folder / "curve.png").stat().st_size > 1000


def test_only_the_model_and_its_card_are_pushed(dpo: Run) -> None:
    model = {"config.json", "generation_config.json", "model.safetensors", "training_args.bin"}
    assert dpo.pushed == model | {"tokenizer.json", "tokenizer_config.json", "README.md", "curve.png"}
    assert "| validity |" in dpo.card and "rubric: Weigh how drug-like" in dpo.card
    assert "Not for choosing substances" in dpo.card


def test_dpo_that_was_cut_off_keeps_its_pairs_and_ends_as_the_unbroken_run(
    dpo: Run, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(dpo.folder, folder)
    shutil.rmtree(folder / "checkpoint-2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(["dpo"], prepared, folder)
    with judged_by(teacher) as engine:
        run(["dpo"], prepared, folder, **FEW, **EVERY, samples=24, judged=8, resume=True)
    assert 0 < len(engine.requests) <= 8 < dpo.requests  # the last measurement only
    assert report_of(folder)["curve"]["2"] == report_of(dpo.folder)["curve"]["2"]
    assert report_of(folder)["before"] == report_of(dpo.folder)["before"]
    ends, base = (
        safe.load_file(dpo.folder / "model.safetensors"),
        safe.load_file(prepared / "policy-1" / "model.safetensors"),
    )
    resumed = safe.load_file(folder / "model.safetensors")
    assert all(torch.equal(ends[name], resumed[name]) for name in ends)
    assert not all(torch.equal(ends[name], base[name]) for name in base)


def preference_pairs(work: Path, judge: Judge, policy: Any = None, **options: Any) -> list[dict[str, str]]:
    model, tokenizer = policy or (None, None)
    given = {"rows": 12, "answers": 4, "question": "q", "margin": 1.0, "min_pairs": 1} | options

    def load() -> Any:
        assert model is not None, "the samples are there"
        return model

    sampler = sampling.Sampler("<bos>", 40, 1)
    return pairs.preference_pairs(work, load, tokenizer, sampler, judge, SimpleNamespace(**given))


def test_samples_stay_when_the_judge_was_cut_off(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        preference_pairs(tmp_path, judge_of(lambda request: LATE)[0], policy)
    assert not (tmp_path / "pairs" / "pairs.jsonl").exists()
    samples = (tmp_path / "candidates.jsonl").read_bytes()
    found = preference_pairs(tmp_path, judge_of(teacher)[0])
    assert (tmp_path / "candidates.jsonl").read_bytes() == samples and found
    assert preference_pairs(tmp_path, judge_of(lambda request: "not called")[0]) == found


def test_too_few_pairs_train_nothing(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^0 pairs are too few to train on .*README.md counts why"):
        preference_pairs(tmp_path, judge_of(lambda request: "no answer")[0], policy)
    assert "| malformed |" in (tmp_path / "pairs" / "README.md").read_text()
    untrained = molecule_policy.make_model(policy[1])
    with pytest.raises(ConfigError, match="no row of samples has two different molecules"):
        preference_pairs(tmp_path / "other", judge_of(teacher)[0], (untrained, policy[1]))


@pytest.fixture(scope="module")
def grpo(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRPO of two steps, measured at each, with checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "grpo"
    with judged_by(teacher):
        run(["grpo"], prepared, folder, **EIGHT, **EVERY, samples=24, judged=8, diversity=0.5, logging_steps=1)
    return folder


def test_grpo_trains_and_measures(grpo: Path) -> None:
    report = report_of(grpo)
    assert list(report["curve"]) == ["0", "1", "2"] and "novelty" in report["before"]
    (first, *_) = [row for row in report["log"] if "molecule/valid" in row]
    assert 0 < first["molecule/valid"] <= 1 and 0 <= first["judge/score"] <= 1 and first["judge/failure_rate"] == 0
    assert report["judge"]["judged"] > 0 and (grpo / "model.safetensors").exists()
    assert (grpo / "molecules.jsonl").stat().st_size > 0 and (grpo / "molecules.png").stat().st_size > 0
    assert molecule_policy.pretrained_on(str(grpo)) == set(DOZEN)  # a further round measures novelty as this one


def test_grpo_that_was_cut_off_reports_the_before_of_the_unbroken_run(
    grpo: Path, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(grpo, folder, ignore=shutil.ignore_patterns("checkpoint-2", "report.json"))
    with judged_by(teacher):
        run(["grpo"], prepared, folder, **EIGHT, **EVERY, samples=24, judged=8, resume=True)
    unbroken, resumed = report_of(grpo), report_of(folder)
    assert list(resumed["curve"]) == ["0", "1", "2"]
    assert resumed["before"] == unbroken["before"] and resumed["curve"]["1"] == unbroken["curve"]["1"]


def test_a_policy_from_elsewhere_continues_its_prompt(policy: Any, prepared: Path, tmp_path: Path) -> None:
    """What it was pretrained on is unknown, so novelty is not measured; its tokenizer adds the BOS token itself."""
    model, plain = policy
    tokenizer = with_template("<bos> $A")
    bos, own = sampling.Sampler("<bos>", 40, 1), sampling.Sampler(sampling.policy_prompt(None, tokenizer), 40, 1)
    assert own(model, tokenizer, 4) == bos(model, plain, 4)
    molecule_policy.save(tmp_path / "own", model, tokenizer)
    flags = {"model_name_or_path": tmp_path / "own", "policy_prompt": "C", "max_steps": 1, "samples": 24, "judged": 8}
    with judged_by(teacher):
        run(["grpo"], prepared, tmp_path / "grpo", **EIGHT, **flags)
    report = report_of(tmp_path / "grpo")
    assert report["before"]["validity"] > 0.1 and "novelty" not in report["before"]
    assert not (tmp_path / "grpo" / molecule_policy.LIST).exists()


def test_wrong_settings_of_training_are_errors_before_anything_is_made(tmp_path: Path) -> None:
    for words in ([], ["ppo"], ["--config", "x.yaml"]):
        with pytest.raises(ConfigError, match="the first argument is dpo or grpo"):
            train.main(words)
    with pytest.raises(ValueError, match="--no_such_setting"):
        run(["grpo"], tmp_path / "prepared", tmp_path / "out", no_such_setting=1)
    with pytest.raises(ConfigError, match="tokens"):
        run(["dpo"], tmp_path / "prepared", tmp_path / "out", judge='{"model": "nano", "tokens": 1}')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", sorted(path.stem for path in FOLDER.glob("grpo*.yaml")))
def test_configurations_name_settings_that_exist(config: str) -> None:
    parser = trl.TrlParser((train.RecipeArguments, trl.GRPOConfig, trl.ModelConfig))
    words = ["--config", str(FOLDER / f"{config}.yaml"), "--use_cpu", "true", "--bf16", "false"]
    options, args, _ = parser.parse_args_and_config(words)
    JudgeConfig.resolve(options.judge)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps % args.num_generations == 0


def test_samples_depend_on_their_seed_alone_and_leave_the_trainers_random_numbers(policy: Any) -> None:
    model, tokenizer = policy
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = sampling.Sampler("<bos>", 40, 1)(model, tokenizer, 6)
    assert torch.equal(torch.rand(3), expected)
    assert sampling.Sampler("<bos>", 40, 1)(model, tokenizer, 6) == first
    assert sampling.Sampler("<bos>", 40, 2)(model, tokenizer, 6) != first
    (text,) = sampling.Sampler("<bos>", 40, 1)(model, tokenizer, 1, 0.01)
    (rest,) = sampling.Sampler(f"<bos>{text[:3]}", 40, 1)(model, tokenizer, 1, 0.01)
    assert len(rest) > 3 and text == text[:3] + rest  # the prompt is not part of the sample
    assert sampling.smiles(" C C O\n") == "CCO"


def test_a_judge_that_fails_measures_nothing(policy: Any) -> None:
    state = SimpleNamespace(global_step=0, is_world_process_zero=True, log_history=[])
    judge, _ = judge_of(lambda request: LATE)
    options = SimpleNamespace(question="q", samples=12, judged=4, measure_every=0)
    callback = measure.Measure(sampling.Sampler("<bos>", 40, 1), judge, options, frozenset())
    callback.on_train_begin(None, state, None, model=policy[0], processing_class=policy[1])
    (figures,) = measure.curve(state).values()
    assert figures["validity"] > 0 and "judge" not in figures
    assert ("judge", "-", "0.500") in measure.table({0: figures, 1: figures | {"judge": 0.5}})
    assert measure.lines({0: figures, 1: figures | {"judge": 0.5}})["judge"] == {1: 0.5}
