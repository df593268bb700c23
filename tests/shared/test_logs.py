"""A log has an end, whoever writes to it: it is put aside by size, and what repeats is counted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shared.logs import OnceInAWhile, log_files, put_aside

WRITER = """
import logging, os, sys
from pathlib import Path
import shared.logs
os.umask(0)
shared.logs.MAX_LOG_BYTES = 2000
shared.logs.log_json(file=Path(sys.argv[1]))
for number in range(100):
    logging.getLogger("test").info("line %d", number)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "one.log"
    path.write_bytes(b"old\n" * 100)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_long_log_is_put_aside_and_its_writer_goes_on_in_the_empty_one(log: Path) -> None:
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as writer:
        assert put_aside(log, max_bytes=399)
        writer.write(b"new\n")
    older, newer = log_files(log)
    assert (older.read_bytes(), newer.read_bytes()) == (b"old\n" * 100, b"new\n")
    assert mode(older) == 0o600


def test_a_log_that_is_not_too_long_stays(log: Path) -> None:
    assert not put_aside(log, max_bytes=400)
    assert [path for path in log_files(log) if path.exists()] == [log]


def test_where_nothing_can_be_copied_a_long_log_is_emptied_all_the_same(log: Path) -> None:
    older, _ = log_files(log)
    older.symlink_to("/dev/full")
    assert put_aside(log, max_bytes=399)
    assert log.read_bytes() == b""
    assert not older.exists()


def test_the_log_of_a_process_ends_by_size_and_no_part_of_it_is_for_others(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", WRITER, str(log)], env={**os.environ, "PYTHONPATH": root}, check=True)
    older, newer = log_files(log)
    assert sorted(tmp_path.iterdir()) == [newer, older]
    assert "line 99" in newer.read_text().splitlines()[-1]
    for path in (older, newer):
        assert path.stat().st_size <= 2000
        assert mode(path) == 0o600


def test_what_repeats_is_said_once_in_a_while_with_its_number() -> None:
    now = [0.0]
    refusals = OnceInAWhile(lambda: now[0])
    assert [refusals.count("police") for _ in range(4)] == [1, 0, 0, 0]
    assert refusals.count("health") == 1
    now[0] = 1.0
    assert [refusals.count("police"), refusals.count("police")] == [4, 0]
