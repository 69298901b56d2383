"""Successes of a closed circuit, and deposits, are counted without a lock. Nobody may tell that from the outside."""

from __future__ import annotations

import copy
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.breaker.circuit import Circuit, Permit, Transition, Verdict
from headrace.policy.plan import BudgetPlan, SlowCallPlan, TimeWindowPlan
from headrace.policy.retry import RetryBudget
from support.plans import circuit_plan
from support.virtual import constant

T0 = 100_000.0
PLAN = circuit_plan(
    window=TimeWindowPlan(5.0),
    minimum_calls=6,
    failure_rate_threshold=0.5,
    consecutive_failures=3,
    slow_call=SlowCallPlan(1.0, 0.6),
)
OTHERS = [PLAN, replace(PLAN, slow_call=SlowCallPlan(0.4, 0.6)), replace(PLAN, window=TimeWindowPlan(9.0))]


class Side:
    """A circuit, what it told, and what its callers know."""

    def __init__(self, *, passes: bool) -> None:
        self.told: list[Transition] = []
        self.circuit = Circuit(PLAN, rng=constant(0.5), on_transition=self.told.append)
        self.places: list[tuple[Permit, int | None]] = []
        self._passes = passes

    def act(self, what: str, now: float, number: int) -> object:
        circuit = self.circuit
        match what:
            case "view":
                return circuit.view(now)
            case "apply":
                return circuit.apply(OTHERS[number % len(OTHERS)], now)
            case "turn" | "mend":
                if not self.places:
                    return None
                permit, place = self.places[number % len(self.places)]
                return None if place is None else getattr(circuit, what)(permit, place, now)
        permit = circuit.acquire(now)
        if isinstance(permit, Permit):
            # Another object that says the same is no shared permit, so it is looked at under the lock.
            used = permit if self._passes else copy.copy(permit)
            verdict = Verdict.FAILURE if what == "failure" else Verdict.SUCCESS
            duration_s = {0: 1.5, 1: 0.5}.get(number % 12, 0.1)
            self.places.append((used, circuit.record(used, verdict, now, duration_s)))
            return self.places[-1][1]
        return repr(permit)


DELTA_S = st.sampled_from([0.0] * 4 + [0.1, 0.2, 0.4, 0.6, -0.4, -0.6, -5000.0])  # a slice has 0.5 s
WHAT = st.sampled_from(["success"] * 12 + ["view"] * 3 + ["failure", "turn", "mend", "apply"])


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(DELTA_S, WHAT, st.integers(0, 40)), min_size=20, max_size=80))
def test_what_is_counted_without_the_lock_is_what_would_have_been_counted_under_it(
    steps: list[tuple[float, str, int]],
) -> None:
    one, other, now = Side(passes=True), Side(passes=False), T0
    for delta_s, what, number in steps:
        now += delta_s
        assert one.act(what, now, number) == other.act(what, now, number)

    assert one.told == other.told
    assert one.circuit.view(now) == other.circuit.view(now)


def test_a_run_of_successes_leaves_the_lock_alone() -> None:
    class Counted:
        def __init__(self) -> None:
            self.entered = 0

        def __enter__(self) -> None:
            self.entered += 1

        def __exit__(self, *_: object) -> None: ...

    lock = Counted()
    circuit = Circuit(PLAN, rng=constant(0.5), lock=lock)
    for _ in range(100):
        permit = circuit.acquire(T0)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.SUCCESS, T0, 0.1)

    assert lock.entered == 2, "the first two of a slice"
    assert circuit.view(T0).calls == 100
    assert repr(circuit) == "<Circuit closed, generation 0: 0 of 100 calls failed>"


class Locked(RetryBudget):
    """A budget that counts every deposit under its lock."""

    __slots__ = ()

    def deposit(self, now: float) -> None:
        self._slot = None
        super().deposit(now)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(DELTA_S, st.sampled_from(["deposit"] * 8 + ["withdraw", "balance", "apply"])),
        min_size=20,
        max_size=80,
    )
)
def test_a_budget_is_the_same_whether_or_not_deposits_are_counted_under_its_lock(
    steps: list[tuple[float, str]],
) -> None:
    plan = BudgetPlan(ratio=0.4, min_per_second=0.1, ttl_s=5.0)
    one, other, now = RetryBudget(plan), Locked(plan), T0
    for number, (delta_s, what) in enumerate(steps):
        now += delta_s
        match what:
            case "deposit":
                one.deposit(now)
                other.deposit(now)
            case "withdraw":
                assert one.try_withdraw(now) == other.try_withdraw(now)
            case "balance":
                assert one.balance(now) == other.balance(now)
            case _:
                for budget in (one, other):
                    budget.apply(replace(plan, ttl_s=5.0 + number % 2), now)
    assert repr(one) == repr(other)
    assert one.balance(now) == other.balance(now)
