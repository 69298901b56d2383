"""Calls of a client that has left: on the wire, waiting, sleeping, connecting, streaming. Real sockets."""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

import headrace
from headrace.runtime.inbound import inbound_var
from headrace.transport.stock import connection as urllib3_connection
from support.faultserver import Answer, FaultServer, Silence
from support.governed import reason_of, rules, running
from support.leaving import ENOUGH_S, PATIENT, Request, assert_cancelled, assert_pool_is_whole
from support.surfaces import INSTALL, REQUESTS, Surface, across, retrying_adapter, retrying_manager
from support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def counted(hr: headrace.Headrace) -> tuple[dict[str, int], dict[str, int]]:
    counters = hr.snapshot.upstream("billing").learned.counters
    with counters.lock:
        return dict(counters.requests), dict(counters.attempts)


def test_a_call_on_the_wire_is_cut_and_the_circuit_ignores_it(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    body = PATIENT + "    circuit_breaker: {consecutive_failures: 1}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.next(Silence())
        request = Request(hr)
        outbound = request.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 1)
        request.cancellation.cancel()

        error = outbound.outcome()
        assert_cancelled(error, call)
        (attempt,) = error.attempts
        assert (attempt.outcome, attempt.verdict, attempt.sent) == ("cancelled", "ignored", True)
        assert counted(hr) == ({"cancelled": 1}, {"cancelled": 1})
        assert hr.snapshot.upstream("billing").learned.circuit.state.value == "closed"
        assert_pool_is_whole(hr)
        assert call(hr, server.url) is not None  # somebody else's call: on a connection of its own
        assert len(server.requests) == 2


def test_a_call_on_a_pooled_connection_is_cut_and_not_sent_again(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    """A reset without a byte of an answer on a reused connection is what a transparent resend looks for."""
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        request.within(lambda: call(hr, server.url))
        server.next(Silence())
        outbound = request.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 2)
        request.cancellation.cancel()

        assert_cancelled(outbound.outcome(), call)
        assert len(server.requests) == 2
        assert server.requests[1].nth == 2
        assert_pool_is_whole(hr)


@pytest.mark.parametrize("framed", [True, False])
def test_a_call_during_its_body_is_cut(
    tmp_path: Path, call: Surface, server: FaultServer, framed: bool
) -> None:
    """A body that ends with its connection looks whole when we shut that: half an answer must not be one."""
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        server.next(Answer(body=b"x" * 1000, drip_body_s=0.05, framed=framed, close=not framed))
        request = Request(hr)
        outbound = request.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 1)
        time.sleep(0.2)  # so that some of the body has come, mostly
        request.cancellation.cancel()
        assert_cancelled(outbound.outcome(), call)
        assert_pool_is_whole(hr)


def test_a_call_that_waits_for_a_connection_leaves_the_queue(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    body = PATIENT + "    pool: {max_connections: 1}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        other, leaving = Request(hr), Request(hr)
        server.next(Answer(delay_s=1.0))
        holder = other.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 1)
        waiting = leaving.start(lambda: call(hr, server.url))
        wait_until(lambda: leases.view().waiting == 1, what="a call in the queue")
        leaving.cancellation.cancel()

        assert_cancelled(waiting.outcome(), call)
        assert not isinstance(holder.outcome(), Exception)  # another's call goes on
        assert len(server.requests) == 1
        assert_pool_is_whole(hr)
        assert counted(hr)[0] == {"cancelled": 1, "2xx": 1}


def test_a_call_that_sleeps_before_its_next_attempt_wakes_and_makes_none(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    body = PATIENT + "    retry: {backoff: {base: 50s, max: 50s, multiplier: 1, jitter: none}}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(503))
        request = Request(hr)
        outbound = request.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 1)
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        wait_until(lambda: leases.view().inuse == 0, what="the end of the attempt")
        request.cancellation.cancel()  # it sleeps by now, or is about to

        error = outbound.outcome()
        assert_cancelled(error, call)
        assert [attempt.status for attempt in error.attempts] == [503]
        assert len(server.requests) == 1
        assert counted(hr) == ({"cancelled": 1}, {"5xx": 1})
        assert_pool_is_whole(hr)


