"""A new or changed key counts after its owner's old key or this department's people say so, and not before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from clients.config import open_journal
from clients.memory import Memory
from clients.records import KeyApproved, RosterSeen
from shared.codec import decode, encode
from shared.identity import DepartmentId, IdentityKey, Roster, Signed, fingerprint, sign_record
from shared.journal import EntryKind
from shared.messages import AdvertReply, SealReply
from shared.roster import endorse_key
from simulation.world import now
from tests.city import open_city, small_scenario
from tests.clients.small_department import Office, found_office
from tests.command_line import Run
from tests.protocol.liar import Liar, Town

VICTIM = "health"
PEER = "police"
CITY = "simulated-city"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    folder = tmp_path_factory.mktemp("town")
    with open_city(folder, small_scenario(folder)) as city:
        return Town.of(city)


@pytest.fixture
def liar(town: Town, tmp_path: Path) -> Iterator[Liar]:
    """Here the coordinator is honest; what is bent is the roster."""
    liar = Liar(town, tmp_path)
    yield liar
    liar.close()


def members(liar: Liar, **changes: bytes) -> dict[str, bytes]:
    return {**liar.world.roster.members, **changes}


def endorsing(liar: Liar, old: IdentityKey, new: bytes, *, serial: int) -> Signed:
    """A roster on which the peer's old key vouches for its new one."""
    signature = endorse_key(old, city=CITY, department=PEER, key=new)
    roster = Roster(city=CITY, serial=serial, members=members(liar, **{PEER: new}), endorsements={PEER: signature})
    return sign_record(liar.town.office, "roster", roster)


def approve(liar: Liar, name: str, department: str, key: bytes) -> None:
    approved = KeyApproved(department=department, key=key, means="fingerprint")
    liar.participants[name].memory.write(EntryKind.KEY, approved)


# --- the node ----------------------------------------------------------------------------------------------


def test_p2_a_changed_key_counts_once_its_fingerprint_was_approved_here(liar: Liar) -> None:
    new = IdentityKey.generate().public
    roster = liar.sign_roster(members(liar, **{PEER: new}))
    liar.assert_refused(VICTIM, liar.offer(roster=roster), "roster-key-unapproved")
    approve(liar, VICTIM, PEER, new)
    liar.get(VICTIM, liar.offer(roster=roster), AdvertReply)
    liar.restart(VICTIM)
    liar.get(VICTIM, liar.offer(roster=roster), AdvertReply)
    liar.assert_refused("transport", liar.offer(roster=roster), "roster-key-unapproved")


def test_p2_an_approval_is_for_one_key_of_one_department(liar: Liar) -> None:
    new, other = IdentityKey.generate().public, IdentityKey.generate().public
    approve(liar, VICTIM, PEER, new)
    liar.assert_refused(
        VICTIM, liar.offer(roster=liar.sign_roster(members(liar, **{PEER: other}))), "roster-key-unapproved"
    )
    moved = members(liar, transport=new)
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(moved, serial=3)), "roster-key-unapproved")


def test_p2_after_an_approval_the_old_key_is_out(liar: Liar) -> None:
    approve(liar, VICTIM, PEER, IdentityKey.generate().public)
    liar.assert_refused(VICTIM, liar.offer(), "roster-key-unapproved")


def test_p2_a_key_that_the_old_one_vouches_for_counts_from_then_on(liar: Liar) -> None:
    old = liar.world.departments[DepartmentId(PEER)].identity
    second, third = IdentityKey.generate(), IdentityKey.generate()
    liar.get(VICTIM, liar.offer(roster=endorsing(liar, old, second.public, serial=2)), AdvertReply)
    (entry,) = liar.journals[VICTIM].entries(EntryKind.KEY)
    assert decode(entry.body, KeyApproved) == KeyApproved(department=PEER, key=second.public, means="endorsement")
    liar.restart(VICTIM)
    plain = liar.sign_roster(members(liar, **{PEER: second.public}), serial=3)
    liar.get(VICTIM, liar.offer(roster=plain), AdvertReply)
    stale = endorsing(liar, old, third.public, serial=4)
    liar.assert_refused(VICTIM, liar.offer(roster=stale), "roster-key-unapproved")
    liar.get(VICTIM, liar.offer(roster=endorsing(liar, second, third.public, serial=5)), AdvertReply)


def test_p2_a_removed_member_is_out_at_once(liar: Liar) -> None:
    """Of the live epoch, of every cohort, and for whoever still shows the older roster; also after a restart."""
    others = tuple(name for name in liar.names if name != PEER)
    live = liar.stand().epoch
    parks = IdentityKey.generate().public
    approve(liar, VICTIM, "parks", parks)
    exchanged = {name: key for name, key in members(liar, parks=parks).items() if name != PEER}
    roster = liar.sign_roster(exchanged)
    liar.assert_refused(VICTIM, liar.offer(roster=roster), "cohort-foreign")
    liar.assert_refused(VICTIM, liar.ask(1, epoch=live), "epoch-unknown")
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")
    liar.restart(VICTIM)
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")
    liar.get(VICTIM, liar.offer(roster=roster, cohort=others), AdvertReply)


