"""A call that goes the short way, or begins on it, ends as one that goes the long way from its start."""

from __future__ import annotations

import contextlib
import functools
import gc
import gzip
import pickle
import re
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.structures import CaseInsensitiveDict
from requests.utils import default_headers, default_user_agent
from urllib3.util.request import SKIP_HEADER

import headrace
from headrace.adapters import handles
from headrace.adapters.requests import answer as answers
from headrace.adapters.requests import direct
from headrace.adapters.requests import surface as of_requests
from headrace.adapters.requests.plain import Plain
from headrace.adapters.urllib3 import pools
from headrace.clock import monotonic
from headrace.policy.breaker.circuit import CircuitView
from headrace.policy.retry import RetryAllowance
from headrace.runtime.inbound import Inbound, inbound_var
from headrace.transport.wire.response import WholeResponse
from support.faultserver import Answer, Behaviour, Break, Endless, FaultServer, Raw, Silence, on_reuse
from support.governed import rules, running

RETRIES = "    retry: {backoff: {base: 1ms, max: 1ms}}\n"
BRIEF = "    timeouts: {attempt: 1s, read: 10s, deadline: 30s}\n"
SILENT = "    timeouts: {attempt: 10s, read: 1s, deadline: 30s}\n"
"""Only one limit ends it: of two at the same instant, either may come first, and each has words of its own. A fresh
connection has to be made and answered within it, on a busy machine too."""
PATIENT = "    timeouts: {attempt: 10s, read: 10s, deadline: 30s}\n"
"""So long that a machine which stands still for a moment makes no attempt more."""

TAKE_LONG = frozenset({"silence", "dripping head", "dripping body", "endless continues"})
"""Behaviours that only a limit ends."""


def limits(name: str) -> str:
    ends = SILENT if name == "silence" else BRIEF if name in TAKE_LONG else PATIENT
    return ends + RETRIES


