"""The documentation is true of the code: links, sections, exit codes, commands, tests that it names."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

import clients.cli
import server.cli
import simulation.cli
from shared import errors
from shared.plan import default_aggregation
from simulation.scenario import load_scenario

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path
    for folder in ("shared", "policies", "clients", "server", "simulation", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
PROGRAMS = {"cityfed-client": clients.cli.app, "cityfed-server": server.cli.app, "cityfed-sim": simulation.cli.app}
CITED = {"protocol": "protocol.md", "privacy": "privacy.md", "design": "architecture.md"}

CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SECTION = re.compile(r"^#+ (\d+(?:\.\d+)?)\.? ", re.MULTILINE)
# "protocol 3.1", "privacy 2 and 3", "protocol 3.2 and 3.3"; the page may stand as docs/protocol.md, section 4
CITATION = re.compile(
    r"\b(protocol|privacy|design) (\d(?:\.\d)?)(?: (?:and|to) (\d(?:\.\d)?))?(?![\d.]*\d| departments| rounds)"
)
# At the start of a line or of a code span.
COMMAND_LINE = re.compile(r"(?:^ *|`)(cityfed-(?:client|server|sim)(?: [^`\n]*)?)", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return CODE_BLOCK.sub("", path.read_text())


def anchor(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return plain.strip().replace(" ", "-")


def sections(page: str) -> set[str]:
    return set(SECTION.findall((ROOT / "docs" / page).read_text()))


def families() -> Iterator[type[errors.CityFedError]]:
    yield errors.CityFedError
    yield from errors.CityFedError.__subclasses__()


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_resolves(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if "://" in target:
            continue
        file, _, part = target.partition("#")
        resolved = (path.parent / file).resolve() if file else path
        assert resolved.exists(), target
        assert resolved.is_relative_to(ROOT), target
        if part:
            assert part in {anchor(heading) for heading in HEADING.findall(resolved.read_text())}, target


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text())}
    assert {path for path in PAGES if path.is_relative_to(ROOT / "docs") and path != index} <= linked


def test_the_normative_pages_have_their_numbered_sections() -> None:
    assert {str(number) for number in range(1, 9)} | {"3.1", "3.2", "3.3", "3.4"} <= sections("protocol.md")
    assert {str(number) for number in range(1, 9)} <= sections("privacy.md")


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=name_of)
def test_every_cited_section_exists(path: Path) -> None:
    for page, *numbers in CITATION.findall(path.read_text()):
        for number in filter(None, numbers):
            assert number in sections(CITED[page]), f"{page} {number}"


@pytest.mark.parametrize("page", ["README.md", "docs/simulation.md"])
def test_every_exit_code_is_documented(page: str) -> None:
    text = (ROOT / page).read_text()
    for family in families():
        row = rf"(?:\| {family.exit_code} \| `{family.__name__}` \||(?:^|· |·\n){family.exit_code} `{family.__name__}`)"
        assert re.search(row, text), family.__name__
    assert "130" in text


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_line_names_a_command_and_options_that_exist(path: Path) -> None:
    for line in COMMAND_LINE.findall(path.read_text()):
        program, *words = line.split("#")[0].split(">")[0].split()
        command: click.Command = typer.main.get_command(PROGRAMS[program])
        while words and isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {name for item in command.params for name in item.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_readme_shows_each_command() -> None:
    lines = COMMAND_LINE.findall((ROOT / "README.md").read_text())
    assert {line.split()[0] for line in lines} == set(PROGRAMS)
    assert {"run", "tune", "setup"} <= {line.split()[1] for line in lines if " " in line}


def test_the_page_of_commands_is_current() -> None:
    module = runpy.run_path(str(ROOT / "tests" / "fixtures" / "make_commands.py"))
    made = module["page"]()
    assert made == (ROOT / "docs" / "commands.md").read_text(), "run tests/fixtures/make_commands.py > docs/commands.md"


def test_every_test_that_the_documentation_names_exists() -> None:
    named = {name for path in PAGES for name in re.findall(r"`(test_[a-z0-9_]+)`", path.read_text())}
    defined = {name for path in SOURCES for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    prefixes = {"test_p1_", "test_p5_"}
    assert named - prefixes <= defined
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in defined)


def test_every_reason_code_of_the_protocol_page_is_in_the_code() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    code = "".join(path.read_text() for path in SOURCES if "tests" not in path.parts)
    codes = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", text))
    assert len(codes) > 20
    assert [item for item in sorted(codes) if f'"{item}"' not in code] == []


def raised_codes() -> set[str]:
    """The reason code of every refusal that is made with one in the code itself."""
    found = set()
    for path in SOURCES:
        if "tests" not in path.parts:
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Name(id=family), args=[ast.Constant(value=str(code)), _]):
                        found |= {code} if hasattr(errors, family) else set()
    return found


def test_every_reason_code_stands_on_a_page_or_in_the_docstring_of_what_raises_it() -> None:
    told = "".join(path.read_text() for path in (*PAGES, *(path for path in SOURCES if "tests" not in path.parts)))
    codes = raised_codes()
    assert len(codes) > 200
    assert [code for code in sorted(codes) if f"`{code}`" not in told] == []


def test_each_answer_to_a_lie_is_asserted_where_its_tests_stand() -> None:
    """Every reason code and rule in the table of protocol 6 is in the test files that its row names."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    table = re.findall(r"^\| .* \|$", text[text.index("\n## 6.") : text.index("\n## 7.")], re.MULTILINE)[1:]
    assert len(table) > 20
    files = [path.read_text() for path in SOURCES if "tests" in path.parts]
    for row in table:
        attempt, answer, tests = (cell.strip() for cell in row.strip("|").split("|"))
        names = re.findall(r"`(test_\w+)`", tests)
        asserted = "".join(file for file in files if any(f"def {name}(" in file for name in names))
        assert names, attempt
        codes = re.findall(r"`[a-z]+(?:-[a-z]+)+`|\bR\d\d\b", answer)
        assert [code for code in codes if code.strip("`") not in asserted] == [], attempt


