"""A call through a handle or a session of ours is what `requests.Session` makes of it: on the wire, and as an answer.

The same random calls are made by a stock Session, ungoverned, and by ours. A server notes every byte that arrives.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import os
import pickle
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from urllib3.util.retry import Retry

import headrace
from headrace.adapters.handles import checked_path
from headrace.adapters.requests.answer import Response as DirectResponse
from headrace.adapters.requests.plain import head_of, plain_request
from headrace.adapters.requests.session import verify_of_environment
from support.faultserver import Answer, Break, FaultServer, Raw
from support.governed import running

QUIET = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n    propagate: {request_id: false}\n"
GZIPPED = gzip.compress(b'{"a": "\xc3\xa9"}' * 40)

REDIRECT = Answer(302, headers=(("Location", "/v2/next?a=1"), ("Set-Cookie", "hop=1")))
ANSWERS = [
    Answer(body=b'{"a": 1}', headers=(("Content-Type", "application/json"),)),
    Answer(body="é".encode("latin-1"), headers=(("Content-Type", "text/plain; charset=latin-1"),)),
    Answer(body=b"<p>", headers=(("Content-Type", "text/html"), ("X-Twice", "1"), ("x-twice", "2"))),
    Answer(headers=(("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("Link", '</n>; rel="next"'))),
    Answer(body=b"0123456789" * 3000, chunked=True),
    Answer(body=GZIPPED, headers=(("Content-Encoding", "gzip"), ("Content-Type", "application/json"))),
    Answer(body=b"no gzip", headers=(("Content-Encoding", "gzip"),)),
    Answer(body=b"to the end", framed=False),
    Answer(204, body=b""),
    Answer(404, body=b"gone"),
    Answer(503, body=b"later", headers=(("Retry-After", "1"),)),
    REDIRECT,
    Answer(307, headers=(("Location", "next"),)),
    Answer(301, headers=(("Location", "http://[broken"),)),
    Answer(304, body=b""),
    Answer(302),
    Break("request"),
    Break("head"),
    Break("body", "fin"),
    Raw(b"HTTP/1.1 200\r\n\r\nwithout a reason"),
    Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n"),
    Raw(b"HTTP/1.1 302 Found\r\nLocation: /v2/b\r\nContent-Length: 99\r\n\r\nshort"),
]

GARBAGE = [
    Raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc"),
    Raw(b"HTTP/1.0 200 OK\r\nBad Header: 1\r\nContent-Length: 2\r\n\r\nok"),
]
"""What governed calls refuse and stock takes (failures.md 13)."""

plain_text = st.text(alphabet="ab09-._~/?&=;:@!$'()*+,% #é\u2603[]|\"<>\\^`{}", max_size=12)
words = st.text(alphabet="abz09-._~ &=+é%\u2603", max_size=6)
scalars = st.one_of(
    words, words.map(str.encode), st.integers(-5, 5), st.booleans(), st.none(), st.floats(allow_nan=False)
)
fields = st.one_of(
    st.dictionaries(words, st.one_of(scalars, st.lists(scalars, max_size=2)), max_size=3),
    st.lists(st.tuples(words, scalars), max_size=3),
    words,
    words.map(str.encode),
    st.none(),
)
names = st.sampled_from(
    [
        "X-A",
        "x-a",
        "User-Agent",
        "accept",
        "Content-Type",
        "Host",
        "Connection",
        "Cookie",
        "Authorization",
        "Accept-Encoding",
        "X:Y",
        "é",
    ]
)
values = st.one_of(
    st.sampled_from(["1", "text/plain", " leading", "a\r\nX-Injected: 1", "a\nb", "", "é", "\u2603"]),
    st.sampled_from(["trailing ", "a\tb"]),
    st.sampled_from([b"bytes", None, 3]),
)
heads = st.one_of(st.none(), st.dictionaries(names, values, max_size=3))
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.binary(max_size=1)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(words, inner, max_size=2)),
    max_leaves=4,
)
paths = st.one_of(
    st.sampled_from(
        ["/a", "/", "", "?q=1", "/a?", "/a?q=1", "/a/../b", "/a//b", "/a%20b", "/%7Ea", "/a#f", "/%zz"]
    ),
    plain_text.map(lambda text: f"/{text}"),
)
keywords = st.fixed_dictionaries(
    {},
    optional={
        "params": fields,
        "data": fields,
        "headers": heads,
        "json": documents,
        "stream": st.sampled_from([True, False, None]),
        "allow_redirects": st.booleans(),
        "timeout": st.sampled_from([None, 30, (30, 30), 30.5]),
        "cookies": st.sampled_from([None, {"c": "1"}]),
        "files": st.sampled_from([None, {"f": ("n.txt", b"content")}]),
        "auth": st.sampled_from([None, ("user", "password"), HTTPBasicAuth("u", "p")]),
    },
)
methods = st.sampled_from(
    ["GET", "get", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "M-SEARCH", "G T", "X\r\nY"]
)


@pytest.fixture(autouse=True, scope="module")
def forms_have_one_boundary() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib3.filepost.choose_boundary", lambda: "boundary")
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def hr(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[headrace.Headrace]:
    text = f"version: 1\ninstall: {{requests: false}}\nupstreams:\n  billing:\n    base_url: {server.url}/v2\n{QUIET}"
    with running(tmp_path_factory.mktemp("rules"), text) as hr:
        yield hr


def told(error: BaseException) -> Any:
    """What a caller sees of *error*."""
    request = getattr(error, "request", None)
    return (
        type(error),
        re.sub(r"0x[0-9a-f]+", "0x", str(error)),
        None if request is None else asked(request),
        type(getattr(error, "response", None)).__name__,
        type(error.__cause__),
        type(error.__context__),
        [type(one) for one in error.args],
    )


def asked(request: requests.PreparedRequest) -> Any:
    return (
        request.method,
        request.url,
        list(request.headers.items()),
        request.body,
        request.hooks,
        request._body_position,
        [(one.name, one.value) for one in request._cookies],
    )


def seen(response: requests.Response) -> Any:
    """Everything that a caller can see of *response* and of those before it."""
    body = response.raw.read() if response._content is False else b""
    facts = {
        name: getattr(response, name)
        for name in (
            "status_code",
            "reason",
            "url",
            "encoding",
            "ok",
            "is_redirect",
            "is_permanent_redirect",
            "links",
        )
    }
    return {
        **facts,
        "raw": (body, response.raw.status, response.raw.version, list(response.raw.headers.items())),
        "content": response.content if body == b"" else None,
        "text": response.text if body == b"" else None,
        "headers": [(type(response.headers), *one) for one in response.headers.items()],
        "cookies": sorted((one.name, one.value, one.domain, one.path) for one in response.cookies),
        "history": [seen(one) for one in response.history],
        "next": None if response.next is None else asked(response.next),
        "request": asked(response.request),
        "repr": (repr(response), bool(response)),
        "elapsed": response.elapsed.total_seconds() > 0,
        "connection": isinstance(response.connection, requests.adapters.HTTPAdapter),
        "attributes": sorted(set(vars(response)) - {"_asked", "_wire", "headrace"}),
        "raised": raised(response.raise_for_status),
    }


def raised(act: Any) -> Any:
    try:
        return act()
    except Exception as error:
        return type(error), str(error)


def outcome(act: Any, server: FaultServer) -> Any:
    """What *act* ends in, and what the server has heard of it."""
    server.drop_all()  # a kept connection that breaks is replaced at once, and the call sent again
    server.wait_for(lambda: not server.open_connections)
    before = len(server.requests)
    try:
        with act() as response:
            result = seen(response)
    except Exception as error:
        result = told(error)
    heard = [(one.method, one.target, one.headers, one.body) for one in server.requests[before:]]
    server._queue.clear()
    return result, heard


def differences(ours: Any, stock: Any) -> list[Any]:
    """What is not the same, in words that fit on a screen."""
    if isinstance(ours[0], dict) and isinstance(stock[0], dict):
        found = [
            (name, ours[0][name], stock[0][name]) for name in stock[0] if ours[0][name] != stock[0][name]
        ]
    else:
        found = [] if ours[0] == stock[0] else [("outcome", ours[0], stock[0])]
    return found if ours[1] == stock[1] else [*found, ("wire", ours[1], stock[1])]


FRAMING = st.dictionaries(
    st.sampled_from(["Content-Length", "content-length", "Transfer-Encoding", "CONTENT-TYPE"]),
    st.sampled_from(["3", "chunked", "x", ""]),
    max_size=2,
)
"""Headers after which a server would read something else."""


@settings(max_examples=1500, deadline=None)
@given(
    method=methods, path=paths, params=fields, data=fields, json=documents, headers=st.one_of(heads, FRAMING)
)
@example(method="GET", path="/a%2Db", params=None, data=None, json=None, headers=None)
@example(method="POST", path="/a", params=None, data=None, json=None, headers={"Content-Length": "3"})
def test_a_plain_request_is_what_requests_prepares(
    method: str, path: str, params: Any, data: Any, json: Any, headers: Any
) -> None:
    with requests.Session() as session:
        session.trust_env = False
        head = head_of(session.headers)
        assert head is not None
        before = dict(head.fields), dict(head.sent)
        plain = plain_request(method, "http://h:81/v2", "/v2", path, head, headers, params, data, json)
        assert (head.fields, head.sent) == before
        if plain is None:
            return
        stock = session.prepare_request(
            requests.Request(
                method,
                f"http://h:81/v2{path}",
                headers=headers,
                params=params or {},
                data=data or {},
                json=json,
            )
        )
    assert asked(plain.prepared()) == asked(stock)
    assert plain.target == stock.path_url
    assert plain.headers == dict(stock.headers)
    assert plain.body == (stock.body.encode() if isinstance(stock.body, str) else stock.body)


@pytest.mark.parametrize(
    ("path", "kw"),
    [
        pytest.param("/invoices/7", {}, id="a path"),
        pytest.param("/", {}, id="the root"),
        pytest.param("/a/b/", {}, id="a slash at the end"),
        pytest.param("/a%20b/c%2Fd", {}, id="escapes that stay"),
        pytest.param("/a?b=c&d=/e?f", {}, id="a query"),
        pytest.param("/a", {"params": {"q": "word", "n": 7, "t": "two words"}}, id="params"),
        pytest.param("/a", {"json": {"a": [1, "é"]}}, id="json"),
        pytest.param("/a", {"data": b"\x00\xff"}, id="bytes"),
        pytest.param("/a", {"data": "text"}, id="text"),
        pytest.param("/a", {"data": {"a": "1", "b": ["x", "y"]}}, id="a form"),
        pytest.param("/a", {"headers": {"X-Mine": "1", "user-agent": "me/1"}}, id="headers"),
    ],
)
def test_what_most_callers_send_is_plain(path: str, kw: dict[str, Any]) -> None:
    head = head_of(requests.Session().headers)
    assert head is not None
    given = [kw.get(name) for name in ("headers", "params", "data", "json")]
    assert plain_request("POST", "http://h", "", path, head, *given) is not None


@contextlib.contextmanager
def the_long_way() -> Iterator[None]:
    """Someone looks at what requests sends, so requests sends it."""
    send = HTTPAdapter.send

    @functools.wraps(send)
    def watched(self: HTTPAdapter, *args: Any, **kw: Any) -> requests.Response:
        return send(self, *args, **kw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPAdapter, "send", watched)
        yield


@settings(max_examples=200, deadline=None)
@given(method=methods, path=paths, kw=keywords, answer=st.sampled_from(ANSWERS + GARBAGE))
@example(method="GET", path="/a", kw={}, answer=ANSWERS[0])
@example(method="POST", path="/a", kw={"json": {"a": float("nan")}}, answer=ANSWERS[0])
@example(method="POST", path="/a", kw={"data": {"a": None}}, answer=ANSWERS[0])
@example(method="GET", path="/a", kw={"headers": {"X-A": "a\r\nX-Injected: 1"}}, answer=ANSWERS[0])
@example(method="GET", path="/a", kw={"stream": True}, answer=Break("body", "fin"))
@example(method="GET", path="/a", kw={}, answer=Break("body", "fin"))
@example(method="GET", path="/a", kw={"allow_redirects": False}, answer=REDIRECT)
@example(method="POST", path="/a", kw={"json": 1}, answer=REDIRECT)
def test_a_call_by_name_is_what_a_session_makes_of_it(
    hr: headrace.Headrace, server: FaultServer, method: str, path: str, kw: dict[str, Any], answer: Any
) -> None:
    handle = hr.upstream("billing")
    try:
        checked = checked_path(hr.snapshot.upstream("billing").plan.base, path)
    except requests.exceptions.InvalidURL:
        assume(False)

    server.next(answer)
    ours = outcome(lambda: handle.request(method, path, **copy.deepcopy(kw)), server)
    server.next(answer)
    with the_long_way():
        by_requests = outcome(lambda: handle.request(method, path, **copy.deepcopy(kw)), server)
    assert differences(ours, by_requests) == []

    if answer in GARBAGE:
        return
    server.next(answer)
    with requests.Session() as session:
        session.trust_env = False
        stock = outcome(
            lambda: session.request(method, f"{server.url}/v2{checked}", **copy.deepcopy(kw)), server
        )
    assert differences(*without_texts(ours, stock)) == []


def without_texts(ours: Any, stock: Any) -> Any:
    """Of errors only the class, and what they are about: texts and causes of a governed call are headrace's."""
    if isinstance(ours[0], tuple) and isinstance(stock[0], tuple):
        return ((ours[0][0], *ours[0][2:4]), ours[1]), ((stock[0][0], *stock[0][2:4]), stock[1])
    return ours, stock


