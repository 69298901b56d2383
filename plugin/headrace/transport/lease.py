"""Who holds which connection of one upstream: bookkeeping and the wait for a slot, and nothing of HTTP.

A lease is in one place at a time: among the waiters, in use, or neither (it
went back, or never got anything). Every count is the size of one of these
collections, so there is none that could drift away from them.

**Locks.** `LeasePool._lock` guards `_idle`, `_inuse`, `_one_off`, `_waiters` and the
two flags. Under it: moves between the collections, the release of a waiter's
gate, and `abort` (a shutdown(2); it must not block). Never a probe, a close, a
counter or a callback that could come back. `counters.lock` guards the counters
and the hit-rate ring; it is never taken while `_lock` is held.

**Giving back never waits.** A dropped response gives its lease back from a
finalizer, which the garbage collector may run at almost any point of any
thread: also of the one that holds `_lock` at this moment (Pitfall 25). So a
return is first appended to `_returns` (one atomic step), and only then is the
lock *tried*. If it is taken, its holder does the work: whoever releases `_lock`
looks at `_returns` afterwards. The append comes before the try and the look after
the release, so one of the two sees the other. (On a free-threaded build with a
weakly ordered CPU both could look too early; the next acquire, return, view or
round of housekeeping then picks it up.) Under contention this saves the
returning thread the wait as well.

**Interrupts.** KeyboardInterrupt, or Celery's soft time limit, may be raised between
any two bytecodes where CPython polls for signals: after a call, not after a
plain store. A lease is written down as in use, or as somebody else's, in one
store each, and `acquire` undoes itself for any BaseException; an interrupt in
the bookkeeping can cost a connection, never a slot.

The file is long for this house because everything that touches `_lock` is to be
read, and argued about, in one place.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.plan import PoolPlan

C = TypeVar("C")

CloseReason = Literal["idle", "dead", "surplus", "retired", "error"]

HIT_RATE_WINDOW_S = 10
_DO_NOT_WAIT = (False,)


class Lease(Generic[C]):
    """One slot of the pool, held by one caller. Not shared between threads; only `LeasePool.acquire` makes one.

    Attributes:
        conn: An idle connection that was found alive, or None: the slot is
            yours, make a connection and set it here.
        reused: `conn` came from the pool.
        one_off: Beyond `max_connections` (`when_full: new`); closed when it comes back.
        waited_s: Seconds waited for the slot; 0 when one was free.
        idle_since: When `conn` was last given back, on the pool's clock; 0 without one.
    """

    # No __init__: it would be a fifth of the bookkeeping (0.25 of 1.2 µs). Identity is equality.
    __slots__ = ("conn", "idle_since", "one_off", "reused", "waited_s")

    conn: C | None
    reused: bool
    one_off: bool
    waited_s: float
    idle_since: float

    def __repr__(self) -> str:
        kind = "one-off" if self.one_off else "reused" if self.reused else "new"
        return f"<Lease {kind}, waited {self.waited_s:.3f} s, {self.conn!r}>"


@dataclass(frozen=True, slots=True)
class PoolView:
    """How the pool stood at one instant; `inuse` counts pooled leases, one-off ones apart."""

    inuse: int
    idle: int
    waiting: int
    one_off: int
    max_connections: int
    retired: bool
    stopped: bool


class LeaseError(Exception):
    """No lease; the text holds the numbers.

    Attributes:
        inuse, idle, waiting, max_connections: The pool at that instant; `waiting` without the one that gave up.
        waited_s: Seconds waited in vain.
    """

    def __init__(self, what: str, view: PoolView, *, waited_s: float) -> None:
        super().__init__(
            f"{what} (waited {waited_s:.3f} s; {view.inuse} in use, {view.idle} idle, "
            f"{view.waiting} waiting, max {view.max_connections})"
        )
        self.inuse = view.inuse
        self.idle = view.idle
        self.waiting = view.waiting
        self.max_connections = view.max_connections
        self.waited_s = waited_s


class LeaseTimeout(LeaseError):
    """No connection came free in time."""


class LeaseRejected(LeaseError):
    """The pool is full, and `when_full` or `max_waiting` says not to wait."""


class LeaseClosed(LeaseError):
    """The pool was stopped."""


class LeasePool(Generic[C]):
    """The leases of one upstream. Thread-safe.

    Args:
        plan: Size and lifecycle.
        counters: `acquires`, `closed` and `wait` are kept here; they outlive the pool.
        clock: Monotonic seconds.
        is_alive: Whether an idle connection is still usable; called without the lock, must not block.
        close: Closes a connection for good; called without the lock, also from finalizers. What it raises is dropped.
        abort: Breaks off what the holder of a connection is doing (a shutdown of the socket); called *with*
            the lock held, so that it can never hit a connection that was leased anew; must not block.
    """

    def __init__(
        self,
        plan: PoolPlan,
        counters: UpstreamCounters,
        *,
        clock: Callable[[], float] = time.monotonic,
        is_alive: Callable[[C], bool],
        close: Callable[[C], None],
        abort: Callable[[C], None],
    ) -> None:
        self.plan = plan
        self._counters = counters
        self._clock = clock
        self._is_alive = is_alive
        self._close = close
        self._abort = abort

        self._lock = threading.Lock()
        self._idle: deque[tuple[C, float]] = deque()  # oldest first; leased from the right
        self._inuse: dict[Lease[C], None] = {}
        self._one_off: dict[Lease[C], None] = {}
        self._waiters: OrderedDict[Lease[C], threading.Lock] = (
            OrderedDict()
        )  # longest first, each with its gate
        self._retired = False
        self._stopped = False

        # Touched without the lock, by single deque operations only.
        self._returns: deque[tuple[Lease[C], bool, float]] = deque()  # lease, reusable, returned at
        self._doomed: deque[tuple[C, CloseReason]] = deque()  # to be closed
        self._closed: deque[CloseReason] = (
            deque()
        )  # to be counted: a finalizer may not wait for counters.lock

        # Guarded by counters.lock.
        self._second = 0  # the one that is being counted
        self._acquires_now = 0
        self._hits_now = 0
        self._past: deque[tuple[int, int, int]] = deque()  # second, acquires, hits; the nine before at most

    def acquire(self, timeout_s: float, *, by_deadline: bool = False) -> Lease[C]:
        """A slot of the pool, with an idle connection if a live one is there. Blocks, first come first served.

        Newest connection first; every expired or dead one met on the way is closed.

        Args:
            timeout_s: Longest wait; 0 or less: not at all.
            by_deadline: The wait was cut by the deadline of the call; a timeout is then counted as `deadline`.

        Raises:
            LeaseTimeout: Nothing came free in time.
            LeaseRejected: Full, and there is no waiting (any more).
            LeaseClosed: The pool is stopped, or was while waiting.
        """
        # One flat body: with `give_back` it is on every call's way, and a Python-level call costs a microsecond in
        # situ. These two make three together with the liveness check.
        started = self._clock()
        lease: Lease[C] = Lease()
        lease.conn = None
        lease.reused = lease.one_off = False
        lease.waited_s = lease.idle_since = 0.0
        gate: threading.Lock | None = None
        try:
            with self._lock:
                if self._returns:
                    self._take_back()
                if self._idle:  # then nobody waits, and the pool is not stopped
                    self._inuse[lease] = None
                    lease.conn, lease.idle_since = self._idle.pop()
                else:
                    gate = self._slot_or_gate(lease, started, timeout_s)
            if self._returns or self._doomed:
                self._settle()
            if gate is not None:
                self._wait(lease, gate, started, timeout_s)
            if lease.conn is not None:
                if started - lease.idle_since < self.plan.idle_timeout_s and self._is_alive(lease.conn):
                    lease.reused = True
                else:
                    self._replace(lease, started)
            counters = self._counters
            with counters.lock:
                if int(started) != self._second:
                    self._roll(int(started))
                self._acquires_now += 1
                acquires = counters.acquires
                if lease.reused:
                    self._hits_now += 1
                    acquires["hit"] = acquires.get("hit", 0) + 1
                else:
                    acquires["miss"] = acquires.get("miss", 0) + 1
                if gate is None:
                    counters.wait.counts[0] += 1  # observe(0.0), without the call
                else:
                    counters.wait.observe(lease.waited_s)
            if self._closed:
                self._count_closed()
            return lease
        except BaseException as error:
            with self._lock:
                self._waiters.pop(lease, None)
            self.give_back(lease, reusable=False)  # nothing, unless it got as far as being in use
            if isinstance(error, LeaseError):
                self._count(_result_of(error, by_deadline=by_deadline), error.waited_s)
            raise

    def give_back(self, lease: Lease[C], *, reusable: bool) -> None:
        """End *lease*; a second time nothing happens. Never blocks: may be called from a finalizer.

        Args:
            reusable: The connection stands between two answers. If False the
                pool closes it; nothing to close when `lease.conn` is None.
        """
        now = self._clock()
        held = False
        try:
            # Not `held = self._lock.acquire(False)`: between the call and the store, CPython may raise an interrupt,
            # and the lock would stay locked for good. map() is lazy, and unpacking it into the name is one step.
            (held,) = map(self._lock.acquire, _DO_NOT_WAIT)
            if held and reusable and lease in self._inuse and not (self._waiters or self._retired):
                # The common case, in place; the next two lines cannot be interrupted in between.
                del self._inuse[lease]
                if lease.conn is not None:
                    self._idle.append((lease.conn, now))
            else:
                self._returns.append((lease, reusable, now))
        finally:
            if held:
                self._lock.release()
        if self._returns or self._doomed:
            self._settle()

    def give_back_quietly(self, lease: Lease[C]) -> None:
        """End *lease* whose connection is closed already, or must be. Never blocks: may be called from a finalizer."""
        self._returns.append((lease, False, self._clock()))
        self._settle()

    def expire_idle(self, now: float | None = None) -> int:
        """Close what has been idle for `idle_timeout`; how many that were. For housekeeping; also settles leftovers."""
        now = self._clock() if now is None else now
        expired = 0
        with self._lock:
            self._take_back()
            while self._idle and now - self._idle[0][1] >= self.plan.idle_timeout_s:
                self._doomed.append((self._idle.popleft()[0], "idle"))
                expired += 1
            self._serve()
        self._settle()
        self._count_closed()
        return expired

    def retire(self) -> None:
        """Keep nothing any more: idle connections are closed now, those in use when they come back.

        Still leases, to calls that hold the old snapshot.
        """
        with self._lock:
            self._retired = True
            self._doom_idle()
        self._settle()

    def stop(self) -> None:
        """Hard stop: no lease from now on, waiters leave with LeaseClosed, connections in use are aborted."""
        with self._lock:
            self._take_back()
            self._stopped = self._retired = True
            self._doom_idle()
            for lease in (*self._inuse, *self._one_off):
                if lease.conn is not None:
                    try:
                        self._abort(lease.conn)
                    except Exception:
                        pass  # as good as aborted: the holder has closed it, or is about to
            while self._waiters:
                self._waiters.popitem(last=False)[1].release()
        self._settle()
        self._count_closed()

    def forget_inherited(self, discard: Callable[[C], None]) -> None:
        """In a forked child, where no other thread runs: give up every connection, they are the parent's.

        A lease that the forking thread held ends; giving it back later does nothing.

        Args:
            discard: Closes this process's copy of a connection without a word to the peer (Pitfall 26).
        """
        self._lock = threading.Lock()  # whoever held the old one does not exist here
        conns = [conn for conn, _ in (*self._idle, *self._doomed)]
        held = (*self._inuse, *self._one_off, *(lease for lease, _, _ in self._returns))
        conns += [lease.conn for lease in held if lease.conn is not None]
        for collection in (
            self._idle,
            self._doomed,
            self._inuse,
            self._one_off,
            self._returns,
            self._waiters,
        ):
            collection.clear()
        for conn in conns:
            discard(conn)

    @property
    def retired(self) -> bool:
        """Whether connections are closed as they come back."""
        return self._retired

    @property
    def stopped(self) -> bool:
        """Whether leases are refused."""
        return self._stopped

    def view(self) -> PoolView:
        """How the pool stands; also brings the counters up to date. Takes the lock: not for finalizers."""
        with self._lock:
            self._take_back()
            view = self._view()
        self._settle()
        self._count_closed()
        return view

    def hit_rate(self, now: float | None = None) -> float | None:
        """Share of acquires in the last 10 s that got an idle connection; None when there were none."""
        second = int(self._clock() if now is None else now)
        with self._counters.lock:
            if second > self._second:
                self._roll(second)
            acquires = self._acquires_now + sum(bucket[1] for bucket in self._past)
            hits = self._hits_now + sum(bucket[2] for bucket in self._past)
        return hits / acquires if acquires else None

    def __repr__(self) -> str:
        # Without the lock: a repr is what one asks for when something hangs.
        state = "stopped, " if self._stopped else "retired, " if self._retired else ""
        one_off = f" and {len(self._one_off)} one-off" if self._one_off else ""
        return (
            f"<LeasePool {state}{len(self._inuse)} in use{one_off}, {len(self._idle)} idle, "
            f"{len(self._waiters)} waiting, max {self.plan.max_connections}>"
        )

    # With the lock held.

    def _slot_or_gate(self, lease: Lease[C], started: float, timeout_s: float) -> threading.Lock | None:
        """Put *lease* in use without a connection, or in the queue; then its gate. No idle connection is there."""
        plan = self.plan
        if self._stopped:
            raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
        if len(self._inuse) < plan.max_connections:
            self._inuse[lease] = None
            return None
        if plan.when_full == "new":
            lease.one_off = True
            self._one_off[lease] = None
            return None
        waited_s = self._clock() - started
        if plan.when_full == "reject":
            raise LeaseRejected("the pool is full", self._view(), waited_s=waited_s)
        if timeout_s <= 0:
            raise LeaseTimeout(
                "no connection is free and there is no time to wait", self._view(), waited_s=waited_s
            )
        if len(self._waiters) >= plan.max_waiting:
            raise LeaseRejected(
                f"as many are waiting as may ({plan.max_waiting})", self._view(), waited_s=waited_s
            )
        gate = threading.Lock()
        gate.acquire()
        self._waiters[lease] = gate
        return gate

    def _take_back(self) -> None:
        """Process the returns; serve waiters with what came free."""
        while self._returns:
            lease, reusable, returned_at = self._returns[0]
            conn = lease.conn
            # The claim: only the first return of a lease finds it in use. The entry stays until it is done, so an
            # interrupt in between repeats it instead of losing it.
            if lease in self._inuse:
                del self._inuse[lease]
                if conn is not None and reusable and not self._retired:
                    self._idle.append((conn, returned_at))
                elif conn is not None:
                    self._doomed.append((conn, "retired" if reusable else "error"))
            elif lease in self._one_off:
                del self._one_off[lease]
                if conn is not None:
                    self._doomed.append((conn, "surplus" if reusable else "error"))
            self._returns.popleft()
            if self._waiters:
                self._serve()

    def _serve(self) -> None:
        """Hand what is free to those who have waited longest."""
        while self._waiters and (self._idle or len(self._inuse) < self.plan.max_connections):
            lease, gate = next(iter(self._waiters.items()))
            if self._idle:
                lease.conn, lease.idle_since = self._idle.pop()
            self._inuse[lease] = None
            del self._waiters[lease]
            gate.release()

    def _doom_idle(self) -> None:
        while self._idle:
            self._doomed.append((self._idle.popleft()[0], "retired"))

    def _view(self) -> PoolView:
        return PoolView(
            inuse=len(self._inuse),
            idle=len(self._idle),
            waiting=len(self._waiters),
            one_off=len(self._one_off),
            max_connections=self.plan.max_connections,
            retired=self._retired,
            stopped=self._stopped,
        )

    # Without the lock.

    def _settle(self) -> None:
        """What whoever has released the lock owes the others: their returns, then the closes. Never blocks."""
        while self._returns:
            held = False
            try:
                (held,) = map(self._lock.acquire, _DO_NOT_WAIT)
                if not held:
                    return  # the holder looks at `_returns` after he has released it
                self._take_back()
            finally:
                if held:
                    self._lock.release()
        while self._doomed:
            try:
                conn, reason = self._doomed.popleft()
            except IndexError:  # another thread was faster
                return
            self._close_now(conn, reason)

    def _close_now(self, conn: C, reason: CloseReason) -> None:
        self._closed.append(reason)
        try:
            self._close(conn)
        except Exception:
            pass  # it is given up either way, and the call at hand has nothing to do with it

    def _wait(self, lease: Lease[C], gate: threading.Lock, started: float, timeout_s: float) -> None:
        """Until *lease* was put in use by somebody who gave back. Blocks."""
        left_s = started + timeout_s - self._clock()
        opened = gate.acquire(timeout=min(max(left_s, 0.0), threading.TIMEOUT_MAX))
        with self._lock:
            # Handed over in the last moment: then it is ours, in spite of the clock.
            gave_up = not opened and self._waiters.pop(lease, None) is not None
            closed = not gave_up and lease not in self._inuse
            view = self._view() if gave_up or closed else None
        if self._returns:
            self._settle()
        lease.waited_s = waited_s = self._clock() - started
        if view is not None:
            if closed:
                raise LeaseClosed("the pool was stopped", view, waited_s=waited_s)
            raise LeaseTimeout("no connection came free in time", view, waited_s=waited_s)

    def _replace(self, lease: Lease[C], now: float) -> None:
        """Close the connection of *lease*, found expired or dead; take the next idle one that is neither, or none."""
        while True:
            conn = lease.conn
            if conn is None:
                return
            expired = now - lease.idle_since >= self.plan.idle_timeout_s
            lease.conn = None
            self._close_now(conn, "idle" if expired else "dead")
            with self._lock:
                # The slot of the connection just closed is kept; taking an idle one as well makes one slot free,
                # for which nobody waits while an idle one is there.
                if self._idle:
                    lease.conn, lease.idle_since = self._idle.pop()
            if self._returns:
                self._settle()
            # Each connection is probed once: a second look at one that was dead for one stray byte finds it silent.
            unexpired = now - lease.idle_since < self.plan.idle_timeout_s
            if lease.conn is not None and unexpired and self._is_alive(lease.conn):
                lease.reused = True
                return

    def _count(self, result: str, waited_s: float) -> None:
        """An acquire that ended without a lease."""
        second = int(self._clock())
        with self._counters.lock:
            if second != self._second:
                self._roll(second)
            self._acquires_now += 1
            add(self._counters.acquires, result)
            self._counters.wait.observe(waited_s)

    def _count_closed(self) -> None:
        with self._counters.lock:
            while self._closed:
                try:
                    reason = self._closed.popleft()
                except IndexError:  # a counters object without a real lock
                    return
                add(self._counters.closed, reason)

    def _roll(self, second: int) -> None:
        """Go on to count *second*; forget those out of the window. counters.lock is held."""
        if second < self._second:
            return  # read the clock earlier and came later: counted with those of now
        if self._acquires_now:
            self._past.append((self._second, self._acquires_now, self._hits_now))
        while self._past and self._past[0][0] <= second - HIT_RATE_WINDOW_S:
            self._past.popleft()
        self._second = second
        self._acquires_now = self._hits_now = 0


def _result_of(error: LeaseError, *, by_deadline: bool) -> str:
    """Label of `acquires` for an acquire that ended with *error*."""
    if isinstance(error, LeaseTimeout):
        return "deadline" if by_deadline else "timeout"
    return "rejected"
