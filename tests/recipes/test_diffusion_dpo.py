"""The diffusion-DPO recipe: the loss, the nano world's truth, and short runs of the real program."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.nano import images

import pytest
from PIL import Image

from flexjudge_reward import ConfigError, Judge, Pointwise, Request, ScriptedEngine
from support import forked
from support.hub import fake_hub
from support.jsonl import read
from support.late import late, needs

needs("trl", "diffusers")
train = late("flexjudge_recipes.diffusion_dpo.train")
dpo_pairs = late("flexjudge_recipes.diffusion_dpo.pairs")
dpo_report = late("flexjudge_recipes.diffusion_dpo.report")
trainer = late("flexjudge_recipes.diffusion_dpo.trainer")
image_generator = late("flexjudge_recipes.nano.image_generator")
torch = late("torch")
safe = late("safetensors.torch")
trl = late("trl")

CONFIGS = Path(flexjudge_recipes.__file__).parent / "diffusion_dpo"
JUDGES = Path(__file__).parents[1] / "support" / "image_judges.py"
KINDS = ("unet", "flow")
LORA = "pytorch_lora_weights.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both nano pipelines, barely trained."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_generator, "VAE_STEPS", 2)
        patch.setattr(image_generator, "IMAGES", 40)
        for kind in KINDS:
            image_generator.pretrain(kind, folder / f"nano-{kind}", steps=3)
    return folder


def words(folder: Path, kind: str, judge: str = "Alternating", **flags: Any) -> list[str]:
    """The command line of a short run."""
    settings = {"model": "nano", "format": f"{JUDGES}:{judge}", "cache": "off"}
    short = {"prompts": 8, "images_per_prompt": 2, "inference_steps": 2, "held_out_prompts": 3, "max_steps": 4}
    short |= {"per_device_train_batch_size": 2, "margin": 1.0, "min_pairs": 2, "logging_steps": 1}
    given = short | {"output_dir": folder, "judge": json.dumps(settings)} | flags
    config = ["--config", str(CONFIGS / f"nano_{kind}.yaml")]
    return [*config, *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def run(folder: Path, kind: str = "flow", **flags: Any) -> None:
    """The recipe as the command line runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *words(folder, kind, **flags)])
        train.main()


def times(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*.png")}


# ------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(
    ("won", "lost", "sign"),
    [
        pytest.param(1.0, 1.0, 0, id="as before"),
        pytest.param(0.5, 1.0, 1, id="winner better"),
        pytest.param(1.0, 2.0, 1, id="loser worse"),
        pytest.param(2.0, 1.0, -1, id="winner worse"),
        pytest.param(2.0, 3.0, 1, id="both worse, the loser more"),
    ],
)
@pytest.mark.parametrize("safeguard", [0.0, 0.9])
def test_the_loss_compares_both_errors_with_the_reference(won: float, lost: float, sign: int, safeguard: float) -> None:
    reference = torch.ones(2, 3, 4)
    errors = torch.stack([torch.full((3, 4), won), torch.full((3, 4), lost)])
    loss, margin = trainer.preference_loss(errors, reference, 1.0, safeguard, 0.0)
    assert margin.item() == pytest.approx((1 - won**2) - (1 - lost**2))
    assert (margin.item() > 0) - (margin.item() < 0) == sign
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-margin.item() / 2)))
    with_sft, same = trainer.preference_loss(errors, reference, 1.0, safeguard, 3.0)
    assert same == margin and with_sft.item() == pytest.approx(loss.item() + 3.0 * (won**2 - 1) / 2)


def test_the_safeguard_keeps_the_descent_of_the_winner() -> None:
    """A step still lowers the winner's error, by at least a tenth of its own gradient; without the safeguard not."""
    generator = torch.Generator().manual_seed(0)
    for share, expected in ((0.9, True), (0.0, False)):
        kept = []
        for _ in range(50):
            won = torch.randn(1, 8, generator=generator)
            lost = (2 * won + torch.randn(1, 8, generator=generator)).requires_grad_()
            error = trainer.scaled_loser_error(won, lost, share) if share else lost.square().mean(1)
            assert error.item() == pytest.approx(lost.square().mean().item())
            (gradient,) = torch.autograd.grad(error.sum(), lost)
            own = 2 * won / 8
            kept.append(bool((own * (own - gradient)).sum() >= (1 - 0.9) * own.square().sum() - 1e-6))
        assert all(kept) == expected


# ------------------------------------------------------------------------------------------------------- nano world


