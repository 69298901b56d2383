"""What the upstreams of one instance hold and have counted: read for `status()` and for metrics, from one place.

An upstream that cannot be read costs the others nothing: metrics leave it out, the status says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.clock import monotonic
from headrace.observe.isolation import answers, stumbled
from headrace.observe.metrics import Reading, ServiceReading, UpstreamReading
from headrace.policy.counters import totals_of
from headrace.runtime.reload import Reloader
from headrace.runtime.upstream import Upstream

_READING = "read what an upstream is doing"


class Readings:
    """Reads what *reloader* has in force. Thread-safe; takes the locks of pools, circuits and counters, one by one."""

    __slots__ = ("_reloader",)

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    def read(self) -> Reading:
        """The numbers of now, for metrics; upstreams that have left the file included."""
        service = self._reloader.service.copy()
        snapshot = self._reloader.snapshot
        names = list(self._reloader.counters)
        return Reading(
            upstreams=[found for _, found in answers(names, self._reading_of, doing=_READING, of=str)],
            service=ServiceReading(
                reloads=service.reloads,
                digest=snapshot.digest,
                last_success_timestamp_s=snapshot.loaded_at,
                ungoverned=service.ungoverned,
                inbound_deadlines=service.inbound_deadlines,
                served=service.served_by_class,
                served_duration=service.served_duration,
            ),
        )

    def status(self) -> dict[str, Mapping[str, Any]]:
        """Of each upstream in force, fit for JSON; of one that cannot be read `{"error": "TypeError: …"}`."""
        return {
            name: self._status_or_error(upstream)
            for name, upstream in self._reloader.snapshot.upstreams.items()
        }

    def _status_or_error(self, upstream: Upstream) -> Mapping[str, Any]:
        try:
            return self._status_of(upstream)
        except Exception as error:
            stumbled(f"{_READING} ({upstream.plan.name})", error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _reading_of(self, name: str) -> UpstreamReading:
        upstream = self._reloader.snapshot.upstreams.get(name)
        states = self._reloader.states(name)
        views = [state.pool.leases.view() for state in states]
        now = monotonic()
        return UpstreamReading(
            name=name,
            counters=self._reloader.counters[name],
            inuse=sum(view.inuse + len(state.in_flight) for view, state in zip(views, states, strict=True)),
            idle=sum(view.idle for view in views),
            waiting=sum(view.waiting for view in views),
            hit_rate=None if upstream is None else upstream.state.pool.leases.hit_rate(now),
            max_connections=0 if upstream is None else upstream.plan.pool.max_connections,
            target_size=0 if upstream is None else views[0].max_connections,
            circuit=None if upstream is None else upstream.state.circuit.view(now),
            suspect=any(state.suspect for state in states),
            budget_tokens=None if upstream is None else upstream.state.budget.balance(now),
        )

    def _status_of(self, upstream: Upstream) -> Mapping[str, Any]:
        reading = self._reading_of(upstream.plan.name)
        circuit = upstream.state.circuit.view(monotonic())
        counters = reading.counters
        with counters.lock:
            requests, attempts = dict(counters.requests), dict(counters.attempts)
            retries, denied = dict(counters.retries), dict(counters.retries_denied)
            acquires, closed = dict(counters.acquires), dict(counters.closed)
            collections = counters.collections
            observed, refused = dict(counters.observed), counters.refused
            delegated, resent = counters.retries_delegated, counters.resent
            fallbacks, broken_bodies = counters.fallbacks, counters.broken_bodies
            protected = totals_of(counters.protected)
        return {
            "mode": upstream.mode,
            "pool": {
                "inuse": reading.inuse,
                "idle": reading.idle,
                "waiting": reading.waiting,
                "max_connections": reading.max_connections,
                "target_size": reading.target_size,
                "hit_rate": reading.hit_rate,
                "suspect": reading.suspect,
                "acquires": acquires,
                "closed": closed,
                "collections": collections,
            },
            "circuit_breaker": {
                "mode": circuit.mode,
                "state": circuit.state.value,
                "failure_rate": circuit.failure_rate,
                "calls": circuit.calls,
                "failures": circuit.failures,
                "slow_calls": circuit.slow_calls,
                "slow_call_rate": circuit.slow_call_rate,
                "consecutive_failures": circuit.consecutive_failures,
                "retry_after": circuit.retry_after_s,
                "ramp_share": circuit.ramp_share,
                "refused": refused,
                "fallbacks": fallbacks,
            },
            "retry": {
                "budget_tokens": reading.budget_tokens,
                "retries": retries,
                "denied": denied,
                "delegated": delegated,
                "resent": resent,
            },
            "requests": requests,
            "attempts": attempts,
            "protected": protected,
            "broken_bodies": broken_bodies,
            "observed": observed,
        }
