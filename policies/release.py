"""What becomes of the final model: who receives it.

Rule R21. A plain function ``(policy, facts) -> Finding``; when it is judged stands in :data:`policies.rules.RULES`.
"""

from __future__ import annotations

from policies.facts import Facts
from policies.findings import Finding, conclude, holds, missing, within
from policies.policy import Policy


def recipients_allowed(policy: Policy, facts: Facts) -> Finding:
    """R21: everybody whom the plan names as a recipient is on the list, and none across the border unless allowed."""
    if facts.plan is None:
        return missing("R21", "dpo", "a plan")
    terms, caps = facts.plan.release, policy.release
    crossing = "across the border as well" if caps.cross_border else "not across the border"
    return conclude(
        "R21",
        "dpo",
        [
            within("recipients", terms.recipients, caps.recipients),
            holds("border", caps.cross_border or terms.cross_border is False, yes=crossing, no="across the border"),
        ],
        good="The model goes to nobody who may not have it.",
        bad="The model would go to somebody who may not have it.",
    )
