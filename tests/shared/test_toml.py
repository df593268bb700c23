"""TOML that people write: what no path or name may hold is refused where the file is read."""

from __future__ import annotations

import pytest

from shared.codec import parse_toml
from shared.errors import ContractError
from tests.refusals import code_of

NUL = r'"a\u0000b"'


@pytest.mark.parametrize("text", [f"a = {NUL}", f"{NUL} = 1", f"a = [1, [{NUL}]]", f"[a.b]\nc = [{{ d = {NUL} }}]"])
def test_nul_is_refused_wherever_it_stands(text: str) -> None:
    assert code_of(lambda: parse_toml(text, where="f", error=ContractError), ContractError) == "toml-content"


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, ".".join("a" * 5000) + " = 1"])
def test_what_is_nested_too_deep_is_one_sentence(text: str) -> None:
    assert code_of(lambda: parse_toml(text, where="f", error=ContractError), ContractError) == "toml-syntax"


def test_what_only_looks_like_nul_is_text() -> None:
    assert parse_toml(r"path = 'C:\u0000'", where="f") == {"path": r"C:\u0000"}