def test_a_call_made_after_the_client_has_left_is_not_sent(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        request.cancellation.cancel()
        error = request.start(lambda: call(hr, server.url)).outcome()
        assert_cancelled(error, call)
        assert error.attempts == ()
        assert server.connections == 0
        assert counted(hr) == ({"cancelled": 1}, {})


def test_a_failed_attempt_is_not_followed_by_another(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases

        def leave(_: Any) -> Answer:
            request.cancellation.cancel()
            # Its connection is shut; the answer below reaches nobody.
            return Answer(503)

        server.always(leave)
        error = request.start(lambda: call(hr, server.url)).outcome()
        assert_cancelled(error, call)
        assert len(server.requests) == 1
        assert leases.view().inuse == 0


def test_several_calls_at_once_are_cut_together(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, PATIENT)) as hr:
        server.always(Silence())
        request = Request(hr)
        outbounds = [request.start(lambda: REQUESTS(hr, server.url)) for _ in range(8)]
        server.wait_for(lambda: len(server.requests) == 8)
        request.cancellation.cancel()
        for outbound in outbounds:
            assert_cancelled(outbound.outcome(), REQUESTS)
        assert_pool_is_whole(hr)


@pytest.mark.parametrize("framed", [True, False])
def test_a_streamed_body_breaks_off(tmp_path: Path, server: FaultServer, framed: bool) -> None:
    """And is not held against the upstream, as one that breaks off by itself would be."""
    body = PATIENT + "    circuit_breaker: {consecutive_failures: 1}\n"
    with running(tmp_path, rules(server.url, body)) as hr:
        server.next(Answer(body=b"x" * 1000, drip_body_s=0.05, framed=framed, close=not framed))
        request = Request(hr)
        began = threading.Event()

        def stream() -> None:
            with requests.get(f"{server.url}/a", stream=True) as response:
                for _ in response.iter_content(1):
                    began.set()

        outbound = request.start(stream)
        assert began.wait(ENOUGH_S)
        request.cancellation.cancel()
        assert isinstance(outbound.outcome(), requests.RequestException)
        assert_pool_is_whole(hr)
        learned = hr.snapshot.upstream("billing").learned
        assert learned.circuit.state.value == "closed"
        assert learned.counters.broken_bodies == 0


def test_connections_that_were_streamed_to_their_end_belong_to_others_by_then(
    tmp_path: Path, server: FaultServer
) -> None:
    """What a request has read and given back is not shut when its client leaves later."""
    with running(tmp_path, rules(server.url, PATIENT + "    pool: {max_connections: 1}\n")) as hr:
        request, other = Request(hr), Request(hr)

        def stream() -> bytes:
            with requests.get(f"{server.url}/a", stream=True) as response:
                return response.content

        for _ in range(100):  # more than are remembered at once
            assert request.within(stream) == b"ok"
        assert len(request.cancellation._leases) <= 65
        server.next(Answer(delay_s=0.3))
        outbound = other.start(lambda: REQUESTS(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 101)
        request.cancellation.cancel()
        assert outbound.outcome().status_code == 200
        assert server.connections == 1


def test_a_call_that_is_still_connecting_sends_nothing_once_it_is_connected(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: Request
    open_socket = urllib3_connection._open_socket

    def leave_meanwhile(*given: Any) -> Any:
        sock = open_socket(*given)
        request.cancellation.cancel()
        return sock

    monkeypatch.setattr(urllib3_connection, "_open_socket", leave_meanwhile)
    with running(tmp_path, rules(server.url, PATIENT)) as hr:
        request = Request(hr)
        assert_cancelled(request.start(lambda: REQUESTS(hr, server.url)).outcome(), REQUESTS)
        assert_pool_is_whole(hr)
    assert server.first_lines == 0


RETRIES = urllib3.Retry(5, backoff_factor=0)


@across(retrying_adapter(RETRIES), retrying_manager(RETRIES))
def test_a_callers_own_retries_end_too(tmp_path: Path, call: Surface, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        server.always(Silence())
        request = Request(hr)
        outbound = request.start(lambda: call(hr, server.url))
        server.wait_for(lambda: len(server.requests) == 1)
        request.cancellation.cancel()
        assert isinstance(outbound.outcome(), headrace.CallCancelled)
        assert len(server.requests) == 1
        assert_pool_is_whole(hr)


def test_calls_that_were_over_before_are_untouched(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        response = request.start(lambda: call(hr, server.url)).outcome()
        request.cancellation.cancel()
        assert reason_of(response) == "success"
        assert request.cancellation._leases == {}
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().idle == 1


def test_the_refusal_survives_pickling(tmp_path: Path, call: Surface, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        request.cancellation.cancel()
        error = request.start(lambda: call(hr, server.url)).outcome()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.request_id) == (str(error), "mine")


def test_a_call_after_the_deadline_of_its_request_is_not_sent_and_says_since_when(
    tmp_path: Path, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        request = Request(hr)
        request.within(lambda: setattr(inbound_var.get(), "deadline_at", time.monotonic() - 30.0))
        error = request.start(lambda: call(hr, server.url)).outcome()
        assert isinstance(error, headrace.DeadlineExceeded)
        assert error.deadline_s == 0.0
        assert re.search(r"the deadline was over 3\d(\.\d+)? s before the call", str(error))
        assert server.connections == 0
        assert counted(hr) == ({"deadline": 1}, {})
