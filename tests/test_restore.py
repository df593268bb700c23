"""After a lost disk no ledger shows less than what left (P3); no rolled-back journal passes for a whole one (P5)."""

from __future__ import annotations

import datetime as dt
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from clients.backup import make_backup
from clients.binding import load_declaration, write_declaration
from clients.config import load_config, load_policy, open_journal
from clients.department import budgets_of, charge_of
from clients.enrol import enrol
from clients.explain import budget_status, others_receipts
from clients.restore import Restored, restore_home
from server.audit import OWNER, department_receipts
from server.city import load_city, load_roster_key
from server.heads import KnownHeads
from server.plan_files import load_published
from server.roster import load_members
from shared.audit import ReceiptLine, receipt_line
from shared.codec import encode
from shared.crypto.seal import PUBLIC_KEY_BYTES
from shared.errors import CityFedError
from shared.identity import DepartmentId, IdentityKey, Roster, sign_record
from shared.journal import Journal
from shared.keystore import load_identity
from shared.messages import HeadReceipt, KeyAdvert, MaskedUpdate, Receipt
from shared.plan import Plan
from shared.privacy.accountant import epsilon
from shared.privacy.extras import plan_events
from shared.privacy.ledger import PrivacyLedger
from shared.roster import endorse_key
from tests.deployed_city import DeployedCity, deploy_with_plan, now
from tests.finished_city import run_published

POLICE = "police"


@dataclass(frozen=True)
class Lost:
    """A city with one finished run, and backups of one department from before and after it."""

    city: DeployedCity
    digest: str
    plan: Plan
    lines: tuple[ReceiptLine, ...]
    before: Path
    after: Path

    @property
    def identity(self) -> IdentityKey:
        return load_identity(self.city.home(POLICE) / "identity.key")

    def advert(
        self, run: bytes, *, key: IdentityKey | None = None, until: str = "", policy: bytes = b""
    ) -> ReceiptLine:
        """What the department signs when it joins a run."""
        config = self.city.config(POLICE)
        advert = KeyAdvert(
            version=1,
            run=run,
            epoch=1,
            department=POLICE,
            hpke_key=bytes(PUBLIC_KEY_BYTES),
            roster_hash=bytes(32),
            policy_hash=policy or load_policy(config, load_config(config)).digest,
            heads_seen={},
        )
        return receipt_line("key-advert", sign_record(key or self.identity, "key-advert", advert), run=b"", until=until)

    def head(
        self, sequence: int, run: bytes, *, key: IdentityKey | None = None, digest: bytes = bytes(32)
    ) -> ReceiptLine:
        """What the department signs when a round is closed."""
        head = HeadReceipt(department=POLICE, closed_hash=bytes(32), journal_sequence=sequence, journal_head=digest)
        return receipt_line("head-receipt", sign_record(key or self.identity, "head-receipt", head), run=run)

    def restore(
        self,
        folder: Path,
        backup: Path,
        lines: tuple[ReceiptLine, ...] | None = None,
        rosters: Sequence[Path] = (),
    ) -> Restored:
        """Restore into a new home; the rows come back from elsewhere."""
        folder.mkdir(exist_ok=True)
        receipts = folder.with_suffix(".jsonl")
        receipts.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in lines or self.lines))
        shutil.copy(self.city.home(POLICE) / f"{POLICE}.csv", folder)
        return restore_home(folder, backup, [receipts], now=now(), rosters=rosters)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    folder = tmp_path_factory.mktemp("lost")
    city, digest = deploy_with_plan(folder / "city")
    make_backup(city.config(POLICE), folder / "before", keys=True, now=now())
    run_published(city, digest)
    make_backup(city.config(POLICE), folder / "after", keys=True, now=now() + dt.timedelta(days=2))
    lines = tuple(department_receipts(city.authority.journal))
    return Lost(city, digest, load_published(city.authority, digest)[1], lines, folder / "before", folder / "after")


def in_full(plan: Plan) -> float:
    return epsilon(plan_events(plan, plan.attempts), 1e-4)


