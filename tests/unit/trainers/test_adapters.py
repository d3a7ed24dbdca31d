"""The adapters of trainers against their contracts, with stubs of the trainers; `tests/trainers` has the real ones."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Format,
    JudgementFailed,
    Listwise,
    MajorityVote,
    Media,
    Pointwise,
    RewardConfig,
)
from flexjudge_reward.cli import path as cli_path
from flexjudge_reward.cli.main import main
from flexjudge_reward.trainers import rows, slime, verl, verl_actor
from support.adapters import TRAINERS, Judged, judging, loaded
from support.images import noise, saved, uri


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judged]:
    with judging(monkeypatch) as judged:
        yield judged


# ---- ms-swift


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    class ORM:
        def __init__(self, args: Any = None, **kwargs: Any) -> None:
            self.args = args

    orms: dict[str, type] = {}
    module = types.ModuleType("swift.rewards")
    vars(module).update(ORM=ORM, orms=orms)
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", module)
    loaded("ms_swift/flexjudge_ms_swift.py", "_swift_external_0")
    return orms


def swift_rows(*texts: str, **more: Any) -> dict[str, Any]:
    asked = [{"role": "system", "content": "You are"}, {"role": "user", "content": "<image><video>Which is top?"}]
    messages = [[*asked, {"role": "assistant", "content": text}] for text in texts]
    return {"messages": messages, "trainer_state": None, "prompt_id": ["prompt_0"] * len(texts), **more}


def test_ms_swift_gets_a_number_for_every_row(swift: dict[str, type], judged: Judged) -> None:
    judged()
    reward = swift["flexjudge"](args=SimpleNamespace(num_generations=2))
    texts = ["1", "10", "4", "broken", "broken", "broken"]
    given = swift_rows(*texts, images=[[noise(seed=n // 2)] for n in range(6)], videos=[[[noise()]]] * 6)
    assert reward(texts, **given) == pytest.approx([0, 1, 3 / 9, 3 / 9, 0.5, 0.5])


def test_ms_swift_rows_are_those_of_trl(swift: dict[str, type], judged: Judged) -> None:
    engine, texts = judged(Listwise()), ["1", "7", "10", "4"]
    images = [noise(seed=n // 2) for n in range(4)]
    reward = swift["flexjudge"](args=SimpleNamespace(num_generations=2))
    messages = [
        [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", "content": text}] for text in texts
    ]
    found = reward(texts, messages=messages, images=[[image] for image in images])
    prompts = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]] * 4
    trl = FlexJudgeReward(num_generations=2)(prompts, texts, image=images)
    assert found == trl and engine.prompts[:2] == engine.prompts[2:]


@pytest.mark.parametrize("name", ["ON_FAILURE", "ON_CANDIDATE_FAILURE"])
def test_ms_swift_refuses_a_policy_that_gives_none(name: str, swift: dict[str, type], judged: Judged) -> None:
    judged(**{name: "abstain"})
    with pytest.raises(ConfigError, match=f"'abstain' does not work in ms-swift.*FLEXJUDGE_{name}"):
        swift["flexjudge"](args=None)


def test_the_plugin_of_ms_swift_is_alone_in_its_folder() -> None:
    files = [file for file in (TRAINERS / "ms_swift").iterdir() if file.name != "__pycache__"]
    assert [file.name for file in files] == ["flexjudge_ms_swift.py"]


# ---- OpenRLHF


def test_the_file_of_openrlhf_refuses_a_group_format(judged: Judged) -> None:
    judged(Listwise())
    with pytest.raises(ConfigError, match=r"compares answers.*flexjudge path openrlhf-agent"):
        loaded("openrlhf.py", "reward_func")


@pytest.fixture
def openrlhf(monkeypatch: pytest.MonkeyPatch) -> None:
    class SingleTurn:
        def __init__(self, url: Any) -> None:
            assert url is None

        async def execute(self, prompt: str, label: Any, *given: Any) -> dict[str, Any]:
            tokens = [*prompt.encode(), *given[3]]
            return {"observation_tokens": tokens, "action_ranges": [(len(prompt), len(tokens))], "reward": None}

    agent = types.ModuleType("openrlhf.utils.agent")
    vars(agent).update(SingleTurnAgentExecutor=SingleTurn)
    for name in ("openrlhf", "openrlhf.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "openrlhf.utils.agent", agent)


def test_the_agent_of_openrlhf_judges_groups_with_images(openrlhf: None, judged: Judged) -> None:
    engine = judged(Listwise(), NUM_GENERATIONS="3")
    agent = loaded("openrlhf_agent.py", "agent").AgentExecutor()
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: bytes(ids).decode())

    async def sampled() -> list[dict[str, Any]]:
        samples = [("p", text, image) for image in (noise(), None) for text in ("1", "10", "4")]
        samples += [("other", text, None) for text in ("broken", "2", "3")]
        return await asyncio.gather(
            *(
                agent.execute(prompt, "label", None, 64, tokenizer, text.encode(), image and [image])
                for prompt, text, image in samples
            )
        )

    found = asyncio.run(sampled())
    assert [one["reward"] for one in found] == pytest.approx([0, 1, 3 / 9] * 2 + [0.5] * 3)
    assert [one["extra_logs"]["judge_failed"] for one in found] == [0] * 6 + [1] * 3
    assert len(engine.requests) == 3 and sorted(len(prompt.media) for prompt in engine.prompts) == [0, 0, 1]


def test_the_agent_of_openrlhf_needs_the_group_size(openrlhf: None, judged: Judged) -> None:
    judged(Listwise())
    with pytest.raises(
        ConfigError, match=r"set FLEXJUDGE_NUM_GENERATIONS to OpenRLHF's --rollout\.n_samples_per_prompt"
    ):
        loaded("openrlhf_agent.py", "agent").AgentExecutor()


# ---- verl


def actor(**settings: Any) -> verl_actor.JudgeActor:
    return verl_actor.JudgeActor(settings)


def scored(judge: verl_actor.JudgeActor, *texts: str, uid: str | None = "u", size: int = 4) -> list[tuple[Any, str]]:
    async def all_rows() -> list[Any]:
        return await asyncio.gather(*(judge.score(Example("q", [text]), uid, size) for text in texts))

    return [(number, why) for number, why, _ in asyncio.run(all_rows())]


@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_rows_of_verl_meet_by_uid(format: Format, judged: Judged) -> None:
    judged(format, VERL_IDLE="30")
    assert [number for number, _ in scored(actor(), "1", "10", "4", "7")] == pytest.approx([0, 1, 3 / 9, 6 / 9])


def test_a_failed_row_of_verl_gets_the_mean_of_its_siblings(judged: Judged) -> None:
    judged(VERL_IDLE="30")
    judge = actor()
    for _ in range(2):  # a uid that comes again is another group
        numbers = scored(judge, "broken", "10", "4", "1")
        assert numbers[0] == (pytest.approx(4 / 9), "transport: no route")
        assert [number for number, _ in numbers[1:]] == pytest.approx([1, 3 / 9, 0])
    assert scored(judge, "broken", uid=None) == [(None, "transport: no route")]


def test_unsure_rows_of_verl_shrink_by_uid(judged: Judged) -> None:
    judged(MajorityVote(Pointwise(), 2, "mean"), VERL_IDLE="30", SHRINK="true")
    assert [number for number, _ in scored(actor(), "1", "10", "4", "7")] == pytest.approx([0, 1, 3 / 9, 6 / 9])
    with pytest.raises(ConfigError, match="shrink"):
        scored(actor(), "1", uid=None, size=1)


def test_a_group_of_verl_is_whole_after_its_idle_time(judged: Judged) -> None:
    judged(Listwise(), VERL_IDLE="0.1")
    assert [number for number, _ in scored(actor(), "1", "10")] == pytest.approx([0, 1])
    ((number, why),) = scored(actor(), "1", uid="alone")
    assert number is None and why.startswith("timeout: 1 of 4 rows arrived")
    judged(Pointwise(), VERL_IDLE="0.1")
    assert scored(actor(), "broken", "10")[0][0] == 1


class Ray:
    """An actor of this process, called as Ray's are."""

    def __init__(self, settings: Any) -> None:
        self.settings, self.actor = settings, actor(**dict(settings))
        self.score = SimpleNamespace(remote=self.actor.score)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> list[Ray]:
    made: list[Ray] = []

    def once(settings: Any) -> Ray:
        if not made:
            made.append(Ray(settings))
        return made[0]

    monkeypatch.setattr(verl_actor, "_actor", once)
    monkeypatch.setattr(once, "cache_clear", lambda: None, raising=False)
    return made


