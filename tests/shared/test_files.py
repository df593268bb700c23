"""A file that cannot be read is named, and why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.files import read_file


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