def spent(config: Path) -> float:
    return budget_status(config).spent_epsilon


def refused(code: str, lost: Lost, folder: Path, *args: object) -> None:
    with pytest.raises(CityFedError) as caught:
        lost.restore(folder, *args)  # type: ignore[arg-type]  # passed on as they come
    assert caught.value.code == code
    assert not (folder / "journal.sqlite").exists()


def test_p3_a_backup_from_after_the_last_run_goes_on_with_the_same_figures(lost: Lost, tmp_path: Path) -> None:
    restored = lost.restore(tmp_path / "home", lost.after)
    assert (restored.charged, restored.closed) == ((), "")
    assert restored.newest <= restored.sequence
    status = budget_status(tmp_path / "home" / "client.toml")
    assert status == budget_status(lost.city.config(POLICE))
    assert 0 < status.spent_epsilon < in_full(lost.plan)
    assert (tmp_path / "home" / "stopped").exists()


def test_p3_a_run_after_the_backup_is_charged_in_full_and_does_not_go_on(lost: Lost, tmp_path: Path) -> None:
    restored = lost.restore(tmp_path / "home", lost.before)
    config = tmp_path / "home" / "client.toml"
    assert (restored.charged, restored.closed) == ((lost.plan.run_id().hex(),), "")
    assert restored.newest > restored.sequence
    assert spent(config) == pytest.approx(in_full(lost.plan))
    assert spent(config) >= spent(lost.city.config(POLICE))
    with open_journal(config) as journal:
        reservation = PrivacyLedger(journal, now).reservation(lost.plan.run_id())
        assert reservation is not None
        assert reservation.attempts_left == 0
        with pytest.raises(CityFedError, match="does not go on here") as caught:
            reservation.burn(9)
        reservation.settle()
    assert caught.value.code == "run-restored"
    assert spent(config) == pytest.approx(in_full(lost.plan))


def test_p5_peers_see_a_restored_journal_beyond_every_position_that_they_know(lost: Lost, tmp_path: Path) -> None:
    restored = lost.restore(tmp_path / "home", lost.before)
    with open_journal(tmp_path / "home" / "client.toml") as journal:
        assert journal.head.sequence > restored.newest


def test_p3_a_run_that_was_opened_counts_even_if_no_receipt_of_it_is_held(lost: Lost, tmp_path: Path) -> None:
    opened = tuple(line for line in lost.lines if line.sequence == 0)
    assert opened
    restored = lost.restore(tmp_path / "home", lost.before, opened)
    assert restored.charged == (lost.plan.run_id().hex(),)


def test_p3_a_run_that_was_open_when_the_backup_was_made_counts_in_full(lost: Lost, tmp_path: Path) -> None:
    """Whoever tells nothing of it: attempts that were aborted since are in nobody's receipts."""
    backup, config = tmp_path / "backup", lost.city.config(POLICE)
    shutil.copytree(lost.before, backup)
    policy = load_policy(config, load_config(config)).policy
    with Journal.open(backup / "journal.sqlite", owner=POLICE) as journal:
        declaration = load_declaration(config.parent / load_config(config).binding)
        ledger = PrivacyLedger(journal, now)
        ledger.reserve(charge_of(lost.plan, declaration, policy), budgets_of(policy)).burn(1)
    line = lost.advert(lost.plan.run_id(), until="2020-01-01T00:00:00Z")
    restored = lost.restore(tmp_path / "home", backup, (line,))
    assert (restored.charged, restored.closed) == ((lost.plan.run_id().hex(),), "")
    assert spent(tmp_path / "home" / "client.toml") == pytest.approx(in_full(lost.plan))


