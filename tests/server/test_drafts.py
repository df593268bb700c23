"""The life of a plan at the authority: nothing is drafted from hearsay, signed in another's name, or published late."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import tomli_w
from msgspec import structs

from server.asks import PACKAGED, ModelChoice, PlanAsk, PrivacyAsk
from server.city import load_city
from server.drafts import SIMULATED_ONLY, city_line, draft, load_ask, load_basis
from server.home import AuthorityHome
from server.plan_files import PlanState, list_plans, load_published, publish, sign
from server.roster import admit, remove
from shared.certificates import TlsKey, make_signing_request
from shared.city import SUMMARY_LABEL, DatasetSummary, EnrolmentRequest, sign_request
from shared.codec import decode, dump_json, encode
from shared.errors import CityFedError
from shared.identity import IdentityKey, fingerprint, sign_record
from shared.model_file import read_model
from shared.package import package_digest
from shared.parameters import model_hash
from shared.plan import LocalOptimizer, Plan, accept_plan
from shared.tasks.encoder_files import read_config
from tests.command_line import Run
from tests.deployed_city import SMALL_ASK, found, now
from tests.fixtures.tiny_bert import write_tiny_bert
from tests.refusals import code_of
from tests.server.small_plan import plan_with

NAMES = ("environment", "health", "police", "transport")


class Town:
    """A city whose members are keys only."""

    def __init__(self, folder: Path) -> None:
        self.home = found(folder)
        self.keys = {name: IdentityKey.generate() for name in NAMES}
        for name in NAMES:
            self.join(name)

    def join(self, name: str) -> None:
        key, city = self.keys.setdefault(name, IdentityKey.generate()), load_city(self.home)
        request = EnrolmentRequest(
            city=city.digest(),
            department=name,
            identity=key.public,
            signing_request=make_signing_request(TlsKey.generate(), city=city.city, department=name),
        )
        admit(self.home, sign_request(key, request), fingerprint_typed=fingerprint(key.public), now=now())

    def summary(self, name: str, *, signer: str = "", **changes: object) -> Path:
        told = DatasetSummary(
            city=load_city(self.home).digest(),
            department=name,
            dataset="reports",
            contract_hash="ab" * 32,
            public_size=100,
            package_digest=package_digest(),
        )
        signed = sign_record(self.keys[signer or name], SUMMARY_LABEL, msgspec.structs.replace(told, **changes))
        path = self.home.root.parent / f"{name}-summary.json"
        path.write_bytes(dump_json(signed))
        return path

    def drafted(self, ask: PlanAsk = SMALL_ASK, *names: str, valid_days: int = 30) -> Plan:
        files = [self.summary(name) for name in (names or NAMES)]
        return draft(self.home, ask, files, now=now(), valid_days=valid_days)[0]


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def states(home: AuthorityHome) -> dict[str, PlanState]:
    return {line.digest: line.state for line in list_plans(home)}


# --- what is asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_scenario_is_a_plan_and_what_plays_a_city_is_left_out(name: str) -> None:
    ask = load_ask(name)
    assert (ask.name, ask.purpose) == (name, "emergency-triage")
    assert ask.optimizer.learning_rate > 0


def test_a_plan_of_ones_own_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    text = (
        'name = "small"\npurpose = "emergency-triage"\nrounds = 2\nspare_attempts = 1\n'
        '[model]\narchitecture = "hashed-words"\n'
        "[privacy]\nepsilon = 2.0\ndelta = 1e-4\nsample_rate = 0.2\nsteps = 2\nmax_grad_norm = 1.0\n"
        '[optimizer]\nkind = "sgd"\nlearning_rate = 2.0\n'
    )
    path.write_text(text)
    assert load_ask(str(path)) == SMALL_ASK
    long = text.replace('"small"', f'"{"x" * 201}"'), text.replace('"emergency-triage"', f'"{"x" * 201}"')
    for wrong in (
        *long,
        "colour = 1\n" + text,
        text.replace("rounds = 2", "rounds = 2.5"),
        text.replace("epsilon", "eps"),
    ):
        path.write_text(wrong)
        assert code_of(lambda: load_ask(str(path))) == "toml-content"
    path.write_text("name =")
    assert code_of(lambda: load_ask(str(path))) == "toml-syntax"
    path.write_bytes(b"\xff")
    assert code_of(lambda: load_ask(str(path))) == "scenario-unreadable"
    assert code_of(lambda: load_ask("nowhere")) == "scenario-missing"


def test_every_key_that_is_left_out_belongs_to_the_simulation() -> None:
    from simulation.scenario import Scenario

    assert set(SIMULATED_ONLY) | set(PlanAsk.__struct_fields__) == set(Scenario.__struct_fields__)


@pytest.mark.parametrize(
    ("unit", "who"),
    [
        ("record", "Somebody with one record in each of the 3 departments pays"),
        ("person", "A person who is in the data of each of the 3 departments pays"),
    ],
)
def test_a_plan_says_whom_its_city_wide_figure_is_about(unit: Literal["record", "person"], who: str) -> None:
    plan = plan_with(dict.fromkeys(("a", "b", "c"), 1 / 3))
    line = city_line(structs.replace(plan, privacy=structs.replace(plan.privacy, unit=unit)))
    assert line.startswith(f"{who} at most epsilon ")


# --- drafts ------------------------------------------------------------------------------------------------


def test_a_draft_holds_what_the_departments_told(town: Town) -> None:
    town.summary("police")
    files = [town.summary(name, public_size=100 + 10 * at) for at, name in enumerate(NAMES)]
    plan, path = draft(town.home, SMALL_ASK, files, now=now(), valid_days=7)
    assert {name: terms.public_size for name, terms in plan.datasets.items()} == {
        name: 100 + 10 * at for at, name in enumerate(NAMES)
    }
    assert all(terms.contract_hash == "ab" * 32 for terms in plan.datasets.values())
    assert plan.valid_until - plan.valid_from == dt.timedelta(days=7)
    assert (plan.roster_size, plan.attempts, plan.package_digest) == (4, 3, package_digest())
    assert decode(path.read_bytes(), Plan) == plan
    model = read_model(town.home.model(plan.initial_model_sha256), plan.layout)
    assert model_hash(model).hex() == plan.initial_model_sha256


def test_the_same_plan_again_is_another_approval_and_so_another_run(town: Town) -> None:
    first = town.drafted()
    sign(town.home, first.digest().hex(), now=now())
    second = town.drafted()
    assert (first.approval, second.approval) == (1, 2)
    assert first.run_id() != second.run_id()


def test_hearsay_is_not_drafted_from(town: Town, tmp_path: Path) -> None:
    good = [town.summary(name) for name in NAMES[:3]]

    def code(file: Path) -> str:
        return code_of(lambda: draft(town.home, SMALL_ASK, [*good, file], now=now(), valid_days=30))

    assert code(town.summary("transport", signer="police")) == "signature-invalid"
    assert code(town.summary("transport", city=b"c" * 32)) == "city-foreign"
    assert code(town.summary("transport", package_digest="other")) == "package-foreign"
    assert code(good[0]) == "summary-repeated"
    assert code(tmp_path / "nowhere") == "file-missing"
    assert code(town.home.config) == "json-content"
    town.keys["parks"] = IdentityKey.generate()
    assert code(town.summary("parks")) == "member-unknown"
    assert states(town.home) == {}


@pytest.mark.parametrize("change", [{"name": "x" * 201}, {"purpose": "x" * 201}])
def test_what_nobody_could_read_again_is_not_drafted(town: Town, change: dict[str, str]) -> None:
    asked = msgspec.structs.replace(SMALL_ASK, **change)
    assert code_of(lambda: town.drafted(asked)) == "message-malformed"
    assert states(town.home) == {}


def test_a_plan_file_that_cannot_be_read_is_named(town: Town) -> None:
    plan = town.drafted()
    for state in PlanState:
        path = town.home.plan(state, plan.digest().hex())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no plan")
        with pytest.raises(CityFedError) as caught:
            list_plans(town.home)
        assert caught.value.code == "message-malformed"
        assert str(path) in caught.value.message
        path.unlink()


def test_too_few_departments_make_no_plan(town: Town) -> None:
    assert code_of(lambda: town.drafted(SMALL_ASK, "police", "health")) == "cohort-too-small"
    assert len(town.drafted(SMALL_ASK, "police", "health", "transport").cohort) == 3
    for name in NAMES[:2]:
        remove(town.home, name, now=now())
    assert code_of(lambda: town.drafted(SMALL_ASK, *NAMES[2:])) == "cohort-too-small"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"privacy": structs.replace(SMALL_ASK.privacy, mechanism="shared-noise", steps=1)}, "plan-impossible"),
        ({"model": ModelChoice(architecture="minilm")}, "weights-missing"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(town: Town, change: dict[str, object], code: str) -> None:
    assert code_of(lambda: town.drafted(msgspec.structs.replace(SMALL_ASK, **change))) == code


@pytest.mark.parametrize("days", [0, 367])
def test_a_plan_is_valid_for_a_while_and_not_for_ever(town: Town, days: int) -> None:
    assert code_of(lambda: town.drafted(valid_days=days)) == "valid-days"


def test_base_weights_lie_where_the_configuration_says(town: Town, tmp_path: Path) -> None:
    (tmp_path / "authority" / "minilm").mkdir()
    town.home.config.write_text(town.home.config.read_text().replace('weights = ""', 'weights = "minilm"'))
    assert code_of(lambda: load_basis(town.home, ModelChoice())) == "weights-missing"
    (tmp_path / "authority" / "minilm" / "model.safetensors").write_bytes(b"no weights")
    assert code_of(lambda: load_basis(town.home, ModelChoice())) in {"base-weights-missing", "encoder-config"}


# --- signed and published ----------------------------------------------------------------------------------


def test_a_plan_goes_from_draft_to_signed_to_published(town: Town) -> None:
    plan = town.drafted()
    digest = plan.digest().hex()
    assert states(town.home) == {digest: PlanState.DRAFT}
    assert code_of(lambda: publish(town.home, digest, now=now())) == "plan-unknown"
    sign(town.home, digest, now=now())
    assert states(town.home) == {digest: PlanState.SIGNED}
    assert code_of(lambda: load_published(town.home, digest)) == "plan-unknown"
    assert code_of(lambda: sign(town.home, digest, now=now())) == "plan-unknown"
    publish(town.home, digest, now=now())
    assert states(town.home) == {digest: PlanState.PUBLISHED}
    signed, loaded = load_published(town.home, digest)
    assert accept_plan(signed, load_city(town.home).plan_key) == loaded == plan


@pytest.mark.parametrize("digest", ["", "ab" * 32, "../../keys/plan.key", "zz" * 32, "AB" * 31])
def test_a_plan_that_is_not_there_is_one_sentence(town: Town, digest: str) -> None:
    for act in (sign, publish):
        assert code_of(lambda act=act: act(town.home, digest, now=now())) == "plan-unknown"


def test_a_changed_plan_is_neither_signed_nor_published(town: Town) -> None:
    plan = town.drafted()
    digest = plan.digest().hex()
    path = town.home.plan(PlanState.DRAFT, digest)
    changed = encode(msgspec.structs.replace(plan, rounds=9))
    original = path.read_bytes()
    path.write_bytes(changed)
    assert code_of(lambda: sign(town.home, digest, now=now())) == "plan-changed"
    path.write_bytes(original)
    sign(town.home, digest, now=now())
    path = town.home.plan(PlanState.SIGNED, digest)
    forged = sign_record(IdentityKey.generate(), "plan", plan)
    path.write_bytes(encode(forged))
    assert code_of(lambda: publish(town.home, digest, now=now())) == "signature-invalid"
    assert states(town.home) == {digest: PlanState.SIGNED}


def test_a_plan_for_yesterday_or_for_another_roster_goes_nowhere(town: Town) -> None:
    digest = town.drafted().digest().hex()
    late = now() + dt.timedelta(days=31)
    assert code_of(lambda: sign(town.home, digest, now=late)) == "plan-expired"
    sign(town.home, digest, now=now())
    assert code_of(lambda: publish(town.home, digest, now=late)) == "plan-expired"
    town.join("parks")
    assert code_of(lambda: publish(town.home, digest, now=now())) == "roster-size"
    assert states(town.home) == {digest: PlanState.SIGNED}


# --- the command -------------------------------------------------------------------------------------------


def test_the_commands_name_a_plan_by_its_digest(run: Run, town: Town, tmp_path: Path) -> None:
    scenario, at = tmp_path / "small.toml", ("--home", town.home.root)
    tree = msgspec.to_builtins(SMALL_ASK)
    scenario.write_bytes(msgspec.toml.encode(tree))
    files = [town.summary(name) for name in NAMES]
    assert run("plan", "list", *at).out == "There is no plan.\n"
    ended = run("plan", "draft", scenario, *files, *at)
    assert ended.code == 0, ended.err
    digest = ended.out.splitlines()[-1]
    assert run("plan", "sign", digest, *at).code == 0
    assert run("plan", "publish", digest, *at).code == 0
    (line,) = json.loads(run("plan", "list", *at, "--json").out)
    assert (line["digest"], line["state"], line["cohort"]) == (digest, "published", list(NAMES))
    assert digest in run("plan", "list", *at).out
    kinds = [json.loads(entry)["kind"] for entry in run("audit", "show", town.home.office_journal).out.splitlines()]
    assert kinds[-2:] == ["plan-signed", "plan-published"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("trainable", '"lora"'),
        ("last_n", "2"),
        ("max_tokens", "4"),
        ("max_grad_norm", "1e-7"),
        ("max_grad_norm", "1e7"),
        ("iterate", '"mean-of-last-half"'),
        ("kind", '"adamw"\nmomentum = 0.9'),
    ],
)
def test_a_plan_that_could_never_train_is_one_sentence(
    run: Run, town: Town, tmp_path: Path, line: str, value: str
) -> None:
    scenario = tmp_path / "small.toml"
    tree = msgspec.to_builtins(SMALL_ASK)
    tree["optimizer"] = {"kind": "sgd", "iterate": "last", "learning_rate": 2.0}
    for table in ("task", "server_optimizer"):
        del tree[table]
    text, changes = re.subn(f"^{line} = .*$", lambda _: f"{line} = {value}", tomli_w.dumps(tree), flags=re.MULTILINE)
    assert changes == 1
    scenario.write_text(text)
    ended = run("plan", "draft", scenario, *(town.summary(name) for name in NAMES), "--home", town.home.root)
    assert (ended.code, ended.out) == (2, "")
    assert ended.sentence.endswith("[toml-content]")
    assert states(town.home) == {}


def test_more_tokens_than_the_encoder_has_places_for_make_no_plan(town: Town, tmp_path: Path) -> None:
    weights = tmp_path / "authority" / "minilm"
    weights.mkdir()
    write_tiny_bert(weights)
    town.home.config.write_text(town.home.config.read_text().replace('weights = ""', 'weights = "minilm"'))
    limit = read_config(weights).max_position_embeddings
    assert load_basis(town.home, ModelChoice(max_tokens=limit)).spec.max_tokens == limit
    assert code_of(lambda: load_basis(town.home, ModelChoice(max_tokens=limit + 1))) == "max-tokens"


def test_privacy_that_no_noise_can_give_is_one_sentence(town: Town) -> None:
    ask = msgspec.structs.replace(
        SMALL_ASK,
        rounds=1000,
        privacy=PrivacyAsk(epsilon=1e-6, delta=1e-9, sample_rate=1.0, steps=1000, max_grad_norm=1.0),
        optimizer=LocalOptimizer(kind="sgd", learning_rate=1.0),
    )
    with pytest.raises(CityFedError) as caught:
        town.drafted(ask)
    assert caught.value.exit_code == 2
