"""What a ledger counts: the mechanisms behind its figures, which no command shows one by one."""

from __future__ import annotations

from shared.privacy.accountant import MechanismEvent
from shared.privacy.accounts import events_of
from shared.privacy.ledger import PrivacyLedger


def history(ledger: PrivacyLedger, dataset: str) -> tuple[MechanismEvent, ...]:
    """What counts as spent of a data set: unsettled runs in full, settled runs with their burned attempts."""
    ledger._catch_up()
    return events_of(account for account in ledger._accounts.values() if account.charge.dataset == dataset)
