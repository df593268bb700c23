"""A department's own configuration: one TOML file beside its keys, policy, binding and journal."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Final

from clients.binding import declaration_path, load_binding, load_declaration
from clients.department import Department, Trust, digest_of
from clients.worker import LEAST_SILENCE_S
from policies.load import open_policy
from policies.policy import SignedPolicy
from shared import files
from shared.certificates import TlsFiles, load_tls_files
from shared.codec import Record, decode, load_toml
from shared.errors import ConfigError, ContractError
from shared.identity import DEPARTMENT_NAME, MAX_SIGNED_BYTES, DepartmentId, Signed
from shared.journal import Journal
from shared.keystore import load_identity
from shared.privacy.plan import PerformanceFlags

_MADE_BY: Final = {
    "client.toml": ": `cityfed-client enrol` makes it",
    "policy.toml": ": write it with `cityfed-client policy draft`",
    "policy.sig": ": let the policy's owner sign with `cityfed-client policy sign`",
}
"""Which step makes a file, by the name that it usually has."""


class ClientConfig(Record, frozen=True, kw_only=True):
    """Paths are relative to the file; keys are public keys in hex, compared by fingerprint on first use.

    Attributes:
        department: this department's name on the roster.
        roster_key: public key that signs rosters.
        authority_key: public key that signs plans.
        policy_owner_key: public key of the person or office that signs the policy.
        members: approved identity key of every member of the roster; what `cityfed-client roster approve` adds later
            stands in the journal and goes before this.
        weights: folder of the base weights; empty when the model needs none.
        feature_cache: file of cached encoder features; empty for none.
        stop_file: kill switch; made by ``cityfed-client stop``.
        city_ca: certificate of the city's CA; what the authority's server must come from.
        tls_key: P-256 key for TLS, PEM.
        node_key: the same key as Flower's SuperNode reads it.
        tls_certificate: this department's certificate, once it was admitted.
        fleet: host and port of the authority's Flower gateway.
        channel: host and port of the authority's update channel.
        shelf: host and port of the authority's shelf.
        plans: folder of signed plans.
        step_timeout_s: how long one request may take before the process that works on it is killed, in seconds.
        silence_timeout_s: how long nothing may be heard of that process outside a request before it is killed, in
            seconds; at least 10.
        health_port: where `up` says on loopback how its processes fare; 0 for nowhere.
        outbox: folder of decisions that wait for a node that holds the journal.
    """

    department: str
    roster_key: str
    authority_key: str
    policy_owner_key: str
    members: dict[str, str]
    identity: str = "identity.key"
    policy: str = "policy.toml"
    policy_signature: str = "policy.sig"
    binding: str = "binding.toml"
    journal: str = "journal.sqlite"
    weights: str = ""
    feature_cache: str = ""
    stop_file: str = "stopped"
    city_ca: str = "city-ca.crt"
    tls_key: str = "tls.key"
    node_key: str = "node.key"
    tls_certificate: str = "tls.crt"
    fleet: str = ""
    channel: str = ""
    shelf: str = ""
    plans: str = "plans"
    step_timeout_s: float = 3600.0
    silence_timeout_s: float = 60.0
    health_port: int = 0
    outbox: str = "outbox"
    performance: PerformanceFlags = PerformanceFlags()

    def __post_init__(self) -> None:
        if not DEPARTMENT_NAME.fullmatch(self.department):
            raise ValueError("`department` is a lower-case name such as `transport`")
        if not (self.step_timeout_s > 0 and self.silence_timeout_s >= LEAST_SILENCE_S):
            raise ValueError("`step_timeout_s` is above 0 and `silence_timeout_s` at least 10")
        if not 0 <= self.health_port < 1 << 16:
            raise ValueError("`health_port` lies in 0..65535")


def load_config(path: Path) -> ClientConfig:
    """Read a department's configuration.

    Raises:
        ConfigError: ``file-missing``, ``toml-syntax``, ``toml-content``.
    """
    return load_toml(read_file(path).decode(errors="replace"), ClientConfig, where=str(path))


def load_department(path: Path) -> Department:
    """Load everything that a department's node needs, each part checked.

    Raises:
        ConfigError: a file is missing or malformed, or the policy's signature is not its owner's.
        ContractError: the binding, contract or declaration is not in order.
    """
    config, folder = load_config(path), path.parent
    files = _changeable(path, config)  # before they are read: what changes meanwhile is found
    policy = load_policy(path, config)
    binding_path = folder / config.binding
    declaration = load_declaration(binding_path)
    if declaration.judged_by != policy.digest.hex():
        raise ContractError(
            "declaration-unjudged",
            f"{binding_path} was not checked under the present policy: run `cityfed-client data check` again.",
        )
    return Department(
        name=DepartmentId(config.department),
        identity=load_identity(folder / config.identity),
        trust=load_trust(config),
        files=files,
        policy=policy,
        binding_path=binding_path,
        binding=load_binding(binding_path),
        declaration=declaration,
        weights=folder / config.weights if config.weights else None,
        feature_cache=folder / config.feature_cache if config.feature_cache else None,
        stop_file=folder / config.stop_file,
        outbox=folder / config.outbox,
        performance=config.performance,
    )


def _changeable(path: Path, config: ClientConfig) -> dict[Path, tuple[str, bytes]]:
    """Return the digest of each file that counts as soon as people change it, with the code of the refusal."""
    folder = path.parent
    codes = {
        path: "configuration-changed",
        folder / config.policy: "policy-changed",
        folder / config.policy_signature: "policy-changed",
        declaration_path(folder / config.binding): "declaration-changed",
    }
    return {file: (code, digest_of(file)) for file, code in codes.items()}


def load_trust(config: ClientConfig) -> Trust:
    """Read the public keys that a configuration pins.

    Raises:
        ConfigError: ``key-malformed``.
    """
    return Trust(
        roster_key=read_key(config.roster_key, "roster_key"),
        authority_key=read_key(config.authority_key, "authority_key"),
        pins={DepartmentId(name): read_key(key, f"members.{name}") for name, key in config.members.items()},
    )


def load_tls(path: Path, config: ClientConfig, *, now: dt.datetime) -> TlsFiles:
    """Read what this department presents when it dials the authority, checked for today.

    Raises:
        ConfigError: as :func:`shared.certificates.load_tls_files`; ``not-admitted``.
        ProtocolError: as :func:`shared.certificates.load_tls_files`.
    """
    folder = path.parent
    if not (folder / config.tls_certificate).exists():
        raise ConfigError(
            "not-admitted", f"{folder / config.tls_certificate} is not there: install the city's admission first."
        )
    return load_tls_files(folder / config.tls_key, folder / config.tls_certificate, folder / config.city_ca, now=now)


def load_policy(path: Path, config: ClientConfig) -> SignedPolicy:
    """Read the policy beside a configuration file and check its owner's signature.

    Raises:
        ConfigError: ``file-missing``, ``key-malformed``, ``policy-unsigned``, ``toml-syntax``, ``toml-content``.
    """
    folder = path.parent
    return open_policy(
        read_file(folder / config.policy),
        read_file(folder / config.policy_signature),
        read_key(config.policy_owner_key, "policy_owner_key"),
        where=str(folder / config.policy),
    )


def open_journal(path: Path) -> Journal:
    """Open the journal of the department configured in ``path``, exclusively."""
    config = load_config(path)
    return Journal.open(path.parent / config.journal, owner=config.department)


def read_journal(path: Path) -> Journal:
    """Look at the journal of the department configured in ``path``, beside the node that may hold it.

    Raises:
        ConfigError: the configuration is not in order.
        JournalError: ``journal-missing``, ``journal-unreadable``, ``journal-corrupt``.
    """
    config = load_config(path)
    return Journal.read(path.parent / config.journal, owner=config.department)


def read_signed(path: Path) -> Signed:
    """Read a plan or roster as the authority hands it out; nothing in it is believed yet.

    Raises:
        ConfigError: ``file-missing``.
        ProtocolError: ``message-too-large``, ``message-malformed``.
    """
    most = 2 * MAX_SIGNED_BYTES
    return decode(files.read_file(path, max_bytes=most), Signed, max_bytes=most, where=str(path))


def read_file(path: Path) -> bytes:
    """Read a file, or say which one is missing and which command makes it.

    Raises:
        ConfigError: ``file-missing``.
    """
    return files.read_file(path, made_by=_MADE_BY.get(path.name, ""))


def read_key(text: str, field: str) -> bytes:
    """Read a public key in hex.

    Raises:
        ConfigError: ``key-malformed``.
    """
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError("key-malformed", f"`{field}` must be a public key of 64 hex digits.")
    return key
