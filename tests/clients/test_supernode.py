"""The number of the SuperNode that ran last is found, and its good-bye never keeps the next one from starting."""

from __future__ import annotations

import base64
import inspect
import os
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.supernode import start_client_internal

from clients.config import load_config
from clients.goodbye import say_goodbye
from clients.supernode import NAMED, last_number
from shared.certificates import public_bytes
from shared.errors import ConfigError
from tests.deployed_city import deploy_city
from tests.refusals import code_of


def test_the_last_number_that_a_supernode_logged_counts_also_when_its_log_was_put_aside(tmp_path: Path) -> None:
    assert last_number(tmp_path) == 0
    (tmp_path / "supernode.log.1").write_text("INFO: SuperNode ID: 11\n\x1b[92mINFO\x1b[0m: SuperNode ID: 12\n")
    (tmp_path / "supernode.log").write_text("INFO: Starting Flower SuperNode\n")
    assert last_number(tmp_path) == 12
    (tmp_path / "supernode.log").write_text("SuperNode ID: 18446744073709551615\nSuperNode ID: unknown\n")
    assert last_number(tmp_path) == 2**64 - 1


def test_flower_still_says_its_number_in_these_words() -> None:
    said = inspect.getsource(start_client_internal)
    assert '"SuperNode ID: %s", node_id' in said
    assert NAMED.search(b"SuperNode ID: 7")


def field(content: bytes) -> bytes:
    """A string as OpenSSH writes it."""
    return len(content).to_bytes(4, "big") + content


def encrypted_key() -> bytes:
    """A P-256 key in OpenSSH's format that a password protects, as `ssh-keygen` makes it."""
    point = public_bytes(ec.generate_private_key(ec.SECP256R1()).public_key())
    public = field(b"ecdsa-sha2-nistp256") + field(b"nistp256") + field(point)
    header = field(b"aes256-ctr") + field(b"bcrypt") + field(field(bytes(16)) + (16).to_bytes(4, "big"))
    content = b"openssh-key-v1\0" + header + (1).to_bytes(4, "big") + field(public) + field(os.urandom(192))
    kind = b"OPENSSH PRIVATE" + b" KEY-----\n"
    return b"-----BEGIN " + kind + base64.encodebytes(content) + b"-----END " + kind


def test_where_nobody_is_told_the_next_one_starts_all_the_same_and_a_broken_key_is_named(tmp_path: Path) -> None:
    city = deploy_city(tmp_path, ("health",))
    home = city.home("health")
    config = msgspec.structs.replace(load_config(city.config("health")), fleet="127.0.0.1:1")
    say_goodbye(home, config, 7)
    city_ca = (home / config.city_ca).read_bytes()
    (home / config.city_ca).unlink()
    assert code_of(lambda: say_goodbye(home, config, 7), ConfigError) == "file-missing"
    (home / config.city_ca).write_bytes(city_ca)
    larger = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    for unusable in (b"no key", encrypted_key(), larger):
        (home / config.node_key).write_bytes(unusable)
        assert code_of(lambda: say_goodbye(home, config, 7), ConfigError) == "key-malformed"
