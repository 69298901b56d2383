"""Trip rules: when the failures or slow calls of a closed circuit are too many. Arithmetic, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from headrace.policy.breaker.transition import Trigger
from headrace.policy.plan import CircuitPlan


@dataclass(slots=True)
class Tally:
    """What the trip rules may look at."""

    calls: int
    failures: int
    consecutive_failures: int
    slow_calls: int = 0


def failure_rate(tally: Tally, *, minimum_calls: int) -> float | None:
    """Share of failed calls in [0, 1], or None below *minimum_calls* (and without calls).

    Source: resilience4j failureRateThreshold (percent there, rate here).
    """
    if tally.calls < max(1, minimum_calls):
        return None
    return tally.failures / tally.calls


def slow_call_rate(tally: Tally, plan: CircuitPlan) -> float | None:
    """Share of slow calls in [0, 1], or None below `minimum_calls` and where no call counts as slow.

    Source: resilience4j slowCallRateThreshold.
    """
    if plan.slow_call.duration_s is None or tally.calls < max(1, plan.minimum_calls):
        return None
    return tally.slow_calls / tally.calls


def _rate_trips(plan: CircuitPlan, tally: Tally) -> bool:
    rate = failure_rate(tally, minimum_calls=plan.minimum_calls)
    return rate is not None and rate >= plan.failure_rate_threshold


def _slow_trips(plan: CircuitPlan, tally: Tally) -> bool:
    rate = slow_call_rate(tally, plan)
    return rate is not None and rate >= plan.slow_call.rate_threshold


def _consecutive_trips(plan: CircuitPlan, tally: Tally) -> bool:
    """The rule for low traffic: below `minimum_calls` a rate means nothing.

    Where it means something, it is asked alone: a run of any length comes sooner or later at any failure
    rate, and the sooner the more calls there are (Pitfall 87).
    """
    run = plan.consecutive_failures
    return run is not None and tally.consecutive_failures >= run and tally.calls < plan.minimum_calls


TRIP_RULES: Mapping[Trigger, Callable[[CircuitPlan, Tally], bool]] = MappingProxyType(
    {
        Trigger.FAILURE_RATE: _rate_trips,
        Trigger.SLOW_CALL_RATE: _slow_trips,
        Trigger.CONSECUTIVE_FAILURES: _consecutive_trips,
    }
)
"""Asked in this order after a failure or a slow call, never after a fast success (as Polly and gobreaker do).

The first yes names the trip.
"""
