"""The report as one HTML page: no script, no request, readable by screen readers and on paper.

Every text is escaped; the page's own content policy forbids it to load anything (``page.html``).
"""

from __future__ import annotations

from html import escape
from importlib import resources
from string import Template

from shared.report.document import Block, Definitions, Document, Figure, Items, Paragraph, Section, Table, Tile

VERDICT_CLASSES = {
    "gain": "gain",
    "no clear difference": "no-clear-difference",
    "no clear gain": "no-clear-difference",
    "loss": "loss",
}


def render_page(document: Document) -> str:
    """Return the whole page."""
    template = Template(resources.files("shared.report").joinpath("page.html").read_text(encoding="utf-8"))
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in document.sections)
    return template.substitute(
        title=escape(document.title),
        subtitle=escape(document.subtitle),
        warnings="".join(
            f'<p class="warning" role="alert"><strong>Attention.</strong> {escape(text)}</p>'
            for text in document.warnings
        ),
        tiles="".join(map(_tile, document.tiles)),
        links=links,
        sections="".join(map(_section, document.sections)),
    )


def _tile(tile: Tile) -> str:
    """Return one of the answers at the top."""
    return (
        f'<div class="tile"><h2>{escape(tile.question)}</h2>'
        f'<p class="answer">{escape(tile.answer)}</p><p>{escape(tile.meaning)}</p></div>'
    )


def _section(section: Section) -> str:
    """Return a section with its heading; neighbouring figures stand side by side where there is room."""
    parts: list[str] = []
    for block in section.blocks:
        rendered = _block(block)
        if isinstance(block, Figure) and parts and parts[-1].endswith("</figure></div>"):
            parts[-1] = parts[-1].removesuffix("</div>") + rendered + "</div>"
        else:
            parts.append(f'<div class="figures">{rendered}</div>' if isinstance(block, Figure) else rendered)
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">'
        f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>{"".join(parts)}</section>'
    )


def _block(block: Block) -> str:
    """Return one block."""
    match block:
        case Paragraph(text=text):
            return f"<p>{escape(text)}</p>"
        case Items(items=items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Definitions():
            return _definitions(block)
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)


def _definitions(definitions: Definitions) -> str:
    """Return terms and meanings."""
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in definitions.items)
    return f"<h3>{escape(definitions.caption)}</h3><dl>{items}</dl>"


def _table(table: Table) -> str:
    """Return a table with caption and header cells; a narrow screen scrolls it on its own."""
    numeric = table.numeric_columns() or (False,) * len(table.header)
    classes = [' class="figure"' if flag else "" for flag in numeric]
    header = "".join(
        f'<th scope="col"{mark}>{escape(cell)}</th>' for cell, mark in zip(table.header, classes, strict=True)
    )
    rows = "".join(_row(row, classes) for row in table.rows)
    caption = escape(table.caption)
    slim = " slim" if len(table.header) == 2 else ""
    return (
        f'<div class="scroll{slim}" role="region" aria-label="{caption}" tabindex="0"><table>'
        f"<caption>{caption}</caption><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: tuple[str, ...], classes: list[str]) -> str:
    """Return one row, its first cell as the row's header."""
    cells = "".join(f"<td{mark}>{_cell(cell)}</td>" for cell, mark in zip(row[1:], classes[1:], strict=True))
    summary = ' class="total"' if row[0] in {"All departments", "95 % interval", "all phases"} else ""
    return f'<tr{summary}><th scope="row">{escape(row[0])}</th>{cells}</tr>'


def _cell(cell: str) -> str:
    """Return the text of a cell, a verdict as a badge."""
    if cell in VERDICT_CLASSES:
        return f'<span class="badge {VERDICT_CLASSES[cell]}">{cell}</span>'
    return escape(cell)


def _figure(figure: Figure) -> str:
    """Return a drawing with title and legend, and its figures as a table that can be unfolded."""
    legend = "".join(f'<li><span class="mark {mark}"></span>{escape(words)}</li>' for mark, words in figure.legend)
    data = f"<details><summary>Figures as a table</summary>{_table(figure.data)}</details>" if figure.data else ""
    return (
        f'<figure><figcaption>{escape(figure.title)}</figcaption><ul class="legend">{legend}</ul>{figure.svg}'
        f"{data}</figure>"
    )