def note_it(response: requests.Response, **kw: Any) -> None:
    response.headers["X-Hooked"] = f"{len(response.content)} {sorted(kw)}"


def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["X-Signed"] = "yes"
    request.register_hook("response", note_it)
    return request


SETTINGS: dict[str, Any] = {
    "headers": lambda session: session.headers.update({"X-Session": "1", "accept": "text/plain"}),
    "an odd header": lambda session: session.headers.update({"X-Odd": "\u2603"}),
    "no header": lambda session: session.headers.update({"User-Agent": None}),
    "plain headers": lambda session: setattr(session, "headers", {"X-Only": "1"}),
    "params": lambda session: setattr(session, "params", {"session": "1"}),
    "a cookie": lambda session: session.cookies.set("mine", "1", domain="127.0.0.1", path="/"),
    "auth": lambda session: setattr(session, "auth", ("user", "password")),
    "a signer": lambda session: setattr(session, "auth", sign),
    "hooks": lambda session: session.hooks.setdefault("response", []).append(note_it),
    "no environment": lambda session: setattr(session, "trust_env", False),
    "stream": lambda session: setattr(session, "stream", True),
    "few redirects": lambda session: setattr(session, "max_redirects", 0),
    "no trust": lambda session: setattr(session, "verify", False),
    "no hooks": lambda session: setattr(session, "hooks", {}),
}
calls = st.lists(
    st.tuples(methods, paths, keywords, st.sampled_from(ANSWERS), st.booleans()), min_size=1, max_size=3
)


