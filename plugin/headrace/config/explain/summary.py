"""One line about an upstream: what its rules amount to, as `headrace check` prints it."""

from __future__ import annotations

from typing import assert_never

from headrace.config.load import Inspection
from headrace.config.source.units import format_duration
from headrace.policy.breaker.trip import TRIP_RULES
from headrace.policy.plan import CircuitPlan, UpstreamPlan
from headrace.policy.routes import url_of


def summary(inspection: Inspection, plan: UpstreamPlan) -> str:
    """Name, URL and mode of *plan*, its limits, and when its circuit opens.

    Args:
        inspection: The one that *plan* is from, without problems.
    """
    timeouts, retry = plan.timeouts, plan.retry
    deadline = (
        "no deadline" if timeouts.deadline_s is None else f"deadline {format_duration(timeouts.deadline_s)}"
    )
    attempts = f"{retry.max_attempts} × {format_duration(timeouts.attempt_s)}"
    pool = f"{plan.pool.max_connections} connections"
    limits = f"{deadline}, {attempts}, {pool}, {_trips(plan.circuit_breaker)}"
    return f"{plan.name}  {shown_base_url(inspection, plan)}  {plan.mode}: {limits}"


def shown_base_url(inspection: Inspection, plan: UpstreamPlan) -> str:
    """The `base_url` of *plan*, masked where a secret is in it. *inspection* is the one that *plan* is from."""
    assert inspection.written is not None
    return inspection.written.shown(("upstreams", plan.name, "base_url"), url_of(plan.base))


def _trips(breaker: CircuitPlan) -> str:
    match breaker.mode:
        case "disabled":
            return "breaker disabled"
        case "forced_open":
            return "breaker forced open: every call refused"
        case "observe":
            opens = "would open"
        case "enforce":
            opens = "opens"
        case _:
            assert_never(breaker.mode)
    return opens + "".join(rule.summary(breaker, format_duration) for rule in TRIP_RULES.values())
