"""Criteria that a model proposes when it sees answers with their labels, and the file that holds the kept ones.

`draft.py` proposes statements for a checklist, `tune.py` a wording for a rubric. Both split their rows in two by the
question: what is proposed and chosen comes from one half, what is reported from the other.

A proposal is model output. It is one line of plain words, without anything that a judge could take for a control token
or a tag, or it is dropped; while it is tried it is shown to the judge as a row's own rubric, so as untrusted text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flexjudge_reward.errors import ConfigError, EngineError, need
from flexjudge_reward.formats.onecall import Labels
from flexjudge_reward.formats.reply import THINK_CLOSE
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.offline.evaluate.rows import Labelled
from flexjudge_reward.offline.journal import replaced
from flexjudge_reward.prompts.quoting import KNOWN_CONTROL_TOKENS, fence, neutralise
from flexjudge_reward.prompts.template import Template, fill
from flexjudge_reward.rubric import Rubric
from flexjudge_reward.types import Example, Generation, Message, Part, Prompt, Request

SHOWN = 3  # rows of one request
_SHORTEST = 6  # characters of a proposal


def preferences(rows: Sequence[Labelled]) -> list[Labelled]:
    """Of each row with labels that differ a best and a worst candidate, the best first."""
    found = []
    for row in rows:
        best, worst = (row.merits.index(pick(row.merits)) for pick in (max, min))
        if row.merits[best] > row.merits[worst]:
            example = row.example.with_candidates([row.example.candidates[best], row.example.candidates[worst]])
            found.append(replace(row, merits=(1.0, 0.0), example=example))
    return found


def halves(rows: Sequence[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """The rows to propose and choose from, and those to report; rows with one question are in the same half."""
    need("numpy", "evaluate")  # for the intervals of what is reported
    keys = [Example(row.example.question, ()).digest(("half", seed)) for row in rows]  # whatever the reference is
    place = {key: number for number, key in enumerate(sorted(set(keys)))}
    first, second = ([row for row, key in zip(rows, keys, strict=True) if place[key] % 2 == half] for half in (0, 1))
    return first, second


def with_rubric(rows: Sequence[Labelled], rubric: Rubric) -> list[Labelled]:
    """The rows with `rubric` as their own."""
    shown = [Example(one.question, one.candidates, one.reference, rubric) for one in (row.example for row in rows)]
    return [replace(row, example=example) for row, example in zip(rows, shown, strict=True)]


def check_rubrics(rows: Sequence[Labelled]) -> None:
    """Raises ConfigError for a row with a rubric of its own, which a common one would replace."""
    if own := next((row for row in rows if row.example.rubric is not None), None):
        raise ConfigError(f"row {own.number} has a rubric of its own, and this looks for one of all rows: leave it out")


def replies(kind: str, proposer: Judge, rows: Sequence[Labelled], said: str, most: int) -> list[str]:
    """What a model says when it sees preferences, a few at a time, without its reasoning.

    Args:
        kind: the text of the prompt: criteria, or wording.
        said: the present criteria, or the task.
        most: requests.

    Raises:
        EngineError: it answers none of them.
    """
    count = min(most, math.ceil(len(rows) / SHOWN))
    prompts = [_prompt(kind, [row.example for row in rows[start::count][:SHOWN]], said) for start in range(count)]
    found = proposer.engine.generate([Request(prompt, proposer.sampling) for prompt in prompts])
    if found and all(one.failure for one in found):
        raise EngineError(f"the proposer answered none of {count} requests: {found[0].failure}")
    return [text for text in map(_after_reasoning, found) if text]


def _prompt(kind: str, examples: Sequence[Example], said: str) -> Prompt:
    """The questions after each other, each with its answers, the better one first."""
    template = Template.load("flex", kind)
    labels, parts = Labels(template.media), list[Part]()
    for example in examples:
        parts += fill(template.question, {"question": fence(example.question, labels.of("a question"))})
        if example.reference is not None:
            parts += fill(template.reference, {"reference": fence(example.reference, labels.of("a reference"))})
        for number, candidate in enumerate(example.candidates, 1):
            shown = fence(candidate, labels.of(f"answer {number}"))
            parts += fill(template.candidate, {"number": str(number), "candidate": shown})
    parts += fill(template.closing, {"criteria": said})
    return Prompt((Message("system", (template.system,)), Message("user", tuple(parts))))


def _after_reasoning(reply: Generation) -> str:
    """Of a reply that ended by itself what follows its reasoning, if it has any; else nothing."""
    if reply.failure is not None or reply.finish_reason != "stop":
        return ""
    return reply.text.rpartition(THINK_CLOSE)[2].strip()


def plain(text: str, longest: int) -> str:
    """`text` on one line, if a rubric's file may hold it and a prompt may show it; else nothing."""
    line = " ".join(text.split()).strip("-*• \"'")
    safe = line.isprintable() and not set(line) & set("<>[]{}|`") and neutralise(line, KNOWN_CONTROL_TOKENS) == line
    return line if safe and _SHORTEST <= len(line) <= longest else ""


def check_new(output: Path) -> None:
    """Raises ConfigError if a file is there already: a user may have edited it."""
    if output.exists():
        raise ConfigError(f"{str(output)!r} exists, and a rubric may have been edited: give another file, or remove it")
    if output.suffix == ".json":
        raise ConfigError(f"a rubric is written as TOML: give a file such as {output.with_suffix('.toml').name!r}")


def write_rubric(output: Path, rubric: Rubric, head: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Writes a rubric as a TOML file; `head` are comments at its top, `notes` one comment per criterion."""
    lines = [f"# {one}" for one in head]
    if rubric.items:
        for item, note in zip(rubric.items, notes, strict=True):
            lines += ["", "[[criteria]]", f"# {note}", f"text = {quoted(item.text)}"]
            lines += [f"weight = {item.weight:g}", f"need = {quoted(item.need)}"]
    else:
        lines += ["", f"criteria = {quoted(rubric.criteria)}"]
        if rubric.scale is not None:
            lines += [f"low = {rubric.scale.low:g}", f"high = {rubric.scale.high:g}"]
            lines += [f"decimals = {str(rubric.scale.decimals).lower()}"]
    text = "\n".join([*lines, ""])
    Rubric.parse(text, str(output))
    replaced(output, text.encode())


def quoted(text: str) -> str:
    """A text as a TOML string; printable texts need no more than JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)
