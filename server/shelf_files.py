"""What lies on the shelf: the roster, published plans, and models that somebody has released; nothing else.

A request names a kind and hex digits. They are looked up among what is found here and never become part of a path. All
of it is signed, and is verified in the very call in which it is sent: a changed file stays here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from server.city import load_city
from server.home import AuthorityHome
from server.plan_files import PlanState
from server.runs import RunFolder
from shared.channel import Payload
from shared.city import CityFile
from shared.codec import MAX_MESSAGE_BYTES, decode, load_json
from shared.errors import CityFedError, ModelError, ProtocolError
from shared.identity import DepartmentId, Signed, open_signed
from shared.plan import accept_plan
from shared.release import RELEASE_LABEL, ModelRelease
from shared.roster import open_roster
from shared.shelf import MODEL_FILES, Item, Kind, Listing

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{64}")


def shelf_listing(home: AuthorityHome, caller: DepartmentId) -> Listing:
    """Say what lies on the shelf for a department; whether it verifies shows when it is asked for."""
    found = _found(home, caller)
    return Listing(
        roster=Item(kind="roster") in found,
        plans=tuple(sorted(item.name for item in found if item.kind == "plan")),
        models=tuple(sorted(item.name for item in found if item.kind == "model")),
    )


@contextmanager
def opened(home: AuthorityHome, item: Item, caller: DepartmentId) -> Iterator[Payload]:
    """Open one item of the shelf for a department, verified.

    Raises:
        ProtocolError: ``not-on-shelf``; ``shelf-changed`` when it is not what the city's keys have signed.
        ConfigError: ``city-missing``.
    """
    path, city = _found(home, caller).get(item), load_city(home)
    if path is None:
        raise ProtocolError("not-on-shelf", "The shelf holds no such thing.")
    with path.open("rb") as file:
        try:
            payload = _verified(city, item, file, path.parent)
        except CityFedError as cause:
            raise ProtocolError("shelf-changed", f"{path} is not what was signed: it stays here.") from cause
        yield payload


def _found(home: AuthorityHome, caller: DepartmentId) -> dict[Item, Path]:
    """Return everything on the shelf for a department; a model lies there once all of its three files do."""
    found = {Item(kind="roster"): home.roster} if home.roster.is_file() else {}
    for path in (home.plans / PlanState.PUBLISHED).glob("*.plan"):
        if _is_named(path.stem, path):
            found[Item(kind="plan", name=path.stem)] = path
    for folder in home.released.glob("*"):
        files = {kind: folder / name for kind, name in MODEL_FILES.items()}
        if _is_named(folder.name, *files.values()) and _receives(home, folder.name, caller):
            found |= {Item(kind=kind, name=folder.name): path for kind, path in files.items()}
    return found


def _receives(home: AuthorityHome, run: str, caller: DepartmentId) -> bool:
    """Say whether the plan of a run gives its model to a department (R21)."""
    try:
        plan = accept_plan(RunFolder(home.runs / run).submitted().plan, load_city(home).plan_key)
    except CityFedError:
        _LOG.warning("the plan of run %s cannot be read: nobody receives its model", run)
        return False
    return plan.run_id().hex() == run and plan.gives_model_to(caller)


def _is_named(name: str, *paths: Path) -> bool:
    """Say whether a name is one, and every file a file of this folder."""
    return bool(_NAME.fullmatch(name)) and all(path.is_file() and not path.is_symlink() for path in paths)


def _verified(city: CityFile, item: Item, file: BufferedReader, folder: Path) -> Payload:
    """Verify exactly what will be sent: the bytes, or a model's by the descriptor that they are read from."""
    if item.kind in _CHECKS:
        data = file.read(MAX_MESSAGE_BYTES)
        _CHECKS[item.kind](city, item.name, data)
        return Payload.of(data)
    digest, length = hashlib.file_digest(file, "sha256"), file.tell()
    record = _record(city, item.name, (folder / MODEL_FILES["model-record"]).read_bytes())
    if {"model": record.file_sha256, "model-card": record.card_sha256}[item.kind] != digest.hexdigest():
        raise ModelError("model-changed", "The file is not the one that was signed.")
    return Payload(length, lambda offset, size: os.pread(file.fileno(), size, offset))


def _record(city: CityFile, run: str, data: bytes) -> ModelRelease:
    """Open what was signed about the model of a run."""
    signed = load_json(data, Signed, where="The signed record of a model")
    release = open_signed(city.plan_key, RELEASE_LABEL, signed, ModelRelease)
    if release.run.hex() != run:
        raise ProtocolError("release-foreign", "The signed record is about another run.")
    return release


def _plan(city: CityFile, digest: str, data: bytes) -> None:
    """Refuse what is not the plan of this digest."""
    if accept_plan(decode(data, Signed), city.plan_key).digest().hex() != digest:
        raise ProtocolError("plan-changed", "The file does not hold the plan of its name.")


def _roster(city: CityFile, _name: str, data: bytes) -> None:
    """Refuse what is not a roster of this city."""
    open_roster(decode(data, Signed), roster_key=city.roster_key, newest=None)


_CHECKS: Final[Mapping[Kind, Callable[[CityFile, str, bytes], object]]] = {
    "roster": _roster,
    "plan": _plan,
    "model-record": _record,
}
"""How what is signed itself is verified; the record about a model holds the digests of its other two files."""
