"""`mode: observe`: the call is made as if headrace were not there; what the rules would have done is counted."""

from __future__ import annotations

import random
import time
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import Any, TypeVar

from headrace.clock import monotonic
from headrace.engine.predicate import is_condemned
from headrace.engine.rehearsal import Foretold, Seen, rehearse
from headrace.engine.retry_after import retry_after_s
from headrace.observe.isolation import stumbled
from headrace.policy.attempt_end import Phase
from headrace.policy.breaker.permit import Refused, Verdict
from headrace.policy.counters import add
from headrace.policy.decision import Divert, EndReason, Refuse, Send
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import UpstreamPlan
from headrace.policy.record import tally
from headrace.policy.request import Request
from headrace.policy.retry import RETRY_AFTER_FROM, RehearsedAllowance, is_keyed
from headrace.policy.served import Served
from headrace.runtime.inbound import inbound_var
from headrace.runtime.upstream import Upstream

T = TypeVar("T")


def observed(
    upstream: Upstream,
    go: Callable[[], T],
    request: Request,
    *,
    status_of: Callable[[T], int],
    facts_of: Callable[[BaseException], tuple[Fault, bool, Phase]],
    read: Callable[[T], object] | None = None,
    nth_try: int = 0,
) -> T:
    """What *go* returns or raises, untouched. Blocks.

    The exchange that enforces the rules elsewhere rehearses them on this call (`engine.rehearsal`).
    What they would have done is counted under `headrace_observed_total{action}`: `refused`, `fallback`,
    `waited`, `rejected`, `timed_out`, `retried` (attempts).

    Args:
        request: What the rules need to know of the call; `replayable` as if headrace made it.
        facts_of: What an exception of *go* says: its fault, whether a limit was hit, how far the call got.
        read: Reads the body where *go* returned at the head; None: *go* has read it, or its caller will.
    """
    rehearsal = _Rehearsal(upstream, request, nth_try)
    outcome = Outcome(started_s=rehearsal.began)
    head_s = None
    try:
        response = go()
        outcome.status = status_of(response)
        outcome.sent = True
        if outcome.status >= RETRY_AFTER_FROM:
            outcome.retry_after_s = _asked_s(upstream.plan, response)
        if read is not None:
            head_s = monotonic() - rehearsal.began
            read(response)
        if not request.streamed:
            outcome.condemned = is_condemned(upstream, response, outcome.status)
        return response
    except BaseException as error:
        outcome.status = outcome.retry_after_s = None
        outcome.fault, outcome.cut, phase = facts_of(error)
        outcome.sent = phase == "sent"
        raise
    finally:
        outcome.duration_s = monotonic() - rehearsal.began
        rehearsal.end(outcome, head_s)


