"""``cityfed-sim audit`` from the outside."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clients.training.audit.page import lines
from clients.training.audit.run import AuditResult
from tests.command_line import Run

SMALL = (
    *("--set", "model.architecture=hashed-words"),
    *("--set", "rounds=2"),
    *("--set", "spare_attempts=0"),
    *("--set", "name=small"),
)


def test_an_audit_writes_its_report_and_prints_what_it_found(run: Run, tmp_path: Path) -> None:
    ended = run("audit", *SMALL, "--json")
    folder = tmp_path / "runs" / "small-audit"
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.encode() == (folder / "audit.json").read_bytes()
    result = msgspec.json.decode(ended.out, type=AuditResult)
    assert [item.claim.steps for item in result.claims] == [300, 40]
    assert result.failures == ()
    for words in ("Lower bound on epsilon", "A diagnostic, not a bound", "An audit can refute a claim"):
        assert words in (folder / "audit.html").read_text()
        assert words in (folder / "audit.md").read_text()
    reference, plan, *_ = lines(result)
    assert reference.startswith("reference: claim epsilon 1 at delta 1e-5, lower bound ")
    assert "ceiling 6.24" in reference
    assert plan.startswith("plan: claim epsilon 1 at delta 1e-4, lower bound ")


def test_a_wrong_setting_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    ended = run("audit", "--set", "privacy.epsilon=-1")
    assert ended.code == 2
    assert "epsilon" in ended.sentence
    assert not (tmp_path / "runs").exists()
