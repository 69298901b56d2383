"""Whose headers a request gets, where servers disagree about its path."""

from __future__ import annotations

import itertools
import re
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.policy import paths
from headrace.policy.paths import may_leave, quoted
from headrace.policy.plan import Origin, UrlPrefix
from headrace.policy.routes import RouteTable, UrlError, moved, parse_prefix, target_of

H = Origin("http", "h", 80)


def table(*paths: str) -> RouteTable[str]:
    return RouteTable((parse_prefix(f"http://h{path}"), path) for path in paths)


def owner(routes: RouteTable[str], path: str) -> str | None:
    found = routes.match_url(f"http://h{path}")
    return None if found is None else found[1]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/..%2fadmin",
        "/v2/..%2Fadmin",
        "/v2/..%5cadmin",
        "/v2/..\\admin",
        "/v2/a/..%2f..%2fadmin",
        "/v2/..;/admin",
        "/v2/..;x=1/admin",
        "/..;/admin",
        "/v2/%2e%2e;/admin",
        "/v2/%252e%252e/admin",
        "/v2/%25252e%25252e/admin",
        "/v2/..%252fadmin",
        "/v2/%2e%2e%2fadmin",
        "/v2/..%00/admin",
        "/v2/..%09/admin",
        "/v2/..%20/admin",
        "/v2/.%0d./admin",
        "/v2/.\t./admin",
        "/v2/.\n./admin",
        "/v2/..%3f/admin",
        "/v2/..%23/admin",
        "/v2//../admin",
        "/v2/%2f/../../admin",
        "/v2/;x/../admin",
        "/v2/a%2f../../admin",
        "/v2/a\\..\\..\\admin",
        "/v2/%c0%ae%c0%ae/admin",
        "/v2/%u002e%u002e/admin",
        "/v2/．．/admin",
        "/v2/%EF%BC%8E%EF%BC%8E/admin",
        "/v2/..％2fadmin/../../x",
        "/v2/.%" + "25" * 40 + "2e/admin",
        "/v2/..%2fadmin?x=/v2/",
        "/v2/..%2fadmin#x",
    ],
)
def test_what_a_server_may_read_as_a_step_out_is_not_below_the_prefix(path: str) -> None:
    """failures.md 57: the headers of `/v2` are its own, whatever else is spelt like it."""
    assert owner(table("/v2"), path) is None
    # The root claims all of its origin, so every reading is below it.
    assert owner(table("/v2", ""), path) == ""


@pytest.mark.parametrize(
    "path",
    [
        "/v2/items;x=1",
        "/v2/items;jsessionid=1F/7",
        "/v2/a%2fb",
        "/v2/a\\b",
        "/v2/a%2fb/../c",
        "/v2/x y",
        "/v2/x%20y",
        "/v2/x?q=..%2f..%2f",
        "/v2/x?q=a b\\c",
        "/v2/é",
        "/v2/%C3%A9",
        "/v2/100%",
        "/v2/%zz",
        "/v2/a//b",
        "/v2//b",
        "/v2/.well-known",
        "/v2/..a/b",
        "/v2/a..b",
        "/v2/a/..;/b",
        "/v2/<id>",
        "/%762/x",
        "/v2#..%2f",
        "/v2/x\t",
    ],
)
def test_what_stays_below_in_every_reading_is_matched(path: str) -> None:
    """failures.md 57: a blank, or what else HTTP libraries encode themselves, is no way past the rules."""
    assert owner(table("/v2", ""), path) == "/v2"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/v2/admin;x/y", "/v2", id="parameters are not the deeper prefix"),
        pytest.param("/v2/x/..;/admin", "/v2", id="in one reading deeper, in another not"),
        pytest.param("/v2%2fadmin", "", id="one segment or two"),
        pytest.param("//v2/x", "", id="an empty segment, or none"),
        pytest.param("/V2/x", "", id="case counts"),
        pytest.param("/v2/a|b/x", "/v2/a|b", id="what the file writes raw, raw"),
        pytest.param("/v2/a%7cb/x", "/v2/a|b", id="what the file writes raw, encoded"),
        pytest.param("/v2/group%2fproject/issues", "/v2/group%2Fproject", id="the file's own encoded slash"),
        pytest.param("/v2/group%2fproject/../x", "/v2", id="above it"),
    ],
)
def test_the_longest_prefix_of_what_is_certain_wins(path: str, expected: str) -> None:
    assert owner(table("", "/v2", "/v2/admin", "/v2/a|b", "/v2/group%2Fproject"), path) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://[0:0:0:0:0:0:0:1]/x",
        "http://[::1]:80/x",
        "http://[0000::0001]/x y",
        "http://user:p%40ss@[::1]/x",
        "HTTP://[::1]/x#y",
    ],
)
def test_spellings_of_one_address_are_one_origin(url: str) -> None:
    for written in ("http://[::1]", "http://[0:0:0:0:0:0:0:1]:80/"):
        assert RouteTable([(parse_prefix(written), 1)]).match_url(url) is not None
    assert RouteTable([(parse_prefix("http://[::1]"), 1)]).names_origin("http", "0:0:0:0:0:0:0:1", 80)


@pytest.mark.parametrize(
    "url",
    [
        "http://h \\x",
        "http://h\\/x",
        "http://h\t/x y",
        " http://h/x",
        "ht\ntp://h/x y",
        "http:/h/x y",
        "http://e@f@h/x y",
        "x y",
        "\\\\h/x",
    ],
)
def test_an_origin_that_is_not_certain_is_nobodys(url: str) -> None:
    assert table("").match_url(url) is None
    assert target_of(url) is None


