"""A node's door: whatever it cannot use is refused in one of two words and written down."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from shared.codec import encode
from shared.errors import JournalError
from shared.messages import (
    CloseRound,
    ConfirmRequest,
    Refusal,
    RevealRequest,
    SealRequest,
    UpdateRequest,
)
from simulation.network import InMemoryTransport
from tests.city import FOUR, City, open_city
from tests.clients.participant_city import POLICE, REFUSED, UNAVAILABLE, first_round, offer, reasons
from tests.eavesdropper import Eavesdropper


@pytest.mark.parametrize("request_bytes", [b"", b"\xc1", b"hello", encode(Refusal(status="refused")), bytes(10_000)])
def test_what_is_no_request_is_refused_and_written_down(city: City, request_bytes: bytes) -> None:
    police = city.world.participants[POLICE]
    assert police.handle(request_bytes) == REFUSED
    assert reasons(police) == ["message-malformed"]


def test_requests_out_of_order_are_refused(city: City, tmp_path: Path) -> None:
    _, ear = first_round(city)
    with open_city(tmp_path / "other") as fresh:
        police = fresh.world.participants[POLICE]
        for kind in (SealRequest, UpdateRequest, RevealRequest):
            assert police.handle(ear.first(kind).request) == REFUSED
        confirm = ConfirmRequest(run=bytes(32), round=1, sid=bytes(32), survivors=FOUR)
        assert police.handle(encode(confirm)) == REFUSED
        assert police.handle(ear.first(CloseRound).request) == REFUSED
        assert reasons(police) == [
            "epoch-unknown",
            "epoch-unknown",
            "round-unknown",
            "round-unknown",
            "signature-invalid",  # the other city has another authority
        ]


def test_p1_a_refusal_says_one_of_two_words_and_nothing_else(city: City) -> None:
    Path(city.world.departments[POLICE].binding.source.path).write_text("another,header\n1,2\n")
    ear = Eavesdropper()
    city.coordinator(InMemoryTransport(ear.listen(city.peers))).run(city.basis.initial)
    refusals = {item.reply for item in ear.heard if isinstance(item.answered, Refusal)}
    assert refusals == {UNAVAILABLE}
    assert city.world.participants[POLICE].handle(b"no request") == REFUSED
    assert Refusal.__struct_fields__ == ("status",)


def test_p4_the_kill_switch_refuses_offers_and_rounds_until_it_is_lifted(city: City) -> None:
    police = city.world.participants[POLICE]
    police.department.stop_file.touch()
    assert police.handle(encode(offer(city))) == REFUSED
    police.department.stop_file.unlink()
    coordinator, _ = first_round(city)
    police.department.stop_file.touch()
    result = coordinator.run_round(2, city.watcher.results[0].model, final=True)
    assert result.dropouts == ("police",)
    assert reasons(police) == ["policy-refused"] * 2


def test_an_unwritable_journal_makes_a_department_unavailable(city: City) -> None:
    """Nothing can be promised that cannot be written down."""
    police = city.world.participants[POLICE]
    sqlite3.connect(police.memory.journal.path).execute("DROP TABLE entry").connection.close()
    assert police.handle(encode(offer(city))) == UNAVAILABLE
    assert isinstance(police.last_refusal, JournalError)
