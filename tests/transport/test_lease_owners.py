"""A connection that its peer has authenticated is one caller's: passed over by others, closed after it."""

from __future__ import annotations

import gc
import sys
from typing import Any
from weakref import ref

import pytest

from headrace.transport.lease.pool import Lease
from support.leases import Conn, Rig, rig


class Owner:
    """An owner that can be referred to weakly."""


def owned(r: Rig, owner: object, name: str = "own") -> Conn:
    """An idle connection of *owner*."""
    lease = r.lease(name)
    r.pool.claim(lease, owner)
    r.pool.give_back(lease, reusable=True)
    assert lease.conn is not None
    return lease.conn


def test_others_pass_a_connection_over_and_its_owner_finds_it_before_newer_ones() -> None:
    """failures.md 54."""
    r = rig(max_connections=4)
    alice, bob = Owner(), Owner()
    own = owned(r, alice)
    (shared,) = r.fill_idle("shared")

    assert r.pool.acquire(0.0, owner=bob).conn is shared
    assert r.pool.acquire(0.0).conn is None
    lease = r.pool.acquire(0.0, owner=alice)
    assert (lease.conn, lease.reused) == (own, True)
    assert r.closed == []


def test_a_call_after_the_next_one_finds_it_again_as_the_third_message_of_ntlm_must() -> None:
    """failures.md 54."""
    r = rig(max_connections=4)
    alice = Owner()
    own = owned(r, alice)
    r.fill_idle("a", "b")
    for _ in range(3):
        lease = r.pool.acquire(0.0, owner=alice)
        assert lease.conn is own
        r.pool.give_back(lease, reusable=True)


def test_it_stays_its_owners_however_often_it_was_leased() -> None:
    """failures.md 54. One that lost its owner would answer another caller in the owner's name."""
    r = rig(max_connections=4)
    alice = Owner()
    own = owned(r, alice)
    r.pool.give_back(r.pool.acquire(0.0, owner=alice), reusable=True)

    assert r.pool.acquire(0.0).conn is None
    assert r.pool.acquire(0.0, owner=Owner()).conn is None
    assert r.pool.acquire(0.0, owner=alice).conn is own


def test_its_owner_finds_it_although_its_return_was_not_looked_at_yet_and_another_came_back_since() -> None:
    """failures.md 54."""
    r = rig(max_connections=4)
    alice = Owner()
    own, shared = r.lease("own"), r.lease("shared")
    r.pool.claim(own, alice)
    with r.pool._lock:  # so the returns can only be noted down
        r.pool.give_back(own, reusable=True)
        r.pool.give_back(shared, reusable=True)

    assert r.pool.acquire(0.0, owner=alice).conn is own.conn


def test_a_connection_whose_owner_has_gone_unheard_is_nobodys() -> None:
    """failures.md 54. CPython swallows an interrupt in the callback that would tell of it."""
    r = rig(max_connections=4)
    alice = Owner()
    own = owned(r, alice)
    (last,) = r.pool._apart
    last.owner = ref(alice)
    del alice
    gc.collect()

    assert r.pool.acquire(0.0).conn is not own


def test_a_pool_full_of_other_peoples_connections_makes_room_by_closing_the_longest_idle() -> None:
    """failures.md 54."""
    r = rig(max_connections=2)
    alice, bob = Owner(), Owner()
    first = owned(r, alice, "alice's")
    r.now += 1.0
    second = owned(r, bob, "bob's")

    lease = r.pool.acquire(0.0)
    assert (lease.conn, r.closed) == (None, [first])
    assert r.counters.closed == {"surplus": 1}
    assert r.pool.acquire(0.0, owner=bob).conn is second


