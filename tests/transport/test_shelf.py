"""The connections of an event loop, over a limit that threads share: connections that are nothing but a name."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import PoolPlan
from headrace.transport.lease.pool import (
    Lease,
    LeaseCancelled,
    LeaseClosed,
    LeasePool,
    LeaseRejected,
    LeaseTimeout,
)
from headrace.transport.lease.shelf import Shelf, shelf_of
from support.forks import bare_fork, in_child, ordinary_fork
from support.loops import LOOPS, OnLoop, run_with
from support.plans import pool_plan
from support.waiting import wait_until


@dataclass(eq=False)
class Conn:
    """A connection as far as a shelf knows; a thread's, too, as far as that is only closed."""

    name: str = "conn"
    is_open: bool = True
    quiet: bool = True
    becomes: bool = False
    closed: int = 0
    broken: int = 0
    discarded: int = 0
    on_unasked: Callable[[], object] | None = None

    def is_quiet(self) -> bool:
        return self.is_open and self.quiet

    async def becomes_quiet(self) -> bool:
        await asyncio.sleep(0)
        return self.becomes

    def rest(self) -> None:
        pass

    def break_off(self) -> None:
        self.broken += 1

    def close(self) -> None:
        self.closed += 1
        self.is_open = False

    def discard(self) -> None:
        self.discarded += 1


