"""The dates of a certificate, against certificates that `cryptography` has made."""

from __future__ import annotations

import datetime

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.certificate import certificates_in, dates_of, short_print_of

KEY = ec.generate_private_key(ec.SECP256R1())
UTC = datetime.UTC


def certificate(since: datetime.datetime, until: datetime.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "billing")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .sign(KEY, hashes.SHA256())
    )


def pem(since: datetime.datetime, until: datetime.datetime) -> bytes:
    return certificate(since, until).public_bytes(Encoding.PEM)


SINCE = datetime.datetime(2026, 2, 28, 23, 59, 58, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        pytest.param(SINCE, datetime.datetime(2027, 1, 1, tzinfo=UTC), id="UTCTime"),
        pytest.param(SINCE, datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), id="the last UTCTime"),
        pytest.param(SINCE, datetime.datetime(2050, 1, 1, tzinfo=UTC), id="the first GeneralizedTime"),
        pytest.param(
            SINCE,
            datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
            id="no well-defined end (RFC 5280)",
        ),
        pytest.param(datetime.datetime(1951, 3, 1, tzinfo=UTC), SINCE, id="of the last century"),
    ],
)
def test_the_dates_are_those_of_the_certificate(since: datetime.datetime, until: datetime.datetime) -> None:
    assert dates_of(pem(since, until)) == (since.timestamp(), until.timestamp())


@given(
    st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(9000, 1, 1)),
    st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=36500)),
)
def test_any_dates(since: datetime.datetime, span: datetime.timedelta) -> None:
    since = since.replace(microsecond=0, tzinfo=UTC)
    until = (since + span).replace(microsecond=0)
    assert dates_of(pem(since, until)) == (since.timestamp(), until.timestamp())


def test_of_several_certificates_the_first_one_counts() -> None:
    leaf = certificate(SINCE, SINCE + datetime.timedelta(days=1))
    issuer = certificate(SINCE, SINCE + datetime.timedelta(days=3650))
    chain = leaf.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM)
    assert dates_of(chain)[1] == leaf.not_valid_after_utc.timestamp()
    assert certificates_in(chain) == [leaf.public_bytes(Encoding.DER), issuer.public_bytes(Encoding.DER)]
    assert short_print_of(chain) == leaf.fingerprint(hashes.SHA256()).hex()[:16]


def test_text_and_a_key_before_the_certificate_are_passed_over() -> None:
    issued = trustme.CA().issue_cert("billing.internal")
    leaf = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    content = b"subject=CN = billing\nissuer=CN = us\n" + issued.private_key_and_cert_chain_pem.bytes()
    expected = (leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())
    assert dates_of(content) == expected
    assert dates_of(content.replace(b"\n", b"\r\n")) == expected
    assert dates_of(content.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")) == expected


@pytest.mark.parametrize(
    "content", [b"", b"not a certificate", certificate(SINCE, SINCE).public_bytes(Encoding.DER)]
)
def test_what_holds_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no certificate in PEM form"):
        dates_of(content)
    assert short_print_of(content) is None


def test_a_certificate_cut_at_any_byte_is_refused_or_has_its_dates() -> None:
    """Nothing but ValueError leaves, whatever the bytes are."""
    der = certificate(SINCE, SINCE + datetime.timedelta(days=1)).public_bytes(Encoding.DER)
    for end in range(len(der)):
        with pytest.raises(ValueError, match="cut off"):
            dates_of(_in_pem(der[:end]))


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_with_a_ValueError(content: bytes) -> None:
    with pytest.raises(ValueError):
        dates_of(_in_pem(content))


def _in_pem(der: bytes) -> bytes:
    import base64

    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
