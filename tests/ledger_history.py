"""What a ledger counts: the mechanisms behind its figures, and the lines that it exports."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from shared.privacy.accountant import MechanismEvent
from shared.privacy.accounts import events_of
from shared.privacy.ledger import PrivacyLedger


def history(ledger: PrivacyLedger, dataset: str) -> tuple[MechanismEvent, ...]:
    """What counts as spent of a data set: unsettled runs in full, settled runs with their burned attempts."""
    ledger._catch_up()
    return events_of(account for account in ledger._accounts.values() if account.charge.dataset == dataset)


def exported(ledger: PrivacyLedger) -> list[dict[str, Any]]:
    """The lines as another program reads them."""
    return [json.loads(msgspec.json.encode(line)) for line in ledger.export()]