GZIPPED = (("Content-Encoding", "gzip"),)
JSON = (("Content-Type", "application/json"), ("X-Twice", "a"), ("X-Twice", "b"), ("Set-Cookie", "c=1"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def seen(answer: Any) -> dict[str, Any]:
    """All that a caller can see of a urllib3 response that was read."""
    first = answer._original_response
    return {
        "status": answer.status,
        "reason": answer.reason,
        "version": (answer.version, answer.version_string),
        "headers": list(answer.headers.iteritems()),
        "data": answer.data,
        "read": (answer.read(), answer.read(10), answer.tell(), list(answer.stream(10))),
        "lengths": (answer.length_remaining, answer.chunked),
        "ends": (
            answer.closed,
            answer.isclosed(),
            answer.connection,
            bool(answer._fp and not answer._fp.isclosed()),
        ),
        "url": (answer.geturl(), answer.url, answer.retries),
        "decoding": (answer.decode_content, answer.enforce_content_length),
        "original": (first.status, first.reason, first.version, first.isclosed(), list(first.msg.items())),
        "record": told(answer.headrace),
    }


def shown(circuit: CircuitView) -> tuple[Any, ...]:
    return circuit.state, circuit.calls, circuit.failures, circuit.consecutive_failures


def told(record: headrace.Record) -> tuple[Any, ...]:
    """*record* without instants and ids."""
    attempts = [
        # A machine that stands still excuses the peer's silence.
        (
            one.outcome,
            one.status,
            one.outcome == "timeout" or one.verdict,
            one.sent,
            one.retry_seq,
            one.resent,
            one.connect_s is None,
        )
        for one in record.attempts
    ]
    return record.upstream, record.method, record.reason, record.retry_after_s, attempts


def result(call: Any) -> dict[str, Any]:
    try:
        return seen(call())
    except urllib3.exceptions.HTTPError as error:
        text = re.sub(r"timeout=\d+(\.\d+)?", "timeout=…", str(error).partition("0x")[0])
        return {"error": type(error), "text": text, "record": told(error.headrace)}  # type: ignore[attr-defined]


def learned(hr: headrace.Headrace) -> dict[str, Any]:
    """What the calls have left behind."""
    status = hr.status()["upstreams"]["billing"]
    upstream = hr.snapshot.upstream("billing")
    counters = upstream.learned.counters.copy()
    return {
        "calls": (status["requests"], status["attempts"], counters.retries, counters.own_timeouts),
        "acquires": counters.acquires,
        "closed": counters.closed,
        "resent": counters.resent,
        "per_call": counters.attempts_per_call.counts,
        "durations": sum(counters.duration.counts),
        "left": sum(counters.deadline_left.counts),
        "budget": upstream.learned.budget.balance(1e6),
        "circuit": "timeout" in status["attempts"] or shown(upstream.learned.circuit.view(monotonic())),
        "inuse": (upstream.endpoint.pool.leases.view().inuse, upstream.endpoint.pool.leases.view().idle),
    }


BEHAVIOURS: dict[str, Behaviour] = {
    "small": Answer(body=b"x" * 1024, headers=JSON),
    "empty": Answer(body=b""),
    "created": Answer(201, body=b"made"),
    "cookies": Answer(
        headers=(
            ("set-cookie", "a=1; Path=/"),
            ("Set-Cookie", "b=2; HttpOnly"),
            ("Set-Cookie", "c=3; Path=/x"),
        )
    ),
    "no content": Answer(204, body=b"", headers=()),
    "100 KiB": Answer(body=b"y" * 102_400),
    "1 MiB": Answer(body=b"z" * 1_048_576),
    "chunked": Answer(body=b"chunks" * 100, chunked=True),
    "gzip": Answer(body=gzip.compress(b"packed" * 500), headers=GZIPPED),
    "gzip in chunks": Answer(body=gzip.compress(b"packed" * 500), headers=GZIPPED, chunked=True),
    "gzip of two members": Answer(body=gzip.compress(b"packed") + gzip.compress(b"twice"), headers=GZIPPED),
    "gzip and more behind it": Answer(body=gzip.compress(b"packed") + b"more", headers=GZIPPED),
    "gzip, cut": Answer(body=gzip.compress(b"packed" * 500)[:-9], headers=GZIPPED),
    "gzip within gzip": Answer(
        body=gzip.compress(gzip.compress(b"packed" * 500)), headers=(("Content-Encoding", "gzip, gzip"),)
    ),
    "gzip said twice": Answer(body=gzip.compress(gzip.compress(b"packed" * 500)), headers=GZIPPED * 2),
    "x-gzip": Answer(body=gzip.compress(b"packed" * 500), headers=(("Content-Encoding", "x-gzip"),)),
    "no gzip": Answer(body=b"this is no gzip", headers=GZIPPED),
    "in two pieces": Answer(body=b"late", drip_body_s=0.002),
    "head in pieces": Answer(body=b"late", drip_head_s=0.0005),
    "dripping head": Answer(drip_head_s=0.05),
    "dripping body": Answer(body=b"d" * 30, drip_body_s=0.05),
    "closes": Answer(close=True),
    "until close": Answer(framed=False, close=True),
    "redirect": Answer(302, headers=(("Location", "/elsewhere"),)),
    "not modified": Answer(304, body=b""),
    "not found": Answer(404),
    "unavailable": Answer(503, headers=(("Retry-After", "0"),)),
    "no answer": Break("request", "fin"),
    "reset": Break("request", "rst"),
    "half a head": Break("head", "fin"),
    "half a head, reset": Break("head", "rst"),
    "half a body": Break("body", "fin"),
    "half a body, reset": Break("body", "rst"),
    "silence": Silence(),
    "late": Answer(delay_s=0.02),
    "not HTTP": Raw(),
    "HTTP/1.0": Raw(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", then="keep"),
    "early hints": Raw(
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "keep"
    ),
    "continue": Raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "keep"),
    "endless continues": Endless(),
    "bytes behind": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200", "keep"),
    "two lengths": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "fin"),
    "length and chunks": Raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "keep",
    ),
    "bad chunk": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\nok\r\n", "fin"),
}


Ask = Callable[..., Any]
"""Makes a call: method, path, keywords of `urlopen`."""


def by_name(hr: headrace.Headrace, server: FaultServer) -> Ask:
    return hr.upstream("billing").urlopen


def by_manager(hr: headrace.Headrace, server: FaultServer) -> Ask:
    manager = urllib3.PoolManager()
    return lambda method, path, **kw: manager.request(method, server.url + path, **kw)


def journey(
    folder: Path,
    server: FaultServer,
    name: str,
    method: str,
    kw: dict[str, Any],
    ask_by: Any = by_name,
) -> list[Any]:
    """Everything that three calls leave to be seen: one that warms the connection, two over it."""
    server.always(Answer())
    folder.mkdir()
    with running(folder, rules(server.url, limits(name), more="install: {urllib3: true}\n")) as hr:
        ask, at = ask_by(hr, server), len(server.requests)
        ask("GET", "/warm")
        server.always(on_reuse(BEHAVIOURS[name], first=Answer(body=b"fresh")))
        story: list[Any] = [result(lambda: ask(method, "/it?a=1", **kw)) for _ in range(2)]
        sent = [
            (one.method, one.target, one.body, [pair for pair in one.headers if pair[0] != "X-Request-ID"])
            for one in server.requests[at:]
        ]
        server.wait_for(lambda: True)
        return [*story, sent, learned(hr)]


