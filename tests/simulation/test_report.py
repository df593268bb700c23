"""The report of a study: a page and Markdown that say the same, load nothing, and are honest about what is missing."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from shared.report import figures
from simulation.report import model_card
from simulation.statistics import arm_summary, gain_summary
from simulation.summary import (
    EMERGENCY_DATA,
    LeftSummary,
    LoneShare,
    RunSummary,
)
from tests.simulation.report_data import (
    DEPARTMENTS,
    HOSTILE,
    LOCAL,
    Page,
    empty_summary,
    full_summary,
    privacy,
    row,
    rows,
    shifted,
    tables_of,
    written,
)


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


@pytest.mark.parametrize(
    ("unit", "who"),
    [
        ("record", "somebody with one record in each of the 4 departments"),
        ("person", "a person who is in the data of each of the 4 departments"),
        ("device", "somebody with one device in the data of each of the 4 departments"),
    ],
)
def test_p3_the_city_wide_worst_case_names_the_unit_of_the_plan(
    tmp_path: Path, unit: Literal["record", "person", "device"], who: str
) -> None:
    each = msgspec.structs.replace(privacy(), unit=unit)
    summary = msgspec.structs.replace(full_summary(), privacy=dict.fromkeys(DEPARTMENTS, each))
    card = model_card(summary, model_file="model.safetensors", model_sha256="ab", plan_digest="cd")
    for text in (*written(tmp_path, summary, rows()), card):
        (sentence,) = re.findall(r"City-wide worst case[^<\n]*", text)
        assert who in sentence
        assert [word for word in ("record", "person", "device") if word in sentence] == [unit]


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
