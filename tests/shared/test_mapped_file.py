"""Pages of a mapped file come and go; its content stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.mapped_file import MappedFile, let_go, map_file

MIB = 1 << 20
SIZE = 24 * MIB + 100


def resident_mib() -> float:
    """Pages of files in this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) / 1024


@pytest.fixture
def content(tmp_path: Path) -> memoryview:
    path = tmp_path / "content"
    path.write_bytes(bytes(range(256)) * (SIZE // 256) + bytes(range(SIZE % 256)))
    with path.open("rb") as file:
        return map_file(file)


def test_what_was_let_go_of_is_out_of_memory_and_can_be_read_again(content: memoryview) -> None:
    before = resident_mib()
    total = sum(content[:: 4096 // 16])  # touches every page
    assert resident_mib() > before + 20
    offset = 68  # as the words of a masked update lie
    for start in range(offset, SIZE, MIB):
        let_go(content[start : start + MIB])
    assert resident_mib() < before + 4
    assert sum(content[:: 4096 // 16]) == total


def test_a_part_below_a_page_and_memory_that_is_no_file_are_left_alone(content: memoryview) -> None:
    own = bytearray(b"x" * MIB)
    for part in (memoryview(own), memoryview(bytes(own)), content[:0], content[1:4000], content[4000:4200]):
        before = bytes(part)
        let_go(part)
        assert bytes(part) == before


def test_the_file_is_open_as_long_as_somebody_looks_at_it(content: memoryview) -> None:
    mapping = content.obj
    assert isinstance(mapping, MappedFile)
    number = mapping.descriptor
    part = content[5:10]
    del content, mapping
    assert os.fstat(number).st_size == SIZE
    assert bytes(part) == bytes([5, 6, 7, 8, 9])


def test_an_empty_file_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file, pytest.raises(ValueError):
        map_file(file)
