"""One attempt as the transport sees it: what it may use, and the facts it leaves behind."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ref

from headrace.policy.attempt_end import Phase as Phase
from headrace.policy.plan import TimeoutPlan

if TYPE_CHECKING:
    from headrace.transport.dial.opening import Opening
    from headrace.transport.lease.pool import Lease


@dataclass(eq=False)
class Attempt:
    """Limits and facts of one attempt. Per call, owned by one thread at a time; not thread-safe.

    It has no slots: so what has a default need not be set by who makes one at each call (`engine.lane`).

    The deadline thread may set `cut` and `excused`, and reads `pool` and `token`.

    Attributes:
        pool: The upstream's urllib3 pool, even if the caller's manager would have picked another.
        message: The object being sent, compared by identity: a nested call made while
            this attempt runs (a token refresh, say) is not part of it.
        lease: The connection slot taken for the attempt, until the pool hands it out.
        token: Token of the lease that the attempt holds, or held last. `LeasePool.abort` takes it, from any thread.
        headers: Added on the wire unless the call has set them.
        timeouts: Limits of the call.
        ends_at: When the time of this attempt is up, monotonic seconds; moved back once a good head has come.
        streamed: The caller reads the body itself, after the attempt.
        phase: How far it got; "sent" from the moment a byte may have left.
        connect_took_s: Seconds for TCP and TLS, or None on a reused connection.
        answered: The status line of an answer has arrived.
        sock: The socket that the answer comes over, from its head on.
        cut: Its time was up: nothing that it still does counts.
        owner: The owner of the connection if the request authenticates it; None: no owner, so it is not used again.
        own_error: The error that the request's body raised while it was read: the caller's, not the peer's.
        max_body_bytes: Most bytes of a body, decoded; None: no limit.
        began: When it got its lease, monotonic seconds.
        limit_s: Seconds that it had then.
        was_in_time: It ended before its time was up; None: not known yet.
        was_played: Answers whether its answer came from a cassette; None: nothing records.
        excused: It was cut after a grace: this process had stood still, so it is not known what was at fault.
        opening: The connection that is being opened for it, or None.
        pieces: What was received already, by the short way of a call, after the request was sent; None: nothing was
            sent that way.
        broke: What that has ended with, or None.
        is_unsent: It has ended while the request was sent.
    """

    pool: Any
    message: object
    lease: Lease[Any] | None
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    timeouts: TimeoutPlan
    ends_at: float
    streamed: bool
    phase: Phase = field(default="lease")
    connect_took_s: float | None = None
    answered: bool = False
    sock: socket.socket | None = None
    cut: bool = False
    owner: object | None = None
    own_error: Exception | None = None
    excused: bool = False
    token: ref[Lease[Any]] | None = None
    max_body_bytes: int | None = None
    began: float = 0.0
    limit_s: float = math.inf
    was_in_time: bool | None = None
    was_played: Callable[[], bool] | None = None
    opening: Opening | None = None
    pieces: list[bytes] | None = None
    broke: Exception | None = None
    is_unsent: bool = False


current_attempt: ContextVar[Attempt | None] = ContextVar("headrace_attempt", default=None)
"""The attempt that the running code makes; pool and connection hooks find it here."""
