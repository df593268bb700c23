"""Lies about who takes part (protocol 6): keys, rosters, departments, cohorts, floors, epochs, architecture.

Each ends in a refusal with its own name in the department's journal; the next honest round works.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.codec import decode
from shared.crypto.keys import KEY_BYTES
from shared.crypto.seal import SealingKey, seal
from shared.identity import IdentityKey, Signed, sign_record
from shared.messages import AdvertReply, KeyAdvert, SealSet
from shared.parameters import Layout, TensorSpec, vector_to_bytes
from shared.plan import AggregationParams
from shared.secagg.adverts import ADVERT_LABEL, SEALS_LABEL
from tests.protocol.liar import Liar, replace

VICTIM = "health"
PEER = "police"


def forged(liar: Liar, key: IdentityKey, **changes: Any) -> Signed:
    """An advert like the peer's, with what somebody else knows how to open, signed by somebody else."""
    advert = decode(liar.adverts[PEER].body, KeyAdvert)
    return sign_record(key, ADVERT_LABEL, replace(advert, **changes))


# --- key swapping ------------------------------------------------------------------------------------------


def test_p2_a_swapped_key_in_an_advert_is_refused(liar: Liar) -> None:
    liar.advertise()
    mine = SealingKey.generate(lambda size: bytes(range(size)))
    swapped = forged(liar, IdentityKey.generate(), hpke_key=mine.public)
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=liar.adverts | {PEER: swapped}), "signature-invalid")
    changed = replace(liar.adverts[PEER], body=swapped.body)
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=liar.adverts | {PEER: changed}), "signature-invalid")
    liar.honest_round(1)


def test_p2_a_departments_own_key_cannot_be_swapped_either(liar: Liar) -> None:
    older = liar.advertise().adverts[VICTIM]
    liar.advertise()
    newer = decode(liar.adverts[VICTIM].body, KeyAdvert)
    other = sign_record(liar.department(VICTIM).identity, ADVERT_LABEL, replace(newer, policy_hash=b"x" * 32))
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=liar.adverts | {VICTIM: older}), "advert-foreign")
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=liar.adverts | {VICTIM: other}), "own-advert-changed")
    liar.honest_round(1)


def test_p2_two_departments_never_share_an_epoch_key(liar: Liar) -> None:
    liar.advertise()
    stolen = decode(liar.adverts[VICTIM].body, KeyAdvert).hpke_key
    twin = forged(liar, liar.department(PEER).identity, hpke_key=stolen)
    liar.assert_refused("transport", liar.all_adverts(adverts=liar.adverts | {PEER: twin}), "key-repeated")
    liar.honest_round(1)


def test_p2_keys_swapped_by_a_new_roster_serial_are_refused(liar: Liar) -> None:
    """Even by whoever holds the roster key: a changed key counts only once it was approved here.

    The old key is out at once all the same, so the next honest round is on a newer roster of the office.
    """
    members = liar.world.roster.members
    swapped = members | {PEER: IdentityKey.generate().public}
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(swapped)), "roster-key-unapproved")
    exchanged = members | {PEER: members["transport"], "transport": members[PEER]}
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(exchanged)), "roster-contradicted")
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(exchanged, serial=3)), "roster-key-unapproved")
    everybody = {name: IdentityKey.generate().public for name in members}
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(everybody, serial=99)), "roster-key-unapproved")
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")
    liar.use_roster(liar.sign_roster(members, serial=100))
    liar.honest_round(1)


def test_p2_a_roster_of_another_key_is_refused(liar: Liar) -> None:
    mine = sign_record(IdentityKey.generate(), "roster", liar.world.roster)
    liar.assert_refused(VICTIM, liar.offer(roster=mine), "signature-invalid")
    liar.honest_round(1)


def test_p2_an_older_roster_is_refused_also_after_a_restart(liar: Liar) -> None:
    """The newer roster counts from the moment it was verified, although its offer is refused."""
    members = liar.world.roster.members
    fewer = {name: key for name, key in members.items() if name != PEER}
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(fewer, serial=2)), "roster-size")
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")
    liar.restart(VICTIM)
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")
    liar.use_roster(liar.sign_roster(members, serial=3))
    liar.honest_round(1)


