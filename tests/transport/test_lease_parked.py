"""Leases that the short way parks: held again without a lock and without a new lease, and idle to all others."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from headrace.transport.lease.pool import Lease, LeasePool
from support.leases import Conn, Rig, rig


def parked(r: Rig, name: str = "conn") -> Conn:
    """The connection of a lease that was taken and parked; nobody holds the lease."""
    lease = r.pool.acquire(1.0)
    if lease.conn is None:
        lease.conn = Conn(name)
    mine, conn = [lease], lease.conn
    del lease
    r.pool.park(mine, r.now)
    assert mine == []
    return conn


def test_a_parked_lease_is_held_again_and_counted_as_any_other() -> None:
    r = rig()
    conn = parked(r)
    first = r.pool.unpark(r.now)
    assert first is not None
    assert (first.conn, conn.probes, first.connection.uses, r.pool.view().inuse) == (conn, 1, 2, 1)
    assert r.counters.acquires == {"miss": 1, "hit": 1}
    assert sum(r.counters.wait.counts) == 2
    assert r.pool.hit_rate() == 0.5
    assert r.pool.unpark(r.now) is None
    r.pool.give_back(first, reusable=True)
    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 1)
    assert repr(r.pool) == "<LeasePool 0 in use, 1 idle, 0 waiting, max 2>"


def test_the_one_that_was_parked_last_is_the_first_to_be_held_again() -> None:
    r = rig(max_connections=3)
    mine = [[r.lease(name)] for name in ("old", "middle", "new")]
    r.held.clear()
    for one in mine:
        r.pool.park(one, r.now)
    again = [r.pool.unpark(r.now) for _ in range(4)]
    assert [one and one.conn and one.conn.name for one in again] == ["new", "middle", "old", None]


def test_a_parked_connection_is_idle_to_all_others() -> None:
    r = rig(max_connections=1)
    conn = parked(r)
    assert repr(r.pool) == "<LeasePool 0 in use, 1 idle, 0 waiting, max 1>"
    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 1)
    assert parked(r) is conn
    lease = r.pool.acquire(0.0)
    assert lease.conn is conn
    r.pool.give_back(lease, reusable=True)
    assert r.pool.lend_idle(r.now, idle_s=0.0, most=1) == []  # a pool of one lends nothing for a look
    assert parked(r) is conn
    r.now += 61.0
    assert r.pool.tend(r.now) == 1
    assert r.closed == [conn]


def test_the_token_of_a_parked_lease_ends_nothing() -> None:
    r = rig()
    lease = r.lease()
    token, r.held = lease.token, []
    assert token is not None
    r.pool.park([lease], r.now)
    assert r.pool.abort(token) is False
    assert r.pool.end(token, "abandoned") is False
    assert (r.aborted, r.closed, r.pool.view().idle) == ([], [], 1)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        pytest.param(lambda r, conn: setattr(conn, "alive", False), "dead", id="its peer has gone"),
        pytest.param(lambda r, conn: setattr(r, "now", r.now + 60.0), "idle", id="idle for too long"),
        pytest.param(lambda r, conn: setattr(r, "now", r.now + 80.0), "lifetime", id="its life is over"),
    ],
)
def test_a_connection_that_may_not_be_used_again_is_closed_and_the_next_one_tried(
    happens: Callable[[Rig, Conn], None], reason: str
) -> None:
    r = rig(max_connections=1, max_lifetime_s=80.0, idle_timeout_s=60.0)
    conn = parked(r)
    happens(r, conn)
    r.pool._tally.turn_at = r.now + 1.0  # another call has begun the second
    assert r.pool.unpark(r.now) is None
    assert (r.closed, conn.probes) == ([conn], int(reason == "dead"))
    assert r.counters.closed == {reason: 1}
    assert r.pool.acquire(0.0).conn is None
    assert r.counters.acquires == {"miss": 2}


def test_the_first_of_a_second_asks_for_the_lock() -> None:
    r = rig()
    parked(r)
    r.now += 1.0
    assert r.pool.unpark(r.now) is None
    r.pool.give_back(r.pool.acquire(1.0), reusable=True)
    assert r.pool.hit_rate(r.now + 9.5) == 1.0  # of the miss a second before it, nothing
    r.now -= 20.0  # the clock was stepped back (failures.md 69)
    parked(r)
    assert r.pool.unpark(r.now - 20.0) is None


def test_a_waiter_gets_what_is_parked_and_is_not_overtaken() -> None:
    r = rig(max_connections=1)
    lease = r.pool.acquire(1.0)
    lease.conn = conn = Conn()
    waiter = r.waiter()
    mine = [lease]
    del lease
    r.pool.park(mine, r.now)
    served = waiter.outcome()
    assert isinstance(served, Lease)
    assert served.conn is conn
    also = r.waiter()
    r.pool._parked.append(served)  # as if it came in this very moment, from a thread that has not looked yet
    assert r.pool.unpark(r.now) is None
    r.pool.view()
    assert also.outcome().conn is conn


@pytest.mark.parametrize("end", [LeasePool.retire, LeasePool.stop, lambda pool: pool.rotate(0.0)])
def test_what_is_parked_goes_with_its_pool(end: Callable[[LeasePool[Conn]], object]) -> None:
    r = rig()
    conn = parked(r)
    end(r.pool)
    assert r.closed == [conn]
    assert r.pool.unpark(r.now) is None


@pytest.mark.parametrize("end", [LeasePool.retire, LeasePool.stop, lambda pool: pool.rotate(0.0)])
def test_what_is_parked_afterwards_is_closed(end: Callable[[LeasePool[Conn]], object]) -> None:
    r = rig()
    lease = r.pool.acquire(1.0)
    lease.conn = conn = Conn()
    end(r.pool)
    mine = [lease]
    del lease
    r.pool.park(mine, r.now)
    assert (mine, r.closed) == ([], [conn])
    assert r.pool.unpark(r.now) is None


def test_what_has_had_its_uses_or_is_one_too_many_is_not_parked() -> None:
    r = rig(max_requests_per_connection=2)
    conn = parked(r)
    lease = r.pool.unpark(r.now)
    r.pool.park([lease] if lease else [], r.now)
    assert r.closed == [conn]
    r = rig(max_connections=1, when_full="new")
    first, surplus = r.lease(), r.lease()
    r.held.clear()
    r.pool.park([surplus], r.now)
    assert r.closed == [surplus.conn]
    r.pool.resize(0)
    r.pool.park([first], r.now)
    assert r.closed == [surplus.conn, first.conn]


def test_where_leaks_are_looked_for_each_call_has_a_lease_of_its_own() -> None:
    r = rig(leak_detection_threshold_s=5.0)
    parked(r)
    assert r.pool.unpark(r.now) is None


def test_a_lease_that_is_dropped_once_it_was_held_again_costs_no_slot() -> None:
    r = rig(max_connections=1)
    parked(r)
    assert r.pool.unpark(r.now) is not None
    assert (r.pool.view().inuse, r.counters.closed) == (0, {"leaked": 1})


def test_a_look_that_raises_leaves_no_slot_behind() -> None:
    r = rig(max_connections=1)
    conn = parked(r)

    def fail(conn: Conn) -> None:
        raise KeyboardInterrupt

    r.on_probe = fail
    with pytest.raises(KeyboardInterrupt):
        r.pool.unpark(r.now)
    assert (r.pool.view().inuse, r.closed) == (0, [conn])


def test_a_child_gives_up_what_its_parent_has_parked() -> None:
    """failures.md 26."""
    r = rig()
    conn = parked(r)
    r.pool._pid = -1
    assert r.pool.unpark(r.now) is None
    assert r.pool.acquire(1.0).conn is None
    assert (r.closed, r.discarded) == ([], [conn])


def test_a_turn_is_two_python_calls_beside_the_look() -> None:
    r = rig()
    r.pool._is_alive = bool
    parked(r)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        r.pool.park([r.pool.unpark(1000.0)], 1000.0)  # type: ignore[list-item]
    finally:
        sys.setprofile(None)
    assert calls == ["unpark", "park"]
    assert len(r.pool._parked) == 1


def test_threads_that_take_and_park_among_others_lose_nothing() -> None:
    """failures.md 21."""
    r = rig(max_connections=10, max_waiting=1000)
    r.pool._clock = time.monotonic
    wrong: deque[str] = deque()
    taken: deque[str] = deque()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def run(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(200):
            lease = r.pool.unpark(time.monotonic())
            taken.append("new" if lease is None else "again")
            lease = lease or r.pool.acquire(30.0)
            if lease.conn is None:
                lease.conn = Conn()
            conn = lease.conn
            if conn.name != "conn":
                wrong.append("a connection held twice")
            conn.name = "taken"
            if dice.random() < 0.3:
                time.sleep(0)
            conn.name = "conn"
            way = dice.random()
            if way < 0.8:
                mine = [lease]
                del lease
                r.pool.park(mine, time.monotonic())
            else:
                r.pool.give_back(lease, reusable=way < 0.95)
                r.pool.give_back_quietly(lease)
            if way > 0.98:
                r.pool.tend()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(12)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    finally:
        sys.setswitchinterval(before)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    view = r.pool.view()
    assert (view.inuse, view.waiting) == (0, 0)
    assert view.idle <= 10
    acquires = r.counters.acquires
    assert acquires["hit"] + acquires["miss"] == len(taken) == 2400
    assert sum(r.counters.wait.counts) == 2400
    assert taken.count("again") > 100
    assert sum(r.counters.closed.values()) == len(r.closed)


def test_an_interrupt_between_any_two_bytecodes_costs_no_slot() -> None:
    """failures.md 21."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timer here")
    r = rig(max_connections=1)

    class SoftTimeLimit(Exception):
        pass

    def interrupt(signum: int, frame: Any) -> None:
        raise SoftTimeLimit

    before = signal.signal(signal.SIGALRM, interrupt)
    dice = random.Random(7)
    interrupted = 0
    mine: list[Lease[Conn]] = []
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 30e-6))
                for _ in range(20):
                    mine = [r.pool.unpark(r.now) or r.pool.acquire(0.0)]
                    if mine[0].conn is None:
                        mine[0].conn = Conn()
                    r.pool.park(mine, r.now)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except SoftTimeLimit:
                interrupted += 1
            for lease in mine:  # as the short way does: what is in there still is its own
                r.pool.give_back(lease, reusable=False)
            lease = None  # type: ignore[assignment]
            mine.clear()
            assert not r.pool._lock.locked()
            assert r.pool.view().inuse == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100
    assert r.pool.acquire(0.0) is not None
