"""Which rules govern a URL."""

from __future__ import annotations

import sys

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.plan import Origin, UrlPrefix
from headrace.policy.routes import RouteTable, UrlError, moved, parse_prefix, server_host, target_of, url_of


def table(*urls: str) -> RouteTable[str]:
    return RouteTable((parse_prefix(url), url) for url in urls)


def matched(routes: RouteTable[str], url: str) -> str | None:
    found = routes.match_url(url)
    return None if found is None else found[1]


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("https://billing.internal", UrlPrefix(Origin("https", "billing.internal", 443), ())),
        ("HTTP://Billing.Internal.:080/", UrlPrefix(Origin("http", "billing.internal", 80), ())),
        ("https://a:8443/v2/", UrlPrefix(Origin("https", "a", 8443), ("v2",))),
        ("https://a/v2//", UrlPrefix(Origin("https", "a", 443), ("v2",))),
        ("https://[2001:DB8::1]:8443/x", UrlPrefix(Origin("https", "2001:db8::1", 8443), ("x",))),
        ("https://bücher.example/", UrlPrefix(Origin("https", "xn--bcher-kva.example", 443), ())),
        ("https://straße.example", UrlPrefix(Origin("https", "xn--strae-oqa.example", 443), ())),
        ("https://ΒΌΛΟΣ.example", UrlPrefix(Origin("https", "xn--nxasmm1c.example", 443), ())),
        ("https://a/%7ejoe/%2f/é", UrlPrefix(Origin("https", "a", 443), ("~joe", "%2F", "%C3%A9"))),
        ("https://a/b;c=d", UrlPrefix(Origin("https", "a", 443), ("b;c=d",))),
    ],
)
def test_prefix_is_normalised(url: str, prefix: UrlPrefix) -> None:
    assert parse_prefix(url) == prefix
    if not url.endswith("/"):
        assert target_of(url) == prefix
    assert parse_prefix(url_of(prefix)) == prefix


@pytest.mark.parametrize(
    "url",
    [
        "",
        "billing",
        "//billing/x",
        "https:/a",
        "https:a",
        "ftp://a",
        "https://",
        "https:///x",
        "https://a:x",
        "https://a:0",
        "https://a:65536",
        "https://a:٤",
        "https://user@a",
        "https://a@b@c",
        "https://a?",
        "https://a#",
        "https://a/b?c",
        "https://a/./b",
        "https://a/../b",
        "https://a/%2e%2e/b",
        "https://a/.%2E/b",
        "https://a//b",
        "https://a b",
        "https://a\n",
        "https://a\\b",
        "https://a\tb",
        "https://[::1",
        "https://[x]",
        "https://[v1.a]",
        "https://[::1]x",
        "https://a..b",
        "https://-a",
        "https://a/%",
        "https://a/%4",
        "https://" + "a" * 300,
        "https://☃.example",  # IDNA 2003 had names of symbols; requests and urllib3 refuse them
        "https://a%2eb",
    ],
)
def test_what_is_no_prefix_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UrlError) as caught:
        parse_prefix(url)
    assert str(caught.value).startswith(("must ", "has "))
    assert len(url) < 9 or url not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com.evil.org/",
        "http://api.example.com@evil.org/",
        "http://api.example.com:80@evil.org/",
        "http://evil.org/http://api.example.com",
        "http://evil.org?http://api.example.com",
        "http://evil.org#@api.example.com/",
        "http://evil.org\\@api.example.com/",
        "http://a@evil.org@api.example.com/",
        "http://api.example.com\\.evil.org/",
        "http://api.example.com%2eevil.org/",
        "http://api.example.com%00.evil.org/",
        "http://api.example.com\n.evil.org/",
        "http://\tapi.example.com/",
        "https://api.example.com/",
        "http://api.example.com:8080/",
        "http://xapi.example.com/",
        "http:/api.example.com/",
        "ftp://api.example.com/",
    ],
)
def test_host_is_matched_as_a_whole_never_as_the_beginning_of_a_text(url: str) -> None:
    """failures.md 29."""
    assert matched(table("http://api.example.com"), url) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "http://api.example.com/",
        "http://api.example.com/x?y#z",
        "HTTP://API.Example.COM/x",
        "http://api.example.com:80/x",
        "http://api.example.com:/x",
        "http://api.example.com:0080/x",
        "http://api.example.com./x",
        "http://user:password@api.example.com/x",
        "http://api.example.com?x",
    ],
)
def test_spellings_of_one_origin_are_one_origin(url: str) -> None:
    assert matched(table("http://api.example.com"), url) == "http://api.example.com"


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/v2/invoices/7", "https://a/v2/invoices"),
        ("/v2/invoices", "https://a/v2/invoices"),
        ("/v2/invoices?x=/v2", "https://a/v2/invoices"),
        ("/v2/invoicesX", "https://a/v2"),
        ("/v2/", "https://a/v2"),
        ("/v2", "https://a/v2"),
        ("/v20", None),
        ("/", None),
        ("", None),
        ("/v2/../v3", None),
        ("/v2/%2e%2e/v3", None),
        ("/x/../v2/y", "https://a/v2"),
        ("/v2/invoices/../7", "https://a/v2"),
        ("/%76%32/x", "https://a/v2"),
        ("//v2", None),
        ("/v2%2Finvoices", None),
    ],
)
def test_longest_segment_prefix_wins(path: str, owner: str | None) -> None:
    """failures.md 29: and never by the beginning of a segment, or around it by dots."""
    assert matched(table("https://a/v2", "https://a/v2/invoices"), f"https://a{path}") == owner


