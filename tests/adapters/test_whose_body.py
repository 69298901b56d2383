"""Who reads the body of an answer, and by whose limits: on real sockets, on each way a buffered call is made."""

from __future__ import annotations

import functools
import gzip
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, Break, FaultServer, Raw, Reply, server_context
from support.governed import rules, running
from support.surfaces import SURFACES, body_of, retrying_adapter, retrying_call
from support.waiting import ends_within, in_each_pause

pytestmark = pytest.mark.both_parsers

Get = Callable[..., Any]

STEADY_S = 1.5
STEADY = Answer(body=b"x" * 30, drip_body_s=STEADY_S / 30)
LIMITS = "    timeouts: {attempt: 1s, read: 1s, deadline: 30s}\n"


class Watching(HTTPAdapter):
    """Looks at the raw answer that stock hands out."""

    def send(self, *args: Any, **kw: Any) -> requests.Response:
        """As stock's."""
        response = super().send(*args, **kw)
        response.seen = response.raw.read()  # type: ignore[attr-defined]
        return response


TRIES = Retry(2, backoff_factor=0.0)


@pytest.fixture(params=[*SURFACES, retrying_adapter(TRIES), retrying_call(TRIES)], ids=repr)
def get(request: pytest.FixtureRequest) -> Callable[[headrace.Headrace, str], Get]:
    """Makes a buffered GET by the way at hand; answers with its `urllib3` or `requests` response."""

    return lambda hr, base: functools.partial(request.param, hr, base)


def installed(tmp_path: Path, text: str) -> Any:
    """A running instance that governs calls by URL of both libraries."""
    return running(tmp_path, text.replace("version: 1\n", "version: 1\ninstall: {urllib3: true}\n"))


# By whose limits


def test_a_steady_download_is_fetched_once_whatever_attempt_says(
    tmp_path: Path, get: Callable[[headrace.Headrace, str], Get]
) -> None:
    """failures.md 89. `attempt` is for the head; the body of a good answer may take until the deadline."""
    with FaultServer() as server, installed(tmp_path, rules(server.url, LIMITS)) as hr:
        server.always(STEADY)
        answer = get(hr, server.url)()
        assert body_of(answer) == STEADY.body
        assert server.first_lines == 1
        assert [one.outcome for one in answer.headrace.attempts] == ["2xx"]


def test_a_steady_download_without_a_deadline_goes_on_for_as_long_as_it_is_not_silent(
    tmp_path: Path, get: Callable[[headrace.Headrace, str], Get]
) -> None:
    """failures.md 89."""
    limits = "    timeouts: {attempt: 1s, read: 1s, deadline: null}\n"
    with FaultServer() as server, installed(tmp_path, rules(server.url, limits)) as hr:
        server.always(STEADY)
        assert body_of(get(hr, server.url)()) == STEADY.body
        assert server.first_lines == 1


def test_a_body_that_drips_is_cut_by_the_deadline(
    tmp_path: Path, get: Callable[[headrace.Headrace, str], Get]
) -> None:
    """failures.md 27."""
    limits = "    timeouts: {attempt: 700ms, read: 700ms, deadline: 1s}\n"
    with FaultServer() as server, installed(tmp_path, rules(server.url, limits)) as hr:
        server.always(Answer(body=b"x" * 1000, drip_body_s=0.05))
        with ends_within(1.0, not_before=1.0), pytest.raises(headrace.DeadlineExceeded) as caught:
            get(hr, server.url)()
        assert [one.outcome for one in caught.value.attempts] == ["timeout"]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_silence_during_a_good_body_is_bounded_by_read(
    tmp_path: Path, get: Callable[[headrace.Headrace, str], Get]
) -> None:
    limits = "    timeouts: {attempt: 10s, read: 200ms, deadline: 30s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, installed(tmp_path, rules(server.url, limits)) as hr:
        server.always(Answer(body=b"xx", drip_body_s=20.0))
        began = time.monotonic()
        with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
            get(hr, server.url)()
        assert 0.2 <= time.monotonic() - began < 9.0
        assert {one.outcome for one in caught.value.headrace.attempts} == {"timeout"}  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["requests", "urlopen"])
