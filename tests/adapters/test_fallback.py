"""`fallback`: what a call gets that the circuit refuses. Real sockets, both libraries."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

import headrace
from headrace.policy.breaker.circuit import Verdict
from support.faultserver import Answer, Break, FaultServer
from support.governed import reason_of, rules, running
from support.surfaces import INSTALL, REQUESTS, Surface, body_of, status_of
from support.waiting import in_each_pause

QUICK = "    retry: {max_attempts: 1}\n    circuit_breaker: {consecutive_failures: 1}\n"
CANNED = QUICK + '    fallback: {status: 203, headers: {X-From: file}, body: "[1, 2]"}\n'


def open_up(call: Surface, hr: headrace.Headrace, server: FaultServer, below: str = "/v2") -> None:
    server.always(Answer(500))
    assert status_of(call(hr, server.url + below)) == 500
    assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "open"


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_a_refused_call_gets_the_answer_that_the_file_has_written(
    tmp_path: Path, call: Surface, stream: bool
) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2", CANNED, more=INSTALL)) as hr:
        open_up(call, hr, server)
        answer = call(hr, f"{server.url}/v2", stream=stream)

        assert (status_of(answer), answer.headers["X-From"], body_of(answer)) == (203, "file", b"[1, 2]")
        assert len(server.requests) == 1
        record = answer.headrace
        assert (record.upstream, record.fallback_for, record.reason) == ("billing", "billing", "circuit_open")
        assert record.attempts == ()
        status = hr.status()["upstreams"]["billing"]
        assert (status["circuit_breaker"]["refused"], status["circuit_breaker"]["fallbacks"]) == (1, 1)


def test_an_answer_from_the_file_to_head_has_no_body(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2", CANNED, more=INSTALL)) as hr:
        open_up(call, hr, server)
        answer = call(hr, f"{server.url}/v2", method="HEAD")

        assert (status_of(answer), body_of(answer)) == (203, b"")


def test_json_from_the_file_is_read_as_any_other(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2", CANNED)) as hr:
        open_up(REQUESTS, hr, server)
        assert requests.get(f"{server.url}/v2/a").json() == [1, 2]


def with_replica(server: FaultServer, replica: FaultServer, more: str = "") -> str:
    return (
        rules(f"{server.url}/v2", QUICK + "    fallback: {upstream: replica}\n", more=INSTALL)
        + f"  replica:\n    base_url: {replica.url}/ro/v2\n    headers: {{X-Replica: me}}\n{more}"
    )


def test_another_upstream_is_asked_for_the_same_path_by_its_own_rules(tmp_path: Path, call: Surface) -> None:
    with (
        FaultServer() as server,
        FaultServer() as replica,
        running(
            tmp_path, with_replica(server, replica, "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n")
        ) as hr,
    ):
        open_up(call, hr, server)
        replica.next(Answer(503), Answer(200, body=b"old"))
        answer = call(hr, f"{server.url}/v2", path="/invoices/7?full=1")

        assert (status_of(answer), body_of(answer)) == (200, b"old")
        assert [one.target for one in replica.requests] == ["/ro/v2/invoices/7?full=1"] * 2
        assert replica.requests[0].header("Host") == replica.url.removeprefix("http://")
        assert replica.requests[0].header("X-Replica") == "me"
        assert len(server.requests) == 1
        record = answer.headrace
        assert (record.upstream, record.fallback_for, len(record.attempts)) == ("replica", "billing", 2)
        assert hr.status()["upstreams"]["replica"]["requests"] == {"2xx": 1}


def test_a_body_goes_to_the_fallback_and_credentials_do_not(tmp_path: Path, call: Surface) -> None:
    with (
        FaultServer() as server,
        FaultServer() as replica,
        running(tmp_path, with_replica(server, replica)) as hr,
    ):
        open_up(call, hr, server)
        headers = {"Authorization": "Bearer secret", "Cookie": "session=1", "X-Kept": "yes"}
        call(hr, f"{server.url}/v2", method="POST", data=io.BytesIO(b"payload"), headers=headers)

        (got,) = replica.requests
        assert (got.body, got.header("X-Kept")) == (b"payload", "yes")
        assert (got.header("Authorization"), got.header("Cookie")) == (None, None)


def test_when_the_fallback_fails_too_its_error_says_whose_place_it_took(
    tmp_path: Path, call: Surface
) -> None:
    with (
        FaultServer() as server,
        FaultServer() as replica,
        running(tmp_path, with_replica(server, replica, "    retry: {max_attempts: 1}\n")) as hr,
    ):
        open_up(call, hr, server)
        replica.refuse()
        with pytest.raises((requests.ConnectionError, urllib3.exceptions.HTTPError)) as caught:
            call(hr, f"{server.url}/v2")

        assert caught.value.headrace.upstream == "replica"
        assert caught.value.headrace.fallback_for == "billing"


def test_fallbacks_chain_to_an_answer_from_the_file(tmp_path: Path, call: Surface) -> None:
    more = QUICK + '    fallback: {status: 200, body: "in the end"}\n'
    with (
        FaultServer() as server,
        FaultServer() as replica,
        running(tmp_path, with_replica(server, replica, more)) as hr,
    ):
        open_up(call, hr, server)
        replica.always(Answer(500))
        assert status_of(call(hr, f"{server.url}/v2")) == 500  # the replica's own
        assert body_of(call(hr, f"{server.url}/v2")) == b"in the end"


def test_the_deadline_of_the_refused_call_holds_for_its_fallback(tmp_path: Path) -> None:
    """Its time is one: an upstream asked in place of another gets what is left, not a deadline of its own."""
    body = QUICK + "    timeouts: {deadline: 1s}\n    fallback: {upstream: replica}\n"
    with FaultServer() as server, FaultServer() as replica:
        text = rules(f"{server.url}/v2", body) + f"  replica:\n    base_url: {replica.url}\n"
        with running(tmp_path, text) as hr:
            open_up(REQUESTS, hr, server)
            replica.always(Answer(200, delay_s=20.0))
            with pytest.raises(headrace.DeadlineExceeded):
                requests.get(f"{server.url}/v2/a")


def test_credentials_do_not_follow_a_redirect_of_the_fallback_either(tmp_path: Path) -> None:
    """requests keeps them where a redirect stays with the host that gave it: that was not the one they are for."""
    with FaultServer() as server, FaultServer() as replica:
        body = QUICK + f"    fallback: {{upstream: replica}}\n  replica:\n    base_url: {replica.url}\n"
        with running(tmp_path, rules(server.url, body)) as hr:
            open_up(REQUESTS, hr, server, "")
            replica.next(Answer(302, headers=(("Location", "/there"),)), Answer(200))
            answer = requests.get(f"{server.url}/a", headers={"Authorization": "secret", "X-Mine": "1"})
            assert answer.status_code == 200
            assert [one.target for one in replica.requests] == ["/a", "/there"]
            for one in replica.requests:
                assert "authorization" not in {name.lower() for name, _ in one.headers}
                assert ("X-Mine", "1") in one.headers


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
def test_a_cookie_of_the_fallback_is_not_taken_for_one_of_the_refused_upstream(
    tmp_path: Path, stream: bool
) -> None:
    with FaultServer() as server, FaultServer() as replica:
        elsewhere = replica.url.replace("127.0.0.1", "localhost")
        body = QUICK + f"    fallback: {{upstream: replica}}\n  replica:\n    base_url: {elsewhere}\n"
        with running(tmp_path, rules(server.url, body)) as hr, requests.Session() as session:
            open_up(REQUESTS, hr, server, "")
            replica.always(Answer(200, headers=(("Set-Cookie", "of=replica; Path=/"),)))
            answer = session.get(f"{server.url}/a", stream=stream)
            assert (answer.content, answer.cookies["of"]) == (b"ok", "replica")
            assert dict(session.cookies) == {}


@pytest.mark.parametrize(("method", "falls_back"), [("POST", False), ("PUT", True)])
def test_what_only_a_key_allowed_to_repeat_does_not_go_elsewhere_once_it_may_have_arrived(
    tmp_path: Path, call: Surface, monkeypatch: pytest.MonkeyPatch, method: str, falls_back: bool
) -> None:
    """The upstream that has got the key can tell a repetition; another one would do the work a second time."""
    with FaultServer() as server, FaultServer() as replica:
        body = (
            "    retry: {max_attempts: 2, methods: [GET, PUT], idempotency_key: {methods: [POST]}, "
            "backoff: {base: 1ms, max: 1ms}}\n"
            "    circuit_breaker: {consecutive_failures: 1}\n    fallback: {upstream: replica}\n"
            f"  replica:\n    base_url: {replica.url}\n"
        )
        with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
            circuit = hr.snapshot.upstream("billing").learned.circuit

            def another_call_fails() -> None:
                circuit.record(circuit.acquire(time.monotonic()), Verdict.FAILURE, time.monotonic())

            server.always(Break(at="request"))
            pauses = in_each_pause(monkeypatch, another_call_fails)
            if falls_back:
                assert status_of(call(hr, server.url, method=method, data=b"x")) == 200
            else:
                with pytest.raises((requests.ConnectionError, urllib3.exceptions.HTTPError)) as caught:
                    call(hr, server.url, method=method, data=b"x")
                assert reason_of(caught.value) == "circuit_open"
            assert len(pauses) == len(server.requests) == 1
            assert len(replica.requests) == int(falls_back)


def test_observed_calls_get_no_fallback(tmp_path: Path) -> None:
    body = CANNED + "    mode: observe\n"
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2", body)) as hr:
        open_up(REQUESTS, hr, server)
        assert requests.get(f"{server.url}/v2/a").status_code == 500
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["fallbacks"] == 0


@pytest.mark.parametrize("size", [2, 100_000], ids=["kept", "too large to keep"])
def test_an_answer_that_could_be_kept_is_better_than_a_fallback_and_one_that_could_not_is_none(
    tmp_path: Path, call: Surface, size: int
) -> None:
    """A streamed one, of which only so much is read before the pause."""
    body = (
        "    retry: {max_attempts: 2, backoff: {base: 1ms, throttled: 1ms}}\n"
        "    circuit_breaker: {consecutive_failures: 1, open_for: {base: 1ms, jitter: 0}, half_open: {max_probes: 1}}\n"
        "    fallback: {status: 203, body: later}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        circuit = hr.snapshot.upstream("billing").learned.circuit

        def opened_and_probed_by_others(_: Any) -> Answer:
            circuit.record(circuit.acquire(time.monotonic()), Verdict.FAILURE, time.monotonic())
            time.sleep(0.02)
            circuit.acquire(time.monotonic())  # half-open, and its one place is taken
            return Answer(503, body=b"x" * size)

        server.always(opened_and_probed_by_others)
        answer = call(hr, server.url, stream=True)

        assert (status_of(answer), len(body_of(answer))) == ((503, 2) if size == 2 else (203, 5))
        assert len(server.requests) == 1
        assert reason_of(answer) == "circuit_open"


def test_a_path_that_is_not_certain_elsewhere_ends_as_if_there_were_no_fallback(
    tmp_path: Path, call: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is known that gets so far: what is not certain is not below `base_url` either."""
    monkeypatch.setattr("headrace.adapters.fallback.moved", lambda *_, **__: None)
    with (
        FaultServer() as server,
        FaultServer() as replica,
        running(tmp_path, with_replica(server, replica)) as hr,
    ):
        open_up(call, hr, server)
        with pytest.raises(headrace.CircuitOpenError):
            call(hr, f"{server.url}/v2")
        assert replica.requests == []
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["fallbacks"] == 0
