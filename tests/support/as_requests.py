"""Calls of requests made in several ways, and compared: what is asked, answered, sent and kept."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

from support.faultserver import Answer, Break, FaultServer, Raw

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


def outcome(act: Any, server: FaultServer, *, fresh: bool = True) -> Any:
    """What *act* ends in, and what the server has heard of it; *fresh*: over a connection of its own."""
    if fresh:
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


def in_turn(
    session: requests.Session, server: FaultServer, made: Any, *, base: str = "/v2", warm: bool = False
) -> list[Any]:
    """What *made*, calls by URL, ends in, and what *session* has kept of it.

    Args:
        base: The path of the upstream.
        warm: Calls find a connection of the upstream that was used before.
    """
    found = []
    for method, path, kw, answer, is_ours in made:
        if warm:
            with requests.Session() as warming:
                warming.trust_env = False
                warming.get(f"{server.url}{base}/warm")
        server.next(answer)
        url = f"{server.url}{base}{path}" if is_ours else f"{server.url}/elsewhere{path}"
        act = functools.partial(session.request, method, url, **copy.deepcopy(kw))
        found.append(outcome(act, server, fresh=not warm))
        found.append(({"kept": sorted((one.name, one.value) for one in session.cookies)}, ()))
    return found
