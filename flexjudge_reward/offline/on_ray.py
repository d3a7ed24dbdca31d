"""`score`, `rerank` and `annotate` on Ray Data: many files, many judges, many machines. One machine needs no Ray.

    score_on_ray("s3://bucket/rows/", judge, "s3://bucket/scored/", RayPool(judges=8))

The input is a .parquet, .jsonl or .csv file (the last two also .gz or .zst), or a folder of files of one kind, where
pyarrow and every node can read it. The output is a folder of .parquet files, whose columns are those of `blocks.py`. Of
`annotate`, `kept=true` has the pairs, a data set as a trainer reads it, and `kept=false` the others.

    OUTPUT/*.parquet, OUTPUT/kept=true/*.parquet   the rows, a file for each block
    OUTPUT/_run.json                               the run that they belong to, and whether it is complete
    OUTPUT.checkpoint/                             which rows are written; removed at the end

Each judge of the pool is a process of its own: a client of a server, or an engine with a GPU of its own.

Promised: Ray Data's checkpoint writes every row once, also after the driver, a judge or a node was killed: the same
command continues, and judges again only what was not written, which a cache gives back. What a task of a failed run
writes late is removed before the output is complete. Another run's output is refused. What is missing is said before a
model loads: Ray, CPUs, GPUs, files, columns. With `keep_order` the files of an unbroken run, sorted by name, have the
order of the input; `file_row` sorts the rows of any run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from flexjudge_reward.data.rows import RowOptions
from flexjudge_reward.errors import ConfigError, EngineError, FlexJudgeError, MissingExtra
from flexjudge_reward.judge.judge import Judge
from flexjudge_reward.judge.plugins import imported
from flexjudge_reward.judge.summary import RunSummary
from flexjudge_reward.offline import dataset
from flexjudge_reward.offline.annotate import check_settings, layer_settings
from flexjudge_reward.offline.blocks import FILE_ROW, BlockRows, PairJob, ScoreJob
from flexjudge_reward.offline.pairs import Which, pair_format
from flexjudge_reward.offline.ray_files import OutputFolder, SourceFiles, written_blocks

_log = logging.getLogger("flexjudge_reward")
_FIRST = 64  # rows that are looked at before anything is judged
_CPUS_OF_A_JUDGE = 0.5  # it waits for its model or server
_CPUS_BESIDE = 2.0  # to read; and for the rows of a checkpoint, without which a resumed run waits for ever
_JUDGES = 2  # that need no GPU, by default
_PASSES = 3  # over a source: each but the first judges what a late task of a failed run made uncertain
_GIB = 1 << 30
_SMALLER = "Ray would wait for ever: take fewer judges, or add nodes"
_NOT_HERE = ("split", "config_name", "limit", "shuffle_seed")


@dataclass(frozen=True)
class RayPool:
    """Where a job runs on Ray, and in what parts."""

    address: str | None = None
    """Of a running cluster; by default that of RAY_ADDRESS, else a Ray of this machine, which ends with the job."""
    judges: int | None = None
    """How many work at once; by default one for each GPU, or 2 that need none."""
    block_rows: int = 512
    """Rows of one block: what a judge takes at a time, what one file has, and what a kill loses of each judge."""
    keep_order: bool = False
    """Whether the files by their names have the order of the input, which makes quick judges wait for slow ones."""
    plugins: tuple[str, ...] = ()
    """Modules or .py files that every process imports first, such as that of a format of the user's own."""


def score_on_ray(
    source: str | Path, judge: Judge, output: str | Path, pool: RayPool = RayPool(), **options: Unpack[RowOptions]
) -> RunSummary:
    """Judges every row of `source` and writes the results to the folder `output`; see `score.py`.

    Returns the counts of the whole output. `judge` is pickled and sent to every process of the pool.

    Raises:
        ConfigError: Ray is missing, or the cluster lacks CPUs or GPUs; the source is missing or empty, or none of its
            first 64 rows can be used (or, with `strict`, any); the output belongs to another run, or is complete.
        EngineError: the judge can answer nothing, or a process of the pool failed; what is written is kept.
    """
    return _scored(ScoreJob(str(source), judge, options), output, pool)


def rerank_on_ray(
    source: str | Path,
    judge: Judge,
    output: str | Path,
    pool: RayPool = RayPool(),
    seed: int = 0,
    **options: Unpack[RowOptions],
) -> RunSummary:
    """Ranks the candidates of every row; see `rerank.py`. Raises as `score_on_ray`."""
    return _scored(ScoreJob(str(source), judge, options, seed), output, pool)


