"""Runs follow one another: nothing is submitted beside a run that goes on, will go on, or is being submitted."""

from __future__ import annotations

import datetime as dt
import fcntl
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.home import AuthorityHome
from server.runs import RunFolder, Submitted
from server.submit import submit_run
from shared.errors import CityFedError
from shared.supervise import ProgramStatus
from tests.deployed_city import now
from tests.server.small_home import ALIVE, GONE, PLAN, signed_plan, small_home
from tests.server.small_plan import DAY

THEN = dt.datetime.combine(DAY, dt.time(12), dt.UTC)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> AuthorityHome:
    return small_home(tmp_path_factory.mktemp("city"))


def code_of_submitting(home: AuthorityHome) -> str:
    with pytest.raises(CityFedError) as caught:
        submit_run(home, PLAN.digest().hex(), now=THEN)
    return caught.value.code


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