def test_p3_a_run_whose_plan_is_not_known_closes_the_ledger(lost: Lost, tmp_path: Path) -> None:
    run = bytes.fromhex("cd" * 32)
    restored = lost.restore(tmp_path / "home", lost.after, (*lost.lines, lost.advert(run), lost.head(400, run)))
    assert restored.closed == "restore-plan-unknown"
    config = tmp_path / "home" / "client.toml"
    status = budget_status(config)
    assert (status.closed, status.lost, status.left, status.next_fits) == (True, True, 0.0, False)
    with open_journal(config) as journal:
        ledger = PrivacyLedger(journal, now)
        charge = ledger.charge_of(lost.plan.run_id())
        assert charge is not None
        for dataset in (charge.dataset, "another"):
            again = msgspec.structs.replace(charge, run=bytes(32), dataset=dataset)
            budgets = budgets_of(load_policy(config, load_config(config)).policy)
            with pytest.raises(CityFedError) as caught:
                ledger.reserve(again, budgets)
            assert caught.value.code == "budget-lost"


def test_p3_a_run_under_another_policy_than_the_backups_closes_the_ledger(lost: Lost, tmp_path: Path) -> None:
    """Its data set is known to nobody: contract, size and unit may be those of what is bound in the backup."""
    run = lost.plan.run_id()
    told = tuple(line for line in lost.lines if line.label != "key-advert" or line.run_id() != run)
    adverts = (lost.advert(run), lost.advert(run, policy=bytes([1]) * 32))
    restored = lost.restore(tmp_path / "other", lost.before, (*told, adverts[1]))
    assert (restored.charged, restored.closed) == ((), "restore-plan-unknown")
    both = lost.restore(tmp_path / "both", lost.before, (*told, *adverts))
    assert both.closed == "restore-plan-unknown"


def test_p3_a_run_is_not_charged_to_a_data_set_that_the_policy_does_not_name(lost: Lost, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    name = load_config(lost.city.config(POLICE)).binding
    declaration = load_declaration(lost.city.home(POLICE) / name)
    write_declaration(home / name, msgspec.structs.replace(declaration, dataset="another"))
    assert lost.restore(home, lost.before).closed == "restore-plan-unknown"


def test_p5_receipts_of_another_journal_are_refused(lost: Lost, tmp_path: Path) -> None:
    first = min((line for line in lost.lines if line.owner == POLICE and line.sequence), key=lambda line: line.sequence)
    other = lost.head(first.sequence, first.run_id())
    refused("journal-receipt-mismatch", lost, tmp_path / "home", lost.after, (*lost.lines, other))


def test_p5_receipts_that_do_not_name_a_run_which_ended_here_are_refused(lost: Lost, tmp_path: Path) -> None:
    others = (ReceiptLine(owner="health", sequence=0, digest=""),)
    refused("receipts-incomplete", lost, tmp_path / "home", lost.after, others)


def test_p5_a_later_entry_that_no_run_explains_is_refused_and_closes_nothing(lost: Lost, tmp_path: Path) -> None:
    bare = ReceiptLine(owner=POLICE, sequence=400, digest="")
    refused("receipts-incomplete", lost, tmp_path / "home", lost.after, (*lost.lines, bare))


RUN, OTHER = bytes([1]) * 32, bytes([2]) * 32
FORGED: dict[str, tuple[Callable[[Lost], tuple[ReceiptLine, ...]], str]] = {
    "a run that nobody signed": (
        lambda _: (ReceiptLine(owner=POLICE, sequence=0, digest="", run=RUN.hex()),),
        "receipt-unsigned",
    ),
    "a position that nobody signed": (
        lambda _: (ReceiptLine(owner=POLICE, sequence=400, digest="ab" * 32),),
        "receipt-unsigned",
    ),
    "a run that somebody else signed": (lambda lost: (lost.advert(RUN, key=IdentityKey.generate()),), "receipt-forged"),
    "a run under another run's advert": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), run=OTHER.hex()),),
        "receipt-forged",
    ),
    "a later position than was signed": (
        lambda lost: (msgspec.structs.replace(lost.head(3, RUN), sequence=400),),
        "receipt-forged",
    ),
    "another digest than was signed": (
        lambda lost: (msgspec.structs.replace(lost.head(3, RUN), digest="ab" * 32),),
        "receipt-forged",
    ),
    "an advert as if it were a head": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), label="head-receipt"),),
        "receipt-forged",
    ),
    "a label that says nothing": (
        lambda lost: (msgspec.structs.replace(lost.advert(RUN), label="plan"),),
        "receipt-forged",
    ),
    "another department's advert": (
        lambda lost: tuple(msgspec.structs.replace(x, owner=POLICE) for x in lost.lines if x.owner == "health")[:1],
        "receipt-forged",
    ),
    "a later position of a run without its advert": (lambda lost: (lost.head(400, RUN),), "receipts-incomplete"),
    "a later position of a run that had ended": (lambda lost: (lost.head(400, lost.plan.run_id()),), "receipt-forged"),
}


