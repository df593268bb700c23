"""Hand out the model of a completed run: the file, what is signed about it, and its card (promise P4)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from server.audit import OWNER
from server.card import released_card
from server.city import load_city, load_plan_key
from server.home import AuthorityHome
from server.office import open_office
from server.records import ModelReleased, RoundDone, RoundFailed, RunEnded
from server.roster import load_members
from server.runs import RunFolder, run_folder
from shared.attack_audit import ATTACK_AUDIT_FILE, open_attack_audits
from shared.codec import MAX_FILE_BYTES, decode, dump_json, load_json
from shared.errors import ConfigError, JournalError, ModelError
from shared.files import read_file
from shared.identity import DepartmentId, Signed, sign_record
from shared.journal import EntryKind, Journal
from shared.model_file import MODEL_FILE, file_digest, read_model
from shared.parameters import Label, model_hash
from shared.plan import Plan, accept_plan
from shared.privacy.statement import privacy_statement
from shared.private_files import make_private_folder, replace_private_file
from shared.release import CARD_FILE, RECORD_FILE, RELEASE_LABEL, ModelRelease


def release_model(
    home: AuthorityHome, run: str, out: Path, *, now: dt.datetime, audits: Sequence[Path] = (), approved_by: str = ""
) -> ModelRelease:
    """Write a completed run's model, the signed record about it, and its card.

    Args:
        home: the authority's home.
        run: the run's id in hex, or its first digits.
        out: folder to write to; made if it does not exist, and only its three files are replaced.
        now: the present time, UTC.
        audits: attack audits of the plan, as `cityfed-client privacy-audit` signs them.
        approved_by: the person who releases the model, if any.

    Raises:
        ConfigError: ``run-unknown``, ``run-ambiguous``, ``run-not-completed``, ``file-missing``, ``json-content``,
            ``audit-missing``, ``approver-name``, ``approver-missing``; the home is not in order.
        ProtocolError: the run's plan does not verify, or an audit: ``audit-foreign``, ``audit-repeated``,
            ``signature-invalid``.
        AuditError: ``audit-failed``.
        JournalError: the authority's journal does not verify, or knows no such run; ``run-unfinished``.
        ModelError: ``model-missing``, ``model-corrupt``, ``model-changed``.
        SetupError: ``home-not-writable``.

    Guarantees:
        What is signed is the model of the account that the departments countersigned in the last round. Nothing is
        signed without what the plan demands, nor before the office's journal says for whom and by whom (R21, R26, R27).
    """
    release, files = _release(home, run, now=now, audits=audits, approved_by=approved_by)
    _write(out, files)
    return release


def put_on_shelf(
    home: AuthorityHome, run: str, *, now: dt.datetime, audits: Sequence[Path] = (), approved_by: str = ""
) -> ModelRelease:
    """Show a completed run's model to the departments that its plan names; doing it again changes no file.

    Args:
        home: the authority's home.
        run: the run's id in hex, or its first digits.
        now: the present time, UTC.
        audits: as for :func:`release_model`.
        approved_by: as for :func:`release_model`.

    Raises:
        CityFedError: as :func:`release_model`.
    """
    release, files = _release(home, run, now=now, audits=audits, approved_by=approved_by)
    _write(home.released / release.run.hex(), files)
    return release


def _release(
    home: AuthorityHome, run: str, *, now: dt.datetime, audits: Sequence[Path], approved_by: str
) -> tuple[ModelRelease, dict[str, bytes]]:
    """Return what is signed about a completed run's model, noted in the office's journal, and the three files."""
    folder = run_folder(home, run)
    if folder.status().state != "completed":
        raise ConfigError("run-not-completed", f"The run in {folder.path} has not been completed: it has no model.")
    plan = accept_plan(folder.submitted().plan, load_city(home).plan_key)
    rounds, finished = _finished_rounds(home, plan)
    signed_audits = tuple(_read_audit(path) for path in audits)
    audited_by = _require_demands(home, plan, signed_audits, approved_by)
    described, data = _describe(folder, plan, rounds)
    released = replace(described, audits=signed_audits, approved_by=approved_by)
    card = released_card(released, plan, finished=finished).encode()
    release = replace(released, card_sha256=file_digest(card))
    note = ModelReleased(
        run=release.run,
        file_sha256=release.file_sha256,
        recipients=plan.release.recipients,
        audited_by=audited_by,
        approved_by=approved_by,
    )
    with open_office(home) as office:
        office.journal.append(EntryKind.MODEL_RELEASED, note, now=now)
    record = sign_record(load_plan_key(home), RELEASE_LABEL, release)
    return release, {
        MODEL_FILE: data,
        RECORD_FILE: dump_json(record),
        CARD_FILE: card,
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that were not there, or replace them one by one."""
    make_private_folder(folder)
    for name, content in files.items():
        replace_private_file(folder / name, content)


