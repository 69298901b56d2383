"""Several leases on one connection: what limits count, who is woken, and how such a connection ends."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from headrace.policy.counters import UpstreamCounters
from headrace.transport.lease.errors import LeaseReport
from headrace.transport.lease.pool import (
    Lease,
    LeaseCancelled,
    LeaseClosed,
    LeaseFault,
    LeasePool,
    LeaseRejected,
    LeaseTimeout,
)
from support.forks import bare_fork, in_child, ordinary_fork
from support.leases import Conn, Rig, rig
from support.plans import pool_plan
from support.waiting import wait_until


class Owner:
    """An owner that a peer may authenticate a connection for."""


def counts(r: Rig) -> tuple[int, int, int]:
    view = r.pool.view()
    return view.inuse, view.idle, view.waiting


def test_a_connection_with_free_places_is_lent_again_and_counts_as_one() -> None:
    r = rig(max_connections=1)
    first = r.lease()
    r.pool.share(first, 3)
    second, third = r.lease(), r.lease()
    assert (second.conn, third.conn) == (first.conn, first.conn)
    assert (second.reused, second.one_off, second.waited_s) == (True, False, 0.0)
    assert first.connection.uses == 3
    assert counts(r) == (1, 0, 0)
    assert repr(r.pool) == "<LeasePool 1 in use, 0 idle, 0 waiting, max 1>"
    assert r.counters.acquires == {"miss": 1, "hit": 2}
    with pytest.raises(LeaseTimeout) as caught:
        r.pool.acquire(0.0)
    assert caught.value.inuse == 1


def test_the_limit_counts_connections_and_a_full_one_is_followed_by_the_next() -> None:
    r = rig(max_connections=2)
    r.shared(2, 2, "first")
    r.shared(2, 2, "second")
    assert [lease.conn.name for lease in r.held if lease.conn] == ["first", "first", "second", "second"]
    assert counts(r) == (2, 0, 0)
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)


def test_places_are_filled_on_the_connection_that_is_in_use_for_the_longest_time() -> None:
    r = rig(max_connections=2)
    old = r.shared(2, 2, "old")
    new = r.shared(2, 1, "new")
    r.pool.give_back(old[1], reusable=True)
    assert r.lease().conn is old[0].conn
    assert r.lease().conn is new[0].conn


def test_with_its_last_lease_a_connection_becomes_idle_and_keeps_its_places() -> None:
    r = rig(max_connections=2)
    first, second = r.shared(2, 2)
    r.pool.give_back(first, reusable=True)
    r.now += 5.0
    r.pool.give_back(second, reusable=True)
    assert counts(r) == (0, 1, 0)
    assert first.connection.idle_since == r.now
    again, beside = r.lease(), r.lease()
    assert (again.conn, beside.conn) == (first.conn, first.conn)
    assert counts(r) == (1, 0, 0)
    assert r.closed == []


def test_an_idle_connection_of_one_place_comes_before_a_free_place() -> None:
    r = rig(max_connections=3)
    r.shared(4, 1, "many")
    (alone,) = r.fill_idle_alone()
    assert r.lease().conn is alone
    assert r.lease().conn is not alone


def test_a_waiter_is_woken_for_each_free_place() -> None:
    r = rig(max_connections=1)
    first = r.lease()
    waiters = [r.waiter() for _ in range(4)]
    r.pool.share(first, 3)
    served = [waiter.outcome() for waiter in waiters[:2]]
    assert all(lease.conn is first.conn for lease in served)
    assert counts(r) == (1, 0, 2)
    r.pool.give_back(served[0], reusable=True)
    third = waiters[2].outcome()
    assert (third.conn, counts(r)) == (first.conn, (1, 0, 1))
    r.pool.share(third, 4)  # the peer has said that there may be more
    assert waiters[3].outcome().conn is first.conn


def test_fewer_places_take_nothing_from_those_that_have_one() -> None:
    r = rig(max_connections=2)
    first, second = r.shared(2, 2)
    r.pool.share(second, 1)
    r.pool.give_back(first, reusable=True)
    assert r.lease("another").conn is not second.conn
    assert second.conn not in r.closed
    r.pool.share(second, 2)
    assert r.lease().conn is second.conn


@pytest.mark.parametrize(
    "give_back",
    [
        pytest.param(lambda r, lease: r.pool.give_back(lease, reusable=False, reason="dead"), id="broken"),
        pytest.param(lambda r, lease: r.pool.give_back_quietly(lease, "dead"), id="closed"),
    ],
)
def test_a_connection_that_comes_back_broken_lends_no_more_and_is_closed_with_its_last_lease(
    give_back: Callable[[Rig, Lease[Conn]], None],
) -> None:
    r = rig(max_connections=2)
    first, second, third = r.shared(9, 3)
    give_back(r, second)
    assert r.lease("another").conn is not first.conn
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    r.pool.give_back(first, reusable=True)
    assert r.closed == []
    r.pool.give_back(third, reusable=True)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"dead": 1}


def test_the_first_reason_is_the_reason_of_the_close() -> None:
    r = rig()
    first, second = r.shared(2, 2)
    r.pool.give_back(first, reusable=False, reason="dead")
    r.pool.give_back(second, reusable=False, reason="error")
    assert r.counters.closed == {"dead": 1}


def test_a_lease_that_has_ended_says_nothing_of_its_connection_any_more() -> None:
    r = rig()
    first, second = r.shared(2, 2)
    r.pool.give_back(first, reusable=True)
    r.pool.give_back(first, reusable=False)
    r.pool.give_back_quietly(first)
    assert r.lease().conn is second.conn
    assert second.connection.ends_as is None


def test_requests_are_counted_over_all_leases_and_the_last_one_closes() -> None:
    r = rig(max_connections=2, max_requests_per_connection=3)
    first, second, third = r.shared(9, 3)
    assert r.lease("another").conn is not first.conn
    for lease in (first, third, second):
        assert r.closed == []
        r.pool.give_back(lease, reusable=True)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"lifetime": 1}


def test_a_connection_beyond_its_lifetime_lends_no_more_and_is_closed_with_its_last_lease() -> None:
    r = rig(max_connections=2, max_lifetime_s=10.0)
    first, second = r.shared(9, 2)
    r.now += 9.9
    assert r.lease("beside").conn is first.conn
    r.pool.give_back(r.held.pop(), reusable=True)
    r.now += 0.1
    assert r.lease("another").conn is not first.conn
    r.pool.give_back(first, reusable=True)
    assert r.closed == []
    r.pool.give_back(second, reusable=True)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"lifetime": 1}


def test_a_connection_that_is_in_use_all_the_time_is_not_idle_for_too_long() -> None:
    r = rig(max_connections=1, idle_timeout_s=60.0, max_lifetime_s=None)
    (first,) = r.shared(2, 1)
    r.now += 1000.0
    assert r.lease().conn is first.conn


def test_an_idle_connection_with_places_ends_by_its_idle_time() -> None:
    r = rig(idle_timeout_s=60.0)
    (first,) = r.shared(2, 1)
    r.pool.give_back(first, reusable=True)
    r.now += 60.0
    assert r.lease("another").conn is not first.conn
    assert r.closed == [first.conn]
    assert r.counters.closed == {"idle": 1}


def test_housekeeping_closes_idle_connections_with_places() -> None:
    r = rig(idle_timeout_s=60.0)
    (first,) = r.shared(2, 1)
    r.pool.give_back(first, reusable=True)
    r.now += 60.0
    assert r.pool.tend() == 1
    assert r.closed == [first.conn]


def test_a_retired_pool_lends_places_on_and_closes_with_the_last() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    r.pool.retire()
    beside = r.lease()  # a call of the old snapshot
    assert beside.conn is first.conn
    r.pool.give_back(first, reusable=True)
    assert r.closed == []
    r.pool.give_back(beside, reusable=True)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"retired": 1}


def test_a_smaller_size_drains_the_connections_with_the_fewest_leases() -> None:
    r = rig(max_connections=3)
    few, many, some = r.shared(3, 1, "few"), [], []
    r.pool.share(few[0], 1)
    many = r.shared(3, 3, "many")
    some = r.shared(3, 2, "some")
    r.pool.share(few[0], 3)
    r.pool.resize(1)
    r.pool.give_back(many[0], reusable=True)
    assert r.lease().conn is many[1].conn
    for lease in (*few, *some):
        assert lease.conn not in r.closed
        r.pool.give_back(lease, reusable=True)
        r.pool.view()
    assert {conn.name for conn in r.closed} == {"few", "some"}
    assert r.counters.closed == {"surplus": 2}
    assert counts(r) == (1, 0, 0)


def test_a_connection_above_a_lowered_size_is_closed_with_its_last_lease() -> None:
    r = rig(max_connections=2)
    alone = r.lease("alone")
    (first,) = r.shared(2, 1)
    r.pool.resize(1)
    r.pool.give_back(first, reusable=True)
    assert r.closed == [first.conn]
    assert counts(r) == (1, 0, 0)
    r.pool.give_back(alone, reusable=True)
    assert counts(r) == (0, 1, 0)


def test_an_abort_breaks_off_one_lease_and_shuts_no_socket() -> None:
    r = rig(max_connections=1)
    first, second = r.shared(2, 2)
    assert first.token is not None
    assert r.pool.abort(first.token, "abandoned")
    assert r.aborted_places == [(first.conn, first.token)]
    assert r.aborted == []
    assert (first.aborted, second.aborted) == ("abandoned", None)
    r.pool.give_back(first, reusable=True)  # its stream was reset, the connection is as it was
    assert r.lease().conn is second.conn
    assert r.closed == []


def test_an_abort_of_a_lease_that_has_ended_hits_nobody() -> None:
    r = rig()
    first, _second = r.shared(2, 2)
    token = first.token
    assert token is not None
    r.pool.give_back(first, reusable=True)
    assert not r.pool.abort(token)
    assert not r.pool.end(token, "abandoned")
    assert (r.aborted, r.aborted_places) == ([], [])


def test_an_aborted_lease_that_comes_back_broken_closes_for_the_reason_of_its_abort() -> None:
    r = rig()
    first, second = r.shared(2, 2)
    assert first.token is not None
    r.pool.abort(first.token, "abandoned")
    r.pool.give_back(first, reusable=False)
    r.pool.give_back(second, reusable=True)
    assert r.counters.closed == {"abandoned": 1}


def test_the_end_of_one_lease_frees_its_place_and_leaves_the_connection() -> None:
    r = rig(max_connections=1)
    first, second = r.shared(2, 2)
    waiter = r.waiter()
    assert first.token is not None
    token = first.token
    assert r.pool.end(token, "abandoned")
    assert r.aborted_places == [(second.conn, token)]
    assert waiter.outcome().conn is second.conn
    assert (first.aborted, first.token, r.closed) == ("abandoned", None, [])


def test_a_connection_whose_last_lease_was_ended_is_idle_since_then() -> None:
    r = rig(max_lifetime_s=None)
    (first,) = r.shared(2, 1)
    r.now += 500.0
    assert first.token is not None
    r.pool.end(first.token, "abandoned")
    assert counts(r) == (0, 1, 0)
    assert first.connection.idle_since == r.now


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"max_lifetime_s": 10.0}, id="lifetime"),
        pytest.param({"max_requests_per_connection": 1}, id="requests"),
    ],
)
def test_a_connection_whose_last_lease_was_ended_is_closed_if_it_is_used_up(limits: dict[str, Any]) -> None:
    r = rig(**limits)
    (first,) = r.shared(2, 1)
    r.now += 10.0
    assert first.token is not None
    r.pool.end(first.token, "abandoned")
    assert r.closed == [first.conn]


def test_a_connection_on_which_an_abort_failed_lends_no_more() -> None:
    r = rig(max_connections=1)
    first, second = r.shared(3, 2)
    assert first.token is not None

    def abort(conn: Conn, lease: Lease[Conn]) -> None:
        raise RuntimeError("the codec is lost")

    r.pool._abort_place = abort
    assert r.pool.abort(first.token)
    assert [one.error for one in r.pool.reports() if isinstance(one, LeaseFault)] == [
        "RuntimeError: the codec is lost"
    ]
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    for lease in (first, second):
        r.pool.give_back(lease, reusable=True)
    assert r.closed == [first.conn]


def test_a_stop_shuts_each_connection_once_and_tells_every_holder() -> None:
    r = rig(max_connections=2)
    leases = r.shared(3, 3, "many") + r.shared(1, 1, "one")
    waiter = r.waiter()
    r.pool.stop()
    assert sorted(conn.name for conn in r.aborted) == ["many", "one"]
    assert r.aborted_places == []
    assert [lease.aborted for lease in leases] == ["retired"] * 4
    assert isinstance(waiter.outcome(), LeaseClosed)
    for lease in leases:
        r.pool.give_back(lease, reusable=True)
    assert sorted(conn.name for conn in r.closed) == ["many", "one"]


def test_a_stop_leaves_the_reason_of_an_earlier_abort() -> None:
    r = rig()
    first, second = r.shared(2, 2)
    assert first.token is not None
    r.pool.abort(first.token, "abandoned")
    r.pool.stop()
    assert (first.aborted, second.aborted) == ("abandoned", "retired")


def test_the_grace_of_a_lifetime_ends_all_leases_with_one_shutdown() -> None:
    r = rig(max_lifetime_s=10.0, max_lifetime_grace_s=5.0)
    leases = r.shared(3, 3)
    r.now += 15.0
    r.pool.tend()
    r.pool.tend()
    assert r.aborted == [leases[0].conn]
    assert [lease.aborted for lease in leases] == ["lifetime"] * 3


def test_leases_held_for_too_long_are_reported_each_with_its_site() -> None:
    r = rig(leak_detection_threshold_s=10.0)
    leases = r.shared(3, 2)
    r.now += 10.0
    r.pool.tend()
    r.pool.tend()
    reports = [one for one in r.pool.reports() if isinstance(one, LeaseReport)]
    assert [one.held_s for one in reports] == [10.0, 10.0]
    assert all(one.site for one in reports)
    r.pool.give_back(leases[0], reusable=True)
    r.pool.view()
    assert r.pool._reported == {leases[1].token}


def test_a_lost_lease_frees_its_place_and_its_connection_is_closed_with_the_last() -> None:
    r = rig(max_connections=1, leak_detection_threshold_s=100.0)
    first, _ = r.shared(2, 2)
    conn = first.conn
    waiter = r.waiter()
    del r.held[1], _
    assert r.pool.view().inuse == 1
    assert waiter.thread.is_alive()  # what the lost lease left half read there, nobody knows
    reports = [one for one in r.pool.reports() if isinstance(one, LeaseReport)]
    assert len(reports) == 1
    assert "leases.py:" in str(reports[0].site)
    r.pool.give_back(first, reusable=True)
    assert waiter.outcome().conn is None
    assert r.closed == [conn]
    assert r.counters.closed == {"leaked": 1}


def test_a_connection_whose_every_lease_was_lost_is_closed() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    conn = first.conn
    r.held.clear()
    del first
    assert counts(r) == (0, 0, 0)
    assert r.closed == [conn]


def test_a_lost_lease_whose_drop_went_unheard_is_found_by_housekeeping() -> None:
    """failures.md 61."""
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    conn = first.conn
    with r.pool._lock:
        r.held.clear()
        del first
        r.pool._dropped.clear()  # as if the callback had not got as far
    assert r.pool.view().inuse == 1
    r.pool.tend(r.now)
    assert r.pool.view().inuse == 0
    assert r.closed == [conn]


def test_a_dead_connection_is_left_to_its_holders_and_lends_no_more() -> None:
    r = rig(max_connections=2)
    first, second = r.shared(9, 2)
    assert first.conn is not None
    first.conn.alive = False
    other = r.lease("another")
    assert other.conn is not first.conn
    assert other.reused is False
    assert r.closed == []
    assert r.counters.acquires == {"miss": 2, "hit": 1}
    r.pool.give_back(first, reusable=True)
    r.pool.give_back(second, reusable=True)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"dead": 1}


def test_a_call_that_finds_a_dead_place_takes_the_next_connection() -> None:
    r = rig(max_connections=2)
    dead = r.shared(2, 2, "dead")
    (good,) = r.shared(2, 1, "good")
    r.pool.give_back(dead[1], reusable=True)
    assert dead[0].conn is not None
    dead[0].conn.alive = False
    assert r.lease().conn is good.conn
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)


def test_a_call_that_finds_a_dead_place_waits_for_a_slot_if_there_is_none() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    assert first.conn is not None
    first.conn.alive = False
    waiter = r.waiter()
    r.pool.give_back(first, reusable=False)
    lease = waiter.outcome()
    assert (lease.conn, lease.reused) == (None, False)
    assert r.counters.acquires == {"miss": 2}
    assert sum(r.counters.wait.counts) == 2


def test_a_call_that_finds_a_dead_place_and_has_no_time_leaves_nothing_behind() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    assert first.conn is not None
    first.conn.alive = False
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    assert counts(r) == (1, 0, 0)
    r.pool.give_back(first, reusable=True)
    assert (counts(r), r.closed) == ((0, 0, 0), [first.conn])


def test_a_waiter_whose_place_is_dead_waits_again_and_is_counted_again() -> None:
    r = rig(max_connections=1)
    r.pool._clock = time.monotonic
    first, second = r.shared(2, 2)
    assert first.conn is not None
    waiter = r.waiter()
    first.conn.alive = False
    r.pool.give_back(second, reusable=True)
    wait_until(lambda: first.connection.ends_as == "dead", what="the look at the place")
    wait_until(lambda: r.pool.view().waiting == 1, what="the second wait")
    r.pool.give_back(first, reusable=True)
    assert waiter.outcome().conn is None
    assert sum(r.counters.wait.counts) == sum(r.counters.acquires.values()) == 4
    assert min(r.counters.wait.counts) >= 0


def test_a_look_that_raises_gives_the_place_back() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)

    def interrupt(conn: Conn) -> None:
        raise KeyboardInterrupt

    r.on_probe = interrupt
    with pytest.raises(KeyboardInterrupt):
        r.pool.acquire(1.0)
    assert counts(r) == (1, 0, 0)
    r.pool.give_back(first, reusable=True)
    assert (counts(r), r.closed) == ((0, 0, 0), [first.conn])


def test_a_lease_that_is_ended_during_the_look_at_its_dead_place_is_none() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    assert first.conn is not None

    def end(conn: Conn) -> None:
        (token,) = (one for one in r.pool._shared[first.connection] if one is not first.token)
        assert r.pool.end(token, "abandoned")
        conn.alive = False

    r.on_probe = end
    with pytest.raises(LeaseCancelled):
        r.pool.acquire(1.0)
    assert counts(r) == (1, 0, 0)


def test_a_caller_who_wants_a_fresh_connection_has_one_drained_for_it() -> None:
    r = rig(max_connections=1)
    first, second = r.shared(3, 2)
    waiter = r.waiter(fresh=True)
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)  # or it would wait for as long as others come
    r.pool.give_back(first, reusable=True)
    assert waiter.thread.is_alive()
    r.pool.give_back(second, reusable=True)
    assert waiter.outcome().conn is None
    assert r.closed == [first.conn]
    assert r.counters.closed == {"surplus": 1}


def test_a_caller_behind_one_that_wants_a_fresh_connection_gets_the_free_place() -> None:
    r = rig(max_connections=2)
    draining = r.shared(1, 1, "draining")
    full = r.shared(2, 2, "full")
    fresh, other = r.waiter(fresh=True), r.waiter()
    r.pool.give_back(full[1], reusable=True)
    assert other.outcome().conn is full[0].conn
    assert fresh.thread.is_alive()
    r.pool.give_back(draining[0], reusable=True)
    assert fresh.outcome().conn is None


def test_an_idle_connection_with_places_makes_room_for_a_fresh_one() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    r.pool.give_back(first, reusable=True)
    assert r.pool.acquire(0.0, fresh=True).conn is None
    assert r.closed == [first.conn]


def test_places_on_an_owners_connection_are_that_owners() -> None:
    r = rig(max_connections=2)
    alice, bob = Owner(), Owner()
    (first,) = r.shared(3, 1)
    r.pool.claim(first, alice)
    mine = r.pool.acquire(0.0, owner=alice, own_only=True)
    assert mine.conn is first.conn
    theirs = r.pool.acquire(0.0, owner=bob)
    assert theirs.conn is None
    for lease in (first, mine):
        r.pool.give_back(lease, reusable=True)
    assert counts(r) == (1, 1, 0)
    assert r.pool.acquire(0.0, owner=alice).conn is first.conn


def test_an_owner_whose_connections_are_all_others_has_one_drained() -> None:
    r = rig(max_connections=1)
    alice = Owner()
    first, second = r.shared(3, 2)
    waiter = r.waiter(owner=alice, own_only=True)
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    for lease in (first, second):
        r.pool.give_back(lease, reusable=True)
    assert waiter.outcome().conn is None


def test_an_owner_that_has_a_connection_waits_for_a_place_on_it() -> None:
    r = rig(max_connections=1)
    alice = Owner()
    (first,) = r.shared(1, 1)
    r.pool.claim(first, alice)
    waiter = r.waiter(owner=alice, own_only=True)
    assert first.connection.ends_as is None
    r.pool.share(first, 2)
    assert waiter.outcome().conn is first.conn


@pytest.mark.parametrize("is_busy", [pytest.param(False, id="idle"), pytest.param(True, id="in use")])
def test_a_connection_with_places_goes_with_its_owner(is_busy: bool) -> None:
    r = rig()
    alice = Owner()
    (first,) = r.shared(2, 1)
    r.pool.claim(first, alice)
    if is_busy:
        del alice
        r.pool.give_back(first, reusable=True)
    else:
        r.pool.give_back(first, reusable=True)
        r.pool.view()
        del alice
    assert counts(r) == (0, 0, 0)
    assert r.closed == [first.conn]
    assert r.counters.closed == {"surplus": 1}


def test_an_owner_that_goes_leaves_the_idle_connections_of_all() -> None:
    r = rig(max_connections=3)
    alice = Owner()
    owned, (first,) = r.lease("owned"), r.shared(2, 1, "shared")
    r.pool.claim(owned, alice)
    for lease in (owned, first):
        r.pool.give_back(lease, reusable=True)
    r.pool.view()
    del alice
    assert counts(r) == (0, 1, 0)
    assert r.closed == [owned.conn]


def test_a_connection_made_ahead_of_need_has_the_places_that_its_maker_says() -> None:
    r = rig(max_connections=2, min_idle=1)
    conn = Conn("ahead")
    assert r.pool.want_idle() == 1
    assert r.pool.offer(conn, capacity=2)
    assert r.pool.want_idle() == 0
    assert r.pool.busiest(r.now) == 0  # it was never in use
    assert [r.lease().conn, r.lease().conn] == [conn, conn]
    assert r.pool.want_idle() == 1  # no free place is left


def test_no_idle_connection_is_wanted_while_one_in_use_has_a_free_place() -> None:
    r = rig(max_connections=3, min_idle=1)
    first, _second = r.shared(3, 2)
    assert r.pool.want_idle() == 0
    r.pool.give_back(_second, reusable=False)
    assert r.pool.want_idle() == 1
    assert first.connection.capacity == 3


def test_a_waiter_is_served_by_a_connection_with_places_made_ahead_of_need() -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiters = [r.waiter(), r.waiter()]
    conn = Conn("ahead")
    r.pool._size = 2  # as in `resize`, before it serves
    assert r.pool.offer(conn, capacity=2)
    assert [waiter.outcome().conn for waiter in waiters] == [conn, conn]
    assert held.conn is not conn


def test_the_busiest_moment_counts_connections() -> None:
    r = rig(max_connections=3)
    leases = r.shared(3, 3)
    r.lease()
    assert r.pool.busiest(r.now) == 2
    for lease in leases:
        r.pool.give_back(lease, reusable=True)
    assert r.pool.busiest(r.now) == 2
    assert r.pool.busiest(r.now + 1.0) == 1


def test_a_heartbeat_lends_no_connection_with_places_and_leaves_a_slot_free() -> None:
    r = rig(max_connections=3)
    (first,) = r.shared(2, 1)
    (alone,) = r.fill_idle_alone()
    assert [one.conn for one in r.pool.lend_idle(r.now, idle_s=0.0, most=9)] == [alone]
    r = rig(max_connections=2)
    (first,) = r.shared(2, 1)
    r.fill_idle_alone()
    assert r.pool.lend_idle(r.now, idle_s=0.0, most=9) == []
    r.pool.give_back(first, reusable=True)
    assert len(r.pool.lend_idle(r.now, idle_s=0.0, most=9)) == 1


def test_a_one_off_connection_is_not_shared() -> None:
    r = rig(max_connections=1, when_full="new")
    r.lease()
    lease = r.lease("beyond")
    r.pool.share(lease, 5)
    assert r.lease("another").conn is not lease.conn
    r.pool.give_back(lease, reusable=True)
    assert r.closed == [lease.conn]


def test_a_lease_that_has_ended_cannot_be_shared() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    r.pool.give_back(lease, reusable=True)
    r.pool.share(lease, 5)
    assert not lease.connection.is_shared
    assert [r.lease().conn, r.pool.view().idle] == [lease.conn, 0]
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)


def test_without_a_way_to_break_off_one_lease_nothing_is_shared() -> None:
    pool: LeasePool[Conn] = LeasePool(
        pool_plan(max_connections=1),
        UpstreamCounters(lock=threading.Lock()),
        is_alive=lambda conn: True,
        close=id,
        abort=id,
        discard=id,
    )
    lease = pool.acquire(0.0)
    lease.conn = Conn()
    for share in (lambda: pool.share(lease, 2), lambda: pool.offer(Conn(), capacity=2)):
        with pytest.raises(ValueError, match="abort_place"):
            share()
    assert not lease.connection.is_shared


def test_a_full_pool_of_shared_connections_refuses_as_it_is_told() -> None:
    r = rig(max_connections=1, when_full="reject")
    r.shared(2, 2)
    with pytest.raises(LeaseRejected):
        r.pool.acquire(1.0)


@pytest.mark.parametrize("step", ["_end_returned", "_end_place"])
def test_a_return_that_cannot_be_processed_frees_its_place_and_costs_no_neighbour(step: str) -> None:
    """failures.md 59."""
    r = rig(max_connections=2)
    bad, good = r.shared(2, 2)
    conn, token = good.conn, bad.token
    real = getattr(r.pool, step)

    def act(*args: Any) -> Any:
        if token in args or any(isinstance(one, tuple) and one[0] is bad for one in args):
            raise RuntimeError("injected")
        return real(*args)

    setattr(r.pool, step, act)
    r.pool.give_back(bad, reusable=True)
    assert counts(r) == (1, 0, 0)
    assert good.conn is conn
    assert r.closed == []
    assert r.lease("another").conn is not conn
    r.pool.give_back(good, reusable=True)
    assert r.pool.view().inuse == 1
    assert r.closed == [conn]
    assert [one.error for one in r.pool.reports() if isinstance(one, LeaseFault)] == [
        "RuntimeError: injected"
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("act", ["share", "offer"])
def test_what_is_shared_first_in_a_child_is_the_childs(act: str) -> None:
    """failures.md 26. The first operation in a child gives up what the parent has."""
    r = rig(max_connections=2)
    lease = r.lease()
    conn = lease.conn

    def child() -> None:
        if act == "share":
            r.pool.share(lease, 2)  # from before: nothing
            assert (r.discarded, counts(r)) == ([conn], (0, 0, 0))
        else:
            assert r.pool.offer(Conn("ahead"), capacity=2)
            assert (r.discarded, counts(r)) == ([conn], (0, 1, 0))

    with r.pool._lock:  # of a thread that does not exist in the child
        assert in_child(child, fork=bare_fork) == 0


def test_a_lease_given_back_again_later_does_not_make_its_shared_connection_younger() -> None:
    r = rig()
    (first,) = r.shared(2, 1)
    r.pool.give_back(first, reusable=True)
    r.pool.view()
    r.now += 60.0
    r.pool.give_back(first, reusable=True)
    assert r.pool.tend() == 1
    assert r.closed == [first.conn]


@pytest.mark.parametrize(
    "fork", [pytest.param(ordinary_fork, id="os.fork"), pytest.param(bare_fork, id="fork(2)")]
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_gives_up_a_shared_connection_once_and_its_parent_goes_on(fork: Callable[[], int]) -> None:
    """failures.md 26."""
    r = rig(max_connections=1)
    first, second = r.shared(2, 2)
    conn = first.conn

    def child() -> None:
        lease = r.pool.acquire(1.0)
        assert (lease.conn, r.closed) == (None, [])
        assert r.discarded == [conn]
        r.pool.give_back(first, reusable=True)  # from before: nothing
        r.pool.give_back(second, reusable=False)
        assert counts(r) == (1, 0, 0)

    assert in_child(child, fork=fork) == 0
    r.pool.give_back(first, reusable=True)
    assert r.lease().conn is conn


def test_a_shared_connection_whose_leases_are_lost_in_the_fork_is_given_up_as_well() -> None:
    """failures.md 26."""
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    conn = first.conn
    with r.pool._lock:
        r.held.clear()
        del first
        r.pool._dropped.clear()
    r.pool._pid = -1
    assert counts(r) == (0, 0, 0)
    assert r.discarded == [conn]


class Answer:
    """A response over a shared connection, dropped unread: its finalizer gives the lease back.

    The rig knows the lease, as a codec does that has a table of its streams. Of a lease in the same cycle as its
    response, the collector tells the pool before it calls the finalizer, and it is lost.
    """

    def __init__(self, r: Rig, *, reusable: bool) -> None:
        self.pool = r.pool
        self.reusable = reusable
        self.lease = r.lease()
        if not self.lease.reused:
            r.pool.share(self.lease, 3)
        self.cycle = self  # only the collector can free it

    def __del__(self) -> None:
        self.pool.give_back(self.lease, reusable=self.reusable)


def test_a_finalizer_that_gives_a_place_back_while_its_thread_holds_the_lock_does_not_deadlock() -> None:
    """failures.md 25."""
    r = rig(max_connections=1)
    (first,) = r.shared(3, 1)

    def run() -> None:
        for lock in (threading.Lock(), r.pool._lock, r.counters.lock):
            Answer(r, reusable=True)
            with lock:
                gc.collect()
            r.pool.view()
            assert len(r.pool._shared[first.connection]) == 1

    gc.disable()
    try:
        thread = threading.Thread(target=run, daemon=True)  # a daemon, so that a deadlock fails the test
        thread.start()
        thread.join(10.0)
        assert not thread.is_alive(), "deadlock"
    finally:
        gc.enable()
    assert (r.closed, first.connection.uses) == ([], 4)
    assert counts(r) == (1, 0, 0)


def test_the_collector_may_run_at_any_allocation() -> None:
    r = rig(max_connections=500)  # garbage that has grown old is collected late
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for nth in range(300):
            held = Answer(r, reusable=True)
            Answer(r, reusable=nth % 7 != 0)
            del held.cycle
    finally:
        gc.set_threshold(*threshold)
    del held
    gc.collect()
    assert r.pool.view().inuse == 0
    assert not r.pool._shared
    assert "leaked" not in r.counters.closed


def test_a_lease_lost_in_a_cycle_with_its_response_is_told_of_once() -> None:
    r = rig(max_connections=1)
    (first,) = r.shared(2, 1)
    Answer(r, reusable=True)
    r.held.pop()
    gc.collect()
    with pytest.raises(LeaseTimeout):
        r.pool.acquire(0.0)
    r.pool.give_back(first, reusable=True)
    assert r.counters.closed == {"leaked": 1}


class Wire(Conn):
    """A connection that knows how many use it at once."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.free = threading.Semaphore(capacity)


