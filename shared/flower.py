"""What both sides settle about Flower without knowing it: the bundle that travels, and its processes' environment.

Flower ships an app as a zip archive and runs what is in it. Ours holds a name, a licence and no code (promise P4): it
refers to the apps of the installed package. The authority submits exactly these bytes, and a department runs a task
only under their digest.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_LOG_LEVEL": "WARNING",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Set for every process that loads Flower: nobody is told, nothing is fetched, nothing is installed."""

RUN_KEY = "run"
"""Name of the one run setting: the run's id in hex."""

_PYPROJECT = f"""\
[project]
name = "cityfed"
version = "1.0.0"
description = "Refers to the apps of the installed package; holds no code."
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "cityfed"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["README.md", "LICENSE"]

[tool.flwr.app.components]
serverapp = "server.flower_app:app"
clientapp = "clients.flower_app:app"

[tool.flwr.app.config]
{RUN_KEY} = ""
"""

_FILES = {
    "pyproject.toml": _PYPROJECT,
    "LICENSE": "Apache-2.0: see the file LICENSE of the installed package.\n",
    "README.md": "This bundle holds no code. Both sides run the package that they installed and reviewed themselves.\n",
}


_LARGE_PAGES = "glibc.malloc.hugetlb=1"
"""Asks the GNU C library for large pages, with which memory for a model of 100 MB is ready in a sixth of the time."""


def environment(inherited: Mapping[str, str], flower_home: Path) -> dict[str, str]:
    """Return the environment of a process that loads Flower.

    Args:
        inherited: this process's own; whatever Flower would read in it is left out.
        flower_home: folder of the role; two roles never share one.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("FLWR_")}
    # Loopback is never reached by way of a proxy.
    unproxied = ",".join(filter(None, (kept.get("NO_PROXY"), "127.0.0.1")))
    tunables = ":".join(filter(None, (kept.get("GLIBC_TUNABLES"), _LARGE_PAGES)))
    own = {"FLWR_HOME": str(flower_home), "NO_PROXY": unproxied, "no_proxy": unproxied, "GLIBC_TUNABLES": tunables}
    return {**kept, **SETTINGS, **own}


@functools.cache
def thin_bundle() -> bytes:
    """Return the archive, byte for byte the same on every machine: stored, not compressed, and without a date."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, text in {**_FILES, ".info/CONTENT": _manifest()}.items():
            entry = zipfile.ZipInfo(name)
            entry.create_system = 0
            archive.writestr(entry, text)
    return packed.getvalue()


def bundle_digest() -> str:
    """Return SHA-256 of the archive as hex: Flower's name for it."""
    return hashlib.sha256(thin_bundle()).hexdigest()


def _manifest() -> str:
    """List every file with its digest and its length in bits, as Flower does."""
    lines = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text.encode())}" for name, text in _FILES.items()
    ]
    return "\n".join(lines)
