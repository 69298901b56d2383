"""How long a connection lives, how many are kept, what becomes of one that nobody gives back: on a virtual clock."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from headrace.transport.lease.pool import Lease, LeaseCancelled, LeaseRejected, LeaseReport, LeaseTimeout
from support.leases import Conn, Rig, rig
from support.waiting import wait_until


def test_a_connection_past_its_lifetime_is_skipped_at_checkout_however_busy_it_was() -> None:
    r = rig(max_connections=3, max_lifetime_s=300.0)
    old = r.fill_idle("old")[0]
    for _ in range(29):
        r.now += 10.0
        r.pool.give_back(r.lease(), reusable=True)
    r.now += 10.0
    assert r.lease("young").conn is not old
    assert r.closed == [old]
    assert old.probes == 29
    assert r.counters.closed == {"lifetime": 1}


def test_each_connection_draws_its_lifetime_once_up_to_a_fortieth_shorter() -> None:
    r = rig(max_connections=2, max_lifetime_s=200.0)
    a = r.lease("full")
    r.dice = 0.999
    b = r.lease("short")
    r.dice = 0.5  # drawn already: no longer of any effect
    assert (a.connection.expires_at, b.connection.expires_at) == (1200.0, pytest.approx(1195.005))
    r.pool.give_back(a, reusable=True)
    r.now += 1.0
    again = r.lease()
    assert (again.conn, again.connection.expires_at) == (a.conn, 1200.0)


def test_a_busy_connection_past_its_lifetime_is_closed_when_it_comes_back() -> None:
    r = rig(max_lifetime_s=300.0)
    lease = r.lease()
    r.now += 400.0
    r.pool.tend()
    assert (r.aborted, r.closed) == ([], [])
    r.pool.give_back(lease, reusable=True)
    assert r.closed == [lease.conn]
    assert r.counters.closed == {"lifetime": 1}


@pytest.mark.parametrize(("age_s", "closed"), [(299.5, {}), (300.0, {"lifetime": 1})])
def test_a_connection_given_back_as_its_lifetime_ends_is_not_kept(
    age_s: float, closed: dict[str, int]
) -> None:
    r = rig(max_lifetime_s=300.0)
    lease = r.lease()
    r.now += age_s
    r.pool.give_back(lease, reusable=True)

    assert r.counters.closed == closed


def test_with_a_grace_a_busy_connection_is_aborted_once_it_is_over() -> None:
    r = rig(max_lifetime_s=300.0, max_lifetime_grace_s=30.0)
    lease = r.lease()
    r.now += 329.0
    r.pool.tend()
    assert r.aborted == []
    r.now += 1.0
    r.pool.tend()
    r.pool.tend()
    assert r.aborted == [lease.conn]
    r.pool.give_back(lease, reusable=False)  # its holder saw an error
    assert r.counters.closed == {"lifetime": 1}


def test_a_connection_broken_off_is_not_used_again_whatever_its_holder_says() -> None:
    r = rig()
    lease = r.lease()
    assert lease.token is not None
    assert r.pool.abort(lease.token)
    r.pool.give_back(lease, reusable=True)
    assert r.lease("another").conn is not lease.conn
    assert (r.aborted, r.closed) == ([lease.conn], [lease.conn])
    assert r.counters.closed == {"error": 1}


def test_a_connection_broken_off_during_its_return_is_not_used_again_either() -> None:
    r = rig()
    lease = r.lease()
    assert lease.token is not None
    assert r.pool.abort(lease.token)
    lease.connection.idle_since = r.now
    r.pool._kept.append(lease)  # give_back() had looked at its end a moment before that
    assert r.lease("another").conn is not lease.conn
    assert r.closed == [lease.conn]


def test_a_lease_that_has_ended_cannot_be_broken_off() -> None:
    r = rig()
    lease = r.lease()
    token = lease.token
    assert token is not None
    r.pool.give_back(lease, reusable=True)
    heir = r.lease()
    assert heir.conn is lease.conn
    assert r.pool.abort(token) is False
    assert r.aborted == []


def break_off(r: Rig, token: Any) -> bool:
    return r.pool.abort(token)


def end(r: Rig, token: Any) -> bool:
    return r.pool.end(token, "abandoned")


each_way = pytest.mark.parametrize("act", [break_off, end])


@each_way
def test_one_that_was_just_given_back_or_dropped_has_ended(act: Callable[[Rig, Any], bool]) -> None:
    r = rig()
    kept, dropped = r.lease(), r.lease()
    tokens = [kept.token, dropped.token]
    r.pool.give_back(kept, reusable=True)
    r.held.remove(dropped)
    del dropped

    assert [act(r, token) for token in tokens] == [False, False]
    assert (r.aborted, r.closed) == ([], [])


@each_way
def test_a_heartbeat_on_the_connection_of_a_call_that_is_over_is_not_the_call(
    act: Callable[[Rig, Any], bool],
) -> None:
    r = rig(max_connections=3)
    lease = r.lease()
    token = lease.token
    r.pool.give_back(lease, reusable=True)
    (lent,) = r.pool.lend_idle(r.now, idle_s=0.0, most=1)
    assert lent.conn is lease.conn

    assert act(r, token) is False
    assert r.aborted == []
    r.pool.return_unused(lent)


@each_way
def test_a_one_off_connection_can_be_broken_off_and_ended(act: Callable[[Rig, Any], bool]) -> None:
    r = rig(max_connections=1, when_full="new")
    r.lease()
    beyond = r.lease("one-off")

    assert act(r, beyond.token) is True
    assert r.aborted == [beyond.conn]


def test_a_call_that_waits_holds_nothing_that_could_be_ended() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    tokens: list[Any] = []
    waiter = r.waiter(on_wait=tokens.append)
    wait_until(lambda: tokens)

    assert r.pool.end(tokens[0], "abandoned") is False
    r.pool.give_back(held, reusable=True)
    assert waiter.outcome().conn is held.conn


def test_a_lease_is_ended_in_place_of_its_holder() -> None:
    """failures.md 61."""
    r = rig(max_connections=1)
    lease = r.lease()
    conn, token = lease.conn, lease.token
    assert token is not None
    waiter = r.waiter()
    assert r.pool.end(token, "abandoned")
    waiter.thread.join(20)
    assert waiter.result.conn is None  # the slot went to who waited; the connection is nobody's
    assert (r.aborted, r.closed) == ([conn], [conn])
    assert lease.aborted == "abandoned"  # so its holder, if there is one, knows whose doing it was
    assert r.counters.closed == {"abandoned": 1}
    assert r.pool.end(token, "abandoned") is False
    r.pool.give_back(lease, reusable=True)
    r.pool.give_back_quietly(lease)
    assert r.pool.view().inuse == 1
    assert r.counters.closed == {"abandoned": 1}


def test_one_ended_during_its_return_is_not_used_again() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    conn, token = lease.conn, lease.token
    assert token is not None
    assert r.pool.end(token, "abandoned")
    r.pool._kept.append(lease)  # give_back() had looked at its end a moment before that
    assert r.lease("another").conn is not conn
    assert r.closed == [conn]


def test_one_given_back_and_one_dropped_before_it_is_ended_are_left_alone() -> None:
    r = rig(max_connections=2)
    kept, dropped = r.lease(), r.lease()
    tokens = (kept.token, dropped.token)
    r.pool.give_back(kept, reusable=True)
    r.held.clear()
    del dropped
    for token in tokens:
        assert token is not None
        assert r.pool.end(token, "abandoned") is False
    assert r.aborted == []
    assert r.counters.closed == {"leaked": 1}
    assert r.lease("another").conn is kept.conn


def test_why_a_connection_was_broken_off_before_its_lease_was_ended_stays_the_reason() -> None:
    r = rig()
    lease = r.lease()
    assert lease.token is not None
    assert r.pool.abort(lease.token, "lifetime")
    assert r.pool.end(lease.token, "abandoned")
    assert r.counters.closed == {"lifetime": 1}


def test_a_one_off_connection_is_ended_too() -> None:
    r = rig(max_connections=1, when_full="new")
    lease, beyond = r.lease(), r.lease()
    assert beyond.one_off
    assert beyond.token is not None
    assert r.pool.end(beyond.token, "abandoned")
    view = r.pool.view()
    assert (view.inuse, view.one_off) == (1, 0)
    r.pool.give_back(lease, reusable=True)


def test_a_connection_is_replaced_after_so_many_requests() -> None:
    r = rig(max_connections=1, max_requests_per_connection=3)
    conns = []
    for _ in range(7):
        lease = r.lease()
        conns.append(lease.conn)
        r.pool.give_back(lease, reusable=True)
    assert [len(list(group)) for _, group in itertools.groupby(conns, key=id)] == [3, 3, 1]
    assert r.counters.closed == {"lifetime": 2}
    assert r.counters.acquires == {"miss": 3, "hit": 4}


def test_no_limit_means_no_limit() -> None:
    r = rig(max_lifetime_s=None, idle_timeout_s=1e9)
    (conn,) = r.fill_idle("eternal")
    r.now += 1e8
    assert r.lease().conn is conn


@pytest.mark.parametrize("idle_s", [0.0, 0.001, 0.5, 59.0])
def test_an_idle_connection_is_looked_at_however_recently_it_was_used(idle_s: float) -> None:
    """failures.md 53."""
    r = rig()
    (conn,) = r.fill_idle("conn")
    r.now += idle_s
    lease = r.pool.acquire(1.0)
    assert (lease.conn, lease.reused, conn.probes) == (conn, True, 1)


def test_a_call_never_gets_a_dead_connection_however_many_there_are() -> None:
    """failures.md 18."""
    r = rig(max_connections=4)
    for conn in r.fill_idle("a", "b", "c", "d"):
        conn.alive = False
    lease = r.pool.acquire(1.0)
    assert (lease.conn, lease.reused) == (None, False)
    assert len(r.closed) == 4


def test_a_connection_handed_to_a_waiter_is_looked_at_too() -> None:
    """failures.md 53. What came behind the answer before is there already."""
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter()
    assert held.conn is not None
    held.conn.alive = False
    r.pool.give_back(held, reusable=True)
    lease = waiter.outcome()
    assert (lease.conn, lease.reused) == (None, False)
    assert r.counters.closed == {"dead": 1}


def test_idle_connections_above_max_idle_go_by_halves_oldest_first() -> None:
    r = rig(max_connections=20, max_idle=4)
    r.fill_idle(*(str(number) for number in range(16)))
    left = []
    for _ in range(6):
        r.pool.tend()
        left.append(r.pool.view().idle)
    assert left == [10, 7, 5, 4, 4, 4]
    assert [conn.name for conn in r.closed] == [str(number) for number in range(12)]
    assert r.counters.closed == {"surplus": 12}


def test_a_fresh_lease_takes_no_idle_connection() -> None:
    r = rig(max_connections=2)
    (idle,) = r.fill_idle("idle")
    lease = r.pool.acquire(1.0, fresh=True)
    assert (lease.conn, lease.reused) == (None, False)
    assert (r.pool.view().inuse, r.pool.view().idle) == (1, 1)
    assert r.lease().conn is idle


def test_a_fresh_lease_from_a_pool_full_of_idle_connections_closes_the_oldest() -> None:
    r = rig(max_connections=2)
    old, new = r.fill_idle("old", "new")
    lease = r.pool.acquire(0.0, fresh=True)
    assert lease.conn is None
    assert r.closed == [old]
    assert (r.pool.view().inuse, r.pool.view().idle) == (1, 1)
    assert r.lease().conn is new


def test_a_fresh_lease_waits_in_line_and_gets_a_slot_without_the_connection_that_came_back() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter(fresh=True)
    second = r.waiter()
    r.pool.give_back(held, reusable=True)
    lease = waiter.outcome()
    assert (lease.conn, r.closed) == (None, [held.conn])
    lease.conn = Conn("fresh")
    r.pool.give_back(lease, reusable=True)
    assert second.outcome().conn is lease.conn


def test_a_fresh_lease_that_was_waited_for_in_vain_leaves_nothing_behind() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    tokens: list[Any] = []
    for _ in range(2):
        with pytest.raises(LeaseTimeout):
            r.pool.acquire(0.001, fresh=True, on_wait=tokens.append)
    gone = r.waiter(fresh=True, on_wait=tokens.append)
    wait_until(lambda: len(tokens) == 3)
    assert r.pool.abort(tokens[2]) is True
    assert isinstance(gone.outcome(), LeaseCancelled)
    gone.result = None
    gc.collect()

    assert [token() for token in tokens] == [None] * 3  # or a busy pool would grow for ever
    served = r.waiter(fresh=True)
    r.pool.give_back(held, reusable=True)
    assert served.outcome().conn is None
    assert not r.pool._fresh_waiters


def test_growing_serves_those_who_wait() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiters = [r.waiter() for _ in range(3)]
    r.pool.resize(3)
    leases = [waiter.outcome() for waiter in waiters[:2]]
    assert [lease.conn for lease in leases] == [None, None]
    assert (r.pool.view().waiting, r.pool.view().max_connections) == (1, 3)
    r.pool.give_back(held, reusable=True)
    assert waiters[2].outcome().conn is held.conn


def test_shrinking_closes_idle_connections_now_and_surplus_ones_when_they_come_back() -> None:
    r = rig(max_connections=5)
    busy = [r.lease(f"busy{number}") for number in range(3)]
    idle = [r.lease(f"idle{number}") for number in range(2)]
    for lease in idle:
        r.pool.give_back(lease, reusable=True)
    r.pool.resize(2)
    assert r.closed == [lease.conn for lease in idle]
    with pytest.raises(LeaseTimeout, match="3 in use, 0 idle, 0 waiting, max 2"):
        r.pool.acquire(0.0)
    for lease in busy:
        r.pool.give_back(lease, reusable=True)
    view = r.pool.view()
    assert (view.inuse, view.idle) == (0, 2)
    assert r.counters.closed == {"surplus": 3}
    first = r.lease()
    assert first.conn is busy[2].conn
    r.pool.give_back(first, reusable=True)  # and nothing is closed that fits
    assert r.counters.closed == {"surplus": 3}


def test_a_connection_made_ahead_of_need_is_leased_and_one_too_many_is_closed() -> None:
    r = rig(max_connections=3, min_idle=2, max_idle=3)
    assert r.pool.want_idle() == 2
    one, two = Conn("one"), Conn("two")
    assert r.pool.offer(one)
    assert r.pool.want_idle() == 1
    assert r.pool.offer(two)
    assert r.pool.want_idle() == 0
    lease = r.pool.acquire(0.0)
    assert (lease.conn, lease.reused, lease.connection.uses) == (two, True, 1)
    assert r.pool.want_idle() == 1
    held = [r.pool.acquire(0.0, fresh=True), r.lease()]
    assert (r.pool.view().inuse, r.pool.want_idle()) == (3, 0)  # no room
    assert r.pool.offer(late := Conn("late")) is False
    assert r.closed[-1] is late
    assert r.counters.closed == {"surplus": 1}
    r.pool.retire()
    r.pool.give_back(held[0], reusable=False)
    assert r.pool.want_idle() == 0
    assert r.pool.offer(later := Conn("later")) is False
    assert r.closed[-1] is later
    assert r.counters.closed == {"surplus": 1, "retired": 1}


def test_nothing_is_wanted_ahead_of_need_where_the_file_wants_nothing_or_has_more_than_it_wants() -> None:
    assert rig(max_connections=3).pool.want_idle() == 0

    r = rig(max_connections=5, min_idle=1)
    r.fill_idle("one", "two", "three")
    assert r.pool.want_idle() == 0


def test_a_slot_that_has_just_come_free_has_room_for_a_connection_made_ahead_of_need() -> None:
    r = rig(max_connections=1, min_idle=1)
    held = r.lease()
    with r.pool._lock:  # so the return can only be noted down
        r.pool.give_back(held, reusable=False)

    assert r.pool.offer(Conn("ahead of need")) is True


def test_a_connection_made_ahead_of_need_is_lent_for_a_look_like_any_other() -> None:
    r = rig(max_connections=3, min_idle=1)
    r.pool.offer(conn := Conn("ahead of need"))

    (lent,) = r.pool.lend_idle(r.now, idle_s=0.0, most=1)
    assert repr(lent) == f"<Lease reused, waited 0.000 s, {conn!r}>"
    r.pool.give_back(lent, reusable=True)

    assert (r.pool.view().idle, r.pool.view().one_off, r.closed) == (1, 0, [])
    assert r.pool.reports() == []


@pytest.mark.parametrize(("size", "most", "lent"), [(1, 9, 0), (3, 9, 2), (3, 1, 1), (4, 9, 3)])
def test_one_slot_stays_free_for_a_call_while_connections_are_looked_at(
    size: int, most: int, lent: int
) -> None:
    r = rig(max_connections=size)
    r.fill_idle(*"abcd"[:size])

    leases = r.pool.lend_idle(r.now, idle_s=0.0, most=most)

    assert [lease.conn.name for lease in leases if lease.conn] == list("abcd"[:lent])
    r.pool.acquire(0.0)


def test_a_connection_is_looked_at_once_in_an_interval_although_no_call_has_used_it() -> None:
    r = rig(max_connections=3)
    r.fill_idle("idle")
    r.now += 15.0
    (lent,) = r.pool.lend_idle(r.now, idle_s=15.0, most=1)
    r.pool.return_unused(lent)

    r.now += 14.0
    assert r.pool.lend_idle(r.now, idle_s=15.0, most=1) == []
    r.now += 1.0
    (again,) = r.pool.lend_idle(r.now, idle_s=15.0, most=1)
    assert again.conn is lent.conn


def test_a_call_that_waits_gets_the_connection_that_was_only_looked_at() -> None:
    r = rig(max_connections=2)
    r.fill_idle("idle", "newer")
    (lent,) = r.pool.lend_idle(r.now, idle_s=0.0, most=1)
    r.lease()
    waiter = r.waiter()

    r.pool.return_unused(lent)

    assert waiter.outcome().conn is lent.conn


def test_a_call_that_waits_gets_the_slot_of_a_connection_that_its_holder_has_closed() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter()

    r.pool.give_back_quietly(held)

    assert waiter.outcome().conn is None


def test_housekeeping_serves_who_was_left_waiting_and_brings_the_counters_up_to_date() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter()
    r.pool._size = 2  # as an interrupt leaves it that comes before `resize` has served anybody

    r.pool.tend()

    assert waiter.outcome().conn is None
    assert r.pool._counters.acquires == {"miss": 2}
    r.pool.give_back(held, reusable=True)


def test_only_what_was_in_use_since_counts_for_the_busiest_moment() -> None:
    r = rig(max_connections=5)
    r.fill_idle("used before")
    r.now += 10.0
    since = r.now
    r.pool.offer(Conn("made ahead of need"))
    assert r.pool.busiest(since) == 0

    r.pool.give_back(r.lease(), reusable=True)
    held = r.lease(), r.lease()
    assert r.pool.busiest(since) == 2
    for lease in held:
        r.pool.give_back(lease, reusable=True)
    assert r.pool.busiest(since) == 2


def test_connections_that_were_kept_warm_for_too_long_are_replaced() -> None:
    r = rig(max_connections=3, min_idle=2, max_idle=3)
    r.pool.offer(Conn("one"))
    r.pool.offer(Conn("two"))
    r.now += 60.0
    assert r.pool.tend() == 2
    assert r.pool.want_idle() == 2


def test_a_lease_that_is_dropped_frees_its_slot_at_once_and_is_counted() -> None:
    """failures.md 19."""
    r = rig(max_connections=1)
    lease: Any = r.pool.acquire(0.0)
    lease.conn = Conn()
    waiter = r.waiter()
    del lease
    assert waiter.outcome().conn is None
    assert r.counters.closed == {"leaked": 1}
    assert r.pool.reports() == [LeaseReport(None, None)]


def test_a_lease_and_a_connection_that_hold_each_other_are_reclaimed_by_the_collector() -> None:
    """failures.md 19."""
    r = rig(max_connections=1)
    lease: Any = r.pool.acquire(0.0)
    lease.conn = conn = Conn()
    conn.lease = lease  # type: ignore[attr-defined]  # as urllib3's connection does here
    del lease, conn
    gc.collect()
    assert r.pool.view().inuse == 0
    assert r.pool.acquire(0.0) is not None


def test_a_dropped_one_off_lease_is_reclaimed_too() -> None:
    r = rig(max_connections=1, when_full="new")
    r.lease()
    r.pool.acquire(0.0)
    assert r.pool.view().one_off == 0
    assert r.counters.closed == {"leaked": 1}


def take(r: Rig) -> Any:
    return r.pool.acquire(0.0)


def test_a_leak_is_told_once_per_site_and_where_it_was_taken_if_that_is_noted() -> None:
    unnoted, noted = rig(max_connections=9), rig(max_connections=9, leak_detection_threshold_s=10.0)
    for r in (unnoted, noted):
        for _ in range(3):
            take(r)
        r.pool.acquire(0.0)  # another line
        r.pool.view()
    assert unnoted.pool.reports() == [LeaseReport(None, None)]
    sites = [report.site for report in noted.pool.reports()]
    assert len(set(sites)) == 2
    first = take.__code__.co_firstlineno + 1
    assert sites[0] == f"{__file__}:{first}"
    assert noted.pool.reports() == []


def test_a_lease_held_for_longer_than_the_threshold_is_told_once() -> None:
    r = rig(leak_detection_threshold_s=10.0)
    lease = take(r)
    r.now += 9.9
    r.pool.tend()
    assert r.pool.reports() == []
    r.now += 1.1
    r.pool.tend()
    r.pool.tend()
    (report,) = r.pool.reports()
    assert report.held_s == pytest.approx(11.0)
    assert report.site is not None
    lease.conn = Conn()
    r.pool.give_back(lease, reusable=True)
    again = take(r)
    r.now += 10.0
    r.pool.tend()
    assert len(r.pool.reports()) == 1
    assert again.conn is lease.conn


def test_who_has_waited_for_a_lease_has_not_held_it_meanwhile() -> None:
    r = rig(max_connections=1, leak_detection_threshold_s=10.0)
    held = r.lease()
    waiter = r.waiter(timeout_s=1000.0)
    r.now += 100.0
    r.pool.give_back(held, reusable=True)
    lease = waiter.outcome()
    assert lease.waited_s == 100.0

    r.now += 9.9
    r.pool.tend()
    assert r.pool.reports() == []
    r.now += 0.1
    r.pool.tend()
    (report,) = r.pool.reports()
    assert report.held_s == pytest.approx(10.0)


def test_a_waiter_that_was_served_and_has_not_run_since_has_held_nothing_for_too_long() -> None:
    r = rig(max_connections=1, leak_detection_threshold_s=10.0)
    held = r.lease()

    class Gate:
        """Opens after a long wait, and its waiter comes to run only after a round of housekeeping."""

        def acquire(self, timeout: float = 0.0) -> bool:
            r.now += 100.0
            r.pool.give_back(held, reusable=True)
            r.pool.tend()
            return True

        def release(self) -> None:
            pass

    slot_or_gate = r.pool._slot_or_gate

    def rigged(lease: Lease[Conn], *args: Any) -> Any:
        slot_or_gate(lease, *args)
        r.pool._waiters[lease] = gate = Gate()  # type: ignore[assignment]
        return gate

    r.pool._slot_or_gate = rigged  # type: ignore[method-assign]
    lease = r.pool.acquire(1000.0)

    assert (lease.conn, lease.waited_s) == (held.conn, 100.0)
    assert r.pool.reports() == []


def test_a_reason_given_with_a_return_is_what_is_counted() -> None:
    r = rig()
    r.pool.give_back(r.lease(), reusable=False, reason="dead")
    r.pool.give_back_quietly(r.lease(), "leaked")
    assert r.counters.closed == {"dead": 1, "leaked": 1}
    assert len(r.pool.reports()) == 1


def test_a_waiter_of_a_retired_pool_is_still_served_and_one_of_a_full_rejecting_pool_never_waits() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter()
    r.pool.retire()
    assert r.pool.view().waiting == 1
    r.pool.give_back(held, reusable=True)
    assert waiter.outcome().conn is None
    strict = rig(max_connections=1, when_full="reject")
    strict.lease()
    with pytest.raises(LeaseRejected):
        strict.pool.acquire(5.0, fresh=True)


def test_counters_and_hit_rate_agree_after_failures_waits_and_replacements() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    waiter = r.waiter()
    r.pool.give_back(held, reusable=True)
    got = waiter.outcome()
    assert got.conn is not None
    got.conn.alive = False
    r.pool.give_back(got, reusable=True)
    last = r.pool.acquire(0.0)  # a miss after all: the idle one was dead
    assert last.conn is None
    assert r.counters.acquires == {"miss": 2, "timeout": 1, "hit": 1}
    assert r.pool.hit_rate() == 0.25
    assert sum(r.counters.wait.counts) == 4


def test_a_waiter_leaves_the_queue_when_its_client_has_gone_and_the_slot_is_not_lost() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    tokens: list[Any] = []
    gone = r.waiter(on_wait=tokens.append)
    stays = r.waiter()
    wait_until(lambda: tokens)
    assert r.pool.abort(tokens[0])
    assert isinstance(gone.outcome(), LeaseCancelled)
    assert r.pool.view().waiting == 1
    assert r.aborted == []
    r.pool.give_back(lease, reusable=True)
    assert stays.outcome().conn is lease.conn
    assert r.counters.acquires == {"miss": 1, "hit": 1, "cancelled": 1}
    assert r.pool.abort(tokens[0]) is False


def test_one_that_has_gone_before_it_is_in_the_queue_leaves_it_at_once() -> None:
    r = rig(max_connections=1)
    r.lease()
    with pytest.raises(LeaseCancelled, match="has gone"):
        r.pool.acquire(30.0, on_wait=r.pool.abort)
    assert r.pool.view().waiting == 0


def test_a_slot_handed_over_to_one_who_has_gone_goes_back_with_its_connection_replaced() -> None:
    r = rig(max_connections=1)
    lease = r.lease()

    def hand_over_then_abort(token: Any) -> None:
        r.pool.give_back(lease, reusable=True)
        assert r.pool.abort(token)

    late = r.pool.acquire(30.0, on_wait=hand_over_then_abort)
    assert late.conn is None
    assert late.aborted is not None  # a connection made for it is not used either
    assert r.closed == [lease.conn]
    r.pool.give_back(late, reusable=False)
    assert r.pool.view().inuse == 0


# At the very instant, and what is not told


@pytest.mark.parametrize(
    ("age_s", "closed"),
    [(299.5, {}), (300.0, {"lifetime": 1})],
    ids=["before the end of its life", "at the end of its life"],
)
def test_an_idle_connection_is_closed_when_its_life_is_over(age_s: float, closed: dict[str, int]) -> None:
    r = rig(max_lifetime_s=300.0, idle_timeout_s=1000.0)
    r.fill_idle("idle")

    assert r.pool.tend(r.now + age_s) == len(closed)
    assert r.counters.closed == closed


def test_an_idle_connection_lives_no_longer_than_its_whole_life_after_the_clock_was_stepped_back() -> None:
    """failures.md 69."""
    r = rig(max_lifetime_s=300.0, idle_timeout_s=1000.0)
    r.fill_idle("idle")
    r.now -= 3600.0
    assert r.pool.tend() == 0

    r.now += 299.0
    assert r.pool.tend() == 0
    r.now += 1.0
    assert r.pool.tend() == 1
    assert r.counters.closed == {"lifetime": 1}


def test_a_clock_that_was_stepped_back_shortens_no_life_to_nothing_where_the_file_sets_none() -> None:
    """failures.md 69."""
    r = rig(max_lifetime_s=None, idle_timeout_s=60.0)
    r.fill_idle("idle")
    r.now -= 3600.0

    assert r.pool.tend() == 0
    assert r.lease().reused


def test_a_lease_that_ends_as_it_should_is_no_leak() -> None:
    r = rig(max_connections=2, leak_detection_threshold_s=10.0)
    for reusable in (True, False):
        lease = take(r)
        lease.conn = Conn()
        r.pool.give_back(lease, reusable=reusable)
        r.pool.view()

    assert r.pool.reports() == []


@pytest.mark.parametrize("reusable", [True, False])
def test_what_was_told_of_a_lease_is_forgotten_with_it(reusable: bool) -> None:
    r = rig(leak_detection_threshold_s=10.0)
    lease = r.lease()
    r.now += 10.0
    r.pool.tend()
    assert len(r.pool.reports()) == 1

    r.pool.give_back(lease, reusable=reusable)
    r.pool.view()

    assert not r.pool._reported  # or a busy pool would grow for ever


@pytest.mark.parametrize(("known", "told"), [(999, 1), (1000, 0)])
def test_leaks_at_ever_new_places_are_told_a_thousand_times_at_most(known: int, told: int) -> None:
    r = rig(leak_detection_threshold_s=10.0)
    r.pool._leaky_sites.update(f"generated.py:{line}" for line in range(known))
    take(r)
    r.pool.view()

    assert len(r.pool.reports()) == told


@pytest.mark.parametrize("reusable", [True, False])
def test_a_shrunk_pool_screens_nothing_any_more_once_no_more_are_in_use_than_may_be(reusable: bool) -> None:
    r = rig(max_connections=2)
    first, second = r.lease(), r.lease()
    r.pool.resize(1)
    r.pool.give_back(first, reusable=reusable)
    r.pool.view()

    assert not r.pool._screens
    assert r.closed == [first.conn]
    r.pool.give_back(second, reusable=True)
    assert r.lease().conn is second.conn


def test_a_retired_pool_keeps_nothing_that_comes_back_after_a_broken_one_either() -> None:
    r = rig(max_connections=2)
    broken, whole = r.lease(), r.lease()
    r.pool.retire()
    r.pool.give_back(broken, reusable=False)

    r.pool.give_back(whole, reusable=True)

    assert r.closed == [broken.conn, whole.conn]


def test_who_would_resize_the_pool_is_told_once_of_each_call_that_has_to_wait() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    told: list[int] = []
    r.pool.on_enqueue = lambda: told.append(r.pool.view().waiting)
    waiter = r.waiter()
    wait_until(lambda: told)

    r.pool.give_back(held, reusable=True)

    assert isinstance(waiter.outcome(), Lease)
    assert told == [1]


def test_a_connection_that_was_lent_for_a_look_is_not_looked_at_again_at_once() -> None:
    r = rig(max_connections=3)
    r.fill_idle("conn")
    r.now += 10.0
    (lent,) = r.pool.lend_idle(r.now, idle_s=5.0, most=8)
    assert lent.reused
    r.pool.return_unused(lent)

    r.now += 4.0
    assert r.pool.lend_idle(r.now, idle_s=5.0, most=8) == []

    r.now += 1.0
    assert len(r.pool.lend_idle(r.now, idle_s=5.0, most=8)) == 1


def test_a_connection_that_was_handed_to_who_waited_has_served_one_request_more() -> None:
    r = rig(max_connections=1, max_requests_per_connection=2)
    held = r.lease()
    waiter = r.waiter()
    r.pool.give_back(held, reusable=True)
    lease = waiter.outcome()
    assert lease.conn is held.conn

    r.pool.give_back(lease, reusable=True)

    assert r.counters.closed == {"lifetime": 1}


def test_housekeeping_does_not_end_a_lease_whose_dead_connection_is_being_replaced() -> None:
    """It gets the lock a moment before the thread that has found the connection dead."""
    r = rig(max_lifetime_s=300.0, max_lifetime_grace_s=30.0)
    r.fill_idle("conn")[0].alive = False
    lock = r.pool._lock

    class HousekeepingFirst:
        is_first = True

        def __enter__(self) -> None:
            if self.is_first and sys._getframe(1).f_code.co_name == "_replace":
                self.is_first = False
                r.pool.tend(r.now)
            lock.__enter__()

        def __exit__(self, *args: Any) -> None:
            lock.__exit__(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(lock, name)

    r.pool._lock = HousekeepingFirst()  # type: ignore[assignment]
    lease = r.lease()

    assert not r.pool._lock.is_first  # type: ignore[attr-defined]
    assert lease.aborted is None
