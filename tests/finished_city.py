"""A city on disk whose approved plan has run to its end, with the folder of the run as the authority keeps it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

import msgspec

from clients.config import load_config, load_department, open_journal
from clients.participant import Participant
from clients.training.noise import UnsafeSeededSource
from server.audit import OWNER
from server.city import load_plan_key
from server.coordinator import Coordinator
from server.home import AuthorityHome
from server.plan_files import load_published
from server.release import write_model
from server.results import RunResult
from server.roster import load_members
from server.runs import RunFolder, RunStatus, Submitted
from shared.attack_audit import ATTACK_AUDIT_FILE, ATTACK_AUDIT_LABEL, AttackAudit, AuditedClaim
from shared.codec import dump_json
from shared.identity import sign_record
from shared.journal import Journal
from shared.keystore import load_identity
from shared.model_file import MODEL_FILE, read_model
from shared.plan import Plan
from shared.supervise import process_status
from simulation.network import InMemoryTransport
from tests.deployed_city import DeployedCity, now


def run_published(
    city: DeployedCity, digest: str, *, without: Collection[str] = (), coordinator: type[Coordinator] = Coordinator
) -> RunResult:
    """Run a published plan over memory; whoever is ``without`` is never asked."""
    home = city.authority
    signed, plan = load_published(home, digest)
    members = load_members(home)
    with ExitStack() as stack:
        participants = {}
        for name in members.roster.ordered():
            if name not in without:
                journal = stack.enter_context(open_journal(city.config(name)))
                source = UnsafeSeededSource(sum(name.encode()))
                department = load_department(city.config(name))
                participants[name] = Participant(department, journal=journal, source=source, clock=now)
        running = coordinator(
            plan=plan,
            signed_plan=signed,
            signed_roster=members.signed,
            authority=load_plan_key(home),
            transport=InMemoryTransport({name: item.handle for name, item in participants.items()}),
            journal=stack.enter_context(Journal.open(home.journal, owner=OWNER)),
            clock=now,
        )
        return running.run(read_model(home.model(plan.initial_model_sha256), plan.layout))


def file_run(city: DeployedCity, digest: str, result: RunResult) -> RunFolder:
    """Write the folder of a completed run."""
    signed, plan = load_published(city.authority, digest)
    folder = RunFolder(city.authority.runs / plan.run_id().hex())
    folder.submit(Submitted(plan=signed, nodes={}), process=process_status(os.getpid()), now=now())
    write_model(folder.path / MODEL_FILE, result.model, plan)
    folder.write(RunStatus(state="completed", process=process_status(os.getpid()), since=now()))
    return folder


def attack_audit(city: DeployedCity, signer: str, plan: Plan, folder: Path, **changes: object) -> Path:
    """A passed audit as a department signs it; that the command makes such a file is tested with the command."""
    claims = tuple(
        AuditedClaim(name=name, epsilon=epsilon, lower_bound=epsilon / 3, ceiling=6.0)
        for name, epsilon in (("reference", 1.0), ("plan", plan.privacy.budget.epsilon))
    )
    audit = AttackAudit(
        department=signer,
        plan_digest=plan.digest(),
        package_digest=plan.package_digest,
        claims=claims,
        failures=(),
    )
    identity = load_identity(city.home(signer) / load_config(city.config(signer)).identity)
    signed = sign_record(identity, ATTACK_AUDIT_LABEL, msgspec.structs.replace(audit, **changes))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{signer}-{ATTACK_AUDIT_FILE}"
    path.write_bytes(dump_json(signed))
    return path


def copied(city: DeployedCity, folder: Path) -> DeployedCity:
    """A copy of the whole city that a test may damage."""
    shutil.copytree(city.folder, folder)
    return DeployedCity(folder, AuthorityHome(folder / "authority"), city.policy_owners)
