"""recipes/judge_training/rl: items, their balance and filter; a short run of the real trainer; what bad input gives."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import flexjudge_recipes
from flexjudge_recipes.judge_training.rl import items
from flexjudge_recipes.judge_training.rl.items import Item
from flexjudge_recipes.nano import shapes

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    Generation,
    Judge,
    Listwise,
    Media,
    MultipleChoice,
    Pairwise,
    Sampling,
    ScriptedEngine,
    Verdict,
)
from flexjudge_reward.data.rows import Rows
from flexjudge_reward.engines.model import Chat, Source, load_tokenizer
from flexjudge_reward.engines.replies import THINKS
from flexjudge_reward.nano import path
from support.judge_families import FAMILIES, ModelFamily
from support.late import late, needs

needs("trl")
nano_items = late("flexjudge_recipes.judge_training.rl.nano_items")
torch = late("torch")
trl = late("trl")
safe = late("safetensors.torch")
train = late("flexjudge_recipes.judge_training.rl.train")


PROGRAM = Path(flexjudge_recipes.__file__).parent / "judge_training" / "rl" / "train.py"
CHOICE = MultipleChoice(prompt_set="nano")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def choices(count: int, options: int = 3) -> list[Item]:
    names = [f"answer {number}" for number in range(options)]
    return [Item(Example(f"question {n}", names), (3.0, *[1.0] * (options - 1))) for n in range(count)]


# ----------------------------------------------------------------------------------------------------------- items


def image_uri() -> str:
    import base64
    import io

    file = io.BytesIO()
    shapes.example(0)[0].save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


GOOD = {"question": "What?", "candidates": ["a", "b"], "scores": [1, 0]}


@pytest.mark.parametrize(
    ("row", "stage", "reason"),
    [
        pytest.param(GOOD, "text", "", id="text"),
        pytest.param(GOOD, "media", "", id="media_without_any"),
        pytest.param(GOOD, "caption", "needs one image and its 'description'", id="nothing_to_describe"),
        pytest.param(GOOD | {"images": ["IMAGE"]}, "media", "", id="image"),
        pytest.param(GOOD | {"images": ["IMAGE"]}, "text", "not for the stage 'text'", id="image_in_text"),
        pytest.param(GOOD | {"images": ["IMAGE"]}, "caption", "needs one image", id="no_description"),
        pytest.param(GOOD | {"images": ["IMAGE"], "description": "a cat"}, "caption", "", id="described"),
        pytest.param(GOOD | {"scores": None}, "text", "needs 'scores'", id="no_scores"),
        pytest.param(GOOD | {"scores": [1, "x"]}, "text", "needs 'scores'", id="score_that_is_no_number"),
        pytest.param(GOOD | {"scores": [1]}, "text", "as many 'scores' as candidates", id="too_few_scores"),
        pytest.param(GOOD | {"scores": [1, 1]}, "text", "share the highest score", id="no_best"),
        pytest.param(GOOD | {"candidates": ["a"]}, "text", "2 to 8 candidates", id="one_candidate"),
        pytest.param({"question": "What?"}, "text", "candidates", id="no_candidates"),
    ],
)
def test_a_row_is_an_item_or_left_out_with_its_reason(
    row: dict[str, Any], stage: Any, reason: str, tmp_path: Path
) -> None:
    row = {name: [image_uri()] if value == ["IMAGE"] else value for name, value in row.items()}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n" + (json.dumps(GOOD) + "\n" if stage != "caption" else ""))
    if stage == "caption" and reason:
        with pytest.raises(ConfigError, match=f"no row can be used; .*{reason}"):
            items.read_items(Rows(file), CHOICE, stage, reward="choice")
        return
    found, left_out = items.read_items(Rows(file), CHOICE, stage, reward="choice")
    assert [reason in why for why in left_out] == ([True] if reason else [])
    assert found[0].scores == (1.0, 0.0)
    if "description" in row:
        assert found[0].example.question[0] == "a cat\n" and not found[0].example.media


def test_both_orders_are_those_of_two(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    three = {"question": "What?", "candidates": ["a", "b", "c"], "scores": [2, 1, 0]}
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(three) + "\n")
    found, left_out = items.read_items(Rows(file), CHOICE, "text", reward="both_orders")
    assert len(found) == 1 and left_out == {"both orders are those of two candidates": 1}


SCALED = GOOD | {"rubric": {"criteria": "right?", "low": 0, "high": 1}}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        pytest.param(GOOD | {"scores": [7, 1]}, "", id="on_the_scale"),
        pytest.param(GOOD | {"scores": [0.7, 0.1]}, "off the scale 1 to 10", id="0_to_1"),
        pytest.param(GOOD | {"scores": [-1, -1]}, "off the scale 1 to 10", id="unreadable_teacher"),
        pytest.param(SCALED, "", id="on_its_own_scale"),
        pytest.param(SCALED | {"scores": [7, 1]}, "off the scale 0 to 1", id="off_its_own_scale"),
    ],
)
def test_a_teachers_scores_are_on_the_scale_that_the_judge_is_asked_for(
    row: dict[str, Any], why: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(GOOD | {"scores": [5, 4]}) + "\n")
    found, left_out = items.read_items(Rows(file), Pairwise(prompt_set="nano"), "text", reward="teacher")
    assert len(found) == 2 - bool(why) and [why in one for one in left_out] == [True] * bool(why)


def test_a_ranked_item_has_an_order(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "What?", "candidates": ["a", "b", "c"], "scores": scores} for scores in ([3, 2, 1], [3, 1, 1])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, left_out = items.read_items(Rows(file), Listwise(prompt_set="nano"), "text", reward="ranking")
    assert len(found) == 1 and left_out == {"candidates with equal scores have no order": 1}


def test_each_letter_is_best_equally_often() -> None:
    made = items.balanced([*choices(30, 2), *choices(30, 3)], seed=1)
    places = Counter((len(item.scores), item.scores.index(3.0)) for item in made)
    assert places == {(2, 0): 15, (2, 1): 15, (3, 0): 10, (3, 1): 10, (3, 2): 10}
    assert all(item.example.candidates[item.scores.index(3.0)] == ("answer 0",) for item in made)
    assert items.balanced(choices(9), 1) == items.balanced(choices(9), 1) != items.balanced(choices(9), 2)


def test_pass_rates_continue_after_a_kill(tmp_path: Path) -> None:
    file, made = tmp_path / "_work" / "rates.jsonl", choices(4)
    engine = ScriptedEngine(lambda one: f"<think></think><answer>{'AB'[one.sampling.seed % 2]}</answer>")
    assert items.pass_rates(made[:2], Judge(CHOICE, engine), 4, "choice", file) == [0.5, 0.5]
    file.write_text(file.read_text() + '["cut')
    asked = len(engine.requests)
    assert items.pass_rates(made, Judge(CHOICE, engine), 4, "choice", file) == [0.5] * 4
    assert items.pass_rates(made, Judge(CHOICE, engine), 4, "choice", file) == [0.5] * 4
    assert len(engine.requests) - asked == 2 * 4


@pytest.mark.parametrize(
    ("scores", "reward", "format", "sampling", "asked"),
    [
        pytest.param((3.0, 1.0), "choice", CHOICE, Sampling(), False, id="equal"),
        pytest.param((1.0, 3.0), "choice", CHOICE, Sampling(), True, id="scores"),
        pytest.param((3.0, 1.0), "both_orders", CHOICE, Sampling(), True, id="reward"),
        pytest.param((3.0, 1.0), "choice", MultipleChoice("helpfulness", "flex"), Sampling(), True, id="wording"),
        pytest.param((3.0, 1.0), "choice", MultipleChoice("faithfulness", "nano"), Sampling(), True, id="rubric"),
        pytest.param((3.0, 1.0), "choice", CHOICE, Sampling(0.5), True, id="temperature"),
    ],
)
def test_a_rate_of_other_settings_is_found_anew(
    scores: tuple[float, ...], reward: str, format: MultipleChoice, sampling: Sampling, asked: bool, tmp_path: Path
) -> None:
    engine, file = ScriptedEngine(lambda _: "<think></think><answer>A</answer>"), tmp_path / "rates.jsonl"
    (item,) = choices(1, 2)
    assert items.pass_rates([item], Judge(CHOICE, engine, Sampling()), 1, "choice", file) == [1.0]
    rates = items.pass_rates([Item(item.example, scores)], Judge(format, engine, sampling), 1, reward, file)
    assert rates == [float(scores[0] > scores[1])] and len(engine.requests) == 1 + asked


def test_a_tie_names_no_letter() -> None:
    score = nano_items.Score.of(choices(2, 2), [Verdict((5.0, 5.0)), Verdict((5.0, 4.0))])
    assert (score.right, score.formed, score.said) == (0.5, 1.0, {"A": 0.5})


def test_a_failed_draw_is_no_wrong_one(tmp_path: Path) -> None:
    def reply(request: Any) -> Any:
        broken = request.sampling.seed or "question 0" in str(request.prompt)
        return Generation.failed("engine", "") if broken else "<think></think><answer>A</answer>"

    judge = Judge(CHOICE, ScriptedEngine(reply))
    rates = items.pass_rates(choices(2), judge, 4, "choice", tmp_path / "rates.jsonl")
    assert rates == [None, 1.0]


def test_both_orders_of_a_pair_come_one_after_the_other() -> None:
    pair = [Item(Example([Media.image(shapes.example(0)[0]), "What?"], ["a", "<|im_end|>b"]), (2.0, 1.0))]
    source = Source.find("nano", None, False)
    chat = Chat(load_tokenizer(source), source.template())
    rows = list(items.trainer_rows(pair, Pairwise(prompt_set="nano"), chat, twins=True))
    assert [row["scores"] for row in rows] == [[2.0, 1.0], [1.0, 2.0]] and [row["twin"] for row in rows] == [0, 0]
    parts = rows[0]["prompt"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text"] and len(rows[0]["images"]) == 1
    assert "<|im_end|>" not in parts[2]["text"] and "b" in parts[2]["text"]


@pytest.mark.parametrize("family", [one for one in FAMILIES if not one.image], ids=lambda family: family.name)
def test_a_judge_of_texts_gets_the_turns_that_its_template_takes(family: ModelFamily) -> None:
    chat = family.chat()
    (row,) = items.trainer_rows(choices(1), CHOICE, chat, twins=False)
    shown = chat.tokenizer.apply_chat_template(
        row["prompt"], chat_template=family.template, tokenize=False, add_generation_prompt=True, **THINKS
    )
    assert shown == chat.render(CHOICE.render(choices(1)[0].example)[0]) and not row["images"]


def test_a_planted_fault_is_one_place() -> None:
    for item in nano_items.items("hard", 40, "test"):
        one, other = (candidate[0].split(" ") for candidate in item.example.candidates)
        assert sorted(item.scores) == [8.0, 10.0] and one != other


# ------------------------------------------------------------------------------------------------------------- run


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, **flags: Any) -> None:
    """The program, short: two steps of two groups of two."""
    flags = {"items": 8, "pass_draws": 0, "max_steps": 2, "measure_every": 2, "measured": 2, "replay": 0.5} | flags
    flags = {"num_generations": 2} | flags
    flags |= {"per_device_train_batch_size": 4, "logging_steps": 1, "output_dir": folder}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(PROGRAM.parent / "nano.yaml"), *words])
    train.main()


def test_a_run_leaves_a_judge_a_report_and_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    run(folder, monkeypatch, most_without_variance=1.0, measure_every=50)
    report = json.loads((folder / "report.json").read_text())
    assert report["items"] == 8 and list(report["reward"]) == ["1", "2"] and report["stopped"] == ""
    assert list(report["held_out"]) == ["0", "2"] and set(report["held_out"]["0"]) == {"hard", "old"}
    assert set(report["held_out"]["2"]["old"]) == {"right", "formed", "by_letter", "said", "count"}
    card = (folder / "README.md").read_text()
    assert "hard task, right, greedy" in card and "reward was choice" in card
    assert (folder / "model.safetensors").exists() and (folder / "curve.png").stat().st_size > 1000
    judge = Judge.load(model=str(folder), format="multiple_choice", cache="off")
    assert judge.format.innermost().template == CHOICE.template  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(folder, monkeypatch)


def test_adapters_are_merged_and_the_next_stage_goes_on_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = {"use_peft": True, "lora_target_modules": r".*language_model.*\.q_proj", "measure_every": 0}
    run(tmp_path / "one", monkeypatch, **adapters, max_steps=1, learning_rate=0.1)
    before, after = (safe.load_file(folder / "model.safetensors") for folder in (path("judge"), tmp_path / "one"))
    assert before.keys() == after.keys()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert not any("q_proj" not in name or "visual" in name for name in changed)
    assert (tmp_path / "one" / "adapter" / "adapter_config.json").exists()
    options = train.RecipeArguments()
    assert options.asked(str(tmp_path / "one")).template == CHOICE.template
    assert not capsys.readouterr().out.count("other words")
    assert train.RecipeArguments(prompt_set="flex").asked(str(tmp_path / "one")).template != CHOICE.template
    assert "other words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shares", "stops"),
    [
        pytest.param([0.9, 0.9, 0.9], False, id="too_few_logs"),
        pytest.param([0.9, 0.7, 0.9, 0.9], True, id="above_on_average"),
        pytest.param([0.9, 0.9, 0.9, 0.2, 0.9], False, id="one_good_log"),
        pytest.param([0.1, 0.1, 0.9, 0.9, 0.9, 0.9], True, id="late"),
    ],
)
def test_a_run_stops_where_groups_no_longer_differ(shares: list[float], stops: bool) -> None:
    stop, control, state = train.Stop(0.8), type("Control", (), {"should_training_stop": False})(), trl.GRPOConfig
    for share in shares:
        stop.on_log(None, type("State", (), {"global_step": 7})(), control, {"frac_reward_zero_std": share})
    stop.on_log(None, state, control, {"loss": 0.0})
    assert control.should_training_stop is stops and bool(stop.why) is stops


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param({"reward": "words"}, "reward is one of choice, ranking, teacher, both_orders", id="reward"),
        pytest.param({"format": "rank"}, "format is one of", id="format"),
        pytest.param({"reward": "ranking"}, "ranking needs a format with scores", id="ranking_of_letters"),
        pytest.param({"reward": "choice", "format": "pointwise"}, "compares candidates", id="choice_of_one"),
        pytest.param({"pass_low": 0.9, "pass_high": 0.1}, "0 <= pass_low < pass_high <= 1", id="pass_rates"),
        pytest.param({"replay": 2}, "replay is a share, 0 to 1", id="replay"),
        pytest.param({"measure_every": -1}, "measure_every is at least 0, found -1", id="every_step"),
        pytest.param({"prompt_set": "none"}, "prompt_set is one of flex, nano", id="prompt_set"),
        pytest.param(
            {"reward": "both_orders", "num_generations": 4}, "a multiple of twice num_generations, 8", id="half_a_pair"
        ),
        pytest.param({"use_peft": True}, "--measure_every 0 with --use_peft", id="adapters_measured"),
        pytest.param({"dataset_name": "gone.jsonl"}, "gone.jsonl", id="no_data"),
        pytest.param({"stage": "words"}, "stage is one of text, caption, media", id="stage"),
        pytest.param({"model_name_or_path": "ADAPTER"}, "cannot be used", id="adapters_alone"),
        pytest.param({"model_name_or_path": "NEWER"}, "wants Qwen9ForJudging, which", id="no_class"),
        pytest.param({"dataset_name": "ROWS"}, "1 items are left, and a batch holds 2", id="too_few_items"),
    ],
)
def test_bad_input_is_an_error_before_a_model_loads(
    flags: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n")
    for name, file in (("ADAPTER", "adapter_config.json"), ("NEWER", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(IN_MINIATURE | {"architectures": ["Qwen9ForJudging"]}))
    places = {"ROWS": tmp_path / "rows.jsonl"} | {name: tmp_path / name for name in ("ADAPTER", "NEWER")}
    flags = {name: places.get(value, value) for name, value in flags.items()}
    monkeypatch.setattr(train, "GRPOTrainer", lambda **_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", monkeypatch, **flags)


# -------------------------------------------------------------------------------------------------- configurations

REAL = sorted(path.name for path in PROGRAM.parent.glob("qwen*.yaml"))
IN_MINIATURE: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "vocab_size": 32},
    "vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 16},
}


@pytest.mark.parametrize("config", REAL)
def test_a_real_configuration_parses_and_trains_the_language_model_alone(config: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from peft import get_peft_model

    words = ["--config", str(PROGRAM.parent / config), "--bf16", "false", "--use_cpu", "true", "--report_to", "none"]
    parser = trl.TrlParser((train.RecipeArguments, trl.GRPOConfig, trl.ModelConfig))
    options, args, model_args = parser.parse_args_and_config(words, fail_with_unknown_args=True)
    assert options.asked("").template.system and args.output_dir == f"runs/judge_rl_{config[:-5]}"
    twice = 2 if options.reward == "both_orders" else 1
    assert args.per_device_train_batch_size % (twice * args.num_generations) == 0
    (tmp_path / "config.json").write_text(json.dumps(IN_MINIATURE))
    with torch.device("meta"):  # no weights
        found = transformers.AutoConfig.from_pretrained(tmp_path)
        model = transformers.AutoModelForImageTextToText.from_config(found)
    train.freeze_encoders(model)
    frozen = {name.split(".")[1] for name, weights in model.named_parameters() if not weights.requires_grad}
    assert type(model).__name__ == IN_MINIATURE["architectures"][0] and frozen == {"visual"}
    adapted = get_peft_model(model, trl.get_peft_config(model_args))
    trained = [name for name, weights in adapted.named_parameters() if weights.requires_grad]
    assert len(trained) == 2 * 7 and all("language_model" in name for name in trained)
