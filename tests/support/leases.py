"""A lease pool over connections that are nothing but a name, on a clock of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import PoolPlan
from headrace.transport.dial.liveness import Watched
from headrace.transport.lease.pool import Lease, LeasePool
from support.plans import pool_plan
from support.waiting import wait_until


@dataclass(eq=False)
class Conn:
    """A connection as far as the lease layer knows."""

    name: str = "conn"
    alive: bool = True
    probes: int = 0


@dataclass(eq=False)
class End(Watched):
    """A connection that is nothing but its socket."""

    sock: socket.socket | None

    def close(self) -> None:
        """Close it."""
        assert self.sock is not None
        self.sock.close()


@contextmanager
def interrupted_locks(owner: Any, name: str) -> Iterator[None]:
    """Ctrl-C comes as the lock called *name* is about to be tried, and another thread holds that lock meanwhile."""
    real = getattr(owner, name)

    class Interrupted:
        def acquire(self, blocking: bool) -> bool:
            raise KeyboardInterrupt

        def release(self) -> None:
            real.release()

    with real:
        setattr(owner, name, Interrupted())
        yield
        assert real.locked(), "a lock that another thread holds was released"
        setattr(owner, name, real)


@dataclass
class Rig:
    """A pool of `Conn`s that remembers what was closed and aborted; `now` is the clock.

    Attributes:
        aborted_places: The connection and the token of each lease that was broken off beside others. No lease: that
            would keep it.
    """

    plan: PoolPlan
    now: float = 1000.0
    closed: list[Conn] = field(default_factory=list)
    aborted: list[Conn] = field(default_factory=list)
    aborted_places: list[tuple[Conn, Any]] = field(default_factory=list)
    discarded: list[Conn] = field(default_factory=list)
    held: list[Lease[Conn]] = field(default_factory=list)
    dice: float = 0.0
    on_probe: Callable[[Conn], None] = lambda conn: None
    collect: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        self.pool: LeasePool[Conn] = LeasePool(
            self.plan,
            UpstreamCounters(lock=threading.Lock()),
            clock=lambda: self.now,
            rng=lambda: self.dice,
            is_alive=self._probe,
            close=self.closed.append,
            abort=self.aborted.append,
            discard=self.discarded.append,
            collect=self.collect,
            abort_place=lambda conn, lease: self.aborted_places.append((conn, lease.token)),
        )

    @property
    def counters(self) -> UpstreamCounters:
        """The pool's counters, brought up to date."""
        self.pool.view()
        return self.pool._counters

    def _probe(self, conn: Conn) -> bool:
        conn.probes += 1
        self.on_probe(conn)
        return conn.alive

    def lease(self, name: str = "conn") -> Lease[Conn]:
        """A lease with a connection, made if the pool had none."""
        lease = self.pool.acquire(1.0)
        if lease.conn is None:
            lease.conn = Conn(name)
        self.held.append(lease)  # or it would be reclaimed: the pool has only a weak reference
        return lease

    def shared(self, capacity: int, leases: int = 1, name: str = "conn") -> list[Lease[Conn]]:
        """So many leases on one new connection of *capacity* places."""
        first = self.lease(name)
        self.pool.share(first, capacity)
        return [first, *(self.lease("another") for _ in range(leases - 1))]

    def fill_idle(self, *names: str) -> list[Conn]:
        """Idle connections of these names, the last one the newest."""
        leases = [self.lease(name) for name in names]
        for lease in leases:
            self.pool.give_back(lease, reusable=True)
        return [lease.conn for lease in leases if lease.conn]

    def fill_idle_alone(self) -> list[Conn]:
        """An idle connection of one place, made ahead of need."""
        conn = Conn("alone")
        assert self.pool.offer(conn)
        return [conn]

    def waiter(
        self,
        timeout_s: float = 30.0,
        *,
        fresh: bool = False,
        owner: object | None = None,
        own_only: bool = False,
        on_wait: Callable[[Any], object] | None = None,
    ) -> Waiter:
        """A thread that wants a lease and has got into the queue."""
        ahead = self.pool.view().waiting
        waiter = Waiter(self.pool, timeout_s, fresh=fresh, owner=owner, own_only=own_only, on_wait=on_wait)
        waiter.thread.start()
        wait_until(lambda: self.pool.view().waiting == ahead + 1, what="a waiter in the queue")
        return waiter


class Waiter:
    """Acquires in a thread of its own; `result` is the lease or the error."""

    def __init__(self, pool: LeasePool[Conn], timeout_s: float, **options: Any) -> None:
        self.result: Any = None
        self.thread = threading.Thread(target=self._run, args=(pool, timeout_s, options))

    def _run(self, pool: LeasePool[Conn], timeout_s: float, options: dict[str, Any]) -> None:
        try:
            self.result = pool.acquire(timeout_s, **options)
        except Exception as error:
            self.result = error

    def outcome(self) -> Any:
        self.thread.join(10.0)
        assert not self.thread.is_alive()
        return self.result


def rig(**changes: Any) -> Rig:
    return Rig(pool_plan(**{"max_connections": 2, "max_waiting": 8} | changes))
