"""`mode: observe`: the call is made as if headrace were not there; what the rules would have done is counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from headrace.adapters.predicate import is_condemned
from headrace.clock import monotonic
from headrace.policy.circuit import Verdict
from headrace.policy.counters import add
from headrace.policy.exchange import Exchange, Finish, Refuse
from headrace.policy.outcome import Outcome
from headrace.policy.plan import TimeoutPlan
from headrace.runtime.inbound import inbound_var
from headrace.runtime.record import tally
from headrace.runtime.upstream import Upstream
from headrace.transport.faults import fault_of, phase_of

T = TypeVar("T")


def observed(
    upstream: Upstream,
    go: Callable[[], T],
    *,
    status_of: Callable[[T], int],
    method: str,
    replayable: bool,
    timeouts: TimeoutPlan,
    streamed: bool,
    nth_try: int = 0,
) -> T:
    """What *go* returns or raises, untouched. Blocks.

    Feeds the circuit and the budget as an enforced call would, up to the first
    answer: a retry that would have been made is counted, not made. Counted under
    `headrace_observed_total{action}`: `refused`, `waited`, `rejected`, `timed_out`, `retried`.
    """
    plan, state = upstream.plan, upstream.state
    counters = state.counters
    with counters.lock:
        state.in_flight += 1
        if state.in_flight > plan.pool.max_connections:
            add(counters.observed, "waited" if plan.pool.when_full == "wait" else "rejected")
    began = monotonic()
    exchange = Exchange(
        plan,
        state.circuit,
        state.budget,
        now=began,
        rng=random.random,
        method=method,
        replayable=replayable,
        timeouts=timeouts,
        max_attempts=plan.retry.max_attempts,
        nth_try=nth_try,
    )
    tracing = upstream.tracing
    trace = None
    if tracing is not None and tracing.has_context():
        trace = tracing.observed_call(
            plan.name, state.circuit, address=state.pool.host, request=inbound_var.get()
        )
    refused = isinstance(exchange.decide(began), Refuse)
    outcome = Outcome(started_s=began)
    try:
        response = go()
        outcome.status = status_of(response)
        if not streamed:
            outcome.condemned = is_condemned(upstream, response, outcome.status)
        outcome.sent = True
        return response
    except BaseException as error:
        phase = phase_of(error)
        outcome.fault, outcome.cut = fault_of(error, phase)
        outcome.sent = phase == "sent"
        raise
    finally:
        now = monotonic()
        outcome.duration_s = now - began
        if refused:
            # Made all the same, unknown to the circuit.
            exchange.outcomes.append(outcome)
            exchange.verdicts.append(Verdict.IGNORED)
        else:
            exchange.record(outcome, now)
            if not isinstance(exchange.decide(now), Finish):
                with counters.lock:
                    add(counters.observed, "retried")
        exchange.abandon(now)
        with counters.lock:
            state.in_flight -= 1
            if refused:
                add(counters.observed, "refused")
            if outcome.duration_s > timeouts.attempt_s:
                add(counters.observed, "timed_out")
        exemplar = None
        if trace is not None:
            trace.end(exchange, label=None)
            exemplar = trace.exemplar(outcome.duration_s)
        exchange.refused = None  # nothing was refused: it would have been
        exchange.deadline_at = None  # nor is there any
        tally(counters, exchange, label=None, duration_s=outcome.duration_s, exemplar=exemplar)
