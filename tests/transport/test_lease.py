"""What the lease layer does for one caller after another, on a virtual clock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import pytest

from headrace.transport.lease.pool import Lease, LeaseClosed, LeaseRejected, LeaseTimeout
from support.leases import Conn, Rig, Waiter, rig
from support.plans import pool_plan


def test_a_slot_comes_without_a_connection_and_the_connection_stays_for_the_next() -> None:
    r = rig()
    first = r.pool.acquire(1.0)
    assert (first.conn, first.reused, first.waited_s, first.connection.idle_since) == (None, False, 0.0, 0.0)
    first.conn = conn = Conn()
    r.pool.give_back(first, reusable=True)
    second = r.pool.acquire(1.0)
    assert second.conn is conn
    assert second.reused
    assert r.counters.acquires == {"miss": 1, "hit": 1}
    assert r.counters.wait.counts[0] == 2


def test_the_newest_idle_connection_is_leased_first() -> None:
    r = rig(max_connections=3)
    r.fill_idle("old", "middle", "new")
    assert [r.lease().conn.name for _ in range(3)] == ["new", "middle", "old"]  # type: ignore[union-attr]


def test_a_lease_given_back_twice_frees_one_slot_and_pools_one_connection() -> None:
    r = rig()
    lease = r.lease()
    for reusable in (True, True, False):
        r.pool.give_back(lease, reusable=reusable)
    r.pool.give_back_quietly(lease)
    view = r.pool.view()
    assert (view.inuse, view.idle) == (0, 1)
    assert r.closed == []


def test_a_lease_given_back_again_later_does_not_make_its_idle_connection_younger() -> None:
    r = rig()
    lease = r.lease()
    r.pool.give_back(lease, reusable=True)
    r.pool.view()
    r.now += 60.0
    r.pool.give_back(lease, reusable=True)
    assert r.pool.tend(r.now) == 1
    assert r.closed == [lease.conn]


def test_a_lease_of_a_look_that_is_given_back_again_does_not_make_its_connection_younger() -> None:
    r = rig()
    r.fill_idle("conn")
    r.now += 30.0
    (lent,) = r.pool.lend_idle(r.now, idle_s=30.0, most=1)
    r.pool.return_unused(lent)
    r.now += 30.0
    r.pool.give_back(lent, reusable=True)
    assert r.pool.tend(r.now) == 1


def test_checkout_skips_every_dead_connection_and_probes_each_once() -> None:
    """failures.md 18."""
    r = rig(max_connections=5)
    conns = r.fill_idle("alive", "dead", "dead", "dead", "dead")
    for conn in conns:
        conn.alive = conn.name == "alive"
    lease = r.pool.acquire(1.0)
    assert lease.conn is conns[0]
    assert [conn.probes for conn in conns] == [1, 1, 1, 1, 1]
    assert {conn.name for conn in r.closed} == {"dead"}
    assert r.pool.view().inuse == 1
    assert r.counters.closed == {"dead": 4}


def test_checkout_skips_every_expired_connection_without_probing_it() -> None:
    r = rig(max_connections=3)
    conns = r.fill_idle("a", "b", "c")
    r.now += 60.0
    lease = r.pool.acquire(1.0)
    assert lease.conn is None
    assert [conn.probes for conn in conns] == [0, 0, 0]
    r.pool.view()
    assert r.counters.closed == {"idle": 3}
    assert r.counters.acquires["miss"] == 4


def test_a_connection_is_probed_and_closed_without_the_lock() -> None:
    """failures.md 7."""
    r = rig()
    (conn,) = r.fill_idle("dead")
    conn.alive = False
    r.on_probe = lambda conn: r.pool.view() and None  # would wait for ever for a lock that is held
    seen = []
    r.pool._close = lambda conn: seen.append(r.pool.view().inuse)
    r.pool.acquire(1.0)
    assert seen == [1]  # the slot is kept while its dead connection is closed


def test_a_probe_that_raises_leaves_no_slot_behind() -> None:
    r = rig()
    r.fill_idle("conn")

    def interrupt(conn: Conn) -> None:
        raise KeyboardInterrupt

    r.on_probe = interrupt
    with pytest.raises(KeyboardInterrupt):
        r.pool.acquire(1.0)
    assert r.pool.view().inuse == 0
    assert len(r.closed) == 1


def test_a_connection_that_cannot_be_kept_is_closed_and_its_slot_freed() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    r.pool.give_back(lease, reusable=False)
    assert r.closed == [lease.conn]
    again = r.pool.acquire(0.0)
    assert again.conn is None
    assert r.counters.closed == {"error": 1}


def test_an_error_in_close_does_not_reach_the_caller() -> None:
    r = rig()

    def close(conn: Conn) -> None:
        raise OSError("already gone")

    r.pool._close = close
    r.pool.give_back(r.lease(), reusable=False)
    assert r.pool.view().inuse == 0


def test_a_full_pool_says_how_full_after_how_long() -> None:
    r = rig()
    r.lease(), r.lease()
    r.pool._clock = chain([5.0, 5.0, 5.0], repeat(5.25)).__next__
    with pytest.raises(LeaseTimeout) as caught:
        r.pool.acquire(0.001)
    error = caught.value
    assert (error.inuse, error.idle, error.waiting, error.max_connections) == (2, 0, 0, 2)
    assert str(error) == (
        "no connection came free in time (waited 0.250 s; 2 in use, 0 idle, 0 waiting, max 2)"
    )
    assert error.waited_s == 0.25


@pytest.mark.parametrize(
    ("by_deadline", "result"),
    [pytest.param(False, "timeout", id="acquire"), pytest.param(True, "deadline", id="deadline")],
)
def test_a_wait_that_ends_in_vain_is_counted_by_what_cut_it(by_deadline: bool, result: str) -> None:
    r = rig(max_connections=1)
    r.lease()
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0, by_deadline=by_deadline)
    assert r.counters.acquires == {"miss": 1, result: 1}


def test_when_full_reject_refuses_at_once() -> None:
    r = rig(max_connections=1, when_full="reject")
    r.lease()
    with pytest.raises(LeaseRejected, match="the pool is full"):
        r.pool.acquire(30.0)
    assert r.counters.acquires == {"miss": 1, "rejected": 1}


def test_a_call_without_time_to_wait_is_told_so_and_does_not_enter_the_queue() -> None:
    r = rig(max_connections=1)
    r.lease()
    queued: list[Any] = []
    with pytest.raises(LeaseTimeout, match=r"no time to wait \(waited 0\.000 s; 1 in use") as caught:
        r.pool.acquire(0.0, on_wait=queued.append)

    assert (caught.value.waited_s, queued) == (0.0, [])


def test_more_than_max_waiting_waiters_are_rejected_at_once() -> None:
    r = rig(max_connections=1, max_waiting=1)
    lease = r.lease()
    waiter = r.waiter()
    with pytest.raises(LeaseRejected, match=r"as many are waiting as may \(1\)"):
        r.pool.acquire(30.0)
    r.pool.give_back(lease, reusable=True)
    assert waiter.outcome().conn is lease.conn


def test_when_full_new_leases_one_off_connections_that_count_apart_and_are_closed_after_use() -> None:
    r = rig(max_connections=1, when_full="new")
    r.lease()
    beyond = r.lease("one-off")
    view = r.pool.view()
    assert (view.inuse, view.one_off, view.idle) == (1, 1, 0)
    assert r.counters.acquires == {"miss": 2}
    assert "1 in use and 1 one-off" in repr(r.pool)
    r.pool.give_back(beyond, reusable=True)
    view = r.pool.view()
    assert (view.inuse, view.one_off, view.idle) == (1, 0, 0)
    assert [conn.name for conn in r.closed] == ["one-off"]
    assert r.counters.closed == {"surplus": 1}


def test_waiters_are_served_first_come_first_served_and_handed_the_connection_itself() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    waiters = [r.waiter() for _ in range(4)]
    for waiter in waiters:
        conn = lease.conn
        r.pool.give_back(lease, reusable=True)
        assert r.pool.view().idle == 0  # handed over, not put where a newcomer could take it
        lease = waiter.outcome()
        assert lease.conn is conn
        assert lease.reused


def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    waiter = r.waiter()
    r.pool.give_back(lease, reusable=False)
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    assert waiter.outcome().conn is None


def test_a_newcomer_does_not_overtake_a_waiter_that_a_return_has_not_yet_got_round_to() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    waiter = r.waiter()
    with r.pool._lock:  # so the return can only be noted down
        r.pool.give_back(lease, reusable=True)

    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)

    assert waiter.outcome().conn is lease.conn


class LockOfTheLastMoment:
    """The pool's lock; just before its next holder lets it go, *act* happens."""

    def __init__(self, lock: Any, act: Callable[[], object]) -> None:
        self._lock = lock
        self._acts = [act]
        self.acquire, self.release = lock.acquire, lock.release

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        while self._acts:
            self._acts.pop()()
        self._lock.release()


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda pool, other: pool.acquire(0.0), id="acquire"),
        pytest.param(lambda pool, other: pool.abort(other.token), id="abort"),
        pytest.param(lambda pool, other: pool.end(other.token, "abandoned"), id="end"),
        pytest.param(lambda pool, other: pool.tend(), id="tend"),
        pytest.param(lambda pool, other: pool.want_idle(), id="want_idle"),
        pytest.param(lambda pool, other: pool.offer(Conn()), id="offer"),
        pytest.param(lambda pool, other: pool.share(other, 2), id="share"),
        pytest.param(lambda pool, other: pool.lend_idle(pool._clock(), idle_s=0.0, most=1), id="lend_idle"),
        pytest.param(lambda pool, other: pool.return_unused(other), id="return_unused"),
        pytest.param(lambda pool, other: pool.close_idle("idle"), id="close_idle"),
        pytest.param(lambda pool, other: pool.resize(3), id="resize"),
        pytest.param(lambda pool, other: pool.busiest(0.0), id="busiest"),
        pytest.param(lambda pool, other: pool.retire(), id="retire"),
        pytest.param(lambda pool, other: pool.stop(), id="stop"),
        pytest.param(lambda pool, other: pool.view(), id="view"),
        pytest.param(lambda pool, other: pool.hit_rate(), id="hit_rate"),
    ],
)
def test_the_thread_that_lets_the_lock_go_closes_what_was_given_back_meanwhile(
    use: Callable[[Any, Lease[Conn]], object],
) -> None:
    r = rig(max_connections=4, min_idle=1)
    lease, other = r.lease("given back"), r.lease("other")
    r.pool._lock = LockOfTheLastMoment(r.pool._lock, lambda: r.pool.give_back(lease, reusable=False))

    got = use(r.pool, other)

    assert lease.conn in r.closed
    del got  # a lease that is dropped sooner would have the pool look again


