"""Where a run stands, on disk, so that it goes on after the coordinator was killed (design 3, step 9).

Between two rounds that is the model, the server optimiser, the rounds so far and the standing epoch's public
messages; within a round it is the round's log (:mod:`server.replay`). No secret is in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.numpy

from server.epochs import StandingEpoch
from server.records import RoundSummary
from server.release import write_tensors
from server.replay import LONG_BYTES, ReplayingTransport, RoundLog
from shared.codec import Encoded, Record, decode, encode
from shared.errors import JournalError
from shared.identity import DepartmentId
from shared.model_file import file_digest
from shared.parameters import Vector
from shared.private_files import make_private_folder, replace_private_file, replacing_private_file
from shared.transport import Transport

STATE_FILE = "state.msgpack"
_ROUND = "round-"


class Progress(Record, frozen=True, kw_only=True):
    """Where a run stands between two rounds.

    Attributes:
        run: the approved run.
        rounds: the finished rounds.
        failures: rounds that ended without a sum.
        epoch_number: the last epoch that was opened; the next one is higher.
        epoch: the epoch that stands, or None.
    """

    run: bytes
    rounds: tuple[RoundSummary, ...] = ()
    failures: int = 0
    epoch_number: int = 0
    epoch: StandingEpoch | None = None

    @property
    def next_round(self) -> int:
        """The number of the round to run; numbers only grow, also over failed ones."""
        return len(self.rounds) + self.failures + 1


class _Stored(Record, frozen=True, kw_only=True):
    """The state file: progress, and which file holds the vectors."""

    progress: Progress
    vectors_file: str
    vectors_sha256: str


@dataclass(frozen=True)
class SavedRun:
    """A run's progress, and its model and server optimiser's moments by name, each of shape (layout.size,)."""

    progress: Progress
    vectors: Mapping[str, Vector]


class RoundTransport(Transport, Protocol):
    """A transport that also keeps what the coordinator itself makes only once in a round."""

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` made the first time in this round."""
        ...


class Checkpoints(Protocol):
    """Keeps a run's state between and within rounds."""

    def load(self) -> SavedRun | None:
        """Return the last state that was saved, or None before the first."""
        ...

    def save(self, saved: SavedRun) -> None:
        """Keep a state in place of the one before."""
        ...

    def open_round(self, number: int, carrier: Transport) -> AbstractContextManager[RoundTransport]:
        """Open the transport of one round over the one that reaches the departments."""
        ...


class CheckpointFolder:
    """State files of one run in a folder of their own (mode 0700).

    Args:
        folder: made when the first state is saved.
        long_bytes: length from which a reply lies beside its round's log.

    Guarantees:
        A kill at any point leaves the state before or after, entirely. What an open round has received survives a
        kill of the process; what an exchange received survives a power cut, once it has ended.
    """

    def __init__(self, folder: Path, *, long_bytes: int = LONG_BYTES) -> None:
        self._folder, self._long_bytes = folder, long_bytes

    def load(self) -> SavedRun | None:
        """Return the last state that was saved, or None before the first.

        Raises:
            JournalError: ``checkpoint-corrupt``.
        """
        path = self._folder / STATE_FILE
        if not path.exists():
            return None
        stored = decode(path.read_bytes(), _Stored, error=JournalError)
        vectors = self._folder / Path(stored.vectors_file).name
        try:
            data = vectors.read_bytes()
            if file_digest(data) == stored.vectors_sha256:
                return SavedRun(stored.progress, safetensors.numpy.load(data))
        except (OSError, safetensors.SafetensorError):
            pass
        raise JournalError("checkpoint-corrupt", f"{vectors} is not the file that {path} names.")

    def save(self, saved: SavedRun) -> None:
        """Keep a state in place of the one before, durably; logs of earlier rounds are deleted.

        Raises:
            SetupError: ``home-not-writable``.
            OSError: when the disk is full or the folder cannot be written.
        """
        make_private_folder(self._folder)
        number = saved.progress.next_round
        vectors = self._folder / f"vectors-{number}.safetensors"
        with replacing_private_file(vectors) as partial:
            digest = write_tensors(partial, saved.vectors)
        stored = _Stored(progress=saved.progress, vectors_file=vectors.name, vectors_sha256=digest)
        replace_private_file(self._folder / STATE_FILE, encode(stored))
        keep = {vectors.name, STATE_FILE, self._log(number).name}
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink()

    @contextmanager
    def open_round(self, number: int, carrier: Transport) -> Iterator[RoundTransport]:
        """Open the transport of one round; what it received before a kill is not asked for again."""
        log = RoundLog(self._log(number), long_bytes=self._long_bytes)
        try:
            yield ReplayingTransport(carrier, log, number)
        finally:
            log.close()

    def _log(self, number: int) -> Path:
        """The log of a round."""
        return self._folder / f"{_ROUND}{number}.log"


def forget_rounds(folder: Path) -> None:
    """Delete what an open round has received, of a run that is over; the model and the rounds so far stay.

    Args:
        folder: as given to :class:`CheckpointFolder`; it need not exist.
    """
    for path in folder.glob(f"{_ROUND}*"):
        path.unlink(missing_ok=True)


class NoCheckpoints:
    """Keeps nothing: for runs that one process begins and ends."""

    def load(self) -> SavedRun | None:
        """Return None."""
        return None

    def save(self, saved: SavedRun) -> None:
        """Do nothing."""

    @contextmanager
    def open_round(self, number: int, carrier: Transport) -> Iterator[RoundTransport]:  # noqa: ARG002 - nothing is kept by number
        """Return the carrier as it is."""
        yield _Direct(carrier)


@dataclass(frozen=True)
class _Direct:
    """A carrier's transport for one round; whatever is made is made."""

    carrier: Transport

    def exchange(
        self, requests: Mapping[DepartmentId, bytes], *, timeout_s: float
    ) -> Iterator[tuple[DepartmentId, Encoded]]:
        """Hand on; see :class:`shared.transport.Transport`."""
        return self.carrier.exchange(requests, timeout_s=timeout_s)

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:  # noqa: ARG002 - nothing is kept by name
        """Return what ``make`` makes."""
        return make()
