"""A SuperNode's good-bye to the authority, said by somebody else who holds its key."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.config import ClientConfig, read_file
from clients.runner import COMPONENT
from shared.certificates import TlsKey
from shared.keystore import read_private

_LOG = logging.getLogger(__name__)


def say_goodbye(home: Path, config: ClientConfig, number: int) -> None:
    """Tell the authority that a SuperNode has ended; one that is not online any more, or nobody to tell, is no harm.

    Raises:
        ConfigError: ``key-file-missing``, ``key-file-open``, ``key-malformed``, ``file-missing``.
    """
    path = home / config.node_key
    key = TlsKey.from_openssh(read_private(path), where=str(path)).private
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    version = RuntimeVersionHttpInterceptor(component_name=COMPONENT)
    root = read_file(home / config.city_ca)
    try:
        with FleetHttpClient.from_server_address(config.fleet, False, root, [version, signed]) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=number))
    except (httpx.HTTPError, RuntimeError) as error:
        _LOG.info("no good-bye was said for SuperNode %d: %s", number, type(error).__name__)
    else:
        _LOG.info("good-bye was said for SuperNode %d, which ended without one", number)
