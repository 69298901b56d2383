from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.breaker.circuit import Circuit, CircuitState, Permit, Refused, Verdict
from headrace.policy.decision import Decision, EndReason, Finish, Refuse, Send, Sleep
from headrace.policy.exchange import Exchange, Served
from headrace.policy.outcome import Fault, Outcome, condition
from headrace.policy.plan import BackoffPlan, BudgetPlan, SlowCallPlan, UpstreamPlan
from headrace.policy.retry import RetryAllowance, RetryBudget
from support.plans import BUDGET, HALF_OPEN, TIMEOUTS, circuit_plan, request, retry_plan, upstream_plan
from support.virtual import VirtualClock, constant

T0 = 1000.0
OK = Outcome(status=200, sent=True)
UNAVAILABLE = Outcome(status=503, sent=True)
RESET = Outcome(fault=Fault.RESET, sent=True)
FAST_BACKOFF_S = [0.0125, 0.025]  # the middle of the first two back-offs of the default plan


class Bench:
    """An exchange with its circuit and budget, on a virtual clock."""

    def __init__(
        self,
        plan: UpstreamPlan | None = None,
        *,
        circuit: Circuit | None = None,
        rng: float = 0.5,
        method: str = "GET",
        replayable: bool = True,
        keyed: bool = False,
        max_attempts: int | None = None,
        may_wait: bool = True,
        nth_try: int = 0,
        after: Exchange | None = None,
        **served: Any,
    ) -> None:
        self.plan = plan if plan is not None else upstream_plan()
        if max_attempts is not None:
            self.plan = replace(self.plan, retry=replace(self.plan.retry, max_attempts=max_attempts))
        self.clock = VirtualClock(T0)
        self.circuit = circuit or Circuit(self.plan.circuit_breaker, rng=constant(0.5))
        self.budget = RetryBudget(self.plan.retry.budget)
        self.exchange = Exchange(
            self.plan,
            self.circuit,
            self.budget,
            request(method, timeouts=self.plan.timeouts, replayable=replayable, keyed=keyed),
            now=T0,
            rng=constant(rng),
            may_wait=may_wait,
            served=Served(**served) if served else None,
            nth_try=nth_try,
            after=after,
        )

    def decide(self) -> Decision:
        return self.exchange.decide(self.clock.now)

    def after(self, outcome: Outcome, *, takes_s: float = 0.0) -> Decision:
        """The decision that follows a Send that ended in *outcome*."""
        self.exchange.record(outcome, self.clock.advance(takes_s))
        return self.decide()

    def wake(self, sleep: Decision) -> Decision:
        assert isinstance(sleep, Sleep)
        self.clock.sleep(sleep.delay_s)
        return self.decide()


def open_up(circuit: Circuit, now: float = T0) -> None:
    for _ in range(5):
        permit = circuit.acquire(now)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, now)
    assert circuit.state is CircuitState.OPEN


# The first attempt


def test_the_first_decision_is_to_send_with_the_attempt_timeout() -> None:
    assert Bench().decide() == Send(1, 4.0, 0.5)


def test_the_attempt_timeout_is_cut_to_what_is_left_of_the_deadline() -> None:
    bench = Bench()
    bench.clock.advance(13.0)

    assert bench.decide() == Send(1, 2.0, 0.5)


@pytest.mark.parametrize(
    ("left_s", "send"),
    [
        pytest.param(0.75, Send(1, 0.75, 0.5), id="more than the patience for a connection"),
        pytest.param(0.5, Send(1, 0.5, 0.5), id="as much"),
        pytest.param(0.25, Send(1, 0.25, 0.25, by_deadline=True), id="less: the deadline ends the wait"),
    ],
)
def test_near_the_deadline_a_call_is_still_sent_with_what_is_left(left_s: float, send: Send) -> None:
    bench = Bench()
    bench.clock.advance(15.0 - left_s)

    assert bench.decide() == send


def test_without_a_deadline_the_attempt_timeout_is_never_cut() -> None:
    bench = Bench(upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=None)))
    bench.clock.advance(1e6)

    assert bench.decide() == Send(1, 4.0, 0.5)
    assert bench.exchange.deadline_at is None


@pytest.mark.parametrize(
    ("own_s", "left_s", "deadline_s"),
    [
        pytest.param(15.0, 2.0, 2.0, id="the inbound request's is sooner"),
        pytest.param(15.0, 20.0, 15.0, id="the call's own is sooner"),
        pytest.param(None, 2.0, 2.0, id="the call has none"),
        pytest.param(15.0, None, 15.0, id="the inbound request has none"),
        pytest.param(0.1, None, 0.1, id="and is told as it is written, not as 0.10000000000002274"),
        pytest.param(None, None, None, id="neither has one"),
    ],
)
def test_the_deadline_that_is_told_is_the_one_that_holds(
    own_s: float | None, left_s: float | None, deadline_s: float | None
) -> None:
    bench = Bench(
        upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=own_s)),
        deadline_at=None if left_s is None else T0 + left_s,
    )

    assert bench.exchange.deadline_s == deadline_s
    assert bench.exchange.deadline_at == (None if deadline_s is None else T0 + deadline_s)


def test_a_first_attempt_pays_into_the_budget_and_a_retry_does_not() -> None:
    bench = Bench()
    bench.decide()
    assert bench.budget.balance(T0) == pytest.approx(30.2)

    bench.wake(bench.after(UNAVAILABLE))

    assert bench.budget.balance(T0) == pytest.approx(29.2)


