from __future__ import annotations

import datetime as dt
import html
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from shared.errors import ConfigError
from shared.report import figures
from simulation.report import HTML_FILE, MARKDOWN_FILE, model_card, plots, write_report
from simulation.report.charts import curve_points
from simulation.statistics import arm_summary, gain_summary
from simulation.summary import (
    EMERGENCY_DATA,
    METRICS_FILE,
    STAND_IN_TUNING,
    SUMMARY_FILE,
    ArmName,
    CityWorstCase,
    LeftSummary,
    LoneShare,
    MetricRow,
    MetricsWriter,
    PrivacySummary,
    RunSummary,
    read_metrics,
    read_summary,
    summary_json,
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
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary
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


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    source, _ = written(tmp_path, full_summary(), rows())
    page = Page(source)
    assert not {"script", "iframe", "object", "embed", "img", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("href", "src", "srcset", "xlink:href", "action", "style"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), attributes
    assert "url(" not in source
    assert "@import" not in source
    assert "://" not in source
    policy = next(meta for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none';")


def test_the_page_is_accessible(tmp_path: Path) -> None:
    source, _ = written(tmp_path, full_summary(), rows())
    page = Page(source)
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("caption")) == len(page.named("table")) > 5
    assert all(header.get("scope") in {"row", "col"} for header in page.named("th"))
    drawings = page.named("svg")
    assert len(drawings) == 3
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert len(page.named("h1")) == 1
    assert "prefers-color-scheme: dark" in source


def test_a_hostile_name_stays_text_everywhere(tmp_path: Path) -> None:
    summary = full_summary()
    hostile = msgspec.structs.replace(
        summary,
        scenario=HOSTILE,
        task=HOSTILE,
        metric=HOSTILE,
        data=HOSTILE,
        arms={name: arm_summary({HOSTILE: [0.6, 0.7]}) for name in summary.arms},
        gain=gain_summary({HOSTILE: [0.7, 0.8]}, {HOSTILE: [0.6, 0.6]}),
        privacy={HOSTILE: privacy()},
        left={HOSTILE: LeftSummary(bytes=1, tensors={HOSTILE: (1,)}, messages=1)},
        seconds={HOSTILE: 1.0},
        versions={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    curve = [msgspec.structs.replace(row(0, number, HOSTILE, 0.7), name=HOSTILE) for number in (1, 2)]
    source, markdown = written(tmp_path, hostile, curve)
    card = model_card(hostile, model_file="model.safetensors", model_sha256="ab", plan_digest="cd")
    assert not Page(source).named("script")
    assert html.escape(HOSTILE) in source
    for text in (source, markdown, card):
        assert "<script" not in text
    for text in (markdown, card):
        assert not re.search(r"(?<!\\)\[b\]", text)
        table = [line for line in text.splitlines() if line.startswith("| ")]
        assert all(re.search(r"(?<!\\)\|$", line) for line in table)


def tables_of(markdown: str) -> list[list[str]]:
    """Every data cell of every pipe table."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ") and "---" not in line]
    return [line.strip("| ").split(" | ") for line in lines]


def test_page_and_markdown_hold_the_same_figures(tmp_path: Path) -> None:
    source, markdown = written(tmp_path, full_summary(), rows())
    page = Page(source)
    cells = {cell for line in tables_of(markdown) for cell in line}
    assert len(cells) > 60
    assert all(cell in page.words for cell in cells)
    figure = re.compile(r"[+-]?\d+\.\d{3}\b")
    drawn = " ".join(page.words)
    assert set(figure.findall(markdown)) == set(figure.findall(drawn))


def test_the_figures_are_those_of_the_summary(tmp_path: Path) -> None:
    summary = full_summary()
    _, markdown = written(tmp_path, summary, rows())
    lines = tables_of(markdown)
    arms = [f"{summary.arms[name].departments['police']:.3f}" for name in ("local", "federated", "pooled")]
    assert ["police", *arms] in lines
    verdicts = {line[0]: line[1] for line in lines if line[1] in {"gain", "loss", "no clear difference"}}
    assert verdicts["transport"] == "gain"
    assert verdicts["environment"] == "no clear difference"
    assert verdicts["health"] == "loss"
    assert "Better off with a model of their own: health." in markdown
    assert ["police", "0.988", "0.913", "1.5", "1e-4", "record, not per person", "1,365"] in lines
    assert ["police", "412,880", "62", "head.weight (1 x 384), head.bias (1)"] in lines
    assert ["federated", "2 min 03 s"] in lines
    assert "epsilon 2.346 at delta 4e-4" in markdown


PROMISES = (
    "not per person",
    "add-remove",
    "poisson-dpsgd",
    "rate 0.1 a step",
    "0.125",
    "8.437",
    "5 rounds of 10 steps, and 2 spare attempts",
    "dp-accounting 0.6 PLD",
    "holds even if all others work together",
    "not a probability",
    "public size",
)


def shared_summary() -> RunSummary:
    lone = LoneShare(epsilon=1.46789, after=2.04567, cap=18.0)
    shared = msgspec.structs.replace(privacy(), mechanism="shared-noise", noise_shares=2, steps=1, lone_share=lone)
    return msgspec.structs.replace(
        full_summary(), privacy=dict.fromkeys(DEPARTMENTS, shared), city_worst_case=None, rounds=200
    )


SHARED_PROMISES = (
    "shared-noise: each step",
    "only the encrypted sum carries all of it",
    "2 honest departments&#x27; shares make up the noise",
    "a merely curious department",
    "It rests on the encryption",
    "epsilon 1.468",
    "2.046, of the 18",
)


@pytest.mark.parametrize("words", SHARED_PROMISES)
def test_p3_report_and_card_of_shared_noise_state_h_both_numbers_and_against_whom(tmp_path: Path, words: str) -> None:
    source, markdown = written(tmp_path, shared_summary(), rows())
    card = model_card(shared_summary(), model_file="model.safetensors", model_sha256="ab", plan_digest="cd")
    plain = html.unescape(words)
    for text in (source, markdown, card):
        assert plain in html.unescape(text)
        assert "holds even if all others work together" not in text
    assert ["police", "0.988", "0.913", "1.5", "1.468", "1e-4", "record, not per person", "1,365"] in tables_of(
        markdown
    )
    assert "1.468 if an update were read alone" in markdown


@pytest.mark.parametrize("words", PROMISES)
def test_report_and_card_state_what_is_promised(tmp_path: Path, words: str) -> None:
    source, markdown = written(tmp_path, full_summary(), rows())
    card = model_card(full_summary(), model_file="model.safetensors", model_sha256="ab", plan_digest="cd")
    for text in (source, markdown, card):
        assert words in text


@pytest.mark.parametrize(
    "words",
    [
        EMERGENCY_DATA,
        "routed to no department",
        "a world of its own with fresh ledgers",
        "do not speak for other cities",
        "That a department tells the truth about its data.",
        "Nothing else left",
        "In a deployment no score leaves a department.",
    ],
)
def test_the_report_says_how_it_was_made_and_what_it_does_not_promise(tmp_path: Path, words: str) -> None:
    source, markdown = written(tmp_path, full_summary(), rows())
    assert words in html.unescape(source)
    assert words in markdown


def test_the_card_names_model_plan_and_charge() -> None:
    card = model_card(full_summary(), model_file="model.safetensors", model_sha256="ab" * 32, plan_digest="cd" * 32)
    assert ["File", "model.safetensors"] in tables_of(card)
    assert "ab" * 32 in card
    assert "cd" * 32 in card
    assert ["police", "0.988", "1e-4", "1.5", "record, not per person"] in tables_of(card)
    assert "Not for decisions about a person" in card


def test_departments_with_different_terms_are_described_apart(tmp_path: Path) -> None:
    summary = full_summary()
    other = msgspec.structs.replace(privacy(), noise_multiplier=9.5)
    _, markdown = written(tmp_path, msgspec.structs.replace(summary, privacy={**summary.privacy, "health": other}), [])
    assert "*Terms at transport, environment, police*" in markdown
    assert "*Terms at health*" in markdown


def test_a_run_without_a_finished_seed_still_has_a_report(tmp_path: Path) -> None:
    source, markdown = written(tmp_path, empty_summary(), [])
    for text in (Page(source).text, markdown):
        assert "This run did not finish: 0 of 3 seeds" in text
        assert "Not known yet" in text
    card = model_card(empty_summary(), model_file="m", model_sha256="ab", plan_digest="cd")
    assert "treat the model as unprotected" in card


def test_one_seed_gives_figures_and_no_verdict_at_the_top(tmp_path: Path) -> None:
    one = {name: values[:1] for name, values in LOCAL.items()}
    joint = {name: values[:1] for name, values in shifted().items()}
    summary = msgspec.structs.replace(
        full_summary(),
        complete=False,
        seeds=1,
        arms={"local": arm_summary(one), "federated": arm_summary(joint)},
        gain=gain_summary(joint, one),
    )
    source, markdown = written(tmp_path, summary, [each for each in rows() if each.seed == 0])
    assert "1 of 3 seeds" in markdown
    assert "**What was gained? Not known yet.**" in markdown
    assert figures.NO_INTERVAL in markdown
    assert "Pooled" not in [cell for line in tables_of(markdown) for cell in line]
    assert len(Page(source).named("svg")) == 3


def test_a_complete_run_carries_no_warning_and_unsafe_noise_always_does(tmp_path: Path) -> None:
    source, markdown = written(tmp_path, full_summary(), rows())
    assert "Attention." not in source + markdown
    unsafe = msgspec.structs.replace(full_summary(), noise="unsafe")
    source, markdown = written(tmp_path, unsafe, [])
    card = model_card(unsafe, model_file="m", model_sha256="ab", plan_digest="cd")
    for text in (source, markdown, card):
        assert "It protects nobody" in text
    for text in (source, markdown):
        assert "No protection at all" in text
        assert "can raise or lower the odds" not in text


def test_a_charge_above_its_cap_is_said_at_the_top(tmp_path: Path) -> None:
    summary = full_summary()
    over = msgspec.structs.replace(privacy(), cap=0.5)
    _, markdown = written(tmp_path, msgspec.structs.replace(summary, privacy={**summary.privacy, "police": over}), [])
    assert "A charge is above its cap" in markdown
    assert "stayed within its own cap" not in markdown


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
