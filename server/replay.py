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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from server.spool import keep_as
from shared.channel import CHUNK_BYTES
from shared.codec import Encoded, Record, decode, encode, sha256
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import DepartmentId
from shared.mapped_file import let_go, map_file
from shared.private_files import PRIVATE_FILE, sync_file
from shared.transport import Transport

__all__ = ["ReplayingTransport", "RoundLog"]

_HEADER = struct.Struct("<I")
_LONGEST_HEADER = 1 << 12

LONG_BYTES: Final = 1 << 18
"""From this length on a reply whose spool can be given a name beside the log is not copied into it."""


class Frame(Record, frozen=True, kw_only=True):
    """What stands before each piece of the log.

    Attributes:
        kind: ``asked`` and ``ended`` enclose an exchange; ``reply`` is one department's; ``kept`` is what the
            coordinator itself made and must not make again.
        exchange: its number within the round, from 0.
        name: the department of a reply, the name of something kept.
        size: bytes that follow this frame.
        beside: the name of the file in which they lie instead; none of them follows then.
        checksum: CRC-32 of these, against a power cut; whoever sent them signed them.
        requests: SHA-256 of the requests of an exchange.
    """

    kind: Literal["asked", "reply", "ended", "kept"]
    exchange: int = 0
    name: str = ""
    size: int = 0
    beside: str = ""
    checksum: int = 0
    requests: bytes = b""


@dataclass(frozen=True)
class _Place:
    """Where a piece lies in the file."""

    frame: Frame
    start: int

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.start + (0 if self.frame.beside else self.frame.size)


class RoundLog:
    """The log of one round: one file, appended to; a torn end is cut off when it is opened.

    Long replies lie beside it, in files whose names begin with the log's.

    Args:
        path: the file, made with mode 0600 if it is not there.
        long_bytes: length from which a reply counts as long.

    Raises:
        OSError: when the file cannot be read or written.
    """

    def __init__(self, path: Path, *, long_bytes: int = LONG_BYTES) -> None:
        self._path, self._long_bytes = path, long_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        self._writing = ThreadPoolExecutor(1, "round-log")  # to the disk, while the next upload comes in
        self._written: list[Future[None]] = []
        self._places: dict[tuple[str, int, str], _Place] = {}
        self._end = 0
        for place in self._scan():
            self._remember(place)
        os.ftruncate(self._descriptor, self._end)

    def find(self, kind: Literal["asked", "ended"], exchange: int) -> Frame | None:
        """Return the mark that an exchange began or has ended, if it is there."""
        place = self._places.get((kind, exchange, ""))
        return None if place is None else place.frame

    def read(self, kind: str, exchange: int, name: str) -> memoryview | None:
        """Return a piece, mapped from the file, or None if it is not there or not what was written."""
        place = self._places.get((kind, exchange, name))
        body = None if place is None else self._body(place)
        return body if place and body is not None and _checksum(body) == place.frame.checksum else None

    def mark(self, kind: Literal["asked", "ended"], exchange: int, requests: bytes) -> None:
        """Write that an exchange begins or has ended."""
        self._append(Frame(kind=kind, exchange=exchange, requests=requests), b"")

    def keep(self, kind: Literal["reply", "kept"], exchange: int, name: str, body: Encoded) -> None:
        """Write one piece; it survives the process, and the machine once :meth:`sync` has returned."""
        beside = self._path.with_name(f"{self._path.name}.{exchange}.{name}")
        kept = len(body) >= self._long_bytes and keep_as(beside, body)
        frame = Frame(
            kind=kind,
            exchange=exchange,
            name=name,
            size=len(body),
            beside=beside.name if kept else "",
            checksum=_checksum(body),
        )
        self._append(frame, b"" if kept else body)
        if kept:
            self._written.append(self._writing.submit(sync_file, beside))

    def sync(self) -> None:
        """Make everything durable.

        Raises:
            OSError: when the disk did not take something.
        """
        beside, self._written = self._written, []
        for written in beside:
            written.result()
        if beside:
            sync_file(self._path.parent)  # their names
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        self._writing.shutdown()
        os.close(self._descriptor)

    def _body(self, place: _Place) -> memoryview | None:
        """Map what belongs to a frame."""
        frame = place.frame
        try:
            if not frame.beside:
                mapping = mmap.mmap(self._descriptor, place.end, prot=mmap.PROT_READ)
                return memoryview(mapping)[place.start :]
            with self._path.with_name(Path(frame.beside).name).open("rb") as file:
                return map_file(file)
        except (OSError, ValueError):  # it is not there, or empty
            return None

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
        self._end = place.end

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
            place = _Place(frame, at + _HEADER.size + length)
            if frame.size < 0 or place.end > size:
                return
            yield place
            at = place.end


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
            log.sync()  # what came in, before it is said that nothing else did
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


def _checksum(data: Encoded) -> int:
    """CRC-32; a part of a mapped file is in memory no longer than it is looked at."""
    view, checksum = memoryview(data), 0
    for start in range(0, len(view), CHUNK_BYTES):
        part = view[start : start + CHUNK_BYTES]
        checksum = zlib.crc32(part, checksum)
        let_go(part)
    return checksum


def _write(descriptor: int, data: Encoded, at: int) -> None:
    """Write all of it, in as many calls as the system takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