def test_a_call_whose_deadline_has_passed_is_refused_without_asking_the_circuit() -> None:
    bench = Bench()
    bench.clock.advance(15.0)

    assert bench.decide() == Refuse(EndReason.DEADLINE, 0.0)
    assert (bench.exchange.outcomes, bench.exchange.refused) == ([], None)


def test_an_open_circuit_refuses_the_call_with_what_is_left() -> None:
    bench = Bench()
    open_up(bench.circuit)
    bench.clock.advance(2.0)

    assert bench.decide() == Refuse(EndReason.CIRCUIT_OPEN, 3.0)
    exchange = bench.exchange
    assert (exchange.reason, exchange.retry_after_s, exchange.denied) == (EndReason.CIRCUIT_OPEN, 3.0, None)
    assert isinstance(exchange.refused, Refused)
    assert bench.budget.balance(T0) == 30.0


# How a call ends


@pytest.mark.parametrize("status", [200, 304, 404, 409, 501])
def test_an_answer_that_no_rule_wants_retried_is_a_success(status: int) -> None:
    bench = Bench()
    bench.decide()

    assert bench.after(Outcome(status=status, sent=True)) == Finish(EndReason.SUCCESS)
    assert bench.exchange.denied is None


@pytest.mark.parametrize(
    ("outcome", "reason", "verdict"),
    [
        pytest.param(Outcome(fault=Fault.CERTIFICATE), EndReason.CERTIFICATE, "ignored", id="certificate"),
        pytest.param(Outcome(fault=Fault.POOL_TIMEOUT), EndReason.POOL_TIMEOUT, "ignored", id="pool timeout"),
        pytest.param(
            Outcome(fault=Fault.POOL_REJECTED), EndReason.POOL_REJECTED, "ignored", id="pool rejected"
        ),
        pytest.param(Outcome(fault=Fault.CANCELLED), EndReason.CANCELLED, "ignored", id="cancelled"),
        pytest.param(Outcome(fault=Fault.LOCAL_ERROR), EndReason.LOCAL_ERROR, "ignored", id="local error"),
        pytest.param(
            Outcome(fault=Fault.RESPONSE_TOO_LARGE, sent=True),
            EndReason.RESPONSE_TOO_LARGE,
            "ignored",
            id="too large",
        ),
    ],
)
def test_own_refusals_and_certificates_end_the_call_at_once(
    outcome: Outcome, reason: EndReason, verdict: str
) -> None:
    """failures.md 17."""
    bench = Bench()
    bench.decide()

    assert bench.after(outcome) == Finish(reason)
    assert bench.exchange.verdicts == [verdict]
    assert bench.exchange.denied is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"method": "POST"}, EndReason.METHOD, id="method"),
        pytest.param({"replayable": False}, EndReason.NOT_REPLAYABLE, id="body"),
        pytest.param({"max_attempts": 1}, EndReason.ATTEMPTS, id="attempts"),
        pytest.param(
            {"method": "POST", "max_attempts": 1}, EndReason.METHOD, id="method is named before attempts"
        ),
    ],
)
def test_what_forbade_a_wanted_attempt_is_named(changes: dict[str, Any], reason: EndReason) -> None:
    bench = Bench(**changes)
    bench.decide()

    assert bench.after(UNAVAILABLE) == Finish(reason)
    assert bench.exchange.denied is reason


def test_a_fault_outside_retry_on_ends_the_call() -> None:
    bench = Bench(upstream_plan(retry=retry_plan(retry_on=condition(["5xx"]))))
    bench.decide()

    assert bench.after(RESET) == Finish(EndReason.NOT_RETRIABLE)
    assert bench.exchange.denied is None


def test_failures_are_retried_after_a_pause_until_the_attempts_run_out() -> None:
    bench = Bench()
    bench.decide()

    first = bench.after(UNAVAILABLE, takes_s=0.1)
    assert first == Sleep(FAST_BACKOFF_S[0])
    assert bench.wake(first) == Send(2, 4.0, 0.5)
    second = bench.after(RESET, takes_s=0.1)
    assert second == Sleep(FAST_BACKOFF_S[1])
    assert bench.wake(second) == Send(3, 4.0, 0.5)
    assert bench.after(UNAVAILABLE) == Finish(EndReason.ATTEMPTS)

    assert bench.exchange.outcomes == [UNAVAILABLE, RESET, UNAVAILABLE]
    assert bench.exchange.verdicts == ["failure"] * 3


def test_a_retry_that_succeeds_ends_the_call_with_nothing_denied() -> None:
    bench = Bench()
    bench.decide()
    bench.wake(bench.after(RESET))

    assert bench.after(OK) == Finish(EndReason.SUCCESS)
    assert (bench.exchange.reason, bench.exchange.denied) == (EndReason.SUCCESS, None)


def test_a_pause_of_nothing_is_not_slept() -> None:
    bench = Bench(rng=0.0)
    bench.decide()

    assert bench.after(RESET) == Sleep(0.0)  # the answer is set aside all the same
    assert bench.decide() == Send(2, 4.0, 0.5)


def test_a_refusal_is_the_same_when_it_is_asked_for_again() -> None:
    bench = Bench()
    open_up(bench.circuit)
    refusal = bench.decide()
    bench.clock.advance(60.0)  # a probe would be let through by now

    assert bench.decide() is refusal


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        pytest.param(RESET, EndReason.NOT_REPLAYABLE, id="its body is used up"),
        pytest.param(Outcome(Fault.CONNECT_FAILURE), EndReason.DELEGATED, id="nothing was sent"),
    ],
)
def test_a_caller_that_retries_by_itself_is_stopped_only_by_a_body_that_was_sent(
    outcome: Outcome, reason: EndReason
) -> None:
    bench = Bench(nth_try=1, replayable=False)
    bench.decide()

    assert bench.after(outcome) == Finish(reason)


