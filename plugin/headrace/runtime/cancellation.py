"""Ends the outbound calls of one inbound request once its client has left.

`Cancellation` owns the list of the leases that such a request waits for or holds. `Cancellation._lock` guards that
list and the flag. The leases are aborted after the lock is released, since that takes the lock of a lease pool.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

from headrace.observe.isolation import each

if TYPE_CHECKING:
    from headrace.transport.lease.pool import Lease, LeasePool

    Token = ref[Lease[Any]]
    """What a pool knows a lease by: `LeasePool.abort` takes it."""

_MANY = 64
"""Leases from which on ended ones are looked for. The bound doubles with those that are left."""


class Cancellation:
    """Whether one inbound request was given up, and which leases it waits for or holds. Thread-safe.

    Attributes:
        is_cancelled: The client has left. Never becomes False again; read without the lock.
    """

    __slots__ = ("_leases", "_lock", "_many", "_woken", "is_cancelled")

    def __init__(self) -> None:
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._leases: dict[Token, LeasePool[Any]] = {}
        self._many = _MANY

    def cancel(self) -> None:
        """Abort everything. Blocks for locks of lease pools only: it is called on the event loop. Idempotent."""
        with self._lock:
            self.is_cancelled = True
            leases = list(self._leases.items())
            self._leases.clear()
        self._woken.set()
        each(leases, lambda one: one[1].abort(one[0]), doing="abort a call whose client has left")

    def cover(self, token: Token, pool: LeasePool[Any]) -> None:
        """Have *token*, which waits or is in use, aborted when the client leaves; at once if it has left."""
        with self._lock:
            if not self.is_cancelled:
                self._leases[token] = pool
                if len(self._leases) > self._many:
                    self._forget_ended()
                return
        pool.abort(token)

    def release(self, token: Token) -> None:
        """Forget *token*, which has ended.

        The token of a streamed answer is never released: its body is read after the call. To abort a lease that has
        ended does nothing.
        """
        with self._lock:
            self._leases.pop(token, None)

    def sleep(self, delay_s: float) -> None:
        """Pause for *delay_s*, or until the client leaves. Blocks."""
        self._woken.wait(delay_s)

    def _forget_ended(self) -> None:
        self._leases = {
            token: pool
            for token, pool in self._leases.items()
            if (lease := token()) is not None and lease.token is token
        }
        self._many = 2 * len(self._leases) + _MANY
