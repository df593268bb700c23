"""What is asked of a plan, and the plan that comes of it: the part that scenarios and plan drafts share.

Scenarios are read by the authority, which drafts plans from them, and by the simulation, which plays whole cities.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

from msgspec import structs

from server.plans import calibrated_privacy, declare_extras, extras_noise
from shared.codec import Record
from shared.errors import ConfigError
from shared.identity import DepartmentId, Roster
from shared.mechanisms import MECHANISMS
from shared.package import package_digest
from shared.parameters import ExtraSpec, Label, Layout, Vector, model_hash
from shared.plan import (
    AggregationParams,
    DatasetTerms,
    LocalOptimizer,
    ModelSpec,
    Plan,
    ReleaseTerms,
    ServerOptimizerSpec,
    TaskSpec,
    default_aggregation,
    require_bound,
    require_rounds,
)
from shared.privacy.extras import extra_charges, require_known
from shared.privacy.plan import MechanismName, PrivacyBudget, PrivacyParams, PrivacyUnit, require_records, require_step

PACKAGED = (
    "emergency-triage",
    "emergency-triage-epsilon-0.3",
    "emergency-triage-epsilon-3",
    "emergency-triage-shared-noise",
    "emergency-triage-shared-noise-epsilon-0.3",
)


def packaged_scenario(name: str) -> str:
    """Return the text of a packaged scenario, one of :data:`PACKAGED`."""
    return resources.files("server").joinpath(f"scenarios/{name}.toml").read_text()


class PrivacyAsk(Record, frozen=True, kw_only=True):
    """What is asked for; the noise multiplier is calibrated to it over all rounds and spare attempts.

    ``extras_share`` is the part of ``epsilon`` that all extra coordinates of the plan would cost alone.
    In a simulation ``mechanism`` is the federated arm's; the baselines have no sum to share noise in.
    """

    mechanism: MechanismName = "poisson-dpsgd"
    epsilon: float
    delta: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    clipping: Literal["flat", "automatic"] = "flat"
    unit: PrivacyUnit = "record"
    max_records: int = 1
    extras_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.extras_share < 1:
            raise ValueError("`extras_share` lies in (0, 1)")
        if not (0 < self.epsilon <= 100 and 0 < self.delta < 0.1):
            raise ValueError("`epsilon` lies in (0, 100] and `delta` in (0, 0.1)")
        require_step(self.mechanism, sample_rate=self.sample_rate, steps=self.steps, max_grad_norm=self.max_grad_norm)
        require_records(self.unit, self.max_records)


class ModelChoice(Record, frozen=True, kw_only=True):
    """The model part of the plan, without the hash that set-up knows."""

    architecture: Literal["minilm", "hashed-words"] = "minilm"
    trainable: Literal["head", "lora", "last-n", "full"] = "head"
    last_n: int = 0
    lora_rank: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        self.spec("")  # whatever the hash will be: what a plan's model cannot be is refused here

    def spec(self, base_weights_sha256: str) -> ModelSpec:
        """Return the plan's model with its base weights pinned."""
        return ModelSpec(
            architecture=self.architecture,
            trainable=self.trainable,
            last_n=self.last_n,
            lora_rank=self.lora_rank,
            max_tokens=self.max_tokens,
            base_weights_sha256=base_weights_sha256,
        )


def declared_extras(
    names: Sequence[str], ask: PrivacyAsk, *, attempts: int, bound: float, public_sizes: Sequence[int]
) -> tuple[ExtraSpec, ...]:
    """Return the extra coordinates of a plan, with noise for their share of the budget.

    Args:
        names: from :data:`shared.privacy.extras.KNOWN`, none for no extras.
        ask: budget, and the share of it.
        attempts: rounds plus spare attempts.
        bound: R of the encrypted sum.
        public_sizes: of the departments in the plan; they set the range and not the noise.
    """
    if not names:
        return ()
    budget = PrivacyBudget(epsilon=ask.epsilon, delta=ask.delta)
    noise = extras_noise(budget, share=ask.extras_share, extras=len(names), attempts=attempts)
    return declare_extras(names, noise_multiplier=noise, public_sizes=public_sizes, bound=bound)


