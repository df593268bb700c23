"""The commands at a department's desk: plans, what it tells of its data, and its policy."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clients.config import load_department, read_signed
from clients.policy_file import sign_policy_file
from shared.errors import ConfigError
from shared.identity import Signed
from shared.keystore import save_identity
from tests.clients.plan_desk import DPO, IT, STEWARD, Desk
from tests.command_line import Run


def test_the_commands_add_list_inspect_approve_and_refuse(run: Run, desk: Desk, tmp_path: Path) -> None:
    handed = tmp_path / "handed.plan"
    desk.file.rename(handed)
    assert run("plan", "list", desk.config).out == "There is no plan.\n"
    assert run("plan", "add", desk.config, handed).out == f"{desk.digest}\n"
    assert read_signed(handed) == read_signed(desk.file)
    out = run("plan", "inspect", desk.config, desk.digest).out
    for word in ("purpose       emergency-triage", "learns request from description", "public size   90", "R10", "R12"):
        assert word in out
    assert "recipients    cohort, central-authority; nobody in another country" in out
    assert f"{desk.plan.attempts} encrypted updates of {4 * desk.plan.layout.total_size} bytes" in out
    ended = run("plan", "approve", desk.config, desk.digest, "--person", STEWARD)
    assert ended.out == f"{STEWARD} approved small. It needs a steward and IT, one of them not its author.\n"
    assert run("plan", "approve", desk.config, desk.digest, "--person", IT).out.endswith("It may run.\n")
    shown = json.loads(run("plan", "inspect", desk.config, desk.digest, "--json").out)
    assert [item["ok"] for item in shown["decision"]["findings"]] == [True] * len(shown["decision"]["findings"])
    assert run("plan", "refuse", desk.config, desk.digest, "--person", DPO, "--reason", "why").code == 0
    assert "refused by    police-dpo" in run("plan", "inspect", desk.config, desk.digest).out
    (line,) = json.loads(run("plan", "list", desk.config, "--json").out)
    assert line["state"] == "refused"
    assert "refused" in run("plan", "list", desk.config).out


def test_a_file_that_is_no_plan_is_one_sentence(run: Run, desk: Desk, tmp_path: Path) -> None:
    for file, code, reason in ((tmp_path / "nowhere", 2, "file-missing"), (desk.config, 7, "message-malformed")):
        ended = run("plan", "add", desk.config, file)
        assert (ended.code, ended.sentence.endswith(f"[{reason}]")) == (code, True)


def test_a_summary_tells_public_facts_only(run: Run, desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "summary.json"
    assert run("data", "declare", desk.config, "--out", out).code == 0
    signed = msgspec.json.decode(out.read_bytes(), type=Signed)
    told = msgspec.msgpack.decode(signed.body)
    assert set(told) == {
        "version", "city", "department", "dataset", "contract_hash", "public_size", "package_digest",
    }  # fmt: skip
    declaration = load_department(desk.config).declaration
    assert told["public_size"] == declaration.public_size != declaration.units


def test_the_policy_is_written_and_signed_by_its_owner(run: Run, desk: Desk, tmp_path: Path) -> None:
    policy, key = desk.config.with_name("policy.toml"), tmp_path / "owner.key"
    ended = run("policy", "draft", desk.config, "police")
    assert (ended.code, ended.sentence.endswith("[policy-exists]")) == (2, True)
    policy.rename(tmp_path / "mine.toml")
    ended = run("policy", "draft", desk.config, "nobody")
    assert (ended.code, ended.sentence.endswith("[template-unknown]")) == (2, True)
    assert run("policy", "draft", desk.config, "police").code == 0
    assert "plan_key_fingerprint" in policy.read_text()
    public = run("policy", "owner-key", key).out.strip()
    assert len(public) == 64
    ended = run("policy", "sign", desk.config, "--key", key)
    assert (ended.code, ended.sentence.endswith("[key-foreign]")) == (2, True)
    save_identity(tmp_path / "right.key", desk.city.policy_owners["police"])
    assert run("policy", "sign", desk.config, "--key", tmp_path / "right.key").code == 0
    policy.write_text(policy.read_text().replace('department = "police"', 'department = "health"'))
    with pytest.raises(ConfigError) as caught:
        sign_policy_file(desk.config, tmp_path / "right.key")
    assert caught.value.code == "policy-department"
