"""Heartbeats on idle connections: `pool.heartbeat`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from headrace.observe.events import PoolSuspect
from headrace.observe.logs import emit
from headrace.policy.plan import HeartbeatPlan
from headrace.runtime.deadline import deadlines
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.heartbeat import Beat, beat
from headrace.transport.lease import Lease

MOST_PER_ROUND = 8
"""Idle connections of one upstream that are lent at a time; `lend_idle` leaves a slot to calls."""

Asked = tuple[Upstream, HeartbeatPlan, Lease[Any], Beat]


class Heartbeats:
    """Looks at idle connections on the daemon thread `headrace-heartbeat`, which lives for one round.

    Not on the housekeeping thread, which must not wait for answers. All upstreams of a
    round are asked at once, so that one that hangs delays nobody. A heartbeat is nobody's
    call: the circuit, the budget and the counters of calls do not hear of it.

    `look` and `stop` are called by one thread at a time.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._thread: threading.Thread | None = None

    def look(self, now: float, upstreams: Iterable[Upstream]) -> None:
        """Begin a round with what is due, unless one is under way. Does not block."""
        if self._thread is not None and self._thread.is_alive():
            return
        due: list[tuple[Upstream, HeartbeatPlan, Lease[Any]]] = []
        for upstream in upstreams:
            plan = upstream.plan.pool.heartbeat
            if plan is not None and upstream.mode == "enforce":
                leases = upstream.state.pool.leases
                due += [
                    (upstream, plan, lease)
                    for lease in leases.lend_idle(now, idle_s=plan.interval_s, most=MOST_PER_ROUND)
                ]
        if due:
            self._thread = threading.Thread(
                target=self._round, args=(due,), name="headrace-heartbeat", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Wait for the round under way. Blocks for a second at most: its connections are closed anyway."""
        if self._thread is not None:
            self._thread.join(1.0)
        self._thread = None

    def _round(self, due: list[tuple[Upstream, HeartbeatPlan, Lease[Any]]]) -> None:
        now = self._clock()
        asked: list[Asked] = []
        for upstream, plan, lease in due:
            leases, conn = upstream.state.pool.leases, lease.conn
            if conn is None or not upstream.state.pool.is_alive(conn):
                # Closed by the peer, as servers do after their own idle limit: dead, but no sign of trouble.
                leases.give_back(lease, reusable=False, reason="dead")
            elif plan.path is None:
                leases.return_unused(lease)  # nothing more is known: idle since when it was
            else:
                ends_at = now + plan.timeout_s
                asked.append((upstream, plan, lease, Beat(conn, plan.path, upstream.plan.headers, ends_at)))
        _beat_in_time(asked)
        for upstream, plan, lease, one in asked:
            leases = upstream.state.pool.leases
            if one.answered:
                leases.give_back(lease, reusable=True)
                upstream.state.misses = 0
                upstream.state.suspect = False
            else:
                leases.give_back(lease, reusable=False, reason="dead")
                self._missed(upstream, plan)

    def _missed(self, upstream: Upstream, plan: HeartbeatPlan) -> None:
        state = upstream.state
        state.misses += 1
        if state.misses >= plan.failures and not state.suspect:
            state.suspect = True
            closed = state.pool.leases.close_idle("dead")
            emit(PoolSuspect(upstream=upstream.plan.name, misses=state.misses, closed=closed))


def _beat_in_time(asked: Sequence[Asked]) -> None:
    """Ask, and have the deadline thread cut off whoever drips: a socket's limit is one on silence only. Blocks."""
    under_way = []
    for upstream, _, lease, one in asked:
        pool, timeouts = upstream.state.pool, upstream.plan.timeouts
        attempt = Attempt(pool, one, None, (), timeouts, one.ends_at, streamed=False)
        attempt.token = lease.token
        deadlines.table[attempt] = one.ends_at
        under_way.append(attempt)
    if under_way and (first_at := min(one.ends_at for one in under_way)) < deadlines.wake_at:
        deadlines.rouse(first_at)
    try:
        beat([one for _, _, _, one in asked])
    finally:
        for attempt, (_, _, _, one) in zip(under_way, asked, strict=True):
            if deadlines.table.pop(attempt, None) is None:
                one.answered = False  # an answer that ends with the connection looks whole when it was cut
