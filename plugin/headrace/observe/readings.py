"""What one instance holds and has counted at a moment: the one source of all that shows it.

`runtime.readings` reads it; `families` makes metrics of it, `status` makes plain data. The totals that a reading
refers to go on: a copy is what keeps them, and what holds totals that stood together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from headrace.policy.breaker.circuit import CircuitView
from headrace.policy.counters import Histogram, UpstreamCounters, copied


@dataclass(frozen=True, slots=True)
class UpstreamReading:
    """One upstream at this moment.

    Attributes:
        counters: The live totals; those of a copy stand still.
        hit_rate: Share of checkouts served by an idle connection, 0..1, or None without any.
        max_connections: The limit in force; count.
        target_size: What the pool may have now: `max_connections`, or what `adaptive` makes of it; count.
        circuit: None when the upstream has no circuit.
        budget_tokens: Retries that could be paid for now, or None without a budget.
        suspect: Heartbeats were missed.
    """

    name: str
    counters: UpstreamCounters
    inuse: int
    idle: int
    waiting: int
    hit_rate: float | None
    max_connections: int
    target_size: int
    circuit: CircuitView | None
    budget_tokens: float | None
    suspect: bool = False

    def copy(self) -> UpstreamReading:
        """The same, its totals as they stand together now: the caller's own. Takes their lock, only to copy."""
        return replace(self, counters=self.counters.copy())


@dataclass(frozen=True, slots=True)
class ServiceReading:
    """The instance itself at this moment.

    Attributes:
        reloads: Reloads by result (applied, rejected, …).
        digest: Hex digest in force, or "" before the first.
        last_success_timestamp_s: Unix time of the last configuration taken into force; 0 before the first.
        ungoverned: Calls passed through by reason.
        inbound_deadlines: Deadlines of inbound requests that were not simply taken, by result.
        served: Inbound requests by status class.
        served_duration: How long those took.
    """

    reloads: Mapping[str, int]
    digest: str
    last_success_timestamp_s: float
    ungoverned: Mapping[str, int]
    served: Mapping[str, int]
    served_duration: Histogram
    inbound_deadlines: Mapping[str, int] = field(default_factory=dict)

    def copy(self) -> ServiceReading:
        """The same, its totals apart from these. The caller sees to it that none of them goes on meanwhile."""
        return ServiceReading(**{one.name: copied(getattr(self, one.name)) for one in fields(self)})


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that can be read of one instance."""

    upstreams: Sequence[UpstreamReading]
    service: ServiceReading
