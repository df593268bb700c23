"""A scenario says everything or is refused with one sentence that names the key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import tomli_w

from policies.load import department_policy
from shared.errors import ConfigError
from shared.plan import default_aggregation
from simulation.scenario import PACKAGED, Scenario, load_scenario
from tests.city import small_scenario


def refusal(name: str | Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(name), overrides)
    assert "\n" not in caught.value.diagnostics()
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(msgspec.to_builtins(small_scenario(tmp_path))))
    return path


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_scenario_is_the_four_departments_under_their_packaged_policies(name: str) -> None:
    scenario, _ = load_scenario(name)
    assert scenario.name == name
    assert sorted(scenario.departments) == ["environment", "health", "police", "transport"]
    assert scenario.seeds >= 10
    aggregation = default_aggregation(len(scenario.departments), bound=scenario.bound)
    for department in scenario.departments:
        caps = msgspec.toml.decode(department_policy(department))
        assert scenario.rounds <= caps["training"]["max_rounds"]
        assert scenario.privacy.steps <= caps["training"]["max_steps_per_round"]
        assert scenario.privacy.epsilon <= caps["privacy"]["epsilon_per_run"]
        assert scenario.purpose in caps["purposes"]
        assert aggregation.threshold >= caps["aggregation"]["threshold_min"]
        assert scenario.bound <= caps["aggregation"]["bound_max"]


def test_the_default_asks_for_epsilon_1() -> None:
    scenario, _ = load_scenario("emergency-triage")
    assert (scenario.privacy.epsilon, scenario.privacy.delta) == (1.0, 1e-4)


def test_a_file_loads_with_its_folder_as_the_anchor(path: Path) -> None:
    scenario, folder = load_scenario(str(path))
    assert scenario == small_scenario(path.parent)
    assert folder == path.parent


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("colour=red", "`colour`"),
        ("privacy.colour=1", "`colour`"),
        ("departments.police.colour=1", "`colour`"),
        ("rounds=1.5", "`.rounds`"),
        ("rounds=many", "`.rounds`"),
        ("rounds=0", "`rounds` lies in 1..10000"),
        ("seeds=0", "`seeds` lies in 1..1000"),
        ("spare_attempts=-1", "`spare_attempts` in 0..1000"),
        ("bound=0", "`bound` lies in"),
        ("bound=nan", "`bound` lies in"),
        ("data.limit=5", "`limit` is 0 (all) or at least 30"),
        ("data.holdout=1.0", "`holdout` lies in [0.05, 0.9]"),
        ("data.source=oracle", "`.data.source`"),
        ("privacy.epsilon=0", "`epsilon` lies in (0, 100]"),
        ("privacy.epsilon=nan", "`epsilon` lies in (0, 100]"),
        ("privacy.delta=1.0", "`delta` in (0, 0.1)"),
        ("privacy.sample_rate=0.0", "`sample_rate` lies in [0.000001, 1]"),
        ("privacy.steps=0", "`steps` lies in 1..10000"),
        ("privacy.steps=10001", "`steps` lies in 1..10000"),
        ("privacy.mechanism=shared-noise", "`steps` is 1"),
        ("privacy.max_grad_norm=-1.0", "`max_grad_norm` lies in [0.000001, 1000000]"),
        ("privacy.max_grad_norm=1e-7", "`max_grad_norm` lies in [0.000001, 1000000]"),
        ("privacy.max_grad_norm=1e7", "`max_grad_norm` lies in [0.000001, 1000000]"),
        ("model.trainable=lora", '`trainable` is "head"'),
        ("model.last_n=2", "`last_n` is above 0 with"),
        ("model.lora_rank=-1", "`lora_rank` is above 0 with"),
        ("model.max_tokens=4", "`max_tokens` lies in 8..512"),
        ("task.features=[]", "`features` names at least one property"),
        ('task.features=["request"]', "never the `label`"),
        ("optimizer.local.learning_rate=0.0", "`learning_rate` lies in (0, 10000]"),
        ("optimizer.local.iterate=mean-of-last-half", '`iterate` is "last" with fewer than 3 `steps`'),
        ("optimizer.local={kind='adamw', learning_rate=0.1, momentum=0.5}", '`momentum` is 0 with `kind = "adamw"`'),
        ("optimizer.pooled={learning_rate=11.0, weight_decay=0.1}", "`learning_rate` times `weight_decay`"),
        ("server_optimizer.tau=inf", "`tau` lies in"),
        ("performance.physical_batch_size=0", "`physical_batch_size` is at least 1"),
        ("server_optimizer.kind=adam", "`.server_optimizer.kind`"),
        ("model.architecture=gpt", "`.model.architecture`"),
        ("departments.Police.binding=x", "lower-case name"),
        ("departments.authority.binding=x", "not `authority`"),
        ('faults=[{department="zoo"}]', "`faults` names a department"),
        ('faults=[{department="police", round=0}]', "`round` is at least 1"),
        ('faults=[{department="police", round=3, until=2}]', "`until` is 0 or not before `round`"),
        ('faults=[{department="police", step="lunch"}]', ".step`"),
        ("performance.device=tpu", "`.performance.device`"),
        ('departments.police.binding=""', "every department names its `binding`"),
        ("data.source=emergency-messages", 'with `data.source = "files"` only'),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_the_key(path: Path, override: str, named: str) -> None:
    error = refusal(path, override)
    assert error.code == "toml-content"
    assert named in error.message


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_departments_are_no_federation(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match="3 to 100 departments"):
        small_scenario(tmp_path, ("health", "police")[:count])


@pytest.mark.parametrize("override", ["rounds", "=3", ".rounds=3", "privacy..epsilon=1", "name.first=x", ""])
def test_an_override_of_another_form_is_refused(path: Path, override: str) -> None:
    assert refusal(path, override).code == "override-malformed"


def test_overrides_are_read_in_toml_notation_and_the_last_one_wins(path: Path) -> None:
    scenario, _ = load_scenario(
        str(path), ("rounds=7", "rounds=9", "privacy.epsilon=0.5", "name=renamed", 'purpose="two words"', "seeds=4")
    )
    assert (scenario.rounds, scenario.privacy.epsilon, scenario.seeds) == (9, 0.5, 4)
    assert (scenario.name, scenario.purpose) == ("renamed", "two words")


def test_with_shared_noise_the_federated_rate_is_the_servers(path: Path) -> None:
    asked = ("privacy.mechanism=shared-noise", "privacy.steps=1")
    assert "only `server_optimizer` acts" in refusal(path, *asked).message
    scenario, _ = load_scenario(str(path), (*asked, "optimizer.federated.learning_rate=1.0"))
    assert scenario.privacy.mechanism == "shared-noise"


@pytest.mark.parametrize("arm", ["federated", "local", "pooled"])
def test_with_one_step_a_round_momentum_is_refused_for_it_would_change_nothing(path: Path, arm: str) -> None:
    asked = (f"optimizer.{arm}.momentum=0.9", "privacy.steps=1")
    assert "`momentum` is 0 with one of `steps` a round" in refusal(path, *asked).message
    assert load_scenario(str(path), asked[:1])[0].privacy.steps == 2


def test_what_is_not_there_or_no_toml_is_one_sentence(tmp_path: Path, path: Path) -> None:
    assert refusal("nowhere").code == "scenario-missing"
    assert refusal(tmp_path).code == "scenario-missing"
    path.write_text("rounds = = 3")
    assert refusal(path).code == "toml-syntax"
    assert refusal(path, "rounds=3").code == "toml-syntax"
    path.write_bytes(b"\xff\xfe")
    assert refusal(path).code == "scenario-unreadable"


def test_the_digest_tells_scenarios_apart(tmp_path: Path) -> None:
    scenario = small_scenario(tmp_path)
    assert scenario.digest() == small_scenario(tmp_path).digest()
    changed = [msgspec.structs.replace(scenario, **change) for change in ({"rounds": 3}, {"seed": 2}, {"name": "b"})]
    assert len({scenario.digest(), *(item.digest() for item in changed)}) == 4
    assert isinstance(scenario, Scenario)
