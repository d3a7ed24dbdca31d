"""Untrusted text in a prompt: its control tokens and answer tags are neutralised, its delimiters cannot be forged.

Three guarantees, all structural and independent of any model:

* `neutralise`: none of the given tokens is in the result, nor in anything that a normaliser makes of it by composing or
  decomposing characters (NFC, NFD, NFKC, NFKD), stripping accents, dropping invisible characters, or writing spaces as
  `▁`, in any order. Text without such a token comes back byte for byte.
* `fence`: the closing line cannot occur inside, because it is a run of backticks longer than any run in the text.
* Both results can be encoded as UTF-8, so that one broken character cannot stop a batch.

The first holds because detection works on a folded copy (`_fold`) without everything that those normalisers change, and
folding goes character by character: a token in any form of the text is a folded token in the folded text.

Not promised: that a model respects the fence (a rate, to be measured per model), tokenizers that ignore case,
look-alike letters of other scripts (no tokenizer takes them for the token), and folded forms of added tokens that are
plain text with accents or compatibility characters ("é").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby

from flexjudge_reward.media.base import Media
from flexjudge_reward.prompts.template import append
from flexjudge_reward.types import Content, Message, Part, Untrusted

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""The tags of a judge's reply; untrusted text may not contain them in any case or spelling."""

KNOWN_CONTROL_TOKENS = frozenset(
    "<|im_start|> <|im_end|> <|endoftext|> <tool_call> </tool_call> <tool_response> </tool_response> "
    "<start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token> <bos> <eos> <pad> <unk> <mask> "
    "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [IMG] [IMG_BREAK] [IMG_END] [THINK] [/THINK] "
    "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CONTENT] [ARGS] [CALL_ID] "
    "[PREFIX] [MIDDLE] [SUFFIX] [gMASK] [MASK] [CLS] [SEP] [PAD] [UNK] <sop> <eop> <<SYS>> <</SYS>> "
    "<image> </image> <video> </video> <audio> </audio> <img> </img> <IMG_CONTEXT> <box> </box> <ref> </ref> <quad> "
    "</quad> <slice> </slice> <image_id> </image_id> <unit> </unit> <image_pad> <video_pad> "
    "<｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>".split()
)
"""For servers, whose tokenizer is unknown here: the control tokens of common judge model families. With them, whatever
has the shape of a control token is broken, too (`_SHAPES`)."""
VERSION = 2
"""Of this module's rules; part of every cache key."""

_BACKTICKS = re.compile("`+")
_ASCII_HIDDEN = bytes({*range(32), 127} - set(b"\t\n"))
# How most families spell control tokens; broken whether or not the tokenizer at hand is known to have that one.
_SHAPE = r"<\|[^<>|\n]{1,64}\|>"
_SHAPES = (
    *(r"<\|[^<>|\n]{1,64}\|?>", r"<[^<>|\s]{1,64}\|>"),  # Gemma 4: <|turn> and <turn|>
    r"</?[A-Za-z]+(?:_[A-Za-z0-9]+)+>",  # <end_of_utterance>, <im_start>, <extra_id_0>; HTML has no underscores
    *(r"\[\|[^\[\]|\n]{1,32}\|\]", r"\[/?[A-Z]+(?:_[A-Z]+)+\]"),  # EXAONE [|user|], Voxtral [BEGIN_AUDIO]
    *(r"[\[\]]~!?[a-z]{0,3}[\[\]]", r"[\[\]][a-z]~[\[\]]"),  # MiniMax ]~b] and [e~[
    *(r"</?(?:seed|minimax):[^<>\n]{1,32}>", r"</?role>", r"<(?:unused|reserved|extra|special)\d+>"),
    r"\[(?:AUDIO|TRANSCRIBE|BOS|EOS|STOP)\]",
)
_INVISIBLE_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")  # Hangul fillers: letters to Unicode, blank to the eye


def neutralise(text: str, tokens: Collection[str] = ()) -> str:
    """`text` with every occurrence of `tokens`, of `<|...|>` and of the judge's answer tags broken by a space.

    A token of one character becomes a space. Tokens of white space alone are left: they are how some tokenizers store
    indentation, and control nothing. Takes time linear in the length of the text.

    `tokens` are the contents of the added tokens of the judge's tokenizer, special or not.
    """
    text = encodable(text)
    searches = _searches(frozenset(tokens))
    # A break can complete a token that holds a space. It ends: no token holds more than so many spaces in a row.
    while found := [search for search in searches if search.found(text)]:
        text = _broken(text, found[0])
    return text


def fence(parts: Content, label: Callable[[Media], str] = lambda media: "") -> tuple[Part, ...]:
    """`parts` as untrusted text between two lines of backticks, longer than any run of backticks inside.

    Args:
        label: what is written before a media item.
    """
    ticks = fence_line(parts)
    fenced: list[Part] = [f"{ticks}\n"]
    for part in parts:
        if isinstance(part, str):
            fenced.append(Untrusted(encodable(part)))
        else:
            append(fenced, (shown,) if (shown := label(part)) else ())
            fenced.append(part)
    append(fenced, (f"\n{ticks}",))
    return tuple(fenced)


def fence_line(parts: Iterable[str | Media]) -> str:
    """A line of at least three backticks that is longer than any run of backticks in the texts of `parts`."""
    text = "".join([encodable(part) for part in parts if isinstance(part, str)])
    if text.isascii() and "`" not in text:
        return "```"
    text = _fold(text)
    line, at = "```", 0
    while (at := text.find(line, at)) >= 0:
        run = _BACKTICKS.match(text, at)
        assert run is not None
        line, at = "`" * (len(run.group()) + 1), run.end()
    return line


