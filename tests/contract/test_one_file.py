"""One file each: an adapter for a trainer, a format, a modality. Every test writes the file and uses it as a user does.

The judge is an HTTP server whose every reply is the same, or a script, so that no model is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flexjudge_reward import (
    FlexJudgeReward,
    Format,
    Judge,
    Listwise,
    Pairwise,
    Pointwise,
    Request,
    ScriptedEngine,
)
from flexjudge_reward.cli.main import main
from flexjudge_reward.media.base import KINDS
from support.fault_server import Fault, FaultServer, reply
from support.judging import candidates, grade, scores, tags


@pytest.fixture
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The one file; what it brought is gone afterwards."""
    modules, kinds = set(sys.modules), dict(KINDS)
    path = tmp_path / "own.py"
    path.write_text(request.param)
    yield path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            del sys.modules[name]
    KINDS.clear()
    KINDS.update(kinds)


def judged_by(text: str) -> FaultServer:
    """A judge server whose every reply is `text`."""
    return FaultServer(lambda name, nth: Fault(body=reply(text)))


def flexjudge(command: str, rows: list[dict[str, Any]], folder: Path, *words: object) -> list[dict[str, Any]]:
    """What the command line writes for some rows."""
    source, output = folder / "rows.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"id": number, **row}) + "\n" for number, row in enumerate(rows)))
    assert main([command, str(source), "-o", str(output), *map(str, words)]) in (0, 3)  # 3: some judgements failed
    return [json.loads(line) for line in output.read_text().splitlines()]


# ---- an adapter for a trainer

ADAPTER = '''
"""The judge in a trainer that calls compute_score(batch), with a dict per sample."""

from flexjudge_reward import Example, RewardSession


class Reward:
    """One number per sample; `metrics` has those of the last call."""

    def __init__(self, judge=None, **settings):
        self.session = RewardSession(judge, settings)
        self.metrics = {}

    def compute_score(self, batch):
        scored = self.session.score(lambda columns: [self.row(sample) for sample in batch], batch[0]["global_step"])
        self.metrics = {f"judge/{name}": value for name, value in scored.metrics.items()}
        return [float("nan") if reward is None else reward for reward in scored.rewards]

    def row(self, sample):
        return Example(sample["raw_prompt"], [sample["response"]], sample.get("ground_truth"))

    def close(self):
        self.session.close()
'''


def sulking(request: Request) -> str:
    """Gives no score to a candidate that is 4, nor to a group that has it."""
    return "?" if any(grade(text) == 4 for text in candidates(request)) else scores(request)