def computed(text: str, **more: Any) -> dict[str, float]:
    given = {"data_source": "d", "solution_str": text, "ground_truth": "truth", "extra_info": {"question": "q"}, **more}
    return asyncio.run(verl.compute_score(**given))


def test_the_function_of_verl_is_a_coroutine_with_fixed_keys(judged: Judged, ray: list[Ray]) -> None:
    engine = judged()
    assert asyncio.iscoroutinefunction(verl.compute_score)
    assert computed("10", reference_column="ground_truth") == {"score": 1, "flexjudge_score": 1, "flexjudge_failed": 0}
    assert "truth" in str(engine.prompts[0])
    with pytest.raises(JudgementFailed, match="leaves this sample out: transport: no route"):
        computed("broken")
    with pytest.raises(ConfigError, match="extra_info has no text 'question'"):
        computed("1", extra_info={})


def test_where_verl_cannot_leave_a_sample_out_it_gets_the_mean_of_the_latest(judged: Judged, ray: list[Ray]) -> None:
    judged(VERL_ABSTAIN="false")
    assert computed("broken") == {"score": 0.5, "flexjudge_score": 0.5, "flexjudge_failed": 1}
    assert computed("10")["score"] == 1 == computed("broken")["score"]
    with pytest.raises(ConfigError, match="'abstain' does not work in verl's older trainer"):
        computed("broken", on_failure="abstain")


