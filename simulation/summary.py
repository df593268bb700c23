"""What a run produced: the types behind ``summary.json`` and ``metrics.jsonl``, their writer and their reader.

The run fills these, the report and the model card render them, ``--json`` prints them. Nothing here trains,
measures or judges.
"""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import msgspec

from shared.codec import Record
from shared.errors import ConfigError
from shared.privacy.statement import PrivacyTerms
from shared.private_files import replace_private_file

SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"

Interval = tuple[float, float]
"""(low, high) of a 95 % interval over seeds; ``None`` stands where fewer than two seeds exist."""

ArmName = Literal["local", "federated", "pooled"]
EVERY_DEPARTMENT = "all"
"""``department`` of a row that holds a noised metric: the sum has no other."""

Verdict = Literal["gain", "no clear difference", "loss"]
OverallVerdict = Literal["gain", "no clear gain", "loss"]


def _require_order(interval: Interval | None) -> None:
    """Refuse an interval that is not finite or whose ends are swapped."""
    if interval is not None and not (-math.inf < interval[0] <= interval[1] < math.inf):
        raise ValueError("`interval` is [low, high] with finite low <= high")


class ArmSummary(Record, frozen=True, kw_only=True):
    """One arm: mean over departments and seeds, its interval over seeds, and each department's mean over seeds."""

    mean: float
    interval: Interval | None
    departments: dict[str, float]

    def __post_init__(self) -> None:
        _require_order(self.interval)


class DepartmentGain(Record, frozen=True, kw_only=True):
    """Federated minus local-only at one department, paired by seed."""

    mean: float
    interval: Interval | None
    verdict: Verdict

    def __post_init__(self) -> None:
        _require_order(self.interval)


class GainSummary(Record, frozen=True, kw_only=True):
    """Federated minus local-only: mean over departments, paired by seed, and the same for each department."""

    mean: float
    interval: Interval | None
    departments: dict[str, DepartmentGain]
    verdict: OverallVerdict

    def __post_init__(self) -> None:
        _require_order(self.interval)


class LoneShare(Record, frozen=True, kw_only=True):
    """What one department's updates would cost if they could be read one by one (shared noise, privacy 4.3).

    ``epsilon`` is this run's at the charge's delta; ``after`` is what it makes of everything learned from the data set,
    held against ``cap``.
    """

    epsilon: float
    after: float
    cap: float


class PrivacySummary(PrivacyTerms, frozen=True, kw_only=True):
    """One department's privacy terms and charge, for the one federated run whose model is kept.

    ``epsilon`` is what the plan reserved before the first round (all rounds and spare attempts),
    ``spent_epsilon`` what the ledger recomputes after settlement, both at ``delta``; ``cap`` is the
    department's own limit on epsilon. With shared noise ``epsilon`` holds for the intact sum, and
    ``lone_share`` says what a single update costs.
    """

    epsilon: float
    delta: float
    cap: float
    spent_epsilon: float
    public_size: int
    lone_share: LoneShare | None = None


class LeftSummary(Record, frozen=True, kw_only=True):
    """Everything one department sent in the one federated run whose model is kept.

    ``bytes`` counts every byte of every message; ``tensors`` maps each parameter tensor inside the masked
    vector to its shape.
    """

    bytes: int
    tensors: dict[str, tuple[int, ...]]
    messages: int


class ExtraSummary(Record, frozen=True, kw_only=True):
    """One noised metric that left inside the encrypted sum; its values by round stand in ``metrics.jsonl``.

    ``noise_stddev`` is that of the noise in a value with every department in the sum; ``epsilon`` what the metric
    alone costs a department over all rounds and spare attempts.
    """

    name: str
    noise_stddev: float
    epsilon: float


class CityWorstCase(Record, frozen=True, kw_only=True):
    """The composed (epsilon, delta) for somebody who is in every department's data with one unit (privacy 1)."""

    epsilon: float
    delta: float