def flatten(message: Message, tokens: Collection[str] = KNOWN_CONTROL_TOKENS) -> tuple[str | Media, ...]:
    """The parts of `message` as plain text, images and videos, ready for a chat template, untrusted text neutralised.

    Molecules become their judge input; their text is untrusted. Neighbouring untrusted texts are neutralised as one,
    so that a token cannot be split across two of them. Raises MediaError if a media item cannot be used.
    """
    flat: list[str | Media] = []
    texts: list[str] = []  # neighbours, joined once: to add one by one would copy all that is before it
    untrusted: list[str] = []
    for part in (*_judge_input(message.parts), None):
        if isinstance(part, Untrusted):
            untrusted.append(part.text)
            continue
        if part == "":
            continue
        if untrusted:
            texts.append(neutralise("".join(untrusted), tokens))
            untrusted.clear()
        if isinstance(part, str):
            texts.append(part)
            continue
        if texts:
            flat.append("".join(texts))
            texts.clear()
        if part is not None:
            flat.append(part)
    return tuple(flat)


def _judge_input(parts: Sequence[Part]) -> Iterable[Part]:
    if not any(isinstance(part, Media) for part in parts):
        return parts
    shown: list[Part] = []
    for part in parts:
        if isinstance(part, Media):
            shown += [Untrusted(one) if isinstance(one, str) else one for one in part.as_judge_input()]
        else:
            shown.append(part)
    return shown


def encodable(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and UTF-8 cannot; pairs of them become their character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Folded(dict[int, str]):
    """For `str.translate`: what is left of a character without everything that normalisers may change."""

    def __missing__(self, code: int) -> str:
        if len(self) > 50_000:  # text of a million different characters must not stay in memory
            self.clear()
        kept = (c for c in unicodedata.normalize("NFKD", chr(code)) if not _forgotten(c))
        self[code] = "".join(kept).replace("▁", " ")
        return self[code]


def _forgotten(char: str) -> bool:
    hidden = unicodedata.category(char) in {"Cf", "Cc", "Co", "Cs", "Cn", "Mn", "Me"} and char not in "\n\t"
    return hidden or char in _INVISIBLE_LETTERS


_FOLDED = _Folded()


def _fold(text: str) -> str:
    """`text` decomposed and without accents and invisible characters; `_fold(a + b) == _fold(a) + _fold(b)`."""
    if text.isascii():
        return text.encode().translate(None, _ASCII_HIDDEN).decode()
    return text.translate(_FOLDED)


class _Search:
    """What to look for, and in which copy of the text."""

    def __init__(self, tokens: Collection[str], fold: Callable[[str], str], *patterns: str) -> None:
        self.fold = fold
        self.pattern = re.compile("|".join([*patterns, *_branches(sorted(tokens))]))
        self._firsts = ("<", *({*("[]" if _SHAPES[0] in patterns else ""), *(token[0] for token in tokens)} - {"<"}))

    def found(self, text: str) -> bool:
        """Whether there is anything; most text has none of the first characters, which is faster to see."""
        ascii_only = text.isascii()  # then folding drops characters, and no more
        copy = text if ascii_only else self.fold(text)
        for first in self._firsts:
            if first in copy:
                return self.pattern.search(self.fold(text) if ascii_only else copy) is not None
        return False


@lru_cache(maxsize=64)
def _searches(tokens: frozenset[str]) -> list[_Search]:
    visible = {token for token in tokens if token.replace("▁", " ").strip()}
    # Plain text that some tokenizers add as tokens, "é" or "...", is looked for unchanged: its folds, "e" and "...",
    # are everywhere.
    plain = {token for token in visible if _fold(token) != token and not set(_fold(token)) & set("<[|")}
    folded = {_fold(token) for token in visible - plain}
    tags = "(?i:" + "|".join(map(re.escape, TAGS)) + ")"
    literal = [_Search(plain, str)] if plain else []
    shapes = _SHAPES if tokens >= KNOWN_CONTROL_TOKENS else (_SHAPE,)
    return [*literal, _Search(folded, _fold, tags, *shapes)]


def _branches(tokens: Sequence[str]) -> Iterator[str]:
    """Patterns for sorted `tokens`, equal beginnings once: some tokenizers have thousands of one kind."""
    for _, group in groupby(tokens, key=lambda token: token[:1]):
        same = list(group)
        start = same[0]
        while not same[-1].startswith(start):
            start = start[:-1]
        if start == same[0]:  # it begins the others: breaking it breaks them
            yield re.escape(start)
        else:
            yield re.escape(start) + "(?:" + "|".join(_branches([token[len(start) :] for token in same])) + ")"


def _broken(text: str, search: _Search) -> str:
    """`text` with a space after the first visible character of every match in its folded copy."""
    chars = list(text)
    folds = [search.fold(char) for char in chars]
    origin = [index for index, folded in enumerate(folds) for _ in folded]
    folded, cut = "".join(folds), 0
    while match := search.pattern.search(folded, cut):
        visible = match.group().lstrip()
        cut = match.end() - len(visible) + 1
        left = origin[cut - 1]
        if len(visible.rstrip()) == 1:
            chars[left] = " "
        elif origin[cut] == left:  # one character that folds to several, such as an ellipsis
            chars[left] = " ".join(folds[left])
        else:
            chars[origin[cut]] = " " + chars[origin[cut]]
    return "".join(chars)
