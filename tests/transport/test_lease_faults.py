"""One lease, waiter or connection that raises during the bookkeeping costs nobody else anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest

import headrace.transport.lease.pool as lease_module
from headrace.transport.lease.errors import LeaseReport
from headrace.transport.lease.pool import Lease, LeaseFault, LeaseRejected
from support.leases import Conn, Rig, rig


def faults(r: Rig) -> list[str]:
    return [report.error for report in r.pool.reports() if isinstance(report, LeaseFault)]


class Broken(Exception):
    """What no step of the bookkeeping raises of itself."""


def broken_for(r: Rig, step: str, is_it: Callable[..., bool]) -> None:
    """From now on *step* of the pool raises for the elements that *is_it* knows."""
    real = getattr(r.pool, step)

    def act(*args: Any) -> Any:
        if is_it(*args):
            raise Broken("injected")
        return real(*args)

    act.__name__ = step
    setattr(r.pool, step, act)


def test_an_interrupt_during_a_refusal_leaves_the_pool_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """failures.md 59. The token of the refused lease was never hashed: collected, it could not be looked up."""
    r = rig(max_connections=1, when_full="reject")
    held = r.lease()

    def interrupt(*args: object, **options: object) -> str:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(lease_module, "_result_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        r.pool.acquire(0.0)

    with pytest.raises(LeaseRejected):
        r.pool.acquire(0.0)
    r.pool.give_back(held, reusable=True)
    assert r.pool.acquire(0.0).conn is held.conn
    assert faults(r) == []


def test_an_interrupt_between_the_making_of_a_token_and_its_hash_leaves_the_pool_whole() -> None:
    """failures.md 59."""
    r = rig(max_connections=1)
    lease: Lease[Conn] = Lease()
    lease.token = ref(lease, r.pool._on_drop)
    del lease  # as if acquire() had been interrupted right there

    assert not r.pool._dropped
    assert r.pool.view().inuse == 0


def test_a_token_that_nobody_can_look_up_is_cast_out_and_told_once() -> None:
    """failures.md 59. However it came there."""
    r = rig(max_connections=2)
    dropped = r.pool.acquire(0.0)
    for _ in range(3):
        lease: Lease[Conn] = Lease()
        token = ref(lease)
        del lease
        r.pool._dropped.append(token)
    r.pool._dropped.append(dropped.token)  # type: ignore[arg-type]
    r.pool.view()

    assert not r.pool._dropped
    assert r.pool.view().inuse == 0, "those behind it were not processed"
    assert faults(r) == ["TypeError: weak object has gone away"]


@pytest.mark.parametrize(
    ("step", "give_back"),
    [
        pytest.param("_keep", lambda r, lease: r.pool.give_back(lease, reusable=True), id="kept"),
        pytest.param(
            "_end_returned", lambda r, lease: r.pool.give_back(lease, reusable=False), id="returned"
        ),
    ],
)
def test_a_return_that_cannot_be_processed_frees_its_slot_and_holds_up_no_other(
    step: str, give_back: Callable[[Rig, Lease[Conn]], None]
) -> None:
    """failures.md 59."""
    r = rig(max_connections=2)
    bad, good = r.lease("bad"), r.lease("good")
    bad_conn = bad.conn
    broken_for(r, step, lambda element: bad in (element if isinstance(element, tuple) else (element,)))
    waiters = [r.waiter(), r.waiter()]
    give_back(r, bad)
    give_back(r, good)

    served = [waiter.outcome() for waiter in waiters]
    assert all(isinstance(one, Lease) for one in served)
    assert bad_conn in r.closed
    assert r.pool.view().inuse == 2
    assert faults(r) == ["Broken: injected"]


def test_a_dropped_lease_that_cannot_be_processed_frees_its_slot() -> None:
    """failures.md 59."""
    r = rig(max_connections=2)
    bad, good = r.pool.acquire(0.0), r.pool.acquire(0.0)
    token = bad.token
    broken_for(r, "_end_dropped", lambda element: element is token)
    del bad, good

    assert r.pool.view().inuse == 0
    assert faults(r) == ["Broken: injected"]


def test_a_waiter_that_cannot_be_served_leaves_and_the_next_is_served() -> None:
    """failures.md 59."""
    r = rig(max_connections=1)
    held = r.lease()
    first, second = r.waiter(), r.waiter()
    bad = next(iter(r.pool._waiters))
    broken_for(r, "_serve_one", lambda waiter: waiter[0] is bad)
    r.pool.give_back(held, reusable=True)

    assert second.outcome().conn is held.conn
    refused = first.outcome()
    assert isinstance(refused, LeaseRejected)
    assert "could not serve" in str(refused)
    assert (r.pool.view().inuse, r.pool.view().waiting) == (1, 0)


def test_a_waiter_that_was_given_up_before_it_waits_is_told_to_nobody() -> None:
    """failures.md 59. There is no token any more by which it could be aborted."""
    r = rig(max_connections=1)
    held = r.lease()
    broken_for(r, "_serve_one", lambda waiter: True)
    slot_or_gate = r.pool._slot_or_gate

    def given_back_meanwhile(*args: Any) -> Any:
        gate = slot_or_gate(*args)
        r.pool.give_back(held, reusable=True)
        return gate

    r.pool._slot_or_gate = given_back_meanwhile  # type: ignore[method-assign]
    told: list[Any] = []
    with pytest.raises(LeaseRejected):
        r.pool.acquire(1.0, on_wait=told.append)
    assert told == []


@pytest.mark.parametrize("leave", ["abort", "give up"])
def test_a_waiter_that_has_left_the_queue_leaves_no_wish_behind(leave: str) -> None:
    r = rig(max_connections=1)
    held = r.lease()
    waiter = r.waiter(fresh=True, owner=held, own_only=True)
    (lease,) = r.pool._waiters
    assert (r.pool._fresh_waiters, r.pool._own_waiters) == ({lease}, {lease})
    if leave == "abort":
        assert lease.token is not None
        r.pool.abort(lease.token)
    else:
        broken_for(r, "_serve_one", lambda waiter: True)
        r.pool.give_back(held, reusable=True)
    waiter.outcome()
    assert (r.pool._fresh_waiters, r.pool._own_waiters) == (set(), set())


@pytest.mark.parametrize("reusable", [True, False])
def test_a_lease_that_is_not_yet_anywhere_can_be_shown_and_given_back(reusable: bool) -> None:
    r = rig()
    lease: Lease[Conn] = Lease()
    lease.connection = lease_module._NO_CONNECTION
    lease.token, lease.one_off, lease.aborted = ref(lease), False, None
    r.pool.give_back(lease, reusable=reusable)
    view = r.pool.view()
    assert repr(lease.connection) == "<Connection, 0 uses, None>"
    assert (view.inuse, view.idle, r.closed, faults(r)) == (0, 0, [], [])


def test_an_abort_between_the_look_of_a_return_and_its_note_closes_for_the_reason_of_the_abort() -> None:
    r = rig(max_connections=1)
    lease = r.lease()
    with r.pool._lock:
        r.pool.give_back(lease, reusable=True)
        lease.aborted = "abandoned"  # as `abort` does with a lease in use, which this one was a moment ago
    assert r.counters.closed == {"abandoned": 1}
    assert r.closed == [lease.conn]


def test_a_child_gives_up_the_connection_of_a_return_that_was_interrupted() -> None:
    """failures.md 26. Its lease is in use no more, and it is not closed yet."""
    for reusable in (True, False):
        r = rig(max_connections=1)
        lease = r.lease()
        conn = lease.conn
        with r.pool._lock:
            r.pool.give_back(lease, reusable=reusable)
            del r.pool._inuse[lease.token]  # type: ignore[arg-type]
        r.pool._pid = -1
        r.pool.view()
        assert r.discarded == [conn]
        assert (lease.conn, lease.token) == (None, None)


def test_housekeeping_passes_over_an_idle_connection_that_raises() -> None:
    """failures.md 59."""
    r = rig(max_connections=3)
    bad, *others = r.fill_idle("a", "b", "c")
    r.now += 61.0
    r.pool.view()
    lease = next(one for one in r.pool._idle if one.conn is bad)
    del lease.expires_at  # as if it had never been set

    assert r.pool.tend(r.now) == 3
    assert sorted(conn.name for conn in r.closed) == ["a", "b", "c"]
    assert others
    assert len(faults(r)) == 1


def test_housekeeping_passes_over_a_lease_in_use_that_raises() -> None:
    """failures.md 59."""
    r = rig(max_connections=3, max_lifetime_s=10.0, max_lifetime_grace_s=5.0)
    first, bad, last = r.lease("first"), r.lease("bad"), r.lease("last")
    del bad.taken_at
    r.now += 16.0
    r.pool.tend(r.now)

    assert {first.conn, last.conn} <= set(r.aborted)
    assert len(faults(r)) == 1


def test_an_abort_or_a_close_that_raises_is_told_and_the_rest_are_aborted_and_closed() -> None:
    """failures.md 59."""
    r = rig(max_connections=4)
    idle = r.fill_idle("a", "b")
    held = [r.lease() for _ in range(4)]
    r.pool.give_back(held.pop(), reusable=True)
    aborted, closed = [], []

    def abort(conn: Conn) -> None:
        aborted.append(conn)
        raise Broken("abort")

    def close(conn: Conn) -> None:
        closed.append(conn)
        raise Broken("close")

    r.pool._abort, r.pool._close = abort, close
    r.pool.stop()

    assert aborted == [lease.conn for lease in held]
    assert closed
    assert idle
    assert sorted(faults(r)) == ["Broken: abort", "Broken: close"]


def test_a_child_gives_up_every_inherited_connection_though_one_raises() -> None:
    """failures.md 59."""
    r = rig(max_connections=3)
    conns = r.fill_idle("a", "b", "c")
    discarded = []

    def discard(conn: Conn) -> None:
        discarded.append(conn)
        raise Broken("discard")

    r.pool._discard = discard
    r.pool._pid = -1
    assert r.pool.view().idle == 0
    assert set(discarded) == set(conns)
    assert faults(r) == ["Broken: discard"]


def test_what_a_signals_handler_raises_during_the_loop_reaches_its_thread() -> None:
    """Celery's soft time limit is an Exception: it is no fault of the lease that it hits."""
    r = rig(max_connections=1)
    held = r.lease()

    class SoftTimeLimit(Exception):
        pass

    real = r.pool._keep
    limits = [SoftTimeLimit()]

    def keep(lease: Lease[Conn]) -> None:
        if limits:
            raise limits.pop()
        real(lease)

    r.pool._keep = keep  # type: ignore[method-assign]
    r.pool.give_back(held, reusable=True)
    with pytest.raises(SoftTimeLimit):
        r.pool.view()

    assert r.pool.acquire(0.0).conn is held.conn
    assert faults(r) == []


