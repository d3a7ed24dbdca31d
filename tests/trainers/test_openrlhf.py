"""OpenRLHF 0.11: its own executors, file and agent loaders, HTTP client and experience builder, without vLLM and Ray.

Only the engine that generates, and the modules that it comes from, are stand-ins.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    FlexJudgeReward,
    Generation,
    Judge,
    Listwise,
    Pointwise,
    Request,
    RewardSession,
    ScriptedEngine,
)
from flexjudge_reward.nano import path
from flexjudge_reward.trainers import rows
from support.judging import candidates, tags
from support.serving import Serving
from support.trainer_checks import Record, no_advantage, same_rewards
from support.trainer_venvs import ROOT, place

# Made inside torch by its own calls; nothing here can avoid them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
FILES = ROOT / "flexjudge_reward" / "trainers"


def answer(request: Request) -> str | Generation:
    """The score of an answer is the number at its end; one that ends with 2 cannot be judged."""
    numbers = [int(text.split()[-1]) for text in candidates(request)]
    return Generation.failed("transport", "no route") if 2 in numbers else tags(*numbers)


@pytest.fixture(scope="module")
def openrlhf() -> Iterator[SimpleNamespace]:
    """The parts of OpenRLHF that reward a sample."""
    stubs: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SimpleNamespace, "__version__": "0.31.0"},
        "vllm.inputs": {"TokensPrompt": dict},
        "vllm.utils": {"random_uuid": lambda: "x"},
        "ray": {"remote": lambda *given, **_: given[0] if given else lambda kind: kind, "__version__": "2.55.0"},
        "ray.util": {},
        "ray.util.placement_group": {"placement_group": None, "PlacementGroup": None},
        "ray.util.scheduling_strategies": {"PlacementGroupSchedulingStrategy": None},
        "pylatexenc": {"latex2text": None},
        "deepspeed": {},
        "openrlhf.models": {"__path__": [str(place("orlhf") / "openrlhf" / "models")]},  # without its models
        "openrlhf.trainer.ray.launcher": {"RayActorGroup": None},
    }
    before = dict(sys.modules)
    sys.path.insert(0, str(place("orlhf")))
    for name, values in stubs.items():
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update({"__spec__": ModuleSpec(name, None), **values})
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.trainer.ray.vllm_engine import _load_agent_executor
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import AutoTokenizer

    yield SimpleNamespace(
        single=SingleTurnAgentExecutor,
        agent=_load_agent_executor,
        experience=lambda out: SamplesGenerator._process_response_into_experience(None, out, max_len=64),
        maker=RemoteExperienceMaker,
        tokenizer=AutoTokenizer.from_pretrained(path("base")),
    )
    sys.path.remove(str(place("orlhf")))
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in ("openrlhf", "vllm", "ray", "pylatexenc", "deepspeed"):
            del sys.modules[name]
    sys.modules.update({name: before[name] for name in stubs if name in before})


class Policy:
    """Answers 1, 2, 3 and so on."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.count = tokenizer, 0

    async def generate(self, ids: Any, params: Any, multi_modal_data: Any = None) -> Any:
        self.count += 1
        text = f"red star {self.count}"
        out = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        await asyncio.sleep(0)
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=out, text=text, finish_reason="stop", logprobs=None)])


async def sampled(openrlhf: Any, executor: Any, size: int = 4) -> list[Any]:
    """One prompt, sampled as `RolloutRayActor.generate_responses` does."""
    tokenizer = openrlhf.tokenizer
    asked = [{"role": "user", "content": "What is top left?"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    given = {"prompt": prompt, "label": "red star", "max_length": 64, "hf_tokenizer": tokenizer, "images": None}
    params, engine = SimpleNamespace(max_tokens=16, logprobs=None), Policy(tokenizer)
    samples = [executor.execute(sampling_params=params, llm_engine=engine, **given) for _ in range(size)]
    return [openrlhf.experience(out) for out in await asyncio.gather(*samples)]


def check(found: list[Any], expected: list[float | None], failed: list[float]) -> None:
    """The tensors that OpenRLHF trains on; None stands for the mean of what was judged so far."""
    import torch

    for column in ([one.rewards for one in found], [one.scores for one in found]):
        for number, known in zip(torch.cat(column).flatten().tolist(), expected, strict=True):
            assert number == pytest.approx(known) if known is not None else 0 <= number <= 0.5
    assert [one.info["judge_failed"].flatten().tolist() for one in found] == [[number] for number in failed]


def advantages(openrlhf: Any, found: list[Any]) -> list[float]:
    """What OpenRLHF trains each sample of a group with."""
    import torch

    ruled = {"estimator": "group_norm", "gamma": 1.0}
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=SimpleNamespace(**ruled)),
        rollout=SimpleNamespace(n_samples_per_prompt=len(found)),
        reward=SimpleNamespace(clip_range=None, overlong_buffer_len=None, stop_properly_penalty_coef=None),
    )
    maker = object.__new__(openrlhf.maker)
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=args), SimpleNamespace(value=0.0)
    maker.advantage_estimator = args.algo.advantage.estimator
    for index, one in enumerate(found):
        one.index, one.kl = [index], torch.zeros_like(one.action_mask, dtype=torch.float32)
    made = maker.compute_advantages_and_returns(found)
    return [float(one.advantages[one.action_mask.bool()].mean()) for one in made]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(RewardSession, "judge", Judge(Pointwise(), ScriptedEngine(answer)))
    rows._shared.cache_clear()
    yield
    rows.meeting().close()
    rows._shared.cache_clear()


def test_the_file_is_loaded_and_rewards(openrlhf: Any, judged: None) -> None:
    found = asyncio.run(sampled(openrlhf, openrlhf.single([str(FILES / "openrlhf.py")])))
    check(found, [0, None, 2 / 9, 3 / 9], [0, 1, 0, 0])


def test_the_server_is_asked_by_its_http_client(openrlhf: Any) -> None:
    session = RewardSession(Judge(Pointwise(), ScriptedEngine(answer)))
    with Serving(session, token="secret") as serving:
        url = serving.url.replace("://", "://any:secret@") + "/get_reward"
        found = asyncio.run(sampled(openrlhf, openrlhf.single([url])))
    check(found, [0, None, 2 / 9, 3 / 9], [0, 1, 0, 0])


@pytest.mark.parametrize("listwise", [False, True], ids=["pointwise", "listwise"])
def test_the_agent_is_loaded_and_rewards_groups(
    listwise: bool, openrlhf: Any, judged: None, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    judge = Judge(Listwise() if listwise else Pointwise(), ScriptedEngine(answer)).for_group_size()
    monkeypatch.setattr(RewardSession, "judge", judge)
    monkeypatch.setenv("FLEXJUDGE_NUM_GENERATIONS", "4")
    found = asyncio.run(sampled(openrlhf, openrlhf.agent(str(FILES / "openrlhf_agent.py"))))
    # A failed row has the mean of the others, a failed group 0.5.
    check(found, [0.5] * 4 if listwise else [0, 5 / 27, 2 / 9, 3 / 9], [int(listwise)] * 4)
    expected = FlexJudgeReward()(["What is top left?"] * 4, [f"red star {number}" for number in range(1, 5)])
    same_rewards(record_property, [float(one.rewards) for one in found], expected, 0.5)
    moved = advantages(openrlhf, found)
    if listwise:
        record_property("failed_row_advantage", max(map(abs, moved)))
        assert moved == [0] * 4
    else:
        no_advantage(record_property, moved, [False, True, False, False])
