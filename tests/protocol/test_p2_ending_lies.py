"""Lies about how a round goes on and ends (protocol 6): unequal models, withheld answers, two accounts of a round.

Each ends in a refusal with its own name; nothing is revealed; the next honest round works.
"""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import IdentityKey, sign_record
from shared.messages import ClosedRound, CloseReply, CloseRound
from shared.parameters import vector_to_bytes
from shared.secagg.receipts import RECEIPT_LABEL, check_pair_commitments, envelope_hash
from shared.secagg.server import RoundCollector
from tests.protocol.liar import Liar, replace
from tests.protocol.lies import FIRST_THREE, LAST, LAST_THREE, PEER, VICTIM, account, receipt_of, signed_by, terms_of

# --- unequal models ----------------------------------------------------------------------------------------


def test_p2_unequal_models_show_in_the_commitments_before_anything_is_unmasked(liar: Liar) -> None:
    moved = vector_to_bytes(liar.town.initial + np.float32(1))
    liar.stand().upload(2, VICTIM, model=moved).upload(2, "environment", PEER, LAST)
    assert len({update.sid for update in liar.updates.values()}) == 2
    receipts = {name: receipt_of(liar, name) for name in liar.names}
    with pytest.raises(ProtocolError, match="environment and health") as caught:
        check_pair_commitments(receipts)
    assert caught.value.code == "pair-commitment-mismatch"
    for name in liar.names:
        # Under its own sid or the others', with everybody's receipts or with a list that leaves somebody out.
        for sid in {update.sid for update in liar.updates.values()}:
            liar.assert_refused(name, liar.demand(name, liar.names, sid=sid), "sid-mismatch")
        partial = FIRST_THREE if name in FIRST_THREE else LAST_THREE
        liar.assert_refused(name, liar.demand(name, partial, sid=liar.updates[name].sid), "confirmation-missing")
    liar.honest_round(3)


def test_p2_the_coordinators_own_code_stops_at_unequal_models(liar: Liar) -> None:
    """Even a department that hides the difference, by signing for the others' terms, is named."""
    moved = vector_to_bytes(liar.town.initial + np.float32(1))
    liar.stand().upload(2, VICTIM, model=moved).upload(2, "environment", PEER, LAST)
    sid = liar.updates[PEER].sid
    collector = RoundCollector(terms_of(liar), liar.world.roster)
    collector.receive_update(PEER, liar.updates[PEER])
    collector.receive_update(LAST, liar.updates[LAST])
    with pytest.raises(ProtocolError) as caught:
        collector.receive_update(VICTIM, liar.updates[VICTIM])
    assert caught.value.code == "sid-mismatch"
    receipt = receipt_of(liar, VICTIM)
    hashes = {name: envelope_hash(sid, VICTIM, name, value) for name, value in liar.updates[VICTIM].envelopes.items()}
    hidden = signed_by(liar, VICTIM, RECEIPT_LABEL, replace(receipt, sid=sid, envelope_hashes=hashes))
    collector.receive_update(VICTIM, replace(liar.updates[VICTIM], sid=sid, receipt=hidden))
    with pytest.raises(ProtocolError, match="health and police") as caught:
        collector.confirm_requests()
    assert caught.value.code == "pair-commitment-mismatch"
    liar.honest_round(3)


def test_p2_departments_refuse_receipts_whose_commitments_differ(liar: Liar) -> None:
    liar.stand().upload(1)
    receipt = receipt_of(liar, PEER)
    commitments = receipt.pair_commitments | {VICTIM: bytes(32)}
    lied = signed_by(liar, PEER, RECEIPT_LABEL, replace(receipt, pair_commitments=commitments))
    receipts = {name: update.receipt for name, update in liar.updates.items()} | {PEER: lied}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names, receipts=receipts), "pair-commitment-mismatch")
    liar.reveal(liar.names)
    liar.honest_round(2)


# --- withheld answers --------------------------------------------------------------------------------------


def test_p2_a_withheld_update_stays_masked(liar: Liar) -> None:
    """The coordinator says that a department dropped although it answered: no share of its self mask moves."""
    liar.stand().upload(1)
    liar.confirm(FIRST_THREE).reveal(FIRST_THREE)
    for reveal in liar.reveals.values():
        assert set(reveal.self_shares) == set(FIRST_THREE)
        assert all(set(row) == {LAST} for row in reveal.pair_shares.values())
    liar.assert_refused(LAST, liar.demand(LAST, FIRST_THREE), "not-a-survivor")
    liar.assert_refused(LAST, liar.list_of(FIRST_THREE), "not-a-survivor")
    liar.assert_refused(LAST, liar.demand(LAST, LAST_THREE), "confirmation-missing")
    liar.honest_round(2)


