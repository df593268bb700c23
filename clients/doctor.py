"""``cityfed-client doctor``: is this machine ready, and if not, what is to be done."""

from __future__ import annotations

import datetime as dt
import email.utils
import importlib.metadata
import platform
import shutil
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from packaging.requirements import Requirement

from clients.config import ClientConfig, load_department, load_tls
from clients.up import SERVICE, own_expiries
from shared.codec import Record
from shared.errors import CityFedError, SetupError
from shared.expiry import expiry_warnings
from shared.supervise import read_status
from shared.tasks.device import resolve_device

DISTRIBUTION: Final = "cityfed"
OUR_PACKAGES: Final = ("clients", "policies", "server", "shared", "simulation")
MIN_FREE_BYTES: Final = 2 << 30
MAX_CLOCK_AHEAD_S: Final = 4.0
MAX_CLOCK_BEHIND_S: Final = 240.0
"""Flower turns a node away whose clock is 5 s ahead of the authority's, or 305 s behind it."""

_TIMEOUT_S: Final = 10.0


class Check(Record, frozen=True, kw_only=True):
    """One finding; ``todo`` says what to do and is empty when all is well."""

    name: str
    found: str
    todo: str = ""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is examined.

    Attributes:
        path: this department's ``client.toml``; ``config`` is what stands in it.
        now: the present time, UTC.
        packages: distributions that ship a top-level package, by its name.
    """

    path: Path
    config: ClientConfig
    now: dt.datetime
    packages: Mapping[str, list[str]]


def examine(patient: Patient) -> tuple[Check, ...]:
    """Make every check; one that cannot be made is to be mended and keeps no other from being made."""
    return tuple(_made(name, check, patient) for name, check in CHECKS.items())


def require_ready(checks: tuple[Check, ...]) -> None:
    """Refuse when anything is to be done.

    Raises:
        SetupError: ``not-ready``.
    """
    failed = [check.name for check in checks if check.todo]
    if failed:
        raise SetupError("not-ready", f"This department is not ready: {', '.join(failed)}.")


def doctor_lines(checks: tuple[Check, ...]) -> list[str]:
    """Say it to a person: what was found, and what to do."""
    lines = []
    for check in checks:
        lines.append(f"{'TO DO' if check.todo else 'ok':5}  {check.name:12}  {check.found}")
        lines += [f"       {'':12}  {check.todo}"] if check.todo else []
    return lines


def _made(name: str, check: Callable[[Patient], tuple[str, str]], patient: Patient) -> Check:
    """Make one check."""
    try:
        found, todo = check(patient)
    except CityFedError as error:
        found, todo = error.code, error.message
    except (OSError, httpx.HTTPError) as error:
        found, todo = type(error).__name__, "See to it that the address, its port and the firewall let this through."
    except (httpx.InvalidURL, ValueError) as error:  # what neither library takes for an address
        found, todo = type(error).__name__, f"Enter the authority's addresses as host and port in {patient.path}."
    return Check(name=name, found=found, todo=todo)


def _python(_patient: Patient) -> tuple[str, str]:
    """The interpreter's version."""
    return platform.python_version(), "" if sys.version_info >= (3, 11) else "Install Python 3.11 or later."


def _packages(patient: Patient) -> tuple[str, str]:
    """Another distribution with a package of one of our names would be run in its place, or mixed with it."""
    strangers = sorted(
        {owner for name in OUR_PACKAGES for owner in patient.packages.get(name, []) if owner != DISTRIBUTION}
    )
    if strangers:
        names = ", ".join(strangers)
        return f"also shipped by {names}", f"Remove {names}, or give {DISTRIBUTION} an environment of its own."
    return "no other distribution has a package of our names", ""


def _versions(_patient: Patient) -> tuple[str, str]:
    """What is installed against what the package declares."""
    wrong = []
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": "client"}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
    found = "; ".join(wrong) or f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)} with what it declares"
    return found, "Install from requirements/lock.txt again." if wrong else ""


def _device(patient: Patient) -> tuple[str, str]:
    """Where training runs."""
    return str(resolve_device(patient.config.performance.device)), ""