@pytest.fixture(scope="module", autouse=True)
def the_environment_says_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith(("_proxy", "_ca_bundle", "netrc")):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        yield home


def in_turn(session: requests.Session, server: FaultServer, made: Any) -> list[Any]:
    """What *made*, calls by URL, ends in, and what *session* has kept of it."""
    found = []
    for method, path, kw, answer, is_ours in made:
        server.next(answer)
        url = f"{server.url}/v2{path}" if is_ours else f"{server.url}/elsewhere{path}"
        found.append(outcome(lambda: session.request(method, url, **copy.deepcopy(kw)), server))  # noqa: B023
        found.append(({"kept": sorted((one.name, one.value) for one in session.cookies)}, ()))
    return found


@settings(max_examples=200, deadline=None)
@given(made=calls, told_session=st.lists(st.sampled_from(sorted(SETTINGS)), max_size=2, unique=True))
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=[])
@example(made=[("GET", "/a", {}, REDIRECT, True)], told_session=["a signer"])
@example(made=[("GET", "/a", {}, ANSWERS[3], True), ("GET", "/a", {}, ANSWERS[0], True)], told_session=[])
def test_a_session_of_ours_is_what_a_session_is(
    hr: headrace.Headrace, server: FaultServer, made: Any, told_session: list[str]
) -> None:
    found = []
    for way, session in (
        (contextlib.nullcontext(), hr.session()),
        (the_long_way(), hr.session()),
        (contextlib.nullcontext(), requests.Session()),
    ):
        with way, session:
            for one in told_session:
                SETTINGS[one](session)
            found.append(in_turn(session, server, made))
    for ours, by_requests, stock in zip(*found, strict=True):
        assert differences(ours, by_requests) == []
        # Where a connection has broken, a governed call is sent again.
        if all(isinstance(answer, Answer) for _, _, _, answer, _ in made):
            assert differences(*without_texts(ours, stock)) == []


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"HTTP_PROXY": "http://127.0.0.1:{refused}"}, id="a proxy"),
        pytest.param({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, id="a proxy for others"),
        pytest.param({"all_proxy": "http://127.0.0.1:{refused}"}, id="one for all"),
        pytest.param({"REQUESTS_CA_BUNDLE": "/nowhere.pem"}, id="a bundle"),
        pytest.param({"NETRC": "{netrc}"}, id="a netrc, named"),
        pytest.param({"HOME": "{home}"}, id="a netrc at home"),
        pytest.param({"HOME": None}, id="no home"),
    ],
)
@pytest.mark.parametrize("trusts", [True, False], ids=["trusted", "not trusted"])
def test_the_environment_holds_for_a_session_of_ours(
    hr: headrace.Headrace,
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str | None],
    trusts: bool,
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login alice password secret\n")
    netrc.chmod(0o600)
    with FaultServer() as gone:
        refused = gone.port
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.format(home=tmp_path, netrc=netrc, refused=refused))
    made = [
        ("GET", "/a", {}, Answer(), True),
        ("POST", "/a", {"json": 1}, Answer(302, headers=(("Location", "/v2/b"),)), True),
    ]
    with hr.session() as ours, requests.Session() as stock:
        ours.trust_env = stock.trust_env = trusts
        by_ours, by_stock = in_turn(ours, server, made), in_turn(stock, server, made)
    for one, other in zip(by_ours, by_stock, strict=True):
        assert differences(*without_texts(one, other)) == []


