from __future__ import annotations

import contextlib

import pytest

from engine.histories import HISTORIES, OK, PLAN, UNAVAILABLE, Call, History
from headrace.engine.blocking import run
from headrace.policy.breaker.circuit import Circuit, CircuitState
from headrace.policy.decision import EndReason, Finish, Refuse, Resend, Send
from headrace.policy.exchange import Exchange
from headrace.policy.gate import deadline_of, next_send
from headrace.policy.outcome import Outcome
from headrace.policy.retry import RetryBudget
from support.plans import request
from support.virtual import VirtualClock, constant


class ScriptedAttempt:
    """Plays the replies of one scripted call and writes down what the driver did."""

    def __init__(self, call: Call, clock: VirtualClock) -> None:
        self._replies = list(call.replies)
        self._clock = clock
        self.events: list[str] = []

    def perform(self, send: Send) -> Outcome:
        self.events.append(f"send {send.attempt}")
        takes_s, reply = self._replies.pop(0)
        self._clock.advance(takes_s)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def resend(self, resend: Resend) -> Outcome | None:
        self.events.append("resend")
        takes_s, reply = self._replies.pop(0)
        self._clock.advance(takes_s)
        if isinstance(reply, BaseException):  # an interrupt
            raise reply
        return reply

    def set_aside(self) -> None:
        self.events.append("set aside")

    def sleep(self, delay_s: float) -> None:
        self.events.append("sleep")
        self._clock.sleep(delay_s)

    @property
    def is_played_out(self) -> bool:
        return not self._replies


def exchange_for(call: Call, history: History, circuit: Circuit, budget: RetryBudget, now: float) -> Exchange:
    plan = history.plan
    return Exchange(
        plan,
        circuit,
        budget,
        request(call.method, timeouts=plan.timeouts),
        now=now,
        rng=constant(0.5),
    )


@pytest.mark.parametrize("history", [pytest.param(history, id=history.name) for history in HISTORIES])
def test_the_blocking_driver_plays_each_history_as_written(history: History) -> None:
    clock = VirtualClock()
    circuit = Circuit(history.plan.circuit_breaker, rng=constant(0.5))
    budget = RetryBudget(history.plan.retry.budget)

    for call in history.calls:
        clock.advance(call.after_s)
        clock.sleeps.clear()
        attempt = ScriptedAttempt(call, clock)
        exchange = exchange_for(call, history, circuit, budget, clock.now)
        if call.reason is None:
            (_, raised) = call.replies[-1]
            assert isinstance(raised, BaseException)
            with pytest.raises(type(raised)):
                run(exchange, attempt, clock=clock, sleep=attempt.sleep)
        else:
            decision = run(exchange, attempt, clock=clock, sleep=attempt.sleep)
            assert decision.reason is call.reason
            assert isinstance(decision, Finish if call.replies else Refuse)

        assert attempt.is_played_out
        assert clock.sleeps == pytest.approx(list(call.sleeps))
        assert attempt.events.count("set aside") == call.set_aside
        if call.events:
            assert attempt.events == list(call.events)

    view = circuit.view(clock.now)
    assert (view.state, view.probes_in_flight) == (history.state, history.probes_in_flight)
    assert (view.calls, view.failures) == history.counted


@pytest.mark.parametrize("history", [pytest.param(history, id=history.name) for history in HISTORIES])
def test_the_driver_goes_on_from_a_first_attempt_that_was_made_without_an_exchange(history: History) -> None:
    """Pauses, answers set aside, ends and what was learned are those of the history played as a whole."""
    clock, plan = VirtualClock(), history.plan
    circuit, budget = Circuit(plan.circuit_breaker, rng=constant(0.5)), RetryBudget(plan.retry.budget)

    for call in history.calls:
        clock.advance(call.after_s)
        clock.sleeps.clear()
        attempt, began = ScriptedAttempt(call, clock), clock.now
        first = next_send(
            plan.timeouts,
            circuit,
            began,
            deadline_at=deadline_of(plan.timeouts, began),
            pay=budget.deposit,
        )
        outcome = None
        if isinstance(first, Send):
            with contextlib.suppress(BaseException):
                outcome = attempt.perform(first)
        exchange = exchange_for(call, history, circuit, budget, began)
        exchange.decide(clock.now, first=first)
        if outcome is not None:
            exchange.record(outcome, clock.now)
        elif isinstance(first, Send):
            exchange.abandon(clock.now)
        end = run(exchange, attempt, clock=clock, sleep=attempt.sleep)

        assert end.reason is (EndReason.CANCELLED if call.reason is None else call.reason)
        assert attempt.is_played_out
        assert clock.sleeps == pytest.approx(list(call.sleeps))
        assert attempt.events.count("set aside") == call.set_aside
        if call.events:
            assert attempt.events == list(call.events)

    view = circuit.view(clock.now)
    assert (view.state, view.probes_in_flight) == (history.state, history.probes_in_flight)
    assert (view.calls, view.failures) == history.counted


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interruption_passes_through_and_the_permit_goes_back_as_ignored(
    interruption: type[BaseException],
) -> None:
    """failures.md 8."""
    clock = VirtualClock()
    circuit = Circuit(PLAN.circuit_breaker, rng=constant(0.5))
    call = Call([(0.1, interruption())], None)
    history = History("interrupted", [call], CircuitState.CLOSED, (0, 0))
    exchange = exchange_for(call, history, circuit, RetryBudget(PLAN.retry.budget), clock.now)

    with pytest.raises(interruption):
        run(exchange, ScriptedAttempt(call, clock), clock=clock, sleep=clock.sleep)

    assert circuit.view(clock.now).calls == 0
    assert exchange.reason is EndReason.CANCELLED


def test_an_interruption_of_the_pause_passes_through_after_the_slot_was_given_back() -> None:
    clock = VirtualClock()
    circuit = Circuit(PLAN.circuit_breaker, rng=constant(0.5))
    call = Call([(0.1, UNAVAILABLE), (0.1, OK)], None)
    history = History("interrupted", [call], CircuitState.CLOSED, (1, 1))
    exchange = exchange_for(call, history, circuit, RetryBudget(PLAN.retry.budget), clock.now)
    attempt = ScriptedAttempt(call, clock)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(exchange, attempt, clock=clock, sleep=interrupt)

    assert attempt.events == ["send 1", "set aside"]
    assert exchange.reason is EndReason.CANCELLED
