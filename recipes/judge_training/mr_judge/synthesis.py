"""MR. Judge's data: from questions with a good answer to multiple choices with reasoning (arXiv 2505.13403).

    candidate   a writer plants one fault of four kinds in each further answer: the good one is best by construction
    describe    a model that sees puts the images in words
    reason      a reasoner that reads only these words, and a hidden hint of the right letter, writes the trace
    strip       an editor removes what betrays the hint
    align       an editor turns words about the description into words about the image
    audit       a reader without the hint looks for it; not in the paper, because patterns miss what is worded anew

Every step is one engine call with an instruction file of its own (`instructions/`), and its reply is read by a grammar.
A row leaves with its reason where a step fails, the reasoner prefers another answer, or the result still betrays the
hint. Promised of a row that is written: the judge's own format reads its reply as the right letter, and `leaks.py`
finds nothing in it.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from flexjudge_recipes.judge_training.mr_judge.leaks import TOLD, leaks, of_description

from flexjudge_reward import (
    ConfigError,
    Engine,
    Example,
    Failure,
    Generation,
    Media,
    Message,
    MultipleChoice,
    Prompt,
    Request,
    Sampling,
)
from flexjudge_reward.data.rows import BadRow, Row
from flexjudge_reward.formats.builtin import LETTERS
from flexjudge_reward.formats.reply import THINK_CLOSE, read_reply, reasoning
from flexjudge_reward.prompts.quoting import TAGS, fence
from flexjudge_reward.prompts.template import fill
from flexjudge_reward.types import Content, Part

INSTRUCTIONS = Path(__file__).with_name("instructions")
FAULTS = ("hallucination", "incompleteness", "wrong_reasoning", "wrong_knowledge")
PLACES = {
    "candidate": {"question", "answer", "fault"},
    "describe": {"question"},
    "reason": {"description", "question", "options", "letters", "hint"},
    "strip": {"thought"},
    "align": {"thought"},
    "audit": {"thought"},
}
"""The steps in their order, and what the user message of each has a place for."""
_RESULT = re.compile(r"\s*<result>((?:(?!</?result>).)+)</result>\s*", re.DOTALL)
_CONFESSES = re.compile(
    r"\b(?:deliberate|intentional|on purpose|planted|purposely)|\bgood answer\b|\bcareless reader\b"
    r"|\bworse (?:in|than)\b|\b(?:wrong|incorrect|false|flawed) (?:answer|on purpose)\b",
    re.IGNORECASE,
)
_BATCH = 64  # rows per engine call


@dataclass(frozen=True)
class Instruction:
    """The texts of one step."""

    system: str
    user: str
    more: Mapping[str, Any] = field(default_factory=dict)
    """`faults` of the step candidate, `hint` of the step reason."""

    @classmethod
    def load(cls, folder: Path, step: str) -> Instruction:
        """The file STEP.toml. Raises ConfigError: it is missing, or lacks an entry or a place."""
        path = folder / f"{step}.toml"
        try:
            entries = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"the instructions {path} cannot be read: {error}") from None
        needed = {"candidate": {"faults": dict}, "reason": {"hint": str}}.get(step, {})
        for name, kind in {"system": str, "user": str, **needed}.items():
            if not isinstance(entries.get(name), kind):
                raise ConfigError(f"{path}: the entry {name!r} is missing, or is no {kind.__name__}")
        if missing := sorted(place for place in PLACES[step] if f"{{{place}}}" not in entries["user"]):
            raise ConfigError(f"{path}: 'user' needs the placeholder {{{missing[0]}}}")
        if step == "candidate" and (unknown := sorted(set(FAULTS) ^ set(entries["faults"]))):
            raise ConfigError(
                f"{path}: 'faults' needs exactly {', '.join(FAULTS)}; {unknown[0]!r} is missing or unknown"
            )
        if step == "reason" and "{letter}" not in entries["hint"]:
            raise ConfigError(f"{path}: 'hint' needs the placeholder {{letter}}")
        return cls(entries.pop("system"), entries.pop("user"), entries)

    def prompt(self, **values: str | tuple[Part, ...]) -> Prompt:
        """The call with its placeholders replaced; what comes from outside arrives fenced."""
        return Prompt((Message("system", (self.system,)), Message("user", fill(self.user, values))))


@dataclass(frozen=True)
class Engines:
    """Who does what; one engine may do all."""

    writer: Engine
    describer: Engine
    reasoner: Engine
    editor: Engine


@dataclass
class Draft:
    """One row on its way."""

    id: object
    question: Content
    answer: str
    why: str = ""
    """Why it was left out."""
    place: int = 0
    """Of the good answer among the options, modulo their number."""
    faults: list[str] = field(default_factory=list)
    """To be planted."""
    candidates: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    """Of each candidate its fault; empty for the good one."""
    description: str = ""
    thought: str = ""

    def plan(self, number: int) -> None:
        """Decides place and faults, by its number among the usable rows: others must not upset the balance."""
        self.place, count = number, 1 + number // 12 % 3  # each place with each count: both cycles are of 12 rows
        self.faults = random.Random(f"faults {number}").sample(FAULTS, count)  # which ones must not tell the place

    @property
    def best(self) -> int:
        return self.kinds.index("")

    @property
    def letter(self) -> str:
        return LETTERS[self.best]

    @property
    def text(self) -> Content:
        """The question without its images."""
        return tuple(part for part in self.question if isinstance(part, str))

    @property
    def reply(self) -> str:
        """What the judge is to write."""
        return f"<think>{self.thought}</think><answer>{self.letter}</answer>"


Read = Callable[[Draft, Generation], str]


class Synthesis:
    """Makes drafts of rows, in batches; counts what left and where, and the leaks after every step."""

    def __init__(
        self,
        engines: Engines,
        format: MultipleChoice,
        folder: Path = INSTRUCTIONS,
        sampling: Sampling = Sampling(temperature=0.7, max_tokens=2048),
        told: Sequence[str] = TOLD,
    ) -> None:
        """Raises ConfigError: an instruction file is missing or wrong."""
        self.engines, self.format, self.sampling, self.told = engines, format, sampling, told
        self.steps = {step: Instruction.load(folder, step) for step in PLACES}
        self.counts: Counter[str] = Counter()

    def __call__(self, rows: Iterable[Row | BadRow]) -> Iterator[Draft]:
        """The drafts in the order of the rows; those with a `why` are left out of the result."""
        left = iter(rows)
        usable = 0
        while batch := list(islice(left, _BATCH)):
            drafts = [draft_of(row) for row in batch]
            for draft in drafts:
                draft.plan(usable)
                usable += not draft.why
            self._candidates(drafts)
            self._step("describe", drafts, self.engines.describer, self._describe, _set_description)
            self._step("reason", drafts, self.engines.reasoner, self._reason, self._set_reasoning)
            self._step("strip", drafts, self.engines.editor, self._edit("strip"), _set_thought)
            self._step("align", drafts, self.engines.editor, self._edit("align"), _set_thought)
            for draft in drafts:
                draft.why = draft.why or self._fault(draft)
            self._step("audit", drafts, self.engines.editor, self._edit("audit"), _audited)
            for draft in drafts:
                self.counts[draft.why or "written"] += 1
            yield from drafts

    def hint(self, draft: Draft) -> str:
        """The hidden sentence of the reasoner that names the right letter."""
        return str(self.steps["reason"].more["hint"]).replace("{letter}", draft.letter)

    def _candidates(self, drafts: Sequence[Draft]) -> None:
        """Writes the worse answers and puts all in their order. A bad one is left out; a row needs one at least."""
        asked = [(draft, fault) for draft in drafts if not draft.why for fault in draft.faults]
        step = self.steps["candidate"]
        prompts = [
            step.prompt(
                question=fence(draft.question), answer=fence((draft.answer,)), fault=str(step.more["faults"][fault])
            )
            for draft, fault in asked
        ]
        for (draft, fault), reply in zip(asked, self._replies(self.engines.writer, prompts), strict=True):
            written = result_of(reply)
            why = written.kind if isinstance(written, Failure) else _unfit(written, [draft.answer, *draft.candidates])
            self.counts[f"candidates: {why or fault}"] += 1
            if not why:
                draft.candidates.append(str(written))
                draft.kinds.append(fault)
        for draft in drafts:
            if not draft.why and not draft.candidates:
                draft.why = "candidate: none could be used"
            place = draft.place % (len(draft.candidates) + 1)  # each letter is best equally often
            draft.candidates.insert(place, draft.answer)
            draft.kinds.insert(place, "")

    def _step(
        self, step: str, drafts: Sequence[Draft], engine: Engine, ask: Callable[[Draft], Prompt | None], read: Read
    ) -> None:
        """One call for every draft that is left and needs it; `read` says what is wrong, or nothing."""
        asked = [(draft, prompt) for draft in drafts if not draft.why and (prompt := ask(draft)) is not None]
        replies = self._replies(engine, [prompt for _, prompt in asked])
        for (draft, _), reply in zip(asked, replies, strict=True):
            if wrong := read(draft, reply):
                draft.why = f"{step}: {wrong}"
            elif draft.thought and step != "audit":
                kinds = leaks(draft.thought, self.hint(draft), draft.letter, self.told)
                self.counts[f"leaks after {step}"] += bool(kinds)

    def _replies(self, engine: Engine, prompts: Sequence[Prompt]) -> list[Generation]:
        return engine.generate([Request(prompt, self.sampling) for prompt in prompts]) if prompts else []

    def _describe(self, draft: Draft) -> Prompt | None:
        shows = any(isinstance(part, Media) for part in draft.question)
        return self.steps["describe"].prompt(question=fence(draft.question)) if shows else None

    def _reason(self, draft: Draft) -> Prompt:
        options: list[Part] = []
        for letter, candidate in zip(LETTERS, draft.candidates, strict=False):
            options += [f"[Answer {letter}]\n", *fence((candidate,)), "\n\n"]
        return self.steps["reason"].prompt(
            description=fence((draft.description or "There are no images.",)),
            question=fence(draft.text),
            options=tuple(options),
            letters=", ".join(LETTERS[: len(draft.candidates)]),
            hint=self.hint(draft),
        )

    def _set_reasoning(self, draft: Draft, reply: Generation) -> str:
        verdict = self.format.read(Example(draft.text or "", draft.candidates), [reply])
        if verdict.scores is None:
            return verdict.failure.kind if verdict.failure else "malformed"
        if verdict.scores[draft.best] != max(verdict.scores):
            return "another answer"
        draft.thought = reasoning(reply.text)
        return "" if draft.thought else "empty"

    def _edit(self, step: str) -> Callable[[Draft], Prompt]:
        return partial(lambda step, draft: self.steps[step].prompt(thought=fence((draft.thought,))), step)

    def _fault(self, draft: Draft) -> str:
        """What is wrong with the finished draft; "" if nothing."""
        verdict = self.format.read(Example("", draft.candidates), [Generation(draft.reply)])
        forged = any(tag in draft.thought.lower() for tag in TAGS)
        if forged or verdict.scores is None or verdict.scores[draft.best] != 1:
            return "result: the judge's format does not read it"
        shown = " ".join((*map(str, draft.text), *draft.candidates))  # a question may be about a description
        if draft.description and of_description(draft.thought) and not of_description(shown):
            return "result: speaks of a description"
        if kinds := leaks(draft.thought, self.hint(draft), draft.letter, self.told):
            return f"result: leak, {kinds[0]}"
        return ""


def draft_of(row: Row | BadRow) -> Draft:
    """The draft of a row with one good answer, a text."""
    name = row.number if row.id is None else row.id
    if isinstance(row, BadRow):
        return Draft(name, (), "", f"row: {row.why}")
    answer = "".join(part for part in row.example.candidates[0] if isinstance(part, str)).strip()
    return Draft(name, row.example.question, answer, "" if answer else "row: the answer is empty")


def result_of(reply: Generation) -> str | Failure:
    """The text between the result tags, which nothing may surround but the reasoning of a reasoner before it."""
    if reply.failure is not None:
        return reply.failure
    if reply.finish_reason != "stop":
        return Failure("truncated", "the token limit cut the reply; raise max_tokens")
    found = _RESULT.fullmatch(reply.text.rpartition(THINK_CLOSE)[2])
    text = found[1].strip() if found else ""
    return text or Failure("malformed", f"expected <result>..</result> alone, found {reply.text[:80]!r}")


def _unfit(written: str, others: Sequence[str]) -> str:
    """Why a worse answer cannot be used."""
    if " ".join(written.lower().split()) in {" ".join(other.lower().split()) for other in others}:
        return "a copy"
    return "confesses" if _CONFESSES.search(written) else ""


def _set_description(draft: Draft, reply: Generation) -> str:
    written = result_of(reply)
    draft.description = written if isinstance(written, str) else ""
    return written.kind if isinstance(written, Failure) else ""


def _audited(draft: Draft, reply: Generation) -> str:
    """Only a clear "clean" keeps a row: an audit that cannot be read has found nothing out."""
    answers = read_reply(reply)
    if isinstance(answers, Failure):
        return answers.kind
    return {("clean",): "", ("leak",): "leak"}.get(answers, "malformed")


def _set_thought(draft: Draft, reply: Generation) -> str:
    written = result_of(reply)
    if isinstance(written, Failure):
        return written.kind
    draft.thought = written
    return ""
