"""Whoever watches a run hears of each change once, and learns how it ended or that it never began."""

from __future__ import annotations

import datetime as dt
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from flwr.proto.control_pb2 import ListRunsResponse

from server.home import AuthorityHome
from server.runs import RunFolder, RunStatus, Submitted
from server.submit import PATIENCE_S, watch_run
from server.superlink import SuperLink
from shared.codec import dump_json
from shared.errors import CityFedError, RoundAbortedError
from shared.identity import Signed
from shared.loopback import LOOPBACK, free_port
from shared.private_files import make_private_folder
from shared.supervise import STATUS_FILE, ProgramStatus, Status, process_status
from tests.deployed_city import now

ALIVE, GONE = process_status(os.getpid()), ProgramStatus(pid=os.getpid(), started="1")
FIRST = RunStatus(state="running", process=ALIVE, since=dt.datetime(2026, 3, 1, tzinfo=dt.UTC), round=1)
SECOND = msgspec.structs.replace(FIRST, round=2, rounds=1)
COMPLETED = msgspec.structs.replace(SECOND, state="completed", rounds=2)
FAILED = msgspec.structs.replace(FIRST, state="failed", code="quorum-missed", message="Too few answered.")
LOST = msgspec.structs.replace(FIRST, process=GONE, message="The disk is full.")
"""Of a process that is gone: whoever reads it finds an interrupted run."""
FLOWER_RUN = 7


class Watched:
    """A run, and what was told of it."""

    def __init__(self, home: AuthorityHome) -> None:
        self.home, self.folder = home, RunFolder(home.runs / ("ab" * 32))
        self.told: list[tuple[str, int]] = []
        self.still: list[str] = []
        self.looks = 0
        self.time = 0.0

    def says(self, status: RunStatus) -> Callable[[], object]:
        return lambda: self.folder.write(status)

    def up(self) -> None:
        make_private_folder(self.home.service)
        (self.home.service / STATUS_FILE).write_bytes(dump_json(Status(supervisor=ALIVE, programs={})))

    def off(self) -> None:
        (self.home.service / STATUS_FILE).unlink(missing_ok=True)

    def watch(self, *before_looks: Callable[[], object], most: int = 1000) -> RunStatus:
        """Watch to the end; before each look but the first something happens, and at last nothing any more."""
        later = iter(before_looks)
        self.looks = 1

        def wait(seconds: float) -> None:
            assert 0 < seconds < 5
            assert self.looks < most, "it is watched for ever"
            self.looks += 1
            self.time += seconds
            next(later, nothing)()

        return watch_run(
            self.home,
            self.folder,
            tell=self.hear,
            stands_still=self.still.append,
            wait=wait,
            clock=lambda: self.time,
        )

    def hear(self, status: RunStatus) -> None:
        self.told.append((status.state, status.round))


def nothing() -> None:
    """Nothing happens before a look."""


@pytest.fixture
def run(tmp_path: Path) -> Watched:
    watched = Watched(AuthorityHome(tmp_path))
    submitted = Submitted(plan=Signed(body=b"plan", signature=bytes(64)), nodes={}, flower_run=FLOWER_RUN)
    watched.folder.submit(submitted, process=ALIVE, now=FIRST.since)
    return watched


def test_each_change_is_told_once_until_the_run_is_completed(run: Watched) -> None:
    run.says(FIRST)()
    assert run.watch(nothing, nothing, run.says(SECOND), nothing, run.says(COMPLETED)) == COMPLETED
    assert run.told == [("running", 1), ("running", 2), ("completed", 2)]


def test_a_run_that_failed_ends_the_watch_at_once_with_the_reason_that_it_gave(run: Watched) -> None:
    run.says(FAILED)()
    with pytest.raises(RoundAbortedError, match="Too few answered") as caught:
        run.watch()
    assert (caught.value.code, run.looks) == (FAILED.code, 1)


# --- interrupted --------------------------------------------------------------------------------------------


def given_up_after(run: Watched, code: str) -> int:
    """So many looks a run is waited for, as long as the page says; it is said once, and nothing of it is changed."""
    before, begin = run.folder.status(), run.time
    run.still.clear()
    with pytest.raises(CityFedError) as caught:
        run.watch()
    assert (caught.value.code, run.still) == (code, [code])
    assert "\n" not in caught.value.diagnostics()
    assert run.folder.status() == before
    assert run.time - begin == PATIENCE_S
    return run.looks