def annotate_on_ray(
    source: str | Path,
    judge: Judge,
    output: str | Path,
    pool: RayPool = RayPool(),
    which: Which = "best",
    margin: float = 0.0,
    **options: Unpack[RowOptions],
) -> Counter[str]:
    """Writes the preference pairs of `source`; returns the counts of `annotate_file`. Raises as `score_on_ray`."""
    check_settings(which, margin)
    dataset.check_installed()
    job = PairJob(str(source), judge.with_format(pair_format(judge.format)), options, which, margin)
    _run(job, output, pool)
    counts: Counter[str] = Counter()
    for block in written_blocks(output, [FILE_ROW, "why"]):  # which has all rows about its rows
        counts.update(row["why"] or "pairs" for row in block)
        counts["rows"] += len({row[FILE_ROW] for row in block})
    return counts


def _scored(job: ScoreJob, output: str | Path, pool: RayPool) -> RunSummary:
    start = time.perf_counter()
    _run(job, output, pool)
    summary = RunSummary(seconds=time.perf_counter() - start)
    for block in written_blocks(output, ["failures", "error", *(["cached"] if job.seed is None else [])]):
        for row in block:
            summary.judged += len(row["failures"])
            summary.skipped += row["error"] is not None
            summary.cached += len(row["failures"]) if row.get("cached") else 0
            for failure in filter(None, row["failures"]):
                summary.failures[failure["kind"]] = summary.failures.get(failure["kind"], 0) + 1
    return summary


def _run(job: ScoreJob | PairJob, output: str | Path, pool: RayPool) -> None:
    """Judges what is not written yet."""
    ray = _ray()
    _check_options(job)
    files, place = SourceFiles.of(job.name), OutputFolder.of(output)
    place.check_apart(files)
    identity = job.judge.engine.identity()  # a server that is not there is known now
    with place.owned(), _connected(ray, pool):
        judges = _judges(ray, job.judge, str(identity.get("engine")), pool)
        _look_at_the_first(job, files)
        name = place.begin(_fingerprint(job, identity, files))
        for _ in range(_PASSES):
            with _settings(ray, place, pool), _own_errors(ray):
                _write(_judged(ray, job, files.dataset(ray), judges, pool), job, place, name, judges.size)
            if place.settled(name):
                return place.finish()
        raise EngineError(f"tasks of a failed run still write to {output}: end them, and run the same command again")


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    return ray


def _check_options(job: ScoreJob | PairJob) -> None:
    """Raises ConfigError for what needs all rows in one process, or one disk."""
    for name in _NOT_HERE:
        if job.options.get(name) is not None:
            raise ConfigError(f"{name} is not for Ray, which reads files in parts: make a file of these rows first")
    job.strict = bool(job.options.pop("strict", None))
    if (root := job.options.get("media_root")) is not None:
        job.options["media_root"] = root.absolute()  # the processes of the pool run in other folders
    if job.judge.record is not None:
        raise ConfigError("a record is a file of one machine: leave out record; the output has what the judge said")


def _look_at_the_first(job: ScoreJob | PairJob, files: SourceFiles) -> None:
    """Raises ConfigError if the source has no rows, lacks a column, or none of its first rows can be used."""
    import pyarrow

    try:
        tables = [table for table in files.first(_FIRST) if table.num_rows]
    except (OSError, ValueError) as error:  # a damaged file; those of pyarrow are ValueErrors
        raise ConfigError(f"{job.name} cannot be read: {_last_line(error)}") from None
    if not tables:
        raise ConfigError(f"{job.name} has no rows")
    whole = pyarrow.concat_tables(tables, promote_options="permissive")
    rows = BlockRows(job.name, whole.slice(0, _FIRST), job.options)
    rows.verify(job.check)
    job.begin(list(rows.read(job.check)))


def _fingerprint(job: ScoreJob | PairJob, identity: dict[str, object], files: SourceFiles) -> str:
    """What must be equal for a run to be continued: the files, the options, the format with its texts, the judge."""
    judge = job.judge
    layers = [layer_settings(layer) for layer in judge.format.layers()]
    read = {name: value for name, value in job.options.items() if value is not None and name != "media_root"}
    who = json.dumps(identity, sort_keys=True, default=str)
    run = repr((files.versions, sorted(read.items()), layers, judge.sampling, who, job.settings()))
    return hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()


class _Worker:
    """One member of the pool: a judge of its own."""

    def __init__(self, job: bytes, plugins: tuple[str, ...]) -> None:
        import ray

        with _by_name():
            for name in plugins:
                imported(name)
            self._job = ray.cloudpickle.loads(job)  # only now: its format may be of a plugin

    def __call__(self, table: Any) -> Iterator[Any]:
        with _by_name():
            yield from self._job(table)


class _Stopped(Exception):
    """An error of this package in a process of the pool. Of what is raised there Ray keeps a text only."""


@contextmanager
def _by_name() -> Iterator[None]:
    """Errors of this package as a text that `_own_errors` reads."""
    try:
        yield
    except FlexJudgeError as error:
        raise _Stopped(f"{type(error).__name__}: {error}") from None


