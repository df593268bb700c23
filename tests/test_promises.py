"""Each promise is kept by tests that carry its number in their name."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROMISED = re.compile(r"test_(p[1-5])_\w+")


@functools.cache
def names_by_file() -> dict[str, list[str]]:
    """The names of all test functions, by the file that they stand in."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        nodes = ast.walk(ast.parse(path.read_text(), str(path)))
        found[str(path.relative_to(TESTS))] = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    return found


def kept(name: str) -> str | None:
    """The promise that a test's name claims to keep."""
    match = PROMISED.fullmatch(name)
    return match[1] if match else None


@pytest.mark.parametrize("promise", ["p1", "p2", "p3", "p4", "p5"])
def test_every_promise_has_tests_of_its_own_in_more_than_one_place(promise: str) -> None:
    files = {file for file, names in names_by_file().items() if any(kept(name) == promise for name in names)}
    assert len(files) >= 2, files


def test_no_test_claims_a_promise_that_does_not_exist() -> None:
    for file, names in names_by_file().items():
        for name in names:
            assert kept(name) or not re.match(r"test_p\d", name), f"{file}: {name}"
