"""Why a circuit changes its state, and the trip rules: what opens a closed one, a row each.

A rule measures what the window holds and compares that with a threshold: arithmetic and the words for it,
nothing else. Everything that tells of a rule asks its row: the table of transitions, the threshold and the sentence of
an opening, the summary of the command line. So a new rule is a Trigger and a row here, and its numbers in
`policy.plan`, `config.settings` and `config.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import assert_never

from headrace.policy.frozen import frozen, slotted
from headrace.policy.plan import CircuitPlan, CountWindowPlan, TimeWindowPlan, WindowPlan


class Trigger(StrEnum):
    """Why the circuit changed its state."""

    FAILURE_RATE = "failure_rate"
    SLOW_CALL_RATE = "slow_call_rate"
    CONSECUTIVE_FAILURES = "consecutive_failures"
    OPEN_FOR_ELAPSED = "open_for elapsed"
    PROBES_SUCCEEDED = "probes succeeded"
    PROBE_FAILED = "probe failed"
    PROBE_EXPIRED = "probe expired"
    PROBES_SLOW = "probes slow"  # they succeeded, but too many were as slow as the calls that open a circuit
    WINDOW_ELAPSED = "half_open window elapsed"  # with a failed or expired probe in it
    DISABLED = "disabled"  # the configuration says that the circuit never opens


@slotted
class Tally:
    """What the trip rules may look at."""

    calls: int
    failures: int
    consecutive_failures: int
    slow_calls: int


def failure_rate(tally: Tally, *, minimum_calls: int) -> float | None:
    """Share of failed calls in [0, 1], or None below *minimum_calls*, which is 1 at least.

    Source: resilience4j failureRateThreshold (percent there, rate here).
    """
    if tally.calls < minimum_calls:
        return None
    return tally.failures / tally.calls


def slow_call_rate(tally: Tally, plan: CircuitPlan) -> float | None:
    """Share of slow calls in [0, 1], or None below `minimum_calls`, and where no call counts as slow.

    Source: resilience4j slowCallRateThreshold.
    """
    if plan.slow_call.duration_s is None or tally.calls < plan.minimum_calls:
        return None
    return tally.slow_calls / tally.calls


def run_of_failures(tally: Tally, plan: CircuitPlan) -> int | None:
    """Failed calls in a row, or None from `minimum_calls` on: this is the measure for low traffic.

    Below `minimum_calls` a rate means nothing. From there on the rate alone decides: at any failure rate a run of any
    length comes sooner or later, and sooner the more calls there are (failures.md 87).
    """
    return tally.consecutive_failures if tally.calls < plan.minimum_calls else None


Format = Callable[[float], str]
"""Seconds as they are written in the file."""


@frozen
class TripRule:
    """One reason for a closed circuit to open: its measure reaches its threshold.

    Attributes:
        measure: The number that the rule looks at; None where it means nothing.
        threshold: What the measure is compared with, and what a trip reports; None: the rule is off.
        why: A trip in words, from the window's tally and the threshold; for an error message.
        summary: When the rule opens the circuit, in words that continue those of the rules before it; "" when it is
            off.
    """

    measure: Callable[[Tally, CircuitPlan], float | None]
    threshold: Callable[[CircuitPlan], float | None]
    why: Callable[[Tally, float | None], str]
    summary: Callable[[CircuitPlan, Format], str]


def _calls(count: int) -> str:
    return "call" if count == 1 else "calls"


def _within(window: WindowPlan, duration: Format) -> str:
    match window:
        case TimeWindowPlan(size_s):
            return f" in {duration(size_s)}"
        case CountWindowPlan(size, max_age_s):
            age = "" if max_age_s is None else f" in {duration(max_age_s)}"
            return f" of the last {size}{age}"
        case _:
            assert_never(window)


TRIP_RULES: Mapping[Trigger, TripRule] = MappingProxyType(
    {
        Trigger.FAILURE_RATE: TripRule(
            measure=lambda tally, plan: failure_rate(tally, minimum_calls=plan.minimum_calls),
            threshold=lambda plan: plan.failure_rate_threshold,
            why=lambda tally, threshold: (
                f"failure rate {tally.failures / tally.calls:.2f} over {tally.calls} calls, threshold {threshold:g}"
            ),
            summary=lambda plan, duration: (
                f" at {plan.failure_rate_threshold:.0%} of {plan.minimum_calls}+ calls{_within(plan.window, duration)}"
            ),
        ),
        Trigger.SLOW_CALL_RATE: TripRule(
            measure=slow_call_rate,
            threshold=lambda plan: plan.slow_call.rate_threshold,
            why=lambda tally, threshold: (
                f"slow-call rate {tally.slow_calls / tally.calls:.2f} over {tally.calls} calls, threshold {threshold:g}"
            ),
            summary=lambda plan, duration: (
                ""
                if plan.slow_call.duration_s is None
                else f" or {plan.slow_call.rate_threshold:.0%} as slow as {duration(plan.slow_call.duration_s)}"
            ),
        ),
        Trigger.CONSECUTIVE_FAILURES: TripRule(
            measure=run_of_failures,
            threshold=lambda plan: plan.consecutive_failures,
            why=lambda tally, _: (
                f"{tally.consecutive_failures} failed {_calls(tally.consecutive_failures)} in a row"
            ),
            summary=lambda plan, _: (
                ""
                if plan.consecutive_failures is None
                else f", with fewer at {plan.consecutive_failures} in a row"
            ),
        ),
    }
)
"""The rules are asked in this order after a failure or a slow call, never after a fast success (as in Polly and
gobreaker).

The first rule that trips names the trip. The summary has the same order.
"""


def tripped_by(tally: Tally, plan: CircuitPlan) -> tuple[Trigger, float] | None:
    """The first rule of *plan* that *tally* trips, with the threshold that it reached; None: it trips none."""
    for trigger, rule in TRIP_RULES.items():
        measured = rule.measure(tally, plan)
        if measured is not None:
            threshold = rule.threshold(plan)
            if threshold is not None and measured >= threshold:
                return trigger, threshold
    return None
