"""A worker that hangs, crashes or goes astray is replaced, and its node says so in one word."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event

import pytest

from clients.node import SessionDoor
from clients.worker import Worker
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
while True:
    order = pipe.recv_bytes().decode()
    if order == "hang":
        pipe.send_bytes(b"busy")
        time.sleep(600)
    if order == "crash":
        os.abort()
    for word in order.split():
        pipe.send_bytes(word.encode())
"""
TICKET = encode(Ticket(run=bytes(32), session=bytes(16)))


class Passing:
    """A clock on which a minute passes at every look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def worker(folder: Path, stopped: Event | None = None) -> Worker:
    command = (sys.executable, "-c", CHILD, str(folder / "pids"))
    return Worker(command, 30.0, stopped or Event(), clock=Passing())


def starts(folder: Path) -> int:
    return len((folder / "pids").read_text().split())


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"busy idle closed", "closed"),
        (b"closed", "closed"),
        (b"refused", "refused"),
        (b"failed", "unavailable"),
        (b"busy failed", "unavailable"),
    ],
)
def test_the_last_word_of_the_worker_is_what_the_authority_hears(tmp_path: Path, words: bytes, status: str) -> None:
    child = worker(tmp_path)
    try:
        assert [child.attend(words).status for _ in range(2)] == [status, status]
        assert starts(tmp_path) == 1
    finally:
        child.kill()


@pytest.mark.parametrize("order", [b"hang", b"crash", b"nonsense"])
def test_a_worker_that_fails_is_replaced_for_the_next_session(tmp_path: Path, order: bytes) -> None:
    child = worker(tmp_path)
    try:
        assert child.attend(order) == Left(status="unavailable")
        assert child.attend(b"busy idle closed") == Left(status="closed")
        assert starts(tmp_path) == 2
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
