"""Every reader of bytes from outside, with real inputs to start from. Whatever comes in, only a CityFedError comes out."""

from __future__ import annotations

from pathlib import Path

from shared.codec import encode
from shared.errors import JournalError
from shared.messages import decode_reply, decode_request
from tests.decoders.decoder import Decoder, record_decoder
from tests.decoders.files import file_decoders, text_decoders, vector_decoders
from tests.decoders.journals import journal_bodies
from tests.decoders.messages import bodies, replies, requests
from tests.decoders.signed import signed_decoders


def every_decoder(folder: Path) -> dict[str, Decoder]:
    """Return all readers by name; those that read files use ``folder``."""
    return {
        "request": Decoder(decode_request, tuple(map(encode, requests())), share=150_000),
        "reply": Decoder(decode_reply, tuple(replies()), share=150_000),
        **{record.__name__: record_decoder(record, seed) for record, seed in bodies()},
        **{f"{name} signed": decoder for name, decoder in signed_decoders()},
        **{
            f"journal {record.__name__}": record_decoder(record, seed, JournalError)
            for record, seed in journal_bodies()
        },
        **vector_decoders(),
        **text_decoders(),
        **file_decoders(folder),
    }
