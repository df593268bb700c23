from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from shared.codec import decode
from shared.identity import IdentityKey, Signed
from shared.messages import AdvertReply, KeyAdvert, SealReply, SealRequest, SealSet
from shared.secagg.adverts import ADVERT_LABEL, SEALS_LABEL, epoch_identifier
from shared.secagg.epoch import MAX_RATCHET_STEPS, open_epoch
from shared.secagg.server import EpochCollector
from tests.refusals import code_of


@pytest.fixture
def city(city_of: Any) -> Any:
    return city_of(4)


@pytest.fixture
def advertised(city: Any) -> tuple[dict[str, Any], SealRequest]:
    states, adverts = {}, {}
    for name in city.names:
        states[name], reply = open_epoch(city.context(name), city.keys[name])
        adverts[name] = reply.advert
    return states, SealRequest(run=city.context("police").run, epoch=1, adverts=adverts)


@pytest.fixture
def sealed(advertised: Any) -> tuple[dict[str, Any], dict[str, Signed]]:
    states, request = advertised
    answers = {name: state.receive(request) for name, state in states.items()}
    return {name: state for name, (state, _) in answers.items()}, {n: r.seals for n, (_, r) in answers.items()}


def test_all_departments_agree_on_the_epoch_and_on_every_pair_key(city: Any) -> None:
    ready = city.ready()
    epoch_ids = {state.epoch_id for state in ready.values()}
    assert len(epoch_ids) == 1
    terms = city.terms(epoch_ids.pop())
    keys = {name: state.begin(terms)[1]._keys.peek() for name, state in ready.items()}
    for one in city.names:
        for other in terms.peers(one):
            assert keys[one].pair_seeds[other] == keys[other].pair_seeds[one]
            assert keys[one].outgoing[other] == keys[other].incoming[one]
            assert keys[one].outgoing[other] != keys[one].incoming[other]
    seeds = [seed for name in city.names for seed in keys[name].pair_seeds.values()]
    assert len(set(seeds)) == len(seeds) // 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cohort": ("police", "environment", "health")}, "cohort-unordered"),
        ({"cohort": ("environment", "environment", "police")}, "cohort-unordered"),
        ({"cohort": ("environment", "police", "sybil")}, "cohort-foreign"),
        ({"cohort": ("environment", "health", "parks")}, "not-in-cohort"),
        ({"cohort": ("environment", "police")}, "cohort-too-small"),
    ],
)
def test_a_bad_cohort_is_refused_before_a_key_is_made(city: Any, changes: dict[str, Any], code: str) -> None:
    assert code_of(lambda: open_epoch(city.context("police", **changes), city.keys["police"])) == code


def test_an_identity_that_the_roster_does_not_list_is_refused(city: Any) -> None:
    assert code_of(lambda: open_epoch(city.context("police"), IdentityKey.generate())) == "identity-not-on-roster"


def test_a_swapped_key_does_not_verify(city: Any, advertised: Any) -> None:
    states, request = advertised
    _, foreign = open_epoch(city.context("health"), city.keys["health"])
    liar = IdentityKey.generate()
    forged = Signed(body=foreign.advert.body, signature=liar.sign(ADVERT_LABEL, foreign.advert.body))
    swapped = msgspec.structs.replace(request, adverts=request.adverts | {"health": forged})
    assert code_of(lambda: states["police"].receive(swapped)) == "signature-invalid"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 2}, "version-unsupported"),
        ({"run": b"x" * 32}, "advert-foreign"),
        ({"epoch": 2}, "advert-foreign"),
        ({"department": "parks"}, "advert-foreign"),
        ({"roster_hash": b"x" * 32}, "roster-mismatch"),
        ({"hpke_key": b"x" * 31}, "message-malformed"),
        ({"hpke_key": bytes(1184 + 32)}, "key-malformed"),
        ({"heads_seen": {"police": 1}}, "journal-rolled-back"),
    ],
)
def test_a_validly_signed_advert_with_wrong_content_is_refused(
    city: Any, advertised: Any, changes: dict[str, Any], code: str
) -> None:
    states, request = advertised
    bent = city.resign("health", ADVERT_LABEL, request.adverts["health"], KeyAdvert, **changes)
    swapped = msgspec.structs.replace(request, adverts=request.adverts | {"health": bent})
    assert code_of(lambda: states["police"].receive(swapped)) == code


