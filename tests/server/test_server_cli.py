"""``cityfed-server`` from the outside, and both sides' receipts against each other's journal (P5)."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

import clients.cli
import server.cli
from shared.journal import Journal, verify_journal
from tests.city import FOUR, open_city
from tests.command_line import Run, runner


@pytest.fixture
def server_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(server.cli.main, capsys, monkeypatch)


@pytest.fixture
def client_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(clients.cli.main, capsys, monkeypatch)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world after a clean run, its journals closed."""
    folder = tmp_path_factory.mktemp("ran")
    with open_city(folder) as city:
        city.run()
    return folder / "world"


@pytest.fixture
def world(ran: Path, tmp_path: Path) -> Path:
    """A copy of that world that a test may damage."""
    return Path(shutil.copytree(ran, tmp_path / "world"))


def cut(journal: Path, keep: int) -> None:
    """Delete the tail as somebody with the disk in hand would: triggers away, rows away, triggers back."""
    database = sqlite3.connect(journal, isolation_level=None)
    triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        database.execute(f"DROP TRIGGER {name}")
    database.execute("DELETE FROM entry WHERE sequence > ?", (keep,))
    for _, sql in triggers:
        database.execute(sql)
    database.close()


def test_p5_the_authoritys_receipts_verify_every_departments_journal(
    world: Path, tmp_path: Path, server_run: Run, client_run: Run
) -> None:
    heads = tmp_path / "heads.jsonl"
    heads.write_text(server_run("audit", "receipts", world / "authority" / "journal.sqlite").out)
    lines = [json.loads(line) for line in heads.read_text().splitlines()]
    assert sorted(line["owner"] for line in lines) == sorted(
        FOUR * 5
    )  # each round as signed and as countersigned, and the run
    for name in FOUR:
        ended = client_run("audit", "verify", world / name / "client.toml", "--receipts", heads)
        assert ended.code == 0
        assert ended.out.endswith("5 receipts: in order.\n")
        newest = max(line["sequence"] for line in lines if line["owner"] == name)
        assert verify_journal(world / name / "journal.sqlite", owner=name).entries == newest


def test_p5_every_departments_receipts_verify_the_authoritys_journal(
    world: Path, tmp_path: Path, server_run: Run, client_run: Run
) -> None:
    receipts = tmp_path / "receipts.jsonl"
    receipts.write_text("".join(client_run("audit", "receipts", world / name / "client.toml").out for name in FOUR))
    ended = server_run("audit", "verify", world / "authority" / "journal.sqlite", "--receipts", receipts, "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["entries"] == 7
    plain = server_run("audit", "verify", world / "authority" / "journal.sqlite", "--receipts", receipts)
    assert plain.out.endswith("8 receipts: in order.\n")


def test_p5_a_departments_cut_journal_is_found_with_the_authoritys_receipts_and_not_without(
    world: Path, tmp_path: Path, server_run: Run, client_run: Run
) -> None:
    heads, journal = tmp_path / "heads.jsonl", world / "police" / "journal.sqlite"
    heads.write_text(server_run("audit", "receipts", world / "authority" / "journal.sqlite").out)
    cut(journal, verify_journal(journal, owner="police").entries - 1)
    assert client_run("audit", "verify", world / "police" / "client.toml").code == 0
    ended = client_run("audit", "verify", world / "police" / "client.toml", "--receipts", heads)
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-behind-receipt]")


def test_p5_the_authoritys_cut_journal_is_found_with_any_departments_receipts(
    world: Path, tmp_path: Path, server_run: Run, client_run: Run
) -> None:
    receipts, journal = tmp_path / "receipts.jsonl", world / "authority" / "journal.sqlite"
    receipts.write_text(client_run("audit", "receipts", world / "health" / "client.toml").out)
    cut(journal, json.loads(receipts.read_text().splitlines()[-1])["sequence"] - 1)
    assert server_run("audit", "verify", journal).code == 0
    ended = server_run("audit", "verify", journal, "--receipts", receipts)
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-behind-receipt]")


def test_p5_one_changed_byte_is_found_by_anyone(world: Path, server_run: Run) -> None:
    journal = world / "authority" / "journal.sqlite"
    database = sqlite3.connect(journal, isolation_level=None)
    database.execute("DROP TRIGGER no_update")
    database.execute("UPDATE entry SET body = zeroblob(length(body)) WHERE sequence = 2")
    database.close()
    ended = server_run("audit", "verify", journal)
    assert ended.code == 9
    assert "breaks at entry 2" in ended.sentence
    assert ended.sentence.endswith("[journal-chain-broken]")


def test_the_authoritys_log_is_shown_line_by_line(world: Path, server_run: Run) -> None:
    lines = [
        json.loads(line)
        for line in server_run("audit", "show", world / "authority" / "journal.sqlite").out.splitlines()
    ]
    shown = [line["kind"] for line in lines]
    assert shown[0] == "run-opened"
    assert shown[-1] == "run-ended"
    assert shown.count("round-closed") == shown.count("round-countersigned") == 2


def test_the_authority_learns_no_reason_and_no_number_of_rows(world: Path, server_run: Run) -> None:
    shown = server_run("audit", "show", world / "authority" / "journal.sqlite").out
    shown = re.sub(
        r"[A-Za-z0-9+/]{40,}", "", shown
    )  # signed bytes in base64, in which any short word turns up by chance
    for word in ("R06", "R12", "epsilon", "rows", "description"):
        assert word not in shown


@pytest.mark.parametrize("command", ["verify", "show", "receipts"])
def test_a_journal_that_is_not_there_is_one_sentence_and_none_is_made(
    tmp_path: Path, server_run: Run, command: str
) -> None:
    ended = server_run("audit", command, tmp_path / "nowhere.sqlite")
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-missing]")
    assert list(tmp_path.iterdir()) == []


def test_the_journal_is_read_while_a_run_holds_it(world: Path, server_run: Run) -> None:
    path = world / "authority" / "journal.sqlite"
    told = {command: server_run("audit", command, path).out for command in ("verify", "show", "receipts")}
    assert all(told.values())
    with Journal.open(path, owner="authority"):
        assert {command: server_run("audit", command, path).out for command in told} == told


def test_a_departments_journal_is_not_the_authoritys(world: Path, server_run: Run) -> None:
    ended = server_run("audit", "verify", world / "police" / "journal.sqlite")
    assert ended.code == 9
    assert ended.sentence.endswith("[journal-chain-broken]")


def test_p3_the_budget_after_a_clean_end_is_what_the_rounds_cost(world: Path, client_run: Run) -> None:
    status = json.loads(client_run("budget", world / "police" / "client.toml", "--json").out)
    assert status["runs"] == 1
    assert 0 < status["spent_epsilon"] == status["reserved_epsilon"] < 2.0
    (charge,) = [json.loads(line) for line in client_run("export", world / "police" / "client.toml").out.splitlines()]
    assert (charge["attempts_reserved"], charge["attempts_burned"], charge["settled"]) == (3, 2, True)
    assert charge["counted_steps"] == charge["steps_per_attempt"] * 2
