"""Which call holds which connection of one upstream: bookkeeping and the wait for a slot, and nothing of HTTP.

A lease is in one collection at a time: among the waiters, in use, given back and not
looked at yet, or in none of them. A `Connection` is what is known of a connection; it outlives
its leases, and is idle or held by one of them, or by several. Every count is the size of one of these collections, so
no count can drift away from them.

**Locks.** `LeasePool._lock` guards `_idle`, `_apart`, `_inuse`, `_shared`, `_one_off`, `_waiters`, the tally, the
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

**Parked.** A call that goes the short way (`engine.lane`) is alone with its lease: no finalizer and no other thread has
it, or keeps its token. So the lease need not end where the call ends. `park` appends it to `_parked`, and it stays in
`_inuse`; `unpark` pops it, and it is held again: one atomic step each, no lock, no new lease. Whoever looks at
the collections under the lock first moves what is parked to `_kept` (`_process_returns`), where it ends as any other
return. A lease is popped by one of the two.

**Leaks.** The pool knows leases in use by weak reference only, and a connection in use
only through its lease, unless it has several places. A lease that is no longer referred to is collected,
whatever happened to it. The callback appends to `_dropped`, and the slot is free.

**Owners.** A connection that its peer has authenticated (NTLM), or that is of a class of its caller's, belongs to its
owner alone: `claim`. While idle, it is in `_apart`. Callers look at that only if it is not empty. An owner of the
second kind takes no other connection (`own_only`). All connections count towards the same size.

**Places.** A connection has one place, and its lease is in `_inuse`, until the holder that made the connection knows
better and says so: `share`. Its leases are in `_shared` then (`lease.shared`). Limits and gauges count connections;
a waiter is woken for each free place. A connection is used up or too old as one, and then lends no
further place: it is closed with its last lease. So it is when one of its leases comes back broken, or is lost.
(A retired pool lends places on, to calls of the old snapshot: they would wait for each other otherwise.)
Nothing of this is asked on the way of a lease that has its connection for itself.

**Generations.** What connections are made with (certificate, key, CA) may have other contents one day: `rotate`. What
the pool knows then is of the old generation. A connection that is being made belongs to the generation in which its
slot was lent, which is before its handshake began, whatever the handshake then took. (Its owner first makes new
handshakes take the new material, and rotates then. So the doubtful ones are closed without need; none is kept.)
An old one has no life left (`expires_at`), which every call and return asks anyway. It may be on its way back,
unseen: then its next holder closes it, or housekeeping.

**Shelves.** The connections of an event loop are on a shelf of that loop (`lease.shelf`), which nobody else touches.
The limit is one for both. `_size` is what is left to this side: the size without the `_elsewhere` connections that the
shelves have. A shelf asks here when it opens or closes a connection (`lend_slot`, `return_slot`), and waits in this
queue by a stand-in (`queue_slot`). Where this side is full, shelves give up what lies idle there, and the other way
round.

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
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

from headrace.clock import monotonic
from headrace.forks import current_pid, pid_page
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
from headrace.transport.lease.place import CloseReason as CloseReason
from headrace.transport.lease.place import Connection as Connection
from headrace.transport.lease.place import Lease as Lease
from headrace.transport.lease.shared import Shared, begin_to_drain, connection_of, find_free_place, is_for
from headrace.transport.lease.tally import LeaseTally
from headrace.transport.standstill import opened_in_time

if TYPE_CHECKING:
    from headrace.transport.dial.opening import Gate
    from headrace.transport.lease.shelf import Shelf

C = TypeVar("C")
E = TypeVar("E")

LIFETIME_JITTER = 0.025
"""Share of `max_lifetime` that is taken off at random, so that connections made together do not end
together. HikariCP's figure."""

_DO_NOT_WAIT = (False,)
_NEVER = float("inf")

_STEP_S = 15.0
"""Seconds by which an instant may lie ahead of the clock unless the clock was stepped back."""
_MANY_WAITS = 4096

_getpid = os.getpid


