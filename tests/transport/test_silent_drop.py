"""Connections that a NAT has dropped without a word: a proxy between headrace and the server forgets them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from headrace.policy.record import Record
from headrace.transport.lease.pool import LeasePool
from support.faultserver import FaultServer
from support.governed import running
from support.silentproxy import SilentProxy
from support.waiting import wait_until

pytestmark = pytest.mark.both_parsers

NAMES = ("billing", "orders", "stock", "users")
PATIENT = "retry: {max_attempts: 9, budget: {min_per_second: 1000}}"  # for a machine that is slow by itself
EACH = 25  # 100 drops over all: more at once would be a storm, which the retry budget is there to end


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def rules(proxy: SilentProxy, keys: str) -> str:
    """Four upstreams behind *proxy*, apart by path, each with a pool and a budget of its own."""
    return "version: 1\nupstreams:\n" + "".join(
        f"  {name}: {{base_url: '{proxy.url}/{name}', timeouts: {{attempt: 1s, deadline: 60s}}, "
        f"circuit_breaker: {{mode: disabled}}, {keys}}}\n"
        for name in NAMES
    )


def at_once(count: int, act: Callable[[], Record]) -> list[Record]:
    """What *count* threads get that call *act* together. Blocks."""
    together = threading.Barrier(count)

    def call() -> Record:
        together.wait(60)
        return act()

    with ThreadPoolExecutor(count) as crowd:
        return [one.result(60) for one in [crowd.submit(call) for _ in range(count)]]


def open_idle(proxy: SilentProxy, name: str, count: int) -> None:
    """Leave *count* idle connections in the pool of *name*."""
    answers = [requests.get(f"{proxy.url}/{name}", stream=True) for _ in range(count)]
    for answer in answers:
        assert answer.content == b"ok"


def get(proxy: SilentProxy, name: str) -> Record:
    answer = requests.get(f"{proxy.url}/{name}")
    assert answer.content == b"ok"
    return answer.headrace  # type: ignore[attr-defined,no-any-return]


def test_below_the_age_of_the_drop_no_dropped_connection_is_used(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 18: `idle_timeout` 150 ms and a NAT that forgets after a second, until it has dropped a hundred."""
    # Housekeeping, twice a second, would close them before they drop: here who leases has to see it.
    monkeypatch.setattr(LeasePool, "tend", lambda self, now: None)
    with (
        SilentProxy(server.port, forget_after_s=1.0) as proxy,
        running(tmp_path, rules(proxy, "pool: {idle_timeout: 150ms}")) as hr,
    ):
        for name in NAMES:
            open_idle(proxy, name, EACH)
        wait_until(lambda: proxy.open_connections == 0, what="the drop of all")
        for name in NAMES:
            for record in at_once(EACH, lambda name=name: get(proxy, name)):  # type: ignore[misc]
                # The proof is `swallowed` below; a busy machine may take longer than a second by itself.
                assert record.attempts[-1].outcome == "2xx"
                assert not any(one.resent for one in record.attempts)

        assert proxy.forgotten >= 100
        assert proxy.swallowed == 0
        closed = [hr.status()["upstreams"][name]["pool"]["closed"] for name in NAMES]
        assert all(set(one) == {"idle"} for one in closed), closed


def test_above_it_no_get_fails_and_none_takes_more_than_one_extra_attempt(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 18: the retry does not take the next dropped connection, though the pool is full of them."""
    with SilentProxy(server.port) as proxy, running(tmp_path, rules(proxy, PATIENT)):
        for name in NAMES:
            open_idle(proxy, name, EACH + 5)
            proxy.forget_idle()

            for record in at_once(EACH, lambda name=name: get(proxy, name)):  # type: ignore[misc]
                # One over a connection of the pool, and from then on new ones, however slow the machine is.
                assert all(one.connect_s is not None for one in record.attempts[1:]), record
                assert record.attempts[-1].outcome == "2xx"

        assert proxy.swallowed >= len(NAMES) * EACH * 0.5  # some came late, and found a connection just made


def test_a_retry_after_silence_on_a_pooled_connection_takes_a_fresh_one(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 18: three attempts over three of ten dropped connections would have been a failure."""
    with SilentProxy(server.port) as proxy, running(tmp_path, rules(proxy, "pool: {}")):
        open_idle(proxy, "billing", 10)
        assert proxy.forget_idle() == 10

        assert [one.outcome for one in get(proxy, "billing").attempts] == ["timeout", "2xx"]
        assert [one.outcome for one in get(proxy, "billing").attempts] == ["2xx"]  # the newest goes first
        assert proxy.swallowed == 1
