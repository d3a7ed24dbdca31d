"""What one server takes: which fields of a request it knows and under which names, learned from its refusals.

A refusal that names a field changes all later requests: they are sent without it, or with its other name. What a
request cannot do without (log probabilities, a reply that begins with the judge's own words) is then `unsupported`, by
name, without a request. What is learned comes from harmless requests alone (`http.py`): a refusal may quote a
candidate, which must not change what the judge is sent. Where a refusal names no field, each is tried alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flexjudge_reward.engines.stills import STILLS
from flexjudge_reward.types import Request

RENAMED = {"max_tokens": "max_completion_tokens"}
THINKING = "thinking_token_budget"
OPTIONAL = (
    # Which one goes first where a refusal names several.
    THINKING,
    *("top_p", "seed", "top_logprobs", "logprobs", "continue_final_message", "add_generation_prompt", "top_k", "min_p"),
    *("repetition_penalty", "skip_special_tokens", "stop", "temperature", "max_tokens", "max_completion_tokens"),
    *("media_io_kwargs", "mm_processor_kwargs", "chat_template_kwargs", "timeout", "stream_options"),
)
"""The fields of a request that a server need not know."""
RATES = {"media_io_kwargs", "mm_processor_kwargs"}
"""The fields that hold the frame rate of videos; without them, videos go as images."""
_TOGETHER = ({"logprobs", "top_logprobs"}, {"continue_final_message", "add_generation_prompt"}, RATES)
_UNKNOWN = re.compile(
    r"un(supported|recogni[sz]ed|known|expected)|not (supported|recogni[sz]ed|permitted|allowed|available|implemented)"
    r"|disabled by default"
    r"|(does|do) not (support|accept|allow|know)|doesn't (support|accept)|extra|forbidden|deprecated"
    r"|not configured|cannot both|only one"
    r"|invalid (parameter|param|argument|field|value|request argument)|use '?max_completion_tokens",
    re.IGNORECASE,
)
_PREFILL = re.compile(r"prefill|end with a user|(last|final) message|must be (a |from the )?user", re.IGNORECASE)
_SYSTEM = re.compile(
    r"\bsystem\b.*\b(role|message|instruction|turn|prompt)|\brole\b.*\bsystem\b", re.IGNORECASE | re.DOTALL
)
_STREAM = re.compile(r"non-?stream|stream.{0,20}(only|must|required)|(only|must|require).{0,20}\bstream", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context|maximum|too (large|long|many|big|high)|exceed|at most|limit"
    r"|(less|fewer|greater|larger|more|higher|longer) than",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_LEAST_REPLY = 256  # what is smaller may be the prompt's length in the same message
_REPLIES = ("max_tokens", "max_completion_tokens")
_LIMITS = (*_REPLIES, "max_new_tokens", "context")
_log = logging.getLogger("flexjudge_reward")


class Dialect:
    """What is known of one server so far."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lacking: set[str] = set()
        """Fields that the server does not know."""
        self.names: dict[str, str] = {}
        """Other names of fields."""
        self.system_turn = True
        """Whether it takes a system turn; else the instructions go in front of the first user turn."""
        self.stream = False
        """Whether it replies in a stream of events only, as some hosted models that reason."""
        self.stills = False
        """Whether a request had its videos as images."""
        self.most_tokens: int | None = None
        """The longest reply that may be asked for, where the server has said so."""
        self.version = 0
        """Grows with everything that is learned."""

    def fields(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a request as this server takes them."""
        wanted = {**wanted, "stream": True, "stream_options": {"include_usage": True}} if self.stream else wanted
        taken = {self.names.get(name, name): value for name, value in wanted.items() if name not in self.lacking}
        if self.most_tokens is not None:
            limits = {name: taken[name] for name in _REPLIES if isinstance(taken.get(name), int)}
            taken |= {name: min(limit, self.most_tokens) for name, limit in limits.items()}
        return taken

    def unsupported(self, request: Request) -> str:
        """What the request needs and the server does not know; empty if nothing."""
        if request.prompt.messages[-1].role == "assistant" and "continue_final_message" in self.lacking:
            return f"the server at {self.where} cannot continue a reply (continue_final_message)"
        if request.sampling.logprobs is not None and "logprobs" in self.lacking:
            return f"the server at {self.where} returns no log probabilities (logprobs)"
        return ""

    def blamed(self, message: str, named: Collection[str], fields: Collection[str], roles: Sequence[str]) -> str | None:
        """The field that a refusal blames, "system" for the system turn, "stream" if it replies in streams; or None.

        Args:
            message: what the server says.
            named: the fields that its refusal points at, beside those in the message.
            fields: those of the refused request.
            roles: of its messages; "assistant" at the end are the judge's own words, to be continued.
        """
        unknown = _UNKNOWN.search(message) is not None
        blamed = [f for f in OPTIONAL if f in fields and (f in named or (unknown and re.search(rf"\b{f}\b", message)))]
        if "stream" not in fields and _STREAM.search(message):
            return "stream"
        if blamed and not (blamed[0].startswith("max_") and is_too_long(message)):
            return blamed[0]
        if roles[-1] == "assistant" and _PREFILL.search(message):
            return "continue_final_message"
        said = (_SYSTEM.search(message) and unknown) or "alternate" in message
        return "system" if roles[0] == "system" and said else None

    def learn(self, message: str, named: Collection[str], fields: Collection[str], roles: Sequence[str]) -> bool:
        """Whether a refusal says something new of the server. Arguments as of `blamed`."""
        blamed = self.blamed(message, named, fields, roles)
        if blamed == "stream":
            self.stream = True
            self._learned("replies in streams only")
            return True
        return blamed is not None and (self.merge_system() if blamed == "system" else self.drop(blamed))

    def findings(self) -> dict[str, object]:
        """Everything that was learned, for records."""
        found: dict[str, object] = {"videos": STILLS} if self.stills else {}
        found |= {"most_tokens": self.most_tokens} if self.most_tokens is not None else {}
        found |= {"stream": True} if self.stream else {}
        return {"system_turn": self.system_turn, "lacking": sorted(self.lacking), "names": dict(self.names), **found}

    def drop(self, field: str) -> bool:
        """Sends `field` under its other name from now on, or no more."""
        wanted = next((name for name, other in self.names.items() if other == field), field)
        if wanted in self.lacking:
            return False
        if wanted in RENAMED and wanted not in self.names:
            self.names[wanted] = RENAMED[wanted]
            self._learned(f"calls {wanted} {RENAMED[wanted]}")
            return True
        self.lacking |= next((both for both in _TOGETHER if wanted in both), {wanted})
        if wanted == THINKING:  # then the format closes it, in a second call
            self._learned("closes no reasoning itself; one started with --reasoning-parser does", logging.INFO)
        else:
            self._learned(f"does not take {wanted}; requests are sent without it")
        return True

    def merge_system(self) -> bool:
        """Puts the instructions in front of the first user turn from now on."""
        if self.system_turn:
            self.system_turn = False
            self._learned("takes no system turn, or drops it; the instructions go in front of the user's")
            return True
        return False

    def cap(self, tokens: int) -> None:
        """Asks for replies of at most so many tokens from now on."""
        self.most_tokens = tokens
        self._learned(f"allows replies of {tokens} tokens at most; longer ones are cut there")

    def _learned(self, what: str, level: int = logging.WARNING) -> None:
        self.version += 1
        _log.log(level, "the judge server at %s %s", self.where, what)


def longest_reply(message: str, sent: int) -> int | None:
    """The limit that a refusal of `sent` tokens seems to name; None for one that no reasoning fits in."""
    numbers = (int(found) for found in re.findall(r"\b\d{1,9}\b", _THOUSANDS.sub("", message)))
    return max((number for number in numbers if _LEAST_REPLY <= number < sent), default=None)


def is_too_long(message: str) -> bool:
    """Whether a refusal says that prompt and longest reply together do not fit."""
    return names_limit(message, ()) and "instead" not in message and _TOO_LONG.search(message) is not None


def names_limit(message: str, named: Collection[str]) -> bool:
    """Whether a refusal is about the length of the reply, by its message or the fields that it points at."""
    return any(limit in message or limit in named for limit in _LIMITS)
