"""A run that meets a passing fault of its machine is interrupted and goes on; one that was stopped does neither."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest

from server.audit import OWNER, department_receipts
from server.config import load_server, split_address
from server.grid import GridCarrier
from server.home import AuthorityHome
from server.run_lock import lock_runs
from server.runs import RunFolder, RunStatus
from server.session import PASSING, conduct
from server.submit import stop_run
from shared.errors import CityFedError, ConfigError, RoundAbortedError, SetupError
from shared.identity import DepartmentId
from shared.journal import Journal
from shared.supervise import process_status
from tests.deployed_city import now
from tests.durable_names import names_durably
from tests.server.small_home import ALIVE, GONE, small_home, submitted


@pytest.fixture
def home(tmp_path: Path) -> AuthorityHome:
    return small_home(tmp_path)


def failing(code: str) -> Callable[[Mapping[DepartmentId, int]], GridCarrier]:
    def carrier_of(_nodes: Mapping[DepartmentId, int]) -> GridCarrier:
        raise SetupError(code, "Something happened.")

    return carrier_of


def conducted(home: AuthorityHome, folder: RunFolder, code: str) -> str:
    """Conduct a run that meets a fault; returns how it stands once its process is gone."""
    with pytest.raises(CityFedError):
        conduct(home, folder.path.name, failing(code))
    folder.write(msgspec.structs.replace(folder.status(), process=GONE))
    return folder.status().code


@pytest.mark.parametrize("code", sorted(PASSING))
def test_a_fault_that_may_pass_interrupts_a_run(home: AuthorityHome, code: str) -> None:
    folder = submitted(home)
    assert conducted(home, folder, code) == "run-interrupted"
    assert folder.status().message == "Something happened."
    folder.wait_for_process(ALIVE)
    assert (folder.status().state, folder.status().code, folder.status().message) == ("submitted", "", "")


def test_any_other_error_ends_a_run(home: AuthorityHome) -> None:
    assert conducted(home, submitted(home), "something-else") == "something-else"


def busy_port(home: AuthorityHome) -> AbstractContextManager[object]:
    listener = socket.socket()
    listener.bind(split_address(load_server(home).channel))
    listener.listen()
    return listener


def held_journal(home: AuthorityHome) -> AbstractContextManager[object]:
    return Journal.open(home.journal, owner=OWNER)


def unwritable_journal(home: AuthorityHome) -> AbstractContextManager[object]:
    home.journal.with_name(home.journal.name + ".lock").mkdir()
    return nullcontext()


@pytest.mark.parametrize("fault", [busy_port, held_journal, unwritable_journal])
def test_a_port_or_a_journal_that_is_taken_when_a_run_begins_only_interrupts_it(
    home: AuthorityHome, fault: Callable[[AuthorityHome], AbstractContextManager[object]]
) -> None:
    folder = submitted(home)
    with fault(home):
        assert conducted(home, folder, "never-comes-so-far") == "run-interrupted"


def test_the_authoritys_journal_can_be_looked_at_while_a_run_begins(home: AuthorityHome) -> None:
    """Who reads receipts page by page neither keeps a run from its journal nor waits for it."""
    with Journal.open(home.journal, owner=OWNER):
        assert list(department_receipts(home.journal)) == []
    with Journal.read(home.journal, owner=OWNER):
        assert conducted(home, submitted(home), "comes-so-far") == "comes-so-far"


def test_a_run_that_is_conducted_is_left_as_it_is_by_a_second_process(home: AuthorityHome) -> None:
    """A submission that dies once Flower has the run looks like one that has to be made again."""
    folder = submitted(home)
    seen: list[RunStatus] = []

    def first(nodes: Mapping[DepartmentId, int]) -> GridCarrier:
        seen.append(folder.status())
        with pytest.raises(ConfigError) as caught:
            conduct(home, folder.path.name, failing("never-comes-so-far"))
        assert caught.value.code == "run-active"
        seen.append(folder.status())
        return failing("something-else")(nodes)

    with pytest.raises(SetupError):
        conduct(home, folder.path.name, first)
    assert seen[0] == seen[1]
    assert (seen[0].state, folder.status().code) == ("running", "something-else")
    with folder.conducting():
        pass  # the claim has ended with the first


def test_a_process_that_begins_while_somebody_looks_who_conducts_the_run_is_not_turned_away(
    home: AuthorityHome,
) -> None:
    """Whoever looks has the lock of the runs, and the claim for a moment."""
    folder, looking = submitted(home), ExitStack()

    class Waited(AuthorityHome):
        """A home that sees when somebody is about to wait for the lock of the runs."""

        @property
        def runs(self) -> Path:
            if asked:
                looking.close()
            asked.append(True)
            return super().runs

    asked: list[bool] = []
    looking.enter_context(lock_runs(home))
    looking.enter_context(folder.conducting())
    with looking, pytest.raises(SetupError) as caught:
        conduct(Waited(home.root), folder.path.name, failing("comes-so-far"))
    assert caught.value.code == "comes-so-far"


def test_a_run_that_is_over_does_not_begin_again(home: AuthorityHome) -> None:
    """A submission that was made twice may bring a second process when the first has ended."""
    folder = submitted(home)
    for end in (("failed", "something-else"), ("completed", "")):
        over = msgspec.structs.replace(folder.status(), state=end[0], code=end[1], message="Something happened.")
        folder.write(over)
        with pytest.raises(CityFedError) as caught:
            conduct(home, folder.path.name, failing("never-comes-so-far"))
        assert caught.value.code == (end[1] or "run-over")
        assert folder.status() == over
    assert not home.journal.exists()


@pytest.mark.parametrize(
    ("code", "seen"), [("something-else", "something-else"), ("spool-unusable", "run-interrupted")]
)
def test_a_run_that_ends_before_it_has_called_anybody_leaves_its_port(
    home: AuthorityHome, code: str, seen: str
) -> None:
    assert conducted(home, submitted(home), code) == seen
    with busy_port(home):
        pass


# --- stopped ----------------------------------------------------------------------------------------------------


def verdict(folder: RunFolder) -> tuple[str, str]:
    status = folder.status()
    return status.state, status.code


@pytest.mark.parametrize("code", ["spool-unusable", "something-else"])
def test_a_run_that_was_told_to_stop_ends_as_stopped_whatever_it_meets(home: AuthorityHome, code: str) -> None:
    folder = submitted(home)

    def stopped_meanwhile(nodes: Mapping[DepartmentId, int]) -> GridCarrier:
        folder.stop.touch()
        return failing(code)(nodes)

    with pytest.raises(SetupError):
        conduct(home, folder.path.name, stopped_meanwhile)
    assert verdict(folder) == ("failed", "run-stopped")


@contextmanager
def another_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_process_of_a_run_hears_at_once_that_it_is_stopped(home: AuthorityHome) -> None:
    folder = submitted(home)
    with another_process() as process:
        folder.write(RunStatus(state="running", process=process_status(process.pid), since=now()))
        assert names_durably(lambda: stop_run(home, folder.path.name)), "a power cut does not let it go on"
        assert process.wait(timeout=30) == -signal.SIGTERM
    assert verdict(folder) == ("failed", "run-stopped")


def test_whoever_answers_for_a_run_that_has_no_process_yet_is_left_alone_when_it_is_stopped(
    home: AuthorityHome,
) -> None:
    """That is `up`, which keeps everything else running."""
    with another_process() as process:
        folder = submitted(home, process=process_status(process.pid))
        stop_run(home, folder.path.name)
        process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert verdict(folder) == ("failed", "run-stopped")


def test_an_interrupted_run_that_is_stopped_is_over(home: AuthorityHome) -> None:
    folder = submitted(home, process=GONE)
    assert verdict(folder) == ("failed", "run-interrupted")
    folder.state.mkdir()
    (folder.state / "round-1.log").touch()
    stop_run(home, folder.path.name)
    assert verdict(folder) == ("failed", "run-stopped")
    assert list(folder.state.iterdir()) == []
    with pytest.raises(ConfigError) as caught:
        stop_run(home, folder.path.name)
    assert caught.value.code == "run-over"


def test_a_run_that_is_stopped_before_it_has_a_process_opens_nothing_when_it_gets_one(home: AuthorityHome) -> None:
    folder = submitted(home)
    stop_run(home, folder.path.name)
    assert verdict(folder) == ("failed", "run-stopped")
    with pytest.raises(RoundAbortedError) as caught:
        conduct(home, folder.path.name, failing("never-comes-so-far"))
    assert caught.value.code == "run-stopped"
    assert verdict(folder) == ("failed", "run-stopped")
    assert not home.journal.exists()
