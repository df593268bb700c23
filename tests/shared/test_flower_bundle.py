"""The bundle holds no code, is the same everywhere, and refers to the apps of the installed package."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.cli.config_utils import get_fab_config

from shared.flower import RUN_KEY, SETTINGS, bundle_digest, environment, thin_bundle

FROZEN = "468e4b796abea32a46af121a8d290e468de05e503393bfbd291a0575d8a741d7"

LOADED_FROM_A_SHADOWING_FOLDER = """
import sys
from pathlib import Path
from flwr.supercore.object_ref import load_app
folder = sys.argv[1]
app = load_app("clients.flower_app:app", ImportError, folder)
module = sys.modules["clients.flower_app"]
print(Path(module.__file__).parent.parent)
"""


def opened() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(thin_bundle()))


def test_the_bundle_holds_no_code() -> None:
    assert opened().namelist() == ["pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"]
    assert not any(name.endswith((".py", ".pyc", ".so", ".whl")) for name in opened().namelist())


def test_the_bundle_is_the_same_on_every_machine() -> None:
    assert hashlib.sha256(thin_bundle()).hexdigest() == bundle_digest() == FROZEN
    assert {(item.date_time, item.compress_type) for item in opened().infolist()} == {((1980, 1, 1, 0, 0, 0), 0)}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own affair
def test_flower_takes_the_bundle_and_would_pack_the_same_files() -> None:
    config = get_fab_config(thin_bundle())
    assert config["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "server.flower_app:app",
        "clientapp": "clients.flower_app:app",
    }
    assert config["tool"]["flwr"]["app"]["config"] == {RUN_KEY: ""}
    with opened() as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.startswith(".info")}
    files["clients/flower_app.py"] = b"raise SystemExit"
    packed, _ = build_fab_from_files(files)
    theirs = zipfile.ZipFile(io.BytesIO(packed))
    assert sorted(theirs.namelist()) == sorted(opened().namelist())


def test_an_app_folder_put_first_on_the_search_path_has_nothing_that_shadows_ours(tmp_path: Path) -> None:
    with opened() as archive:
        archive.extractall(tmp_path)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", LOADED_FROM_A_SHADOWING_FOLDER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env={"PYTHONPATH": str(root)})
    assert done.stdout.strip() == str(root), done.stderr


def test_a_process_that_loads_flower_reads_none_of_the_callers_settings(tmp_path: Path) -> None:
    inherited = {"FLWR_TELEMETRY_ENABLED": "1", "FLWR_INTERNAL_GRPC_CONTROL_API": "1", "HOME": "/h", "NO_PROXY": "a"}
    made = environment(inherited, tmp_path)
    assert {name for name in made if name.startswith("FLWR_")} == {
        "FLWR_HOME",
        *(name for name in SETTINGS if name.startswith("FLWR_")),
    }
    assert (made["FLWR_TELEMETRY_ENABLED"], made["FLWR_HOME"], made["HOME"]) == ("0", str(tmp_path), "/h")
    assert made["NO_PROXY"] == made["no_proxy"] == "a,127.0.0.1"


def test_what_the_caller_asked_of_the_c_library_is_kept(tmp_path: Path) -> None:
    made = environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, tmp_path)
    assert made["GLIBC_TUNABLES"] == "glibc.malloc.check=3:glibc.malloc.hugetlb=1"
    assert environment({}, tmp_path)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
