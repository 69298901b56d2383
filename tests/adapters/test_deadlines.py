"""Time is up when it is up, whatever the peer does: on real sockets, on both surfaces."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import headrace
from headrace.policy.breaker.permit import Permit, Verdict
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.stock.connection import GovernedHTTPSConnection
from support.faultserver import (
    Answer,
    Endless,
    FaultServer,
    Raw,
    Reply,
    server_context,
)
from support.governed import rules, running
from support.surfaces import HANDLE, URLOPEN, status_of
from support.waiting import ends_within, in_each_pause, wait_until

ATTEMPT_S = 0.3  # how punctual its end really is, is measured by tests/bench/deadlines.py
ONE_ATTEMPT = (
    f"    timeouts: {{attempt: {ATTEMPT_S * 1000:g}ms, deadline: 60s}}\n    retry: {{max_attempts: 1}}\n"
)

Get = Callable[..., Any]
TIMED_OUT = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)

ENDLESS_CHUNKS = Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")
FAILING_CHUNKS = replace(ENDLESS_CHUNKS, first=ENDLESS_CHUNKS.first.replace(b"200 OK", b"503 No"))
ENDLESS_TO_THE_END_OF_THE_CONNECTION = Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x")
FAILING_TO_THE_END_OF_THE_CONNECTION = Endless(b"HTTP/1.1 503 No\r\n\r\n", b"x")
ENDLESS_HEADERS = Endless(b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n", pause_s=0.05)
ENDLESS_STATUS_LINE = Endless(b"HTTP/1.1 200 ", b"O")

NEVER_SILENT = [
    pytest.param(Answer(body=b"whole", drip_head_s=0.05), id="a head, byte by byte"),
    pytest.param(
        Answer(503, body=b"x" * 1000, drip_body_s=0.05), id="a failed body of known length, byte by byte"
    ),
    pytest.param(FAILING_CHUNKS, id="failed chunks without end"),
    pytest.param(FAILING_TO_THE_END_OF_THE_CONNECTION, id="a failed body that ends with the connection"),
    pytest.param(ENDLESS_HEADERS, id="headers without end"),
    pytest.param(ENDLESS_STATUS_LINE, id="a status line without end"),
    pytest.param(Endless(), id="interim responses without end"),
]


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> tuple[Any, str]:
    """A context for the server, and the rules by which it is trusted."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return server_context(authority), f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n"


@pytest.fixture(params=[HANDLE, URLOPEN], ids=repr)
def get(request: pytest.FixtureRequest) -> Callable[[headrace.Headrace], Get]:
    """Makes a call by the surface at hand; its keywords are those of `requests.get`."""

    return lambda hr: functools.partial(request.param, hr, "")


@pytest.mark.parametrize("behaviour", NEVER_SILENT)
def test_a_peer_that_is_never_silent_is_cut_off_at_the_end_of_the_attempt(
    tmp_path: Path, get: Callable[..., Get], behaviour: Reply
) -> None:
    """failures.md 27."""
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE_ATTEMPT)) as hr:
        server.always(behaviour)
        call = get(hr)
        with ends_within(ATTEMPT_S, not_before=ATTEMPT_S), pytest.raises(TIMED_OUT) as caught:
            call()

        (attempt,) = caught.value.headrace.attempts  # type: ignore[union-attr]
        assert attempt.outcome == "timeout"
        assert any("cut off" in str(one) for one in (caught.value, *caught.value.args))
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0
        server.always(Answer())
        warm_up(call)


