"""The report of a run: ``report.html``, ``report.md`` and the model card, all from the same summary.

:func:`write_report` builds one :class:`~shared.report.document.Document` and renders it twice, so the two
files cannot show different figures.
"""

from __future__ import annotations

from pathlib import Path

from shared.private_files import replace_private_file
from shared.report.markdown import render_markdown
from shared.report.page import render_page
from simulation.report.card import model_card
from simulation.report.content import build_document
from simulation.summary import read_metrics, read_summary

__all__ = ["HTML_FILE", "MARKDOWN_FILE", "model_card", "write_report"]

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"


def write_report(run_dir: Path) -> None:
    """Read ``summary.json`` and ``metrics.jsonl`` of a run folder and (re)write its two reports.

    Raises:
        ConfigError: ``run-folder-summary``, ``run-folder-malformed``.
    """
    document = build_document(read_summary(run_dir), read_metrics(run_dir))
    replace_private_file(run_dir / HTML_FILE, render_page(document).encode())
    replace_private_file(run_dir / MARKDOWN_FILE, render_markdown(document).encode())
