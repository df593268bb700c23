"""`requirements/install.sh`, which `make` calls: complete, or one sentence, exit 3 and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with all that an installation reads, and no environment."""
    names = ["requirements", "pyproject.toml", "README.md", "LICENSE", "Makefile"]
    for name in [*names, "shared", "policies", "clients", "server", "simulation"]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    return tmp_path


def install(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    command = [str(checkout / "requirements" / "install.sh")]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def environments(checkout: Path) -> list[str]:
    return sorted(path.name for path in checkout.glob(".venv*"))


def test_without_an_index_nothing_half_installed_stays(checkout: Path) -> None:
    result = install(checkout, **NO_INDEX)
    assert result.returncode == 3
    assert result.stderr.splitlines() == [
        "set-up: no package index could be reached, and the first set-up needs one; nothing was installed."
    ]
    assert environments(checkout) == []


def test_a_failed_set_up_puts_the_former_environment_back(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "former").touch()
    broken = checkout / "python-without-venv"
    broken.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo "$0"; else exit 1; fi\n')
    broken.chmod(0o755)
    result = install(checkout, PYTHON=str(broken))
    assert result.returncode == 3
    assert "could not make a virtual environment" in result.stderr
    assert environments(checkout) == [".venv"]
    assert (checkout / ".venv" / "former").exists()


@pytest.mark.parametrize("python", ["/bin/false", "no-such-python"])
def test_a_missing_python_is_one_sentence(checkout: Path, python: str) -> None:
    result = install(checkout, PYTHON=python)
    assert result.returncode == 3
    assert "no Python 3.11 or newer" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert environments(checkout) == []


@pytest.mark.soak
def test_a_fresh_checkout_is_installed_from_the_index_and_then_left_alone(checkout: Path) -> None:
    first = install(checkout)
    assert first.returncode == 0, first.stderr
    for command in ("cityfed-client", "cityfed-server", "cityfed-sim"):
        subprocess.run([str(checkout / ".venv" / "bin" / command), "--help"], check=True, capture_output=True)
    again = subprocess.run(["make", "install"], cwd=checkout, check=True, capture_output=True, text=True)
    assert "installing" not in again.stdout