@dataclass
class Rig:
    """A pool; `shift_s` moves its clock."""

    plan: PoolPlan = field(default_factory=pool_plan)
    shift_s: float = 0.0
    made: list[Conn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool: LeasePool[Any] = LeasePool(
            self.plan,
            UpstreamCounters(lock=threading.Lock()),
            clock=self.clock,
            rng=lambda: 0.0,
            is_alive=lambda conn: bool(conn.is_open),
            close=lambda conn: conn.close(),
            abort=lambda conn: conn.break_off(),
            discard=lambda conn: conn.discard(),
        )

    def clock(self) -> float:
        return monotonic() + self.shift_s

    @property
    def counters(self) -> UpstreamCounters:
        self.pool.view()
        return self.pool._counters

    @property
    def rest(self) -> tuple[int, int, int]:
        """In use, idle, waiting."""
        view = self.pool.view()
        return view.inuse, view.idle, view.waiting

    async def shelf(self) -> Shelf[Conn]:
        shelf = await shelf_of(self.pool)
        shelf._clock = self.clock
        return shelf

    def dial(self, lease: Lease[Any]) -> Lease[Any]:
        if lease.conn is None:
            lease.conn = Conn(f"conn {len(self.made)}")
            self.made.append(lease.conn)
        return lease

    async def lease(self, timeout_s: float = 5.0, **kw: Any) -> Lease[Conn]:
        return self.dial(await (await self.shelf()).acquire(timeout_s, **kw))

    def of_a_thread(self, timeout_s: float = 5.0) -> Lease[Any]:
        return self.dial(self.pool.acquire(timeout_s))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def small(most: int, **changes: Any) -> Rig:
    return Rig(replace(pool_plan(), max_connections=most, max_idle=most, **changes))


async def turns(n: int = 6) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_the_newest_idle_connection_comes_first_and_the_limit_is_not_asked(rig: Rig, on_loop: OnLoop) -> None:
    async def main() -> None:
        shelf = await rig.shelf()
        first, second = await rig.lease(), await rig.lease()
        shelf.give_back(first, reusable=True)
        shelf.give_back(second, reusable=True)
        with rig.pool._lock:  # whoever took it would hang
            third = await shelf.acquire(0.0)
            assert (third.conn, third.reused) == (rig.made[1], True)
            shelf.give_back(third, reusable=True)
        assert rig.rest == (0, 2, 0)
        assert rig.counters.acquires == {"miss": 2, "hit": 1}

    on_loop(main())
    assert [conn.closed for conn in rig.made] == [1, 1]
    assert (rig.rest, rig.pool.shelves) == ((0, 0, 0), {})


def test_threads_and_loops_share_one_limit(on_loop: OnLoop) -> None:
    rig = small(2)
    of_thread = rig.of_a_thread()

    async def main() -> None:
        shelf = await rig.shelf()
        lease = await rig.lease()
        with pytest.raises(LeaseTimeout):
            await shelf.acquire(0.0)
        with pytest.raises(LeaseTimeout):
            rig.pool.acquire(0.0)
        assert rig.rest == (2, 0, 0)
        shelf.give_back(lease, reusable=True)

    on_loop(main())
    rig.pool.give_back(of_thread, reusable=True)
    assert rig.rest == (0, 1, 0)
    assert rig.pool.view().max_connections == 2


def test_what_is_idle_on_the_other_side_makes_room(on_loop: OnLoop) -> None:
    rig = small(1)
    rig.pool.give_back(rig.of_a_thread(), reusable=True)

    async def main() -> None:
        shelf = await rig.shelf()
        lease = await rig.lease(0.0)
        assert rig.made[0].closed == 1
        shelf.give_back(lease, reusable=True)
        of_thread = rig.of_a_thread(0.0)
        assert rig.made[1].closed == 1
        rig.pool.give_back(of_thread, reusable=True)

    on_loop(main())
    assert rig.counters.closed == {"surplus": 2}
    assert rig.rest == (0, 1, 0)


def test_a_thread_that_waits_gets_what_a_loop_gives_back_and_the_other_way_round(on_loop: OnLoop) -> None:
    rig = small(1)

    async def main() -> None:
        shelf = await rig.shelf()
        lease = await rig.lease()
        waiting = asyncio.create_task(asyncio.to_thread(rig.of_a_thread, 30.0))
        while not rig.pool.view().waiting:
            await asyncio.sleep(0.001)
        shelf.give_back(lease, reusable=True)
        of_thread = await asyncio.wait_for(waiting, 30.0)
        again = asyncio.create_task(rig.lease(30.0))
        await turns()
        assert rig.rest == (1, 0, 1)
        await asyncio.to_thread(rig.pool.give_back, of_thread, reusable=True)
        shelf.give_back(await asyncio.wait_for(again, 30.0), reusable=True)
        assert rig.rest == (0, 1, 0)

    on_loop(main())


def test_who_waits_is_served_in_turn_and_a_thread_that_came_before_is_not_overtaken(on_loop: OnLoop) -> None:
    rig = small(1)
    order: list[str] = []

    async def main() -> None:
        shelf = await rig.shelf()
        held = await rig.lease()

        async def call(name: str) -> None:
            lease = await rig.lease(30.0)
            order.append(name)
            shelf.give_back(lease, reusable=True)

        def thread() -> None:
            lease = rig.of_a_thread(30.0)
            order.append("thread")
            rig.pool.give_back(lease, reusable=True)

        tasks = [asyncio.create_task(call("a")), asyncio.create_task(call("b"))]
        await turns()
        tasks.append(asyncio.create_task(asyncio.to_thread(thread)))
        while rig.pool.view().waiting < 3:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(call("c")))
        await turns()
        assert rig.rest == (1, 0, 4)
        shelf.give_back(held, reusable=True)
        await asyncio.wait_for(asyncio.gather(*tasks), 30.0)

    on_loop(main())
    assert order == ["a", "b", "thread", "c"]
    assert rig.rest == (0, 0, 0) or rig.rest == (0, 1, 0)


