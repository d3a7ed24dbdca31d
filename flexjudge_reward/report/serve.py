"""A report that follows a run, for a browser on this machine.

Promised: it listens on 127.0.0.1 and answers only requests that name it so (another site's name that leads here gets
nothing), for two addresses: the page and the state of its files. The page is made anew when its files change, and takes
a fifth of the time at most.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.report.lines import files_of
from flexjudge_reward.report.render import Report, report

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_REST = 5  # times what a page took, before the next is made


class Following:
    """The newest page of a source. Thread-safe."""

    def __init__(self, source: Path, media_root: Path | None = None) -> None:
        self.source, self._root, self._lock = source, media_root, threading.Lock()
        self._state, self._made, self._due = "", None, 0.0
        self._report: Report | None = None

    def state(self) -> str:
        """What the page of now is made of: it changes when there is more to see."""
        with self._lock:
            return self._current() if time.monotonic() >= self._due else self._state

    def page(self) -> str:
        """The page. Raises ConfigError while there is nothing to show."""
        with self._lock:
            state = self._current()
            if self._report is None or (state != self._state and time.monotonic() >= self._due):
                start = time.monotonic()
                self._report, self._state = report(self.source, self._root, live=state), state
                self._due = time.monotonic() + _REST * (time.monotonic() - start)
            return self._report.html

    def _current(self) -> str:
        try:
            files = [file for _, file in files_of(self.source)]
            return "-".join(str(size) for size in [len(files), *(file.stat().st_size for file in files)])
        except (ConfigError, OSError):  # there is nothing yet, or it got its final name just now
            return ""


class Handler(BaseHTTPRequestHandler):
    """Answers a browser of this machine."""

    server: Server
    server_version, sys_version = "flexjudge", ""

    def do_GET(self) -> None:
        """The page, or the state of its files."""
        following = self.server.following
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "this page is for a browser on the same machine")
        elif self.path == "/state":
            self._answer(HTTPStatus.OK, following.state())
        elif self.path == "/":
            try:
                self._answer(HTTPStatus.OK, following.page(), "html")
            except (ConfigError, OSError) as error:
                self._answer(HTTPStatus.OK, f"There is nothing to show yet: {error}", Refresh="2")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here")

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not noted."""

    def _answer(self, status: HTTPStatus, text: str, kind: str = "plain", **more: str) -> None:
        data = text.encode()
        self.send_response_only(status)
        for name, value in {**_HEADERS, **more}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A server of one report; port 0 takes a free one. Raises ConfigError: the port is taken or not allowed."""

    daemon_threads = True

    def __init__(self, source: Path, port: int, media_root: Path | None = None) -> None:
        self.following = Following(source, media_root)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot serve on port {port} of 127.0.0.1: {error}; give another, --serve PORT"
            ) from None

    def server_bind(self) -> None:
        """Without looking up the machine's name, which may take seconds and which no page needs."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]  # type: ignore[assignment]
