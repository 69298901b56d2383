"""The size of a live adaptive pool: who is served when it grows, what is closed when it shrinks."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.plan import AdaptivePlan
from headrace.policy.sizing import Resize, ResizeReason
from headrace.transport.lease.pool import Lease
from headrace.transport.lease.sizer import PoolSizer
from support.leases import Conn, Rig, interrupted_locks, rig

PLAN = AdaptivePlan(
    min=2,
    grow_when_waiting=0.3,
    grow_when_rate=1.5,
    shrink_when_rate=0.7,
    shrink_after_s=5.0,
    rate_window_s=10.0,
    connections_per_rps=0.1,
)


class Adaptive:
    """A pool of up to 6 with its sizer; `told` are the resizes that were reported."""

    def __init__(self, plan: AdaptivePlan = PLAN) -> None:
        self.rig: Rig = rig(max_connections=6, max_waiting=64, adaptive=plan)
        self.told: list[Resize] = []
        self.sizer = PoolSizer(
            plan,
            self.rig.pool,
            self.rig.counters,
            clock=lambda: self.rig.now,
            on_resize=self.told.append,
        )

    @property
    def size(self) -> int:
        return self.rig.pool.view().max_connections

    def pass_s(self, seconds: float, *, calls_per_step: int = 0) -> None:
        """Let time pass, half a second a step, with housekeeping and *calls_per_step* that find a connection free."""
        for _ in range(int(seconds * 2)):
            for _ in range(calls_per_step):
                self.rig.pool.give_back(self.rig.lease(), reusable=True)
            self.rig.now += 0.5
            self.sizer.looked(self.rig.now)


def test_it_begins_with_the_smallest_size() -> None:
    assert Adaptive().size == 2


def test_an_interrupt_before_the_lock_is_taken_releases_no_lock() -> None:
    """Nor one that somebody else holds."""
    adaptive = Adaptive()
    with interrupted_locks(adaptive.sizer, "_lock"), pytest.raises(KeyboardInterrupt):
        adaptive.sizer.looked(adaptive.rig.now)


def test_a_call_that_has_to_wait_makes_the_pool_grow_and_is_served_at_once() -> None:
    pool = Adaptive()
    held = [pool.rig.lease() for _ in range(2)]

    third = pool.rig.pool.acquire(30.0)

    assert third.conn is None
    assert pool.rig.pool.view().inuse == 3
    assert [(one.from_size, one.to_size, one.reason) for one in pool.told] == [(2, 3, ResizeReason.WAITING)]
    for lease in (*held, third):
        pool.rig.pool.give_back(lease, reusable=True)


def test_a_tenth_of_a_second_later_it_may_grow_again_and_not_before() -> None:
    pool = Adaptive()
    for _ in range(3):
        pool.rig.lease()

    waiter = pool.rig.waiter()
    assert pool.size == 3
    pool.rig.now += 0.1
    pool.sizer.enqueued()

    assert isinstance(waiter.outcome(), Lease)
    assert pool.size == 4


def test_it_never_exceeds_max_connections() -> None:
    pool = Adaptive(replace(PLAN, connections_per_rps=100.0))
    pool.pass_s(5.0, calls_per_step=3)
    for _ in range(6):
        pool.rig.lease()

    waiter = pool.rig.waiter(timeout_s=0.3)

    assert pool.size == 6
    assert "max 6" in str(waiter.outcome())


def test_when_calls_become_rare_it_shrinks_and_closes_what_is_idle_beyond() -> None:
    pool = Adaptive()
    pool.rig.pool.resize(6)
    pool.rig.fill_idle("a", "b", "c", "d", "e", "f")
    pool.pass_s(10.0, calls_per_step=20)
    assert (pool.size, pool.told) == (6, [])

    pool.pass_s(15.0)

    assert [one.reason for one in pool.told] == [ResizeReason.SURPLUS] * len(pool.told)
    assert pool.size == 2
    assert pool.rig.pool.view().idle == 2
    assert pool.rig.counters.closed == {"surplus": 4}


def test_a_call_that_finds_a_connection_free_asks_the_rule_nothing() -> None:
    pool = Adaptive()
    asked = []
    pool.rig.pool.on_enqueue = lambda: asked.append(1)

    for _ in range(10):
        pool.rig.pool.give_back(pool.rig.lease(), reusable=True)

    assert asked == []


def test_while_one_thread_tells_of_a_resize_the_others_go_on() -> None:
    pool = Adaptive()
    telling, go_on = threading.Event(), threading.Event()

    def tell(resize: Resize) -> None:
        telling.set()
        go_on.wait(10.0)

    pool.sizer._on_resize = tell
    for _ in range(2):
        pool.rig.lease()
    thread = threading.Thread(target=pool.rig.lease)
    thread.start()
    assert telling.wait(10.0)

    pool.sizer.looked(pool.rig.now)
    assert pool.size == 3

    go_on.set()
    thread.join(10.0)
    assert not thread.is_alive()


def test_while_one_thread_judges_another_does_not_wait_for_it() -> None:
    pool = Adaptive()
    with pool.sizer._lock:
        pool.sizer.looked(pool.rig.now)  # would hang
        assert pool.rig.pool.on_enqueue is not None
        pool.rig.pool.on_enqueue()

    assert pool.told == []


def test_a_forked_child_judges_by_what_it_sees_itself() -> None:
    pool = Adaptive()
    pool.pass_s(12.0, calls_per_step=20)
    assert pool.sizer.baseline_rps is not None
    pool.sizer._lock.acquire()  # as another thread had it at the fork
    pool.sizer._pid = -1

    pool.sizer.looked(pool.rig.now)

    assert (pool.sizer.baseline_rps, pool.size) == (None, 2)
    pool.pass_s(12.0, calls_per_step=20)
    assert pool.sizer.baseline_rps is not None


def test_with_many_threads_nobody_is_left_waiting_and_no_connection_is_beyond_the_largest_size() -> None:
    pool = Adaptive(replace(PLAN, shrink_when_rate=100.0, grow_when_rate=0.0, rate_window_s=1.0))
    most, failed = [0], []

    def call() -> None:
        for number in range(60):
            try:
                lease = pool.rig.pool.acquire(20.0)
            except Exception as error:
                failed.append(error)
                return
            lease.conn = lease.conn or Conn()
            most[0] = max(most[0], pool.rig.pool.view().inuse)
            time.sleep(0.0005)  # others come in the meantime
            pool.rig.now += 0.02
            if number % 7 == 0:
                pool.sizer.looked(pool.rig.now)
            pool.rig.pool.give_back(lease, reusable=True)

    threads = [threading.Thread(target=call) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert failed == []
    assert (max(one.to_size for one in pool.told), most[0]) == (6, 6)
    pool.pass_s(30.0)
    view = pool.rig.pool.view()
    assert (view.inuse, view.waiting, view.idle, view.max_connections) == (0, 0, 2, 2)


class Use:
    """Takes and gives back in any order, and knows how many were out at once, instant by instant."""

    def __init__(self) -> None:
        self.rig = rig(max_connections=8)
        self.out: list[Lease[Conn]] = []
        self.history: list[tuple[float, int]] = [(self.rig.now, 0)]

    def step(self, gap_s: float, take: bool) -> None:
        self.rig.now += gap_s
        if take and len(self.out) < 8:
            self.out.append(self.rig.lease())
        elif not take and self.out:
            self.rig.pool.give_back(self.out.pop(0), reusable=True)
        self.history.append((self.rig.now, len(self.out)))

    def busiest(self, since: float) -> int:
        before = [out for at, out in self.history if at < since]
        return max([out for at, out in self.history if at >= since] + before[-1:])


def test_a_connection_made_ahead_of_need_was_never_in_use() -> None:
    pool = rig(max_connections=8)
    since = pool.now
    for name in "abc":
        assert pool.pool.offer(Conn(name))
    assert pool.pool.busiest(since) == 0

    pool.pool.give_back(pool.lease(), reusable=True)

    assert pool.pool.busiest(since) == 1


@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.booleans()), max_size=40), st.integers(0, 30))
def test_the_most_in_use_at_once_can_be_told_from_what_lies_idle(
    steps: list[tuple[float, bool]], back: int
) -> None:
    use = Use()
    for gap_s, take in steps:
        use.step(gap_s, take)
    since = use.rig.now - back - 0.25

    assert use.rig.pool.busiest(since) == use.busiest(since)
