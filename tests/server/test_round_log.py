"""The log of one round: pieces in it and beside it, whole or as if they had never been written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from server.replay import LONG_BYTES, ReplayingTransport, RoundLog
from shared.codec import Encoded
from shared.errors import RoundAbortedError
from shared.identity import DepartmentId
from tests.server.spooled import spooled

LONG = bytes(range(256)) * (LONG_BYTES // 256) + b"end"
BESIDE = "round-1.log.3.health"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "round-1.log"


def read(path: Path, name: str = "health") -> bytes | None:
    """What a log says when it is opened again."""
    log = RoundLog(path)
    body = log.read("reply", 3, name)
    log.close()
    return None if body is None else bytes(body)


def test_a_long_upload_is_not_written_a_second_time(path: Path) -> None:
    log, upload = RoundLog(path), spooled(path.parent, LONG)
    log.keep("reply", 3, "health", upload)
    log.keep("reply", 3, "police", b"short")
    log.sync()
    assert path.stat().st_size < 1024
    assert os.fstat(upload.obj.descriptor).st_ino == (path.parent / BESIDE).stat().st_ino  # type: ignore[attr-defined]  # a spool's
    del upload
    assert bytes(log.read("reply", 3, "health") or b"") == LONG
    log.close()
    assert (read(path), read(path, "police")) == (LONG, b"short")


def test_what_lies_in_no_spool_is_copied_into_the_log(path: Path) -> None:
    log = RoundLog(path)
    log.keep("reply", 3, "health", LONG)
    log.keep("reply", 3, "police", spooled(path.parent, LONG)[1:])
    log.close()
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert (read(path), read(path, "police")) == (LONG, LONG[1:])


@pytest.mark.parametrize("harm", ["changed", "shorter", "empty", "gone"])
def test_a_file_beside_the_log_that_is_not_what_was_kept_counts_as_nothing(path: Path, harm: str) -> None:
    log = RoundLog(path)
    log.keep("reply", 3, "health", spooled(path.parent, LONG))
    log.close()
    beside = path.parent / BESIDE
    content = {"changed": b"x" + LONG[1:], "shorter": LONG[:-1], "empty": b"", "gone": None}[harm]
    if content is None:
        beside.unlink()
    else:
        beside.write_bytes(content)
    assert read(path) is None


def test_a_reply_that_comes_again_after_a_kill_takes_the_place_of_the_file(path: Path) -> None:
    for data in (LONG, LONG + b"again"):
        log = RoundLog(path)
        log.keep("reply", 3, "health", spooled(path.parent, data))
        log.close()
    assert read(path) == LONG + b"again"


class Counting:
    """Answers with the request, and counts who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        del timeout_s
        self.asked += requests
        yield from requests.items()


def test_a_round_that_asks_for_something_else_than_before_the_kill_is_not_resumed(path: Path) -> None:
    def ask(carrier: Counting, request: bytes) -> dict[DepartmentId, bytes]:
        log = RoundLog(path)
        replaying = ReplayingTransport(carrier, log, 7)
        try:
            replies = replaying.exchange({DepartmentId("health"): request}, timeout_s=1.0)
            return {name: bytes(reply) for name, reply in replies}
        finally:
            log.close()

    before, after = Counting(), Counting()
    answered = ask(before, b"one")
    with pytest.raises(RoundAbortedError, match="Round 7 cannot be resumed") as caught:
        ask(after, b"another")
    assert caught.value.code == "replay-diverged"
    assert ask(after, b"one") == answered == {"health": b"one"}
    assert (before.asked, after.asked) == (["health"], [])


def test_a_torn_end_is_cut_off(path: Path) -> None:
    log = RoundLog(path)
    log.keep("reply", 3, "health", b"first")
    log.keep("reply", 3, "police", b"second")
    log.close()
    os.truncate(path, path.stat().st_size - 1)
    assert (read(path), read(path, "police")) == (b"first", None)
    log = RoundLog(path)
    log.keep("reply", 3, "police", b"third")
    log.close()
    assert (read(path), read(path, "police")) == (b"first", b"third")
