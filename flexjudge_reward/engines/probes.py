"""What harmless requests tell of a server: whether it serves anything, which fields and turns it takes, what it drops.

They hold nothing of a judged text. A refusal of another request may quote a candidate, so it only says what to try.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import cache

from flexjudge_reward.engines.answers import Answer, Refusal, Reply
from flexjudge_reward.engines.chat_codec import PLACEHOLDER, Body, ChatCodec
from flexjudge_reward.engines.dialect import RATES, Dialect, longest_reply
from flexjudge_reward.media.audio import RATE, wav
from flexjudge_reward.media.base import Media
from flexjudge_reward.types import Generation, Message, Prompt, Request, Sampling, Untrusted

_TURNS = (Message("system", ("Answer briefly.",)), Message("user", ("Is 1 + 1 = 2? Reply with yes or no.",)))
_WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " * 3

HARMLESS = Request(Prompt(_TURNS), Sampling(max_tokens=16))
COUNTED = replace(HARMLESS, prompt=Prompt((Message("system", (_WORDS,)), Message("user", (_WORDS, "Say yes.")))))
"""Its reported tokens show whether a system turn reaches the model."""
_COLOUR = "What colour is the picture? Describe what you see, and end with the name of the colour."
_TONE = "What do you hear? Describe how high the sound is and how it changes, and end with the name of what makes it."
_ASKED = {"image": ("images", _COLOUR), "audio": ("sounds", _TONE)}
"""What some servers drop without a word: its name, and a question that has another answer for each sample."""
_RECENT_S = 60.0  # for how long a reply shows that the server is usable
_IN_A_ROW = 3  # refusals without a reply between them, after which it may have become unusable


def harmless_like(request: Request, clip: bool = False) -> Request:
    """A harmless request with the same fields as `request`, and a begun reply where that has one.

    With `clip` it has a video of its own, since the fields for the rates of videos come with one only.
    """
    begun = (Message("assistant", ("Yes",)),) if request.prompt.messages[-1].role == "assistant" else ()
    turns = (_TURNS[0], Message("user", (_grey_clip(), *_TURNS[1].parts))) if clip else _TURNS
    return replace(request, prompt=Prompt((*turns, *begun))).changed(max_tokens=16)


def no_shorter(request: Request) -> Request:
    """The request with digits for all text from outside: as many bytes, and with most tokenizers more tokens."""
    turns = [
        replace(turn, parts=tuple(_digits(part) if isinstance(part, Untrusted) else part for part in turn.parts))
        for turn in request.prompt.messages
    ]
    return replace(request, prompt=Prompt(tuple(turns))).changed(max_tokens=16)


def _digits(part: Untrusted) -> Untrusted:
    size = len(part.text.encode("utf-8", "surrogatepass"))
    return Untrusted(("1 2 3 4 5 6 7 8 9 " * (size // 18 + 1))[:size])


@cache
def _grey_clip() -> Media:
    import PIL.Image

    grey = PIL.Image.new("RGB", (112, 112), (128, 128, 128))
    return Media.video([grey] * 4, fps=4.0)  # a rate that no server assumes


@cache
def _shown(kind: str, second: bool) -> Prompt:
    """The question about one of two samples: a red or a blue image, a low tone or high beeps."""
    import PIL.Image

    if kind == "image":
        sample = Media.image(PIL.Image.new("RGB", (112, 112), (0, 0, 200) if second else (200, 0, 0)))
    else:
        step, rest = (0.8, 4_000) if second else (0.08, RATE)
        levels = [int(9_000 * math.sin(step * at)) * (at % RATE < rest) for at in range(RATE * (2 if second else 1))]
        sample = Media.audio(wav(struct.pack(f"<{len(levels)}h", *levels)))
    return Prompt((Message("user", (sample, _ASKED[kind][1])),))


class Prober:
    """Asks one server one question at a time, and notes in its dialect what it learns."""

    def __init__(self, dialect: Dialect, ask: Callable[[Body], Awaitable[tuple[Answer, float]]]) -> None:
        """`ask` sends a body; it gives the answer, and when the attempt began by the clock of the loop."""
        self._dialect, self._ask = dialect, ask
        self._served_at = self._refused_at = float("-inf")
        self._refusals = 0  # since the last reply
        self._refusal: Refusal | None = None  # of a harmless request, at `_refused_at`
        self._system_turn_checked = False
        self._dropped: dict[str, bool] = {}
        self._limits: set[int] = set()  # of replies that were refused to harmless requests, too
        self._lock = asyncio.Lock()

    def served(self) -> None:
        """The server has served some request now."""
        self._served_at, self._refusals = asyncio.get_running_loop().time(), 0

    async def taught(self, codec: ChatCodec, request: Request, body: Body, refusal: Refusal) -> bool:
        """Whether more is known of the server than when this request was sent.

        What the refusal blames is tried with a harmless request.
        """
        if blamed := self._dialect.blamed(refusal.message, refusal.fields, body.fields, body.roles):
            async with self._lock:
                if body.version == self._dialect.version:
                    await self._tried(codec, harmless_like(request, clip=blamed in RATES))
        return body.version != self._dialect.version

    async def taught_limit(self, codec: ChatCodec, request: Request, body: Body) -> bool:
        """Whether more is known than when this request was sent, whose longest reply was refused.

        The limit is that of a harmless request's refusal, and only if a harmless request is served with it.
        """
        async with self._lock:
            sent = request.sampling.max_tokens
            if body.version == self._dialect.version and sent not in self._limits:
                self._limits.add(sent)
                harmless = harmless_like(request).changed(max_tokens=sent)
                refusal = await self._answer(codec, harmless)
                most = longest_reply(refusal.message, sent) if isinstance(refusal, Refusal) else None
                if most and isinstance(await self._answer(codec, harmless.changed(max_tokens=most)), Reply):
                    self._dialect.cap(most)
        return body.version != self._dialect.version

    async def refusal_of_all(self, codec: ChatCodec, request: Request, began: float, status: int) -> Refusal | None:
        """How the server refuses even harmless requests, in whatever form; None if it serves them.

        Sends nothing where this is known already. `request` began at `began`, and was refused with `status`.
        """
        async with self._lock:
            # A 401 is the key's, unless the server has served something since. An account may end in a run, too.
            self._refusals += 1
            recent = 0.0 if status == 401 or self._refusals > _IN_A_ROW else _RECENT_S
            if self._served_at > began - recent:
                return None
            if self._refused_at >= began:
                return self._refusal
            learned = True
            while learned:
                outcome, body, learned = await self._tried(codec, harmless_like(request))
            if not isinstance(outcome, Refusal):
                return None
            bare, _ = await self._ask(codec.body(HARMLESS, {}, system_turn=False))
            if not isinstance(bare, Reply):
                self._refused_at, self._refusal = asyncio.get_running_loop().time(), outcome
                return outcome
            await self._find_field(codec, harmless_like(request), body)
            self.served()
            return None

    async def check_system_turn(self, codec: ChatCodec) -> None:
        """Some templates drop a system turn without a word: then a text has fewer tokens as two turns than as one."""
        async with self._lock:
            if self._system_turn_checked or not self._dialect.system_turn:
                return
            self._system_turn_checked, tokens = True, []
            for prompt in (COUNTED.prompt, COUNTED.prompt.without_system_turn()):
                outcome, _ = await self._ask(codec.encode(replace(COUNTED, prompt=prompt), self._dialect))
                count = codec.decode(outcome.body).prompt_tokens if isinstance(outcome, Reply) else 0
                if count <= PLACEHOLDER:
                    return
                tokens.append(count)
            if tokens[0] < 0.75 * tokens[1]:
                self._dialect.merge_system()

    async def dropped(self, codec: ChatCodec, kinds: Collection[str], reply: Generation) -> str:
        """What of these kinds does not reach the model: "images", "sounds", or empty.

        Some servers of a model that reads text drop them without a word. Then a prompt has as many tokens with one as
        without, and the model says the same of two. `reply` shows whether tokens are counted.
        """
        async with self._lock:
            for kind, (name, question) in _ASKED.items():
                if kind in kinds and kind not in self._dropped and reply.prompt_tokens > PLACEHOLDER:
                    self._dropped[kind] = False  # also where a question below is not answered
                    self._dropped[kind] = await self._drops(codec, kind, question)
                if kind in kinds and self._dropped.get(kind):
                    return name
        return ""

    async def _drops(self, codec: ChatCodec, kind: str, question: str) -> bool:
        bare = await self._said(codec, Prompt((Message("user", (question,)),)))
        first = bare and await self._said(codec, _shown(kind, False))
        if not (bare and first and PLACEHOLDER < first.prompt_tokens <= bare.prompt_tokens):
            return False
        second = await self._said(codec, _shown(kind, True))
        return second is not None and second.text == first.text

    async def serves_no_shorter(self, codec: ChatCodec, request: Request) -> bool:
        """Whether a request as long as this one is served with harmless text: then length is not the trouble."""
        return isinstance(await self._answer(codec, no_shorter(request)), Reply)

    async def _answer(self, codec: ChatCodec, request: Request) -> Answer:
        outcome, _ = await self._ask(codec.encode(request, self._dialect))
        if isinstance(outcome, Reply):
            self.served()
        return outcome

    async def _said(self, codec: ChatCodec, prompt: Prompt) -> Generation | None:
        outcome, _ = await self._ask(codec.encode(Request(prompt, Sampling(max_tokens=128)), self._dialect))
        return codec.decode(outcome.body) if isinstance(outcome, Reply) else None

    async def _tried(self, codec: ChatCodec, harmless: Request) -> tuple[Answer, Body, bool]:
        """What the server says to a harmless request, the request, and whether its dialect is known better now."""
        body = codec.encode(harmless, self._dialect)
        outcome, _ = await self._ask(body)
        if isinstance(outcome, Reply):
            self.served()
            return outcome, body, False
        said = outcome.refusal
        learned = said is not None and self._dialect.learn(said.message, said.fields, body.fields, body.roles)
        return outcome, body, learned

    async def _find_field(self, codec: ChatCodec, harmless: Request, body: Body) -> None:
        """Tries each field and the system turn alone, since a request without all of them is served."""
        wanted = codec.wanted(harmless, capped=True)
        for name in sorted(wanted, key=lambda name: name not in body.fields):
            sent = self._dialect.fields({name: wanted[name]})
            outcome, _ = await self._ask(codec.body(HARMLESS, sent, system_turn=False))
            if isinstance(outcome, Refusal):
                self._dialect.drop(name)
        outcome, _ = await self._ask(codec.body(HARMLESS, {}))
        if isinstance(outcome, Refusal):
            self._dialect.merge_system()
        if body.version == self._dialect.version and body.roles[-1] == "assistant":
            self._dialect.drop("continue_final_message")  # nothing else of the request is left
