"""A department's end of the update channel: dial out, take requests, send replies, until the session is over.

No port is opened here. What a request means is the Participant's affair; this file moves bytes, checks that they are
the announced ones, and begins again where a connection broke.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from threading import Event, RLock

import grpc
import numpy as np

from clients.dial import dialled
from shared.certificates import TlsFiles
from shared.channel import (
    ANSWER,
    ATTACH,
    ATTACHED,
    SERVICE,
    TICKET_KEY,
    Incoming,
    Payload,
    Start,
    Ticket,
    frames,
    read_start,
)
from shared.codec import Encoded, encode
from shared.errors import ProtocolError

_LOG = logging.getLogger(__name__)

_FINAL = {
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""The authority refused, and would refuse again; a broken connection has none of these."""


class Stop(Event):
    """A switch that ends serving at once, also while a call waits for the network."""

    def __init__(self) -> None:
        super().__init__()
        self._cuts: list[Callable[[], object]] = []
        self._guard = RLock()  # `set` may be called by a signal, in the midst of `cutting`

    def set(self) -> None:
        """Stop."""
        super().set()
        with self._guard:
            cuts = list(self._cuts)
        for cut in cuts:
            cut()

    @contextmanager
    def cutting(self, cut: Callable[[], object]) -> Iterator[None]:
        """Call ``cut`` when the switch is set while the block runs, or was set before."""
        with self._guard:
            self._cuts.append(cut)
        if self.is_set():
            cut()
        try:
            yield
        finally:
            with self._guard:
                self._cuts.remove(cut)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a department tries again.

    Attributes:
        first_s: pause after the first failure, in seconds; it doubles with every further one.
        longest_s: longest pause.
        give_up_s: after so long without a connection the session is given up.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    give_up_s: float = 900.0


@dataclass(frozen=True)
class Waiting:
    """What the serving thread does while it waits for the network: it shows that it is alive.

    Attributes:
        show: called again and again, also between the parts of a request; must not block.
        every_s: longest time between two calls, in seconds; one part of a request, once begun, may take longer.
    """

    show: Callable[[], None] = lambda: None
    every_s: float = 2.0


@dataclass
class _Outbox:
    """The reply that is not known to have arrived; it is kept until it has, and sent again from its start."""

    number: int
    reply: Encoded = field(repr=False)


