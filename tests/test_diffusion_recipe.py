"""Diffusion-DPO: the loss, and the recipe run short from pictures to a LoRA."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("diffusers")

from support.hub import fake_hub
from support.real import prepare

prepare()

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
KINDS = ("unet", "flow")


@pytest.fixture(scope="module")
def recipe() -> Any:
    """recipes/diffusion_dpo.py as a module; its neighbours are found beside it."""
    sys.path.insert(0, str(RECIPES))
    yield importlib.import_module("diffusion_dpo")
    sys.path.remove(str(RECIPES))


@pytest.fixture(scope="module")
def runs(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both nano pipelines, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    nano = recipe.diffusion_nano
    patch = pytest.MonkeyPatch()
    patch.setattr(nano, "VAE_STEPS", 2)
    patch.setattr(nano, "PICTURES", 40)
    for kind in KINDS:
        nano.pretrain(kind, folder / f"nano-{kind}", steps=3)
    patch.undo()
    return folder


def words(folder: Path, kind: str, **flags: Any) -> list[str]:
    """The command line of a short run."""
    flags = {
        "prompts": 12,
        "pictures": 2,
        "denoising_steps": 2,
        "held_out_prompts": 3,
        "max_steps": 4,
        "margin": 1.0,
    } | flags
    flags |= {"output_dir": folder, "judge_cache": "off", "logging_steps": 1}
    config = RECIPES / "configs" / f"diffusion_dpo_nano_{kind}.yaml"
    return ["--config", str(config), *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]


def run(recipe: Any, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["diffusion_dpo.py", *words(folder, kind, **flags)])
    recipe.main()


def scripted(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of pictures that always sees a difference: barely trained pipelines draw nothing to tell apart."""
    from flexjudge_reward import Judge, Score
    from flexjudge_reward.engines.scripted import ScriptedEngine

    scores = cycle((3, 8))  # not by what is drawn, which differs in its last bits between processors

    def reply(prompt: Any) -> str:
        return f"<think></think><answer>{next(scores)}</answer>"

    monkeypatch.setattr(recipe.diffusion_pairs, "judge_of", lambda options: Judge(Score(), ScriptedEngine(reply)))


# ---------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("won", "lost", "sign"),
    [
        pytest.param(1.0, 1.0, 0, id="as before"),
        pytest.param(0.5, 1.0, 1, id="winner drawn better"),
        pytest.param(1.0, 2.0, 1, id="loser drawn worse"),
        pytest.param(2.0, 1.0, -1, id="winner drawn worse"),
        pytest.param(2.0, 3.0, 1, id="both worse, the loser more"),
    ],
)
@pytest.mark.parametrize("safeguard", [0.0, 0.9])
def test_the_loss_compares_both_errors_with_those_before(
    recipe: Any, won: float, lost: float, sign: int, safeguard: float
) -> None:
    import torch

    before = torch.ones(2, 3, 4)
    errors = torch.stack([torch.full((3, 4), won), torch.full((3, 4), lost)])
    loss, margin = recipe.preference_loss(errors, before, 1.0, safeguard, 0.0)
    assert margin.item() == pytest.approx((1 - won**2) - (1 - lost**2))
    assert (margin.item() > 0) - (margin.item() < 0) == sign
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin.item() / 2)))
    anchored, same = recipe.preference_loss(errors, before, 1.0, safeguard, 3.0)
    assert same == margin and anchored.item() == pytest.approx(loss.item() + 3.0 * (won**2 - 1) / 2)


