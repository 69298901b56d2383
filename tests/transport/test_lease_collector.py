"""A full pool asks the garbage collector: what holds its slots may be garbage in a cycle."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from headrace.transport.lease.collector import EVERY_S, Collector, collector
from headrace.transport.lease.pool import LeaseRejected, LeaseTimeout
from support.faultserver import FaultServer
from support.governed import rules, running
from support.leases import Rig, interrupted_locks, rig
from support.plans import pool_plan
from support.waiting import wait_until


@pytest.fixture
def _no_collection_of_its_own() -> Iterator[None]:
    """As in a process that waits for its slots, and allocates nothing meanwhile."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def leak(r: Rig) -> None:
    """Take a lease that only the collector can free."""
    lease = r.pool.acquire(0.0)
    cycle: list[Any] = [lease]
    cycle.append(cycle)


def rig_that_asks(**changes: Any) -> tuple[Rig, list[bool]]:
    asked: list[bool] = []

    def collect() -> bool:
        asked.append(True)
        gc.collect()
        return True

    plan = pool_plan(**{"max_connections": 1, "max_waiting": 8} | changes)
    r = Rig(plan, collect=collect)
    r.pool._clock = time.monotonic
    return r, asked


def test_who_is_not_served_by_a_collection_waits_on() -> None:
    r, asked = rig_that_asks()
    held = r.lease()
    waiter = r.waiter(30.0)
    wait_until(lambda: bool(asked), what="a collection")
    r.pool.give_back(held, reusable=True)
    assert waiter.outcome().conn is held.conn


def test_who_is_not_served_by_a_collection_waits_no_longer_than_it_may() -> None:
    r, asked = rig_that_asks()
    held = r.lease()
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.2)
    assert asked
    assert held.token is not None


def test_an_interrupt_before_the_lock_is_taken_releases_no_lock() -> None:
    """Nor one that somebody else holds."""
    one = Collector()
    with interrupted_locks(one, "_turn"), pytest.raises(KeyboardInterrupt):
        one.ask()


@pytest.mark.usefixtures("_no_collection_of_its_own")
def test_who_waits_at_a_full_pool_gets_the_slot_of_what_only_the_collector_can_free() -> None:
    """failures.md 61."""
    r, asked = rig_that_asks()
    leak(r)
    lease = r.pool.acquire(10.0)
    assert lease.waited_s < 5.0
    assert asked == [True]
    assert r.counters.collections == 1
    assert r.counters.closed == {"leaked": 1}


def test_who_is_served_soon_asks_nobody() -> None:
    r, asked = rig_that_asks()
    r.pool.give_back(r.pool.acquire(0.0), reusable=False)
    for _ in range(50):
        held = r.pool.acquire(1.0)
        waiter = r.waiter()
        r.pool.give_back(held, reusable=False)
        r.pool.give_back(waiter.outcome(), reusable=False)
    assert len(asked) <= 5  # a loaded machine may be slow to serve one


@pytest.mark.usefixtures("_no_collection_of_its_own")
@pytest.mark.parametrize(
    ("changes", "timeout_s", "error"),
    [
        pytest.param({"when_full": "reject"}, 1.0, LeaseRejected, id="rejects"),
        pytest.param({}, 0.0, LeaseTimeout, id="no time to wait"),
        pytest.param({}, 0.01, LeaseTimeout, id="little time to wait"),
    ],
)
def test_where_nobody_waits_long_enough_housekeeping_asks(
    changes: dict[str, Any], timeout_s: float, error: type[Exception]
) -> None:
    """failures.md 61. On an event loop nobody ever waits."""
    r, asked = rig_that_asks(**changes)
    r.pool.tend()
    assert asked == [], "nobody was refused yet"
    leak(r)
    with pytest.raises(error):
        r.pool.acquire(timeout_s)
    r.pool.tend()
    assert asked == [True]
    assert r.pool.acquire(0.0)
    r.pool.tend()
    assert asked == [True], "nobody was refused since"


def test_a_finalizer_in_the_collection_may_give_back() -> None:
    """failures.md 25. No lock is held meanwhile."""
    r = rig()
    held = []

    def collect() -> bool:
        held.append(r.pool._lock.locked())
        r.pool.give_back(lease, reusable=True)
        return True

    r.pool._size = 1
    r.pool._clock = time.monotonic
    r.pool._collect = collect
    lease = r.lease()
    assert r.pool.acquire(10.0).conn is lease.conn
    assert held == [False]


def test_collections_are_seconds_apart_however_many_pools_ask_and_take_a_small_share_of_the_time() -> None:
    now, took_s, made = 100.0, 0.0, []

    def collect() -> None:
        nonlocal now
        now += took_s
        made.append(now)

    asked = Collector(clock=lambda: now, collect=collect)
    assert [asked.ask() for _ in range(3)] == [True, False, False]
    now += EVERY_S - 0.1
    assert asked.ask() is False
    now += 0.2
    took_s = 2.0  # a heap of gigabytes
    assert asked.ask()
    now += 39.0
    assert asked.ask() is False
    now += 2.0
    assert asked.ask()
    assert len(made) == 3
    now -= 1_000_000.0  # a clock that was stepped back
    assert asked.ask()


def test_only_one_thread_collects_at_a_time() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def collect() -> None:
        inside.set()
        go_on.wait(10)

    one = Collector(collect=collect)
    thread = threading.Thread(target=one.ask)
    thread.start()
    assert inside.wait(10)
    assert one.ask() is False
    one.forget_inherited()  # as a forked child does: nobody collects there
    go_on.set()
    thread.join(10)
    assert one._turn.acquire(blocking=False)


def test_a_collection_that_fails_is_no_ones_turn_for_ever() -> None:
    errors = [RuntimeError("a finalizer")]

    def collect() -> None:
        if errors:
            raise errors.pop()

    one = Collector(collect=collect)
    with pytest.raises(RuntimeError):
        one.ask()
    assert one.ask()


@pytest.mark.usefixtures("_no_collection_of_its_own")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_streamed_answers_that_are_garbage_give_their_slots_to_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 61."""
    monkeypatch.setattr(collector, "_pause_s", 0.0)
    body = "    pool: {max_connections: 2}\n    timeouts: {acquire: 10s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        for _ in range(2):
            answer: Any = requests.get(server.url, stream=True)
            answer.cycle = answer
        del answer
        assert requests.get(server.url).status_code == 200
        assert hr.status()["upstreams"]["billing"]["pool"]["collections"] == 1
    gc.collect()
