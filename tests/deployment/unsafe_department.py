"""A department's node for tests: the shipped one, but for a seeded source in place of the operating system's.

There is no such switch in the shipped command. Started as ``unsafe_department.py node|worker SEED ...``.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event

from clients.attendant import run_worker
from clients.node import run_node
from clients.training.noise import UnsafeSeededSource
from shared.logs import log_json
from shared.supervise import stop_on_signals


def node(seed: str, config: str, runtime: str, secret: str) -> None:
    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    worker = (sys.executable, __file__, "worker", seed, config)
    run_node(Path(config), runtime=runtime, secret=Path(secret).read_bytes(), stopped=stopped, worker=worker)


def main(role: str, seed: str, config: str, *rest: str) -> None:
    if role == "worker":
        run_worker(Path(config), Connection(int(rest[0])), source=lambda: UnsafeSeededSource(int(seed)))
    else:
        node(seed, config, runtime=rest[1], secret=rest[3])


if __name__ == "__main__":
    main(*sys.argv[1:])