@pytest.mark.parametrize("name", BEHAVIOURS)
@pytest.mark.parametrize(
    ("method", "kw"),
    [
        pytest.param("GET", {}, id="GET"),
        pytest.param(
            "POST", {"body": b"told", "headers": {"Accept": "*/*", "content-type": "text/plain"}}, id="POST"
        ),
    ],
)
def test_the_two_ways_cannot_be_told_apart(
    tmp_path: Path,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    kw: dict[str, Any],
) -> None:
    short = journey(tmp_path / "short", server, name, method, kw)

    monkeypatch.setattr(handles, "quickly", lambda *_: None)
    long = journey(tmp_path / "long", server, name, method, kw)

    assert short == long


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_nor_can_they_through_a_pool_manager(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kw = {"headers": {"Accept": "*/*"}, "redirect": False}
    short = journey(tmp_path / "short", server, name, "GET", kw, by_manager)

    monkeypatch.setattr(pools, "quickly", lambda *_: None)
    long = journey(tmp_path / "long", server, name, "GET", kw, by_manager)

    assert short == long


def seen_by_requests(answer: requests.Response) -> dict[str, Any]:
    """All that a caller can see of a response of requests."""
    raw = answer.raw
    return {
        "status": (answer.status_code, answer.reason, answer.ok, answer.url, answer.is_redirect),
        "headers": list(answer.headers.items()),
        "content": (answer.content, answer.encoding, answer.text, list(answer.iter_content(3))[:9]),
        "cookies": answer.cookies.get_dict(),
        "history": (answer.history, answer._next, type(answer.elapsed)),
        "request": (
            answer.request.method,
            answer.request.url,
            dict(answer.request.headers),
            answer.request.body,
        ),
        "raw": (
            raw.status,
            raw.version,
            raw.read(),
            raw.closed,
            raw.decode_content,
            list(raw.headers.iteritems()),
            list(raw.stream(10)),
            (
                raw.data,
                raw.chunked or raw.tell(),
                raw.chunked,
                raw.length_remaining,
                raw.isclosed(),
                raw.connection,
            ),
            list(raw._original_response.msg.items()),
        ),
        "pickled": pickle.loads(pickle.dumps(answer)).content,
        "record": told(answer.headrace),  # type: ignore[attr-defined]
    }


def result_of_get(call: Callable[[], requests.Response]) -> dict[str, Any]:
    try:
        return seen_by_requests(call())
    except requests.RequestException as error:
        record = headrace.record_of(error)  # none where requests itself gives up on redirects
        text = re.sub(r"\d\.\d+|0x\w+", "…", str(error))
        return {"error": type(error), "text": text, "record": record and told(record)}


@pytest.mark.parametrize("name", BEHAVIOURS)
@pytest.mark.parametrize("way", ["by name", "session", "installed"])
def test_nor_can_they_through_requests(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    def journey_of_get(folder: Path) -> list[Any]:
        server.always(Answer())
        folder.mkdir()
        with running(folder, rules(server.url, limits(name))) as hr:
            at, session = len(server.requests), requests.Session() if way == "installed" else hr.session()

            def ask(path: str, **kw: Any) -> requests.Response:
                if way != "by name":
                    return session.post(server.url + path, **kw) if kw else session.get(server.url + path)
                return hr.upstream("billing").request("POST" if kw else "GET", path, **kw)

            ask("/warm")
            server.always(on_reuse(BEHAVIOURS[name], first=Answer(body=b"fresh")))
            story: list[Any] = [
                result_of_get(lambda: ask("/it")),
                result_of_get(lambda: ask("/it", json={"a": 1})),
                session.cookies.get_dict(),
            ]
            sent = [
                (
                    one.method,
                    one.target,
                    one.body,
                    [pair for pair in one.headers if pair[0] != "X-Request-ID"],
                )
                for one in server.requests[at:]
            ]
            return [*story, sent, learned(hr)]

    short = journey_of_get(tmp_path / "short")
    for one in (direct, of_requests):
        monkeypatch.setattr(one, "quickly", lambda *_: None)
    assert short == journey_of_get(tmp_path / "long")


def with_(request: requests.PreparedRequest, **changed: Any) -> requests.PreparedRequest:
    for name, value in changed.items():
        setattr(request, name, value)
    return request


class Own(requests.PreparedRequest):
    path_url = "/another"


def own(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return with_(Own(), **vars(request))


ODD: dict[str, Callable[[requests.PreparedRequest], requests.PreparedRequest]] = {
    "as it is": lambda request: request,
    "text": lambda request: with_(request, body="é", method="POST"),
    "text of a length": lambda request: request.prepare_body("a=é", None) or request,
    "a form": lambda request: request.prepare_body({"a": "é"}, None) or request,
    "JSON": lambda request: request.prepare_body(None, None, {"a": 1}) or request,
    "a file": lambda request: request.prepare_body({"a": "1"}, {"f": b"data"}) or request,
    "chunks": lambda request: with_(request, body=b"no length", method="POST"),
    "a generator": lambda request: with_(request, body=iter([b"a", b"b"]), method="POST"),
    "a length in small letters": lambda request: with_(
        request, body=b"ab", headers=CaseInsensitiveDict({"content-length": "2"}), method="PUT"
    ),
    "small letters": lambda request: with_(request, method="post"),
    "HEAD": lambda request: with_(request, method="HEAD"),
    "a method of its own": lambda request: with_(request, method="PURGE"),
    "a bare question mark": lambda request: with_(request, url=f"{request.url}?"),
    "no path": lambda request: with_(request, url=str(request.url).removesuffix("/it")),
    "no path, but a query": lambda request: with_(request, url=str(request.url).replace("/it", "?a=/b")),
    "two slashes": lambda request: with_(request, url=str(request.url).replace("/it", "//it")),
    "a fragment": lambda request: with_(request, url=f"{request.url}#a"),
    "dots": lambda request: with_(request, url=f"{request.url}/../a"),
    "letters": lambda request: with_(request, url=f"{request.url}/é?a=é"),
    "escapes": lambda request: with_(request, url=f"{request.url}%2f?a=%41"),
    "a line end in the path": lambda request: with_(request, url=f"{request.url}/a\n/b"),
    "capitals": lambda request: with_(request, url=str(request.url).replace("http://", "HTTP://")),
    "a name before the host": lambda request: with_(request, url=str(request.url).replace("//", "//a:b@")),
    "a dict": lambda request: with_(request, headers={"X-A": "1"}),
    "no headers": lambda request: with_(request, headers=CaseInsensitiveDict()),
    "bytes": lambda request: with_(request, headers=CaseInsensitiveDict({"X-A": b"1"})),
    "bytes in a name": lambda request: with_(request, headers=CaseInsensitiveDict({b"X-A": "1"})),
    "a number": lambda request: with_(request, headers=CaseInsensitiveDict({"X-A": 1})),
    "a line end": lambda request: with_(request, headers=CaseInsensitiveDict({"X-A": "1\r\nX-B: 2"})),
    "a trace": lambda request: with_(request, headers=CaseInsensitiveDict({"Traceparent": "00-1-2-01"})),
    "an id": lambda request: with_(request, headers=CaseInsensitiveDict({"x-request-id": "mine"})),
    "a host": lambda request: with_(request, headers=CaseInsensitiveDict({"Host": "other"})),
    "a secret": lambda request: with_(request, headers=CaseInsensitiveDict({"authorization": "Bearer x"})),
    "NTLM": lambda request: with_(request, headers=CaseInsensitiveDict({"authorization": "NTLM x"})),
    "close": lambda request: with_(request, headers=CaseInsensitiveDict({"connection": "close"})),
    "the file's in small letters": lambda request: with_(
        request, headers=CaseInsensitiveDict({"x-of-file": "mine", "user-agent": default_user_agent()})
    ),
    "a class of its own": own,
    "cookies": lambda request: request.prepare_cookies({"a": "1", "b": "2"}) or request,
    "a password": lambda request: request.prepare_auth(("a", "b")) or request,
    "a hook": lambda request: request.prepare_hooks({"response": [lambda r, **_: reads(r)]}) or request,
}


SHORT = {
    "as it is",
    "text of a length",
    "a form",
    "JSON",
    "a file",
    "dots",
    "a length in small letters",
    "cookies",
} | {
    "a password",
    "no headers",
    "a secret",
    "the file's in small letters",
}
"""Those of them that go the short way."""


def reads(answer: requests.Response) -> None:
    answer.first = answer.raw.read(2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ODD)
def test_nor_can_they_where_a_request_of_requests_is_odd(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("urllib3.filepost.choose_boundary", lambda: "a-boundary")  # else it is random
    headers = "    headers: {X-Of-File: its, USER-agent: file/1}\n    propagate: {request_id: false}\n"

    def told(folder: Path) -> list[Any]:
        folder.mkdir()
        server.always(Answer(body=b"answer"))
        text = rules(server.url, PATIENT + RETRIES + headers)
        with running(folder, text), requests.Session() as session:
            session.get(f"{server.url}/warm")
            at = len(server.requests)
            asked = session.prepare_request(requests.Request("GET", f"{server.url}/it", headers={"X-A": "a"}))
            answer = None
            try:
                answer = session.send(ODD[name](asked))
                found: Any = answer.content, answer.request.url, getattr(answer, "first", None)
            except Exception as error:
                found = type(error)
            if folder.name == "short":
                assert isinstance(answer and answer.raw, WholeResponse) == (name in SHORT)
            return [
                found,
                [(one.method, one.target, one.body, one.headers) for one in server.requests[at:]],
            ]

    short = told(tmp_path / "short")
    monkeypatch.setattr(of_requests, "quickly", lambda *_: None)
    assert short == told(tmp_path / "long")


class OwnHeaders(urllib3.HTTPHeaderDict):
    def items(self) -> Any:
        return [("X-Own", "1")]


SENT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "JSON": {"json": {"a": "é"}},
    "JSON and headers": {"json": [1], "headers": {"X-A": "1", "content-type": "text/x"}},
    "fields": {"fields": {"a": "1", "b": "é"}},
    "fields, not in parts": {"fields": {"a": "1", "b": "é"}, "encode_multipart": False},
    "text": {"body": "é", "headers": {"X-A": "1"}},
    "text that cannot be sent": {"body": "\ud800"},
    "bytes": {"body": b"1", "headers": urllib3.HTTPHeaderDict({"X-A": "1", "x-of-file": "mine"})},
    "no bytes": {"body": bytearray(b"1")},
    "a header twice": {"headers": urllib3.HTTPHeaderDict([("X-A", "1"), ("B", "1"), ("x-a", "2")])},
    "headers of requests": {"headers": CaseInsensitiveDict({"X-A": "1", "x-of-file": "mine"})},
    "the library's": {
        "headers": CaseInsensitiveDict(default_headers()),
    },
    "the library's in urllib3's": {"headers": urllib3.HTTPHeaderDict(dict(default_headers()))},
    "headers of a class of its own": {"headers": OwnHeaders({"X-A": "1"})},
    "a mapping": {"headers": MappingProxyType({"X-A": "1"})},
    "a password": {"headers": urllib3.make_headers(basic_auth="a:b")},
    "a password in urllib3's": {"headers": urllib3.HTTPHeaderDict(authorization="Basic a")},
    "NTLM": {"headers": urllib3.HTTPHeaderDict(authorization="NTLM a")},
    "a number": {"headers": {"Authorization": 5}},
    "a number in urllib3's": {"headers": urllib3.HTTPHeaderDict({"Authorization": 5})},  # type: ignore[dict-item]
    "close": {"headers": urllib3.HTTPHeaderDict(Connection="close")},
    "a host": {"headers": urllib3.HTTPHeaderDict(Host="other")},
    "a trace": {"headers": urllib3.HTTPHeaderDict(traceparent="00-1-2-01")},
    "bytes in a header": {"headers": urllib3.HTTPHeaderDict({"X-A": b"1"})},  # type: ignore[dict-item]
    "what is to be left out": {"headers": urllib3.HTTPHeaderDict({"User-Agent": SKIP_HEADER})},
    "a line end": {"headers": urllib3.HTTPHeaderDict({"X-A": "1\r\nX-B: 2"})},
}


@pytest.mark.parametrize(
    ("by", "what"),
    [
        (by, what)
        for by in ("name", "manager", "pool")
        for what, kw in SENT.items()
        if by != "name" or {"headers", "body"}.issuperset(kw)  # urlopen encodes nothing
    ],
)
def test_the_two_ways_send_the_same_of_what_urllib3_takes(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, by: str, what: str
) -> None:
    monkeypatch.setattr("urllib3.filepost.choose_boundary", lambda: "a-boundary")  # else it is random
    rule = "    headers: {X-Of-File: its, USER-agent: file/1}\n    propagate: {request_id: false}\n"

    def told(folder: Path) -> list[Any]:
        folder.mkdir()
        with running(folder, rules(server.url, PATIENT + rule, more="install: {urllib3: true}\n")) as hr:
            manager = urllib3.PoolManager()
            ask: Ask = hr.upstream("billing").urlopen
            url, at = "/it", len(server.requests)
            if by == "manager":
                ask, url = manager.request, f"{server.url}/it"
            elif by == "pool":
                ask = manager.connection_from_url(server.url).request
            found = []
            for method in ("GET", "GET", "POST"):
                try:
                    found.append(ask(method, url, **SENT[what]).data)
                except Exception as error:
                    found.append((type(error), re.sub(r"0x\w+|:\d+", "…", str(error))))
            return [found, [(one.method, one.target, one.body, one.headers) for one in server.requests[at:]]]

    short = told(tmp_path / "short")
    for one in (handles, pools):
        monkeypatch.setattr(one, "quickly", lambda *_: None)
    assert short == told(tmp_path / "long")


def test_what_the_libraries_make_of_json_and_fields_goes_the_short_way(
    tmp_path: Path, server: FaultServer
) -> None:
    with (
        running(tmp_path, rules(server.url, more="install: {urllib3: true}\n")),
        requests.Session() as session,
    ):
        manager = urllib3.PoolManager(timeout=9)
        ask, url = manager.request, server.url
        ask("GET", url)
        asked: list[Any] = [
            ask("POST", url, json={}),
            ask("POST", url, fields={"a": "1"}),
            ask("POST", url, body="text", timeout=9),
            ask("POST", url, body=b"bytes", headers=urllib3.HTTPHeaderDict(a="1")),
            ask("GET", url, fields={"a": "1"}, headers=CaseInsensitiveDict(a="1")),
            manager.connection_from_url(url).request("GET", "/"),
            urllib3.request("PUT", url, json=[]),
            session.post(url, json={}).raw,
            session.post(url, data={"a": "1"}).raw,
            session.post(url, data="text", timeout=9).raw,
            session.put(url, files={"a": b"1"}, auth=("a", "b")).raw,
        ]

    assert [isinstance(one, WholeResponse) for one in asked] == [True] * len(asked)


def breaks(*args: Any) -> Any:
    raise KeyError("in the making of the answer")


@pytest.mark.parametrize("replaced", ["get_encoding_from_headers", "Response"])
def test_nor_can_they_where_the_answer_cannot_be_made(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    def told(folder: Path) -> list[Any]:
        folder.mkdir()
        with running(folder, rules(server.url, RETRIES)) as hr, requests.Session() as session:
            session.get(server.url)
            with monkeypatch.context() as patch:
                patch.setattr(f"requests.adapters.{replaced}", breaks)
                with pytest.raises(KeyError) as caught:
                    session.get(server.url)
            session.get(server.url)
            return [caught.value.args, len(server.requests), learned(hr)]

    short = told(tmp_path / "short")
    monkeypatch.setattr(of_requests, "quickly", lambda *_: None)
    long = told(tmp_path / "long")
    long[1] -= short[1]
    assert short == long


@pytest.mark.parametrize(
    "kw", [{}, {"verify": False}, {"cert": "no such file"}, {"proxies": {"https": "http://x"}}]
)
def test_nor_can_they_where_a_call_says_more_than_it_needs(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, kw: dict[str, Any]
) -> None:
    """Without TLS these say nothing, but for a certificate that requests looks for all the same."""

    def told(folder: Path) -> Any:
        folder.mkdir()
        with running(folder, rules(server.url)) as hr, requests.Session() as session:
            session.get(server.url)
            try:
                found: Any = session.get(server.url, **kw).content
            except OSError as error:
                found = type(error), str(error)
            return found, hr.status()["upstreams"]["billing"]["requests"]

    short = told(tmp_path / "short")
    monkeypatch.setattr(of_requests, "quickly", lambda *_: None)
    assert short == told(tmp_path / "long")


@pytest.mark.parametrize("by", ["a class", "an object", "a patch", "a patch below ours", "a mount"])
def test_what_others_do_to_an_adapter_sees_the_call(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """It is asked of `raw`, which is unread when a response is built."""
    seen: list[bytes] = []

    def build(self: HTTPAdapter, request: requests.PreparedRequest, wire: Any) -> requests.Response:
        seen.append(wire.read())
        return original(self, request, wire)

    def adds(*_: Any, **kw: Any) -> None:
        seen.append(b"ok")

    original = HTTPAdapter.build_response
    send = HTTPAdapter.send
    session = requests.Session()
    if by == "a patch below ours":

        @functools.wraps(send)
        def below(self: HTTPAdapter, *args: Any, **kw: Any) -> requests.Response:
            seen.append(b"ok")
            return send(self, *args, **kw)

        monkeypatch.setattr(HTTPAdapter, "send", below)
    with running(tmp_path, rules(server.url)), session:
        adapter: Any = session.get_adapter(server.url)
        requests.get(server.url)
        if by == "a class":
            session.mount("http://", type("Own", (HTTPAdapter,), {"build_response": build})())
        elif by == "an object":
            adapter.build_response = functools.partial(build, adapter)
        elif by == "a patch":
            monkeypatch.setattr(HTTPAdapter, "build_response", build)
        elif by == "a mount":
            session.mount(
                server.url,
                type("Own", (HTTPAdapter,), {"add_headers": adds})(),
            )
        seen.clear()
        session.get(server.url)

    assert seen == [b"ok"]


WAYS: dict[str, Callable[[headrace.Headrace, str, Any], Callable[[], Any]]] = {
    "Handle.urlopen": lambda hr, url, limit: (
        lambda: hr.upstream("billing").urlopen("GET", "/", timeout=limit)
    ),
    "Handle.get": lambda hr, url, limit: lambda: hr.upstream("billing").get("/", timeout=limit),
    "hr.session()": lambda hr, url, limit: partial(hr.session().get, url, timeout=limit),
    "Session.get": lambda hr, url, limit: partial(requests.Session().get, url, timeout=limit),
    "requests.get": lambda hr, url, limit: partial(requests.get, url, timeout=limit),
    "PoolManager": lambda hr, url, limit: partial(urllib3.PoolManager(timeout=limit).request, "GET", url),
    "PoolManager.request": lambda hr, url, limit: partial(
        urllib3.PoolManager(timeout=99).request, "GET", url, timeout=limit
    ),
    "a pool": lambda hr, url, limit: partial(
        urllib3.PoolManager().connection_from_url(url).request, "GET", "/", timeout=limit
    ),
    "urllib3.request": lambda hr, url, limit: partial(urllib3.request, "GET", url, timeout=limit),
}
"""Calls with a limit of their own."""

ASKED: dict[str, Any] = {
    "seconds": 7.5,
    "of urllib3.request": 3,
    "none": None,
    "not given": urllib3.Timeout.DEFAULT_TIMEOUT,
    "a total": urllib3.Timeout(total=9),
    "two": urllib3.Timeout(connect=4, read=8),
    "two of requests": (4, 8.0),
    "one of requests": (None, 8.0),
    "one": urllib3.Timeout(read=8),
    "nothing": urllib3.Timeout(),
    "too many": (1, 2, 3),
    "no number": "soon",
    "a word": True,
    "not more than nothing": 0,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caller", ["honour", "ignore"])
def test_the_two_ways_take_the_same_timeouts(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, way: str, caller: str
) -> None:
    silence = "4s" if caller == "honour" else "200ms"
    limit_s = 0.2 if caller == "honour" else 20  # it is the shorter of the two that holds
    rule = (
        f"    timeouts: {{caller: {caller}, read: {silence}, attempt: 5s}}\n    retry: {{max_attempts: 1}}\n"
    )

    def told(folder: Path) -> list[Any]:
        folder.mkdir()
        server.always(Answer())
        story: list[Any] = []
        with running(folder, rules(server.url, rule, more="install: {urllib3: true}\n")) as hr:
            hr.upstream("billing").urlopen("GET", "/warm")
            for asked in ASKED.values():
                try:
                    answer = WAYS[way](hr, server.url + "/", asked)()
                except Exception as error:
                    story.append((type(error), str(error)))
                    continue
                raw = getattr(answer, "raw", answer)
                assert isinstance(raw, WholeResponse) == (folder.name == "short"), asked
                story.append(told_of_limits(answer.headrace))
            story.append(learned(hr))
            server.always(Silence())
            began = monotonic()
            for asked in (limit_s, urllib3.Timeout(connect=5, read=limit_s), urllib3.Timeout(total=limit_s)):
                with pytest.raises((urllib3.exceptions.HTTPError, requests.RequestException)) as caught:
                    WAYS[way](hr, server.url + "/", asked)()
                text = re.sub(
                    r"0x\w+|(?<=timed out. )\(.*?\)", "…", str(caught.value)
                )  # of two limits one is first
                story.append((type(caught.value), text, told_of_limits(headrace.record_of(caught.value))))
            assert monotonic() - began < 4
            story.append(learned(hr))
        return story

    short = told(tmp_path / "short")
    for one in (direct, of_requests, handles, pools):
        monkeypatch.setattr(one, "quickly", lambda *_: None)
    assert short == told(tmp_path / "long")


def told_of_limits(record: headrace.Record | None) -> tuple[Any, ...]:
    assert record is not None
    return told(record)


@pytest.mark.parametrize("name", ["small", "unavailable", "no answer", "silence"])
@pytest.mark.parametrize(
    ("rule", "left_s"),
    [
        pytest.param("", None, id="no deadline of its own"),
        pytest.param("", 0.2, id="a deadline of its own"),
        pytest.param(
            "    propagate: {request_id: false, traceparent: false}\n", None, id="nothing passed on"
        ),
        pytest.param("    headers: {Traceparent: fixed, X-Key: secret}\n", None, id="a trace of the rule's"),
    ],
)
def test_the_two_ways_pass_on_the_same_of_an_inbound_request(
    tmp_path: Path,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rule: str,
    left_s: float | None,
) -> None:
    def told(folder: Path) -> tuple[list[Any], list[Any], int]:
        folder.mkdir()
        server.always(Answer())
        with running(folder, rules(server.url, limits(name) + rule)) as hr:
            handle, at, allowance = hr.upstream("billing"), len(server.requests), RetryAllowance([None] * 2)
            handle.urlopen("GET", "/warm")
            server.always(on_reuse(BEHAVIOURS[name], first=Answer(body=b"fresh")))
            inbound = Inbound(
                hr,
                hr.snapshot,
                "id-of-the-request",
                allowance,
                deadline_at=None if left_s is None else monotonic() + left_s,
                trace=(("traceparent", "00-1-2-01"), ("tracestate", "a=b")),
            )
            outer = inbound_var.set(inbound)
            try:
                results = [result(lambda: handle.urlopen("GET", "/it")) for _ in range(2)]
            finally:
                inbound_var.reset(outer)
        for one in results:
            one["text"] = re.sub(r"\d+\.\d+", "…", one.get("text", ""))
        return results, [one.headers for one in server.requests[at + 1 :]], len(allowance)

    short = told(tmp_path / "short")
    monkeypatch.setattr(handles, "quickly", lambda *_: None)
    assert short == told(tmp_path / "long")


@pytest.mark.parametrize("name", ["half a body", "no gzip"])  # the others are in one with stock, too
def test_the_error_of_a_call_that_began_on_it_is_in_no_cycle(
    tmp_path: Path, server: FaultServer, name: str
) -> None:
    text = rules(server.url, "    timeouts: {attempt: 300ms, read: 300ms}\n    retry: {max_attempts: 1}\n")
    with running(tmp_path, text) as hr:
        handle = hr.upstream("billing")
        handle.urlopen("POST", "/warm")
        server.always(on_reuse(BEHAVIOURS[name]))
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(urllib3.exceptions.HTTPError) as caught:
                handle.urlopen("POST", "/it", body=b"x")
            error = weakref.ref(caught.value)
            del caught
            assert error() is None
        finally:
            gc.enable()


def test_urllib3s_own_log_tells_of_each_request(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, rules(server.url)) as hr:
        handle = hr.upstream("billing")
        for _ in range(2):
            handle.urlopen("GET", "/")
        with caplog.at_level("DEBUG", "urllib3.connectionpool"):
            handle.urlopen("GET", "/told")
        handle.urlopen("GET", "/untold")

    assert [line for line in caplog.messages if "HTTP/1.1" in line] == [
        f'{server.url} "GET /told HTTP/1.1" 200 2'
    ]


def test_a_good_answer_over_a_warm_connection_goes_the_short_way(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, more="install: {urllib3: true}\n")) as hr:
        handle = hr.upstream("billing")
        kinds = [type(handle.urlopen("GET", "/")) for _ in range(3)]
        answer = handle.urlopen("POST", "/", body=b"x")

        assert kinds[1:] == [type(answer)] * 2
        assert isinstance(answer, WholeResponse)
        assert isinstance(urllib3.PoolManager().request("GET", server.url), WholeResponse)
        assert isinstance(answer, urllib3.HTTPResponse)
        assert isinstance(requests.get(server.url).raw, WholeResponse)
        with hr.session() as session:
            assert isinstance(session.get(server.url, headers={"X": "1"}).raw, WholeResponse)
        assert pickle.loads(pickle.dumps(answer.headrace)) == answer.headrace


def test_a_body_may_be_silent_for_longer_than_the_attempt_may_take(
    tmp_path: Path, server: FaultServer
) -> None:
    limits = "    timeouts: {attempt: 200ms, read: 10s, deadline: 30s}\n    retry: {max_attempts: 1}\n"
    with running(tmp_path, rules(server.url, limits)) as hr:
        handle = hr.upstream("billing")
        handle.urlopen("GET", "/warm")
        server.always(Answer(body=b"ab", drip_body_s=0.4))
        answer = handle.urlopen("GET", "/it")

    assert isinstance(answer, WholeResponse)
    assert answer.data == b"ab"


def test_a_peer_that_takes_nothing_ends_the_write(tmp_path: Path) -> None:
    limits = "    timeouts: {write: 200ms, attempt: 10s, read: 10s, deadline: 30s}\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        peers: list[socket.socket] = []

        def answer_once() -> None:
            peer, _ = listener.accept()
            peers.append(peer)
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        thread = threading.Thread(target=answer_once)
        thread.start()
        with running(tmp_path, rules(url, limits)) as hr:
            handle = hr.upstream("billing")
            assert handle.urlopen("GET", "/warm").data == b"ok"
            sock = warm_socket(hr)
            sock.settimeout(0.0)
            with contextlib.suppress(BlockingIOError):
                while sock.send(bytes(65536)):
                    pass
            with pytest.raises(urllib3.exceptions.ReadTimeoutError, match=r"Write timed out.*=0.2"):
                handle.urlopen("POST", "/it", body=b"x")
        thread.join()
        peers[0].close()


def warm_socket(hr: headrace.Headrace) -> Any:
    leases = hr.snapshot.upstream("billing").endpoint.pool.leases
    leases.view()
    (connection,) = leases._idle
    return connection.conn.sock


def test_an_answer_can_be_looked_at_before_it_has_a_record() -> None:
    """`failure_if` gets it, and may ask for `vars`."""
    prepared = requests.Request("GET", "http://host/").prepare()
    answer = answers.Response(urllib3.HTTPResponse(b"", status=200), Plain.of(prepared), None)

    assert vars(answer)["headrace"] is None
    assert "headers" in dir(answer)


def test_a_cookie_that_is_put_into_an_answer_is_found_by_requests(
    server: FaultServer, tmp_path: Path
) -> None:
    """Code that authenticates does that. requests asks whether the answer is true before it looks for cookies in it."""
    server.always(Answer())
    request, jar = requests.Request("GET", f"{server.url}/a").prepare(), RequestsCookieJar()
    with running(tmp_path, rules(server.url)) as hr:
        handle = hr.upstream("billing")
        handle.urlopen("GET", "/a")
        answer: Any = handle.urlopen("GET", "/a")
    assert isinstance(answer, WholeResponse)
    extract_cookies_to_jar(jar, request, answer)
    assert not jar.get_dict()
    answer._original_response.msg.add_header("Set-Cookie", "known=yes")
    extract_cookies_to_jar(jar, request, answer)
    assert jar.get_dict() == {"known": "yes"}
