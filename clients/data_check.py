"""Binding a data set: the one moment when record contents are judged (privacy 2).

What is found here stays here. Afterwards only the binding and the contract are compared with the declaration,
so that nothing the coordinator sees depends on the rows.
"""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import msgspec

from clients.binding import Declaration, check_binding, load_binding, write_declaration
from clients.config import load_config, load_department, load_policy, open_journal, read_file
from clients.enrol import CITY_FILE
from policies.evaluate import evaluate
from policies.facts import Facts, Phase
from policies.policy import Policy
from shared.city import SUMMARY_LABEL, DatasetSummary, read_city
from shared.codec import dump_json
from shared.errors import ConfigError, ContractError
from shared.identity import sign_record
from shared.journal import EntryKind
from shared.package import package_digest
from shared.private_files import replace_private_file


def check_data(binding_path: Path, *, now: dt.datetime) -> Declaration:
    """Validate a data set against its contract alone and write its declaration, which no node accepts yet.

    Raises:
        ContractError: as :func:`clients.binding.check_binding`.
    """
    declaration = check_binding(binding_path, now=now)
    write_declaration(binding_path, declaration)
    return declaration


def bind_data(config_path: Path, *, now: dt.datetime, binding: Path | None = None) -> Declaration:
    """Validate a department's data set, judge it by the department's policy, and write its declaration.

    Args:
        config_path: the department's ``client.toml``.
        now: the time to note, UTC.
        binding: the binding that the caller means; it must be the configured one.

    Raises:
        ConfigError: a configuration or policy file is not in order; ``binding-foreign``.
        ContractError: ``unit-foreign``; as :func:`clients.binding.check_binding`.
        PolicyViolation: ``policy-refused``; every finding is in the journal, and no declaration is written.
        JournalError: the decision could not be made durable.
    """
    config = load_config(config_path)
    signed = load_policy(config_path, config)
    binding_path = config_path.parent / config.binding
    if binding is not None and os.path.realpath(binding) != os.path.realpath(binding_path):
        raise ConfigError("binding-foreign", f"{config_path} is configured with the binding {binding_path}.")
    _check_unit(binding_path, signed.policy)
    floors = signed.policy.rows
    declaration = check_binding(
        binding_path, now=now, minimum_rows=floors.minimum_rows, minimum_units=floors.minimum_units
    )
    facts = Facts(
        today=now.date(),
        stopped=(config_path.parent / config.stop_file).exists(),
        signed_policy=signed,
        dataset=declaration.dataset,
        contract_hash=declaration.contract_hash,
        columns=tuple(load_binding(binding_path).columns),
        rows_ok=declaration.rows_usable,
        units=declaration.units,
        public_size=declaration.public_size,
        binding_unchanged=True,
    )
    decision = evaluate(signed.policy, facts, Phase.BIND)
    with open_journal(config_path) as journal:
        journal.append(EntryKind.DECISION, decision, now=now)
    decision.require()
    judged = msgspec.structs.replace(declaration, judged_by=signed.digest.hex())
    write_declaration(binding_path, judged)
    return judged


def _check_unit(binding_path: Path, policy: Policy) -> None:
    """Refuse a binding with another privacy unit than the policy's, to which R12 holds every plan.

    Data in which persons are told apart is thus never used record by record.
    """
    unit = load_binding(binding_path).unit
    if unit != policy.privacy.unit:
        message = f'{binding_path} has the privacy unit "{unit}", the policy asks for "{policy.privacy.unit}".'
        raise ContractError("unit-foreign", message)


def write_summary(config_path: Path, out: Path) -> DatasetSummary:
    """Write what a department tells of its data set, signed with its identity: public facts only.

    Raises:
        ConfigError: a configuration, policy or key file is not in order.
        ContractError: the declaration is missing, or was not made under the present policy.
        OSError: ``out`` cannot be written.
    """
    department = load_department(config_path)
    city_file = config_path.parent / CITY_FILE
    summary = DatasetSummary(
        city=read_city(read_file(city_file), where=str(city_file)).digest(),
        department=department.name,
        dataset=department.declaration.dataset,
        contract_hash=department.declaration.contract_hash,
        public_size=department.declaration.public_size,
        package_digest=package_digest(),
    )
    replace_private_file(out, dump_json(sign_record(department.identity, SUMMARY_LABEL, summary)))
    return summary
