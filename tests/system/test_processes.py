"""What is promised across processes: fresh interpreters, pickles, locks, kills, signals.

A case here starts a process. What one process promises is in tests/unit.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from flexjudge_reward import (
    ConfigError,
    Example,
    FlexJudgeReward,
    Judge,
    Media,
    Pointwise,
    Record,
    ScriptedEngine,
    read_record,
    score_file,
)
from flexjudge_reward.engines.shares import Share
from flexjudge_reward.report.render import report
from support import pages
from support.jsonl import write
from support.judging import scores

NANO = ("--model", "nano", "--cache", "off")


def judge(record: Record | None = None) -> Judge:
    return Judge(Pointwise(), ScriptedEngine(scores), record=record)


# ---- a fresh interpreter


def test_adapters_load_nothing_heavy_and_no_trainer() -> None:
    code = "import sys, flexjudge_reward.trainers.verl, flexjudge_reward.trainers.slime; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ray", "aiohttp", "numpy", "trl"}.isdisjoint(done.stdout.split())


# ---- the reward function


def test_a_reward_function_loads_nothing_and_names_are_equal_in_every_process() -> None:
    code = (
        "import sys; from flexjudge_reward import FlexJudgeReward as R;"
        "print([R().__name__ for _ in range(3)], R(name='mine').__name__);"
        "from flexjudge_reward.trainers.trl import flexjudge; print(flexjudge.__name__);"
        "print({'torch', 'transformers', 'vllm', 'trl'} & set(sys.modules))"
    )
    found = [subprocess.check_output([sys.executable, "-c", code], text=True) for _ in range(2)]
    names = "['flexjudge_reward', 'flexjudge_reward_2', 'flexjudge_reward_3'] mine\nflexjudge\n"
    assert found == [f"{names}set()\n"] * 2


def _in_worker(one: FlexJudgeReward, sent: Any) -> None:
    sent.put((one.__name__, one(completions=["2", "9"], prompts=["q", "q"], completion_ids=[[1], [2]], other=[1, 2])))


def test_a_reward_function_pickles_into_a_spawned_worker() -> None:
    context = multiprocessing.get_context("spawn")
    sent = context.Queue()
    worker = context.Process(target=_in_worker, args=(FlexJudgeReward(judge(), name="mine"), sent))
    worker.start()
    name, rewards = sent.get(timeout=240)
    worker.join(30)
    assert (name, rewards, worker.exitcode) == ("mine", pytest.approx([1 / 9, 8 / 9]), 0)


# ---- keys


def test_keys_agree_between_processes() -> None:
    tests = Path(__file__).parents[1]
    code = (
        f"import sys; sys.path[:0] = {[str(tests / 'unit' / 'engines'), str(tests)]!r};"
        "import test_cache_keys as t; print(*[make() for make in t.RELEVANT.values()])"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("0", "77")
    ]
    one, other = [child.communicate()[0].split() for child in children]
    assert one == other and len(one) > 20 and [child.returncode for child in children] == [0, 0]


# ---- records and outputs


def answers(path: Path) -> list[str]:
    return [line["candidates"][0][0] for line in read_record(path)]


WRITER = """
import sys
from pathlib import Path
from flexjudge_reward import Example, Judge, Pointwise, Record, ScriptedEngine
path, name, batches, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
judge = Judge(Pointwise(), ScriptedEngine(lambda r: "<think></think><answer>7</answer>"), record=Record(path))
for batch in range(batches):
    judge([Example("q", [f"{name} {batch} {n} " + "x" * size]) for n in range(3)])
    print(batch, flush=True)
"""


def writer(path: Path, name: str, batches: int, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writers_lose_nothing_that_was_written(tmp_path: Path) -> None:
    """Each is killed while it writes long lines; what it had reported is there, and the next one continues."""
    path, reported = tmp_path / "record.jsonl", []
    for number in range(2):
        with writer(path, f"w{number}", 10_000, 300_000) as process:
            assert process.stdout is not None
            reported += [f"w{number} {int(process.stdout.readline())}" for _ in range(3)]
            time.sleep(0.01 * number)
            process.send_signal(signal.SIGKILL)
            reported += [f"w{number} {int(line)}" for line in process.stdout]
    judge(Record(path))([Example("q", ["7 last"])])
    found = answers(path)
    assert found[-1] == "7 last"
    names = {tuple(answer.split()[:3]) for answer in found[:-1]}
    assert names >= {(*batch.split(), str(n)) for batch in reported for n in range(3)}
    assert all(len(answer) > 300_000 for answer in found[:-1]) and len(names) == len(found) - 1


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    writers = [writer(path, f"w{number}", 40, 3000) for number in range(3)]
    assert [process.wait(240) for process in writers] == [0] * 3
    for process in writers:
        assert process.stdout is not None
        process.stdout.close()
    assert len(path.read_bytes().splitlines()) == 360  # none empty, none joined
    expected = {f"w{w} {batch} {n}" for w in range(3) for batch in range(40) for n in range(3)}
    assert {" ".join(answer.split()[:3]) for answer in answers(path)} == expected


_RANK = """
import sys
from PIL import Image
from flexjudge_reward import Example, Judge, Media, Pointwise, Record, ScriptedEngine
reply = ScriptedEngine(lambda request: "<think>so</think><answer>7</answer>")
pictures = [Media.image(Image.new("RGB", (300, 300), (number, 0, 0))) for number in range(60)]
for picture in pictures:
    Judge(Pointwise(), reply, record=Record(sys.argv[1]))([Example(["q", picture], ["a"])])
