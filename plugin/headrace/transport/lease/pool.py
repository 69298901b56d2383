"""Which call holds which connection of one upstream: bookkeeping and the wait for a slot, and nothing of HTTP.

A lease is in one place at a time: among the waiters, in use, given back and not
looked at yet, or in none of them. A `Connection` is what is known of a connection; it outlives
its leases, and is idle or held by one of them. Every count is the size of one of these collections, so
no count can drift away from them.

**Locks.** `LeasePool._lock` guards `_idle`, `_owned`, `_inuse`, `_one_off`, `_waiters`, the tally, the
size and the flags. Under it: moves between the collections, counting, the release of a
waiter's gate, and `abort` (a shutdown(2); it must not block). Never under it: a probe, a
close or a callback that could call the pool. `counters.lock` is a leaf: it is taken
while `_lock` is held, once per `view()` or round of housekeeping.

**Giving back takes no lock.** A dropped response gives its lease back from a
finalizer. The garbage collector may run that at almost any point of any
thread, even of the thread that holds `_lock` at this moment (failures.md 25). So a
return is appended to `_kept` or `_returns` (one atomic step). That is all, unless
a waiter is there or a connection is to be closed. Then the lock is *tried*.
If it is taken, its holder does the work: every thread that releases `_lock` looks at
these two afterwards. The append comes before the try, and the look comes after
the release, so one of the two threads sees the other. In the same way a waiter enters the queue
before it looks at `_kept`, and a thread that gives back looks at the queue after its append. (On a
free-threaded build with a weakly ordered CPU both could look too early. The next
acquire, return, view or round of housekeeping then picks it up.)

**Leaks.** The pool knows leases in use by weak reference only, and a connection in use
only through its lease. A lease that is no longer referred to is collected, whatever happened
to it. The callback appends to `_dropped`, and the slot is free.

**Owners.** A connection that its peer has authenticated (NTLM), or that is of a class of its caller's, belongs to its
owner alone: `claim`. While idle, it is in `_owned`. Callers look at that only if it is not empty. An owner of the
second kind takes no other connection (`own_only`). All connections count towards the same size.

**Interrupts.** KeyboardInterrupt, or Celery's soft time limit, may be raised between
any two bytecodes where CPython polls for signals: after a call, not after a
plain store. One store writes a lease down as in use, and one store writes it down as another
caller's. `acquire` undoes itself for any BaseException. An interrupt in
the bookkeeping, or in the caller before it has stored the lease, can
cost a connection, never a slot.

**Fork.** A child's copy of an idle connection is the parent's connection: `forget_inherited`
gives all of them up. The code that learns of the fork calls it, and so does the first
operation in a process other than the one that used the pool (raw fork(2), uWSGI).

The file is long for this house because everything that touches `_lock` is meant to be
read, and reasoned about, in one place.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from weakref import ref

from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.plan import PoolPlan
from headrace.transport.call_site import call_site
from headrace.transport.lease.collector import PATIENCE_S
from headrace.transport.lease.errors import LeaseCancelled as LeaseCancelled
from headrace.transport.lease.errors import LeaseClosed as LeaseClosed
from headrace.transport.lease.errors import LeaseError as LeaseError
from headrace.transport.lease.errors import LeaseFault as LeaseFault
from headrace.transport.lease.errors import LeaseRejected as LeaseRejected
from headrace.transport.lease.errors import LeaseReport as LeaseReport
from headrace.transport.lease.errors import LeaseTimeout as LeaseTimeout
from headrace.transport.lease.errors import PoolView as PoolView
from headrace.transport.lease.tally import LeaseTally
from headrace.transport.standstill import opened_in_time

C = TypeVar("C")
E = TypeVar("E")

CloseReason = Literal["idle", "lifetime", "dead", "surplus", "retired", "error", "leaked", "abandoned"]
"""Why a connection was closed.

- idle: unused for `idle_timeout`.
- lifetime: `max_lifetime` or `max_requests_per_connection` is over.
- dead: the peer has closed it, or said in its last answer that it will (`Connection: close`); or it has sent
  something unasked, or an answer with an end that can be read in two ways.
- surplus: one-off, above `max_idle`, beyond a lowered size, its owner has gone, or it made room for a fresh one.
- retired: it belonged to a pool that a reload has replaced.
- error: broken off, or closed before the end of an answer.
- leaked: dropped by its holder without being given back.
- abandoned: the inbound request that its answer was opened in ended before the answer's body did.
"""

LIFETIME_JITTER = 0.025
"""Share of `max_lifetime` that is taken off at random, so that connections made together do not end
together. HikariCP's figure."""

_DO_NOT_WAIT = (False,)
_NEVER = float("inf")

_STEP_S = 15.0
"""Seconds by which an instant may lie ahead of the clock unless the clock was stepped back."""
_MANY_WAITS = 4096

_getpid = os.getpid


class Connection(Generic[C]):
    """What the pool knows of one connection. It outlives the leases on it; only `LeasePool` makes one.

    Attributes:
        conn: What was dialled; None until then, and after it was given up.
        owner: The only one that may use it, referred to weakly; None: any caller may. See `LeasePool.claim`.
        idle_since: When it was last given back, on the pool's clock; 0 before that.
        looked_at: When it was last lent for a look (`lend_idle`); 0 before that.
        expires_at: When its life is over.
        uses: Leases that it has had, including the one that holds it; count.
    """

    # No __init__: see `Lease`. Identity is equality.
    __slots__ = ("conn", "expires_at", "idle_since", "looked_at", "owner", "uses")

    conn: C | None
    owner: ref[Any] | None
    idle_since: float
    looked_at: float
    expires_at: float
    uses: int

    def over(self, now: float, idle_timeout_s: float) -> CloseReason | None:
        """Why it is not used again although its peer may still be there; None: it may be."""
        if now >= self.expires_at:
            return "lifetime"
        return "idle" if now - self.idle_since >= idle_timeout_s else None

    def __repr__(self) -> str:
        return f"<Connection, {self.uses} uses, {self.conn!r}>"


