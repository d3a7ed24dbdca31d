"""The files of a job on Ray: those that it reads, and the folder that it writes, on any file system of pyarrow.

Promised: a folder is the output of one run. Another run, a complete one and other files are refused, and a checkpoint
counts only with the output that it is of. `_run.json` says which run that is; it appears whole. Once it says that the
run is complete, each file has a checkpoint, each checkpoint has its files, and a row is in one of them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexjudge_reward.errors import ConfigError
from flexjudge_reward.offline.blocks import FILE_ROW
from flexjudge_reward.offline.output import owned

_TASK_FILE = re.compile(r"(.+_[0-9]{6,})-[0-9]+\.parquet")
_PENDING = ".pending"  # what Ray adds to the name of a checkpoint whose files are not complete


def filesystem_of(place: str | Path) -> tuple[Any, str]:
    """The file system of a path or an address, and the path there. Raises ConfigError."""
    from pyarrow import fs

    if "://" not in str(place):
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(place))
    try:
        system, path = fs.FileSystem.from_uri(str(place))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(place)!r} cannot be reached: {str(error).splitlines()[-1]}") from None
    return system, path.rstrip("/")


def _listed(filesystem: Any, path: str) -> list[Any]:
    """The files of a folder, or the file that it is, by their names. Raises ConfigError."""
    from pyarrow import fs

    try:
        found = filesystem.get_file_info(path)
        if found.type == fs.FileType.Directory:
            below = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            return sorted((one for one in below if one.type == fs.FileType.File), key=lambda one: one.path)
        return [found] if found.type == fs.FileType.File else []
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be read: {str(error).splitlines()[-1]}") from None


@dataclass(frozen=True)
class SourceFiles:
    """The files of the source."""

    filesystem: Any
    folder: str
    is_folder: bool  # else it is one file in it
    paths: list[str]
    versions: list[tuple[str, int, int]]
    """Name, size and time of change."""

    @classmethod
    def of(cls, source: str) -> SourceFiles:
        """Raises ConfigError: there are none, or of several kinds."""
        filesystem, path = filesystem_of(source)
        found = [one for one in _listed(filesystem, path) if not one.base_name.startswith(("_", "."))]
        kinds = {one.path: _kind(one.base_name) for one in found}
        known = sorted({kind for kind in kinds.values() if kind})
        if not known:
            raise ConfigError(f"no .parquet, .jsonl or .csv files in {source!r}, which is what a job on Ray reads")
        if len(known) > 1:
            raise ConfigError(f"{source!r} has files of the kinds {' and '.join(known)}: keep them in folders apart")
        found = [one for one in found if kinds[one.path]]
        is_folder = found[0].path != path
        folder = path if is_folder else path.rpartition("/")[0]
        versions = [(one.path.removeprefix(folder), one.size, one.mtime_ns or 0) for one in found]
        return cls(filesystem, folder, is_folder, [one.path for one in found], versions)

    def dataset(self, ray: Any) -> Any:
        """Their rows, read by the cluster when they are wanted."""
        return ray.data.read_datasource(self._source())

    def first(self, most: int) -> list[Any]:
        """Tables with at least so many of the first rows, or all, read by this process."""
        tables: list[Any] = []
        for task in self._source().get_read_tasks(len(self.paths)):
            for table in task():
                tables.append(table)
                most -= table.num_rows
                if most <= 0:
                    return tables
        return tables

    def _source(self) -> Any:
        from flexjudge_reward.offline.ray_source import FileRows

        return FileRows(self.paths, self.folder, self.filesystem)


def _kind(name: str) -> str:
    suffixes = [suffix for suffix in Path(name).suffixes if suffix not in (".gz", ".zst")]
    return {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv"}.get((suffixes or [""])[-1], "")


@dataclass(frozen=True)
class OutputFolder:
    """The folder of the output, and the run that it belongs to."""

    filesystem: Any
    path: str

    @classmethod
    def of(cls, output: str | Path) -> OutputFolder:
        """Raises ConfigError: the address cannot be reached."""
        return cls(*filesystem_of(output))

    @property
    def checkpoint(self) -> str:
        """The folder that says which rows are written."""
        return f"{self.path}.checkpoint"

    def owned(self) -> AbstractContextManager[None]:
        """Keeps other jobs of this machine from a local output. Raises ConfigError."""
        local = self.filesystem.type_name == "local"
        return owned(Path(f"{self.path}.run")) if local else nullcontext()

    def check_apart(self, source: SourceFiles) -> None:
        """Raises ConfigError if the output would become part of the source, which a resumed run would then read."""
        same = self.filesystem.type_name == source.filesystem.type_name
        if same and any(f"{path}/".startswith(f"{self.path}/") for path in source.paths):
            raise ConfigError(f"the source is in the output {self.path!r}: give another place")
        if same and source.is_folder and f"{self.path}/".startswith(f"{source.folder}/"):
            raise ConfigError(f"the output {self.path!r} is in the source: give another place")

    def begin(self, run: str) -> str:
        """What the names of the run's files begin with. Raises ConfigError: another run's output, or a complete one."""
        files = _listed(self.filesystem, self.path)
        state = self._state() if any(one.path == self._file for one in files) else None
        if state is None:
            if files:
                raise ConfigError(f"{self.path!r} has other files in it: give a new or empty folder as output")
            self._forget()  # of an output that was removed: its rows would count as written
            self.filesystem.create_dir(self.path, recursive=True)
            state = {"run": run, "name": f"{time.time_ns():016x}", "complete": False}
            self._write(state)
        elif state.get("complete"):
            raise ConfigError(f"{self.path!r} is complete: give another output, or remove it to judge again")
        elif state.get("run") != run:
            raise ConfigError(
                f"{self.path!r} belongs to an unfinished run of other rows or settings: finish that one, remove the"
                " folder to begin again, or give another output"
            )
        return str(state.get("name", ""))

    def settled(self, name: str) -> bool:
        """Whether each row is written once; if not, the run has to be repeated for the rows that lack now.

        A task of a run that failed may write its file after the next one has begun, which judges its rows again. So
        files without a checkpoint are removed, checkpoints without files, the tasks of an output that was removed,
        whose names do not begin with `name`, and the tasks that have a row of another. Not seen: a task that outlives
        the last run.
        """
        files: dict[str, list[str]] = {}
        for one in _listed(self.filesystem, self.path):
            if named := _TASK_FILE.fullmatch(one.base_name):  # what else is there is the user's
                files.setdefault(named[1], []).append(one.path)
        checkpoints = _listed(self.filesystem, self.checkpoint)
        written = {one.base_name.removesuffix(".parquet"): one.path for one in checkpoints}
        written = {task: path for task, path in written.items() if not task.endswith(_PENDING)}
        kept = {task for task in written.keys() & files.keys() if task.startswith(name)}
        if len({task.rpartition("_")[0] for task in kept}) > 1:  # else one run has written all, each row once
            kept -= self._repeated({task: written[task] for task in sorted(kept)})
        for task in files.keys() - kept:
            for path in files[task]:
                self.filesystem.delete_file(path)
        for task in written.keys() - kept:
            self.filesystem.delete_file(written[task])
        return written.keys() == kept

    def _repeated(self, checkpoints: dict[str, str]) -> set[str]:
        """The tasks that have a row of an earlier one."""
        import pyarrow
        from pyarrow import compute, parquet

        rows = {}
        for task, path in checkpoints.items():
            with self.filesystem.open_input_file(path) as file:
                ids = parquet.ParquetFile(file).read([FILE_ROW])[FILE_ROW]
            rows[task] = ids.cast(pyarrow.string()).unique()
        counted = compute.value_counts(pyarrow.chunked_array(list(rows.values()), pyarrow.string()))
        twice = counted.field("values").filter(compute.greater(counted.field("counts"), 1))
        repeated, seen = set[str](), set[str]()
        for task, ids in rows.items() if len(twice) else ():
            found = set(ids.filter(compute.is_in(ids, twice)).to_pylist())
            if found & seen:
                repeated.add(task)
            else:
                seen |= found
        return repeated

    def finish(self) -> None:
        """Notes that the run is complete; only then is the checkpoint removed."""
        self._write({**self._state(), "complete": True})
        self._forget()

    @property
    def _file(self) -> str:
        return f"{self.path}/_run.json"

    def _state(self) -> dict[str, Any]:
        try:
            with self.filesystem.open_input_stream(self._file) as file:
                state = json.loads(file.read())
        except ValueError:
            state = None
        if not isinstance(state, dict):
            raise ConfigError(f"{self._file} is damaged: remove the folder to begin again")
        return state

    def _write(self, state: dict[str, Any]) -> None:
        fresh = f"{self._file}.new"
        with self.filesystem.open_output_stream(fresh) as file:
            file.write(json.dumps(state).encode())
        self.filesystem.move(fresh, self._file)

    def _forget(self) -> None:
        from pyarrow import fs

        if self.filesystem.get_file_info(self.checkpoint).type != fs.FileType.NotFound:
            self.filesystem.delete_dir(self.checkpoint)


def written_blocks(output: str | Path, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the output, by the tasks that wrote them."""
    from pyarrow import parquet

    filesystem, path = filesystem_of(output)
    written: dict[str, list[str]] = {}
    for one in _listed(filesystem, path):
        if one.path.endswith(".parquet"):
            written.setdefault(one.base_name, []).append(one.path)  # in the folders of its partitions
    for paths in written.values():
        tables = [parquet.ParquetFile(filesystem.open_input_file(one)).read(columns) for one in paths]
        yield [row for table in tables for row in table.to_pylist()]
