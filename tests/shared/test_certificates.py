"""Certificates of one city: what is judged, and what no certificate can talk its way around."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256

from server.ca import CLOCK_SKEW, LEAF_LIFETIME, CertificateAuthority, found_authority
from shared.certificates import (
    TlsKey,
    certificate_pem,
    certified_key,
    check_certificate,
    city_name,
    load_certificate,
    load_tls_files,
    make_signing_request,
    node_public_key,
    open_signing_request,
)
from shared.errors import CityFedError, ConfigError, ProtocolError
from shared.private_files import write_private_file

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
HOSTS = ("fl.example.org", "192.0.2.7")


def authority(city: str = "metropolis", hosts: tuple[str, ...] = HOSTS) -> CertificateAuthority:
    return found_authority(city, TlsKey.generate(), hosts, now=NOW)


CITY, KEY = authority(), TlsKey.generate()
EXPIRED = found_authority("metropolis", CITY.key, HOSTS, now=NOW - dt.timedelta(days=20_000)).certificate
"""Of the city's own key, so that what the city issued is by its issuer."""
MEMBER = CITY.issue_member(KEY.private.public_key(), "police", now=NOW)
P256 = bytes.fromhex("06082a8648ce3d030107")
"""How a certificate names the curve of its key."""


def code_of(certificate: x509.Certificate, *, at: dt.datetime = NOW, issuer: CertificateAuthority = CITY) -> str:
    with pytest.raises(ProtocolError) as caught:
        check_certificate(certificate, authority=issuer.certificate, now=at, where="tls.crt", key=KEY.public)
    return caught.value.code


def test_a_certificate_counts_from_a_little_before_it_was_issued_until_its_last_day() -> None:
    for moment in (NOW - CLOCK_SKEW, NOW, NOW + LEAF_LIFETIME):
        check_certificate(MEMBER, authority=CITY.certificate, now=moment, where="tls.crt", key=KEY.public)
    assert code_of(MEMBER, at=NOW - CLOCK_SKEW - dt.timedelta(seconds=1)) == "certificate-not-yet-valid"
    assert code_of(MEMBER, at=NOW + LEAF_LIFETIME + dt.timedelta(seconds=1)) == "certificate-expired"


def test_another_citys_certificate_is_refused_even_if_it_has_the_same_name() -> None:
    assert code_of(MEMBER, issuer=authority()) == "certificate-foreign-city"
    assert code_of(authority().certificate) == "certificate-foreign-city"


def test_a_certificate_of_another_key_is_refused() -> None:
    other = CITY.issue_member(TlsKey.generate().private.public_key(), "police", now=NOW)
    assert code_of(other) == "certificate-foreign-key"


def test_a_leaf_never_outlives_its_authority() -> None:
    late = CITY.certificate.not_valid_after_utc - dt.timedelta(days=1)
    leaf = CITY.issue_member(KEY.private.public_key(), "police", now=late)
    assert leaf.not_valid_after_utc == CITY.certificate.not_valid_after_utc


def test_the_authority_may_issue_leaves_only_and_members_are_clients_only() -> None:
    basic = CITY.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert not MEMBER.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = {item.dotted_string for item in MEMBER.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value}
    assert usage == {x509.ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string}


def shake_hands(
    server: TlsKey, certificate: x509.Certificate, trusted: x509.Certificate, host: str, to: Path
) -> str | None:
    """A TLS handshake in memory with every check of OpenSSL's strict mode; returns what the client speaks after it."""
    write_private_file(to / "key", server.pem())
    (to / "crt").write_bytes(certificate_pem(certificate))
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(to / "crt", to / "key")
    outside = ssl.create_default_context(cadata=certificate_pem(trusted).decode())
    outside.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = outside.wrap_bio(down, up, server_hostname=host)
    answering = inside.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    client.do_handshake()
    return client.version()


def real_authority(hosts: tuple[str, ...]) -> CertificateAuthority:
    """OpenSSL reads the clock itself."""
    return found_authority("metropolis", TlsKey.generate(), hosts, now=dt.datetime.now(dt.UTC))


@pytest.mark.parametrize("host", ["fl.example.org", "192.0.2.7"])
def test_a_strict_tls_library_accepts_the_servers_certificate(host: str, tmp_path: Path) -> None:
    city, key = real_authority(HOSTS), TlsKey.generate()
    certificate = city.issue_server(key.private.public_key(), HOSTS, now=dt.datetime.now(dt.UTC))
    assert shake_hands(key, certificate, city.certificate, host, tmp_path) == "TLSv1.3"


@pytest.mark.parametrize("foreign", ["www.example.com", "192.0.2.9"])
def test_a_stolen_authority_is_worth_nothing_for_other_names(foreign: str, tmp_path: Path) -> None:
    """What the code refuses to issue, a TLS library refuses as well if somebody issues it with the stolen key."""
    city, key = real_authority(("fl.example.org",)), TlsKey.generate()
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(ConfigError) as caught:
        city.issue_server(key.private.public_key(), [foreign], now=now)
    assert caught.value.code == "host-foreign"
    unlimited = CertificateAuthority("metropolis", city.key, authority(hosts=(foreign,)).certificate)
    forged = unlimited.issue_server(key.private.public_key(), [foreign], now=now)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree|excluded subtree"):
        shake_hands(key, forged, city.certificate, foreign, tmp_path)


