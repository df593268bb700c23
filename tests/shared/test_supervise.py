"""The supervisor with real, small processes: restarts, one at a time, orphans, and a stop that ends everything."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from threading import Event

import msgspec
import pytest

from shared.codec import dump_json
from shared.errors import SetupError
from shared.logs import MAX_LOG_BYTES, log_files
from shared.supervise import (
    STATUS_FILE,
    Program,
    ProgramStatus,
    Status,
    Supervisor,
    is_alive,
    process_status,
    read_status,
    stop_supervisor,
)

SLEEP = ("/bin/sleep", "600")
STUBBORN = (sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")
PARENT = (sys.executable, "-c", "import subprocess; subprocess.Popen(['/bin/sleep', '600']).wait()")


HANGS = (sys.executable, "-u", "-c", "import time; print('I give up.'); time.sleep(600)")


def program(name: str = "one", command: tuple[str, ...] = SLEEP, **settings: object) -> Program:
    return Program(name=name, command=command, environment=dict(os.environ), **settings)  # type: ignore[arg-type]  # test


def supervise(folder: Path, *programs: Program, tick: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Run until a tick says that all has been seen."""
    stopped, deadline = Event(), time.monotonic() + timeout_s

    def look() -> None:
        if tick() or time.monotonic() > deadline:
            stopped.set()

    Supervisor(folder=folder, programs=programs, clock=time.monotonic, each_tick=look, tick_s=0.02).run(stopped)
    assert time.monotonic() <= deadline


def status_of(folder: Path, name: str = "one") -> ProgramStatus:
    status = read_status(folder)
    return status.programs[name] if status else ProgramStatus()


