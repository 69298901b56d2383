"""Heartbeats on idle connections: `pool.heartbeat`.

A round lends idle connections from their lease pools, asks each for a sign of life, and gives it back as alive or dead.
Misses are written into the `Endpoint`.

There is no lock here. One thread at a time begins rounds, and only one round is under way. The connections of a round
belong to its thread until they are given back. `Endpoint.misses` and `suspect` have no lock either: each write is one
store, and any answer of a call may overwrite them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from headrace.clock import monotonic
from headrace.observe.events import PoolSuspect
from headrace.observe.isolation import answers, each, stumbled
from headrace.observe.logs import emit
from headrace.policy.plan import HeartbeatPlan
from headrace.runtime.deadlines import deadlines
from headrace.runtime.threads import Life, ServiceThread
from headrace.runtime.upstream import Upstream, name_of
from headrace.transport.attempt import Attempt
from headrace.transport.lease.pool import Lease
from headrace.transport.standstill import GRACE_S
from headrace.transport.stock.probe import Beat, beat

MOST_PER_ROUND = 8
"""Idle connections of one upstream that are lent at a time; `lend_idle` leaves a slot to calls."""

Due = tuple[Upstream, HeartbeatPlan, Lease[Any]]
Asked = tuple[Upstream, HeartbeatPlan, Lease[Any], Beat]


class Heartbeats:
    """Looks at idle connections on the daemon thread `headrace-heartbeat`, which lives for one round.

    It has its own thread since housekeeping must not wait for answers. A round asks all upstreams at once: one that
    hangs delays no other. A heartbeat is no call: the circuit, the budget and the counters of calls do not hear of it.

    One thread at a time calls `look` and `stop`.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._thread = ServiceThread("headrace-heartbeat", clock=clock)

    def look(self, now: float, upstreams: Iterable[Upstream]) -> None:
        """Begin a round with what is due, unless one is under way. Does not block."""
        if self._thread.is_alive:
            return
        due = [
            one
            for _, lent in answers(
                upstreams,
                lambda upstream: _lend(upstream, now),
                doing="lend idle connections to a heartbeat",
                of=name_of,
            )
            for one in lent
        ]
        if due:
            try:
                self._thread.start(lambda _: self._round(due))
            except RuntimeError as error:  # no thread can be started
                stumbled("start a round of heartbeats", error)
                each(due, _return_unused, doing="take back a connection lent to a heartbeat")

    def stop(self) -> None:
        """Wait for the round under way. Blocks for a second at most: its connections are closed anyway. Idempotent."""
        self._thread.stop(timeout_s=1.0)

    def life(self) -> Life:
        """The sign of life of the thread."""
        return self._thread.life()

    def _round(self, due: list[Due]) -> None:
        now = self._clock()
        looked = answers(
            due,
            lambda one: _looked_at(one, now),
            doing="look at an idle connection",
            of=lambda one: one[0].plan.name,
        )
        asked = {id(one[3]): one for _, one in looked if one is not None}

        def settle(answered: Beat) -> None:
            one = asked.pop(id(answered))
            each([one], self._settle, doing="settle a heartbeat", of=lambda one: one[0].plan.name)

        try:
            _beat_in_time(list(asked.values()), on_answer=settle)
        except Exception as error:
            # No descriptor may be left for a selector. These are given back all the same, as unanswered.
            stumbled("ask for a sign of life on idle connections", error)
        each(asked.values(), self._settle, doing="settle a heartbeat", of=lambda one: one[0].plan.name)

    def _settle(self, asked: Asked) -> None:
        upstream, plan, lease, one = asked
        leases = upstream.endpoint.pool.leases
        if one.answered:
            leases.give_back(lease, reusable=True)
            upstream.endpoint.misses = 0
            upstream.endpoint.suspect = False
        else:
            leases.give_back(lease, reusable=False, reason="dead")
            self._missed(upstream, plan)

    def _missed(self, upstream: Upstream, plan: HeartbeatPlan) -> None:
        endpoint = upstream.endpoint
        endpoint.misses += 1
        if endpoint.misses >= plan.failures and not endpoint.suspect:
            endpoint.suspect = True
            closed = endpoint.pool.leases.close_idle("dead")
            emit(PoolSuspect(upstream=upstream.plan.name, misses=endpoint.misses, closed=closed))


def _lend(upstream: Upstream, now: float) -> list[Due]:
    """Idle connections of *upstream* that a heartbeat is due on."""
    plan = upstream.plan.pool.heartbeat
    if plan is None or upstream.mode != "enforce":
        return []
    lent = upstream.endpoint.pool.leases.lend_idle(now, idle_s=plan.interval_s, most=MOST_PER_ROUND)
    return [(upstream, plan, lease) for lease in lent]


def _return_unused(due: Due) -> None:
    upstream, _, lease = due
    upstream.endpoint.pool.leases.return_unused(lease)


def _looked_at(due: Due, now: float) -> Asked | None:
    """*due* with what is to be asked on it; None when a look was all."""
    upstream, plan, lease = due
    leases, conn = upstream.endpoint.pool.leases, lease.conn
    try:
        is_alive = conn is not None and upstream.endpoint.pool.is_alive(conn)
    except Exception as error:
        stumbled(f"look at an idle connection ({upstream.plan.name})", error)
        is_alive = False
    if conn is None or not is_alive:
        # The peer closed it, as servers do after their own idle limit: the connection is dead, the upstream is well.
        leases.give_back(lease, reusable=False, reason="dead")
    elif plan.path is None:
        leases.return_unused(lease)  # nothing more is known: it has been idle for as long as before
    else:
        return upstream, plan, lease, Beat(conn, plan.path, upstream.headers, now + plan.timeout_s)
    return None


def _beat_in_time(asked: Sequence[Asked], *, on_answer: Callable[[Beat], None]) -> None:
    """Ask, and have the deadline thread cut off peers that drip: a socket's limit is one on silence only. Blocks.

    Args:
        on_answer: Called for each that answers in time, at once.
    """
    under_way: dict[int, Attempt] = {}
    for upstream, _, lease, one in asked:
        pool, timeouts = upstream.endpoint.pool, upstream.plan.timeouts
        # Later than the round's own limit, which makes a miss of silence: this one is for peers that drip.
        attempt = Attempt(pool, one, None, (), timeouts, one.ends_at + GRACE_S, streamed=False)
        attempt.token = lease.token
        deadlines.table[attempt] = attempt.ends_at
        under_way[id(one)] = attempt
    if under_way and (first_at := min(one.ends_at for one in under_way.values())) < deadlines.wake_at:
        deadlines.rouse(first_at)

    def has_answered(one: Beat) -> None:
        # At once: a connection that has gone back must not be cut with those that hang.
        if deadlines.table.pop(under_way.pop(id(one)), None) is None:
            one.answered = False  # it was cut, and an answer that ends with its connection looks whole then
        else:
            on_answer(one)

    try:
        beat([one for _, _, _, one in asked], on_answer=has_answered)
    finally:
        for attempt in under_way.values():
            deadlines.table.pop(attempt, None)
