"""What the tests of the molecule recipes share: a dozen molecules, scripted judges, tokenizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flexjudge_reward import Generation, Judge, JudgeConfig, Pointwise, Request, ScriptedEngine
from support.late import late, needs

needs("trl", "rdkit")
processors = late("tokenizers.processors")
molecule_judge = late("flexjudge_recipes.nano.molecule_judge")
molecule_policy = late("flexjudge_recipes.nano.molecule_policy")

# Short and canonical, to be learned by heart in seconds.
DOZEN = [
    *("Cc1ccccc1", "Cc1ccco1", "OC1CCCCC1", "CN1CCOCC1", "Clc1ccccc1", "FC1CCCCC1", "CCOc1ccccc1", "NC1CCCC1"),
    *("O=C(O)c1ccccc1", "c1ccsc1", "CC(=O)NC1CC1", "CCN1CCCCC1"),
]
TEN = "<think>x</think><answer>10</answer>"
LATE = Generation.failed("timeout", "late")


def text_of(request: Request) -> str:
    """The judged molecule's text."""
    return str(request.prompt.media[0].as_judge_input()[0])


def teacher(request: Request) -> str:
    return molecule_judge.trace(text_of(request))


def judge_of(reply: Callable[[Request], str | Generation]) -> tuple[Judge, ScriptedEngine]:
    engine = ScriptedEngine(reply)
    return Judge(Pointwise("molecule", "nano"), engine), engine


@contextlib.contextmanager
def judged_by(reply: Callable[[Request], str | Generation]) -> Iterator[ScriptedEngine]:
    """A scripted judge, wherever settings would build one."""
    judge, engine = judge_of(reply)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JudgeConfig, "build", lambda config: judge)
        yield engine


def with_template(template: str | None) -> Any:
    """The policy's tokenizer, adding these tokens to every text."""
    tokenizer = molecule_policy.make_tokenizer()
    if template:
        ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>") if name in template]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer
