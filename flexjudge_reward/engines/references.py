"""Which images one server holds, so that they are sent by name: each crosses the wire once per group.

vLLM keeps the media that it has read under the `uuid` of their part, and takes the name alone afterwards. A server that
has forgotten a picture, or a router that sends the request to another replica, answers with an error; then the bytes
are sent again. A server that keeps nothing is found out by that, and gets bytes from then on.

    one request of a group --bytes--> the others wait a moment --name--> a reply
                                                               --name--> "cache miss" --later--> name --at last--> bytes

The name is the hash of the content, so that another picture never has it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Collection, Sequence

from flexjudge_reward.media.base import Media

_MISS = re.compile(r"cache miss", re.IGNORECASE)
_FIRST_S = 0.03  # after which a server has read the bytes of another request, as a rule
_TURNS = 5  # the most waits for it, each twice as long
NEVER = 99
"""In place of the number of misses: the server refused a request that named media with other words than a miss."""
_HELD = 4096  # pictures that a server is trusted to hold
_ENOUGH = 16  # misses that show that it holds none
_log = logging.getLogger("flexjudge_reward")


class References:
    """What one server was sent. Everything here runs on one event loop."""

    def __init__(self, where: str) -> None:
        self._where, self._usable = where, True
        self._sent: dict[str, float] = {}  # when the bytes of each were last sent, by digest: media hold their pixels
        self._served = self._missed = 0

    async def turn(self, media: Sequence[Media], misses: int) -> frozenset[Media]:
        """What a request is to name, after it waited for the bytes that another one sends.

        `misses` is how often the server did not know what this request named.
        """
        if not media or not self._usable:
            return frozenset()
        now = asyncio.get_running_loop().time()
        latest = 32 * _FIRST_S if misses else math.inf  # it was read by then, and so is forgotten
        hoped = [one for one in media if one.digest in self._sent and now - self._sent[one.digest] < latest]
        known = frozenset(hoped if misses <= _TURNS else ())
        for one in media:
            if one not in known:
                self._sent[one.digest] = now
        while len(self._sent) > _HELD:
            del self._sent[next(iter(self._sent))]
        if known:
            await asyncio.sleep(_FIRST_S * 2**misses if misses else 0.0)
            while (unread := self._read_at(known) - asyncio.get_running_loop().time()) > 0:  # `made` may put it off
                await asyncio.sleep(unread)
        return known

    def _read_at(self, media: Collection[Media]) -> float:
        return max(self._sent.get(one.digest, 0.0) for one in media) + _FIRST_S

    def made(self, media: Media) -> None:
        """Its bytes go out only now: encoding them took its time."""
        if media.digest in self._sent:
            self._sent[media.digest] = asyncio.get_running_loop().time()

    def served(self, named: bool, misses: int) -> None:
        """A request has its reply, after so many misses; `named` says whether it named media then."""
        self._served += named
        if misses and not named:
            self._missed += 1
            if misses == NEVER or (self._missed >= _ENOUGH and self._missed > 4 * self._served):
                self._usable = False
                _log.info("the judge server at %s keeps no images by name: they are sent each time", self._where)


def names_miss(message: str) -> bool:
    """Whether a refusal says that the server does not hold what a request named."""
    return _MISS.search(message) is not None
