"""A pooled connection that died unnoticed: repeated once on a fresh one where repeating is safe, never elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import requests

from support.faultserver import Answer, Break, FaultServer, on_reuse
from support.governed import rules, running

pytestmark = pytest.mark.both_parsers

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
DIES_ON_REUSE = on_reuse(Break("request", "fin"))


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_dead_reused_connection_costs_neither_an_attempt_nor_the_budget(tmp_path: Path, how: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.always(on_reuse(Break("request", how)))  # type: ignore[arg-type]
        requests.get(server.url)

        response = requests.get(server.url)

        (attempt,) = response.headrace.attempts
        assert (attempt.outcome, attempt.resent, attempt.verdict) == ("2xx", True, "success")
        assert len(server.requests) == 3
        status = hr.status()["upstreams"]["billing"]
        assert status["attempts"] == status["requests"] == {"2xx": 2}
        assert status["retry"]["retries"] == {}
        assert status["retry"]["resent"] == 1
        assert status["circuit_breaker"]["failures"] == 0


def test_what_was_sent_over_the_dead_connection_may_have_arrived_though_no_fresh_one_could_be_made(
    tmp_path: Path,
) -> None:
    """The upstream goes down during a keyed POST: the retry says that it is one, and no fallback does it again."""
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        requests.get(server.url)

        def goes_down(_: Any) -> Break:
            server.refuse()
            return Break("request")

        server.always(goes_down)
        with pytest.raises(requests.ConnectionError) as caught:
            requests.post(server.url, headers={"Idempotency-Key": "1"})

        attempts = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert [(one.outcome, one.resent, one.sent, one.retry_seq) for one in attempts] == [
            ("connect_failure", True, True, 0),
            ("connect_failure", False, False, 1),
            ("connect_failure", False, False, 1),
        ]


def test_by_name_through_urllib3_it_is_the_same(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.always(DIES_ON_REUSE)
        handle = hr.upstream("billing")
        handle.urlopen("GET", "/")

        (attempt,) = handle.urlopen("GET", "/").headrace.attempts
        assert attempt.resent


@pytest.mark.parametrize(
    "behaviour", [Break("request", "fin"), Break("request", "rst"), Break("head", "rst")]
)
def test_a_request_that_may_not_be_replayed_reaches_the_server_once(tmp_path: Path, behaviour: Break) -> None:
    """The proof counts what the server read, not what we believe to have sent."""
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        for _ in range(5):
            server.always(Answer())
            requests.get(server.url)
            server.always(behaviour)
            before = len(server.requests)
            with pytest.raises(requests.ConnectionError) as caught:
                requests.post(server.url, data=b"order")
            assert [one.resent for one in caught.value.headrace.attempts] == [False]  # type: ignore[attr-defined]
            assert [request.method for request in server.requests[before:]] == ["POST"]
            server.always(Answer())
            requests.get(server.url)  # a success in between: the circuit stays closed


def test_a_body_that_can_be_read_once_is_sent_once(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [GET, PUT]}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        requests.get(server.url)
        server.always(DIES_ON_REUSE)

        with pytest.raises(requests.ConnectionError):
            requests.put(server.url, data=(part for part in (b"a", b"b")))

        assert [request.method for request in server.requests] == ["GET", "PUT"]


def test_a_file_is_sent_again_from_where_it_began(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [GET, PUT]}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        requests.get(server.url)
        server.always(DIES_ON_REUSE)

        response = requests.put(server.url, data=io.BytesIO(b"whole"))

        assert response.headrace.attempts[0].resent
        assert [request.body for request in server.requests] == [b"", b"whole", b"whole"]


def test_once_an_answer_has_begun_it_is_an_attempt_that_failed(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(on_reuse(Break("head", "rst")))
        requests.get(server.url)

        response = requests.get(server.url)

        # How much of the head overtook the reset is chance: nothing of it, and it was a dead connection.
        assert [one.outcome for one in response.headrace.attempts] in (["reset", "2xx"], ["2xx"])


def test_an_answer_that_broke_off_in_its_body_is_an_attempt_that_failed(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(on_reuse(Break("body", "fin")))
        requests.get(server.url)

        response = requests.get(server.url)

        assert [one.outcome for one in response.headrace.attempts] == ["reset", "2xx"]
        assert not any(one.resent for one in response.headrace.attempts)


def test_a_fresh_connection_that_dies_is_not_taken_for_a_stale_one(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Break("request", "fin"))

        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)

        assert len(server.requests) == 3
        assert not any(one.resent for one in caught.value.headrace.attempts)  # type: ignore[attr-defined]


def test_a_resend_goes_over_a_fresh_connection_past_other_stale_ones(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        with requests.get(server.url, stream=True) as one, requests.get(server.url, stream=True) as two:
            assert (one.content, two.content) == (b"ok", b"ok")
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().idle == 2
        server.always(DIES_ON_REUSE)

        response = requests.get(server.url)

        assert [one.outcome for one in response.headrace.attempts] == ["2xx"]
        assert server.connections == 3
