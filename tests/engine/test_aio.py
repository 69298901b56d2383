"""The awaiting driver decides nothing either: it does what the blocking one does, history by history."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.histories import HISTORIES, Call, History
from engine.test_blocking import ScriptedAttempt, exchange_for
from headrace.engine import aio, blocking
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import EndReason, Renew, Resend, Send
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import UpstreamPlan
from headrace.policy.retry import RetryBudget
from support.plans import BACKOFF, BUDGET, TIMEOUTS, circuit_plan, retry_plan, upstream_plan
from support.virtual import VirtualClock, constant

T = TypeVar("T")

EXAMPLES = int(os.environ.get("PARITY_EXAMPLES", "150"))
"""1,000 in its own run."""


def driven(what: Coroutine[Any, Any, T]) -> T:
    """What *what* returns, which awaits nothing that is not done: no loop is needed."""
    try:
        what.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something real")


class AwaitedAttempt:
    """A `ScriptedAttempt`, awaited."""

    def __init__(self, scripted: ScriptedAttempt) -> None:
        self._scripted = scripted

    async def perform(self, send: Send) -> Outcome:
        return self._scripted.perform(send)

    async def resend(self, resend: Resend) -> Outcome | None:
        return self._scripted.resend(resend)

    async def renew(self, renew: Renew) -> bool:
        raise AssertionError("no history has secrets")

    async def set_aside(self) -> None:
        self._scripted.set_aside()

    async def sleep(self, delay_s: float) -> None:
        self._scripted.sleep(delay_s)


@dataclass
class Seen:
    """What one driver did with a history."""

    ends: list[object] = field(default_factory=list)
    sleeps: list[list[float]] = field(default_factory=list)
    events: list[list[str]] = field(default_factory=list)
    played_out: list[bool] = field(default_factory=list)
    circuit: object = None
    balance: float = 0.0


def played(history: History, *, awaited: bool) -> Seen:
    clock, seen = VirtualClock(), Seen()
    circuit = Circuit(history.plan.circuit_breaker, rng=constant(0.5))
    budget = RetryBudget(history.plan.retry.budget)
    for call in history.calls:
        clock.advance(call.after_s)
        clock.sleeps.clear()
        attempt = ScriptedAttempt(call, clock)
        exchange = exchange_for(call, history, circuit, budget, clock.now)
        try:
            if awaited:
                driver = AwaitedAttempt(attempt)
                end = driven(aio.run(exchange, driver, clock=clock, sleep=driver.sleep))
            else:
                end = blocking.run(exchange, attempt, clock=clock, sleep=attempt.sleep)
            seen.ends.append((type(end), end.reason, exchange.outcomes, exchange.verdicts, exchange.sent))
        except (ZeroDivisionError, KeyboardInterrupt, asyncio.CancelledError) as raised:
            seen.ends.append(type(raised))
        except IndexError:
            seen.ends.append("it asks for more than the history has")
        seen.sleeps.append(list(clock.sleeps))
        seen.events.append(attempt.events)
        seen.played_out.append(attempt.is_played_out)
    seen.circuit, seen.balance = circuit.view(clock.now), budget.balance(clock.now)
    return seen


@pytest.mark.parametrize("history", [pytest.param(history, id=history.name) for history in HISTORIES])
def test_each_history_is_played_alike(history: History) -> None:
    awaited = played(history, awaited=True)
    assert awaited == played(history, awaited=False)
    for call, end, events in zip(history.calls, awaited.ends, awaited.events, strict=True):
        if call.reason is not None:
            assert isinstance(end, tuple)
            assert end[1] is call.reason
        if call.events:
            assert events == list(call.events)


statuses = st.sampled_from([200, 204, 301, 404, 408, 429, 500, 503])
faults = st.sampled_from(
    [
        Fault.RESET,
        Fault.TIMEOUT,
        Fault.CONNECT_FAILURE,
        Fault.TLS_FAILURE,
        Fault.CERTIFICATE,
        Fault.PROTOCOL_ERROR,
        Fault.POOL_TIMEOUT,
        Fault.POOL_REJECTED,
        Fault.RESPONSE_TOO_LARGE,
        Fault.LOCAL_ERROR,
    ]
)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    fault = draw(st.none() | faults)
    never_sent = fault in (Fault.CONNECT_FAILURE, Fault.TLS_FAILURE, Fault.POOL_TIMEOUT, Fault.POOL_REJECTED)
    return Outcome(
        fault=fault,
        status=draw(statuses) if fault is None else None,
        sent=not never_sent,
        cut=fault is Fault.TIMEOUT,
        duration_s=draw(st.sampled_from([0.01, 0.5, 4.0])),
        retry_after_s=draw(st.none() | st.sampled_from([0.0, 0.3, 60.0])) if fault is None else None,
        reused=draw(st.booleans()) if fault is not None else False,
        answered=draw(st.booleans()) if fault is not None else False,
        started_s=1000.0,
    )


replies = st.tuples(
    st.sampled_from([0.001, 0.1, 2.0]),
    outcomes() | st.sampled_from([ZeroDivisionError(), KeyboardInterrupt()]),
)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    made: Sequence[Any] = draw(st.lists(replies, min_size=1, max_size=6))
    return Call(
        made,
        EndReason.SUCCESS,  # not looked at: what the other driver does is asked
        after_s=draw(st.sampled_from([0.0, 0.5, 6.0])),
        method=draw(st.sampled_from(["GET", "POST"])),
    )


@st.composite
def plans(draw: st.DrawFn) -> UpstreamPlan:
    return upstream_plan(
        circuit=circuit_plan(consecutive_failures=draw(st.sampled_from([1, 2, 5]))),
        retry=retry_plan(
            max_attempts=draw(st.integers(1, 4)),
            backoff=replace(BACKOFF, base_s=draw(st.sampled_from([0.0, 0.2]))),
            budget=replace(BUDGET, ratio=draw(st.sampled_from([0.0, 0.2])), min_per_second=0.5),
        ),
        timeouts=replace(TIMEOUTS, deadline_s=draw(st.sampled_from([None, 1.0, 15.0]))),
    )


@given(st.lists(calls(), min_size=1, max_size=8), plans())
@settings(max_examples=EXAMPLES)
def test_generated_histories_are_played_alike(made: list[Call], plan: UpstreamPlan) -> None:
    """Results, sleeps, answers set aside and what was learned are those of the blocking driver."""
    history = History("generated", made, state=None, counted=(0, 0), plan=plan)  # type: ignore[arg-type]
    fresh = [replace(call, replies=_copied(call)) for call in made]
    awaited = played(replace(history, calls=fresh), awaited=True)
    assert awaited == played(history, awaited=False)


def _copied(call: Call) -> list[tuple[float, Outcome | BaseException]]:
    # An exchange keeps the outcomes that it is given, and writes to some.
    return [(s, replace(one) if isinstance(one, Outcome) else one) for s, one in call.replies]


def test_a_cancellation_at_each_await_gives_the_permit_back() -> None:
    (history,) = (one for one in HISTORIES if one.name == "two failures, then success")

    class Cancelled(AwaitedAttempt):
        left = 0

        def _turn(self) -> None:
            if not self.left:
                raise asyncio.CancelledError
            self.left -= 1

        async def perform(self, send: Send) -> Outcome:
            self._turn()
            return await super().perform(send)

        async def set_aside(self) -> None:
            self._turn()
            await super().set_aside()

        async def sleep(self, delay_s: float) -> None:
            self._turn()
            await super().sleep(delay_s)

    for point in range(7):
        clock, circuit = VirtualClock(), Circuit(history.plan.circuit_breaker, rng=constant(0.5))
        driver = Cancelled(ScriptedAttempt(history.calls[0], clock))
        driver.left = point
        exchange = exchange_for(
            history.calls[0], history, circuit, RetryBudget(history.plan.retry.budget), clock.now
        )
        with pytest.raises(asyncio.CancelledError):
            driven(aio.run(exchange, driver, clock=clock, sleep=driver.sleep))
        assert exchange.reason is EndReason.CANCELLED
        assert circuit.view(clock.now).probes_in_flight == 0
