"""Flower's side of a department: takes encoded bytes out of a Message and puts the encoded answer into the reply.

Nothing here reads what the bytes mean; the Participant does. All that knows Flower in a department is in this file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from shared.codec import encode
from shared.errors import ProtocolError
from shared.messages import Refusal
from shared.transport import CHANNEL, REPLY, REQUEST

_LOG = logging.getLogger(__name__)


class Answering(Protocol):
    """What a Participant is to its carrier: bytes in, bytes out, never an exception."""

    def handle(self, request: bytes) -> bytes:
        """Answer one encoded request."""
        ...


def client_app(participant_of: Callable[[Context], Answering]) -> ClientApp:
    """Return a ClientApp that hands each request to this department's Participant.

    Args:
        participant_of: returns the Participant of the node that a message reached. It must return the same one for
            as long as the node lives: an epoch exists in its memory only.

    Guarantees:
        A reply holds what the Participant answered, or the encoded refusal ``unavailable``; no text of an
        exception and nothing else leaves.
    """
    app = ClientApp()

    @app.train(CHANNEL)
    def answer(message: Message, context: Context) -> Message:
        """Carry one request and its reply."""
        content = RecordDict({CHANNEL: ConfigRecord({REPLY: _answer(participant_of, message, context)})})
        return Message(content, reply_to=message)

    return app


def _nobody(_context: Context) -> Answering:
    """Outside a node nobody answers."""
    raise RuntimeError("only `cityfed-client node` answers")


def _answer(participant_of: Callable[[Context], Answering], message: Message, context: Context) -> bytes:
    """Ask the Participant; whatever goes wrong around it is ``unavailable``."""
    try:
        return bytes(participant_of(context).handle(_request(message)))
    except Exception as error:  # noqa: BLE001 - R28: whatever goes wrong is a refusal
        # The name of the type stays here; the text of an exception could hold anything.
        _LOG.warning("a message of Flower found no participant that answers: %s", type(error).__name__)
        return encode(Refusal(status="unavailable"))


def _request(message: Message) -> bytes:
    """Return the one value of the one record, or raise ``carrier-malformed``, which stays here."""
    record = message.content.get(CHANNEL)
    if len(message.content) == 1 and isinstance(record, ConfigRecord) and len(record) == 1:
        value = record.get(REQUEST)
        if isinstance(value, bytes):
            return value
    raise ProtocolError("carrier-malformed", "The message of Flower holds anything but one encoded request.")


app = client_app(_nobody)
"""What the bundle refers to; the node answers with an app of its own, so that nothing else can."""
