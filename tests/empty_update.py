"""An update without a word in it, for whoever looks at nothing but where the department's journal stands."""

from __future__ import annotations

from shared.identity import IdentityKey, sign_record
from shared.messages import MaskedUpdate, Receipt
from shared.secagg.receipts import RECEIPT_LABEL


def empty_update(department: str, key: IdentityKey, *, sequence: int, head: bytes) -> MaskedUpdate:
    """Sign a receipt of no round that names a position of the journal."""
    receipt = Receipt(
        sid=bytes(32),
        department=department,
        vector_digest=bytes(32),
        self_commitment=bytes(32),
        pair_commitments={},
        envelope_hashes={},
        ledger_sequence=sequence,
        ledger_head=head,
    )
    signed = sign_record(key, RECEIPT_LABEL, receipt)
    return MaskedUpdate(sid=bytes(32), words=memoryview(b""), envelopes={}, receipt=signed)
