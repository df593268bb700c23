"""Lies about one round (protocol 6): survivor lists, second answers, replays.

Each ends in a refusal with its own name in the department's journal; nothing is revealed; the next honest round works.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shared.identity import IdentityKey, sign_record
from shared.messages import ConfirmedSet, MaskedUpdate
from shared.parameters import vector_to_bytes
from shared.secagg.receipts import CONFIRMATION_LABEL, RECEIPT_LABEL, envelope_hash
from tests.protocol.liar import Liar, replace
from tests.protocol.lies import FIRST_THREE, LAST, LAST_THREE, PEER, VICTIM, receipt_of, signed_by

# --- two survivor lists ------------------------------------------------------------------------------------


def test_p2_a_department_stands_by_one_survivor_list(liar: Liar) -> None:
    liar.stand().upload(1).confirm(FIRST_THREE, [VICTIM])
    liar.assert_refused(VICTIM, liar.list_of(LAST_THREE), "step-already-answered")
    liar.assert_refused(VICTIM, liar.demand(VICTIM, LAST_THREE), "survivors-changed")
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names), "survivors-changed")
    liar.honest_round(2)


def test_p2_two_survivor_lists_never_find_enough_confirmations(liar: Liar) -> None:
    liar.stand().upload(1)
    liar.confirm(FIRST_THREE, ["environment", VICTIM]).confirm(LAST_THREE, [PEER, LAST])
    own = {name: liar.confirmations[name] for name in ("environment", VICTIM)}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, FIRST_THREE, confirmations=own), "too-few-confirmations")
    other = own | {PEER: liar.confirmations[PEER]}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, FIRST_THREE, confirmations=other), "survivors-changed")
    forged = sign_record(IdentityKey.generate(), CONFIRMATION_LABEL, ConfirmedSet(sid=liar.sid, survivors=FIRST_THREE))
    liar.assert_refused(
        VICTIM, liar.demand(VICTIM, FIRST_THREE, confirmations=own | {PEER: forged}), "signature-invalid"
    )
    liar.assert_refused(
        VICTIM, liar.demand(VICTIM, FIRST_THREE, confirmations=own | {LAST: forged}), "confirmation-foreign"
    )
    liar.honest_round(2)


def test_p2_a_partial_list_needs_the_departments_own_confirmation(liar: Liar) -> None:
    liar.stand().upload(1).confirm(FIRST_THREE, ["environment", PEER])
    mine = signed_by(liar, VICTIM, CONFIRMATION_LABEL, ConfirmedSet(sid=liar.sid, survivors=FIRST_THREE))
    confirmations = liar.confirmations | {VICTIM: mine}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, FIRST_THREE, confirmations=confirmations), "confirmation-missing")
    liar.honest_round(2)


def test_p2_nobody_confirms_that_everybody_is_there(liar: Liar) -> None:
    liar.stand().upload(1)
    liar.assert_refused(VICTIM, liar.list_of(liar.names), "nobody-dropped")
    liar.reveal(liar.names)
    liar.honest_round(2)


# --- the list itself ---------------------------------------------------------------------------------------

BAD_LISTS = [
    pytest.param(("environment", VICTIM, VICTIM), "survivor-repeated", id="repeated member"),
    pytest.param((*FIRST_THREE, PEER), "survivor-repeated", id="repeated beside enough others"),
    pytest.param((VICTIM, PEER, "sybil"), "survivor-foreign", id="foreign member"),
    pytest.param((PEER, VICTIM, LAST), "survivors-unordered", id="other order"),
    pytest.param((VICTIM, PEER), "below-min-contributors", id="below m"),
    pytest.param((VICTIM,), "below-min-contributors", id="one honest department"),
    pytest.param((), "below-min-contributors", id="nobody"),
    pytest.param(("environment", PEER, LAST), "not-a-survivor", id="without the department"),
]


@pytest.mark.parametrize(("survivors", "code"), BAD_LISTS)
def test_p2_a_bad_survivor_list_is_neither_confirmed_nor_revealed_for(
    liar: Liar, survivors: tuple[str, ...], code: str
) -> None:
    liar.stand().upload(1)
    liar.assert_refused(VICTIM, liar.list_of(survivors), code)
    liar.assert_refused(VICTIM, liar.demand(VICTIM, survivors), code)
    liar.honest_round(2)


def test_p2_one_department_is_never_both_alive_and_dropped(liar: Liar) -> None:
    """Alive for one department, which gives shares of its self mask; dropped for the others, which never answer."""
    liar.stand().upload(1)
    liar.reveal(liar.names, [VICTIM])
    liar.assert_refused(VICTIM, liar.list_of(LAST_THREE), "phase-wrong")
    liar.assert_refused(VICTIM, liar.demand(VICTIM, LAST_THREE), "step-already-answered")
    liar.confirm(LAST_THREE, [PEER, LAST])
    for name in (PEER, LAST):
        liar.assert_refused(name, liar.demand(name, LAST_THREE), "too-few-confirmations")
        liar.assert_refused(name, liar.demand(name, liar.names), "survivors-changed")
    assert set(liar.reveals) == {VICTIM}
    liar.honest_round(2)


def test_p2_a_survivor_without_a_receipt_is_refused(liar: Liar) -> None:
    liar.stand().upload(1, *FIRST_THREE)
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names), "receipts-incomplete")
    liar.confirm(FIRST_THREE)
    extra = liar.updates | {LAST: liar.updates[PEER]}
    receipts = {name: update.receipt for name, update in extra.items()}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, FIRST_THREE, receipts=receipts), "receipts-incomplete")
    fewer = {name: receipts[name] for name in ("environment", VICTIM)}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, FIRST_THREE, receipts=fewer), "receipts-incomplete")
    liar.reveal(FIRST_THREE)
    liar.honest_round(2)


# --- second answers in one round ----------------------------------------------------------------------------


def same_epoch(liar: Liar) -> None:
    """The lie comes at once."""


def new_epoch(liar: Liar) -> None:
    """The lie comes in a new epoch."""
    liar.stand()


def crash(liar: Liar) -> None:
    """The department crashes, restarts on its journal and joins a new epoch."""
    liar.restart(VICTIM)
    liar.stand()


def crash_everywhere(liar: Liar) -> None:
    """All departments crash at once."""
    for name in liar.names:
        liar.restart(name)
    liar.stand()


MOMENTS = pytest.mark.parametrize("moment", [same_epoch, new_epoch, crash, crash_everywhere], ids=lambda f: f.__name__)
Moment = Callable[[Liar], None]


@MOMENTS
def test_p2_there_is_no_second_update_in_a_round(liar: Liar, moment: Moment) -> None:
    liar.stand().upload(2)
    moment(liar)
    moved = vector_to_bytes(liar.town.initial + np.float32(1))
    liar.assert_refused(VICTIM, liar.ask(2, model=moved), "step-already-answered")
    liar.assert_refused(VICTIM, liar.ask(2, participants=LAST_THREE), "step-already-answered")
    liar.assert_refused(VICTIM, liar.ask(1), "round-not-new")
    assert liar.participants[VICTIM].ledger.reservation(liar.run).burned == {2}  # type: ignore[union-attr]  # reserved
    liar.honest_round(3)


@MOMENTS
def test_p2_there_is_no_second_confirmation_in_a_round(liar: Liar, moment: Moment) -> None:
    liar.stand().upload(1).confirm(FIRST_THREE, [VICTIM])
    moment(liar)
    code = "step-already-answered" if moment is same_epoch else "round-unknown"
    liar.assert_refused(VICTIM, liar.list_of(LAST_THREE), code)
    liar.assert_refused(VICTIM, liar.list_of(LAST_THREE, sid=b"s" * 32), code)
    liar.honest_round(2)


@MOMENTS
def test_p2_there_is_no_second_reveal_in_a_round(liar: Liar, moment: Moment) -> None:
    liar.stand().upload(1).reveal(liar.names)
    lists = (liar.demand(VICTIM, LAST_THREE), liar.demand(VICTIM, liar.names, sid=b"s" * 32))
    moment(liar)
    for request in lists:
        liar.assert_refused(VICTIM, request, "step-already-answered" if moment is same_epoch else "round-unknown")
    liar.honest_round(2)


@MOMENTS
def test_p2_a_cached_update_is_not_masked_again_for_a_smaller_list(liar: Liar, moment: Moment) -> None:
    """The attack behind the journal (protocol 3): x1 + x2 + x3 once, then x1 + x3 of the same updates."""
    liar.stand().upload(1).reveal(liar.names)
    moment(liar)
    for name in LAST_THREE:
        liar.assert_refused(name, liar.ask(1, participants=LAST_THREE), "step-already-answered")
    liar.honest_round(2)


@pytest.mark.parametrize("step", ["update", "confirm", "reveal"])
def test_p2_a_restart_closes_the_rounds_of_the_journal(liar: Liar, step: str) -> None:
    """Restarted after any step, a department answers no later step of that round either."""
    liar.stand().upload(1)
    if step != "update":
        liar.confirm(FIRST_THREE)
    request = liar.demand(VICTIM, FIRST_THREE if step != "update" else liar.names)
    if step == "reveal":
        liar.reveal(FIRST_THREE)
    liar.restart(VICTIM)
    for epoch_stands in (False, True):
        if epoch_stands:
            liar.stand()
        liar.assert_refused(VICTIM, liar.list_of(FIRST_THREE), "round-unknown")
        liar.assert_refused(VICTIM, request, "round-unknown")
    liar.assert_refused(VICTIM, liar.ask(1), "step-already-answered")
    liar.honest_round(2)


def test_p2_only_the_same_bytes_are_answered_again(liar: Liar) -> None:
    liar.stand().upload(1)
    first = liar.updates[VICTIM]
    assert liar.get(VICTIM, liar.ask(1), MaskedUpdate) == first
    liar.confirm(FIRST_THREE)
    before = liar.confirmations[VICTIM]
    assert liar.confirm(FIRST_THREE, [VICTIM]).confirmations[VICTIM] == before
    request = liar.demand(VICTIM, FIRST_THREE)
    assert liar.send(VICTIM, request) == liar.send(VICTIM, request)
    without = {name: signed for name, signed in liar.confirmations.items() if name != PEER}
    liar.assert_refused(VICTIM, replace(request, confirmations=without), "step-already-answered")
    liar.honest_round(2)


# --- replays -----------------------------------------------------------------------------------------------


def test_p2_a_replayed_receipt_is_refused(liar: Liar) -> None:
    liar.stand().upload(1).reveal(liar.names)
    old = liar.updates[PEER]
    liar.upload(2)
    receipts = {name: update.receipt for name, update in liar.updates.items()}
    liar.assert_refused(
        VICTIM, liar.demand(VICTIM, liar.names, receipts=receipts | {PEER: old.receipt}), "sid-mismatch"
    )
    other = receipts | {PEER: liar.updates[LAST].receipt}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names, receipts=other), "signature-invalid")
    twice = {VICTIM: signed_by(liar, VICTIM, RECEIPT_LABEL, replace(receipt_of(liar, VICTIM), vector_digest=bytes(32)))}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names, receipts=receipts | twice), "own-receipt-changed")
    liar.reveal(liar.names)
    liar.honest_round(3)


def test_p2_a_replayed_envelope_is_refused(liar: Liar) -> None:
    liar.stand().upload(1).reveal(liar.names)
    old = liar.updates[PEER].envelopes[VICTIM]
    liar.upload(2)
    honest = liar.demand(VICTIM, liar.names).envelopes
    for envelopes, code in (
        (honest | {PEER: old}, "envelope-mismatch"),
        (honest | {PEER: liar.updates[PEER].envelopes[LAST]}, "envelope-mismatch"),
        (honest | {PEER: liar.updates[LAST].envelopes[VICTIM]}, "envelope-mismatch"),
        ({name: honest[name] for name in honest if name != PEER}, "envelopes-incomplete"),
        (honest | {VICTIM: old}, "envelopes-incomplete"),
    ):
        liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names, envelopes=envelopes), code)
    liar.reveal(liar.names)
    liar.honest_round(3)


def test_p2_a_colluders_receipt_does_not_make_an_old_envelope_new(liar: Liar) -> None:
    """A department that helps the coordinator may sign for an envelope of an earlier round; its key is another one."""
    liar.stand().upload(1).reveal(liar.names)
    old = liar.updates[PEER].envelopes[VICTIM]
    liar.upload(2)
    receipt = receipt_of(liar, PEER)
    hashes = receipt.envelope_hashes | {VICTIM: envelope_hash(liar.sid, PEER, VICTIM, old)}
    helped = signed_by(liar, PEER, RECEIPT_LABEL, replace(receipt, envelope_hashes=hashes))
    request = liar.demand(VICTIM, liar.names)
    lie = replace(request, receipts=request.receipts | {PEER: helped}, envelopes=request.envelopes | {PEER: old})
    liar.assert_refused(VICTIM, lie, "envelope-invalid")
    liar.honest_round(3)


def test_p2_a_replayed_round_is_refused(liar: Liar) -> None:
    liar.stand().upload(1).confirm(FIRST_THREE).reveal(FIRST_THREE)
    ask, confirm, reveal = liar.ask(1), liar.list_of(FIRST_THREE), liar.demand(VICTIM, FIRST_THREE)
    liar.upload(2)
    liar.assert_refused(VICTIM, ask, "step-already-answered")
    liar.assert_refused(VICTIM, replace(confirm, survivors=LAST_THREE), "round-unknown")
    liar.assert_refused(VICTIM, replace(reveal, confirmations={}), "round-unknown")
    liar.assert_refused(VICTIM, replace(confirm, round=2), "sid-mismatch")
    liar.assert_refused(VICTIM, replace(reveal, round=2), "sid-mismatch")
    liar.reveal(liar.names)
    liar.honest_round(3)


def test_p2_a_round_beyond_the_plans_attempts_is_refused(liar: Liar) -> None:
    liar.stand()
    liar.assert_refused(VICTIM, liar.ask(-1), "message-malformed")
    liar.assert_refused(VICTIM, liar.ask(0), "round-not-new")
    for number in (liar.plan.attempts + 1, 10_000):
        assert "R19" in liar.assert_refused(VICTIM, liar.ask(number), "policy-refused").message
    for number in (10_001, 10**9, 2**62):
        liar.assert_refused(VICTIM, liar.ask(number), "ratchet-too-far")
    liar.honest_round(1)


def test_p2_a_replayed_ledger_head_is_noticed(liar: Liar) -> None:
    """A peer whose journal was rolled back signs a head that is not newer than the last one seen."""
    liar.stand().upload(1).reveal(liar.names)
    seen = receipt_of(liar, PEER).ledger_sequence
    liar.upload(2)
    back = signed_by(liar, PEER, RECEIPT_LABEL, replace(receipt_of(liar, PEER), ledger_sequence=seen))
    receipts = {name: update.receipt for name, update in liar.updates.items()} | {PEER: back}
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names, receipts=receipts), "journal-rolled-back")
    liar.honest_round(3)
