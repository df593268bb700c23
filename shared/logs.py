"""Logs of the long-lived processes: one JSON object a line.

Flower's own records and those of every other library come out the same way. Of an exception only the name of its type
is written: its text could hold anything. No log grows without end, whoever gives it cause.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from threading import Lock
from typing import Final

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger

MAX_LOG_BYTES: Final = 16 << 20
"""So long a log may become; the one before it is kept beside it."""


def log_json(*, file: Path | None = None) -> None:
    """Send every record of this process to a file of this account, or to standard error.

    What was set up before is dropped, but for what Flower itself keeps.

    Args:
        file: made with mode 0600, appended to; put aside by size, see :func:`log_files`.
    """
    handler = logging.StreamHandler() if file is None else _PrivateLog(file)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name],
            processors=[
                _stamp,
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            keep_exc_info=True,
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def log_files(log: Path) -> tuple[Path, Path]:
    """Return where the older and the newer part of a log lie."""
    return log.with_name(f"{log.name}.1"), log


def put_aside(log: Path, *, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Empty a log that has become too long, and return whether it was; its writers go on in it.

    They hold it open to append, so it is copied and not moved. Where there is no room for a copy, its content goes.

    Raises:
        OSError: the log cannot be looked at or emptied.
    """
    if log.stat().st_size <= max_bytes:
        return False
    older, _ = log_files(log)
    try:
        older.touch(mode=0o600)
        shutil.copyfile(log, older)
    except OSError:
        older.unlink(missing_ok=True)
    os.truncate(log, 0)
    return True


@dataclass
class OnceInAWhile:
    """Lets one line in a while through for each key, and says for how many it stands.

    Attributes:
        clock: monotonic time in seconds.
        every_s: between two lines of one key, in seconds.
    """

    clock: Callable[[], float]
    every_s: float = 1.0
    _said: dict[Hashable, float] = field(default_factory=dict)
    _held: Counter[Hashable] = field(default_factory=Counter)
    _guard: Lock = field(default_factory=Lock)

    def count(self, key: Hashable) -> int:
        """Return for how many lines the present one stands; 0 when it has to wait for the next one."""
        with self._guard:
            self._held[key] += 1
            now = self.clock()
            if key in self._said and now - self._said[key] < self.every_s:
                return 0
            self._said[key] = now
            return self._held.pop(key)


class _PrivateLog(RotatingFileHandler):
    """A log that is put aside by its only writer, readable by this account only."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        """Make the file before the handler would, with any mode."""
        Path(self.baseFilename).touch(mode=0o600)
        return super()._open()


def _stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the record's own time, and the type of an exception in place of its text."""
    record: logging.LogRecord = event["_record"]
    event["time"] = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
    error = event.pop("exc_info", None)
    if error:
        event["error"] = getattr(error[0], "__name__", "") if isinstance(error, tuple) else type(error).__name__
    return event
