"""A run of calls for each trip rule, which opens a circuit by that rule and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.policy.breaker.circuit import Circuit, Permit, Transition, Trigger, Verdict
from headrace.policy.plan import CircuitPlan
from support.virtual import constant

Calls = Sequence[tuple[Verdict, float]]
"""What came of each call, and how long it took, seconds."""

_GOOD, _BAD, _SLOW = (Verdict.SUCCESS, 0.0), (Verdict.FAILURE, 0.0), (Verdict.SUCCESS, 2.0)

BREAKER = (
    "{minimum_calls: 20, failure_rate_threshold: 0.55, consecutive_failures: 7,"
    " slow_call: {duration: 1s, rate_threshold: 0.45}}"
)
"""`circuit_breaker:` under which the runs open: every rule is on, and no two numbers of the plan are equal."""

RUNS: Mapping[Trigger, Calls] = {
    Trigger.FAILURE_RATE: [_GOOD, _BAD] * 9 + [_BAD] * 2,
    Trigger.SLOW_CALL_RATE: [_GOOD] * 11 + [_SLOW] * 9,
    Trigger.CONSECUTIVE_FAILURES: [_BAD] * 7,
}
"""The calls that reach the threshold of each rule with the last of them."""


def told_by(plan: CircuitPlan, calls: Calls) -> list[Transition]:
    """What a circuit that goes by *plan* tells of *calls*. It must admit all of them."""
    told: list[Transition] = []
    circuit = Circuit(plan, rng=constant(0.5), on_transition=told.append)
    for verdict, duration_s in calls:
        permit = circuit.acquire(1000.0)
        assert isinstance(permit, Permit), f"refused after {told}"
        circuit.record(permit, verdict, 1000.0, duration_s)
    return told
