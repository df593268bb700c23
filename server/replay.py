"""What a round has received so far, on disk, so that a killed coordinator goes on where it was.

Everything that a Coordinator does in a round follows from its plan, its model and the replies that it got. So a round
is resumed by running it again from the start with the replies of its log; only what is not there is asked for, with
the same bytes as before, and departments answer these with the same bytes (protocol 3). All of it is masked, sealed
or signed: a log holds nothing that the coordinator was not sent.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.codec import Encoded, Record, decode, encode, sha256
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import DepartmentId
from shared.private_files import PRIVATE_FILE
from shared.transport import Transport

__all__ = ["ReplayingTransport", "RoundLog"]

_HEADER = struct.Struct("<I")
_LONGEST_HEADER = 1 << 12


class Frame(Record, frozen=True, kw_only=True):
    """What stands before each piece of the log.

    Attributes:
        kind: ``asked`` and ``ended`` enclose an exchange; ``reply`` is one department's; ``kept`` is what the
            coordinator itself made and must not make again.
        exchange: its number within the round, from 0.
        name: the department of a reply, the name of something kept.
        size: bytes that follow this frame.
        checksum: CRC-32 of these, against a power cut; whoever sent them signed them.
        requests: SHA-256 of the requests of an exchange.
    """

    kind: Literal["asked", "reply", "ended", "kept"]
    exchange: int = 0
    name: str = ""
    size: int = 0
    checksum: int = 0
    requests: bytes = b""


@dataclass(frozen=True)
class _Place:
    """Where a piece lies in the file."""

    frame: Frame
    start: int


class RoundLog:
    """The log of one round: one file, appended to; a torn end is cut off when it is opened.

    Args:
        path: the file, made with mode 0600 if it is not there.

    Raises:
        OSError: when the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        self._places: dict[tuple[str, int, str], _Place] = {}
        self._end = 0
        for place in self._scan():
            self._remember(place)
        os.ftruncate(self._descriptor, self._end)

    def find(self, kind: str, exchange: int, name: str = "") -> Frame | None:
        """Return the frame of a piece that is there."""
        place = self._places.get((kind, exchange, name))
        return None if place is None else place.frame

    def read(self, kind: str, exchange: int, name: str) -> memoryview | None:
        """Return a piece, mapped from the file, or None if it is not there or not what was written."""
        place = self._places.get((kind, exchange, name))
        if place is None:
            return None
        end = place.start + place.frame.size
        body = memoryview(mmap.mmap(self._descriptor, end, prot=mmap.PROT_READ))[place.start :]
        return body if zlib.crc32(body) == place.frame.checksum else None

    def mark(self, kind: Literal["asked", "ended"], exchange: int, requests: bytes) -> None:
        """Write that an exchange begins or has ended."""
        self._append(Frame(kind=kind, exchange=exchange, requests=requests), b"")

    def keep(self, kind: Literal["reply", "kept"], exchange: int, name: str, body: Encoded) -> None:
        """Write one piece; it survives the process, and the machine once :meth:`sync` has returned."""
        self._append(Frame(kind=kind, exchange=exchange, name=name, size=len(body), checksum=zlib.crc32(body)), body)

    def sync(self) -> None:
        """Make everything durable."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _append(self, frame: Frame, body: Encoded) -> None:
        """Write a frame and what belongs to it at the end of the file."""
        header = encode(frame)
        start = self._end + _HEADER.size + len(header)
        _write(self._descriptor, _HEADER.pack(len(header)) + header, self._end)
        _write(self._descriptor, body, start)
        self._remember(_Place(frame, start))

    def _remember(self, place: _Place) -> None:
        """Index a piece; the newest of its kind counts."""
        frame = place.frame
        self._places[frame.kind, frame.exchange, frame.name] = place
        self._end = place.start + frame.size

    def _scan(self) -> Iterator[_Place]:
        """Read the frames of what is there, up to the first that is not whole."""
        size, at = os.fstat(self._descriptor).st_size, 0
        while at + _HEADER.size <= size:
            (length,) = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, at))
            if length > _LONGEST_HEADER:
                return
            try:
                frame = decode(os.pread(self._descriptor, length, at + _HEADER.size), Frame)
            except ProtocolError:
                return
            start = at + _HEADER.size + length
            if frame.size < 0 or start + frame.size > size:
                return
            yield _Place(frame, start)
            at = start + frame.size


class ReplayingTransport:
    """A Transport for one round that writes down what comes in, and does not ask again for what is there.

    Args:
        carrier: asks the departments.
        log: the round's log.
        round_number: for the sentence of a refusal.
    """

    def __init__(self, carrier: Transport, log: RoundLog, round_number: int) -> None:
        self._carrier, self._log, self._round = carrier, log, round_number
        self._exchange = -1

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        """Hand over logged replies, then new ones; see :class:`shared.transport.Transport`.

        Raises:
            RoundAbortedError: ``replay-diverged`` when this exchange asked for something else before.

        Guarantees:
            After an exchange that had ended, nobody is asked again: who was missing then is missing now.
        """
        self._exchange += 1
        number, log = self._exchange, self._log
        asked = log.find("asked", number)
        digest = _digest(requests)
        if asked is None:
            log.mark("asked", number, digest)
        elif asked.requests != digest:
            raise RoundAbortedError(
                "replay-diverged", f"Round {self._round} cannot be resumed: it asks for something else than before."
            )
        waiting = dict(requests)
        del requests  # a model is in them: whoever carries them lets go of it once it lies in a file
        for name in tuple(waiting):
            reply = log.read("reply", number, name)
            if reply is not None:
                del waiting[name]
                yield name, reply
            del reply  # not held while the next one is awaited
        if log.find("ended", number) is None:
            asking = self._ask(waiting, number, timeout_s)
            del waiting
            yield from asking
            log.mark("ended", number, digest)
            log.sync()

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` made the first time in this round; durable before it is returned."""
        kept = self._log.read("kept", 0, name)
        if kept is not None:
            return bytes(kept)
        made = make()
        self._log.keep("kept", 0, name, made)
        self._log.sync()
        return made

    def _ask(
        self, waiting: Mapping[DepartmentId, bytes], number: int, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        """Ask the departments and write each reply down before it is handed over."""
        if not waiting:
            return
        names, replies = set(waiting), self._carrier.exchange(waiting, timeout_s=timeout_s)
        del waiting
        for name, reply in replies:
            if name in names:
                self._log.keep("reply", number, name, reply)
                yield name, reply
            del reply


def _digest(requests: Mapping[DepartmentId, bytes]) -> bytes:
    """One digest of a batch; a request that goes to several is hashed once."""
    hashes = {id(request): sha256(request) for request in requests.values()}
    return sha256(*(part for name in sorted(requests) for part in (name.encode(), hashes[id(requests[name])])))


def _write(descriptor: int, data: Encoded, at: int) -> None:
    """Write all of it, in as many calls as the system takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