def test_verl_may_host_the_judge(judged: Judged, ray: list[Ray]) -> None:
    judged()
    computed("10", reward_router_address="10.0.0.1:8000")
    assert dict(ray[0].settings) == {"base_url": "http://10.0.0.1:8000/v1"}


def test_an_actor_that_ended_with_its_process_is_made_anew(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = types.ModuleType("ray.exceptions")
    vars(exceptions)["RayActorError"] = type("RayActorError", (Exception,), {})
    names: list[str] = []

    class Remote:
        def __init__(self, settings: Any) -> None:
            self.actor, self.dead = actor(**settings), len(names) == 1
            self.score = SimpleNamespace(remote=self.scored)

        async def scored(self, *given: Any) -> Any:
            if self.dead:
                raise exceptions.RayActorError
            return await self.actor.score(*given)

    def options(name: str, **_: Any) -> Any:
        names.append(name)
        return SimpleNamespace(remote=Remote)

    ray = types.ModuleType("ray")
    vars(ray)["remote"] = lambda kind: SimpleNamespace(options=options)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", exceptions)
    judged()
    assert [computed("10")["score"], computed("10", probes=0)["score"]] == [1, 1]
    assert len(names) == 3 and names[0] == names[1] != names[2]  # other settings are another judge


# ---- slime


def sample(text: str, prompt: Any = "q", **more: Any) -> SimpleNamespace:
    own = {"label": "t", "metadata": {}, "multimodal_inputs": None, "remove_sample": False}
    return SimpleNamespace(prompt=prompt, response=text, **own | more)


def rewarded(function: Any, samples: Any) -> tuple[Any, list[bool]]:
    """What a function of the adapter gives, and which samples it takes out of the loss."""
    found = asyncio.run(function(None, samples))
    return found, [one.remove_sample for one in (samples if isinstance(samples, list) else [samples])]


def test_slime_groups_are_judged_whole(judged: Judged) -> None:
    engine = judged(Listwise())
    assert rewarded(slime.group_rm, [sample("1"), sample("10<|im_end|>")]) == (pytest.approx([0, 1]), [False, False])
    assert rewarded(slime.group_rm, [sample("1"), sample("broken")]) == ([0.5, 0.5], [True, True])
    assert len(engine.requests) == 2 and "im_end" not in str(engine.prompts[0])


def test_a_failed_row_of_a_slime_group_stays_with_the_mean_of_its_siblings(judged: Judged) -> None:
    judged()
    found = rewarded(slime.group_rm, [sample("1"), sample("10"), sample("broken")])
    assert found == (pytest.approx([0, 1, 0.5]), [False] * 3)


def test_slime_samples_are_judged_alone(judged: Judged) -> None:
    judged()
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]}]
    one = sample("10", prompt, multimodal_inputs={"images": [noise()]})
    found = [rewarded(slime.rm, each) for each in (sample("broken"), one, sample("1"), sample("broken"))]
    assert found == [(0.5, [True]), (1, [False]), (0, [False]), (0.5, [True])]
    # What one rollout gave, cut into several samples.
    several = [sample("1"), sample("broken"), sample("10")]
    assert rewarded(slime.rm, several) == (pytest.approx([0, 0.5, 1]), [False, True, False])
    assert rewarded(slime.rm, []) == ([], [])


