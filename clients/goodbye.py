"""A SuperNode's good-bye to the authority, said by somebody else who holds its key."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.config import ClientConfig
from clients.runner import COMPONENT
from shared.errors import ConfigError
from shared.keystore import read_private

_LOG = logging.getLogger(__name__)


def say_goodbye(home: Path, config: ClientConfig, number: int) -> None:
    """Tell the authority that a SuperNode has ended; one that is not online any more, or nobody to tell, is no harm.

    Raises:
        ConfigError: ``key-file-missing``, ``key-file-open``, ``key-malformed``.
    """
    try:
        key = load_ssh_private_key(read_private(home / config.node_key), None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("key-malformed", f"{home / config.node_key} is not an unencrypted P-256 key in OpenSSH form.")
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    version = RuntimeVersionHttpInterceptor(component_name=COMPONENT)
    root = (home / config.city_ca).read_bytes()
    try:
        with FleetHttpClient.from_server_address(config.fleet, False, root, [version, signed]) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=number))
    except (httpx.HTTPError, RuntimeError) as error:
        _LOG.info("no good-bye was said for SuperNode %d: %s", number, type(error).__name__)
    else:
        _LOG.info("good-bye was said for SuperNode %d, which ended without one", number)