@pytest.mark.parametrize("written", [ADAPTER], indirect=True, ids=["adapter"])
@pytest.mark.parametrize("format", [Pointwise(), Pairwise(), Listwise()], ids=lambda format: format.name)
@pytest.mark.parametrize(("on_failure", "caused"), [("group_mean", "mean"), ("abstain", "abstain")])
def test_an_adapter_gives_the_rewards_of_the_trl_adapter(
    format: Format, on_failure: str, caused: str, written: Path
) -> None:
    assert len(written.read_text().strip().splitlines()) < 40
    spec = importlib.util.spec_from_file_location("own", written)
    assert spec is not None and spec.loader is not None
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    prompts = ["p", "q", "p", "q", "p", "q", "r", "r", "r"]
    answers = ["1", "5", "4", "5", "9", "2", "4", "4", "4 again"]
    settings: Any = {"on_failure": on_failure, "on_candidate_failure": caused, "max_failure_rate": 1.0}
    judges = [Judge(format, ScriptedEngine(sulking)) for _ in range(2)]
    metrics: dict[str, float] = {}
    expected = FlexJudgeReward(judges[0], name="judge", **settings)(prompts, answers, log_metric=metrics.__setitem__)
    reward = own.Reward(judges[1], **settings)
    batch = [
        {"raw_prompt": prompt, "response": answer, "global_step": 3}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    found = reward.compute_score(batch)
    assert found == pytest.approx([float("nan") if one is None else one for one in expected], nan_ok=True)
    assert None in expected and any(one not in (None, 0) for one in expected)
    assert set(reward.metrics) == set(metrics)
    assert all(reward.metrics[name] == metrics[name] for name in metrics if name != "judge/judge_seconds")
    reward.close()
    assert judges[1].engine.closed  # type: ignore[attr-defined]


# ---- a format

FORMAT = '''
"""A checklist: one yes or no per line of the rubric; the score is the number of yes."""

from flexjudge_reward import Failure, Format, Message, Prompt, Scale, Untrusted, Verdict


class Checklist(Format):
    name, min_candidates, max_candidates = "checklist", 1, 1
    questions = ("Is it short?", "Is it true?", "Is it polite?")

    def render(self, example):
        (answer,) = example.candidates
        system = Message("system", ("Answer each question by yes or no.\\n", "\\n".join(self.questions)))
        texts = [Untrusted(part) if isinstance(part, str) else part for part in (*example.question, "\\n", *answer)]
        return [Prompt((system, Message("user", tuple(texts))))]

    def read(self, example, generations):
        words = generations[0].text.split()
        if generations[0].failure or len(words) != len(self.questions) or not set(words) <= {"yes", "no"}:
            failure = generations[0].failure or Failure("malformed", f"expected three yes or no, found {words}")
            return Verdict.failed(failure, generations)
        scale = Scale(0, len(self.questions))
        return Verdict((float(words.count("yes")),), scale=scale, generations=tuple(generations))


class Duel(Format):
    """The better of two, as "first" or "second"."""

    name, min_candidates, max_candidates, answers = "duel", 2, 2, "letter"

    def render(self, example):
        texts = [Untrusted(str(candidate[0])) for candidate in example.candidates]
        return [Prompt((Message("system", ("Which?",)), Message("user", (Untrusted("q"), *texts))))]

    def read(self, example, generations):
        first = generations[0].text == "first"
        return Verdict((float(first), float(not first)), scale=Scale(0, 1), generations=tuple(generations))
'''


@pytest.mark.parametrize("written", [FORMAT], indirect=True, ids=["format"])
def test_a_format_works_in_a_trainer_with_the_cache(written: Path, cache_file: Path) -> None:
    with judged_by("yes no yes") as server:
        settings = {"format": f"{written}:Checklist", "base_url": server.url, "cache": cache_file}
        for run in range(2):
            reward = FlexJudgeReward(**settings)
            assert reward(["p"] * 2, ["a", "b"]) == pytest.approx([2 / 3, 2 / 3])
            assert (reward.summary.new, len(server.requests)) == ((2, 2) if run == 0 else (0, 2))
            reward.close()
    assert "Is it polite?" in str(server.requests[0]) and server.requests[0]["messages"][1]["content"].endswith("a")


@pytest.mark.parametrize("written", [FORMAT], indirect=True, ids=["format"])
def test_a_format_works_on_the_command_line_with_the_cache(written: Path, cache_file: Path, tmp_path: Path) -> None:
    rows = [{"question": "q", "candidates": ["a", "b"]}, {"question": "q", "answer": "c"}]
    with judged_by("no no yes") as server:
        words = ["--format", f"{written}:Checklist", "--base-url", server.url, "--cache", cache_file]
        found = flexjudge("score", rows, tmp_path, *words)
        assert [row["scores"] for row in found] == [[1.0, 1.0], [1.0]] and found[0]["scale"] == [0.0, 3.0]
        assert [row["cached"] for row in found] == [False, False] and len(server.requests) == 3
        again = flexjudge("score", rows, tmp_path, *words)
        assert [row["cached"] for row in again] == [True, True] and len(server.requests) == 3
        assert [row["scores"] for row in again] == [row["scores"] for row in found]


@pytest.mark.parametrize("written", [FORMAT], indirect=True, ids=["format"])
def test_replies_that_a_format_cannot_read_are_failures(written: Path, tmp_path: Path) -> None:
    with judged_by("perhaps") as server:
        words = ["--format", f"{written}:Checklist", "--base-url", server.url, "--cache", "off"]
        (row,) = flexjudge("score", [{"question": "q", "answer": "c"}], tmp_path, *words)
    assert row["scores"] == [None] and row["failures"][0]["kind"] == "malformed"


@pytest.mark.parametrize("written", [FORMAT], indirect=True, ids=["format"])
def test_a_format_for_pairs_is_swapped_voted_on_and_judges_groups(written: Path) -> None:
    def duel(request: Request) -> str:
        first, second = map(grade, candidates(request))
        return "first" if first > second else "second"

    settings = {"model": "nano", "engine": "transformers", "cache": "off", "temperature": 1.0, "votes": 3}
    reward = FlexJudgeReward(format=f"{written}:Duel", position_swap=True, **settings)
    reward.session.judge.engine = engine = ScriptedEngine(duel)
    described = "Tournament(MajorityVote(PositionSwap(BudgetForcing(Duel))))"
    assert reward.session.judge.format.described() == described
    first, second, third = reward(["p"] * 3, ["1 a", "2 b", "3 c"])
    assert first < second < third  # type: ignore[operator]
    assert reward.summary.counters["swaps_agreed"] == reward.summary.counters["swaps"] > 0
    assert len(engine.requests) == 3 * 2 * 2  # three pairs, both orders, two equal votes decide


# ---- a modality on existing channels

MODALITY = '''
"""A spectrum: a list of intensities, shown as a line of grey pixels and their maximum in words."""

from PIL import Image

from flexjudge_reward import Loaded, MediaError, Modality, register


class Spectrum(Modality):
    name, options = "spectrum", {"inverted": False}

    def load(self, source, options, roots, limits):
        if not isinstance(source, list) or not source or not all(isinstance(n, int) and 0 <= n < 256 for n in source):
            raise MediaError("a spectrum is a list of numbers from 0 to 255")
        numbers = [255 - n for n in source] if options["inverted"] else source
        frame = Image.frombytes("L", (len(numbers), 1), bytes(numbers)).resize((64, 32)).convert("RGB")
        return Loaded((frame,), text=f"The maximum is {max(numbers)}.")


register(Spectrum())
'''
ASK = {"type": "text", "text": "Which element?"}


def user(**spectrum: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "spectrum", **spectrum}, ASK]}]