ELSEWHERE = {"ftp": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("setting", "keywords"),
    [
        pytest.param({}, {"proxies": ELSEWHERE}, id="proxies of the call"),
        pytest.param({}, {"hooks": {"response": note_it}}, id="hooks of the call"),
        pytest.param({}, {"cert": __file__}, id="a certificate of the call"),
        pytest.param({}, {"verify": False}, id="no trust of the call"),
        pytest.param({}, {"verify": "/nowhere.pem"}, id="a bundle of the call"),
        pytest.param({"proxies": ELSEWHERE}, {}, id="proxies"),
        pytest.param({"cert": __file__}, {}, id="a certificate"),
        pytest.param({"verify": False}, {}, id="no trust"),
        pytest.param({"verify": "/nowhere.pem"}, {}, id="a bundle"),
        pytest.param({"hooks": {"response": [note_it]}}, {}, id="hooks"),
    ],
)
def test_what_only_requests_knows_to_do_goes_through_requests(
    hr: headrace.Headrace, server: FaultServer, setting: dict[str, Any], keywords: dict[str, Any]
) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        assert type(session.get(url)) is DirectResponse
        for name, value in setting.items():
            setattr(session, name, value)
        answer = session.get(url, **keywords)

    assert type(answer) is not DirectResponse
    has_hooks = "hooks" in {**setting, **keywords}
    assert ("X-Hooked" in answer.headers) is has_hooks


