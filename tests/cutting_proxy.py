"""A network between a department and the authority that is cut at a chosen byte, once, and heals at once; or stands."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import Self


@dataclass
class CuttingProxy:
    """Forwards every connection to a port of this machine; a cut closes all that stand."""

    target: int
    cuts: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _pairs: list[socket.socket] = field(default_factory=list)
    _ends: list[socket.socket] = field(default_factory=list)
    _left: dict[str, int] = field(default_factory=dict)
    _guard: Lock = field(default_factory=Lock)
    _threads: list[Thread] = field(default_factory=list)
    flows: Event = field(default_factory=Event)
    """While it is not set, nothing goes up."""

    def __post_init__(self) -> None:
        self.flows.set()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def cut_after(self, count: int) -> None:
        """Cut once so many bytes more have gone up."""
        self._left["up"] = count

    def cut_down_after(self, count: int) -> None:
        """Cut once so many bytes more have come down."""
        self._left["down"] = count

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(20)
        for end in self._ends:
            end.close()

    def _start(self, target: object, *args: object) -> None:
        thread = Thread(target=target, args=args)  # type: ignore[arg-type]  # a bound method
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # nobody listens there now
                near.close()
                continue
            self._ends += [near, far]
            with self._guard:
                self._pairs += [near, far]
            self._start(self._pump, near, far, "up")
            self._start(self._pump, far, near, "down")

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while data := source.recv(65536):
                if way == "up":
                    self.flows.wait(20)
                sink.sendall(data)
                with self._guard:
                    due = way in self._left and self._left[way] <= len(data)
                    if due:
                        del self._left[way]
                        self.cuts += 1
                    elif way in self._left:
                        self._left[way] -= len(data)
                if due:
                    self._cut()
        except OSError:  # cut
            pass
        _hang_up(source, sink)

    def _cut(self) -> None:
        with self._guard:
            pairs, self._pairs = self._pairs, []
        _hang_up(*pairs)


def _hang_up(*ends: socket.socket) -> None:
    """End connections for whoever reads from them, too."""
    for end in ends:
        with contextlib.suppress(OSError):  # it was over already
            end.shutdown(socket.SHUT_RDWR)
