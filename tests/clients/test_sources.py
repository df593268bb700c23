"""Reading rows: mapped columns only, as text, whatever the file holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.binding import Binding, Source
from clients.sources import read_rows
from shared.errors import ContractError


def binding(folder: Path, content: bytes, **columns: str) -> Binding:
    (folder / "rows.csv").write_bytes(content)
    mapped = columns or {"description": "text", "request": "help"}
    return Binding(dataset="rows", contract="health", source=Source(path=str(folder / "rows.csv")), columns=mapped)


def read(folder: Path, content: bytes, **columns: str) -> list[list[str]]:
    rows: list[list[str]] = read_rows(binding(folder, content, **columns)).to_numpy().tolist()
    return rows


def test_p1_only_mapped_columns_are_read_under_contract_names(tmp_path: Path) -> None:
    frame = read_rows(binding(tmp_path, b"name,help,text\nCANARY,1,please\n"))
    assert list(frame.columns) == ["description", "request"]
    assert frame.to_numpy().tolist() == [["please", "1"]]
    assert "CANARY" not in frame.to_csv()


def test_nothing_is_guessed(tmp_path: Path) -> None:
    content = b"text,help\nNA,1.70\nNone,\nnan,007\n no ,true\n"
    assert read(tmp_path, content) == [["NA", "1.70"], ["None", ""], ["nan", "007"], [" no ", "true"]]


def test_quotes_commas_newlines_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbftext,help\r\n"a ""b"", c\nd",1\r\n\r\nlast,0'
    assert read(tmp_path, content) == [['a "b", c\nd', "1"], ["last", "0"]]


@pytest.mark.parametrize("line", [b"a,1,2", b"a", b",".join([b"x"] * 50)])
def test_a_line_of_another_width_is_a_row_without_values(tmp_path: Path, line: bytes) -> None:
    assert read(tmp_path, b"text,help\ngood,1\n" + line + b"\nalso,0\n") == [["good", "1"], ["", ""], ["also", "0"]]


def test_bytes_that_are_not_utf8_do_not_stop_the_reading(tmp_path: Path) -> None:
    assert read(tmp_path, b"text,help\ncaf\xe9,1\ngood,0\n") == [["caf\ufffd", "1"], ["good", "0"]]


def test_a_field_over_the_readers_limit_is_a_row_without_values(tmp_path: Path) -> None:
    assert read(tmp_path, b"text,help\n" + b"x" * 200_000 + b",1\ngood,0\n") == [["", ""], ["good", "0"]]


def test_no_rows_are_an_empty_frame_of_text(tmp_path: Path) -> None:
    frame = read_rows(binding(tmp_path, b"text,help\n"))
    assert frame.shape == (0, 2)
    assert {str(dtype) for dtype in frame.dtypes} == {"str"}


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"text,other\na,1\n", "column-missing", ("`help`", "rows.csv")),
        (b"help,text,help\n1,a,0\n", "column-ambiguous", ("`help`", "rows.csv")),
        (b"", "source-empty", ("rows.csv",)),
    ],
)
def test_a_wrong_header_is_one_sentence(tmp_path: Path, content: bytes, code: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ContractError) as caught:
        read(tmp_path, content)
    assert caught.value.code == code
    assert all(word in caught.value.message for word in words)


def test_an_ambiguous_column_that_is_not_mapped_does_not_matter(tmp_path: Path) -> None:
    assert read(tmp_path, b"x,text,x,help\n1,a,2,0\n") == [["a", "0"]]


def test_a_vanished_file_is_one_sentence(tmp_path: Path) -> None:
    bound = binding(tmp_path, b"text,help\n")
    Path(bound.source.path).unlink()
    with pytest.raises(ContractError) as caught:
        read_rows(bound)
    assert caught.value.code == "source-unreadable"
