"""Flower's SuperLink: how its processes are started, and the few calls of its control interface that a run needs.

It listens on loopback behind :mod:`server.gateway`, keeps its state in a file of the home, asks every node for a
signature by a registered key, and hands tasks only to the process that knows a secret.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from shared.certificates import TlsKey
from shared.errors import SetupError
from shared.flower import RUN_KEY, bundle_digest, thin_bundle
from shared.identity import DepartmentId
from shared.loopback import LOOPBACK
from shared.private_files import replace_private_file

_CERTIFICATE_DAYS = 3650


@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """One SuperLink.

    Attributes:
        folder: private; everything in it is remade or belongs to Flower.
        secret: file with what the process that starts apps must know.
        port: on loopback.
    """

    folder: Path
    secret: Path
    port: int

    @property
    def address(self) -> str:
        """Host and port, as Flower's commands take them."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def certificate(self) -> Path:
        """The certificate that only this machine's processes trust."""
        return self.folder / "loopback.pem"

    @property
    def key(self) -> Path:
        """Its private key."""
        return self.folder / "loopback.key"

    def prepare(self, now: dt.datetime) -> None:
        """Make the loopback certificate anew; the processes that use it start after this."""
        key = TlsKey.generate()
        replace_private_file(self.certificate, _self_signed(key.private, now))
        replace_private_file(self.key, key.pem())

    def superlink_command(self) -> tuple[str, ...]:
        """Return what starts the SuperLink."""
        return (
            _program("flower-superlink"),
            *("--isolation", "process", "--host", LOOPBACK, "--port", str(self.port)),
            *("--ssl-certfile", str(self.certificate), "--ssl-keyfile", str(self.key)),
            *("--ssl-ca-certfile", str(self.certificate)),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--superexec-auth-secret-file", str(self.secret)),
            *("--database", str(self.folder / "state.sqlite")),
        )

    def superexec_command(self) -> tuple[str, ...]:
        """Return what starts the process that runs the authority's app for each run."""
        return (
            _program("flower-superexec"),
            *("--runtime-api-address", self.address, "--root-certificates", str(self.certificate)),
            *("--superexec-auth-secret-file", str(self.secret)),
        )


def _program(name: str) -> str:
    """Return a command of the environment that this package runs in."""
    return str(Path(sys.executable).parent / name)


def _self_signed(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> bytes:
    """Return a certificate for the loopback address, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cityfed loopback")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(address, critical=False)
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


# --- the control interface -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered node as Flower knows it; ``last_sign`` is in seconds since the epoch, 0 before the first."""

    node_id: int
    public_key: bytes
    online: bool
    last_sign: float


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """Where a run stands in Flower; ``outcome`` is empty until it is finished."""

    run_id: int
    status: str
    outcome: str
    details: str


class Control:
    """The calls that a run needs.

    Raises:
        SetupError: every method, ``superlink-unreachable`` or ``superlink-refused``.
    """

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """Return every node that is registered."""
        with _said_plainly():
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                node_id=item.node_id,
                public_key=item.public_key,
                online=item.status == "online",
                last_sign=_last_sign(item),
            )
            for item in answer.nodes_info
            if item.status != "unregistered"
        ]

    def enrol(self, keys: Mapping[DepartmentId, bytes]) -> dict[DepartmentId, int]:
        """Let exactly these keys in, and return the node id of each department.

        Args:
            keys: public key per department, PEM; every other key is turned away from now on.
        """
        known = {node.public_key: node.node_id for node in self.nodes()}
        with _said_plainly():
            for key in known.keys() - set(keys.values()):
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=known[key]))
            for name, key in keys.items():
                if key not in known:
                    answer = self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
                    known[key] = answer.node_id
        return {name: known[key] for name, key in keys.items()}

    def start(self, run: str) -> int:
        """Submit a run and return Flower's number for it."""
        bundle = Fab(hash_str=bundle_digest(), content=thin_bundle())
        request = StartRunRequest(fab=bundle, override_config=user_config_to_proto({RUN_KEY: run}))
        with _said_plainly():
            answer = self._client.StartRun(request)
        return answer.run_id

    def run(self, run_id: int) -> FlowerRun:
        """Return where a run stands."""
        with _said_plainly():
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        state = found.status
        return FlowerRun(run_id=run_id, status=state.status, outcome=state.sub_status, details=state.details)

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        with _said_plainly():
            self._client.StopRun(StopRunRequest(run_id=run_id))


def _last_sign(node: NodeInfo) -> float:
    """Return when a node's last sign of life came; Flower keeps until when it counts as online, or when it left."""
    if node.status == "online":
        return node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval
    return node.online_until if node.HasField("online_until") else 0.0


@contextmanager
def open_control(superlink: SuperLink) -> Iterator[Control]:
    """Connect to the control interface; only a process on the authority's own machine can."""
    client = ControlHttpClient.from_server_address(
        superlink.address,
        insecure=False,
        root_certificates=superlink.certificate.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="cityfed-server")],
    )
    with client:
        yield Control(client)


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn what the client raises into one sentence."""
    try:
        yield
    except httpx.TransportError as cause:
        raise SetupError(
            "superlink-unreachable", "The SuperLink does not answer: is `cityfed-server up` on?"
        ) from cause
    except httpx.HTTPStatusError as cause:
        status = cause.response.status_code
        raise SetupError("superlink-refused", f"The SuperLink refused a call with status {status}.") from cause
