"""slime 0.3: its own rollout with images, its loading of rewards, its client of a server and its advantages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import (
    FlexJudgeReward,
    Format,
    Generation,
    Judge,
    Listwise,
    Media,
    Pointwise,
    Prompt,
    Request,
    RewardSession,
    ScriptedEngine,
)
from support.judging import candidates, tags
from support.serving import Serving
from support.trainer_checks import Record, no_advantage, same_rewards
from support.trainer_venvs import place, run_in

JOB = Path(__file__).with_name("slime_job.py")
OURS = "flexjudge_reward.trainers.slime"


def answer(request: Request) -> str | Generation:
    """The score of an answer is the number at its end; one that ends with 2 cannot be judged."""
    numbers = [min(int(text.split()[-1]), 10) for text in candidates(request)]
    return Generation.failed("transport", "no route") if 2 in numbers else tags(*numbers)


def words(prompt: Prompt) -> tuple[str, ...]:
    """A prompt without its images."""
    parts = [part for message in prompt.messages for part in message.parts]
    return tuple(str(part) for part in parts if not isinstance(part, Media))


def rolled_out(format: Format, folder: Path, *flags: str) -> tuple[Any, ScriptedEngine]:
    """Three groups of four in slime, and what the judge was asked; `URL` among the flags is the server's."""
    engine, packages = ScriptedEngine(answer), place("slime")
    session = RewardSession(Judge(format, engine).for_group_size(), {"max_failure_rate": 1.0})
    with Serving(session, token="secret") as serving:
        address = serving.url.replace("://", "://any:secret@")
        command = [sys.executable, str(JOB), "result.json", *(flag.replace("URL", address) for flag in flags)]
        ours = {"FLEXJUDGE_REWARD_SERVER": serving.url, "FLEXJUDGE_SERVE_TOKEN": "secret"}
        run_in(command, folder, packages, FLEXJUDGE_MAX_FAILURE_RATE="1", **ours)
    return json.loads((folder / "result.json").read_text()), engine


@pytest.mark.timeout(300)
@pytest.mark.parametrize("format", [Pointwise(), Listwise()], ids=lambda format: format.name)
def test_a_failed_row_of_a_group_has_no_advantage(format: Format, tmp_path: Path, record_property: Record) -> None:
    found, engine = rolled_out(format, tmp_path, "--custom-rm-path", f"{OURS}.group_rm", "--group-rm")
    texts = [text.removesuffix("<|im_end|>") for text in found["texts"]]
    trl = ScriptedEngine(answer)
    reward = FlexJudgeReward(Judge(format, trl).for_group_size(), num_generations=4, max_failure_rate=1)
    images = [[Image.open(tmp_path / f"{number // 4}.png")] for number in range(12)]
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is top left?"}]}]
    expected = reward([asked] * 12, texts, images=images)
    same_rewards(record_property, found["raw_reward"], expected, 0.5)
    lost = [text.endswith(" 2") for text in texts]
    if format.max_candidates > 1:
        lost = [any(lost[first : first + 4]) for first in (0, 4, 8) for _ in range(4)]
    no_advantage(record_property, found["rewards"], lost)
    # A group in which nothing was judged is taken out of the loss.
    removed = [not any(mask) for mask in found["loss_masks"]]
    assert removed == (lost if format.max_candidates > 1 else [False] * 12)
    # slime's prompts are in a chat template, and the judge is asked all the same what it is asked in TRL.
    assert all(len(prompt.media) == 1 for prompt in engine.prompts)
    assert set(map(words, trl.prompts)) <= set(map(words, engine.prompts))


@pytest.mark.timeout(300)
def test_a_failed_row_that_comes_alone_is_taken_out_of_the_loss(tmp_path: Path) -> None:
    found, _ = rolled_out(Pointwise(), tmp_path, "--custom-rm-path", f"{OURS}.rm")
    assert [not any(mask) for mask in found["loss_masks"]] == [" 2<" in text for text in found["texts"]]


@pytest.mark.timeout(300)
def test_the_server_is_asked_by_its_http_client(tmp_path: Path) -> None:
    found, engine = rolled_out(Pointwise(), tmp_path, "--rm-type", "remote_rm", "--rm-url", "URL/rm")
    numbers = [int(text.removesuffix("<|im_end|>").split()[-1]) for text in found["texts"]]
    judged = {number: reward for number, reward in zip(numbers, found["raw_reward"], strict=True) if number != 2}
    assert judged == {number: pytest.approx((min(number, 10) - 1) / 9) for number in numbers if number != 2}
    assert len(engine.requests) >= 12
