"""What real calls leave in the metrics: attempts per call, and what was left of the deadline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import rules


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


class Run:
    """A Headrace over one upstream, and its metrics."""

    def __init__(self, folder: Path, url: str, body: str) -> None:
        self.url = url
        self.registry = CollectorRegistry()
        file = folder / "upstreams.yaml"
        file.write_text(rules(url, body))
        self.hr = headrace.Headrace(file, registry=self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"headrace_{name}", {"upstream": "billing", **labels})

    def attempts(self) -> dict[str, float | None]:
        return {le: self.value("request_attempts_bucket", le=le) for le in ("1.0", "2.0", "3.0", "+Inf")}


def test_each_call_is_counted_once_under_its_attempts(tmp_path: Path, server: FaultServer) -> None:
    busy = Answer(503)
    server.next(busy, Answer(), busy, busy, busy, Answer())
    run = Run(tmp_path, server.url, "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n")
    with run.hr:
        for _ in range(3):  # two attempts, three, one
            requests.get(server.url)

        assert run.attempts() == {"1.0": 1, "2.0": 2, "3.0": 3, "+Inf": 3}
        assert (
            run.value("request_attempts_sum")
            == 6
            == sum(run.hr.status()["upstreams"]["billing"]["attempts"].values())
        )
        assert run.value("deadline_left_seconds_count") == 6


def test_a_call_that_sent_nothing_has_no_attempts_and_no_deadline_left(
    tmp_path: Path, server: FaultServer
) -> None:
    server.always(Answer(503))
    run = Run(
        tmp_path,
        server.url,
        "    retry: {max_attempts: 1}\n    circuit_breaker: {consecutive_failures: 1}\n",
    )
    with run.hr:
        requests.get(server.url)
        with pytest.raises(headrace.CircuitOpenError):
            requests.get(server.url)

        assert run.attempts()["+Inf"] == 1
        assert run.value("deadline_left_seconds_count") == 1


def test_an_attempt_that_found_no_connection_has_no_deadline_left_at_send(
    tmp_path: Path, server: FaultServer
) -> None:
    run = Run(tmp_path, server.url, "    pool: {max_connections: 1, when_full: reject}\n")
    with run.hr, requests.get(server.url, stream=True):
        with pytest.raises(headrace.PoolRejected):
            requests.get(server.url)

        assert run.attempts()["+Inf"] == 2  # it was an attempt, and is counted as one
        assert run.value("deadline_left_seconds_count") == 1


def test_what_is_left_of_the_deadline_shrinks_from_attempt_to_attempt(
    tmp_path: Path, server: FaultServer
) -> None:
    server.next(Answer(503, headers=(("Retry-After", "1.2"),)))
    run = Run(tmp_path, server.url, "    timeouts: {deadline: 6s, attempt: 2s}\n")
    with run.hr:
        assert len(requests.get(server.url).headrace.attempts) == 2

        total_s = run.value("deadline_left_seconds_sum")
        assert total_s is not None
        assert 5.0 < total_s < 6.0 + 4.8
        assert run.value("deadline_left_seconds_bucket", le="10.0") == 2
        assert run.value("deadline_left_seconds_bucket", le="5.0") == 1


@pytest.mark.parametrize(
    "body", ["    timeouts: {deadline: null}\n", "    mode: observe\n"], ids=["null", "observe"]
)
def test_without_a_deadline_in_force_none_is_left(tmp_path: Path, server: FaultServer, body: str) -> None:
    run = Run(tmp_path, server.url, body)
    with run.hr:
        requests.get(server.url)

        assert run.attempts()["1.0"] == 1
        assert run.value("deadline_left_seconds_count") == 0