def test_who_waits_longest_comes_first_across_loops() -> None:
    """Calls of two loops arrive by turns, then many more on the second one: none of the first one's is overtaken."""
    rig = small(1)
    held = rig.of_a_thread()
    order: list[str] = []
    arrivals = [(n, "ab"[n % 2]) for n in range(6)] + [(n, "b") for n in range(6, 16)]

    async def calls(loop: str) -> None:
        shelf, tasks = await rig.shelf(), []

        async def call(name: str) -> None:
            lease = await rig.lease(30.0)
            order.append(name)
            await asyncio.sleep(0)
            shelf.give_back(lease, reusable=True)

        for n, whose in arrivals:
            if whose == loop:
                while rig.pool.view().waiting < n:
                    await asyncio.sleep(0.001)
                tasks.append(asyncio.create_task(call(f"{n}{whose}")))
                while rig.pool.view().waiting <= n:
                    await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    threads = [threading.Thread(target=run_with, args=(asyncio.new_event_loop, calls(loop))) for loop in "ab"]
    for one in threads:
        one.start()
    wait_until(lambda: rig.pool.view().waiting == len(arrivals))
    rig.pool.give_back(held, reusable=False)
    for one in threads:
        one.join(30.0)
        assert not one.is_alive()
    assert order == [f"{n}{whose}" for n, whose in arrivals]


def test_a_call_does_not_inherit_the_place_of_one_that_its_own_loop_has_served(on_loop: OnLoop) -> None:
    rig = small(2)
    order: list[str] = []
    of_thread = rig.of_a_thread()

    async def main() -> None:
        shelf = await rig.shelf()
        held = await rig.lease()
        go = asyncio.Event()

        async def call(name: str) -> None:
            lease = await rig.lease(30.0)
            order.append(name)
            await go.wait()
            shelf.give_back(lease, reusable=True)

        def thread() -> None:
            lease = rig.of_a_thread(30.0)
            order.append("thread")
            rig.pool.give_back(lease, reusable=True)

        tasks = [asyncio.create_task(call("first"))]
        await turns()
        tasks.append(asyncio.create_task(asyncio.to_thread(thread)))
        while rig.pool.view().waiting < 2:
            await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(call("last")))
        await turns()
        shelf.give_back(held, reusable=True)  # to the first one, whose place in the queue of threads stays
        await turns()
        assert order == ["first"]
        await asyncio.to_thread(rig.pool.give_back, of_thread, reusable=True)
        while len(order) < 3:
            await asyncio.sleep(0.001)
        go.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30.0)

    on_loop(main())
    assert order == ["first", "thread", "last"]


def test_those_who_wait_are_counted_over_all_loops_and_threads(on_loop: OnLoop) -> None:
    rig = small(1, max_waiting=4)
    held = rig.of_a_thread()

    def on_another_loop() -> None:
        run_with(asyncio.new_event_loop, one_call())

    async def one_call() -> None:
        (await rig.shelf()).give_back(await rig.lease(30.0), reusable=True)

    def on_a_thread() -> None:
        rig.pool.give_back(rig.of_a_thread(30.0), reusable=True)

    async def main() -> None:
        waiting: list[asyncio.Future[None]] = []
        for n, call in enumerate(
            [one_call(), one_call(), asyncio.to_thread(on_another_loop), asyncio.to_thread(on_a_thread)], 1
        ):
            waiting.append(asyncio.ensure_future(call))
            while rig.pool.view().waiting < n:
                await asyncio.sleep(0.001)
        with pytest.raises(LeaseRejected, match=r"may \(4\)"):
            await rig.lease(30.0)
        with pytest.raises(LeaseRejected, match=r"may \(4\)"):
            await asyncio.to_thread(rig.of_a_thread, 30.0)
        with pytest.raises(LeaseRejected, match=r"may \(4\)"):
            await asyncio.to_thread(on_another_loop)
        await asyncio.to_thread(rig.pool.give_back, held, reusable=True)
        await asyncio.wait_for(asyncio.gather(*waiting), 30.0)

    on_loop(main())
    assert rig.rest[0] == rig.rest[2] == 0


@pytest.mark.parametrize(
    "is_served", [False, True], ids=["while it waits", "in the turn in which it is served"]
)
def test_a_waiter_that_is_cancelled_takes_nothing_with_it(on_loop: OnLoop, is_served: bool) -> None:
    rig = small(1)

    async def main() -> None:
        shelf = await rig.shelf()
        held = await rig.lease()
        first, second = asyncio.create_task(rig.lease(30.0)), asyncio.create_task(rig.lease(30.0))
        await turns()
        if is_served:
            shelf.give_back(held, reusable=True)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        if not is_served:
            shelf.give_back(held, reusable=True)
        lease = await asyncio.wait_for(second, 30.0)
        assert lease.reused
        shelf.give_back(lease, reusable=True)
        shelf.give_back(lease, reusable=True)
        assert rig.rest == (0, 1, 0)
        assert not shelf._deadlines.table

    on_loop(main())


