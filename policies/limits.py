"""How much may be asked and what may leave: training bounds, privacy, the encrypted sum, tensors, metrics.

Rules R11, R12, R14, R15, R16, R17. Each is a plain function ``(policy, facts) -> Finding``; when it is judged
stands in :data:`policies.rules.RULES`.
"""

from __future__ import annotations

from policies.facts import Facts
from policies.findings import Check, Finding, at_least, at_most, conclude, equal, holds, listed, missing
from policies.policy import Policy


def training_within_bounds(policy: Policy, facts: Facts) -> Finding:
    """R11: rounds, steps, sampling, learning rate, clip norm and noise lie within the policy's bounds."""
    if facts.plan is None:
        return missing("R11", "it", "a plan")
    plan, privacy, caps = facts.plan, facts.plan.privacy, policy.training
    return conclude(
        "R11",
        "it",
        [
            at_most("rounds", plan.rounds, caps.max_rounds),
            at_most("steps per round", privacy.steps, caps.max_steps_per_round),
            at_most("sample rate", privacy.sample_rate, caps.max_sample_rate),
            at_most("learning rate", plan.local_optimizer.learning_rate, caps.max_learning_rate),
            at_most("clip norm", privacy.max_grad_norm, caps.max_grad_norm),
            at_least("noise multiplier", privacy.noise_multiplier, caps.min_noise_multiplier),
        ],
        good="The training that the plan asks for lies within bounds.",
        bad="The training that the plan asks for goes beyond a bound.",
    )


def privacy_terms_allowed(policy: Policy, facts: Facts) -> Finding:
    """R12: the privacy terms that the plan states lie within the caps, and delta is at most 1/n."""
    if facts.plan is None or facts.public_size is None:
        return missing("R12", "dpo", "a plan and the declared size")
    ask, caps = facts.plan.privacy, policy.privacy
    full_noise = ask.mechanism != "shared-noise"
    return conclude(
        "R12",
        "dpo",
        [
            at_most("epsilon of the run", ask.budget.epsilon, caps.epsilon_per_run),
            at_most("delta", ask.budget.delta, caps.delta),
            at_most("delta against one over the declared size", ask.budget.delta, 1 / facts.public_size),
            equal("privacy unit", ask.unit, caps.unit),
            equal("accountant", ask.accountant, caps.accountant),
            holds(
                "noise",
                full_noise or caps.epsilon_lone_share is not None,
                yes="added in full here" if full_noise else "shared, with a cap on lone shares",
                no="shared, and no `epsilon_lone_share`",
            ),
        ],
        good="The privacy terms of the plan lie within this data set's caps.",
        bad="The privacy terms of the plan go beyond this data set's caps.",
    )


def budget_holds(policy: Policy, facts: Facts) -> Finding:
    """R12: the department's own accountant confirms the plan's epsilon, and the lifetime budget holds it."""
    if facts.plan is None or facts.budget is None:
        return missing("R12", "dpo", "a plan and the ledger's answer")
    quote, lone_cap = facts.budget, policy.privacy.epsilon_lone_share
    return conclude(
        "R12",
        "dpo",
        [
            at_most("epsilon of the run as computed here", quote.epsilon_run, facts.plan.privacy.budget.epsilon),
            at_most("lifetime epsilon with this run", quote.epsilon_lifetime_after, policy.privacy.epsilon_lifetime),
            *([] if lone_cap is None else [at_most("epsilon of lone shares", quote.lone_share_after, lone_cap)]),
            holds("ledger", quote.fits, yes="the charge fits", no=quote.reason or "the charge does not fit"),
        ],
        good="This data set's privacy budget holds the plan.",
        bad="This data set's privacy budget does not hold the plan.",
    )


def budget_reserved(_policy: Policy, facts: Facts) -> Finding:
    """R14: the charge is on disk before anything leaves."""
    if facts.reserved is None:
        return missing("R14", "system", "the ledger's reservation")
    return conclude(
        "R14",
        "system",
        [holds("privacy charge", facts.reserved, yes="reserved on disk", no="not reserved")],
        good="The privacy charge was written down before a record was touched.",
        bad="The privacy charge is not written down, so nothing may leave.",
    )


def sum_protected(policy: Policy, facts: Facts) -> Finding:
    """R15: the encrypted sum meets the policy's floors and the protocol's own conditions (protocol 1)."""
    if facts.plan is None or facts.roster_size is None:
        return missing("R15", "dpo", "a plan and the roster")
    plan, params, floors = facts.plan, facts.plan.aggregation, policy.aggregation
    admissible = params.admissible_for(plan.roster_size)
    return conclude(
        "R15",
        "dpo",
        [
            at_least("threshold", params.threshold, floors.threshold_min),
            at_least("contributors", params.min_contributors, floors.min_contributors_min),
            at_least("colluders withstood", params.max_colluders, floors.colluders_min),
            at_most("norm bound", params.bound, floors.bound_max),
            # A grown roster needs a new approval: t and m were chosen for the smaller one.
            at_most("members of the roster here", facts.roster_size, plan.roster_size),
            holds("numbers", admissible, yes="2t > N + c, m >= max(t, c + 2), t <= N", no="not admissible"),
        ],
        good="Updates leave encrypted and are readable only as a sum over enough departments.",
        bad="The plan's encrypted sum is weaker than this department requires.",
    )


