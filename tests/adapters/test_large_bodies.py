"""What comes out of a body is bounded in time and in bytes: on real sockets, however it is read."""

from __future__ import annotations

import gzip
import pickle
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, Endless, FaultServer, Raw, Reply
from support.governed import reason_of, rules, running
from support.surfaces import INSTALL, SURFACES, Surface, body_of, retrying_adapter

pytestmark = pytest.mark.both_parsers

GIGABYTE = gzip.compress(bytes(10_000_000)) * 100
"""1 MB over the wire. A gzip body may have many members, and this many are quickly made."""

CODED = (("Content-Encoding", "gzip"),)
BOMB = Answer(body=GIGABYTE, headers=CODED)


def endless(head: bytes, again: bytes) -> Endless:
    return Endless(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", again, pause_s=0.001)


TOO_LARGE = [
    pytest.param(BOMB, id="gzip"),
    pytest.param(Answer(body=GIGABYTE, headers=CODED, chunked=True), id="gzip in chunks"),
    pytest.param(
        Answer(body=zlib.compress(bytes(50_000_000)), headers=(("Content-Encoding", "deflate"),)),
        id="deflate",
    ),
    pytest.param(endless(b"Content-Length: 1000000000\r\n", bytes(100_000)), id="plain"),
    pytest.param(
        endless(b"Transfer-Encoding: chunked\r\n", b"20000\r\n" + bytes(0x20000) + b"\r\n"),
        id="plain in chunks",
    ),
    pytest.param(endless(b"", bytes(100_000)), id="plain to the end"),
]

Read = Callable[[headrace.Headrace, str], Any]


def buffered(call: Surface) -> Any:
    return pytest.param(lambda hr, base: body_of(call(hr, base)), id=call.name)


BUFFERED = [
    *(buffered(call) for call in (*SURFACES, retrying_adapter(Retry(2, backoff_factor=0.0)))),
    pytest.param(
        lambda hr, base: requests.get(base, hooks={"response": lambda response, *args, **kw: None}).content,
        id="hook",
    ),
]


def streamed(read: Callable[[Any], Any]) -> Read:
    """Through requests, unless *read* is of urllib3."""
    return lambda hr, base: read(requests.get(base, stream=True))


def opened(read: Callable[[Any], Any]) -> Read:
    return lambda hr, base: read(hr.upstream("billing").urlopen("GET", "/", preload_content=False))


STREAMED = [
    pytest.param(streamed(lambda answer: answer.content), id="content"),
    pytest.param(streamed(lambda answer: b"".join(answer.iter_content(1000))), id="iter_content"),
    pytest.param(streamed(lambda answer: answer.raw.read(decode_content=True)), id="raw.read"),
    pytest.param(opened(lambda answer: answer.data), id="data"),
    pytest.param(opened(lambda answer: answer.read()), id="read"),
    pytest.param(opened(lambda answer: b"".join(iter(lambda: answer.read(1000), b""))), id="read(1000)"),
    pytest.param(opened(lambda answer: b"".join(iter(lambda: answer.read1(), b""))), id="read1"),
    pytest.param(opened(lambda answer: b"".join(answer.stream(1000, decode_content=True))), id="stream"),
]


def installed(tmp_path: Path, base: str, body: str) -> Any:
    return running(tmp_path, rules(base, body, more=INSTALL))


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("read", BUFFERED)
def test_decoding_ends_with_the_deadline(tmp_path: Path, read: Read, chunked: bool) -> None:
    """failures.md 70. In one go it takes seconds, and no shutdown of a socket ends it."""
    body = "    timeouts: {deadline: 150ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, installed(tmp_path, server.url, body) as hr:
        server.always(Answer(body=GIGABYTE, headers=CODED, chunked=chunked))
        began = time.thread_time()  # what it costs does not depend on what else the machine does
        with pytest.raises(headrace.DeadlineExceeded) as caught:
            read(hr, server.url)
        assert time.thread_time() - began < 1.0
        assert [one.outcome for one in caught.value.attempts] == ["timeout"]
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert pool["inuse"] == 0


@pytest.mark.parametrize("reply", TOO_LARGE)
@pytest.mark.parametrize("read", [*BUFFERED, *STREAMED])
def test_a_body_above_the_limit_ends_the_call_with_little_memory(
    tmp_path: Path, read: Read, reply: Reply
) -> None:
    """failures.md 70."""
    body = "    pool: {max_response_body: 1MiB}\n    circuit_breaker: {consecutive_failures: 1}\n"
    with FaultServer() as server, installed(tmp_path, server.url, body) as hr:
        server.always(reply)
        tracemalloc.start()
        try:
            with pytest.raises(headrace.ResponseTooLarge) as caught:
                read(hr, server.url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * 1024 * 1024
        error = caught.value
        assert isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError))
        assert (error.max_bytes, error.upstream, reason_of(error)) == (
            1 << 20,
            "billing",
            "response_too_large",
        )
        assert server.first_lines == 1  # never retried
        status = hr.status()["upstreams"]["billing"]
        assert status["circuit_breaker"]["state"] == "closed"  # nor blamed
        assert status["pool"]["inuse"] == 0