def test_a_waiter_that_is_cancelled_after_its_slot_was_granted_passes_it_on(on_loop: OnLoop) -> None:
    """The slot comes from a thread, so it is granted before the loop hears of it."""
    rig = small(1)
    of_thread = rig.of_a_thread()

    async def main() -> None:
        shelf = await rig.shelf()
        task = asyncio.create_task(rig.lease(30.0))
        await turns()
        rig.pool.give_back(of_thread, reusable=False)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns()
        assert rig.rest == (0, 0, 0)
        shelf.give_back(await rig.lease(0.0), reusable=True)

    on_loop(main())


def test_what_comes_back_in_the_turn_in_which_the_last_waiter_was_served_is_kept(on_loop: OnLoop) -> None:
    rig = small(2)

    async def main() -> None:
        shelf = await rig.shelf()
        first, second = await rig.lease(), await rig.lease()
        waiting = asyncio.create_task(rig.lease(30.0))
        await turns()
        shelf.give_back(first, reusable=True)
        shelf.give_back(second, reusable=True)
        assert rig.rest == (1, 1, 0)
        shelf.give_back(await waiting, reusable=True)
        assert (rig.rest, rig.counters.closed) == ((0, 2, 0), {})

    on_loop(main())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"when_full": "reject"}, LeaseRejected, id="reject"),
        pytest.param({"max_waiting": 0}, LeaseRejected, id="nobody may wait"),
        pytest.param({}, LeaseTimeout, id="wait in vain"),
    ],
)
def test_a_full_pool_says_what_the_plan_has(on_loop: OnLoop, changes: dict[str, Any], error: type) -> None:
    rig = small(1, **changes)

    async def main() -> None:
        shelf = await rig.shelf()
        held = await rig.lease()
        with pytest.raises(error, match="1 in use"):
            await shelf.acquire(0.05)
        shelf.give_back(held, reusable=True)

    on_loop(main())
    assert rig.counters.acquires == {"miss": 1, "rejected" if error is LeaseRejected else "timeout": 1}


def test_one_off_connections_are_beyond_the_limit_and_not_kept(on_loop: OnLoop) -> None:
    rig = small(1, when_full="new")

    async def main() -> None:
        shelf = await rig.shelf()
        held, beyond = await rig.lease(), await rig.lease()
        assert (beyond.one_off, rig.pool.view().one_off) == (True, 1)
        shelf.give_back(beyond, reusable=True)
        shelf.give_back(held, reusable=True)
        assert (rig.rest, rig.pool.view().one_off) == ((0, 1, 0), 0)

    on_loop(main())
    assert rig.counters.closed == {"surplus": 1, "retired": 1}


def test_dead_connections_are_passed_over_and_one_that_only_looked_dead_is_not(
    rig: Rig, on_loop: OnLoop
) -> None:
    async def main() -> None:
        shelf = await rig.shelf()
        leases = [await rig.lease() for _ in range(3)]
        for lease in leases:
            shelf.give_back(lease, reusable=True)
        rig.made[2].quiet = False
        rig.made[1].quiet, rig.made[1].becomes = False, True
        lease = await shelf.acquire(0.0)
        assert (lease.conn, rig.made[2].closed) == (rig.made[1], 1)
        shelf.give_back(lease, reusable=True)

    on_loop(main())
    assert rig.counters.closed == {"dead": 1, "retired": 2}


def test_a_connection_that_ends_while_it_is_idle_gives_its_slot_back_at_once(on_loop: OnLoop) -> None:
    rig = small(1)

    async def main() -> None:
        shelf = await rig.shelf()
        shelf.give_back(await rig.lease(), reusable=True)
        told = rig.made[0].on_unasked
        assert told is not None
        told()
        told()
        assert rig.rest == (0, 0, 0)

    on_loop(main())
    assert rig.counters.closed == {"dead": 1}


