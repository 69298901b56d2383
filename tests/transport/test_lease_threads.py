"""The lease layer under many threads, under the garbage collector and under interrupts."""

from __future__ import annotations

import gc
import random
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

import pytest

from headrace.transport.lease.pool import LeaseTimeout
from support.leases import Conn, rig
from support.waiting import wait_until


@pytest.fixture
def _switch_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switch_often")
def test_two_hundred_threads_on_four_slots_lose_nothing() -> None:
    """failures.md 21."""
    r = rig(max_connections=4, max_waiting=1000)
    r.pool._clock = time.monotonic
    inside = threading.Semaphore(4)
    wrong: deque[str] = deque()
    ended: deque[str] = deque()

    def run(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(10):
            # Some have no patience: their leases are handed over in the very moment they leave.
            try:
                lease = r.pool.acquire(dice.choice([0.0, 0.001, 0.01, 30.0]))
            except LeaseTimeout:
                ended.append("timeout")
                continue
            if not inside.acquire(blocking=False):
                wrong.append("a fifth lease")
            if lease.conn is None:
                lease.conn = Conn()
            conn = lease.conn
            if conn.name != "conn":
                wrong.append("a connection leased twice")
            conn.name = "taken"
            if dice.random() < 0.5:
                time.sleep(0)
            conn.name = "conn"
            inside.release()
            r.pool.give_back(lease, reusable=dice.random() < 0.9)
            r.pool.give_back_quietly(lease)
            ended.append("leased")

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert len(ended) == 2000
    view = r.pool.view()
    assert (view.inuse, view.waiting, view.one_off) == (0, 0, 0)
    assert view.idle <= 4
    acquires = r.counters.acquires
    assert acquires["hit"] + acquires["miss"] == ended.count("leased")
    assert acquires.get("timeout", 0) == ended.count("timeout")
    assert sum(r.counters.wait.counts) == 2000


def test_a_finalizer_that_gives_back_while_its_thread_holds_the_lock_does_not_deadlock() -> None:
    """failures.md 25."""
    r = rig(max_connections=2)

    class Dropped:
        """A response dropped unread: its finalizer gives the lease back."""

        def __init__(self) -> None:
            self.lease = r.lease()
            self.cycle = self  # only the collector can free it

        def __del__(self) -> None:
            r.pool.give_back_quietly(self.lease)

    def run() -> None:
        Dropped()
        gc.collect()  # not under any lock: settled at once
        assert r.pool.view().inuse == 0
        Dropped()
        with r.pool._lock:
            gc.collect()
        assert r.pool.view().inuse == 0
        Dropped()
        with r.counters.lock:
            gc.collect()
        assert r.pool.view().inuse == 0

    gc.disable()
    try:
        thread = threading.Thread(target=run, daemon=True)  # a daemon, so that a deadlock fails the test
        thread.start()
        thread.join(10.0)
        assert not thread.is_alive(), "deadlock"
    finally:
        gc.enable()
    assert r.counters.closed == {"error": 3}


def test_a_lease_given_back_under_somebody_elses_lock_is_handed_on_when_that_is_released() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    waiter = r.waiter()
    with r.pool._lock:
        giver = threading.Thread(target=r.pool.give_back, args=(lease,), kwargs={"reusable": True})
        giver.start()
        giver.join(10.0)  # did not wait for the lock
        assert not giver.is_alive()
        assert waiter.thread.is_alive()
    r.pool.tend(0.0)
    assert waiter.outcome().conn is lease.conn


def test_the_collector_may_run_at_any_allocation() -> None:
    r = rig(max_connections=1000)  # garbage that has grown old is collected late

    class Dropped:
        def __init__(self) -> None:
            self.lease = r.lease()
            self.cycle = self

        def __del__(self) -> None:
            r.pool.give_back_quietly(self.lease)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            lease = r.pool.acquire(5.0)
            if lease.conn is None:
                lease.conn = Conn()
            Dropped()
            r.pool.give_back(lease, reusable=True)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert r.pool.view().inuse == 0


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
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 30e-6))
                for _ in range(20):
                    r.pool.give_back(r.pool.acquire(0.0), reusable=True)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except SoftTimeLimit:
                interrupted += 1
            except LeaseTimeout:
                break
            # Also between the return of acquire() and the call of give_back(): a lease that nobody got is collected.
            assert not r.pool._lock.locked()
            assert r.pool.view().inuse == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100
    r.pool.give_back(r.pool.acquire(0.0), reusable=True)


def test_a_waiter_stays_asleep_until_it_is_served() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    waiters = [r.waiter() for _ in range(3)]
    r.pool.give_back(lease, reusable=True)
    first = waiters[0].outcome()
    assert all(waiter.thread.is_alive() for waiter in waiters[1:])
    r.pool.give_back(first, reusable=True)
    second = waiters[1].outcome()
    r.pool.give_back(second, reusable=True)
    r.pool.give_back(waiters[2].outcome(), reusable=True)
    wait_until(lambda: r.pool.view().waiting == 0)