def give_back(r: Rig, held: list[Lease[Conn]]) -> None:
    r.pool.give_back(held.pop(), reusable=True)


def drop(r: Rig, held: list[Lease[Conn]]) -> None:
    r.held.remove(held[0])
    held.pop()


@pytest.mark.parametrize(
    ("end", "retires"),
    [
        pytest.param(drop, False, id="dropped"),
        pytest.param(give_back, True, id="given back to a pool that keeps none any more"),
    ],
)
def test_an_acquire_does_what_the_thread_that_found_the_lock_taken_could_not(
    end: Callable[[Rig, list[Lease[Conn]]], None], retires: bool
) -> None:
    r = rig(max_connections=2)
    held = [r.lease()]
    if retires:
        r.pool.retire()
    r.pool._lock = LockOfTheLastMoment(r.pool._lock, lambda: end(r, held))

    got = r.pool.acquire(0.0)

    assert repr(r.pool).startswith(f"<LeasePool {'retired, ' if retires else ''}1 in use, 0 idle")
    assert len(r.pool._kept) + len(r.pool._dropped) == 0
    assert len(r.closed) == retires
    del got


def test_a_waiter_is_served_by_the_newcomer_in_whose_hands_the_lock_was() -> None:
    """Or both would wait to the end of their patience for a connection that is free."""
    r = rig(max_connections=1)
    held = r.lease()
    first = r.waiter()
    r.pool._lock = LockOfTheLastMoment(r.pool._lock, lambda: r.pool.give_back(held, reusable=True))
    second = Waiter(r.pool, 30.0)
    second.thread.start()

    lease = first.outcome()

    assert lease.conn is held.conn
    r.pool.give_back(lease, reusable=True)
    assert second.outcome().conn is held.conn