def test_two_values_for_one_prefix_are_an_error() -> None:
    with pytest.raises(ValueError, match="two routes claim https://a/v2"):
        table("https://a/v2", "https://A:443/v2/")


@pytest.mark.parametrize(
    ("host", "value"),
    [
        ("a", "https://a"),
        ("A.", "https://a"),
        ("2001:db8::1", "https://[2001:DB8::1]/v2"),
        ("b", None),
        ("a:b", None),
    ],
)
def test_an_origin_is_known_by_its_shortest_prefix_however_it_is_spelt(host: str, value: str | None) -> None:
    routes = table("https://a/v2", "https://a", "https://[2001:DB8::1]/v2")

    assert routes.of_origin("https", host, 443) == value
    assert routes.names_origin("https", host.lower(), 443) == (value is not None)


@pytest.mark.parametrize(
    "url", ["ftp://a/v2", "https://a@b@c/v2", "https://[v1.a]/v2", "https://b/v2", "https://a/v"]
)
def test_what_does_not_lie_below_a_prefix_is_not_moved(url: str) -> None:
    assert moved(url, [parse_prefix("https://a/v2")], to=parse_prefix("https://other")) is None


def test_empty_table_is_a_table() -> None:
    """failures.md 24 is about a falsy `__len__`."""
    assert table()
    assert len(table()) == 0
    assert matched(table(), "http://a") is None


def test_miss_costs_one_look_up_and_few_calls() -> None:
    routes = table(*(f"https://host{number}.internal/v2" for number in range(1000)))
    urls = [f"https://other{number}.example/x" for number in range(50)]
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        for url in urls:
            routes.match_url(url)
    finally:
        sys.setprofile(None)
    assert count / len(urls) < 8  # urlsplit makes most of them the first time it sees a URL


@given(st.text(max_size=60) | st.text(alphabet="htps:/@.[]%2eaA\\?#0", max_size=40))
def test_no_text_does_anything_but_match_or_miss(text: str) -> None:
    routes = table("http://a", "https://a.a/a")
    assert routes.match_url(text) is None or target_of(text) is not None
    assert routes.match_url(f"http://{text}") is None or target_of(f"http://{text}") is not None


_SEGMENTS = st.lists(st.text(alphabet="ab.%-", min_size=1, max_size=3), max_size=4)


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3), max_size=5, unique_by=tuple), _SEGMENTS
)
def test_match_agrees_with_looking_at_every_prefix(prefixes: list[list[str]], path: list[str]) -> None:
    origin = Origin("http", "h", 80)
    routes = RouteTable((UrlPrefix(origin, tuple(segments)), segments) for segments in prefixes)
    target = target_of("http://h/" + "/".join(path))
    assert target is not None
    fitting = [segments for segments in prefixes if target.segments[: len(segments)] == tuple(segments)]
    found = routes.match_url("http://h/" + "/".join(path))
    assert (None if found is None else found[1]) == (max(fitting, key=len) if fitting else None)
    assert routes.match(target.origin, target.segments) == found


@pytest.mark.parametrize("host", ["straße", "bücher", "ΒΌΛΟΣ", "βόλος", "BÜCHER", "例え", "Straße.BÜCHER"])
def test_a_host_is_put_into_the_form_that_urllib3_calls(host: str) -> None:
    url = f"https://{host}.example/v2"
    target = target_of(url)
    assert target is not None
    assert target.origin.host == urllib3.util.parse_url(url).host


@pytest.mark.parametrize(
    ("url", "is_rooted"),
    [
        ("http://billing.internal.", True),
        ("https://Billing.internal.:8443/v2", True),
        ("http://localhost.:/", True),
        ("http://billing.internal", False),
        ("http://billing.internal:80/a.", False),
        ("http://10.0.0.1.", False),
        ("http://[::1]:80", False),
    ],
)
def test_a_final_dot_is_known_and_makes_no_difference_to_routes(url: str, is_rooted: bool) -> None:
    prefix = parse_prefix(url)
    assert prefix.is_rooted is is_rooted
    assert not prefix.origin.host.endswith(".")
    assert RouteTable([(prefix, "it")]).match_url(url) == (prefix, "it")
    if is_rooted:
        plain = url.replace("internal.", "internal").replace("localhost.", "localhost")
        assert parse_prefix(plain) == prefix
        assert RouteTable([(prefix, "it")]).match_url(plain) == (prefix, "it")
        assert RouteTable([(parse_prefix(plain), "it")]).match_url(url) == (prefix, "it")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("billing.internal", "billing.internal"),
        ("Billing.Internal.", "billing.internal"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("[FE80:0::1]", "fe80::1"),
    ],
)
def test_the_host_that_a_server_is_asked_for_has_one_spelling(text: str, host: str) -> None:
    assert server_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a\0b",
        "a\nb",
        "*.a",
        "a" * 64,
        "a." * 126 + "aa",
        "[::1",
        "1::2::3",
        "fe80::1%25lo",
    ],
)
def test_what_tls_would_refuse_at_each_call_is_no_host(text: str) -> None:
    with pytest.raises(UrlError):
        server_host(text)