def test_the_safeguard_keeps_the_winners_descent(recipe: Any) -> None:
    """What the step does to the winner's prediction points down its error, by a tenth of its own gradient at least."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for share, wanted in ((0.9, True), (0.0, False)):
        kept = []
        for _ in range(50):
            won = torch.randn(1, 8, generator=generator)
            lost = (2 * won + torch.randn(1, 8, generator=generator)).requires_grad_()
            value = recipe.guarded(won, lost, share) if share else lost.square().mean(1)
            assert value.item() == pytest.approx(lost.square().mean().item())
            (pushed,) = torch.autograd.grad(value.sum(), lost)
            own = 2 * won / 8
            kept.append(bool((own * (own - pushed)).sum() >= (1 - 0.9) * own.square().sum() - 1e-6))
        assert all(kept) == wanted


# ----------------------------------------------------------------------------------------------------------- the truth


def test_the_truth_reads_every_picture_that_is_as_asked_for(recipe: Any) -> None:
    nano, rng = recipe.diffusion_nano, random.Random(0)
    for _ in range(100):
        wish, other = nano.Wish.drawn(rng), nano.Wish.drawn(rng)
        found = nano.truth(wish.picture(), str(other))
        right = (wish.colour == other.colour) + (wish.shape == other.shape) if wish.place == other.place else 0
        assert found.score == (1, 5, 10)[right], (wish, other)
        assert (found.stain < 1) == (wish.place == other.place)


@pytest.mark.parametrize(
    ("outline", "stain", "kept"),
    [
        pytest.param(0.90, 2.0, True, id="as before"),
        pytest.param(0.95, 1.0, True, id="better"),
        pytest.param(0.89, 3.0, True, id="at the bound"),
        pytest.param(0.88, 2.0, False, id="outlines worse"),
        pytest.param(0.90, 3.1, False, id="more stain"),
        pytest.param(0.99, 3.1, False, id="better outlines do not pay for stain"),
    ],
)
def test_quality_is_kept_within_a_bound(outline: float, stain: float, kept: bool, recipe: Any) -> None:
    found = {"outline_before": 0.9, "stain_before": 2.0, "outline_after": outline, "stain_after": stain}
    assert importlib.import_module("diffusion_report").quality_kept(found) == kept


# --------------------------------------------------------------------------------------------------------- the prompts


def test_held_out_prompts_are_of_other_wishes_each_about_equally_often(recipe: Any) -> None:
    training, held_out = recipe.diffusion_nano.prompts(1, 192), recipe.diffusion_nano.prompts(1, 96, held_out=True)
    assert not set(training) & set(held_out) and len({*training, *held_out}) == 6 * 4 * 4
    for drawn in (training, held_out):
        counts = [drawn.count(prompt) for prompt in set(drawn)]
        assert max(counts) - min(counts) <= 1
    assert 20 <= len(set(held_out)) <= 28
    other = recipe.diffusion_nano.prompts(2, 96, held_out=True)
    assert other != held_out and set(other) == set(held_out)


def test_prompts_of_a_data_set_are_drawn_once_each(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": f"cat {n % 6} "}) + "\n" for n in range(60)))
    options = recipe.RecipeArguments(dataset_name=str(tmp_path), prompts=4, held_out_prompts=2)
    training, held_out = recipe.diffusion_pairs.asked(options, 0)
    assert len(training) == 4 and sorted([*training, *held_out]) == [f"cat {n}" for n in range(6)]
    assert recipe.diffusion_pairs.asked(options, 1)[0] != training


def test_no_prompt_is_trained_on_and_measured_on(recipe: Any) -> None:
    from datasets import Dataset

    pairs = Dataset.from_list([{"id": n, "prompt": f"cat {n % 7}"} for n in range(70)])
    training, measured = recipe.diffusion_pairs.split(pairs, 0.15, 0)
    assert not set(training["prompt"]) & set(measured["prompt"])
    assert (len(training), len(measured)) == (50, 20)


# ---------------------------------------------------------------------------------------------------------- the recipe


@pytest.mark.parametrize("config", sorted(path.name for path in (RECIPES / "configs").glob("diffusion_*.yaml")))
def test_every_setting_of_the_diffusion_configs_exists(config: str, recipe: Any) -> None:
    from transformers import TrainingArguments
    from trl import TrlParser

    parser = TrlParser((recipe.RecipeArguments, TrainingArguments))
    given = ["--config", str(RECIPES / "configs" / config), "--bf16", "false", "--use_cpu", "true"]
    options, args = parser.parse_args_and_config(given, fail_with_unknown_args=True)
    assert options.judge_model and args.max_steps > 0 and "diffusion" in args.output_dir


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_draws_judges_trains_and_reports(
    kind: str, recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / f"whole-{kind}"
    scripted(recipe, monkeypatch)
    run(recipe, folder, kind, monkeypatch, prepare_only=True, fewest_pairs=2)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert pairs and (folder / pairs[0]["chosen"]).exists() and not (folder / "report.json").exists()

    drawn = (folder / "pictures" / "0-0.png").stat().st_mtime_ns
    run(recipe, folder, kind, monkeypatch, fewest_pairs=2)
    assert (folder / "pictures" / "0-0.png").stat().st_mtime_ns == drawn
    found = json.loads((folder / "report.json").read_text())
    assert isinstance(found["quality_kept"], bool)
    assert found["pairs"] == len(pairs) and 0 <= found["implicit_accuracy"] <= 1 and 0 <= found["win_rate"] <= 1
    assert (folder / "grid.png").stat().st_size > 1000 and (folder / "curve.png").stat().st_size > 1000
    card = (folder / "README.md").read_text()
    assert f"base_model: nano-{kind}" in card and "Judge: " in card
    said = capsys.readouterr().out
    assert "same-seed win rate, by the truth" in said and "no worse by 0.01 and 1" in said


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_lora_draws_what_the_trained_model_draws(
    kind: str, recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from PIL import Image

    scripted(recipe, monkeypatch)
    kept: dict[str, list[bytes]] = {}
    train = recipe.train

    def trained(options: Any, args: Any, own: Any, pairs: Any, folder: Path) -> Any:
        found = train(options, args, own, pairs, folder)
        files = [folder / "pictures" / f"trained-{n}.png" for n in range(3)]
        prompts = recipe.diffusion_pairs.asked(options, args.seed)[1]
        recipe.diffusion_pairs.draw(own, prompts, files, options, args.seed + 1, 32)
        kept["trained"] = [Image.open(file).tobytes() for file in files]
        return found

    monkeypatch.setattr(recipe, "train", trained)
    run(recipe, runs / f"lora-{kind}", kind, monkeypatch, fewest_pairs=2, learning_rate=0.05, denoising_steps=4)
    pictures = runs / f"lora-{kind}" / "pictures"
    for when in ("before", "after"):
        kept[when] = [Image.open(pictures / f"{when}-{n}.png").tobytes() for n in range(3)]
    assert kept["after"] == kept["trained"] != kept["before"]


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from flexjudge_reward import ConfigError

    scripted(recipe, monkeypatch)
    flags = {"fewest_pairs": 2, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    run(recipe, runs / "unbroken", "flow", monkeypatch, **flags)
    run(recipe, runs / "broken", "flow", monkeypatch, **flags | {"max_steps": 2})
    with pytest.raises(ConfigError, match=r"of another run: beta was 100.0 and is 7.0"):
        run(recipe, runs / "broken", "flow", monkeypatch, **flags, resume_from_checkpoint=True, beta=7.0)
    run(recipe, runs / "broken", "flow", monkeypatch, **flags, resume_from_checkpoint=True)
    one, other = (load_file(runs / name / "pytorch_lora_weights.safetensors") for name in ("unbroken", "broken"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    with pytest.raises(ConfigError, match=r"checkpoint-2 is of another run: .*seed was 1 and is 5, pairs.jsonl was"):
        named = runs / "broken" / "checkpoint-2"
        run(recipe, runs / "elsewhere", "flow", monkeypatch, **flags, resume_from_checkpoint=named, seed=5)
    pairs = runs / "broken" / "pairs.jsonl"
    pairs.write_text(pairs.read_text() + pairs.read_text().splitlines(keepends=True)[0])
    with pytest.raises(ConfigError, match=r"of another run: pairs.jsonl was '[0-9a-f]+' and is"):
        run(recipe, runs / "broken", "flow", monkeypatch, **flags, resume_from_checkpoint=True)


def test_bad_input_is_refused_before_anything_is_drawn(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flexjudge_reward import ConfigError

    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "a cat"}\n')
    with pytest.raises(ConfigError, match="no column 'prompt'; it has text"):
        run(recipe, runs / "column", "flow", monkeypatch, dataset_name=data)
    with pytest.raises(ConfigError, match=r"report_to trackio: .*pip install trackio.* Or set --report_to none"):
        monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
        run(recipe, runs / "column", "flow", monkeypatch, report_to="trackio")
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="3 votes at temperature 0"):
        patch.setenv("FLEXJUDGE_VOTES", "3")
        run(recipe, runs / "votes", "flow", monkeypatch)
    assert not (runs / "votes").exists()
    with pytest.raises(ConfigError, match="has 1 different prompts, 15 are wanted"):
        run(recipe, runs / "column", "flow", monkeypatch, dataset_name=data, prompt_column="text")


def test_with_too_few_pairs_a_lower_margin_judges_the_same_pictures_again(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexjudge_reward import ConfigError

    scripted(recipe, monkeypatch)
    folder, flags = runs / "few", {"prompts": 6, "prepare_only": True, "fewest_pairs": 3}
    with pytest.raises(ConfigError, match=r"pairs are too few to train on .*counts why.* Lower the margin"):
        run(recipe, folder, "flow", monkeypatch, margin=9.5, **flags)
    drawn = {file: file.stat().st_mtime_ns for file in (folder / "pictures").iterdir()}
    run(recipe, folder, "flow", monkeypatch, margin=0.5, **flags)
    assert "margin was 9.5 and is 0.5" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (folder / "pictures").iterdir()} == drawn
    run(recipe, folder, "flow", monkeypatch, margin=0.5, **flags)
    assert "judg" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        pytest.param({"seed": 2}, "seed was 1 and is 2", id="seed"),
        pytest.param({"prompts": 9}, "prompts was 6 and is 9", id="prompts"),
        pytest.param({"held_out_prompts": 9}, "held_out_prompts was 3 and is 9", id="held-out prompts"),
        pytest.param({"model_name_or_path": "nano-unet"}, "model_name_or_path was 'nano-flow' and is", id="model"),
        pytest.param({"guidance": 3.0}, "guidance was 1.0 and is 3.0", id="guidance"),
    ],
)
def test_pictures_that_were_drawn_otherwise_are_not_used(
    flags: dict[str, Any], why: str, recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexjudge_reward import ConfigError

    scripted(recipe, monkeypatch)
    first = {"prompts": 6, "prepare_only": True, "fewest_pairs": 1}
    run(recipe, runs / "drawn", "flow", monkeypatch, **first)
    with pytest.raises(ConfigError, match=f"drawn otherwise: {why}.* give another output_dir, or remove this one"):
        run(recipe, runs / "drawn", "flow", monkeypatch, **first | flags)


def test_a_run_that_drew_nothing_holds_up_no_other(recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = runs / "mistaken"
    (folder / "pictures").mkdir(parents=True)
    pairs = recipe.diffusion_pairs
    pairs.check_pictures(pairs.PairArguments(model_name_or_path="a/typo"), folder, 1)
    pairs.check_pictures(pairs.PairArguments(model_name_or_path="a/right"), folder, 1)
    (folder / "pictures" / "0-0.png").touch()
    with pytest.raises(recipe.FlexJudgeError, match="drawn otherwise: model_name_or_path was 'a/right'"):
        pairs.check_pictures(pairs.PairArguments(model_name_or_path="a/typo"), folder, 1)


def test_pictures_after_are_judged_anew_whatever_an_earlier_training_left(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(recipe, monkeypatch)
    folder = runs / "again"
    folder.mkdir()
    (folder / "held_out.jsonl.progress").write_text('{"run": "another", "sizes": [9, 9], "counts": {"rows": 64}}')
    (folder / "held_out.jsonl.partial").write_text("half a row")
    run(recipe, folder, "flow", monkeypatch, fewest_pairs=2)
    files = [folder / "held_out.jsonl", folder / "held_out.skipped.jsonl"]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(row["id"] for row in found) == [0, 1, 2]
    assert not [*folder.glob("held_out.*.progress"), *folder.glob("held_out.*.partial")]


def test_pictures_are_drawn_and_measured_in_batches_of_the_size_given(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(recipe, monkeypatch)
    drawn, measured = [], []
    pipe = type(recipe.load(str(runs / "nano-flow"), None))
    call, errors = pipe.__call__, recipe.DiffusionTrainer.errors

    def drawing(self: Any, prompts: list[str], **given: Any) -> Any:
        drawn.append(len(prompts))
        return call(self, prompts, **given)

    def measuring(self: Any, network: Any, rows: Any, generator: Any) -> Any:
        if generator is not None:
            measured.append(len(rows["prompt"]))
        return errors(self, network, rows, generator)

    monkeypatch.setattr(pipe, "__call__", drawing)
    monkeypatch.setattr(recipe.DiffusionTrainer, "errors", measuring)
    flags = {"fewest_pairs": 2, "prompts": 8, "per_device_eval_batch_size": 3, "held_out_share": 0.6, "max_steps": 1}
    run(recipe, runs / "batches", "flow", monkeypatch, **flags)
    assert max(drawn) == 3 and sum(drawn) == 8 * 2 + 3 * 2 and max(measured) == 3


def test_only_the_lora_and_its_card_are_pushed(
    recipe: Any, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pushed = fake_hub(importlib.import_module("common"), monkeypatch)
    scripted(recipe, monkeypatch)
    flags = {"fewest_pairs": 2, "save_strategy": "steps", "save_steps": 2, "push_to_hub": True, "hub_token": "secret"}
    run(recipe, runs / "pushed", "flow", monkeypatch, **flags)
    assert (runs / "pushed" / "checkpoint-4" / "README.md").exists()
    files = ["README.md", "pytorch_lora_weights.safetensors"]
    assert pushed == {"token": "secret", "repo": "someone/pushed", "files": files}


def test_two_processes_train_on_different_pairs_with_different_noise(runs: Path, tmp_path: Path) -> None:
    rank = Path(__file__).parent / "support" / "diffusion_rank.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    launch += ["--nproc_per_node", "2", str(rank)]
    flags = {"fewest_pairs": 2, "pictures": 4, "per_device_train_batch_size": 2, "max_steps": 3}
    command = [*launch, str(tmp_path), *words(runs / "two", "flow", **flags)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # two ranks of two threads each would starve each other
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=alone) as ranks:
        try:
            said = ranks.communicate()[1]
        finally:  # the ranks of a launcher that was stopped would go on beside all later tests
            with suppress(ProcessLookupError):
                os.killpg(ranks.pid, signal.SIGKILL)
    assert ranks.returncode == 0, said[-3000:]
    one, other = ([json.loads(row) for row in (tmp_path / f"{n}.jsonl").read_text().splitlines()] for n in (0, 1))
    assert len(one) == len(other) == 3
    pairs = [tuple(pair) for row in (*one, *other) for pair in row["pairs"]]
    assert len(set(pairs)) == len(pairs) == 12
    assert len({row["noise"] for row in (*one, *other)}) == 6
    found = json.loads((runs / "two" / "report.json").read_text())
    assert found["pairs"] >= 12 and len(list((runs / "two" / "pictures").glob("after-*.png"))) == 3
