"""The exchanges of one round: requests become bytes once, and each reply is read and handed on as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from server.config import Timeouts
from shared.codec import Encoded, encode
from shared.errors import ProtocolError, RoundAbortedError
from shared.identity import DepartmentId
from shared.messages import Refusal, Reply, Request, decode_reply
from shared.plan import Plan
from shared.transport import Transport

R = TypeVar("R")

NO_ANSWER = "no-answer"
"""What stands for a department that said nothing, or something that was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks departments in the steps of one round.

    Attributes:
        number: the round.
        carrier: carries bytes to departments and back.
        timeouts: how long a step waits for the slowest department.
        missing: hears of each department without a usable answer: round, step, department, reason code.
    """

    number: int
    carrier: Transport
    timeouts: Timeouts
    missing: Callable[[int, str, str, str], None]

    def ask(
        self,
        step: str,
        requests: Mapping[str, Request],
        kind: type[R],
        receive: Callable[[DepartmentId, R], object],
    ) -> tuple[str, ...]:
        """Send requests and hand each reply to a collector as it arrives; nothing here holds on to one.

        Whoever gives no usable reply, or one that the collector refuses, is missing by name. Returns who counted, in
        roster order.
        """
        if not requests:
            return ()
        waiting, taken = {DepartmentId(name) for name in requests}, []
        for name, raw in self.carrier.exchange(encode_once(requests), timeout_s=self.timeouts.of(step)):
            if name in waiting:  # nobody answers twice, nor unasked
                waiting.remove(name)
                status = hand_over(name, raw, kind, receive)
                if status is None:
                    taken.append(name)
                else:
                    self.missing(self.number, step, name, status)
            del raw  # or it would be here until the next one has come
        for name in sorted(waiting):
            self.missing(self.number, step, name, NO_ANSWER)
        return tuple(sorted(taken))


def encode_once(requests: Mapping[str, Request]) -> dict[DepartmentId, bytes]:
    """Encode requests; one object that goes to several departments is encoded once, for it may carry a model."""
    distinct = {id(request): request for request in requests.values()}
    encoded = {key: encode(request) for key, request in distinct.items()}
    return {DepartmentId(name): encoded[id(request)] for name, request in requests.items()}


def hand_over(
    name: DepartmentId, raw: Encoded, kind: type[R], receive: Callable[[DepartmentId, R], object]
) -> str | None:
    """Decode one reply strictly and hand it to ``receive``; return why it does not count, or None."""
    try:
        reply: Reply = decode_reply(raw)
        if isinstance(reply, kind):
            receive(name, reply)
            return None
    except ProtocolError as error:
        return error.code
    return reply.status if isinstance(reply, Refusal) else NO_ANSWER


def guarded(step: Callable[[], R]) -> R:
    """Turn a protocol failure of the whole round into an abort by name.

    Raises:
        RoundAbortedError: with the code of the failure.
    """
    try:
        return step()
    except ProtocolError as error:
        raise RoundAbortedError(error.code, error.message) from error


def require_enough(plan: Plan, number: int, members: tuple[str, ...]) -> None:
    """Refuse to go on below the plan's floor.

    Raises:
        RoundAbortedError: ``below-threshold``.
    """
    floor = max(plan.aggregation.min_contributors, plan.aggregation.threshold)
    if len(members) < floor:
        raise RoundAbortedError(
            "below-threshold", f"Round {number}: {len(members)} departments take part, the plan needs {floor}."
        )
