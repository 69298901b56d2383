"""Callers who retry around a governed call, on real sockets: what of it reaches the upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from support.faultserver import Answer, FaultServer
from support.governed import rules, running

CALLS, TRIES, ATTEMPTS = 30, 4, 3
RULES = (
    "    retry: {{max_attempts: 3, backoff: {{base: 1ms, throttled: 1ms, max: 2ms}},"
    " budget: {{ratio: {ratio}, min_per_second: {reserve}, ttl: 60s}}}}\n"
    "    circuit_breaker: {{mode: disabled}}\n"
)
OWN = Retry(3, status_forcelist=[503], raise_on_status=False, backoff_factor=0)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.always(Answer(503))
        yield server


def insist(call: Callable[[], int]) -> None:
    """A decorator such as tenacity's `stop_after_attempt(4)`, without its pauses."""
    for _ in range(TRIES):
        if call() < 500:
            return


def by_requests(url: str) -> Callable[[], int]:
    return lambda: requests.get(url).status_code


def by_urllib3(url: str) -> Callable[[], int]:
    manager = urllib3.PoolManager()
    return lambda: manager.request("GET", url).status


@pytest.mark.parametrize("surface", [by_requests, by_urllib3], ids=["requests", "urllib3"])
def test_retries_nested_in_a_callers_retries_are_paid_from_one_budget_and_do_not_multiply(
    tmp_path: Path, server: FaultServer, surface: Callable[[str], Callable[[], int]]
) -> None:
    """failures.md 12."""
    text = rules(
        server.url, RULES.format(ratio=0.2, reserve=0), more="install: {requests: true, urllib3: true}\n"
    )
    with running(tmp_path, text) as hr:
        call = surface(server.url)
        for _ in range(CALLS):
            insist(call)

        retry = hr.status()["upstreams"]["billing"]["retry"]
        tries = CALLS * TRIES
        assert server.first_lines == tries + retry["retries"].get("5xx", 0)
        # Not tries × 3, the 360 of two layers that know nothing of each other.
        assert server.first_lines == tries * 1.2
        assert retry["denied"] == {"budget": tries}


def test_with_room_in_the_budget_the_layers_would_multiply(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, RULES.format(ratio=1, reserve=100))):
        insist(by_requests(server.url))

        assert server.first_lines == TRIES * ATTEMPTS  # so the test above proves something


def test_adapter_times_decorator_is_what_the_caller_made_it_and_nothing_of_ours_on_top(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 12."""
    with running(tmp_path, rules(server.url, RULES.format(ratio=1, reserve=100))) as hr:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=OWN))
            insist(lambda: session.get(server.url).status_code)

        retry = hr.status()["upstreams"]["billing"]["retry"]
        assert server.first_lines == TRIES * 4  # not TRIES × 4 × 3
        assert (retry["retries"], retry["delegated"]) == ({"5xx": TRIES * 3}, TRIES * 4)