def _read_audit(path: Path) -> Signed:
    """Read a signed audit; nothing in it is believed yet."""
    return load_json(read_file(path, max_bytes=MAX_FILE_BYTES), Signed, where=str(path))


def _require_demands(
    home: AuthorityHome, plan: Plan, audits: Sequence[Signed], approved_by: str
) -> tuple[DepartmentId, ...]:
    """Refuse to release without what the approved plan demands; returns the departments whose audit goes with it."""
    opened = open_attack_audits(audits, plan=plan, keys=load_members(home).roster.members)
    if plan.release.attack_audit and not opened:
        raise ConfigError(
            "audit-missing",
            f"The plan {plan.name} demands an attack audit: a department of its cohort makes `{ATTACK_AUDIT_FILE}`.",
        )
    try:
        msgspec.convert(approved_by, Label)
    except msgspec.ValidationError as cause:
        raise ConfigError("approver-name", f"The name of whoever releases the model: {cause}.") from cause
    if plan.release.human_approval and not approved_by.strip():
        raise ConfigError("approver-missing", f"The plan {plan.name} demands that a person releases the model by name.")
    return tuple(DepartmentId(item.department) for item in opened)


def _describe(folder: RunFolder, plan: Plan, rounds: tuple[RoundDone, ...]) -> tuple[ModelRelease, bytes]:
    """Hold the file against the last round's account, and say what is true of it."""
    path = folder.path / MODEL_FILE
    digest = model_hash(read_model(path, plan.layout))
    if digest != rounds[-1].model_hash:
        raise ModelError("model-changed", f"{path} is not the model of the run's last round.")
    data = path.read_bytes()
    release = ModelRelease(
        run=plan.run_id(),
        plan_digest=plan.digest(),
        layout_digest=plan.layout.digest(),
        initial_model_sha256=plan.initial_model_sha256,
        base_weights_sha256=plan.model.base_weights_sha256,
        contributors=tuple(len(item.survivors) for item in rounds),
        model_hash=digest,
        file_sha256=file_digest(data),
        card_sha256="",  # the card says what is signed here
        privacy=privacy_statement(plan),
        terms=plan.release,
    )
    return release, data


def _finished_rounds(home: AuthorityHome, plan: Plan) -> tuple[tuple[RoundDone, ...], dt.datetime]:
    """Return the accounts of the run's finished rounds in order, and when it ended."""
    run, done, ended = plan.run_id(), dict[int, RoundDone](), ""
    with Journal.read(home.journal, owner=OWNER) as journal:
        for entry in journal.entries():
            if entry.kind == EntryKind.ROUND:
                account = decode(entry.body, RoundDone, error=JournalError)
                if account.run == run:
                    done[account.round] = account  # a resumed round is written down again
            elif entry.kind == EntryKind.FAILED:
                failed = decode(entry.body, RoundFailed, error=JournalError)
                if failed.run == run:
                    done.pop(failed.round, None)
            elif entry.kind == EntryKind.ENDED:
                end = decode(entry.body, RunEnded, error=JournalError)
                ended = entry.time if end.run == run and end.status == "completed" else ended
    if not ended or len(done) != plan.rounds:
        raise JournalError("run-unfinished", f"{home.journal} does not say that the run was completed.")
    return tuple(done[number] for number in sorted(done)), dt.datetime.fromisoformat(ended)
