"""`hr.upstream(name).reset()`: the circuit and the budget of one upstream begin anew, by hand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import running

ONE_FAILURE = "circuit_breaker: {consecutive_failures: 1, open_for: {base: 1m, max: 1m, jitter: 0}}"
RULES = """
upstreams:
  billing:
    base_url: {url}
    retry: {{max_attempts: 1}}
    {breaker}
  other:
    base_url: {url}/other
    retry: {{max_attempts: 1}}
    {breaker}
"""


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def opened(server: FaultServer, *paths: str) -> None:
    for path in paths:
        server.next(Answer(503))
        requests.get(f"{server.url}{path}")
        with pytest.raises(headrace.CircuitOpenError):
            requests.get(f"{server.url}{path}")


def test_a_reset_closes_this_ones_circuit_and_says_so(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, RULES.format(url=server.url, breaker=ONE_FAILURE)) as hr:
        opened(server, "/x", "/other/x")

        with caplog.at_level(logging.INFO, logger="headrace"):
            hr.upstream("billing").reset()

        assert requests.get(f"{server.url}/x").status_code == 200
        with pytest.raises(headrace.CircuitOpenError):
            requests.get(f"{server.url}/other/x")
        (said,) = [one for one in caplog.records if one.__dict__["event"] == "upstream.reset"]
        assert (said.__dict__["upstream"], said.__dict__["state"]) == ("billing", "open")
        status = hr.status()["upstreams"]["billing"]
        assert status["circuit_breaker"]["state"] == "closed"
        assert hr.snapshot.upstream("billing").learned.counters.transitions == {
            ("closed", "open"): 1,
            ("open", "closed"): 1,
        }


def test_a_reset_fills_the_budget_and_leaves_counts_and_connections(
    tmp_path: Path, server: FaultServer
) -> None:
    budget = "circuit_breaker: {mode: disabled}"
    text = RULES.format(url=server.url, breaker=budget).replace(
        "retry: {max_attempts: 1}",
        "retry: {max_attempts: 2, backoff: {base: 1ms}, budget: {ratio: 0.0, min_per_second: 0.2}}",
    )
    with running(tmp_path, text) as hr:
        learned = hr.snapshot.upstream("billing").learned
        full = hr.status()["upstreams"]["billing"]["retry"]["budget_tokens"]
        server.always(Answer(503))
        for _ in range(int(full) + 1):
            requests.get(server.url)
        assert hr.status()["upstreams"]["billing"]["retry"]["budget_tokens"] < 1

        hr.upstream("billing").reset()

        assert hr.status()["upstreams"]["billing"]["retry"]["budget_tokens"] == full
        assert sum(learned.counters.requests.values()) == int(full) + 1
        assert {one.connection for one in server.requests} == {1}
        assert learned.counters.transitions == {}  # it was closed


def test_a_call_under_way_ends_with_the_circuit_that_it_began_with(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, RULES.format(url=server.url, breaker=ONE_FAILURE)) as hr:
        server.next(Answer(503, delay_s=0.5))
        call = threading.Thread(target=requests.get, args=(f"{server.url}/slow",))
        call.start()
        server.wait_for(lambda: server.requests)

        hr.upstream("billing").reset()
        call.join(30)

        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "closed"
        assert requests.get(f"{server.url}/x").status_code == 200


def test_a_name_that_has_left_the_file_is_an_unknown_upstream(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, RULES.format(url=server.url, breaker=ONE_FAILURE)) as hr:
        handle = hr.upstream("other")
        text = RULES.format(url=server.url, breaker=ONE_FAILURE)
        Path(hr.files[0]).write_text(text[: text.index("  other:")])
        hr.reload()

        with pytest.raises(headrace.UnknownUpstream):
            handle.reset()
