"""An exhaustive model check of one round: which sums can a lying coordinator compute? (protocol 6)

What is modelled. Departments are numbers; the last ``c`` of them collude with the coordinator. It may

- give each honest department its own view of the round: any ``sid``, that is any participants (another epoch, model
  or roster is just another ``sid`` with the same participants), at most one per life of the department;
- ask each honest department to confirm and to reveal for any list of survivors;
- restart departments at any moment, between any two steps.

Under a ``sid`` with participants P a department i that answers the update sends x_i + b_i + sum of +-s_ij over P, with
b_i and each s_ij shared t-of-|P|; s_ij differs from ``sid`` to ``sid``, x_i is the same in the whole round. What a
department then does follows from :class:`Rules`; each rule can be switched off to see that the check notices.
Signatures, seals, commitments and hashes are perfect: nobody signs for an honest department, shares and streams
look random until t shares are known. Colluders sign whatever helps, know every s_ij of their own and hold a share
of every secret that was dealt to them.

When a sum is known. Let A be the honest departments of a ``sid`` whose b_i is known (t shares). A linear combination of
the masked vectors is free of masks exactly if it gives weight 0 to everybody outside A and equal weights to both
ends of every unknown s_ij; an end that sent nothing under this ``sid`` has weight 0. So the sums that fall out are one
for each connected component of A under unknown s_ij, less the components that touch somebody outside A. Knowledge only
grows with every answer, so it is enough to look at departments that reveal whenever their rules allow it.

Not modelled: several rounds at once (keys of rounds are independent, updates are fresh), malformed messages (each
is refused before it counts), and dealers that share wrongly, which hurts their own secrets only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, product

Group = frozenset[int]
Sums = frozenset[Group]
"""The sums that fall out, each as the set of honest departments in it."""


@dataclass(frozen=True)
class Setting:
    """n departments, threshold t, least contributors m, c colluders."""

    n: int
    t: int
    m: int
    c: int

    @property
    def admissible(self) -> bool:
        """The conditions of protocol 1, here with everybody in the cohort."""
        return 2 * self.t > self.n + self.c and max(self.t, self.c + 2) <= self.m <= self.n

    @property
    def everybody(self) -> Group:
        return frozenset(range(self.n))

    @property
    def honest(self) -> Group:
        return frozenset(range(self.n - self.c))

    @property
    def colluders(self) -> Group:
        return self.everybody - self.honest


@dataclass(frozen=True)
class Rules:
    """What an honest department insists on.

    Attributes:
        journal: every answered step of the round is remembered across restarts.
        confirmations: a partial list is revealed for only if t of its members confirmed it, each at most one list.
        shares_only: no department ever reveals a pair seed that it knows itself.
    """

    journal: bool = True
    confirmations: bool = True
    shares_only: bool = True


# --- one department --------------------------------------------------------------------------------------


def longest_life(rules: Rules, restarts: int) -> int:
    """Return in how many lives (under how many sids) a department can answer an update of the same round.

    A walk through every order of steps and restarts. The state is what the journal closed, what this life has
    done, and how many lives have sent an update.
    """
    first: tuple[frozenset[str], tuple[str, ...], int, int] = (frozenset(), (), 0, restarts)
    seen, todo = {first}, [first]
    while todo:
        closed, done, updates, left = todo.pop()
        following = [
            (closed | {step} if rules.journal else closed, (*done, step), updates + (step == "update"), left)
            for step in ("update", "confirm", "reveal")
            if step not in closed and step not in done and (step == "update") == (not done)
        ]
        if left:
            following.append((closed, (), updates, left - 1))
        todo += (fresh := set(following) - seen)
        seen |= fresh
    return max(updates for _, _, updates, _ in seen)


# --- one sid ---------------------------------------------------------------------------------------------


def subsets(group: Group, least: int = 0) -> Iterator[Group]:
    """Every subset with at least ``least`` members."""
    members = sorted(group)
    chosen = chain.from_iterable(combinations(members, size) for size in range(least, len(members) + 1))
    return map(frozenset, chosen)


@dataclass(frozen=True)
class View:
    """One sid: its participants, and the honest departments that sent an update under it."""

    setting: Setting
    rules: Rules
    participants: Group
    senders: Group

    @cached_property
    def colluders(self) -> Group:
        return self.participants & self.setting.colluders

    @cached_property
    def honest(self) -> Group:
        return self.participants & self.setting.honest

    def lists(self) -> list[Group]:
        """The survivor lists that some department may accept: m members at least, with a receipt of each."""
        present = self.senders | self.colluders
        return [chosen for chosen in subsets(present, self.setting.m) if chosen & self.senders]

    def support_needed(self, chosen: Group) -> int:
        """How many honest departments must stand by a list before any of them reveals for it."""
        if chosen == self.participants or not self.rules.confirmations:
            return 1
        return max(1, self.setting.t - len(chosen & self.colluders))

    def answers(self) -> Iterator[dict[int, Group]]:
        """Yield every way in which the senders reveal, as the list that each revealed for.

        A department reveals once, for the list that it confirmed or else for all participants. A list without
        enough support is as good as no answer, so only supported ones are built.
        """
        partial = [chosen for chosen in self.lists() if chosen != self.participants]
        whole = self.participants if self.participants in self.lists() else None
        yield from self._split(partial, self.senders, {}, whole)

    def _split(
        self, partial: list[Group], free: Group, taken: dict[int, Group], whole: Group | None
    ) -> Iterator[dict[int, Group]]:
        if not partial:
            yield taken if whole is None else taken | dict.fromkeys(free, whole)
            return
        chosen, rest = partial[0], partial[1:]
        yield from self._split(rest, free, taken, whole)
        for standing in subsets(free & chosen, self.support_needed(chosen)):
            yield from self._split(rest, free - standing, taken | dict.fromkeys(standing, chosen), whole)

    def known_seeds(self, answers: Mapping[int, Group]) -> tuple[Group, frozenset[Group]]:
        """Return whose self seeds and which pair seeds (of an honest sender) reach t shares by these answers."""
        given, lists = len(self.colluders), list(answers.values())
        selves = {one for one in self.senders if given + sum(one in chosen for chosen in lists) >= self.setting.t}
        pairs = {
            frozenset((one, other))
            for one, other in product(self.senders, self.honest)
            if one != other and self._pair_known(one, other, answers, given)
        }
        return frozenset(selves), frozenset(pairs)

    def _pair_known(self, one: int, other: int, answers: Mapping[int, Group], given: int) -> bool:
        """Shares of ``one``'s dealing are revealed for lists with it and without the other end."""
        told = not self.rules.shares_only and one in answers and other not in answers[one]
        shares = sum(one in chosen and other not in chosen for chosen in answers.values())
        return told or given + shares >= self.setting.t

    def sums(self, answers: Mapping[int, Group]) -> Sums:
        """Return the sums that fall out of these answers."""
        open_, known = self.known_seeds(answers)
        components, left = set(), set(open_)
        while left:
            component = self._component(left.pop(), known)
            left -= component
            components.add(component)
        return frozenset(component for component in components if component <= open_)

    def _component(self, start: int, known: frozenset[Group]) -> Group:
        """Everybody honest who hangs together with ``start`` by pair seeds that are not known."""
        reached, todo = {start}, [start]
        while todo:
            one = todo.pop()
            tied = {other for other in self.honest - reached if frozenset((one, other)) not in known}
            reached |= tied
            todo += tied
        return frozenset(reached)


