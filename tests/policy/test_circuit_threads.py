"""One circuit, real threads, a real lock. No test sleeps: barriers decide which threads meet."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from headrace.engine.blocking import run
from headrace.policy.breaker.circuit import Circuit, CircuitState, Permit, Transition, Verdict
from headrace.policy.decision import EndReason, Resend, Send
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Outcome
from headrace.policy.plan import CountWindowPlan, SlowCallPlan, TimeWindowPlan
from headrace.policy.retry import RetryBudget
from support.plans import BUDGET, HALF_OPEN, circuit_plan, request, upstream_plan
from support.virtual import VirtualClock, seeded

T0 = 1000.0
PATIENCE_S = 20.0  # how long a broken test may hang


def together(n_threads: int, work: Callable[[int], object]) -> list[object]:
    """Run *work(number)* on that many threads at once. Blocks; raises what any of them raised."""
    start = threading.Barrier(n_threads)

    def begin(number: int) -> object:
        start.wait(PATIENCE_S)
        return work(number)

    with ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(begin, range(n_threads)))


@pytest.mark.parametrize(
    "window",
    [TimeWindowPlan(10.0), CountWindowPlan(100_000, None), CountWindowPlan(100_000, 5.0)],
    ids=["time", "count", "count, aged"],
)
def test_eight_threads_lose_no_count(window: TimeWindowPlan | CountWindowPlan) -> None:
    per_thread = 5000
    circuit = Circuit(
        circuit_plan(
            window=window,
            consecutive_failures=None,
            minimum_calls=10**9,
            slow_call=SlowCallPlan(1.0, 1.0),
        ),
        rng=seeded(),
        lock=threading.Lock(),
    )

    def hammer(number: int) -> None:
        for turn in range(per_thread):
            permit = circuit.acquire(T0)
            assert isinstance(permit, Permit)
            failed, slow = turn % 4 == number % 4, turn % 8 == number
            place = circuit.record(permit, Verdict.FAILURE if failed else Verdict.SUCCESS, T0, float(slow))
            if place is not None and turn % 8 == (number + 2) % 8:
                assert circuit.turn(permit, place, T0)

    together(8, hammer)

    view = circuit.view(T0)
    assert view.calls == 8 * per_thread
    assert view.slow_calls == per_thread
    assert view.failures == 2 * per_thread + per_thread


def test_eight_threads_that_nearly_always_succeed_lose_no_count() -> None:
    """Successes are counted without the lock; failures, slow ones, looks and turns come in between."""
    per_thread = 20_000
    circuit = Circuit(
        circuit_plan(window=TimeWindowPlan(10.0), minimum_calls=10**9, consecutive_failures=None),
        rng=seeded(),
        lock=threading.Lock(),
    )
    ended: list[int] = []

    def work(number: int) -> None:
        if number == 8:
            while len(ended) < 8:
                circuit.view(T0)
            return
        for turn in range(per_thread):
            permit = circuit.acquire(T0)
            assert isinstance(permit, Permit)
            failed = turn % 500 == number
            place = circuit.record(permit, Verdict.FAILURE if failed else Verdict.SUCCESS, T0)
            if turn % 700 == 11 * number + 5:
                assert place is not None
                assert failed or circuit.turn(permit, place, T0)
        ended.append(number)

    together(9, work)

    view = circuit.view(T0)
    assert view.calls == 8 * per_thread
    turns = range(per_thread)
    assert view.failures == sum(
        turn % 500 == number or turn % 700 == 11 * number + 5 for number in range(8) for turn in turns
    )


def test_rules_that_change_under_eight_threads_lose_no_count() -> None:
    per_thread = 1500
    windows = [TimeWindowPlan(10.0), CountWindowPlan(100_000, None), TimeWindowPlan(60.0)]
    plans = [
        circuit_plan(window=window, consecutive_failures=None, minimum_calls=10**9) for window in windows
    ]
    circuit = Circuit(plans[0], rng=seeded(), lock=threading.Lock())
    ended: list[int] = []

    def work(number: int) -> None:
        if number == 8:
            for turn in itertools.count(1):
                circuit.apply(plans[turn % 3], T0)
                if len(ended) == 8:
                    return
        for turn in range(per_thread):
            permit = circuit.acquire(T0)
            assert isinstance(permit, Permit)
            circuit.record(permit, Verdict.FAILURE if turn % 2 else Verdict.SUCCESS, T0)
        ended.append(number)

    together(9, work)

    view = circuit.view(T0)
    assert (view.calls, view.failures) == (8 * per_thread, 4 * per_thread)


def test_a_ramp_admits_its_share_of_eight_threads_exactly() -> None:
    plan = circuit_plan(half_open=replace(HALF_OPEN, max_probes=1, ramp_s=10.0), consecutive_failures=1)
    circuit = Circuit(plan, rng=seeded(), lock=threading.Lock())
    for verdict, at in ((Verdict.FAILURE, T0), (Verdict.SUCCESS, T0 + 5)):
        permit = circuit.acquire(at)
        assert isinstance(permit, Permit)
        circuit.record(permit, verdict, at)
    assert circuit.state is CircuitState.CLOSED

    admitted = together(8, lambda _: sum(isinstance(circuit.acquire(T0 + 7.5), Permit) for _ in range(1000)))

    assert sum(admitted) == 2000 + 1  # type: ignore[arg-type]  # a quarter, and the first


def test_of_twenty_callers_that_meet_a_half_open_circuit_max_probes_get_through() -> None:
    """failures.md 1."""
    told: list[Transition] = []
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock(), on_transition=told.append)
    for _ in range(5):
        permit = circuit.acquire(T0)
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, T0)

    answers = together(20, lambda _: circuit.acquire(T0 + 5))

    assert sum(isinstance(answer, Permit) for answer in answers) == 3
    assert [transition.to_state for transition in told] == [CircuitState.OPEN, CircuitState.HALF_OPEN]


def test_many_threads_that_fail_at_once_open_the_circuit_once() -> None:
    told: list[Transition] = []
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock(), on_transition=told.append)
    permits = [circuit.acquire(T0) for _ in range(16)]

    def fail(number: int) -> None:
        permit = permits[number]
        assert isinstance(permit, Permit)
        circuit.record(permit, Verdict.FAILURE, T0)

    together(16, fail)

    assert [transition.calls for transition in told] == [5]


def test_eight_threads_spend_a_budget_exactly() -> None:
    budget = RetryBudget(BUDGET, lock=threading.Lock())

    def spend(_: int) -> int:
        for _ in range(100):
            budget.deposit(T0)
        return sum(budget.try_withdraw(T0) for _ in range(100))

    paid = together(8, spend)

    assert sum(paid) == 30 + 160  # type: ignore[arg-type]


def test_calls_through_one_circuit_run_at_the_same_time() -> None:
    """failures.md 7."""
    n_threads = 8
    under_way = threading.Barrier(n_threads)
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock())
    budget = RetryBudget(BUDGET, lock=threading.Lock())
    plan = upstream_plan()

    class Meeting:
        def perform(self, send: Send) -> Outcome:
            under_way.wait(PATIENCE_S)  # passes only when all eight are inside their attempt
            return Outcome(status=200, sent=True)

        def resend(self, resend: Resend) -> Outcome | None: ...

        def set_aside(self) -> None: ...

    def call(_: int) -> EndReason:
        clock = VirtualClock(T0)
        exchange = Exchange(
            plan,
            circuit,
            budget,
            request(timeouts=plan.timeouts),
            now=clock(),
            rng=seeded(),
        )
        return run(exchange, Meeting(), clock=clock, sleep=clock.sleep).reason

    assert together(n_threads, call) == [EndReason.SUCCESS] * n_threads