@pytest.fixture
def _switch_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switch_often")
def test_a_hundred_threads_on_three_connections_of_four_places_lose_nothing() -> None:
    """failures.md 21."""
    r = rig(max_connections=3, max_waiting=1000)
    r.pool._clock = time.monotonic
    wrong: deque[str] = deque()
    ended: deque[str] = deque()

    def run(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(15):
            try:
                lease: Any = r.pool.acquire(dice.choice([0.0, 0.001, 0.01, 30.0]), fresh=dice.random() < 0.1)
            except LeaseTimeout:
                ended.append("timeout")
                continue
            ended.append("leased")
            if lease.conn is None:
                lease.conn = Wire(4)
                if dice.random() < 0.8:
                    r.pool.share(lease, 4)
            conn = lease.conn
            if conn in r.closed:
                wrong.append("a connection that is closed")
            if not conn.free.acquire(blocking=False):
                wrong.append("a fifth lease on one connection")
            if dice.random() < 0.5:
                time.sleep(0)
            if r.pool.view().inuse > 3:
                wrong.append("a fourth connection")
            if dice.random() < 0.1:
                r.pool.abort(lease.token)
            conn.free.release()
            r.pool.give_back(lease, reusable=dice.random() < 0.9)
            r.pool.give_back_quietly(lease)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert len(ended) == 1500
    view = r.pool.view()
    assert (view.inuse, view.waiting) == (0, 0)
    assert view.idle <= 3
    assert not r.pool._shared
    acquires = r.counters.acquires
    assert acquires["hit"] + acquires["miss"] == ended.count("leased")
    assert acquires.get("timeout", 0) == ended.count("timeout")
    assert sum(r.counters.wait.counts) == 1500


def test_an_interrupt_between_any_two_bytecodes_costs_no_place() -> None:
    """failures.md 21."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no interval timer here")
    r = rig(max_connections=1)

    class SoftTimeLimit(Exception):
        pass

    def interrupt(signum: int, frame: Any) -> None:
        raise SoftTimeLimit

    def turn() -> None:
        first = r.pool.acquire(0.0)
        if first.conn is None:
            first.conn = Conn()
            r.pool.share(first, 2)
        second = r.pool.acquire(0.0)
        r.pool.give_back(second, reusable=True)
        r.pool.give_back(first, reusable=True)

    before = signal.signal(signal.SIGALRM, interrupt)
    dice = random.Random(7)
    interrupted = 0
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 60e-6))
                for _ in range(20):
                    turn()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except SoftTimeLimit:
                interrupted += 1
            assert not r.pool._lock.locked()
            assert (r.pool.view().inuse, r.pool._shared) == (0, {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100
    turn()
