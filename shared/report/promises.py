"""What the figures mean, in words that the report and the model card share (privacy 1).

Change a sentence here only together with ``docs/privacy.md``; every report and model card repeats it.
"""

from __future__ import annotations

import math

from shared.privacy.statement import PrivacyTerms
from shared.report import figures

UNIT_LABELS = {"record": "record, not per person", "person": "person", "device": "device, not per person"}
UNIT_WORDS = {
    "record": "record (one row of a department's data). Record level: not per person; "
    "somebody with several records is protected less than the figure says.",
    "person": "person: all records of one person in a department's data, as its person column tells persons apart.",
    "device": "device: all records of one device in a department's data, as its device column tells devices apart. Not "
    "per person: somebody with several devices is protected less than the figure says.",
}
CITY_WIDE_WHO = {
    "record": "somebody with one record in each of the {departments}",
    "person": "a person who is in the data of each of the {departments}",
    "device": "somebody with one device in the data of each of the {departments}",
}
RELATION_WORDS = {
    "add-remove": "add-remove: the data with one {unit} more or less. For one {unit} exchanged for another the figure "
    "is larger.",
}
MECHANISM_WORDS = {
    "poisson-dpsgd": "poisson-dpsgd: each step draws units by independent coins, clips the gradient of each, adds them "
    "up, adds Gaussian noise inside the department and divides by a public number.",
    "shared-noise": "shared-noise: each step draws units by independent coins, clips the gradient of each, adds them "
    "up; every department adds a share of the Gaussian noise, and only the encrypted sum carries all of it. A public "
    "number divides the sum.",
}
SCOPE = (
    "this run at one department: {rounds} of {steps}, and {spare}, all charged before the first round. Other "
    "runs on the same data add up in the department's ledger; no budget refills by waiting."
)
AGAINST_WORDS = {
    "poisson-dpsgd": "the coordinator, the other departments and everybody who gets the model. Each department adds "
    "its full noise itself, so the figure does not rest on the encryption and holds even if all others work together. "
    "It does rest on the department's own machine running the reviewed software.",
    "shared-noise": "the coordinator, a merely curious department and everybody who gets the model. It rests on the "
    "encryption, so it is a computational guarantee, and on honest departments: as many as there are noise shares (h) "
    "in every sum, who run the reviewed software and work with nobody. Against somebody who can read one department's "
    "update alone, the figure of a lone share holds.",
}
LONE_SHARE = (
    "if a department's updates could be read one by one, as when the encryption or its peers fail, this run would cost "
    "epsilon {epsilon}"
)
LONE_SHARE_AFTER = (
    ", and everything ever learned about the same units {after}, of the {cap} that the department allows."
)
IS_NOT = (
    "not a probability and not a share of records; it says nothing about what is true of somebody whether or not "
    "their record was used. Who took part, when, and the declared public size of each data set are public and "
    "outside the figure."
)
ON_ONE_MACHINE = (
    "This was a simulation on one machine: it held the keys and the data of every department. The verification, "
    "training, accounting and encryption are the code that departments run, the separation of machines is not."
)
NOT_PROMISED = (
    "That a department tells the truth about its data.",
    "Protection from harm by an update that stays below the norm bound.",
    "Anything about what can be inferred from the released model beyond epsilon.",
    "Secrecy of who took part and when.",
    "Availability: a department or the coordinator can always stop a run.",
    "Protection from side channels of shared hardware.",
)
UNSAFE_NOISE = (
    "This run used the unsafe test noise source. It protects nobody: every privacy figure below describes the plan and "
    "not what happened. Do not release the model."
)


def odds_sentence(epsilon: float, delta: float, unit: str) -> str:
    """Say in plain words what an (epsilon, delta) bounds."""
    return (
        f"Epsilon {figures.epsilon(epsilon)} means: whoever sees all that was released, and knows everything else, "
        f"can raise or lower the odds that one given {unit} was in the data by a factor of at most "
        f"{figures.factor(math.exp(epsilon))}, with a slack of delta = {figures.delta(delta)}."
    )


def in_every_department(unit: str, departments: int) -> str:
    """Say whom the city-wide worst case is about: one unit in each department."""
    return CITY_WIDE_WHO[unit].format(departments=figures.counted(departments, "department"))


def privacy_terms(
    privacy: PrivacyTerms, *, rounds: int, spare_attempts: int, lone_share: str
) -> tuple[tuple[str, str], ...]:
    """Return (term, meaning) for everything that privacy 1 asks a report to state.

    Args:
        privacy: the terms.
        rounds: rounds of the plan.
        spare_attempts: attempts that were charged beside them.
        lone_share: what a single update costs, in words; empty where each department adds its full noise.
    """
    unit = privacy.unit
    return (
        ("Unit", UNIT_WORDS[unit]),
        ("Relation", RELATION_WORDS[privacy.relation].format(unit=unit)),
        ("Mechanism", MECHANISM_WORDS[privacy.mechanism]),
        ("Sampling", f"{privacy.sampling}, rate {figures.number(privacy.sample_rate)} a step"),
        ("Clip (max_grad_norm)", f"{figures.number(privacy.max_grad_norm)} for each {unit}"),
        ("Noise multiplier", f"{figures.number(privacy.noise_multiplier)} (noise stddev divided by the clip)"),
        *_shares_terms(privacy, lone_share),
        ("Steps", f"{figures.count(privacy.steps)} a round"),
        ("Accountant", privacy.accountant),
        ("Scope", _scope(privacy, rounds, spare_attempts)),
        ("Against whom", AGAINST_WORDS[privacy.mechanism]),
        ("What the number is not", IS_NOT),
    )


def _shares_terms(privacy: PrivacyTerms, lone_share: str) -> tuple[tuple[str, str], ...]:
    """Return what shared noise has to state besides; nothing where each department adds its full noise."""
    if not lone_share:
        return ()
    return (
        ("Noise shares (h)", f"{privacy.noise_shares} honest departments' shares make up the noise"),
        ("A lone share", lone_share),
    )


def _scope(privacy: PrivacyTerms, rounds: int, spare_attempts: int) -> str:
    """Return the composition scope with the run's own counts."""
    return SCOPE.format(
        rounds=figures.counted(rounds, "round"),
        steps=figures.counted(privacy.steps, "step"),
        spare=figures.counted(spare_attempts, "spare attempt"),
    )
