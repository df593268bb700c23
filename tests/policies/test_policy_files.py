from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from policies.facts import Phase
from policies.load import (
    MAX_POLICY_BYTES,
    complete,
    department_names,
    department_policy,
    open_policy,
    parse_policy,
    policy_digest,
    sign_policy,
    template,
    template_names,
)
from policies.policy import Policy
from policies.rules import RULES
from shared.codec import sha256
from shared.errors import ConfigError
from shared.identity import IdentityKey, fingerprint
from shared.privacy.accountant import MechanismEvent, calibrate_noise, filter_epsilon
from shared.privacy.plan import PrivacyBudget

Change = Callable[..., Any]

PINS = {
    "dataset": "reports",
    "contract_hash": "ab" * 32,
    "plan_key_fingerprint": fingerprint(bytes(32)),
    "roster_key_fingerprint": fingerprint(bytes([7]) * 32),
}


def test_a_signed_policy_opens_and_keeps_its_digest(policy_text: str, owner: IdentityKey) -> None:
    file = sign_policy(owner, policy_text.encode())
    opened = open_policy(file.text, file.signature, owner.public, "policy.toml")
    assert opened.policy.department == "transport"
    assert opened.digest == policy_digest(file.text)


def test_p4_a_policy_signed_by_somebody_else_is_refused(policy_text: str, owner: IdentityKey) -> None:
    file = sign_policy(IdentityKey.generate(), policy_text.encode())
    with pytest.raises(ConfigError, match=r"policy\.toml is not signed by the policy owner") as caught:
        open_policy(file.text, file.signature, owner.public, "policy.toml")
    assert caught.value.code == "policy-unsigned"


def test_p4_one_changed_byte_of_a_policy_is_refused(policy_text: str, owner: IdentityKey) -> None:
    file = sign_policy(owner, policy_text.encode())
    for place in range(0, len(file.text), 97):
        changed = bytes([*file.text[:place], file.text[place] ^ 1, *file.text[place + 1 :]])
        with pytest.raises(ConfigError, match="is not signed"):
            open_policy(changed, file.signature, owner.public, "policy.toml")


def test_p4_a_signature_made_for_a_plan_does_not_sign_a_policy(policy_text: str, owner: IdentityKey) -> None:
    text = policy_text.encode()
    with pytest.raises(ConfigError, match="is not signed"):
        open_policy(text, owner.sign("plan", text), owner.public, "policy.toml")


def test_a_changed_comment_is_another_policy(policy_text: str) -> None:
    assert policy_digest(policy_text.encode()) == sha256(b"policy", policy_text.encode())
    assert policy_digest(policy_text.encode()) != policy_digest(f"{policy_text}# note\n".encode())


