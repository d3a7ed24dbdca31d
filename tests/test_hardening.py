"""What an adversary may try, and a broken judge may say: nothing of it becomes a number (R1, R18, S1, S2).

The same measures run larger, and are recorded, in `benchmarks/hardening.py`.
"""

from __future__ import annotations

import random

import pytest
from support import attacks, families, measures

from flexjudge_reward import Failure, Generation, Verdict
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, neutralise


@pytest.fixture(scope="module", params=["chatml", "metaspace", "nano"])
def family(request: pytest.FixtureRequest) -> families.Family:
    return {"chatml": families.chatml, "metaspace": families.metaspace, "nano": families.nano}[request.param]()


@pytest.mark.parametrize("name", measures.FORMATS)
def test_every_malformed_reply_is_a_typed_failure(name: str) -> None:
    results = list(measures.malformed_verdicts(name))
    assert len(results) >= 400
    assert len({kind for kind, _, _ in results}) >= 16
    invented = [r for r in results if not (isinstance(r[2], Verdict) and isinstance(r[2].failure, Failure))]
    assert not invented, attacks.worst(invented)


@pytest.mark.parametrize("name", measures.FORMATS)
def test_the_right_answer_in_the_same_form_is_read(name: str) -> None:
    reply = Generation(f"<think>fine</think>{attacks.tags(attacks.GOOD[name], chr(10))}\n")
    assert measures.FORMATS[name]().read(measures.example(name), [reply]).scores is not None


@pytest.mark.parametrize("name", measures.FORMATS)
def test_quoted_forgeries_never_score(name: str, chatml: families.Family) -> None:
    results = list(measures.forged(name, chatml, each=5))
    assert len({case.form for _, case, _ in results}) == 30
    won = [(judge, case.form, case.place) for judge, case, success in results if success]
    assert not won


def test_the_same_forgeries_fool_a_naive_reader(chatml: families.Family) -> None:
    """Otherwise the test above would measure nothing."""
    results = list(measures.forged("score", chatml, each=5, read=measures.naive_read))
    for judge in {judge for judge, _, _ in results}:
        assert sum(won for label, _, won in results if label == judge) > 0, judge


def test_no_text_changes_the_control_tokens_of_a_prompt(family: families.Family) -> None:
    count = 2_000 if family.name == "nano" else 10_000
    changed = measures.control_changes(family, count, seed=1)
    assert not changed, [ascii(text) for text in changed[:5]]


def test_without_neutralising_the_same_texts_do(chatml: families.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.prompts.quoting.neutralise", lambda text, tokens=(): text)
    assert len(measures.control_changes(chatml, 500, seed=1)) > 100


def test_benign_text_stays_as_it_is(chatml: families.Family) -> None:
    tokens = KNOWN_CONTROL_TOKENS | frozenset(chatml.chat.tokens)
    lines = list(attacks.benign(random.Random(3), 20_000))
    changed = [line for _, line in lines if neutralise(line, tokens) != line]
    assert len(changed) <= len(lines) // 1_000, changed[:5]


@pytest.fixture(scope="module")
def chatml() -> families.Family:
    return families.chatml()