# ---- unsloth


def test_unsloth_hands_over_texts_beside_images(judged: Judged) -> None:
    engine, images = judged(Listwise()), [[noise()]] * 2
    shown = "<|vision_start|><|image_pad|><|vision_end|>Which?"
    text = f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    reward = FlexJudgeReward(num_generations=2)
    assert reward([text] * 2, ["1", "10"], images=images) == reward([asked] * 2, ["1", "10"], images=images)
    assert engine.prompts[0] == engine.prompts[1]


# ---- what all share


IMAGE = noise()
PNG = saved(IMAGE)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"image": IMAGE}, id="object"),
        pytest.param({"image": IMAGE, "bytes": PNG, "path": None}, id="verl-bytes"),
        pytest.param({"bytes": PNG, "path": None}, id="bytes"),
        pytest.param({"bytes": None, "path": "FILE"}, id="verl-path"),
        pytest.param({"image": "FILE"}, id="path"),
        pytest.param({"image": uri(PNG)}, id="data-uri"),
        pytest.param({"image": {"bytes": PNG, "path": None}, "min_pixels": 7}, id="cell"),
        pytest.param({"images": [IMAGE]}, id="column"),
        pytest.param({"image": IMAGE, "images": None}, id="one-in-a-column"),
        pytest.param({"images": [{"bytes": PNG, "path": None}]}, id="column-of-cells"),
        pytest.param({"images": [{"bytes": None, "path": "FILE"}]}, id="column-of-files"),
        pytest.param({"images": "CELLS"}, id="column-of-a-data-frame"),
    ],
)
def test_an_image_is_the_same_in_every_form_of_a_trainer(part: dict[str, Any], tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "a.png").write_bytes(PNG)
    cells = np.empty(1, dtype=object)
    cells[0] = {"bytes": PNG, "path": None}
    path = str(tmp_path / "a.png")
    if part == {"images": "CELLS"}:
        part = {"images": cells}
    filled = json.loads(json.dumps(part).replace("FILE", path)) if "FILE" in str(part) else part
    column = {name: filled.pop(name) for name in ("images",) if name in filled}
    text = {"type": "text", "text": "which?"}
    prompt = [{"role": "user", "content": [{"type": "image", **filled}, text] if filled else [text]}]
    found = rows.row(RewardConfig(media_root=str(tmp_path)), prompt, "", column)
    assert found.digest() == Example([Media.of("image", IMAGE), "which?"], [""]).digest()


@pytest.mark.parametrize(
    ("query", "prompt", "answer"),
    [
        pytest.param("p a", "p ", "a", id="prefix"),
        pytest.param("<s> <|begin_of_text|>p a", "p ", "a", id="tokens-before"),
        pytest.param("p a<|im_end|>\n<|endoftext|>", "p ", "a", id="end-tokens"),
        pytest.param("a</s> b", "", "a</s> b", id="inside"),
        pytest.param("a", "", "a", id="no-prompt"),
    ],
)
def test_the_answer_is_what_the_policy_wrote(query: str, prompt: str, answer: str) -> None:
    assert rows.answer_of(query, prompt) == answer


def test_a_query_with_another_beginning_is_not_judged_whole() -> None:
    with pytest.raises(ConfigError, match="does not begin with its prompt"):
        rows.answer_of("other p a", "p ")


def test_a_version_that_was_not_tried_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    rows.check_version.cache_clear()
    for _ in range(2):
        rows.check_version("pytest", "1.0", "1.2")
        rows.check_version("pytest", "1.0", "99")
        rows.check_version("no-such-package", "1.0", "1.2")
    (record,) = caplog.records
    assert "is not tested with this adapter, which knows 1.0 to 1.2" in record.message


def test_path_prints_a_file_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    for trainer in cli_path.FILES:
        assert main(["path", trainer]) == 0
        assert Path(capsys.readouterr().out.strip()).is_file()


ADAPTERS = (
    "ms_swift/flexjudge_ms_swift openrlhf openrlhf_agent slime verl verl_actor trl environment rollouts protocols"
)


@pytest.mark.parametrize(("name", "limit"), [*((name, 150) for name in ADAPTERS.split()), ("server", 250)])
def test_an_adapter_is_short(name: str, limit: int) -> None:
    assert len((TRAINERS / f"{name}.py").read_text("utf-8").splitlines()) < limit
