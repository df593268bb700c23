"""The folder of a run says how it stands, also when its process is gone."""

from __future__ import annotations

import datetime as dt
import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.home import AuthorityHome
from server.runs import Missing, RunFolder, RunStatus, Sign, Submitted, run_folder, run_folders, status_lines
from shared.errors import ConfigError
from shared.identity import Signed
from shared.supervise import ProgramStatus, process_status

NOW = dt.datetime(2026, 11, 1, 9, 30, tzinfo=dt.UTC)
SUBMITTED = Submitted(plan=Signed(body=b"plan", signature=bytes(64)), nodes={"health": 2**64 - 1})
ALIVE = process_status(os.getpid())


def submitted(home: AuthorityHome, run: str) -> RunFolder:
    folder = RunFolder(home.runs / run)
    folder.submit(SUBMITTED, process=ALIVE, now=NOW)
    return folder


def test_what_was_submitted_is_read_back_and_one_approval_is_one_run(tmp_path: Path) -> None:
    home = AuthorityHome(tmp_path)
    folder = submitted(home, "ab" * 32)
    assert folder.submitted() == SUBMITTED
    assert folder.status() == RunStatus(state="submitted", process=ALIVE, since=NOW)
    with pytest.raises(ConfigError) as caught:
        folder.submit(SUBMITTED, process=ALIVE, now=NOW)
    assert caught.value.code == "run-exists"
    folder.withdraw()
    assert list(run_folders(home)) == []


@dataclass(frozen=True)
class CutFolder(RunFolder):
    """A run whose submission is cut at a file; if nobody tidies up, as after a power cut."""

    at: str = ""
    killed: bool = False

    def write(self, status: RunStatus) -> None:
        self.cut("status.json")
        super().write(status)

    def write_submitted(self, submitted: Submitted) -> None:
        self.cut("run.json")
        super().write_submitted(submitted)

    def withdraw(self) -> None:
        if not (self.killed and self.path.exists()):
            super().withdraw()

    def cut(self, name: str) -> None:
        if name == self.at:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("at", ["status.json", "run.json"])
def test_a_submission_that_is_cut_leaves_no_run_and_can_be_made_again(tmp_path: Path, at: str, killed: bool) -> None:
    home = AuthorityHome(tmp_path)
    cut = CutFolder(home.runs / ("ab" * 32), at=at, killed=killed)
    with pytest.raises(OSError, match="No space"):
        cut.submit(SUBMITTED, process=ALIVE, now=NOW)
    assert list(run_folders(home)) == []
    assert cut.path.exists() == killed
    assert submitted(home, "ab" * 32).status().state == "submitted"


def test_what_a_cut_submission_left_says_nothing_about_the_next_one(tmp_path: Path) -> None:
    home = AuthorityHome(tmp_path)
    folder = submitted(home, "ab" * 32)
    folder.stop.touch()
    (folder.path / "run.json").unlink()
    assert submitted(home, "ab" * 32).status().state == "submitted"


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"state": "odd"}'])
def test_a_run_whose_status_cannot_be_read_has_failed_by_name(tmp_path: Path, content: bytes | None) -> None:
    home = AuthorityHome(tmp_path)
    folder = submitted(home, "ab" * 32)
    path = folder.path / "status.json"
    path.unlink() if content is None else path.write_bytes(content)
    status = folder.status()
    assert (status.state, status.code, status.goes_on) == ("failed", "run-unreadable", False)
    folder.withdraw()
    with pytest.raises(ConfigError) as caught:
        folder.status()
    assert caught.value.code == "run-unknown"


@pytest.mark.parametrize(
    ("state", "seen"), [("running", "failed"), ("submitted", "failed"), ("completed", "completed")]
)
def test_a_run_whose_process_is_gone_is_interrupted_unless_it_had_ended(tmp_path: Path, state: str, seen: str) -> None:
    folder = submitted(AuthorityHome(tmp_path), "ab" * 32)
    gone = ProgramStatus(pid=os.getpid(), started="1")
    folder.write(RunStatus(state=state, process=gone, since=NOW))  # type: ignore[arg-type]  # a parameter
    status = folder.status()
    assert (status.state, status.code) == (seen, "run-interrupted" if seen == "failed" else "")
    if seen == "failed":
        folder.wait_for_process(ALIVE)
        assert (folder.status().state, folder.status().code) == ("submitted", "")
        folder.write(RunStatus(state="running", process=gone, since=NOW))
        folder.give_up("Often enough.")
        assert (folder.status().state, folder.status().code) == ("failed", "run-given-up")


KEPT = {"state.msgpack", "vectors-3.safetensors"}
UPLOADS = {"round-3.log", "round-3.log.1.health"}


def with_uploads(folder: RunFolder) -> None:
    """Put a checkpoint and what an open round has received into the folder of a run."""
    folder.state.mkdir()
    for name in KEPT | UPLOADS:
        (folder.state / name).touch()


@pytest.mark.parametrize(("state", "left"), [("completed", KEPT), ("failed", KEPT), ("running", KEPT | UPLOADS)])
def test_no_upload_of_an_open_round_outlives_its_run(tmp_path: Path, state: str, left: set[str]) -> None:
    folder = submitted(AuthorityHome(tmp_path), "ab" * 32)
    with_uploads(folder)
    folder.write(RunStatus(state=state, process=ALIVE, since=NOW))  # type: ignore[arg-type]  # a parameter
    assert {path.name for path in folder.state.iterdir()} == left


def test_an_interrupted_run_keeps_its_uploads_until_it_is_given_up(tmp_path: Path) -> None:
    folder = submitted(AuthorityHome(tmp_path), "ab" * 32)
    with_uploads(folder)
    folder.write(RunStatus(state="running", process=ProgramStatus(pid=os.getpid(), started="1"), since=NOW))
    assert folder.status().code == "run-interrupted"
    folder.wait_for_process(ALIVE)
    assert {path.name for path in folder.state.iterdir()} == KEPT | UPLOADS
    folder.give_up("Often enough.")
    assert {path.name for path in folder.state.iterdir()} == KEPT


@pytest.mark.parametrize(("given", "code"), [("", "run-unknown"), ("ff", "run-unknown"), ("ab", "run-ambiguous")])
def test_a_run_is_found_by_its_first_digits_if_only_one_has_them(tmp_path: Path, given: str, code: str) -> None:
    home = AuthorityHome(tmp_path)
    one, other = submitted(home, "abc" + "0" * 61), submitted(home, "abd" + "0" * 61)
    assert run_folder(home, "abc") == one
    assert run_folder(home, "abd0") == other
    with pytest.raises(ConfigError) as caught:
        run_folder(home, given)
    assert caught.value.code == code


def test_a_person_reads_who_is_missing_and_when_each_was_last_heard_of() -> None:
    status = RunStatus(
        state="running",
        process=ALIVE,
        since=NOW,
        phase="update",
        round=2,
        rounds=1,
        missing={"police": Missing(round=2, step="advert", status="no-answer")},
        signs={"health": Sign(attached=True, last_sign=NOW), "police": Sign()},
    )
    assert status_lines("ab" * 32, status) == [
        "Run abababababababab running: 1 rounds finished, round 2 update.",
        "  health: in order, last heard of on the update channel 2026-11-01 09:30:00 UTC",
        "  police: missing in step advert of round 2 (no-answer), last heard of on the update channel never",
    ]
