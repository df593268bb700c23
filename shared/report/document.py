"""The parts that a report consists of, free of any markup: what the HTML and the Markdown are rendered from."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIGURE = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e-?\d+)?( .*)?")
"""A figure, perhaps with a unit or a second figure; a version such as 0.1.0 is none."""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """One paragraph of plain text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Items:
    """A list of plain sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Terms with their meaning, under a caption."""

    caption: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of a row names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def numeric_columns(self) -> tuple[bool, ...]:
        """Return which columns hold figures only, to be aligned to the right."""
        columns = zip(*self.rows, strict=True)
        return tuple(all(_FIGURE.fullmatch(cell) for cell in column) for column in columns)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot; ``data`` holds its figures where no other table of the report does."""

    title: str
    svg: str
    legend: tuple[tuple[str, str], ...]
    """(CSS class of the mark, words) in the order of drawing."""
    data: Table | None


Block = Paragraph | Items | Definitions | Table | Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of the report; ``anchor`` is its fixed name for links."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the answers at the top: a question, the answer in few words, and what it means."""

    question: str
    answer: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report. ``warnings`` stand above everything else."""

    title: str
    subtitle: str
    warnings: tuple[str, ...]
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
