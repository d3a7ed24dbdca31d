"""A real Chromium for the tests of pages, driven by its DevTools protocol: what a page does, says and asks for."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0""".split()
_START, _REPLY = 60, 60  # seconds


class Browser:
    """One page. `said` is what it wrote to its console, `asked` the addresses it requested, data URIs apart."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        flags = [*_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.said: list[str] = []
        self.asked: list[str] = []
        self._loop, self._number = asyncio.new_event_loop(), 0
        self._loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._folder.cleanup()

    def open(self, address: str) -> float:
        """Opens a page and waits until its script has run; seconds from the request to the first drawn list."""
        self.said.clear()
        self.asked.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready === 'yes'")
        return (
            float(
                self.evaluate("new Promise(r => requestAnimationFrame(() => setTimeout(() => r(performance.now()))))")
            )
            / 1e3
        )

    def evaluate(self, code: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. Raises AssertionError for one that throws."""
        reply = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait(self, code: str, seconds: float = _REPLY) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(code):
            assert time.monotonic() < end, f"not true after {seconds} s: {code}"
            time.sleep(0.05)

    def key(self, name: str, code: int = 0) -> None:
        """Presses a key."""
        text = {"text": name} if len(name) == 1 else {"text": "\r"} if name == "Enter" else {}
        key = {"key": name, "windowsVirtualKeyCode": code or (ord(name.upper()) if len(name) == 1 else 0)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def screen(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """The size of the window, and its colours."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, file: Path) -> None:
        """What is seen, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; notes the events that come before its reply."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), _REPLY))

    async def _connect(self) -> None:
        import aiohttp

        file, end = Path(self._folder.name, "DevToolsActivePort"), time.monotonic() + _START
        while not (file.exists() and file.read_text().count("\n")):
            assert time.monotonic() < end and self._process.poll() is None, "Chromium does not start"
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as reply:
            page = next(one for one in await reply.json() if one["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(what)[:500])
        if event == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {what}")
        if event == "Network.requestWillBeSent" and not (url := what["request"]["url"]).startswith(("data:", "about:")):
            self.asked.append(url)
