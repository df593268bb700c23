"""Private keys at rest."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shared.errors import CityFedError, ConfigError
from shared.identity import IdentityKey
from shared.keystore import load_identity, save_identity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "identity.key"


def code_of(path: Path) -> str:
    with pytest.raises(CityFedError) as caught:
        load_identity(path)
    return caught.value.code


def test_a_saved_key_comes_back_and_only_its_owner_can_read_the_file(path: Path) -> None:
    key = IdentityKey.generate()
    save_identity(path, key)
    assert load_identity(path).public == key.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(path: Path) -> None:
    key = IdentityKey.generate()
    save_identity(path, key)
    with pytest.raises(ConfigError) as caught:
        save_identity(path, IdentityKey.generate())
    assert caught.value.code == "key-file-exists"
    assert load_identity(path).public == key.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_a_key_that_others_could_have_read_is_not_used(path: Path, mode: int) -> None:
    save_identity(path, IdentityKey.generate())
    path.chmod(mode)
    assert code_of(path) == "key-file-open"


def test_a_missing_key_is_one_sentence(path: Path) -> None:
    assert code_of(path) == "key-file-missing"


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_what_is_no_key_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    assert code_of(path) == "key-malformed"


def test_no_error_repeats_a_byte_of_a_key(path: Path) -> None:
    path.write_bytes(b"this is a secret that is too long for a key")
    path.chmod(0o600)
    with pytest.raises(CityFedError) as caught:
        load_identity(path)
    assert "secret" not in caught.value.diagnostics()
