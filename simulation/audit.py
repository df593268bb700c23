"""``cityfed-sim audit``: from a scenario to a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clients.training.audit.page import HTML_FILE, lines, write_audit
from clients.training.audit.run import AuditResult, run_audit
from shared.plan import ModelSpec
from shared.tasks.features import HASHED_WORDS_SHA256
from simulation.home import Home
from simulation.run import calibrate
from simulation.scenario import Scenario
from simulation.setup import ensure_setup
from simulation.world import now


def audit_scenario(scenario: Scenario, *, home: Home, out: Path, note: Callable[[str], None]) -> AuditResult:
    """Audit the training code with a scenario's numbers, write the report and say what was found.

    Args:
        scenario: its privacy settings, model and device are what is audited; its data is not touched.
        home: where set-up put the base model.
        out: folder of the report.
        note: told one line at a time.

    Raises:
        ConfigError: ``noise-unreachable``, and what the model's preflight refuses.
        SetupError: the base model could not be fetched.
    """
    spec, weights_dir = _model(scenario, home, note)
    result = run_audit(
        scenario.name,
        privacy=calibrate(scenario),
        attempts=scenario.rounds + scenario.spare_attempts,
        spec=spec,
        weights_dir=weights_dir,
        flags=scenario.performance,
        now=now(),
    )
    write_audit(result, out)
    for line in (*lines(result), f"Report: {out / HTML_FILE}"):
        note(line)
    return result


def _model(scenario: Scenario, home: Home, note: Callable[[str], None]) -> tuple[ModelSpec, Path | None]:
    """Return the scenario's model with its base weights pinned."""
    if scenario.model.architecture == "hashed-words":
        return scenario.model.spec(HASHED_WORDS_SHA256), None
    ready = ensure_setup(home, note)
    return scenario.model.spec(ready.weights_sha256), ready.weights_dir
