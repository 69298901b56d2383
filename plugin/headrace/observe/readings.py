"""What one instance holds and has counted at a moment: the one source of all that shows it.

`runtime.readings` makes a reading when somebody looks: at a scrape, at a flush of the multiprocess files, at
`status()`. It takes the locks of pool, circuit and budget one by one, each for one view. So the numbers of a pool
belong together, and so do those of a circuit, but a call may end between the two. `families` makes metrics of a
reading, `status` plain data.

A reading refers to live totals, which go on counting. Reading them one by one would show sums that never stood
together: a request that is counted, and its duration that is not. `copy` takes the lock of the totals, copies all of
them, and lets go. Every consumer copies first and computes after it, so no call waits while text or samples are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace

from headrace.policy.breaker.circuit import CircuitView
from headrace.policy.counters import Histogram, UpstreamCounters, copied
from headrace.policy.frozen import frozen


@frozen
class TlsReading:
    """What one upstream's TLS goes by.

    Attributes:
        certificate: First 16 hex digits of the SHA-256 of the client certificate in force; None: there is none.
        not_before_s, not_after_s: From when and until when that holds; epoch seconds.
        since_s: When what the files hold has taken force here; epoch seconds.
        refused: Why what they hold now was not taken; None: it was.
        refused_since_s: Since when that is so; epoch seconds.
    """

    certificate: str | None
    not_before_s: int | None
    not_after_s: int | None
    since_s: float
    refused: str | None
    refused_since_s: float | None


@frozen
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
        tls: None without TLS.
        certificates: By kind (`client`, `ca`), when the first of those in force ends; seconds since 1970.
        secrets: By kind (`header`, `key`, `key_passphrase`), how old the oldest file is; seconds.
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
    tls: TlsReading | None = None
    certificates: Mapping[str, float] = field(default_factory=dict)
    secrets: Mapping[str, float] = field(default_factory=dict)

    def copy(self) -> UpstreamReading:
        """The same, with the totals as they stand together now: the caller's own. Takes their lock, only to copy."""
        return replace(self, counters=self.counters.copy())


@frozen
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
        """The same, with totals of its own. The caller makes sure that none of these goes on meanwhile."""
        return ServiceReading(**{one.name: copied(getattr(self, one.name)) for one in fields(self)})


@frozen
class Reading:
    """Everything that can be read of one instance."""

    upstreams: Sequence[UpstreamReading]
    service: ServiceReading
