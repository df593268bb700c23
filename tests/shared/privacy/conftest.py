"""A journal of the health department, and the ledger in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.journal import Journal
from shared.privacy.ledger import PrivacyLedger
from tests.shared.privacy.ledger_charges import now


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", owner="health") as opened:
        yield opened


@pytest.fixture
def ledger(journal: Journal) -> PrivacyLedger:
    return PrivacyLedger(journal, now)
