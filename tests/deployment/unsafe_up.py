"""`cityfed-client up` with the node of `unsafe_department.py`; started as ``unsafe_up.py SEED CONFIG``."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Event

from clients.up import run_department
from shared.logs import log_json
from shared.supervise import stop_on_signals

if __name__ == "__main__":
    log_json()
    stopped = Event()
    stop_on_signals(stopped)
    entry = Path(__file__).with_name("unsafe_department.py")
    run_department(
        Path(sys.argv[2]), stopped=stopped, node=(sys.executable, str(entry), "node", sys.argv[1], sys.argv[2])
    )
