"""A department that trains nothing: the shipped processes, but for a trainer that returns the same small update.

Started as ``idle_department.py up|node|worker CONFIG ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event

import numpy as np
from torch import nn

from clients.attendant import run_worker
from clients.node import run_node
from clients.training.engines import BOOKKEEPING
from clients.training.noise import RandomSource
from clients.training.train import DpUpdate, Trainer, TrainingSettings
from clients.up import run_department
from shared.logs import log_json
from shared.parameters import Vector
from shared.privacy.plan import PerformanceFlags
from shared.supervise import stop_on_signals
from shared.tasks.text import Prepared

NORM = 1.0


class IdleTrainer(Trainer):
    """Says that every coordinate has moved by the same little bit."""

    @classmethod
    def prepare(
        cls,
        *,
        settings: TrainingSettings,
        data: Prepared,  # noqa: ARG003 - nobody trains
        weights_dir: Path | None,  # noqa: ARG003
        flags: PerformanceFlags,
    ) -> IdleTrainer:
        return cls(settings=settings, flags=flags, model=nn.Identity(), engine=BOOKKEEPING)

    def train(
        self,
        parameters: Vector,
        data: Prepared,  # noqa: ARG002
        source: RandomSource,  # noqa: ARG002
        on_step: Callable[[int], None] | None = None,  # noqa: ARG002
    ) -> DpUpdate:
        step = np.float32(NORM / np.sqrt(parameters.size))
        return DpUpdate(delta=np.broadcast_to(step, parameters.shape), steps=0, engine=self.engine.name)


def run(role: str, config: Path, rest: Sequence[str]) -> None:
    """Be one of a department's processes."""
    if role == "worker":
        run_worker(config, Connection(int(rest[0])), trainer=IdleTrainer)
        return
    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    entry = (sys.executable, __file__)
    if role == "up":
        run_department(config, stopped=stopped, node=(*entry, "node", str(config)))
    else:
        worker, secret = (*entry, "worker", str(config)), Path(rest[3]).read_bytes()
        run_node(config, runtime=rest[1], secret=secret, stopped=stopped, worker=worker)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
