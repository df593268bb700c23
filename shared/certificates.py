"""X.509 for one city: P-256 keys, signing requests, and the judgement of a certificate (protocol 8).

gRPC refuses Ed25519 leaf certificates, hence P-256. Who a certificate belongs to is decided by the signed roster and
the exact certificate that was issued, never by a name in it; what is judged here is that it can be used at all.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from shared.errors import ConfigError, ProtocolError
from shared.files import read_file
from shared.keystore import read_private

_UNDECODABLE: Final = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What the library raises for bytes of others, now or when a part of them is asked for."""


class TlsKey:
    """A P-256 key for TLS, and for Flower's node authentication; its ``repr`` shows nothing."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self.private = private
        self.public: bytes = public_bytes(private.public_key())

    @classmethod
    def generate(cls) -> TlsKey:
        """Make a new key from the operating system's randomness."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, *, where: str) -> TlsKey:
        """Load a key from unencrypted PEM.

        Raises:
            ConfigError: ``key-malformed``.
        """
        return cls(_private_p256(load_pem_private_key, pem, f"{where} is not an unencrypted P-256 key in PEM."))

    @classmethod
    def from_openssh(cls, content: bytes, *, where: str) -> TlsKey:
        """Load a key from unencrypted OpenSSH format, as :meth:`openssh` returns it.

        Raises:
            ConfigError: ``key-malformed``.
        """
        malformed = f"{where} is not an unencrypted P-256 key in OpenSSH form."
        return cls(_private_p256(load_ssh_private_key, content, malformed))

    def pem(self) -> bytes:
        """Return the private key as PKCS#8 PEM, for the key store only: what TLS libraries read."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def openssh(self) -> bytes:
        """Return the private key in OpenSSH's format, for the key store only: what Flower's SuperNode reads."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    def __repr__(self) -> str:
        return "TlsKey()"


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as its 65-byte uncompressed point."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def node_public_key(certificate: x509.Certificate) -> bytes:
    """Return the key of a member's certificate in PEM: what Flower's SuperLink registers."""
    return _p256(certificate.public_key()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certified_key(certificate: x509.Certificate) -> bytes:
    """Return the public key of a certificate as :func:`public_bytes` does.

    Raises:
        ProtocolError: ``certificate-key-kind``.
    """
    return public_bytes(_p256(certificate.public_key()))


def city_name(city: str, common_name: str) -> x509.Name:
    """Return a subject within a city."""
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, city), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def make_signing_request(key: TlsKey, *, city: str, department: str) -> bytes:
    """Return a signing request in DER; its signature shows that the department holds the key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(city_name(city, department))
    return builder.sign(key.private, SHA256()).public_bytes(Encoding.DER)


def open_signing_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """Return the P-256 key of a signing request; whatever else it asks for is not granted.

    Raises:
        ProtocolError: ``signing-request-malformed``, ``signing-request-unproven``, ``certificate-key-kind``.
    """
    try:
        request = x509.load_der_x509_csr(der)
        proven, key = request.is_signature_valid, request.public_key()
    except _UNDECODABLE as cause:
        raise ProtocolError("signing-request-malformed", "The signing request cannot be decoded.") from cause
    if not proven:
        raise ProtocolError("signing-request-unproven", "The signing request is not signed with the key that it names.")
    return _p256(key)


def load_certificate(pem: bytes, *, where: str) -> x509.Certificate:
    """Read exactly one certificate in PEM, whose key can be decoded, too.

    Raises:
        ProtocolError: ``certificate-malformed``.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
        certificate.public_key()  # decoded only when it is asked for
    except _UNDECODABLE as cause:
        raise ProtocolError("certificate-malformed", f"{where} does not hold exactly one certificate.") from cause
    return certificate


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_digest(certificate: x509.Certificate) -> bytes:
    """Return SHA-256 over the certificate's DER: by this an authority recognises exactly what it issued."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()


def check_certificate(
    certificate: x509.Certificate,
    *,
    authority: x509.Certificate,
    now: dt.datetime,
    where: str,
    key: bytes | None = None,
) -> None:
    """Refuse a certificate that cannot be used in this city today.

    Args:
        certificate: what is judged.
        authority: the certificate of the city's CA; a CA's own certificate is judged with itself.
        now: the present time, with a zone.
        where: file name or description used in the sentence.
        key: public key that it must be for, as :func:`public_bytes` returns it; None for any.

    Raises:
        ProtocolError: ``certificate-foreign-city``, ``certificate-key-kind``, ``certificate-foreign-key``,
            ``certificate-not-yet-valid``, ``certificate-expired``.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, *_UNDECODABLE) as cause:
        raise ProtocolError("certificate-foreign-city", f"{where} was not issued by this city's CA.") from cause
    if certified_key(certificate) != (key or certified_key(certificate)):
        raise ProtocolError("certificate-foreign-key", f"{where} is for another key than the one that lies here.")
    check_dates(certificate, now=now, where=where)


def load_tls_key(path: Path) -> TlsKey:
    """Read a P-256 key from the key store.

    Raises:
        ConfigError: ``key-file-missing``, ``key-file-open``, ``key-malformed``.
    """
    return TlsKey.from_pem(read_private(path), where=str(path))


@dataclass(frozen=True)
class TlsFiles:
    """One side's TLS files, judged together; ``repr`` shows no key.

    Attributes:
        key: private key in PKCS#8 PEM.
        certificate: this side's certificate in PEM.
        authority: the certificate of the city's CA in PEM: whom the other side's certificate must come from.
    """

    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes


def load_tls_files(key: Path, certificate: Path, authority: Path, *, now: dt.datetime) -> TlsFiles:
    """Read a key, its certificate and the city's CA certificate, and check that they fit together today.

    Raises:
        ConfigError: ``key-file-missing``, ``key-file-open``, ``key-malformed``, ``file-missing``.
        ProtocolError: ``certificate-malformed``, and as :func:`check_certificate`.
    """
    loaded = load_tls_key(key)
    own, issuer = (load_certificate(read_file(path), where=str(path)) for path in (certificate, authority))
    check_certificate(issuer, authority=issuer, now=now, where=str(authority))
    check_certificate(own, authority=issuer, now=now, where=str(certificate), key=loaded.public)
    return TlsFiles(loaded.pem(), certificate_pem(own), certificate_pem(issuer))


def check_dates(certificate: x509.Certificate, *, now: dt.datetime, where: str) -> None:
    """Refuse a certificate outside its dates.

    Raises:
        ProtocolError: ``certificate-not-yet-valid``, ``certificate-expired``.
    """
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        raise ProtocolError(
            "certificate-not-yet-valid", f"{where} is valid from {first:%Y-%m-%d %H:%M} UTC on: check this clock."
        )
    if now > last:
        raise ProtocolError("certificate-expired", f"{where} expired on {last:%Y-%m-%d %H:%M} UTC: have it renewed.")


def _private_p256(load: Callable[[bytes, None], object], content: bytes, malformed: str) -> ec.EllipticCurvePrivateKey:
    """Decode a private key; what is no P-256 key, or is encrypted, ends with this sentence."""
    try:
        private = load(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise ConfigError("key-malformed", malformed)
    return private


def _p256(key: object) -> ec.EllipticCurvePublicKey:
    """Accept P-256 keys only."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("certificate-key-kind", "A certificate of the city is for a P-256 key.")
    return key
