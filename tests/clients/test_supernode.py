"""The number of the SuperNode that ran last is found, and its good-bye never keeps the next one from starting."""

from __future__ import annotations

import inspect
from pathlib import Path

import msgspec
import pytest
from flwr.supernode import start_client_internal

from clients.config import load_config
from clients.goodbye import say_goodbye
from clients.supernode import NAMED, last_number
from shared.errors import ConfigError
from tests.deployed_city import deploy_city


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


def test_where_nobody_is_told_the_next_one_starts_all_the_same_and_a_broken_key_is_named(tmp_path: Path) -> None:
    city = deploy_city(tmp_path, ("health",))
    home = city.home("health")
    config = msgspec.structs.replace(load_config(city.config("health")), fleet="127.0.0.1:1")
    say_goodbye(home, config, 7)
    (home / config.node_key).write_text("no key")
    with pytest.raises(ConfigError) as caught:
        say_goodbye(home, config, 7)
    assert caught.value.code == "key-malformed"
