"""Each image crosses the wire once, where the server can be given its name."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from flexjudge_reward import Media, Message, Prompt, Request, Sampling, ServerEngine
from support.fault_server import Fault, FaultServer

VLLM = [{"id": "judge", "root": "/weights", "owned_by": "vllm"}]
MISS = Fault(status=400, body='{"error": {"message": "Cache miss for image at index 0 but data is not provided."}}')


class Server(FaultServer):
    """Holds what it was sent, until it forgets all of it at the item `forgets`.

    `takes` "names", "bytes" (or "crash": it fails at a name) or "nothing".
    """

    def __init__(self, takes: str = "names", forgets: str = "", models: Any = VLLM) -> None:
        super().__init__(models=models)
        self.takes, self.forgets = takes, forgets
        self.held: dict[str, str] = {}
        self.by_name = self.by_bytes = 0

    def respond(self, name: str, body: dict[str, Any]) -> Fault | None:
        if name == self.forgets and not self.attempts[name]:
            self.held.clear()
        content = body["messages"][-1]["content"]
        for part in content if isinstance(content, list) else []:  # a text is a harmless request
            if part["type"] != "image_url":
                continue
            uri, uuid = part["image_url"]["url"], part.get("uuid")
            self.by_name, self.by_bytes = self.by_name + (not uri), self.by_bytes + bool(uri)
            if not uri and self.takes == "bytes":
                return Fault(status=400, body='{"error": {"message": "image_url must not be empty"}}')
            if not uri and self.takes == "crash":
                return Fault(status=500, body='{"error": {"message": "NoneType has no attribute shape"}}')
            if not uri and (uuid not in self.held or self.takes == "nothing"):
                return MISS
            self.held[uuid] = uri
        too_long = body.get("max_tokens", 0) > 5000
        return Fault(status=400, body='{"error": {"message": "max_tokens is too large"}}') if too_long else None


def requests(pictures: int, each: int, **sampling: Any) -> list[Request]:
    images = [Media.image(Image.new("RGB", (32, 32), (number, 0, 0))) for number in range(pictures)]
    return [
        Request(Prompt((Message("user", (images[n // each], f"item {n} ")),)), Sampling(**sampling))
        for n in range(pictures * each)
    ]


@pytest.mark.parametrize(
    ("server", "most_bytes", "most_names"),
    [
        pytest.param(Server(), 3, 24, id="once_per_group"),  # on a stalled machine a name may come before its image
        pytest.param(Server(forgets="item 12"), 5, 40, id="forgotten_pictures_are_sent_again"),
        pytest.param(Server("bytes"), 24, 7, id="a_server_that_takes_no_names"),
        pytest.param(Server("crash"), 24, 7, id="a_server_that_fails_at_names"),
        pytest.param(Server(models=[{"id": "judge"}]), 24, 0, id="another_server"),
    ],
)
def test_each_picture_is_sent_once(
    server: Server, most_bytes: int, most_names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexjudge_reward.engines.references._FIRST_S", 0.02)
    with server, ServerEngine(server.url, concurrency=2) as engine:
        assert all(reply.failure is None for reply in engine.generate(requests(3, 8)))
    assert server.by_bytes <= most_bytes and server.by_name <= most_names


def test_a_server_that_holds_nothing_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexjudge_reward.engines.references._FIRST_S", 0.0001)
    with Server("nothing") as server, ServerEngine(server.url) as engine:
        assert all(reply.failure is None for reply in engine.generate(requests(4, 16)))
        named = server.by_name
        assert all(reply.failure is None for reply in engine.generate(requests(4, 16)))
    assert server.by_name == named


def test_a_refusal_for_another_reason_does_not_end_it() -> None:
    with Server() as server, ServerEngine(server.url, concurrency=2) as engine:
        assert all(reply.failure is None for reply in engine.generate(requests(1, 8, max_tokens=6000)))
        assert all(reply.failure is None for reply in engine.generate(requests(1, 8)))
    assert server.by_bytes <= 4  # of 16: the first two rows are refused, and both are sent again
