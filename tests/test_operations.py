"""Every command of docs/operations.md, in its order, for four departments: from nothing to a run, and out again."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

import clients.cli
import server.cli
from clients.config import load_config, open_journal
from server.city import load_server_tls
from server.home import AuthorityHome
from server.roster import load_members
from server.shelf import Shelf
from shared.certificates import load_tls_key
from shared.identity import DepartmentId
from tests.city import FOUR, binding_of
from tests.command_line import Ended, Run, runner
from tests.deployed_city import SMALL_ASK, DeployedCity, now
from tests.finished_city import file_run, run_published
from tests.secret_watch import leaks

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
BLOCK = re.compile(r"^```sh( each)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
FINGERPRINT = re.compile(r"(?:[0-9a-f]{4} ){7}[0-9a-f]{4}")


@dataclass
class Afternoon:
    """One folder in which both offices work, and what people wrote down."""

    folder: Path
    programs: dict[str, Run]
    notes: dict[str, str] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    shelves: list[Shelf] = field(default_factory=list)
    """The one that `cityfed-server up` would run, once the city is founded."""

    @property
    def home(self) -> AuthorityHome:
        return AuthorityHome(self.folder / "authority")

    def config(self, name: str) -> Path:
        return self.folder / name / "client.toml"

    def run(self, line: str, name: str) -> None:
        """Run one line as a department's people would, after what they do by hand, and write down what it prints."""
        if name:
            line = line.replace("transport", name).replace("$TRANSPORT", f"${name.upper()}")
            self.notes["OWNER"] = self.notes.get(f"OWNER-{name}", "")
        self.prepare(line, name)
        line = line.replace("--host fl.metropolis.example", "--host localhost")  # where the shelf of this test is
        words = [re.sub(r"\$([A-Z]+)", lambda match: self.notes[match[1]], word) for word in shlex.split(line)]
        words, target = (words[:-2], words[-1]) if ">" in words else (words, "")
        program, *arguments = words
        ended = self.programs[program](*(self.scenario() if word == SCENARIO else word for word in arguments))
        assert ended.code == 0, (line, ended.err)
        if target:
            (self.folder / target).write_text(ended.out)
        self.learn(line, name, ended)
        self.collect()

    def prepare(self, line: str, name: str) -> None:
        """What the page leaves to people: a binding, a policy that fits so small a data set, texts to score."""
        if "policy draft" in line:
            source = binding_of(name)
            shutil.copy(source, self.folder / name / "binding.toml")
            shutil.copy(source.with_suffix(".csv"), self.folder / name)
        if " predict " in line:
            shutil.copy(binding_of(name).with_suffix(".csv"), self.folder / "new-reports.csv")
        if "policy sign" in line:
            policy = self.folder / name / "policy.toml"
            policy.write_text(re.sub(r"(minimum_\w+) = 150", r"\1 = 50", policy.read_text()))

    def learn(self, line: str, name: str, ended: Ended) -> None:
        """What people write down or read out."""
        if "city init" in line:
            self.notes["CITY"] = FINGERPRINT.findall(ended.out)[0]
            tls = load_server_tls(self.home, now=now())
            self.shelves.append(Shelf(self.home, "127.0.0.1:0", tls))
        if "owner-key" in line:
            self.notes[f"OWNER-{name}"] = ended.out.strip()
        if " enrol " in line:
            DeployedCity(self.folder, self.home, {}).edit_config(name, shelf=f"localhost:{self.shelves[0].port}")
            self.notes[name.upper()] = FINGERPRINT.findall(ended.out)[0]
            self.notes["ALL"] = " ".join(self.notes[known.upper()] for known in FOUR if known.upper() in self.notes)
        if "plan draft" in line:
            self.notes["DIGEST"] = ended.out.splitlines()[-1]
        if "plan approve" in line and line.endswith("-it"):
            assert ended.out.endswith("It may run.\n")

    def collect(self) -> None:
        """Keep a copy of every file that leaves an office, as it is now."""
        patterns = ("authority/city.json", "authority/roster.msgpack", "authority/plans/published/*", "*.json")
        for pattern in (*patterns, "*/enrolment-request.json"):
            for path in self.folder.glob(pattern):
                content = path.read_bytes()
                inside = msgspec.json.decode(content).get("body", "") if path.suffix == ".json" else ""
                self.sent[f"{path.relative_to(self.folder)} {len(self.sent)}"] = content + base64.b64decode(inside)

    def scenario(self) -> str:
        """A plan as the packaged scenario, small enough for the fixture and without base weights."""
        path = self.folder / "small.toml"
        path.write_bytes(msgspec.toml.encode(msgspec.to_builtins(SMALL_ASK)))
        return str(path)