@pytest.mark.parametrize("end", ["error", "dropped"])
def test_a_slot_that_is_free_and_not_looked_at_yet_is_there_for_who_asks(end: str) -> None:
    r = rig(max_connections=1)
    held = [r.lease()]
    with r.pool._lock:  # so it can only be noted down
        if end == "error":
            r.pool.give_back(held[0], reusable=False)
        else:
            drop(r, held)

    assert r.pool.acquire(0.0).conn is None


def test_a_connection_that_came_back_as_its_pool_was_retired_is_leased_to_nobody() -> None:
    r = rig(max_connections=2)
    held = r.lease("of the old pool")
    r.pool.retire()
    with r.pool._lock:
        r.pool.give_back(held, reusable=True)

    assert r.pool.acquire(0.0).conn is None
    assert r.closed == [held.conn]


def test_a_pool_whose_one_connection_is_always_reused_remembers_nothing_of_the_calls() -> None:
    r = rig(max_connections=1)
    for _ in range(50):
        r.pool.give_back(r.lease(), reusable=True)

    assert len(r.pool._kept) == 1


def test_a_lease_given_back_without_a_connection_leaves_none_behind() -> None:
    r = rig()
    r.pool.give_back(r.pool.acquire(0.0), reusable=True)

    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 0)
    assert r.counters.closed == {}