def test_an_answer_that_is_retried_is_bounded_by_attempt_to_its_end(tmp_path: Path, way: str) -> None:
    """failures.md 27."""
    limits = (
        "    timeouts: {attempt: 1s, read: 1s, deadline: 60s}\n"
        "    retry: {max_attempts: 2, backoff: {base: 1ms, throttled: 1ms, max: 1ms}}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, limits)) as hr:
        server.next(Answer(503, body=b"x" * 1000, drip_body_s=0.1))
        handle = hr.upstream("billing")
        with ends_within(1.0, not_before=1.0):
            answer: Any = handle.get("/") if way == "requests" else handle.urlopen("GET", "/")
        assert [one.outcome for one in answer.headrace.attempts] == ["timeout", "2xx"]


def test_a_failed_answer_that_the_rules_do_not_retry_is_the_callers_however_slowly_it_comes(
    tmp_path: Path,
) -> None:
    """failures.md 89. A POST is not sent again: its 503 has until the deadline."""
    with FaultServer() as server, running(tmp_path, rules(server.url, LIMITS)) as hr:
        server.always(replace(STEADY, status=503))  # longer than an attempt
        assert hr.upstream("billing").post("/", data=b"once").content == STEADY.body
        assert server.first_lines == 1


# What the library would not insist on

BROKEN_REDIRECTS = [
    pytest.param(
        Raw(
            b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
            then="keep",
        ),
        None,
        id="no gzip, whatever it says",
    ),
    pytest.param(
        Raw(b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 100\r\n\r\nhello"),
        requests.exceptions.ChunkedEncodingError,
        id="truncated",
    ),
    pytest.param(
        Raw(b"HTTP/1.1 301 Moved\r\nLocation: /b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        None,
        id="truncated chunks",
    ),
]


def look(response: requests.Response, *args: Any, **kw: Any) -> None:
    """A response hook."""
    response.seen = response.raw.read()  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
@pytest.mark.parametrize("way", ["url", "tries", "handle", "hook", "session", "subclass"])
@pytest.mark.parametrize(("redirect", "error"), BROKEN_REDIRECTS)
def test_a_redirect_whose_body_is_broken_is_followed_as_requests_follows_it(
    tmp_path: Path, mode: str, way: str, redirect: Reply, error: type[Exception] | None
) -> None:
    """failures.md 56."""
    body = f"    mode: {mode}\n    circuit_breaker: {{consecutive_failures: 1}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr, requests.Session() as s:
        server.at("/a", redirect)
        server.at("/b", Answer(body=b"fine"))
        if way == "tries":
            s.mount("http://", HTTPAdapter(max_retries=Retry(2, backoff_factor=0.0)))
        if way == "subclass":
            s.mount(
                "http://",
                type("Plain", (HTTPAdapter,), {"send": lambda *a, **kw: HTTPAdapter.send(*a, **kw)})(),
            )
        if way == "hook":
            s.hooks["response"].append(lambda response, *args, **kw: None)
        governed = hr.session() if way == "session" else s
        followed = hr.upstream("billing").get("/a") if way == "handle" else governed.get(f"{server.url}/a")
        assert followed.content == b"fine"
        assert [one.status_code for one in followed.history] == [302 if b"302" in redirect.data else 301]  # type: ignore[union-attr]
        assert server.first_lines == 2
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "closed"

        # A caller that does not follow it gets what stock gives: an error only where a Content-Length was promised.
        def ask() -> requests.Response:
            if way == "handle":
                return hr.upstream("billing").get("/a", allow_redirects=False)
            return governed.get(f"{server.url}/a", allow_redirects=False)

        if error is None:
            assert ask().content == b""
        else:
            with pytest.raises(error):
                ask()
        assert server.first_lines == 3


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
@pytest.mark.parametrize("who", ["hook", "subclass"])
@pytest.mark.parametrize("own_retries", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Answer(body=b"words"), id="plain"),
        pytest.param(Answer(body=b"words", chunked=True), id="chunked"),
        pytest.param(
            Answer(body=gzip.compress(b"words"), headers=(("Content-Encoding", "gzip"),)), id="gzip"
        ),
        pytest.param(Answer(302, body=b"words", headers=(("Location", "/elsewhere"),)), id="redirect"),
        pytest.param(Answer(401, body=b"words"), id="401"),
    ],
)
def test_code_that_looks_at_the_raw_answer_before_the_session_finds_its_body(
    tmp_path: Path, mode: str, who: str, own_retries: bool, reply: Answer
) -> None:
    """failures.md 56. A response hook, or a `send` around ours."""
    retries = Retry(2) if own_retries else 0
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, f"    mode: {mode}\n")),
        requests.Session() as session,
    ):
        server.always(reply)
        session.mount("http://", (Watching if who == "subclass" else HTTPAdapter)(max_retries=retries))
        hooks = {"response": look} if who == "hook" else {}
        answer = session.get(server.url, hooks=hooks, allow_redirects=False)
        assert answer.seen == reply.body  # type: ignore[attr-defined]
        assert answer.status_code == reply.status