def test_the_truth_recognises_every_correct_image() -> None:
    rng = random.Random(0)
    for _ in range(100):
        spec, other = images.Spec.sample(rng), images.Spec.sample(rng)
        truth = images.truth(spec.image(), str(other))
        equal = (spec.colour == other.colour) + (spec.shape == other.shape) if spec.place == other.place else 0
        assert truth.score == (1, 5, 10)[equal], (spec, other)
        assert (truth.background_error < 1) == (spec.place == other.place)


def test_the_judge_of_the_nano_world_prefers_the_image_of_the_prompt(tmp_path: Path) -> None:
    prompts = ["red star top-left", "white circle bottom-right"]
    groups = [[tmp_path / f"{number}-{index}.png" for index in range(3)] for number in range(2)]
    for group, shown in zip(groups, (("blue star top-left", prompts[0], prompts[0]), prompts[:1] * 3), strict=True):
        for file, prompt in zip(group, shown, strict=True):
            images.Spec.of(prompt).image().save(file)
    with Judge.load(model="nano", format="flexjudge_recipes.nano.images:PromptAsAnswer", cache="off") as judge:
        dpo_pairs.compare(judge, prompts, groups, tmp_path / "pairs.jsonl", margin=5.0)
    pairs = read(tmp_path / "pairs.jsonl")
    assert [(pair["prompt"], pair["pair"], pair["scores"]) for pair in pairs] == [
        (prompts[0], [1, 0], [10, 5]),
        (prompts[0], [2, 0], [10, 5]),
    ]


@pytest.mark.parametrize(
    ("iou", "background", "kept"),
    [
        pytest.param(0.90, 2.0, True, id="as before"),
        pytest.param(0.95, 1.0, True, id="better"),
        pytest.param(0.89, 3.0, True, id="at the bound"),
        pytest.param(0.88, 2.0, False, id="shapes worse"),
        pytest.param(0.90, 3.1, False, id="background worse"),
        pytest.param(0.99, 3.1, False, id="better shapes do not make up for the background"),
    ],
)
def test_quality_is_kept_within_a_bound(iou: float, background: float, kept: bool) -> None:
    before = {"shape_iou_before": 0.9, "background_error_before": 2.0}
    assert dpo_report.quality_kept(before | {"shape_iou_after": iou, "background_error_after": background}) == kept


# ---------------------------------------------------------------------------------------------------- prompts, pairs


def test_held_out_prompts_are_other_prompts_each_about_equally_often() -> None:
    training, held_out = images.prompts(1, 192), images.prompts(1, 96, held_out=True)
    assert not set(training) & set(held_out) and len({*training, *held_out}) == 6 * 4 * 4
    for prompts in (training, held_out):
        counts = [prompts.count(prompt) for prompt in set(prompts)]
        assert max(counts) - min(counts) <= 1
    other = images.prompts(2, 96, held_out=True)
    assert other != held_out and set(other) == set(held_out)


