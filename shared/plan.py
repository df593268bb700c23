"""The training plan: one signed document that says everything a run may do.

A plan is data, never code. The authority signs it, a department approves its digest, and the department's
own package executes it (promise P4). Whatever the plan does not say cannot happen.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from msgspec import Meta

from shared.codec import Number, Record, encode, sha256
from shared.identity import DEPARTMENT_NAME, ByDepartment, DepartmentId, Name, Signed, open_signed
from shared.parameters import Label, Layout
from shared.privacy.plan import PrivacyParams
from shared.privacy.shared_noise import check_ring, honest_shares

PLAN_LABEL = "plan"

HOLDERS = ("cohort", "central-authority")
"""Who holds the final model whatever a plan says: the departments that train it, and the authority that adds it up."""

PUBLIC = "public"
"""The recipient that is everybody."""


class TaskSpec(Record, frozen=True, kw_only=True):
    """What is learned: a task kind and the contract properties it reads."""

    kind: Literal["text-classification"] = "text-classification"
    features: Annotated[tuple[Label, ...], Meta(max_length=100)] = ("description",)
    label: Label = "request"

    def __post_init__(self) -> None:
        names = (*self.features, self.label)
        if not self.features or len(set(names)) < len(names):
            raise ValueError("`features` names at least one property, none twice, and never the `label`")


class ModelSpec(Record, frozen=True, kw_only=True):
    """The architecture by name, its base weights by hash, and which part is trained."""

    architecture: Literal["minilm", "hashed-words"] = "minilm"
    base_weights_sha256: Label
    trainable: Literal["head", "lora", "last-n", "full"] = "head"
    last_n: int = 0
    lora_rank: int = 0
    max_tokens: int = 64
    head: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        # No weights could make another; whether these numbers fit the weights shows where they lie.
        if self.architecture == "hashed-words" and self.trainable != "head":
            raise ValueError('`trainable` is "head" with `architecture = "hashed-words"`, which has no encoder')
        if (self.trainable == "last-n") != (self.last_n > 0) or self.last_n < 0:
            raise ValueError('`last_n` is above 0 with `trainable = "last-n"`, and 0 without')
        if (self.trainable == "lora") != (self.lora_rank > 0) or self.lora_rank < 0:
            raise ValueError('`lora_rank` is above 0 with `trainable = "lora"`, and 0 without')
        if not 8 <= self.max_tokens <= 512:
            raise ValueError("`max_tokens` lies in 8..512")


class LocalOptimizer(Record, frozen=True, kw_only=True):
    """The optimiser that a department runs on its noised gradients.

    ``iterate`` is what a round sends: the parameters after its last step, or their mean over the steps of its second
    half, which is computed from noised steps and costs nothing.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    iterate: Literal["last", "mean-of-last-half"] = "last"

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate <= 1e4 and 0 <= self.momentum < 1 and 0 <= self.weight_decay <= 1):
            raise ValueError("`learning_rate` lies in (0, 10000], `momentum` in [0, 1), `weight_decay` in [0, 1]")
        if self.kind == "adamw" and self.momentum > 0:
            raise ValueError('`momentum` is 0 with `kind = "adamw"`')
        if self.learning_rate * self.weight_decay > 1:
            # Above 2 parameters grow whatever the data says, until none is finite.
            raise ValueError("`learning_rate` times `weight_decay` is at most 1")

    def require_acting(self, steps: int) -> None:
        """Refuse a setting that changes nothing, because the optimiser starts anew each round.

        Raises:
            ValueError: momentum without a second step, or a mean of the last half that is one iterate.
        """
        if self.momentum > 0 and steps == 1:
            raise ValueError("`momentum` is 0 with one of `steps` a round: the local optimiser starts anew each round")
        if self.iterate != "last" and steps < 3:
            raise ValueError('`iterate` is "last" with fewer than 3 `steps` a round: their last half is one iterate')


