"""Fetch what the authority publishes: roster, plans, models. This department pulls, nothing is pushed to it.

What comes from the shelf is believed no more than the same file by mail: it is downloaded whole, verified as such a
file would be, and only then put in place. A transfer has no digest of its own: the signature of roster, plan and record
covers every byte, and the record has the digest of the model's file.
"""

from __future__ import annotations

import datetime as dt
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from clients.config import load_config, load_tls, load_trust
from clients.dial import dialled
from clients.models import Installed, fetch_model
from clients.plans import add_plan, plan_of_run
from clients.roster import RosterView, roster_view
from shared.channel import Incoming, read_start
from shared.codec import decode, encode
from shared.errors import ConfigError, ProtocolError
from shared.identity import MAX_SIGNED_BYTES, Signed
from shared.plan import accept_plan
from shared.private_files import replacing_private_file
from shared.shelf import (
    FETCH,
    ITEM_KEY,
    LIST,
    MAX_LISTING_BYTES,
    MODEL_FILES,
    SERVICE,
    Item,
    Listing,
    deadline_s,
)

ROSTER_FILE: Final = "roster.msgpack"
"""The newest roster that was fetched, in the department's home."""

_MODEL_TEXT_BYTES: Final = 1 << 20
"""Longest signed record or card of a model, and the header of its file."""

_REFUSALS: Final = {
    "certificate-not-admitted": "The city does not admit this department's certificate, or not any more.",
    "not-on-shelf": "The authority's shelf does not hold this.",
    "shelf-changed": "What lies on the authority's shelf is not what was signed: tell the authority.",
    "too-many-calls": "Too many calls of this department are in progress: wait for their end.",
}
"""What a refusal of the authority means here; any other text of its is not repeated."""


@dataclass(frozen=True)
class Shelf:
    """The authority's shelf, dialled."""

    address: str
    channel: grpc.Channel

    def listing(self) -> Listing:
        """Return what lies there.

        Raises:
            ProtocolError: as :meth:`fetch`.
        """
        return decode(self._whole(LIST, max_bytes=MAX_LISTING_BYTES), Listing)

    def signed(self, item: Item) -> bytes:
        """Return a signed document; nothing in it is believed yet.

        Raises:
            ProtocolError: as :meth:`fetch`.
        """
        return self._whole(FETCH, item, max_bytes=2 * MAX_SIGNED_BYTES)

    def fetch(self, item: Item, path: Path, *, max_bytes: int) -> None:
        """Download an item to a new file.

        Raises:
            ProtocolError: ``certificate-not-admitted``, ``not-on-shelf``, ``shelf-changed``, ``too-many-calls``,
                ``shelf-refused``, ``shelf-unreachable``; ``transfer-too-large`` and those of
                :class:`shared.channel.Incoming`.
        """
        with path.open("xb") as file:
            self._download(FETCH, item, file.write, max_bytes=max_bytes)

    def _whole(self, method: str, item: Item | None = None, *, max_bytes: int) -> bytes:
        """Download something short."""
        buffer = io.BytesIO()
        self._download(method, item, buffer.write, max_bytes=max_bytes)
        return buffer.getvalue()

    def _download(
        self, method: str, item: Item | None, write: Callable[[memoryview], object], *, max_bytes: int
    ) -> None:
        """Make one call; it brings as many bytes as were announced, or ends by name."""
        metadata = () if item is None else ((ITEM_KEY, encode(item)),)
        ask = self.channel.stream_stream(f"/{SERVICE}/{method}")
        call = ask(iter(()), metadata=metadata, timeout=deadline_s(max_bytes))
        try:
            transfer = Incoming(read_start(next(call, b""), number=0, max_bytes=max_bytes), write)
            for raw in call:
                transfer.take(raw)
        except grpc.RpcError as error:
            raise self._refusal(error) from error
        finally:
            call.cancel()
        transfer.finish()

    def _refusal(self, error: grpc.RpcError) -> ProtocolError:
        """Name a call that failed."""
        said = error.details() if error.code() is not grpc.StatusCode.UNAVAILABLE else ""
        if said in _REFUSALS:
            return ProtocolError(said, _REFUSALS[said])
        if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
            return ProtocolError(
                "shelf-unreachable",
                f"{self.address} was not reached, broke off, or does not accept this department's certificate.",
            )
        return ProtocolError("shelf-refused", "The authority refused this department's call.")