def serve_channel(
    address: str,
    tls: TlsFiles,
    handle: Callable[[memoryview], Encoded],
    *,
    leaving: Callable[[Encoded], Encoded],
    ticket: Ticket,
    max_request_bytes: int,
    stop: Stop,
    patience: Patience | None = None,
    waits: Waiting | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Answer requests on the update channel until the authority closes the session, or ``stop`` is set.

    Args:
        address: host and port of the authority; the host stands in its certificate.
        tls: this department's key and certificate, and the city's CA certificate.
        handle: answers one encoded request, as :meth:`clients.participant.Participant.handle` does. It runs in the
            caller's thread, one request at a time.
        leaving: returns what may leave in a reply's place: the reply itself, or another one, which is all that leaves
            then. Asked in the caller's thread before every attempt to send, and every ``waits.every_s`` during one.
        ticket: the session, as the authority named it.
        max_request_bytes: longest request that is taken.
        stop: ends serving; a reply that is being made when it is set is not sent.
        patience: how to try again.
        waits: how the caller's thread shows that it is alive while it waits.
        clock: monotonic time in seconds.

    Raises:
        ProtocolError: the reason code of the authority's refusal; ``channel-unreachable`` when there was no
            connection for longer than ``patience`` allows; those of :class:`shared.channel.Incoming`.
    """
    patience, waits = patience or Patience(), waits or Waiting()
    outbox: list[_Outbox] = []
    pause, failing_since = patience.first_s, None
    while not stop.is_set():
        try:
            with dialled(address, tls) as channel, stop.cutting(channel.close):
                link = _Link(channel, ((TICKET_KEY, encode(ticket)),), waits, leaving, clock)
                for _ in link.serve(handle, outbox, max_request_bytes=max_request_bytes, stopped=stop.is_set):
                    pause, failing_since = patience.first_s, None
        except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
            # The last two are gRPC's own ways to say that the channel was closed by `stop`.
            if stop.is_set():
                return
            _require_passing(error)
        else:
            return
        failing_since = clock() if failing_since is None else failing_since
        if clock() - failing_since > patience.give_up_s:
            raise ProtocolError("channel-unreachable", f"{address} was not reached for {patience.give_up_s:.0f} s.")
        waits.show()
        stop.wait(pause)
        pause = min(2 * pause, patience.longest_s)


@dataclass(frozen=True)
class _Link:
    """One connection of one session."""

    channel: grpc.Channel
    metadata: tuple[tuple[str, bytes], ...]
    waits: Waiting
    leaving: Callable[[Encoded], Encoded]
    clock: Callable[[], float]

    def serve(
        self,
        handle: Callable[[memoryview], Encoded],
        outbox: list[_Outbox],
        *,
        max_request_bytes: int,
        stopped: Callable[[], bool],
    ) -> Iterator[None]:
        """Answer requests until the session is closed; yields whenever something has arrived, here or there."""
        while outbox:  # what the last connection did not carry
            self._send(outbox)
            yield
        call = self.channel.stream_stream(f"/{SERVICE}/{ATTACH}")(iter(()), metadata=self.metadata)
        with closing(self._first_frames(call)) as first_frames:
            for raw in first_frames:
                yield
                if raw == ATTACHED:
                    continue
                start = read_start(raw, max_bytes=max_request_bytes)
                reply = handle(self._receive(start, call))
                if stopped():
                    return
                outbox.append(_Outbox(start.number, reply))
                del reply  # the outbox lets go of it
                self._send(outbox)
                yield

    def _first_frames(self, call: grpc.Call) -> Generator[bytes]:
        """Yield what comes next, however long it takes; gRPC waits in another thread, so that this one may speak."""
        with ThreadPoolExecutor(1, thread_name_prefix="attach") as pool:
            try:
                while True:
                    coming = pool.submit(next, call, None)
                    while not wait_for((coming,), timeout=self.waits.every_s).done:
                        self.waits.show()
                    raw = coming.result()
                    if raw is None:
                        return
                    yield raw
            finally:
                call.cancel()

    def _send(self, outbox: list[_Outbox]) -> None:
        """Send the reply and forget it once it has arrived, or nobody waits for it any more."""
        try:
            while not self._arrives(outbox[0]):
                _LOG.info("a reply was taken back before it had arrived")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED:
                raise
            _LOG.info("a reply came too late: %s", error.details())
        outbox.clear()

    def _arrives(self, item: _Outbox) -> bool:
        """Send what may leave now, and return whether it has arrived; False once something else has to go instead."""
        item.reply = reply = self.leaving(item.reply)
        upload = self.channel.stream_unary(f"/{SERVICE}/{ANSWER}")
        done = upload.future(frames(item.number, Payload.of(reply)), metadata=self.metadata)
        try:
            while item.reply is reply:
                try:
                    done.result(timeout=self.waits.every_s)
                except grpc.FutureTimeoutError:
                    self.waits.show()
                    item.reply = self.leaving(reply)
                else:
                    return True
        finally:
            done.cancel()
        return False

    def _receive(self, start: Start, call: Iterator[bytes]) -> memoryview:
        """Take the rest of one request in."""
        buffer = np.empty(start.length, dtype=np.uint8).data  # of large pages, which a growing one is not

        def write(data: memoryview) -> None:
            buffer[transfer.received : transfer.received + len(data)] = data

        transfer, due = Incoming(start, write), 0.0
        while not transfer.complete:
            if self.clock() >= due:  # not with each of hundreds of parts: whoever shows itself looks at files, too
                self.waits.show()
                due = self.clock() + self.waits.every_s
            raw = next(call, None)
            if raw is None:
                break
            transfer.take(raw)
        transfer.finish()
        return buffer


def _require_passing(error: Exception) -> None:
    """Let a failure pass that another attempt may not meet; raise any other one by name."""
    if not isinstance(error, grpc.RpcError):
        raise error
    if error.code() in _FINAL:
        raise ProtocolError(error.details() or "channel-refused", "The authority refused this department's call.")
    _LOG.info("the update channel is interrupted: %s", error.code().name)