def test_the_decision_after_the_end_is_the_same_again() -> None:
    bench = Bench()
    bench.decide()
    finish = bench.after(OK)

    assert bench.decide() is finish


# Circumstances


def hang(bench: Bench) -> Decision:
    return bench.after(Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=4.0), takes_s=4.0)


def test_a_failure_that_opened_the_circuit_ends_the_call_without_sleeping_towards_a_shut_door() -> None:
    """failures.md 17."""
    bench = Bench(upstream_plan(circuit=circuit_plan(consecutive_failures=1)))
    bench.decide()

    assert hang(bench) == Finish(EndReason.CIRCUIT_OPENED)
    assert bench.exchange.denied is EndReason.CIRCUIT_OPENED
    assert bench.budget.balance(bench.clock.now) == pytest.approx(30.2)


def test_a_circuit_that_opened_and_recovered_during_the_pause_lets_the_call_go_on_as_a_probe() -> None:
    bench = Bench()
    bench.decide()
    sleep = bench.after(UNAVAILABLE)
    open_up(bench.circuit, T0 - 5.0)

    assert bench.wake(sleep) == Send(2, 4.0, 0.5)
    assert bench.circuit.view(bench.clock.now).probes_in_flight == 1
    bench.after(OK)
    assert bench.circuit.view(bench.clock.now).verdicts == 1


def test_a_circuit_that_opened_during_the_pause_ends_the_call_with_the_answer_it_has() -> None:
    bench = Bench()
    bench.decide()
    sleep = bench.after(UNAVAILABLE)
    open_up(bench.circuit)

    assert bench.wake(sleep) == Finish(EndReason.CIRCUIT_OPEN)
    exchange = bench.exchange
    assert exchange.denied is EndReason.CIRCUIT_OPEN
    assert exchange.retry_after_s == pytest.approx(5.0 - FAST_BACKOFF_S[0])
    assert exchange.refused is not None


# What the circuit is told


def counted(bench: Bench) -> tuple[int, int, int]:
    view = bench.circuit.view(bench.clock.now)
    return view.calls, view.failures, view.consecutive_failures


def test_a_call_counts_once_for_the_circuit_however_many_attempts_it_makes() -> None:
    """failures.md 87."""
    circuit = Circuit(circuit_plan(consecutive_failures=2), rng=constant(0.5))
    for failed in (1, 2):
        bench = Bench(circuit=circuit)
        decision = bench.decide()
        while not isinstance(decision, Finish):
            decision = bench.after(UNAVAILABLE) if isinstance(decision, Send) else bench.wake(decision)
            if not isinstance(decision, Finish):
                assert counted(bench) == (failed - 1, failed - 1, failed - 1)
        assert decision.reason is EndReason.ATTEMPTS
        assert counted(bench)[:2] == (failed, failed)

    assert circuit.state is CircuitState.OPEN


def test_a_call_that_a_retry_saved_is_a_success_and_ends_the_run() -> None:
    """failures.md 87."""
    bench = Bench()
    bench.circuit.record(Permit(0), Verdict.FAILURE, T0)
    bench.decide()
    bench.wake(bench.after(UNAVAILABLE))
    bench.after(OK)

    assert bench.exchange.verdicts == ["failure", "success"]
    assert counted(bench) == (2, 1, 0)


def test_a_run_is_asked_only_while_the_window_holds_fewer_calls_than_a_rate_needs() -> None:
    """failures.md 87."""
    circuit = Circuit(circuit_plan(), rng=constant(0.5))
    for verdict in [Verdict.SUCCESS] * 15 + [Verdict.FAILURE] * 14:
        circuit.record(Permit(0), verdict, T0)
    assert circuit.state is CircuitState.CLOSED  # 14 in a row among 29
    circuit.record(Permit(0), Verdict.FAILURE, T0)
    assert [one.reason.value for one in circuit.history] == ["failure_rate"]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        pytest.param([Outcome(fault=Fault.POOL_TIMEOUT)], (1, 1, 1), id="no connection for the retry"),
        pytest.param([Outcome(status=429, sent=True), OK], (1, 0, 0), id="asked to slow down, then answered"),
        pytest.param([Outcome(status=429, sent=True), RESET], (1, 1, 1), id="asked to slow down, then reset"),
    ],
)
def test_a_call_is_judged_by_the_last_of_its_attempts_that_says_anything(
    then: list[Outcome], expected: tuple[int, int, int]
) -> None:
    bench = Bench()
    decision = bench.decide()
    for outcome in [UNAVAILABLE, *then]:
        if isinstance(decision, Sleep):
            decision = bench.wake(decision)
        assert isinstance(decision, Send)
        decision = bench.after(outcome)

    assert isinstance(decision, Finish)
    assert counted(bench) == expected


def test_an_attempt_that_hangs_is_known_before_its_call_has_ended_and_a_later_success_corrects_it() -> None:
    bench = Bench()
    bench.decide()
    sleep = hang(bench)
    assert counted(bench) == (1, 1, 1)

    bench.wake(sleep)
    bench.after(OK)

    assert counted(bench) == (1, 0, 0)


