"""JSON files that people carry: a document that is too long is refused before it is read."""

from __future__ import annotations

import pytest

from shared.codec import MAX_FILE_BYTES, Record, load_json
from shared.errors import ConfigError


class Note(Record, frozen=True, kw_only=True):
    """A record of one field."""

    word: str


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_document_of_more_bytes_than_any_is_allowed_is_not_read(beyond: int) -> None:
    document = b'{"word": "hello"}'.ljust(MAX_FILE_BYTES + beyond)
    if not beyond:
        assert load_json(document, Note, where="note.json") == Note(word="hello")
        return
    with pytest.raises(ConfigError, match=rf"^note.json has more than the {MAX_FILE_BYTES} bytes") as caught:
        load_json(document, Note, where="note.json")
    assert caught.value.code == "json-too-large"


@pytest.mark.parametrize("document", [b'{"word": "\xff"}', b'\xff{"word": "hello"}'])
def test_a_document_with_a_byte_that_is_no_text_is_one_sentence(document: bytes) -> None:
    """As a bad memory stick leaves it."""
    with pytest.raises(ConfigError, match=r"^note.json: ") as caught:
        load_json(document, Note, where="note.json")
    assert caught.value.code == "json-content"