def _disk(patient: Patient) -> tuple[str, str]:
    """The journal must be writable for as long as a run goes on."""
    free = shutil.disk_usage(patient.path.absolute().parent).free
    return f"{free / (1 << 30):.1f} GiB free", "" if free >= MIN_FREE_BYTES else "Make room: 2 GiB are the least."


def _department(patient: Patient) -> tuple[str, str]:
    """Identity, policy, binding and declaration, as the node loads them."""
    department = load_department(patient.path)
    return f"{department.name}: identity, policy, binding and declaration are in order", ""


def _switch(patient: Patient) -> tuple[str, str]:
    """The kill switch."""
    stopped = (patient.path.parent / patient.config.stop_file).exists()
    return (
        ("set", "Take it back with `cityfed-client resume` when the department may go on.") if stopped else ("off", "")
    )


def _certificate(patient: Patient) -> tuple[str, str]:
    """This department's certificate, the city's, and how long they last."""
    expiries = own_expiries(patient.path, patient.config, patient.now)
    days = min(item.days(patient.now) for item in expiries)
    return f"valid for {days} days", " ".join(expiry_warnings(expiries, now=patient.now))


def _gateway(patient: Patient) -> tuple[str, str]:
    """The authority's gateway, by its certificate, and this clock against the authority's."""
    trusted = ssl.create_default_context(cafile=str(patient.path.parent / patient.config.city_ca))
    with httpx.Client(verify=trusted, timeout=_TIMEOUT_S) as client:
        answer = client.get(f"https://{patient.config.fleet}/")
    try:
        theirs = email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return f"{patient.config.fleet} answers without a date", "Tell the authority: this is not its gateway."
    ahead = (dt.datetime.now(dt.UTC) - (theirs if theirs.tzinfo else theirs.replace(tzinfo=dt.UTC))).total_seconds()
    found = f"{patient.config.fleet} answers; this clock differs by about {abs(ahead):.0f} s"
    wrong = not -MAX_CLOCK_BEHIND_S < ahead < MAX_CLOCK_AHEAD_S
    return found, "Set this machine's clock by NTP: the authority turns its nodes away." if wrong else ""


def _channel(patient: Patient) -> tuple[str, str]:
    """The update channel; it is open only while a run goes on."""
    address = patient.config.channel
    try:
        return _door(patient, address)
    except ConnectionRefusedError:
        return f"{address} is closed, as it is between runs", ""


def _shelf(patient: Patient) -> tuple[str, str]:
    """The authority's shelf, which is always open."""
    if not patient.config.shelf:
        return "not named", f"Enter host and port of the authority's shelf in {patient.path} (`shelf`)."
    return _door(patient, patient.config.shelf)


def _door(patient: Patient, address: str) -> tuple[str, str]:
    """Whether the authority listens at an address, by both sides' certificates."""
    folder, config = patient.path.parent, patient.config
    load_tls(patient.path, config, now=patient.now)  # says what is the matter with a certificate
    host, _, port = address.rpartition(":")
    trusted = ssl.create_default_context(cafile=str(folder / config.city_ca))
    trusted.load_cert_chain(folder / config.tls_certificate, folder / config.tls_key)
    trusted.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S) as plain,
        trusted.wrap_socket(plain, server_hostname=host.strip("[]")),
    ):
        return f"{address} is open", ""


def _processes(patient: Patient) -> tuple[str, str]:
    """Whether `up` is on."""
    status = read_status(patient.path.parent / SERVICE)
    if status is None:
        return "off", "Start `cityfed-client up`."
    again = [name for name, item in status.programs.items() if not item.pid]
    return (
        ("not running: " + ", ".join(again), f"See {patient.path.parent / SERVICE / 'log'}.") if again else ("on", "")
    )


CHECKS: Final[Mapping[str, Callable[[Patient], tuple[str, str]]]] = {
    "python": _python,
    "packages": _packages,
    "versions": _versions,
    "device": _device,
    "disk": _disk,
    "department": _department,
    "kill switch": _switch,
    "certificate": _certificate,
    "gateway": _gateway,
    "channel": _channel,
    "shelf": _shelf,
    "processes": _processes,
}
"""Every check by name, in the order in which they are made."""