def test_an_interrupted_run_is_waited_for_a_while_if_nothing_is_on_that_would_start_it_again(run: Watched) -> None:
    run.says(LOST)()
    assert given_up_after(run, "run-interrupted") > 10
    assert run.told == [("failed", 1)]


def test_an_interrupted_run_is_waited_for_as_long_as_up_is_on(run: Watched) -> None:
    run.says(LOST)()
    patience = given_up_after(run, "run-interrupted")
    run.up()
    assert run.watch(*[nothing] * (3 * patience), run.says(COMPLETED)) == COMPLETED


def test_what_was_waited_for_counts_from_the_beginning_once_up_was_on_again(run: Watched) -> None:
    run.says(LOST)()
    almost = [nothing] * (given_up_after(run, "run-interrupted") - 5)
    assert run.watch(*almost, run.up, run.off, *almost, run.says(COMPLETED)) == COMPLETED


# --- never begun --------------------------------------------------------------------------------------------


@contextmanager
def superlink(run: Watched, status: str) -> Iterator[None]:
    """An authority that is on, and whose SuperLink answers every call with where it says that the run stands."""
    answer = ListRunsResponse()
    answer.run_dict[FLOWER_RUN].status.status = status

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = answer.SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    run.up()
    make_private_folder(run.home.flower)
    with HTTPServer((LOOPBACK, 0), Handler) as server:
        described = SuperLink(folder=run.home.flower, secret=run.home.superexec_secret, port=server.server_port)
        described.prepare(now())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(described.certificate, described.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        (run.home.flower / "port").write_text(str(described.port))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_run_that_flower_gave_up_before_it_had_a_process_never_began(run: Watched) -> None:
    with superlink(run, "finished"):
        patience = given_up_after(run, "run-not-started")
        assert patience > 10
        assert run.told == [("submitted", 0)]
        assert run.watch(*[nothing] * (patience - 5), run.says(FIRST), run.says(COMPLETED)) == COMPLETED


def test_a_run_that_flower_still_has_is_waited_for(run: Watched) -> None:
    with superlink(run, "starting"):
        assert run.watch(*[nothing] * 150, run.says(COMPLETED)) == COMPLETED


# --- the authority is away ----------------------------------------------------------------------------------


@contextmanager
def nobody_listens(run: Watched) -> Iterator[Callable[[], None]]:
    """An `up` that is on and whose SuperLink is not; what is yielded lets it answer from then on."""
    run.up()
    make_private_folder(run.home.flower)
    SuperLink(folder=run.home.flower, secret=run.home.superexec_secret, port=(port := free_port())).prepare(now())
    (run.home.flower / "port").write_text(str(port))
    with ExitStack() as later:
        yield lambda: later.enter_context(superlink(run, "starting"))


def test_a_superlink_that_is_away_is_waited_for_and_the_watch_goes_on_when_it_is_back(run: Watched) -> None:
    with nobody_listens(run) as begin:
        assert run.watch(*[nothing] * 5, begin, nothing, nothing, run.says(FIRST), run.says(COMPLETED)) == COMPLETED
    assert run.still == ["superlink-unreachable"]
    assert run.told == [("submitted", 0), ("running", 1), ("completed", 2)]


def test_a_restart_of_up_is_one_absence_whatever_it_looks_like_on_the_way(run: Watched) -> None:
    with nobody_listens(run) as begin:
        assert run.watch(nothing, run.off, run.says(LOST), run.up, begin, run.says(COMPLETED)) == COMPLETED
    assert run.still == ["superlink-unreachable"]


def test_a_superlink_that_stays_away_is_named(run: Watched) -> None:
    with nobody_listens(run):
        assert given_up_after(run, "superlink-unreachable") > 10
    assert run.told == [("submitted", 0)]


def test_a_run_that_waits_for_a_process_is_waited_for_a_while_where_nothing_is_on(run: Watched) -> None:
    assert given_up_after(run, "authority-off") > 10
    assert run.told == [("submitted", 0)]


def test_operations_say_how_long_is_waited(run: Watched) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert f"for {PATIENCE_S:.0f} s" in page
    run.says(LOST)()
    given_up_after(run, "run-interrupted")
