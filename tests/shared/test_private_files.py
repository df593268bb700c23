"""Folders that are made for this account are for this account, up to the first that was there before."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import SetupError
from shared.private_files import make_private_folder


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
