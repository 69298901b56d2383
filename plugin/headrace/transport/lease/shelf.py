"""The connections of one event loop to one origin, and the calls of that loop that wait for one.

A shelf belongs to the thread of its loop, so a call takes a connection and gives it back without a lock. How many there
may be, the `LeasePool` of the origin says: `max_connections` holds for threads and all loops together. It is asked only
when a connection is opened or closed, and when a call has to wait.

**Who waits.** First come, first served, threads and loops together. For all its waiters a shelf has one stand-in in the
pool's queue, where the first of them would stand. Once that has its turn, the first waiter has the slot, and the next
one gets a stand-in in its own place; so it does where the stand-in's place was that of a call that has been served. A
connection that comes back goes to the first waiter of its own loop, unless somebody in the pool's queue has waited for
longer.

**What other threads do.** They take the oldest idle connection (`give_up_oldest`): `list.pop` is one step, and who has
popped it has it. They mark what is in use (`outdate`), and ask the loop for everything else (`call_soon_threadsafe`).

**A loop that ends** ends its shelf: an async generator that was begun on it (`keep`) is closed by
`shutdown_asyncgens`, as `asyncio.run` and its like call it. A loop that was just closed is found by the next look at
the pool, and its sockets are closed. (A `WeakKeyDictionary` of loops would never empty: a shelf refers to its loop.)

**Exactly once.** Whoever pops the lease's token out of `_held` ends the lease. An `acquire` that is cancelled gives
back what it may have been given in the same turn. What a finalizer may call takes no lock, not even one that is free:
the thread that it runs on may hold it (failures.md 25). It leaves the rest to the loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from weakref import ref

from headrace.clock import monotonic
from headrace.transport.lease.errors import (
    LeaseCancelled,
    LeaseClosed,
    LeaseError,
    LeaseRejected,
    LeaseTimeout,
)
from headrace.transport.lease.place import CloseReason, Connection, Lease
from headrace.transport.lease.pool import LeasePool
from headrace.transport.loop_deadlines import Limit, LoopDeadlines, deadlines_of


class Shelved(Protocol):
    """A connection as far as a shelf knows.

    Attributes:
        is_open: Nothing has ended it so far as this process was told.
        on_unasked: Called once when it has ended, or something has come, while it lay idle.
    """

    on_unasked: Callable[[], object] | None

    @property
    def is_open(self) -> bool: ...

    def is_quiet(self) -> bool:
        """Whether it is open and nothing waits to be read."""

    async def becomes_quiet(self) -> bool:
        """The same, once the loop has read what is for itself (session tickets)."""

    def rest(self) -> None:
        """What was done over it is over; it may be lent again."""

    def break_off(self) -> None:
        """End what is done over it; its holder finds an error. On the thread of the loop."""

    def close(self) -> None:
        """Close it for good. Thread-safe; also where its loop is closed."""

    def discard(self) -> None:
        """Close a forked child's copy."""


C = TypeVar("C", bound=Shelved)


class Counts(NamedTuple):
    """Of one shelf; `waiting` without its stand-in."""

    idle: int
    waiting: int
    one_off: int


class _Waiter(Generic[C]):
    """A call that waits; `since` as the pool's queue has it."""

    __slots__ = ("fresh", "future", "lease", "since")

    def __init__(self, lease: Lease[C], future: asyncio.Future[None], fresh: bool, since: float) -> None:
        self.lease, self.future, self.fresh, self.since = lease, future, fresh, since


_Ended = tuple[Connection[C], bool, CloseReason, CloseReason | None, bool]
"""The arguments of `Shelf._end`."""


class _Gate:
    """What the pool opens when the shelf's turn has come: wakes the loop."""

    __slots__ = ("lease", "shelf")

    def __init__(self, shelf: Shelf[Any]) -> None:
        self.shelf = shelf

    def release(self) -> None:
        """Under the pool's lock: it takes none, and calls nothing of ours."""
        try:
            self.shelf.loop.call_soon_threadsafe(self.shelf._turn_has_come, self)
        except RuntimeError:
            pass  # the loop is closed: the stand-in is dropped with its shelf, and its slot is free by that


