"""A department's policy for one data set: typed, strict, default deny.

One TOML file per data set. Whatever a policy does not allow is refused: an empty list of purposes, columns,
tensors or approvers allows nothing. Field by field in docs/policies.md.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import math
import re
from typing import Literal

from shared.codec import Record
from shared.identity import DEPARTMENT_NAME
from shared.privacy.plan import MAX_EPSILON, PrivacyUnit

Role = Literal["steward", "dpo", "it"]
"""A person's part in governance: data steward, data protection officer, IT."""

LIFETIME_FACTOR = 1.4
"""Least ratio of the lifetime cap to the per-run cap (privacy 5)."""

_HASH = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{4}( [0-9a-f]{4}){7}")


class Owners(Record, frozen=True, kw_only=True):
    """Whom to ask about a finding: a person or an office for each role."""

    steward: str
    dpo: str
    it: str

    def __post_init__(self) -> None:
        if not (self.steward.strip() and self.dpo.strip() and self.it.strip()):
            raise ValueError("`steward`, `dpo` and `it` each name somebody")


class Columns(Record, frozen=True, kw_only=True):
    """Contract properties that may be used (R07); identifiers and metadata may be read, never learned from."""

    features: tuple[str, ...]
    label: str
    identifiers: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if set(self.identifiers) & {*self.features, self.label}:
            raise ValueError("an identifier is never a feature or the label")
        if set(self.metadata) & {*self.features, self.label, *self.identifiers}:
            raise ValueError("`metadata` names only what is no feature, label or identifier")
        if self.label in self.features:
            raise ValueError("the label is not one of the features")

    @property
    def readable(self) -> tuple[str, ...]:
        """Everything that a binding may map: features, label, identifiers, metadata."""
        return (*self.features, *([self.label] if self.label else []), *self.identifiers, *self.metadata)


class RowFloors(Record, frozen=True, kw_only=True):
    """Fewest rows and fewest distinct privacy units, judged at binding only (R09)."""

    minimum_rows: int
    minimum_units: int

    def __post_init__(self) -> None:
        if self.minimum_rows < 1 or self.minimum_units < 1:
            raise ValueError("`minimum_rows` and `minimum_units` are at least 1")


class TrainingCaps(Record, frozen=True, kw_only=True):
    """Bounds on the training that a plan may ask for (R11)."""

    max_rounds: int
    max_steps_per_round: int
    max_sample_rate: float
    max_learning_rate: float
    max_grad_norm: float
    min_noise_multiplier: float

    def __post_init__(self) -> None:
        if self.max_rounds < 1 or self.max_steps_per_round < 1:
            raise ValueError("`max_rounds` and `max_steps_per_round` are at least 1")
        if not 0 < self.max_sample_rate <= 1:
            raise ValueError("`max_sample_rate` lies in (0, 1]")
        _positive(
            max_learning_rate=self.max_learning_rate,
            max_grad_norm=self.max_grad_norm,
            min_noise_multiplier=self.min_noise_multiplier,
        )


class WindowCap(Record, frozen=True, kw_only=True):
    """Most that any ``days`` days in a row may cost this data set; the lifetime cap stays beside it (privacy 5)."""

    days: int
    epsilon: float

    def __post_init__(self) -> None:
        _epsilons(epsilon=self.epsilon)
        if self.days < 1:
            raise ValueError("`days` is at least 1")


class PopulationCap(Record, frozen=True, kw_only=True):
    """Most that a person may lose over all data sets of this department that hold the same persons (privacy 6)."""

    name: str
    epsilon: float

    def __post_init__(self) -> None:
        _epsilons(epsilon=self.epsilon)
        if not DEPARTMENT_NAME.fullmatch(self.name):
            raise ValueError("`name` is a lower-case letter, then up to 31 letters, digits or `-`")


class PrivacyCaps(Record, frozen=True, kw_only=True):
    """What may be spent on this data set (R12); every epsilon at ``delta``.

    The lifetime cap is at least 1.4 times the per-run cap: a budget shared by plans that were chosen after seeing
    earlier models is gated by a Renyi filter, and a plan whose own accountant says epsilon needs a filter cap of at
    least about 1.4 epsilon. A plan that draws few records needs more, up to 3 times at epsilon 0.3; where the
    lifetime has no such room its first plan takes it by PLD and closes it (privacy 5).

    ``epsilon_lone_share`` caps the same lifetime as if every sum of shared noise could be taken apart, for persons over
    all data sets of their population; without it plans with shared noise are refused (privacy 4.3).
    ``epsilon_per_round`` caps one attempt, ``window`` any stretch of days. Where the unit is a person or device,
    ``population`` says whose they are: every policy of this department whose data set holds the same ones names the
    same population.
    """

    unit: PrivacyUnit
    epsilon_per_run: float
    epsilon_lifetime: float
    delta: float
    accountant: str
    epsilon_lone_share: float | None = None
    epsilon_per_round: float | None = None
    window: WindowCap | None = None
    population: PopulationCap | None = None

    def __post_init__(self) -> None:
        _epsilons(epsilon_per_run=self.epsilon_per_run, epsilon_lifetime=self.epsilon_lifetime)
        if not 0 < self.delta < 1:
            raise ValueError("`delta` lies in (0, 1)")
        if not self.accountant:
            raise ValueError("`accountant` is not empty")
        if self.epsilon_lifetime < LIFETIME_FACTOR * self.epsilon_per_run:
            raise ValueError(f"`epsilon_lifetime` is at least {LIFETIME_FACTOR} times `epsilon_per_run`")
        if self.epsilon_lone_share is not None:
            _epsilons(epsilon_lone_share=self.epsilon_lone_share)
            if self.epsilon_lone_share < self.epsilon_lifetime:
                raise ValueError("`epsilon_lone_share` is not below `epsilon_lifetime`")
        if self.epsilon_per_round is not None:
            _epsilons(epsilon_per_round=self.epsilon_per_round)
        if (self.unit == "record") != (self.population is None):
            raise ValueError('`population` is there exactly when `unit` is "person" or "device"')
        for name, cap in (("window", self.window), ("population", self.population)):
            if cap is not None and cap.epsilon < LIFETIME_FACTOR * self.epsilon_per_run:
                raise ValueError(f"`{name}.epsilon` is at least {LIFETIME_FACTOR} times `epsilon_per_run`")