def test_a_waiter_that_is_served_while_it_gives_up_takes_the_lease() -> None:
    r = rig(max_connections=1)
    held = r.lease()

    class ServedTooLate:
        """A gate that opens between the waiter's time-out and its look at the queue."""

        def __init__(self) -> None:
            self.real = threading.Lock()
            self.real.acquire()

        def acquire(self, timeout: float = 0.0) -> bool:
            r.pool.give_back(held, reusable=True)
            return False

        def release(self) -> None:
            self.real.release()

    slot_or_gate = r.pool._slot_or_gate

    def rigged(lease: Lease[Conn], *args: Any) -> Any:
        slot_or_gate(lease, *args)
        r.pool._waiters[lease] = gate = ServedTooLate()  # type: ignore[assignment]
        return gate

    r.pool._slot_or_gate = rigged  # type: ignore[method-assign]
    lease = r.pool.acquire(0.01)
    assert lease.conn is held.conn
    assert r.pool.view().inuse == 1


@pytest.mark.parametrize(
    "served", [pytest.param(False, id="still waiting"), pytest.param(True, id="just served")]
)
def test_an_interrupted_waiter_leaves_no_trace_and_gives_on_what_it_was_handed(served: bool) -> None:
    """failures.md 21."""
    r = rig(max_connections=1)
    held = r.lease()

    class Interrupted:
        def acquire(self, timeout: float = 0.0) -> bool:
            if served:
                r.pool.give_back(held, reusable=True)
            raise KeyboardInterrupt

        def release(self) -> None:
            pass

    slot_or_gate = r.pool._slot_or_gate

    def rigged(lease: Lease[Conn], *args: Any) -> Any:
        slot_or_gate(lease, *args)
        r.pool._waiters[lease] = gate = Interrupted()  # type: ignore[assignment]
        return gate

    r.pool._slot_or_gate = rigged  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        r.pool.acquire(30.0)
    assert r.pool.view().waiting == 0
    del r.pool._slot_or_gate  # type: ignore[method-assign]
    r.pool.give_back(held, reusable=True)
    view = r.pool.view()
    assert (view.inuse, view.waiting) == (0, 0)
    assert r.pool.acquire(0.0) is not None


def test_expired_idle_connections_are_closed_by_housekeeping_and_young_ones_stay() -> None:
    r = rig(max_connections=3)
    old, young = r.lease("old"), r.lease("young")
    r.pool.give_back(old, reusable=True)
    r.now += 40.0
    r.pool.give_back(young, reusable=True)
    r.now += 20.0
    assert r.pool.tend(r.now) == 1
    assert r.closed == [old.conn]
    assert r.pool.view().idle == 1
    assert r.counters.closed == {"idle": 1}


