"""After a lost disk no ledger shows less than what left (P3); no rolled-back journal passes for a whole one (P5)."""

from __future__ import annotations

import datetime as dt
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clients.backup import FILES, MANIFEST, Backup, make_backup, read_backup
from clients.binding import load_declaration, write_declaration
from clients.config import load_config, load_policy, open_journal
from clients.department import budgets_of, charge_of
from clients.enrol import enrol
from clients.explain import budget_status, others_receipts
from clients.models import MODELS
from clients.restore import restore_home
from clients.restored_files import NOTE
from server.audit import OWNER
from server.city import load_city
from server.heads import KnownHeads
from shared.codec import dump_json, load_json
from shared.errors import CityFedError, ConfigError
from shared.identity import DepartmentId, Roster
from shared.journal import Journal
from shared.keystore import load_identity
from shared.model_file import MODEL_FILE, file_digest
from shared.privacy.ledger import PrivacyLedger
from tests.deployed_city import now
from tests.empty_update import empty_update
from tests.lost_city import POLICE, Lost, in_full, lose, spent


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return lose(tmp_path_factory.mktemp("lost"))


def test_p3_a_backup_from_after_the_last_run_goes_on_with_the_same_figures(lost: Lost, tmp_path: Path) -> None:
    restored = lost.restore(tmp_path / "home", lost.after)
    assert (restored.charged, restored.closed) == ((), "")
    assert restored.newest <= restored.sequence
    status = budget_status(tmp_path / "home" / "client.toml", now=now())
    assert status == budget_status(lost.city.config(POLICE), now=now())
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
        assert reservation.restored
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
    rebound = lost.restore(bound_to_another(lost, tmp_path / "rebound"), backup, (line,))
    assert rebound == restored  # the ledger knew what it costs and to which data set


def test_p3_a_run_whose_plan_is_not_known_closes_the_ledger(lost: Lost, tmp_path: Path) -> None:
    run = bytes.fromhex("cd" * 32)
    restored = lost.restore(tmp_path / "home", lost.after, (*lost.lines, lost.advert(run), lost.head(400, run)))
    assert restored.closed == "restore-plan-unknown"
    config = tmp_path / "home" / "client.toml"
    status = budget_status(config, now=now())
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
    assert lost.restore(bound_to_another(lost, tmp_path / "home"), lost.before).closed == "restore-plan-unknown"


def bound_to_another(lost: Lost, home: Path) -> Path:
    """A home in which another data set was declared since."""
    home.mkdir()
    name = load_config(lost.city.config(POLICE)).binding
    declaration = load_declaration(lost.city.home(POLICE) / name)
    write_declaration(home / name, msgspec.structs.replace(declaration, dataset="another"))
    return home


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
    lost.assert_refused("backup-changed", tmp_path / "home", changed)
    with pytest.raises(CityFedError) as caught:
        restore_home(lost.city.home(POLICE), lost.after, [], now=now())
    assert caught.value.code == "journal-exists"


def altered(backup: Path, out: Path, files: dict[str, bytes]) -> Path:
    """A backup in which other files lay."""
    shutil.copytree(backup, out)
    for name, content in files.items():
        (out / FILES / name).parent.mkdir(parents=True, exist_ok=True)
        (out / FILES / name).write_bytes(content)
    made = load_json((out / MANIFEST).read_bytes(), Backup, where=str(out))
    digests = {name: file_digest(content) for name, content in files.items()}
    (out / MANIFEST).write_bytes(dump_json(msgspec.structs.replace(made, files=made.files | digests)))
    return out