def test_p2_two_rosters_in_one_epoch_are_noticed(liar: Liar) -> None:
    newer = liar.sign_roster(liar.world.roster.members, serial=2)
    offer = liar.offer()
    for name in liar.names:
        request = replace(offer, roster=newer) if name == PEER else offer
        liar.adverts[name] = liar.get(name, request, AdvertReply).advert
    liar.assert_refused(VICTIM, liar.all_adverts(), "roster-mismatch")
    liar.use_roster(newer)
    liar.honest_round(1)


# --- sybil departments -------------------------------------------------------------------------------------


def test_p2_sybil_departments_are_refused(liar: Liar) -> None:
    sybils = {name: IdentityKey.generate().public for name in ("sybil-1", "sybil-2", "sybil-3")}
    members, cohort = liar.world.roster.members, tuple(sorted([VICTIM, *sybils]))
    liar.assert_refused(VICTIM, liar.offer(cohort=cohort), "cohort-foreign")
    for serial, crowd in enumerate((members | sybils, {VICTIM: members[VICTIM], **sybils}), start=2):
        roster = liar.sign_roster(crowd, serial=serial)
        liar.assert_refused(VICTIM, liar.offer(cohort=cohort, roster=roster), "roster-key-unapproved")
    liar.use_roster(liar.sign_roster(members, serial=4))
    liar.stand()
    liar.assert_refused(VICTIM, liar.ask(1, participants=cohort), "participant-foreign")
    liar.honest_round(1)


def test_p2_sybils_in_a_signed_plan_are_refused_even_where_people_approved_it(liar: Liar) -> None:
    cohort = tuple(sorted([VICTIM, "sybil-1", "sybil-2", "sybil-3"]))
    plan = liar.sign_plan(datasets=dict.fromkeys(cohort, liar.plan.datasets[VICTIM]))
    unapproved = liar.assert_refused(VICTIM, liar.offer_plan(plan, cohort=cohort), "policy-refused")
    assert "R10" in unapproved.message
    liar.approve(plan)
    liar.assert_refused(VICTIM, liar.offer_plan(plan, cohort=cohort), "cohort-foreign")
    liar.honest_round(1)


# --- a cohort cut short, floors below policy -----------------------------------------------------------------


def test_p2_a_cohort_cut_to_one_honest_department_is_refused(liar: Liar) -> None:
    """Alone, or with no more others than may collude."""
    liar.assert_refused(VICTIM, liar.offer(cohort=(VICTIM,)), "cohort-too-small")
    liar.assert_refused(VICTIM, liar.offer(cohort=(VICTIM, PEER)), "cohort-too-small")
    liar.assert_refused(VICTIM, liar.offer(cohort=(VICTIM, VICTIM, VICTIM)), "cohort-unordered")
    liar.assert_refused(VICTIM, liar.offer(cohort=()), "not-in-cohort")
    liar.stand()
    for participants, code in (
        ((VICTIM,), "too-few-participants"),
        ((VICTIM, PEER), "too-few-participants"),
        ((VICTIM, VICTIM, VICTIM), "participants-unordered"),
        ((PEER, VICTIM, "transport"), "participants-unordered"),
        (("environment", PEER, "transport"), "not-a-participant"),
    ):
        liar.assert_refused(VICTIM, liar.ask(1, participants=participants), code)
    liar.honest_round(1)


def test_p2_a_round_beyond_the_epochs_cohort_is_refused(liar: Liar) -> None:
    liar.stand((VICTIM, PEER, "transport"))
    liar.assert_refused(VICTIM, liar.ask(1, participants=liar.names), "participant-foreign")
    liar.honest_round(1)


def test_p2_a_refused_round_costs_no_privacy_budget(liar: Liar) -> None:
    """What the message itself shows to be wrong is refused before the charge is written."""
    liar.stand()
    liar.assert_refused(VICTIM, liar.ask(1, participants=("environment", PEER, "transport")), "not-a-participant")
    assert liar.participants[VICTIM].ledger.reservation(liar.run) is None
    liar.upload(1, VICTIM)
    reservation = liar.participants[VICTIM].ledger.reservation(liar.run)
    assert reservation is not None
    assert reservation.burned == {1}
    liar.honest_round(2)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param({"threshold": 2, "min_contributors": 3, "max_colluders": 1}, id="t below policy"),
        pytest.param({"threshold": 2, "min_contributors": 2, "max_colluders": 1}, id="m below policy"),
        pytest.param({"threshold": 3, "min_contributors": 3, "max_colluders": 0}, id="c below policy"),
        pytest.param({"threshold": 3, "min_contributors": 3, "max_colluders": 2}, id="2t not above N + c"),
        pytest.param({"threshold": 3, "min_contributors": 3, "max_colluders": 1, "bound": 65.0}, id="R above policy"),
    ],
)
def test_p2_numbers_below_policy_are_refused_even_where_people_approved_the_plan(
    liar: Liar, numbers: dict[str, Any]
) -> None:
    plan = liar.sign_plan(aggregation=AggregationParams(**({"bound": 32.0} | numbers)))
    liar.approve(plan)
    refusal = liar.assert_refused(VICTIM, liar.offer_plan(plan), "policy-refused")
    assert "R15" in refusal.message
    assert "R10" not in refusal.message
    liar.honest_round(1)


