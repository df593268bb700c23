"""The authority's configuration: one TOML file in its home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.home import AuthorityHome
from shared.codec import Record, load_toml
from shared.errors import ConfigError
from shared.identity import DEPARTMENT_NAME


class Timeouts(NamedTuple):
    """How long a step waits for the slowest department, in seconds.

    Attributes:
        update_s: the step in which departments train.
        answer_s: every other one, which takes a department moments.
    """

    update_s: float = 3600.0
    answer_s: float = 120.0

    def of(self, step: str) -> float:
        """Return that of one step."""
        return self.update_s if step == "update" else self.answer_s


class ServerConfig(Record, frozen=True, kw_only=True):
    """Names and addresses of the authority.

    Attributes:
        city: the city's name.
        hosts: names and addresses that departments dial; they stand in the server's certificate.
        listen: address that gateway, update channel and shelf listen on.
        fleet: host and port of the Flower gateway, as departments dial it.
        channel: host and port of the update channel, as departments dial it.
        shelf: host and port of the shelf, as departments dial it.
        weights: folder of the base weights, relative to this file; empty when no plan needs any.
        step_timeout_s: how long the step in which departments train waits for the slowest one, in seconds.
        answer_timeout_s: how long every other step of a round waits for the slowest department, in seconds.
        attend_timeout_s: how long a step waits for a department that is not attached, in seconds.
        health_port: where `up` says on loopback how its processes fare; 0 for nowhere.
    """

    city: str
    hosts: tuple[str, ...]
    listen: str
    fleet: str
    channel: str
    shelf: str
    weights: str = ""
    step_timeout_s: float = 3600.0
    answer_timeout_s: float = 120.0
    attend_timeout_s: float = 60.0
    health_port: int = 0

    @property
    def timeouts(self) -> Timeouts:
        """Those of a round's steps."""
        return Timeouts(update_s=self.step_timeout_s, answer_s=self.answer_timeout_s)

    def __post_init__(self) -> None:
        if not DEPARTMENT_NAME.fullmatch(self.city):
            raise ValueError("`city` is a lower-case name such as `metropolis`")
        if not self.hosts:
            raise ValueError("`hosts` names at least one host")
        if not min(self.step_timeout_s, self.answer_timeout_s, self.attend_timeout_s) > 0:
            raise ValueError("`step_timeout_s`, `answer_timeout_s` and `attend_timeout_s` are above 0")
        if not 0 <= self.health_port < 1 << 16:
            raise ValueError("`health_port` lies in 0..65535")
        for address in (self.fleet, self.channel, self.shelf):
            split_address(address)

    def listening(self, dialled: str) -> str:
        """Return where to listen for what departments dial."""
        host = f"[{self.listen}]" if ":" in self.listen else self.listen
        return f"{host}:{split_address(dialled)[1]}"


def new_config(
    city: str, hosts: Sequence[str], *, listen: str | None, fleet_port: int, channel_port: int, shelf_port: int
) -> ServerConfig:
    """Return the configuration of a new city, whose first host stands in its addresses.

    Raises:
        ConfigError: ``city-name``, ``port-range``, ``port-twice``, ``host-malformed``.
    """
    if not DEPARTMENT_NAME.fullmatch(city):
        raise ConfigError("city-name", "A city's name is lower-case, such as `metropolis`.")
    if not all(0 < port < 1 << 16 for port in (fleet_port, channel_port, shelf_port)):
        raise ConfigError("port-range", "A port lies in 1..65535.")
    if len({fleet_port, channel_port, shelf_port}) < 3:
        raise ConfigError("port-twice", "Gateway, update channel and shelf need a port each.")
    if not all(hosts):
        raise ConfigError("host-malformed", "A host is a name or an address; one that was named is empty.")
    host = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
    return ServerConfig(
        city=city,
        hosts=tuple(hosts),
        listen=listen or hosts[0],
        fleet=f"{host}:{fleet_port}",
        channel=f"{host}:{channel_port}",
        shelf=f"{host}:{shelf_port}",
    )


def load_server(home: AuthorityHome) -> ServerConfig:
    """Read the authority's configuration.

    Raises:
        ConfigError: ``city-missing``, ``toml-syntax``, ``toml-content``.
    """
    try:
        text = home.config.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            "city-missing", f"{home.config} cannot be read: found the city with `cityfed-server city init`."
        ) from cause
    return load_toml(text, ServerConfig, where=str(home.config))


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError("an address is `host:port`, the port in 1..65535")
    return host.strip("[]"), int(port)
