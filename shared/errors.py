"""Every error that CityFed raises about the outside world, as one tree.

::

    CityFedError              (exit 1)
    ├── ConfigError           (exit 2)   a scenario, policy, binding or option is wrong
    ├── SetupError            (exit 3)   something needed on this machine is missing
    ├── ContractError         (exit 4)   data or binding disagrees with its contract
    ├── PolicyViolation       (exit 5)   a department's rules say no
    ├── InsufficientBudgetError (exit 6) the privacy budget does not hold the charge
    ├── ProtocolError         (exit 7)   a message, signature or state is not acceptable
    ├── RoundAbortedError     (exit 8)   a round ended without a sum
    ├── JournalError          (exit 9)   the journal cannot be written or does not verify
    ├── ModelError            (exit 10)  a model file or parameter vector is not acceptable
    └── AuditError            (exit 11)  a privacy audit found that the code breaks its promise

A caller's mistake is a ``ValueError`` or ``RuntimeError``; only data that comes from outside raises a
``CityFedError``. Ctrl-C exits with 130.
"""

from __future__ import annotations

from typing import ClassVar


class CityFedError(Exception):
    """An error about something outside this code, with a stable reason code.

    Args:
        code: stable, lower-case, hyphenated reason code that goes into the audit log.
        message: one sentence: what, where, what is allowed. Never a value taken from data.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def diagnostics(self) -> str:
        """Return the one line that a command prints."""
        return f"{self.message} [{self.code}]"


class ConfigError(CityFedError):
    """A scenario, policy, binding, option or other local setting is wrong."""

    exit_code = 2


class SetupError(CityFedError):
    """Something that set-up should have provided is missing or could not be fetched."""

    exit_code = 3


class ContractError(CityFedError):
    """Data or a binding disagrees with the contract; carries rule names and counts only."""

    exit_code = 4


class PolicyViolation(CityFedError):  # noqa: N818 - the established name in contract and policy work
    """At least one rule of the department's policy was not satisfied."""

    exit_code = 5


class InsufficientBudgetError(CityFedError):
    """A privacy charge does not fit into what is left of a budget."""

    exit_code = 6


class ProtocolError(CityFedError):
    """A message, signature, proof or protocol state is not acceptable."""

    exit_code = 7


class RoundAbortedError(CityFedError):
    """A round, or the run, ended without a model.

    Before its reveal step a round has revealed nothing. Of one that ends later (``too-few-reveals``,
    ``shares-inconsistent``, ``model-not-finite``) shares were revealed, which open no more than the sum.
    """

    exit_code = 8


class JournalError(CityFedError):
    """The journal cannot be opened or written, or its chain does not verify."""

    exit_code = 9


class ModelError(CityFedError):
    """A model file or parameter vector is corrupt or has the wrong layout."""

    exit_code = 10


class AuditError(CityFedError):
    """A privacy audit refuted a claim, or measured what the plan does not allow."""

    exit_code = 11