def test_the_table_of_thresholds_is_the_codes_own() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()

    def row(name: str) -> list[int]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        return [int(cell) for cell in line.split("|")[2:-1]]

    sizes = row("N")
    plans = [default_aggregation(size, bound=1.0) for size in sizes]
    assert row("t = m") == [plan.threshold for plan in plans] == [plan.min_contributors for plan in plans]
    assert row("colluding departments c") == [plan.max_colluders for plan in plans]
    assert row("drop-outs tolerated") == [size - plan.threshold for size, plan in zip(sizes, plans, strict=True)]


def test_every_scenario_key_is_documented() -> None:
    text = (ROOT / "docs" / "simulation.md").read_text()
    scenario, _ = load_scenario("emergency-triage")
    parts = (
        scenario,
        scenario.data,
        scenario.task,
        scenario.model,
        scenario.privacy,
        scenario.optimizer.local,
        scenario.server_optimizer,
        scenario.performance,
        next(iter(scenario.departments.values())),
    )
    for part in parts:
        for key in part.__struct_fields__:
            assert re.search(rf"`{key}(?:`|\.[A-Z])", text), key


def test_the_promises_and_what_is_not_promised_stand_where_they_must() -> None:
    for page in ("README.md", "SECURITY.md"):
        text = (ROOT / page).read_text()
        for promise in ("P1", "P2", "P3", "P4", "P5"):
            assert f"**{promise}**" in text, (page, promise)
        assert "not promised" in text.lower()
        for word in ("truth", "norm bound", "beyond epsilon", "took part", "vailability", "side channels"):
            assert word in text, (page, word)


def test_the_report_says_what_is_not_promised_in_the_same_words() -> None:
    from shared.report.promises import NOT_PROMISED

    text = (ROOT / "SECURITY.md").read_text()
    for sentence in NOT_PROMISED:
        assert f"- {sentence}" in text


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_names_a_machine_of_ours(path: Path) -> None:
    assert not re.findall(r"/(?:home|root|tmp)/|localhost|127\.0\.0\.1", path.read_text())
