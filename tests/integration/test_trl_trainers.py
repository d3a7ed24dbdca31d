"""FlexJudgeReward in real trainers: GRPO on text and images, RLOO, two ranks, `trl grpo`, AsyncGRPO's scoring.

The policies are tiny and real; the judges are scripted, except that a program takes the embedded one.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    FlexJudgeReward,
    Judge,
    Listwise,
    Pointwise,
    Request,
    ScriptedEngine,
    Untrusted,
    nano,
)
from flexjudge_reward.engines.colocated import ColocatedEngine
from support import sleeping_server
from support.forked import run
from support.late import late, needs

needs("trl")
datasets, torch, transformers, trl = map(late, ("datasets", "torch", "transformers", "trl"))

# Made inside transformers and torch by their own calls of each other; nothing here can avoid them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
BASE = nano.path("base")
CUT = "<think>never done"


def reply(score: object) -> str:
    return f"<think>because</think><answer>{score}</answer>"


def scripted(replies: list[str], **settings: Any) -> FlexJudgeReward:
    """Judged whole: an untrained policy writes any token, think tags among them."""
    judge = Judge(Pointwise(), ScriptedEngine(replies * 40))
    return FlexJudgeReward(judge, max_failure_rate=1, **{"completion": "all"} | settings)


def constant(completions: list[Any], **columns: Any) -> list[float]:
    return [0.25] * len(completions)


@pytest.fixture(scope="module")
def text_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny text model from config, with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("policy")
    words = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(BASE / "tokenizer.json"), **words)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **more,
    }


def trained(policy: str, rewards: list[Any], folder: Path, rows: list[dict[str, Any]], **more: Any) -> Any:
    """A GRPOTrainer after its steps."""
    config = trl.GRPOConfig(**settings(folder, **more))
    trainer = trl.GRPOTrainer(policy, rewards, args=config, train_dataset=datasets.Dataset.from_list(rows))
    trainer.train()
    return trainer


def finite(trainer: Any) -> dict[str, float]:
    """The log of the first step, in which every number is finite."""
    log: dict[str, float] = trainer.state.log_history[0]
    assert all(math.isfinite(value) for value in log.values())
    return log


TEXT_ROWS = [{"prompt": f"What is {place}?", "answer": "a red star"} for place in ("here", "there", "up", "down")]


def test_grpo_on_text_with_a_reference_column(text_policy: str, tmp_path: Path) -> None:
    one = scripted([reply(n) for n in (1, 4, 7, 10)], reference_column="answer")
    trainer = trained(text_policy, [one], tmp_path, TEXT_ROWS, max_steps=2, log_completions=False)
    log = finite(trainer)
    assert log[f"rewards/{one.__name__}/mean"] == log[f"{one.__name__}/score"] == pytest.approx(0.5)
    assert log[f"{one.__name__}/failure_rate"] == 0
    assert list(trainer._logs["extra"][f"{one.__name__}/reasoning"]) == ["because"] * 8
    assert one.summary.calls == 2 and one.summary.judged == 16
    asked = one.session.judge.engine.prompts[0]  # type: ignore[attr-defined]
    assert "a red star" in str(asked)


def test_grpo_on_images_shows_each_image_once(tmp_path: Path) -> None:
    from PIL import Image

    rows = [
        {"prompt": [{"role": "user", "content": "What is top-left?"}], "image": Image.new("RGB", (56, 56), colour)}
        for colour in ("red", "green", "blue", "white")
    ]
    one = scripted([reply(n) for n in (1, 4, 7, 10)])
    trainer = trained(str(BASE), [one], tmp_path, rows)
    finite(trainer)
    prompts = one.session.judge.engine.prompts  # type: ignore[attr-defined]
    assert [len(prompt.media) for prompt in prompts] == [1] * 8
    assert len({prompt.media[0].digest for prompt in prompts}) == 2
    assert trainer._logs["advantages"][0] < 0 < trainer._logs["advantages"][3]


def test_grpo_judges_each_group_in_one_call(text_policy: str, tmp_path: Path) -> None:
    def in_order(request: Request) -> str:
        texts = [part for part in request.prompt.messages[1].parts if isinstance(part, Untrusted)]
        return "<think></think>" + "".join(f"<answer>{score}</answer>" for score in range(1, len(texts)))

    engine = ScriptedEngine(in_order)
    reward = FlexJudgeReward(Judge(Listwise(), engine))
    log = finite(trained(text_policy, [reward], tmp_path, TEXT_ROWS))
    assert len(engine.prompts) == 2  # eight completions, four of each prompt
    assert log["frac_reward_zero_std"] == 0 and 0 < log[f"rewards/{reward.__name__}/mean"] < 0.5


def test_rloo(text_policy: str, tmp_path: Path) -> None:
    one = scripted([reply(1), CUT, reply(7), reply(10)])
    rows = datasets.Dataset.from_list(TEXT_ROWS)
    trainer = trl.RLOOTrainer(text_policy, one, args=trl.RLOOConfig(**settings(tmp_path, beta=0.0)), train_dataset=rows)
    trainer.train()
    finite(trainer)
    advantages = list(trainer._logs["advantages"])
    assert advantages[1] == pytest.approx(0, abs=1e-6) and advantages[0] < 0 < advantages[3]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_failed_row_beside_another_reward_moves_nothing(aggregation: str, text_policy: str, tmp_path: Path) -> None:
    one = scripted([reply(2), CUT, reply(10), reply(5), CUT, reply(3), CUT, reply(9)])
    trainer = trained(text_policy, [one, constant], tmp_path, TEXT_ROWS, multi_objective_aggregation=aggregation)
    finite(trainer)
    advantages = list(trainer._logs["advantages"])
    assert max(abs(advantages[row]) for row in (1, 4, 6)) <= 1e-6
    assert all(abs(advantages[row]) > 0.1 for row in (0, 2, 5, 7))


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_candidate_that_breaks_the_judge_counts_as_the_lowest(
    aggregation: str, text_policy: str, tmp_path: Path
) -> None:
    """Asked once more, the first one is judged after all; the second group has two that break the judge again."""
    first = [reply("inf"), reply(4), reply(10), reply(5), reply("11"), reply(3), reply("1e39"), reply(9)]
    one = scripted([*first, reply(6), reply("?"), reply("1e39")])
    trainer = trained(text_policy, [one, constant], tmp_path, TEXT_ROWS, multi_objective_aggregation=aggregation)
    log, advantages = finite(trainer), list(trainer._logs["advantages"])
    assert advantages[4] == advantages[5] == advantages[6] < 0 < advantages[7]
    assert advantages[1] < advantages[3] < advantages[0] < advantages[2]
    assert log[f"{one.__name__}/failed_candidate"] == pytest.approx(2 / 8) and log[f"{one.__name__}/failed_ours"] == 0


def test_a_group_without_a_verdict_does_not_move_the_policy(text_policy: str, tmp_path: Path) -> None:
    one = scripted([CUT] * 4 + [reply(n) for n in (1, 4, 7, 10)])
    trainer = trained(text_policy, [one], tmp_path, TEXT_ROWS)
    finite(trainer)
    assert list(trainer._logs["advantages"])[:4] == [0.0] * 4


def test_two_instances_run_side_by_side_with_their_own_metrics(
    text_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    high, low = scripted([reply(10)]), scripted([reply(1)])
    meeting = threading.Barrier(2)
    for one in (high, low):  # as on servers: TRL awaits both, and each answers once the other one is asked
        monkeypatch.setattr(one.session.judge.engine, "remote", True)
        answer = one.session.judge.engine.complete
        monkeypatch.setattr(
            one.session.judge.engine, "complete", lambda asked, do=answer: (meeting.wait(30), do(asked))[1]
        )
    log = finite(trained(text_policy, [high, low], tmp_path, TEXT_ROWS))
    assert high.__name__ != low.__name__
    assert [log[f"rewards/{one.__name__}/mean"] for one in (high, low)] == [1.0, 0.0]
    assert [log[f"{one.__name__}/score"] for one in (high, low)] == [1.0, 0.0]


def test_a_judge_beside_the_policy_sleeps_between_the_steps(text_policy: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"damage": "", "mended_by": ""}')
    server = [sys.executable, sleeping_server.__file__, str(tmp_path)]
    with ColocatedEngine("nano", server=server) as engine:
        reward = FlexJudgeReward(Judge(Pointwise(), engine), max_failure_rate=1, completion="all", probes=0.0)
        rows = [{"prompt": "red star"}] * 8
        finite(trained(text_policy, [reward], tmp_path / "run", rows, max_steps=2))
        events = (tmp_path / "events").read_text().splitlines()
        assert [event for event in events if event not in ("asked", "judged by a whole one")] == [
            *("started", "sleep?level=1&mode=wait", "wake_up", "sleep?level=1&mode=wait")
        ]
        # TRL gives its arguments by a method of its trainer: the policy must leave the GPU.
        awake = SimpleNamespace(use_vllm=True, vllm_mode="colocate", vllm_enable_sleep_mode=False)
        trainer = type("Trainer", (), {"args": awake, "log": lambda self, name, value: None})()
        with pytest.raises(ConfigError, match="vllm_enable_sleep_mode=True"):
            reward(["q"], ["a"], log_metric=trainer.log)


def test_async_grpo_scores_a_group_with_it(text_policy: str) -> None:
    from trl.experimental.async_grpo import async_rollout_worker as worker

    group = SimpleNamespace(
        completions=["a", "b", "c"],
        prompts=["q"] * 3,
        completions_ids=[[1], [2], [3]],
        reward_kwargs={"answer": ["x"] * 3},
        env_rewards=[None] * 3,
        rollout_rewards=[None] * 3,
    )
    one = scripted([reply(1), CUT, reply(10)])
    kwargs = {"completions": group.completions, "prompts": group.prompts, "completion_ids": group.completions_ids}

    async def call() -> list[Any]:
        return await asyncio.gather(asyncio.to_thread(one, **kwargs, **group.reward_kwargs))

    assert not worker.is_async_callable(one) and worker.get_callable_name(one) == one.__name__
    assert asyncio.run(call()) == [[0.0, 0.5, 1.0]]


RANKS = """
import json, os, sys
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from flexjudge_reward import EngineError, FlexJudgeReward, Judge, JudgementFailed, Listwise, Pointwise, ScriptedEngine

