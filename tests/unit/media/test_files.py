"""Files of a data set: only regular files below the given roots are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexjudge_reward import ConfigError, Media
from flexjudge_reward.media.base import Limits
from support.images import noise, pixels, refused, saved

PNG = saved(noise())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "a.png").write_bytes(PNG)
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder.parent / "outside.png").write_bytes(PNG)
    (folder / "escape.png").symlink_to(folder.parent / "outside.png")
    (folder / "escape").symlink_to(folder.parent)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere").symlink_to(folder / "missing.png")
    os.mkfifo(folder / "fifo")
    (folder / "large").write_bytes(bytes(3_000_000))
    (folder / "a b%20c.png").write_bytes(PNG)
    return folder


class Named:
    """A path that is no text."""

    def __fspath__(self) -> bytes:
        return b"a.png"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("a.png", id="path"),
        pytest.param(Path("a.png"), id="Path"),
        pytest.param(Named(), id="path_like"),
        pytest.param({"bytes": None, "path": "a.png"}, id="dict_with_path"),
        pytest.param("sub/../a.png", id="path_with_a_detour"),
        pytest.param("link.png", id="link_within_the_root"),
        pytest.param("a b%20c.png", id="name_taken_literally"),
    ],
)
def test_a_file_below_a_root_is_read(source: Any, root: Path) -> None:
    assert np.array_equal(pixels(Media.image(source, roots=[root])), np.asarray(noise()))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("missing.png", "no such file", id="missing"),
        pytest.param("", "not a regular file", id="empty_name"),
        pytest.param(".", "not a regular file", id="the_root"),
        pytest.param("sub", "not a regular file", id="a_folder"),
        pytest.param("fifo", "not a regular file", id="a_FIFO"),
        pytest.param("/dev/zero", "outside the allowed folders", id="a_device"),
        pytest.param("/etc/passwd", "outside the allowed folders", id="absolute_outside"),
        pytest.param("../outside.png", "outside the allowed folders", id="parent"),
        pytest.param("sub/../../outside.png", "outside the allowed folders", id="parent_by_a_detour"),
        pytest.param("escape.png", "outside the allowed folders", id="link_that_leads_out"),
        pytest.param("escape/outside.png", "outside the allowed folders", id="linked_folder_that_leads_out"),
        pytest.param("nowhere", "no such file", id="link_to_nothing"),
        pytest.param("loop", "cannot be read|no such file", id="link_to_itself"),
        pytest.param("a.png/b", "cannot be read|no such file", id="a_file_as_a_folder"),
        pytest.param("a.png\0.txt", "NUL", id="NUL"),
        pytest.param("%2e%2e/outside.png", "no such file", id="percent_encoding_is_not_decoded"),
        pytest.param("~/a.png", "no such file", id="tilde_is_not_expanded"),
        pytest.param("$HOME/a.png", "no such file", id="variables_are_not_expanded"),
        pytest.param("a\ud800.png", "no file name has", id="lone_surrogate"),
        pytest.param("x" * 5_000, "cannot be read|no such file", id="long_name"),
        pytest.param("large", "3,000,000 bytes; 2,000,000 are allowed", id="too_large"),
        pytest.param("//etc/passwd", "outside the allowed folders", id="two_slashes"),
        pytest.param("..\\outside.png", "no such file", id="backslash"),
    ],
)
def test_no_file_is_read_but_regular_ones_below_a_root(path: str, message: str, root: Path) -> None:
    refused(Media.image(path, roots=[root], limits=Limits(bytes=2_000_000)), message)


def test_devices_and_endless_files_below_a_root_are_refused() -> None:
    refused(Media.image("zero", roots=["/dev"]), "not a regular file")
    environment = Media.image("/proc/self/environ", roots=["/proc"], limits=Limits(bytes=3))
    refused(environment, "more than the 3 bytes|cannot be read")


def test_roots_are_searched_in_order(root: Path) -> None:
    for path in ("a.png", root / "a.png", "../a.png"):
        assert Media.image(path, roots=[root / "sub", root]) == Media.image(PNG)


def test_a_folder_swapped_for_a_link_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath
    monkeypatch.setattr("os.path.realpath", lambda path: str(path) if "escape" in str(path) else real(path))
    refused(Media.image("escape/outside.png", roots=[root]), "cannot be read")
    refused(Media.image("escape.png", roots=[root]), "cannot be read")


def test_one_folder_as_text_is_an_error_at_once(root: Path) -> None:
    with pytest.raises(ConfigError, match="roots must be a list of folders"):
        Media.image("a.png", roots=str(root))