def test_a_connection_given_back_by_its_owner_goes_to_the_owner_who_waits_or_makes_room() -> None:
    """failures.md 54."""
    r = rig(max_connections=1)
    alice, bob = Owner(), Owner()
    held = r.lease("alice's")
    r.pool.claim(held, alice)
    others, own = r.waiter(owner=bob), r.waiter(owner=alice)
    r.pool.give_back(held, reusable=True)
    lease = others.outcome()
    assert lease.conn is None, "somebody else's connection was handed over"
    assert r.closed == [held.conn]

    lease.conn = Conn("bob's, then alice's")
    r.pool.claim(lease, alice)
    r.pool.give_back(lease, reusable=True)
    assert own.outcome().conn is lease.conn
    assert r.counters.acquires == {"miss": 2, "hit": 1}


def test_it_is_closed_when_its_owner_has_gone() -> None:
    """failures.md 54."""
    r = rig(max_connections=3)
    alice: Any = Owner()
    alice.cycle = alice
    own = owned(r, alice)
    held = r.lease("in use")
    r.pool.claim(held, alice)
    del alice
    gc.collect()

    assert r.closed == [own]
    r.pool.give_back(held, reusable=True)
    assert r.closed == [own, held.conn]
    assert r.pool.view().idle == 0


def test_what_belongs_to_nobody_is_closed_when_it_comes_back() -> None:
    """failures.md 54."""
    r = rig()
    lease = r.lease()
    r.pool.claim(lease, None)
    r.pool.give_back(lease, reusable=True)
    assert r.closed == [lease.conn]


def test_a_dead_one_is_replaced_by_one_that_is_everybodys() -> None:
    r = rig(max_connections=3)
    alice = Owner()
    own = owned(r, alice)
    (shared,) = r.fill_idle("shared")
    own.alive = False
    lease = r.pool.acquire(0.0, owner=alice)
    assert (lease.conn, lease.connection.owner) == (shared, None)
    assert r.closed == [own]


def test_who_takes_its_own_alone_gets_no_other_idle_or_waiting_or_in_place_of_a_dead_one() -> None:
    """A caller with a connection class of its own: the owner of all that it uses."""
    r = rig(max_connections=2)
    alice = Owner()
    (shared,) = r.fill_idle("shared")
    lease = r.pool.acquire(0.0, owner=alice, own_only=True)
    assert (lease.conn, r.closed) == (None, [])
    lease.conn = own = Conn("alice's")
    r.pool.claim(lease, alice)
    r.pool.give_back(lease, reusable=True)
    own.alive = False
    lease = r.pool.acquire(0.0, owner=alice, own_only=True)
    assert (lease.conn, lease.reused, r.closed) == (None, False, [own])

    held = r.pool.acquire(0.0)
    assert held.conn is shared
    waiter = r.waiter(owner=alice, own_only=True)
    r.pool.give_back(held, reusable=True)
    assert waiter.outcome().conn is None, "another caller's connection was handed over"
    assert r.closed == [own, shared]
    assert r.pool.view().inuse == 2


def test_who_takes_its_own_alone_makes_room_in_a_full_pool() -> None:
    r = rig(max_connections=1)
    (shared,) = r.fill_idle("shared")
    lease = r.pool.acquire(0.0, owner=Owner(), own_only=True)
    assert (lease.conn, r.closed) == (None, [shared])


def test_a_fresh_lease_takes_none_and_no_heartbeat_is_sent_on_one() -> None:
    r = rig(max_connections=3)
    alice = Owner()
    own = owned(r, alice)
    r.now += 10.0
    assert r.pool.acquire(0.0, owner=alice, fresh=True).conn is None
    assert r.pool.lend_idle(r.now, idle_s=1.0, most=8) == []
    assert r.pool.view().idle == 1
    assert own not in r.closed


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(lambda r: r.pool.retire(), "retired", id="retired"),
        pytest.param(lambda r: r.pool.stop(), "retired", id="stopped"),
        pytest.param(lambda r: r.pool.close_idle("dead"), "dead", id="suspected"),
        pytest.param(lambda r: r.pool.tend(r.now + 60.0), "idle", id="idle for too long"),
        pytest.param(lambda r: r.pool.tend(r.now + 400.0), "lifetime", id="too old"),
    ],
)
def test_it_ends_like_any_other_idle_connection(act: Any, reason: str) -> None:
    r = rig()
    alice = Owner()
    own = owned(r, alice)
    act(r)
    assert r.closed == [own]
    assert r.counters.closed == {reason: 1}


