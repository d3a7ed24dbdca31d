"""A judge server that sleeps as vLLM does, and may wake damaged: `python sleeping_server.py FOLDER --port N ...`

FOLDER/plan.json says what goes wrong and what mends it, FOLDER/events what happened, with a line per event. A reply
from a damaged server says so, so that a test sees whether one was taken.

    damage      "tokens", "logprobs", "again" (only what it was asked before), "awake" (it does not fall asleep),
                "dies" or "hangs" (at the wake), or nothing
    mended_by   "reset", "restart" or "nothing"
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class State:
    """Of the whole server."""

    asleep = damaged = False
    seen: ClassVar[set[str]] = set()


def note(event: str) -> None:
    with (FOLDER / "events").open("a") as file:
        file.write(event + "\n")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        if self.path == "/is_sleeping":
            self.say({"is_sleeping": State.asleep})
        elif self.path == "/v1/models":
            self.say({"data": [{"id": "judge", "root": "/weights", "owned_by": "vllm"}]})
        else:
            self.say({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, plan = self.path.partition("?")[0], json.loads((FOLDER / "plan.json").read_text())
        if path == "/v1/chat/completions":
            self.say(answer(body.decode(), plan))
            return
        note(path.removeprefix("/") + ("" if path != "/sleep" else self.path.removeprefix("/sleep")))
        if path == "/sleep":
            State.asleep = plan["damage"] != "awake"
        elif path == "/wake_up":
            if plan["damage"] == "dies":
                os._exit(1)
            if plan["damage"] == "hangs":
                time.sleep(60)
            State.asleep, State.damaged = False, bool(plan["damage"])
        elif path == "/reset_prefix_cache" and plan["mended_by"] == "reset":
            State.damaged, State.seen = False, set()
        self.say({})

    def say(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def answer(body: str, plan: dict[str, str]) -> dict[str, Any]:
    assert not State.asleep
    wrong = State.damaged and (plan["damage"] != "again" or body in State.seen)
    State.seen.add(body)
    text = "damaged" if wrong else "<think>whole</think><answer>7</answer>"
    tokens = [text, "!"] if wrong and plan["damage"] != "logprobs" else ["<think>", "7"]
    logprobs = [{"token": token, "logprob": -0.3 if wrong else -0.1, "top_logprobs": []} for token in tokens]
    if "What colour is the picture?" not in body:  # else it is asked whether it sees images, once
        note("asked" if "logprobs" in body else f"judged by a {'damaged' if State.damaged else 'whole'} one")
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 500 + 64 * body.count("image_url"), "completion_tokens": 2}
    return {"choices": [{**choice, "logprobs": {"content": logprobs}}], "usage": usage}


def main() -> None:
    started = (FOLDER / "events").exists()
    plan = json.loads((FOLDER / "plan.json").read_text())
    State.damaged = started and plan["mended_by"] == "nothing"
    note("started")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