@pytest.mark.parametrize("read", [*BUFFERED, *STREAMED])
@pytest.mark.parametrize("reply", [Answer(body=bytes(1000)), Answer(body=bytes(1000), chunked=True)])
@pytest.mark.parametrize("coded", [False, True])
def test_a_body_that_reaches_the_limit_is_whole(
    tmp_path: Path, read: Read, reply: Answer, coded: bool
) -> None:
    with (
        FaultServer() as server,
        installed(tmp_path, server.url, "    pool: {max_response_body: 1000B}\n") as hr,
    ):
        if coded:
            reply = Answer(body=gzip.compress(reply.body), headers=CODED, chunked=reply.chunked)
        server.always(reply)
        assert read(hr, server.url) == bytes(1000)
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_what_was_too_large_is_counted_in_its_own_word(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, "    pool: {max_response_body: 1B}\n")) as hr,
    ):
        for _ in range(2):
            with pytest.raises(headrace.ResponseTooLarge):
                hr.upstream("billing").get("/")
        status = hr.status()["upstreams"]["billing"]
        assert status["attempts"] == {"response_too_large": 2}


@pytest.mark.parametrize("way", ["requests", "urlopen"])
def test_it_is_a_502_and_pickles(tmp_path: Path, way: str) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, "    pool: {max_response_body: 1B}\n")) as hr,
    ):
        handle = hr.upstream("billing")
        with pytest.raises(headrace.ResponseTooLarge) as caught:
            handle.get("/") if way == "requests" else handle.urlopen("GET", "/")
        error = caught.value
        assert headrace.problem(error).status == 502
        assert error.attempts[0].verdict == "ignored"
        error.pool = None  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.max_bytes) == (type(error), str(error), 1)


def test_the_limit_is_taken_into_force_by_a_reload(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        handle = hr.upstream("billing")
        assert handle.get("/").content == b"ok"
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, "    pool: {max_response_body: 1B}\n"))
        hr.reload()
        with pytest.raises(headrace.ResponseTooLarge):
            handle.get("/")
        assert server.connections == 1


@pytest.mark.parametrize("way", ["requests", "urlopen"])
def test_where_the_rules_are_only_observed_a_body_may_be_as_large_as_it_is(tmp_path: Path, way: str) -> None:
    body = "    mode: observe\n    pool: {max_response_body: 1B}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        handle = hr.upstream("billing")
        assert (handle.get("/").content if way == "requests" else handle.urlopen("GET", "/").data) == b"ok"


def test_a_head_promises_what_it_does_not_send(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, "    pool: {max_response_body: 1B}\n")) as hr,
    ):
        server.always(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", then="keep"))
        assert hr.upstream("billing").head("/").status_code == 200
        assert hr.upstream("billing").urlopen("HEAD", "/").status == 200
        assert hr.upstream("billing").head("/", stream=True).content == b""


CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(b"5;", b"x" * 10_000, id="an extension without end"),
        pytest.param(b"5\r\nhello\r\n0\r\nX-Much: ", b"x" * 10_000, id="a trailer without end"),
        pytest.param(b"5\r\nhello\r\n0\r\n", b"X-More: x\r\n" * 20, id="trailers without end"),
    ],
)
@pytest.mark.parametrize("read", [*BUFFERED, *STREAMED])
def test_what_is_between_the_chunks_has_an_end(
    tmp_path: Path, read: Read, first: bytes, again: bytes
) -> None:
    """failures.md 70."""
    body = "    timeouts: {attempt: 30s, read: 30s, deadline: 60s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, installed(tmp_path, server.url, body) as hr:
        server.always(Endless(b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n" + first, again, pause_s=0.001))
        began = time.monotonic()
        with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
            read(hr, server.url)
        assert time.monotonic() - began < 10.0
        assert not isinstance(caught.value, headrace.DeadlineExceeded)
        status = hr.status()["upstreams"]["billing"]
        assert set(status["attempts"]) <= {"protocol_error", "2xx"}  # of a streamed one: its head
        assert status["circuit_breaker"]["failures"] == 1
        assert status["pool"]["inuse"] == 0


@pytest.mark.parametrize("trailers", [b"", b"X-Sum: 5\r\nX-More: x\r\n"])
@pytest.mark.parametrize("read", [*BUFFERED, *STREAMED])
def test_trailers_are_read_over_and_the_connection_serves_on(
    tmp_path: Path, read: Read, trailers: bytes
) -> None:
    reply = Raw(
        b"HTTP/1.1 200 OK\r\n"
        + CHUNKED
        + b"\r\n5;name=value\r\nhello\r\n2\r\n!!\r\n0\r\n"
        + trailers
        + b"\r\n",
        then="keep",
    )
    with FaultServer() as server, installed(tmp_path, server.url, "") as hr:
        server.always(reply)
        for _ in range(3):
            assert read(hr, server.url) == b"hello!!"
        assert server.connections == 1