@pytest.mark.parametrize("host", ["", "two words", "host:443", "http://host", "ü.example", "a..b"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        authority(hosts=(host,))
    assert caught.value.code == "host-malformed"


def test_a_signing_request_gives_its_key_and_nothing_else() -> None:
    request = make_signing_request(KEY, city="metropolis", department="police")
    issued = CITY.issue_member(open_signing_request(request), "health", now=NOW)
    assert certified_key(issued) == KEY.public
    assert issued.subject == city_name("metropolis", "health")


def test_a_signing_request_that_proves_nothing_is_refused() -> None:
    def code(der: bytes) -> str:
        with pytest.raises(ProtocolError) as caught:
            open_signing_request(der)
        return caught.value.code

    request = make_signing_request(KEY, city="metropolis", department="police")
    assert code(b"") == code(request[:-1]) == "signing-request-malformed"
    version = request.index(b"\x02\x01\x00") + 2
    assert code(request[:version] + b"\x02" + request[version + 1 :]) == "signing-request-malformed"
    assert code(request[:-4] + bytes(4)) == "signing-request-unproven"
    builder = x509.CertificateSigningRequestBuilder().subject_name(city_name("metropolis", "police"))
    for wrong in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        signed = builder.sign(wrong, None if isinstance(wrong, ed25519.Ed25519PrivateKey) else SHA256())
        assert code(signed.public_bytes(serialization.Encoding.DER)) == "certificate-key-kind"


@pytest.mark.parametrize("pem", [b"", b"no certificate", certificate_pem(MEMBER) * 2, certificate_pem(MEMBER)[:200]])
def test_what_is_not_one_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        load_certificate(pem, where="tls.crt")
    assert caught.value.code == "certificate-malformed"


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        pytest.param(P256, P256[:-1] + b"\x63", id="a curve that nobody knows"),
        pytest.param(KEY.public, b"\x04" + bytes(64), id="a point on no curve"),
        pytest.param(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", id="a version that there is not"),
    ],
)
def test_a_certificate_with_a_part_that_cannot_be_decoded_is_refused(part: bytes, instead: bytes) -> None:
    der = MEMBER.public_bytes(serialization.Encoding.DER)
    assert part in der
    with pytest.raises(ProtocolError) as caught:
        load_certificate(ssl.DER_cert_to_PEM_cert(der.replace(part, instead, 1)).encode(), where="tls.crt")
    assert caught.value.code == "certificate-malformed"


def test_the_node_key_is_the_tls_key_in_the_form_that_flower_reads() -> None:
    private = serialization.load_ssh_private_key(KEY.openssh(), None)
    public = serialization.load_pem_public_key(node_public_key(MEMBER))
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key() == public


def test_a_key_prints_nothing() -> None:
    assert repr(KEY) == str(KEY) == "TlsKey()"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Key, certificate and CA certificate of a member, in order."""
    paths = (tmp_path / "tls.key", tmp_path / "tls.crt", tmp_path / "ca.crt")
    for path, content in zip(
        paths, (KEY.pem(), certificate_pem(MEMBER), certificate_pem(CITY.certificate)), strict=True
    ):
        write_private_file(path, content)
    return paths


def test_files_that_fit_together_are_loaded_and_print_no_key(files: tuple[Path, Path, Path]) -> None:
    loaded = load_tls_files(*files, now=NOW)
    assert loaded.key == KEY.pem()
    assert "PRIVATE" not in repr(loaded)


@pytest.mark.parametrize(
    ("which", "content", "code"),
    [
        (0, TlsKey.generate().pem(), "certificate-foreign-key"),
        (0, b"no key", "key-malformed"),
        (0, ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ), "key-malformed"),
        (1, b"no certificate", "certificate-malformed"),
        (1, certificate_pem(CITY.certificate), "certificate-foreign-key"),
        (2, certificate_pem(authority().certificate), "certificate-foreign-city"),
        (2, certificate_pem(MEMBER), "certificate-foreign-city"),
        (2, certificate_pem(EXPIRED), "certificate-expired"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(files: tuple[Path, Path, Path], which: int, content: bytes, code: str) -> None:
    files[which].write_bytes(content)
    with pytest.raises(CityFedError) as caught:
        load_tls_files(*files, now=NOW)
    assert caught.value.code == code
    assert "PRIVATE" not in caught.value.diagnostics()


def test_a_missing_or_open_file_is_named(files: tuple[Path, Path, Path]) -> None:
    def code() -> str:
        with pytest.raises(ConfigError) as caught:
            load_tls_files(*files, now=NOW)
        return caught.value.code

    files[1].rename(files[1].with_suffix(".away"))
    assert code() == "file-missing"
    files[1].with_suffix(".away").rename(files[1])
    files[0].chmod(0o640)
    assert code() == "key-file-open"
