"""`make deploy-demo`: what it is made of, a stop in the middle, and, as a long test, the whole."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.drafts import load_ask

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "deploy" / "demo.py"
PREPARED = Path(os.environ.get("CITYFED_HOME") or ROOT / ".cityfed").absolute()


@contextmanager
def playing(folder: Path, prepared: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the demo in a session of its own, by which its processes are found again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CITYFED_HOME": str(prepared), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(DEMO)]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def working_in(folder: Path) -> list[str]:
    """Name the processes whose present folder or command lies in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command or where.startswith(str(folder)):
            found.append(command)
    return [command for command in found if "deploy/demo.py" not in command]


def test_the_plan_of_the_demo_has_at_most_thirty_rounds() -> None:
    (name,) = re.findall(r'^SCENARIO = "(.*)"$', DEMO.read_text(), re.MULTILINE)
    assert load_ask(name).rounds <= 30


def test_make_prepares_everything_that_the_demo_needs(tmp_path: Path) -> None:
    """As in a fresh clone: no environment yet, no messages."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    # Without what a make that runs these tests has told its children.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    command = ["make", "-n", "deploy-demo"]
    told = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60, env=inherited
    ).stdout.splitlines()
    assert told == ["requirements/install.sh", ".venv/bin/cityfed-sim setup", ".venv/bin/python deploy/demo.py"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "prepared" / "departments").mkdir(parents=True)
    with playing(tmp_path, tmp_path / "prepared") as demo:
        assert demo.stdout is not None
        while "joins" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(number)
        demo.send_signal(number)
        said = demo.communicate(timeout=60)[0]
    assert (demo.returncode, working_in(tmp_path)) == (130, [])
    assert said.splitlines()[-1] == "Every process has ended."
    assert "Traceback" not in said


def test_a_demo_without_messages_says_how_to_get_them(tmp_path: Path) -> None:
    with playing(tmp_path, tmp_path / "nothing") as demo:
        said = demo.communicate(timeout=120)[0]
    assert (demo.returncode, working_in(tmp_path)) == (1, [])
    assert "Traceback" not in said
    assert "make deploy-demo" in said


@pytest.mark.soak
@pytest.mark.skipif(not PREPARED.exists(), reason="`cityfed-sim setup` prepares the messages")
def test_the_whole_demo_ends_with_a_model_and_no_process(tmp_path: Path) -> None:
    with playing(tmp_path, PREPARED) as demo:
        said = demo.communicate(timeout=900)[0]
    assert (demo.returncode, working_in(tmp_path)) == (0, []), said
    assert "The run completed: 20 rounds" in said
    assert len(re.findall(r"epsilon 0\.\d{4} spent, journal in order", said)) == 4
    (model,) = tmp_path.glob("runs/deploy-demo-1/authority/runs/*/model.safetensors")
    assert model.stat().st_size > 0