def test_p2_withheld_confirmations_end_the_round(liar: Liar) -> None:
    liar.stand().upload(1, *FIRST_THREE)
    liar.confirm(FIRST_THREE, [VICTIM, PEER])
    for name in (VICTIM, PEER):
        liar.assert_refused(name, liar.demand(name, FIRST_THREE), "too-few-confirmations")
    liar.assert_refused("environment", liar.demand("environment", FIRST_THREE), "confirmation-missing")
    liar.honest_round(2)


def test_p2_withheld_reveals_leave_no_sum(liar: Liar) -> None:
    liar.stand().upload(1)
    collector = RoundCollector(terms_of(liar), liar.world.roster)
    for name, update in liar.updates.items():
        collector.receive_update(name, update)
    collector.reveal_requests()
    for name in (VICTIM, PEER):
        collector.receive_reveal(name, liar.reveal(liar.names, [name]).reveals[name])
    with pytest.raises(RoundAbortedError) as caught:
        collector.unmask()
    assert caught.value.code == "too-few-reveals"
    liar.honest_round(2)


@pytest.mark.parametrize("ending", ["withheld", "an account of all", "an account of some", "confirmed"])
def test_p2_rounds_that_never_end_are_counted(liar: Liar, ending: str) -> None:
    """A coordinator cannot collect fresh updates for ever by withholding the rest of each round, or by lying about it."""
    liar.stand()
    for number in (1, 2, 3):
        liar.upload(number)
        if ending == "confirmed":
            liar.confirm(FIRST_THREE)
        if ending != "withheld":
            survivors = liar.names if ending == "an account of all" else FIRST_THREE
            liar.get(VICTIM, account(liar, survivors=survivors), CloseReply)
    assert "R15" in liar.assert_refused(VICTIM, liar.ask(4), "policy-refused").message
    liar.restart(VICTIM)
    liar.stand()
    assert "R15" in liar.assert_refused(VICTIM, liar.ask(4), "policy-refused").message


def test_p2_a_round_that_a_department_gave_shares_for_is_not_counted(liar: Liar) -> None:
    for number in (1, 2, 3, 4):
        liar.honest_round(number)
    assert liar.participants[VICTIM].memory.run(liar.run).aborted_rounds == 0


def test_a_department_that_was_not_asked_for_shares_goes_on_within_the_cap(liar: Liar) -> None:
    """Enough others gave theirs; it cannot tell that from a lie, so the round counts, and the run goes on."""
    liar.stand()
    for number in (1, 2):
        liar.upload(number).reveal(liar.names, [name for name in liar.names if name != VICTIM])
        liar.get(VICTIM, account(liar), CloseReply)
    assert liar.participants[VICTIM].memory.run(liar.run).aborted_rounds == 2
    liar.honest_round(3)


# --- the account of a round ----------------------------------------------------------------------------------


def test_p2_an_account_of_another_round_is_not_countersigned(liar: Liar) -> None:
    liar.stand()
    liar.round = 0
    liar.updates = {}
    for number in (0, 1):
        nothing = ClosedRound(
            run=liar.run, round=number, sid=bytes(32), survivors=liar.names, model_hash=bytes(32),
            receipts_hash=bytes(32), final=True, journal_sequence=1, journal_head=bytes(32),
        )  # fmt: skip
        message = CloseRound(closed=sign_record(liar.world.authority, "round-closed", nothing))
        liar.assert_refused(VICTIM, message, "sid-mismatch" if number == 0 else "round-unknown")
    liar.upload(1).reveal(liar.names)
    liar.assert_refused(VICTIM, account(liar, IdentityKey.generate()), "signature-invalid")
    for changes, code in (
        ({"round": 2}, "round-unknown"),
        ({"run": b"r" * 32}, "round-unknown"),
        ({"sid": b"s" * 32}, "sid-mismatch"),
        ({"survivors": FIRST_THREE}, "survivors-changed"),
        ({"survivors": ("environment", PEER, LAST)}, "not-a-survivor"),
        ({"survivors": (VICTIM,)}, "below-min-contributors"),
    ):
        liar.assert_refused(VICTIM, account(liar, **changes), code)
    liar.get(VICTIM, account(liar), CloseReply)
    liar.honest_round(2)


def test_p2_two_accounts_of_one_round_are_not_countersigned(liar: Liar) -> None:
    liar.stand().upload(1).reveal(liar.names)
    first = liar.get(VICTIM, account(liar), CloseReply)
    assert liar.get(VICTIM, account(liar), CloseReply) == first
    liar.assert_refused(VICTIM, account(liar, model_hash=b"m" * 32), "round-already-closed")
    liar.honest_round(2)