def test_idle_time_age_and_uses_end_connections(on_loop: OnLoop) -> None:
    rig = small(8, max_requests_per_connection=2, max_lifetime_s=100.0, idle_timeout_s=10.0)

    async def main() -> None:
        shelf = await rig.shelf()
        shelf.give_back(await rig.lease(), reusable=True)
        shelf.give_back(await rig.lease(), reusable=True)  # its second use
        assert rig.counters.closed == {"lifetime": 1}
        shelf.give_back(await rig.lease(), reusable=True)
        rig.shift_s = 11.0
        rig.pool.tend()
        await turns()
        assert rig.counters.closed == {"lifetime": 1, "idle": 1}
        lease = await rig.lease()
        rig.shift_s = 150.0
        shelf.give_back(lease, reusable=True)
        assert rig.counters.closed == {"lifetime": 2, "idle": 1}
        assert rig.rest == (0, 0, 0)

    on_loop(main())


def test_what_is_above_max_idle_goes_by_halves(on_loop: OnLoop) -> None:
    rig = Rig(replace(pool_plan(), max_connections=20, max_idle=2))

    async def main() -> None:
        shelf = await rig.shelf()
        for lease in [await rig.lease() for _ in range(10)]:
            shelf.give_back(lease, reusable=True)
        rig.pool.tend()
        await turns()
        assert rig.rest == (0, 6, 0)

    on_loop(main())


def test_a_rotation_lends_nothing_of_before_and_breaks_off_what_drains_too_long(
    rig: Rig, on_loop: OnLoop
) -> None:
    async def main() -> None:
        shelf = await rig.shelf()
        busy, other, idle = await rig.lease(), await rig.lease(), await rig.lease()
        shelf.give_back(idle, reusable=True)
        assert await asyncio.to_thread(rig.pool.rotate, 5.0) == (1, 2)
        shelf.give_back(other, reusable=True)
        rig.shift_s = 6.0
        rig.pool.tend()
        await turns()
        assert (busy.aborted, rig.made[0].broken) == ("rotated", 1)
        shelf.give_back(busy, reusable=True)

    on_loop(main())
    assert rig.counters.closed == {"rotated": 3}


def test_a_smaller_size_holds_for_what_comes_back(on_loop: OnLoop) -> None:
    rig = small(4)

    async def main() -> None:
        shelf = await rig.shelf()
        leases = [await rig.lease() for _ in range(4)]
        shelf.give_back(leases.pop(), reusable=True)
        rig.pool.resize(1)
        assert rig.rest == (3, 0, 0)
        for lease in leases:
            shelf.give_back(lease, reusable=True)
        assert rig.rest == (0, 1, 0)
        assert rig.pool.view().max_connections == 1
        rig.pool.resize(3)
        assert [await rig.lease(0.0) for _ in range(3)]

    on_loop(main())


def test_a_retired_pool_keeps_nothing_and_a_stopped_one_ends_everything(on_loop: OnLoop) -> None:
    rig = small(2)

    async def main() -> None:
        shelf = await rig.shelf()
        busy, idle = await rig.lease(), await rig.lease()
        shelf.give_back(idle, reusable=True)
        rig.pool.retire()
        assert rig.rest == (1, 0, 0)
        other = await rig.lease()
        waiting = asyncio.create_task(rig.lease(30.0))
        await turns()
        await asyncio.to_thread(rig.pool.stop)
        with pytest.raises(LeaseClosed):
            await asyncio.wait_for(waiting, 30.0)
        assert (busy.aborted, rig.made[0].broken) == ("retired", 1)
        for lease in (busy, other):
            shelf.give_back(lease, reusable=True)
        assert rig.rest == (0, 0, 0)
        with pytest.raises(LeaseClosed):
            await shelf.acquire(1.0)

    on_loop(main())


