"""A certificate authority of the tests' own, its certificate as a file, and a server that it vouches for. Fixtures.

`tests/conftest.py` hands them to every test.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.faultserver import FaultServer, server_context


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """One for the whole run: making it takes longer than most tests."""
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate, in a file that the test may write to."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[FaultServer]:
    """A server over TLS with a certificate of *authority*."""
    with FaultServer(tls=server_context(authority)) as server:
        yield server


URI, DNS, ADDRESS = 0x86, 0x82, 0x87
"""Kinds of names (RFC 5280 §4.2.1.6), as `server_of` takes them raw."""


def server_of(
    authority: trustme.CA,
    *uris: str,
    dns: tuple[str, ...] = (),
    raw: Sequence[tuple[int, bytes]] = (),
    common_name: str | None = None,
) -> ssl.SSLContext:
    """A server whose certificate has these URIs and DNS names, and nothing about its address.

    Args:
        raw: In the place of those: kinds and names, which may be any bytes.
        common_name: Its subject; None: some subject.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_cert("template.test")
    template = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    issuer_key = authority._private_key
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(
            template.subject
            if common_name is None
            else x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        )
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), _raw(raw))
            if raw
            else x509.SubjectAlternativeName(names),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    with trustme.Blob(pem).tempfile() as file:
        context.load_cert_chain(file)
    return context


def _raw(names: Sequence[tuple[int, bytes]]) -> bytes:
    """The extension with *names*, as DER."""
    body = b"".join(bytes([kind]) + _length(name) + name for kind, name in names)
    return b"\x30" + _length(body) + body


def _length(content: bytes) -> bytes:
    if len(content) < 128:
        return bytes([len(content)])
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    return bytes([0x80 | len(length)]) + length