class Lease(Generic[C]):
    """One place on a connection, held by one caller. Not shared between threads; only `LeasePool` makes one.

    Attributes:
        connection: What the pool knows of the connection. It is blank where the pool had none to give.
        conn: The connection itself. None: the caller has the slot, and makes a connection and sets it here.
        reused: The connection came from the pool.
        one_off: Beyond `max_connections` (`when_full: new`); closed when it comes back.
        waited_s: Seconds waited for the slot; 0 when one was free.
        taken_at: When the lease began, on the pool's clock.
        site: `file:line` where the lease was taken, if that is noted (`leak_detection_threshold`).
        aborted: None, or the reason of the close: `abort`, `stop` or the end of its grace broke the connection off.
        token: The pool's reference to the lease; None once it has ended.
    """

    # No __init__: it would be a fifth of the bookkeeping (0.25 of 1.2 µs). Identity is equality.
    __slots__ = (
        "__weakref__",
        "aborted",
        "connection",
        "one_off",
        "reused",
        "site",
        "taken_at",
        "token",
        "waited_s",
    )

    connection: Connection[C]
    reused: bool
    one_off: bool
    waited_s: float
    taken_at: float
    site: str | None
    aborted: CloseReason | None
    token: ref[Lease[C]] | None

    def _made(self, conn: C | None) -> None:
        self.connection.conn = conn

    if TYPE_CHECKING:
        conn: C | None
    else:
        conn = property(attrgetter("connection.conn"), _made)  # asked in C: no Python call

    def __repr__(self) -> str:
        kind = "one-off" if self.one_off else "reused" if self.reused else "new"
        return f"<Lease {kind}, waited {self.waited_s:.3f} s, {self.conn!r}>"


