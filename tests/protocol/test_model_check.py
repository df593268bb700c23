"""The model check: by the protocol's rules at most one sum falls out; without one of the rules, more does."""

from __future__ import annotations

from itertools import product

import pytest

from shared.plan import default_aggregation
from tests.protocol.model import Group, Rules, Setting, View, check, longest_life, subsets


def admissible(*sizes: int) -> list[Setting]:
    """Every admissible setting of so many departments, not only the default ones."""
    settings = [
        Setting(n, t, m, c) for n in sizes for t in range(2, n + 1) for m in range(t, n + 1) for c in range(n - 1)
    ]
    return [setting for setting in settings if setting.admissible]


# --- with every rule in force ----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", admissible(3, 4, 5, 6), ids=str)
def test_at_most_one_sum_falls_out_and_over_enough_honest_departments(setting: Setting) -> None:
    verdict = check(setting, Rules())
    assert not verdict.broken
    assert setting.honest in verdict.sums
    assert all(len(group) >= setting.m - setting.c >= 2 for group in verdict.sums)


@pytest.mark.soak
@pytest.mark.parametrize("setting", admissible(7, 8), ids=str)
def test_at_most_one_sum_falls_out_in_larger_cities(setting: Setting) -> None:
    verdict = check(setting, Rules(), restarts=4)
    assert not verdict.broken
    assert setting.honest in verdict.sums


@pytest.mark.parametrize("size", range(3, 9))
def test_the_default_numbers_are_among_those_checked(size: int) -> None:
    limits = default_aggregation(size, bound=1.0)
    assert Setting(size, limits.threshold, limits.min_contributors, limits.max_colluders) in admissible(size)


def test_with_a_journal_restarts_win_no_second_life() -> None:
    assert [longest_life(Rules(), restarts) for restarts in range(5)] == [1, 1, 1, 1, 1]
    assert [longest_life(Rules(journal=False), restarts) for restarts in range(5)] == [1, 2, 3, 4, 5]


# --- negative controls: each of these must be found --------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "rules"),
    [
        pytest.param(Setting(4, 2, 2, 0), Rules(), id="t = 2 at n = 4"),
        pytest.param(Setting(5, 3, 3, 1), Rules(), id="t = 3 at n = 5 with one colluder"),
        pytest.param(
            Setting(4, 3, 3, 1), Rules(shares_only=False, confirmations=False), id="own pair seeds at (4, 3, 1)"
        ),
        pytest.param(Setting(5, 3, 3, 0), Rules(confirmations=False), id="no confirm step at (5, 3, 0)"),
        pytest.param(Setting(4, 3, 3, 1), Rules(journal=False), id="no journal, one restart, n = 4, one colluder"),
    ],
)
def test_the_check_finds_what_is_wrong(setting: Setting, rules: Rules) -> None:
    assert check(setting, rules, restarts=1).broken


@pytest.mark.parametrize(
    ("setting", "rules", "restarts"),
    [
        pytest.param(Setting(4, 3, 3, 0), Rules(), 1, id="t = 3 at n = 4"),
        pytest.param(Setting(5, 4, 4, 1), Rules(), 1, id="t = 4 at n = 5 with one colluder"),
        pytest.param(Setting(4, 3, 3, 1), Rules(confirmations=False), 1, id="only shares at (4, 3, 1)"),
        pytest.param(Setting(5, 3, 3, 0), Rules(), 1, id="a confirm step at (5, 3, 0)"),
        pytest.param(Setting(4, 3, 3, 1), Rules(journal=False), 0, id="no journal and no restart"),
        pytest.param(Setting(4, 3, 3, 1), Rules(), 1, id="a journal and one restart"),
    ],
)
def test_each_control_fails_for_the_reason_it_names(setting: Setting, rules: Rules, restarts: int) -> None:
    """The same city with the one thing mended holds."""
    assert not check(setting, rules, restarts=restarts).broken


def test_own_pair_seeds_are_the_second_wall_behind_the_confirmations() -> None:
    """Where t confirmations are demanded, telling own pair seeds breaks nothing yet; the protocol keeps both walls."""
    for setting in admissible(3, 4, 5):
        assert not check(setting, Rules(shares_only=False)).broken


# --- the search leaves nothing out -------------------------------------------------------------------------


def supported(view: View, wanted: dict[int, Group]) -> dict[int, Group]:
    """Who reveals, when each department stands by the list that it was asked for."""
    return {
        one: chosen
        for one, chosen in wanted.items()
        if sum(other == chosen for other in wanted.values()) >= view.support_needed(chosen)
    }


@pytest.mark.parametrize("rules", [Rules(), Rules(confirmations=False)], ids=str)
@pytest.mark.parametrize("setting", [*admissible(3, 4), Setting(4, 2, 2, 0)], ids=str)
def test_every_way_to_answer_is_covered_by_one_that_is_looked_at(setting: Setting, rules: Rules) -> None:
    for participants in subsets(setting.everybody, setting.m):
        for senders in subsets(participants & setting.honest, 1):
            view = View(setting, rules, participants, senders)
            looked_at = [set(answer.items()) for answer in view.answers()]
            choices = [[None, *(chosen for chosen in view.lists() if one in chosen)] for one in sorted(senders)]
            for picked in product(*choices):
                wanted = {one: chosen for one, chosen in zip(sorted(senders), picked, strict=True) if chosen}
                answer = set(supported(view, wanted).items())
                assert any(answer <= other for other in looked_at)
