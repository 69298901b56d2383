"""What talks garbage is an upstream that fails: a protocol error, retried and blamed by the rules."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

import headrace
from support.faultserver import Answer, FaultServer, Raw
from support.governed import rules, running
from support.surfaces import HANDLE, INSTALL, URLOPEN, Surface, across, body_of, read

pytestmark = pytest.mark.both_parsers

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RULES = "    timeouts: {attempt: 10s, deadline: 40s, read: 2s}\n    retry: {max_attempts: 2, backoff: {base: 1ms}}\n"

IN_THE_BODY = {
    "a negative chunk size": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk of 10^30": CHUNKED + b"c9f2c9cd04674edea40000000\r\nhello\r\n0\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n",
    "garbage behind a chunk size": CHUNKED + b"5 zzz\r\nhello\r\n0\r\n\r\n",
    "a chunk size of 100 kB": CHUNKED + b"0" * 100_000 + b"5\r\nhello\r\n0\r\n\r\n",
    "garbage as a second chunk size": CHUNKED + b"5\r\nhello\r\n-7\r\nhello\r\n0\r\n\r\n",
}
IN_THE_HEAD = {
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "a length of 5000 digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nhello",
    "a length of 10^30": b"HTTP/1.1 200 OK\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\nhello",
    "lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a status that is none": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status line of 100 kB": b"HTTP/1.1 200 " + b"O" * 100_000 + b"\r\n\r\n",
    "a header of 100 kB": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "1000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
}
ALL = {**IN_THE_BODY, **IN_THE_HEAD}


@pytest.mark.parametrize("then", ["fin", "keep"])
@pytest.mark.parametrize("garbage", ALL)
def test_garbage_is_a_protocol_error_retried_and_blamed(
    tmp_path: Path, call: Surface, garbage: str, then: Any
) -> None:
    """failures.md 64."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.always(Raw(ALL[garbage], then=then))
        with pytest.raises(call.error) as caught:
            call(hr, server.url)
        record = headrace.record_of(caught.value)
        assert record is not None
        assert [(one.outcome, one.verdict) for one in record.attempts] == [("protocol_error", "failure")] * 2
        assert server.first_lines == 2


@pytest.mark.parametrize("garbage", ALL)
def test_with_the_callers_own_retries_it_is_blamed_as_well(tmp_path: Path, garbage: str) -> None:
    """failures.md 64."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr, requests.Session() as session:
        server.always(Raw(ALL[garbage]))
        session.mount(server.url, HTTPAdapter(max_retries=1))
        with pytest.raises(requests.RequestException):
            session.get(server.url)
        view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
        assert view.failures == view.calls >= 1


@pytest.mark.parametrize("garbage", IN_THE_BODY)
@across(HANDLE, URLOPEN)
def test_during_a_streamed_body_it_turns_the_success_into_a_failure(
    tmp_path: Path, call: Surface, garbage: str
) -> None:
    """failures.md 64."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Raw(ALL[garbage]))
        with pytest.raises(call.error):
            read(call(hr, server.url, stream=True))
        view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
        assert (view.calls, view.failures) == (1, 1)
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: five\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: \r\n\r\n",
    ],
    ids=["empty", "no number", "HTTP/1.0"],
)
def test_an_unreadable_length_of_an_answer_that_ends_with_its_connection_is_overlooked_as_stock_does(
    tmp_path: Path, call: Surface, head: bytes
) -> None:
    """failures.md 64. The other side of it: such sites work, and `mode: observe` says that they will."""
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.always(Raw(head + b"hello", then="fin"))
        assert body_of(call(hr, server.url)) == b"hello"
        assert (server.first_lines, hr.status()["upstreams"]["billing"]["pool"]["idle"]) == (1, 0)


def test_an_upstream_that_only_talks_garbage_opens_its_circuit(tmp_path: Path) -> None:
    """failures.md 64."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Raw(IN_THE_BODY["a negative chunk size"]))
        for _ in range(20):
            with contextlib.suppress(requests.RequestException):
                hr.upstream("billing").get("/")
        with pytest.raises(headrace.CircuitOpenError):
            hr.upstream("billing").get("/")


def test_a_body_that_its_reader_closes_is_no_garbage(tmp_path: Path) -> None:
    """failures.md 64. The other side of it."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Answer(body=b"x" * 100_000, chunked=True))
        answer = hr.upstream("billing").get("/", stream=True)
        pieces = answer.iter_content(1000)
        next(pieces)
        answer.close()
        with contextlib.suppress(AttributeError):  # as stock has it
            list(pieces)
        view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
        assert (view.calls, view.failures) == (1, 0)
