"""A scenario: one TOML file that says everything about a simulated federation.

It becomes a frozen :class:`Scenario`; an unknown key, a wrong type or an impossible value is one sentence
naming the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from server.asks import PACKAGED, ModelChoice, PlanAsk, PrivacyAsk, packaged_scenario
from shared.codec import Record, load_toml, parse_toml, sha256
from shared.errors import ConfigError
from shared.identity import DEPARTMENT_NAME
from shared.parameters import Label
from shared.plan import (
    LocalOptimizer,
    ReleaseTerms,
    ServerOptimizerSpec,
    TaskSpec,
    require_bound,
    require_rounds,
)
from shared.privacy.extras import require_known
from shared.privacy.plan import PerformanceFlags
from simulation.network import Fault


class ScenarioDepartment(Record, frozen=True, kw_only=True):
    """One department: its files come from set-up, or from a researcher's own binding and policy.

    Attributes:
        binding: path of the binding TOML, relative to the scenario file; empty for the packaged data.
        policy: path of the policy TOML without its ``dataset``, ``contract_hash`` and ``authority``; empty for the
            packaged policy of this department.
    """

    binding: str = ""
    policy: str = ""


class DataSettings(Record, frozen=True, kw_only=True):
    """Where rows come from and how they are split.

    Attributes:
        source: ``emergency-messages`` (fetched by ``cityfed-sim setup``) or ``files`` (own bindings).
        limit: use at most this many messages of each department; 0 means all.
        holdout: share of each department's rows kept for measuring, drawn anew for every seed.
        cache_features: keep encoder features in the home folder between runs.
    """

    source: Literal["emergency-messages", "files"] = "emergency-messages"
    limit: int = 0
    holdout: float = 1 / 3
    cache_features: bool = True

    def __post_init__(self) -> None:
        if self.limit < 0 or (0 < self.limit < 30):
            raise ValueError("`limit` is 0 (all) or at least 30")
        if not 0.05 <= self.holdout <= 0.9:
            raise ValueError("`holdout` lies in [0.05, 0.9]")


class ArmOptimizers(Record, frozen=True, kw_only=True):
    """The local optimiser of each arm, tuned on public messages with one grid and then frozen."""

    federated: LocalOptimizer
    local: LocalOptimizer
    pooled: LocalOptimizer


class Scenario(Record, frozen=True, kw_only=True):
    """A whole simulated study. ``bound`` is R of the encrypted sum; ``seed`` draws splits, never noise.

    ``extras`` are numbers that ride noised in the encrypted sum, by the names of :data:`shared.privacy.extras.KNOWN`.
    """

    name: Label
    purpose: Label
    seed: int = 1
    seeds: int = 10
    rounds: int
    spare_attempts: int = 2
    bound: float = 32.0
    departments: dict[str, ScenarioDepartment]
    data: DataSettings = DataSettings()
    task: TaskSpec = TaskSpec()
    model: ModelChoice = ModelChoice()
    extras: tuple[str, ...] = ()
    privacy: PrivacyAsk
    optimizer: ArmOptimizers
    server_optimizer: ServerOptimizerSpec = ServerOptimizerSpec()
    release: ReleaseTerms = ReleaseTerms()
    performance: PerformanceFlags = PerformanceFlags()
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if not 3 <= len(self.departments) <= 100:
            raise ValueError("`departments` holds 3 to 100 departments")
        for name in self.departments:
            if not DEPARTMENT_NAME.fullmatch(name) or name == "authority":
                raise ValueError("a key of `departments` is a lower-case name such as `transport`, not `authority`")
        if not 1 <= self.seeds <= 1000:
            raise ValueError("`seeds` lies in 1..1000")
        require_rounds(self.rounds, self.spare_attempts)
        require_bound(self.bound)
        require_known(self.extras)
        for optimizer in (self.optimizer.federated, self.optimizer.local, self.optimizer.pooled):
            optimizer.require_acting(self.privacy.steps)
        if any(fault.department not in self.departments for fault in self.faults):
            raise ValueError("`faults` names a department that is not in `departments`")
        if self.privacy.mechanism == "shared-noise" and self.optimizer.federated != LocalOptimizer(learning_rate=1.0):
            raise ValueError(
                'with `mechanism = "shared-noise"` only `server_optimizer` acts: `optimizer.federated` is "sgd" with '
                "`learning_rate` 1"
            )
        if self.data.source == "files" and any(not item.binding for item in self.departments.values()):
            raise ValueError('with `data.source = "files"` every department names its `binding`')
        if self.data.source != "files" and any(item.binding for item in self.departments.values()):
            raise ValueError('a `binding` is read with `data.source = "files"` only')

    def plan_ask(self) -> PlanAsk:
        """Return what the authority of this city asks for: the federated arm's part."""
        asked = {name: getattr(self, name) for name in PlanAsk.__struct_fields__}
        return PlanAsk(**asked | {"optimizer": self.optimizer.federated})

    def digest(self) -> str:
        """Return the hash by which an interrupted run recognises its own scenario."""
        return sha256(b"scenario", msgspec.json.encode(self)).hex()


def load_scenario(name_or_path: str, overrides: tuple[str, ...] = ()) -> tuple[Scenario, Path]:
    """Load a packaged scenario by name, or a TOML file by path.

    Args:
        name_or_path: for example ``emergency-triage`` or ``studies/mine.toml``.
        overrides: ``dotted.key=value`` pairs, the value in TOML notation (a bare word is a string).

    Returns:
        The scenario, and the folder against which its relative paths count.

    Raises:
        ConfigError: ``scenario-missing``, ``scenario-unreadable``, ``toml-syntax``, ``override-malformed``,
            ``toml-content``.
    """
    if name_or_path in PACKAGED:
        text, folder, where = packaged_scenario(name_or_path), Path.cwd(), f"Scenario {name_or_path}"
    else:
        path = Path(name_or_path)
        if not path.is_file():
            known = ", ".join(PACKAGED)
            raise ConfigError("scenario-missing", f"There is no scenario {name_or_path}: give a TOML file or {known}.")
        text, folder, where = _read(path), path.parent, f"Scenario {path}"
    if overrides:
        text = _override(text, overrides, where)
    return load_toml(text, Scenario, where=where), folder


def _read(path: Path) -> str:
    """Read a scenario file."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError("scenario-unreadable", f"{path} cannot be read as UTF-8 text.") from cause


def _override(text: str, overrides: tuple[str, ...], where: str) -> str:
    """Apply ``key=value`` pairs to the TOML tree; strict decoding afterwards names a wrong key."""
    tree = parse_toml(text, where=where)
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not all(key.split(".")):
            raise ConfigError("override-malformed", f"--set {item} is not of the form key=value.")
        *parents, last = key.split(".")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ConfigError("override-malformed", f"--set {item}: `{key}` does not lead to a setting.")
        node[last] = _toml_value(value)
    return tomli_w.dumps(tree)


def _toml_value(text: str) -> object:
    """Read a value in TOML notation; anything that is none is a string."""
    try:
        return parse_toml(f"value = {text}", where="The value")["value"]
    except ConfigError:
        return text