rank, settings, policy, rows = int(os.environ["RANK"]), *json.loads(sys.argv[1])

def reply(score):
    return "<think>never done" if score is None else f"<think>because</think><answer>{score}</answer>"

def judge(*scores):
    return Judge(Pointwise(), ScriptedEngine([reply(score) for score in scores]))

# Four completions of one prompt, two on each rank; the first row of rank 1 fails.
reward = FlexJudgeReward(judge(*((1, 7) if rank == 0 else (None, 10))), max_failure_rate=1)

def by_text(request):
    texts = [part.text for part in request.prompt.messages[1].parts if hasattr(part, "text")][1:]
    return "<think>so</think>" + "".join(f"<answer>{sum(map(ord, text)) % 10 + 1}</answer>" for text in texts)

# Beside it one that judges whole groups: the four completions in one list, which one of the two ranks judges.
asked = ScriptedEngine(by_text)
lists = FlexJudgeReward(Judge(Listwise(), asked), name="lists")
args = GRPOConfig(**settings, reward_weights=[1.0, 0.0])
trainer = GRPOTrainer(policy, [reward, lists], args=args, train_dataset=Dataset.from_list(rows))
trainer.train()
results = {
    "name": reward.__name__,
    "rewards": list(trainer._logs["rewards"][reward.__name__]),
    "advantages": list(trainer._logs["advantages"]),
    "lists": list(trainer._logs["rewards"]["lists"]),
    "texts": list(trainer._logs["completion"]),
    "asked": len(asked.requests),
    "reasoning": list(trainer._logs["extra"][f"{reward.__name__}/reasoning"]),
    "log": trainer.state.log_history[0],
}