class LeasePool(Generic[C]):
    """The leases of one upstream. Thread-safe.

    Args:
        plan: Size and lifecycle.
        counters: `acquires`, `closed` and `wait` are kept here, up to date after `view()` and `tend()`;
            they outlive the pool.
        clock: Monotonic seconds.
        rng: Uniform numbers in [0, 1), for the jitter of lifetimes.
        is_alive: Whether an idle connection is still usable. Called without the lock; must not block. Asked of a
            connection with several places even while others use it.
        close: Closes a connection for good. Called without the lock, also from finalizers. Its errors are dropped.
        abort: Breaks off what the holder of a connection is doing (a shutdown of the socket). Called *with*
            the lock held, so that it can never hit a connection that was leased again; must not block. Of a connection
            with several places: breaks off all of it, when the pool is stopped or the grace of its lifetime is over.
        abort_place: Breaks off what one lease does on a connection with several places (a reset of its stream, a
            wake-up of its holder), and nothing else there. Called like *abort*. It may come before the lease
            has begun anything; whoever begins looks at `Lease.aborted`. Whether the connection is still good
            is what the holder says when it gives the lease back. None: no connection can be shared.
        discard: Closes a forked child's copy of a connection, without telling the peer (failures.md 26).
        collect: Asks for a garbage collection, and answers whether there was one. Called without the lock when a
            call has waited for PATIENCE_S, or was refused, because the pool is full. None: no collection is asked for.

    Attributes:
        on_enqueue: Called without the lock when a call has entered the queue; it may `resize`.
        generation: How often `rotate` was called; count. Written under the lock.
        is_awake: It may hold something or have something to tell, so `tend` has work. Written under the lock: by
            whatever may take it out of its rest, and by a `tend` that finds it there.
        shelves: Those of the event loops that use this pool, by the id of the loop. Changed under the lock.
    """

    # So many attributes have no room in a dict that objects share: it would be 1.6 KiB for each pool. There may be a
    # dict beside them, so that tests can lay a fault over a method of one pool.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_abort",
        "_abort_place",
        "_apart",
        "_clock",
        "_close",
        "_collect",
        "_counters",
        "_discard",
        "_drain_s",
        "_drains",
        "_dropped",
        "_elsewhere",
        "_faulty_sites",
        "_fresh_waiters",
        "_gone_owners",
        "_has_refused",
        "_idle",
        "_idle_timeout_s",
        "_inuse",
        "_is_alive",
        "_kept",
        "_leaky_sites",
        "_lock",
        "_max_uses",
        "_notes_site",
        "_on_drop",
        "_on_gone",
        "_on_wake",
        "_one_off",
        "_own_waiters",
        "_parked",
        "_pid",
        "_reported",
        "_reports",
        "_reset_by",
        "_retired",
        "_returns",
        "_rng",
        "_screens",
        "_shared",
        "_size",
        "_stopped",
        "_tally",
        "_to_close",
        "_waiters",
        "generation",
        "is_awake",
        "on_enqueue",
        "plan",
        "shelves",
    )

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
        abort_place: Callable[[C, Lease[C]], None] | None = None,
    ) -> None:
        self._counters = counters
        self._clock = clock
        self._rng = rng
        self._is_alive = is_alive
        self._close = close
        self._abort = abort
        self._abort_place = abort_place
        self._discard = discard
        self._collect = collect
        self.is_awake = False
        self._on_wake: Callable[[], object] | None = None
        self._has_refused = False  # since the last housekeeping, because it was full
        self.on_enqueue: Callable[[], None] | None = None
        self._adopt_plan(plan)

        self._pid = _getpid()
        self._reset_by: dict[int, object] = {}  # pid -> the call that resets the pool, the first after a fork
        self._lock = threading.Lock()
        self._size = plan.max_connections  # without those elsewhere
        self._elsewhere = 0  # connections that the shelves have, in use or idle
        self.shelves: dict[int, Shelf[Any]] = {}
        self._tally = LeaseTally()
        self._idle: list[Connection[C]] = []  # oldest first; leased from the right
        self._apart: list[Connection[C]] = []  # the same, for those with an owner or several places
        # The leases that have their connection for themselves -> where it was taken, if that is noted.
        self._inuse: dict[ref[Lease[C]], str | None] = {}
        self._shared: Shared[C] = {}  # the other connections in use
        self._one_off: dict[ref[Lease[C]], str | None] = {}
        # Those that wait longest come first. Each has its gate.
        self._waiters: OrderedDict[Lease[C], Gate] = OrderedDict()
        self._fresh_waiters: set[Lease[C]] = set()  # of the waiters, those that want no idle connection
        self._own_waiters: set[Lease[C]] = (
            set()
        )  # of the waiters, those that want their owner's connections alone
        self._reported: set[ref[Lease[C]]] = set()  # in use, and reported as held for too long
        self._leaky_sites: set[str | None] = set()
        self._faulty_sites: set[str] = set()
        self._retired = False
        self._stopped = False
        self.generation = 0
        self._drain_s = 0.0
        self._drains = False  # a connection in use may have a `gone_by`
        # Whether a connection that comes back is screened and not simply kept: the pool is retired, or was shrunk
        # below what is in use.
        self._screens = False

        # Touched without the lock, by single operations only. Lists, where nearly all stay empty for ever: an empty
        # one takes 56 bytes, an empty deque 760.
        self._kept: deque[Lease[C]] = deque()  # given back in good order
        self._parked: deque[Lease[C]] = deque()  # the same, and may be lent again as they are
        # Given back otherwise; None: to be kept.
        self._returns: list[tuple[Lease[C], CloseReason | None]] = []
        self._dropped: list[ref[Lease[C]]] = []  # leases that were collected
        self._gone_owners: list[ref[Any]] = []  # owners that were collected
        self._to_close: list[C] = []  # counted as closed, and still to be closed
        self._reports: list[LeaseReport | LeaseFault] = []
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

        The caller's own connection comes first, then the newest one without an owner, then a free place on a shared
        one. Expired or dead ones found on the way are closed. Connections of other owners are passed over. If there is
        no room for another connection, the one of them that has been idle longest is closed.

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
        if (pid_page[0] or current_pid()) != self._pid:
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
                if not self.is_awake:
                    self._wake()
                tally = self._tally
                if now >= tally.turn_at or now < tally.turn_at - _STEP_S:
                    tally.turn(now)
                newest: Lease[C] | None = None
                if kept and not (
                    fresh or own_only or self._waiters or self._screens or self._apart or self._returns
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
                    if kept or self._parked or self._returns or self._dropped or self._gone_owners:
                        self._process_returns()
                    # Where a connection is idle, no call waits, and the pool is not stopped.
                    if self._apart and owner is not None and not fresh:
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
                        self._apart.remove(connection)
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
                    self._replace(lease, now, timeout_s, owner, own_only, on_wait)
            return lease
        except BaseException as error:
            with self._lock:
                self._waiters.pop(lease, None)
                self._forget_wishes(lease)  # however it left the queue
                if isinstance(error, LeaseError):
                    self._wake()
                    self._tally.failures += 1
                    add(self._tally.failed, _result_of(error, by_deadline=by_deadline))
                    self._tally.waits.append(error.waited_s)
            self.give_back(lease, reusable=False)  # does nothing unless the lease was already in use
            raise

    def give_back(self, lease: Lease[C], *, reusable: bool, reason: CloseReason = "error") -> None:
        """End *lease*; a second call does nothing. Never blocks: may be called from a finalizer.

        Args:
            reusable: The connection is between two answers. If False, the
                pool closes it; there is nothing to close when `lease.conn` is None. Of a connection with several
                places: it can take another lease. If False, it takes none, and is closed with its last lease.
            reason: What a close because of `reusable=False` is counted as.
        """
        now, connection = self._clock(), lease.connection
        if (
            reusable
            and now < connection.expires_at
            and connection.uses < self._max_uses
            and connection.conn is not None
            and not lease.one_off
            and lease.token is not None  # it has ended: the connection may be idle, and would look younger
        ):
            connection.idle_since = now
            if connection.is_apart:
                self._returns.append((lease, None))
                self._settle()
                return
            self._kept.append(lease)
            if self._waiters or self._screens:
                self._settle()
        else:
            over: CloseReason = "surplus" if lease.one_off else connection.ends_as or "lifetime"
            self._returns.append((lease, over if reusable else reason))
            self._settle()

    def unpark(self, now: float, owner: object | None = None) -> Lease[C] | None:
        """The lease that was parked last, held once more, if `acquire` would lend its connection, too. Takes no lock.

        None: `acquire` must be asked; nothing was counted. A connection that is over or dead is closed first.

        Args:
            owner: As `acquire` takes it.
        """
        parked, turn_at = self._parked, self._tally.turn_at
        if (
            not parked
            or self._waiters
            or self._screens
            or now >= turn_at
            or now < turn_at - _STEP_S
            or (owner is not None and (self._apart or self._returns))
            or (pid_page[0] or current_pid()) != self._pid
        ):
            return None
        lease: Lease[C] | None = None
        try:
            try:
                lease = parked.pop()
            except IndexError:  # another thread was faster
                return None
            connection = lease.connection
            lease.taken_at = now
            connection.uses += 1
            conn = connection.conn
            if (
                now < connection.expires_at
                and now - connection.idle_since < self._idle_timeout_s
                and conn is not None
                and self._is_alive(conn)
            ):
                self._tally.tick()
                return lease
            self.give_back_quietly(lease, connection.over(now, self._idle_timeout_s) or "dead")
            return None
        except BaseException:
            if lease is not None:
                self.give_back(lease, reusable=False)
            raise

    def park(self, mine: list[Lease[C]], now: float) -> None:
        """End the lease in *mine*, whose connection is between two answers, so that `unpark` may lend it again.

        Nothing but *mine* may refer to the lease, nobody may have its token, and it has no owner to come. Once *mine*
        is empty, the lease is no longer the caller's: an interrupt before that leaves it in there. Never blocks.
        Mutates *mine*.
        """
        connection = mine[0].connection
        if (
            now < connection.expires_at
            and connection.uses < self._max_uses
            and not (connection.is_apart or self._notes_site or mine[0].one_off)
        ):
            connection.idle_since = now
            self._parked.append(mine.pop())
            if self._waiters or self._screens:
                self._settle()
        else:
            self.give_back(mine.pop(), reusable=True)

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
        lease.connection.is_apart = True

    def share(self, lease: Lease[C], capacity: int) -> None:
        """Let *capacity* leases at once use the connection of *lease*, which the caller made, or found so, and holds.

        A later call changes the number: fewer takes nothing from those that have a place. Every lease of the
        connection has the same `conn`, which is not set again. Without effect on a one-off lease, and on one that has
        ended. Serves waiters. Blocks for the lock only.

        What uses the connection keeps its leases, in the table of its streams: then a finalizer of an answer that is
        dropped unread can give its lease back whole. A lease that nothing refers to is lost, and with it, in the end,
        the connection.

        Raises:
            ValueError: The pool has no `abort_place`: an abort of one lease would hit the others.
        """
        if self._abort_place is None:
            raise ValueError("a pool without abort_place has no connections with several places")
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            connection, token = lease.connection, lease.token
            if token is not None and token in self._inuse:
                connection.is_shared = connection.is_apart = True
                # No call between the two, so no interrupt.
                self._shared[connection] = {token: self._inuse[token]}
                del self._inuse[token]
            if self._has_place(lease):
                connection.capacity = capacity
                self._serve()
        self._settle()

    def abort(self, token: ref[Lease[C]], reason: CloseReason = "error") -> bool:
        """Break off what the holder of the lease with *token* is doing; False, and nothing done, if it has ended.

        A call that waits for the lease leaves the queue with LeaseCancelled.
        The look and the shutdown are one step under the lock: a connection that was leased again is never hit.
        The connection is not used again, even if its holder says that it may be. A holder that is still connecting
        has no socket yet to shut: call this again while the answer is True. Blocks for the lock only.
        On a connection with several places, `abort_place` breaks off what this lease does; the others go on.

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
                and (self._is_held(lease) or token in self._one_off or lease in self._waiters)
            )
            if lease is not None and found:
                lease.aborted = reason
                if self._has_place(lease):
                    self._abort_one(lease)
                else:
                    lease.connection.expires_at = (
                        -_NEVER
                    )  # it may be on its way back, unseen: its next holder closes it
                    self._abort_lease(token)
                if (gate := self._waiters.pop(lease, None)) is not None:
                    gate.release()
        self._settle()
        return found

    def end(self, token: ref[Lease[C]], reason: CloseReason) -> bool:
        """End the lease with *token* in place of its holder; False, and nothing done, if it has ended.

        The holder may be gone for good although it is still referred to. A thread that waits for bytes on the
        connection is broken off first, as by `abort`. Then the slot is free and the connection closed. (Of a
        connection with several places: the place is free and the connection stays.) Blocks for the lock, and until
        that other thread has let go of the connection.

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
                and (self._is_held(lease) or token in self._one_off)
            )
            if lease is not None and found:
                lease.aborted = lease.aborted or reason
                if self._has_place(lease):
                    connection = lease.connection
                    self._abort_one(lease)
                    connection.idle_since = now = self._clock()
                    good = now < connection.expires_at and connection.uses < self._max_uses
                    self._returns.append((lease, None if good else "lifetime"))
                else:
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
            self._tell_counters()
            has_refused, self._has_refused = self._has_refused, False
        self._settle()
        for shelf in self.shelves.copy().values():
            shelf.ask_to_tend()
        if has_refused:
            self._ask_collector()
        if self.is_at_rest:
            with self._lock:  # again: whoever has come meanwhile has said so before
                self.is_awake = bool(self.shelves) or not self.is_at_rest
        return closed

    def want_idle(self) -> int:
        """How many connections should be made now to have `min_idle` idle ones; never more than there is room for.

        One in use that has a free place counts as an idle one: a call need not dial.
        """
        if not self.plan.min_idle:
            return 0
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            room = self._size - self._connections()  # a shelf's idle ones are no use to a thread
            ready = len(self._idle) + sum(
                len(self._shared.get(connection, ())) < connection.capacity
                for connection in (*self._apart, *self._shared)
                if connection.owner is None and connection.ends_as is None
            )
            want = 0 if self._retired else min(self.plan.min_idle - ready, room)  # none waits beside room
        self._settle()
        return max(want, 0)

    def offer(self, conn: C, *, capacity: int | None = None, generation: int | None = None) -> bool:
        """Take *conn*, made ahead of need, as an idle connection; without a use for it, close it and answer False.

        Args:
            generation: The pool's before *conn* was begun: if that is over, there is no use for it. None: it has none.
            capacity: Leases that may use it at once, as in `share`; None: one, which has it for itself.

        Raises:
            ValueError: There is a capacity, and the pool has no `abort_place`.
        """
        if capacity is not None and self._abort_place is None:
            raise ValueError("a pool without abort_place has no connections with several places")
        self._reset_if_forked()
        now = self._clock()
        connection = self._blank()
        connection.conn = conn
        connection.uses = 0
        connection.idle_since = now
        if capacity is not None:
            connection.capacity = capacity
            connection.is_shared = connection.is_apart = True
        with self._lock:
            self._process_returns()
            is_old = generation is not None and generation != self.generation
            welcome = not (self._retired or is_old) and self._connections() < self._size
            self._wake()
            if welcome:
                (self._apart if connection.is_apart else self._idle).append(connection)
                self._serve()
            else:
                self._schedule_close(conn, "retired" if self._retired else "rotated" if is_old else "surplus")
        self._settle()
        return welcome

    def lend_idle(self, now: float, *, idle_s: float, most: int) -> list[Lease[C]]:
        """Up to *most* connections that were not used or looked at for *idle_s*, longest first, taken out as leases.

        They are for a look, not for a call. Nothing is counted. One slot stays free for a call (so a
        pool of one lends nothing). Connections with an owner or several places are not lent. Each lease goes back by
        `give_back` (used just now, or gone) or `return_unused`.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            due = [one for one in self._idle if now - max(one.idle_since, one.looked_at) >= idle_s]
            lent = []
            for connection in due[: max(0, min(most, self._size - self._used() - 1))]:
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
            ends_as = "retired" if self._retired else lease.connection.ends_as
            if lease.token in self._inuse and ends_as is None:
                del self._inuse[lease.token]
                lease.token = None
                self._idle.insert(0, lease.connection)
                self._serve()
            else:
                self._returns.append((lease, ends_as or "retired"))
        self._settle()

    def close_idle(self, reason: CloseReason) -> int:
        """Close every idle connection; answers how many there were."""
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            closed = self._schedule_idle_closes(reason)
            closed += sum(self._close_on(shelf, reason) for shelf in self.shelves.values())
        self._settle()
        return closed

    def rotate(self, drain_s: float) -> tuple[int, int]:
        """Let go of every connection there is, because new ones are made with other material from now on.

        Idle ones are closed now. Those in use are lent no more and are closed when they come back; what is still in use
        after *drain_s* is broken off, by housekeeping. Their slots count as before, so waiters wait for them, and sizes
        and counts stay. Call it once new handshakes use the new material. Blocks for the lock only.

        Returns:
            How many were closed now, and how many are in use.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            self.generation += 1
            closed, now = self._schedule_idle_closes("rotated"), self._clock()
            held = (token() for token in (*self._inuse, *self._one_off))
            busy = {lease.connection for lease in held if lease is not None}.union(self._shared)
            busy.discard(_NO_CONNECTION)
            for connection in busy:
                # This order: what has no life left has its reason.
                connection.ends_as = connection.ends_as or "rotated"
                connection.gone_by = min(connection.gone_by, now + drain_s)
                connection.expires_at = -_NEVER
            self._drain_s, self._drains = drain_s, True
            self._check_held(now)
            for shelf in self.shelves.values():
                closed += self._close_on(shelf, "rotated")
                busy |= shelf.outdate(now + drain_s)
            self._serve()
        self._settle()
        return closed, len(busy)

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
        Of those with several places, the ones with the fewest leases lend no more.
        """
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            self._size = max_connections - self._elsewhere
            while (self._idle or self._apart) and self._connections() > self._size:
                self._schedule_close((self._idle or self._apart).pop(0).conn, "surplus")
            while self._elsewhere and self._used() > self._size and self._take_from_a_shelf():
                pass
            while len(self._inuse) + sum(
                connection.ends_as is None for connection in self._shared
            ) > self._size and begin_to_drain(self._shared):
                pass
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
            most = self._used() + self._elsewhere
            for connection in reversed(self._idle):
                if connection.idle_since < since:
                    break
                most += connection.uses > 0  # one made ahead of need was never in use
            most += sum(connection.uses > 0 and connection.idle_since >= since for connection in self._apart)
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
            for shelf in self.shelves.values():
                self._close_on(shelf, "retired")
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
            for tokens in tuple(self._shared.values()):
                self._break_off(tokens, "retired")
            while self._waiters:
                self._isolated(self._dismiss, next(iter(self._waiters.items())))
            self._fresh_waiters.clear()
            self._own_waiters.clear()
            self._tell_counters()
        self._settle()
        for shelf in self.shelves.copy().values():
            shelf.stop()

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
        shelves, self.shelves = self.shelves, {}
        self._size, self._elsewhere = self._size + self._elsewhere, 0
        for shelf in shelves.values():
            shelf.forget_inherited()  # its loop is the parent's
        tokens = (*self._inuse, *self._one_off, *chain.from_iterable(self._shared.values()))
        held = [lease for token in tokens if (lease := token()) is not None]
        held += [*self._kept, *self._parked, *(lease for lease, _ in self._returns)]
        connections = [*self._idle, *self._apart, *self._shared, *(lease.connection for lease in held)]
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
            self._shared,
            self._one_off,
            self._idle,
            self._apart,
            self._kept,
            self._parked,
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

    # What shelves ask, from the threads of their loops.

    def add_shelf(self, shelf: Shelf[Any]) -> None:
        """Have *shelf* share the limit, and hear of what this pool is told."""
        self._reset_if_forked()
        with self._lock:
            if self._stopped:
                raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
            self.shelves[id(shelf.loop)] = shelf
            self._wake()  # as long as there is one

    def remove_shelf(self, shelf: Shelf[Any]) -> None:
        """Forget *shelf*, which has given all its connections back. Idempotent."""
        with self._lock:
            if self.shelves.get(id(shelf.loop)) is shelf:
                self._take_count_of(shelf)
                del self.shelves[id(shelf.loop)]
            self._wake()

    def lend_slot(self) -> bool:
        """Whether the asking shelf may have one more connection; then it has the slot. Blocks for the lock only.

        What lies idle here, or on another shelf, makes room. Nobody who waits here is overtaken.

        Raises:
            LeaseClosed: The pool is stopped.
        """
        with self._lock:
            self._process_returns()
            if self._stopped:
                raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
            found = not self._waiters
            if found:
                self._make_room()
                found = len(self._inuse) + len(self._shared) < self._size or self._take_from_a_shelf()
            if found:
                self._tally.misses += 1
                self._elsewhere += 1
                self._size -= 1
        self._settle()
        return found

    def return_slot(self, reason: CloseReason | None, n: int = 1) -> None:
        """*n* connections of a shelf are gone, or were never made (None); others may have their slots."""
        with self._lock:
            if reason is not None:
                add(self._tally.closed, reason, n)
            self._elsewhere -= n
            self._size += n
            self._wake()
            self._process_returns()
            self._serve()
            self._update_screening()
        self._settle()

    def count_end(self, reason: CloseReason, *, is_replaced: bool = False) -> None:
        """A connection of a shelf that had no slot (`when_full: new`) was closed, or another one takes its slot."""
        with self._lock:
            add(self._tally.closed, reason)
            self._tally.misses += is_replaced
            self._wake()

    def count_miss(self) -> None:
        """A call of a shelf makes a connection without a slot."""
        with self._lock:
            self._tally.misses += 1

    def count_failure(self, error: LeaseError, *, by_deadline: bool) -> None:
        """A call of a shelf got no lease."""
        with self._lock:
            self._tally.failures += 1
            add(self._tally.failed, _result_of(error, by_deadline=by_deadline))
            self._tally.waits.append(error.waited_s)

    def count_wait(self, waited_s: float) -> None:
        """A call of a shelf has waited for its lease."""
        with self._lock:
            self._tally.waited += 1
            self._tally.waits.append(waited_s)

    def n_waiting(self) -> int:
        """How many calls wait, of threads and of loops. Read without the lock, so it may be late."""
        return len(self._waiters) + sum(one.counts().waiting for one in self.shelves.copy().values())

    def queue_slot(self, gate: Gate, since: float) -> Lease[C]:
        """Have a shelf wait for a slot in this queue, behind all who wait since *since* or longer. Blocks for the lock.

        *gate* is released under the lock when its turn has come, or the pool was stopped; then `take_slot` says which.
        """
        lease: Lease[C] = Lease()
        lease.connection = self._blank()
        lease.reused = lease.one_off = False
        lease.waited_s = 0.0
        lease.taken_at = since
        lease.site = lease.aborted = None
        lease.token = token = ref(lease, self._on_drop)
        hash(token)
        with self._lock:
            self._process_returns()
            if self._stopped:
                raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
            self._fresh_waiters.add(lease)
            later = [one for one in self._waiters if one.taken_at > since]
            self._waiters[lease] = gate
            for one in later:
                self._waiters.move_to_end(one)
            self._take_from_a_shelf()
            self._serve()
        self._settle()
        return lease

    def take_slot(self, lease: Lease[C]) -> bool:
        """Whether the turn of *lease*, of `queue_slot`, has come; then its slot is the shelf's."""
        with self._lock:
            self._process_returns()
            token, lease.token = lease.token, None
            found = token in self._inuse
            if found:
                del self._inuse[token]  # type: ignore[arg-type]
                self._tally.waited -= 1  # the shelf tells of its waiter itself
                self._elsewhere += 1
                self._size -= 1
        self._settle()
        return found

    def leave_queue(self, lease: Lease[C]) -> None:
        """End what `queue_slot` has begun, whether its turn has come meanwhile or not."""
        with self._lock:
            self._waiters.pop(lease, None)
            self._forget_wishes(lease)
            if lease.token in self._inuse:
                self._tally.waited -= 1
                self._tally.misses -= 1
                self._returns.append((lease, "surplus"))
                self._process_returns()
            lease.token = None
        self._settle()

    def first_waits_since(self, *, but: Lease[Any] | None = None) -> float:
        """Since when the first one of the queue waits, apart from *but*; inf: nobody does.

        Read without the lock, so it may be late.
        """
        try:
            return next((one.taken_at for one in self._waiters if one is not but), _NEVER)
        except RuntimeError:  # another thread has changed it meanwhile
            return _NEVER

    def blank(self) -> Connection[Any]:
        """What will be known of a connection that a shelf is about to make."""
        return self._blank()

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than there may be, since the size was lowered. Read without the lock."""
        return self._size < 0 or (self._elsewhere > 0 and self._used() > self._size)

    def full_view(self) -> PoolView:
        """As `view`, for the text of an error; tells no counters."""
        with self._lock:
            return self._view()

    @property
    def retired(self) -> bool:
        """Whether connections are closed when they come back."""
        return self._retired

    stopped = property(attrgetter("_stopped"), doc="Whether leases are refused.")
    """Asked in C: each call of a handle looks at it."""

    def tell_when_awake(self, on_wake: Callable[[], object]) -> None:
        """Have *on_wake* called whenever the pool awakes, at once if it is awake; in place of an earlier one.

        It is called with the lock held: it must not block, and must not call the pool.
        """
        self._reset_if_forked()
        with self._lock:
            self._on_wake = on_wake
            if self.is_awake:
                on_wake()

    def _wake(self) -> None:
        """Under the lock."""
        if not self.is_awake:
            self.is_awake = True
            if self._on_wake is not None:
                self._on_wake()

    @property
    def is_at_rest(self) -> bool:
        """Whether it holds nothing and nothing has happened since it was last looked at: `tend` would do nothing.

        Read without the lock, at a twentieth of the cost of `tend`. What happens meanwhile, the next look finds.
        """
        return not (
            self._idle
            or self._inuse
            or self._kept
            or self._apart
            or self._shared
            or self._one_off
            or self._elsewhere
            or self._waiters
            or self._returns
            or self._dropped
            or self._gone_owners
            or self._to_close
            or self._reports
            or self._has_refused
            or self._tally.has_news
        )

    def view(self) -> PoolView:
        """The state of the pool; also brings the counters up to date. Takes the lock: not for finalizers."""
        self._reset_if_forked()
        with self._lock:
            self._process_returns()
            view = self._view()
            self._tell_counters()
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
            found.append(self._reports.pop(0))
        return found

    def __repr__(self) -> str:
        # Without the lock: a repr is asked for when something hangs.
        state = "stopped, " if self._stopped else "retired, " if self._retired else ""
        one_off = f" and {len(self._one_off)} one-off" if self._one_off else ""
        kept = len(self._kept) + len(self._parked)
        on_loops = f", {self._elsewhere} on event loops" if self._elsewhere else ""
        return (
            f"<LeasePool {state}{len(self._inuse) + len(self._shared) - kept} in use{one_off}, "
            f"{len(self._idle) + len(self._apart) + kept} idle{on_loops}, "
            f"{len(self._waiters)} waiting, max {self._size + self._elsewhere}>"
        )

    # What follows runs with the lock held.

    def _used(self) -> int:
        """Connections in use; one-off ones are not counted."""
        return len(self._inuse) + len(self._shared)

    def _connections(self) -> int:
        return len(self._inuse) + len(self._shared) + len(self._idle) + len(self._apart)

    def _newest_owned_by(self, owner: object) -> Connection[C] | None:
        """The newest idle connection of *owner* that is not shared, left where it is."""
        for connection in reversed(self._apart):
            if not connection.is_shared and connection.owner is not None and connection.owner() is owner:
                return connection
        return None

    def _free_place(self, owner: object | None, own_only: bool) -> Connection[C] | None:
        """The shared connection that the next lease of *owner* can have a place on."""
        return find_free_place(
            self._shared,
            reversed(self._apart),
            now=self._clock(),
            max_uses=self._max_uses,
            owner=owner,
            own_only=own_only,
        )

    def _take_place(self, lease: Lease[C], connection: Connection[C]) -> None:
        """Put *lease* on *connection*, which has a free place."""
        token = lease.token
        assert token is not None
        tokens = self._shared.get(connection)
        lease.connection = connection  # from here on, no call and so no interrupt before it is written down
        connection.uses += 1
        if tokens is None:
            self._shared[connection] = {token: lease.site}
            self._apart.remove(connection)  # last, as in `acquire`
        else:
            connection.idle_since = lease.taken_at  # it is not idle, however long the others have been there
            tokens[token] = lease.site

    def _has_place(self, lease: Lease[C]) -> bool:
        """Whether *lease* is in use on a shared connection."""
        return lease.token in self._shared.get(lease.connection, ())

    def _is_held(self, lease: Lease[C]) -> bool:
        """Whether *lease* is in use, and not one-off."""
        return lease.token in self._inuse or self._has_place(lease)

    def _make_room(self) -> None:
        """Close the longest idle connection if a fresh one would be too many. Those without an owner come first."""
        if self._connections() >= self._size and (self._idle or self._apart):
            self._schedule_close((self._idle or self._apart).pop(0).conn, "surplus")

    def _take_from_a_shelf(self) -> bool:
        """Close what has been idle longest on some shelf, and have its slot here; False: nothing is idle there."""
        return any(self._close_on(shelf, "surplus", most=1) for shelf in self.shelves.values())

    def _close_on(self, shelf: Shelf[Any], reason: CloseReason, *, most: int = sys.maxsize) -> int:
        """Close up to *most* connections that are idle on *shelf*, the oldest first; how many there were."""
        closed = 0
        while closed < most and (conn := shelf.give_up_oldest()) is not None:
            self._schedule_close(conn, reason)
            self._elsewhere -= 1
            self._size += 1
            closed += 1
        return closed

    def _take_count_of(self, shelf: Shelf[Any]) -> None:
        """Add to the tally what *shelf* has counted since it was last asked."""
        hits = shelf.hits
        self._tally.hits += hits - shelf.told_hits
        shelf.told_hits = hits

    def _tell_counters(self) -> None:
        for shelf in self.shelves.values():
            self._take_count_of(shelf)
        self._tally.tell(self._counters)

    def _slot_or_gate(
        self, lease: Lease[C], timeout_s: float, fresh: bool, owner: object | None, own_only: bool
    ) -> threading.Lock | None:
        """Put *lease* in use, in a free place or without a connection, or in the queue: then its gate is the answer."""
        plan = self.plan
        token = lease.token
        assert token is not None
        if self._stopped:
            raise LeaseClosed("the pool is stopped", self._view(), waited_s=0.0)
        if not fresh and (self._shared or self._apart):
            place = self._free_place(owner, own_only)
            if place is not None:
                self._tally.hits += 1  # unless `_replace` finds otherwise
                self._take_place(lease, place)
                return None
        self._make_room()
        if self._elsewhere and len(self._inuse) + len(self._shared) >= self._size and not self._waiters:
            self._take_from_a_shelf()
        if len(self._inuse) + len(self._shared) < self._size:
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
        if self.n_waiting() >= plan.max_waiting:
            raise LeaseRejected(
                f"as many are waiting as may ({plan.max_waiting})", self._view(), waited_s=waited_s
            )
        gate = threading.Lock()
        gate.acquire()
        if fresh:
            self._fresh_waiters.add(lease)
        if own_only:
            self._own_waiters.add(lease)
        if self._shared and (
            fresh or not any(is_for(one, owner, own_only) for one in self._shared if one.ends_as is None)
        ):
            begin_to_drain(self._shared)  # it would wait for as long as others find free places there
        lease.connection = self._blank()
        if owner is not None:
            lease.connection.owner = ref(owner)  # while it waits, this is the owner that waits
        self._waiters[lease] = gate
        if (
            self._elsewhere and self._take_from_a_shelf()
        ):  # idle since the look above, and its loop saw no waiter
            self._serve()
        return gate

    def _process_returns(self) -> None:
        """Process what was given back or dropped; serve waiters with what came free."""
        if self._parked:
            try:
                # In C, so that nothing comes between the two: a lease in neither would be lost.
                self._kept.extend(iter(self._parked.popleft, None))
            except IndexError:
                pass  # that is how it ends
        # An entry stays until it is done. After an interrupt in between it is repeated and not lost.
        while self._kept:
            self._isolated(self._keep, self._kept[0])
            self._kept.popleft()
            if self._waiters:
                self._serve()
        while self._returns:
            self._isolated(self._end_returned, self._returns[0])
            self._returns.pop(0)
            if self._waiters:
                self._serve()
        while self._dropped:
            self._isolated(self._end_dropped, self._dropped[0])
            self._dropped.pop(0)
            if self._waiters:
                self._serve()
        while self._gone_owners:
            for connection in tuple(self._apart):
                if connection.owner is not None and connection.owner() is None:
                    self._apart.remove(connection)
                    self._schedule_close(connection.conn, "surplus")
            self._gone_owners.pop(0)

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
            for idle in (self._idle, self._apart):
                if found in idle:
                    idle.remove(found)
            self._schedule_close(found.conn, "error")
        elif isinstance(found, Lease):
            token = found.token or token
            conn = None
            if not self._has_place(found):
                conn, found.connection.conn = found.conn, None
            found.token = None
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
            for connection, tokens in tuple(self._shared.items()):
                if any(token is one for one in tokens):
                    connection.ends_as = connection.ends_as or "error"
                    tokens.pop(token)
                    if not tokens:
                        del self._shared[connection]
                        self._schedule_close(connection.conn, connection.ends_as)

    def _fault(self, error: Exception) -> None:
        """Have *error* reported, once for each place that it comes from."""
        fault = LeaseFault.of(error)
        if fault.site not in self._faulty_sites and len(self._faulty_sites) < 1000:
            self._faulty_sites.add(fault.site)
            self._reports.append(fault)
            self._wake()

    # The next three rely on this: only the first return of a lease finds it in use.

    def _keep(self, lease: Lease[C]) -> None:
        token = lease.token
        if token in self._inuse:
            del self._inuse[token]  # None is never in there
            lease.token = None
            if self._reported:
                self._reported.discard(token)
            if lease.aborted or self._retired or lease.connection.ends_as:
                self._schedule_close(lease.conn, lease.aborted or lease.connection.ends_as or "retired")
            elif self._connections() >= self._size:
                self._schedule_close(lease.conn, "surplus")
                self._update_screening()
            elif lease.connection.owner is None:
                self._idle.append(lease.connection)
            elif lease.connection.owner() is None:
                self._schedule_close(lease.conn, "surplus")
            else:
                self._apart.append(lease.connection)

    def _end_returned(self, returned: tuple[Lease[C], CloseReason | None]) -> None:
        lease, reason = returned
        token = lease.token
        if lease.connection.is_shared:
            if token is not None and self._has_place(lease):
                self._end_place(lease.connection, token, reason and (lease.aborted or reason))
            lease.token = None
        elif reason is None:
            self._keep(lease)
        elif token in self._inuse or token in self._one_off:
            self._free_slot(token, lease.conn, lease.aborted or reason)
            lease.token = None

    def _end_dropped(self, token: ref[Lease[C]]) -> None:
        if token in self._inuse or token in self._one_off:
            self._free_slot(token, None, "leaked")
            add(self._tally.closed, "leaked")
        elif self._shared and (connection := connection_of(self._shared, token)) is not None:
            self._report_leak(self._shared[connection][token])
            self._end_place(connection, token, "leaked")  # what it left half read there, nobody knows

    def _end_place(self, connection: Connection[C], token: ref[Lease[C]], reason: CloseReason | None) -> None:
        """Free the place of *token* on *connection*; None: another lease may have it. After the last: keep or close."""
        tokens = self._shared[connection]
        if connection.ends_as is None:
            connection.ends_as = reason
        if self._reported:
            self._reported.discard(token)
        del tokens[token]
        if tokens:
            return
        del self._shared[connection]
        if connection.ends_as is not None or self._retired:
            self._schedule_close(connection.conn, connection.ends_as or "retired")
        elif self._connections() >= self._size or (
            connection.owner is not None and connection.owner() is None
        ):
            self._schedule_close(connection.conn, "surplus")
        else:
            self._apart.append(connection)
        if self._screens:
            self._update_screening()

    def _free_slot(self, token: ref[Lease[C]], conn: C | None, reason: CloseReason) -> None:
        """Free the slot of *token*. Its connection is not kept."""
        home = self._inuse if token in self._inuse else self._one_off
        site = home.pop(token)
        if conn is not None:
            self._schedule_close(conn, reason)
        if reason == "leaked":
            self._report_leak(site)
        self._reported.discard(token)
        if self._screens:
            self._update_screening()

    def _report_leak(self, site: str | None) -> None:
        if site not in self._leaky_sites and len(self._leaky_sites) < 1000:
            self._leaky_sites.add(site)
            self._reports.append(LeaseReport(site, None))

    def _serve(self) -> None:
        """Hand free slots, connections and places to the calls that have waited longest."""
        while self._waiters and (
            self._idle or self._apart or len(self._inuse) + len(self._shared) < self._size
        ):
            self._isolated(self._serve_one, next(iter(self._waiters.items())))
        if self._shared and self._waiters:
            self._serve_places()

    def _serve_places(self) -> None:
        """Hand the free places of connections in use to the calls that have waited longest, and may have one."""
        for waiter in tuple(self._waiters.items()):
            if not any(len(tokens) < connection.capacity for connection, tokens in self._shared.items()):
                return
            lease = waiter[0]
            if lease not in self._fresh_waiters and self._free_place(*self._wishes(lease)) is not None:
                self._isolated(self._serve_one, waiter)

    def _wishes(self, lease: Lease[C]) -> tuple[object | None, bool]:
        """The owner that waits with *lease*, and whether it wants no connection but its own."""
        owner = None if lease.connection.owner is None else lease.connection.owner()
        return owner, lease in self._own_waiters

    def _serve_one(self, waiter: tuple[Lease[C], Gate]) -> None:
        lease, gate = waiter
        token = lease.token
        assert token is not None
        if lease not in self._waiters:
            return  # an earlier run was interrupted after its last step
        # Else an earlier run was interrupted after this step.
        if token not in self._inuse and not (self._shared and self._has_place(lease)):
            wants_idle = lease not in self._fresh_waiters
            owner = None if lease.connection.owner is None else lease.connection.owner()
            place: Connection[C] | None = None
            own = self._newest_owned_by(owner) if self._apart and owner is not None and wants_idle else None
            if own is not None:
                _take_connection(lease, own)
                self._apart.remove(own)
                self._tally.hits += 1
            elif self._idle and wants_idle and lease not in self._own_waiters:
                _take_connection(lease, self._idle[-1])
                self._idle.pop()
                self._tally.hits += 1
            else:
                if wants_idle and (self._shared or self._apart):
                    place = self._free_place(owner, lease in self._own_waiters)
                if place is not None:
                    self._tally.hits += 1
                else:
                    self._make_room()
                    lease.connection = self._blank()
                    self._tally.misses += 1
            self._tally.waited += 1
            lease.taken_at = self._clock()  # it is held from now on, even if its waiter runs later
            if place is not None:
                self._take_place(lease, place)
            else:
                self._inuse[token] = lease.site
        self._forget_wishes(lease)
        del self._waiters[lease]
        gate.release()

    def _forget_wishes(self, lease: Lease[C]) -> None:
        self._fresh_waiters.discard(lease)
        self._own_waiters.discard(lease)

    def _dismiss(self, waiter: tuple[Lease[C], Gate]) -> None:
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
        connection.uses = connection.capacity = 1
        connection.is_shared = connection.is_apart = False
        connection.ends_as = None
        connection.gone_by = _NEVER
        connection.expires_at = (
            _NEVER
            if lifetime_s is None
            else self._clock() + lifetime_s * (1.0 - LIFETIME_JITTER * self._rng())
        )
        return connection

    def _purge(self, now: float) -> int:
        """Schedule the close of idle connections that are over, and of half of those above `max_idle`; how many."""
        before = len(self._idle) + len(self._apart)

        def close_if_over(connection: Connection[C]) -> None:
            if connection.idle_since > now + _STEP_S:
                self._restart_ages(connection, now)
            reason = connection.over(now, self._idle_timeout_s)
            if reason is not None:
                (self._apart if connection.is_apart else self._idle).remove(connection)
                self._schedule_close(connection.conn, reason)

        for connection in (*self._idle, *self._apart):
            self._isolated(close_if_over, connection)
        # By halves: after a burst, most connections go soon, and the others as long as they are not needed.
        for _ in range((len(self._idle) + len(self._apart) - self.plan.max_idle + 1) // 2):
            self._schedule_close((self._idle or self._apart).pop(0).conn, "surplus")
        return before - len(self._idle) - len(self._apart)

    def _restart_ages(self, connection: Connection[C], now: float) -> None:
        """Count *connection* as idle since now: the clock was stepped back since it became idle (failures.md 69)."""
        connection.idle_since = connection.looked_at = now
        if self.plan.max_lifetime_s is not None:
            connection.expires_at = min(connection.expires_at, now + self.plan.max_lifetime_s)

    def _check_held(self, now: float) -> None:
        """Abort leases in use beyond their lifetime and grace, or their drain; note those held for too long."""
        grace_s, threshold_s = self.plan.max_lifetime_grace_s, self.plan.leak_detection_threshold_s
        if grace_s is None and threshold_s is None and not self._drains:
            return
        self._drains = False

        def look(held: tuple[ref[Lease[C]], str | None]) -> None:
            token, site = held
            lease = token()
            if lease is None:
                return
            connection = lease.connection
            if connection.gone_by < _NEVER:
                # The clock may have been stepped back (failures.md 69).
                connection.gone_by = min(connection.gone_by, now + self._drain_s)
                # Of several places: one that was broken off for itself leaves the connection as it was.
                if now < connection.gone_by:
                    self._drains = True
                elif lease.aborted is None or connection.is_shared:
                    self._break_off(self._shared.get(connection, (token,)), "rotated")
                    connection.gone_by = _NEVER
            elif grace_s is not None and now >= connection.expires_at + grace_s and lease.aborted is None:
                self._break_off(self._shared.get(connection, (token,)), "lifetime")
            held_s = now - lease.taken_at
            if threshold_s is not None and held_s >= threshold_s and token not in self._reported:
                self._reported.add(token)
                self._reports.append(LeaseReport(site, held_s))

        held_now = [*self._inuse.items(), *self._one_off.items()]
        for tokens in self._shared.values():
            held_now += tokens.items()
        for held in held_now:
            self._isolated(look, held)

    def _find_missed_drops(self) -> None:
        """Find collected leases that `on_drop` did not report: CPython swallows an interrupt in it."""
        for token in (*self._inuse, *self._one_off, *chain.from_iterable(self._shared.values())):
            if token() is None:
                self._dropped.append(token)  # if it is in there twice, the second entry does nothing

    def _take_idle(self, lease: Lease[C], owner: object | None, own_only: bool) -> bool:
        """Give *lease* the idle connection that it would have got at first; whether there is one."""
        own = self._newest_owned_by(owner) if self._apart and owner is not None else None
        if own is not None:
            _take_connection(lease, own)
            self._apart.remove(own)
        elif self._idle and not own_only:
            _take_connection(lease, self._idle[-1])
            self._idle.pop()
        else:
            return False
        return True

    def _move(
        self,
        lease: Lease[C],
        last: Connection[C],
        reason: CloseReason,
        left_s: float,
        owner: object | None,
        own_only: bool,
    ) -> threading.Lock | None:
        """Take *lease* from its place on *last*, which lends no more, and begin anew; its gate if it has to wait."""
        token, gate = lease.token, None
        if token is None or token not in self._shared.get(last, ()):
            raise LeaseCancelled(
                "the lease was ended at its beginning", self._view(), waited_s=lease.waited_s
            )
        self._end_place(last, token, reason)
        if not lease.waited_s:  # else that wait is told: what follows counts as another acquire
            self._tally.hits -= 1
        self._process_returns()
        if self._take_idle(lease, owner, own_only):
            self._inuse[token] = lease.site
            self._tally.hits += 1
        else:
            gate = self._slot_or_gate(lease, left_s, False, owner, own_only)
        self._serve()  # its slot may be free
        return gate

    def _abort_one(self, lease: Lease[C]) -> None:
        """Break off what *lease* does on its shared connection. Where that fails, the connection ends with its last."""
        if self._abort_place is not None and lease.conn is not None:
            try:
                self._abort_place(lease.conn, lease)
            except Exception as error:
                self._fault(error)
                lease.connection.ends_as = lease.connection.ends_as or "error"

    def _break_off(self, tokens: Iterable[ref[Lease[C]]], reason: CloseReason) -> None:
        """Abort a shared connection, the one that the leases with *tokens* are on."""
        leases = [lease for token in tokens if (lease := token()) is not None]
        for lease in leases:
            if lease.aborted is None:
                lease.aborted = reason
        if leases and leases[0].token is not None:
            self._abort_lease(leases[0].token)

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
        closed = len(self._idle) + len(self._apart)
        for idle in (self._idle, self._apart):
            while idle:
                self._schedule_close(idle.pop(0).conn, reason)
        return closed

    def _update_screening(self) -> None:
        self._screens = self._retired or self._used() > self._size

    def _view(self) -> PoolView:
        inuse, idle, waiting, one_off = (
            self._used(),
            len(self._idle) + len(self._apart),
            len(self._waiters),
            0,
        )
        if self.shelves:
            views = [shelf.counts() for shelf in self.shelves.values()]
            on_shelves = sum(one.idle for one in views)
            inuse, idle = inuse + self._elsewhere - on_shelves, idle + on_shelves
            waiting += sum(one.waiting for one in views)
            one_off = sum(one.one_off for one in views)
        return PoolView(
            inuse=max(inuse, 0),
            idle=idle,
            waiting=waiting,
            one_off=len(self._one_off) + one_off,
            max_connections=self._size + self._elsewhere,
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
            or ((self._kept or self._parked) and (self._waiters or self._screens))
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
                conn = self._to_close.pop(0)
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
                if gave_up or not self._is_held(lease):
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

    def _replace(
        self,
        lease: Lease[C],
        now: float,
        timeout_s: float,
        owner: object | None,
        own_only: bool,
        on_wait: Callable[[ref[Lease[C]]], object] | None,
    ) -> None:
        """Close the connection of *lease*, which is expired or dead, and take the next usable idle one, if any.

        A shared connection is left to those that still use it. The lease has no slot then, and may wait for one.
        """
        while (conn := lease.connection.conn) is not None:
            gate = None
            with self._lock:
                # Under the lock: housekeeping, which holds it, would take the lease for one that is over.
                last, lease.connection = lease.connection, _NO_CONNECTION
                reason = last.over(now, self._idle_timeout_s) or "dead"
                if last.is_shared:
                    gate = self._move(lease, last, reason, now + timeout_s - self._clock(), owner, own_only)
                else:
                    self._schedule_close(conn, reason)
                    if self._kept or self._parked or self._returns or self._dropped:
                        self._process_returns()
                    # The lease keeps the slot of the connection that was given up. Taking an idle one as well makes
                    # one slot free. No call waits for that: while a connection is idle, none waits.
                    if not self._take_idle(lease, owner, own_only):
                        lease.connection = self._blank()
                        self._tally.hits -= 1
                        self._tally.misses += 1
            self._settle()
            if gate is not None:
                self._wait(lease, gate, now, timeout_s, on_wait)
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
        if (pid_page[0] or current_pid()) != self._pid:
            self.forget_inherited()


def _take_connection(lease: Lease[C], connection: Connection[C]) -> None:
    """Give *lease* an idle *connection*."""
    lease.connection = connection
    connection.uses += 1


def _drop_callback(pool: ref[LeasePool[C]], dropped: list[ref[Lease[C]]]) -> Callable[[ref[Lease[C]]], None]:
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


def _gone_callback(pool: ref[LeasePool[Any]], gone: list[ref[Any]]) -> Callable[[ref[Any]], None]:
    """The callback for when an owner is collected. Takes no lock, like that of `_drop_callback`."""

    def on_gone(owner: ref[Any]) -> None:
        gone.append(owner)
        owned = pool()
        if owned is not None:
            owned._settle()

    return on_gone


def _no_connection() -> Connection[Any]:
    none: Connection[Any] = Connection()
    none.conn = None
    none.expires_at = none.gone_by = _NEVER
    none.ends_as = None
    none.uses = 0
    none.is_shared = False  # the rest, nobody asks of it
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