def test_p2_numbers_chosen_for_a_smaller_roster_need_a_new_approval(liar: Liar) -> None:
    datasets = {name: liar.plan.datasets[name] for name in (VICTIM, PEER, "transport")}
    plan = liar.sign_plan(roster_size=3, datasets=datasets)
    liar.approve(plan)
    liar.assert_refused(VICTIM, liar.offer_plan(plan, cohort=tuple(datasets)), "roster-size")
    liar.honest_round(1)


def test_p2_a_plan_is_not_changed_on_the_way(liar: Liar) -> None:
    weaker = replace(liar.plan, aggregation=replace(liar.plan.aggregation, threshold=2))
    mine = sign_record(IdentityKey.generate(), "plan", weaker)
    liar.assert_refused(VICTIM, liar.offer_plan(mine), "signature-invalid")
    spliced = Signed(body=mine.body, signature=liar.world.signed_plan.signature)
    liar.assert_refused(VICTIM, liar.offer_plan(spliced), "signature-invalid")
    liar.assert_refused(VICTIM, liar.offer(run=b"r" * 32), "run-foreign")
    liar.honest_round(1)


# --- crafted architecture ----------------------------------------------------------------------------------


def test_p2_a_crafted_architecture_is_refused(liar: Liar) -> None:
    """A layout that would carry one record per coordinate needs a signature, an approval and allowed tensors."""
    crafted = Layout(tensors=(TensorSpec(name="trap.weight", shape=(1000, 257)), *liar.plan.layout.tensors))
    plan = liar.sign_plan(layout=crafted)
    refusal = liar.assert_refused(VICTIM, liar.offer_plan(plan), "policy-refused")
    assert "R10" in refusal.message
    assert "R16" in refusal.message
    liar.approve(plan)
    refusal = liar.assert_refused(VICTIM, liar.offer_plan(plan), "policy-refused")
    assert "R10" not in refusal.message
    assert "R16" in refusal.message
    liar.honest_round(1)


def test_p2_a_model_of_another_layout_is_refused(liar: Liar) -> None:
    liar.stand()
    size = liar.plan.layout.size
    for crafted, code in (
        (np.zeros(size + 1, dtype=np.float32), "vector-bytes"),
        (np.zeros(size - 1, dtype=np.float32), "vector-bytes"),
        (np.full(size, np.nan, dtype=np.float32), "vector-not-finite"),
        (np.full(size, 7.0, dtype=np.float32), "initial-model"),
    ):
        liar.assert_refused(VICTIM, liar.ask(1, model=vector_to_bytes(crafted)), code)
    liar.assert_refused(VICTIM, liar.ask(1, model=b""), "vector-bytes")
    liar.honest_round(1)


# --- epochs ------------------------------------------------------------------------------------------------


def test_p2_two_epochs_never_live_side_by_side(liar: Liar) -> None:
    old = liar.stand().ask(1)
    adverts = liar.all_adverts()
    liar.upload(1).confirm(liar.names[:3], [VICTIM])
    confirm, reveal = liar.list_of(liar.names[:3]), liar.demand(VICTIM, liar.names[:3])
    liar.stand()
    liar.assert_refused(VICTIM, adverts, "epoch-unknown")
    liar.assert_refused(VICTIM, replace(old, round=2), "epoch-unknown")
    liar.assert_refused(VICTIM, confirm, "round-unknown")
    liar.assert_refused(VICTIM, reveal, "round-unknown")
    liar.honest_round(2)


def test_p2_epoch_numbers_only_grow_also_across_a_restart(liar: Liar) -> None:
    liar.stand()
    liar.stand()
    liar.restart(VICTIM)
    for number in (0, 1, 2):
        liar.assert_refused(VICTIM, replace(liar.offer(), epoch=number), "epoch-not-new")
    liar.honest_round(1)


