"""Nameless files on disk: what waits there, and what happens when there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.spool import mapped, open_spool, spooled
from shared.channel import CHUNK_BYTES, Payload, frames
from shared.errors import SetupError


def test_a_spool_that_cannot_take_an_upload_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught, open_spool(tmp_path / "missing", 10):
        pytest.fail("opened")
    assert caught.value.code == "spool-unusable"
    with pytest.raises(SetupError), open_spool(tmp_path, 1 << 60):
        pytest.fail("opened")


def test_a_long_request_is_read_from_its_spool(tmp_path: Path) -> None:
    data = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end"
    payload = spooled(tmp_path, data)
    assert list(tmp_path.iterdir()) == []
    assert list(frames(3, payload)) == list(frames(3, Payload.of(data)))
    with pytest.raises(SetupError):
        spooled(tmp_path / "missing", data)


def test_a_spool_has_no_name_and_goes_with_its_reader(tmp_path: Path) -> None:
    with open_spool(tmp_path, 10) as file:
        file.write(b"0123456789")
        view = mapped(file)
        assert list(tmp_path.iterdir()) == []
    assert bytes(view) == b"0123456789"
