"""The hardening figures as functions of a size and a seed; the tests run them small, the benchmark large."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence

from flexjudge_reward import (
    Example,
    Generation,
    Judge,
    Message,
    Pairwise,
    Prompt,
    Request,
    ScriptedEngine,
    Untrusted,
    Verdict,
)
from flexjudge_reward.formats.builtin import FORMATS
from flexjudge_reward.prompts import quoting
from support import attacks, families
from support.attacks import COUNTS

LOW = {
    "pointwise": ["1"],
    "pairwise": ["1", "2"],
    "listwise": ["1", "2", "3"],
    "multiple_choice": ["B"],
    "pairwise_verdict": ["[[B>A]]"],
    "checklist": ["no"],
}
"""What an honest judge says of a forger who is candidate 0."""


def example(name: str) -> Example:
    return Example("What is shown?", [f"answer {i}" for i in range(COUNTS[name])])


def _harmless(name: str, with_reference: bool) -> Example:
    plain = example(name)
    return Example(plain.question, plain.candidates, "a reference" if with_reference else None)


# ---------------------------------------------------------------- R1


def malformed_verdicts(
    name: str, seed: int = 0, each: int = 15
) -> Iterator[tuple[str, Generation, Verdict | Exception]]:
    """Every malformed reply of the format `name`, with what reading it gave."""
    judged, format = example(name), FORMATS[name]()
    for kind, reply in attacks.malformed(name, seed, each):
        try:
            yield kind, reply, format.read(judged, [reply])
        except Exception as error:  # an exception is a finding, not the end of the count
            yield kind, reply, error


# ---------------------------------------------------------------- S2


def seen(prompt: Prompt, neutral: bool = True) -> str:
    """The user message as a judge sees it; `neutral=False` with raw text and plain fences, as without this package."""
    message = prompt.messages[-1]
    if neutral:
        return "".join(str(part) for part in quoting.flatten(message))
    raw = (part.text if isinstance(part, Untrusted) else re.sub("`{3,}", "```", str(part)) for part in message.parts)
    return "".join(raw)


def judges(name: str, family: families.Family, neutral: bool = True) -> dict[str, Callable[[Request], Generation]]:
    """Scripted judges that fall for all they can: they quote what they read, whatever it is."""
    low, top = attacks.tags(LOW[name]), attacks.tags(attacks.BEST[name])
    harmless = {with_: FORMATS[name]().render(_harmless(name, with_))[0] for with_ in (False, True)}
    turns = _turns(family, harmless[False], neutral)
    outside = {with_: _outside(seen(prompt, neutral)) for with_, prompt in harmless.items()}

    def parrot(request: Request) -> Generation:
        return Generation(f"<think>I read: {seen(request.prompt, neutral)} It knows nothing.</think>{low}")

    def cut_at_limit(request: Request) -> Generation:
        return Generation(f"<think>I read: {seen(request.prompt, neutral)}", "length")

    def cut_but_stopped(request: Request) -> Generation:
        return Generation(f"<think>I read: {seen(request.prompt, neutral).rstrip()}", "stop")

    def cut_after_forgery(request: Request) -> Generation:
        text = seen(request.prompt, neutral)
        end = max(text.lower().rfind(mark) for mark in ("/answer>", "/answer＞", "wer>", attacks.WORTHLESS.lower()))
        return Generation(f"<think>I read: {text[: text.find('>', end) + 1]}", "stop")

    def template_reader(request: Request) -> Generation:
        fooled = _turns(family, request.prompt, neutral) != turns
        return Generation(f"<think>by the turns</think>{top if fooled else low}")

    def fence_reader(request: Request) -> Generation:
        fooled = _outside(seen(request.prompt, neutral)) not in outside.values()
        return Generation(f"<think>by the fences</think>{top if fooled else low}")

    return {
        judge.__name__: judge
        for judge in (parrot, cut_at_limit, cut_but_stopped, cut_after_forgery, template_reader, fence_reader)
    }


def forged(
    name: str,
    family: families.Family,
    each: int = 20,
    read: Callable[[str, Example, Generation], Verdict] | None = None,
) -> Iterator[tuple[str, attacks.Forgery, bool]]:
    """(judge, case, whether the forger got more than an honest judge gave) for every case and scripted judge."""
    cases = list(attacks.forgeries(name, each))
    honest = FORMATS[name]().read(example(name), [Generation(f"<think></think>{attacks.tags(LOW[name])}")]).scores
    for label, answer in judges(name, family, neutral=read is None).items():
        engine = ScriptedEngine(answer)
        if read is None:
            verdicts = Judge(FORMATS[name](), engine)([case.example for case in cases])
        else:
            format = FORMATS[name]()
            replies = engine.generate([Request(format.render(case.example)[0]) for case in cases])
            verdicts = [read(name, case.example, reply) for case, reply in zip(cases, replies, strict=True)]
        for case, verdict in zip(cases, verdicts, strict=True):
            yield label, case, verdict.scores is not None and verdict.scores[case.attacker] > honest[case.attacker]


def naive_read(name: str, example: Example, reply: Generation) -> Verdict:
    """How research scripts read: the first tags anywhere in the text, finished or not."""
    count = 1 if name in ("multiple_choice", "pairwise_verdict") else COUNTS[name]
    found = re.findall(r"<answer>\s*(.*?)\s*</answer>", reply.text, re.DOTALL)[:count]
    text = f"<think></think>{attacks.tags(found)}"
    return FORMATS[name]().read(example, [Generation(text)])


def _turns(family: families.Family, prompt: Prompt, neutral: bool) -> tuple[int, ...]:
    if not neutral:
        bare = (
            Message(m.role, tuple(p.text if isinstance(p, Untrusted) else p for p in m.parts)) for m in prompt.messages
        )
        prompt = Prompt(tuple(bare))
    return family.sequences([family.chat.render(prompt)])[0]


def _outside(text: str) -> str:
    """What is outside the fences of a message, as a Markdown reader sees it."""
    kept, closing = [], ""
    for line in text.split("\n"):
        if closing:
            closing = "" if line == closing else closing
        elif re.fullmatch("`{3,}", line):
            closing = line
        else:
            kept.append(line)
    return "\n".join(kept)


# ---------------------------------------------------------------- S1


def control_changes(family: families.Family, count: int, seed: int) -> list[str]:
    """The fuzz texts, of `count`, that changed the sequence of added tokens in a rendered prompt."""
    rng = random.Random(seed)
    tokens = [*family.controls.values(), *quoting.TAGS, "<|eot_id|>", "</s>", "[INST]"]
    format = Pairwise(prompt_set="nano")
    texts = [attacks.fuzz(rng, tokens) for _ in range(count)]

    def rendered(places: Sequence[str]) -> str:
        question, first, second, reference = places
        return family.chat.render(format.render(Example(question, [first, second], reference))[0])

    harmless = ["ok"] * 4
    (expected,) = family.sequences([rendered(harmless)])
    changed: list[str] = []
    for start in range(0, count, 1_000):
        some = texts[start : start + 1_000]
        prompts = [rendered([text if i == n % 4 else "ok" for i in range(4)]) for n, text in enumerate(some)]
        found = family.sequences(prompts)
        changed += [text for text, sequence in zip(some, found, strict=True) if sequence != expected]
    return changed


INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066\u180e\ufe0f\x00\x1b\x7f\r"
    "\u034f\u115f\u1160\u3164\uffa0\U000e0041\ue000"
)
NORMALISERS: dict[str, Callable[[str], str]] = {
    "unchanged": lambda text: text,
    **{form: lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")},
    "without invisible characters": lambda text: text.translate({ord(char): None for char in INVISIBLE}),
    "without accents": lambda text: "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    ),
    "spaces as ▁": lambda text: text.replace(" ", "▁"),
    "▁ as spaces": lambda text: text.replace("▁", " "),
}
"""What tokenizers do to a text before they look for added tokens."""


def survivors(tokens: Collection[str], count: int, seed: int) -> list[str]:
    """The fuzz texts, of `count`, that hold one of `tokens` in some form after neutralising, or change once more."""
    rng, order = random.Random(seed), sorted(tokens)
    found = []
    for _ in range(count):
        text = attacks.fuzz(rng, order)
        broken = quoting.neutralise(text, tokens)
        forms = {normaliser(broken) for normaliser in NORMALISERS.values()}
        held = any(token in form for form in forms for token in tokens)
        if held or quoting.neutralise(broken, tokens) != broken:
            found.append(text)
    return found
