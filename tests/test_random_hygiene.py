"""Keys, masks, noise and sampling come from the operating system: no seeded or global generator in production code.

Names that start with `Unsafe` may use one: they say so.
"""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path

import pytest

from shared.secagg.epoch import open_epoch
from shared.secagg.round import KeyedRound

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for package in ("shared", "policies", "clients", "server") for path in (ROOT / package).rglob("*.py")
)

# Files where a fixed public seed is the point, and why that harms nobody.
PUBLIC_SEEDS = {
    "clients/training/preflight.py": "synthetic units and a comparison point, before any real unit is read",
    "clients/training/audit/inversion.py": "an invented record to look for; no real unit is read",
    "clients/training/audit/sensitivity.py": "invented units, beside which the audit looks at one more",
}

FORBIDDEN = ("random", "numpy.random", "torch.random", "torch.manual_seed", "torch.seed", "torch.cuda.manual_seed")
NEED_A_GENERATOR = {
    f"torch.{name}"
    for name in (
        "bernoulli",
        "multinomial",
        "normal",
        "poisson",
        "rand",
        "rand_like",
        "randint",
        "randint_like",
        "randn",
        "randn_like",
        "randperm",
    )
}
IN_PLACE = {
    f"{name}_"
    for name in ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "random", "uniform")
}


class Scanner(ast.NodeVisitor):
    """Collects `line: dotted name` for each use of a generator that is not safe."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.found: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            self.names[bound] = alias.name if alias.asname else bound
            self.report(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self.names[alias.asname or alias.name] = dotted
            self.report(node, dotted)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not node.name.lstrip("_").startswith("Unsafe"):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not node.name.lstrip("_").startswith("unsafe"):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.report(node, self.dotted(node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self.dotted(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        draws = name in NEED_A_GENERATOR or method in IN_PLACE
        if draws and not any(keyword.arg == "generator" for keyword in node.keywords):
            self.found.append(f"{node.lineno}: {name or method} without a generator")
        self.generic_visit(node)

    def dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, "")
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else ""
        return ""

    def report(self, node: ast.stmt | ast.expr, dotted: str) -> None:
        if any(dotted == name or dotted.startswith(f"{name}.") for name in FORBIDDEN):
            self.found.append(f"{node.lineno}: {dotted}")


def unsafe_uses(source: str) -> list[str]:
    scanner = Scanner()
    scanner.visit(ast.parse(source))
    return scanner.found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_production_code_uses_no_seeded_or_global_generator(path: Path) -> None:
    expected_to_seed = str(path.relative_to(ROOT)) in PUBLIC_SEEDS
    uses = unsafe_uses(path.read_text())
    assert bool(uses) == expected_to_seed, uses


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import shuffle",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy as np\nnp.random.default_rng(1)",
        "import numpy\nnumpy.random.seed(1)",
        "import torch\ntorch.manual_seed(1)",
        "import torch\ntorch.randn(3)",
        "import torch\ntorch.randn_like(x)",
        "import torch\ntorch.empty(3).normal_()",
        "weights.uniform_(-1, 1)",
        "from torch import randn as noise\nnoise(3)",
        "def train():\n    import torch\n    torch.normal(0.0, 1.0, (3,))",
    ],
)
def test_the_scan_finds_an_unsafe_generator(source: str) -> None:
    assert unsafe_uses(source)


@pytest.mark.parametrize(
    "source",
    [
        "import secrets\nsecrets.token_bytes(32)",
        "import torch\ntorch.randn(3, generator=source)",
        "weights.normal_(generator=source)",
        "class UnsafeNoise:\n    def draw(self):\n        import numpy as np\n        return np.random.default_rng(0)",
    ],
)
def test_the_scan_accepts_the_operating_system_an_injected_generator_and_an_unsafe_name(source: str) -> None:
    assert unsafe_uses(source) == []


# --- near masks and noise ----------------------------------------------------------------------------------

MASKS = sorted([*(ROOT / "shared" / "crypto").glob("*.py"), *(ROOT / "shared" / "secagg").glob("*.py")])


def test_masks_and_keys_know_no_generator_of_numpy_or_torch() -> None:
    """Not even an injected one: numpy adds and subtracts there, torch is not imported at all."""
    for path in MASKS:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        imported = {
            alias.name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not {"random", "default_rng", "Generator", "RandomState"} & names, path
        assert not {"random", "torch"} & imported, path


def test_production_takes_its_entropy_from_the_operating_system() -> None:
    assert inspect.signature(open_epoch).parameters["entropy"].default is os.urandom
    assert KeyedRound.__dataclass_fields__["_entropy"].default is os.urandom


def foreign_entropy(source: str) -> list[int]:
    """Lines that choose an entropy source instead of handing on their own."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    given = [(call.lineno, item.value) for call in calls for item in call.keywords if item.arg == "entropy"]
    return [line for line, value in given if ast.unparse(value) not in ("entropy", "self._entropy")]


def test_only_tests_choose_another_source_of_entropy() -> None:
    for path in [*SOURCES, *(ROOT / "simulation").rglob("*.py")]:
        assert foreign_entropy(path.read_text()) == [], path
    assert foreign_entropy("open_epoch(context, key, entropy=zeros)") == [1]
