"""What a PEM file says of its certificates, without a TLS library. Pure.

Python's `ssl` tells the dates of a peer's certificate, and of a CA's. Of one's own it has no public word. The walk down
to them is short: RFC 5280 §4.1 fixes the order of the fields, and all but one are passed over whole.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from calendar import timegm
from typing import Final, NamedTuple

# OpenSSL takes all three for a client's certificate. Text before the first one, and other blocks, are no part of it.
_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END (?:X509 |TRUSTED )?CERTIFICATE-----"
)
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _VERSION = 0x17, 0x18, 0x30, 0xA0
_TIMES: Final = {_UTC_TIME: re.compile(rb"\d{12}Z"), _GENERALIZED_TIME: re.compile(rb"\d{14}Z")}

MOST_ROOTS: Final = 16
"""A CA file with more certificates is a public bundle: some root in it has always ended, or is about to."""


class Dates(NamedTuple):
    """From when and until when a certificate holds: `notBefore` and `notAfter`, seconds since 1970."""

    begins_at: int
    ends_at: int


def certificates_in(pem: bytes) -> list[bytes]:
    """The certificates of *pem* as DER, in their order. A block that is no base64 is left out."""
    found = []
    for block in _BLOCK.finditer(pem):
        try:
            found.append(binascii.a2b_base64(block[1]))
        except binascii.Error:
            pass
    return found


def dates_of(pem: bytes) -> Dates:
    """When the first certificate of *pem* holds.

    Raises:
        ValueError: There is no certificate, or it cannot be read.
    """
    found = certificates_in(pem)
    if not found:
        raise ValueError("no certificate in PEM form")
    return _dates_in(found[0])


def first_to_end(pem: bytes) -> Dates | None:
    """When that certificate of *pem* holds which ends first; None: there is none, one is unreadable, or too many."""
    if pem.count(b"-----BEGIN ") > 2 * MOST_ROOTS:
        return None  # a hundred of them take a millisecond to decode
    found = certificates_in(pem)
    if not 0 < len(found) <= MOST_ROOTS:
        return None
    try:
        return min(map(_dates_in, found), key=lambda dates: dates.ends_at)
    except ValueError:
        return None


def short_print_of(pem: bytes) -> str | None:
    """The first 16 hex digits of the SHA-256 of the first certificate, as `openssl x509 -fingerprint -sha256` has it.

    None: there is no certificate in *pem*.
    """
    found = certificates_in(pem)
    return hashlib.sha256(found[0]).hexdigest()[:16] if found else None


def _dates_in(der: bytes) -> Dates:
    """When the certificate *der* holds.

    Raises:
        ValueError: It cannot be read.

    Source: RFC 5280 §4.1.2.5, UTCTime to 2049 and GeneralizedTime from 2050; X.690 §8.1 for the lengths.
    """
    try:
        _, at, _ = _element(der, 0)  # Certificate
        _, at, _ = _element(der, at)  # TBSCertificate
        if der[at] == _VERSION:  # left out in version 1
            _, _, at = _element(der, at)
        for _ in ("serialNumber", "signature", "issuer"):
            _, _, at = _element(der, at)
        tag, at, _ = _element(der, at)
        if tag != _SEQUENCE:
            raise ValueError("its validity is not where it belongs")
        first, begin, end = _element(der, at)
        not_before = _instant(first, der[begin:end])
        last, begin, end = _element(der, end)
        return Dates(not_before, _instant(last, der[begin:end]))
    except IndexError:
        raise ValueError("the certificate is cut off") from None


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at *at*, and where its content begins and ends."""
    tag, length, at = der[at], der[at + 1], at + 2
    if length & 0x80:
        n_bytes = length & 0x7F
        length, at = int.from_bytes(der[at : at + n_bytes]), at + n_bytes
    if at + length > len(der):
        raise IndexError
    return tag, at, at + length


def _instant(tag: int, text: bytes) -> int:
    form = _TIMES.get(tag)
    if form is None or not form.fullmatch(text):
        raise ValueError("a date that is not as RFC 5280 has it")
    digits = text[:-1].decode()
    if tag == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    year, *rest = (
        int(digits[:4]),
        *(int(digits[begin : begin + 2]) for begin in range(4, 14, 2)),
    )
    return timegm((year, *rest))
