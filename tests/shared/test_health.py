"""Whether all processes of a role run is answered on loopback, and nothing else is."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from threading import Event

import httpx
import pytest

from shared.errors import SetupError
from shared.health import HEALTH_PATH, health_answer
from shared.loopback import free_port, health_endpoint
from shared.supervise import STATUS_FILE, Program, Supervisor


def program(name: str, *, due: bool) -> Program:
    return Program(name=name, command=("/bin/sleep", "600"), environment=dict(os.environ), due=lambda: due)


def answers(folder: Path, *programs: Program) -> tuple[int, dict[str, object]]:
    """What is answered once the first program runs."""
    stopped, found, deadline = Event(), list[tuple[int, bytes]](), time.monotonic() + 30

    def look() -> None:
        status, body = health_answer(folder)
        if json.loads(body)["processes"] or time.monotonic() > deadline:
            found.append((status, body))
            stopped.set()

    Supervisor(folder=folder, programs=programs, clock=time.monotonic, each_tick=look, tick_s=0.02).run(stopped)
    return found[0][0], json.loads(found[0][1])


def test_all_processes_on_is_well(tmp_path: Path) -> None:
    status, body = answers(tmp_path, program("one", due=True), program("two", due=True))
    assert status == 200
    assert body == {
        "healthy": True,
        "processes": {name: {"running": True, "starts": 1, "last_exit": None} for name in ("one", "two")},
        "fault": "",
    }


def test_one_process_away_is_not_well(tmp_path: Path) -> None:
    status, body = answers(tmp_path, program("one", due=True), program("two", due=False))
    assert (status, body["healthy"]) == (503, False)


def test_no_supervisor_and_a_damaged_status_are_not_well(tmp_path: Path) -> None:
    assert health_answer(tmp_path) == (503, b'{"healthy":false,"processes":{},"fault":""}')
    (tmp_path / STATUS_FILE).write_text("{")
    assert health_answer(tmp_path)[0] == 503


def test_one_path_is_served_on_loopback(tmp_path: Path) -> None:
    port = free_port()
    with health_endpoint(port, tmp_path), httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.get(HEALTH_PATH).status_code == 503
        assert client.get("/").status_code == 404
        assert client.post(HEALTH_PATH).status_code == 501
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_no_port_is_no_endpoint_and_a_taken_one_is_told(tmp_path: Path) -> None:
    with health_endpoint(0, tmp_path), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SetupError) as caught, health_endpoint(taken.getsockname()[1], tmp_path):
            pass
    assert caught.value.code == "health-port"