def test_prompts_of_a_data_set_are_sampled_once_each(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": f"cat {n % 6} "}) + "\n" for n in range(60)))
    training, held_out = dpo_pairs.load_prompts(str(tmp_path), "train", "prompt", (4, 2), 0)
    assert len(training) == 4 and sorted([*training, *held_out]) == [f"cat {n}" for n in range(6)]
    assert dpo_pairs.load_prompts(str(tmp_path), "train", "prompt", (4, 2), 1)[0] != training


def redness(request: Request) -> list[int]:
    return [1 + media.images()[0].getpixel((0, 0))[0] // 50 for media in request.prompt.media]  # type: ignore[index]


def test_no_prompt_is_trained_on_and_evaluated_on(tmp_path: Path) -> None:
    for index, colour in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
    groups = [[tmp_path / "0.png", tmp_path / "1.png"]] * 70
    red = ScriptedEngine(lambda request: f"<think></think><answer>{redness(request)[0]}</answer>")
    dpo_pairs.compare(
        Judge(Pointwise(), red), [f"cat {n % 7}" for n in range(70)], groups, tmp_path / "pairs", margin=1
    )
    training, evaluation = dpo_pairs.load_pairs(tmp_path / "pairs", 0.15, 0, min_pairs=70)
    assert not set(training["prompt"]) & set(evaluation["prompt"])
    assert (len(training), len(evaluation)) == (50, 20)
    assert training[0]["chosen"].getpixel((0, 0)) == (255, 0, 0)


def test_failed_judgements_do_not_count_in_the_win_rate(tmp_path: Path) -> None:
    kept, skipped = tmp_path / "c.jsonl", tmp_path / "c.skipped.jsonl"
    kept.write_text('{"pair": [1, 0]}\n{"pair": [1, 0]}\n{"pair": [0, 1]}\n')
    skipped.write_text('{"why": "tie"}\n{"why": "malformed"}\n{"why": "media"}\n')
    assert dpo_report.judge_metrics(kept) == {"judge_win_rate": 2.5 / 4, "judge_ties": 1, "judge_failed": 2}
    kept.write_text("")
    skipped.write_text('{"why": "malformed"}\n')
    assert dpo_report.judge_metrics(kept) == {"judge_win_rate": None, "judge_ties": 0, "judge_failed": 1}


# ---------------------------------------------------------------------------------------------------------- program


def test_every_setting_of_the_configurations_exists() -> None:
    parser, files = trl.TrlParser((train.RecipeArguments, trainer.DiffusionDPOConfig)), sorted(CONFIGS.glob("*.yaml"))
    assert len(files) == 6
    for file in files:
        given = ["--config", str(file), "--bf16", "false", "--use_cpu", "true"]
        options, args = parser.parse_args_and_config(given, fail_with_unknown_args=True)
        assert options.judge["model"] and args.max_steps > 0 and args.output_dir.startswith("runs/diffusion_dpo_")


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, runs: Path) -> Iterator[dict[str, Any]]:
    """A finished run that first prepared its pairs only, and what was seen of it on the way."""
    folder, kind = runs / f"whole-{request.param}", request.param
    flags = {"learning_rate": 0.05, "per_device_eval_batch_size": 3, "eval_share": 0.6}
    seen: dict[str, Any] = {"kind": kind, "folder": folder, "generated": [], "evaluated": []}
    run(folder, kind, prepare_only=True, **flags)
    seen["prepared"] = {file.name for file in folder.iterdir()}
    seen["train"] = times(folder / "_work/train")
    generate, errors = dpo_pairs.ImageSampler._generate, train.DiffusionDPOTrainer.denoising_errors
    accuracy = train.DiffusionDPOTrainer.implicit_accuracy

    def generating(self: Any, family: Any, prompts: list[str], seeds: list[int]) -> Any:
        seen["generated"].append(len(prompts))
        return generate(self, family, prompts, seeds)

    def evaluating(self: Any, network: Any, batch: Any, generator: Any = None) -> Any:
        if generator is not None:
            seen["evaluated"].append(len(batch["prompt"]))
        return errors(self, network, batch, generator)

    def trained(self: Any, evaluation: Any) -> float:
        sampler = dpo_pairs.ImageSampler(2, 1.0, self.size, 3)
        prompts = images.prompts(1, 3, held_out=True)
        seen["trained"] = sampler.sample(self.family, prompts, 1, folder.with_name(f"trained-{kind}"), 2)
        seen["generated"].clear()
        return accuracy(self, evaluation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo_pairs.ImageSampler, "_generate", generating)
        patch.setattr(train.DiffusionDPOTrainer, "denoising_errors", evaluating)
        patch.setattr(train.DiffusionDPOTrainer, "implicit_accuracy", trained)
        run(folder, kind, resume=True, **flags)
    yield seen


def test_the_program_generates_judges_trains_and_reports(finished: dict[str, Any]) -> None:
    folder = finished["folder"]
    assert finished["prepared"] == {"_work"} and times(folder / "_work/train") == finished["train"]
    report = json.loads((folder / "report.json").read_text())
    assert report["pairs"] == len(read(folder / "_work/pairs/pairs.jsonl")) == 8 and report["eval_pairs"] == 5
    assert 0 <= report["implicit_accuracy"] <= 1 and 0 <= report["win_rate"] <= 1 and report["judge_win_rate"] == 1
    assert report["log"][0]["accuracy"] == 0.5  # the LoRA begins as the reference
    for name in ("grid.png", "curve.png"):
        assert (folder / name).stat().st_size > 1000
    card = (folder / "README.md").read_text()
    assert "base_model" not in card and "library_name: diffusers\n" in card and "### Margins" in card
    assert "Alternating)." in card and "| same-seed win rate, by the truth | 50.0% |" in card


def test_the_saved_lora_generates_what_the_trained_model_generates(finished: dict[str, Any]) -> None:
    work, names = finished["folder"] / "_work", [f"{number}-0.png" for number in range(3)]
    before, after = ([Image.open(work / when / name).tobytes() for name in names] for when in ("before", "after"))
    assert [Image.open(file).tobytes() for (file,) in finished["trained"]] == after != before


def test_images_and_evaluation_come_in_batches_of_the_given_size(finished: dict[str, Any]) -> None:
    assert finished["generated"] == [3] and set(finished["evaluated"]) == {3, 2}


@pytest.fixture(scope="module")
def unbroken(runs: Path) -> tuple[Path, dict[str, set[str]]]:
    """A run with checkpoints that pushes, and what it pushed."""
    with pytest.MonkeyPatch.context() as patch:
        pushed = fake_hub(patch)
        run(runs / "unbroken", save_strategy="steps", save_steps=2, push_to_hub=True, hub_token="secret")
    return runs / "unbroken", pushed


def test_nothing_but_the_lora_and_its_card_is_pushed(unbroken: tuple[Path, dict[str, set[str]]]) -> None:
    folder, pushed = unbroken
    assert (folder / "checkpoint-4/adapter_model.safetensors").exists()
    assert pushed == {"someone/unbroken": {"README.md", "curve.png", LORA}}


def test_a_run_that_was_cut_off_continues_as_if_it_had_not_been(
    runs: Path, unbroken: tuple[Path, dict[str, set[str]]]
) -> None:
    flags = {"save_strategy": "steps", "save_steps": 2}
    (whole, _), cut = unbroken, runs / "cut"
    run(cut, **flags, max_steps=2)
    with pytest.raises(ConfigError, match="--resume true"):
        run(cut, **flags)
    kept = times(cut / "_work/train")
    for left in (
        "_work/pairs/pairs.jsonl",
        "_work/train/0-1.png",
    ):  # as if it had been cut off while it prepared the pairs
        (cut / left).unlink()
    (cut / "_work/comparisons.jsonl.progress").write_text('{"run": "other", "sizes": [9, 9], "counts": {"rows": 64}}')
    (cut / "_work/comparisons.jsonl.partial").write_text("half a row")
    run(cut, **flags, resume=True)
    assert {file for file, when in times(cut / "_work/train").items() if kept[file] != when} == {
        str(cut / "_work/train/0-1.png")
    }
    one, other = safe.load_file(whole / LORA), safe.load_file(cut / LORA)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    for name in ("pairs/pairs.jsonl", "comparisons.jsonl", "after/2-0.png"):
        assert (cut / "_work" / name).read_bytes() == (whole / "_work" / name).read_bytes()
    assert not [*cut.glob("_work/*.progress"), *cut.glob("_work/*.partial"), *cut.glob("_work/*/*.new")]


def test_bad_input_is_refused_before_an_image_is_generated(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a cat"}\n')
    monkeypatch.setattr(train, "load_family", None)
    with pytest.raises(ConfigError, match="no column 'prompt'; it has text"):
        run(runs / "bad", dataset_name=tmp_path)
    with pytest.raises(ConfigError, match="has 1 different prompts, 11 are needed"):
        run(runs / "bad", dataset_name=tmp_path, prompt_column="text")
    with pytest.raises(ConfigError, match="format must be one of"):
        run(runs / "bad", judge="no such judge")
    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="3 votes at temperature 0"):
        patch.setenv("FLEXJUDGE_VOTES", "3")
        run(runs / "bad")
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    with pytest.raises(ConfigError, match=r"report_to trackio: .*pip install trackio.* Or set --report_to none"):
        run(runs / "bad", report_to="trackio")
    assert not (runs / "bad").exists()


def test_too_few_pairs_train_nothing_and_a_lower_margin_judges_the_same_images(runs: Path) -> None:
    folder = runs / "few"
    with pytest.raises(ConfigError, match=r"^0 pairs are too few .*README.md counts why.*--resume true"):
        run(folder, margin=9.0)
    assert {file.name for file in folder.iterdir()} == {"_work"}
    kept = times(folder / "_work/train")
    shutil.rmtree(folder / "_work/pairs")
    run(folder, margin=5.0, resume=True, prepare_only=True)
    assert times(folder / "_work/train") == kept and len(read(folder / "_work/pairs/pairs.jsonl")) == 8


def test_a_judge_that_fails_gives_no_pair(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"^0 pairs are too few to train on \(min_pairs=2\)"):
        run(runs / "unreadable", judge="Unreadable")
    assert {row["why"] for row in read(runs / "unreadable/_work/pairs/pairs.skipped.jsonl")} == {"malformed"}


def test_two_processes_train_on_different_pairs_with_different_noise(runs: Path, tmp_path: Path) -> None:
    rank = Path(__file__).parents[1] / "support" / "diffusion_rank.py"
    flags = {"images_per_prompt": 4, "max_steps": 3}
    done = forked.run([str(rank), str(tmp_path), *words(runs / "two", "flow", **flags)], tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (read(tmp_path / f"{rank}.jsonl") for rank in (0, 1))
    assert len(one) == len(other) == 3
    pairs = [tuple(pair) for step in (*one, *other) for pair in step["pairs"]]
    assert len(set(pairs)) == len(pairs) == 12
    assert len({step["noise"] for step in (*one, *other)}) == 6
    report = json.loads((runs / "two" / "report.json").read_text())
    assert report["pairs"] >= 12 and len(list((runs / "two/_work/after").glob("*.png"))) == 3
