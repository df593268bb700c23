"""Who runs with a certificate is warned before it ends, and stops when it has."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence

import pytest

from shared.errors import ConfigError, ProtocolError
from shared.expiry import WARN_DAYS, CertificateWatch, Expiry, expiry_warnings

UNTIL = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
ITEM = Expiry(whose="the server", until=UNTIL, renew="renew it")
DAY = dt.timedelta(days=1)


class Files:
    """Certificates as they lie on a disk, and a clock."""

    def __init__(self, now: dt.datetime) -> None:
        self.now, self.until, self.reads, self.code = now, UNTIL, 0, ""

    def judge(self, now: dt.datetime) -> Sequence[Expiry]:
        self.reads += 1
        if self.code:
            raise ConfigError(self.code, "Somebody is at work on the files.")
        if now > self.until:
            raise ProtocolError("certificate-expired", "server.crt expired on 2026-11-30.")
        return (Expiry(whose="the server", until=self.until, renew="renew it"),)

    def watch(self) -> CertificateWatch:
        return CertificateWatch(self.judge, lambda: self.now)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (WARN_DAYS * DAY, ()),
        (WARN_DAYS * DAY - dt.timedelta(seconds=1), ("expires on 2026-11-30, in 29 days",)),
        (dt.timedelta(0), ("expires on 2026-11-30, in 0 days",)),
        (-DAY, ("expired on 2026-11-30",)),
    ],
)
def test_people_are_told_from_thirty_days_before_the_end(left: dt.timedelta, said: Sequence[str]) -> None:
    warnings = expiry_warnings((ITEM,), now=UNTIL - left)
    assert warnings == tuple(f"The certificate of the server {ends}: renew it." for ends in said)


def test_a_running_role_warns_once_a_day(caplog: pytest.LogCaptureFixture) -> None:
    files = Files(UNTIL - (WARN_DAYS + 1) * DAY)
    watch = files.watch()
    assert (watch.fault(), caplog.messages) == ("", [])
    for day in (2, 3):
        for _ in range(3):
            files.now += dt.timedelta(minutes=1)
            assert watch.fault() == ""
        files.now += DAY
        watch.fault()
        assert len(caplog.messages) == day - 1


def test_files_are_not_read_at_every_look() -> None:
    files = Files(UNTIL - DAY)
    watch = files.watch()
    assert [watch.fault() for _ in range(100)] == [""] * 100
    assert files.reads == 1


def test_when_a_certificate_has_ended_nothing_may_run_until_there_is_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = Files(UNTIL - DAY)
    watch = files.watch()
    watch.fault()
    files.now = UNTIL + dt.timedelta(seconds=1)
    for _ in range(3):
        assert watch.fault() == "certificate-expired"
        files.now += dt.timedelta(minutes=1)
    assert [message for message in caplog.messages if message.startswith("no process runs")] == [
        "no process runs until this is set right: server.crt expired on 2026-11-30."
    ]
    files.until += 300 * DAY
    assert watch.fault() == ""
    assert caplog.messages[-1] == "the certificates are in order again"


def test_somebody_at_work_on_the_files_ends_nothing_and_revives_nothing() -> None:
    files = Files(UNTIL - DAY)
    watch, files.code = files.watch(), "key-file-missing"
    assert watch.fault() == ""
    files.now, files.code = UNTIL + DAY, ""
    assert watch.fault() == "certificate-expired"
    files.now, files.code = UNTIL + 2 * DAY, "key-file-missing"
    assert watch.fault() == "certificate-expired"
