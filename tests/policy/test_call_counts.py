"""What the happy path costs, counted: a Python-level call is about a microsecond in situ."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

from headrace.policy.breaker.circuit import Circuit, CircuitState, Permit, Verdict
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Outcome
from headrace.policy.plan import CountWindowPlan, SlowCallPlan, TimeWindowPlan
from headrace.policy.retry import RetryBudget
from support.plans import HALF_OPEN, circuit_plan, request, upstream_plan
from support.virtual import seeded

T0 = 1000.0


def calls_of(act: Callable[[], object], *, warm: int = 1) -> list[str]:
    """Names of the Python functions that *act* called, itself not counted, after *warm* times before."""
    names: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)

    for _ in range(warm):  # nothing that happens only the first time is counted
        act()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return names[1:]


def test_a_call_that_succeeds_at_once_makes_at_most_twelve_python_calls_in_the_policy_core() -> None:
    plan = upstream_plan()
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock())
    budget = RetryBudget(plan.retry.budget, lock=threading.Lock())
    outcome, rng = Outcome(status=200, sent=True), seeded()
    asked = request(timeouts=plan.timeouts)

    def call() -> None:
        exchange = Exchange(
            plan,
            circuit,
            budget,
            asked,
            now=T0,
            rng=rng,
        )
        exchange.decide(T0)
        exchange.record(outcome, T0)
        exchange.decide(T0)
        exchange.abandon(T0)

    assert len(calls_of(call, warm=3)) <= 12


EVERYTHING = {
    "slow_call": SlowCallPlan(duration_s=1.0, rate_threshold=0.5),
    "half_open": replace(HALF_OPEN, ramp_s=30.0),
}


@pytest.mark.parametrize(
    ("window", "warm", "add"),
    [
        pytest.param(TimeWindowPlan(10.0), 3, [], id="time"),
        pytest.param(CountWindowPlan(100, None), 1, ["CountWindow.add"], id="count"),
        pytest.param(
            CountWindowPlan(8192, 1.0), 1, ["CountWindow.add", "CountWindow.advance"], id="count, aged"
        ),
    ],
)
def test_with_every_feature_on_acquire_is_one_python_call_and_record_at_most_two_while_the_circuit_is_closed(
    window: TimeWindowPlan | CountWindowPlan, warm: int, add: list[str]
) -> None:
    circuit = Circuit(circuit_plan(window=window, **EVERYTHING), rng=seeded(), lock=threading.Lock())
    permit = circuit.acquire(T0)
    assert isinstance(permit, Permit)

    assert calls_of(lambda: circuit.acquire(T0)) == ["Circuit.acquire"]
    recorded = calls_of(lambda: circuit.record(permit, Verdict.SUCCESS, T0, 0.1), warm=warm)
    assert recorded == ["Circuit.record", *add]


def test_the_default_circuit_takes_at_most_2_kib_whatever_it_has_seen() -> None:
    def worn() -> Circuit:
        circuit = Circuit(plan, rng=rng, lock=threading.Lock())
        for second in range(30):
            for verdict in [Verdict.FAILURE] * 2 + [Verdict.SUCCESS] * 20:
                permit = circuit.acquire(T0 + second)
                assert isinstance(permit, Permit)
                circuit.record(permit, verdict, T0 + second, 0.1)
        while circuit.state is CircuitState.CLOSED:
            circuit.record(permit, Verdict.FAILURE, T0 + 30)
        circuit.acquire(T0 + 100)  # half open, a probe out
        return circuit

    plan, rng = circuit_plan(), seeded()

    def weighed() -> float:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            circuits = [worn() for _ in range(50)]
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert {circuit.state for circuit in circuits} == {CircuitState.HALF_OPEN}
        return (after - before) / len(circuits)

    worn()
    assert min(weighed() for _ in range(3)) <= 2048  # a thread of the test runner may take some meanwhile
