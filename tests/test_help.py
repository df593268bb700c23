"""`--help` and what only looks at files answer without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployed_city import DeployedCity, deploy_city

HEAVY = ("dp_accounting", "flwr", "grpc", "opacus", "pandas", "pandera", "ray", "scipy", "torch", "transformers")

SHOW = """
import runpy, sys
package, words, *heavy = sys.argv[1:]
sys.argv = [package, *words.split("|")]
try:
    runpy.run_module(package, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("exit", end.code or 0)
print("loaded", sorted(set(heavy) & set(sys.modules)))
"""


def show(package: str, *words: str | Path) -> list[str]:
    command = [sys.executable, "-c", SHOW, package, "|".join(map(str, words)), *HEAVY]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [*result.stdout.splitlines(), *result.stderr.splitlines()]


@pytest.mark.parametrize("package", ["clients", "server", "simulation"])
def test_help_imports_nothing_heavy(package: str) -> None:
    lines = show(package, "--help")
    assert any("Usage" in line for line in lines)
    assert lines[-2:] == ["exit 0", "loaded []"]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    return deploy_city(tmp_path_factory.mktemp("help"), ("health", "police"))


def test_a_department_that_looks_at_files_loads_nothing_heavy(city: DeployedCity) -> None:
    config = city.config("health")
    for words in (
        ("roster", "show", config),
        ("plan", "list", config),
        ("audit", "verify", config),
        ("data", "declare", config, "--out", city.folder / "summary.json"),
    ):
        assert show("clients", *words)[-2:] == ["exit 0", "loaded []"], words


def test_an_authority_that_looks_at_files_loads_nothing_heavy(city: DeployedCity) -> None:
    for words in (("city", "show"), ("runs",), ("plan", "list")):
        assert show("server", *words, "--home", city.authority.root)[-2:] == ["exit 0", "loaded []"], words
