"""How a local file is read when its name comes from a data set: only regular files below folders the user named.

The name is walked from the root one folder at a time and no symbolic link is followed below the root, so that nothing
can be swapped between a check and its use; FIFOs and devices are opened without blocking and refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from flexjudge_reward.errors import MediaError
from flexjudge_reward.media.modality import Roots


def read(path: str | os.PathLike[str], roots: Roots, most_bytes: int) -> bytes:
    """The content of a file. A relative `path` starts at a root: the first in which it exists.

    A link below a root may be named if it leads to a place below a root.
    Raises MediaError: no root given, the file is outside all of them, missing, not a regular file, or too large.
    """
    name = os.fsdecode(path)
    if "\0" in name:
        raise MediaError("the path has a NUL character in it")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise MediaError("the path has a character in it that no file name has") from None
    if not roots:
        raise MediaError("reading files is off: name the folder it lies in, roots=[folder]")
    real_roots = [os.path.realpath(root) for root in roots]
    problem = "no such file; a relative path starts at one of the allowed folders"
    for real_root in real_roots:
        real = os.path.realpath(os.path.join(real_root, name))
        home = next((root for root in real_roots if Path(real).is_relative_to(root)), None)
        if home is None:
            problem = f"the file lies outside the allowed folders ({', '.join(map(str, roots))})"
        elif os.path.lexists(real):
            return _open_and_read(home, Path(real).relative_to(home).parts, most_bytes)
    raise MediaError(problem)


def _open_and_read(root: str, names: tuple[str, ...], most_bytes: int) -> bytes:
    try:
        with open(root, "rb", opener=lambda *_: _walk(root, names)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise MediaError("not a regular file")
            if status.st_size > most_bytes:
                raise MediaError(f"the file has {status.st_size:,} bytes; {most_bytes:,} are allowed")
            data = file.read(most_bytes + 1)
    except IsADirectoryError:
        raise MediaError("not a regular file") from None
    except OSError as error:
        raise MediaError(f"the file cannot be read: {error.strerror or error}") from None
    if len(data) > most_bytes:  # it grew, or lies about its size as files in /proc do
        raise MediaError(f"the file has more than the {most_bytes:,} bytes allowed")
    return data


def _walk(root: str, names: tuple[str, ...]) -> int:
    """An open handle on the file, reached without following a link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    handle = os.open(root, flags | os.O_DIRECTORY)
    for index, name in enumerate(names):
        try:
            deeper = os.open(name, flags | (os.O_DIRECTORY if index < len(names) - 1 else 0), dir_fd=handle)
        finally:
            os.close(handle)
        handle = deeper
    return handle