class LeasePool(Generic[C]):
    """The leases of one upstream. Thread-safe.

    Args:
        plan: Size and lifecycle.
        counters: `acquires`, `closed` and `wait` are kept here, up to date after `view()` and `tend()`;
            they outlive the pool.
        clock: Monotonic seconds.
        rng: Uniform numbers in [0, 1), for the jitter of lifetimes.
        is_alive: Whether an idle connection is still usable. Called without the lock; must not block.
        close: Closes a connection for good. Called without the lock, also from finalizers. Its errors are dropped.
        abort: Breaks off what the holder of a connection is doing (a shutdown of the socket). Called *with*
            the lock held, so that it can never hit a connection that was leased again; must not block.
        discard: Closes a forked child's copy of a connection, without telling the peer (failures.md 26).
        collect: Asks for a garbage collection, and answers whether there was one. Called without the lock when a
            call has waited for PATIENCE_S, or was refused, because the pool is full. None: no collection is asked for.

    Attributes:
        on_enqueue: Called without the lock when a call has entered the queue; it may `resize`.
    """

    def __init__(
        self,
        plan: PoolPlan,
        counters: UpstreamCounters,
        *,
        clock: Callable[[], float] = monotonic,
        rng: Callable[[], float] = random.random,
        is_alive: Callable[[C], bool],
        close: Callable[[C], None],
        abort: Callable[[C], None],
        discard: Callable[[C], None],
        collect: Callable[[], bool] | None = None,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._rng = rng
        self._is_alive = is_alive
        self._close = close
        self._abort = abort
        self._discard = discard
        self._collect = collect
        self._has_refused = False  # since the last housekeeping, because it was full
        self.on_enqueue: Callable[[], None] | None = None
        self._adopt_plan(plan)

        self._pid = _getpid()
        self._reset_by: dict[int, object] = {}  # pid -> the call that resets the pool, the first after a fork
        self._lock = threading.Lock()
        self._size = plan.max_connections
        self._tally = LeaseTally()
        self._idle: deque[Connection[C]] = deque()  # oldest first; leased from the right
        self._owned: deque[Connection[C]] = deque()  # the same, for connections with an owner
        self._inuse: dict[ref[Lease[C]], str | None] = {}  # -> where it was taken, if that is noted
        self._one_off: dict[ref[Lease[C]], str | None] = {}
        # Those that wait longest come first. Each has its gate.
        self._waiters: OrderedDict[Lease[C], threading.Lock] = OrderedDict()
        self._fresh_waiters: set[Lease[C]] = set()  # of the waiters, those that want no idle connection
        self._own_waiters: set[Lease[C]] = (
            set()
        )  # of the waiters, those that want their owner's connections alone
        self._reported: set[ref[Lease[C]]] = set()  # in use, and reported as held for too long
        self._leaky_sites: set[str | None] = set()
        self._faulty_sites: set[str] = set()
        self._retired = False
        self._stopped = False
        # Whether a connection that comes back is screened and not simply kept: the pool is retired, or was shrunk
        # below what is in use.
        self._screens = False

        # Touched without the lock, by single deque operations only.
        self._kept: deque[Lease[C]] = deque()  # given back in good order
        # Given back otherwise; None: to be kept.
        self._returns: deque[tuple[Lease[C], CloseReason | None]] = deque()
        self._dropped: deque[ref[Lease[C]]] = deque()  # leases that were collected
        self._gone_owners: deque[ref[Any]] = deque()  # owners that were collected
        self._to_close: deque[C] = deque()  # counted as closed, and still to be closed
        self._reports: deque[LeaseReport | LeaseFault] = deque()
        self._on_drop = _drop_callback(ref(self), self._dropped)
        self._on_gone = _gone_callback(ref(self), self._gone_owners)

    def acquire(
        self,
        timeout_s: float,
        *,
        by_deadline: bool = False,
        fresh: bool = False,
        owner: object | None = None,
        own_only: bool = False,
        on_wait: Callable[[ref[Lease[C]]], object] | None = None,
    ) -> Lease[C]:
        """A slot of the pool, with an idle connection if a usable one is there. Blocks, first come first served.

        The caller's own connection comes first, then the newest one without an owner. Expired or dead ones
        found on the way are closed. Connections of other owners are passed over. If there is no room for another
        connection, the one of them that has been idle longest is closed.

        Args:
            timeout_s: Longest wait, seconds; 0 or less: no wait.
            by_deadline: The deadline of the call has cut the wait; a timeout is then counted as `deadline`.
            fresh: A slot without a connection, even if idle ones are there; one of them makes room if necessary.
            owner: The owner that asks, as in `claim`; None: the caller has no connections of its own.
            own_only: No connection but the owner's own. If it has none idle: a slot, as with *fresh*.
            on_wait: Called without the lock before a wait, with the token by which `abort` can end it.

        Raises:
            LeaseCancelled: `abort` has ended the wait.
            LeaseTimeout: Nothing came free in time.
            LeaseRejected: The pool is full, and the caller cannot wait (any longer).
            LeaseClosed: The pool is stopped, or was stopped during the wait.
        """
        # One flat body: every call comes through here and through `give_back`, and a Python-level call costs a
        # microsecond in situ. A call enters these two and the look at the connection, and nothing else here.
        if _getpid() != self._pid:
            self.forget_inherited()
        now = self._clock()
        lease: Lease[C] = Lease()
        lease.connection = _NO_CONNECTION
        lease.reused = lease.one_off = False
        lease.waited_s = 0.0
        lease.taken_at = now
        lease.site = call_site() if self._notes_site else None
        lease.aborted = None
        lease.token = token = ref(lease, self._on_drop)
        hash(token)  # while the lease still exists; `on_drop` says why
        gate: threading.Lock | None = None
        connection: Connection[C] | None = None
        kept = self._kept
        try:
            with self._lock:
                tally = self._tally
                if now >= tally.turn_at or now < tally.turn_at - _STEP_S:
                    tally.turn(now)
                newest: Lease[C] | None = None
                if kept and not (
                    fresh or own_only or self._waiters or self._screens or self._owned or self._returns
                ):
                    newest = kept[-1]  # nothing is newer, so it need not go through `_idle`
                    try:
                        del self._inuse[newest.token]  # type: ignore[arg-type]
                    except KeyError:  # it had ended before
                        newest = None
                    else:
                        newest.token = None
                        connection = newest.connection
                if connection is None:
                    if kept or self._returns or self._dropped or self._gone_owners:
                        self._process_returns()
                    # Where a connection is idle, no call waits, and the pool is not stopped.
                    if self._owned and owner is not None and not fresh:
                        connection = self._newest_owned_by(owner)
                    if connection is None and self._idle and not (fresh or own_only):
                        connection = self._idle[-1]
                if connection is not None:
                    self._inuse[token] = lease.site
                    lease.connection = connection
                    connection.uses += 1
                    tally.hits += 1  # unless `_replace` finds otherwise
                    # This comes last because an interrupt may be raised here.
                    if newest is not None:
                        kept.remove(
                            newest
                        )  # not pop(): another thread may have given back and appended by now
                    elif connection.owner is not None:
                        self._owned.remove(connection)
                    else:
                        self._idle.pop()
                else:
                    gate = self._slot_or_gate(lease, timeout_s, fresh, owner, own_only)
            if (
                self._to_close
                or self._returns
                or self._dropped
                or self._waiters
                or self._screens
                or self._gone_owners
            ):
                self._settle()
            if gate is not None:
                self._wait(lease, gate, now, timeout_s, on_wait)
            connection = lease.connection  # a waiter was given its own
            if connection.conn is not None:
                # Looked at even if it was used just now: what its peer has sent since then answers no request
                # (failures.md 53).
                if (
                    now < connection.expires_at  # `over`, written out
                    and now - connection.idle_since < self._idle_timeout_s
                    and self._is_alive(connection.conn)
                ):
                    lease.reused = True
                else:
                    self._replace(lease, now, owner, own_only)
            return lease
        except BaseException as error:
            with self._lock:
                self._waiters.pop(lease, None)
                self._forget_wishes(lease)
                if isinstance(error, LeaseError):
                    self._tally.failures += 1
                    add(self._tally.failed, _result_of(error, by_deadline=by_deadline))
                    self._tally.waits.append(error.waited_s)
            self.give_back(lease, reusable=False)  # does nothing unless the lease was already in use
            raise

    def give_back(self, lease: Lease[C], *, reusable: bool, reason: CloseReason = "error") -> None:
        """End *lease*; a second call does nothing. Never blocks: may be called from a finalizer.

        Args:
            reusable: The connection is between two answers. If False, the
                pool closes it; there is nothing to close when `lease.conn` is None.
            reason: What a close because of `reusable=False` is counted as.
        """
        now, connection = self._clock(), lease.connection
        if (
            reusable
            and now < connection.expires_at
            and connection.uses < self._max_uses
            and connection.conn is not None
            and not lease.one_off
        ):
            connection.idle_since = now
            if connection.owner is not None:
                self._returns.append((lease, None))
                self._settle()
                return
            self._kept.append(lease)
            if self._waiters or self._screens:
                self._settle()
        else:
            over: CloseReason = "surplus" if lease.one_off else "lifetime"
            self._returns.append((lease, over if reusable else reason))
            self._settle()

    def give_back_quietly(self, lease: Lease[C], reason: CloseReason = "error") -> None:
        """End *lease*; its connection is closed already, or must be. Never blocks: may be called from a finalizer."""
        self._returns.append((lease, reason))
        self._settle()

    def claim(self, lease: Lease[C], owner: object | None) -> None:
        """Keep the connection of *lease*, which the caller holds, for leases of *owner* alone from now on.

        This is for a peer that authenticates connections. The connection is closed when its owner is gone. Does not
        block.

        Args:
            owner: An object that can be referred to weakly, compared by identity. None: the connection has no owner
                and is closed when it comes back.
        """
        lease.connection.owner = _NOBODY if owner is None else ref(owner, self._on_gone)

    def abort(self, token: ref[Lease[C]], reason: CloseReason = "error") -> bool:
        """Break off what the holder of the lease with *token* is doing; False, and nothing done, if it has ended.

        A call that waits for the lease leaves the queue with LeaseCancelled.
        The look and the shutdown are one step under the lock: a connection that was leased again is never hit.
        The connection is not used again, even if its holder says that it may be. A holder that is still connecting
        has no socket yet to shut: call this again while the answer is True. Blocks for the lock only.

        Args:
            reason: What the close of the connection is counted as.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            lease = token()
            # Once the lease has ended, it has no token.
            found = (
                lease is not None
                and lease.token is token
                and (token in self._inuse or token in self._one_off or lease in self._waiters)
            )
            if lease is not None and found:
                lease.aborted = reason
                lease.connection.expires_at = (
                    -_NEVER
                )  # it may be on its way back, unseen: its next holder closes it
                self._abort_lease(token)
                if (gate := self._waiters.pop(lease, None)) is not None:
                    self._forget_wishes(lease)
                    gate.release()
        self._settle()
        return found

    def end(self, token: ref[Lease[C]], reason: CloseReason) -> bool:
        """End the lease with *token* in place of its holder; False, and nothing done, if it has ended.

        The holder may be gone for good although it is still referred to. A thread that waits for bytes on the
        connection is broken off first, as by `abort`. Then the slot is free and the connection closed. Blocks
        for the lock, and until that other thread has let go of the connection.

        Args:
            reason: What the close of the connection is counted as.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            lease = token()
            found = (
                lease is not None
                and lease.token is token
                and (token in self._inuse or token in self._one_off)
            )
            if lease is not None and found:
                lease.aborted = lease.aborted or reason
                lease.connection.expires_at = -_NEVER  # it may be on its way back, unseen
                self._abort_lease(token)
                self._returns.append((lease, reason))
                self._process_returns()
        self._settle()
        return found

    def tend(self, now: float | None = None) -> int:
        """Keep house; answers how many idle connections were closed.

        Closes connections that have been idle or have lived for too long, and half of those above
        `max_idle`. Aborts those beyond their grace. Notes leases held for too long (`reports`).
        Brings the counters up to date.
        """
        self._reset_if_forked()
        now = self._clock() if now is None else now
        with self._lock:
            self._find_missed_drops()
            self._process_returns()
            closed = self._purge(now)
            self._check_held(now)
            self._serve()
            self._tally.tell(self._counters)
            has_refused, self._has_refused = self._has_refused, False
        self._settle()
        if has_refused:
            self._ask_collector()
        return closed

    def want_idle(self) -> int:
        """How many connections should be made now to have `min_idle` idle ones; never more than there is room for."""
        if not self.plan.min_idle:
            return 0
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            room = self._size - self._connections()
            want = 0 if self._retired or self._waiters else min(self.plan.min_idle - len(self._idle), room)
        self._settle()
        return max(want, 0)

    def offer(self, conn: C) -> bool:
        """Take *conn*, made ahead of need, as an idle connection; without a use for it, close it and answer False."""
        self._reset_if_forked()
        now = self._clock()
        connection = self._blank()
        connection.conn = conn
        connection.uses = 0
        connection.idle_since = now
        with self._lock:
            self._process_returns()
            welcome = not self._retired and self._connections() < self._size
            if welcome:
                self._idle.append(connection)
                self._serve()
            else:
                self._schedule_close(conn, "retired" if self._retired else "surplus")
        self._settle()
        return welcome

    def lend_idle(self, now: float, *, idle_s: float, most: int) -> list[Lease[C]]:
        """Up to *most* connections that were not used or looked at for *idle_s*, longest first, taken out as leases.

        They are for a look, not for a call. Nothing is counted. One slot stays free for a call (so a
        pool of one lends nothing). Connections with an owner are not lent. Each lease goes back by `give_back` (used
        just now, or gone) or `return_unused`.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            due = [one for one in self._idle if now - max(one.idle_since, one.looked_at) >= idle_s]
            lent = []
            for connection in due[: max(0, min(most, self._size - len(self._inuse) - 1))]:
                self._idle.remove(connection)
                connection.looked_at = now
                lease: Lease[C] = Lease()
                lease.connection = connection
                lease.one_off = False
                lease.reused = True
                lease.waited_s = 0.0
                lease.taken_at = now
                lease.site = lease.aborted = None
                lease.token = token = ref(lease, self._on_drop)
                self._inuse[token] = None
                lent.append(lease)
        self._settle()
        return lent

    def return_unused(self, lease: Lease[C]) -> None:
        """End a lease of `lend_idle` as if it had not been made: its connection keeps the start of its idle time."""
        with self._lock:
            if lease.token in self._inuse and not self._retired:
                del self._inuse[lease.token]
                lease.token = None
                self._idle.appendleft(lease.connection)
                self._serve()
            else:
                self._returns.append((lease, "retired"))
        self._settle()

    def close_idle(self, reason: CloseReason) -> int:
        """Close every idle connection; answers how many there were."""
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            closed = self._schedule_idle_closes(reason)
        self._settle()
        return closed

    def follow(self, plan: PoolPlan) -> None:
        """Go by *plan* from now on. A connection keeps the lifetime that it was made with."""
        self._reset_if_forked()
        with self._lock:
            is_resized = plan.max_connections != self.plan.max_connections
            self._adopt_plan(plan)
        if is_resized:
            self.resize(plan.max_connections)

    def _adopt_plan(self, plan: PoolPlan) -> None:
        self.plan = plan
        self._idle_timeout_s = plan.idle_timeout_s
        self._max_uses = plan.max_requests_per_connection or sys.maxsize
        self._notes_site = plan.leak_detection_threshold_s is not None

    def resize(self, max_connections: int) -> None:
        """Have at most *max_connections* from now on.

        Growing serves waiters. Shrinking closes surplus connections: idle ones now, those in use when they come back.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            self._size = max_connections
            while (self._idle or self._owned) and self._connections() > max_connections:
                self._schedule_close((self._idle or self._owned).popleft().conn, "surplus")
            self._update_screening()
            self._serve()
        self._settle()

    def busiest(self, since: float) -> int:
        """Most connections in use at once since *since*, as far as they still exist.

        Reuse is LIFO: a connection that was not needed at the busiest moment has been idle since before.
        A heartbeat that was answered counts as a use.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            most = len(self._inuse)
            for connection in reversed(self._idle):
                if connection.idle_since < since:
                    break
                most += connection.uses > 0  # one made ahead of need was never in use
            most += sum(connection.idle_since >= since for connection in self._owned)
        self._settle()
        return most

    def retire(self) -> None:
        """Keep no connection from now on: idle ones are closed now, those in use when they come back.

        The pool still leases, to calls that hold the old snapshot.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            self._retired = self._screens = True
            self._schedule_idle_closes()
        self._settle()

    def stop(self) -> None:
        """Hard stop: no lease from now on, waiters leave with LeaseClosed, connections in use are aborted."""
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            self._stopped = self._retired = self._screens = True
            self._schedule_idle_closes()
            for token in (*self._inuse, *self._one_off):
                lease = token()
                if lease is not None and lease.aborted is None:
                    lease.aborted = "retired"  # half a body that ends with its connection must not look whole
                self._abort_lease(token)
            while self._waiters:
                self._isolated(self._dismiss, next(iter(self._waiters.items())))
            self._fresh_waiters.clear()
            self._own_waiters.clear()
            self._tally.tell(self._counters)
        self._settle()

    def forget_inherited(self) -> None:
        """Give up, in a forked child, every connection (they are the parent's) and the locks of the parent's threads.

        A lease that the forking thread held ends; giving it back later does nothing. Counts go on.
        Size and flags stay. The first call in a child does it; calls at the same time wait for that one.
        """
        pid = _getpid()
        me = object()
        if self._reset_by.setdefault(pid, me) is not me:
            while self._pid != pid:
                time.sleep(0.001)
            return
        if self._pid == pid:  # another call has done it since we looked
            del self._reset_by[pid]
            return
        self._lock = threading.Lock()  # the holder of the old one does not exist here
        held = [lease for token in (*self._inuse, *self._one_off) if (lease := token()) is not None]
        held += [*self._kept, *(lease for lease, _ in self._returns)]
        connections = [*self._idle, *self._owned, *(lease.connection for lease in held)]
        conns = {
            id(conn): conn
            for conn in (*(connection.conn for connection in connections), *self._to_close)
            if conn is not None
        }
        for lease in held:
            lease.token = None
        for connection in connections:
            connection.conn = None
        collections: Iterable[Any] = (
            self._inuse,
            self._one_off,
            self._idle,
            self._owned,
            self._kept,
            self._returns,
            self._dropped,
            self._gone_owners,
            self._to_close,
            self._waiters,
            self._fresh_waiters,
            self._own_waiters,
            self._reported,
        )
        for collection in collections:
            collection.clear()
        for conn in conns.values():
            try:
                self._discard(conn)
            except Exception as error:
                self._fault(error)  # the other connections must be given up as well
        self._update_screening()
        self._pid = pid
        del self._reset_by[pid]

    @property
    def retired(self) -> bool:
        """Whether connections are closed when they come back."""
        return self._retired

    @property
    def stopped(self) -> bool:
        """Whether leases are refused."""
        return self._stopped

    def view(self) -> PoolView:
        """The state of the pool; also brings the counters up to date. Takes the lock: not for finalizers."""
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            view = self._view()
            self._tally.tell(self._counters)
        self._settle()
        return view

    def hit_rate(self, now: float | None = None) -> float | None:
        """Share of acquires in the last 10 s that got an idle connection; None when there were none."""
        self._reset_if_forked()
        with self._lock:
            rate = self._tally.hit_rate(self._clock() if now is None else now)
        self._settle()
        return rate

    def reports(self) -> list[LeaseReport | LeaseFault]:
        """What was noted since the last call: leases leaked (each site once) or held for too long, and faults."""
        found = []
        while self._reports:
            found.append(self._reports.popleft())
        return found

    def __repr__(self) -> str:
        # Without the lock: a repr is asked for when something hangs.
        state = "stopped, " if self._stopped else "retired, " if self._retired else ""
        one_off = f" and {len(self._one_off)} one-off" if self._one_off else ""
        kept = len(self._kept)
        return (
            f"<LeasePool {state}{len(self._inuse) - kept} in use{one_off}, "
            f"{len(self._idle) + len(self._owned) + kept} idle, "
            f"{len(self._waiters)} waiting, max {self._size}>"
        )

    # What follows runs with the lock held.

    def _connections(self) -> int:
        return len(self._inuse) + len(self._idle) + len(self._owned)

    def _newest_owned_by(self, owner: object) -> Connection[C] | None:
        """The newest idle connection of *owner*, left where it is."""
        for connection in reversed(self._owned):
            if connection.owner is not None and connection.owner() is owner:
                return connection
        return None

    def _make_room(self) -> None:
        """Close the longest idle connection if a fresh one would be too many. Those without an owner come first."""
        if self._connections() >= self._size and (self._idle or self._owned):
            self._schedule_close((self._idle or self._owned).popleft().conn, "surplus")

    def _slot_or_gate(
        self, lease: Lease[C], timeout_s: float, fresh: bool, owner: object | None, own_only: bool
    ) -> threading.Lock | None:
        """Put *lease* in use without a connection, or in the queue. Answers its gate in the queue, else None."""
        plan = self.plan
        token = lease.token
        assert token is not None
        if self._stopped:
            raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
        self._make_room()
        if len(self._inuse) < self._size:
            lease.connection = self._blank()
            self._inuse[token] = lease.site
            self._tally.misses += 1
            return None
        if plan.when_full == "new":
            lease.connection = self._blank()
            lease.one_off = True
            self._one_off[token] = lease.site
            self._tally.misses += 1
            return None
        waited_s = self._clock() - lease.taken_at
        if plan.when_full == "reject":
            self._has_refused = True
            raise LeaseRejected("the pool is full", self._view(), waited_s=waited_s)
        if timeout_s <= 0:
            self._has_refused = True
            raise LeaseTimeout(
                "no connection is free and there is no time to wait", self._view(), waited_s=waited_s
            )
        if len(self._waiters) >= plan.max_waiting:
            raise LeaseRejected(
                f"as many are waiting as may ({plan.max_waiting})", self._view(), waited_s=waited_s
            )
        gate = threading.Lock()
        gate.acquire()
        if fresh:
            self._fresh_waiters.add(lease)
        if own_only:
            self._own_waiters.add(lease)
        lease.connection = self._blank()
        if owner is not None:
            lease.connection.owner = ref(owner)  # while it waits, this is the owner that waits
        self._waiters[lease] = gate
        return gate

    def _process_returns(self) -> None:
        """Process what was given back or dropped; serve waiters with what came free."""
        # An entry stays until it is done. After an interrupt in between it is repeated and not lost.
        while self._kept:
            self._isolated(self._keep, self._kept[0])
            self._kept.popleft()
            if self._waiters:
                self._serve()
        while self._returns:
            self._isolated(self._end_returned, self._returns[0])
            self._returns.popleft()
            if self._waiters:
                self._serve()
        while self._dropped:
            self._isolated(self._end_dropped, self._dropped[0])
            self._dropped.popleft()
            if self._waiters:
                self._serve()
        while self._gone_owners:
            for connection in tuple(self._owned):
                if connection.owner is None or connection.owner() is None:
                    self._owned.remove(connection)
                    self._schedule_close(connection.conn, "surplus")
            self._gone_owners.popleft()

    def _isolated(self, act: Callable[[E], object], element: E) -> None:
        """Do *act* for *element*. If that fails, give up the element alone: no other element and no caller is affected.

        It is tried twice. An Exception may also come from outside, from a signal handler (Celery's soft time limit).
        Such an exception does not come again, and is raised like any other interrupt.
        """
        try:
            act(element)
        except Exception:
            try:
                act(element)
            except Exception as error:
                self._give_up(element)
                self._fault(error)
            else:
                raise

    def _give_up(self, element: object) -> None:
        """Free everything that *element* still holds. It has one of the forms that the loops pass."""
        if isinstance(element, tuple):
            element = element[0]
        token, found = (element, element()) if isinstance(element, ref) else (None, element)
        if isinstance(found, Connection):
            for idle in (self._idle, self._owned):
                if found in idle:
                    idle.remove(found)
            self._schedule_close(found.conn, "error")
        elif isinstance(found, Lease):
            token = found.token or token
            conn, found.connection.conn, found.token = found.conn, None, None
            self._forget_wishes(found)
            gate = self._waiters.pop(found, None)
            if gate is not None:
                gate.release()  # the waiter finds that it was not served
            self._schedule_close(conn, "error")
        if token is not None:
            for home in (self._inuse, self._one_off):
                try:
                    home.pop(token, None)
                except TypeError:  # the token cannot be hashed, so it is in neither
                    pass

    def _fault(self, error: Exception) -> None:
        """Have *error* reported, once for each place that it comes from."""
        fault = LeaseFault.of(error)
        if fault.site not in self._faulty_sites and len(self._faulty_sites) < 1000:
            self._faulty_sites.add(fault.site)
            self._reports.append(fault)

    # The next three rely on this: only the first return of a lease finds it in use.

    def _keep(self, lease: Lease[C]) -> None:
        token = lease.token
        if token in self._inuse:
            del self._inuse[token]  # None is never in there
            lease.token = None
            if self._reported:
                self._reported.discard(token)
            if lease.aborted or self._retired:
                self._schedule_close(lease.conn, lease.aborted or "retired")
            elif self._connections() >= self._size:
                self._schedule_close(lease.conn, "surplus")
                self._update_screening()
            elif lease.connection.owner is None:
                self._idle.append(lease.connection)
            elif lease.connection.owner() is None:
                self._schedule_close(lease.conn, "surplus")
            else:
                self._owned.append(lease.connection)

    def _end_returned(self, returned: tuple[Lease[C], CloseReason | None]) -> None:
        lease, reason = returned
        token = lease.token
        if reason is None:
            self._keep(lease)
        elif token in self._inuse or token in self._one_off:
            self._free_slot(token, lease.conn, lease.aborted or reason)
            lease.token = None

    def _end_dropped(self, token: ref[Lease[C]]) -> None:
        if token in self._inuse or token in self._one_off:
            self._free_slot(token, None, "leaked")
            add(self._tally.closed, "leaked")

    def _free_slot(self, token: ref[Lease[C]], conn: C | None, reason: CloseReason | None) -> None:
        """Free the slot of *token*. Its connection is not kept."""
        home = self._inuse if token in self._inuse else self._one_off
        site = home.pop(token)
        if conn is not None:
            self._schedule_close(conn, reason or "error")
        if reason == "leaked" and site not in self._leaky_sites and len(self._leaky_sites) < 1000:
            self._leaky_sites.add(site)
            self._reports.append(LeaseReport(site, None))
        self._reported.discard(token)
        if self._screens:
            self._update_screening()

    def _serve(self) -> None:
        """Hand free slots and connections to the calls that have waited longest."""
        while self._waiters and (self._idle or self._owned or len(self._inuse) < self._size):
            self._isolated(self._serve_one, next(iter(self._waiters.items())))

    def _serve_one(self, waiter: tuple[Lease[C], threading.Lock]) -> None:
        lease, gate = waiter
        token = lease.token
        assert token is not None
        if lease not in self._waiters:
            return  # an earlier run was interrupted after its last step
        if token not in self._inuse:  # else an earlier run was interrupted after this step
            wants_idle = lease not in self._fresh_waiters
            owner = None if lease.connection.owner is None else lease.connection.owner()
            own = self._newest_owned_by(owner) if self._owned and owner is not None and wants_idle else None
            if own is not None:
                _take_connection(lease, own)
                self._owned.remove(own)
                self._tally.hits += 1
            elif self._idle and wants_idle and lease not in self._own_waiters:
                _take_connection(lease, self._idle[-1])
                self._idle.pop()
                self._tally.hits += 1
            else:
                self._make_room()
                lease.connection = self._blank()
                self._tally.misses += 1
            self._tally.waited += 1
            lease.taken_at = self._clock()  # it is held from now on, even if its waiter runs later
            self._inuse[token] = lease.site
        self._forget_wishes(lease)
        del self._waiters[lease]
        gate.release()

    def _forget_wishes(self, lease: Lease[C]) -> None:
        self._fresh_waiters.discard(lease)
        self._own_waiters.discard(lease)

    def _dismiss(self, waiter: tuple[Lease[C], threading.Lock]) -> None:
        """Let *waiter* go without a lease."""
        lease, gate = waiter
        if self._waiters.pop(lease, None) is not None:
            gate.release()

    def _blank(self) -> Connection[C]:
        """What will be known of a connection that is still to be made. Draws how long it may live."""
        lifetime_s = self.plan.max_lifetime_s
        connection: Connection[C] = Connection()
        connection.conn = connection.owner = None
        connection.idle_since = connection.looked_at = 0.0
        connection.uses = 1
        connection.expires_at = (
            _NEVER
            if lifetime_s is None
            else self._clock() + lifetime_s * (1.0 - LIFETIME_JITTER * self._rng())
        )
        return connection

    def _purge(self, now: float) -> int:
        """Schedule the close of idle connections that are over, and of half of those above `max_idle`; how many."""
        before = len(self._idle) + len(self._owned)

        def close_if_over(connection: Connection[C]) -> None:
            if connection.idle_since > now + _STEP_S:
                self._restart_ages(connection, now)
            reason = connection.over(now, self._idle_timeout_s)
            if reason is not None:
                (self._idle if connection.owner is None else self._owned).remove(connection)
                self._schedule_close(connection.conn, reason)

        for connection in (*self._idle, *self._owned):
            self._isolated(close_if_over, connection)
        # By halves: after a burst, most connections go soon, and the others as long as they are not needed.
        for _ in range((len(self._idle) + len(self._owned) - self.plan.max_idle + 1) // 2):
            self._schedule_close((self._idle or self._owned).popleft().conn, "surplus")
        return before - len(self._idle) - len(self._owned)

    def _restart_ages(self, connection: Connection[C], now: float) -> None:
        """Count *connection* as idle since now: the clock was stepped back since it became idle (failures.md 69)."""
        connection.idle_since = connection.looked_at = now
        if self.plan.max_lifetime_s is not None:
            connection.expires_at = min(connection.expires_at, now + self.plan.max_lifetime_s)

    def _check_held(self, now: float) -> None:
        """Abort leases in use beyond their lifetime and grace; note those held for too long."""
        grace_s, threshold_s = self.plan.max_lifetime_grace_s, self.plan.leak_detection_threshold_s
        if grace_s is None and threshold_s is None:
            return

        def look(held: tuple[ref[Lease[C]], str | None]) -> None:
            token, site = held
            lease = token()
            if lease is None:
                return
            if grace_s is not None and now >= lease.connection.expires_at + grace_s and lease.aborted is None:
                lease.aborted = "lifetime"
                self._abort_lease(token)
            held_s = now - lease.taken_at
            if threshold_s is not None and held_s >= threshold_s and token not in self._reported:
                self._reported.add(token)
                self._reports.append(LeaseReport(site, held_s))

        for held in (*self._inuse.items(), *self._one_off.items()):
            self._isolated(look, held)

    def _find_missed_drops(self) -> None:
        """Find collected leases that `on_drop` did not report: CPython swallows an interrupt in it."""
        for token in (*self._inuse, *self._one_off):
            if token() is None:
                self._dropped.append(token)  # if it is in there twice, the second entry does nothing

    def _abort_lease(self, token: ref[Lease[C]]) -> None:
        lease = token()
        if lease is not None and lease.conn is not None:
            try:
                self._abort(lease.conn)
            except Exception as error:
                self._fault(error)  # that is as good as aborted: the holder has closed it, or is about to

    def _schedule_close(self, conn: C | None, reason: CloseReason) -> None:
        """Count the close of *conn* now; the thread that releases the lock closes it."""
        if conn is not None:
            add(self._tally.closed, reason)
            self._to_close.append(conn)

    def _schedule_idle_closes(self, reason: CloseReason = "retired") -> int:
        closed = len(self._idle) + len(self._owned)
        for idle in (self._idle, self._owned):
            while idle:
                self._schedule_close(idle.popleft().conn, reason)
        return closed

    def _update_screening(self) -> None:
        self._screens = self._retired or len(self._inuse) > self._size

    def _view(self) -> PoolView:
        return PoolView(
            inuse=len(self._inuse),
            idle=len(self._idle) + len(self._owned),
            waiting=len(self._waiters),
            one_off=len(self._one_off),
            max_connections=self._size,
            retired=self._retired,
            stopped=self._stopped,
        )

    # What follows runs without the lock.

    def _settle(self) -> None:
        """Do what a thread that has released the lock owes the others: their returns, then the closes. Never blocks."""
        while (
            self._returns
            or self._dropped
            or self._gone_owners
            or (self._kept and (self._waiters or self._screens))
        ):
            held = False
            try:
                # Not `held = self._lock.acquire(False)`: CPython may raise an interrupt between the call and the
                # store, and the lock would stay locked for good. map() is lazy, and unpacking it into the
                # name is one step.
                (held,) = map(self._lock.acquire, _DO_NOT_WAIT)
                if not held:
                    return  # the holder looks at these after it has released the lock
                self._process_returns()
            finally:
                if held:
                    self._lock.release()
        while self._to_close:
            try:
                conn = self._to_close.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._close(conn)
            except Exception as error:
                # The connection is given up in any case, and the present call has nothing to do with it.
                self._fault(error)

    def _wait(
        self,
        lease: Lease[C],
        gate: threading.Lock,
        started: float,
        timeout_s: float,
        on_wait: Callable[[ref[Lease[C]]], object] | None,
    ) -> None:
        """Wait until a thread that gives back puts *lease* in use, at most *timeout_s* from *started*. Blocks."""
        if on_wait is not None and lease.token is not None:
            on_wait(lease.token)
        if self.on_enqueue is not None:
            self.on_enqueue()
        left_s = started + timeout_s - self._clock()
        opened = False
        if self._collect is not None and left_s > PATIENCE_S:
            opened = opened_in_time(gate, PATIENCE_S)
            if not opened:
                self._ask_collector()
                left_s = started + timeout_s - self._clock()
        if not opened:
            opened = opened_in_time(gate, min(max(left_s, 0.0), threading.TIMEOUT_MAX))
        view = None
        gave_up = False
        if not opened or lease.token not in self._inuse:
            with self._lock:
                # If it was handed over in the last moment, it is ours, whatever the clock says.
                gave_up = not opened and self._waiters.pop(lease, None) is not None
                self._has_refused = self._has_refused or gave_up
                self._forget_wishes(lease)
                if gave_up or lease.token not in self._inuse:
                    view = self._view()
            self._settle()
        lease.waited_s = waited_s = self._clock() - started
        if view is not None:
            if lease.aborted is not None:
                raise LeaseCancelled("the caller that waited has gone", view, waited_s=waited_s)
            if not gave_up and not self._stopped:
                raise LeaseRejected("the pool could not serve this waiter", view, waited_s=waited_s)
            if not gave_up:
                raise LeaseClosed("the pool was stopped", view, waited_s=waited_s)
            raise LeaseTimeout("no connection came free in time", view, waited_s=waited_s)
        waits = self._tally.waits
        waits.append(waited_s)
        if len(waits) > _MANY_WAITS:  # there is no housekeeping
            with self._lock:
                self._tally.tell(self._counters)
            self._settle()

    def _ask_collector(self) -> None:
        """Ask for a collection: garbage in a cycle may hold slots. Not with the lock held: finalizers may give back."""
        if self._collect is not None and self._collect():
            with self._lock:
                self._tally.collections += 1
            self._settle()

    def _replace(self, lease: Lease[C], now: float, owner: object | None, own_only: bool) -> None:
        """Close the connection of *lease*, which is expired or dead, and take the next usable idle one, if any."""
        while (conn := lease.connection.conn) is not None:
            with self._lock:
                # Under the lock: housekeeping, which holds it, would take the lease for one that is over.
                last, lease.connection = lease.connection, _NO_CONNECTION
                self._schedule_close(conn, last.over(now, self._idle_timeout_s) or "dead")
                if self._kept or self._returns or self._dropped:
                    self._process_returns()
                # The lease keeps the slot of the connection that was given up. Taking an idle one as well makes one
                # slot free. No call waits for that: while a connection is idle, none waits.
                own = self._newest_owned_by(owner) if self._owned and owner is not None else None
                if own is not None:
                    _take_connection(lease, own)
                    self._owned.remove(own)
                elif self._idle and not own_only:
                    _take_connection(lease, self._idle[-1])
                    self._idle.pop()
                else:
                    lease.connection = self._blank()
                    self._tally.hits -= 1
                    self._tally.misses += 1
            self._settle()
            # Each connection is probed only once: a connection that was dead because of one stray byte looks silent at
            # a second look.
            found = lease.connection
            if (
                found.conn is not None
                and found.over(now, self._idle_timeout_s) is None
                and self._is_alive(found.conn)
            ):
                lease.reused = True
                return

    def _reset_if_forked(self) -> None:
        if _getpid() != self._pid:
            self.forget_inherited()


def _take_connection(lease: Lease[C], connection: Connection[C]) -> None:
    """Give *lease* an idle *connection*."""
    lease.connection = connection
    connection.uses += 1


def _drop_callback(pool: ref[LeasePool[C]], dropped: deque[ref[Lease[C]]]) -> Callable[[ref[Lease[C]]], None]:
    """The callback for when a lease in use is collected. Takes no lock: it may run inside the pool's own code."""

    def on_drop(token: ref[Lease[C]]) -> None:
        try:
            hash(token)
        except TypeError:
            # An interrupt came between the making of the token and its first hash. After the lease is gone, a token
            # without a hash cannot get one. Such a token is in no collection, and could not be looked up from this
            # queue.
            return
        dropped.append(token)
        owner = pool()
        if owner is not None:
            owner._settle()

    return on_drop


def _gone_callback(pool: ref[LeasePool[Any]], gone: deque[ref[Any]]) -> Callable[[ref[Any]], None]:
    """The callback for when an owner is collected. Takes no lock, like that of `_drop_callback`."""

    def on_gone(owner: ref[Any]) -> None:
        gone.append(owner)
        owned = pool()
        if owned is not None:
            owned._settle()

    return on_gone


def _no_connection() -> Connection[Any]:
    none: Connection[Any] = Connection()
    none.conn = none.owner = None
    none.idle_since = none.looked_at = none.expires_at = 0.0
    none.uses = 0
    return none


_NO_CONNECTION = _no_connection()  # of a lease that has neither a slot nor a place in the queue


class _Nobody:
    """Owns connections that must not be used again."""


_NOBODY: ref[Any] = ref(_Nobody())  # the owner has gone already


def _result_of(error: LeaseError, *, by_deadline: bool) -> str:
    """Label of `acquires` for an acquire that ended with *error*."""
    if isinstance(error, LeaseTimeout):
        return "deadline" if by_deadline else "timeout"
    if isinstance(error, LeaseCancelled):
        return "cancelled"
    return "rejected"