def test_idle_connections_end_by_their_age_after_the_clock_was_stepped_back() -> None:
    """failures.md 69."""
    r = rig(idle_timeout_s=60.0)
    (conn,) = r.fill_idle("idle")
    r.now -= 3600.0

    assert r.pool.tend() == 0
    r.now += 60.0
    assert r.pool.tend() == 1
    assert r.closed == [conn]
    assert r.counters.closed == {"idle": 1}


def test_a_pool_that_has_shrunk_keeps_what_comes_back_as_before_once_no_more_are_in_use_than_may_be() -> None:
    r = rig(max_connections=2)
    broken, kept = r.lease("broken"), r.lease("kept")
    r.pool.resize(1)
    assert r.pool._screens

    r.pool.give_back(broken, reusable=False)

    assert not r.pool._screens  # or each call would take the long way from now on
    r.pool.give_back(kept, reusable=True)
    assert r.pool.view().idle == 1


@pytest.mark.parametrize(
    ("use", "answer"),
    [
        pytest.param(lambda pool, now: len(pool.lend_idle(now, idle_s=0.0, most=1)), 1, id="lend_idle"),
        pytest.param(lambda pool, now: pool.want_idle(), 0, id="want_idle"),
        pytest.param(lambda pool, now: pool.close_idle("idle"), 1, id="close_idle"),
        pytest.param(lambda pool, now: pool.tend(now + 60.0), 1, id="tend"),
    ],
)
def test_what_was_given_back_and_not_looked_at_yet_is_idle_to_the_first_that_asks(
    use: Callable[[Any, float], int], answer: int
) -> None:
    r = rig(max_connections=4, min_idle=1, idle_timeout_s=60.0)
    r.fill_idle("just now")

    assert use(r.pool, r.now) == answer


def test_a_retired_pool_closes_idle_connections_now_and_leased_ones_when_they_come_back() -> None:
    r = rig()
    leased, idle = r.lease("leased"), r.lease("idle")
    r.pool.give_back(idle, reusable=True)
    r.pool.retire()
    assert r.closed == [idle.conn]
    late = r.lease("late")  # a call of the old snapshot
    waiter = r.waiter()
    r.pool.give_back(leased, reusable=True)
    assert waiter.outcome().conn is None
    r.pool.give_back(late, reusable=True)
    assert r.closed == [idle.conn, leased.conn, late.conn]
    assert r.pool.view().retired
    assert r.counters.closed == {"retired": 3}


def test_a_connection_that_was_only_looked_at_is_closed_if_the_pool_has_been_retired_meanwhile() -> None:
    r = rig(max_connections=3)
    (conn,) = r.fill_idle("idle")
    (lent,) = r.pool.lend_idle(r.now, idle_s=0.0, most=1)
    r.pool.retire()

    r.pool.return_unused(lent)

    assert r.closed == [conn]
    assert r.counters.closed == {"retired": 1}


def test_what_was_given_back_a_moment_ago_is_not_ended_once_more() -> None:
    r = rig()
    lease = r.lease()
    token = lease.token
    assert token is not None
    r.pool.give_back(lease, reusable=True)

    assert r.pool.end(token, "abandoned") is False

    assert (r.aborted, r.closed) == ([], [])


def test_a_stopped_pool_wakes_its_waiters_aborts_what_is_in_use_and_leases_no_more() -> None:
    r = rig()
    leased, also = r.lease("leased"), r.lease("also")
    waiters = [r.waiter() for _ in range(3)]
    r.pool.stop()
    for waiter in waiters:
        assert isinstance(waiter.outcome(), LeaseClosed)
    assert r.aborted == [leased.conn, also.conn]
    with pytest.raises(LeaseClosed, match="the pool is stopped"):
        r.pool.acquire(1.0)
    r.pool.give_back(leased, reusable=True)
    r.pool.give_back(also, reusable=True)
    assert r.closed == [leased.conn, also.conn]
    assert r.pool.view().stopped
    assert repr(r.pool) == "<LeasePool stopped, 0 in use, 0 idle, 0 waiting, max 2>"