def warm_up(call: Get) -> None:
    """Have it answered: the time of one attempt is short, and a busy machine may need several. Blocks."""

    def is_answered() -> bool:
        try:
            return status_of(call()) == 200
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            return False

    wait_until(is_answered)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Answer(503, body=b"x" * 1000, drip_body_s=0.05), id="a record for every byte"),
        pytest.param(FAILING_TO_THE_END_OF_THE_CONNECTION, id="a failed body that ends with the connection"),
        pytest.param(Answer(drip_head_s=0.05), id="a head"),
    ],
)
def test_over_tls_it_is_the_same(
    tmp_path: Path, get: Callable[..., Get], tls: tuple[Any, str], behaviour: Reply
) -> None:
    """failures.md 27."""
    context, trust = tls
    with (
        FaultServer(tls=context) as server,
        running(tmp_path, rules(server.url, trust + ONE_ATTEMPT)) as hr,
    ):
        warm_up(get(hr))
        server.always(behaviour)
        with ends_within(ATTEMPT_S, not_before=ATTEMPT_S), pytest.raises(TIMED_OUT) as caught:
            get(hr)()
        assert caught.value.headrace.attempts[0].outcome == "timeout"  # type: ignore[union-attr]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_peer_that_reads_our_body_sip_by_sip_is_cut_off(
    tmp_path: Path, tls: tuple[Any, str], secure: bool
) -> None:
    """failures.md 27."""
    context, trust = tls if secure else (None, "")
    with (
        FaultServer(tls=context) as server,
        running(tmp_path, rules(server.url, trust + ONE_ATTEMPT)) as hr,
    ):
        server.sip_s = 0.05
        with (
            ends_within(ATTEMPT_S, not_before=ATTEMPT_S),
            pytest.raises(requests.ReadTimeout) as caught,
        ):
            hr.upstream("billing").post("/", data=b"x" * 20_000_000)
        (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert (attempt.outcome, attempt.status) == ("timeout", None)


def test_a_chain_of_retries_ends_with_the_deadline(tmp_path: Path, get: Callable[..., Get]) -> None:
    """failures.md 27."""
    # Half an attempt more than seven of them, with pauses of next to nothing: one that ends just before the deadline,
    # so that the pause after it does not fit, leaves its own error.
    body = (
        "    timeouts: {attempt: 200ms, deadline: 1550ms}\n"
        "    retry: {max_attempts: 50, backoff: {base: 1ms, max: 1ms}}\n"
        "    circuit_breaker: {mode: disabled}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(ENDLESS_HEADERS)
        with ends_within(1.55, not_before=1.2), pytest.raises(headrace.DeadlineExceeded) as caught:
            get(hr)()
        assert isinstance(caught.value, (requests.Timeout, urllib3.exceptions.TimeoutError))
        record = caught.value.headrace  # type: ignore[attr-defined]
        assert len(record.attempts) >= 2
        assert {one.outcome for one in record.attempts} == {"timeout"}
        assert sum("timeout after" in note for note in caught.value.__notes__) == len(record.attempts)


def test_the_deadline_that_cuts_the_only_attempt_is_what_is_raised(
    tmp_path: Path, get: Callable[..., Get]
) -> None:
    body = "    timeouts: {deadline: 300ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(ENDLESS_CHUNKS)
        with ends_within(0.3), pytest.raises(headrace.DeadlineExceeded) as caught:
            get(hr)()
        assert isinstance(caught.value.__cause__, TIMED_OUT)


@pytest.mark.parametrize("behaviour", [FAILING_TO_THE_END_OF_THE_CONNECTION, ENDLESS_HEADERS])
def test_a_cut_never_passes_for_an_answer_however_often_it_falls_within_one(
    tmp_path: Path, get: Callable[..., Get], behaviour: Endless
) -> None:
    """http.client takes the end of the connection for the end of such a body, and of a head."""
    body = "    timeouts: {attempt: 150ms}\n    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(replace(behaviour, pause_s=0.005))
        for _ in range(12):
            with pytest.raises(TIMED_OUT):
                get(hr)()
        attempts = hr.status()["upstreams"]["billing"]["attempts"]
        assert attempts == {"timeout": 12}


def test_a_streamed_call_is_bounded_to_its_head(tmp_path: Path, get: Callable[..., Get]) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE_ATTEMPT)) as hr:
        server.always(ENDLESS_HEADERS)
        with ends_within(ATTEMPT_S), pytest.raises(TIMED_OUT):
            get(hr)(stream=True)


def test_a_streamed_body_goes_on_for_as_long_as_it_is_not_silent(
    tmp_path: Path, get: Callable[..., Get]
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE_ATTEMPT)) as hr:
        server.always(Answer(body=b"x" * 20, drip_body_s=0.05))
        with ends_within(1.0, not_before=2 * ATTEMPT_S):
            answer = get(hr)(stream=True)
            raw = getattr(answer, "raw", answer)
            assert raw.read() == b"x" * 20