def test_a_shrunk_pool_closes_those_that_are_everybodys_first() -> None:
    r = rig(max_connections=3)
    alice = Owner()
    own = owned(r, alice)
    (shared,) = r.fill_idle("shared")
    r.pool.resize(1)
    assert r.closed == [shared]
    assert r.pool.acquire(0.0, owner=alice).conn is own


def test_a_shrunk_pool_of_nothing_else_closes_those_that_have_been_idle_longest() -> None:
    r = rig(max_connections=3)
    alice = Owner()
    first, second, third = (r.lease(name) for name in "abc")
    for lease in (first, second, third):
        r.pool.claim(lease, alice)
        r.pool.give_back(lease, reusable=True)

    r.pool.resize(1)

    assert r.closed == [first.conn, second.conn]


def test_a_child_gives_them_up_too() -> None:
    """failures.md 26."""
    r = rig()
    alice = Owner()
    own = owned(r, alice)
    r.pool._pid = -1
    assert r.pool.view().idle == 0
    assert r.discarded == [own]


def test_a_pool_without_any_pays_two_python_calls_for_an_owner_as_for_none() -> None:
    r = rig()
    r.pool._is_alive = bool
    r.fill_idle("warm")
    alice = Owner()
    r.pool.give_back(r.pool.acquire(1.0, owner=alice), reusable=True)
    calls: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<lambda>":  # the clock of the test
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        lease: Lease[Conn] = r.pool.acquire(1.0, owner=alice)
        r.pool.give_back(lease, reusable=True)
    finally:
        sys.setprofile(None)
    assert calls == ["acquire", "give_back"]


def test_what_is_somebodys_alone_was_in_use_at_the_busiest_moment_too() -> None:
    r = rig(max_connections=4)
    alice = Owner()
    since = r.now
    owned(r, alice)
    r.fill_idle("shared")

    assert r.pool.busiest(since) == 2
    assert r.pool.busiest(since + 1.0) == 0


def test_an_owner_that_waits_for_a_fresh_connection_does_not_get_the_one_that_comes_back() -> None:
    r = rig(max_connections=1)
    alice = Owner()
    held = r.lease()
    r.pool.claim(held, alice)
    waiter = r.waiter(owner=alice, fresh=True)
    r.pool.give_back(held, reusable=True)

    assert waiter.outcome().conn is None
    assert r.closed == [held.conn]


def test_what_an_owner_that_waited_was_handed_is_in_use_and_idle_nowhere() -> None:
    """failures.md 54. Two calls on one connection would read each other's answers."""
    r = rig(max_connections=1)
    alice = Owner()
    held = r.lease()
    r.pool.claim(held, alice)
    waiter = r.waiter(owner=alice)
    r.pool.give_back(held, reusable=True)

    lease = waiter.outcome()
    assert lease.conn is held.conn
    assert (r.pool.view().inuse, r.pool.view().idle) == (1, 0)
    r.pool.give_back(lease, reusable=True)
    assert r.pool.acquire(0.0, owner=alice).conn is held.conn


def test_housekeeping_counts_them_with_the_rest() -> None:
    r = rig(max_connections=8, max_idle=2, idle_timeout_s=60.0)
    alice = Owner()
    leases = [r.lease(name) for name in "abcdef"]
    for lease in leases:
        r.pool.claim(lease, alice)
        r.pool.give_back(lease, reusable=True)
    r.pool.give_back(shared := r.lease("shared"), reusable=True)

    assert r.pool.tend() == 3  # of the five above max_idle, a half; everybody's first
    assert r.closed == [shared.conn, leases[0].conn, leases[1].conn]
    r.now += 60.0
    assert r.pool.tend() == 4


def test_closing_what_is_idle_closes_them_and_says_how_many_there_were() -> None:
    r = rig(max_connections=4)
    alice = Owner()
    owned(r, alice)
    r.fill_idle("shared")

    assert r.pool.close_idle("idle") == 2
    assert r.pool.view().idle == 0
