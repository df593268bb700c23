"""Around one exchange: requests become bytes once, and each reply is read and handed on as it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from shared.codec import Encoded, encode
from shared.errors import ProtocolError
from shared.identity import DepartmentId
from shared.messages import Refusal, Reply, Request, decode_reply

R = TypeVar("R")

NO_ANSWER = "no-answer"
"""What stands for a department that said nothing, or something that was not asked for."""


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