@pytest.mark.parametrize(
    ("old", "new", "key", "table"),
    [
        ("max_aborted_rounds = 2", "max_aborted_round = 2", "max_aborted_round", "aggregation"),
        ("[training]", "[training]\nrequire_poisson = true", "require_poisson", "training"),  # earlier policies had it
    ],
)
def test_an_unknown_key_is_one_sentence(old: str, new: str, key: str, table: str, policy_text: str) -> None:
    assert policy_text.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        parse_policy(policy_text.replace(old, new).encode(), "policy.toml")
    assert caught.value.message == f"policy.toml: Object contains unknown field `{key}` at `.{table}`."


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 2", "version"),
        ('dataset = "reports"', 'dataset = ""', "dataset"),
        ("minimum_rows = 150", "minimum_rows = 0", "minimum_rows"),
        ("minimum_rows = 150", "minimum_rows = true", "minimum_rows"),
        ("minimum_rows = 150", 'minimum_rows = "200"', "minimum_rows"),
        ("minimum_rows = 150\n", "", "minimum_rows"),
        ("minimum_units = 120", "minimum_units = 0", "minimum_units"),
        ("max_rounds = 400", "max_rounds = -1", "max_rounds"),
        ("max_steps_per_round = 200", "max_steps_per_round = 0", "max_steps_per_round"),
        ("max_sample_rate = 0.2", "max_sample_rate = 0.0", "max_sample_rate"),
        ("max_sample_rate = 0.2", "max_sample_rate = 1.5", "max_sample_rate"),
        ("max_learning_rate = 100.0", "max_learning_rate = inf", "max_learning_rate"),
        ("max_grad_norm = 10.0", "max_grad_norm = nan", "max_grad_norm"),
        ("min_noise_multiplier = 0.5", "min_noise_multiplier = 0.0", "min_noise_multiplier"),
        ('unit = "record"', 'unit = "row"', "unit"),
        ("delta = 1e-4", "delta = 1.0", "delta"),
        ("delta = 1e-4", "delta = 0.0", "delta"),
        ("delta = 1e-4", "delta = 1e-4\nwindow = { days = 0, epsilon = 6.0 }", "days"),
        ('unit = "record"', 'unit = "person"\npopulation = { name = "The people", epsilon = 12.0 }', "name"),
        ('accountant = "dp-accounting 0.6 PLD"', 'accountant = ""', "accountant"),
        ("min_contributors_min = 3", "min_contributors_min = 2", "min_contributors_min"),
        ("threshold_min = 3", "threshold_min = 1", "threshold_min"),
        ("colluders_min = 1", "colluders_min = -1", "colluders_min"),
        ("bound_max = 64.0", "bound_max = inf", "bound_max"),
        ("max_bytes = 100_000_000", "max_bytes = 0", "max_bytes"),
        ('"head.*"', '"*"', "wildcard"),
        ('identifiers = ["service_request_id"]', 'identifiers = ["description"]', "identifier"),
        ('identifiers = ["service_request_id"]', 'identifiers = ["request"]', "identifier"),
        ('metadata = ["service_code"', 'metadata = ["description"', "metadata"),
        ('label = "request"', 'label = "description"', "label"),
        ("valid_until = 2035-12-31", "valid_until = 2024-12-31", "valid_until"),
        ('contract_hash = "ab', 'contract_hash = "AB', "contract_hash"),
        ('department = "transport"', 'department = "Transport"', "department"),
        ('"transport-it" = "it"', '"transport-it" = "boss"', "people"),
        ('it = "Transport IT operations"', 'it = " "', "steward"),
        ('dpo = "City data protection officer"', 'dpo = ""', "steward"),
        ('steward = "Transport data office"', 'steward = " "', "steward"),
        ('plan_key_fingerprint = "', 'plan_key_fingerprint = "x', "fingerprint"),
    ],
)
def test_an_impossible_value_is_one_sentence_that_names_it(old: str, new: str, said: str, policy_text: str) -> None:
    assert policy_text.count(old) == 1
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        parse_policy(policy_text.replace(old, new).encode(), "policy.toml")
    assert caught.value.message.startswith("policy.toml: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("minimum_rows = 150", "minimum_rows = 1"),
        ("minimum_units = 120", "minimum_units = 1"),
        ("delta = 1e-4", "delta = 1e-4\nwindow = { days = 1, epsilon = 6.0 }"),
    ],
)
def test_the_smallest_possible_value_is_one(old: str, new: str, policy_text: str) -> None:
    assert policy_text.count(old) == 1
    parse_policy(policy_text.replace(old, new).encode(), "policy.toml")


def costliest(policy: Policy) -> float:
    """What the filter needs for the costliest of many plans that cost exactly the cap of a run, by PLD."""
    training, caps = policy.training, policy.privacy
    found = [0.0]
    for share, steps in itertools.product((0.01, 1.0), (1, 100, 300)):
        rate = min(share, training.max_sample_rate)
        if steps > training.max_rounds * training.max_steps_per_round:
            continue
        noise = calibrate_noise(
            budget=PrivacyBudget(epsilon=caps.epsilon_per_run, delta=caps.delta), sample_rate=rate, total_steps=steps
        )
        if noise >= training.min_noise_multiplier:
            event = MechanismEvent(noise_multiplier=noise, sample_rate=rate, steps=steps)
            found.append(filter_epsilon([event], caps.delta))
    return max(found)


@pytest.mark.parametrize("name", ["deny-all", "text-classification", "police"])
def test_every_plan_at_the_cap_of_a_run_fits_the_shared_caps_and_closes_nothing(name: str) -> None:
    text = template(name) if name in template_names() else department_policy(name)
    policy = parse_policy(complete(text, **PINS).encode(), name)
    needed = costliest(policy)
    assert needed > 0
    assert needed <= policy.privacy.epsilon_lifetime
    assert policy.privacy.population is None or needed <= policy.privacy.population.epsilon
    assert policy.privacy.window is None or needed <= policy.privacy.window.epsilon


def test_factor_1_4_alone_is_not_enough_for_plans_that_draw_little() -> None:
    """Why packaged policies have more: privacy 5 says what a grid of plans needs."""
    noise = calibrate_noise(budget=PrivacyBudget(epsilon=1.0, delta=1e-5), sample_rate=0.01, total_steps=100)
    needed = filter_epsilon([MechanismEvent(noise_multiplier=noise, sample_rate=0.01, steps=100)], 1e-5)
    assert 2.2 < needed < 2.3