def test_p2_a_removal_counts_although_another_key_on_the_roster_does_not(liar: Liar) -> None:
    kept = {name: key for name, key in members(liar).items() if name != PEER}
    roster = liar.sign_roster(kept | {"parks": IdentityKey.generate().public})
    live = liar.stand().epoch
    liar.assert_refused(VICTIM, liar.offer(roster=roster), "roster-key-unapproved")
    liar.assert_refused(VICTIM, liar.ask(1, epoch=live), "epoch-unknown")
    liar.assert_refused(VICTIM, liar.offer(), "roster-rolled-back")


def test_p2_a_serial_names_one_roster_also_after_a_restart(liar: Liar) -> None:
    kept = {name: key for name, key in members(liar).items() if name != PEER}
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(kept)), "roster-size")
    liar.restart(VICTIM)
    liar.assert_refused(VICTIM, liar.offer(roster=liar.sign_roster(members(liar))), "roster-contradicted")


def test_a_roster_that_does_not_verify_changes_nothing(liar: Liar) -> None:
    liar.stand()
    foreign = sign_record(IdentityKey.generate(), "roster", Roster(city=CITY, serial=9, members=members(liar)))
    liar.assert_refused(VICTIM, liar.offer(roster=foreign), "signature-invalid")
    liar.epoch -= 1  # the one that stands
    liar.upload(1)
    liar.honest_round(2)


def test_the_same_roster_again_keeps_the_epoch_and_writes_nothing(liar: Liar) -> None:
    liar.advertise()
    assert len(list(liar.journals[VICTIM].entries(EntryKind.ROSTER))) == 1
    liar.assert_refused(VICTIM, liar.offer(run=b"r" * 32), "run-foreign")
    liar.get(VICTIM, liar.all_adverts(epoch=liar.epoch - 1), SealReply)
    assert len(list(liar.journals[VICTIM].entries(EntryKind.ROSTER))) == 1


# --- the command -------------------------------------------------------------------------------------------


OFFICE = IdentityKey.generate()
HEALTH, WATER = IdentityKey.generate(), IdentityKey.generate()


@pytest.fixture
def office(tmp_path: Path) -> Office:
    """Police, which has pinned itself, health and water."""
    office = found_office(tmp_path / "police")
    own = IdentityKey.from_private_bytes((office.folder / "identity.key").read_bytes())
    pinned = {"police": own, "health": HEALTH, "water": WATER}
    office.edit_config(roster_key=OFFICE.public.hex(), members={name: key.public.hex() for name, key in pinned.items()})
    return office


def own_key(office: Office) -> bytes:
    return IdentityKey.from_private_bytes((office.folder / "identity.key").read_bytes()).public


def write_roster(
    office: Office,
    keys: Mapping[str, bytes],
    *,
    serial: int = 1,
    signer: IdentityKey = OFFICE,
    **more: dict[str, bytes],
) -> Path:
    listed = {"police": own_key(office), **keys}
    path = office.folder / f"roster-{serial}"
    path.write_bytes(encode(sign_record(signer, "roster", Roster(city=CITY, serial=serial, members=listed, **more))))
    return path


def states(run: Run, office: Office, *file: Path) -> dict[str, str]:
    shown = json.loads(run("roster", "show", office.config, *file, "--json").out)
    return {item["department"]: item["state"] for item in shown["members"]}


def test_show_says_whose_key_counts(run: Run, office: Office) -> None:
    new, parks = IdentityKey.generate().public, IdentityKey.generate().public
    path = write_roster(office, {"health": new, "parks": parks})
    ended = run("roster", "show", office.config, path)
    assert ended.code == 0
    assert ended.out.splitlines() == [
        f"Roster of {CITY}, serial 1:",
        f"  health  {fingerprint(new)}  changed, not approved",
        f"  parks   {fingerprint(parks)}  new, not approved",
        f"  police  {fingerprint(own_key(office))}  approved",
        "  water   not on this roster",
    ]
    signature = endorse_key(HEALTH, city=CITY, department="health", key=new)
    path = write_roster(office, {"health": new}, serial=2, endorsements={"health": signature})
    assert states(run, office, path) == {"health": "endorsed by the old key", "police": "approved"}


