"""Whom a certificate names, compared with whom the file accepts: letter by letter."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.policy.identities import fault_in, is_of, names_of, offered_by

BILLING = names_of(("spiffe://prod/billing", "billing.internal"))


def certificate(*names: tuple[str, str]) -> dict[str, Any]:
    return {"subject": ((("commonName", "billing.internal"),),), "subjectAltName": names}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([("URI", "spiffe://prod/billing")], id="URI"),
        pytest.param([("DNS", "billing.internal")], id="DNS"),
        pytest.param([("DNS", "other"), ("URI", "spiffe://prod/billing")], id="among others"),
        pytest.param(
            [("URI", "spiffe://prod/a"), ("URI", "spiffe://prod/b"), ("DNS", "billing.internal")],
            id="a DNS name beside two URIs",
        ),
    ],
)
def test_one_that_is_accepted_is_enough(names: list[tuple[str, str]]) -> None:
    assert is_of(certificate(*names), BILLING)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="none: the common name does not count"),
        pytest.param([("URI", "spiffe://prod/billing/eu")], id="a longer path"),
        pytest.param([("URI", "spiffe://prod/Billing")], id="another case"),
        pytest.param([("URI", "spiffe://prod/billing/")], id="a slash more"),
        pytest.param([("URI", "spiffe://prod.evil/billing")], id="another trust domain"),
        pytest.param([("DNS", "a.billing.internal")], id="a name below"),
        pytest.param([("DNS", "*.internal")], id="a wildcard"),
        pytest.param([("DNS", "billing.internal\x00.evil")], id="NUL"),
        pytest.param([("DNS", "spiffe://prod/billing")], id="a URI as a DNS name"),
        pytest.param([("URI", "billing.internal")], id="a DNS name as a URI"),
        pytest.param([("IP Address", "billing.internal")], id="another kind"),
        pytest.param([("URI", "spiffe://prod/billing"), ("URI", "spiffe://prod/b")], id="two URIs: no SVID"),
    ],
)
def test_what_differs_in_anything_is_somebody_else(names: list[tuple[str, str]]) -> None:
    assert not is_of(certificate(*names), BILLING)


def test_a_wildcard_of_the_file_is_equal_to_itself_only() -> None:
    accepted = names_of(("*.wild.internal",))
    assert is_of(certificate(("DNS", "*.wild.internal")), accepted)
    assert not is_of(certificate(("DNS", "a.wild.internal")), accepted)


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://prod/billing",
        "spiffe://prod.example.org/ns/default/sa/billing_1",
        "spiffe://a/..b",
        "billing.internal",
        "*.internal",
        "localhost",
        "_grpc.a-b.c",
    ],
)
def test_what_the_file_may_say(identity: str) -> None:
    assert fault_in(identity) is None


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ("https://prod/billing", "begin with spiffe://"),
        ("SPIFFE://prod/billing", "begin with spiffe://"),
        ("spiffe://prod/*", "no wildcards"),
        ("spiffe://*/billing", "no wildcards"),
        ("spiffe://Prod/billing", "small letters"),
        ("spiffe:///billing", "small letters"),
        ("spiffe://me@prod/billing", "small letters"),
        ("spiffe://prod:8443/billing", "small letters"),
        ("spiffe://prod", "names no service"),
        ("spiffe://prod/", "names no service"),
        ("spiffe://prod/billing/", "no slash at its end"),
        ("spiffe://prod//billing", "single slashes"),
        ("spiffe://prod/a/../b", "single slashes"),
        ("spiffe://prod/billing?x", "letters, digits"),
        ("spiffe://prod/billing#x", "letters, digits"),
        ("spiffe://prod/b%20c", "letters, digits"),
        ("spiffe://prod/billing\n", "letters, digits"),
        ("spiffe://prod/" + "a" * 2048, "2048"),
        ("spiffe:prod/billing", "SPIFFE id"),
        ("", "SPIFFE id"),
        ("a..b", "SPIFFE id"),
        ("billing.internal\n", "SPIFFE id"),
        ("billing.internal:443", "SPIFFE id"),
        ("bill*.internal", "SPIFFE id"),
        ("10.0.0.1", "be no address"),
        ("::1", "SPIFFE id"),
        ("bücher.internal", "xn--"),
    ],
)
def test_what_the_file_may_not_say(identity: str, words: str) -> None:
    assert words in (fault_in(identity) or "")


def test_what_is_shown_forges_no_line_and_ends() -> None:
    shown = offered_by(
        certificate(("DNS", "a\nheadrace: fine\x00"), ("URI", "x" * 5000), ("IP Address", "::1"))
    )
    assert shown[0] == "a\\nheadrace: fine\\x00"
    assert all(one.isprintable() for one in shown)
    assert [len(one) <= 200 for one in shown] == [True, True]
    many = offered_by(certificate(*(("DNS", f"n{number}") for number in range(50))))
    assert many == ("n0", "n1", "n2", "n3", "n4", "and 45 more")