@pytest.mark.parametrize("written", [MODALITY], indirect=True, ids=["modality"])
def test_a_modality_works_in_a_trainer_with_the_cache(written: Path, cache_file: Path) -> None:
    with judged_by(tags(7)) as server:
        settings = {"base_url": server.url, "plugins": str(written), "cache": cache_file}

        def rewards(*prompts: Any) -> tuple[list[float | None], int]:
            """The rewards, and how many judgements were new."""
            reward = FlexJudgeReward(**settings)
            found = reward(list(prompts), ["iron"] * len(prompts))
            reward.close()
            return found, reward.summary.new

        same, other, inverted = user(spectrum=[1, 200, 3]), user(spectrum=[1, 90, 3]), {"inverted": True}
        assert rewards(same) == ([6 / 9], 1)
        assert rewards(same) == ([6 / 9], 0)
        assert rewards(other, same) == ([6 / 9] * 2, 1)
        assert rewards(user(spectrum=[1, 200, 3], **inverted)) == ([6 / 9], 1)
        bad = user(spectrum="iron")
        assert rewards(bad, same) == ([None, 6 / 9], 1)
    first, *_ = server.requests
    shown = first["messages"][1]["content"]
    kinds = [part["type"] for part in shown]
    assert kinds.count("image_url") == 1 and "The maximum is 200." in str(shown) and "Which element?" in str(shown)
    assert len(server.requests) == 3


@pytest.mark.parametrize("written", [MODALITY], indirect=True, ids=["modality"])
def test_a_modality_works_on_the_command_line_with_the_cache(written: Path, cache_file: Path, tmp_path: Path) -> None:
    def row(spectrum: object, **options: object) -> dict[str, Any]:
        return {"question": [{"spectrum": spectrum, **options}, "Which element?"], "answer": "iron"}

    rows = [row([1, 200, 3]), row([1, 90, 3]), row([1, 200, 3], inverted=True), row([1, 200, 3]), row([999])]
    with judged_by(tags(7)) as server:
        words = ["--base-url", server.url, "--plugins", written, "--cache", cache_file]
        found = flexjudge("score", rows, tmp_path, *words)
        assert [line["scores"] for line in found] == [[7.0]] * 4 + [[None]] and len(server.requests) == 3
        assert "a spectrum is a list of numbers" in found[4]["failures"][0]["detail"]
        again = flexjudge("score", rows, tmp_path, *words)
        assert [line["cached"] for line in again] == [True] * 4 + [False] and len(server.requests) == 3


@pytest.mark.parametrize("written", [MODALITY], indirect=True, ids=["modality"])
def test_a_candidate_may_be_of_the_modality(written: Path, tmp_path: Path) -> None:
    rows = [{"question": "Which is iron?", "candidates": [{"spectrum": [n]} for n in (1, 2)]}]
    with judged_by(tags(3, 7)) as server:
        words = ["--base-url", server.url, "--plugins", written, "--cache", "off", "--format", "pairwise"]
        (row,) = flexjudge("rerank", rows, tmp_path, *words)
    assert row["best"] == row["order"][0] and len(server.requests) == 1
    content = str(server.requests[0]["messages"][1]["content"])
    assert content.count("'image_url': {") == 2 and "The maximum is 1." in content and "The maximum is 2." in content
