"""Curves and numbers of a report as people read them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shared.report import figures
from simulation.report import model_card, plots
from simulation.report.charts import curve_points
from tests.simulation.report_data import METRIC, Page, full_summary, row, rows, tables_of, written


def test_the_curve_leaves_out_a_round_that_lacks_a_department() -> None:
    cut = [row(0, 1, "police", 0.5), row(0, 1, "health", 0.7), row(0, 2, "police", 0.6)]
    (point,) = curve_points(cut, METRIC)
    assert (point.round, point.interval) == (1, None)
    assert point.mean == pytest.approx(0.6)


def test_the_curve_reads_the_federated_rows_of_its_metric_only() -> None:
    other = [row(0, 1, "police", 0.1, arm="local"), msgspec.structs.replace(row(0, 1, "police", 0.2), name="loss")]
    assert curve_points(other, METRIC) == []


def test_a_long_curve_is_drawn_in_full_and_listed_thinly(tmp_path: Path) -> None:
    long = [row(seed, number, "police", 0.5 + number / 1000) for seed in (0, 1) for number in range(1, 101)]
    source, markdown = written(tmp_path, msgspec.structs.replace(full_summary(), rounds=100), long)
    line = Page(source).named("polyline")[0]["points"]
    assert line is not None
    assert len(line.split()) == 100
    assert "(selected rounds)" in markdown
    listed = [cells[0] for cells in tables_of(markdown) if cells[0].isdigit()]
    assert listed[0] == "1"
    assert listed[-1] == "100"
    assert len(listed) == 12


def test_the_metric_is_written_in_words(tmp_path: Path) -> None:
    source, markdown = written(tmp_path, full_summary(), rows())
    card = model_card(full_summary(), model_file="m", model_sha256="ab", plan_digest="cd")
    for text in (source, markdown, card):
        assert "average precision" in text
        assert METRIC not in text


def test_higher_scores_are_drawn_higher_and_rounds_run_to_the_right() -> None:
    points = [
        plots.CurvePoint(round=k, mean=0.5 + 0.1 * k, interval=(0.45 + 0.1 * k, 0.55 + 0.1 * k)) for k in (1, 2, 3)
    ]
    drawing = Page(plots.learning_curve(points, {"local": 0.6}, title="t", y_label="y"))
    (line,) = drawing.named("polyline")
    xy = [tuple(map(float, pair.split(","))) for pair in (line["points"] or "").split()]
    assert [x for x, _ in xy] == sorted(x for x, _ in xy)
    assert [y for _, y in xy] == sorted((y for _, y in xy), reverse=True)


def test_epsilon_is_rounded_up_and_never_down() -> None:
    assert figures.epsilon(0.98701) == "0.988"
    assert figures.epsilon(0.987) == "0.987"
    assert figures.epsilon(1.0) == "1.000"
    assert figures.factor(math.e) == "2.8"


def test_small_differences_do_not_print_as_zero() -> None:
    assert figures.difference(0.0003) == "+0.000300"
    assert figures.difference(-0.0131) == "-0.013"
    assert figures.difference(0.0) == "+0.000"


@pytest.mark.parametrize(("value", "words"), [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.1, "1e-1"), (4e-4, "4e-4")])
def test_delta_is_written_in_powers_of_ten(value: float, words: str) -> None:
    assert figures.delta(value) == words


@pytest.mark.parametrize(("value", "words"), [(0.4, "0.40 s"), (71.25, "71.2 s"), (122.9, "2 min 03 s")])
def test_durations_have_a_fitting_unit(value: float, words: str) -> None:
    assert figures.seconds(value) == words


def test_importing_the_report_loads_no_heavy_package() -> None:
    code = "import sys, simulation.report; print(sorted({'torch', 'flwr', 'opacus', 'pandas', 'scipy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
