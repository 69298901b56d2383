"""What each attempt of a call says about itself: request id, X-Retry-Seq, idempotency key. Real sockets."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.utils import default_headers

from headrace.middleware.wsgi import WSGIMiddleware
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running
from support.surfaces import (
    INSTALL,
    SESSION,
    SURFACES,
    Surface,
    across,
    body_of,
    read,
    retrying_adapter,
    retrying_manager,
)
from support.waiting import wait_until

pytestmark = pytest.mark.both_parsers

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


def by_an_urllib3_under_requests(hr: object, method: str, base_url: str, path: str, **kw: Any) -> Any:
    """requests is not governed itself; the urllib3 below it is."""
    return requests.request(method, base_url + path, **kw)


UNDER_REQUESTS = Surface("under requests", "requests", by_an_urllib3_under_requests)
FILES = {
    "User-Agent": "shop/7",
    "Accept": "application/json",
    "Accept-Encoding": "br;q=0",
    "Connection": "close",
}
OF_THE_FILE = "".join(f"      {name.lower()}: {value!r}\n" for name, value in FILES.items())


def installed(call: Surface) -> str:
    return "install: {urllib3: true, requests: false}\n" if call is UNDER_REQUESTS else INSTALL


def sent(server: FaultServer) -> dict[str, str | None]:
    request = server.requests[-1]
    assert len({name.lower() for name, _ in request.headers}) == len(request.headers), (
        "a header was sent twice"
    )
    return {name: request.header(name) for name in FILES}


EVERYWHERE = across(*SURFACES, SESSION, UNDER_REQUESTS, retrying_adapter(2), retrying_manager(2))


@EVERYWHERE
def test_what_the_library_sends_by_itself_gives_way_to_the_file(tmp_path: Path, call: Surface) -> None:
    """failures.md 76."""
    body = f"    headers:\n{OF_THE_FILE}"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=installed(call))) as hr:
        call(hr, server.url)
        assert sent(server) == FILES
        call(hr, server.url, "POST", data=b"x", stream=True)
        assert sent(server) == FILES


@EVERYWHERE
@pytest.mark.parametrize("own", ["the caller's", None], ids=["another value", "the library's own words"])
def test_what_a_call_sets_itself_wins_over_the_file(tmp_path: Path, call: Surface, own: str | None) -> None:
    """A caller who writes what the library would have sent means it.

    failures.md 76.
    """
    theirs = {name: own or "".join(list(value)) for name, value in default_headers().items()}
    if own is None:
        theirs["User-Agent"] = "another"  # its text is all that the library's own can be told by
    body = f"    headers:\n{OF_THE_FILE}"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=installed(call))) as hr:
        call(hr, server.url, headers=theirs)
        assert sent(server) == theirs


def test_what_a_session_sets_itself_wins_over_the_file(tmp_path: Path) -> None:
    """failures.md 76."""
    body = f"    headers:\n{OF_THE_FILE}"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)), requests.Session() as session:
        session.headers.update({"User-Agent": "mine", "accept": "*/*"})
        session.get(server.url)
        assert sent(server) == {**FILES, "User-Agent": "mine", "Accept": "*/*"}
        assert copy.deepcopy(session).get(server.url).status_code == 200
        assert sent(server) == {**FILES, "User-Agent": "mine", "Accept": "*/*"}


def test_a_fallback_sends_the_headers_of_its_own_rule(tmp_path: Path) -> None:
    """failures.md 76."""
    with FaultServer() as server:
        body = (
            "    circuit_breaker: {mode: forced_open}\n    fallback: {upstream: spare}\n"
            f"  spare:\n    base_url: {server.url}\n    headers:\n{OF_THE_FILE}"
        )
        with running(tmp_path, rules("http://127.0.0.1:9", body)):
            requests.get("http://127.0.0.1:9/a", headers={"Accept": "text/csv"})
        assert sent(server) == {**FILES, "Accept": "text/csv"}


def test_a_connection_that_was_to_be_closed_is_not_used_again(tmp_path: Path, call: Surface) -> None:
    """By the file or by the call. The server closes after its answer and need not say so (RFC 9112 §9.6)."""
    with FaultServer() as server, running(tmp_path, rules(server.url, more=INSTALL)) as hr:
        for own in ({"Connection": "close"}, {"connection": "Close"}):
            for stream in (False, True):
                answer = call(hr, server.url, "POST", data=b"x", headers=own, stream=stream)
                assert (read(answer) if stream else body_of(answer)) == b"ok"
                assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 0
        assert {request.nth for request in server.requests} == {1}
        call(hr, server.url, "POST", data=b"x")
        assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 1
