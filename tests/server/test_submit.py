"""Runs follow one another: nothing is submitted beside a run that goes on, will go on, or is being submitted."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from server.home import AuthorityHome
from server.release import write_model
from server.roster import remove
from server.runs import RunFolder, Submitted, run_folders
from server.submit import submit_run
from server.superlink import Control, SuperLink
from shared.codec import dump_json
from shared.errors import CityFedError, ConfigError, SetupError
from shared.identity import DepartmentId
from shared.private_files import make_private_folder
from shared.supervise import STATUS_FILE, ProgramStatus, Status, process_status
from tests.deployed_city import now
from tests.interrupts import Interrupts
from tests.server.small_home import ALIVE, GONE, PLAN, signed_plan, small_home
from tests.server.small_plan import DAY

THEN = dt.datetime.combine(DAY, dt.time(12), dt.UTC)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> AuthorityHome:
    return small_home(tmp_path_factory.mktemp("city"))


def never(_superlink: SuperLink) -> AbstractContextManager[Control]:
    raise AssertionError("Flower was called")


def code_of_submitting(home: AuthorityHome) -> str:
    with pytest.raises(CityFedError) as caught:
        submit_run(home, PLAN.digest().hex(), now=THEN)
    return caught.value.code


@pytest.mark.parametrize("days", [-1, 1])
def test_a_plan_is_submitted_on_its_days_only(founded: AuthorityHome, days: int) -> None:
    with pytest.raises(ConfigError, match=f"valid from {DAY} to {DAY}") as caught:
        submit_run(founded, PLAN.digest().hex(), now=THEN + dt.timedelta(days=days), control_of=never)
    assert caught.value.code == "plan-dates"
    assert list(run_folders(founded)) == []


def test_a_plan_of_a_department_that_is_no_member_any_more_is_not_submitted(
    founded: AuthorityHome, tmp_path: Path
) -> None:
    shutil.copytree(founded.root, tmp_path / "authority")
    home = AuthorityHome(tmp_path / "authority")
    remove(home, "police", now=now())
    with pytest.raises(ConfigError, match=r"^Not on the roster: police\.$") as caught:
        submit_run(home, PLAN.digest().hex(), now=THEN, control_of=never)
    assert caught.value.code == "cohort-not-admitted"
    assert list(run_folders(home)) == []


def test_nothing_is_submitted_while_the_authority_is_off(founded: AuthorityHome) -> None:
    with switched_on(founded):
        (founded.service / STATUS_FILE).write_bytes(dump_json(Status(supervisor=GONE, programs={})))
        with pytest.raises(SetupError, match=r"start `cityfed-server up`") as caught:
            submit_run(founded, PLAN.digest().hex(), now=THEN, control_of=never)
        assert caught.value.code == "authority-off"
        assert list(run_folders(founded)) == []


@pytest.mark.parametrize("process", [ALIVE, GONE])
def test_no_run_is_submitted_beside_one_that_goes_on_or_was_interrupted(
    founded: AuthorityHome, process: ProgramStatus
) -> None:
    other = RunFolder(founded.runs / ("ab" * 32))
    other.submit(Submitted(plan=signed_plan(founded), nodes={}), process=process, now=now())
    try:
        assert code_of_submitting(founded) == "run-active"
        other.stop.touch()
        assert code_of_submitting(founded) != "run-active"
    finally:
        other.withdraw()


@dataclass(frozen=True)
class WatchedHome(AuthorityHome):
    """A home that sees whether anybody else could begin to submit when the plan's model is looked up."""

    seen: list[bool] = field(default_factory=list)

    def model(self, sha256: str) -> Path:
        with (self.runs / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.seen.append(True)
            except BlockingIOError:
                self.seen.append(False)
        return super().model(sha256)


def test_whoever_submits_is_alone_until_the_run_has_its_folder(founded: AuthorityHome) -> None:
    home = WatchedHome(founded.root)
    code_of_submitting(home)
    code_of_submitting(home)  # the lock was let go of
    assert home.seen == [False, False]


def test_a_damaged_run_holds_up_nobody_who_submits(founded: AuthorityHome) -> None:
    damaged = RunFolder(founded.runs / ("cd" * 32))
    damaged.submit(Submitted(plan=signed_plan(founded), nodes={}), process=ALIVE, now=now())
    (damaged.path / "status.json").unlink()
    try:
        assert code_of_submitting(founded) not in {"run-active", "run-unknown"}
    finally:
        damaged.withdraw()


# --- the SuperLink --------------------------------------------------------------------------------------------------


@dataclass
class Flower:
    """A control interface that gives every department a number, and takes a run or does not."""

    home: AuthorityHome
    fault: BaseException | None = None
    seen: list[ProgramStatus] = field(default_factory=list)

    def enrol(self, keys: Mapping[DepartmentId, bytes]) -> dict[DepartmentId, int]:
        return {name: number for number, name in enumerate(sorted(keys), start=1)}

    def start(self, run: str) -> int:
        self.seen.append(RunFolder(self.home.runs / run).status().process)
        if self.fault:
            raise self.fault
        return 7

    def __call__(self, _superlink: SuperLink) -> AbstractContextManager[Control]:
        return nullcontext(cast("Control", self))


UP = process_status(os.getppid())


@contextmanager
def switched_on(home: AuthorityHome) -> Iterator[None]:
    """An authority whose `up` is another process."""
    for path, content in (
        (home.service / STATUS_FILE, dump_json(Status(supervisor=UP, programs={}))),
        (home.flower / "port", b"1"),
    ):
        make_private_folder(path.parent)
        path.write_bytes(content)
    make_private_folder(home.models)
    write_model(home.model(PLAN.initial_model_sha256), np.zeros(PLAN.layout.size, np.float32), PLAN)
    try:
        yield
    finally:
        (home.service / STATUS_FILE).unlink()
        for folder in list(run_folders(home)):
            folder.withdraw()


def test_whoever_submits_answers_for_a_run_until_flower_has_it_and_then_up_does(founded: AuthorityHome) -> None:
    flower = Flower(founded)
    with switched_on(founded):
        folder = submit_run(founded, PLAN.digest().hex(), now=THEN, control_of=flower)
        assert flower.seen == [ALIVE]
        assert (folder.status().state, folder.status().process) == ("submitted", UP)
        assert folder.submitted() == Submitted(
            plan=signed_plan(founded), nodes={"environment": 1, "health": 2, "police": 3}, flower_run=7
        )


def test_a_submission_that_is_broken_off_is_one_that_nobody_but_its_process_answers_for(founded: AuthorityHome) -> None:
    """Once this process has ended the run is interrupted, and goes on without a restart of `up`."""
    with switched_on(founded):
        with pytest.raises(KeyboardInterrupt):
            submit_run(founded, PLAN.digest().hex(), now=THEN, control_of=Flower(founded, KeyboardInterrupt()))
        (folder,) = run_folders(founded)
        assert (folder.status().state, folder.status().process) == ("submitted", ALIVE)


def test_up_answers_for_a_run_only_when_it_can_ask_flower_what_became_of_it(founded: AuthorityHome) -> None:
    """Whoever submits it may be killed at any line; Flower may give the run up before its process says a word."""
    numbers: set[int] = set()

    def look() -> None:
        trace.left = 1  # at the next line again
        numbers.update(folder.submitted().flower_run for folder in run_folders(founded) if is_up(folder))

    def is_up(folder: RunFolder) -> bool:
        return folder.status().process == UP

    with switched_on(founded):
        before, trace = sys.gettrace(), Interrupts(1, "server/submit", act=look)
        sys.settrace(trace)
        try:
            submit_run(founded, PLAN.digest().hex(), now=THEN, control_of=Flower(founded))
        finally:
            sys.settrace(before)
    assert numbers == {7}


def test_a_run_that_flower_does_not_take_is_taken_back(founded: AuthorityHome) -> None:
    with switched_on(founded):
        with pytest.raises(SetupError):
            submit_run(
                founded,
                PLAN.digest().hex(),
                now=THEN,
                control_of=Flower(founded, SetupError("superlink-refused", "No.")),
            )
        assert list(run_folders(founded)) == []