def test_a_url_that_is_no_text_goes_through_requests(hr: headrace.Headrace, server: FaultServer) -> None:
    """Of libraries for URLs, as requests takes it."""

    class Url:
        def __str__(self) -> str:
            return f"{server.url}/v2/a"

    with hr.session() as session:
        assert session.get(Url()).url == f"{server.url}/v2/a"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "keywords", "sent"),
    [
        pytest.param({}, {"cookies": {"a": "1"}}, ("Cookie", "a=1"), id="cookies of the call"),
        pytest.param({}, {"auth": ("a", "b")}, ("Authorization", "Basic YTpi"), id="credentials of the call"),
        pytest.param({"auth": ("a", "b")}, {}, ("Authorization", "Basic YTpi"), id="credentials"),
        pytest.param({}, {"auth": sign}, ("X-Signed", "yes"), id="a signer"),
        pytest.param({"headers": {"X-Only": "1"}}, {}, ("X-Only", "1"), id="headers that are a dict"),
    ],
)
def test_what_requests_adds_to_a_request_is_sent(
    hr: headrace.Headrace,
    server: FaultServer,
    setting: dict[str, Any],
    keywords: dict[str, Any],
    sent: tuple[str, str],
) -> None:
    with hr.session() as session:
        for name, value in setting.items():
            setattr(session, name, value)
        answer = session.get(f"{server.url}/v2/a", **keywords)

    assert server.requests[-1].header(sent[0]) == sent[1]
    assert ("X-Hooked" in answer.headers) is (keywords.get("auth") is sign)


