"""One department's folder on disk, as `cityfed-client` finds it: key, policy, signature, binding, configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w

from clients.binding import bound_contract, load_binding
from clients.config import ClientConfig
from policies.load import complete, sign_policy
from shared.contracts.contract import agreement_hash
from shared.identity import IdentityKey, fingerprint
from shared.keystore import save_identity
from tests.city import MESSAGES, lowered_policy

Edit = Callable[[str], str]


def same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Office:
    """A department's folder."""

    folder: Path
    policy_owner: IdentityKey

    @property
    def config(self) -> Path:
        return self.folder / "client.toml"

    @property
    def binding(self) -> Path:
        return self.folder / "police.toml"

    @property
    def rows(self) -> Path:
        return self.folder / "police.csv"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.sqlite"

    def edit_config(self, **changes: object) -> None:
        tree = {**msgspec.toml.decode(self.config.read_bytes()), **changes}
        self.config.write_text(tomli_w.dumps(tree))


def found_office(folder: Path, *, rows: Edit = same, binding: Edit = same, policy: Edit = same) -> Office:
    """Write a police department that is in order but for what the edits change."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("police.csv", "police.toml"):
        shutil.copy(MESSAGES / name, folder / name)
    office = Office(folder, IdentityKey.generate())
    keys = {name: IdentityKey.generate() for name in ("roster", "authority", "police")}
    bound = load_binding(office.binding)
    text = complete(
        Path(lowered_policy(folder, "police")).read_text(),
        dataset=bound.dataset,
        contract_hash=agreement_hash(bound_contract(bound)),
        plan_key_fingerprint=fingerprint(keys["authority"].public),
        roster_key_fingerprint=fingerprint(keys["roster"].public),
    )
    signed = policy(text).encode()
    (folder / "policy.toml").write_bytes(signed)
    (folder / "policy.sig").write_bytes(sign_policy(office.policy_owner, signed).signature)
    save_identity(folder / "identity.key", keys["police"])
    config = ClientConfig(
        department="police",
        roster_key=keys["roster"].public.hex(),
        authority_key=keys["authority"].public.hex(),
        policy_owner_key=office.policy_owner.public.hex(),
        members={"police": keys["police"].public.hex()},
        binding="police.toml",
    )
    office.config.write_text(tomli_w.dumps(msgspec.to_builtins(config)))
    office.rows.write_text(rows(office.rows.read_text()))
    office.binding.write_text(binding(office.binding.read_text()))
    return office
