"""An exchange that takes over a first attempt goes on as one that decided it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeGuard

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from headrace.policy.breaker.circuit import Circuit, CircuitState
from headrace.policy.breaker.permit import Permit, Refused, Verdict
from headrace.policy.counters import UpstreamCounters
from headrace.policy.decision import Decision, Divert, EndReason, Finish, Refuse, Resend, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.gate import deadline_of, next_send, settle
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import (
    BackoffPlan,
    BudgetPlan,
    CountWindowPlan,
    FallbackPlan,
    SlowCallPlan,
    TimeWindowPlan,
    UpstreamPlan,
)
from headrace.policy.record import Record, tally
from headrace.policy.retry import RetryAllowance, RetryBudget
from headrace.policy.served import Served
from support.plans import BUDGET, HALF_OPEN, TIMEOUTS, circuit_plan, request, retry_plan, upstream_plan
from support.virtual import constant, seeded

T0 = 1000.0


@dataclass(frozen=True)
class Step:
    """What becomes of one attempt, and what other calls do meanwhile.

    Attributes:
        outcome: None: the caller goes away in the middle of it.
        share: Of the attempt's limit, how much it takes.
        others: Verdicts that the circuit hears of other calls before it ends; each of them also tries a retry.
    """

    outcome: Outcome | None
    share: float
    others: tuple[Verdict, ...]


@dataclass(frozen=True)
class Asked:
    """One call as a caller makes it. *steps* are played over from the start where they do not suffice."""

    after_s: float
    steps: tuple[Step, ...]
    method: str
    replayable: bool
    keyed: bool
    may_wait: bool
    is_served: bool
    deadline_in_s: float | None
    leaves_in_s: float | None
    spends_body: bool
    loses_answer: bool
    breaks_body: bool


class Client:
    """Goes away at an instant of the virtual clock."""

    def __init__(self, world: World, leaves_at: float | None) -> None:
        self._world, self._leaves_at = world, leaves_at

    @property
    def is_cancelled(self) -> bool:
        return self._leaves_at is not None and self._world.now >= self._leaves_at


class World:
    """One upstream with all that it learns, on a clock of its own, and all that was decided about calls to it.

    Args:
        is_gated: The first attempt of each call is decided without an exchange, which is made from its outcome.
    """

    def __init__(self, plan: UpstreamPlan, *, is_gated: bool) -> None:
        self.plan, self.is_gated = plan, is_gated
        self.now = T0
        self.circuit = Circuit(plan.circuit_breaker, rng=seeded())
        self.budget = RetryBudget(plan.retry.budget)
        self.counters = UpstreamCounters()
        self.allowance = RetryAllowance([None] * 3)
        self.told: list[Any] = []

    def call(self, asked: Asked) -> None:
        self.now += asked.after_s
        served = None
        if asked.is_served:
            deadline_at = None if asked.deadline_in_s is None else self.now + asked.deadline_in_s
            leaves_at = None if asked.leaves_in_s is None else self.now + asked.leaves_in_s
            served = Served(deadline_at, self.allowance, Client(self, leaves_at))
        steps = iter(asked.steps * 8)
        began = self.now
        asks = request(
            asked.method, timeouts=self.plan.timeouts, replayable=asked.replayable, keyed=asked.keyed
        )

        def made() -> Exchange:
            return Exchange(
                self.plan,
                self.circuit,
                self.budget,
                asks,
                now=began,
                rng=constant(0.5),
                may_wait=asked.may_wait,
                served=served,
            )

        if self.is_gated:
            first = next_send(
                self.plan.timeouts,
                self.circuit,
                began,
                deadline_at=deadline_of(self.plan.timeouts, began, served),
                may_wait=asked.may_wait,
                cancellation=None if served is None else served.cancellation,
                pay=self.budget.deposit,
            )
            step = next(steps)
            outcome = self.attempt(first, step) if isinstance(first, Send) else None
            if isinstance(first, Send) and not asked.breaks_body and is_good(outcome):
                self.settle(first, outcome, deadline_of(self.plan.timeouts, began, served), asked)
                return
            exchange = made()
            decision = exchange.decide(self.now, first=first)
        else:
            exchange = made()
            decision = exchange.decide(began)
            step = next(steps)
            outcome = self.attempt(decision, step) if isinstance(decision, Send) else None
        self.drive(exchange, decision, outcome, steps, asked)
        self.tell(exchange, asked)

    def drive(
        self, exchange: Exchange, decision: Decision, outcome: Outcome | None, steps: Any, asked: Asked
    ) -> None:
        """Go on from the outcome of the first attempt, if there was one."""
        self.told.append(shown(decision))
        while isinstance(decision, Send | Resend | Sleep):
            if isinstance(decision, Sleep):
                if asked.loses_answer:
                    exchange.answer_is_lost()
                self.now += decision.delay_s
            elif outcome is None:
                break
            else:
                if asked.spends_body and outcome.fault is not None:
                    exchange.body_is_spent()
                exchange.record(outcome, self.now)
            decision = exchange.decide(self.now)
            self.told.append((self.now, shown(decision)))
            if isinstance(decision, Send | Resend):
                outcome = self.attempt(decision, next(steps))
        exchange.abandon(self.now)
        if asked.breaks_body and exchange.reason is EndReason.SUCCESS:
            exchange.body_broke(Outcome(fault=Fault.RESET, sent=True, duration_s=1.0), self.now)

    def settle(self, first: Send, outcome: Outcome, deadline_at: float | None, asked: Asked) -> None:
        """End a call that had its answer at once. There is no exchange, and nobody can tell."""
        assert first.permit is not None
        self.told += [shown(first), (self.now, Finish(EndReason.SUCCESS))]
        left_s = None if deadline_at is None else deadline_at - outcome.started_s - outcome.wait_s
        settle(
            self.circuit,
            first.permit,
            self.counters,
            outcome.label,
            self.now,
            duration_s=outcome.duration_s,
            took_s=1.0,
            left_s=left_s,
        )
        event("settled")
        own_s, began = self.plan.timeouts.deadline_s, outcome.started_s
        is_own = deadline_at is None or (own_s is not None and deadline_at == began + own_s)
        self.tell(
            SimpleNamespace(
                reason=EndReason.SUCCESS,
                retry_after_s=None,
                outcomes=[outcome],
                verdicts=[Verdict.SUCCESS],
                denied=None,
                refused=None,
                kept=outcome,
                sent=int(outcome.sent),
                deadline_at=deadline_at,
                deadline_s=own_s if is_own or deadline_at is None else deadline_at - began,
            ),
            asked,
            is_counted=True,
        )

    def attempt(self, send: Send | Resend, step: Step) -> Outcome | None:
        began = self.now
        for verdict in step.others:
            permit = self.circuit.acquire(self.now)
            if isinstance(permit, Permit):
                self.circuit.record(permit, verdict, self.now)
            self.budget.try_withdraw(self.now)
        self.now += step.share * send.timeout_s
        if step.outcome is None:
            return None
        return replace(step.outcome, started_s=began, duration_s=self.now - began)

    def tell(self, exchange: Any, asked: Asked, *, is_counted: bool = False) -> None:
        """Write down all that can be seen of the call, and of what was learned from it."""
        assert exchange.reason is not None
        event(exchange.reason)
        end = exchange.reason if not exchange.outcomes else None
        if not is_counted:
            tally(self.counters, exchange, label=end, duration_s=1.0)
        counters = self.counters.copy()
        record = Record(
            "billing",
            asked.method,
            None,
            exchange.reason,
            exchange.retry_after_s,
            "",
            exchange.outcomes,
            exchange.verdicts,
        )
        self.told.append(
            (
                record.notes(),
                record.attempts,
                exchange.denied,
                exchange.refused,
                exchange.kept,
                exchange.sent,
                (exchange.deadline_at, exchange.deadline_s),
                self.circuit.view(self.now),
                self.circuit.history,
                self.budget.balance(self.now),
                len(self.allowance),
                (counters.requests, counters.attempts, counters.retries),
                (counters.retries_denied, counters.refused, counters.resent),
                (counters.attempts_per_call.counts, counters.attempts_per_call.sum),
                (counters.deadline_left.counts, counters.deadline_left.sum),
                (counters.duration.counts, counters.duration.sum),
            )
        )


def is_good(outcome: Outcome | None) -> TypeGuard[Outcome]:
    """Whether *outcome* is an answer that no rule says anything about."""
    return (
        outcome is not None
        and outcome.status == 200
        and not outcome.condemned
        and outcome.retry_after_s is None
    )


def shown(decision: Decision) -> object:
    """*decision* with the permit, which its equality leaves out."""
    return (decision, decision.permit) if isinstance(decision, Send) else decision


VERDICTS = st.sampled_from([Verdict.SUCCESS, Verdict.FAILURE, Verdict.FAILURE])
OUTCOMES = st.one_of(
    st.builds(
        Outcome,
        status=st.sampled_from([200, 404, 429, 503]),
        sent=st.just(True),
        retry_after_s=st.sampled_from([None, None, 0.5, 40.0]),
        condemned=st.booleans(),
    ),
    st.builds(
        Outcome,
        fault=st.sampled_from([*Fault, Fault.RESET, Fault.TIMEOUT, Fault.CONNECT_FAILURE]),
        sent=st.booleans(),
        cut=st.booleans(),
        reused=st.booleans(),
        answered=st.booleans(),
    ),
    st.just(Outcome(fault=Fault.RESET, sent=True, reused=True)),  # it is sent again at once
    st.just(Outcome(status=503, sent=True)),
)
STEPS = st.builds(
    Step,
    st.integers(0, 9).flatmap(lambda one: OUTCOMES if one else st.none()),
    st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    st.one_of(st.just(()), st.lists(VERDICTS, max_size=4).map(tuple)),
)
CALLS = st.builds(
    Asked,
    after_s=st.sampled_from([0.0, 0.2, 1.0, 6.0]),
    steps=st.lists(STEPS, min_size=1, max_size=4).map(tuple),
    method=st.sampled_from(["GET", "POST"]),
    replayable=st.sampled_from([True, True, True, False]),
    keyed=st.booleans(),
    may_wait=st.sampled_from([True, True, False]),
    is_served=st.booleans(),
    deadline_in_s=st.sampled_from([None, -1.0, 1.0, 20.0]),
    leaves_in_s=st.sampled_from([None] * 6 + [0.0, 1.0]),
    spends_body=st.sampled_from([False] * 5 + [True]),
    loses_answer=st.booleans(),
    breaks_body=st.booleans(),
)
PLANS = st.builds(
    lambda circuit, attempts, budget, deadline_s, acquire_s, base_s, fallback: replace(
        upstream_plan(
            circuit=circuit,
            retry=retry_plan(
                max_attempts=attempts, budget=budget, backoff=BackoffPlan(base_s, 2.0, 1.0, "none", 0.2)
            ),
            timeouts=replace(TIMEOUTS, deadline_s=deadline_s, acquire_s=acquire_s),
        ),
        fallback=fallback,
    ),
    st.builds(
        lambda mode, window, consecutive, slow_s, ramp_s, probes: circuit_plan(
            mode=mode,
            window=window,
            minimum_calls=3,
            consecutive_failures=consecutive,
            slow_call=SlowCallPlan(slow_s, 0.5),
            half_open=replace(HALF_OPEN, max_probes=probes, ramp_s=ramp_s, probe_timeout_s=2.0),
        ),
        st.sampled_from(["enforce", "enforce", "enforce", "observe", "disabled", "forced_open"]),
        st.sampled_from([TimeWindowPlan(10.0), CountWindowPlan(4, None)]),
        st.sampled_from([None, 1, 2]),
        st.sampled_from([None, 1.0]),
        st.sampled_from([None, 10.0]),
        st.integers(1, 3),
    ),
    st.integers(1, 4),
    st.builds(BudgetPlan, st.sampled_from([0.0, 0.2, 1.0]), st.sampled_from([0.0, 0.1, 3.0]), st.just(10.0)),
    st.sampled_from([None, 0.3, 15.0]),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, FallbackPlan(200, (), b"", None), FallbackPlan(0, (), b"", "spare")]),
)


@settings(deadline=None, max_examples=200)  # a loaded machine is not a failure
@given(plan=PLANS, calls=st.lists(CALLS, min_size=1, max_size=8))
def test_an_exchange_made_from_the_outcome_of_the_first_attempt_goes_on_as_if_it_had_decided_it(
    plan: UpstreamPlan, calls: list[Asked]
) -> None:
    """Answers, record, counters, budget, allowance and circuit are the same, whatever other calls do meanwhile."""
    whole, gated = World(plan, is_gated=False), World(plan, is_gated=True)

    for asked in calls:
        whole.call(asked)
        gated.call(asked)

        assert gated.told == whole.told
    assert [gated.budget.balance(gated.now + later_s) for later_s in range(12)] == [
        whole.budget.balance(whole.now + later_s) for later_s in range(12)
    ]


def opened() -> Circuit:
    circuit = Circuit(circuit_plan(), rng=constant(0.5))
    for _ in range(5):
        permit = circuit.acquire(T0)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, T0)
    assert circuit.state is CircuitState.OPEN
    return circuit


def ask(circuit: Circuit, now: float, pay: Callable[[float], object] | None = None) -> object:
    return next_send(TIMEOUTS, circuit, now, deadline_at=None, pay=pay)


def made(circuit: Circuit, plan: UpstreamPlan | None = None) -> Exchange:
    plan = upstream_plan() if plan is None else plan
    budget = RetryBudget(plan.retry.budget)
    return Exchange(plan, circuit, budget, request(), now=T0, rng=constant(0.5))


def test_the_first_attempt_is_decided_and_paid_for_without_an_exchange() -> None:
    circuit, budget = Circuit(circuit_plan(), rng=constant(0.5)), RetryBudget(BUDGET)

    send = ask(circuit, T0, budget.deposit)

    assert send == Send(1, 4.0, 0.5)
    assert isinstance(send, Send)
    assert send.permit is circuit.shared_permit
    assert budget.balance(T0) == pytest.approx(30.2)


@pytest.mark.parametrize(
    ("left_s", "may_wait", "answer"),
    [
        pytest.param(None, True, Send(1, 4.0, 0.5), id="no deadline"),
        pytest.param(5.0, True, Send(1, 4.0, 0.5), id="time enough"),
        pytest.param(4.0, True, Send(1, 4.0, 0.5), id="just enough for the attempt"),
        pytest.param(1.0, True, Send(1, 1.0, 0.5), id="the deadline cuts the attempt"),
        pytest.param(0.5, True, Send(1, 0.5, 0.5), id="just enough for the wait"),
        pytest.param(0.25, True, Send(1, 0.25, 0.25, by_deadline=True), id="the deadline cuts the wait"),
        pytest.param(0.25, False, Send(1, 0.25, 0.0), id="no wait on an event loop"),
        pytest.param(0.0, True, EndReason.DEADLINE, id="over"),
        pytest.param(-1.0, True, EndReason.DEADLINE, id="long over"),
    ],
)
def test_an_attempt_has_the_limits_that_the_deadline_leaves(
    left_s: float | None, may_wait: bool, answer: object
) -> None:
    circuit = Circuit(circuit_plan(), rng=constant(0.5))
    deadline_at = None if left_s is None else T0 + left_s

    found = next_send(TIMEOUTS, circuit, T0, deadline_at=deadline_at, may_wait=may_wait, pay=None)

    assert found == answer


@pytest.mark.parametrize(
    ("own_s", "inbound_at", "at"),
    [
        pytest.param(None, None, None, id="none"),
        pytest.param(15.0, None, T0 + 15.0, id="the call's"),
        pytest.param(None, T0 + 3.0, T0 + 3.0, id="the inbound request's"),
        pytest.param(15.0, T0 + 3.0, T0 + 3.0, id="the inbound request's is earlier"),
        pytest.param(2.0, T0 + 3.0, T0 + 2.0, id="the call's is earlier"),
    ],
)
def test_the_earlier_deadline_holds(own_s: float | None, inbound_at: float | None, at: float | None) -> None:
    timeouts = replace(TIMEOUTS, deadline_s=own_s)

    assert deadline_of(timeouts, T0, Served(inbound_at)) == at


def test_a_refusal_is_taken_over_as_well_so_the_circuit_is_not_asked_twice() -> None:
    """A ramp counts those who ask: the second question would take the place of another call."""
    circuit = opened()
    refused = ask(circuit, T0 + 1.0)
    assert isinstance(refused, Refused)

    plain = made(circuit)
    plan = replace(upstream_plan(), fallback=FallbackPlan(0, (), b"", "spare"))
    diverted = made(circuit, plan)

    assert plain.decide(T0 + 1.0, first=refused) == Refuse(EndReason.CIRCUIT_OPEN, 4.0)
    assert plain.refused is refused
    assert diverted.decide(T0 + 1.0, first=refused) == Divert("spare", Refuse(EndReason.CIRCUIT_OPEN, 4.0))


@pytest.mark.parametrize("why", [EndReason.DEADLINE, EndReason.CANCELLED])
def test_what_forbids_the_first_attempt_ends_the_call(why: EndReason) -> None:
    exchange = made(Circuit(circuit_plan(), rng=constant(0.5)))

    assert exchange.decide(T0, first=why) == Refuse(why, 0.0)
    assert exchange.decide(T0) == Refuse(why, 0.0)


def test_an_interrupt_before_anybody_holds_the_permit_gives_the_place_of_the_probe_back() -> None:
    circuit = opened()

    def interrupted(now: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(circuit, T0 + 5.0, interrupted)

    assert circuit.state is CircuitState.HALF_OPEN
    assert circuit.view(T0 + 5.0).probes_in_flight == 0


def test_a_first_attempt_cannot_be_taken_over_after_another() -> None:
    circuit = Circuit(circuit_plan(), rng=constant(0.5))
    exchange = made(circuit)
    exchange.decide(T0)
    exchange.record(Outcome(fault=Fault.RESET, sent=True), T0)
    assert isinstance(exchange.decide(T0), Sleep)

    with pytest.raises(RuntimeError, match="there was one before"):
        exchange.decide(T0, first=Send(1, 4.0, 0.5, permit=circuit.shared_permit))


def test_a_success_that_is_taken_over_ends_the_call() -> None:
    circuit = Circuit(circuit_plan(), rng=constant(0.5))
    send = ask(circuit, T0)
    assert isinstance(send, Send)
    exchange = made(circuit)

    assert exchange.decide(T0 + 0.1, first=send) is send
    exchange.record(Outcome(status=200, sent=True), T0 + 0.1)

    assert exchange.decide(T0 + 0.1) == Finish(EndReason.SUCCESS)
    assert circuit.view(T0 + 0.1).calls == 1