def calibrate(
    ask: PrivacyAsk, *, attempts: int, aggregation: AggregationParams, extras: Sequence[str] = ()
) -> PrivacyParams:
    """Return privacy parameters calibrated over all rounds and spare attempts, for the numbers of an encrypted sum.

    Args:
        ask: what is asked for.
        attempts: rounds plus spare attempts.
        aggregation: numbers of the encrypted sum.
        extras: names of the plan's extra coordinates, for which the same budget has room.
    """
    beside = extra_charges(declared_extras(extras, ask, attempts=attempts, bound=1.0, public_sizes=[1]))
    privacy = calibrated_privacy(
        PrivacyBudget(epsilon=ask.epsilon, delta=ask.delta),
        sample_rate=ask.sample_rate,
        steps=ask.steps,
        attempts=attempts,
        max_grad_norm=ask.max_grad_norm,
        mechanism=ask.mechanism,
        aggregation=aggregation,
        beside=[charge.event.times(attempts) for charge in beside],
    )
    # None of these changes what a step costs.
    return structs.replace(privacy, clipping=ask.clipping, unit=ask.unit, max_records=ask.max_records)


@dataclass(frozen=True, kw_only=True)
class ModelBasis:
    """What set-up knows about the model: its spec, layout, starting point, and where the weights are."""

    spec: ModelSpec
    layout: Layout
    initial: Vector
    weights_dir: Path | None

    @classmethod
    def load(cls, spec: ModelSpec, weights_dir: Path | None) -> ModelBasis:
        """Read layout and starting point of a model.

        Raises:
            CityFedError: as :func:`shared.tasks.encoder_files.require_tokens` and :func:`shared.tasks.text.build`.
        """
        from shared.tasks.encoder_files import require_tokens  # noqa: PLC0415 - imports the tokenizer
        from shared.tasks.text import initial_parameters, layout_of  # noqa: PLC0415 - imports torch

        if weights_dir is not None:
            require_tokens(spec, weights_dir)

        return cls(
            spec=spec,
            layout=layout_of(spec, weights_dir),
            initial=initial_parameters(spec, weights_dir),
            weights_dir=weights_dir,
        )


class PlanAsk(Record, frozen=True, kw_only=True):
    """What the authority asks for; everything else in a plan comes from the roster and the departments."""

    name: Label
    purpose: Label
    rounds: int
    spare_attempts: int = 2
    bound: float = 32.0
    task: TaskSpec = TaskSpec()
    model: ModelChoice = ModelChoice()
    extras: tuple[str, ...] = ()
    privacy: PrivacyAsk
    optimizer: LocalOptimizer
    server_optimizer: ServerOptimizerSpec = ServerOptimizerSpec()
    release: ReleaseTerms = ReleaseTerms()

    def __post_init__(self) -> None:
        require_rounds(self.rounds, self.spare_attempts)
        require_bound(self.bound)
        require_known(self.extras)
        self.optimizer.require_acting(self.privacy.steps)


class Declared(Protocol):
    """What a department told of its data set."""

    @property
    def contract_hash(self) -> str:
        """The contract that its rows satisfy."""
        ...

    @property
    def public_size(self) -> int:
        """The size that it lets everybody know; never a count of rows."""
        ...


def draft_plan(
    ask: PlanAsk,
    basis: ModelBasis,
    *,
    declared: Mapping[DepartmentId, Declared],
    roster: Roster,
    privacy: PrivacyParams,
    approval: int,
    valid_from: dt.date,
    valid_until: dt.date,
) -> Plan:
    """Put a plan together from what is asked and what the departments declared.

    Weights are the public sizes over the largest one, or 1 with shared noise: constants of the plan, never counts of
    rows.

    Raises:
        ValueError: a cohort of fewer than three departments.
        ConfigError: ``plan-impossible``: numbers that no plan may have.
    """
    sizes = {name: item.public_size for name, item in sorted(declared.items())}
    largest, weight = max(sizes.values()), MECHANISMS[privacy.mechanism].weight
    aggregation = default_aggregation(len(roster.members), bound=ask.bound)
    extras = declared_extras(
        ask.extras,
        ask.privacy,
        attempts=ask.rounds + ask.spare_attempts,
        bound=ask.bound,
        public_sizes=list(sizes.values()),
    )
    try:
        return Plan(
            name=ask.name,
            purpose=ask.purpose,
            approval=approval,
            valid_from=valid_from,
            valid_until=valid_until,
            package_digest=package_digest(),
            task=ask.task,
            model=basis.spec,
            layout=structs.replace(basis.layout, extras=extras),
            initial_model_sha256=model_hash(basis.initial).hex(),
            datasets={
                str(name): DatasetTerms(
                    contract_hash=declared[name].contract_hash, public_size=size, weight=weight(size, largest)
                )
                for name, size in sizes.items()
            },
            roster_size=len(roster.members),
            privacy=privacy,
            aggregation=aggregation,
            rounds=ask.rounds,
            spare_attempts=ask.spare_attempts,
            local_optimizer=ask.optimizer,
            server_optimizer=ask.server_optimizer,
            release=ask.release,
        )
    except ValueError as cause:
        raise ConfigError("plan-impossible", f"No plan {ask.name} can be made of this: {cause}.") from cause
