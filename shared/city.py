"""The files that people carry between a department and the authority; none of them holds a secret (protocol 8).

``city.json`` goes from the authority to the departments, an enrolment request back, an admission forth. What counts is
compared over a second channel: the city's fingerprint before a department believes ``city.json``, the department's
before the authority admits it. What a department tells about its data set is signed with its identity.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shared.certificates import load_certificate
from shared.codec import Hash, Number, Record, decode, load_json, sha256
from shared.errors import ConfigError, ProtocolError
from shared.identity import (
    DEPARTMENT_NAME,
    IdentityKey,
    Name,
    PublicKey,
    Signature,
    Signed,
    fingerprint,
    read_fingerprints,
    sign_record,
    verify_bytes,
)
from shared.parameters import Label

ENROLMENT_LABEL: Final = "enrolment"
SUMMARY_LABEL: Final = "dataset-summary"

Pem = Annotated[str, msgspec.Meta(max_length=1 << 14)]
Address = Annotated[str, msgspec.Meta(max_length=300)]


class CityFile(Record, frozen=True, kw_only=True):
    """A city in public: who issues certificates, signs rosters and plans, and where the authority listens.

    Attributes:
        city: the city's name.
        ca_certificate: PEM.
        roster_key: public key that signs rosters.
        plan_key: public key that signs plans and accounts of rounds.
        fleet: host and port of the Flower gateway.
        channel: host and port of the update channel.
        shelf: host and port of the shelf.
    """

    version: Literal[1] = 1
    city: Name
    ca_certificate: Pem
    roster_key: PublicKey
    plan_key: PublicKey
    fleet: Address
    channel: Address
    shelf: Address

    def certificate(self) -> x509.Certificate:
        """Return the CA's certificate.

        Raises:
            ProtocolError: ``certificate-malformed``.
        """
        return load_certificate(self.ca_certificate.encode(), where="The city's CA certificate")

    def digest(self) -> bytes:
        """Return the hash of everything that is trusted; addresses may change, the server's certificate proves them.

        Raises:
            ProtocolError: ``certificate-malformed``.
        """
        return sha256(
            b"city", self.city.encode(), self.certificate().public_bytes(Encoding.DER), self.roster_key, self.plan_key
        )

    def fingerprint(self) -> str:
        """Return what two offices compare over the telephone.

        Raises:
            ProtocolError: ``certificate-malformed``.
        """
        return fingerprint(self.digest())


class EnrolmentRequest(Record, frozen=True, kw_only=True):
    """What a department asks the authority to certify; it signs this with ``identity``, label ``enrolment``.

    Attributes:
        city: :meth:`CityFile.digest` of the city that is meant.
        department: the name on the roster.
        identity: public key of the aggregation identity.
        signing_request: DER; proves the TLS key.
        endorsement: for a changed identity the old key's word for the new one, see :func:`shared.roster.endorse_key`.
    """

    version: Literal[1] = 1
    city: Hash
    department: Name
    identity: PublicKey
    signing_request: Annotated[bytes, msgspec.Meta(max_length=1 << 14)]
    endorsement: Signature | None = None

    def __post_init__(self) -> None:
        if not DEPARTMENT_NAME.fullmatch(self.department) or self.department == "authority":
            raise ValueError("`department` is a lower-case name such as `transport`, not `authority`")


class Admission(Record, frozen=True, kw_only=True):
    """What the authority answers: the department's certificate (PEM) and the roster that it is on."""

    version: Literal[1] = 1
    department: Name
    certificate: Pem
    roster: Signed


class DatasetSummary(Record, frozen=True, kw_only=True):
    """What a department tells of its data set, so that a plan can be drafted; label ``dataset-summary``.

    Attributes:
        city: :meth:`CityFile.digest` of the city that is meant.
        department: the name on the roster.
        dataset: the department's name for the data set.
        contract_hash: of the contract that its rows follow, 64 hex digits.
        public_size: the number of privacy units that everybody is told.
        package_digest: of the package installed there; a plan runs on one version only.
    """

    version: Literal[1] = 1
    city: Hash
    department: Name
    dataset: Name
    contract_hash: Label
    public_size: Number
    package_digest: Label


def sign_request(identity: IdentityKey, request: EnrolmentRequest) -> Signed:
    """Sign a request with the identity that it names: this binds the TLS key to the fingerprint that people compare."""
    return sign_record(identity, ENROLMENT_LABEL, request)


def open_request(signed: Signed) -> EnrolmentRequest:
    """Verify a request with the key that it names itself; whose key that is, people have to find out.

    Raises:
        ProtocolError: ``message-malformed``, ``signature-invalid``.
    """
    request = decode(signed.body, EnrolmentRequest)
    verify_bytes(request.identity, ENROLMENT_LABEL, signed.body, signed.signature)
    return request


def read_city(data: bytes, *, where: str) -> CityFile:
    """Read ``city.json``.

    Raises:
        ConfigError: ``json-too-large``, ``json-content``.
        ProtocolError: ``certificate-malformed``.
    """
    city = load_json(data, CityFile, where=where)
    city.certificate()
    return city


def require_fingerprint(given: str | None, actual: str, *, whose: str) -> None:
    """Refuse to go on before a person compared a fingerprint over a second channel.

    Args:
        given: the fingerprint as it was typed, with or without spaces; None when it was not.
        actual: the fingerprint of what lies here.
        whose: for the sentence, for example ``city metropolis``.

    Raises:
        ConfigError: ``fingerprint-unconfirmed``, ``fingerprint-malformed``.
        ProtocolError: ``fingerprint-mismatch``.
    """
    if given is None:
        raise ConfigError(
            "fingerprint-unconfirmed",
            f"The fingerprint of {whose} is {actual}: compare it by telephone, then repeat this with --fingerprint.",
        )
    if read_fingerprints([given]) != [actual]:
        raise ProtocolError(
            "fingerprint-mismatch", f"The fingerprint of {whose} is {actual}, not the one that was typed."
        )
