"""A department writes its policy and its owner signs it: the last step before data may be bound under it."""

from __future__ import annotations

from pathlib import Path

from clients.binding import bound_contract, load_binding
from clients.config import load_config, load_trust, read_file, read_key
from policies.load import (
    complete,
    department_names,
    department_policy,
    parse_policy,
    policy_digest,
    sign_policy,
    template,
    template_names,
)
from shared.contracts.contract import agreement_hash
from shared.errors import ConfigError
from shared.identity import IdentityKey, fingerprint
from shared.keystore import load_identity, save_identity
from shared.private_files import replace_private_file


def make_owner_key(path: Path) -> str:
    """Make the policy owner's key and return its public half in hex, which `cityfed-client enrol` pins.

    Raises:
        ConfigError: ``key-file-exists``.
    """
    key = IdentityKey.generate()
    save_identity(path, key)
    return key.public.hex()


def write_policy(config_path: Path, source: str) -> Path:
    """Write a policy from a packaged one, completed by the bound data set and the pinned keys of the authority.

    Args:
        config_path: this department's ``client.toml``.
        source: a packaged department, a packaged template, or the path of a policy without ``dataset``,
            ``contract_hash`` and ``[authority]``.

    Raises:
        ConfigError: ``policy-exists``, ``template-unknown``, or a file is not in order.
        ContractError: the binding is not in order.
    """
    config, folder = load_config(config_path), config_path.parent
    target, trust = folder / config.policy, load_trust(config)
    if target.exists():
        raise ConfigError("policy-exists", f"{target} exists: edit it, or move it away.")
    binding = load_binding(folder / config.binding)
    text = complete(
        _policy_source(source),
        dataset=binding.dataset,
        contract_hash=agreement_hash(bound_contract(binding)),
        plan_key_fingerprint=fingerprint(trust.authority_key),
        roster_key_fingerprint=fingerprint(trust.roster_key),
    )
    replace_private_file(target, text.encode())
    return target


def sign_policy_file(config_path: Path, key_path: Path) -> str:
    """Sign the policy with its owner's key and return its digest in hex.

    Raises:
        ConfigError: ``key-foreign`` for a key that is not the pinned one; the policy or key is not in order;
            ``policy-department`` for another department's policy.
    """
    config, folder = load_config(config_path), config_path.parent
    owner, text = load_identity(key_path), read_file(folder / config.policy)
    if owner.public != read_key(config.policy_owner_key, "policy_owner_key"):
        raise ConfigError("key-foreign", f"{key_path} is not the policy owner's key that {config_path} pins.")
    if parse_policy(text, str(folder / config.policy)).department != config.department:
        raise ConfigError("policy-department", f"{folder / config.policy} is the policy of another department.")
    replace_private_file(folder / config.policy_signature, sign_policy(owner, text).signature)
    return policy_digest(text).hex()


def _policy_source(source: str) -> str:
    """Return the text that a policy begins with."""
    if source in department_names():
        return department_policy(source)
    if source in template_names():
        return template(source)
    path = Path(source)
    if path.is_file():
        return read_file(path).decode(errors="replace")
    known = ", ".join([*department_names(), *template_names()])
    raise ConfigError("template-unknown", f"There is no policy {source}: give a TOML file or one of {known}.")
