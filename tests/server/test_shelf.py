"""The shelf on loopback: who is let in, what it holds, and that nobody can hold it up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import msgspec
import pytest

from server.audit import OWNER
from server.city import load_plan_key
from server.plan_files import PlanState, load_published
from server.records import ModelReleased
from server.released import put_on_shelf
from server.roster import remove
from server.shelf import CALLS_OF_A_MEMBER, Shelf
from server.shelf_files import opened, shelf_listing
from shared.codec import decode, dump_json, encode, load_json
from shared.errors import ProtocolError, SetupError
from shared.identity import DepartmentId, Signed, sign_record
from shared.journal import EntryKind, Journal
from shared.model_file import MODEL_FILE, file_digest
from shared.release import CARD_FILE, RECORD_FILE, RELEASE_LABEL, ModelRelease
from shared.shelf import FETCH, LIST, MODEL_FILES, SERVICE, Item, Listing
from tests.channel_city import code_of, member_files, new_authority, server_files
from tests.deployed_city import DeployedCity, deploy_with_plan, now
from tests.finished_city import attack_audit, copied, file_run, run_published
from tests.shelf_city import ShelfCity, ask, open_shelf_of, raw_caller, take

ROSTER = Item(kind="roster")
MEMBER = DepartmentId("police")
NOT_ADMITTED = (grpc.StatusCode.PERMISSION_DENIED, "certificate-not-admitted")
BIG = 8 << 20


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    """A city with one published plan and the model of one run on its shelf."""
    city, digest = deploy_with_plan(tmp_path_factory.mktemp("shelf") / "city")
    run = file_run(city, digest, run_published(city, digest)).path.name
    attack_audit(city, "health", load_published(city.authority, digest)[1], city.folder / "audits")
    put_on_shelf(city.authority, run[:12], now=now(), audits=audits(city))
    return city


def audits(city: DeployedCity) -> list[Path]:
    """The attack audit that the plan demands."""
    return list((city.folder / "audits").iterdir())


@pytest.fixture(scope="module")
def shared_shelf(original: DeployedCity) -> Iterator[ShelfCity]:
    """For the tests that leave it as it was."""
    with open_shelf_of(original) as shelf:
        yield shelf


@pytest.fixture
def shelf(original: DeployedCity, tmp_path: Path) -> Iterator[ShelfCity]:
    """A copy that a test may change."""
    with open_shelf_of(copied(original, tmp_path / "city")) as shelf:
        yield shelf


def listing(shelf: ShelfCity) -> Listing:
    with raw_caller(shelf.address, shelf.roots(), shelf.files()) as channel:
        return decode(take(channel, b"", method=LIST), Listing)


def refusal(shelf: ShelfCity, item: Item | bytes, method: str = FETCH) -> tuple[grpc.StatusCode, str]:
    """How a member's call fares, after which the shelf still serves."""
    with raw_caller(shelf.address, shelf.roots(), shelf.files()) as channel:
        refused = code_of(lambda: take(channel, item, method=method))
    assert listing(shelf).plans
    return refused


# --- what it holds -----------------------------------------------------------------------------------------


def test_a_member_gets_exactly_what_was_published(shared_shelf: ShelfCity) -> None:
    home = shared_shelf.city.authority
    listed = listing(shared_shelf)
    (plan,), (run,) = listed.plans, listed.models
    assert listed == shelf_listing(home, MEMBER) == Listing(roster=True, plans=(plan,), models=(run,))
    files = {Item(kind=kind, name=run): home.runs / run / name for kind, name in MODEL_FILES.items() if kind == "model"}
    files |= {ROSTER: home.roster, Item(kind="plan", name=plan): home.plan(PlanState.PUBLISHED, plan)}
    with raw_caller(shared_shelf.address, shared_shelf.roots(), shared_shelf.files()) as channel:
        for item, path in files.items():
            assert take(channel, item) == path.read_bytes()
        assert b"Model card" in take(channel, Item(kind="model-card", name=run))


def test_a_release_stands_in_the_offices_journal_before_it_is_on_the_shelf(shelf: ShelfCity) -> None:
    home = shelf.city.authority
    (run,) = listing(shelf).models
    with Journal.open(home.office_journal, owner=OWNER) as office:
        (entry,) = office.entries(EntryKind.MODEL_RELEASED)
        assert decode(entry.body, ModelReleased).run.hex() == run
        (home.released / run / CARD_FILE).unlink()
        assert listing(shelf).models == ()  # not before all of it is there
        with pytest.raises(Exception, match="in use"):
            put_on_shelf(home, run, now=now(), audits=audits(shelf.city))
        assert listing(shelf).models == ()
    put_on_shelf(home, run, now=now(), audits=audits(shelf.city))
    assert listing(shelf).models == (run,)


