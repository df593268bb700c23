"""A made-up study with known figures, and how a test reads the page about it."""

from __future__ import annotations

import datetime as dt
from html.parser import HTMLParser
from pathlib import Path

import msgspec

from simulation.report import HTML_FILE, MARKDOWN_FILE, write_report
from simulation.statistics import arm_summary, gain_summary
from simulation.summary import (
    EMERGENCY_DATA,
    STAND_IN_TUNING,
    ArmName,
    CityWorstCase,
    LeftSummary,
    MetricRow,
    MetricsWriter,
    PrivacySummary,
    RunSummary,
    write_summary,
)

DEPARTMENTS = ("transport", "environment", "police", "health")
METRIC = "average_precision"
HOSTILE = '<script src="http://evil.example/x.js"></script> | `a` "quoted" & [b](http://evil.example)'
VOID = {"meta", "link", "br", "line", "rect", "circle", "polyline", "polygon"}

LOCAL = {
    "transport": [0.70, 0.71, 0.69],
    "environment": [0.66, 0.67, 0.65],
    "police": [0.74, 0.75, 0.73],
    "health": [0.79, 0.80, 0.78],
}
STEP = {"transport": 0.03, "environment": 0.0, "police": 0.02, "health": -0.02}
JITTER = (0.002, -0.002, 0.001)


def shifted(extra: float = 0.0) -> dict[str, list[float]]:
    """Scores that differ from LOCAL by STEP and a little chance."""
    return {
        name: [value + STEP[name] + chance + extra for value, chance in zip(values, JITTER, strict=True)]
        for name, values in LOCAL.items()
    }


def privacy() -> PrivacySummary:
    return PrivacySummary(
        epsilon=0.98761,
        delta=1e-4,
        cap=1.5,
        unit="record",
        spent_epsilon=0.91234,
        relation="add-remove",
        mechanism="poisson-dpsgd",
        sampling="Poisson over records",
        sample_rate=0.1,
        public_size=1365,
        noise_multiplier=8.437,
        max_grad_norm=0.125,
        steps=10,
        accountant="dp-accounting 0.6 PLD",
    )


def full_summary() -> RunSummary:
    federated = shifted()
    left = LeftSummary(bytes=412880, tensors={"head.weight": (1, 384), "head.bias": (1,)}, messages=62)
    return RunSummary(
        task="text-classification: is this message a request for help",
        scenario="emergency-triage",
        metric=METRIC,
        data=EMERGENCY_DATA,
        tuning=STAND_IN_TUNING,
        complete=True,
        noise="cryptographic",
        seeds=3,
        seeds_planned=3,
        rounds=5,
        spare_attempts=2,
        arms={"local": arm_summary(LOCAL), "federated": arm_summary(federated), "pooled": arm_summary(shifted(0.01))},
        gain=gain_summary(federated, LOCAL),
        privacy=dict.fromkeys(DEPARTMENTS, privacy()),
        city_worst_case=CityWorstCase(epsilon=2.3456, delta=4e-4),
        left=dict.fromkeys(DEPARTMENTS, left),
        seconds={"features": 71.25, "federated": 122.9},
        started=dt.datetime(2026, 11, 22, 9, 30, tzinfo=dt.UTC),
        finished=dt.datetime(2026, 11, 22, 9, 35, tzinfo=dt.UTC),
        versions={"cityfed": "0.1.0", "torch": "2.13.0"},
        notes=("police dropped in round 3 of seed 1.",),
    )


def empty_summary() -> RunSummary:
    return msgspec.structs.replace(
        full_summary(),
        complete=False,
        seeds=0,
        arms={},
        gain=None,
        privacy={},
        city_worst_case=None,
        left={},
        seconds={},
        finished=None,
        notes=(),
    )


def row(seed: int, number: int, department: str, value: float, arm: ArmName = "federated") -> MetricRow:
    return MetricRow(
        arm=arm, seed=seed, round=number, department=department, name=METRIC, value=value, seconds=float(number)
    )


def rows() -> list[MetricRow]:
    return [
        row(seed, number, name, values[seed] - 0.2 / number)
        for name, values in shifted().items()
        for seed in range(3)
        for number in range(1, 6)
    ]


def written(run_dir: Path, summary: RunSummary, metric_rows: list[MetricRow]) -> tuple[str, str]:
    write_summary(run_dir, summary)
    with MetricsWriter(run_dir) as writer:
        for each in metric_rows:
            writer.append(each)
    write_report(run_dir)
    return (run_dir / HTML_FILE).read_text(), (run_dir / MARKDOWN_FILE).read_text()


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def tables_of(markdown: str) -> list[list[str]]:
    """Every data cell of every pipe table."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    return [line.strip("| ").split(" | ") for line in lines]
