"""Reads what one instance holds and has counted, for metrics and `status()`.

`observe.readings` says what can be read. An upstream that cannot be read costs the others nothing: metrics leave it
out, and the status says what is wrong with it. There is no lock here. Each pool, circuit and set of counters is read
under its own, one after the other, so a reading is true of each but not of all at one instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.clock import monotonic
from headrace.observe.isolation import answers, stumbled
from headrace.observe.readings import Reading, ServiceReading, UpstreamReading
from headrace.observe.status import upstream_status
from headrace.runtime.reload import Reloader
from headrace.runtime.upstream import Upstream

_READING = "read what an upstream is doing"


class Readings:
    """Reads what *reloader* has in force. Thread-safe. Takes the locks of pools, circuits and counters, one by one."""

    __slots__ = ("_reloader",)

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader

    def read(self) -> Reading:
        """The numbers of now. Upstreams that have left the file are in it; those that cannot be read are not."""
        service = self.service()
        names = list(self._reloader.counters)
        return Reading(
            upstreams=[found for _, found in answers(names, self._reading_of, doing=_READING, of=str)],
            service=service,
        )

    def service(self) -> ServiceReading:
        """What belongs to no single upstream. The caller owns it: later counts do not change it."""
        counters, snapshot = self._reloader.service.copy(), self._reloader.snapshot
        return ServiceReading(
            reloads=counters.reloads,
            digest=snapshot.digest,
            last_success_timestamp_s=snapshot.loaded_at,
            ungoverned=counters.ungoverned,
            inbound_deadlines=counters.inbound_deadlines,
            served=counters.served_by_class,
            served_duration=counters.served_duration,
        )

    def status(self) -> dict[str, Mapping[str, Any]]:
        """What each upstream in force does, fit for JSON; `{"error": "TypeError: …"}` for one that cannot be read."""
        return {
            name: self._status_or_error(upstream)
            for name, upstream in self._reloader.snapshot.upstreams.items()
        }

    def _status_or_error(self, upstream: Upstream) -> Mapping[str, Any]:
        try:
            return upstream_status(self._reading(upstream.plan.name, upstream), mode=upstream.mode)
        except Exception as error:
            stumbled(f"{_READING} ({upstream.plan.name})", error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _reading_of(self, name: str) -> UpstreamReading:
        return self._reading(name, self._reloader.snapshot.upstreams.get(name))

    def _reading(self, name: str, upstream: Upstream | None) -> UpstreamReading:
        """The reading of *upstream*; where it is None, of what still drains under its *name*."""
        endpoints = self._reloader.endpoints(name, upstream)
        views = [endpoint.pool.leases.view() for endpoint in endpoints]
        now = monotonic()
        return UpstreamReading(
            name=name,
            counters=self._reloader.counters[name],
            inuse=sum(view.inuse + one.in_flight_count for view, one in zip(views, endpoints, strict=True)),
            idle=sum(view.idle for view in views),
            waiting=sum(view.waiting for view in views),
            hit_rate=None if upstream is None else upstream.endpoint.pool.leases.hit_rate(now),
            max_connections=0 if upstream is None else upstream.plan.pool.max_connections,
            target_size=0 if upstream is None else views[0].max_connections,
            circuit=None if upstream is None else upstream.learned.circuit.view(now),
            suspect=any(endpoint.suspect for endpoint in endpoints),
            certificates={} if upstream is None else self._reloader.ages.certificates(upstream.plan),
            secrets={} if upstream is None else self._reloader.ages.secrets(upstream.plan),
            budget_tokens=None if upstream is None else upstream.learned.budget.balance(now),
            tls=None if upstream is None else self._reloader.rotations.of(name),
        )