def test_a_model_is_there_for_those_alone_to_whom_its_plan_gives_it(shared_shelf: ShelfCity) -> None:
    """R21: a member that the plan does not name sees no model and gets none; roster and plans are for all."""
    home, other = shared_shelf.city.authority, DepartmentId("parks")
    (run,) = shelf_listing(home, MEMBER).models
    assert shelf_listing(home, other) == msgspec.structs.replace(shelf_listing(home, MEMBER), models=())
    for kind in MODEL_FILES:
        with opened(home, Item(kind=kind, name=run), MEMBER):
            pass
        with pytest.raises(ProtocolError) as caught, opened(home, Item(kind=kind, name=run), other):
            pytest.fail("opened")
        assert caught.value.code == "not-on-shelf"


def test_nobody_receives_a_model_whose_plan_is_not_there(shelf: ShelfCity) -> None:
    home = shelf.city.authority
    (run,) = listing(shelf).models
    (home.runs / run / "run.json").unlink()
    assert listing(shelf).models == ()


def test_drafts_and_signed_plans_are_not_on_the_shelf(shelf: ShelfCity) -> None:
    home = shelf.city.authority
    (plan,) = listing(shelf).plans
    published = home.plan(PlanState.PUBLISHED, plan)
    for state in (PlanState.DRAFT, PlanState.SIGNED):
        published.rename(home.plan(state, plan))
        assert listing(shelf) == msgspec.structs.replace(shelf_listing(home, MEMBER), plans=())
        home.plan(state, plan).rename(published)


@pytest.mark.parametrize("kind", ["plan", "model", "model-record", "model-card", "roster"])
def test_an_unknown_name_is_refused(shared_shelf: ShelfCity, kind: str) -> None:
    item = encode({"kind": kind, "name": "0" * 64})
    assert refusal(shared_shelf, item) == (grpc.StatusCode.NOT_FOUND, "not-on-shelf")


@pytest.mark.parametrize(
    "item",
    [
        {"kind": "plan", "name": "../" * 8 + "keys/plan.key"},
        {"kind": "plan", "name": "A" * 64},
        {"kind": "plan", "name": "0" * 64 + "\n"},
        {"kind": "plan", "name": "0" * 2000},
        {"kind": "key", "name": ""},
        {"kind": "roster", "name": "", "path": "keys/plan.key"},
        {},
    ],
)
def test_a_name_that_is_none_is_refused(shared_shelf: ShelfCity, item: dict[str, str]) -> None:
    assert refusal(shared_shelf, encode(item)) == (grpc.StatusCode.INVALID_ARGUMENT, "message-malformed")


def test_a_name_longer_than_metadata_may_be_is_not_taken_in(shared_shelf: ShelfCity) -> None:
    assert refusal(shared_shelf, bytes(1 << 16))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", ["roster", "plan", "model", "model-record"])
def test_a_file_that_was_changed_stays_here(shelf: ShelfCity, kind: str) -> None:
    home = shelf.city.authority
    (plan,), (run,) = listing(shelf).plans, listing(shelf).models
    item, path = {
        "roster": (ROSTER, home.roster),
        "plan": (Item(kind="plan", name=plan), home.plan(PlanState.PUBLISHED, plan)),
        "model": (Item(kind="model", name=run), home.released / run / MODEL_FILE),
        "model-record": (Item(kind="model-record", name=run), home.released / run / RECORD_FILE),
    }[kind]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    # A changed roster admits nobody.
    expected = NOT_ADMITTED if kind == "roster" else (grpc.StatusCode.DATA_LOSS, "shelf-changed")
    with raw_caller(shelf.address, shelf.roots(), shelf.files()) as channel:
        assert code_of(lambda: take(channel, item)) == expected


def test_another_plan_under_a_plans_name_stays_here(shelf: ShelfCity) -> None:
    home = shelf.city.authority
    (plan,) = listing(shelf).plans
    other = home.plan(PlanState.PUBLISHED, "ab" * 32)
    home.plan(PlanState.PUBLISHED, plan).rename(other)
    item = Item(kind="plan", name=other.stem)
    assert refusal(shelf, item) == (grpc.StatusCode.DATA_LOSS, "shelf-changed")
    other.unlink()
    other.symlink_to(home.plan_key)
    assert listing(shelf).plans == ()


# --- who is let in -----------------------------------------------------------------------------------------


def test_no_certificate_another_citys_and_a_member_as_authority_are_not_let_in(shared_shelf: ShelfCity) -> None:
    stranger = member_files(new_authority("gotham"), "police")
    for files in (None, stranger):
        with raw_caller(shared_shelf.address, shared_shelf.roots(), files) as channel:
            for method in (LIST, FETCH):
                refused = code_of(partial(take, channel, ROSTER, method=method))
                assert refused[0] is grpc.StatusCode.UNAVAILABLE
    assert listing(shared_shelf).roster


