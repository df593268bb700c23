"""What this department remembers, opened for its people: to look at it, and to decide."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.config import load_config, open_journal
from clients.memory import Memory
from shared.errors import JournalError
from shared.journal import Journal


@contextmanager
def open_memory(config_path: Path, clock: Callable[[], dt.datetime]) -> Iterator[Memory]:
    """Open the journal, or look at it beside the node that holds it; decisions wait for that node then.

    Raises:
        ConfigError: the configuration is not in order.
        JournalError: the journal does not verify; ``decision-malformed``.
    """
    config = load_config(config_path)
    outbox = config_path.parent / config.outbox
    try:
        journal = open_journal(config_path)
    except JournalError as error:
        if error.code != "journal-locked":
            raise
        with Journal.read(config_path.parent / config.journal, owner=config.department) as read:
            yield Memory(read, clock, outbox=outbox)
        return
    with journal:
        memory = Memory(journal, clock)
        memory.take_over(outbox)
        yield memory
