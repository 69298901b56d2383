"""Transitions of a circuit, sizes of a pool and faults of leases: counted, and logged as events.

Counts go into the upstream's counters, under `UpstreamCounters.lock`. Nothing is logged under a lock, neither that one
nor those of the circuit and the pool. The module owns nothing.
"""

from __future__ import annotations

from typing import Any

from headrace.observe.events import CircuitChanged, LeaseHeld, LeaseLeaked, PoolFault, PoolResized
from headrace.observe.logs import emit
from headrace.policy.breaker.circuit import Refused, Transition
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.sizing import Resize
from headrace.transport.lease.pool import LeaseFault, LeasePool


class CircuitReporter:
    """Counts and logs the transitions of one upstream's circuit. Called without the circuit's lock.

    Attributes:
        is_observed: The upstream's mode is observe. A reload changes it.
    """

    __slots__ = ("_counters", "_name", "is_observed")

    def __init__(self, name: str, counters: UpstreamCounters, *, is_observed: bool) -> None:
        self._name = name
        self._counters = counters
        self.is_observed = is_observed

    def __call__(self, transition: Transition) -> None:
        emit(self.count(transition))

    def count(self, transition: Transition) -> CircuitChanged:
        """Count *transition*, and make the event to be logged of it."""
        with self._counters.lock:
            add(self._counters.transitions, (transition.from_state.value, transition.to_state.value))
        return CircuitChanged(
            upstream=self._name,
            from_state=transition.from_state.value,
            to_state=transition.to_state.value,
            reason=transition.reason,
            failure_rate=transition.failure_rate,
            calls=transition.calls,
            failures=transition.failures,
            consecutive_failures=transition.consecutive_failures,
            threshold=transition.threshold,
            open_for_s=transition.open_for_s,
            is_observed=self.is_observed or transition.is_observed,
            slow_calls=transition.slow_calls,
        )

    def waived(self, _: Refused) -> None:
        """Count a call that an enforced breaker would have refused."""
        with self._counters.lock:
            add(self._counters.observed, "refused")


def report_resize(name: str, resize: Resize) -> None:
    """Log that the pool of upstream *name* has another size."""
    emit(
        PoolResized(
            upstream=name,
            from_size=resize.from_size,
            to_size=resize.to_size,
            reason=resize.reason.value,
            waiting=resize.waiting,
            peak_inuse=resize.peak_inuse,
            rate_rps=resize.rate_rps,
            baseline_rps=resize.baseline_rps,
        )
    )


def report_leases(name: str, leases: LeasePool[Any]) -> None:
    """Log the leases of upstream *name* that were dropped, are held for too long, or raised in the bookkeeping."""
    for report in leases.reports():
        if isinstance(report, LeaseFault):
            emit(PoolFault(upstream=name, error=report.error, raised_at=report.site))
        elif report.held_s is None:
            site = report.site or "unknown; set pool.leak_detection_threshold to see where"
            emit(LeaseLeaked(upstream=name, call_site=site))
        else:
            emit(LeaseHeld(upstream=name, call_site=report.site or "unknown", held_s=report.held_s))
