"""The promise of the retry budget, over any window, whatever comes when and from however many threads."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from itertools import accumulate, chain

from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.policy.plan import BudgetPlan
from headrace.policy.retry import RetryBudget

T0 = 1000.0
ROUNDING = 1e-6

PLANS = st.builds(
    BudgetPlan,
    ratio=st.sampled_from([0.0, 0.1, 0.2, 0.33, 1.0]),
    min_per_second=st.sampled_from([0.0, 0.3, 3.0]),
    ttl_s=st.sampled_from([1.0, 3.0, 10.0]),
)
# What is asked, and when: in lifetimes of a deposit after T0, in no order.
EVENTS = st.lists(
    st.tuples(st.sampled_from(["first", "retry"]), st.floats(0.0, 5.0), st.integers(1, 12)), max_size=60
)


def within(instants: list[float], begin: float, end: float) -> int:
    """How many of *instants*, sorted, lie in (begin, end]."""
    return bisect_right(instants, end) - bisect_right(instants, begin)


def allowed(plan: BudgetPlan, firsts: list[float], begin: float, end: float, *, late_s: float = 0.0) -> float:
    """Most retries in (begin, end]: for each ttl begun the reserve, and the ratio of the first attempts of 2 · ttl."""
    total, to = 0.0, end
    while to > begin:
        paid_in = within(firsts, to - 2 * plan.ttl_s - late_s - ROUNDING, to + late_s)
        total += plan.min_per_second * plan.ttl_s + plan.ratio * paid_in
        to -= plan.ttl_s
    return total + ROUNDING


@settings(deadline=None)  # a loaded machine is not a failure
@given(PLANS, EVENTS)
@example(  # a window of ten slices would have forgotten the first retries before its time
    BudgetPlan(ratio=0.0, min_per_second=3.0, ttl_s=1.0), [("retry", 0.09, 12), ("retry", 1.01, 12)]
)
@example(  # eleven would still let the first attempts of before pay
    BudgetPlan(ratio=1.0, min_per_second=0.0, ttl_s=1.0), [("first", 0.01, 12), ("retry", 1.05, 12)]
)
def test_over_any_window_retries_are_within_the_ratio_and_the_reserve(
    plan: BudgetPlan, events: list[tuple[str, float, int]]
) -> None:
    budget = RetryBudget(plan)
    # Threads read the clock before they get the lock: what comes late counts as now.
    instants = list(accumulate((T0 + at * plan.ttl_s for _, at, _ in events), max))
    firsts: list[float] = []
    retries: list[float] = []
    for (kind, at, count), now in zip(events, instants, strict=True):
        for _ in range(count):
            if kind == "first":
                budget.deposit(T0 + at * plan.ttl_s)
                firsts.append(now)
            elif budget.try_withdraw(T0 + at * plan.ttl_s):
                retries.append(now)

    for end in {*retries}:
        for begin in {*retries, T0}:
            if begin < end:
                just_before = begin - 1e-9
                assert within(retries, just_before, end) <= allowed(plan, firsts, just_before, end)
        ttl_before = end - plan.ttl_s
        paid_in = within(firsts, ttl_before - ROUNDING, end)
        reserve = plan.min_per_second * plan.ttl_s
        assert within(retries, ttl_before, end) <= plan.ratio * paid_in + reserve + ROUNDING


@settings(deadline=None)
@given(PLANS, EVENTS)
def test_a_retry_that_was_paid_for_is_not_denied(
    plan: BudgetPlan, events: list[tuple[str, float, int]]
) -> None:
    budget = RetryBudget(plan)
    firsts: list[float] = []
    retries: list[float] = []
    for kind, at, count in sorted(events, key=lambda event: event[1]):
        now = T0 + at * plan.ttl_s
        for _ in range(count):
            if kind == "first":
                budget.deposit(now)
                firsts.append(now)
            elif budget.try_withdraw(now):
                retries.append(now)
            else:
                paid_in = plan.ratio * within(firsts, now - 0.9 * plan.ttl_s + ROUNDING, now)
                # Forgotten in slices of a tenth: a deposit a little early, a retry a little late.
                spent = within(retries, now - 1.1 * plan.ttl_s - ROUNDING, now)
                assert plan.min_per_second * plan.ttl_s + paid_in - spent < 1.0


def test_over_any_window_the_budget_holds_for_threads_on_the_real_clock() -> None:
    plan = BudgetPlan(ratio=0.2, min_per_second=20.0, ttl_s=0.25)
    budget = RetryBudget(plan, lock=threading.Lock())
    ends_at = time.monotonic() + 1.5
    firsts: list[list[float]] = [[] for _ in range(4)]
    retries: list[list[float]] = [[] for _ in range(4)]
    late_s = [0.0] * 4

    def call(number: int) -> None:
        while (now := time.monotonic()) < ends_at:
            budget.deposit(now)
            firsts[number].append(now)
            for _ in range(3):
                asked_at = time.monotonic()
                if budget.try_withdraw(asked_at):
                    retries[number].append(asked_at)
                # How far the instants that the budget was told may lie behind those at which it counted them.
                late_s[number] = max(late_s[number], time.monotonic() - asked_at)
            late_s[number] = max(late_s[number], time.monotonic() - now)
            time.sleep(0.001)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    all_firsts, all_retries = sorted(chain(*firsts)), sorted(chain(*retries))
    late = max(late_s)
    assert (
        len(all_retries) > plan.min_per_second * 0.25
    )  # it is in use: without limit there would be three a call
    assert len(all_retries) < len(all_firsts)
    for end in all_retries:
        begin = end - plan.ttl_s
        assert within(all_retries, begin, end) <= allowed(plan, all_firsts, begin - late, end, late_s=late)
