"""A reply as the update channel hands it over: mapped from a file."""

from __future__ import annotations

from pathlib import Path

from server.spool import mapped, open_spool


def spooled(folder: Path, data: bytes | memoryview) -> memoryview:
    with open_spool(folder, len(data)) as file:
        file.write(data)
        return mapped(file)