@pytest.mark.parametrize("name", FORGED)
def test_p5_what_this_department_did_not_sign_neither_charges_nor_closes(lost: Lost, tmp_path: Path, name: str) -> None:
    lines, code = FORGED[name]
    refused(code, lost, tmp_path / "home", lost.after, (*lost.lines, *lines(lost)))


def test_p5_a_key_from_after_the_backup_counts_with_the_roster_on_which_the_old_one_vouches_for_it(
    lost: Lost, tmp_path: Path
) -> None:
    new, run = IdentityKey.generate(), lost.plan.run_id()
    members = load_members(lost.city.authority).roster
    rosters = []
    for name, old in (("vouched", lost.identity), ("swapped", IdentityKey.generate())):
        word = endorse_key(old, city=members.city, department=POLICE, key=new.public)
        later = msgspec.structs.replace(
            members,
            serial=members.serial + 1,
            members=members.members | {POLICE: new.public},
            endorsements={POLICE: word},
        )
        rosters.append(tmp_path / name)
        rosters[-1].write_bytes(encode(sign_record(load_roster_key(lost.city.authority), "roster", later)))
    vouched, swapped = rosters
    lines = (*lost.lines, lost.advert(run, key=new))
    refused("receipt-forged", lost, tmp_path / "without", lost.before, lines)
    refused("receipt-forged", lost, tmp_path / "office", lost.before, lines, [swapped])
    assert lost.restore(tmp_path / "with", lost.before, lines, [vouched]).charged == (run.hex(),)


def test_p3_what_a_peer_kept_names_the_run_if_the_authority_says_nothing(lost: Lost, tmp_path: Path) -> None:
    told = tuple(line for line in others_receipts(lost.city.config("health")) if line.owner == POLICE)
    restored = lost.restore(tmp_path / "home", lost.before, told)
    assert restored.charged == (lost.plan.run_id().hex(),)
    assert restored.newest == max(line.sequence for line in told)


def test_a_restored_home_can_be_lost_again(lost: Lost, tmp_path: Path) -> None:
    """The receipts of what was lost the first time do not fit the journal that goes on, and say so nowhere."""
    lost.restore(tmp_path / "first", lost.before)
    make_backup(tmp_path / "first" / "client.toml", tmp_path / "again", keys=True, now=now() + dt.timedelta(days=2))
    restored = lost.restore(tmp_path / "second", tmp_path / "again")
    assert (restored.charged, restored.closed) == ((), "")
    assert spent(tmp_path / "second" / "client.toml") == spent(tmp_path / "first" / "client.toml")