def test_a_failed_answer_that_drips_is_given_up_before_the_next_attempt(
    tmp_path: Path, get: Callable[..., Get]
) -> None:
    body = (
        "    timeouts: {attempt: 30s, read: 30s, deadline: 60s}\n"
        "    retry: {max_attempts: 2, backoff: {base: 1ms, max: 1ms}}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        head = b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\nx"
        server.next(Endless(head, b"", pause_s=0.1))  # then silence: read would allow half a minute of it
        with ends_within(0.5):
            answer = get(hr)(stream=True)
        assert status_of(answer) == 200
        answer.close()


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "cut off"])
def test_a_failed_answer_is_kept_only_if_all_of_it_came(
    tmp_path: Path, get: Callable[..., Get], monkeypatch: pytest.MonkeyPatch, is_whole: bool
) -> None:
    """One that ends with the connection looks whole when we have ended it."""
    body = "    retry: {max_attempts: 2}\n    circuit_breaker: {consecutive_failures: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.at("/drips", Answer(503) if is_whole else Endless(b"HTTP/1.1 503 No\r\n\r\n", b"x"))
        circuit = hr.snapshot.upstream("billing").learned.circuit

        def another_call_fails() -> None:  # it opens the circuit, and no attempt follows
            another_call = circuit.acquire(time.monotonic())
            assert isinstance(another_call, Permit)
            circuit.record(another_call, Verdict.FAILURE, time.monotonic())

        pauses = in_each_pause(monkeypatch, another_call_fails)  # the answer was set aside before
        if is_whole:
            with contextlib.closing(get(hr)(path="/drips", stream=True)) as answer:
                assert status_of(answer) == 503
        else:
            with pytest.raises(headrace.HeadraceError):
                get(hr)(path="/drips", stream=True).close()
        assert len(pauses) == server.first_lines == 1


def test_a_transparent_resend_has_what_is_left_of_the_attempt(
    tmp_path: Path, get: Callable[..., Get]
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE_ATTEMPT)) as hr:
        warm_up(get(hr))
        server.next(Raw(b"", then="fin"), ENDLESS_HEADERS)
        with ends_within(ATTEMPT_S), pytest.raises(TIMED_OUT) as caught:
            get(hr)()
        (attempt,) = caught.value.headrace.attempts  # type: ignore[union-attr]
        assert (attempt.outcome, attempt.resent) == ("timeout", True)


def test_a_lease_taken_while_the_attempt_was_cut_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock's own loop takes a second one within an attempt; the deadline thread knew the first, which had ended."""
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE_ATTEMPT)) as hr:
        hr.upstream("billing").get("/")  # the idle connection: one that connects looks for itself
        upstream = hr.snapshot.upstream("billing")
        pool = upstream.endpoint.pool
        attempt = Attempt(pool, None, None, (), upstream.plan.timeouts, time.monotonic(), streamed=False)
        acquire = pool.leases.acquire

        def cut_meanwhile(*args: Any, **kw: Any) -> Any:
            attempt.cut = True
            return acquire(*args, **kw)

        monkeypatch.setattr(pool.leases, "acquire", cut_meanwhile)
        token = current_attempt.set(attempt)
        try:
            with pytest.raises(urllib3.exceptions.EmptyPoolError):
                pool.urlopen("GET", "/", retries=False)
        finally:
            current_attempt.reset(token)
        assert server.first_lines == 1
        assert (pool.leases.view().inuse, pool.leases.view().idle) == (0, 1)


def test_each_hop_of_a_redirect_is_a_call_with_limits_of_its_own(tmp_path: Path) -> None:
    body = "    timeouts: {attempt: 1s, deadline: 60s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.at("/from", Answer(302, headers=(("Location", "/to"),), delay_s=0.3))
        server.at("/to", ENDLESS_HEADERS)
        with (
            ends_within(1.3, not_before=1.3),
            pytest.raises(requests.ReadTimeout),
        ):
            hr.upstream("billing").get("/from")