def test_an_attempt_that_hangs_twice_counts_once() -> None:
    bench = Bench()
    bench.decide()
    for _ in range(2):
        bench.wake(hang(bench))
    hang(bench)

    assert bench.exchange.reason is EndReason.ATTEMPTS
    assert counted(bench) == (1, 1, 1)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(UNAVAILABLE, (0, 0, 0), id="an answer"),
        pytest.param(RESET, (0, 0, 0), id="none"),
        pytest.param(Outcome(status=429, sent=True), (0, 0, 0), id="asked to slow down"),
        pytest.param(Outcome(status=429, sent=True, duration_s=4.0), (0, 0, 0), id="asked so after a while"),
        pytest.param(replace(RESET, duration_s=1.0), (0, 0, 0), id="after a second"),
        pytest.param(replace(RESET, duration_s=1.25), (1, 1, 1), id="after more than that"),
        pytest.param(replace(UNAVAILABLE, retry_after_s=2.0), (1, 1, 1), id="and the next one will be late"),
    ],
)
def test_what_another_attempt_may_mend_is_not_told_yet_unless_it_took_long(
    outcome: Outcome, expected: tuple[int, int, int]
) -> None:
    bench = Bench()
    bench.decide()

    assert isinstance(bench.after(outcome), Sleep)
    assert counted(bench) == expected


def test_a_try_that_hangs_is_known_although_its_caller_retries_by_itself() -> None:
    bench = Bench(nth_try=1)
    bench.decide()

    assert hang(bench) == Finish(EndReason.DELEGATED)
    assert counted(bench) == (1, 1, 1)


def test_a_call_is_as_slow_as_its_longest_attempt() -> None:
    bench = Bench(upstream_plan(circuit=circuit_plan(slow_call=SlowCallPlan(1.0, 0.5))))
    bench.decide()
    for duration_s in (0.1, 1.0):
        bench.wake(bench.after(replace(UNAVAILABLE, duration_s=duration_s)))
    bench.after(replace(OK, duration_s=0.1))

    assert bench.circuit.view(T0).slow_calls == 1


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([UNAVAILABLE], (1, 1, 1), id="after a failure"),
        pytest.param([RESET, Outcome(status=429, sent=True)], (1, 0, 0), id="after an answer"),
        pytest.param(
            [None, Outcome(status=429, sent=True)], (1, 0, 0), id="after an answer that mends a hang"
        ),
    ],
)
def test_a_call_whose_caller_leaves_during_a_pause_is_judged_by_what_is_known(
    outcomes: list[Outcome | None], expected: tuple[int, int, int]
) -> None:
    bench = Bench()
    decision = bench.decide()
    for outcome in outcomes:
        if isinstance(decision, Sleep):
            bench.wake(decision)
        decision = hang(bench) if outcome is None else bench.after(outcome)
    assert isinstance(decision, Sleep)

    bench.exchange.abandon(bench.clock.now)

    assert counted(bench) == expected


def test_an_outcome_that_comes_after_the_caller_has_left_is_none() -> None:
    bench = Bench()
    bench.decide()
    bench.exchange.abandon(T0)

    with pytest.raises(RuntimeError, match="without an attempt that is out"):
        bench.exchange.record(OK, T0)
    assert counted(bench) == (0, 0, 0)


def test_a_probe_that_was_judged_early_asks_for_another_place_for_its_retry() -> None:
    half_open = replace(HALF_OPEN, success_rate_threshold=0.3)
    bench = Bench(upstream_plan(circuit=circuit_plan(half_open=half_open)))
    open_up(bench.circuit, T0 - 5)
    bench.decide()
    bench.wake(hang(bench))

    view = bench.circuit.view(bench.clock.now)
    assert (view.state, view.verdicts, view.probes_in_flight) == (CircuitState.HALF_OPEN, 1, 1)


def test_of_a_call_that_was_saved_by_its_retry_the_last_attempt_breaks_off() -> None:
    bench = Bench()
    bench.decide()
    bench.wake(bench.after(Outcome(status=429, sent=True)))
    bench.after(OK)

    bench.exchange.body_broke(RESET, bench.clock.now)

    assert bench.exchange.verdicts == [Verdict.SUCCESS, Verdict.FAILURE]


def test_the_body_of_a_probe_that_breaks_off_turns_nothing() -> None:
    """A half-open phase counts verdicts and keeps no places: the next probe will tell."""
    bench = Bench()
    open_up(bench.circuit, T0 - 5)
    bench.decide()
    bench.after(OK)

    bench.exchange.body_broke(RESET, bench.clock.now)

    assert bench.exchange.verdicts == [Verdict.SUCCESS]
    assert bench.circuit.view(T0).verdicts == 1


def test_a_try_that_another_has_taken_over_from_tells_nothing_any_more() -> None:
    first = Bench(nth_try=1)
    first.decide()
    first.after(Outcome(status=404, sent=True))
    second = Bench(circuit=first.circuit, nth_try=2, after=first.exchange)
    second.decide()

    first.exchange.body_broke(RESET, T0)
    assert counted(first) == (1, 0, 0)

    Bench(circuit=first.circuit, nth_try=3, after=second.exchange)
    with pytest.raises(RuntimeError, match="without an attempt that is out"):
        second.exchange.record(OK, T0)


def test_a_body_that_breaks_off_as_it_is_read_makes_a_failure_of_its_success_once() -> None:
    bench = Bench()
    bench.decide()
    bench.after(OK)
    assert counted(bench) == (1, 0, 0)

    for _ in range(2):
        bench.exchange.body_broke(RESET, bench.clock.now)

    assert counted(bench) == (1, 1, 1)
    assert bench.exchange.verdicts == [Verdict.FAILURE]


