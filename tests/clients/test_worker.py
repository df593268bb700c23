"""A worker that hangs, crashes or goes astray is replaced, and its node says so in one word."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from clients.node import SessionDoor
from clients.worker import START_TIMEOUT_S, Worker
from shared.channel import Ticket
from shared.codec import decode, encode
from shared.errors import ProtocolError
from shared.session import Left

CHILD = """
import os, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[-1]))
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
def hang():
    open(sys.argv[1] + ".hangs", "w").close()
    time.sleep(600)
if os.path.exists(sys.argv[1] + ".never-starts"):
    hang()
pipe.send_bytes(b"idle")
while True:
    order = pipe.recv_bytes().decode()
    if order == "hang":
        pipe.send_bytes(b"busy")
        hang()
    if order == "silence":
        pipe.send_bytes(b"busy")
        pipe.send_bytes(b"idle")
        hang()
    if order == "closed, then silence":
        pipe.send_bytes(b"closed")
        hang()
    if order == "crash":
        os.abort()
    for word in order.split():
        pipe.send_bytes(word.encode())
"""
TICKET = encode(Ticket(run=bytes(32), session=bytes(16)))


STEP_S, SILENCE_S, LOOK_S = 600.0, 250.0, 100.0


class Passing:
    """A clock on which time passes at every look at a child that hangs, and no time at all before."""

    def __init__(self, hangs: Path) -> None:
        self.hangs = hangs
        self.now = 0.0

    def __call__(self) -> float:
        self.now += LOOK_S if self.hangs.exists() else 0.0
        return self.now


def worker(folder: Path, stopped: Event | None = None) -> Worker:
    command = (sys.executable, "-c", CHILD, str(folder / "pids"))
    return Worker(command, STEP_S, SILENCE_S, stopped or Event(), clock=Passing(folder / "pids.hangs"))


def starts(folder: Path) -> int:
    return len((folder / "pids").read_text().split())


def soon(met: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30.0
    while not met():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"busy idle closed", "closed"),
        (b"closed", "closed"),
        (b"refused", "refused"),
        (b"failed", "unavailable"),
        (b"busy failed", "unavailable"),
        (b"alive busy idle alive closed", "closed"),
    ],
)
def test_the_last_word_of_the_worker_is_what_the_authority_hears(tmp_path: Path, words: bytes, status: str) -> None:
    child = worker(tmp_path)
    try:
        assert [child.attend(words).status for _ in range(2)] == [status, status]
        assert starts(tmp_path) == 1
    finally:
        child.kill()


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (b"hang", "a step took longer than 600 s"),
        (b"silence", "the worker was silent for longer than 250 s"),
        (b"crash", "the worker ended in the middle of a session"),
        (b"nonsense", ""),
    ],
)
def test_a_worker_that_fails_is_replaced_for_the_next_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: bytes, said: str
) -> None:
    child = worker(tmp_path)
    try:
        assert child.attend(order) == Left(status="unavailable")
        assert said in caplog.text
        (tmp_path / "pids.hangs").unlink(missing_ok=True)
        assert child.attend(b"busy idle closed") == Left(status="closed")
        assert starts(tmp_path) == 2
    finally:
        child.kill()


def test_a_worker_that_hangs_between_two_sessions_is_replaced_before_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child, hangs = worker(tmp_path), tmp_path / "pids.hangs"
    try:
        assert child.attend(b"closed, then silence") == Left(status="closed")
        soon(hangs.exists)
        child.look()
        assert starts(tmp_path) == 1
        soon(lambda: child.look() or "the worker was silent" in caplog.text)
        hangs.unlink()
        soon(lambda: starts(tmp_path) == 2)
        child.look()
        assert child.attend(b"busy idle closed") == Left(status="closed")
        assert starts(tmp_path) == 2
    finally:
        child.kill()


def test_a_worker_that_never_comes_up_is_replaced_and_one_that_died_is_not_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    never, hangs = tmp_path / "pids.never-starts", tmp_path / "pids.hangs"
    never.touch()
    child = worker(tmp_path)
    try:
        child.start()
        soon(hangs.exists)
        never.unlink()
        soon(lambda: child.look() or f"the worker took longer than {START_TIMEOUT_S:g} s to start" in caplog.text)
        hangs.unlink()
        soon(lambda: starts(tmp_path) == 2)
        os.kill(int((tmp_path / "pids").read_text().split()[-1]), signal.SIGKILL)
        soon(lambda: child.look() or "the worker ended between two sessions" in caplog.text)
        assert child.attend(b"closed") == Left(status="closed")
        assert starts(tmp_path) == 3
    finally:
        child.kill()


def test_a_node_that_stood_still_itself_does_not_take_its_worker_for_hung(tmp_path: Path) -> None:
    child = worker(tmp_path)
    clock = child.clock
    assert isinstance(clock, Passing)
    try:
        assert child.attend(b"closed") == Left(status="closed")
        clock.now += 10 * SILENCE_S
        child.look()
        clock.now += SILENCE_S / 2
        child.look()
        assert child.attend(b"closed") == Left(status="closed")
        assert starts(tmp_path) == 1
    finally:
        child.kill()


def test_a_node_that_is_stopped_leaves_its_session(tmp_path: Path) -> None:
    stopped = Event()
    stopped.set()
    child = worker(tmp_path, stopped)
    assert child.attend(b"hang") == Left(status="unavailable")
    child.kill()


def test_the_kill_switch_refuses_without_asking_the_worker(tmp_path: Path) -> None:
    switch = tmp_path / "stopped"
    switch.touch()
    door = SessionDoor(worker(tmp_path), switch)
    assert decode(door.handle(TICKET), Left).status == "refused"
    assert not (tmp_path / "pids").exists()


def test_an_invitation_that_is_none_is_not_handed_on(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        SessionDoor(worker(tmp_path), tmp_path / "stopped").handle(b"closed")
    assert not (tmp_path / "pids").exists()