def stopped(reward):
    try:
        reward(["q"] * 2, ["a", "b"])
    except (EngineError, JudgementFailed) as error:
        return f"{type(error).__name__}: {error}"

# Rank 1's judge has no reply left, so it raises; both ranks must stop, and neither may wait.
results["error"] = stopped(FlexJudgeReward(judge(*((5, 5) if rank == 0 else ()))))
results["limit"] = stopped(FlexJudgeReward(judge(*((5, 5) if rank == 0 else (5, None))), max_failure_rate=0))
with open(f"{settings['output_dir']}/rank{rank}.json", "w") as file:
    json.dump(results, file)
trainer.accelerator.end_training()
# Gloo's threads live as long as the trainer, and one that still frees a tensor while the interpreter ends aborts the
# process with "terminate called without an active exception" (pytorch issue 190489).
os._exit(0)
"""


def test_two_ranks_share_groups_errors_and_the_limit(text_policy: str, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    config = settings(tmp_path, per_device_train_batch_size=2, steps_per_generation=1)
    given = json.dumps([config, text_policy, TEXT_ROWS])
    done = run(["ranks.py", given], tmp_path, ranks=2, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    judged = [0.0, 6 / 9, 5 / 9, 1.0]  # the third is the mean of the siblings on both ranks
    assert zero["name"] == one["name"] == "flexjudge_reward"
    assert zero["rewards"] == one["rewards"] == pytest.approx(judged)
    assert zero["advantages"][2] == pytest.approx(0, abs=1e-6)
    assert zero["lists"] == one["lists"] == pytest.approx([sum(map(ord, text)) % 10 / 9 for text in zero["texts"]])
    assert zero["asked"] + one["asked"] == 1
    assert [text[:5] for text in zero["reasoning"]] == ["becau", "becau", "[trun", "becau"]
    assert zero["log"]["flexjudge_reward/failure_rate"] == pytest.approx(0.25)
    assert zero["error"].startswith("OtherRankError: rank 1 could not judge: EngineError: the script has 0 replies")
    assert one["error"].startswith("EngineError: the script has 0 replies")
    assert zero["limit"] == one["limit"] and "1 of the last" in zero["limit"] and "JudgementFailed" in zero["limit"]


def test_the_program_of_trl_grpo_with_embedded_judges_by_name(text_policy: str, tmp_path: Path) -> None:
    """Three differently set judges, each with settings of its own from TRL's file and from the environment."""
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXT_ROWS))
    record = tmp_path / "r.jsonl"
    names = ["flexjudge_reward.helpful", "flexjudge_reward.short_one", "flexjudge_reward.trainers.trl.flexjudge"]
    config = {
        **settings(tmp_path / "out"),
        "model_name_or_path": text_policy,
        "dataset_name": str(rows),
        "reward_funcs": names,
        "env": {"FLEXJUDGE_MAX_TOKENS": 16, "FLEXJUDGE_SHORT_ONE__FORMAT": "pairwise", "FLEXJUDGE_HELPFUL__SEED": 7},
    }
    (tmp_path / "grpo.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = ["-m", "trl.scripts.grpo", "--config", "grpo.yaml"]
    environment = {"FLEXJUDGE_MODEL": "nano", "FLEXJUDGE_SHORT_ONE__MAX_TOKENS": "8", "FLEXJUDGE_RECORD": str(record)}
    done = run(command, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    for name in ("helpful", "short_one", "flexjudge"):
        assert f"'{name}/failure_rate'" in done.stdout and f"'rewards/{name}/mean'" in done.stdout
    judges = [json.loads(line)["judge"] for line in record.read_text().splitlines()]
    found = {(judge["seed"], judge["max_tokens"], "Pairwise" in judge["format"]) for judge in judges}
    assert found == {(7, 16, False), (0, 8, True), (0, 16, False)}
