"""Attacks on a city that is at work: each is refused by name, and the run that goes on meanwhile completes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import msgspec
import pytest
from flwr.common.constant import ErrorCode
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from clients.config import load_config, load_tls
from clients.runner import TASK_TYPE
from server.runs import RunFolder, RunStatus
from server.superlink import SuperLink
from server.up import find_superlink
from shared.certificates import TlsFiles
from shared.channel import ATTACHED, SERVICE, Chunk, Payload, Start, Ticket, frames
from shared.codec import MAX_MESSAGE_BYTES, encode
from shared.identity import IdentityKey
from shared.shelf import Item
from tests.channel_city import answer, attach, code_of, member_files, metadata, new_authority
from tests.city import FOUR
from tests.deployed_city import SMALL_ASK, DeployedCity, join, now
from tests.deployment.running_city import RunningCity, agreed_plan, running_city, wait_until
from tests.shelf_city import raw_caller, take

Refusal = tuple[grpc.StatusCode, str]

ASK = msgspec.structs.replace(SMALL_ASK, privacy=msgspec.structs.replace(SMALL_ASK.privacy, steps=200))
VERSION = [RuntimeVersionHttpInterceptor(component_name="stranger")]
GOOD = Payload.of(b"0123456789")
ROSTER = Item(kind="roster")
UNKNOWN = grpc.StatusCode.UNIMPLEMENTED

pytestmark = pytest.mark.xdist_group("deployment")  # one city at a time


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCity]:
    with running_city(tmp_path_factory.mktemp("attacks") / "city") as running:
        yield running


# --- on the update channel while a session is open ---------------------------------------------------------


@dataclass
class Attack:
    """What was done to one open session, how each caller fared, and how the run ended."""

    city: RunningCity
    ticket: Ticket
    refused: dict[str, Refusal] = field(default_factory=dict)
    log: str = ""
    ended: RunStatus | None = None

    @property
    def member(self) -> TlsFiles:
        """Police's own files: whoever has them is a member."""
        config = self.city.city.config("police")
        return load_tls(config, load_config(config), now=now())

    @contextlib.contextmanager
    def call(self, files: TlsFiles | None) -> Iterator[grpc.Channel]:
        """Call the authority's port with whatever certificate."""
        ours = self.member
        shown = (ours.authority, files.key, files.certificate) if files else (ours.authority,)
        address = load_config(self.city.city.config("police")).channel
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(*shown), options=options) as channel:
            yield channel

    def knock(self, name: str, files: TlsFiles | None) -> None:
        """Try both methods; one refusal stands for both when they are equal."""
        with self.call(files) as channel:
            both = {
                code_of(lambda: next(attach(channel, self.ticket))),
                code_of(lambda: answer(channel, self.ticket, frames(1, GOOD))),
            }
        # A handshake that failed is told in the words of the TLS library.
        (code,) = {code for code, _ in both}
        self.refused[name] = (code, "" if code is grpc.StatusCode.UNAVAILABLE else both.pop()[1])

    def upload(self, *sent: bytes) -> Refusal:
        """Answer in police's name."""
        with self.call(self.member) as channel:
            return code_of(lambda: answer(channel, self.ticket, sent))

    def foreign(self) -> None:
        """Whoever is no member."""
        self.knock("no certificate", None)
        theirs = member_files(new_authority("gotham"), "police")
        self.knock("another city", replace(theirs, authority=self.member.authority))

    def revoked(self) -> None:
        """A member that joins during the session, attaches, is removed, and calls again."""
        guest = DeployedCity(self.city.city.folder, self.city.authority, {"parks": IdentityKey.generate()})
        join(guest, "parks")
        files = load_tls(guest.config("parks"), load_config(guest.config("parks")), now=now())
        with self.call(files) as channel:
            assert next(attach(channel, self.ticket)) == ATTACHED
        removed = self.city.server("city", "remove", "parks")
        assert removed.returncode == 0, removed.stderr
        self.knock("revoked", files)

    def crooked(self) -> None:
        """Uploads of a member that are not what they should be; the number of the open request is found by trying."""
        long = Payload(MAX_MESSAGE_BYTES, GOOD.read)
        for number in itertools.count(1):
            found = self.upload(next(frames(number, long)))
            if found[1] != "reply-late":
                break
        assert number > 1
        self.refused["oversized"] = found
        self.refused["replayed transfer"] = self.upload(*frames(number - 1, GOOD))
        first = encode(Chunk(number=number, offset=0, data=memoryview(b"01234")))
        start = encode(Start(number=number, length=GOOD.length))
        self.refused["replayed chunk"] = self.upload(start, first, first)
        self.refused["slow drip"] = self.drip(start, first)

    def drip(self, *sent: bytes) -> Refusal:
        """Begin an upload and never go on with it."""
        over = threading.Event()

        def drops() -> Iterator[bytes]:
            yield from sent
            over.wait(120)

        with self.call(self.member) as channel:
            upload = channel.stream_unary(f"/{SERVICE}/Answer")
            ended = code_of(lambda: upload(drops(), metadata=metadata(self.ticket), timeout=120))
            over.set()
        return ended