def test_p2_a_restarted_department_belongs_to_no_epoch(liar: Liar) -> None:
    liar.stand().upload(1)
    liar.restart(VICTIM)
    liar.assert_refused(VICTIM, liar.all_adverts(), "epoch-unknown")
    liar.assert_refused(VICTIM, liar.ask(2), "epoch-unknown")
    liar.assert_refused(VICTIM, liar.list_of(liar.names[:3]), "round-unknown")
    liar.assert_refused(VICTIM, liar.demand(VICTIM, liar.names), "round-unknown")
    liar.honest_round(2)


def test_p2_steps_out_of_order_are_refused(liar: Liar) -> None:
    liar.assert_refused(VICTIM, liar.all_adverts(), "epoch-unknown")
    liar.advertise()
    liar.assert_refused(VICTIM, liar.ask(1), "phase-wrong")
    liar.stand()
    liar.assert_refused(VICTIM, liar.all_adverts(adverts={}), "phase-wrong")
    liar.upload(1, PEER)
    liar.assert_refused(VICTIM, liar.list_of(liar.names), "round-unknown")
    liar.honest_round(2)


# --- replays and forgeries within an epoch -------------------------------------------------------------------


def test_p2_a_replayed_advert_is_refused(liar: Liar) -> None:
    old = liar.advertise().adverts[PEER]
    liar.advertise()
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=liar.adverts | {PEER: old}), "advert-foreign")
    liar.assert_refused(
        VICTIM, liar.all_adverts(adverts=liar.adverts | {PEER: liar.adverts["transport"]}), "signature-invalid"
    )
    liar.honest_round(1)


def test_p2_adverts_withheld_or_added_are_refused(liar: Liar) -> None:
    liar.advertise()
    fewer = {name: advert for name, advert in liar.adverts.items() if name != PEER}
    liar.assert_refused(VICTIM, liar.all_adverts(adverts=fewer), "cohort-mismatch")
    liar.assert_refused(
        VICTIM, liar.all_adverts(adverts=liar.adverts | {"sybil": liar.adverts[PEER]}), "cohort-mismatch"
    )
    liar.assert_refused(VICTIM, liar.all_adverts(epoch=liar.epoch + 1), "epoch-unknown")
    liar.honest_round(1)


def test_p2_replayed_or_forged_seals_are_refused(liar: Liar) -> None:
    old = liar.stand().seals[PEER]
    liar.stand()
    foreign = liar.seals["transport"]
    seals = decode(liar.seals[PEER].body, SealSet)
    key = decode(liar.adverts[VICTIM].body, KeyAdvert).hpke_key
    mine = replace(seals, seals=seals.seals | {VICTIM: seal(key, bytes(KEY_BYTES), b"another context")})
    forged_seals = sign_record(IdentityKey.generate(), SEALS_LABEL, mine)
    other_context = sign_record(liar.department(PEER).identity, SEALS_LABEL, mine)
    fewer = {name: sealed for name, sealed in liar.seals.items() if name != PEER}
    for sealed, code in (
        (liar.seals | {PEER: old}, "epoch-mismatch"),
        (liar.seals | {PEER: foreign}, "signature-invalid"),
        (liar.seals | {PEER: forged_seals}, "signature-invalid"),
        (liar.seals | {PEER: other_context}, "seal-invalid"),
        (fewer, "seals-incomplete"),
        (liar.seals | {"sybil": old}, "seals-incomplete"),
    ):
        liar.assert_refused(VICTIM, liar.ask(1, seals=sealed), code)
    liar.honest_round(1)


def test_p2_a_journal_that_was_rolled_back_is_noticed(liar: Liar) -> None:
    """A peer that has seen a newer ledger head of this department says so in its advert."""
    liar.stand().upload(1).reveal(liar.names)
    liar.roll_back(VICTIM)
    liar.advertise()
    liar.assert_refused(VICTIM, liar.all_adverts(), "journal-rolled-back")


def test_p2_an_offer_changes_nothing_when_it_is_refused(liar: Liar) -> None:
    liar.stand()
    liar.assert_refused(VICTIM, liar.offer(run=b"r" * 32), "run-foreign")
    liar.epoch -= 1
    liar.upload(1).reveal(liar.names)
    liar.honest_round(2)
