"""What a judge keeps of a decision."""

from __future__ import annotations

import datetime as dt

from clients.judge import Judged
from policies.facts import Facts, Phase


def test_what_was_allowed_prints_without_the_exact_sizes_that_were_judged() -> None:
    judged = Judged(Phase.ROUND, Facts(today=dt.date(2026, 3, 1), stopped=False, rows_ok=2049, units=2048))
    assert "204" not in repr(judged)
    assert "round" in repr(judged)