def content(folder: Path) -> dict[str, bytes]:
    """What lies in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_p4_a_refused_restoration_leaves_no_older_policy_for_the_next_one(lost: Lost, tmp_path: Path) -> None:
    home, model = tmp_path / "home", f"{MODELS}/{'ab' * 32}/{MODEL_FILE}"
    older = altered(lost.before, tmp_path / "older", {"policy.toml": b"older", model: b"a model"})
    untold = lost.head(400, lost.plan.run_id())  # nobody brings what the department signed when it joined that run
    lost.assert_refused("receipts-incomplete", home, older, (untold,))
    assert not (home / model).parent.exists()
    assert set(content(home)) == {f"{POLICE}.csv", "journal.sqlite.lock"}
    lost.restore(home, lost.after)
    assert content(lost.after / FILES).items() <= content(home).items()
    assert NOTE not in content(home)


def test_p4_a_restoration_that_is_cut_off_leaves_no_older_policy_for_the_next_one(lost: Lost, tmp_path: Path) -> None:
    older, cut = altered(lost.before, tmp_path / "older", {"policy.toml": b"older"}), tmp_path / "cut"

    class Cut(list[Path]):
        """Rosters, which are looked at when the files have been put in place."""

        def __iter__(self) -> Iterator[Path]:
            shutil.copytree(tmp_path / "home", cut)
            return super().__iter__()

    with pytest.raises(CityFedError) as caught:
        restore_home(tmp_path / "home", older, [], now=now(), rosters=Cut([tmp_path / "none"]))
    assert caught.value.code == "file-missing"
    assert (cut / "policy.toml").read_bytes() == b"older"  # as a process that is killed there leaves it
    edited = (cut / "binding.toml").read_bytes() + b"\n"
    (cut / "binding.toml").write_bytes(edited)
    lost.restore(cut, lost.after)
    assert (cut / "policy.toml").read_bytes() == (lost.after / FILES / "policy.toml").read_bytes()
    assert (cut / "binding.toml").read_bytes() == edited, "what people changed since is theirs"


def test_p5_a_home_with_a_journal_gets_no_file_of_a_backup(lost: Lost, tmp_path: Path) -> None:
    """Not even a decision that waits, which its node would take over."""
    decision = "outbox/000001-0000000000000000.decision"
    backup, home = altered(lost.before, tmp_path / "with", {decision: b"yes"}), lost.city.home(POLICE)
    before = content(home)
    with pytest.raises(CityFedError) as caught:
        restore_home(home, backup, [], now=now())
    assert caught.value.code == "journal-exists"
    assert content(home) == before


def test_a_backup_of_another_department_is_not_restored_into_a_home(lost: Lost, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(lost.city.config("health"), home)
    before = (home / "client.toml").read_bytes()
    lost.assert_refused("backup-foreign", home, lost.after)
    assert (home / "client.toml").read_bytes() == before


def test_a_backup_is_never_written_over(lost: Lost) -> None:
    before = sorted((path, path.read_bytes()) for path in lost.after.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="is never overwritten") as caught:
        make_backup(lost.city.config(POLICE), lost.after, keys=True, now=now())
    assert caught.value.code == "backup-exists"
    assert before == sorted((path, path.read_bytes()) for path in lost.after.rglob("*") if path.is_file())


@pytest.mark.parametrize("outside", ["../outside", "absolute"])
def test_p5_a_backup_holds_what_lies_in_it_only(lost: Lost, tmp_path: Path, outside: str) -> None:
    """Though the file is the one that its manifest names."""
    changed = tmp_path / "changed"
    shutil.copytree(lost.after, changed)
    target = changed / "outside"
    target.write_text("of somebody else")
    name = outside if outside != "absolute" else str(target)
    made = read_backup(changed)
    more = msgspec.structs.replace(made, files={**made.files, name: file_digest(target.read_bytes())})
    (changed / MANIFEST).write_bytes(dump_json(more))
    lost.assert_refused("backup-changed", tmp_path / "home", changed)


def test_a_backup_follows_no_link_out_of_the_home_and_takes_files_only(lost: Lost, tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere.plan"
    shutil.copytree(lost.city.home(POLICE), home)
    elsewhere.write_text("not this department's to copy")
    (home / "plans" / "linked.plan").symlink_to(elsewhere)
    (home / MODELS / "run" / "folder").mkdir(parents=True)
    made = make_backup(home / "client.toml", tmp_path / "backup", keys=False, now=now())
    assert any(name.startswith("plans/") for name in made.files)
    assert not any("linked" in name or "folder" in name for name in made.files)
    assert not list((tmp_path / "backup").rglob("linked.plan"))


def test_private_keys_are_in_a_backup_only_if_they_are_asked_for(lost: Lost, tmp_path: Path) -> None:
    made = make_backup(lost.city.config(POLICE), tmp_path / "without", keys=False, now=now())
    assert not any("key" in name for name in made.files)
    folders = [tmp_path / "without", *(path for path in (tmp_path / "without").rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert sorted(path.name for path in lost.after.rglob("*.key")) == ["identity.key", "node.key", "tls.key"]
    lost.assert_refused("keys-missing", tmp_path / "home", tmp_path / "without")


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
    update = empty_update(POLICE, identity, sequence=position.sequence, head=position.digest)
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