class _Rehearsal:
    """What the rules would do with one call that is made without them. Owned by one thread.

    Attributes:
        began: When the call began, monotonic seconds.
    """

    __slots__ = ("_exchange", "_first", "_held", "_own_timeout", "_streamed", "_trace", "_upstream", "began")

    def __init__(self, upstream: Upstream, request: Request, nth_try: int) -> None:
        plan, learned = upstream.plan, upstream.learned
        circuit, budget = learned.circuit, learned.budget  # here alone: the call keeps what it began with
        inbound = inbound_var.get()
        serving = None if inbound is None or inbound.is_over else inbound  # as in `Call`
        allowance = None
        if serving is not None:
            if serving.rehearsed is None:
                serving.rehearsed = RehearsedAllowance(serving.allowance)
            allowance = serving.rehearsed
        may_wait = _get_running_loop() is None
        request.keyed = is_keyed(plan, request.method, request.headers or ())
        self._upstream, self._streamed = upstream, request.streamed
        self._own_timeout = request.timeouts.asked is not None
        self.began = monotonic()
        self._exchange = exchange = Exchange(
            plan,
            circuit,
            budget,
            request,
            now=self.began,
            rng=random.random,
            may_wait=may_wait,
            served=Served(
                None if serving is None else serving.deadline_at,
                allowance,
                None if inbound is None else inbound.cancellation,
            ),
            nth_try=nth_try,
        )
        tracing = upstream.tracing
        self._trace = None
        if tracing is not None and tracing.has_context():
            host = upstream.endpoint.pool.host
            self._trace = tracing.observed_call(plan.name, circuit, address=host, request=inbound)
        first = exchange.decide(self.began)
        assert isinstance(first, (Send, Divert, Refuse)), "nothing has been tried yet"
        self._first = first
        self._held = None
        if isinstance(first, Send):  # enforced, the call would hold a connection
            self._held = held = _Connection()
            with learned.counters.lock:
                upstream.endpoint.in_flight.add(held)
                _count_full(upstream, may_wait=may_wait and request.timeouts.acquire_s > 0.0)

    def end(self, outcome: Outcome, head_s: float | None) -> None:
        """Rehearse the rest of the call, from *outcome* on, and count it. Never raises: it must not fail the call.

        Args:
            head_s: When the head of its answer came, seconds from its start; None: not known.
        """
        counters, exchange = self._upstream.learned.counters, self._exchange
        if self._held is not None:
            with counters.lock:
                self._upstream.endpoint.in_flight.discard(self._held)
        try:
            seen = Seen(outcome, head_s, self._streamed, exchange.is_retried(outcome.status))
            foretold = rehearse(exchange, self._first, seen)
            with counters.lock:
                _count(self._upstream, foretold)
            made = _RealCall(outcome, exchange)
            exemplar = None
            if self._trace is not None:
                self._trace.end(made, label=None)  # type: ignore[arg-type]  # `_RealCall` has what it asks for
                exemplar = self._trace.exemplar(outcome.duration_s)
            made.refused = None  # nothing was refused: it only would have been
            tally(
                counters,
                made,
                label=None,
                duration_s=outcome.duration_s,
                exemplar=exemplar,
                own_timeout=self._own_timeout,
            )
        except Exception as error:
            stumbled("rehearse an observed call", error)


def _asked_s(plan: UpstreamPlan, answer: Any) -> float | None:
    """How long *answer*, of either library, asks to wait, seconds; None also for a mock's answer without headers."""
    try:
        return retry_after_s(answer.headers, plan.retry.retry_after.headers, wall_clock=time.time)
    except Exception as error:
        stumbled("read what an observed answer asks to wait", error)
        return None


class _Connection:
    """Stands for the connection that a call under way would hold."""

    __slots__ = ("__weakref__",)


class _RealCall:
    """The call as it was made: one attempt, and the verdict of the rules on it."""

    __slots__ = ("deadline_at", "denied", "outcomes", "refused", "verdicts")

    def __init__(self, outcome: Outcome, exchange: Exchange) -> None:
        self.outcomes = [outcome]
        self.verdicts = exchange.verdicts[:1] or [Verdict.IGNORED]  # refused: unknown to the circuit
        self.deadline_at: float | None = None  # it bounded nothing
        self.denied: EndReason | None = exchange.denied
        self.refused: Refused | None = exchange.refused


def _count_full(upstream: Upstream, *, may_wait: bool) -> None:
    """Count a call that finds the pool full, as `LeasePool.acquire` would. The caller holds the counters' lock."""
    pool = upstream.plan.pool
    waiting = len(upstream.endpoint.in_flight) - pool.max_connections
    if waiting > 0 and pool.when_full != "new":
        waits = may_wait and pool.when_full == "wait" and waiting <= pool.max_waiting
        add(upstream.learned.counters.observed, "waited" if waits else "rejected")


def _count(upstream: Upstream, foretold: Foretold) -> None:
    """Count what enforcing would have done. The caller holds the counters' lock."""
    observed = upstream.learned.counters.observed
    if foretold.retries:
        add(observed, "retried", foretold.retries)
    if foretold.timed_out:
        add(observed, "timed_out")
    if foretold.refused:
        add(observed, "refused")
    if foretold.diverted:
        add(observed, "fallback")
