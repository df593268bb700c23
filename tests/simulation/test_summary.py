"""The summary and the metrics of a study as files: what was agreed, and nothing that is not a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest

from shared.errors import ConfigError
from simulation.summary import (
    METRICS_FILE,
    SUMMARY_FILE,
    MetricsWriter,
    RunSummary,
    read_metrics,
    read_summary,
    summary_json,
    write_summary,
)
from tests.simulation.report_data import DEPARTMENTS, empty_summary, full_summary, row, rows


def test_the_summary_has_exactly_the_agreed_keys_where_they_are_agreed() -> None:
    tree = json.loads(summary_json(full_summary()))
    assert {"task", "scenario", "metric", "arms", "gain", "privacy", "left", "seconds"} <= tree.keys()
    assert tree["arms"].keys() == {"local", "federated", "pooled"}
    for arm in tree["arms"].values():
        assert arm.keys() == {"mean", "interval", "departments"}
        assert len(arm["interval"]) == 2
        assert arm["interval"][0] < arm["mean"] < arm["interval"][1]
        assert arm["departments"].keys() == set(DEPARTMENTS)
    assert {"mean", "interval"} <= tree["gain"].keys()
    for name in DEPARTMENTS:
        assert {"epsilon", "delta", "cap", "unit"} <= tree["privacy"][name].keys()
        assert {"bytes", "tensors"} <= tree["left"][name].keys()
    assert all(isinstance(value, float) for value in tree["seconds"].values())


def test_an_incomplete_summary_keeps_every_agreed_key() -> None:
    assert json.loads(summary_json(empty_summary())).keys() == json.loads(summary_json(full_summary())).keys()


@pytest.mark.parametrize("summary", [full_summary(), empty_summary()])
def test_the_summary_file_reads_back_as_it_was_written(tmp_path: Path, summary: RunSummary) -> None:
    (tmp_path / SUMMARY_FILE).touch(mode=0o644)
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary
    assert (tmp_path / SUMMARY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY_FILE]


def test_a_figure_that_is_not_finite_cannot_be_written() -> None:
    broken = msgspec.structs.replace(full_summary(), seconds={"features": math.inf})
    with pytest.raises(ValueError, match="read again"):
        summary_json(broken)


def test_a_folder_without_a_summary_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"summary\.json cannot be read") as found:
        read_summary(tmp_path)
    assert found.value.code == "run-folder-summary"


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b"\xff\xfe"])
def test_a_malformed_summary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SUMMARY_FILE).write_bytes(content)
    with pytest.raises(ConfigError) as found:
        read_summary(tmp_path)
    assert found.value.code == "run-folder-malformed"


def test_an_interval_with_swapped_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="low"):
        msgspec.structs.replace(full_summary().arms["local"], interval=(0.8, 0.7)).__post_init__()


def test_metric_rows_read_back_and_appending_continues_the_file(tmp_path: Path) -> None:
    for each in rows()[:2]:
        with MetricsWriter(tmp_path) as writer:
            writer.append(each)
    assert read_metrics(tmp_path) == rows()[:2]


def test_a_row_is_on_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.append(rows()[0])
        assert read_metrics(tmp_path) == rows()[:1]


def test_a_torn_last_line_is_passed_over_and_a_broken_line_is_named(tmp_path: Path) -> None:
    line = msgspec.json.encode(rows()[0])
    (tmp_path / METRICS_FILE).write_bytes(line + b"\n" + line[:20])
    assert read_metrics(tmp_path) == rows()[:1]
    (tmp_path / METRICS_FILE).write_bytes(line + b"\n" + line[:20] + b"\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_metrics(tmp_path)


def test_a_metric_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="finite"):
        writer.append(row(0, 1, "police", math.nan))