@pytest.mark.parametrize(
    ("answer", "broken", "verdict"),
    [
        pytest.param(
            OK, Outcome(fault=Fault.CANCELLED, sent=True), Verdict.SUCCESS, id="the reader went away"
        ),
        pytest.param(Outcome(status=500, sent=True), RESET, Verdict.FAILURE, id="it was a failure already"),
    ],
)
def test_a_body_that_breaks_off_changes_nothing_where_it_says_nothing_new(
    answer: Outcome, broken: Outcome, verdict: Verdict
) -> None:
    bench = Bench(max_attempts=1)
    bench.decide()
    bench.after(answer)
    before = counted(bench)

    bench.exchange.body_broke(broken, bench.clock.now)

    assert (counted(bench), bench.exchange.verdicts) == (before, [verdict])


def test_a_correction_that_comes_after_the_window_has_forgotten_is_a_call_of_its_own() -> None:
    bench = Bench(upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=None)))
    bench.decide()
    bench.wake(hang(bench))
    bench.clock.advance(20.0)  # the window reaches back 10 s
    bench.after(OK)

    assert counted(bench) == (1, 0, 0)


def test_a_call_keeps_its_probe_over_its_retries_and_is_one_verdict() -> None:
    bench = Bench()
    open_up(bench.circuit, T0 - 5)
    bench.decide()
    sleep = bench.after(UNAVAILABLE)
    assert isinstance(sleep, Sleep)
    view = bench.circuit.view(bench.clock.now)
    assert (view.state, view.probes_in_flight, view.verdicts) == (CircuitState.HALF_OPEN, 1, 0)

    bench.wake(sleep)
    bench.after(OK)

    view = bench.circuit.view(bench.clock.now)
    assert (view.state, view.probes_in_flight, view.verdicts) == (CircuitState.HALF_OPEN, 0, 1)


def test_a_probe_that_hangs_is_a_verdict_at_its_first_attempt() -> None:
    bench = Bench()
    open_up(bench.circuit, T0 - 5)
    bench.decide()

    assert hang(bench) == Finish(EndReason.CIRCUIT_OPENED)
    assert bench.circuit.state is CircuitState.OPEN


def test_the_tries_of_a_caller_that_retries_itself_are_one_call() -> None:
    """failures.md 87."""
    first = Bench(nth_try=1)
    first.decide()
    assert first.after(UNAVAILABLE) == Finish(EndReason.DELEGATED)
    first.exchange.abandon(T0)
    assert counted(first) == (0, 0, 0)

    second = Bench(circuit=first.circuit, nth_try=2, after=first.exchange)
    second.decide()
    second.after(UNAVAILABLE)
    second.exchange.abandon(T0)
    assert counted(second) == (0, 0, 0)

    second.exchange.settle(T0)
    first.exchange.settle(T0)
    assert counted(second) == (1, 1, 1)


def test_a_further_try_that_fails_after_an_answer_that_no_rule_of_ours_names_is_what_counts() -> None:
    first = Bench(nth_try=1)
    first.decide()
    first.after(Outcome(status=404, sent=True))
    assert counted(first) == (1, 0, 0)

    second = Bench(circuit=first.circuit, nth_try=2, after=first.exchange)
    second.decide()
    second.after(UNAVAILABLE)
    second.exchange.settle(T0)
    assert counted(second) == (1, 1, 1)


# What the upstream asks for, and what there is


def test_retry_after_is_waited_where_it_is_longer_than_the_pause() -> None:
    bench = Bench()
    bench.decide()

    assert bench.after(replace(UNAVAILABLE, retry_after_s=2.0)) == Sleep(2.0)
    assert bench.exchange.retry_after_s == 2.0


def test_retry_after_zero_does_not_remove_the_pause_and_its_jitter() -> None:
    """failures.md 11."""
    bench = Bench()
    bench.decide()

    assert bench.after(replace(UNAVAILABLE, retry_after_s=0.0)) == Sleep(FAST_BACKOFF_S[0])


def test_a_decorrelated_pause_grows_from_our_own_pause_before_not_from_retry_after() -> None:
    backoff = BackoffPlan(base_s=0.1, multiplier=2.0, max_s=10.0, jitter="decorrelated")
    bench = Bench(upstream_plan(retry=retry_plan(max_attempts=4, backoff=backoff)))
    bench.decide()
    first = bench.after(UNAVAILABLE)
    bench.wake(first)
    asked = bench.after(replace(UNAVAILABLE, retry_after_s=5.0))
    bench.wake(asked)
    third = bench.after(UNAVAILABLE)

    assert [first, asked] == [Sleep(pytest.approx(0.2)), Sleep(5.0)]
    assert third == Sleep(pytest.approx(0.575))  # between base and 3 × 0.35, which it would have been


def test_a_retry_after_of_hours_ends_the_call_at_once_and_is_on_record() -> None:
    """failures.md 11."""
    bench = Bench(upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=None)))
    bench.decide()

    assert bench.after(replace(UNAVAILABLE, retry_after_s=7200.0)) == Finish(EndReason.RETRY_AFTER)
    assert (bench.exchange.retry_after_s, bench.exchange.denied) == (7200.0, EndReason.RETRY_AFTER)


def test_a_retry_after_as_long_as_the_file_allows_is_waited() -> None:
    bench = Bench(upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=None)))
    bench.decide()

    assert bench.after(replace(UNAVAILABLE, retry_after_s=30.0)) == Sleep(30.0)


