"""The wheel holds the five packages with their data and nothing else; their code holds no `assert`."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"shared", "policies", "clients", "server", "simulation"}
DATA_SUFFIXES = {".toml", ".yaml", ".html", ".css", ".csv", ".gz", ".typed"}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def package_files(wheel: zipfile.ZipFile) -> set[PurePosixPath]:
    paths = {PurePosixPath(name) for name in wheel.namelist()}
    return {path for path in paths if not path.parts[0].endswith(".dist-info")}


def test_the_wheel_holds_exactly_the_five_packages(wheel: zipfile.ZipFile) -> None:
    assert {path.parts[0] for path in package_files(wheel)} == PACKAGES


def test_the_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    in_tree = {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.suffix for path in in_tree} <= {".py", *DATA_SUFFIXES}
    assert package_files(wheel) == in_tree


def test_the_wheel_names_three_commands_and_its_licence(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read("cityfed-0.1.0.dist-info/entry_points.txt").decode())
    assert set(entry_points["console_scripts"]) == {"cityfed-client", "cityfed-server", "cityfed-sim"}
    assert "Apache License" in wheel.read("cityfed-0.1.0.dist-info/licenses/LICENSE").decode()


def test_the_project_can_not_be_uploaded_by_accident() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Private :: Do Not Upload" in project["classifiers"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_stands_outside_tests(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


def test_the_lock_holds_hashes_only_and_names_no_index() -> None:
    text = (ROOT / "requirements" / "lock.txt").read_text()
    for word in ("--index-url", "--extra-index-url", "--find-links", "://", " @ "):
        assert word not in text
    pins = [line for line in text.splitlines() if line[:1].isalnum()]
    assert all("==" in line and line.endswith("\\") for line in pins)
    assert not any(line.startswith("torch==") for line in pins)


def test_torch_has_one_exact_pin() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {line for lines in extras.values() for line in lines if line.startswith("torch")}
    assert len(pins) == 1
    assert pins.pop().startswith("torch==")
