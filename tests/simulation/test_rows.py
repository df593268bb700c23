"""Splits: drawn by the seed, complete, private, and gone when the seed is over."""

from __future__ import annotations

import csv
import itertools
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.binding import load_binding
from shared import contracts
from shared.errors import CityFedError
from simulation.rows import Split, data_digest, split_rows
from tests.city import MESSAGES

POLICE = MESSAGES / "police.toml"


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def split(
    folder: Path, seed: int = 1, limit: int = 0, holdout: float = 0.25
) -> tuple[list[list[str]], list[list[str]]]:
    made = split_rows(POLICE, folder, seed=seed, limit=limit, holdout=holdout)
    return rows_of(made.folder / "train.csv"), rows_of(made.folder / "holdout.csv")


def test_every_row_is_on_exactly_one_side(tmp_path: Path) -> None:
    train, held = split(tmp_path / "one")
    assert len(held) == 24
    assert sorted(train + held) == sorted(rows_of(MESSAGES / "police.csv"))


def test_a_seed_gives_one_split_and_another_seed_another(tmp_path: Path) -> None:
    assert split(tmp_path / "one") == split(tmp_path / "same")
    assert split(tmp_path / "one2", seed=2) != split(tmp_path / "one3", seed=1)


def moved(folder: Path, edit: Callable[[str], str] = lambda text: text) -> Path:
    """Copy the police rows and their binding, which is changed by ``edit``, and return the binding."""
    folder.mkdir()
    shutil.copy(MESSAGES / "police.csv", folder / "moved.csv")
    text = POLICE.read_text().replace('path = "police.csv"', 'path = "moved.csv"')
    (folder / "moved.toml").write_text(edit(text))
    return folder / "moved.toml"


def test_a_digest_tells_rows_sides_and_meaning_apart_and_no_names(tmp_path: Path) -> None:
    def digest(binding: Path, name: str, seed: int = 1, limit: int = 0, holdout: float = 0.25) -> str:
        return split_rows(binding, tmp_path / name, seed=seed, limit=limit, holdout=holdout).digest()

    first = digest(POLICE, "first")
    renamed = moved(tmp_path / "a", lambda text: text.replace('dataset = "police-fixture"', 'dataset = "other"'))
    assert digest(renamed, "same") == first
    unmapped = moved(tmp_path / "b", lambda text: text.replace('service_request_id = "case_no"\n', ""))
    edited = moved(tmp_path / "c")
    (tmp_path / "c" / "moved.csv").write_text((MESSAGES / "police.csv").read_text().replace("Oak Hill", "Elm Hill", 1))
    others = [digest(unmapped, "b1"), digest(edited, "c1"), digest(POLICE, "d1", seed=2)]
    others += [digest(POLICE, "e1", limit=60), digest(POLICE, "f1", holdout=0.26)]
    assert len({first, *others}) == 6