def test_the_own_advert_must_be_the_one_that_was_sent(city: Any, advertised: Any) -> None:
    states, request = advertised
    _, second = open_epoch(city.context("police"), city.keys["police"])
    swapped = msgspec.structs.replace(request, adverts=request.adverts | {"police": second.advert})
    assert code_of(lambda: states["police"].receive(swapped)) == "own-advert-changed"


def test_two_departments_with_one_hpke_key_are_refused_on_both_sides(city: Any, advertised: Any) -> None:
    states, request = advertised
    key = msgspec.msgpack.decode(request.adverts["parks"].body, type=KeyAdvert).hpke_key
    bent = city.resign("health", ADVERT_LABEL, request.adverts["health"], KeyAdvert, hpke_key=key)
    swapped = msgspec.structs.replace(request, adverts=request.adverts | {"health": bent})
    assert code_of(lambda: states["police"].receive(swapped)) == "key-repeated"
    collector = EpochCollector(request.run, 1, city.names, city.roster)
    for name, signed in swapped.adverts.items():
        collector.receive_advert(name, AdvertReply(advert=signed))
    assert code_of(collector.seal_requests) == "key-repeated"


def test_a_peer_may_have_seen_the_newest_head_of_the_own_ledger(city: Any, advertised: Any) -> None:
    states, request = advertised
    seen = city.resign("health", ADVERT_LABEL, request.adverts["health"], KeyAdvert, heads_seen={"police": 0})
    told = msgspec.structs.replace(request, adverts=request.adverts | {"health": seen})
    state, reply = states["police"].receive(told)
    assert state.epoch_id == epoch_identifier(told, cohort=state.context.cohort)
    assert sorted(decode(reply.seals.body, SealSet).seals) == sorted(set(city.names) - {"police"})


def test_adverts_of_another_cohort_run_or_epoch_are_refused(advertised: Any) -> None:
    states, request = advertised
    fewer = {name: signed for name, signed in request.adverts.items() if name != "parks"}
    state = states["police"]
    assert code_of(lambda: state.receive(msgspec.structs.replace(request, adverts=fewer))) == "cohort-mismatch"
    assert code_of(lambda: state.receive(msgspec.structs.replace(request, epoch=2))) == "epoch-mismatch"
    assert code_of(lambda: state.receive(msgspec.structs.replace(request, run=b"x" * 32))) == "epoch-mismatch"
    state.receive(request)  # a refusal leaves the state usable for the honest message


def test_a_state_is_used_once(city: Any, advertised: Any) -> None:
    states, request = advertised
    answers = {name: state.receive(request) for name, state in states.items()}
    seals = {name: reply.seals for name, (_, reply) in answers.items()}
    state = answers["police"][0]
    ready = state.receive(seals)
    ready.begin(city.terms(ready.epoch_id))
    attempts: list[Callable[[], Any]] = [
        lambda: states["police"].receive(request),
        lambda: state.receive(seals),
        lambda: ready.begin(city.terms(ready.epoch_id, round_number=2)),
        # And before it looks at what it is asked: a used state seals and signs nothing.
        lambda: states["police"].receive(msgspec.structs.replace(request, epoch=2)),
        lambda: state.receive({}),
        lambda: ready.begin(city.terms(b"x" * 32, round_number=2)),
    ]
    for again in attempts:
        with pytest.raises(RuntimeError, match="used already"):
            again()


def test_a_swapped_or_tampered_seal_is_refused(city: Any, sealed: Any) -> None:
    states, seals = sealed
    state = states["police"]
    health = msgspec.msgpack.decode(seals["health"].body, type=SealSet)
    swapped = health.seals | {"police": health.seals["parks"]}
    flipped = health.seals | {"police": health.seals["police"][:-1] + bytes([health.seals["police"][-1] ^ 1])}
    fewer = {name: value for name, value in health.seals.items() if name != "parks"}
    for changes, code in (
        ({"seals": swapped}, "seal-invalid"),
        ({"seals": flipped}, "seal-invalid"),
        ({"seals": fewer}, "seals-incomplete"),
        ({"seals": health.seals | {"police": b"short"}}, "message-malformed"),
        ({"epoch_id": b"x" * 32}, "epoch-mismatch"),
        ({"department": "parks"}, "seals-foreign"),
    ):
        bent = city.resign("health", SEALS_LABEL, seals["health"], SealSet, **changes)
        assert code_of(lambda bent=bent: state.receive(seals | {"health": bent})) == code  # type: ignore[misc]  # default binds the loop value
    forged = Signed(body=seals["health"].body, signature=seals["parks"].signature)
    assert code_of(lambda: state.receive(seals | {"health": forged})) == "signature-invalid"
    assert code_of(lambda: state.receive({"health": seals["health"]})) == "seals-incomplete"
    state.receive(seals)