def test_cookies_are_kept_from_call_to_call(hr: headrace.Headrace, server: FaultServer) -> None:
    with hr.session() as session:
        server.next(Answer(headers=(("set-COOKIE", "a=1"),)))
        session.get(f"{server.url}/v2/a")
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].header("Cookie") == "a=1"
        session.cookies.clear()
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].header("Cookie") is None


def test_files_and_the_params_of_a_session_are_sent(hr: headrace.Headrace, server: FaultServer) -> None:
    with hr.session() as session:
        session.post(f"{server.url}/v2/a", files={"f": b"content"})
        assert b"content" in server.requests[-1].body
        session.params = {"of": "session"}
        session.get(f"{server.url}/v2/a")
        assert server.requests[-1].target == "/v2/a?of=session"


def test_a_session_that_streams_leaves_the_body_to_its_reader(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    with hr.session() as session:
        session.stream = True
        answer = session.get(f"{server.url}/v2/a")
        assert answer._content_consumed is False
        assert answer.content == b"ok"


def test_a_host_that_requests_refuses_is_refused(hr: headrace.Headrace) -> None:
    with hr.session() as session, pytest.raises(requests.exceptions.InvalidURL):
        session.get("http://.host/a")


def test_headers_that_a_session_changes_hold_from_the_next_call_on(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    """What was made of them is kept from call to call."""
    url, found = f"{server.url}/v2/a", []
    with hr.session() as session, hr.session() as other:
        for value in ("1", "2", None):
            if value is not None:
                session.headers["X-It"] = value
            else:
                del session.headers["X-It"]
            for one in (session, session, other):
                one.get(url)
                found.append(server.requests[-1].header("X-It"))
    assert found == ["1", "1", None, "2", "2", None, None, None, None]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param(
            {"REQUESTS_CA_BUNDLE": "/a.pem", "CURL_CA_BUNDLE": "/b.pem"}, "/a.pem", id="two bundles"
        ),
        pytest.param({"CURL_CA_BUNDLE": "/b.pem"}, "/b.pem", id="curl's bundle"),
        pytest.param({"REQUESTS_CA_BUNDLE": ""}, True, id="an empty bundle"),
        pytest.param({"NETRC": ""}, None, id="a netrc, named"),
        pytest.param({"Https_Proxy": ""}, None, id="a proxy, however it is written"),
        pytest.param({"HOME": "{home}/.of"}, None, id="a .netrc"),
        pytest.param({"HOME": "{home}/_of"}, None, id="a _netrc"),
        pytest.param({"HOME": None}, None, id="no home"),
    ],
)
def test_what_the_environment_says_is_read_as_requests_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], said: object
) -> None:
    for first in "._":
        (tmp_path / f"{first}of").mkdir()
        (tmp_path / f"{first}of" / f"{first}netrc").touch()
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.format(home=tmp_path))

    assert verify_of_environment() == said