SCENARIO = "emergency-triage"


@pytest.fixture
def afternoon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Afternoon]:
    monkeypatch.chdir(tmp_path)
    programs = {
        "cityfed-client": runner(clients.cli.main, capsys, monkeypatch),
        "cityfed-server": runner(server.cli.main, capsys, monkeypatch),
    }
    afternoon = Afternoon(tmp_path, programs)
    yield afternoon
    for shelf in afternoon.shelves:
        shelf.stop()


def private_keys(folder: Path) -> set[bytes]:
    """Every private key of both offices, as raw bytes and as the file that holds it."""
    found: set[bytes] = set()
    for path in (item for item in folder.rglob("*") if item.is_file() and re.search(r"\.key|secret", item.name)):
        content = path.read_bytes()
        found.add(content)
        if path.name in {"tls.key", "ca.key", "server.key"}:
            found.add(load_tls_key(path).private.private_numbers().private_value.to_bytes(32, "big"))
    return found


def run_plan(afternoon: Afternoon) -> int:
    """Run the approved plan with the homes that the commands made; returns the number of rounds."""
    city = DeployedCity(afternoon.folder, afternoon.home, {})
    digest = afternoon.notes["DIGEST"]
    result = run_published(city, digest)
    afternoon.notes["RUN"] = file_run(city, digest, result).path.name
    assert result.model.any()  # it started at zero
    return len(result.rounds)


def split_page() -> Iterator[list[tuple[str, str]]]:
    """The page up to the approvals, and the rest."""
    text = PAGE.read_text()
    middle = text.index("## 8.")
    yield BLOCK.findall(text[:middle])
    yield BLOCK.findall(text[middle:])


def test_the_page_leads_from_nothing_to_a_run_and_no_private_key_leaves(afternoon: Afternoon) -> None:
    before, after = split_page()
    for each, text in before:
        for name in FOUR if each else ("",):
            for line in text.splitlines():
                afternoon.run(line, name)
    assert run_plan(afternoon) == SMALL_ASK.rounds
    for name in FOUR:
        assert "0.0000 of" not in afternoon.programs["cityfed-client"]("budget", afternoon.config(name)).out
    old = private_keys(afternoon.folder)
    for each, text in after:
        for name in FOUR if each else ("",):
            for line in text.splitlines():
                afternoon.run(line, name)
    assert set(load_members(afternoon.home).roster.members) == {"environment", "health", "police"}
    secrets = old | private_keys(afternoon.folder)
    assert len(secrets) > 4 * 4 + 5
    assert len(afternoon.sent) > 20
    assert leaks(secrets, afternoon.sent) == set()


def test_a_department_that_did_not_approve_is_missing_from_the_run(afternoon: Afternoon) -> None:
    """The same page without the last approval of one department: refused there by R10, and the others go on."""
    before, _ = split_page()
    for each, text in before:
        for name in FOUR if each else ("",):
            for line in text.splitlines():
                if not (name == "police" and line.endswith("-it")):
                    afternoon.run(line, name)
    assert run_plan(afternoon) == SMALL_ASK.rounds
    with open_journal(afternoon.config("police")) as journal:
        kinds = [entry.kind for entry in journal.entries()]
    assert "refusal" in kinds
    assert "step-answered" not in kinds
    assert load_config(afternoon.config("police")).department == DepartmentId("police")


def test_every_code_of_the_page_is_one_that_the_code_raises() -> None:
    table = PAGE.read_text().partition("What a refusal means")[2]
    codes = re.findall(r"^\| `([a-z-]+)`[ ,|]", table, re.MULTILINE)
    sources = [*(PAGE.parents[1] / name for name in ("shared", "policies", "clients", "server"))]
    text = "".join(path.read_text() for folder in sources for path in folder.rglob("*.py"))
    assert len(codes) > 15
    assert [code for code in codes if f'"{code}"' not in text] == []
