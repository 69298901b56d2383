"""What the happy path costs, counted: a Python-level call is about a microsecond in situ (DESIGN §7)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType

from headrace.policy.circuit import Circuit, Permit, Verdict
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Outcome
from headrace.policy.retry import RetryBudget
from support.plans import circuit_plan, upstream_plan
from support.virtual import seeded

T0 = 1000.0


def calls_of(act: Callable[[], object]) -> list[str]:
    """Names of the Python functions that *act* called, itself not counted."""
    names: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)

    act()  # once before: nothing that happens only the first time is counted
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return names[1:]


def test_a_call_that_succeeds_at_once_makes_at_most_thirteen_python_calls_in_the_policy_core() -> None:
    plan = upstream_plan()
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock())
    budget = RetryBudget(plan.retry.budget, lock=threading.Lock())
    outcome, rng = Outcome(status=200, sent=True), seeded()

    def call() -> None:
        exchange = Exchange(
            plan,
            circuit,
            budget,
            now=T0,
            rng=rng,
            method="GET",
            replayable=True,
            timeouts=plan.timeouts,
            max_attempts=3,
        )
        exchange.decide(T0)
        exchange.record(outcome, T0)
        exchange.decide(T0)
        exchange.abandon(T0)

    assert len(calls_of(call)) <= 13


def test_acquire_is_one_python_call_and_record_two_while_the_circuit_is_closed() -> None:
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock())
    permit = circuit.acquire(T0)
    assert isinstance(permit, Permit)

    assert calls_of(lambda: circuit.acquire(T0)) == ["Circuit.acquire"]
    assert calls_of(lambda: circuit.record(permit, Verdict.SUCCESS, T0)) == [
        "Circuit.record",
        "TimeWindow.add",
    ]