def test_a_removed_member_is_refused_at_once(shelf: ShelfCity) -> None:
    with raw_caller(shelf.address, shelf.roots(), shelf.files("health")) as channel:
        assert decode(take(channel, ROSTER), Signed)
        remove(shelf.city.authority, "health", now=now())
        for method in (LIST, FETCH):
            assert code_of(partial(take, channel, ROSTER, method=method)) == NOT_ADMITTED
    assert listing(shelf).roster


def test_a_member_that_is_removed_in_the_midst_of_a_download_does_not_get_the_rest(shelf: ShelfCity) -> None:
    with raw_caller(shelf.address, shelf.roots(), shelf.files("health")) as channel:
        call = ask(channel, big_card(shelf))
        next(call)
        remove(shelf.city.authority, "health", now=now())
        assert code_of(lambda: list(call)) == NOT_ADMITTED


def test_nothing_else_is_served_on_the_port(shared_shelf: ShelfCity) -> None:
    methods = [f"/{SERVICE}/Put", "/cityfed.UpdateChannel/Attach", "/grpc.health.v1.Health/Check"]
    reflection = [f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
    with raw_caller(shared_shelf.address, shared_shelf.roots(), shared_shelf.files()) as channel:
        for method in [*methods, *reflection]:
            assert code_of(partial(channel.unary_unary(method), b"", timeout=20))[0] is grpc.StatusCode.UNIMPLEMENTED
    assert listing(shared_shelf).roster


def test_a_port_that_is_taken_is_an_error(shared_shelf: ShelfCity) -> None:
    with pytest.raises(SetupError) as caught:
        Shelf(shared_shelf.city.authority, shared_shelf.address, server_files(new_authority()))
    assert caught.value.code == "shelf-port"


# --- who would hold it up ----------------------------------------------------------------------------------


def big_card(shelf: ShelfCity) -> Item:
    """An item that no window of a connection holds."""
    home = shelf.city.authority
    (run,) = shelf_listing(home, MEMBER).models
    folder = home.released / run
    (folder / CARD_FILE).write_bytes(bytes(BIG))
    signed = load_json((folder / RECORD_FILE).read_bytes(), Signed, where="record")
    release = msgspec.structs.replace(decode(signed.body, ModelRelease), card_sha256=file_digest(bytes(BIG)))
    (folder / RECORD_FILE).write_bytes(dump_json(sign_record(load_plan_key(home), RELEASE_LABEL, release)))
    return Item(kind="model-card", name=run)


def taken_once_there_is_a_seat(channel: grpc.Channel, attempts: int = 20_000) -> bytes:
    """Ask again and again; each attempt is a call that is refused."""
    for _ in range(attempts):
        try:
            return take(channel, ROSTER)
        except grpc.RpcError as error:
            if error.details() != "too-many-calls":
                raise
    raise AssertionError("no seat was given back")


def ended(call: grpc.Call) -> grpc.StatusCode:
    """Read the rest of a call, and say how it ended."""
    with suppress(grpc.RpcError):
        deque(call, maxlen=0)
    return call.code()


def test_a_reader_that_does_not_read_is_cut_and_its_threads_are_free_again(
    original: DeployedCity, tmp_path: Path
) -> None:
    city = copied(original, tmp_path / "city")
    with open_shelf_of(city, deadline=lambda length: 0.3 if length == BIG else 30.0) as shelf:
        item = big_card(shelf)
        with raw_caller(shelf.address, shelf.roots(), shelf.files()) as channel:
            calls = [ask(channel, item) for _ in range(CALLS_OF_A_MEMBER)]
            assert all(next(call) for call in calls)
            assert taken_once_there_is_a_seat(channel) == city.authority.roster.read_bytes()
            assert grpc.StatusCode.CANCELLED in {ended(call) for call in calls}


def test_a_member_with_too_many_calls_is_refused_and_keeps_nobody_out(shelf: ShelfCity) -> None:
    item = big_card(shelf)
    with raw_caller(shelf.address, shelf.roots(), shelf.files()) as channel:
        calls = [ask(channel, item) for _ in range(CALLS_OF_A_MEMBER)]
        assert all(next(call) for call in calls)
        assert code_of(lambda: take(channel, ROSTER)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too-many-calls")
        with raw_caller(shelf.address, shelf.roots(), shelf.files("health")) as other:
            assert take(other, ROSTER)
        for call in calls:
            assert sum(map(len, call)) > BIG
        assert take(channel, ROSTER)


def test_a_caller_that_says_nothing_is_answered_without_being_heard(shared_shelf: ShelfCity) -> None:
    """No thread waits for a message: a call that brings none is served like any other."""
    with raw_caller(shared_shelf.address, shared_shelf.roots(), shared_shelf.files()) as channel:
        assert code_of(lambda: take(channel, b"")) == (grpc.StatusCode.INVALID_ARGUMENT, "message-malformed")
        assert take(channel, ROSTER)
