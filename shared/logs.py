"""Logs of the long-lived processes: one JSON object a line.

Flower's own records and those of every other library come out the same way. Of an exception only the name of its type
is written: its text could hold anything.
"""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger


def log_json(*, file: Path | None = None) -> None:
    """Send every record of this process to a file of this account, or to standard error.

    What was set up before is dropped, but for what Flower itself keeps.

    Args:
        file: made with mode 0600, appended to.
    """
    if file is not None:
        file.touch(mode=0o600)
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
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


def _stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the record's own time, and the type of an exception in place of its text."""
    record: logging.LogRecord = event["_record"]
    event["time"] = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
    error = event.pop("exc_info", None)
    if error:
        event["error"] = getattr(error[0], "__name__", "") if isinstance(error, tuple) else type(error).__name__
    return event