def test_a_retry_after_past_the_deadline_is_not_slept() -> None:
    """failures.md 11."""
    bench = Bench()
    bench.decide()

    assert bench.after(replace(UNAVAILABLE, retry_after_s=14.0), takes_s=1.0) == Finish(EndReason.DEADLINE)
    assert (bench.exchange.retry_after_s, bench.exchange.denied) == (14.0, EndReason.DEADLINE)


def test_a_pause_that_does_not_fit_the_deadline_is_not_slept() -> None:
    bench = Bench()
    bench.decide()

    assert bench.after(UNAVAILABLE, takes_s=14.99) == Finish(EndReason.DEADLINE)
    assert bench.budget.balance(T0) == pytest.approx(30.2)


def test_a_pause_that_took_longer_than_asked_does_not_send_past_the_deadline() -> None:
    bench = Bench()
    bench.decide()
    bench.after(UNAVAILABLE)
    bench.clock.advance(20.0)

    assert bench.decide() == Finish(EndReason.DEADLINE)
    assert bench.exchange.denied is EndReason.DEADLINE
    assert counted(bench) == (1, 1, 1)  # at once, not when the caller is done with the answer


def test_a_spent_budget_denies_the_retry() -> None:
    spent = BudgetPlan(ratio=0.2, min_per_second=0.0, ttl_s=10.0)
    bench = Bench(upstream_plan(retry=retry_plan(budget=spent)))
    bench.decide()

    assert bench.after(UNAVAILABLE) == Finish(EndReason.BUDGET)
    assert bench.exchange.denied is EndReason.BUDGET


# Permits


def test_an_abandoned_probe_gives_its_place_back() -> None:
    """failures.md 3."""
    bench = Bench()
    open_up(bench.circuit, T0 - 5)
    bench.decide()
    assert bench.circuit.view(T0).probes_in_flight == 1

    bench.exchange.abandon(T0)
    bench.exchange.abandon(T0)

    view = bench.circuit.view(T0)
    assert (view.state, view.probes_in_flight, view.verdicts) == (CircuitState.HALF_OPEN, 0, 0)
    assert bench.exchange.reason is EndReason.CANCELLED


def test_abandoning_a_finished_call_changes_nothing() -> None:
    bench = Bench()
    bench.decide()
    bench.after(OK)
    before = bench.circuit.view(T0)

    bench.exchange.abandon(T0)

    assert bench.circuit.view(T0) == before
    assert bench.exchange.reason is EndReason.SUCCESS


def test_a_driver_that_asks_or_tells_out_of_turn_is_told_so() -> None:
    bench = Bench()
    with pytest.raises(RuntimeError, match="without an attempt that is out"):
        bench.exchange.record(OK, T0)
    bench.decide()
    with pytest.raises(RuntimeError, match="record its outcome first"):
        bench.decide()


@pytest.mark.parametrize(
    ("ends", "kept"),
    [
        pytest.param([OK], 200, id="an answer"),
        pytest.param([RESET], None, id="a fault"),
        pytest.param([UNAVAILABLE, RESET], None, id="a fault after an answer"),
        pytest.param(
            [UNAVAILABLE, Outcome(fault=Fault.POOL_TIMEOUT)], 503, id="no connection after an answer"
        ),
        pytest.param([RESET, Outcome(fault=Fault.POOL_TIMEOUT)], None, id="no connection after a fault"),
        pytest.param([UNAVAILABLE, Outcome(fault=Fault.CANCELLED)], None, id="nobody waits for it"),
        pytest.param([Outcome(fault=Fault.POOL_REJECTED)], None, id="no connection at all"),
    ],
)
def test_which_answer_is_kept_is_known_to_the_exchange(ends: list[Outcome], kept: int | None) -> None:
    bench = Bench()
    decision = bench.decide()
    for outcome in ends:
        decision = bench.wake(decision) if isinstance(decision, Sleep) else decision
        decision = bench.after(replace(outcome))

    found = bench.exchange.kept
    assert (None if found is None else found.status) == kept


def test_an_answer_that_was_set_aside_and_lost_is_not_kept() -> None:
    bench = Bench()
    bench.decide()
    sleep = bench.after(replace(UNAVAILABLE))
    assert bench.exchange.kept is not None

    bench.exchange.answer_is_lost()
    bench.wake(sleep)
    bench.after(Outcome(fault=Fault.POOL_TIMEOUT))

    assert bench.exchange.kept is None


def test_an_outcome_that_is_told_twice_is_refused_and_counted_once() -> None:
    bench = Bench()
    bench.decide()
    bench.exchange.record(OK, T0)

    with pytest.raises(RuntimeError, match="without an attempt that is out"):
        bench.exchange.record(OK, T0)

    assert len(bench.exchange.outcomes) == 1
    assert bench.circuit.view(T0).calls == 1


# Properties

OUTCOMES = st.one_of(
    st.builds(
        Outcome,
        status=st.sampled_from([200, 404, 429, 500, 503]),
        sent=st.just(True),
        retry_after_s=st.sampled_from([None, None, 0.0, 0.5, 3.0, 40.0]),
    ),
    st.builds(
        Outcome,
        fault=st.sampled_from(Fault),
        sent=st.booleans(),
        cut=st.booleans(),
        duration_s=st.sampled_from([0.1, 1.0]),
    ),
)


class CountingCircuit(Circuit):
    """Counts the permits it gave and got back. None is shared, so each is asked for."""

    given = 0
    shared_permit = property(lambda self: None, lambda self, permit: None)

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.returned: list[Permit] = []

    def acquire(self, now: float) -> Permit | Refused:
        answer = super().acquire(now)
        self.given += isinstance(answer, Permit)
        return answer

    def record(self, permit: Permit, verdict: Verdict, now: float, duration_s: float = 0.0) -> int | None:
        if not any(
            permit is one for one in self.returned
        ):  # told again: the window has forgotten what it was told
            self.returned.append(permit)
        return super().record(permit, verdict, now, duration_s)