class RunSummary(Record, frozen=True, kw_only=True):
    """A whole run, complete or cut short; the object in ``summary.json`` and under ``--json``.

    ``data`` is one sentence on where the records come from, ``tuning`` one on how the settings of all arms were
    chosen. ``seeds`` counts finished seeds. ``noise`` says whether the noise came from the operating system or from
    a test source that protects nobody.
    """

    format: Literal[1] = 1
    task: str
    scenario: str
    metric: str
    data: str
    tuning: str
    complete: bool
    noise: Literal["cryptographic", "unsafe"]
    seeds: int
    seeds_planned: int
    rounds: int
    spare_attempts: int
    arms: dict[ArmName, ArmSummary]
    gain: GainSummary | None
    privacy: dict[str, PrivacySummary]
    city_worst_case: CityWorstCase | None
    left: dict[str, LeftSummary]
    extras: tuple[ExtraSummary, ...] = ()
    seconds: dict[str, float]
    started: dt.datetime
    finished: dt.datetime | None
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


EMERGENCY_DATA = "Emergency messages from several disasters, routed to four departments by their human labels."
"""``data`` of the default scenario: it is not one city, and no report may say so."""

STAND_IN_TUNING = (
    "All arms were tuned on one and the same grid of settings, on messages that were routed to no department (a "
    "public stand-in). The settings were then frozen; nothing was tuned on test messages or on a department's data."
)
"""``tuning`` of a run that chose its settings on the stand-in."""

SERVER_MEMORY = (
    "The federated arm's server optimiser, {kind}, remembers earlier rounds; local-only and pooled training "
    "start anew each round, so a difference between the arms may come from the optimiser and not from federation."
)
"""A note of a run whose server does more than add updates up, with the optimiser's ``kind``."""


class MetricRow(Record, frozen=True, kw_only=True):
    """One measured value: a line of ``metrics.jsonl``.

    ``name`` equals the summary's ``metric`` for the scores that the report plots, else it is that of a noised metric
    about the model that the round started from; ``round`` counts from 1; ``seconds`` is the time since the run began.
    """

    arm: ArmName
    seed: int
    round: int
    department: str
    name: str
    value: float
    seconds: float


def summary_json(summary: RunSummary) -> bytes:
    """Return the summary as indented JSON, the exact content of ``summary.json``.

    Raises:
        ValueError: a figure is not finite; JSON has no such number and nobody could read the file again.
    """
    data = msgspec.json.encode(summary)
    try:
        msgspec.json.decode(data, type=RunSummary)
    except msgspec.ValidationError as cause:
        raise ValueError(f"the summary cannot be written so that it can be read again: {cause}") from cause
    return msgspec.json.format(data, indent=2) + b"\n"


def write_summary(run_dir: Path, summary: RunSummary) -> None:
    """Write ``summary.json`` in one step, so that a reader sees the old file or the new one and never half of one."""
    replace_private_file(run_dir / SUMMARY_FILE, summary_json(summary))


def read_summary(run_dir: Path) -> RunSummary:
    """Read the summary of a run folder.

    Raises:
        ConfigError: ``run-folder-summary`` if it is missing, ``run-folder-malformed`` if it does not parse.
    """
    path = run_dir / SUMMARY_FILE
    try:
        data = path.read_bytes()
    except OSError as cause:
        reason = cause.strerror or type(cause).__name__
        raise ConfigError("run-folder-summary", f"{path} cannot be read ({reason}): name a run folder.") from cause
    try:
        return msgspec.json.decode(data, type=RunSummary)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ConfigError("run-folder-malformed", f"{path} is not a run summary of format 1: {cause}.") from cause


class MetricsWriter:
    """Appends rows to ``metrics.jsonl``, one line each, handed to the operating system at once."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._file: IO[bytes] = self._path.open("ab")

    def append(self, row: MetricRow) -> None:
        """Write one row and flush it, so that an interrupted run keeps what it measured.

        Raises:
            ValueError: the value or the time is not finite.
        """
        if not (math.isfinite(row.value) and math.isfinite(row.seconds)):
            raise ValueError("`value` and `seconds` of a metric row are finite")
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[MetricRow]:
    """Read every complete row of a run folder; no file means no rows.

    A last line without its line end is what a killed run leaves behind, and is passed over.

    Raises:
        ConfigError: ``run-folder-malformed``, with the line number.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse_row(line, f"{path}, line {number},") for number, line in enumerate(lines, start=1)]


def _parse_row(line: bytes, where: str) -> MetricRow:
    """Decode one line, or raise with its place."""
    try:
        return msgspec.json.decode(line, type=MetricRow)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ConfigError("run-folder-malformed", f"{where} is not a metric row: {cause}.") from cause