def test_the_lifetime_cap_is_at_least_1_4_times_the_cap_of_a_run(policy: Policy, change: Change) -> None:
    least = 1.4 * 3.0
    assert change(policy, "privacy.epsilon_lifetime", least).privacy.epsilon_lifetime == least
    with pytest.raises(ValueError, match="epsilon_lifetime"):
        change(policy, "privacy.epsilon_lifetime", math.nextafter(least, 0))


@pytest.mark.parametrize(
    ("text", "code"), [(b"\xff", "toml-encoding"), (b"a = ", "toml-syntax"), (b"", "toml-content")]
)
def test_a_file_that_is_no_policy_is_refused(text: bytes, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "policy.toml")
    assert caught.value.code == code


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(b"#" * (MAX_POLICY_BYTES + 1), "policy.toml")
    assert caught.value.code == "policy-too-large"


def test_the_largest_file_is_parsed(policy_text: str) -> None:
    text = policy_text.encode()
    longest = text + b"#" * (MAX_POLICY_BYTES - len(text))
    assert parse_policy(longest, "policy.toml") == parse_policy(text, "policy.toml")


def test_the_four_departments_have_complete_examples() -> None:
    assert department_names() == ("environment", "health", "police", "transport")
    for name in department_names():
        policy = parse_policy(complete(department_policy(name), **PINS).encode(), name)
        assert policy.department == name
        assert (policy.contract_hash, policy.authority.roster_key_fingerprint) == (
            PINS["contract_hash"],
            PINS["roster_key_fingerprint"],
        )
        assert sorted(policy.approval.people.values()) == ["dpo", "it", "steward"]


def test_every_template_completes_to_a_valid_policy() -> None:
    assert template_names() == ("deny-all", "text-classification")
    for name in template_names():
        assert parse_policy(complete(template(name), **PINS).encode(), name).version == 1


def test_a_template_is_named_and_not_a_path() -> None:
    for name in ("nobody", "../departments/transport", ""):
        with pytest.raises(ConfigError, match="deny-all, text-classification") as caught:
            template(name)
        assert caught.value.code == "template-unknown"


def test_completing_twice_is_refused(policy_text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(policy_text, **PINS)
    assert caught.value.code == "toml-syntax"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 'x"\nversion = 2') for name in PINS),
        ("contract_hash", "a" * 63),
        ("contract_hash", "a" * 65),
        ("contract_hash", "A" * 64),
    ],
)
def test_completing_with_a_malformed_value_is_the_callers_mistake(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"hex digits|lower-case letter"):
        complete(template("deny-all"), **{**PINS, name: value})


def test_a_contract_hash_may_have_every_digit() -> None:
    digits = "0123456789abcdef" * 4
    text = complete(template("deny-all"), **{**PINS, "contract_hash": digits})
    assert parse_policy(text.encode(), "policy.toml").contract_hash == digits


def test_completing_changes_nothing_else() -> None:
    text = department_policy("health")
    assert text.rstrip() in complete(text, **PINS)


def field_names(record: type[msgspec.Struct]) -> set[str]:
    """Return the names of a record's fields and of the records in it."""
    names: set[str] = set()
    for field in msgspec.structs.fields(record):
        names.add(field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            names |= field_names(field.type)
    return names


def test_the_documentation_describes_every_rule_and_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`([a-z_]+)`", text))
    assert field_names(Policy) - described == set()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| R")}
    assert set(rows) == {entry.rule for entry in RULES} | {"R28"}
    for rule, row in rows.items():
        letters = {"ABCDE"[list(Phase).index(phase)] for entry in RULES if entry.rule == rule for phase in entry.phases}
        assert row.split("|")[4].split() == sorted(letters or "ABCDE")


@pytest.mark.parametrize("name", department_names())
def test_an_example_lets_a_binding_map_every_property_of_the_contract_in_its_role(name: str) -> None:
    contract = yaml.safe_load((resources.files("shared.contracts") / name / "report-1.0.0.odcs.yaml").read_bytes())
    by_role: dict[str, set[str]] = {}
    for item in contract["schema"][0]["properties"]:
        role = next(entry["value"] for entry in item["customProperties"] if entry["property"] == "role")
        by_role.setdefault(role, set()).add(item["name"])
    columns = parse_policy(complete(department_policy(name), **PINS).encode(), name).columns
    assert by_role == {
        "feature": set(columns.features),
        "label": {columns.label},
        "identifier": set(columns.identifiers),
        "metadata": set(columns.metadata),
    }
