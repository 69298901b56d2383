"""What each attempt of a call says about itself: request id, X-Retry-Seq, idempotency key. Real sockets."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from headrace.middleware.wsgi import WSGIMiddleware
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, Surface
from support.waiting import wait_until

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}%s}\n"
KEYED = FAST % ", idempotency_key: {}"


def seen(server: FaultServer, name: str) -> list[str | None]:
    return [request.header(name) for request in server.requests]


def test_the_sequence_counts_earlier_attempts_that_may_have_arrived(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST % "", more=INSTALL)) as hr:
        server.next(Answer(503), Break(at="head"), Answer(200))
        call(hr, server.url, "GET")

        assert seen(server, "X-Retry-Seq") == [None, "1", "2"]
        assert len(set(seen(server, "X-Request-ID"))) == 1


def test_an_attempt_that_was_never_sent_does_not_raise_the_sequence(tmp_path: Path, call: Surface) -> None:
    slow = "    retry: {max_attempts: 25, backoff: {base: 200ms, multiplier: 1}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, slow, more=INSTALL)) as hr:
        server.refuse()

        def listen_in_the_end() -> None:
            def leases() -> int:
                return sum(hr.status()["upstreams"]["billing"]["pool"]["acquires"].values())

            wait_until(lambda: leases() >= 2)  # so the first attempt has been refused
            server.listen()

        thread = threading.Thread(target=listen_in_the_end)
        thread.start()
        response = call(hr, server.url, "GET")
        thread.join()

        assert len(response.headrace.attempts) > 1
        assert seen(server, "X-Retry-Seq") == [None]


def test_a_resend_over_a_fresh_connection_is_no_attempt(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST % "", more=INSTALL)) as hr:
        call(hr, server.url, "GET")
        server.next(Break(at="request"), Answer(200))
        response = call(hr, server.url, "GET")

        assert [one.resent for one in response.headrace.attempts] == [True]
        assert seen(server, "X-Retry-Seq") == [None, None, None]


def test_the_sequence_is_kept_from_an_upstream_that_should_not_see_it(tmp_path: Path) -> None:
    body = FAST % "" + "    propagate: {retry_sequence: false}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.next(Answer(503), Answer(200))
        requests.get(server.url)

        assert seen(server, "X-Retry-Seq") == [None, None]


def test_a_key_is_made_once_per_call_and_lets_post_be_retried(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, KEYED, more=INSTALL)) as hr:
        server.next(Answer(503), Break(at="head"), Answer(201), Answer(201))
        assert len(call(hr, server.url, "POST").headrace.attempts) == 3
        call(hr, server.url, "POST")

        keys = seen(server, "Idempotency-Key")
        assert keys[0]
        assert keys[:3] == [keys[0]] * 3
        assert keys[3] not in (None, keys[0])


def test_no_key_is_made_for_methods_that_need_none_or_are_not_named(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, KEYED, more=INSTALL)) as hr:
        server.next(Answer(200), Answer(503))
        call(hr, server.url, "GET")
        assert len(call(hr, server.url, "PATCH").headrace.attempts) == 1

        assert seen(server, "Idempotency-Key") == [None, None]


@pytest.mark.parametrize("body", [pytest.param(FAST % "", id="no rule"), pytest.param(KEYED, id="rule")])
def test_a_key_of_the_callers_own_is_kept_and_counts(tmp_path: Path, call: Surface, body: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.next(Answer(503), Answer(201))
        call(hr, server.url, "POST", headers={"idempotency-key": "mine"})

        assert seen(server, "Idempotency-Key") == ["mine", "mine"]


def test_the_header_of_the_key_is_the_one_the_file_names(tmp_path: Path) -> None:
    body = FAST % ", idempotency_key: {header: X-Key, methods: [POST, PATCH]}"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.next(Answer(503), Answer(200), Answer(503))
        requests.patch(server.url)
        requests.delete(server.url, headers={"Idempotency-Key": "not the header of this upstream"})

        keys = seen(server, "X-Key")
        assert keys[0]
        assert keys == [keys[0], keys[0], None]


def test_all_outbound_calls_of_an_inbound_request_share_its_retries(tmp_path: Path) -> None:
    service = "service: {max_retries_per_request: 3}\n"
    body = FAST % "" + "    circuit_breaker: {mode: disabled}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=service)) as hr:
        server.always(Answer(503))
        reasons: list[str] = []

        def app(environ: Any, start_response: Any) -> list[bytes]:
            reasons.extend(requests.get(server.url).headrace.reason.value for _ in range(3))
            start_response("200 OK", [])
            return [b""]

        for _ in range(2):
            WSGIMiddleware(app, headrace=hr)({"REQUEST_METHOD": "GET"}, lambda *_: None)

        # 2 retries, the third of the request, none; and the next inbound request has its own three.
        assert reasons[:3] == ["attempts", "request_retries", "request_retries"]
        assert [request.header("X-Retry-Seq") for request in server.requests][:6] == [
            None,
            "1",
            "2",
            None,
            "1",
            None,
        ]
        denied = hr.status()["upstreams"]["billing"]["retry"]["denied"]
        assert denied.get("request_retries", 0) >= 2