def test_an_approved_key_is_approved_from_then_on(run: Run, office: Office) -> None:
    new, parks = IdentityKey.generate().public, IdentityKey.generate().public
    path = write_roster(office, {"health": new, "parks": parks})
    words = fingerprint(new).split()
    ended = run("roster", "approve", office.config, *words, "--roster", path)
    assert ended.code == 0
    assert ended.out == f"The key of health is approved: {fingerprint(new)}\n"
    assert states(run, office, path) == {"health": "approved", "parks": "new, not approved", "police": "approved"}
    with open_journal(office.config) as journal:
        assert Memory(journal, now).keys == {"health": new}


@pytest.mark.parametrize("spelled", [str, str.upper, lambda text: text.replace(" ", ""), lambda text: f" {text} "])
def test_a_fingerprint_may_be_spaced_as_it_was_read_out(run: Run, office: Office, spelled: object) -> None:
    assert callable(spelled)
    new = IdentityKey.generate().public
    path = write_roster(office, {"health": new})
    assert run("roster", "approve", office.config, spelled(fingerprint(new)), "--roster", path).code == 0
    assert states(run, office, path)["health"] == "approved"


def test_several_keys_are_approved_together_or_not_at_all(run: Run, office: Office) -> None:
    new, parks, stranger = (IdentityKey.generate().public for _ in range(3))
    path = write_roster(office, {"health": new, "parks": parks})
    both = [fingerprint(new), fingerprint(parks)]
    ended = run("roster", "approve", office.config, both[0], fingerprint(stranger), "--roster", path)
    assert (ended.code, ended.sentence.endswith("[fingerprint-unknown]")) == (2, True)
    assert states(run, office, path)["health"] == "changed, not approved"
    ended = run("roster", "approve", office.config, *both, "--roster", path, "--json")
    assert [item["department"] for item in json.loads(ended.out)] == ["health", "parks"]
    assert set(states(run, office, path).values()) == {"approved"}


def test_approving_twice_writes_once(run: Run, office: Office) -> None:
    new = IdentityKey.generate().public
    path = write_roster(office, {"health": new})
    for _ in range(2):
        assert run("roster", "approve", office.config, fingerprint(new), "--roster", path).code == 0
    with open_journal(office.config) as journal:
        assert len(list(journal.entries(EntryKind.KEY))) == 1


@pytest.mark.parametrize("words", [["abcd"], ["zz" * 16], ["ab" * 17], [""], ["ab" * 15, "a"]])
def test_what_is_no_fingerprint_is_refused(run: Run, office: Office, words: list[str]) -> None:
    ended = run("roster", "approve", office.config, *words)
    assert (ended.code, ended.sentence.endswith("[fingerprint-malformed]")) == (2, True)


def test_without_a_file_the_newest_roster_that_the_node_was_shown_is_meant(run: Run, office: Office) -> None:
    ended = run("roster", "show", office.config)
    assert (ended.code, ended.sentence.endswith("[roster-unknown]")) == (2, True)
    new = IdentityKey.generate().public
    signed = decode(write_roster(office, {"health": new}, serial=4).read_bytes(), Signed)
    with open_journal(office.config) as journal:
        Memory(journal, now).write(EntryKind.ROSTER, RosterSeen(roster=signed))
    assert states(run, office)["health"] == "changed, not approved"
    assert run("roster", "approve", office.config, fingerprint(new)).code == 0
    assert states(run, office)["health"] == "approved"
    older = write_roster(office, {"health": new}, serial=3)
    ended = run("roster", "show", office.config, older)
    assert (ended.code, ended.sentence.endswith("[roster-rolled-back]")) == (7, True)


@pytest.mark.parametrize("command", ["show", "approve"])
def test_a_file_that_is_no_roster_of_this_city_is_refused(run: Run, office: Office, command: str) -> None:
    def refused(path: Path) -> tuple[int, str]:
        words = ["00" * 16, "--roster"] if command == "approve" else []
        ended = run("roster", command, office.config, *words, path)
        return ended.code, ended.sentence.rpartition("[")[2].rstrip("]")

    assert refused(office.folder / "nowhere") == (2, "file-missing")
    assert refused(office.config) == (7, "message-malformed")
    assert refused(write_roster(office, {}, signer=HEALTH)) == (7, "signature-invalid")


def test_a_key_that_is_approved_beside_a_node_waits_for_it(run: Run, office: Office) -> None:
    new = IdentityKey.generate().public
    path = write_roster(office, {"health": new})
    with open_journal(office.config) as journal:
        node = Memory(journal, now)
        assert run("roster", "approve", office.config, fingerprint(new), "--roster", path).code == 0
        assert states(run, office, path)["health"] == "approved"
        assert node.keys == {}
        assert node.take_over(office.folder / "outbox") is True
        assert node.keys == {"health": new}
        assert node.take_over(office.folder / "outbox") is False
    assert states(run, office)["health"] == "approved"