@settings(deadline=None)  # a loaded machine is not a failure
@given(
    script=st.lists(st.tuples(st.floats(0.0, 1.0), OUTCOMES), max_size=8),
    method=st.sampled_from(["GET", "POST"]),
    replayable=st.booleans(),
    max_attempts=st.integers(1, 6),
    deadline_s=st.sampled_from([None, 0.0, 0.05, 2.0, 15.0]),
    consecutive=st.sampled_from([None, 1, 2, 3]),
    reserve=st.sampled_from([0.0, 0.1, 3.0]),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
    overslept_s=st.sampled_from([0.0, 0.001, 4.0]),
)
def test_whatever_the_upstream_does_a_call_keeps_its_bounds(
    script: list[tuple[float, Outcome]],
    method: str,
    replayable: bool,
    max_attempts: int,
    deadline_s: float | None,
    consecutive: int | None,
    reserve: float,
    uniform: float,
    overslept_s: float,
) -> None:
    plan = upstream_plan(
        circuit=circuit_plan(consecutive_failures=consecutive),
        retry=retry_plan(budget=replace(BUDGET, min_per_second=reserve)),
        timeouts=replace(TIMEOUTS, deadline_s=deadline_s),
    )
    circuit = CountingCircuit(plan.circuit_breaker, rng=constant(0.5))
    bench = Bench(
        plan, circuit=circuit, rng=uniform, method=method, replayable=replayable, max_attempts=max_attempts
    )
    clock, exchange = bench.clock, bench.exchange
    left = list(script)
    sends = sleeps = 0

    while True:
        decision = bench.decide()
        left_s = float("inf") if exchange.deadline_at is None else exchange.deadline_at - clock.now
        if isinstance(decision, Finish | Refuse):
            break
        if isinstance(decision, Sleep):
            sleeps += 1
            assert 0.0 <= decision.delay_s <= plan.retry.retry_after.max_s
            assert decision.delay_s < left_s
            clock.sleep(decision.delay_s + overslept_s)
            continue
        sends += 1
        assert decision.attempt == sends
        assert 0.0 < decision.timeout_s <= min(plan.timeouts.attempt_s, left_s)
        if not left:
            break  # the caller goes away in the middle of this attempt
        share, outcome = left.pop(0)
        exchange.record(outcome, clock.advance(share * decision.timeout_s))
    exchange.abandon(clock.now)

    assert sends <= max_attempts
    assert sleeps <= sends
    # A call has one permit from its first attempt to its end; a probe that hung is over before that.
    assert circuit.given == len(circuit.returned) <= max(sends, 0)
    assert (circuit.given == 0) == (sends == 0)
    assert exchange.reason is not None
    assert (exchange.denied is None) or exchange.denied is exchange.reason
    if deadline_s is not None and not overslept_s:
        assert clock.now <= T0 + deadline_s + 1e-6
    if method == "POST" and sends > 1:
        assert all(
            outcome.fault is not None and not outcome.sent for outcome in exchange.outcomes[: sends - 1]
        )


# The inbound request that the call is part of


def test_the_earlier_of_the_calls_and_the_inbound_deadline_holds() -> None:
    assert Bench(deadline_at=T0 + 2.0).decide() == Send(1, 2.0, 0.5)
    assert Bench(deadline_at=T0 + 60.0).exchange.deadline_at == T0 + 15.0
    unbounded = upstream_plan(timeouts=replace(TIMEOUTS, deadline_s=None))
    assert Bench(unbounded, deadline_at=T0 + 2.0).exchange.deadline_at == T0 + 2.0


def test_a_call_begun_after_the_inbound_deadline_is_refused_unsent() -> None:
    assert Bench(deadline_at=T0 - 0.1).decide() == Refuse(EndReason.DEADLINE, 0.0)


def test_retries_of_all_calls_of_one_inbound_request_share_its_allowance() -> None:
    allowance = RetryAllowance([None])
    first = Bench(allowance=allowance)
    first.decide()
    assert isinstance(first.after(UNAVAILABLE), Sleep)
    second = Bench(allowance=allowance)
    second.decide()
    assert second.after(UNAVAILABLE) == Finish(EndReason.REQUEST_RETRIES)
    assert second.exchange.denied is EndReason.REQUEST_RETRIES


def test_a_retry_that_the_budget_denies_costs_the_inbound_request_nothing() -> None:
    allowance = RetryAllowance([None])
    broke = replace(BUDGET, ratio=0.0, min_per_second=0.0)
    bench = Bench(upstream_plan(retry=retry_plan(budget=broke)), allowance=allowance)
    bench.decide()
    assert bench.after(UNAVAILABLE) == Finish(EndReason.BUDGET)
    assert len(allowance) == 1


def test_an_idempotency_key_lets_any_method_be_sent_again() -> None:
    for keyed, expected in ((True, Sleep), (False, Finish)):
        bench = Bench(method="POST", keyed=keyed)
        bench.decide()
        assert isinstance(bench.after(UNAVAILABLE), expected)


def test_a_body_that_turns_out_to_be_spent_ends_the_retries() -> None:
    bench = Bench()
    bench.decide()
    bench.exchange.body_is_spent()

    assert bench.after(UNAVAILABLE) == Finish(EndReason.NOT_REPLAYABLE)
    assert bench.exchange.denied is EndReason.NOT_REPLAYABLE