def test_hit_rate_is_that_of_the_last_ten_seconds() -> None:
    r = rig()
    assert r.pool.hit_rate() is None
    r.pool.give_back(r.lease(), reusable=True)  # a miss at 1000
    r.now += 5.0
    for _ in range(3):
        r.pool.give_back(r.lease(), reusable=True)
    assert r.pool.hit_rate() == 0.75
    r.now += 5.0
    assert r.pool.hit_rate() == 1.0
    r.now += 5.0
    assert r.pool.hit_rate() is None


def test_an_acquire_at_the_turn_of_a_second_is_of_the_second_that_begins() -> None:
    r = rig()
    r.pool.give_back(r.lease(), reusable=True)  # a miss at 1000
    r.now += 1.0
    r.pool.give_back(r.lease(), reusable=True)
    r.now += 9.0

    assert r.pool.hit_rate() == 1.0


@pytest.mark.parametrize(("back_s", "rate"), [(15.0, None), (15.5, 0.0)])
def test_an_acquire_up_to_fifteen_seconds_early_is_of_a_late_thread_and_beyond_the_clock_was_stepped_back(
    back_s: float, rate: float | None
) -> None:
    """failures.md 69."""
    r = rig()
    r.pool.give_back(r.lease(), reusable=False)  # a miss at 1000; the next second begins at 1001
    r.now = 1001.0 - back_s
    r.pool.give_back(r.lease(), reusable=False)

    assert r.pool.hit_rate() == rate


@pytest.mark.parametrize(("back_s", "closed"), [(15.0, 0), (15.5, 1)])
def test_an_idle_connection_from_up_to_fifteen_seconds_ahead_keeps_the_age_that_it_has(
    back_s: float, closed: int
) -> None:
    """failures.md 69."""
    r = rig(idle_timeout_s=60.0)
    r.fill_idle("given back at 1000")

    assert r.pool.tend(1000.0 - back_s) == 0

    assert r.pool.tend(1059.5 - back_s + 0.5) == closed
    assert r.pool.tend(1060.0) == 1 - closed


def test_gauges_count_leases_and_connections_not_placeholders_and_fall_again() -> None:
    """failures.md 20."""
    r = rig(max_connections=50)
    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 0)  # urllib3's qsize() says 50 here
    leases = [r.lease() for _ in range(7)]
    assert (r.pool.view().inuse, r.pool.view().idle) == (7, 0)
    for lease in leases[:3]:
        r.pool.give_back(lease, reusable=True)
    for lease in leases[3:5]:
        r.pool.give_back(lease, reusable=False)
    assert (r.pool.view().inuse, r.pool.view().idle) == (2, 3)
    r.now += 61.0
    r.pool.tend(r.now)
    for lease in leases:
        r.pool.give_back(lease, reusable=False)
    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 0)  # urllib3's num_connections stays at 7
    assert r.counters.closed == {"error": 4, "idle": 3}


def test_a_lease_says_what_it_is_to_who_debugs() -> None:
    r = rig(max_connections=1, when_full="new")
    first = r.lease("a")
    first.conn = None
    assert repr(first) == "<Lease new, waited 0.000 s, None>"
    assert repr(r.pool.acquire(0.0)) == "<Lease one-off, waited 0.000 s, None>"

    first.conn = Conn("a")
    r.pool.give_back(first, reusable=True)
    again = r.pool.acquire(0.0)
    again.waited_s = 0.25
    assert repr(again).startswith("<Lease reused, waited 0.250 s, Conn(")


@pytest.mark.parametrize(("kept", "left"), [(4095, 4096), (4096, 0)])
def test_waits_that_no_housekeeping_has_seen_do_not_pile_up(kept: int, left: int) -> None:
    r = rig(max_connections=1)
    held = r.lease()
    r.pool._tally.waits.extend([0.0] * kept)  # as so many calls that had to wait have left them

    r.held.append(r.pool.acquire(30.0, on_wait=lambda token: r.pool.give_back(held, reusable=True)))

    assert len(r.pool._tally.waits) == left