# --- the round -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What an exhaustive check found.

    Attributes:
        answers: how many ways to answer were looked at.
        sums: every sum that falls out in some view.
        broken: sums that fall out together, or one over too few; empty when the rules hold.
    """

    answers: int
    sums: Sums
    broken: Sums


def check(setting: Setting, rules: Rules, *, restarts: int = 2) -> Verdict:
    """Look at every view of one round; stop at the first break.

    It is a break when two different sums fall out, under one sid or two, or one over fewer than m - c honest
    departments. Two sids share a department only if it can answer in two lives. Two sids are enough to look at: more
    of them break the round only if two of them do, or one alone.
    """
    lives = longest_life(rules, restarts)
    answers = 0
    found: set[tuple[Group, Sums]] = set()
    for view in _views(setting, rules):
        for answer in view.answers():
            answers += 1
            sums = view.sums(answer)
            if (view.senders, sums) in found:
                continue
            found.add((view.senders, sums))
            together = [sums, *(sums | more for group, more in found if lives > 1 or not group & view.senders)]
            broken = next((bad for bad in together if _breaks(setting, bad)), Sums())
            if broken:
                return Verdict(answers, _union(found), broken)
    return Verdict(answers, _union(found), Sums())


def _views(setting: Setting, rules: Rules) -> Iterator[View]:
    """Every kind of sid: enough participants, and honest ones that answer."""
    for participants in subsets(setting.everybody, setting.m):
        for senders in subsets(participants & setting.honest, 1):
            yield View(setting, rules, participants, senders)


def _breaks(setting: Setting, sums: Sums) -> bool:
    """More than one sum, or one over too few."""
    return len(sums) > 1 or any(len(group) < setting.m - setting.c for group in sums)


def _union(found: set[tuple[Group, Sums]]) -> Sums:
    """All sums together."""
    return frozenset(chain.from_iterable(sums for _, sums in found))
