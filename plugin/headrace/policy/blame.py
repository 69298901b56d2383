"""Whether an outcome is held against the upstream: from the facts of an attempt to a verdict."""

from __future__ import annotations

from headrace.policy.breaker.circuit import Verdict
from headrace.policy.outcome import Outcome
from headrace.policy.plan import CircuitPlan


def blame(outcome: Outcome, plan: CircuitPlan) -> Verdict:
    """What *outcome* says about the upstream, by `failure_on`, `failure_if` and `blame_after`.

    A success is an answer that neither `failure_on` nor `failure_if` names; nothing else is one. An
    attempt without an answer is a failure when `failure_on` names its fault and no timer, ours or
    another's, cut it before `blame_after`.

    Everything else says nothing and is ignored:
    - local trouble: no connection free, cancelled, a request that could not be made;
    - a connection that we shut ourselves;
    - a cut that came because this process had stood still;
    - a certificate that does not fit: no answer, but none of `failure_on`'s words names it;
    - faults that the rules exclude. Counted as successes, they would hold a failing upstream's circuit closed.
    """
    fault = outcome.fault
    if fault is None:
        is_failure = outcome.condemned or outcome.status in plan.failure_on.statuses
        return Verdict.FAILURE if is_failure else Verdict.SUCCESS
    if fault not in plan.failure_on.faults:  # local faults and certificates are in no word of failure_on
        return Verdict.IGNORED
    if outcome.broken_off or outcome.excused or (outcome.cut and outcome.duration_s < plan.blame_after_s):
        return Verdict.IGNORED
    return Verdict.FAILURE
