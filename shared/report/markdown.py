"""The report as Markdown: the same document, tables instead of plots."""

from __future__ import annotations

import html
import re

from shared.report.document import Block, Definitions, Document, Figure, Items, Paragraph, Section, Table

_MARKUP = re.compile(r"([\\`*|\[\]#~])")


def escape(text: str) -> str:
    """Return text that Markdown and an HTML-aware reader show as it is, on one line."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def render_markdown(document: Document) -> str:
    """Return the whole report."""
    head = [f"# {escape(document.title)}", escape(document.subtitle)]
    warnings = [f"> **Attention.** {escape(text)}" for text in document.warnings]
    answers = [f"**{tile.question} {escape(tile.answer)}.** {escape(tile.meaning)}" for tile in document.tiles]
    sections = [_section(section) for section in document.sections]
    return "\n\n".join([*head, *warnings, *answers, *sections]) + "\n"


def render_table(table: Table) -> str:
    """Return a pipe table under its caption; columns of figures are aligned to the right."""
    marks = ["---:" if numeric else "---" for numeric in table.numeric_columns() or (False,) * len(table.header)]
    rows = [table.header, tuple(marks)]
    lines = [_row(tuple(map(escape, table.header))), _row(rows[1])]
    lines += [_row(tuple(map(escape, row))) for row in table.rows]
    return f"*{escape(table.caption)}*\n\n" + "\n".join(lines)


def render_definitions(definitions: Definitions) -> str:
    """Return terms and meanings as a list under their caption."""
    items = [f"- **{escape(term)}**: {escape(meaning)}" for term, meaning in definitions.items]
    return f"*{escape(definitions.caption)}*\n\n" + "\n".join(items)


def _row(cells: tuple[str, ...]) -> str:
    """Return one line of a pipe table."""
    return f"| {' | '.join(cells)} |"


def _section(section: Section) -> str:
    """Return a heading and its blocks."""
    blocks = [_block(block) for block in section.blocks]
    return "\n\n".join([f"## {escape(section.title)}", *filter(None, blocks)])


def _block(block: Block) -> str:
    """Return one block; a drawing whose figures stand in another table is left out."""
    match block:
        case Paragraph(text=text):
            return escape(text)
        case Items(items=items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Definitions():
            return render_definitions(block)
        case Table():
            return render_table(block)
        case Figure():
            return f"### {escape(block.title)}\n\n{render_table(block.data)}" if block.data else ""
