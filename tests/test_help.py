"""`--help` answers without loading anything heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("flwr", "opacus", "pandas", "pandera", "ray", "scipy", "torch", "transformers")

SHOW_HELP = """
import runpy, sys
package, *heavy = sys.argv[1:]
sys.argv = [package, "--help"]
try:
    runpy.run_module(package, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("exit", end.code or 0)
print("loaded", sorted(set(heavy) & set(sys.modules)))
"""


def show_help(package: str) -> list[str]:
    command = [sys.executable, "-c", SHOW_HELP, package, *HEAVY]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [*result.stdout.splitlines(), *result.stderr.splitlines()]


@pytest.mark.parametrize("package", ["clients", "server", "simulation"])
def test_help_imports_nothing_heavy(package: str) -> None:
    lines = show_help(package)
    assert any("Usage" in line for line in lines)
    assert lines[-2:] == ["exit 0", "loaded []"]