class ServerOptimizerSpec(Record, frozen=True, kw_only=True):
    """The optimiser that the coordinator applies to the mean update (Reddi et al. 2021, Algorithm 2)."""

    kind: Literal["fedavg", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate <= 1e3 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("`learning_rate` lies in (0, 1000], `beta1` and `beta2` in [0, 1)")
        if not 1e-9 <= self.tau <= 1e3:
            # Its square is the first second moment, a float32 that may neither vanish nor overflow.
            raise ValueError("`tau` lies in [0.000000001, 1000]")


def require_bound(bound: float) -> None:
    """Refuse a norm bound that does not fit the ring.

    Raises:
        ValueError: a bound outside its range.
    """
    if not 1e-6 <= bound <= 1e6:
        raise ValueError("`bound` lies in [0.000001, 1000000]")


class AggregationParams(Record, frozen=True, kw_only=True):
    """The numbers of the encrypted sum (protocol 1 and 4)."""

    threshold: int
    min_contributors: int
    max_colluders: int
    bound: float
    ring_bits: Literal[32] = 32

    def __post_init__(self) -> None:
        if not (self.threshold >= 2 and self.min_contributors >= 2 and self.max_colluders >= 0):
            raise ValueError("`threshold` and `min_contributors` are at least 2, `max_colluders` at least 0")
        require_bound(self.bound)

    def admissible_for(self, roster_size: int) -> bool:
        """Return whether 2t > N + c and m >= max(t, c + 2) hold (protocol 1)."""
        enough = 2 * self.threshold > roster_size + self.max_colluders
        floor = max(self.threshold, self.max_colluders + 2)
        return enough and self.min_contributors >= floor and self.threshold <= roster_size


def default_aggregation(roster_size: int, *, bound: float) -> AggregationParams:
    """Return t = m = floor(2N/3) + 1 and the largest c with 2t > N + c and m >= c + 2 (protocol 1).

    Raises:
        ValueError: for fewer than three departments; a sum of two tells each of them the other's update.
    """
    if roster_size < 3:
        raise ValueError("a cohort has at least 3 departments")
    threshold = 2 * roster_size // 3 + 1
    colluders = min(2 * threshold - roster_size - 1, threshold - 2)
    return AggregationParams(threshold=threshold, min_contributors=threshold, max_colluders=colluders, bound=bound)


class DatasetTerms(Record, frozen=True, kw_only=True):
    """What the plan fixes about one department: its contract, public size and public weight."""

    contract_hash: Label
    public_size: Number
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.public_size < 1 or not 0 < self.weight <= 1:
            raise ValueError("`public_size` is at least 1 and `weight` lies in (0, 1]")


class ReleaseTerms(Record, frozen=True, kw_only=True):
    """What becomes of the final model: who receives it, and what there has to be before that.

    Attributes:
        recipients: who receives it (R21).
        cross_border: whether one of them is in another country (R21).
        attack_audit: whether at least one department's passed attack audit goes with it (R27).
        human_approval: whether a person at the authority releases it by name: a use flagged as high-risk (R26).
    """

    recipients: Annotated[tuple[Name, ...], Meta(max_length=100)] = HOLDERS
    cross_border: bool = False
    attack_audit: bool = True
    human_approval: bool = False

    def __post_init__(self) -> None:
        if len(set(self.recipients)) != len(self.recipients) or not set(HOLDERS) <= set(self.recipients):
            # A plan that leaves them out would promise what nobody can keep.
            raise ValueError('`recipients` names "cohort", "central-authority" and any others, each once')
        if not all(DEPARTMENT_NAME.fullmatch(name) for name in self.recipients):
            raise ValueError("a name in `recipients` is a lower-case letter, then up to 31 letters, digits or `-`")
        if PUBLIC in self.recipients and not self.cross_border:
            raise ValueError('`cross_border` is true where "public" receives the model')

    def in_words(self) -> str:
        """Say who receives the model."""
        return f"{', '.join(self.recipients)}; {'also' if self.cross_border else 'nobody'} in another country"

    def demands(self) -> str:
        """Say what there has to be before anybody receives it."""
        asked = ["the final epsilon", *["an attack audit"] * self.attack_audit]
        return ", ".join([*asked, *["a person's approval at the authority"] * self.human_approval])


def require_rounds(rounds: int, spare_attempts: int) -> None:
    """Refuse a number of rounds that no run has.

    Raises:
        ValueError: no round, too many of them, or too many spare attempts.
    """
    if not (1 <= rounds <= 10_000 and 0 <= spare_attempts <= 1000):
        raise ValueError("`rounds` lies in 1..10000 and `spare_attempts` in 0..1000")


class Plan(Record, frozen=True, kw_only=True):
    """One run, completely. Signed by the authority under the label ``plan``."""

    version: Literal[1] = 1
    name: Label
    purpose: Label
    approval: Number
    valid_from: dt.date
    valid_until: dt.date
    package_digest: Label
    task: TaskSpec
    model: ModelSpec
    layout: Layout
    initial_model_sha256: Label
    datasets: ByDepartment[DatasetTerms]
    roster_size: Number
    privacy: PrivacyParams
    aggregation: AggregationParams
    rounds: int
    spare_attempts: int = 2
    local_optimizer: LocalOptimizer
    server_optimizer: ServerOptimizerSpec
    release: ReleaseTerms = ReleaseTerms()

    def __post_init__(self) -> None:
        require_rounds(self.rounds, self.spare_attempts)
        if self.approval < 1:
            raise ValueError("`approval` is at least 1")
        if not self.aggregation.min_contributors <= len(self.datasets) <= self.roster_size:
            raise ValueError("the cohort has at least `min_contributors` and at most `roster_size` departments")
        if any(extra.max_abs * extra.scale > self.aggregation.bound for extra in self.layout.extras):
            raise ValueError("`max_abs` times `scale` of an extra coordinate is at most `bound`")
        if self.valid_until < self.valid_from:
            raise ValueError("`valid_until` is not before `valid_from`")
        self.local_optimizer.require_acting(self.privacy.steps)
        if self.privacy.mechanism == "shared-noise":
            self._check_shared_noise()

    def _check_shared_noise(self) -> None:
        """Refuse a plan whose sums would carry less noise than it says (privacy 4.3)."""
        limits = self.aggregation
        if self.privacy.noise_shares > honest_shares(limits.min_contributors, limits.max_colluders):
            raise ValueError("`noise_shares` is at most `min_contributors` less the colluders, and less one at least")
        if any(terms.weight != 1 for terms in self.datasets.values()):
            raise ValueError('`weight` is 1 with `mechanism = "shared-noise"`')
        if self.local_optimizer != LocalOptimizer(learning_rate=1.0):
            raise ValueError('with `mechanism = "shared-noise"` only the server\'s optimiser acts')
        check_ring(
            self.privacy,
            bound=limits.bound,
            participants=len(self.datasets),
            dimension=self.layout.total_size,
        )

    @property
    def cohort(self) -> tuple[DepartmentId, ...]:
        """The departments of the plan in roster order."""
        return tuple(DepartmentId(name) for name in sorted(self.datasets))

    @property
    def attempts(self) -> int:
        """Rounds plus spare attempts: what is charged before the first round."""
        return self.rounds + self.spare_attempts

    def digest(self) -> bytes:
        """Return the digest that two people approve; it covers every field."""
        return sha256(b"plan", encode(self))

    def gives_model_to(self, department: str) -> bool:
        """Return whether a department is among those who receive the final model."""
        named = {PUBLIC, department} & set(self.release.recipients)
        return department in self.cohort or bool(named)

    def run_id(self) -> bytes:
        """Return the run's name: one approval, one run (protocol 2, E1)."""
        return sha256(b"run", self.digest(), str(self.approval).encode())

    def denominator(self, department: DepartmentId) -> float:
        """Return q times the public size: the only divisor of a summed gradient (privacy 2)."""
        return self.privacy.sample_rate * self.datasets[department].public_size


def accept_plan(signed: Signed, authority_key: bytes) -> Plan:
    """Verify a signed plan against the pinned authority key.

    Raises:
        ProtocolError: ``signature-invalid``, ``message-malformed``.
    """
    return open_signed(authority_key, PLAN_LABEL, signed, Plan)
