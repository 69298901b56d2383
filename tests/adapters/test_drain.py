"""What is left of a failed answer before the next attempt: read if it is little and comes soon, else not at all."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from support.faultserver import Answer, Endless, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, MANAGER, REQUESTS, Surface, across, retrying_adapter, retrying_call
from support.waiting import ends_within

OWN = Retry(2, status_forcelist=[503], backoff_factor=0)
RULES = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n    timeouts: {deadline: 30s, attempt: 20s, read: 20s}\n"

UNKIND = [
    pytest.param(Answer(503, body=b"x" * 20_000_000), id="large"),
    pytest.param(Answer(503, body=b"x" * 20_000_000, chunked=True), id="large, in chunks"),
    pytest.param(Answer(503, body=b"x" * 1000, drip_body_s=1.0), id="dripping"),
    pytest.param(Answer(503, body=b"x" * 1000, drip_body_s=1.0, chunked=True), id="dripping chunks"),
    pytest.param(Answer(503, body=b"x" * 9, drip_body_s=20.0), id="stalled"),
    pytest.param(Answer(503, body=b"x" * 9, drip_body_s=20.0, framed=False), id="stalled, without an end"),
]


BY_ADAPTER, BY_CALL = retrying_adapter(OWN), retrying_call(OWN)
ON_EACH = across(REQUESTS, BY_ADAPTER, MANAGER, BY_CALL)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize("answer", UNKIND)
@ON_EACH
def test_a_failed_answer_that_is_large_or_slow_is_closed_and_does_not_hold_up_the_next_attempt(
    tmp_path: Path, server: FaultServer, call: Surface, answer: Answer
) -> None:
    """Whether headrace retries or the caller: 64 KiB, half a second, and on with it.

    failures.md 15.
    """
    with running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.next(answer)
        with ends_within(0.5):  # not 20, and not 1000
            response = call(hr, server.url, stream=True)
        with response:
            assert response.headrace.reason.value == "success"
            assert [one.outcome for one in response.headrace.attempts] == ["5xx", "2xx"]
            assert (getattr(response, "raw", None) or response).read() == b"ok"
        assert server.connections == 2
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


@ON_EACH
def test_a_small_one_is_read_and_its_connection_kept(
    tmp_path: Path, server: FaultServer, call: Surface
) -> None:
    with running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.next(Answer(503, body=b"busy" * 1000), Answer(503, body=b"busy", chunked=True))
        with call(hr, server.url, stream=True) as response:
            assert len(response.headrace.attempts) == 3
            assert (getattr(response, "raw", None) or response).read() == b"ok"
        assert server.connections == 1


@ON_EACH
def test_its_limits_are_gone_with_it(tmp_path: Path, server: FaultServer, call: Surface) -> None:
    """The half second is the drain's, not the next answer's."""
    with running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.next(Answer(503, body=b"busy"), Answer(delay_s=0.7))
        with call(hr, server.url, stream=True) as response:
            assert [one.outcome for one in response.headrace.attempts] == ["5xx", "2xx"]
        assert server.connections == 1


def test_the_connection_keeps_the_limits_it_had(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, RULES)) as hr:
        response = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
        sock = response._connection.sock  # type: ignore[union-attr]
        limit_s = sock.gettimeout()
        response.drain_conn()
        assert (sock.gettimeout(), sock.fileno() >= 0) == (limit_s, True)


@across(BY_ADAPTER, BY_CALL)
def test_our_own_impatience_with_a_dropped_answer_is_not_held_against_the_upstream(
    tmp_path: Path, server: FaultServer, call: Surface
) -> None:
    body = RULES + "    circuit_breaker: {failure_on: [network, 500], blame_after: 100ms}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.next(Answer(503, body=b"x" * 9, drip_body_s=20.0))
        with call(hr, server.url, stream=True) as response:
            assert [one.verdict for one in response.headrace.attempts] == ["success", "success"]
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["failures"] == 0


ENDLESS = [
    pytest.param(
        Endless(
            b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n",
            pause_s=0.02,
        ),
        id="in chunks",
    ),
    pytest.param(
        Endless(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 999999\r\n\r\n", b"x"),
        id="by length",
    ),
    pytest.param(Endless(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b"x"), id="without an end"),
]
SHORT = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n    timeouts: {deadline: 30s, attempt: 1s, read: 1s}\n"


@pytest.mark.parametrize("answer", ENDLESS)
@across(REQUESTS, MANAGER)
def test_the_body_of_a_failed_answer_that_would_be_read_whole_is_cut_with_its_attempt(
    tmp_path: Path, server: FaultServer, call: Surface, answer: Endless
) -> None:
    """Where the caller gets the body with the answer, reading it is part of the attempt, and as short.

    failures.md 15.
    """
    with running(tmp_path, rules(server.url, SHORT, more=INSTALL)) as hr:
        server.next(answer)
        with ends_within(1.0):
            response = call(hr, server.url)
        assert [one.outcome for one in response.headrace.attempts] == ["timeout", "2xx"]
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


@pytest.mark.parametrize("answer", ENDLESS)
def test_during_the_tries_of_a_session_it_is_cut_as_well(
    tmp_path: Path, server: FaultServer, answer: Endless
) -> None:
    """By urllib3's rules a 503 that was cut is a 503: its status, not the broken body, makes the next try."""
    with running(tmp_path, rules(server.url, SHORT)), requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=OWN))
        server.next(answer)
        with ends_within(1.0):
            response = session.get(server.url)
        assert response.status_code == 200
        assert [one.outcome for one in response.headrace.attempts] == ["timeout", "2xx"]


def test_an_answer_of_a_stand_in_that_cannot_be_drained_is_closed(tmp_path: Path) -> None:
    """A mock of `HTTPAdapter.send` need not give urllib3's responses; a retry must not fail for that."""

    def send(adapter: HTTPAdapter, request: Any, **_: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = 503 if next(turns) == 0 else 200
        response.raw, response.request, response.url = io.BytesIO(b"abc"), request, request.url
        return response

    turns = itertools.count()
    # Undone before the instance is closed, which would otherwise find its patch gone and the undoing bring it back.
    with running(tmp_path, rules("http://127.0.0.1:1", RULES)) as hr, pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPAdapter, "send", send)
        response = hr.upstream("billing").get("/", stream=True)
        assert [one.status for one in response.headrace.attempts] == [503, 200]
