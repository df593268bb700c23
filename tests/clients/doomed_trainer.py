"""A department in a process of its own that answers over a socket and may be killed at any moment.

The parent counts an update as released as soon as one byte of it left the process: frames carry their length, and
only a masked update is longer than every refusal.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from clients.config import load_department, open_journal
from clients.participant import Participant
from clients.training.noise import OsRandomSource
from shared.messages import UpdateRequest, decode_request
from simulation.world import now

HEADER = struct.Struct(">Q")
LONGEST_REFUSAL = 64


def context() -> ForkServerContext:
    """A fork server with everything imported that a first round imports, so that a new process costs milliseconds."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["clients.participant", "dp_accounting.pld", "dp_accounting.rdp", "torch._dynamo"])
    return found


def serve(config: str, channel: socket.socket) -> None:
    """Be the department until killed."""
    with open_journal(Path(config)) as journal:
        participant = Participant(load_department(Path(config)), journal=journal, source=OsRandomSource(), clock=now)
        channel.sendall(b"!")
        while True:
            (length,) = HEADER.unpack(_read(channel, HEADER.size))
            reply = participant.handle(_read(channel, length))
            channel.sendall(HEADER.pack(len(reply)) + reply)


def _read(channel: socket.socket, length: int) -> bytes:
    """Read exactly so many bytes; the other side is gone if it ends before."""
    data = b""
    while len(data) < length:
        part = channel.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@dataclass
class DoomedTrainer:
    """The parent's side: sends requests on, kills the process at a random moment, starts the next one.

    Attributes:
        died: called after each death, before the next process starts.
        longest_life: seconds; each process is killed after a uniform part of it. Infinite: it is left alone.
        released: (run, round) of every update of which at least one byte came out.
        kills: processes that were killed.
    """

    config: Path
    died: Callable[[], None]
    chance: random.Random
    longest_life: float = math.inf
    released: set[tuple[bytes, int]] = field(default_factory=set)
    kills: int = 0
    _process: BaseProcess | None = None
    _channel: socket.socket | None = None
    _doom: threading.Timer | None = None

    def start(self) -> None:
        """Start a process and arm its death."""
        ours, theirs = socket.socketpair()
        process = context().Process(target=serve, args=(str(self.config), theirs), daemon=True)
        process.start()
        theirs.close()
        self._process, self._channel = process, ours
        _read(ours, 1)
        if math.isfinite(self.longest_life):
            self._doom = threading.Timer(self.chance.uniform(0, self.longest_life), process.kill)
            self._doom.start()

    def handle(self, request: bytes) -> bytes:
        """Send one request on; no reply when the process dies over it."""
        assert self._channel is not None
        message = decode_request(request)
        try:
            self._channel.sendall(HEADER.pack(len(request)) + request)
            (length,) = HEADER.unpack(_read(self._channel, HEADER.size))
            first = _read(self._channel, 1)
            if isinstance(message, UpdateRequest) and length > LONGEST_REFUSAL:
                self.released.add((message.run, message.round))
            return first + _read(self._channel, length - 1)
        except (EOFError, OSError):
            self._bury()
            self.start()
            return b""

    def _bury(self) -> None:
        """Wait for the end of the killed process and look at what it left."""
        assert self._process is not None
        self._process.join()
        assert self._process.exitcode == -9
        self.kills += 1
        self.close()
        self.died()

    def close(self) -> None:
        """End the present process, if there is one."""
        if self._doom is not None:
            self._doom.cancel()
            self._doom.join()
            self._doom = None
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.close()
            self._channel = None
