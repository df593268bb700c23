"""A file that cannot be read is named, and why it cannot."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.config import read_signed
from server.roster import read_request
from shared.codec import MAX_FILE_BYTES
from shared.errors import ConfigError
from shared.files import read_file
from tests.refusals import code_of


def sentence(path: Path, made_by: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        read_file(path, made_by=made_by)
    assert caught.value.code == "file-missing"
    return caught.value.message


def test_a_file_that_is_not_there_is_named_and_what_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    assert sentence(path) == f"{path} is not there."
    assert (
        sentence(path, ": `cityfed-client enrol` makes it") == f"{path} is not there: `cityfed-client enrol` makes it."
    )
    path.write_bytes(b"{}")
    assert read_file(path) == b"{}"


def test_a_folder_and_a_file_in_a_file_are_no_files(tmp_path: Path) -> None:
    assert sentence(tmp_path) == f"{tmp_path} is a folder: name the file in it."
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "inside"
    assert sentence(inside) == f"{inside} cannot be read: Not a directory."


def test_a_name_with_nul_in_it_is_no_name(tmp_path: Path) -> None:
    assert sentence(tmp_path / "a\0b") == f"'{tmp_path}/a\\x00b' is no name that a file can have."


@pytest.mark.parametrize(("allowed", "read"), [(4, 5), (5, 5), (6, 5), (0, 1), (-1, 5)])
def test_no_more_is_read_than_shows_that_a_file_is_too_long(tmp_path: Path, allowed: int, read: int) -> None:
    """A carried file may be a link to something without end."""
    (tmp_path / "file").write_bytes(bytes(5))
    assert len(read_file(tmp_path / "file", max_bytes=allowed)) == read


@pytest.mark.parametrize("read", [read_request, read_signed])
def test_of_a_carried_file_that_is_far_too_long_only_the_beginning_is_read(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(8 * MAX_FILE_BYTES)
    tracemalloc.start()
    try:
        assert code_of(lambda: read(tmp_path / "file")) in {"json-too-large", "message-too-large"}
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_FILE_BYTES
    finally:
        tracemalloc.stop()