def test_waiting_for_a_connection_counts_for_the_deadline(tmp_path: Path, get: Callable[..., Get]) -> None:
    body = (
        "    timeouts: {deadline: 3s, acquire: 2500ms}\n"
        "    pool: {max_connections: 1}\n    retry: {max_attempts: 1}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.next(Answer(delay_s=1.0))
        holder = threading.Thread(target=get(hr))
        holder.start()
        server.wait_for(lambda: server.first_lines == 1)
        server.always(ENDLESS_CHUNKS)
        with ends_within(3.0, not_before=2.9), pytest.raises(headrace.DeadlineExceeded) as caught:
            get(hr)()
        holder.join()
        (attempt,) = caught.value.attempts
        # Where next to nothing was left for it, the peer's pause between two chunks is longer than that.
        (limit_s,) = re.findall(r"(?:attempt|read timeout)=([0-9.]+)", str(caught.value.__cause__))
        assert attempt.wait_s > 0.1
        assert 0.0 < float(limit_s) <= 3.0 - attempt.wait_s + 0.01


def test_where_the_rules_are_only_observed_nothing_is_cut(tmp_path: Path, get: Callable[..., Get]) -> None:
    body = "    mode: observe\n    timeouts: {attempt: 100ms, deadline: 200ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(body=b"x" * 10, drip_body_s=0.05))
        answer = get(hr)()
        assert (answer.content if isinstance(answer, requests.Response) else answer.data) == b"x" * 10
        observed = hr.status()["upstreams"]["billing"]["observed"]
        # When the head came of what urllib3 reads whole is not known: its end counts, and `attempt` would be retried.
        assert observed in ({"timed_out": 1}, {"timed_out": 1, "retried": 1})
        assert isinstance(answer, urllib3.BaseHTTPResponse) or "retried" not in observed


def test_the_neighbours_of_what_is_cut_go_on(tmp_path: Path, get: Callable[..., Get]) -> None:
    """Sockets are shut while others are leased anew all the time."""
    body = (
        "    timeouts: {read: 14s}\n    pool: {max_connections: 4}\n    retry: {max_attempts: 1}\n"
        "    circuit_breaker: {mode: disabled}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.at("/drip", FAILING_CHUNKS)
        call, enough = get(hr), threading.Event()
        failures: list[BaseException] = []

        def neighbour() -> None:
            while not enough.is_set():
                try:
                    assert status_of(call()) == 200
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=neighbour) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                with pytest.raises(TIMED_OUT):
                    call(
                        path="/drip", timeout=urllib3.Timeout(total=0.3)
                    )  # the neighbours have the rule's time
        finally:
            enough.set()
            for thread in threads:
                thread.join()
        assert failures == []


# Connecting


def test_a_handshake_has_a_limit_of_its_own(
    tmp_path: Path, get: Callable[..., Get], tls: tuple[Any, str]
) -> None:
    context, trust = tls
    body = trust + "    timeouts: {connect: 2s, tls_handshake: 200ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        server.on_accept = "silence"
        with (
            ends_within(0.2, not_before=0.2),
            pytest.raises((requests.Timeout, urllib3.exceptions.TimeoutError)) as caught,
        ):
            get(hr)()
        (attempt,) = caught.value.headrace.attempts  # type: ignore[union-attr]
        assert attempt.outcome == "tls_failure"


def test_a_handshake_that_drips_is_cut_off(
    tmp_path: Path, get: Callable[..., Get], tls: tuple[Any, str]
) -> None:
    """failures.md 27."""
    context, trust = tls
    body = trust + "    timeouts: {tls_handshake: 200ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        server.on_accept = "drip_tls"
        with (
            ends_within(0.2, not_before=0.2),
            pytest.raises((requests.Timeout, urllib3.exceptions.TimeoutError)) as caught,
        ):
            get(hr)()
        assert caught.value.headrace.attempts[0].outcome == "tls_failure"  # type: ignore[union-attr]


def test_tcp_and_handshake_together_take_no_longer_than_the_attempt(
    tmp_path: Path, get: Callable[..., Get], tls: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trust = tls
    body = trust + "    timeouts: {attempt: 2s}\n    retry: {max_attempts: 1}\n"
    look_up = socket.getaddrinfo
    connect, handshakes_s = GovernedHTTPSConnection._new_conn, []

    def connected(conn: GovernedHTTPSConnection) -> socket.socket:
        sock = connect(conn)
        handshakes_s.append(sock.gettimeout())
        return sock

    def slow(*args: Any, **kw: Any) -> Any:
        time.sleep(0.5)
        return look_up(*args, **kw)

    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        monkeypatch.setattr(GovernedHTTPSConnection, "_new_conn", connected)
        server.on_accept = "silence"
        with (
            ends_within(2.0, not_before=1.95),
            pytest.raises((requests.Timeout, urllib3.exceptions.TimeoutError)),
        ):
            get(hr)()
        (limit_s,) = handshakes_s
        assert 0.0 < limit_s <= 1.5


def test_nothing_is_sent_once_the_time_is_up(
    tmp_path: Path, get: Callable[..., Get], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up that somebody has put in place of the system's cannot be cut; what comes after it is not begun."""
    look_up, body = socket.getaddrinfo, "    timeouts: {attempt: 1s}\n    retry: {max_attempts: 1}\n"

    def slow(*args: Any, **kw: Any) -> Any:
        time.sleep(1.1)
        return look_up(*args, **kw)

    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        with pytest.raises((requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)) as caught:
            get(hr)()
        assert caught.value.headrace.attempts[0].outcome == "resolve_timeout"  # type: ignore[union-attr]
        assert server.first_lines == 0


# Sending


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
def test_a_stall_while_sending_has_a_limit_of_its_own(
    tmp_path: Path, tls: tuple[Any, str], secure: bool, reused: bool
) -> None:
    context, trust = tls if secure else (None, "")
    body = trust + "    timeouts: {write: 200ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        handle = hr.upstream("billing")
        if reused:
            handle.get("/")
        server.sip_s = 60.0
        with ends_within(0.2, not_before=0.2), pytest.raises(requests.ReadTimeout) as caught:
            handle.post("/", data=b"x" * 20_000_000)
        assert "Write timed out. (write timeout=0.2)" in str(caught.value)
        (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert attempt.outcome == "timeout"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_large_body_over_a_slow_line_that_moves_is_no_stall(
    tmp_path: Path, tls: tuple[Any, str], secure: bool
) -> None:
    """Stock's limit is on the whole of it."""
    context, trust = tls if secure else (None, "")
    body = (
        trust
        + "    timeouts: {write: 1s, attempt: 60s, read: 60s, deadline: 60s}\n    retry: {max_attempts: 1}\n"
    )
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        server.sip_s, server.sip_bytes = 0.005, 16 * 1024
        sent = bytes(range(256)) * 32_000
        with ends_within(4.0, not_before=1.5):
            assert hr.upstream("billing").post("/", data=sent).status_code == 200
        assert server.requests[-1].body == sent


@pytest.mark.parametrize(
    "body",
    [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), [b"by", b"tes"], "bytes"],
    ids=lambda one: type(one).__name__,
)
def test_bodies_of_every_kind_arrive_as_they_are(tmp_path: Path, body: Any) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        hr.upstream("billing").urlopen("POST", "/", body=body)
        assert server.requests[-1].body == b"bytes"


# A call that says it itself


def test_an_explicit_timeout_bounds_connecting_handshake_and_silence_up_or_down(
    tmp_path: Path, get: Callable[..., Get], tls: tuple[Any, str]
) -> None:
    context, trust = tls
    body = trust + "    retry: {max_attempts: 1}\n"
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)) as hr:
        server.on_accept = "silence"
        timeout = urllib3.Timeout(connect=0.2, read=30.0)
        with ends_within(0.2), pytest.raises((requests.Timeout, urllib3.exceptions.TimeoutError)):
            get(hr)(timeout=timeout)


def test_the_thread_is_one_daemon_that_ends_with_the_last_instance(tmp_path: Path) -> None:
    def threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "headrace-deadline"]

    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        assert threads() == []
        hr.upstream("billing").get("/")
        (thread,) = threads()
        assert thread.daemon
        hr.upstream("billing").get("/")
        assert threads() == [thread]
    wait_until(lambda: threads() == [])
