"""A rehearsed call foretells what enforcing makes of it, if retries end as first attempts do.

Enforced, the blocking driver makes each attempt on a virtual clock, cut by its limits as a transport cuts it;
rehearsed, every call is made once, without limits, and `engine.rehearsal` does the rest. Both begin their calls
at the same instants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.blocking import run
from headrace.engine.rehearsal import Foretold, Seen, rehearse
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import EndReason, Refuse, Send
from headrace.policy.exchange import Exchange, Served
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import BackoffPlan, BudgetPlan, OpenForPlan, SlowCallPlan, UpstreamPlan
from headrace.policy.retry import RehearsedAllowance, RetryAllowance, RetryBudget
from support.plans import HALF_OPEN, TIMEOUTS, circuit_plan, request, retry_plan, upstream_plan
from support.virtual import VirtualClock, constant

T0 = 1000.0


@dataclass(frozen=True)
class Asked:
    """One call, and how each of its attempts goes where nothing cuts it.

    Attributes:
        after_s: From the end of the call before, seconds.
        head_s: To the head of the answer, or to the fault.
        body_s: From there to the end of the body.
        inbound: Which inbound request it is part of, or None.
    """

    what: int | Fault
    after_s: float = 1.0
    head_s: float = 0.1
    body_s: float = 0.0
    retry_after_s: float | None = None
    method: str = "GET"
    replayable: bool = True
    keyed: bool = False
    streamed: bool = False
    inbound: int | None = None
    deadline_in_s: float | None = None


@dataclass
class Told:
    """What became of all calls: each way of counting, and the state of what was learned."""

    per_call: list[tuple[int, bool, bool, EndReason]]
    calls: int
    failures: int
    transitions: list[tuple[float, str, str]]
    tokens: float


class Wire:
    """An enforced attempt: the reply of *asked*, cut as a transport cuts it."""

    def __init__(
        self, asked: Asked, plan: UpstreamPlan, clock: VirtualClock, deadline_at: float | None
    ) -> None:
        self.asked, self.plan, self.clock, self.deadline_at = asked, plan, clock, deadline_at
        self.was_cut = False

    def perform(self, send: Send) -> Outcome:
        asked, began = self.asked, self.clock.now
        retried = asked.what in self.plan.retry.retry_on.statuses
        ends = asked.head_s + (asked.body_s if isinstance(asked.what, int) else 0.0)
        cut_at = None
        if asked.head_s > send.timeout_s or (retried and not asked.streamed and ends > send.timeout_s):
            cut_at = send.timeout_s
        elif not asked.streamed and self.deadline_at is not None and began + ends > self.deadline_at:
            cut_at = self.deadline_at - began
        if cut_at is not None:
            self.was_cut = True
            self.clock.now += cut_at
            never_sent = asked.what is Fault.CONNECT_FAILURE
            fault = Fault.CONNECT_FAILURE if never_sent else Fault.TIMEOUT
            return Outcome(fault, sent=not never_sent, cut=True, started_s=began, duration_s=cut_at)
        outcome = reply(asked, began)
        self.clock.now += outcome.duration_s
        return outcome

    def set_aside(self) -> None:
        """Nothing is held."""


def reply(asked: Asked, began: float) -> Outcome:
    if isinstance(asked.what, Fault):
        sent = asked.what is not Fault.CONNECT_FAILURE
        return Outcome(asked.what, sent=sent, started_s=began, duration_s=asked.head_s)
    took_s = asked.head_s if asked.streamed else asked.head_s + asked.body_s
    return Outcome(
        status=asked.what,
        sent=True,
        started_s=began,
        duration_s=took_s,
        retry_after_s=asked.retry_after_s,
    )


class Side:
    """A circuit, a budget and allowances that learn from one way of making the calls."""

    def __init__(self, plan: UpstreamPlan, *, is_rehearsed: bool) -> None:
        self.plan = plan
        self.circuit = Circuit(plan.circuit_breaker, rng=constant(0.5))
        self.budget = RetryBudget(plan.retry.budget)
        self.is_rehearsed = is_rehearsed
        self.allowances: dict[int, RetryAllowance] = {}

    def exchange(self, asked: Asked, now: float) -> Exchange:
        allowance = None
        if asked.inbound is not None:
            if asked.inbound not in self.allowances:
                real = RetryAllowance([None] * 3)
                self.allowances[asked.inbound] = RehearsedAllowance(real) if self.is_rehearsed else real
            allowance = self.allowances[asked.inbound]
        return Exchange(
            self.plan,
            self.circuit,
            self.budget,
            request(
                asked.method,
                timeouts=self.plan.timeouts,
                replayable=asked.replayable,
                keyed=asked.keyed,
            ),
            now=now,
            rng=constant(0.5),
            served=Served(None if asked.deadline_in_s is None else now + asked.deadline_in_s, allowance),
        )

    def told(self, per_call: list[tuple[int, bool, bool, EndReason]], now: float) -> Told:
        view = self.circuit.view(now)
        transitions = [(one.at_s, one.to_state.value, one.reason.value) for one in self.circuit.history]
        return Told(per_call, view.calls, view.failures, transitions, self.budget.balance(now))


def enforced(plan: UpstreamPlan, history: list[Asked]) -> tuple[Told, list[float], float]:
    clock, side = VirtualClock(T0), Side(plan, is_rehearsed=False)
    per_call, began = [], []
    for asked in history:
        clock.now += asked.after_s
        began.append(clock.now)
        exchange = side.exchange(asked, clock.now)
        wire = Wire(asked, plan, clock, exchange.deadline_at)
        decision = run(
            exchange, wire, clock=clock, sleep=lambda delay_s: setattr(clock, "now", clock.now + delay_s)
        )
        too_late = isinstance(decision, Refuse) and decision.reason is EndReason.DEADLINE
        per_call.append(
            (
                max(0, len(exchange.outcomes) - 1),
                exchange.refused is not None,
                wire.was_cut or too_late,
                decision.reason,
            )
        )
    return side.told(per_call, clock.now), began, clock.now


def rehearsed(plan: UpstreamPlan, history: list[Asked], began: list[float], ended: float) -> Told:
    side = Side(plan, is_rehearsed=True)
    per_call = []
    for asked, now in zip(history, began, strict=True):
        exchange = side.exchange(asked, now)
        first = exchange.decide(now)
        assert isinstance(first, Send | Refuse)
        is_wanted = asked.what in plan.retry.retry_on.statuses
        head_s = asked.head_s if isinstance(asked.what, int) else None
        found = rehearse(exchange, first, Seen(reply(asked, now), head_s, asked.streamed, is_wanted))
        per_call.append((found.retries, found.refused, found.timed_out, found.reason))
    return side.told(per_call, ended)


PLANS = st.builds(
    lambda attempts, base_s, throttled_s, budget, circuit, deadline_s, attempt_s: upstream_plan(
        circuit=circuit,
        retry=retry_plan(
            max_attempts=attempts,
            backoff=BackoffPlan(base_s, 2.0, 1.0, "none", throttled_s),
            budget=budget,
        ),
        timeouts=replace(TIMEOUTS, deadline_s=deadline_s, attempt_s=attempt_s),
    ),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.025, 0.5]),
    st.sampled_from([0.0, 1.0]),
    st.builds(BudgetPlan, st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.1, 3.0]), st.just(10.0)),
    st.builds(
        lambda run, minimum, rate, slow, half_open: circuit_plan(
            consecutive_failures=run,
            minimum_calls=minimum,
            failure_rate_threshold=rate,
            slow_call=slow,
            open_for=OpenForPlan(2.0, 2.0, 8.0, 0.0),
            half_open=half_open,
        ),
        st.sampled_from([None, 1, 2, 5]),
        st.sampled_from([1, 3, 20]),
        st.sampled_from([0.25, 0.5, 1.0]),
        st.sampled_from([SlowCallPlan(None, 1.0), SlowCallPlan(2.0, 0.5)]),
        st.sampled_from([HALF_OPEN, replace(HALF_OPEN, max_probes=1, ramp_s=5.0)]),
    ),
    st.sampled_from([None, 1.0, 15.0]),
    st.sampled_from([0.5, 4.0]),
)
CALLS = st.builds(
    Asked,
    what=st.sampled_from(
        [200, 200, 404, 429, 500, 503, Fault.RESET, Fault.CONNECT_FAILURE, Fault.CERTIFICATE]
    ),
    after_s=st.sampled_from([0.0, 0.01, 1.0, 3.0]),
    head_s=st.sampled_from([0.0, 0.1, 0.7, 3.0, 6.0]),
    body_s=st.sampled_from([0.0, 0.0, 0.6, 20.0]),
    retry_after_s=st.sampled_from([None, None, 0.0, 0.5, 2.0, 60.0]),
    method=st.sampled_from(["GET", "GET", "POST"]),
    replayable=st.sampled_from([True, True, False]),
    keyed=st.booleans(),
    streamed=st.booleans(),
    inbound=st.sampled_from([None, None, 1, 2]),
    deadline_in_s=st.sampled_from([None, None, -1.0, 0.3, 5.0]),
)


@settings(deadline=None, max_examples=400)
@given(PLANS, st.lists(CALLS, min_size=1, max_size=25))
def test_whatever_the_rules_and_the_history_a_rehearsal_foretells_what_enforcing_does(
    plan: UpstreamPlan, history: list[Asked]
) -> None:
    """failures.md 88 and failures.md 85."""
    expected, began, ended = enforced(plan, history)

    found = rehearsed(plan, history, began, ended)

    assert found.per_call == expected.per_call
    assert found.transitions == expected.transitions
    assert (found.calls, found.failures) == (expected.calls, expected.failures)
    assert found.tokens == pytest.approx(expected.tokens)


def test_the_circuit_opens_in_a_rehearsal_where_it_would() -> None:
    """failures.md 88. Two calls of ten fail, round after round: too few to open; a dead upstream is not."""
    plan = upstream_plan()
    partly, _, _ = enforced(plan, history := [*[Asked(500)] * 2, *[Asked(200)] * 8] * 12)
    assert not any(refused for _, refused, _, _ in partly.per_call)
    assert rehearsed(plan, history, enforced(plan, history)[1], 0.0).per_call == partly.per_call

    dead = [Asked(500)] * 20
    told, began, ended = enforced(plan, dead)
    assert sum(refused for _, refused, _, _ in told.per_call) > 10
    assert rehearsed(plan, dead, began, ended).per_call == told.per_call


@pytest.mark.parametrize(
    ("asked", "changes", "expected"),
    [
        pytest.param(Asked(200, head_s=2.0), {"deadline_s": 1.0}, (0, False, True), id="by the deadline"),
        pytest.param(Asked(200, body_s=6.0), {}, (0, False, False), id="a steady download is cut by nothing"),
        pytest.param(Asked(200, body_s=20.0), {}, (0, False, True), id="but by the deadline"),
        pytest.param(Asked(200, body_s=20.0, streamed=True), {}, (0, False, False), id="not when streamed"),
        pytest.param(Asked(200, head_s=5.0), {}, (2, False, True), id="by attempt, before its head"),
        pytest.param(Asked(500, body_s=5.0), {}, (2, False, True), id="by attempt, a bad one to its end"),
    ],
)
def test_what_a_limit_would_have_cut_counts_as_cut(
    asked: Asked, changes: dict[str, Any], expected: tuple[int, bool, bool]
) -> None:
    plan = upstream_plan(timeouts=replace(TIMEOUTS, **changes))
    told, began, ended = enforced(plan, [asked])

    assert told.per_call[0][:3] == expected
    assert rehearsed(plan, [asked], began, ended).per_call == told.per_call


def test_a_rehearsed_retry_takes_nothing_from_the_request_that_it_belongs_to() -> None:
    real = RetryAllowance([None] * 3)
    rehearsed_allowance = RehearsedAllowance(real)

    assert [rehearsed_allowance.take() for _ in range(4)] == [True, True, True, False]
    rehearsed_allowance.put_back()
    assert rehearsed_allowance.take()
    assert len(real) == 3


def test_what_is_foretold_of_a_call_that_is_interrupted_gives_the_permit_back() -> None:
    side = Side(upstream_plan(), is_rehearsed=True)
    exchange = side.exchange(Asked(200), T0)
    first = exchange.decide(T0)
    assert isinstance(first, Send)
    gone = Outcome(Fault.CANCELLED, started_s=T0, duration_s=0.1)

    assert rehearse(exchange, first, Seen(gone, None, False, False)) == Foretold(
        retries=0, refused=False, timed_out=False, reason=EndReason.CANCELLED
    )
    assert side.circuit.view(T0).calls == 0
