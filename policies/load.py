"""Bytes to policies: parse, sign, verify, and the packaged templates.

Pure functions on bytes. The signature covers exactly the bytes of the TOML file, so a changed comment is a
changed policy. The only files read are the ones that this package brings along.
"""

from __future__ import annotations

from importlib import resources

from policies.policy import AuthorityPins, Policy, SignedPolicy
from shared.codec import Record, load_toml, sha256
from shared.errors import ConfigError, ProtocolError
from shared.identity import DEPARTMENT_NAME, IdentityKey, verify_bytes

POLICY_LABEL = "policy"

MAX_POLICY_BYTES = 1 << 20
"""Largest policy file that is looked at (1 MiB)."""


class PolicyFile(Record, frozen=True, kw_only=True):
    """The bytes of a policy file and the owner's signature over exactly these bytes."""

    text: bytes
    signature: bytes


def parse_policy(text: bytes, where: str) -> Policy:
    """Parse a policy file strictly.

    Args:
        text: TOML in UTF-8, at most :data:`MAX_POLICY_BYTES`.
        where: file name or description used in the sentence.

    Raises:
        ConfigError: ``policy-too-large``, ``toml-encoding``, ``toml-syntax``, ``toml-content``.
    """
    if len(text) > MAX_POLICY_BYTES:
        raise ConfigError("policy-too-large", f"{where} is over the limit of {MAX_POLICY_BYTES} bytes.")
    try:
        decoded = text.decode()
    except UnicodeDecodeError as cause:
        raise ConfigError("toml-encoding", f"{where} is not UTF-8 text.") from cause
    return load_toml(decoded, Policy, where=where)


def policy_digest(text: bytes) -> bytes:
    """Return the hash of a policy file that adverts and receipts name (protocol 2)."""
    return sha256(b"policy", text)


def sign_policy(owner: IdentityKey, text: bytes) -> PolicyFile:
    """Sign the bytes of a policy file with the policy owner's key."""
    return PolicyFile(text=text, signature=owner.sign(POLICY_LABEL, text))


def open_policy(text: bytes, signature: bytes, owner_key: bytes, where: str) -> SignedPolicy:
    """Verify a policy file with its owner's key, then parse it.

    Args:
        text: the file's bytes.
        signature: 64 bytes over exactly ``text``, under the label ``policy``.
        owner_key: the policy owner's public key, 32 bytes, pinned in the department.
        where: file name or description used in the sentence.

    Raises:
        ConfigError: ``policy-unsigned``, then as :func:`parse_policy`.
    """
    try:
        verify_bytes(owner_key, POLICY_LABEL, text, signature)
    except ProtocolError as cause:
        raise ConfigError(
            "policy-unsigned", f"{where} is not signed by the policy owner whose key is configured here."
        ) from cause
    return SignedPolicy(policy=parse_policy(text, where), digest=policy_digest(text))


def template_names() -> tuple[str, ...]:
    """Return the packaged templates by name."""
    return _names("templates")


def template(name: str) -> str:
    """Return a packaged template: a starting point for a department's own policy.

    Raises:
        ConfigError: ``template-unknown``.
    """
    return _packaged("templates", name)


def department_names() -> tuple[str, ...]:
    """Return the departments that have a packaged example."""
    return _names("departments")


def department_policy(name: str) -> str:
    """Return a department's packaged example, still without the values that :func:`complete` adds.

    Raises:
        ConfigError: ``template-unknown``.
    """
    return _packaged("departments", name)


def complete(
    policy_text: str, *, dataset: str, contract_hash: str, plan_key_fingerprint: str, roster_key_fingerprint: str
) -> str:
    """Add what only this city knows: the data set, the agreed contract and the authority's keys.

    Contract hash and data set become the first lines (a top-level key stands before every table), the fingerprints a
    table ``[authority]`` at the end. A text that has them already is refused, because TOML takes no key twice.

    Args:
        policy_text: a template without ``dataset``, ``contract_hash`` and ``[authority]``.
        dataset: the data set's name as its binding has it.
        contract_hash: 64 lower-case hex digits.
        plan_key_fingerprint: of the key that signs plans, as :func:`shared.identity.fingerprint` prints it.
        roster_key_fingerprint: of the key that signs rosters.

    Raises:
        ValueError: a fingerprint, the hash or the name is malformed.
        ConfigError: the result is not a valid policy.
    """
    pins = AuthorityPins(plan_key_fingerprint=plan_key_fingerprint, roster_key_fingerprint=roster_key_fingerprint)
    if len(contract_hash) != 64 or not set(contract_hash) <= set("0123456789abcdef"):
        raise ValueError("`contract_hash` is 64 lower-case hex digits")
    if not DEPARTMENT_NAME.fullmatch(dataset):
        raise ValueError("`dataset` is a lower-case letter, then up to 31 letters, digits or `-`")
    text = (
        f'contract_hash = "{contract_hash}"\n'
        f'dataset = "{dataset}"\n'
        f"{policy_text.rstrip()}\n\n"
        "[authority]\n"
        f'plan_key_fingerprint = "{pins.plan_key_fingerprint}"\n'
        f'roster_key_fingerprint = "{pins.roster_key_fingerprint}"\n'
    )
    parse_policy(text.encode(), "the completed policy")
    return text


def _names(folder: str) -> tuple[str, ...]:
    """List the TOML files of a packaged folder without their ending."""
    files = (resources.files("policies") / folder).iterdir()
    return tuple(sorted(item.name.removesuffix(".toml") for item in files if item.name.endswith(".toml")))


def _packaged(folder: str, name: str) -> str:
    """Read one packaged TOML file by its plain name; a path is not a name."""
    known = _names(folder)
    if name not in known:
        said = f"There is no packaged policy of this name; {folder} has: {', '.join(known)}."
        raise ConfigError("template-unknown", said)
    return (resources.files("policies") / folder / f"{name}.toml").read_text(encoding="utf-8")