def test_a_lease_whose_drop_went_unheard_is_found_by_housekeeping() -> None:
    """failures.md 61. An interrupt in a weak reference's callback is swallowed there, and with it the slot."""
    r = rig(max_connections=1)
    lease = r.pool.acquire(0.0)
    assert lease.token is not None
    with r.pool._lock:
        del lease
        r.pool._dropped.clear()  # as if the callback had not got as far

    assert r.pool.view().inuse == 1
    r.pool.tend(r.now)
    assert r.pool.view().inuse == 0


def test_a_fault_is_told_once_for_each_place() -> None:
    r = rig(max_connections=2)

    def close(conn: Conn) -> None:
        raise Broken("close")

    r.pool._close = close
    for _ in range(5):
        r.pool.give_back(r.lease(), reusable=False)
    reports = [one for one in r.pool.reports() if not isinstance(one, LeaseReport)]
    assert len(reports) == 1
    assert reports[0].site.startswith(__file__)


def test_the_lock_is_free_after_every_fault() -> None:
    """failures.md 59."""
    r = rig(max_connections=1)
    for step in ("_keep", "_end_returned", "_end_dropped", "_serve_one"):
        broken_for(r, step, lambda element: True)
    for reusable in (True, False, True):
        lease = r.lease()
        r.pool.give_back(lease, reusable=reusable)
        r.pool.view()
    assert isinstance(r.pool._lock, type(threading.Lock()))
    assert not r.pool._lock.locked()
    assert r.pool.view().inuse == 0


@pytest.mark.parametrize(("known", "told"), [(999, 1), (1000, 0)])
def test_faults_at_ever_new_places_are_told_a_thousand_times_at_most(known: int, told: int) -> None:
    r = rig()
    r.pool._faulty_sites.update(f"generated.py:{line}" for line in range(known))

    def close(conn: Conn) -> None:
        raise Broken("close")

    r.pool._close = close
    r.pool.give_back(r.lease(), reusable=False)

    assert len(faults(r)) == told