def test_a_lease_that_is_broken_off_is_found_where_it_is(on_loop: OnLoop) -> None:
    """In use, while its connection is being made, while it waits; and not where it has ended."""
    rig = small(2)

    async def main() -> None:
        shelf = await rig.shelf()
        busy = await rig.lease()
        dialling = await shelf.acquire(1.0)
        tokens: list[Any] = []
        waiting = asyncio.create_task(shelf.acquire(30.0, on_wait=tokens.append))
        await turns()
        broken: list[str] = []
        assert dialling.token is not None
        shelf.breakers[dialling.token] = lambda: broken.append("dialling")
        for token in (busy.token, dialling.token, *tokens):
            assert await asyncio.to_thread(shelf.abort, token)
        with pytest.raises(LeaseCancelled):
            await waiting
        assert (rig.made[0].broken, broken) == (1, ["dialling"])
        tokens = [busy.token, dialling.token]
        for lease in (busy, dialling):
            shelf.give_back(lease, reusable=True)
        assert not any(shelf.abort(token) for token in tokens)
        assert rig.rest == (0, 0, 0)

    on_loop(main())
    assert rig.made[0].closed == 1


def test_a_lease_that_is_dropped_frees_its_slot_without_a_lock(on_loop: OnLoop) -> None:
    """failures.md 25. The collector may run while this very thread holds the pool's lock."""
    rig = small(1)

    async def main() -> None:
        lease = await rig.lease()
        with rig.pool._lock:
            del lease
            gc.collect()
        await turns()
        assert rig.rest == (0, 0, 0)

    on_loop(main())
    assert rig.counters.closed == {"leaked": 1}


def test_many_loops_one_after_the_other_leave_nothing(rig: Rig, on_loop: OnLoop) -> None:
    async def main() -> None:
        shelf = await rig.shelf()
        shelf.give_back(await rig.lease(), reusable=True)

    for _ in range(20):
        on_loop(main())
    assert [conn.closed for conn in rig.made] == [1] * 20
    assert (rig.rest, rig.pool.shelves) == ((0, 0, 0), {})


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_was_just_closed_is_found_by_the_next_look(kind: str) -> None:
    rig = small(2)

    async def main() -> Lease[Conn]:
        shelf = await rig.shelf()
        shelf.give_back(await rig.lease(), reusable=True)
        return await rig.lease(fresh=True)

    loop = LOOPS[kind]()
    held = loop.run_until_complete(main())
    (shelf,) = rig.pool.shelves.values()
    loop.close()
    shelf.give_back(held, reusable=True)
    rig.pool.tend()
    assert [conn.closed for conn in rig.made] == [1, 1]
    assert (rig.rest, rig.pool.shelves) == ((0, 0, 0), {})


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("holder", ["a thread", "the loop"])
@pytest.mark.parametrize("is_kept", [True, False], ids=["its tasks are kept", "its tasks are dropped"])
def test_a_loop_that_was_closed_while_calls_wait_locks_nobody_out(
    kind: str, holder: str, is_kept: bool
) -> None:
    """Nobody can be woken on it, and what it has goes back all the same."""
    rig = small(1)
    of_thread = rig.of_a_thread() if holder == "a thread" else None

    async def main() -> list[asyncio.Task[Lease[Conn]]]:
        tasks = [asyncio.create_task(rig.lease(30.0)) for _ in range(3)]
        await turns()
        assert rig.rest == (1, 0, 3 if of_thread else 2)
        return tasks

    loop = LOOPS[kind]()
    tasks = loop.run_until_complete(main())
    loop.close()
    if not is_kept:
        tasks.clear()
        gc.collect()
    rig.pool.tend()
    assert (rig.pool.shelves, rig.pool.view().waiting) == ({}, 0)
    if of_thread is not None:
        rig.pool.give_back(of_thread, reusable=True)
    rig.pool.give_back(rig.of_a_thread(0.0), reusable=True)
    assert rig.rest == (0, 1, 0)
    assert rig.pool.view().max_connections == 1
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("fork", [ordinary_fork, bare_fork])
def test_a_forked_child_forgets_what_the_parent_has_on_its_loops(rig: Rig, fork: Callable[[], int]) -> None:
    """failures.md 26."""

    async def main() -> None:
        shelf = await rig.shelf()
        shelf.give_back(await rig.lease(), reusable=True)
        busy = await rig.lease(fresh=True)

        def child() -> None:
            assert rig.rest == (0, 0, 0)
            assert [conn.discarded for conn in rig.made] == [1, 1]
            assert [conn.closed for conn in rig.made] == [0, 0]
            assert rig.pool.view().max_connections == rig.plan.max_connections

            async def of_child() -> None:
                other = await rig.shelf()
                other.give_back(await rig.lease(), reusable=True)
                assert rig.rest == (0, 1, 0)

            loop = asyncio.new_event_loop()
            asyncio._set_running_loop(None)  # the parent's, as far as this thread knows
            loop.run_until_complete(of_child())

        assert await asyncio.to_thread(in_child, child, fork=fork) == 0
        assert rig.rest == (1, 1, 0)
        shelf.give_back(busy, reusable=True)

    run_with(asyncio.new_event_loop, main())


