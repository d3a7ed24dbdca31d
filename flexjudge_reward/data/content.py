"""One value of outside data as content: a text, a number, a media item, a list of parts, a conversation, a rubric.

A part is a text, or a mapping with the name of a modality (`media/base.py: KINDS`) as key or as "type":

    "a cat"    {"text": "a cat"}    {"type": "text", "text": "a cat"}
    {"image": SOURCE}    {"type": "image", "image": SOURCE}    {"molecule": "CCO", "as_": "drawing"}
    {"type": "image"}                                            the place of an image that a column holds

So is `<image>` in a text, where there are as many of them as images in the column. Parts may also be as the APIs of
OpenAI and Anthropic have them.

Texts that follow each other in a list are separate texts: a line break keeps them apart where no space does. A list of
references is several right answers. A lone message is its content. A longer conversation becomes one text in which each
turn is enclosed, with its role, between lines of backticks that no turn can contain, so that no turn can forge another
one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flexjudge_reward.data.cells import Clip, is_empty, is_number
from flexjudge_reward.data.completion import Completion, is_thought, judged_part, thought_of
from flexjudge_reward.errors import ConfigError
from flexjudge_reward.media.base import KINDS, Media
from flexjudge_reward.prompts.quoting import fence_line
from flexjudge_reward.rubric import Rubric, rubric_names
from flexjudge_reward.types import Content, Unfinished

MakeMedia = Callable[[str, Any, Mapping[str, Any]], Media]
"""Builds a media item from the name of its modality, its source and the part that holds its options."""
Columns = Sequence[tuple[str, Sequence[Media]]]  # media from beside a value, by their modality
_CALLS = ("tool_use", "tool_result", "tool_call", "function_call", "function_call_output")  # Anthropic's, Responses'
Turn = tuple[str, list[Any]]  # a role and its parts: texts, media, and a `Place` for each item that a column holds


@dataclass(frozen=True)
class Place:
    """Where a media item of a column belongs."""

    kind: str


def content_of(value: Any, what: str, make: MakeMedia, columns: Columns = (), repeated: bool = False) -> Content:
    """A text, a part, a list of parts or a conversation, with the media of columns in their places.

    Args:
        what: names the value in errors.
        columns: without places they go before the first user turn, the first column first.
        repeated: a column repeats the media of its kind that are in the value, if there are any.

    Raises ConfigError: a value of another form, or more or fewer places than media.
    """
    turns = _turns(value, what, make)
    for kind, media in reversed(columns):
        _fill_places(turns, kind, media, repeated)
    return joined(turns)


def completion_of(value: Any, what: str, make: MakeMedia, completion: Completion, opened: str = "") -> Content:
    """What a policy wrote, or the part of it that is judged (`completion.py`). Raises ConfigError as `content_of`.

    Args:
        opened: the mark of an open thought that the prompt ends with.
    """
    turns = []
    for role, parts in _turns(value, what, make, completion, opened):
        unfinished = [part for part in parts if isinstance(part, Unfinished)]
        turns.append((role, [part for part in parts if not isinstance(part, Unfinished)]))
    return tuple(unfinished) if turns and unfinished else joined(turns)


def reference_of(value: Any, make: MakeMedia) -> Content | None:
    """A reference answer, or several; None for an empty cell. Raises ConfigError."""
    if is_empty(value):
        return None
    if not (_is_list(value) and all(isinstance(one, str) or is_number(one) for one in value)):
        return content_of(value, "reference", make)
    texts = [str(one) for one in value if not is_empty(one)]
    if len(texts) < 2:
        return tuple(texts) or None
    return joined([(f"right answer {number}", [text]) for number, text in enumerate(texts, 1)])


def is_conversation(value: Any) -> bool:
    """Whether it is a list of chat messages."""
    if not _is_list(value):
        return False
    return any([isinstance(message, (dict, Mapping)) and "role" in message for message in value])  # dict: as _is_list


def joined(turns: Sequence[Turn]) -> Content:
    """The parts of a lone turn as they are; else all turns, enclosed and with their roles. Raises ConfigError."""
    if empty := next((one for _, own in turns for one in own if isinstance(one, Place)), None):
        raise ConfigError(f"a part of type {empty.kind!r} has no source, and no column holds it")
    if len(turns) <= 1:
        return tuple(apart(turns[0][1] if turns else [])) or ("",)
    line = fence_line(part for _, own in turns for part in own)
    content: list[str | Media] = []
    for role, own in turns:
        content += [f"{line}{' '.join(role.split())}\n", *apart(own), f"\n{line}\n"]
    return tuple(content)


def apart(parts: Sequence[Any]) -> list[Any]:
    """The same parts, with a line break between two texts that would run into one word."""
    kept: list[Any] = []
    for part in parts:
        before = kept[-1] if kept else ""
        if isinstance(part, str) and isinstance(before, str) and part and before:
            kept += [] if before[-1].isspace() or part[0].isspace() else ["\n"]
        kept.append(part)
    return kept


def _turns(
    value: Any, what: str, make: MakeMedia, completion: Completion | None = None, opened: str = ""
) -> list[Turn]:
    """The turns of a value; `completion` says what is shown of what the policy wrote, None that it is no completion."""
    if not is_conversation(value):
        given = value if _is_list(value) else [str(value)] if is_number(value) else [value]
        parts = [_part(one, make) for one in given]
        return [("", parts if completion is None else judged_part(parts, "", completion, opened))]
    for message in value:
        if not isinstance(message, (dict, Mapping)) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{what}: a message needs 'role' and 'content', found {message!r:.80} in the list")
    turns = []
    for number, message in enumerate(value):
        own = _message_parts(message, make)
        if completion is not None and message["role"] == "assistant":
            own = judged_part(own, thought_of(message), completion, "" if number else opened)
        if calls := message.get("tool_calls") or message.get("function_call"):
            own = [part for part in own if not isinstance(part, Unfinished)]  # it ended with a call, not with a thought
            own.append(json.dumps(calls, ensure_ascii=False, default=str))
        turns.append((message["role"], own))
    return turns


def _fill_places(turns: Sequence[Turn], kind: str, column: Sequence[Media], repeated: bool) -> None:
    parts = [part for _, own in turns for part in own if not isinstance(part, str)]
    if not (column or parts):
        return
    present = any(isinstance(part, Media) and part.kind == kind for part in parts)
    if not present:
        _split_at_marks(turns, kind, len(column))
    places = [(own, i) for _, own in turns for i, part in enumerate(own) if part == Place(kind)]
    if places:
        if len(places) != len(column):
            raise ConfigError(
                f"the prompt has {len(places)} {kind} places but the columns '{kind}' and '{kind}s' have"
                f" {len(column)} for it; give one {kind} for each place"
            )
        for (own, index), media in zip(places, column, strict=True):
            own[index] = media
    elif column and not (repeated and present):
        first = next((own for role, own in turns if role == "user"), turns[-1][1])
        first[:0] = column


def _split_at_marks(turns: Sequence[Turn], kind: str, count: int) -> None:
    """Makes places of `<image>` in the texts, where there is one for each item of the column and no other place."""
    mark, parts = f"<{kind}>", [part for _, own in turns for part in own]
    if Place(kind) in parts or sum(part.count(mark) for part in parts if isinstance(part, str)) != count:
        return
    for _, own in turns:
        pieces = [[part] if not isinstance(part, str) else part.split(mark) for part in own]
        marked = [[one for text in texts for one in (text, Place(kind))][:-1] for texts in pieces]
        own[:] = [part for one in marked for part in one if part != "" or len(one) == 1]


def _part(value: Any, make: MakeMedia) -> str | Media | Place:
    if isinstance(value, (str, Media)):
        return value
    if isinstance(value, Clip):
        return value.media
    kind, source = kind_and_source(value) if isinstance(value, Mapping) else ("", None)
    if kind == "text" and isinstance(source, str):
        return str(source)
    if isinstance(value, Mapping) and value.get("type") in _CALLS:
        return json.dumps(value, ensure_ascii=False, default=str)
    if kind in KINDS:
        return Place(kind) if source is None else make(kind, source, value)
    raise ConfigError(f"a part is a text or one of text, {', '.join(KINDS)} with its source, found {_shown(value)}")


def _shown(value: Any) -> str:
    """The beginning of a value, without the login and the signature of an address in it."""
    shown = re.sub(r"://[^\s'\"]*@", "://", f"{value!r:.200}")
    return re.sub(r"(://[^\s'\"?#]*)[?#][^\s'\"]*", r"\1", shown)[:80]


def kind_and_source(part: Mapping[str, Any]) -> tuple[str, Any]:
    """The kind of a part, "text" or a modality, and its text or source, which may be None; "" if it is not one kind."""
    for kind in ("image", "video", "audio"):  # as the chat completions API has them, and the newer one
        if there := part.get(f"{kind}_url"):
            return kind, there.get("url") if isinstance(there, Mapping) else there
    if isinstance(there := part.get("input_audio"), Mapping):
        return "audio", f"data:audio/{there.get('format')};base64,{there.get('data')}"
    if isinstance(there := part.get("source"), Mapping) and part.get("type") == "image":  # as Anthropic has it
        encoded = there.get("data") and f"data:{there.get('media_type')};base64,{there['data']}"
        return "image", encoded or there.get("url")
    if part.get("type") in ("input_text", "output_text"):
        return "text", part.get("text")
    kinds = [name for name in ("text", *KINDS) if part.get(name) is not None]
    kind = part.get("type") or (kinds[0] if len(kinds) == 1 else "")
    if kind == "text":
        return kind, part.get("text")
    if not isinstance(kind, str) or kind not in KINDS:
        return "", None
    return kind, next((part[name] for name in (kind, "bytes", "path", "url") if part.get(name) is not None), None)


def options_of(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a modality that a part has beside its source; null means the default. Raises ConfigError."""
    options = {}
    for name, default in KINDS[kind].options.items():
        value = entry.get(name)
        if value is None:
            continue
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not type(default) and not number:
            raise ConfigError(f"{name!r} of a {kind} is a {type(default).__name__}, found {value!r:.80}")
        options[name] = float(value) if number else value
    return options


