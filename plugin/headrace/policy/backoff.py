"""How long to pause before a retry: five ways to spread the callers of one upstream over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from headrace.policy.growth import grown_s
from headrace.policy.outcome import Outcome
from headrace.policy.plan import BackoffPlan, Jitter

Rng = Callable[[], float]


def is_throttled(outcome: Outcome) -> bool:
    """Whether the upstream says that it has too much to do: asking again within milliseconds makes that worse.

    A 429 says so (RFC 6585 §4), and so does a 503 that names no time to come back (RFC 9110 §15.6.4). Where a 503
    names a time, that time is waited.
    """
    return outcome.status == 429 or (outcome.status == 503 and outcome.retry_after_s is None)


def backoff_s(
    plan: BackoffPlan, n: int, rng: Rng, *, previous_s: float | None = None, throttled: bool = False
) -> float:
    """Pause before retry *n*, seconds, 0 to `plan.max_s`, or to `plan.throttled_s` where that is more.

    Args:
        n: Which retry; count, >= 1.
        throttled: `is_throttled` holds for the outcome that is retried.
        rng: Uniform numbers in [0, 1).
        previous_s: What this function answered for the retry before this one, or
            None for the first. Only `decorrelated` uses it.

    Source: full, equal and decorrelated are those of "Exponential Backoff And Jitter" (AWS
    Architecture Blog, 2015); additive is the exponential pause plus up to as much again at random.
    """
    if throttled and plan.throttled_s > plan.base_s:
        plan = replace(plan, base_s=plan.throttled_s, max_s=max(plan.max_s, plan.throttled_s))
        if plan.max_s == plan.base_s and plan.jitter in ("additive", "decorrelated"):
            plan = replace(
                plan, jitter="equal"
            )  # without room above the base, these two would send all callers at once
    return _PAUSES[plan.jitter](plan, n, rng, previous_s)


def backoff_range_s(plan: BackoffPlan, n: int, *, throttled: bool = False) -> tuple[float, float]:
    """Shortest and longest pause that `backoff_s` may give before retry *n*, seconds."""
    longest_s = backoff_s(plan, 1, _one, throttled=throttled)
    for later in range(2, n + 1):
        longest_s = backoff_s(plan, later, _one, previous_s=longest_s, throttled=throttled)
    return backoff_s(plan, n, _zero, throttled=throttled), longest_s


def _full(plan: BackoffPlan, n: int, rng: Rng, previous_s: float | None) -> float:
    return rng() * grown_s(plan.base_s, plan.multiplier, plan.max_s, n)


def _equal(plan: BackoffPlan, n: int, rng: Rng, previous_s: float | None) -> float:
    half_s = grown_s(plan.base_s, plan.multiplier, plan.max_s, n) / 2
    return half_s + rng() * half_s


def _additive(plan: BackoffPlan, n: int, rng: Rng, previous_s: float | None) -> float:
    pause_s = grown_s(plan.base_s, plan.multiplier, plan.max_s, n)
    return min(plan.max_s, pause_s + rng() * pause_s)


def _decorrelated(plan: BackoffPlan, n: int, rng: Rng, previous_s: float | None) -> float:
    low_s = plan.base_s
    high_s = 3 * (low_s if previous_s is None else previous_s)
    return min(plan.max_s, low_s + rng() * (high_s - low_s))


def _none(plan: BackoffPlan, n: int, rng: Rng, previous_s: float | None) -> float:
    return grown_s(plan.base_s, plan.multiplier, plan.max_s, n)


_PAUSES: Mapping[Jitter, Callable[[BackoffPlan, int, Rng, float | None], float]] = MappingProxyType(
    {
        "full": _full,
        "equal": _equal,
        "additive": _additive,
        "decorrelated": _decorrelated,
        "none": _none,
    }
)


def _zero() -> float:
    return 0.0


def _one() -> float:
    return 1.0
