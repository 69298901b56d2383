"""`mode: observe` and `off`: nothing changes, and observe says what the rules would have done."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter

from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running


def test_observe_changes_no_call_and_counts_what_would_have_been_done(tmp_path: Path) -> None:
    body = "    mode: observe\n    headers: {X-Added: '1'}\n    circuit_breaker: {consecutive_failures: 2}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(503))
        for _ in range(4):
            assert requests.get(server.url).status_code == 503

        status = hr.status()["upstreams"]["billing"]
        assert len(server.requests) == 4  # no retry, no refusal
        assert server.requests[0].header("X-Request-ID") is None
        assert server.requests[0].header("X-Added") is None
        assert status["circuit_breaker"]["state"] == "open"
        assert status["circuit_breaker"]["refused"] == 0
        assert status["observed"] == {"retried": 2, "refused": 2}
        assert status["requests"] == status["attempts"] == {"5xx": 4}


def test_observe_raises_what_stock_raises_without_a_note(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: observe\n")) as hr:
        server.always(Break("request"))

        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)

        assert not hasattr(caught.value, "headrace")
        assert not getattr(caught.value, "__notes__", [])
        assert hr.status()["upstreams"]["billing"]["attempts"] == {"reset": 1}


def test_observe_tells_a_refused_connection_from_a_broken_one(tmp_path: Path) -> None:
    with FaultServer() as server:
        url = server.url
    with running(tmp_path, rules(url, "    mode: observe\n")) as hr:
        with pytest.raises(requests.ConnectionError):
            requests.post(url)
        status = hr.status()["upstreams"]["billing"]
        assert status["attempts"] == {"connect_failure": 1}
        assert status["observed"] == {"retried": 1}  # never sent: even a POST would have been


def test_observe_counts_calls_in_flight_beyond_the_pool(tmp_path: Path) -> None:
    body = "    mode: observe\n    pool: {max_connections: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:

        def nested(request: object) -> Answer:
            seen.append(hr.status()["upstreams"]["billing"]["pool"]["inuse"])
            return Answer()

        seen: list[int] = []
        server.always(nested)
        requests.get(server.url)
        assert seen == [1]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_off_does_not_even_count(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: off\n")) as hr:
        response = requests.get(server.url)

        assert not hasattr(response, "headrace")
        assert hr.status()["upstreams"]["billing"]["requests"] == {}


def test_observe_judges_the_body_as_enforce_would(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: observe\n")) as hr:
        server.always(Break("body", "fin"))
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            requests.get(server.url)

        assert hr.status()["upstreams"]["billing"]["attempts"] == {"reset": 1}


def test_observe_heeds_the_calls_own_timeout_and_retries(tmp_path: Path) -> None:
    body = "    mode: observe\n    timeouts: {read: 100ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.2))
        requests.get(server.url, timeout=5)
        assert hr.status()["upstreams"]["billing"]["observed"] == {}
        server.always(Answer(503))
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=2))
            session.get(server.url)
        assert hr.status()["upstreams"]["billing"]["observed"] == {}


@pytest.mark.parametrize(
    ("breaker", "observed"),
    [
        pytest.param("{mode: observe, consecutive_failures: 1}", {"refused": 2, "retried": 3}, id="observe"),
        pytest.param("{mode: forced_open}", {"refused": 3}, id="forced open"),
        pytest.param("{mode: disabled, consecutive_failures: 1}", {"retried": 3}, id="disabled"),
    ],
)
def test_observe_says_once_what_a_breaker_of_another_mode_would_have_done(
    tmp_path: Path, breaker: str, observed: dict[str, int]
) -> None:
    body = f"    mode: observe\n    circuit_breaker: {breaker}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(503))
        for _ in range(3):
            assert requests.get(server.url).status_code == 503

        assert hr.status()["upstreams"]["billing"]["observed"] == observed
