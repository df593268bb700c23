"""Contract files: strict to read, real ODCS, and hashed by what training depends on."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from open_data_contract_standard.model import OpenDataContractStandard

from shared.contracts.contract import MAX_CONTRACT_BYTES, agreement_hash, load_contract, packaged_contract
from shared.contracts.strict_yaml import load_yaml
from shared.errors import ContractError

DEPARTMENTS = ("environment", "health", "police", "transport")
FILE = "report-1.0.0.odcs.yaml"


def text_of(department: str) -> str:
    return (resources.files("shared.contracts") / department / FILE).read_text("utf-8")


TEXT = text_of("transport")


def edited(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


@pytest.mark.parametrize("department", DEPARTMENTS)
def test_a_packaged_file_is_real_odcs(department: str) -> None:
    tree = yaml.safe_load(text_of(department))
    model = OpenDataContractStandard.from_string(text_of(department))
    # The model drops keys that it does not know; a round trip that loses nothing has only known ones.
    assert model.model_dump(exclude_unset=True, by_alias=True) == tree
    schema = json.loads((resources.files("open_data_contract_standard") / "schema.json").read_text("utf-8"))
    base = schema["$defs"]["SchemaBaseProperty"]
    assert set(schema["required"]) <= set(tree)
    assert tree["apiVersion"] in schema["properties"]["apiVersion"]["enum"]
    for item in tree["schema"][0]["properties"]:
        assert item["logicalType"] in base["properties"]["logicalType"]["enum"]
        assert set(item.get("logicalTypeOptions", {})) <= allowed_options(base, item["logicalType"])


def allowed_options(base: dict[str, Any], logical_type: str) -> set[str]:
    for rule in base["allOf"]:
        if f'"{logical_type}"' in json.dumps(rule.get("if", {})):
            return set(rule["then"]["properties"]["logicalTypeOptions"]["properties"])
    return set()


@pytest.mark.parametrize("department", DEPARTMENTS)
def test_a_packaged_contract_says_what_its_file_name_says(department: str) -> None:
    contract = packaged_contract(department)
    assert contract == load_contract(text_of(department))
    assert f"{contract.object}-{contract.version}.odcs.yaml" == FILE
    assert contract.features == ("description",)
    assert contract.labels == ("request",)
    assert contract.identifiers == ("service_request_id",)
    assert contract.required == ("description", "request")


def test_departments_have_contracts_of_their_own() -> None:
    assert len({agreement_hash(packaged_contract(name)) for name in DEPARTMENTS}) == 4


@pytest.mark.parametrize("name", ["parks", "", "../contracts/health", "__pycache__", "Health"])
def test_an_unknown_packaged_contract_is_refused(name: str) -> None:
    with pytest.raises(ContractError) as caught:
        packaged_contract(name)
    assert caught.value.code == "contract-unknown"


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("kind: DataContract", "kind: DataContract\nkindness: 1", "contract-content", "unknown field `kindness`"),
        ("domain:", "domian:", "contract-content", "unknown field `domian`"),
        ("apiVersion: v3.1.0", "apiVersion: v2.2.2", "contract-content", "apiVersion"),
        ("version: 1.0.0", "version: 1.10", "contract-content", "Expected `str`, got `float`"),
        ("version: 1.0.0", "version: '1.10'", "contract-content", "MAJOR.MINOR.PATCH"),
        ("required: true", "required: yes", "contract-content", "Expected `bool`, got `str`"),
        ("required: true", "required: no", "contract-content", "Expected `bool`, got `str`"),
        ("domain: transport", "domain: &d transport", "contract-syntax", "anchors"),
        ("domain: transport", "domain: !!str transport", "contract-syntax", "tags"),
        ("domain: transport", "domain: *d", "contract-syntax", "aliases"),
        ("domain: transport", "domain: transport\ndomain: health", "contract-syntax", "`domain` stands twice"),
        ("schema:", "schema: [[", "contract-syntax", "line"),
        ("domain: transport", 'domain: "\\ud800"', "contract-syntax", "half a character in line"),
        ("domain: transport", 'domain: "\\UFFFFFFFF"', "contract-syntax", "stands for no character"),
        ("maximum: 1", "maximum: 1e999", "contract-content", "finite"),
        ("minimum: 0", "minimum: -1e999", "contract-content", "finite"),
        ("maxLength: 5000", "maxLength: 9007199254740992", "contract-content", "lie in 0.."),
        ("minLength: 1, maxLength: 5000", "minLength: 9007199254740992", "contract-content", "lie in 0.."),
        ("name: request\n", "name: description\n", "contract-content", "stands only once"),
        ("value: label", "value: feature", "contract-content", "one feature and one label"),
        ("value: label", "value: secret", "contract-content", "secret"),
        ("maximum: 1", "maximum: -1", "contract-content", "not above `maximum`"),
        ("minLength: 1, maxLength: 5000", "minLength: 9, maxLength: 5", "contract-content", "not above `maxLength`"),
        ("maxLength: 5000", "maximum: 5000", "contract-content", "is no number"),
        ("minimum: 0, maximum: 1", "minLength: 1", "contract-content", "is no string"),
        ("value: C62", "value: KPH", "contract-content", "UN/CEFACT"),
        ("[transport, ", "[transport, transport, ", "contract-content", "repeats"),
        ("property: unit", "property: colour", "contract-content", "colour"),
        ("property: unit, value: C62", "property: role, value: label", "contract-content", "custom property twice"),
    ],
)
def test_a_wrong_file_is_one_sentence(old: str, new: str, code: str, words: str) -> None:
    with pytest.raises(ContractError) as caught:
        load_contract(edited(old, new), where="file.yaml")
    assert caught.value.code == code
    assert caught.value.message.startswith("file.yaml")
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["", "- 1", "a: 1\n---\nb: 2", "\x00", "? [a]\n: b", "[" * 5000])
def test_what_is_no_contract_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        load_contract(text)


def test_a_huge_file_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ContractError) as caught:
        load_contract("#" * (MAX_CONTRACT_BYTES + 1))
    assert caught.value.code == "contract-too-large"


def test_an_optional_label_is_refused() -> None:
    head, _, tail = TEXT.partition("- name: request\n")
    with pytest.raises(ContractError, match="a label is required"):
        load_contract(head + "- name: request\n" + tail.replace("required: true", "required: false", 1))


def test_no_and_on_stay_words_in_an_enumeration_and_as_a_name() -> None:
    text = edited("[transport, infrastructure_related", "[no, on, 1e, infrastructure_related")
    contract = load_contract(text.replace("- name: service_request_id", "- name: no"))
    assert contract.properties[0].name == "no"
    assert contract.by_name["service_code"].enum[:3] == ("no", "on", "1e")


@given(
    st.sampled_from(["no", "yes", "on", "off", "y", "0x1F", "010", "1_000", "1:30", "2026-01-01", ".inf", "<<", "True"])
)
def test_yaml_11_words_stay_text(word: str) -> None:
    assert load_yaml(f"key: {word}") == {"key": word}
    assert load_yaml(f"{word}: key") == {word: "key"}


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_json_scalars_are_read_as_themselves(value: object) -> None:
    assert load_yaml(f"[{json.dumps(value)}]") == [value]


# --- agreement hash --------------------------------------------------------------------------------------

SAME = [
    ("description: The text of the message.", "description: What people wrote."),
    ("name: Transport reports", "name: Reports"),
    ("version: 1.0.0", "version: 1.0.7"),
    ("status: active", "status: deprecated"),
    ("classification: confidential", "classification: restricted"),
    ("[transport, infrastructure_related", "[infrastructure_related, transport"),
    ("minimum: 0,", "minimum: 0.0,"),
]
DIFFERENT = [
    ("version: 1.0.0", "version: 1.1.0"),
    ("version: 1.0.0", "version: 2.0.0"),
    ("- name: report\n", "- name: call\n"),
    ("name: service_code", "name: service_kind"),
    ("required: false", "required: true"),
    ("maxLength: 5000", "maxLength: 4000"),
    ("maximum: 1", "maximum: 2"),
    ("minimum: 0, ", ""),
    ("[transport, ", "["),
    ("value: C62", "value: P1"),
    ("value: metadata", "value: identifier"),
    ("logicalType: timestamp", "logicalType: string"),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_text_does_not_change_the_agreement_hash(old: str, new: str) -> None:
    assert agreement_hash(load_contract(edited(old, new))) == agreement_hash(load_contract(TEXT))


@pytest.mark.parametrize(("old", "new"), DIFFERENT)
def test_what_training_depends_on_changes_the_agreement_hash(old: str, new: str) -> None:
    assert agreement_hash(load_contract(edited(old, new))) != agreement_hash(load_contract(TEXT))


def test_the_order_of_properties_does_not_change_the_agreement_hash() -> None:
    tree = yaml.safe_load(TEXT)
    tree["schema"][0]["properties"].reverse()
    assert agreement_hash(load_contract(yaml.safe_dump(tree))) == agreement_hash(load_contract(TEXT))


def test_the_agreement_hash_is_pinned() -> None:
    # A change of this value is a change of the hash format, or of the contract without a new MINOR version.
    assert agreement_hash(load_contract(TEXT)) == "550186ad2f1a79309c1ededbfffb6310c0304183bb143c6f542700bda3ab103b"
