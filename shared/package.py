"""The digest of the installed package: which reviewed code a plan may run on (promise P4)."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from importlib.resources.abc import Traversable

REVIEWED_PACKAGES = ("clients", "policies", "shared")


@functools.cache
def package_digest() -> str:
    """Return SHA-256 over every source and contract file that a department executes, as hex.

    The same wheel gives the same digest on every platform; an edited file gives another one, and a plan that
    names another digest is refused.
    """
    digest = hashlib.sha256()
    for package in REVIEWED_PACKAGES:
        for name, content in _files(resources.files(package), package):
            digest.update(f"{name}\x00{len(content)}\x00".encode())
            digest.update(content)
    return digest.hexdigest()


def _files(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    """Collect source and contract files below a package folder, sorted by name."""
    found: list[tuple[str, bytes]] = []
    for item in folder.iterdir():
        name = f"{prefix}/{item.name}"
        if item.is_dir() and item.name != "__pycache__":
            found.extend(_files(item, name))
        elif item.name.endswith((".py", ".yaml")):
            found.append((name, item.read_bytes()))
    return sorted(found)
