"""One generation of connections is let go of: idle ones now, those in use as they come back, all by the drain's end."""

from __future__ import annotations

import threading

import pytest

from headrace.transport.lease.pool import Lease
from support.leases import Conn, Rig, rig


def test_idle_connections_are_closed_and_those_in_use_when_they_come_back() -> None:
    r = rig(max_connections=4)
    held = r.lease("held")
    idle = r.fill_idle("one", "two")
    assert r.pool.rotate(30.0) == (2, 1)
    assert r.closed == idle
    r.pool.give_back(held, reusable=True)
    assert r.closed == [*idle, held.conn]
    assert r.counters.closed == {"rotated": 3}
    assert r.lease("new").conn.name == "new"  # type: ignore[union-attr]


def test_what_is_still_in_use_after_the_drain_is_broken_off_once() -> None:
    r = rig(max_connections=4, max_lifetime_grace_s=0.0)
    held = r.lease()
    r.pool.rotate(30.0)
    r.now += 29.9
    r.pool.tend()
    assert r.aborted == [], "the grace of a lifetime is not that of a rotation"
    r.now += 0.1
    r.pool.tend()
    r.pool.tend()
    assert (r.aborted, held.aborted) == ([held.conn], "rotated")
    r.pool.give_back(held, reusable=True)
    assert r.counters.closed == {"rotated": 1}


def test_with_no_drain_they_are_broken_off_at_once() -> None:
    r = rig()
    held = r.lease()
    r.pool.rotate(0.0)
    assert r.aborted == [held.conn]


def test_of_several_rotations_in_a_row_each_connection_has_the_drain_of_the_first_that_it_saw() -> None:
    r = rig(max_connections=3)
    first = r.lease("first")
    r.pool.rotate(30.0)
    r.now += 20.0
    second = r.lease("second")
    r.pool.rotate(30.0)
    third = r.lease("third")
    r.now += 10.0
    r.pool.tend()
    assert r.aborted == [first.conn]
    r.now += 20.0
    r.pool.tend()
    assert r.aborted == [first.conn, second.conn]
    r.pool.give_back(third, reusable=True)
    assert r.pool.view().idle == 1
    assert r.pool.generation == 2


def test_a_clock_that_is_stepped_back_makes_no_drain_longer() -> None:
    """failures.md 69."""
    r = rig()
    held = r.lease()
    r.pool.rotate(30.0)
    r.now -= 500.0
    r.pool.tend()
    r.now += 30.0
    r.pool.tend()
    assert r.aborted == [held.conn]


def test_a_connection_that_was_being_made_meanwhile_is_of_the_old_generation() -> None:
    """Nobody knows what its handshake took. Its slot was lent before, and that decides."""
    r = rig()
    lease = r.pool.acquire(1.0)
    assert r.pool.rotate(30.0) == (0, 1)
    lease.conn = Conn("made with either")
    r.pool.give_back(lease, reusable=True)
    assert r.counters.closed == {"rotated": 1}


def test_one_made_ahead_of_need_before_the_rotation_is_not_taken_after_it() -> None:
    r = rig()
    generation = r.pool.generation
    r.pool.rotate(30.0)
    assert not r.pool.offer(Conn("old"), generation=generation)
    assert r.counters.closed == {"rotated": 1}
    assert r.pool.offer(Conn("new"), generation=r.pool.generation)


def test_one_that_was_lent_for_a_look_does_not_come_back() -> None:
    r = rig(max_connections=3)
    r.fill_idle("looked at")
    (lease,) = r.pool.lend_idle(r.now + 100.0, idle_s=1.0, most=1)
    r.pool.rotate(30.0)
    r.pool.return_unused(lease)
    assert r.pool.view().idle == 0
    assert r.counters.closed == {"rotated": 1}


def test_a_waiter_gets_the_slot_of_an_old_connection_and_not_the_connection() -> None:
    r = rig(max_connections=1)
    held = r.lease("old")
    waiter = r.waiter()
    r.pool.rotate(30.0)
    assert r.pool.view().waiting == 1, "the limit holds over generations"
    r.pool.give_back(held, reusable=True)
    served = waiter.outcome()
    assert isinstance(served, Lease)
    assert served.conn is None
    assert r.closed == [held.conn]


def test_of_several_places_the_connection_ends_with_its_last_lease() -> None:
    r = rig(max_connections=3)
    first, second = r.shared(4, 2)
    r.pool.rotate(30.0)
    third = r.lease("elsewhere")
    assert third.conn is not first.conn
    r.pool.give_back(first, reusable=True)
    assert r.closed == []
    r.pool.give_back(second, reusable=True)
    assert r.counters.closed == {"rotated": 1}


@pytest.mark.parametrize("held", [pytest.param(True, id="in use"), pytest.param(False, id="idle")])
def test_a_fork_after_a_rotation_leaves_nothing_to_drain(held: bool) -> None:
    """failures.md 26."""
    r = rig()
    if held:
        r.lease()
    else:
        r.fill_idle("one")
    r.pool.rotate(30.0)
    r.pool._pid = -1  # as in a child
    r.now += 60.0
    r.pool.tend()
    assert r.aborted == []
    assert r.pool.view().inuse == 0


def test_under_threads_no_connection_is_lent_that_is_older_than_the_rotation_before_it_was_asked_for() -> (
    None
):
    """Returns take no lock, so one may pass by a rotation. It is never lent again all the same."""

    class Numbered(Conn):
        generation = 0

    r = Rig(rig(max_connections=8, max_waiting=100).plan)
    over, wrong = threading.Event(), []

    def call() -> None:
        while not over.is_set():
            asked_in = r.pool.generation
            lease = r.pool.acquire(5.0)
            if lease.conn is None:
                lease.conn = Numbered()
                lease.conn.generation = r.pool.generation  # of its handshake, which may be later
            elif lease.conn.generation < asked_in:  # type: ignore[attr-defined]
                wrong.append(lease.conn)
            r.pool.give_back(lease, reusable=True)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        r.pool.rotate(30.0)
        over.wait(0.001)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert r.pool.view().inuse == 0