def test_where_a_pause_would_stall_an_event_loop_there_is_no_retry() -> None:
    bench = Bench(may_wait=False)
    bench.decide()

    assert bench.after(UNAVAILABLE) == Finish(EndReason.EVENT_LOOP)
    assert bench.budget.balance(T0) == pytest.approx(30.2)  # no retry was paid for


def test_a_retry_without_a_pause_is_made_on_an_event_loop_too() -> None:
    bench = Bench(may_wait=False, rng=0.0)
    bench.decide()

    assert bench.after(UNAVAILABLE) == Sleep(0.0)
    assert bench.decide() == Send(2, 4.0, patience_s=0.0)


def test_a_key_does_not_make_a_spent_body_replayable() -> None:
    bench = Bench(method="POST", keyed=True, replayable=False)
    bench.decide()
    assert bench.after(UNAVAILABLE) == Finish(EndReason.NOT_REPLAYABLE)


# The tries of a caller that retries itself


@pytest.mark.parametrize(
    ("changes", "repeatable", "retried"),
    [
        pytest.param({}, True, True, id="by its method"),
        pytest.param({"method": "POST"}, False, False, id="not any method"),
        pytest.param({"method": "POST", "keyed": True}, True, True, id="by its key"),
        pytest.param({"replayable": False}, False, False, id="not a body that can be sent once"),
        pytest.param(
            {"replayable": False, "nth_try": 1},
            False,
            True,
            id="where the caller retries, that is its own affair",
        ),
        pytest.param({"method": "POST", "nth_try": 2}, False, True, id="whatever the method"),
    ],
)
def test_what_may_be_sent_again_and_which_answers_are_retried(
    changes: dict[str, Any], repeatable: bool, retried: bool
) -> None:
    exchange = Bench(**changes).exchange
    assert exchange.is_repeatable is repeatable
    assert [exchange.is_retried(status) for status in (503, 404, 200, None)] == [retried, False, False, False]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_callers_try_is_one_attempt_and_denies_nothing(method: str) -> None:
    bench = Bench(method=method, nth_try=1)
    bench.decide()
    assert bench.after(UNAVAILABLE) == Finish(EndReason.DELEGATED)
    assert bench.exchange.denied is None


def test_a_callers_try_that_used_up_its_body_is_denied_a_further_one() -> None:
    bench = Bench(method="PUT", replayable=False, nth_try=1)
    bench.decide()
    assert bench.after(UNAVAILABLE) == Finish(EndReason.NOT_REPLAYABLE)
    assert bench.exchange.denied is EndReason.NOT_REPLAYABLE


def test_a_callers_first_try_earns_and_its_further_ones_pay_if_they_can() -> None:
    plan = upstream_plan(retry=retry_plan(budget=replace(BUDGET, ratio=1.0, min_per_second=0.0)))
    allowance = RetryAllowance([None])
    bench = Bench(plan, nth_try=1, allowance=allowance)
    bench.decide()
    assert (bench.budget.balance(T0), len(allowance)) == (1.0, 1)
    for _ in range(2):  # the second finds both empty, and is made
        again = Exchange(
            plan,
            bench.circuit,
            bench.budget,
            request(timeouts=plan.timeouts),
            now=T0,
            rng=constant(0.5),
            served=Served(allowance=allowance),
            nth_try=2,
        )
        assert isinstance(again.decide(T0), Send)
        assert (bench.budget.balance(T0), len(allowance)) == (0.0, 0)


# The client has gone


@dataclass
class Gone:
    is_cancelled: bool = False


def test_a_call_for_somebody_who_has_gone_is_refused_and_asks_neither_circuit_nor_budget() -> None:
    bench = Bench(cancellation=Gone(True))
    open_up(bench.circuit)

    assert bench.decide() == Refuse(EndReason.CANCELLED, 0.0)
    assert bench.exchange.refused is None
    assert bench.budget.balance(T0) == pytest.approx(30.0)


def test_a_failed_attempt_is_not_followed_by_another_for_somebody_who_has_gone() -> None:
    gone = Gone()
    bench = Bench(cancellation=gone)
    bench.decide()
    gone.is_cancelled = True

    assert bench.after(UNAVAILABLE) == Finish(EndReason.CANCELLED)
    assert bench.exchange.denied is EndReason.CANCELLED
    assert bench.budget.balance(T0) == pytest.approx(30.2)  # no retry was paid for


def test_who_goes_during_the_pause_gets_no_further_attempt() -> None:
    gone = Gone()
    bench = Bench(cancellation=gone)
    bench.decide()
    sleep = bench.after(UNAVAILABLE)
    gone.is_cancelled = True

    assert bench.wake(sleep) == Finish(EndReason.CANCELLED)
    assert bench.exchange.denied is EndReason.CANCELLED


def test_an_answer_that_has_come_is_an_answer_though_its_client_has_gone() -> None:
    gone = Gone()
    bench = Bench(cancellation=gone)
    bench.decide()
    gone.is_cancelled = True

    assert bench.after(OK) == Finish(EndReason.SUCCESS)


def test_an_attempt_that_was_cut_because_of_it_is_ignored_by_the_circuit() -> None:
    bench = Bench(upstream_plan(circuit=circuit_plan(consecutive_failures=1)), cancellation=Gone())
    bench.decide()

    assert bench.after(Outcome(fault=Fault.CANCELLED, sent=True)) == Finish(EndReason.CANCELLED)
    assert bench.exchange.verdicts == [Verdict.IGNORED]
    assert bench.circuit.state is CircuitState.CLOSED
