"""The authority's command."""

from __future__ import annotations

import pytest

from server.cli import main
from tests.command_line import Run, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(main, capsys, monkeypatch)
