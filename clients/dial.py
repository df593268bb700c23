"""A department's connections to the authority's gRPC services: mutual TLS, dialled from here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from shared.certificates import TlsFiles
from shared.channel import MAX_FRAME_BYTES

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials at once; the pauses are made here
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 20_000),  # pings go on while the department trains: another thread sends them
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.max_pings_without_data", 0),
)


@contextmanager
def dialled(address: str, tls: TlsFiles) -> Iterator[grpc.Channel]:
    """Open a channel and close it again.

    Args:
        address: host and port of the authority; the host stands in its certificate.
        tls: this department's key and certificate, and the city's CA certificate.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.authority, private_key=tls.key, certificate_chain=tls.certificate
    )
    with grpc.secure_channel(address, credentials, options=_OPTIONS) as channel:
        yield channel