def test_a_replayed_seal_of_an_older_epoch_is_refused(city: Any, sealed: Any) -> None:
    _, old = sealed
    states, adverts = {}, {}
    for name in city.names:
        states[name], reply = open_epoch(city.context(name, epoch=2), city.keys[name])
        adverts[name] = reply.advert
    request = SealRequest(run=city.context("police").run, epoch=2, adverts=adverts)
    answers = {name: state.receive(request) for name, state in states.items()}
    seals = {name: reply.seals for name, (_, reply) in answers.items()}
    assert code_of(lambda: answers["police"][0].receive(seals | {"health": old["health"]})) == "epoch-mismatch"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": b"x" * 32}, "run-mismatch"),
        ({"epoch_id": b"x" * 32}, "epoch-mismatch"),
        ({"participants": ("environment", "health", "police", "sybil")}, "participant-foreign"),
        ({"participants": ("environment", "health", "parks")}, "not-a-participant"),
        ({"round": 3}, "round-not-newer"),
        ({"round": 4 + MAX_RATCHET_STEPS}, "ratchet-too-far"),
    ],
)
def test_terms_that_do_not_fit_the_epoch_are_refused(city: Any, changes: dict[str, Any], code: str) -> None:
    ready = city.ready()["police"]
    ready, _ = ready.begin(city.terms(ready.epoch_id, round_number=3))
    terms = city.terms(**({"epoch_id": ready.epoch_id, "round": 9} | changes))
    assert code_of(lambda: ready.begin(terms)) == code
    ready.begin(city.terms(ready.epoch_id, round_number=4))


def test_the_root_is_a_function_of_the_round_number(city: Any) -> None:
    ready = city.ready()
    police, health = ready["police"], ready["health"]
    for number in (1, 2, 4):
        police, _ = police.begin(city.terms(police.epoch_id, round_number=number))
    terms = city.terms(police.epoch_id, round_number=7)
    one, other = police.begin(terms)[1], health.begin(terms)[1]
    assert one._keys.peek().pair_seeds["health"] == other._keys.peek().pair_seeds["police"]


def test_no_root_of_a_begun_round_is_kept(city: Any) -> None:
    ready = city.ready()["police"]
    before = dict(ready._roots.peek())
    after, _ = ready.begin(city.terms(ready.epoch_id))
    assert not set(before.values()) & set(after._roots.peek().values())
    assert after.next_round == 2


def test_the_collector_takes_each_advert_and_seal_once_and_from_the_cohort_only(city: Any, advertised: Any) -> None:
    states, request = advertised
    collector = EpochCollector(request.run, 1, city.names, city.roster)
    assert code_of(collector.seal_requests) == "epoch-incomplete"
    for name, signed in request.adverts.items():
        collector.receive_advert(name, AdvertReply(advert=signed))
    police = AdvertReply(advert=request.adverts["police"])
    assert code_of(lambda: collector.receive_advert("police", police)) == "advert-repeated"
    assert code_of(lambda: collector.receive_advert("sybil", police)) == "cohort-foreign"
    short = city.resign("police", ADVERT_LABEL, request.adverts["police"], KeyAdvert, hpke_key=b"short")
    fresh = EpochCollector(request.run, 1, city.names, city.roster)
    assert code_of(lambda: fresh.receive_advert("police", AdvertReply(advert=short))) == "message-malformed"
    assert all(set(asked.adverts) == set(city.names) for asked in collector.seal_requests().values())
    assert code_of(collector.seals_for) == "epoch-incomplete"
    replies: dict[str, SealReply] = {name: state.receive(request)[1] for name, state in states.items()}
    assert code_of(lambda: collector.receive_seals("police", replies["health"])) == "signature-invalid"
    for name, reply in replies.items():
        collector.receive_seals(name, reply)
    assert code_of(lambda: collector.receive_seals("police", replies["police"])) == "seals-repeated"
    assert set(collector.seals_for()) == set(city.names)