def test_a_pool_says_what_it_still_does() -> None:
    r = rig(max_connections=2)
    assert repr(r.pool) == "<LeasePool 0 in use, 0 idle, 0 waiting, max 2>"
    assert (r.pool.retired, r.pool.stopped) == (False, False)

    r.pool.retire()
    assert repr(r.pool).startswith("<LeasePool retired, 0 in use")
    assert (r.pool.retired, r.pool.stopped) == (True, False)

    r.pool.stop()
    assert repr(r.pool).startswith("<LeasePool stopped, 0 in use")
    assert (r.pool.retired, r.pool.stopped) == (True, True)


def test_a_stopped_pool_has_told_its_counters_and_the_holders_whose_doing_it_was() -> None:
    r = rig(max_connections=3)
    held, over, unheard = r.lease(), r.lease(), r.pool.acquire(0.0)
    assert over.token is not None
    r.pool.abort(over.token, "lifetime")
    with r.pool._lock:
        del unheard
        r.pool._dropped.clear()  # as if the callback had been interrupted

    r.pool.stop()

    assert (held.aborted, over.aborted) == ("retired", "lifetime")
    assert r.pool._counters.acquires == {"miss": 3}


def test_an_edit_of_the_file_is_followed_and_an_adaptive_pool_keeps_the_size_that_it_has() -> None:
    r = rig(max_connections=4, idle_timeout_s=60.0)
    r.pool.resize(2)

    r.pool.follow(pool_plan(max_connections=4, idle_timeout_s=10.0))
    assert r.pool.view().max_connections == 2
    r.fill_idle("idle")
    r.now += 10.0
    assert r.pool.tend() == 1

    r.pool.follow(pool_plan(max_connections=3, idle_timeout_s=10.0))
    assert r.pool.view().max_connections == 3


def test_a_process_that_was_forked_from_a_shrunk_pool_has_nothing_to_screen() -> None:
    """failures.md 26."""
    r = rig(max_connections=2)
    held = [r.lease(), r.lease()]
    r.pool.resize(1)
    for pid in (-1, -1):  # twice: a grandchild may be given the number of a process that is gone
        r.pool._pid = pid
        r.pool.view()

    assert not r.pool._screens
    assert [(lease.conn, lease.token) for lease in held] == [(None, None)] * 2
    r.pool.give_back(held[0], reusable=True)
    assert (r.pool.view().inuse, r.pool.view().idle) == (0, 0)


def test_a_pool_is_true_even_when_it_is_empty() -> None:
    assert bool(rig().pool) is True


def test_a_hit_and_its_return_are_two_python_calls_beside_the_look() -> None:
    r = rig()
    r.pool._is_alive = bool
    r.fill_idle("warm")
    r.pool._clock = repeat(1000.25).__next__
    r.pool.give_back(r.pool.acquire(1.0), reusable=True)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        r.pool.give_back(r.pool.acquire(1.0), reusable=True)
    finally:
        sys.setprofile(None)
    assert calls == ["acquire", "give_back"]


# The hit rate


def test_what_was_before_the_last_ten_seconds_is_not_in_the_hit_rate() -> None:
    r = rig()
    for _ in range(4):
        r.pool.give_back(r.lease(), reusable=True)
    r.now += 11.0
    held = [r.lease(), r.lease()]

    assert held
    assert r.pool.hit_rate() == 0.5


def test_after_a_step_back_of_the_clock_the_hit_rate_is_that_since_then() -> None:
    """failures.md 69."""
    r = rig()
    r.pool.give_back(r.lease(), reusable=True)  # a miss
    r.now += 1.0
    r.pool.give_back(r.lease(), reusable=True)
    r.now -= 100.0
    assert r.pool.hit_rate() is None

    r.pool.give_back(r.lease(), reusable=True)

    assert r.pool.hit_rate() == 1.0


def test_the_hit_rate_counts_from_the_zero_of_the_clock() -> None:
    r = rig()
    r.now = 0.5
    r.lease()

    assert r.pool.hit_rate() == 0.0


def test_a_busy_pool_whose_hit_rate_nobody_asks_for_remembers_ten_seconds() -> None:
    r = rig()
    for _ in range(50):
        r.pool.give_back(r.lease(), reusable=True)
        r.now += 1.0

    assert len(r.pool._tally._marks) == 10
