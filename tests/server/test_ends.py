"""Every run that is over has its end in the journal, whoever is left to write it; none that can go on is called ended."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from server.audit import OWNER, department_receipts, ends_of_runs
from server.ends import note_ends_if_free, note_ends_now
from server.grid import GridCarrier
from server.home import AuthorityHome
from server.records import EpochReady, RoundDone, RoundFailed, RunEnded, RunOpened, RunResumed
from server.resume import Resumer
from server.run_lock import lock_runs
from server.runs import RunFolder, RunStatus, Submitted
from server.session import PASSING, conduct
from server.submit import stop_run
from server.superlink import SuperLink
from shared.codec import Record, decode
from shared.crypto.seal import PUBLIC_KEY_BYTES
from shared.errors import CityFedError, SetupError
from shared.identity import DepartmentId, IdentityKey, sign_record
from shared.journal import EntryKind, Journal
from shared.messages import KeyAdvert
from shared.supervise import ProgramStatus
from tests.deployed_city import now
from tests.server.small_home import ALIVE, GONE, PLAN, signed_plan, small_home, submitted

RUN = PLAN.run_id()
OTHER = bytes(32)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> AuthorityHome:
    return small_home(tmp_path_factory.mktemp("city"))


@pytest.fixture
def home(founded: AuthorityHome, tmp_path: Path) -> AuthorityHome:
    shutil.copytree(founded.root, tmp_path / "authority")
    return AuthorityHome(tmp_path / "authority")


def write(home: AuthorityHome, *entries: tuple[EntryKind, Record]) -> None:
    with Journal.open(home.journal, owner=OWNER) as journal:
        for kind, body in entries:
            journal.append(kind, body, now=now())


def begun(run: bytes = RUN) -> tuple[tuple[EntryKind, Record], ...]:
    """What the journal says of a run whose first round goes on."""
    advert = KeyAdvert(
        version=1,
        run=run,
        epoch=1,
        department="health",
        hpke_key=bytes(PUBLIC_KEY_BYTES),
        roster_hash=bytes(32),
        policy_hash=bytes(32),
        heads_seen={},
    )
    adverts = {"health": sign_record(IdentityKey.generate(), "key-advert", advert)}
    return (
        (EntryKind.RUN, RunOpened(run=run, plan_digest=PLAN.digest(), cohort=("health",))),
        (EntryKind.EPOCH, EpochReady(run=run, epoch=1, members=("health",), adverts=adverts)),
    )


def begun_run(home: AuthorityHome, *, process: ProgramStatus = GONE) -> RunFolder:
    """A run that was at work, and whose process is gone."""
    folder = submitted(home)
    folder.write(RunStatus(state="running", process=process, since=now()))
    write(home, *begun())
    return folder


def ended(home: AuthorityHome, run: bytes = RUN) -> bool:
    """Whether a department that is restored from a later backup pays nothing for the run."""
    (line,) = (item for item in department_receipts(home.journal) if item.run == run.hex())
    assert line.still_open(now() - dt.timedelta(days=2)), "a backup from before is charged"
    return not line.still_open(now() + dt.timedelta(days=7))


def entries_of_end(home: AuthorityHome) -> list[RunEnded]:
    with Journal.read(home.journal, owner=OWNER) as journal:
        return [decode(item.body, RunEnded) for item in journal.entries(EntryKind.ENDED)]


def look(home: AuthorityHome) -> None:
    """What `cityfed-server up` does every few seconds."""
    Resumer(home, SuperLink(folder=home.flower, secret=home.superexec_secret, port=1)).look()


def failing(
    code: str, before: Callable[[], object] = lambda: None
) -> Callable[[Mapping[DepartmentId, int]], GridCarrier]:
    def carrier_of(_nodes: Mapping[DepartmentId, int]) -> GridCarrier:
        before()
        raise SetupError(code, "Something happened.")

    return carrier_of


def conducted(home: AuthorityHome, folder: RunFolder, code: str, before: Callable[[], object] = lambda: None) -> str:
    """Conduct a run that meets a fault; returns what is raised."""
    with pytest.raises(CityFedError) as caught:
        conduct(home, folder.path.name, failing(code, before))
    return caught.value.code


# --- ways to end ------------------------------------------------------------------------------------------------


def stopped_without_a_process(home: AuthorityHome, folder: RunFolder) -> None:
    stop_run(home, folder.path.name)


def stopped_while_it_waits_for_one(home: AuthorityHome, folder: RunFolder) -> None:
    folder.wait_for_process(ALIVE)
    stop_run(home, folder.path.name)


def stopped_while_it_goes_on(home: AuthorityHome, folder: RunFolder) -> None:
    conducted(home, folder, "spool-unusable", folder.stop.touch)


def killed_when_it_was_stopped(home: AuthorityHome, folder: RunFolder) -> None:
    folder.stop.touch()
    look(home)


def given_up(home: AuthorityHome, folder: RunFolder) -> None:
    folder.give_up("Often enough.")
    look(home)


def without_a_status(home: AuthorityHome, folder: RunFolder) -> None:
    (folder.path / "status.json").unlink()
    look(home)


def failed_for_another_reason(home: AuthorityHome, folder: RunFolder) -> None:
    conducted(home, folder, "something-else")


def failed_before_the_journal_was_open(home: AuthorityHome, folder: RunFolder) -> None:
    home.config.write_text("no configuration")
    conducted(home, folder, "never-comes-so-far")


WAYS = (
    stopped_without_a_process,
    stopped_while_it_waits_for_one,
    stopped_while_it_goes_on,
    killed_when_it_was_stopped,
    given_up,
    without_a_status,
    failed_for_another_reason,
    failed_before_the_journal_was_open,
)


@pytest.mark.parametrize("end", WAYS)
def test_p3_a_run_that_is_over_is_not_open_for_a_department_that_is_restored(
    home: AuthorityHome, end: Callable[[AuthorityHome, RunFolder], None]
) -> None:
    folder = begun_run(home)
    folder.state.mkdir()
    (folder.state / "round-1.log.2.health").touch()  # an upload of the open round
    end(home, folder)
    assert not folder.status().goes_on
    assert ended(home)
    assert list(folder.state.iterdir()) == []
    look(home)
    note_ends_if_free(home)
    assert entries_of_end(home) == [RunEnded(run=RUN, status="failed", rounds=0)]
    assert conducted(home, folder, "never-comes-so-far") == folder.status().code
    assert ended(home), "it does not begin again"


def test_uploads_of_a_run_whose_end_is_written_do_not_stay_where_a_process_was_killed(home: AuthorityHome) -> None:
    """Between its end in the journal and the last of them; whoever comes next deletes them."""
    folder = begun_run(home)
    folder.write(msgspec.structs.replace(folder.status(), state="failed", code="attempts-exhausted"))
    write(home, (EntryKind.ENDED, RunEnded(run=RUN, status="failed", rounds=0)))
    folder.state.mkdir()
    (folder.state / "round-1.log.2.health").touch()
    look(home)
    assert list(folder.state.iterdir()) == []
    assert len(entries_of_end(home)) == 1


def test_an_end_says_how_many_rounds_had_been_finished(home: AuthorityHome) -> None:
    folder = begun_run(home)
    done = [
        RoundDone(run=run, round=number, sid=bytes(32), survivors=(), model_hash=bytes(32), receipts={})
        for run, number in ((RUN, 1), (RUN, 2), (RUN, 2), (RUN, 3), (OTHER, 4))
    ]
    lost = [
        RoundFailed(run=run, round=number, code="below-threshold", message="")
        for run, number in ((RUN, 3), (OTHER, 1), (OTHER, 2))
    ]
    write(home, *((EntryKind.ROUND, item) for item in done), *((EntryKind.FAILED, item) for item in lost))
    stop_run(home, folder.path.name)
    assert [item.rounds for item in entries_of_end(home)] == [2]


# --- what is not over -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(PASSING))
def test_p3_a_run_that_can_go_on_is_open(home: AuthorityHome, code: str) -> None:
    folder = begun_run(home)
    conducted(home, folder, code)
    folder.write(msgspec.structs.replace(folder.status(), process=GONE))
    assert folder.status().code == "run-interrupted"
    look(home)
    assert not ended(home)


def test_p3_a_run_that_a_process_conducts_is_open_whatever_its_status_says(home: AuthorityHome) -> None:
    folder = begun_run(home)
    (folder.path / "status.json").write_bytes(b"{")
    with folder.conducting():
        look(home)
        assert not ended(home)
    look(home)
    assert ended(home)


def test_p3_a_run_that_waits_for_its_next_process_is_open_while_another_run_writes_ends(home: AuthorityHome) -> None:
    folder = begun_run(home)
    assert folder.status().goes_on
    conducted(home, interrupted(home), "spool-unusable")
    assert not ended(home)


def test_p3_a_run_whose_folder_is_gone_could_be_submitted_again_and_is_open(home: AuthorityHome) -> None:
    begun_run(home).withdraw()
    look(home)
    note_ends_if_free(home)  # `up` does not ask for runs that it does not see
    assert not ended(home)


def test_p3_a_run_that_began_again_after_its_end_is_open(home: AuthorityHome) -> None:
    end = EntryKind.ENDED, RunEnded(run=RUN, status="failed", rounds=0)
    write(home, *begun(), end)
    assert ended(home)
    for again in ((EntryKind.RESUMED, RunResumed(run=RUN, round=1)), begun()[0]):
        write(home, again)
        assert not ended(home)
        write(home, end)
        assert ended(home)


def test_no_run_that_was_completed_is_said_to_have_failed(home: AuthorityHome) -> None:
    folder = begun_run(home)
    folder.write(msgspec.structs.replace(folder.status(), state="completed", code=""))
    look(home)
    assert entries_of_end(home) == []


# --- who writes it ----------------------------------------------------------------------------------------------


def interrupted(home: AuthorityHome) -> RunFolder:
    """Another run, which waits for its next process."""
    other = RunFolder(home.runs / OTHER.hex())
    other.submit(Submitted(plan=signed_plan(home), nodes={}), process=GONE, now=now())
    return other


def test_while_another_run_goes_on_the_journal_is_its_and_its_process_writes_the_end(home: AuthorityHome) -> None:
    folder = begun_run(home)
    folder.stop.touch()
    other = interrupted(home)
    look(home)
    assert not ended(home)
    conducted(home, other, "spool-unusable")
    assert ended(home)


def test_what_cannot_be_written_now_is_written_later(home: AuthorityHome, caplog: pytest.LogCaptureFixture) -> None:
    folder = begun_run(home)
    with Journal.open(home.journal, owner=OWNER):
        stop_run(home, folder.path.name)
        look(home)
    assert not ended(home)
    assert [item.args for item in caplog.records if "run is over" in item.msg] == [("journal-locked",)] * 2
    look(home)
    assert ended(home)


def test_a_disk_that_cannot_be_read_now_holds_up_nobody(home: AuthorityHome, caplog: pytest.LogCaptureFixture) -> None:
    folder = begun_run(home)
    folder.stop.touch()
    status = folder.path / "status.json"
    content = status.read_bytes()
    status.unlink()
    status.mkdir()
    note_ends_if_free(home)
    assert [item.args for item in caplog.records if "run is over" in item.msg] == [("IsADirectoryError",)]
    status.rmdir()
    status.write_bytes(content)
    note_ends_if_free(home)
    assert ended(home)


def test_whoever_writes_ends_is_told_whether_the_journal_knows_of_all(home: AuthorityHome) -> None:
    assert note_ends_now(home), "no run has begun"
    folder = begun_run(home)
    folder.stop.touch()
    other = interrupted(home)
    assert not note_ends_now(home)
    assert not ended(home)
    other.withdraw()
    assert note_ends_now(home)
    assert ended(home)


def test_whoever_submits_a_run_is_not_waited_for(home: AuthorityHome) -> None:
    folder = begun_run(home)
    with lock_runs(home):
        stop_run(home, folder.path.name)
        look(home)
        assert not ended(home)
    look(home)
    assert ended(home)


def test_up_opens_the_journal_once_for_the_same_ends(home: AuthorityHome) -> None:
    folder, clock = begun_run(home), [0.0]
    resumer = Resumer(home, SuperLink(folder=home.flower, secret=home.superexec_secret, port=1), clock=lambda: clock[0])
    with Journal.open(home.journal, owner=OWNER):
        stop_run(home, folder.path.name)
        resumer.look()
    clock[0] = 10.0
    resumer.look()
    assert not ended(home), "not at every look"
    clock[0] = 60.0
    resumer.look()
    assert ended(home)
    write(home, (EntryKind.RESUMED, RunResumed(run=RUN, round=1)))
    clock[0] = 120.0
    resumer.look()
    with Journal.read(home.journal, owner=OWNER) as journal:
        assert ends_of_runs(journal) == {RUN: ""}


def test_a_run_that_never_began_makes_no_journal(home: AuthorityHome) -> None:
    stop_run(home, submitted(home).path.name)
    look(home)
    assert not home.journal.exists()