"""


def test_ranks_share_the_thumbnails(tmp_path: Path) -> None:
    words, ranks = [sys.executable, "-c", _RANK, str(tmp_path / "r.jsonl")], []
    for number in range(3):
        environment = {**os.environ, "RANK": str(number)}
        ranks.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE))
    assert [(rank.communicate()[1], rank.returncode) for rank in ranks] == [(b"", 0)] * 3
    files = list((tmp_path / "r.media").iterdir())
    assert len(files) == 60 and all(Media.image(file.read_bytes()).is_usable for file in files)
    rows = json.loads(pages.Structure(report(tmp_path).html).data)["rows"]
    assert len(rows) == 180 and all(row["question"][1]["picture"] is not None for row in rows)


def test_ctrl_c_ends_a_server_quietly(tmp_path: Path) -> None:
    pages.write(tmp_path / "r.jsonl", [pages.line()])
    words = [sys.executable, "-m", "flexjudge_reward", "report", str(tmp_path), "--serve", "0"]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(words, **streams, preexec_fn=heard) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        port = int(said.partition("http://127.0.0.1:")[2].partition(";")[0])
        with urlopen(f"http://127.0.0.1:{port}/", timeout=20) as reply:
            assert reply.status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("", "", 0)


def test_a_lock_that_a_kill_left_is_no_obstacle(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"id": 1, "question": "0 q", "candidates": ["9 a", "3 b"]}])
    output = source.with_name("out.jsonl")
    program = (
        "import os, sys; from pathlib import Path; from flexjudge_reward.offline.output import owned;"
        "held = owned(Path(sys.argv[1])); held.__enter__(); print('held', flush=True); sys.stdin.read(1); os._exit(9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdin and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"is being written by process {other.pid}"):
            score_file(source, Judge(Pointwise(), ScriptedEngine([])), output)
        other.stdin.write("x")
        other.stdin.flush()
        assert other.wait(30) == 9
    assert output.with_name("out.jsonl.lock").exists()
    score_file(source, judge(), output)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


# ---- the command line


def test_the_package_is_a_program() -> None:
    shown = subprocess.check_output([sys.executable, "-m", "flexjudge_reward", "--version"], text=True)
    assert shown.startswith("flexjudge ")


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
from flexjudge_reward import Request, ScriptedEngine
import flexjudge_reward.engines.transformers as transformers
def reply(request):
    time.sleep(float(sys.argv[1]))
    return "<think>x</think><answer>7</answer>"
transformers.TransformersEngine = lambda *_, **__: ScriptedEngine(reply)
from flexjudge_reward.cli.main import main
raise SystemExit(main(sys.argv[2:]))
"""


def program(seconds: float, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(seconds), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    """As `| head -1` does."""
    rows = [{"id": n, "question": "q" * 200, "answer": f"{n}"} for n in range(3000)]
    with program(0, "score", str(write(tmp_path / "in.jsonl", rows)), *NANO) as running:
        assert running.stdout is not None and json.loads(running.stdout.readline())["scores"] == [7]
        running.stdout.close()
        assert running.stderr is not None
        said = running.stderr.read()
    assert running.returncode == 0 and "Traceback" not in said and "Exception" not in said


def test_an_interruption_is_one_line(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "answer": f"{n}"} for n in range(3000)]
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with program(0.01, "score", str(source), "-o", str(output), *NANO) as running:
        assert running.stderr is not None
        while "The judge is" not in running.stderr.readline():
            pass
        os.kill(running.pid, signal.SIGINT)
        said = running.stderr.read()
    assert running.returncode == 130 and "Traceback" not in said and "the same command continues" in said


# ---- the limit of a server


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one = Share("http://judge/v1", 64)
    yield one
    one.leave()


# The parent dies only after its child runs Python: until then the child holds what it forgets right after the fork.
FORK = "if not os.fork(): os.write(end, b'.'); time.sleep(60); os._exit(0)\n"

KILLED = {
    "alone": "",
    "its_forked_worker_lives": f"{FORK}os.read(begin, 1)\n",
    "forked_while_it_had_the_lock": f"with one._locked():\n  {FORK}os.read(begin, 1)\n",
}


@pytest.mark.parametrize("forks", [pytest.param(program, id=name) for name, program in KILLED.items()])
def test_what_a_killed_process_held_is_free(forks: str, share: Share) -> None:
    program = (
        "import os, signal, time\n"
        "from flexjudge_reward.engines.shares import Share\n"
        "os.setpgid(0, 0)\n"
        "begin, end = os.pipe()\n"
        "one = Share('http://judge/v1', 64)\n"
        f"assert one.update(500, 0) == 64\n{forks}"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert ended.wait(60) == -signal.SIGKILL
        assert share.update(500, 0) == 64
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ended.pid, signal.SIGKILL)
