"""Whom a certificate names, compared with whom the file accepts. Pure.

Sources: SPIFFE-ID.md and X509-SVID.md of the SPIFFE standards, section 2 each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from headrace.policy.printable import printable

Name: TypeAlias = tuple[str, str]
"""A name of a certificate, as `getpeercert()` has it: its kind, and what it says."""

MOST_BYTES: Final = 2048
"""Longest SPIFFE id."""

_MOST_SHOWN = 5
_LONGEST_SHOWN = 200
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ADDRESS = re.compile(
    r"[0-9.]+", re.ASCII
)  # of IPv4: a DNS name has a letter in its last label (RFC 1123 §2.1)
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?",
    re.ASCII | re.IGNORECASE,
)


def fault_in(identity: str) -> str | None:
    """What is wrong with *identity* as one of `tls.identities`, going on from "must"; None: nothing."""
    scheme, is_uri, rest = identity.partition("://")
    if not is_uri:
        if _ADDRESS.fullmatch(identity):
            return "be no address: names are compared, and an address is none; without identities that of the host is"
        if _DNS_NAME.fullmatch(identity):
            return None
        if not identity.isascii():
            return "be written as certificates have it: a name beyond ASCII in its xn-- form"
        return "be a SPIFFE id (spiffe://trust-domain/path) or a DNS name"
    if scheme != "spiffe":
        return "begin with spiffe:// if it is a URI"
    if "*" in rest:
        return "name one identity: there are no wildcards in a SPIFFE id"
    domain, has_path, path = rest.partition("/")
    if not _TRUST_DOMAIN.fullmatch(domain):
        return "have a trust domain of small letters, digits, dots, dashes and underscores, without user and port"
    if not has_path or not path:
        return "have a path behind the trust domain: that alone names no service"
    segments = path.split("/")
    if not all(map(_SEGMENT.fullmatch, segments)) or {".", ".."} & set(segments):
        return (
            "have a path of letters, digits, dots, dashes and underscores between single slashes, and no slash at "
            "its end"
        )
    if len(identity) > MOST_BYTES:
        return f"have no more than {MOST_BYTES} characters"
    return None


def names_of(identities: tuple[str, ...]) -> frozenset[Name]:
    """What *identities* of the file are in a certificate."""
    return frozenset(("URI" if "://" in one else "DNS", one) for one in identities)


def is_of(certificate: Mapping[str, Any], accepted: frozenset[Name]) -> bool:
    """Whether *certificate* (`getpeercert()`) names one of *accepted*: exactly, letter by letter.

    A certificate with two URIs is no SVID, so none of them counts.
    """
    names = certificate.get("subjectAltName", ())
    found = accepted.intersection(names)
    if not found:
        return False
    return any(kind == "DNS" for kind, _ in found) or sum(kind == "URI" for kind, _ in names) == 1


def offered_by(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """The URIs and DNS names of *certificate*, fit to be printed, the first few of them."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("URI", "DNS")]
    shown = [printable(value)[:_LONGEST_SHOWN] for value in names[:_MOST_SHOWN]]
    if len(names) > _MOST_SHOWN:
        shown.append(f"and {len(names) - _MOST_SHOWN} more")
    return tuple(shown)
