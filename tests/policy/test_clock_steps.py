"""A clock that steps, either way: whatever runs has at most its whole length to go from there."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace.policy.breaker.circuit import Circuit, CircuitState, Permit, Refused, Verdict
from headrace.policy.breaker.window import CountWindow, TimeWindow
from headrace.policy.plan import AdaptivePlan, BudgetPlan, CountWindowPlan, ReloadPlan, TimeWindowPlan
from headrace.policy.retry import RetryBudget
from headrace.policy.sizing import PoolLoad, ResizeReason, Sizing
from headrace.runtime.watch.settling import Settling
from support.plans import HALF_OPEN, OPEN_FOR, circuit_plan

T0 = 1000.0
DECADES_S = 1.3e9  # what freezegun's clock says in 2011
LONGEST_OPEN_S = OPEN_FOR.max_s * (1.0 + OPEN_FOR.jitter)
HALF = replace(HALF_OPEN, ramp_s=30.0)

INSTANTS = st.one_of(
    st.floats(0.0, 4e9), st.sampled_from([0.0, 5.0, T0, DECADES_S]), st.floats(T0 - 100.0, T0 + 100.0)
)
WINDOWS = st.sampled_from([TimeWindowPlan(10.0), CountWindowPlan(20, 10.0), CountWindowPlan(20, None)])
VERDICTS = st.sampled_from(
    [Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED, None]
)  # None: it never comes back


@settings(deadline=None)
@given(
    st.lists(st.tuples(INSTANTS, VERDICTS), max_size=40), st.floats(0.0, 4e9), WINDOWS, st.integers(0, 2**32)
)
def test_after_any_steps_a_circuit_admits_within_its_longest_open_period(
    steps: list[tuple[float, Verdict | None]], now: float, window: TimeWindowPlan | CountWindowPlan, seed: int
) -> None:
    """failures.md 69."""
    plan = circuit_plan(window=window, half_open=HALF, open_for=OPEN_FOR)
    circuit = Circuit(plan, rng=random.Random(seed).random)
    for at, verdict in steps:
        answer = circuit.acquire(at)
        if isinstance(answer, Permit) and verdict is not None:
            circuit.record(answer, verdict, at)

    # From here on the clock is sane. What had hung expires, opens the circuit once more at the most, and
    # that ends; each refusal says when to ask again.
    ends_at = now + HALF.probe_timeout_s + 2 * LONGEST_OPEN_S + HALF.ramp_s
    while isinstance(answer := circuit.acquire(now), Refused):
        assert 0.0 <= answer.retry_after_s <= max(LONGEST_OPEN_S, HALF.ramp_s)
        now += max(answer.retry_after_s, 1.0)
        assert now <= ends_at, "shut for ever"


@pytest.mark.parametrize("opened_at", [T0 + DECADES_S, T0 + 3600.0, T0 + 1.0])
def test_an_open_period_is_no_longer_than_it_was_meant_when_the_clock_steps_back(opened_at: float) -> None:
    """failures.md 69."""
    circuit = Circuit(circuit_plan(), rng=lambda: 0.5)
    while circuit.state is CircuitState.CLOSED:
        permit = circuit.acquire(opened_at)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, opened_at)

    assert circuit.view(T0).retry_after_s <= OPEN_FOR.base_s
    refused = circuit.acquire(T0)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s <= OPEN_FOR.base_s
    assert isinstance(circuit.acquire(T0 + OPEN_FOR.base_s), Permit)


def test_a_hung_probe_expires_after_its_time_when_the_clock_steps_back() -> None:
    """failures.md 69."""
    circuit = Circuit(circuit_plan(), rng=lambda: 0.5)
    while circuit.state is CircuitState.CLOSED:
        permit = circuit.acquire(DECADES_S)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, DECADES_S)
    for _ in range(HALF_OPEN.max_probes):
        assert isinstance(circuit.acquire(DECADES_S + 60.0), Permit)

    refused = circuit.acquire(T0)
    assert isinstance(refused, Refused)
    assert refused.retry_after_s <= HALF_OPEN.probe_timeout_s
    circuit.acquire(T0 + HALF_OPEN.probe_timeout_s)
    assert circuit.state is CircuitState.OPEN


def test_a_ramp_goes_on_when_the_clock_steps_back() -> None:
    """failures.md 69."""
    plan = circuit_plan(half_open=replace(HALF_OPEN, max_probes=1, ramp_s=10.0))
    circuit = Circuit(plan, rng=lambda: 0.5)
    now = DECADES_S
    while circuit.state is not CircuitState.CLOSED or circuit.generation == 0:
        permit = circuit.acquire(now)
        if isinstance(permit, Permit):
            verdict = Verdict.FAILURE if circuit.state is CircuitState.CLOSED else Verdict.SUCCESS
            circuit.record(permit, verdict, now)
        now += 5.0

    circuit.acquire(T0)  # the clock has stepped back
    admitted = [isinstance(circuit.acquire(T0 + 10.0), Permit) for _ in range(20)]
    assert all(admitted)


@pytest.mark.parametrize(
    "window", [TimeWindow(10.0), CountWindow(1000, max_age_s=10.0)], ids=["time", "count"]
)
def test_a_window_keeps_and_forgets_after_the_clock_was_set_back(window: TimeWindow | CountWindow) -> None:
    """failures.md 69."""
    window.add(DECADES_S, 1)
    window.add(T0, 1)
    assert (window.calls, window.marked) == (2, 2)
    window.advance(T0 + 5.0)
    assert window.marked == 2
    window.add(T0 + 12.0)
    assert (window.calls, window.marked) == (1, 0)


def test_what_a_window_holds_keeps_its_age_when_the_clock_is_set_back() -> None:
    """failures.md 69."""
    window = TimeWindow(10.0)
    place = window.add(DECADES_S, 1)
    window.add(DECADES_S + 5.0)
    window.add(T0)
    assert window.turn(place)
    window.advance(T0 + 6.0)
    assert (window.calls, window.marked) == (2, 0)  # the older one has left


def test_a_budget_is_refilled_after_the_clock_was_set_back() -> None:
    """failures.md 69."""
    budget = RetryBudget(BudgetPlan(ratio=0.0, min_per_second=1.0, ttl_s=1.0))
    assert budget.try_withdraw(DECADES_S)
    assert budget.try_withdraw(T0) is False
    assert budget.try_withdraw(T0 + 2.0)


def test_an_adaptive_pool_still_grows_and_shrinks_after_the_clock_was_set_back() -> None:
    """failures.md 69."""
    plan = AdaptivePlan(
        min=10,
        grow_when_waiting=0.3,
        grow_when_rate=1.5,
        shrink_when_rate=0.7,
        shrink_after_s=30.0,
        rate_window_s=60.0,
        connections_per_rps=0.1,
    )
    sizing = Sizing(plan, max_connections=100)
    assert sizing.enqueued(DECADES_S, PoolLoad(waiting=9, inuse=10, size=10, arrivals=10)) is not None
    grown = sizing.enqueued(T0, PoolLoad(waiting=9, inuse=11, size=11, arrivals=100))
    assert grown is not None
    assert not sizing.is_due(T0 + 0.05)
    assert sizing.is_due(T0 + 0.2)
    seen = [
        sizing.looked(T0 + second, PoolLoad(waiting=0, inuse=1, size=20, arrivals=100))
        for second in range(200)
    ]
    reasons = {one.reason for one in seen if one is not None}
    assert reasons == {ResizeReason.SURPLUS}


def test_files_are_looked_at_again_after_the_clock_was_set_back() -> None:
    """failures.md 69."""
    plan = ReloadPlan(debounce_s=0.1, max_delay_s=1.0, poll_s=2.0, drain_s=30.0)
    settling = Settling(plan, now=DECADES_S)
    settling.take(DECADES_S)
    settling.clip(T0)
    assert settling.due_at() <= T0 + plan.poll_s
    settling.poke(DECADES_S)
    settling.clip(T0)
    assert settling.due_at() <= T0 + plan.debounce_s


def test_nothing_in_the_package_asks_another_monotonic_clock() -> None:
    """failures.md 69. Half of a limit by one clock and half by another is a call that has always timed out."""
    package = Path(headrace.__file__).parent
    other = re.compile(
        r"\btime\.(?:monotonic|perf_counter)\b|from time import .*\b(?:monotonic|perf_counter)\b"
    )
    asking = [
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.name != "clock.py" and other.search(file.read_text("utf-8"))
    ]
    assert asking == [], "from headrace.clock import monotonic"
