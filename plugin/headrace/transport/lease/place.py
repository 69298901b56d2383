"""A connection as the pool knows it, and a lease: one place on it.

Both are made by `LeasePool` alone, and only its lock makes a change of what they say safe to read.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from weakref import ref

C = TypeVar("C")

CloseReason = Literal[
    "idle", "lifetime", "dead", "surplus", "retired", "rotated", "error", "leaked", "abandoned"
]
"""Why a connection was closed.

- idle: unused for `idle_timeout`.
- lifetime: `max_lifetime` or `max_requests_per_connection` is over.
- dead: the peer has closed it, or said in its last answer that it will (`Connection: close`); or it has sent
  something unasked, or an answer with an end that can be read in two ways.
- surplus: one-off, above `max_idle`, beyond a lowered size, its owner has gone, or it made room for a fresh one.
- retired: it belonged to a pool that a reload has replaced.
- rotated: it was made with a certificate, key or CA whose file has other contents now.
- error: broken off, or closed before the end of an answer.
- leaked: dropped by its holder without being given back.
- abandoned: the inbound request that its answer was opened in ended before the answer's body did.
"""


class Connection(Generic[C]):
    """What the pool knows of one connection. It outlives the leases on it; only `LeasePool` makes one.

    Attributes:
        conn: What was dialled; None until then, and after it was given up.
        owner: The only one that may use it, referred to weakly; None: any caller may. See `LeasePool.claim`.
        idle_since: When it was last given back, on the pool's clock; 0 before that. Of several places: when one was
            last given back, or lent beside others.
        looked_at: When it was last lent for a look (`lend_idle`); 0 before that.
        expires_at: When its life is over.
        uses: Leases that it has had, including those that hold it; count.
        capacity: Leases that it may have at once; count, >= 0. 1 unless `LeasePool.share` or `offer` said otherwise.
        is_shared: `share` or `offer` has said so, and it is counted as a connection with several places.
        is_apart: It has an owner or several places: idle, it is kept apart from those that any caller may hold alone.
        ends_as: Why it is lent no more, and is closed with its last lease; None: it may be.
        gone_by: When its holder is broken off, if it still has one; inf: never.
    """

    # No __init__: see `Lease`. Identity is equality.
    __slots__ = (
        "capacity",
        "conn",
        "ends_as",
        "expires_at",
        "gone_by",
        "idle_since",
        "is_apart",
        "is_shared",
        "looked_at",
        "owner",
        "uses",
    )

    conn: C | None
    owner: ref[Any] | None
    idle_since: float
    looked_at: float
    expires_at: float
    gone_by: float
    uses: int
    capacity: int
    is_shared: bool
    is_apart: bool
    ends_as: CloseReason | None

    def over(self, now: float, idle_timeout_s: float) -> CloseReason | None:
        """Why it is not used again although its peer may still be there; None: it may be."""
        if now >= self.expires_at:
            return self.ends_as or "lifetime"
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
            On a connection with several places, `abort` breaks off what this lease does there, and no more.
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