@contextmanager
def _own_errors(ray: Any) -> Iterator[None]:
    """Errors of the pool as errors of this package."""
    try:
        yield
    except ray.exceptions.RayError as error:
        found = re.findall(r"_Stopped: (\w+): (.*)", str(error))
        kind, text = found[-1] if found else ("EngineError", f"a process of the pool failed: {_last_line(error)}")
        kept = "what is written is kept, and the same command continues"
        raise (ConfigError if kind == "ConfigError" else EngineError)(f"{text} ({kept})") from None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _judged(ray: Any, job: ScoreJob | PairJob, source: Any, judges: _Judges, pool: RayPool) -> Any:
    """The data set of results, which is judged when it is written."""
    # Ray makes one block of many small files: then one judge works, and nothing is written before the end.
    return source.repartition(target_num_rows_per_block=pool.block_rows).map_batches(
        _Worker,
        fn_constructor_args=(ray.cloudpickle.dumps(job), tuple(pool.plugins)),
        compute=ray.data.ActorPoolStrategy(size=judges.size),
        batch_size=None,  # a whole block: one call of the engine, one file
        batch_format="pyarrow",
        num_cpus=_CPUS_OF_A_JUDGE,
        num_gpus=judges.gpus,
    )


def _write(judged: Any, job: ScoreJob | PairJob, place: OutputFolder, name: str, most: int) -> None:
    """Writes each block when it is judged, `most` at a time."""
    from ray.data.datasource import FilenameProvider

    # No CPU is reserved: where few are left, Ray gives them to what reads, and would write nothing before the end.
    judged.write_parquet(
        place.path,
        filesystem=place.filesystem,
        partition_cols=job.partition or None,
        filename_provider=FilenameProvider(name, "parquet"),
        ray_remote_args={"num_cpus": 0},
        concurrency=most,
    )


class _Judges(NamedTuple):
    size: int
    gpus: int  # of each


def _judges(ray: Any, judge: Judge, engine: str, pool: RayPool) -> _Judges:
    """The size of the pool. Raises ConfigError: the cluster is too small, and Ray would wait for ever."""
    total = ray.cluster_resources()
    local = engine == "transformers" and total.get("GPU") and getattr(judge.engine.innermost(), "device", None) != "cpu"
    gpus = 1 if engine == "vllm" or local else 0
    count = pool.judges or (max(1, int(total.get("GPU", 0))) if gpus else _JUDGES)
    need = {"CPU": count * _CPUS_OF_A_JUDGE + _CPUS_BESIDE, "GPU": count * gpus, "memory": _GIB}
    lacking = [
        f"{total.get(name, 0) / unit:g} {name if unit == 1 else 'GiB of memory'}s".replace("memorys", "memory")
        + f" and {need[name] / unit:g} are needed"
        for name, unit in (("CPU", 1), ("GPU", 1), ("memory", _GIB))
        if total.get(name, 0) < need[name]
    ]
    if lacking:
        judges = f"{count} judge{'s' * (count > 1)}"
        raise ConfigError(f"the Ray cluster is too small for {judges}: it has {'; '.join(lacking)}. {_SMALLER}")
    free = ray.available_resources()
    if in_use := [name for name in ("CPU", "GPU") if free.get(name, 0) < need[name]]:
        _log.warning("the cluster's %ss are in use: judging begins when other jobs have ended", in_use[0])
    return _Judges(count, gpus)


@contextmanager
def _connected(ray: Any, pool: RayPool) -> Iterator[None]:
    """A connection to the cluster. Raises ConfigError."""
    if ray.is_initialized():
        yield
        return
    address = pool.address or os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            _check_address(address)
            ray.init(address, logging_level="warning")
        else:
            cpus = int((pool.judges or _JUDGES) * _CPUS_OF_A_JUDGE + _CPUS_BESIDE) + 1
            ray.init("local", num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, logging_level="warning")
    except Exception as error:  # Ray has no common base, and raises plain ones, too
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {_last_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises OSError if no one listens: Ray would try for a minute. And ValueError for what is no address."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _settings(ray: Any, place: OutputFolder, pool: RayPool) -> Iterator[None]:
    """Ray Data's settings for this job, put back at its end."""
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config, context.execution_options.preserve_order, context.max_errored_blocks
    context.checkpoint_config = CheckpointConfig(
        FILE_ROW, place.checkpoint, delete_checkpoint_on_success=False, override_filesystem=place.filesystem
    )
    context.execution_options.preserve_order = pool.keep_order
    context.max_errored_blocks = 0  # a block that fails ends the run: none is left out
    try:
        with warnings.catch_warnings():  # of the last blocks, for which there are more judges and writers than work
            warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")
            yield
    finally:
        context.checkpoint_config, context.execution_options.preserve_order, context.max_errored_blocks = before