class Shelf(Generic[C]):
    """Which call of one event loop holds which connection. Owned by the thread of the loop, but where it says so.

    Args:
        pool: Whose limit, plan and counters hold here, too.
        deadlines: Those of the loop.

    Attributes:
        loop: The loop.
        breakers: How a lease is broken off whose connection is still being made, by its token. Its holder's.
        hits, told_hits: Leases with an idle connection; the pool adds them to its counts.
    """

    def __init__(
        self,
        pool: LeasePool[Any],
        loop: asyncio.AbstractEventLoop,
        deadlines: LoopDeadlines,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.loop = loop
        self.breakers: dict[ref[Lease[C]], Callable[[], object]] = {}
        self.hits = self.told_hits = 0
        self._pool = pool
        self._deadlines = deadlines
        self._clock = clock
        self._idle: list[Connection[C]] = []  # oldest first
        self._held: dict[ref[Lease[C]], Connection[C]] = {}
        self._given_back: dict[ref[Lease[C]], _Ended[C]] = {}  # by other threads
        self._waiters: deque[_Waiter[C]] = deque()
        self._stand_in: tuple[_Gate, Lease[Any]] | None = None
        self._one_off: set[ref[Lease[C]]] = set()
        self._is_closed = False
        self._is_to_tend = False
        self._keeper: AsyncGenerator[None] | None = None
        self._on_drop = _drop_callback(ref(self))

    @property
    def is_closed(self) -> bool:
        """Whether its loop has ended, or it is the parent's."""
        return self._is_closed

    async def open(self) -> None:
        """Share the limit of the pool, until the loop ends. Once.

        Raises:
            LeaseClosed: The pool is stopped.
        """
        self._pool.add_shelf(self)
        self._keeper = self._keep()
        await anext(self._keeper)

    async def acquire(
        self,
        timeout_s: float,
        *,
        by_deadline: bool = False,
        fresh: bool = False,
        on_wait: Callable[[ref[Lease[C]]], object] | None = None,
    ) -> Lease[C]:
        """A slot, with an idle connection if a usable one is there; arguments and errors as `LeasePool.acquire`."""
        lease = self._new_lease()
        try:
            await self._fill(lease, timeout_s, fresh, on_wait)
            return lease
        except BaseException as error:
            # A waiter may have been served in the turn in which it was cancelled.
            self.give_back(lease, reusable=lease.conn is not None)
            lease.token = None
            if isinstance(error, LeaseError):
                self._pool.count_failure(error, by_deadline=by_deadline)
            raise

    def give_back(self, lease: Lease[C], *, reusable: bool, reason: CloseReason = "error") -> None:
        """End *lease*; a second call does nothing. Blocks for the lock of the pool only; any thread."""
        token = lease.token
        connection = None if token is None else self._held.pop(token, None)
        if token is None or connection is None:
            return
        lease.token = None
        one_off = token in self._one_off
        self._one_off.discard(token)
        self.breakers.pop(token, None)
        how = connection, reusable, lease.aborted or reason, lease.aborted, one_off
        if asyncio._get_running_loop() is self.loop:
            self._end(*how)
            return
        self._given_back[token] = how  # until the loop has ended it, which may never run again
        if not self._is_closed:
            try:
                self.loop.call_soon_threadsafe(self._end_given_back, token)
                return
            except RuntimeError:
                pass  # it is closed
        self._close_given_back()

    def drop(self, lease: Lease[C]) -> None:
        """End *lease*, whose connection is between two answers or is not used again. From a finalizer; any thread."""
        token = lease.token
        if token is not None:
            self._lost(token, "error")

    def abort(self, token: ref[Lease[C]], reason: CloseReason = "error") -> bool:
        """Break off what the holder of *token* does, soon; False, and nothing done, if it has ended. Any thread."""
        lease = token()
        if lease is None or lease.token is not token:
            return False
        lease.aborted = lease.aborted or reason
        self._on_loop(self._break_off, token)
        return True

    def end(self, token: ref[Lease[C]], reason: CloseReason) -> bool:
        """End the lease with *token* in place of its holder, soon; False if it has ended. Any thread."""
        lease = token()
        if not self.abort(token, reason) or lease is None:
            return False
        self.give_back(lease, reusable=False, reason=reason)
        return True

    def give_up_oldest(self) -> C | None:
        """Take the connection that has been idle longest, with its slot; None: there is none. Any thread.

        Whoever takes it sees to its slot, and closes it.
        """
        try:
            connection = self._idle.pop(0)
        except IndexError:
            return None
        return connection.conn

    def outdate(self, gone_by: float) -> set[Connection[C]]:
        """Lend none of those that are in use again, and break off what is left by *gone_by*; all of them. Any thread.

        They were made with what has been replaced, or are about to be.
        """
        busy = set(self._held.copy().values())
        for connection in busy:
            connection.ends_as = connection.ends_as or "rotated"
            connection.gone_by = min(connection.gone_by, gone_by)
            connection.expires_at = -inf
        return busy

    def counts(self) -> Counts:
        """What lies and what waits here. Any thread."""
        return Counts(len(self._idle), len(self._waiters) - (self._stand_in is not None), len(self._one_off))

    def ask_to_tend(self) -> None:
        """Have the loop keep house here, if there is anything to keep. Any thread."""
        if self.loop.is_closed():
            self._close_all()
        elif (self._idle or self._held) and not self._is_to_tend:
            self._is_to_tend = True
            self._on_loop(self.tend)

    def tend(self) -> None:
        """Close what has been idle or has lived for too long, and half of what is above `max_idle`."""
        self._is_to_tend = False
        now, plan = self._clock(), self._pool.plan
        for connection in tuple(self._idle):
            reason = connection.over(now, plan.idle_timeout_s)
            if reason is not None and self._unshelve(connection):
                self._close(connection, reason)
        for _ in range((len(self._idle) - plan.max_idle + 1) // 2):
            conn = self.give_up_oldest()
            if conn is not None:
                conn.close()
                self._pool.return_slot("surplus")
        grace_s = plan.max_lifetime_grace_s
        for token, connection in tuple(self._held.items()):
            if now >= connection.gone_by:
                connection.gone_by = inf
                self.abort(token, "rotated")
            elif grace_s is not None and now >= connection.expires_at + grace_s:
                self.abort(token, "lifetime")

    def stop(self) -> None:
        """Hard stop, of the pool: waiters leave with LeaseClosed, what is in use is broken off. Any thread."""
        if self.loop.is_closed():
            self._close_all()
        else:
            self._on_loop(self._stop)

    def forget_inherited(self) -> None:
        """In a forked child: give up the connections. The loop, its selector and its tasks are the parent's."""
        self._is_closed = True
        connections = [*self._idle, *self._held.values(), *(how[0] for how in self._given_back.values())]
        self._idle.clear()
        self._given_back.clear()
        self._held.clear()
        self._one_off.clear()
        self._waiters.clear()
        for connection in connections:
            conn, connection.conn = connection.conn, None
            if conn is not None:
                conn.discard()

    # What follows runs on the thread of the loop.

    async def _fill(
        self,
        lease: Lease[C],
        timeout_s: float,
        fresh: bool,
        on_wait: Callable[[ref[Lease[C]]], object] | None,
    ) -> None:
        now, pool, token = lease.taken_at, self._pool, lease.token
        assert token is not None
        if self._is_closed or pool.stopped:
            raise LeaseClosed("the pool is stopped", pool.full_view(), waited_s=0.0)
        plan = pool.plan
        while not fresh and self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            self._hold(lease, token, connection)
            reason = connection.over(now, plan.idle_timeout_s)
            if reason is None and await _is_alive(connection):
                if lease.aborted is not None:
                    raise LeaseCancelled("the caller has gone", pool.full_view(), waited_s=0.0)
                connection.uses += 1
                lease.reused = True
                self.hits += 1
                return
            if self._held.pop(token, None) is not None:  # else it was ended meanwhile
                self._close(connection, reason or "dead")
            lease.connection = _blank(pool)
        if not self._waiters and (pool.lend_slot() or (fresh and self._has_made_room())):
            self._hold(lease, token, _blank(pool))
            return
        if plan.when_full == "new":
            self._one_off.add(token)
            lease.one_off = True
            pool.count_miss()
            self._hold(lease, token, _blank(pool))
            return
        if plan.when_full == "reject":
            raise LeaseRejected("the pool is full", pool.full_view(), waited_s=0.0)
        if timeout_s <= 0:
            raise LeaseTimeout(
                "no connection is free and there is no time to wait", pool.full_view(), waited_s=0.0
            )
        if pool.n_waiting() >= plan.max_waiting:
            text = f"as many are waiting as may ({plan.max_waiting})"
            raise LeaseRejected(text, pool.full_view(), waited_s=0.0)
        await self._wait(lease, token, timeout_s, fresh, on_wait)

    async def _wait(
        self,
        lease: Lease[C],
        token: ref[Lease[C]],
        timeout_s: float,
        fresh: bool,
        on_wait: Callable[[ref[Lease[C]]], object] | None,
    ) -> None:
        pool, now = self._pool, self._clock()
        waiter = _Waiter(lease, self.loop.create_future(), fresh, now)
        limit = Limit(now, lambda by: _wake(waiter), ends_at=now + timeout_s)
        self._waiters.append(waiter)
        try:
            if self._stand_in is None:
                self._queue(waiter)
            self._deadlines.add(limit, now)
            if on_wait is not None:
                on_wait(token)
            if pool.on_enqueue is not None:
                pool.on_enqueue()
            await waiter.future
        finally:
            self._deadlines.remove(limit)
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if not self._waiters:
                self._leave_queue()
        lease.waited_s = waited_s = self._clock() - now
        if token not in self._held:
            view = pool.full_view()
            if lease.aborted is not None:
                raise LeaseCancelled("the caller that waited has gone", view, waited_s=waited_s)
            if pool.stopped or self._is_closed:
                raise LeaseClosed("the pool was stopped", view, waited_s=waited_s)
            raise LeaseTimeout("no connection came free in time", view, waited_s=waited_s)
        pool.count_wait(waited_s)
        connection = lease.connection
        lease.taken_at = self._clock()
        if connection.conn is None:
            return
        if await _is_alive(connection):
            connection.uses += 1
            lease.reused = True
            self.hits += 1
            return
        # Its slot stays, and a connection is made.
        connection.conn.close()
        pool.count_end("dead", is_replaced=True)
        if token in self._held:
            self._hold(lease, token, _blank(pool))

    def _new_lease(self) -> Lease[C]:
        lease: Lease[C] = Lease()
        lease.connection = _blank(self._pool)
        lease.reused = lease.one_off = False
        lease.waited_s = 0.0
        lease.taken_at = self._clock()
        lease.site = lease.aborted = None
        lease.token = token = ref(lease, self._on_drop)
        hash(token)
        return lease

    def _hold(self, lease: Lease[C], token: ref[Lease[C]], connection: Connection[C]) -> None:
        if connection.conn is not None:
            connection.conn.on_unasked = None
        lease.connection = connection
        self._held[token] = connection

    def _end(
        self,
        connection: Connection[C],
        reusable: bool,
        reason: CloseReason,
        aborted: CloseReason | None,
        one_off: bool,
    ) -> None:
        """Keep, hand on or close *connection*, whose lease is over."""
        conn, now, pool = connection.conn, self._clock(), self._pool
        over: CloseReason | None = None
        if not reusable or conn is None:
            over = reason
        elif aborted is not None or not conn.is_open:
            over = aborted or "dead"
        elif now >= connection.expires_at or connection.uses >= (
            pool.plan.max_requests_per_connection or sys.maxsize
        ):
            over = connection.ends_as or "lifetime"
        elif self._is_closed or pool.retired:
            over = "retired"
        elif one_off or pool.is_crowded:
            over = "surplus"
        if over is not None:
            self._close(connection, over, one_off=one_off)
            return
        assert conn is not None
        connection.idle_since = now
        conn.rest()
        waiter = next((one for one in self._waiters if not one.fresh and not one.future.done()), None)
        own = None if self._stand_in is None else self._stand_in[1]
        if waiter is not None and waiter.since <= pool.first_waits_since(but=own):
            self._serve(waiter, connection)
            return
        if waiter is not None:  # the stand-in's place was that of a call that has been served
            try:
                self._queue(waiter)
            finally:
                self._close(connection, "surplus")
            return
        self._shelve(connection, conn)
        # After the append: who waits in the pool's queue looks here after it has entered the queue.
        if pool.first_waits_since() < inf and (oldest := self.give_up_oldest()) is not None:
            oldest.close()
            pool.return_slot("surplus")

    def _end_given_back(self, token: ref[Lease[C]]) -> None:
        how = self._given_back.pop(token, None)
        if how is not None:
            self._end(*how)

    def _close_given_back(self) -> None:
        """Close what the loop will not see to any more. Any thread."""
        while self._given_back:
            try:
                _, (connection, _, reason, _, one_off) = self._given_back.popitem()
            except KeyError:  # another thread was faster
                return
            self._close(connection, reason, one_off=one_off)

    def _shelve(self, connection: Connection[C], conn: C) -> None:
        def ended() -> None:
            if self._unshelve(connection):
                self._close(connection, "dead")

        conn.on_unasked = ended
        self._idle.append(connection)

    def _unshelve(self, connection: Connection[C]) -> bool:
        """Take *connection* off; False: another thread was faster."""
        try:
            self._idle.remove(connection)
        except ValueError:
            return False
        return True

    def _close(self, connection: Connection[C], reason: CloseReason, *, one_off: bool = False) -> None:
        conn, connection.conn = connection.conn, None
        if conn is not None:
            conn.on_unasked = None
            conn.close()
        if not one_off:
            self._pool.return_slot(reason if conn is not None else None)
        elif conn is not None:
            self._pool.count_end(reason)

    def _serve(self, waiter: _Waiter[C], connection: Connection[C]) -> None:
        self._waiters.remove(waiter)
        if not self._waiters:  # now, not when its task runs: what comes back before that is kept
            self._leave_queue()
        token = waiter.lease.token
        assert token is not None
        self._hold(waiter.lease, token, connection)
        waiter.future.set_result(None)

    def _has_made_room(self) -> bool:
        """Whether an idle connection of this shelf was closed, and its slot is there for another one."""
        conn = self.give_up_oldest()
        if conn is None:
            return False
        conn.close()
        self._pool.count_end("surplus", is_replaced=True)
        return True

    def _queue(self, waiter: _Waiter[C]) -> None:
        """Have a stand-in wait in the place of *waiter*; the last one leaves after it: others look who waits."""
        last, gate = self._stand_in, _Gate(self)
        self._stand_in = (gate, self._pool.queue_slot(gate, waiter.since))
        if last is not None:
            self._pool.leave_queue(last[1])

    def _leave_queue(self) -> None:
        stand_in, self._stand_in = self._stand_in, None
        if stand_in is not None:
            self._pool.leave_queue(stand_in[1])

    def _turn_has_come(self, gate: _Gate) -> None:
        stand_in = self._stand_in
        if stand_in is None:
            return  # it has left the queue since, and its slot with it
        if stand_in[0] is not gate:
            return
        waiting = (one for one in self._waiters if not one.future.done())
        waiter, after = next(waiting, None), next(waiting, None)
        if waiter is None or self._pool.stopped:
            self._leave_queue()
            if waiter is not None:
                self._dismiss_waiters()
        elif waiter.since > self._pool.first_waits_since():
            # The stand-in's place was that of a call that has been served.
            self._queue(waiter)
        else:
            self._stand_in = None
            if after is not None:
                self._queue(after)
            if self._pool.take_slot(stand_in[1]):
                self._serve(waiter, _blank(self._pool))
            else:
                self._dismiss_waiters()
                self._leave_queue()

    def _dismiss_waiters(self) -> None:
        while self._waiters:
            _wake(self._waiters.popleft())

    def _break_off(self, token: ref[Lease[C]]) -> None:
        lease = token()
        if lease is None or lease.token is not token:
            return
        for waiter in tuple(self._waiters):
            if waiter.lease is lease:
                self._waiters.remove(waiter)
                _wake(waiter)
        breaker = self.breakers.get(token)
        if breaker is not None:
            breaker()
        elif lease.conn is not None:
            lease.conn.break_off()

    def _stop(self) -> None:
        self._dismiss_waiters()
        for token in tuple(self._held):
            self.abort(token, "retired")
        while (conn := self.give_up_oldest()) is not None:
            conn.close()
            self._pool.return_slot("retired")

    def _on_loop(self, act: Callable[..., object], *arguments: object) -> None:
        """Do it on the thread of the loop: now, or soon; where there is no loop any more, here."""
        if asyncio._get_running_loop() is self.loop:
            act(*arguments)
            return
        try:
            self.loop.call_soon_threadsafe(act, *arguments)
        except RuntimeError:
            pass  # it was closed just now: the next look of the pool closes all that is here

    def _lost(self, token: ref[Lease[C]], reason: CloseReason) -> None:
        """A lease ends without being given back. Any thread, and no lock. Where the loop is closed, a look ends it."""
        if token in self._held:
            try:
                self.loop.call_soon_threadsafe(self._end_lost, token, reason)
            except RuntimeError:
                pass

    def _end_lost(self, token: ref[Lease[C]], reason: CloseReason) -> None:
        connection = self._held.pop(token, None)
        if connection is not None:
            one_off = token in self._one_off
            self._one_off.discard(token)
            self.breakers.pop(token, None)
            self._end(connection, False, reason, None, one_off)

    async def _keep(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._close_all()
            for _ in range(2):  # the loop closes the sockets in turns of its own
                await asyncio.sleep(0)

    def _close_all(self) -> None:
        """The loop ends, or is closed already: so do all connections on it. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._dismiss_waiters()
        self._leave_queue()
        while (conn := self.give_up_oldest()) is not None:
            conn.close()
            self._pool.return_slot("retired")
        while self._held:
            token, connection = self._held.popitem()
            lease = token()
            if lease is not None:
                lease.aborted, lease.token = lease.aborted or "retired", None
            self._close(connection, "retired", one_off=token in self._one_off)
        self._close_given_back()
        self._pool.remove_shelf(self)

    def __repr__(self) -> str:
        return (
            f"<Shelf {len(self._held)} in use, {len(self._idle)} idle, {len(self._waiters)} waiting, "
            f"{self._pool!r}>"
        )


async def shelf_of(pool: LeasePool[Any]) -> Shelf[Any]:
    """The shelf of the running event loop over *pool*; made where there is none.

    Raises:
        LeaseClosed: The pool is stopped.
    """
    loop = asyncio.get_running_loop()
    shelf = pool.shelves.get(id(loop))
    if shelf is None or shelf.loop is not loop or shelf.is_closed:
        for other in pool.shelves.copy().values():
            other.ask_to_tend()  # which ends those of loops that were closed
        shelf = Shelf(pool, loop, deadlines_of(loop))
        await shelf.open()
    return shelf


async def _is_alive(connection: Connection[Any]) -> bool:
    conn = connection.conn
    return conn is not None and (conn.is_quiet() or await conn.becomes_quiet())


def _wake(waiter: _Waiter[Any]) -> None:
    if not waiter.future.done():
        try:
            waiter.future.set_result(None)
        except RuntimeError:
            pass  # its loop is closed: its task will never run again, and what it has in the queue is given up


def _blank(pool: LeasePool[Any]) -> Connection[Any]:
    return pool.blank()


def _drop_callback(shelf: ref[Shelf[Any]]) -> Callable[[ref[Lease[Any]]], None]:
    """As that of the pool: it may run at any point of any thread, and takes no lock where it runs on another one."""

    def on_drop(token: ref[Lease[Any]]) -> None:
        owner = shelf()
        if owner is not None:
            owner._lost(token, "leaked")

    return on_drop
