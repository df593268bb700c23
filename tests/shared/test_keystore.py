"""Private keys at rest."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shared.errors import CityFedError, ConfigError
from shared.identity import IdentityKey
from shared.keystore import find_private, load_identity, read_private, save_identity


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
    with pytest.raises(ConfigError, match=str(path)) as caught:  # as any other file that is not in order
        load_identity(path)
    assert caught.value.code == "key-malformed"


def test_no_error_repeats_a_byte_of_a_key(path: Path) -> None:
    path.write_bytes(b"this is a secret that is too long for a key")
    path.chmod(0o600)
    with pytest.raises(CityFedError) as caught:
        load_identity(path)
    assert "secret" not in caught.value.diagnostics()


# --- systemd credentials -----------------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_a_credential_of_the_same_name_goes_before_the_file(path: Path, credentials: dict[str, str]) -> None:
    save_identity(path, IdentityKey.generate())
    credential = Path(credentials["CREDENTIALS_DIRECTORY"]) / path.name
    assert find_private(path, credentials) == path
    credential.write_bytes(b"the credential")
    credential.chmod(0o440)  # the group bits are the mask of systemd's access list
    assert find_private(path, credentials) == credential
    assert read_private(path, credentials) == b"the credential"
    assert read_private(path, {}) != b"the credential"


def test_a_credential_that_everybody_can_read_is_not_used(path: Path, credentials: dict[str, str]) -> None:
    credential = Path(credentials["CREDENTIALS_DIRECTORY"]) / path.name
    credential.write_bytes(b"the credential")
    credential.chmod(0o444)
    with pytest.raises(ConfigError) as caught:
        find_private(path, credentials)
    assert caught.value.code == "key-file-open"


def test_without_a_credential_the_file_counts(path: Path, credentials: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_private(path, credentials)
    assert caught.value.code == "key-file-missing"
    assert str(path) in caught.value.message
