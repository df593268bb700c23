"""A city that lost one department's disk after a run, and what the department restores itself from."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from clients.backup import make_backup
from clients.config import load_config, load_policy
from clients.explain import budget_status
from clients.restore import Restored, restore_home
from server.audit import department_receipts
from server.plan_files import load_published
from shared.audit import ReceiptLine, receipt_line
from shared.crypto.seal import PUBLIC_KEY_BYTES
from shared.errors import CityFedError
from shared.identity import IdentityKey, sign_record
from shared.keystore import load_identity
from shared.messages import HeadReceipt, KeyAdvert
from shared.plan import Plan
from shared.privacy.accountant import epsilon
from shared.privacy.extras import plan_events
from tests.deployed_city import DeployedCity, deploy_with_plan, now
from tests.finished_city import run_published

POLICE = "police"


@dataclass(frozen=True)
class Lost:
    """A city with one finished run, and backups of one department from before and after it."""

    city: DeployedCity
    digest: str
    plan: Plan
    lines: tuple[ReceiptLine, ...]
    before: Path
    after: Path

    @property
    def identity(self) -> IdentityKey:
        return load_identity(self.city.home(POLICE) / "identity.key")

    def advert(
        self, run: bytes, *, key: IdentityKey | None = None, until: str = "", policy: bytes = b""
    ) -> ReceiptLine:
        """What the department signs when it joins a run."""
        config = self.city.config(POLICE)
        advert = KeyAdvert(
            version=1,
            run=run,
            epoch=1,
            department=POLICE,
            hpke_key=bytes(PUBLIC_KEY_BYTES),
            roster_hash=bytes(32),
            policy_hash=policy or load_policy(config, load_config(config)).digest,
            heads_seen={},
        )
        return receipt_line("key-advert", sign_record(key or self.identity, "key-advert", advert), run=b"", until=until)

    def head(
        self, sequence: int, run: bytes, *, key: IdentityKey | None = None, digest: bytes = bytes(32)
    ) -> ReceiptLine:
        """What the department signs when a round is closed."""
        head = HeadReceipt(department=POLICE, closed_hash=bytes(32), journal_sequence=sequence, journal_head=digest)
        return receipt_line("head-receipt", sign_record(key or self.identity, "head-receipt", head), run=run)

    def restore(
        self,
        folder: Path,
        backup: Path,
        lines: tuple[ReceiptLine, ...] | None = None,
        rosters: Sequence[Path] = (),
    ) -> Restored:
        """Restore into a new home; the rows come back from elsewhere."""
        folder.mkdir(exist_ok=True)
        receipts = folder.with_suffix(".jsonl")
        receipts.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in lines or self.lines))
        shutil.copy(self.city.home(POLICE) / f"{POLICE}.csv", folder)
        return restore_home(folder, backup, [receipts], now=now(), rosters=rosters)

    def assert_refused(
        self,
        code: str,
        folder: Path,
        backup: Path,
        lines: tuple[ReceiptLine, ...] | None = None,
        rosters: Sequence[Path] = (),
    ) -> None:
        """For this reason no journal gets its name, so nobody can go on in the new home."""
        with pytest.raises(CityFedError) as caught:
            self.restore(folder, backup, lines, rosters)
        assert caught.value.code == code
        assert not (folder / "journal.sqlite").exists()
        assert not (folder / "stopped").exists()  # the last thing before the journal's name


def lose(folder: Path) -> Lost:
    """Found the city, run its plan to the end, and make both backups."""
    city, digest = deploy_with_plan(folder / "city")
    make_backup(city.config(POLICE), folder / "before", keys=True, now=now())
    run_published(city, digest)
    make_backup(city.config(POLICE), folder / "after", keys=True, now=now() + dt.timedelta(days=2))
    lines = tuple(department_receipts(city.authority.journal))
    return Lost(city, digest, load_published(city.authority, digest)[1], lines, folder / "before", folder / "after")


def in_full(plan: Plan) -> float:
    return epsilon(plan_events(plan, plan.attempts), 1e-4)


def spent(config: Path) -> float:
    return budget_status(config, now=now()).spent_epsilon