def session_of(city: RunningCity, department: str) -> bytes:
    """The session that a department attends, as anybody with an account there can read."""
    log = city.city.home(department) / "service" / "log" / "node.log"
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    begun = [event.split()[1] for event in events if event.startswith("session") and event.endswith("begins")]
    return bytes.fromhex(begun[-1])


@pytest.fixture(scope="module")
def attack(city: RunningCity) -> Attack:
    """Attack a session that is held open: police's own worker is made to wait until all is over."""
    _, plan = agreed_plan(city.city, ASK)
    assert city.server("run", plan.digest().hex(), "--detach").returncode == 0
    folder = RunFolder(city.authority.runs / plan.run_id().hex())
    wait_until(lambda: folder.status().phase == "update", "the first update is asked for")
    (worker,) = city.children("police", "node")
    os.kill(worker, signal.SIGSTOP)
    try:
        attack = Attack(city, Ticket(run=plan.run_id(), session=session_of(city, "police")))
        attack.foreign()
        attack.revoked()
        attack.crooked()
        assert folder.status().state == "running"
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: folder.status().state in {"completed", "failed"}, "the end of the run", 180.0)
    attack.ended, attack.log = folder.status(), folder.log.read_text()
    return attack


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("no certificate", grpc.StatusCode.UNAVAILABLE, ""),
        ("another city", grpc.StatusCode.UNAVAILABLE, ""),
        ("revoked", grpc.StatusCode.PERMISSION_DENIED, "certificate-not-admitted"),
        ("oversized", grpc.StatusCode.INVALID_ARGUMENT, "transfer-too-large"),
        ("replayed transfer", grpc.StatusCode.ABORTED, "reply-late"),
        ("replayed chunk", grpc.StatusCode.INVALID_ARGUMENT, "chunk-out-of-order"),
    ],
)
def test_an_attack_on_an_open_session_is_refused(attack: Attack, name: str, code: grpc.StatusCode, reason: str) -> None:
    assert attack.refused[name] == (code, reason)
    assert not reason or reason in attack.log


def test_an_upload_that_drips_is_cut_by_name(attack: Attack) -> None:
    assert attack.refused["slow drip"][0] is grpc.StatusCode.CANCELLED
    assert "the update channel refused police: upload-too-slow" in attack.log


def test_the_run_that_was_attacked_completes_with_everybody(attack: Attack) -> None:
    assert attack.ended is not None
    assert (attack.ended.state, attack.ended.rounds, attack.ended.missing) == ("completed", ASK.rounds, {})
    assert set(attack.ended.signs) == set(FOUR)


# --- on the shelf ------------------------------------------------------------------------------------------


