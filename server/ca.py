"""The city's certificate authority: one P-256 key that issues the server's and the members' certificates (protocol 8).

It stands for one city only: path length 0, and host names other than the authority's and ``*.cityfed.internal`` are
excluded, so that a stolen CA key is worth nothing elsewhere.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.certificates import TlsKey, city_name
from shared.errors import ConfigError

CA_LIFETIME: Final = dt.timedelta(days=10 * 365)
LEAF_LIFETIME: Final = dt.timedelta(days=397)
CLOCK_SKEW: Final = dt.timedelta(minutes=5)
"""A certificate counts from so long before it was issued: clocks of two offices differ."""

MEMBER_DOMAIN: Final = "cityfed.internal"
"""Members dial out and have no host name of their own; ``.internal`` is reserved for such names."""

_EVERY_ADDRESS = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True)
class CertificateAuthority:
    """The CA of one city; only the key's owner can make one."""

    city: str
    key: TlsKey
    certificate: x509.Certificate

    def issue_server(
        self, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], *, now: dt.datetime
    ) -> x509.Certificate:
        """Issue the authority's own certificate for the hosts that departments dial.

        Raises:
            ConfigError: ``host-malformed``; ``host-foreign`` for a name that the CA is not permitted.
        """
        names = [_general_name(host) for host in hosts]
        self._require_permitted(names)
        return self._issue("authority", key, names, ExtendedKeyUsageOID.SERVER_AUTH, now=now)

    def issue_member(self, key: ec.EllipticCurvePublicKey, department: str, *, now: dt.datetime) -> x509.Certificate:
        """Issue a department's certificate; it can only be a client's."""
        name = x509.DNSName(f"{department}.{MEMBER_DOMAIN}")
        return self._issue(department, key, [name], ExtendedKeyUsageOID.CLIENT_AUTH, now=now)

    def _require_permitted(self, names: Sequence[x509.GeneralName]) -> None:
        """Refuse a host that every TLS library would refuse under the CA's own constraints."""
        constraints = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        for name in names:
            named = isinstance(name, x509.DNSName) and name in (constraints.permitted_subtrees or ())
            if not named and (isinstance(name, x509.DNSName) or constraints.excluded_subtrees):
                raise ConfigError(
                    "host-foreign", f"The city was not founded with the host {name.value}: its CA may not name it."
                )

    def _issue(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        *,
        now: dt.datetime,
    ) -> x509.Certificate:
        """Issue a leaf; it never outlives the CA."""
        last = min(now + LEAF_LIFETIME, self.certificate.not_valid_after_utc)
        builder = _builder(city_name(self.city, common_name), key, first=now - CLOCK_SKEW, last=last)
        return (
            builder.issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.private.public_key()), critical=False
            )
            .sign(self.key.private, SHA256())
        )


def found_authority(city: str, key: TlsKey, hosts: Sequence[str], *, now: dt.datetime) -> CertificateAuthority:
    """Make the self-signed certificate of a new city.

    Args:
        city: its name.
        key: the CA's key.
        hosts: every name and address under which departments reach the authority; none can be added later.
        now: the present time, UTC.

    Raises:
        ConfigError: ``host-malformed``.
    """
    name, public = city_name(city, "CityFed CA"), key.private.public_key()
    certificate = (
        _builder(name, public, first=now - CLOCK_SKEW, last=now + CA_LIFETIME)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(_constraints(hosts), critical=True)
        .sign(key.private, SHA256())
    )
    return CertificateAuthority(city, key, certificate)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, *, first: dt.datetime, last: dt.datetime
) -> x509.CertificateBuilder:
    """Begin a certificate with what every one has."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(host: str) -> x509.DNSName | x509.IPAddress:
    """Read a host name or an address."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not all(label.replace("-", "").isalnum() and label.isascii() and len(label) <= 63 for label in labels):
        raise ConfigError("host-malformed", "A host is a name such as `fl.example.org` or an address, without a port.")
    return x509.DNSName(host.lower())


def _constraints(hosts: Sequence[str]) -> x509.NameConstraints:
    """Permit the authority's host names and the members' domain; every other name is excluded.

    Addresses are excluded when no host is one. Where one is, they stay open: gRPC's TLS library knows no constraint on
    addresses and refuses what it cannot judge.
    """
    names = [_general_name(host) for host in hosts]
    named = [name for name in names if isinstance(name, x509.DNSName)]
    excluded = [x509.IPAddress(network) for network in _EVERY_ADDRESS] if len(named) == len(names) else None
    return x509.NameConstraints([x509.DNSName(MEMBER_DOMAIN), *named], excluded)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    """A CA signs certificates, a leaf signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