def test_requests_own_ways_to_ask_the_environment_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as replaced:
        replaced.setattr(requests.utils, "getproxies", dict)
        assert verify_of_environment() is None
    with monkeypatch.context() as replaced:
        replaced.setattr(requests.utils, "NETRC_FILES", ("other",))
        assert verify_of_environment() is None
    assert verify_of_environment() is True


def test_a_session_that_does_not_trust_the_environment_does_not_ask_it(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with hr.session() as session:
        session.trust_env = False
        assert type(session.get(f"{server.url}/v2/a")) is DirectResponse


def test_retries_of_the_adapter_s_own_are_made(hr: headrace.Headrace, server: FaultServer) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        adapter: Any = session.get_adapter(url)
        adapter.max_retries = Retry(2, status_forcelist=[404], backoff_factor=0)
        try:
            server.next(Answer(404))
            assert session.get(url).status_code == 200
        finally:
            adapter.max_retries = Retry(0, read=False)


class Seen(Exception):
    """What was put in place of a function of requests was entered."""


def is_seen(*args: Any, **kw: Any) -> Any:
    raise Seen


@pytest.mark.parametrize("way", ["handle", "session"])
@pytest.mark.parametrize(
    "replaced",
    [
        pytest.param("requests.Session.send", id="Session.send, as tracing does"),
        pytest.param("requests.Session.get_adapter", id="Session.get_adapter, as requests-mock does"),
        pytest.param("requests.Session.prepare_request", id="Session.prepare_request"),
        pytest.param("requests.Session.merge_environment_settings", id="Session.merge_environment_settings"),
        pytest.param("requests.adapters.HTTPAdapter.send", id="HTTPAdapter.send, as responses does"),
        pytest.param("requests.adapters.HTTPAdapter.build_response", id="HTTPAdapter.build_response"),
        pytest.param("requests.adapters.HTTPAdapter.add_headers", id="HTTPAdapter.add_headers"),
        pytest.param("requests.models.PreparedRequest.prepare_body", id="a step of the preparation"),
        pytest.param("requests.models.RequestEncodingMixin._encode_params", id="what a class has inherited"),
        pytest.param("requests.models.Response.__init__", id="the making of a response"),
        pytest.param("requests.sessions.PreparedRequest", id="the name of a class"),
        pytest.param("requests.adapters.get_encoding_from_headers", id="a helper"),
    ],
)
def test_what_others_have_replaced_sees_the_call(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, way: str, replaced: str
) -> None:
    def call() -> requests.Response:
        if way == "handle":
            return hr.upstream("billing").get("/a", params={"q": "1"})
        with hr.session() as session:
            return session.get(f"{server.url}/v2/a", params={"q": "1"})

    assert type(call()) is DirectResponse
    with monkeypatch.context() as patch:
        patch.setattr(replaced, is_seen)
        with pytest.raises(Seen):
            call()
    assert type(call()) is DirectResponse


@pytest.mark.parametrize("way", ["handle", "session"])
@pytest.mark.parametrize("by", ["functools", "wrapt"])
@pytest.mark.parametrize(
    "name",
    ["Session.send", "HTTPAdapter.send", "HTTPAdapter.build_response", "Response.content"],
)
def test_so_does_a_wrapper_that_passes_for_what_it_wraps(
    hr: headrace.Headrace, server: FaultServer, monkeypatch: pytest.MonkeyPatch, way: str, by: str, name: str
) -> None:
    """`functools.wraps` copies our mark, too; wrapt's proxies have the class, the globals and the equality."""
    kind_name, _, method = name.partition(".")
    kind: Any = {"Session": requests.Session, "HTTPAdapter": HTTPAdapter, "Response": requests.Response}[
        kind_name
    ]
    wrapped = vars(kind)[method]
    seen: list[str] = []

    def note(original: Any, instance: Any, args: Any, kw: Any) -> Any:
        seen.append(method)
        return original(*args, **kw)

    def call() -> None:
        seen.clear()
        if way == "handle":
            hr.upstream("billing").get("/a").content  # noqa: B018
        else:
            with hr.session() as session:
                session.get(f"{server.url}/v2/a").content  # noqa: B018

    call()
    assert not seen
    inner = wrapped.fget if isinstance(wrapped, property) else wrapped

    @functools.wraps(inner)
    def wrapper(self: Any, *args: Any, **kw: Any) -> Any:
        seen.append(method)
        return inner(self, *args, **kw)

    outer: Any = wrapper
    if by == "wrapt":
        outer = pytest.importorskip("wrapt").FunctionWrapper(inner, note)
    monkeypatch.setattr(kind, method, property(outer) if isinstance(wrapped, property) else outer)
    call()
    assert seen
    monkeypatch.setattr(kind, method, wrapped)
    call()
    assert not seen


def test_a_subclass_and_an_object_with_methods_of_its_own_go_through_requests(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    url = f"{server.url}/v2/a"
    with hr.session() as session:
        assert type(session.get(url)) is DirectResponse
        session.send = is_seen  # type: ignore[method-assign]
        with pytest.raises(Seen):
            session.get(url)
        del session.send
        session.get_adapter(url).add_headers = is_seen  # type: ignore[attr-defined]
        with pytest.raises(Seen):
            session.get(url)
        del session.get_adapter(url).add_headers  # type: ignore[attr-defined]
        session.mount(url, HTTPAdapter())
        assert not hasattr(session.get(url), "headrace")

    kind: Any = type(hr.session())
    with type("Own", (kind,), {"prepare_request": is_seen})() as own:
        own.mount("http://", hr.session().get_adapter(url))
        with pytest.raises(Seen):
            own.get(url)


def test_the_answer_is_a_response_to_all_who_take_it_apart(
    hr: headrace.Headrace, server: FaultServer
) -> None:
    server.next(Answer(body="é".encode(), headers=(("Content-Type", "text/plain; charset=utf-8"),)))
    answer = hr.upstream("billing").get("/a")

    assert isinstance(answer, requests.Response)
    assert type(answer).__name__ == "Response"
    for copied in (
        copy.copy(answer),
        pickle.loads(pickle.dumps(answer)),
        pickle.loads(pickle.dumps(answer, 0)),
    ):
        assert type(copied) is requests.Response
        assert (copied.text, copied.status_code, copied.url) == ("é", 200, answer.url)
        assert copied.request.method == "GET"
    answer.headers["Content-Type"] = "text/plain; charset=latin-1"
    assert answer.encoding == "utf-8"  # requests has looked before the caller could
    assert not hasattr(answer, "unheard_of")
    with pytest.raises(AttributeError, match="'Response' object has no attribute 'unheard_of'"):
        answer.unheard_of  # noqa: B018
    answer.raw = None
    assert answer.reason == "OK"
    assert answer.cookies is answer.cookies
    assert answer.request is answer.request
    assert {"headers", "cookies", "history", "elapsed", "request"} <= set(dir(answer))
    assert list(answer.iter_content(1)) == [b"\xc3", b"\xa9"]


def test_two_threads_that_touch_an_answer_at_once_get_the_same(hr: headrace.Headrace) -> None:
    names = ("headers", "encoding", "history", "request", "cookies")
    for _ in range(20):
        answer = hr.upstream("billing").get("/a")
        barrier = threading.Barrier(4)

        def touch(answer: Any = answer, barrier: threading.Barrier = barrier) -> list[int]:
            barrier.wait()
            return [id(getattr(answer, name)) for name in names]

        with ThreadPoolExecutor(4) as threads:
            found = [one.result() for one in [threads.submit(touch) for _ in range(4)]]
        assert found == [found[0]] * 4
