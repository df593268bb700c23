"""The data set that training sees."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clients.binding import Binding, Source, bound_contract, load_binding
from clients.dataset import Dataset, load_dataset
from shared.contracts.contract import load_contract, packaged_contract
from shared.errors import ContractError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "messages"
HEALTH = packaged_contract("health")


def bound(folder: Path, rows: list[tuple[str, str]]) -> Binding:
    path = folder / "rows.csv"
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("text", "help"), *rows])
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    columns = {"description": "text", "request": "help"}
    return Binding(dataset="rows", contract="health", source=Source(path=str(path)), columns=columns)


def load(binding: Binding, features: tuple[str, ...] = ("description",), label: str = "request") -> Dataset:
    return load_dataset(binding, HEALTH, features=features, label=label)


@pytest.mark.parametrize("department", ["transport", "environment", "police", "health"])
def test_the_fixture_loads_and_both_labels_are_there(department: str) -> None:
    binding = load_binding(FIXTURE / f"{department}.toml")
    data = load_dataset(binding, bound_contract(binding), features=("description",), label="request")
    assert data.units == len(data.texts) == len(data.labels) >= 80
    assert data.labels.dtype == np.float32
    assert 0.3 < data.labels.mean() < 0.35
    assert len(set(data.texts)) == data.units
    assert not any("never-read" in text for text in data.texts)


def test_bad_rows_are_dropped_and_the_others_keep_their_order(tmp_path: Path) -> None:
    data = load(bound(tmp_path, [("a", "1"), ("b", "2"), ("", "0"), ("c", "1.7"), ("d", "0")]))
    assert data.texts == ("a", "d")
    assert data.labels.tolist() == [1.0, 0.0]


def test_p1_a_label_of_a_third_class_stops_no_round_where_the_contract_sets_no_limits(tmp_path: Path) -> None:
    source = (resources.files("shared.contracts") / "health" / "report-1.0.0.odcs.yaml").read_text("utf-8")
    limits = "logicalTypeOptions: {minimum: 0, maximum: 1}"
    assert source.count(limits) == 1
    contract = load_contract(source.replace(limits, ""), where="contract")
    binding = bound(tmp_path, [("a", "1"), ("strange", "2"), ("b", "0")])
    data = load_dataset(binding, contract, features=("description",), label="request")
    assert data.texts == ("a", "b")
    assert data.labels.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("count", [0, 1, 199, 200])
def test_p1_no_number_of_rows_is_refused_in_a_round(tmp_path: Path, count: int) -> None:
    assert load(bound(tmp_path, [("help", "1")] * count)).units == count


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.text(max_size=12), st.sampled_from(["0", "1"]) | st.text(max_size=4)), max_size=8))
def test_p1_no_content_raises(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    data = load(bound(tmp_path, rows))
    usable = [(text, label) for text, label in rows if text and label in ("0", "1") and "\ufffd" not in text]
    assert data.texts == tuple(text for text, _ in usable)
    assert data.labels.tolist() == [float(label) for _, label in usable]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.lists(st.binary(max_size=50) | st.sampled_from([b"a,1\n", b"b,0\n", b'"', b"\n"]), max_size=8).map(
        b"".join
    )
)
@example(noise=b"a,1\n\xff,0,\nb,0\n\x00")
def test_p1_no_bytes_after_the_header_raise(tmp_path: Path, noise: bytes) -> None:
    binding = bound(tmp_path, [])
    Path(binding.source.path).write_bytes(b"text,help\n" + noise)
    data = load(binding)
    assert data.units == len(data.texts) == len(data.labels)
    assert all(data.texts)
    assert set(data.labels.tolist()) <= {0.0, 1.0}


def test_p1_a_data_set_prints_neither_values_nor_its_size(tmp_path: Path) -> None:
    data = load(bound(tmp_path, [("CANARY-4711", "1")]))
    assert repr(data) == str(data) == f"{data}" == "Dataset(...)"


def test_labels_cannot_be_changed(tmp_path: Path) -> None:
    data = load(bound(tmp_path, [("a", "1")]))
    with pytest.raises(ValueError):
        data.labels[0] = 0.0


@pytest.mark.parametrize(
    ("features", "label", "code"),
    [
        (("service_request_id",), "request", "feature-not-allowed"),
        (("description", "service_code"), "request", "feature-not-allowed"),
        (("request",), "request", "feature-not-allowed"),
        (("gone",), "request", "feature-not-allowed"),
        (("description",), "service_request_id", "label-not-allowed"),
        (("description",), "description", "label-not-allowed"),
    ],
)
def test_only_features_and_labels_of_the_contract_may_be_learned(
    tmp_path: Path, features: tuple[str, ...], label: str, code: str
) -> None:
    with pytest.raises(ContractError) as caught:
        load(bound(tmp_path, [("a", "1")]), features, label)
    assert caught.value.code == code


def test_a_property_that_the_department_did_not_bind_is_not_learned(tmp_path: Path) -> None:
    binding = bound(tmp_path, [("a", "1")])
    partly = msgspec.structs.replace(binding, columns={"description": "text"})
    with pytest.raises(ContractError, match="maps no column to `request`") as caught:
        load(partly)
    assert caught.value.code == "property-not-bound"


def test_a_task_without_features_is_a_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="feature"):
        load(bound(tmp_path, []), ())


def test_importing_the_data_path_loads_no_pandas() -> None:
    code = "import sys, clients.dataset; sys.exit(any(name in sys.modules for name in ('pandas', 'pandera', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