def aborted_rounds_few(policy: Policy, facts: Facts) -> Finding:
    """R15: a coordinator cannot collect fresh updates for ever by letting rounds fail (protocol 3)."""
    if facts.aborted_rounds is None:
        return missing("R15", "dpo", "the count of aborted rounds")
    return conclude(
        "R15",
        "dpo",
        [at_most("aborted rounds of this run", facts.aborted_rounds, policy.aggregation.max_aborted_rounds)],
        good="Few enough rounds of this run were aborted.",
        bad="Too many rounds of this run were aborted after an update was sent.",
    )


def plan_tensors_allowed(policy: Policy, facts: Facts) -> Finding:
    """R16 for a plan: every tensor of its layout may leave, and the vector is small enough."""
    if facts.plan is None:
        return missing("R16", "system", "a plan")
    layout = facts.plan.layout
    foreign = [tensor.name for tensor in layout.tensors if not policy.outgoing.allows(tensor.name)]
    allowed = listed(policy.outgoing.tensors)
    return conclude(
        "R16",
        "system",
        [
            holds("tensors", not foreign, yes=f"only {allowed}", no=listed(foreign)),
            at_most("bytes", 4 * layout.total_size, policy.outgoing.max_bytes),
        ],
        good="The tensors that the plan would send may leave.",
        bad="The plan would send a tensor that may not leave, or too many bytes.",
    )


def update_matches_plan(policy: Policy, facts: Facts) -> Finding:
    """R16 before sending: names, shapes, finite, norm and bytes are those of the plan."""
    if facts.plan is None or facts.outgoing is None:
        return missing("R16", "system", "a plan and the update")
    layout, update = facts.plan.layout, facts.outgoing
    names = update.names == tuple(tensor.name for tensor in layout.tensors)
    shapes = update.shapes == tuple(tensor.shape for tensor in layout.tensors)
    allowed = all(policy.outgoing.allows(name) for name in update.names)
    # The norm itself says something about the records, so only its side of the bound is told.
    bounded = update.norm <= facts.plan.aggregation.bound
    return conclude(
        "R16",
        "system",
        [
            holds("tensor names", names, yes="those of the plan", no="others"),
            holds("tensor shapes", shapes, yes="those of the plan", no="others"),
            holds("tensor patterns", allowed, yes=f"only {listed(policy.outgoing.tensors)}", no="others"),
            holds("coordinates", update.finite, yes="finite", no="NaN or infinity"),
            holds("norm", bounded, yes="within the plan's bound", no="above the plan's bound"),
            at_most("bytes", update.bytes, policy.outgoing.max_bytes),
        ],
        good="The update has exactly the shape that the plan states.",
        bad="The update is not what the plan states, so it does not leave.",
    )


def plan_metrics_allowed(policy: Policy, facts: Facts) -> Finding:
    """R17 for a plan: each extra coordinate is on the allow-list and has noise enough."""
    if facts.plan is None:
        return missing("R17", "dpo", "a plan")
    extras, floor = facts.plan.layout.extras, policy.training.min_noise_multiplier
    foreign = [extra.name for extra in extras if extra.name not in policy.outgoing.metrics]
    asked, allowed = listed(foreign or [extra.name for extra in extras]), listed(policy.outgoing.metrics)
    return conclude(
        "R17",
        "dpo",
        [
            Check(not foreign, "metrics", asked, f"only {allowed}"),
            *(at_least(f"noise multiplier of {extra.name}", extra.noise_multiplier, floor) for extra in extras),
        ],
        good="The plan asks for no metric that is not allowed and noised.",
        bad="The plan asks for a metric that is not allowed here, or for one with too little noise.",
    )


def metrics_allowed(policy: Policy, facts: Facts) -> Finding:
    """R17: every metric is on the allow-list and declared in the plan with noise of its own."""
    if facts.plan is None or facts.outgoing is None:
        return missing("R17", "dpo", "a plan and the update")
    noised = {extra.name for extra in facts.plan.layout.extras if extra.noise_stddev > 0}
    allowed = [name for name in policy.outgoing.metrics if name in noised]
    foreign = [name for name in facts.outgoing.metrics if name not in allowed]
    return conclude(
        "R17",
        "dpo",
        [holds("metrics", not foreign, yes=f"only {listed(allowed)}", no=listed(foreign))],
        good="No metric leaves that is not allowed, declared and noised.",
        bad="A metric would leave that is not allowed, or not declared with noise.",
    )