def test_a_storm_of_threads_and_of_two_loops_never_passes_the_limit(on_loop: OnLoop) -> None:
    rig = small(3)
    out, most, guard = [0], [0], threading.Lock()
    problems: list[BaseException] = []

    def count(step: int) -> None:
        with guard:
            out[0] += step
            most[0] = max(most[0], out[0])

    async def calls(seed: int) -> None:
        chance, shelf = random.Random(seed), await rig.shelf()

        async def call() -> None:
            lease = await rig.lease(30.0, fresh=chance.random() < 0.1)
            count(1)
            try:
                await asyncio.sleep(chance.random() * 0.002)
            finally:
                count(-1)
                shelf.give_back(lease, reusable=chance.random() < 0.8)

        for _ in range(4):
            tasks = [asyncio.create_task(call()) for _ in range(60)]
            for task in tasks:
                if chance.random() < 0.6:
                    asyncio.get_running_loop().call_later(chance.random() * 0.05, task.cancel)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            problems.extend(
                one for one in results if one is not None and not isinstance(one, asyncio.CancelledError)
            )
        await turns()
        assert not shelf._waiters
        assert shelf._stand_in is None
        assert not shelf._held

    def thread() -> None:
        try:
            for _ in range(60):
                lease = rig.of_a_thread(30.0)
                count(1)
                count(-1)
                rig.pool.give_back(lease, reusable=True)
        except BaseException as error:
            problems.append(error)

    def other_loop() -> None:
        try:
            run_with(asyncio.new_event_loop, calls(2))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=thread), threading.Thread(target=other_loop)]
    for one in threads:
        one.start()
    on_loop(calls(1))
    for one in threads:
        one.join(60.0)
        assert not one.is_alive()
    assert problems == []
    assert most[0] <= 3
    assert wait_until(lambda: rig.pool.view().inuse == 0) is None
    assert rig.rest[0] == rig.rest[2] == 0
    assert rig.pool.view().max_connections == 3
    rig.pool.retire()
    assert all(conn.closed == 1 for conn in rig.made)


@pytest.mark.parametrize("kind", LOOPS)
def test_what_is_given_back_to_a_loop_that_never_runs_again_frees_its_slot(kind: str) -> None:
    """It had stopped, and was closed before it ran what it was asked for."""
    rig = small(1)

    async def main() -> tuple[Shelf[Conn], Lease[Conn]]:
        return await rig.shelf(), await rig.lease()

    loop = LOOPS[kind]()
    shelf, lease = loop.run_until_complete(main())
    shelf.give_back(lease, reusable=True)
    loop.close()
    rig.pool.tend()
    assert (rig.rest, rig.pool.shelves) == ((0, 0, 0), {})
    assert rig.made[0].closed == 1
    rig.pool.give_back(rig.of_a_thread(0.0), reusable=True)
