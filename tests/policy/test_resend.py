"""A pooled connection that had died unnoticed: the attempt is made once more, and is one attempt all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import EndReason, Finish, Resend, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.retry import RetryBudget
from support.plans import TIMEOUTS, request, retry_plan, upstream_plan
from support.virtual import constant

T0 = 1000.0
DIED = Outcome(Fault.RESET, sent=True, started_s=T0, wait_s=0.2, duration_s=0.1, reused=True)
SILENT = Outcome(Fault.TIMEOUT, sent=True, cut=True, started_s=T0, duration_s=4.0, reused=True)


def begun(method: str = "GET", *, after: Exchange | None = None, **facts: bool) -> Exchange:
    """A call whose first Send is out."""
    plan = upstream_plan(retry=retry_plan(max_attempts=2), timeouts=replace(TIMEOUTS, deadline_s=60.0))
    exchange = Exchange(
        plan,
        Circuit(plan.circuit_breaker, rng=constant(0.5)),
        RetryBudget(plan.retry.budget),
        request(method, timeouts=plan.timeouts, **facts),
        now=T0,
        rng=constant(0.5),
        nth_try=0 if after is None else 2,
        after=after,
    )
    assert isinstance(exchange.decide(T0), Send)
    return exchange


def again(fault: Fault | None = None, status: int | None = 200, *, sent: bool = True) -> Outcome:
    return Outcome(fault, status, sent, started_s=T0 + 0.3, wait_s=0.01, duration_s=0.5)


def test_it_is_sent_again_with_what_the_attempt_has_left() -> None:
    exchange = begun()

    exchange.record(replace(DIED), T0 + 0.3)

    # 4 s from when it had its connection, 0.2 s after it asked for one
    assert exchange.decide(T0 + 0.3) == Resend(pytest.approx(3.9))
    assert (exchange.outcomes, exchange.sent) == ([], 0)  # as if it had not been


def test_the_two_sends_are_one_attempt() -> None:
    exchange = begun()
    exchange.record(replace(DIED), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.record(again(), T0 + 0.8)

    assert exchange.decide(T0 + 0.8) == Finish(EndReason.SUCCESS)
    (outcome,) = exchange.outcomes
    assert (outcome.resent, outcome.status, outcome.started_s, outcome.wait_s) == (True, 200, T0, 0.2)
    assert outcome.duration_s == pytest.approx(0.6)  # 0.1 s of the first, 0.5 s of the second
    assert exchange.sent == 1


def test_there_is_no_third_send_without_a_new_attempt() -> None:
    exchange = begun()
    exchange.record(replace(DIED), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.record(replace(DIED, started_s=T0 + 0.3), T0 + 0.8)

    assert isinstance(exchange.decide(T0 + 0.8), Sleep)
    assert [one.fault for one in exchange.outcomes] == [Fault.RESET]


def test_without_a_connection_at_once_the_failed_send_stands() -> None:
    exchange = begun()
    exchange.record(replace(DIED), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.record(None, T0 + 0.3)

    assert isinstance(exchange.decide(T0 + 0.3), Sleep)
    assert exchange.outcomes == [DIED]
    assert exchange.sent == 1


@pytest.mark.parametrize("left_s", [0.0, 0.0005])
def test_without_time_the_failed_send_stands(left_s: float) -> None:
    exchange = begun()

    exchange.record(replace(DIED), T0 + 4.2 - left_s)

    assert isinstance(exchange.decide(T0 + 4.2 - left_s), Sleep)
    assert exchange.outcomes == [DIED]


def test_a_fresh_connection_that_never_came_about_does_not_undo_that_it_was_sent() -> None:
    exchange = begun()
    exchange.record(replace(DIED), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.record(again(Fault.CONNECT_FAILURE, None, sent=False), T0 + 0.8)

    assert exchange.outcomes[0].sent
    assert exchange.sent == 1


def test_a_send_that_never_left_and_its_repetition_that_did_may_have_arrived() -> None:
    exchange = begun()
    exchange.record(replace(DIED, sent=False), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.record(again(), T0 + 0.8)

    assert exchange.sent == 1


def test_a_caller_that_goes_away_during_it_leaves_nothing_outstanding() -> None:
    exchange = begun()
    exchange.record(replace(DIED), T0 + 0.3)
    exchange.decide(T0 + 0.3)

    exchange.abandon(T0 + 0.4)

    assert exchange.reason is EndReason.CANCELLED
    assert exchange._circuit.view(T0 + 0.4).calls == 0


def test_an_outcome_of_nothing_is_only_that_of_a_resend() -> None:
    with pytest.raises(RuntimeError, match="Resend"):
        begun().record(None, T0)


@pytest.mark.parametrize(
    ("outcome", "method", "facts"),
    [
        pytest.param(replace(DIED, reused=False), "GET", {}, id="it was a fresh connection"),
        pytest.param(replace(DIED, answered=True), "GET", {}, id="an answer had begun"),
        pytest.param(replace(DIED, fault=Fault.TIMEOUT), "GET", {}, id="silence is no death"),
        pytest.param(DIED, "POST", {}, id="a method that may not be repeated"),
        pytest.param(DIED, "GET", {"replayable": False}, id="a body that can be sent only once"),
    ],
)
def test_what_is_not_sent_again(outcome: Outcome, method: str, facts: dict[str, bool]) -> None:
    exchange = begun(method, **facts)

    exchange.record(replace(outcome), T0 + 0.3)

    assert not isinstance(exchange.decide(T0 + 0.3), Resend)
    assert len(exchange.outcomes) == 1


def test_a_key_lets_a_post_be_sent_again() -> None:
    exchange = begun("POST", keyed=True)
    exchange.record(replace(DIED), T0 + 0.3)

    assert isinstance(exchange.decide(T0 + 0.3), Resend)


# What has silently dropped one idle connection has dropped its neighbours


def next_send(exchange: Exchange, outcome: Outcome) -> Send:
    exchange.record(replace(outcome), T0 + 4.0)
    pause = exchange.decide(T0 + 4.0)
    assert isinstance(pause, Sleep)
    send = exchange.decide(T0 + 4.0 + pause.delay_s)
    assert isinstance(send, Send)
    return send


def test_after_silence_on_a_pooled_connection_the_next_attempt_takes_a_fresh_one() -> None:
    assert next_send(begun(), SILENT).fresh


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(replace(SILENT, reused=False), id="it was a fresh one"),
        pytest.param(replace(SILENT, answered=True), id="its head had come"),
        pytest.param(Outcome(status=503, sent=True), id="it answered"),
    ],
)
def test_otherwise_an_idle_one_will_do(outcome: Outcome) -> None:
    assert not next_send(begun(), outcome).fresh


def test_so_does_the_next_try_of_a_caller_that_retries_itself() -> None:
    first = begun()
    first.record(replace(SILENT), T0 + 4.0)

    second = begun(after=first)

    assert second._fresh
    assert second.sent == 1
