"""Whether a judge reads to the end: a row's best answer against the same with an answer to another question after it.

A judge that scores both alike pays a policy that does not stop as before. Its agreement with labels does not show it,
since no labelled answer runs on before a training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.judging import judged
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.evaluate.settings import Setting, compared, settings_of

MOST = 40  # rows that are asked


def run_on_rows(rows: Sequence[Labelled], seed: int = 0) -> list[Labelled]:
    """Of up to `MOST` rows, drawn by the seed, the best answer and the same with another row's best after it.

    Only of rows whose best answer is text.
    """
    told = [(row, text) for row in rows if (text := _best(row))]
    random.Random(seed).shuffle(told)
    made: list[Labelled] = []
    for row, text in told[:MOST]:
        others = (t for one, t in told if one.example.question != row.example.question and t != text)
        if (other := next(others, None)) is not None:
            example = row.example.with_candidates([text, f"{text} {other}"])
            made.append(replace(row, id=(row.id, 0, 1), merits=(1.0, 0.0), example=example))
    return made


def with_unread(
    settings: Sequence[Setting], judge: Judge, votes: int, rows: Sequence[Labelled], seed: int
) -> list[Setting]:
    """The settings of one judge, each with how often it does not tell the two apart (`Setting.unread`)."""
    asked = run_on_rows(rows, seed)
    if not asked or judge.format.min_candidates > 2:
        return [*settings]
    found = judged(judge, asked, votes, seed)
    read = settings_of(settings[0].format, settings[0].max_tokens, compared(asked, found), found, 1, math.nan, seed)
    return [_with(one, own) for one, own in zip(settings, read, strict=True)]


def _with(setting: Setting, read: Setting) -> Setting:
    """A setting with the share of the pairs in which the answer alone does not win, of those that could be judged."""
    failed = round(read.failed * len(read.values))
    known, won = len(read.values) - failed, sum(value == 1 for value in read.values)
    return replace(setting, unread=(known - won) / known if known else math.nan, unread_of=known)


def _best(row: Labelled) -> str | None:
    """The best answer, if it is text."""
    answer = row.example.candidates[max(range(len(row.merits)), key=lambda place: row.merits[place])]
    texts = [part for part in answer if isinstance(part, str)]
    return "".join(texts).strip() or None if len(texts) == len(answer) else None