def persons(folder: Path, cells: list[str], column: str = "who", binding: str = "who") -> Path:
    """Write rows of persons, with the column and the binding's name for it, and return the binding."""
    with (folder / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", column], *([f"text {at}", cell] for at, cell in enumerate(cells))])
    tree = f'unit = "person"\nowner = "id"\n[source]\npath = "own.csv"\n[columns]\nid = "{binding}"\n'
    (folder / "own.toml").write_text(tree)
    return folder / "own.toml"


@pytest.mark.parametrize("limit", [0, 60])
@pytest.mark.parametrize("seed", range(5))
def test_p3_nobody_is_measured_on_whom_the_model_was_trained(tmp_path: Path, seed: int, limit: int) -> None:
    spellings = ["Ann", " ann", "ANN ", "Bo", "bo", *(f"p{number % 12}" for number in range(70)), "", "Ann; Bo"]
    made = split_rows(persons(tmp_path, spellings), tmp_path / "out", seed=seed, limit=limit, holdout=0.25)
    train, held = ([row[1] for row in rows_of(made.folder / name)] for name in ("train.csv", "holdout.csv"))
    assert len(train) + len(held) == (limit or len(spellings))
    if not limit:
        assert sorted(train + held) == sorted(spellings)
    sides = [{cell.strip().casefold() for cell in side if cell and ";" not in cell} for side in (train, held)]
    assert min(map(len, sides)) > 0
    assert not set.intersection(*sides)


def test_the_holdout_is_a_share_of_the_persons_and_the_seed_draws_whom(tmp_path: Path) -> None:
    binding = persons(tmp_path, [f"p{number // 4}" for number in range(80)])
    held = []
    for seed in (1, 2):
        made = split_rows(binding, tmp_path / str(seed), seed=seed, limit=0, holdout=0.25)
        held.append({row[1] for row in rows_of(made.folder / "holdout.csv")})
        assert len(held[-1]) == 5
    assert held[0] != held[1]


def test_an_owner_is_found_behind_a_byte_order_mark_and_refused_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("\ufeffwho,n\na,1\na,2\nb,3\nb,4\n")
    (tmp_path / "own.toml").write_text('owner = "id"\n[source]\npath = "own.csv"\n[columns]\nid = "who"\n')
    made = split_rows(tmp_path / "own.toml", tmp_path / "out", seed=1, limit=0, holdout=0.5)
    assert len({row[0] for row in rows_of(made.folder / "holdout.csv")}) == 1
    with pytest.raises(CityFedError) as caught:
        split_rows(persons(tmp_path, ["a"], binding="other"), tmp_path / "out2", seed=1, limit=0, holdout=0.5)
    assert caught.value.code == "binding-unreadable"


def test_a_limit_takes_the_same_rows_whatever_the_seed(tmp_path: Path) -> None:
    chosen = [sorted(itertools.chain(*split(tmp_path / str(seed), seed=seed, limit=40))) for seed in (1, 2)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 40


def test_the_bindings_are_the_departments_own_with_other_files(tmp_path: Path) -> None:
    made = split_rows(POLICE, tmp_path / "one", seed=1, limit=0, holdout=0.25)
    original = load_binding(POLICE)
    for path, file in ((made.train, "train.csv"), (made.holdout, "holdout.csv")):
        binding = load_binding(path)
        assert binding.columns == original.columns
        assert Path(binding.source.path) == tmp_path / "one" / file


def test_paths_count_from_the_folder_of_the_binding_itself_as_in_a_deployment(tmp_path: Path) -> None:
    """A contract beside the binding, and a binding that is used through a link from elsewhere."""
    binding = moved(tmp_path / "own", lambda text: text.replace('contract = "police"', 'contract = "odcs/mine.yaml"'))
    packaged = next(Path(contracts.__file__).parent.glob("police/*.yaml")).read_text()
    (tmp_path / "own" / "odcs").mkdir()
    (tmp_path / "own" / "odcs" / "mine.yaml").write_text(packaged)
    (tmp_path / "link.toml").symlink_to(binding)
    made = split_rows(tmp_path / "link.toml", tmp_path / "one", seed=1, limit=0, holdout=0.25)
    for path in (made.train, made.holdout):
        assert load_binding(path).contract == load_binding(binding).contract
    assert made.digest() == split_rows(POLICE, tmp_path / "two", seed=1, limit=0, holdout=0.25).digest()


def test_the_digest_of_a_departments_files_knows_binding_rows_and_contract_and_no_path(tmp_path: Path) -> None:
    digests = []
    for name, edits in (("a", ()), ("b", ()), ("c", ("moved.toml",)), ("d", ("moved.csv",)), ("e", ("mine.yaml",))):
        binding = moved(tmp_path / name, lambda text: text.replace('"police"', '"mine.yaml"'))
        (binding.parent / "mine.yaml").write_text("a contract")
        for edit in edits:
            (binding.parent / edit).write_text((binding.parent / edit).read_text() + "\n")
        digests.append(data_digest(binding))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_p1_copies_of_rows_are_readable_by_their_owner_alone_and_can_be_forgotten(tmp_path: Path) -> None:
    made = split_rows(POLICE, tmp_path / "one", seed=1, limit=0, holdout=0.25)
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.folder.iterdir()} == {0o600}
    made.forget_rows()
    made.forget_rows()
    assert sorted(path.name for path in made.folder.iterdir()) == ["binding.toml", "holdout.toml"]
    Split(tmp_path / "never made").forget_rows()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("police.toml", b"not = = toml", "binding-unreadable"),
        ("police.toml", b"\xff\xfe", "binding-unreadable"),
        ("police.toml", b'dataset = "x"', "binding-unreadable"),
        ("police.toml", b'[source]\npath = "no\\u0000where"', "binding-unreadable"),
        ("police.csv", b"", "rows-unreadable"),
        ("police.csv", b"a,b\n\xff,1\n", "rows-unreadable"),
    ],
)
def test_files_that_cannot_be_split_are_one_sentence(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    for file in ("police.toml", "police.csv"):
        shutil.copy(MESSAGES / file, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CityFedError) as caught:
        split_rows(tmp_path / "police.toml", tmp_path / "out", seed=1, limit=0, holdout=0.25)
    assert caught.value.code == code


def test_a_missing_source_is_one_sentence(tmp_path: Path) -> None:
    shutil.copy(POLICE, tmp_path)
    with pytest.raises(CityFedError) as caught:
        split_rows(tmp_path / "police.toml", tmp_path / "out", seed=1, limit=0, holdout=0.25)
    assert caught.value.code == "rows-unreadable"
    with pytest.raises(CityFedError) as caught:
        data_digest(tmp_path / "police.toml")
    assert caught.value.code == "rows-unreadable"


@given(
    rows=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20).filter(lambda text: "\x00" not in text),
        max_size=20,
    ),
    holdout=st.floats(0.05, 0.9),
)
def test_any_text_survives_the_copy(tmp_path_factory: pytest.TempPathFactory, rows: list[str], holdout: float) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "own.toml").write_text('[source]\npath = "own.csv"\n')
    with (folder / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], *([row, str(at)] for at, row in enumerate(rows))])
    split_rows(folder / "own.toml", folder / "out", seed=1, limit=0, holdout=holdout)
    found = rows_of(folder / "out" / "train.csv") + rows_of(folder / "out" / "holdout.csv")
    assert sorted(found) == sorted([row, str(at)] for at, row in enumerate(rows))
