"""Keeps the size of an adaptive pool: feeds the rule of `policy.sizing` from the live pool and does what it decides."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import AdaptivePlan
from headrace.policy.sizing import PoolLoad, Resize, Sizing
from headrace.transport.lease.pool import LeasePool

_DO_NOT_WAIT = (False,)


class PoolSizer:
    """The size of one adaptive pool, which begins with the smallest. Thread-safe.

    `_lock` guards the rule. It is only ever tried: a thread that finds it taken leaves the
    decision to its holder. `view` and `resize` take the pool's lock and that of the counters
    under it. *on_resize* is called without it.

    Args:
        plan: When to grow and shrink, and the smallest size.
        leases: The pool; its `plan.max_connections` is the largest size.
        counters: Where the pool's acquires are counted.
        clock: Monotonic seconds.
        on_resize: Called with each new size, on the thread that caused it.
    """

    def __init__(
        self,
        plan: AdaptivePlan,
        leases: LeasePool[Any],
        counters: UpstreamCounters,
        *,
        clock: Callable[[], float],
        on_resize: Callable[[Resize], None],
    ) -> None:
        self._plan = plan
        self._leases = leases
        self._counters = counters
        self._clock = clock
        self._on_resize = on_resize
        self._begin()
        leases.resize(plan.min)
        leases.on_enqueue = self.enqueued

    @property
    def baseline_rps(self) -> float | None:
        """Calls per second that are usual, or None as long as that is not known."""
        return self._sizing.baseline_rps

    def enqueued(self) -> None:
        """Consider growth: a call has entered the queue. Costs one clock call, and more ten times a second."""
        now = self._clock()
        if self._sizing.is_due(now):
            self._judge(Sizing.enqueued, now)

    def looked(self, now: float) -> None:
        """Consider shrinking: housekeeping has come by."""
        self._judge(Sizing.looked, now)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sizing = Sizing(self._plan, max_connections=self._leases.plan.max_connections)
        self._seen_at = self._clock()

    def _judge(self, rule: Callable[[Sizing, float, PoolLoad], Resize | None], now: float) -> None:
        if self._pid != os.getpid():
            self._begin()  # forked: the holder of the lock does not exist here, and what is usual is not known yet
        held, answer = False, None
        try:
            # In one step, as in `LeasePool._settle`: an interrupt in between would leave it locked for good.
            (held,) = map(self._lock.acquire, _DO_NOT_WAIT)
            if held:
                answer = rule(self._sizing, now, self._load(now))
                if answer is not None:
                    self._leases.resize(answer.to_size)
        finally:
            if held:
                self._lock.release()
        if answer is not None:
            self._on_resize(answer)

    def _load(self, now: float) -> PoolLoad:
        busiest = self._leases.busiest(min(self._seen_at, now))
        self._seen_at = now
        view = self._leases.view()  # brings the counters up to date
        with self._counters.lock:
            ended = sum(self._counters.acquires.values())
        return PoolLoad(
            waiting=view.waiting, inuse=busiest, size=view.max_connections, arrivals=ended + view.waiting
        )