def rubric(value: Any) -> Rubric | None:
    """A cell as a rubric: a `Rubric`, a built-in name, criteria in words or as a list, or an object with criteria.

    None for an empty cell. It never names a file. Raises ConfigError.
    """
    if isinstance(value, Rubric):
        return value
    if is_empty(value):
        return None
    if isinstance(value, Mapping):
        return Rubric.of(_without_nulls(value))
    if isinstance(value, list | tuple):
        return replace(Rubric.of(_without_nulls({"criteria": value})), scale=None)
    if isinstance(value, str) and value in rubric_names():
        return Rubric.load(value)
    if isinstance(value, str) and len(value.split()) > 1:
        return Rubric(value, None)
    known = f"criteria in words, a list of criteria, an object with 'criteria', or one of {', '.join(rubric_names())}"
    raise ConfigError(f"a rubric is {known}; found {value!r:.80}")


def _without_nulls(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are there: a table has every column in every row, null where a row has none."""
    given = {name: entry for name, entry in entries.items() if entry is not None}
    if isinstance(listed := given.get("criteria"), list | tuple):
        given["criteria"] = [_without_nulls(one) if isinstance(one, Mapping) else one for one in listed]
    return given


def _message_parts(message: Mapping[str, Any], make: MakeMedia) -> list[Any]:
    content = message.get("content")
    if content is None:
        if unread := next((name for name in ("parts", "text", "value") if message.get(name)), None):
            raise ConfigError(f"a message has {unread!r} where it needs 'content'")
        content = message.get("refusal") or []
    given = [content] if isinstance(content, str) else content
    if not _is_list(given) and not is_tool_result(message):
        raise ConfigError(f"a message's content must be a text or a list of parts, found {type(content).__name__}")
    if is_tool_result(message):
        given = [json.dumps(content, ensure_ascii=False, default=str)]
    return [_part(one, make) for one in given if not is_thought(one)]


def is_tool_result(message: Mapping[str, Any]) -> bool:
    """Whether the content is an object, or a list of something else than parts: a tool's result, as TRL passes it."""
    content: Any = message.get("content")
    rows = _is_list(content) and not all(map(_is_part, content))
    return message["role"] in ("tool", "function") and (rows or isinstance(content, Mapping) or is_number(content))


def _is_part(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, str)
    # A row of a tool may have a type and an address of its own.
    known = re.sub(r"^(in|out)put_|_url$", "", str(value.get("type"))) in ("text", *KINDS)
    return known and bool(kind_and_source(value)[0])


def _is_list(value: Any) -> bool:
    if isinstance(value, str | list):  # most values; asking whether it is a Sequence takes ten times as long
        return isinstance(value, list)
    return isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)
