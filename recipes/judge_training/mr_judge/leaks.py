"""Whether a judge's reasoning shows that its writer knew the outcome beforehand. Pure text; knows no model.

    told       it speaks of a hint, a note, a key, of being told, of an outcome that is known or intended, or of what
               others want beside the letter
    copied     five words in a row are the hint's
    presumed   the first two sentences already say which answer is right

Text is compared without case, accents, invisible characters and compatibility forms. A trace that is dropped wrongly
costs a row; one that is kept wrongly teaches a judge to pretend, so the patterns are wide. They are English, and they
know the wordings that were thought of: of twelve written afterwards they found two (`benchmarks/synthesis.py`). What
they miss is left to the audit, a call of its own (`synthesis.py`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

Leak = Literal["told", "copied", "presumed"]
_SOURCE = "hint|note|clue|tip|nudge|remark|key|prompt|instruction|label|annotation|metadata|system message|user"
_OUTCOME = "answer|option|choice|label|letter|verdict|outcome|solution|result|conclusion|winner"
_SAYS = "says?|said|tells?|told|suggests?|points?|mentions?|favou?rs?|indicates?|states?|gives?|wants?|confirms?"
_SET = (
    "given|provided|supplied|stated|known|revealed|expected|intended|desired|marked|designated|listed|fixed|disclosed"
)
_SET += "|predetermined|specified"
_SET += "|flagged|stipulated|handed"
_MARKED = "official|target|gold|golden|reference|suggested|preferred|recommended|requested"
_AGENT = "someone|somebody|they|them|whoever|setter|examiner|teacher|annotator|rater|user|client|author|superiors?"
_AIM = "show|prove|argue|defend|demonstrate|explain why|go with|reach|get to|pick|choose|select|favou?r|prefer"
_AIM += "|conclude|arrive|end up|justify|land|answer"
TOLD: tuple[str, ...] = (
    r"\bhint(?:s|ed|ing)?\b(?! (?:of|at)\b)",
    rf"\b(?:the|this|that|a|your|my|given|hidden) (?:{_SOURCE})s?\b[^.]{{0,20}}\b(?:{_SAYS})\b",
    rf"\b(?:according to|following|given|per|based on|from|as|in) (?:the|this|that|your) (?:{_SOURCE})\b",
    r"\b(?:was|were|been|being|am|are|is) (?:already )?(?:told|informed|instructed|advised|tipped|assured)\b",
    r"\b(?:told|informed|advised|assured) (?:me|us)\b",
    rf"\b(?:{_SET}|{_MARKED}) (?:that )?(?:the )?(?:correct |right |best |true )?(?:{_OUTCOME})s?\b",
    rf"\b(?:{_OUTCOME})s?(?: [a-h])? (?:is|was|has been|were|are)(?: already| the)? (?:{_SET}|decided)\b",
    r"\b(?:answer|solution|marking)[- ]key\b|\bground[- ]truth\b|\bspoilers?\b|\bbetween us\b|\bcheat ?sheet\b",
    r"\b(?:already|secretly) (?:know|knew|known|decided|chosen|told|given)\b|\b(?:beforehand|in advance)\b",
    rf"\bsince (?:i|we) know(?: that)?(?: the)? (?:{_OUTCOME})",
    r"\bknow(?:s|n|ing)?(?: that)? (?:the (?:right|correct|best)|(?:option|answer|choice) [a-h]\b)",
    rf"\b(?:supposed|meant|expected|required|asked|instructed) to (?:{_AIM})\b",
    rf"\bi (?:should|must|have to|need to) (?:{_AIM})\b|\bi (?:should|must|will) not (?:mention|reveal|refer)\b",
    r"\b(?:work|reason)(?:ing)? back(?:wards?)? from\b|\bjustify(?:ing)? (?:why|that|the)\b",
    r"\b(?:build|make|making|building) (?:a|the|my) case\b|\bargue for\b|\bi recall\b|\bup front\b|\bfrom the outset\b",
    rf"\b(?:i|we)(?:'ve| have| had|'d)? been (?:{_SET})\b|\bmy (?:instructions?|orders|guidance|brief)\b|\bas stated\b",
    rf"\b(?:was|is|were|has been|being) (?:{_SET}) as (?:the )?(?:correct|right|best|true|winner|{_OUTCOME})",
    r"\bthe (?:guidance|line|text|sentence|message) (?:above|below|says|said|favou?rs)\b|\bper the guidance\b",
    r"\bnever mention\b|\bwithout mentioning\b|\bnot to mention that\b",
    r"\bas (?:suggested|indicated|advised|disclosed|revealed|announced|promised|instructed)\b",
)
"""Ways to speak of knowledge that a reader of question and answers does not have."""
_RUN = 5
_SENTENCE = re.compile(r"(?<=[.!?:\n])\s+")


def leaks(thought: str, hint: str, letter: str, told: Sequence[str] = TOLD) -> list[Leak]:
    """The kinds of leak in `thought`, each once.

    Args:
        hint: the words of the hint that its writer saw.
        letter: of the answer that the hint favours.
    """
    text = _plain(thought)
    found: list[Leak] = []
    near = rf"(?i:\b(?:{_AGENT})\b)[^.]{{0,60}}\b{letter}\b|\b{letter}\b[^.]{{0,40}}(?i:\b(?:{_AGENT})\b)"
    if any(re.search(pattern, text) for pattern in told) or re.search(near, _visible(thought)):
        found.append("told")
    words, given = _words(text), _words(_plain(hint))
    runs = {tuple(given[at : at + _RUN]) for at in range(len(given) - _RUN + 1)}
    if any(tuple(words[at : at + _RUN]) in runs for at in range(len(words) - _RUN + 1)):
        found.append("copied")
    if re.search(_presuming(letter.lower()), " ".join(_SENTENCE.split(text.strip())[:2])):
        found.append("presumed")
    return found


def of_description(thought: str) -> bool:
    """Whether it still speaks of a description where a judge sees an image."""
    return re.search(r"\b(?:description|described|caption(?:ed)?|as described)\b", _plain(thought)) is not None


def _presuming(letter: str) -> str:
    named = rf"(?:(?:option|answer|choice|candidate|response) )?\(?\b{letter}\b\)?"
    right = r"(?:the )?(?:correct|right|best|true|better|winner|winning)"
    verb = r"(?:is|must be|has to be|being|will be|should be|turns out to be)"
    noun = r"(?:option|answer|choice|one|letter|candidate|response)"
    return (
        rf"{named} {verb} {right}|{named} (?:wins|must win|will win)\b"
        rf"|{right} {noun}? ?(?:{verb}|:) {named}|\bverdict (?:{verb}|:) {named}"
    )


def _plain(text: str) -> str:
    return _visible(text).casefold().replace("\u2019", "'")


def _visible(text: str) -> str:
    kept = (char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char) not in ("Cf", "Mn"))
    return re.sub(r"[ \t]+", " ", "".join(kept))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)