class AggregationFloors(Record, frozen=True, kw_only=True):
    """Local floors under the plan's encrypted sum: t_min, m_min, c_min, R_max (R15, protocol 1)."""

    threshold_min: int
    min_contributors_min: int
    colluders_min: int
    bound_max: float
    max_aborted_rounds: int = 2

    def __post_init__(self) -> None:
        if self.threshold_min < 2 or self.min_contributors_min < 3:
            # A sum of two tells each of the two what the other one sent.
            raise ValueError("`threshold_min` is at least 2 and `min_contributors_min` at least 3")
        if self.colluders_min < 0 or self.max_aborted_rounds < 0:
            raise ValueError("`colluders_min` and `max_aborted_rounds` are at least 0")
        _positive(bound_max=self.bound_max)


class Outgoing(Record, frozen=True, kw_only=True):
    """What may leave: tensors by exact name or pattern (R16), metrics by name (R17)."""

    tensors: tuple[str, ...]
    max_bytes: int
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError("`max_bytes` is at least 1")
        if not all(pattern[:1].isalnum() for pattern in self.tensors):
            # A lone "*" would allow whatever a plan can think of.
            raise ValueError("a tensor pattern begins with a letter or digit, not with a wildcard")

    def allows(self, tensor: str) -> bool:
        """Return whether a tensor's name is allowed; case matters."""
        return any(fnmatch.fnmatchcase(tensor, pattern) for pattern in self.tensors)


class ReleaseCaps(Record, frozen=True, kw_only=True):
    """Who may receive a model that learned from this data set (R21), and what plans have to demand first (R26, R27)."""

    recipients: tuple[str, ...]
    cross_border: bool = False
    attack_audit: bool = True
    human_approval: bool = False


class AuthorityPins(Record, frozen=True, kw_only=True):
    """The two keys of the authority, by the fingerprints that people compared (R19)."""

    plan_key_fingerprint: str
    roster_key_fingerprint: str

    def __post_init__(self) -> None:
        for value in (self.plan_key_fingerprint, self.roster_key_fingerprint):
            if not _FINGERPRINT.fullmatch(value):
                raise ValueError("a fingerprint is 8 groups of 4 lower-case hex digits, separated by single spaces")


class ApprovalPeople(Record, frozen=True, kw_only=True):
    """Who may approve a plan, and in which role (R10)."""

    people: dict[str, Role]


class Policy(Record, frozen=True, kw_only=True):
    """Everything that a department decided about one data set."""

    version: Literal[1]
    department: str
    dataset: str
    valid_from: dt.date
    valid_until: dt.date
    purposes: tuple[str, ...]
    contract_hash: str
    owners: Owners
    columns: Columns
    rows: RowFloors
    training: TrainingCaps
    privacy: PrivacyCaps
    aggregation: AggregationFloors
    outgoing: Outgoing
    release: ReleaseCaps
    authority: AuthorityPins
    approval: ApprovalPeople

    def __post_init__(self) -> None:
        if not DEPARTMENT_NAME.fullmatch(self.department):
            raise ValueError("`department` is a lower-case name as on the roster")
        if not DEPARTMENT_NAME.fullmatch(self.dataset):
            raise ValueError("`dataset` is the data set's name as its binding has it")
        if self.valid_until < self.valid_from:
            raise ValueError("`valid_until` is not before `valid_from`")
        if not _HASH.fullmatch(self.contract_hash):
            raise ValueError("`contract_hash` is 64 lower-case hex digits")


class SignedPolicy(Record, frozen=True, kw_only=True):
    """A policy whose owner's signature was verified; made by :func:`policies.load.open_policy` only.

    ``digest`` is what adverts carry as ``policy_hash`` (protocol 2, E1).
    """

    policy: Policy
    digest: bytes


def _epsilons(**caps: float) -> None:
    """Require caps that a budget can have; the message names the field."""
    for name, value in caps.items():
        if not 0 < value < MAX_EPSILON:
            raise ValueError(f"`{name}` lies in (0, {MAX_EPSILON:g})")


def _positive(**caps: float) -> None:
    """Require caps above zero and finite; the message names the field."""
    for name, value in caps.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` is a finite number above 0")
