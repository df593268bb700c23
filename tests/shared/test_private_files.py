"""Folders that are made for this account are for this account, up to the first that was there before."""

from __future__ import annotations

import os
import resource
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from shared.errors import SetupError
from shared.private_files import make_private_folder, write_private_file


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_folder_that_was_missing_is_private(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    made = there / "one" / "two" / "three"
    for _ in range(2):
        make_private_folder(made)
        assert [mode(path) for path in (made, *made.parents[:3])] == [0o700, 0o700, 0o700, 0o755]


def test_a_folder_that_was_there_becomes_private(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    make_private_folder(there)
    assert mode(there) == 0o700


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(SetupError) as caught:
            make_private_folder(path)
        assert caught.value.code == "home-not-writable"


def test_where_there_is_no_room_for_a_new_file_there_is_none(tmp_path: Path) -> None:
    """Half a key would be in the way of the next one: none is ever overwritten."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_private_file(tmp_path / "key", bytes(11))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_durable_and_so_is_its_name(tmp_path: Path) -> None:
    synced = []

    def note(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_call" and called is os.fsync:
            synced.append(called)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        write_private_file(tmp_path / "key", b"key")
    finally:
        sys.setprofile(before)
    assert len(synced) == 2
