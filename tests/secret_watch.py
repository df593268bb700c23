"""Sees every secret that production code makes, without changing it, and looks for secrets where none may be."""

from __future__ import annotations

import base64
import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from clients.training import train
from clients.training.noise import CtrStream
from shared.crypto import keys
from shared.crypto.seal import SealingKey
from shared.secagg import epoch, shamir

PACKAGES = ("shared", "policies", "clients", "server", "simulation")
Found = Callable[[dict[str, Any], Any], list[bytes]]


def _returned(_: dict[str, Any], value: Any) -> list[bytes]:
    """A key."""
    return [value]


def _number(_: dict[str, Any], value: Any) -> list[bytes]:
    """A seed."""
    return [value.to_bytes(32, "little"), value.to_bytes(32, "big"), str(value).encode()]


def _private_keys(names: dict[str, Any], _: Any) -> list[bytes]:
    """Both halves of an HPKE key pair."""
    return [names["mlkem"].private_bytes_raw(), names["x25519"].private_bytes_raw()]


def _split(names: dict[str, Any], _: Any) -> list[bytes]:
    """What was shared, and the polynomial that shares it; the shares themselves travel."""
    return [item for number in (names["secret"], *names["random"]) for item in _number(names, number)]


WATCHED: dict[str, dict[CodeType, Found]] = {
    "root or key": {function.__code__: _returned for function in (keys.extract, keys.expand, keys.advance)},
    "seed": {keys.to_seed.__code__: _number},
    "shared seed": {shamir.split.__code__: _split},
    "epoch seed": {epoch.AdvertisedEpoch.receive.__code__: lambda names, _: list(names.get("seeds", {}).values())},
    "HPKE key": {SealingKey.__init__.__code__: _private_keys},
    "noise key": {CtrStream.__init__.__code__: lambda names, _: [names["key"]]},
    "update": {train.Trainer.train.__code__: lambda _, value: [value.delta[:16].tobytes()]},
}
_BY_CODE = {code: (kind, found) for kind, functions in WATCHED.items() for code, found in functions.items()}


@dataclass
class SecretWatch:
    """Every secret that was made while it watched, by kind; its repr shows none."""

    secrets: dict[str, set[bytes]] = field(default_factory=lambda: {kind: set() for kind in WATCHED}, repr=False)

    @contextmanager
    def watching(self) -> Iterator[SecretWatch]:
        """Listen to the interpreter: whenever a watched function returns, note what it made."""
        gc.collect()  # what other tests left behind is not of this run
        before = sys.getprofile()
        sys.setprofile(self._hear)
        threading.setprofile(self._hear)
        try:
            yield self
        finally:
            sys.setprofile(before)
            threading.setprofile(None)

    def _hear(self, frame: FrameType, event: str, value: Any) -> None:
        if event == "return" and frame.f_code in _BY_CODE:
            kind, found = _BY_CODE[frame.f_code]
            if value is not None or kind in ("HPKE key", "noise key"):  # an exception returns None
                self.secrets[kind].update(found(frame.f_locals, value))

    def everything(self) -> set[bytes]:
        """All secrets of all kinds."""
        return set().union(*self.secrets.values())


def spellings(secret: bytes) -> set[bytes]:
    """How a secret would look: raw, in hex, in base64, as Python prints it."""
    hexadecimal = secret.hex()
    encoded = {base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
    return {
        secret,
        hexadecimal.encode(),
        hexadecimal.upper().encode(),
        *(item.rstrip(b"=") for item in encoded),
        repr(secret)[2:-1].encode(),
    }


def leaks(secrets: set[bytes], places: dict[str, bytes]) -> set[str]:
    """Return the names of the places where a secret stands, in any spelling."""
    wanted = {spelling for secret in secrets for spelling in spellings(secret)}
    return {name for name, content in places.items() if any(spelling in content for spelling in wanted)}


def printed_objects() -> set[str]:
    """Everything of ours that is alive, as it would print itself."""
    ours = [item for item in gc.get_objects() if str(type(item).__module__).partition(".")[0] in PACKAGES]
    return {form for item in ours for form in (repr(item), str(item))}


def printed_error(error: BaseException | None) -> bytes:
    """An exception with its causes and its traceback, as a log would have it, and its attributes."""
    lines: list[str] = []
    while error is not None:
        lines += [*traceback.format_exception(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "".join(lines).encode(errors="replace")