def test_the_shelf_of_a_city_at_work_serves_present_members_and_nobody_else(city: RunningCity) -> None:
    config = city.city.config("police")
    address, ours = load_config(config).shelf, load_tls(config, load_config(config), now=now())
    guest = DeployedCity(city.city.folder, city.authority, {"harbour": IdentityKey.generate()})
    join(guest, "harbour")
    theirs = load_tls(guest.config("harbour"), load_config(guest.config("harbour")), now=now())
    callers = {"none": None, "foreign": member_files(new_authority("gotham"), "police"), "revoked": theirs}
    refused = {}
    with raw_caller(address, ours.authority, theirs) as channel:
        assert take(channel, ROSTER)
        assert city.server("city", "remove", "harbour").returncode == 0
        refused["at once"] = code_of(lambda: take(channel, ROSTER))[0]
    for name, files in callers.items():
        with raw_caller(address, ours.authority, files) as channel:
            refused[name] = code_of(functools.partial(take, channel, ROSTER))[0]
    closed, denied = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED
    assert refused == {"at once": denied, "none": closed, "foreign": closed, "revoked": denied}
    with raw_caller(address, ours.authority, ours) as channel:
        assert take(channel, ROSTER) == city.authority.roster.read_bytes()
        for method in (f"/{SERVICE}/Attach", f"/{SERVICE}/Answer", "/cityfed.Shelf/Put"):
            assert code_of(functools.partial(channel.unary_unary(method), b"", timeout=20))[0] is UNKNOWN


# --- by way of Flower --------------------------------------------------------------------------------------


def test_anonymous_callers_reach_neither_control_nor_runtime_through_the_gateway(city: RunningCity) -> None:
    config = load_config(city.city.config("police"))
    roots = (city.city.home("police") / config.city_ca).read_bytes()
    shown = {"insecure": False, "root_certificates": roots, "interceptors": VERSION}
    control = ControlHttpClient.from_server_address(config.fleet, **shown)
    runtime = RuntimeHttpClient.from_server_address(config.fleet, **shown)
    with control, runtime:
        for call in (
            lambda: control.ListNodes(ListNodesRequest()),
            lambda: control.ListRuns(ListRunsRequest()),
            lambda: control.StartRun(StartRunRequest()),
            lambda: runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TASK_TYPE])),
        ):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                call()
            assert caught.value.response.status_code == 404
    assert city.online() == set(FOUR)


SHIPPED = """\
from pathlib import Path
from flwr.clientapp import ClientApp
Path({marker!r}).touch()
app = ClientApp()
"""

SENDER = """\
import json
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    messages = [Message(RecordDict(), node, "train.cityfed") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=60))
    codes = [reply.error.code if reply.has_error() else -1 for reply in replies]
    part = Path({verdict!r} + ".part")
    part.write_text(json.dumps(codes))
    part.rename({verdict!r})
"""

SETTINGS = """\
[project]
name = "helpful"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "gotham"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["*.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "sender:app"
clientapp = "shipped:app"
"""


def bundle_with_code(marker: Path, verdict: Path) -> bytes:
    """What Flower would unpack and run on every department's machine."""
    files = {
        "pyproject.toml": SETTINGS,
        "LICENSE": "none\n",
        "sender.py": SENDER.format(verdict=str(verdict)),
        "shipped.py": SHIPPED.format(marker=str(marker)),
    }
    listed = [f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}" for name, text in files.items()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {**files, ".info/CONTENT": "\n".join(listed)}.items():
            archive.writestr(name, text)
    return packed.getvalue()


def start_foreign(superlink: SuperLink, bundle: bytes) -> None:
    """Submit a bundle as somebody with an account on the authority's machine could."""
    roots = superlink.certificate.read_bytes()
    client = ControlHttpClient.from_server_address(
        superlink.address, insecure=False, root_certificates=roots, interceptors=VERSION
    )
    with client:
        client.StartRun(StartRunRequest(fab=Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)))


def test_a_bundle_with_code_is_refused_by_every_department_and_reported(city: RunningCity, tmp_path: Path) -> None:
    marker, verdict = tmp_path / "code-ran", tmp_path / "verdict"
    before = {name: city.pid(name, "node") for name in FOUR}
    bundle = bundle_with_code(marker, verdict)
    start_foreign(find_superlink(city.authority), bundle)
    wait_until(verdict.exists, "every department has answered", 120.0)
    assert json.loads(verdict.read_text()) == [ErrorCode.INVALID_FAB] * 4
    assert not marker.exists()
    digest = hashlib.sha256(bundle).hexdigest()
    for name in FOUR:
        log = (city.city.home(name) / "service" / "log" / "node.log").read_text()
        assert f"not on the allow-list: {digest}" in log
    assert {name: city.pid(name, "node") for name in FOUR} == before
