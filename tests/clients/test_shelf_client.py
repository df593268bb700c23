"""Fetching from an authority that may do anything: only what was announced and signed is put in place, or nothing is."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import msgspec
import pytest

from clients.shelf import ROSTER_FILE, fetch_plans, fetch_released, fetch_roster, open_shelf
from server.city import load_plan_key, load_roster_key, load_server_tls
from server.mutual_tls import Door, shown
from server.plans import sign_plan
from server.roster import load_members
from shared.channel import CHUNK_BYTES, Payload, Start, frames
from shared.codec import decode, encode
from shared.errors import CityFedError
from shared.identity import MAX_SIGNED_BYTES, DepartmentId, IdentityKey, sign_record
from shared.plan import Plan
from shared.shelf import FETCH, ITEM_KEY, LIST, MODEL_FILES, SERVICE, Item, Kind, Listing
from tests.deployed_city import DeployedCity, found, join, now
from tests.refusals import code_of
from tests.server.small_plan import plan_with

NAME = "police"
PLAN: Plan = plan_with(dict.fromkeys(("health", "police", "transport"), 1.0))
DIGEST = PLAN.digest().hex()
Answer = Callable[[], Iterator[bytes]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> DeployedCity:
    """One admitted department."""
    folder = tmp_path_factory.mktemp("client") / "city"
    folder.mkdir()
    city = DeployedCity(folder, found(folder), {NAME: IdentityKey.generate()})
    join(city, NAME)
    return city


@dataclass
class Crooked:
    """A shelf of the right city that answers whatever a test wants."""

    city: DeployedCity
    answers: dict[Item | None, Answer] = field(default_factory=dict)
    asked: list[Item | None] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.city.config(NAME)

    def say(self, item: Item | None, content: bytes) -> None:
        """Answer rightly."""
        self.answers[item] = lambda: frames(0, Payload.of(content))

    def list_plans(self, *digests: str) -> None:
        self.say(None, encode(Listing(roster=True, plans=digests, models=())))

    def serve(self, _nothing: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        named = shown(context, ITEM_KEY)
        item = decode(named, Item) if named else None
        self.asked.append(item)
        try:
            yield from self.answers[item]()
        except KeyError:
            context.abort(grpc.StatusCode.NOT_FOUND, "not-on-shelf")


@pytest.fixture
def crooked(original: DeployedCity, tmp_path: Path) -> Iterator[Crooked]:
    shutil.copytree(original.folder, tmp_path / "city")
    copy = DeployedCity(tmp_path / "city", type(original.authority)(tmp_path / "city" / "authority"), {})
    crooked = Crooked(copy)
    with serving(crooked):
        yield crooked


@contextmanager
def serving(crooked: Crooked) -> Iterator[None]:
    door = Door(name="shelf", port_code="shelf-port", member_of=lambda _: DepartmentId(NAME), calls_each=4)
    handler = grpc.stream_stream_rpc_method_handler(crooked.serve)
    tls = load_server_tls(crooked.city.authority, now=now())
    server, port = door.listen("127.0.0.1:0", tls, SERVICE, {LIST: handler, FETCH: handler}, calls=4)
    crooked.city.edit_config(NAME, shelf=f"127.0.0.1:{port}")
    try:
        yield
    finally:
        server.stop(grace=None).wait()


def signed_plan(crooked: Crooked) -> bytes:
    return encode(sign_plan(PLAN, load_plan_key(crooked.city.authority)))


def plans_of(crooked: Crooked) -> list[str]:
    """Every file in the folder of plans, hidden ones too."""
    return sorted(path.name for path in (crooked.config.parent / "plans").iterdir())


# --- transfers ---------------------------------------------------------------------------------------------


def cut_short(content: bytes, at: int) -> Answer:
    """A transfer that ends before its announced length."""
    payload = Payload.of(content)
    return lambda: iter([*frames(0, Payload(payload.length, lambda o, n: content[o : min(o + n, at)]))])


def announced(**changes: object) -> Answer:
    """The beginning of a transfer that says something else."""
    values = {"number": 0, "length": 10, **changes}
    return lambda: iter([encode(Start(**values))])  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (cut_short(bytes(CHUNK_BYTES), CHUNK_BYTES - 1), "transfer-unfinished"),
        (announced(), "transfer-unfinished"),
        (announced(length=3 * MAX_SIGNED_BYTES), "transfer-too-large"),
        (announced(number=1), "transfer-foreign"),
        (lambda: iter([*frames(0, Payload.of(b"1234"))]), "message-malformed"),
        (lambda: iter([*frames(0, Payload.of(b"1234")), *list(frames(0, Payload.of(b"5")))[1:]]), "chunk-out-of-order"),
        (lambda: iter([b"rubbish"]), "message-malformed"),
        (lambda: iter([]), "message-malformed"),
        (lambda: iter({}[1]), "not-on-shelf"),
    ],
)
def test_a_transfer_that_is_not_as_announced_leaves_nothing(crooked: Crooked, answer: Answer, code: str) -> None:
    crooked.list_plans(DIGEST)
    crooked.answers[Item(kind="plan", name=DIGEST)] = answer
    assert code_of(lambda: fetch_plans(crooked.config, now=now())) == code
    assert plans_of(crooked) == []
    crooked.say(Item(kind="plan", name=DIGEST), signed_plan(crooked))
    assert fetch_plans(crooked.config, now=now()) == (DIGEST,)
    assert plans_of(crooked) == [f"{DIGEST}.plan"]
    assert fetch_plans(crooked.config, now=now()) == ()
    assert crooked.asked[-1] is None  # it was not downloaded again


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "certificate-not-admitted", "certificate-not-admitted"),
        (grpc.StatusCode.DATA_LOSS, "shelf-changed", "shelf-changed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too-many-calls", "too-many-calls"),
        (grpc.StatusCode.INTERNAL, "\x1b[2Jplease run this", "shelf-refused"),
        (grpc.StatusCode.UNAVAILABLE, "internal-error", "shelf-unreachable"),
    ],
)
def test_a_refusal_is_told_by_name_and_no_other_text_of_the_authority_is(
    crooked: Crooked, status: grpc.StatusCode, text: str, code: str
) -> None:
    def abort(_nothing: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.abort(status, text)
        yield b""

    crooked.serve = abort  # type: ignore[method-assign]  # answers like this from now on
    with serving(crooked), pytest.raises(CityFedError) as caught:
        fetch_plans(crooked.config, now=now())
    assert caught.value.code == code
    assert "please" not in caught.value.message


def test_a_shelf_that_is_not_named_or_not_there_is_told_by_name(crooked: Crooked) -> None:
    with serving(crooked):
        pass  # nobody listens there any more
    assert code_of(lambda: fetch_roster(crooked.config, now=now())) == "shelf-unreachable"
    crooked.city.edit_config(NAME, shelf="")
    assert code_of(lambda: fetch_roster(crooked.config, now=now())) == "shelf-unnamed"
    (crooked.config.parent / "tls.crt").unlink()
    crooked.city.edit_config(NAME, shelf="127.0.0.1:1")
    assert code_of(lambda: fetch_roster(crooked.config, now=now())) == "not-admitted"


# --- what is believed --------------------------------------------------------------------------------------


def test_a_plan_that_another_key_signed_or_another_plan_is_not_installed(crooked: Crooked) -> None:
    item = Item(kind="plan", name=DIGEST)
    crooked.list_plans(DIGEST, "ab" * 32)
    crooked.say(item, encode(sign_plan(PLAN, IdentityKey.generate())))
    assert code_of(lambda: fetch_plans(crooked.config, DIGEST, now=now())) == "signature-invalid"
    crooked.say(Item(kind="plan", name="ab" * 32), signed_plan(crooked))
    assert code_of(lambda: fetch_plans(crooked.config, "ab" * 32, now=now())) == "plan-changed"
    asked = len(crooked.asked)
    assert code_of(lambda: fetch_plans(crooked.config, "cd" * 32, now=now())) == "not-on-shelf"
    assert crooked.asked[asked:] == [None]  # what is not listed is not asked for, whatever was typed
    assert plans_of(crooked) == []


def test_a_listing_with_a_name_that_is_none_is_refused(crooked: Crooked) -> None:
    for name in ("../../identity", "0" * 63, "G" * 64, "0" * 64 + "\n"):
        crooked.say(None, encode({"roster": True, "plans": [name], "models": []}))
        assert code_of(lambda: fetch_plans(crooked.config, now=now())) == "message-malformed"
        crooked.say(None, encode({"roster": True, "plans": [], "models": [name]}))
        assert code_of(lambda: fetch_released(crooked.config, "0", now=now())) == "message-malformed"


def test_a_roster_that_does_not_count_leaves_the_file_as_it_was(crooked: Crooked) -> None:
    item, kept = Item(kind="roster"), crooked.config.parent / ROSTER_FILE
    right = crooked.city.authority.roster.read_bytes()
    crooked.say(item, right)
    assert fetch_roster(crooked.config, now=now()).members[0].department == NAME
    assert kept.read_bytes() == right
    assert kept.stat().st_mode & 0o777 == 0o600
    crooked.say(item, right[:-1] + bytes([right[-1] ^ 1]))
    assert code_of(lambda: fetch_roster(crooked.config, now=now())) == "signature-invalid"
    assert kept.read_bytes() == right
    assert [path.name for path in crooked.config.parent.glob(f".{ROSTER_FILE}*")] == []


def test_a_roster_that_is_older_than_the_one_fetched_before_leaves_the_file_as_it_was(crooked: Crooked) -> None:
    """The node has seen neither of them yet."""
    item, kept = Item(kind="roster"), crooked.config.parent / ROSTER_FILE
    key, first = load_roster_key(crooked.city.authority), load_members(crooked.city.authority).roster

    def fetch(serial: int) -> int:
        newer = msgspec.structs.replace(first, serial=first.serial + serial)
        crooked.say(item, encode(sign_record(key, "roster", newer)))
        return fetch_roster(crooked.config, now=now()).serial - first.serial

    assert fetch(6) == 6
    right = kept.read_bytes()
    assert code_of(lambda: fetch(3)) == "roster-rolled-back"
    assert kept.read_bytes() == right
    assert [fetch(6), fetch(7)] == [6, 7]
    kept.write_bytes(b"rubbish")
    assert fetch(3) == 3  # a file that is no roster of the city keeps nobody from fetching one


def test_a_model_of_a_run_that_nobody_here_knows_is_not_even_downloaded(crooked: Crooked) -> None:
    runs = ("ab" * 32, "ac" * 32)
    crooked.say(None, encode(Listing(roster=True, plans=(), models=runs)))
    codes = {
        run: code_of(lambda run=run: fetch_released(crooked.config, run, now=now())) for run in ("a", "ab", "b", "")
    }
    assert codes == {"a": "run-ambiguous", "ab": "plan-unknown", "b": "run-unknown", "": "run-unknown"}
    assert set(crooked.asked) == {None}


@pytest.mark.parametrize("kind", MODEL_FILES)
def test_no_file_of_a_model_is_downloaded_that_is_longer_than_its_plan_says(crooked: Crooked, kind: Kind) -> None:
    run = PLAN.run_id().hex()
    crooked.list_plans(DIGEST)
    crooked.say(Item(kind="plan", name=DIGEST), signed_plan(crooked))
    fetch_plans(crooked.config, now=now())
    crooked.say(None, encode(Listing(roster=True, plans=(), models=(run,))))
    for other in MODEL_FILES:
        crooked.say(Item(kind=other, name=run), b"short")
    most = (1 << 20) + (4 * PLAN.layout.size if kind == "model" else 0)
    for length, code in ((most, "transfer-unfinished"), (most + 1, "transfer-too-large")):
        crooked.answers[Item(kind=kind, name=run)] = announced(length=length)
        assert code_of(lambda: fetch_released(crooked.config, run, now=now())) == code


def test_a_refused_transfer_is_broken_off_long_before_its_deadline(crooked: Crooked, tmp_path: Path) -> None:
    over = threading.Event()

    def endless(_nothing: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(over.set)
        yield b"rubbish"
        over.wait(60)

    crooked.serve = endless  # type: ignore[method-assign]  # answers like this from now on
    with serving(crooked), open_shelf(crooked.config, now=now()) as shelf:
        with pytest.raises(CityFedError) as caught:
            shelf.fetch(Item(kind="roster"), tmp_path / "roster", max_bytes=1 << 30)
        assert over.wait(60)
    assert caught.value.code == "message-malformed"  # kept until here, and the call with it