@contextmanager
def open_shelf(config_path: Path, *, now: dt.datetime) -> Iterator[Shelf]:
    """Dial the shelf that a configuration names.

    Raises:
        ConfigError: ``shelf-unnamed``; as :func:`clients.config.load_tls`.
        ProtocolError: as :func:`clients.config.load_tls`.
    """
    config = load_config(config_path)
    if not config.shelf:
        raise ConfigError("shelf-unnamed", f"{config_path} does not say where the shelf is (`shelf`: host and port).")
    with dialled(config.shelf, load_tls(config_path, config, now=now)) as channel:
        yield Shelf(config.shelf, channel)


def fetch_roster(config_path: Path, *, now: dt.datetime) -> RosterView:
    """Fetch the newest roster into :data:`ROSTER_FILE`; no key on it is approved by that.

    Raises:
        ConfigError: as :func:`open_shelf`.
        ProtocolError: as :meth:`Shelf.fetch`; as :func:`clients.roster.roster_view`. The file stays as it was then,
            also where it holds a newer roster than the one that was fetched.
        JournalError: the journal does not verify.
    """
    with open_shelf(config_path, now=now) as shelf:
        data = shelf.signed(Item(kind="roster"))
    path = config_path.parent / ROSTER_FILE
    with replacing_private_file(path) as partial:
        partial.write_bytes(data)
        return roster_view(config_path, partial, now=now, fetched=path)


def fetch_plans(config_path: Path, digest: str = "", *, now: dt.datetime) -> tuple[str, ...]:
    """Fetch published plans into the folder of plans, each verified as :func:`clients.plans.add_plan` does.

    Args:
        config_path: this department's ``client.toml``.
        digest: of the plan that is wanted, 64 hex digits; empty for every plan that does not lie here yet.
        now: the present time, UTC.

    Returns:
        The digests of the plans that were fetched; nothing is approved by that.

    Raises:
        ConfigError: as :func:`open_shelf`.
        ProtocolError: as :meth:`Shelf.fetch`; ``signature-invalid``, ``message-malformed``, ``plan-changed``.
        SetupError: ``home-not-writable``.
    """
    folder = config_path.parent / load_config(config_path).plans
    with open_shelf(config_path, now=now) as shelf:
        listed = shelf.listing().plans
        if digest and digest not in listed:
            raise ProtocolError("not-on-shelf", _REFUSALS["not-on-shelf"])
        wanted = (digest,) if digest else tuple(name for name in listed if not (folder / f"{name}.plan").exists())
        for name in wanted:
            _add(config_path, name, shelf.signed(Item(kind="plan", name=name)))
    return wanted


def fetch_released(config_path: Path, run: str, *, now: dt.datetime) -> Installed:
    """Fetch a released model and install it as :func:`clients.models.fetch_model` does.

    Args:
        config_path: this department's ``client.toml``.
        run: the run's id in hex, or its first digits.
        now: the present time, UTC.

    Raises:
        ConfigError: as :func:`open_shelf`; ``run-unknown``, ``run-ambiguous``; as :func:`clients.models.fetch_model`.
        ProtocolError: as :meth:`Shelf.fetch`; as :func:`clients.models.fetch_model`.
        ModelError: as :func:`clients.models.fetch_model`.
        JournalError: as :func:`clients.models.fetch_model`.
        SetupError: as :func:`clients.models.fetch_model`.
    """
    with open_shelf(config_path, now=now) as shelf:
        name = _only(shelf.listing().models, run)
        plan = plan_of_run(config_path, bytes.fromhex(name))
        # In the home, where there is room for a model, and nobody looks for one under such a name.
        with tempfile.TemporaryDirectory(dir=config_path.parent, prefix=".fetch-") as scratch:
            for kind, file in MODEL_FILES.items():
                most = _MODEL_TEXT_BYTES + (4 * plan.layout.size if kind == "model" else 0)
                shelf.fetch(Item(kind=kind, name=name), Path(scratch) / file, max_bytes=most)
            return fetch_model(config_path, name, source=Path(scratch), now=now)


def _add(config_path: Path, digest: str, data: bytes) -> None:
    """Put a plan in place that must be the one that was asked for."""
    signed = decode(data, Signed, max_bytes=2 * MAX_SIGNED_BYTES)
    plan = accept_plan(signed, load_trust(load_config(config_path)).authority_key)
    if plan.digest().hex() != digest:
        raise ProtocolError("plan-changed", "The shelf does not hold the plan of its name.")
    add_plan(config_path, signed)


def _only(runs: tuple[str, ...], run: str) -> str:
    """Return the one run that is meant."""
    found = [name for name in runs if run and name.startswith(run)]
    if not found:
        raise ConfigError("run-unknown", "The authority's shelf holds no model of such a run.")
    if len(found) > 1:
        raise ConfigError("run-ambiguous", f"{len(found)} models on the authority's shelf could be meant.")
    return found[0]