def children_of(pid: int) -> list[int]:
    return [int(item) for item in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ignores_sigterm(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:")]
    return bool(mask & 1 << (signal.SIGTERM - 1))


def test_a_program_that_ends_is_started_again_and_its_exit_is_written_down(tmp_path: Path) -> None:
    seen: list[ProgramStatus] = []

    def tick() -> bool:
        status = status_of(tmp_path)
        if status.pid and (not seen or seen[-1].pid != status.pid):
            seen.append(status)
            os.kill(status.pid, signal.SIGKILL)
        return len(seen) == 2

    supervise(tmp_path, program(), tick=tick)
    assert [item.starts for item in seen] == [1, 2]
    assert seen[1].last_exit == -signal.SIGKILL


def test_pauses_between_starts_grow_and_have_a_cap(tmp_path: Path) -> None:
    now, starts = [0.0], []

    def tick() -> bool:
        status = status_of(tmp_path)
        if status.starts > len(starts):
            starts.append(now[0])
        now[0] += 0.0 if status.pid else 0.25
        return len(starts) == 9

    stopped = Event()
    crash = program(command=("/bin/false",))

    def look() -> None:
        if tick():
            stopped.set()

    Supervisor(folder=tmp_path, programs=[crash], clock=lambda: now[0], each_tick=look, tick_s=0.001).run(stopped)
    pauses = [round(after - before, 1) for before, after in pairwise(starts)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30], abs=0.5)


def test_a_program_whose_needs_are_not_met_is_not_started(tmp_path: Path) -> None:
    asked: list[int] = []

    def due() -> bool:
        asked.append(1)
        return len(asked) > 3

    supervise(tmp_path, program(due=due), tick=lambda: status_of(tmp_path).starts == 1)
    assert len(asked) == 4


def test_while_there_is_a_fault_nothing_runs_and_the_status_says_why(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    stopped, deadline = Event(), time.monotonic() + 30.0

    def fault() -> str:
        status = read_status(tmp_path)
        if status is not None:
            one = status.programs["one"]
            seen.extend({(status.fault, one.starts if one.pid else 0)} - {*seen[-1:]})
        return "certificate-expired" if len(seen) == 1 else ""

    def look() -> None:
        if len(seen) == 3 or time.monotonic() > deadline:
            stopped.set()

    supervisor = Supervisor(
        folder=tmp_path, programs=[program()], clock=time.monotonic, fault=fault, each_tick=look, tick_s=0.02
    )
    supervisor.run(stopped)
    assert seen == [("", 1), ("certificate-expired", 0), ("", 2)]


def test_when_stopped_every_process_has_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pids: list[int] = []

    def tick() -> bool:
        parent = status_of(tmp_path).pid
        pids[:] = [parent, *children_of(parent)] if parent else []
        return len(pids) == 2

    supervise(tmp_path, program(command=PARENT), tick=tick)
    assert read_status(tmp_path) is None
    deadline = time.monotonic() + 10.0
    while any(is_alive(process_status(pid)) for pid in pids):  # the kernel takes a moment for what was killed
        assert time.monotonic() < deadline


def test_a_process_that_ignores_the_request_is_ended_without_one(tmp_path: Path) -> None:
    now, pids, deadline = [0.0], [], time.monotonic() + 30.0
    stopped = Event()

    def tick() -> None:
        pid = status_of(tmp_path).pid
        if (pid and ignores_sigterm(pid)) or time.monotonic() > deadline:
            pids.append(pid)
            stopped.set()

    def clock() -> float:
        now[0] += 5.0  # ten seconds of grace pass in two looks
        return now[0]

    Supervisor(folder=tmp_path, programs=[program(command=STUBBORN)], clock=clock, each_tick=tick).run(stopped)
    assert not is_alive(process_status(pids[0]))


def test_two_supervisors_of_one_folder_are_refused_by_name(tmp_path: Path) -> None:
    refused: list[str] = []

    def tick() -> bool:
        with pytest.raises(SetupError) as caught:
            Supervisor(folder=tmp_path, programs=[], clock=time.monotonic).run(Event())
        refused.append(caught.value.code)
        return True

    supervise(tmp_path, program(), tick=tick)
    assert refused == ["already-running"]


def test_what_a_killed_supervisor_left_behind_is_ended_before_anything_starts(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from threading import Event;"
        "from shared.supervise import Program, Supervisor;"
        "Supervisor(folder=Path(sys.argv[1]), programs=[Program(name='one', command=('/bin/sleep', '600'),"
        " environment={})], clock=time.monotonic).run(Event())"
    )
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": root}
    ) as first:
        deadline = time.monotonic() + 30
        while not status_of(tmp_path).pid and time.monotonic() < deadline:
            os.sched_yield()
        left = status_of(tmp_path)
        first.kill()
    assert is_alive(left)
    supervise(tmp_path, program("two"), tick=lambda: status_of(tmp_path, "two").pid > 0)
    assert not is_alive(left)


@pytest.mark.parametrize("content", [b"", b"{", b'{"supervisor": {}, "programs": {}, "colour": 1}'])
def test_a_status_that_cannot_be_read_keeps_nothing_from_being_started(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another version, or damaged: who was left behind cannot be told from it, and that is said."""
    (tmp_path / STATUS_FILE).write_bytes(content)
    supervise(tmp_path, program(), tick=lambda: (tmp_path / STATUS_FILE).read_bytes() != content)
    assert [item.args[-1] for item in caplog.records if "left behind" in item.msg and item.args] == ["json-content"]  # type: ignore[index]  # a tuple


def test_a_process_id_that_was_given_to_another_process_is_not_taken_for_ours(tmp_path: Path) -> None:
    own = process_status(os.getpid())
    assert is_alive(own)
    assert not is_alive(ProgramStatus(pid=own.pid, started="1"))
    assert not is_alive(ProgramStatus())


def test_files_of_the_processes_are_for_this_account_only(tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = ("/bin/sh", "-c", f"echo hello > {made}; exec sleep 600")
    supervise(tmp_path / "folder", program(command=command), tick=made.exists)
    for path in (made, tmp_path / "folder" / "log" / "one.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_stopping_where_nothing_is_on_says_so(tmp_path: Path) -> None:
    assert stop_supervisor(tmp_path, patience_s=1.0, wait=lambda _: None) is False
    (tmp_path / STATUS_FILE).write_text('{"supervisor": {"pid": 1, "started": "0"}, "programs": {}}')
    assert stop_supervisor(tmp_path, patience_s=1.0, wait=lambda _: None) is False


ABOUT_TO_STOP: list[subprocess.Popen[bytes]] = []
"""Whose end comes between the look at it and the signal; an audit hook stays for good."""


def end_first(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.kill" and ABOUT_TO_STOP and arguments[0] == ABOUT_TO_STOP[0].pid:
        process = ABOUT_TO_STOP.pop()
        process.kill()
        process.wait()


def test_a_supervisor_that_ends_just_before_it_is_told_to_was_there(tmp_path: Path) -> None:
    sys.addaudithook(end_first)
    with subprocess.Popen(SLEEP) as process:
        status = Status(supervisor=process_status(process.pid), programs={})
        (tmp_path / STATUS_FILE).write_bytes(msgspec.json.encode(status))
        ABOUT_TO_STOP.append(process)
        assert stop_supervisor(tmp_path, patience_s=1.0, wait=lambda _: None) is True
        assert ABOUT_TO_STOP == []


def test_who_stops_what_does_not_end_is_told_so_in_time(tmp_path: Path) -> None:
    waited: list[float] = []
    with subprocess.Popen(STUBBORN) as stubborn:
        try:
            while not ignores_sigterm(stubborn.pid):
                os.sched_yield()
            content = dump_json(Status(supervisor=process_status(stubborn.pid), programs={}))
            (tmp_path / STATUS_FILE).write_bytes(content)
            with pytest.raises(SetupError, match=r"did not end within 3 s") as caught:
                stop_supervisor(tmp_path, patience_s=3.0, wait=waited.append)
            assert stubborn.poll() is None
        finally:
            stubborn.kill()
    assert caught.value.code == "stop-timeout"
    assert sum(waited) == pytest.approx(3.0)
    assert (tmp_path / STATUS_FILE).read_bytes() == content


def test_a_disk_that_takes_nothing_ends_nothing_and_is_written_to_once_it_does(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    in_the_way = [folder / STATUS_FILE, folder / "log" / "two.log"]
    for path in in_the_way:
        path.mkdir(parents=True)  # whatever account this is, no file can be put here
    made, looks = tmp_path / "made", list[int]()
    command = ("/bin/sh", "-c", f"echo $$ >> {made}; exec sleep 600")

    def tick() -> bool:
        looks.append(1)
        if len(looks) < 10 or not made.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        if len(looks) == 10 or in_the_way[0].is_dir():
            for path in in_the_way:
                path.rmdir()
        return bool(status_of(folder, "one").pid and status_of(folder, "two").pid)

    supervise(folder, program("one", command), program("two"), tick=tick)
    assert len(made.read_text().split()) == 1, "the process that could be started was never ended"


def test_a_fault_that_lasts_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks: list[int] = []

    def tick() -> bool:
        looks.append(1)
        if len(looks) < 20:
            raise SetupError("home-not-writable", "Not now.")
        return True

    supervise(tmp_path, program(), tick=tick)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the look between: home-not-writable; it is tried again"
    ]


def test_the_log_of_a_process_that_goes_on_has_an_end(tmp_path: Path) -> None:
    command = ("/bin/sh", "-c", f"head -c {MAX_LOG_BYTES + 1} /dev/zero; echo more; exec sleep 600")
    older, newer = log_files(tmp_path / "log" / "one.log")
    supervise(
        tmp_path,
        program(command=command),
        tick=lambda: older.exists() and older.stat().st_size > MAX_LOG_BYTES and newer.stat().st_size < 10,
    )
    assert newer.stat().st_size < 10
    assert stat.S_IMODE(older.stat().st_mode) == 0o600


def test_a_program_that_gave_up_and_does_not_end_is_started_again(tmp_path: Path) -> None:
    def again() -> bool:
        status = read_status(tmp_path)
        return status is not None and status.programs["one"].starts > 1

    supervise(tmp_path, program(command=HANGS, last_word=b"I give up."), tick=again)
    assert (tmp_path / "log" / "one.log").read_text().startswith("I give up.\n")
