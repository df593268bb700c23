"""Hand out the model of a completed run: the file, what is signed about it, and its card (promise P4)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

from server.audit import OWNER
from server.card import released_card
from server.city import load_city, load_plan_key
from server.home import AuthorityHome
from server.office import open_office
from server.records import RoundDone, RoundFailed, RunEnded
from server.runs import RunFolder, run_folder
from shared.codec import Record, decode, dump_json
from shared.errors import ConfigError, JournalError, ModelError
from shared.identity import sign_record
from shared.journal import EntryKind, Journal
from shared.model_file import MODEL_FILE, file_digest, read_model
from shared.parameters import model_hash
from shared.plan import Plan, accept_plan
from shared.privacy.statement import privacy_statement
from shared.private_files import make_private_folder, replace_private_file
from shared.release import CARD_FILE, RECORD_FILE, RELEASE_LABEL, ModelRelease


class ModelReleased(Record, frozen=True, kw_only=True):
    """Body of ``model-released``: whose model was put on the shelf, and which file it is."""

    run: bytes
    file_sha256: str


def release_model(home: AuthorityHome, run: str, out: Path) -> ModelRelease:
    """Write a completed run's model, the signed record about it, and its card.

    Args:
        home: the authority's home.
        run: the run's id in hex, or its first digits.
        out: folder to write to; made if it does not exist, and only its three files are replaced.

    Raises:
        ConfigError: ``run-unknown``, ``run-ambiguous``, ``run-not-completed``; the home is not in order.
        ProtocolError: the run's plan does not verify.
        JournalError: the authority's journal does not verify, or knows no such run; ``run-unfinished``.
        ModelError: ``model-missing``, ``model-corrupt``, ``model-changed``.
        SetupError: ``home-not-writable``.

    Guarantees:
        What is signed is the model of the account that the departments countersigned in the last round.
    """
    release, files = _release(home, run)
    _write(out, files)
    return release


def put_on_shelf(home: AuthorityHome, run: str, *, now: dt.datetime) -> ModelRelease:
    """Show a completed run's model to every department; doing it again changes no file.

    Args:
        home: the authority's home.
        run: the run's id in hex, or its first digits.
        now: the present time, UTC.

    Raises:
        ConfigError: as :func:`release_model`.
        ProtocolError: as :func:`release_model`.
        JournalError: as :func:`release_model`; the release could not be noted, and nothing is shown then.
        ModelError: as :func:`release_model`.
        SetupError: ``home-not-writable``.
    """
    release, files = _release(home, run)
    with open_office(home) as office:
        noted = ModelReleased(run=release.run, file_sha256=release.file_sha256)
        office.journal.append(EntryKind.MODEL_RELEASED, noted, now=now)
    _write(home.released / release.run.hex(), files)
    return release


def _release(home: AuthorityHome, run: str) -> tuple[ModelRelease, dict[str, bytes]]:
    """Return what is signed about a completed run's model, and the three files."""
    folder = run_folder(home, run)
    if folder.status().state != "completed":
        raise ConfigError("run-not-completed", f"The run in {folder.path} has not been completed: it has no model.")
    plan = accept_plan(folder.submitted().plan, load_city(home).plan_key)
    rounds, finished = _finished_rounds(home, plan)
    release, data = _describe(folder, plan, rounds)
    record = sign_record(load_plan_key(home), RELEASE_LABEL, release)
    return release, {
        MODEL_FILE: data,
        RECORD_FILE: dump_json(record),
        CARD_FILE: released_card(release, plan, finished=finished).encode(),
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that were not there, or replace them one by one."""
    make_private_folder(folder)
    for name, content in files.items():
        replace_private_file(folder / name, content)


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