@pytest.mark.parametrize("mode", ["enforce", "off"])
@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("way", ["handle", "tries"])
def test_a_hook_may_stream_the_raw_answer_decoded(tmp_path: Path, mode: str, judged: bool, way: str) -> None:
    seen: list[bytes] = []
    reply = Answer(body=gzip.compress(b"words"), headers=(("Content-Encoding", "gzip"),), chunked=True)

    def hook(response: requests.Response, *args: Any, **kw: Any) -> None:
        seen.extend(response.raw.stream(2, decode_content=True))

    body = f"    mode: {mode}\n"
    if judged:
        body += f"    circuit_breaker: {{failure_if: '{reads_it.__module__}:reads_it'}}\n"
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, body)) as hr,
        requests.Session() as session,
    ):
        server.always(reply)
        session.mount("http://", HTTPAdapter(max_retries=Retry(2)))
        if way == "handle":
            answer = hr.upstream("billing").get("/", hooks={"response": hook})
        else:
            answer = session.get(server.url, hooks={"response": hook})
        assert b"".join(seen) == b"words"
        assert answer.content == b""  # as in stock: the caller has read it


@pytest.mark.parametrize("hooks", [{}, None], ids=["none", "None"])
def test_a_request_without_a_list_of_hooks_is_sent_as_stock_sends_it(tmp_path: Path, hooks: Any) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)), requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", server.url))
        prepared.hooks = hooks
        assert session.send(prepared).content == b"ok"


def reads_it(response: requests.Response) -> bool:
    """A predicate of `failure_if`."""
    return response.content != b"words"


@pytest.mark.parametrize("own_retries", [False, True])
def test_once_the_session_has_read_the_content_the_raw_answer_is_read(
    tmp_path: Path, own_retries: bool
) -> None:
    """As in stock, whatever code has looked at it before: what is read is kept once."""
    retries = Retry(2) if own_retries else 0
    with FaultServer() as server, running(tmp_path, rules(server.url)), requests.Session() as session:
        server.always(Answer(body=b"words"))
        session.mount("http://", HTTPAdapter(max_retries=retries))
        for hooks in ({}, {"response": lambda response, *args, **kw: None}):
            answer = session.get(server.url, hooks=hooks)
            assert (answer.content, answer.raw.read()) == (b"words", b"")
            assert answer.raw.closed


def test_a_truncated_body_is_retried_though_a_hook_is_waiting(tmp_path: Path) -> None:
    """failures.md 56. What the library does insist on decides as ever."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.next(Break("body", how="fin"))
        answer = hr.upstream("billing").get("/", hooks={"response": look})
        assert answer.seen == b"ok"  # type: ignore[attr-defined]
        assert [one.outcome for one in answer.headrace.attempts] == ["reset", "2xx"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("own_retries", [False, True])
@pytest.mark.parametrize("status", [401, 407])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_hooks_that_authenticate_a_connection_find_its_socket(
    tmp_path: Path, secure: bool, status: int, own_retries: bool
) -> None:
    """failures.md 54. requests-ntlm and requests-kerberos ask it for the certificate that they bind to."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    found: list[socket.socket] = []

    def hook(response: requests.Response, *args: Any, **kw: Any) -> None:
        found.append(response.raw._fp.fp.raw._sock)

    trust = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n" if secure else ""
    with (
        FaultServer(tls=server_context(authority) if secure else None) as server,
        running(tmp_path, rules(server.url, trust)),
        requests.Session() as session,
    ):
        server.always(Answer(status, headers=(("WWW-Authenticate", "NTLM"),)))
        session.mount("http", HTTPAdapter(max_retries=Retry(2) if own_retries else 0))
        session.get(server.url, hooks={"response": hook})
        (sock,) = found
        assert sock.getpeername()[1] == server.port
        if secure:
            assert cast(ssl.SSLSocket, sock).getpeercert(True)
        session.get(server.url)
        assert server.connections == 1  # it went back to the pool, and serves on


# A kept answer


@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("read", ["raw", "stream", "iter_content", "content"])
def test_a_kept_answer_of_a_streamed_call_is_read_by_its_raw_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, encoded: bool
) -> None:
    """failures.md 73. It was set aside for a retry that is not made: meanwhile the circuit has opened."""
    body = "    retry: {max_attempts: 2}\n    circuit_breaker: {consecutive_failures: 1}\n"
    text = b"x" * 140
    wire = gzip.compress(text) if encoded else text
    headers = (("Content-Encoding", "gzip"),) if encoded else ()
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.at("/kept", Answer(503, body=wire, headers=headers))
        server.at("/fails", Break())
        handle = hr.upstream("billing")

        def another_call_fails() -> None:
            assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 1
            with pytest.raises(requests.RequestException):
                handle.post("/fails")
            assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "open"

        pauses = in_each_pause(monkeypatch, another_call_fails)
        answer = handle.get("/kept", stream=True)
        assert len(pauses) == 1
        assert answer.status_code == 503
        assert [one.target for one in server.requests].count("/kept") == 1
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0
        match read:
            case "raw":
                assert answer.raw.read() == wire
            case "stream":
                assert b"".join(answer.raw.stream(7, decode_content=True)) == text
            case "iter_content":
                assert b"".join(answer.iter_content(7)) == text
            case _:
                assert answer.content == text