def test_p5_a_changed_backup_and_a_home_with_a_journal_are_refused(lost: Lost, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(lost.after, changed)
    (changed / "files" / "policy.toml").write_text("")
    refused("backup-changed", lost, tmp_path / "home", changed)
    with pytest.raises(CityFedError) as caught:
        restore_home(lost.city.home(POLICE), lost.after, [], now=now())
    assert caught.value.code == "journal-exists"


def test_private_keys_are_in_a_backup_only_if_they_are_asked_for(lost: Lost, tmp_path: Path) -> None:
    made = make_backup(lost.city.config(POLICE), tmp_path / "without", keys=False, now=now())
    assert not any("key" in name for name in made.files)
    folders = [tmp_path / "without", *(path for path in (tmp_path / "without").rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert sorted(path.name for path in lost.after.rglob("*.key")) == ["identity.key", "node.key", "tls.key"]
    refused("keys-missing", lost, tmp_path / "home", tmp_path / "without")


def enrol_again(lost: Lost, home: Path) -> Path:
    """Enrol the department in a new folder, with new keys; returns its configuration."""
    enrol(
        home,
        POLICE,
        city_file=lost.city.authority.city,
        city_fingerprint=load_city(lost.city.authority).fingerprint(),
        policy_owner_key=lost.city.policy_owners[POLICE].public.hex(),
    )
    return home / "client.toml"


def test_without_its_keys_a_department_enrols_again_and_gets_its_ledger_back(lost: Lost, tmp_path: Path) -> None:
    make_backup(lost.city.config(POLICE), tmp_path / "without", keys=False, now=now())
    config = enrol_again(lost, tmp_path / "home")
    enrolled = load_identity(config.parent / "identity.key").public
    receipts = tmp_path / "receipts.jsonl"
    receipts.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in lost.lines))
    restored = restore_home(tmp_path / "home", tmp_path / "without", [receipts], now=now())
    assert restored.closed == ""
    assert load_identity(config.parent / "identity.key").public == enrolled
    assert spent(config) >= spent(lost.city.config(POLICE))
    assert not list((tmp_path / "home").glob("*.restoring*"))


def test_p5_a_department_that_enrols_again_under_its_name_is_heard_once_it_was_restored(
    lost: Lost, tmp_path: Path
) -> None:
    """What the authority knows goes by the name: another key alone is no new beginning."""
    make_backup(lost.city.config(POLICE), tmp_path / "without", keys=False, now=now())
    assert heard_by_the_authority(lost, enrol_again(lost, tmp_path / "new")) == "journal-rolled-back"
    config = enrol_again(lost, tmp_path / "home")
    receipts = tmp_path / "receipts.jsonl"
    receipts.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in lost.lines))
    restore_home(tmp_path / "home", tmp_path / "without", [receipts], now=now())
    assert heard_by_the_authority(lost, config) == "taken"


def heard_by_the_authority(lost: Lost, config: Path) -> str:
    """Send the first update of a new run from where this journal stands."""
    identity = load_identity(config.parent / "identity.key")
    with open_journal(config) as journal:
        position = journal.head
    receipt = Receipt(
        sid=bytes(32),
        department=POLICE,
        vector_digest=bytes(32),
        self_commitment=bytes(32),
        pair_commitments={},
        envelope_hashes={},
        ledger_sequence=position.sequence,
        ledger_head=position.digest,
    )
    update = MaskedUpdate(
        sid=bytes(32), words=memoryview(b""), envelopes={}, receipt=sign_record(identity, "receipt", receipt)
    )
    roster = Roster(city="metropolis", serial=9, members={DepartmentId(POLICE): identity.public})
    with Journal.read(lost.city.authority.journal, owner=OWNER) as known:
        taken: list[str] = []
        try:
            KnownHeads(known, bytes(32)).guard(1, roster, lambda name, _: taken.append(name))(
                DepartmentId(POLICE), update
            )
        except CityFedError as error:
            return error.code
    return "taken" if taken == [POLICE] else "lost"


def test_a_backup_is_made_while_a_node_holds_the_journal(lost: Lost, tmp_path: Path) -> None:
    with open_journal(lost.city.config(POLICE)) as held:
        made = make_backup(lost.city.config(POLICE), tmp_path / "beside", keys=False, now=now())
        assert made.sequence == held.head.sequence


def test_p5_other_departments_know_how_far_the_journal_had_gone(lost: Lost) -> None:
    told = {line.owner: line.sequence for line in others_receipts(lost.city.config("health"))}
    assert 0 < told[POLICE] <= max(line.sequence for line in lost.lines if line.owner == POLICE)