@pytest.mark.parametrize("path", ["/v2/..;", "/..%2fx", "/a/%252e%252e", "/..\u2024"])
def test_a_prefix_that_some_servers_take_for_a_step_up_is_refused(path: str) -> None:
    with pytest.raises(UrlError, match="some servers take for"):
        parse_prefix(f"http://h{path}")


def test_a_fallback_keeps_the_rest_of_the_path_as_it_was() -> None:
    to, base = parse_prefix("http://other/w"), parse_prefix("http://h/v2")
    assert moved("http://h/v2/a;x=1//b%2fc d?q", [base], to=to) == "http://other/w/a;x=1//b%2Fc%20d?q"
    assert moved("http://h/v2/..%2fadmin", [base], to=to) is None


def test_quoted_encodes_what_url_parsers_would_take_out() -> None:
    assert quoted("/a b\t\r\n\\\x00?q=x y") == "/a%20b%09%0D%0A%5C%00?q=x%20y"
    assert quoted("/a%20b?é") == "/a%20b?é"


_STEPS = st.sampled_from([".", "..", "...", "/", "//", "\\", "/../", "/..;/", ";", ";x", "%3b"])
_CODED = st.sampled_from(
    ["%2e", "%2E", "%2f", "%5c", "%252e", "%252f", "%255c", "%25252e", "%c0%ae", "%c0%af", "%u002e"]
)
_ENDS = st.sampled_from(["%00", "%3f", "%09", "%20", " ", "\t"])
_PIECES = _STEPS | _CODED | _ENDS | st.sampled_from(["a", "b", "a/b"])
_PATHS = st.lists(_PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces))
_DEEP = _PATHS.map(lambda path: f"/a{path}") | _PATHS.map(lambda path: f"/a/b{path}")


def readings(path: str) -> set[tuple[str, ...]]:
    """Segments of *path* as servers of many kinds have them: nginx, Apache, Tomcat, Jetty, IIS, a proxy before them."""
    if re.search(r"%(?![0-9a-fA-F]{2})", path):
        path = path.replace("%", "%25")
    found: set[tuple[str, ...]] = set()
    choices = itertools.product(
        range(5), ("never", "before", "after"), (False, True), (False, True), ("", "\x00", "?"), (False, True)
    )
    for rounds, strips, backslashes, merges, ends_at, trims in choices:
        seen = path
        if strips == "before":
            seen = re.sub(";[^/]*", "", seen)
        for _ in range(rounds):
            seen = unquote(seen, "latin-1").replace("\xc0\xae", ".").replace("\xc0\xaf", "/")
            seen = seen.replace("%u002e", ".")
        if backslashes:
            seen = seen.replace("\\", "/")
        if strips == "after":
            seen = re.sub(";[^/]*", "", seen)
        if ends_at:
            seen = seen.partition(ends_at)[0]
        if trims:
            seen = re.sub("[\t ]", "", seen)
        if merges:
            seen = re.sub("/+", "/", seen)
        resolved: list[str] = []
        for segment in seen.split("/")[1:]:
            if re.fullmatch(r"\.|%2[eE]", segment):
                continue
            if re.fullmatch(r"(\.|%2[eE]){2}", segment):
                if resolved:
                    resolved.pop()
            else:
                resolved.append(segment)
        found.add(tuple(resolved))
    return found


@settings(max_examples=400, deadline=None)  # a loaded machine is not a failure
@given(_PATHS | _DEEP)
@example("/a/b%2fc/../../x")
@example("/a/x%00y/../b")
@example("/a/;x%2fc/../b")
@example("/a/..;/b/../../a/b")
def test_every_reading_of_a_matched_path_is_below_its_prefix(path: str) -> None:
    """failures.md 57: the headers of a prefix never go where a server may take the request out of it."""
    prefixes = [("a",), ("a", "b"), ("b",), ("a", "a"), ("a", "b", "a")]
    routes = RouteTable((UrlPrefix(H, prefix), prefix) for prefix in prefixes)

    found = routes.match_url(f"http://h{path}")

    if found is not None:
        for reading in readings(path.replace("\t", "")):
            assert reading[: len(found[1])] == found[1], (path, reading)


@settings(max_examples=400, deadline=None)  # a loaded machine is not a failure
@given(_PATHS)
@example("/a/..;/..;/x")
def test_what_may_not_leave_stays_below_any_base(path: str) -> None:
    if not may_leave(path):
        for base in ("/v2", "/v2/w"):
            for reading in readings(base + quoted(path)):
                assert reading[: base.count("/")] == tuple(base.split("/")[1:]), (path, reading)


def test_what_is_taken_for_plain_at_a_glance_is_so_on_reading() -> None:
    """Every percent-encoded character of one or two bytes, and what folding makes of it."""
    characters = [chr(code) for code in range(0x800)]
    for segment in ("a" + quote(char, safe="") for char in characters):
        if paths._PLAIN.fullmatch(segment):
            assert paths._reading(segment) == (paths._ONE, 0)
    assert sum(paths._PLAIN.fullmatch("a" + quote(char, safe="")) is not None for char in characters) > 2000


@settings(deadline=None)  # a loaded machine is not a failure
@given(st.lists(st.text("abc", min_size=1, max_size=2), max_size=5), st.booleans())
def test_plain_paths_are_matched_as_they_are_written(segments: list[str], has_slash: bool) -> None:
    path = "".join(f"/{segment}" for segment in segments) + "/" * has_slash
    target = target_of(f"http://h{path}")
    assert target is not None
    assert target.segments[: len(segments)] == tuple(segments)
