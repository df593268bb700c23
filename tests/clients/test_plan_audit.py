"""A department audits its own installation with the numbers of a plan that it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clients.enrol import CONFIG_FILE
from clients.training.audit.run import AuditResult
from server.plans import sign_plan
from shared.attack_audit import ATTACK_AUDIT_FILE, open_attack_audits
from shared.codec import encode, load_json
from shared.identity import DepartmentId, IdentityKey, Signed
from tests.city import City, open_city
from tests.command_line import Run


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    with open_city(tmp_path_factory.mktemp("city")) as opened:
        yield opened


def config(city: City) -> str:
    return str(city.world.folder / "police" / CONFIG_FILE)


def plan_file(folder: Path, signed: Signed) -> str:
    (folder / "run.plan").write_bytes(encode(signed))
    return str(folder / "run.plan")


def test_a_plan_is_audited_through_the_installed_code_without_rows_or_journal(
    run: Run, city: City, tmp_path: Path
) -> None:
    """The rows are gone, and the journal is in use by the node."""
    department = city.world.departments[DepartmentId("police")]
    Path(department.binding.source.path).unlink()
    before = department.declaration, city.world.participants[department.name].memory.journal.head
    out = tmp_path / "report"
    ended = run("privacy-audit", config(city), plan_file(tmp_path, city.world.signed_plan), "--out", str(out), "--json")
    assert (ended.code, ended.err) == (0, "")
    result = msgspec.json.decode(ended.out, type=AuditResult)
    assert ended.out.encode() == (out / "audit.json").read_bytes()
    assert result.failures == ()
    plan, (reference, own) = city.world.plan, result.claims
    assert (result.name, reference.claim.epsilon) == (plan.name, 1.0)
    assert own.claim.epsilon == plan.privacy.budget.epsilon
    assert own.claim.privacy.noise_multiplier == plan.privacy.noise_multiplier
    assert own.claim.steps == plan.privacy.steps * plan.attempts
    assert own.bound.ceiling > 4
    assert (result.inversion.informative, result.inversion.holds) == (True, True)
    assert "Lower bound on epsilon" in (out / "audit.html").read_text()
    signed = load_json((out / ATTACK_AUDIT_FILE).read_bytes(), Signed, where="audit")
    (audit,) = open_attack_audits([signed], plan=plan, keys={"police": department.identity.public})
    assert [(item.epsilon, item.lower_bound) for item in audit.claims] == [
        (item.claim.epsilon, item.bound.epsilon) for item in result.claims
    ]
    assert before == (department.declaration, city.world.participants[department.name].memory.journal.head)


def test_p4_a_plan_that_is_not_the_authoritys_or_not_for_this_package_is_not_audited(
    run: Run, city: City, tmp_path: Path
) -> None:
    forged = sign_plan(city.world.plan, IdentityKey.generate())
    foreign = msgspec.structs.replace(city.world.plan, package_digest="0" * 64)
    for signed, code in ((forged, "signature-invalid"), (sign_plan(foreign, city.world.authority), "package-foreign")):
        ended = run("privacy-audit", config(city), plan_file(tmp_path, signed), "--out", str(tmp_path / "report"))
        assert ended.code == 7
        assert code in ended.err
        assert not (tmp_path / "report").exists()
