from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.backoff import backoff_range_s, backoff_s, is_throttled
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import BackoffPlan, Jitter
from support.plans import BACKOFF
from support.virtual import constant, seeded

JITTERS: tuple[Jitter, ...] = get_args(Jitter)
PLAN = BackoffPlan(base_s=0.1, multiplier=2.0, max_s=1.0)


def pauses(plan: BackoffPlan, count: int, uniform: float) -> list[float]:
    """The first *count* pauses of one call whose rng always says *uniform*."""
    made: list[float] = []
    for n in range(1, count + 1):
        made.append(backoff_s(plan, n, constant(uniform), previous_s=made[-1] if made else None))
    return made


@pytest.mark.parametrize(
    ("jitter", "shortest", "middle", "longest"),
    [
        pytest.param("full", [0, 0, 0, 0, 0], [0.05, 0.1, 0.2, 0.4, 0.5], [0.1, 0.2, 0.4, 0.8, 1.0]),
        pytest.param(
            "equal", [0.05, 0.1, 0.2, 0.4, 0.5], [0.075, 0.15, 0.3, 0.6, 0.75], [0.1, 0.2, 0.4, 0.8, 1.0]
        ),
        pytest.param(
            "additive", [0.1, 0.2, 0.4, 0.8, 1.0], [0.15, 0.3, 0.6, 1.0, 1.0], [0.2, 0.4, 0.8, 1.0, 1.0]
        ),
        pytest.param("decorrelated", [0.1] * 5, [0.2, 0.35, 0.575, 0.9125, 1.0], [0.3, 0.9, 1.0, 1.0, 1.0]),
        pytest.param("none", *[[0.1, 0.2, 0.4, 0.8, 1.0]] * 3),
    ],
)
def test_each_jitter_has_the_pauses_of_its_formula(
    jitter: Jitter, shortest: list[float], middle: list[float], longest: list[float]
) -> None:
    plan = replace(PLAN, jitter=jitter)

    assert pauses(plan, 5, 0.0) == pytest.approx(shortest)
    assert pauses(plan, 5, 0.5) == pytest.approx(middle)
    assert pauses(plan, 5, 1.0) == pytest.approx(longest)
    assert backoff_range_s(plan, 4) == pytest.approx((shortest[3], longest[3]))


@pytest.mark.parametrize(
    ("n", "ceiling_s"), [(1, 0.025), (2, 0.05), (3, 0.1), (6, 0.8), (7, 1.0), (2000, 1.0)]
)
def test_the_ceiling_of_the_default_backoff_doubles_up_to_its_maximum(n: int, ceiling_s: float) -> None:
    assert backoff_s(BACKOFF, n, constant(0.0)) == 0.0
    assert backoff_s(BACKOFF, n, constant(0.5)) == pytest.approx(ceiling_s / 2)
    assert backoff_s(BACKOFF, n, constant(1.0)) == pytest.approx(ceiling_s)


@pytest.mark.parametrize("jitter", [jitter for jitter in JITTERS if jitter != "none"])
def test_the_first_pauses_of_many_callers_are_spread_over_the_whole_range(jitter: Jitter) -> None:
    """failures.md 11."""
    plan, rng = replace(PLAN, jitter=jitter), seeded()
    low_s, high_s = backoff_range_s(plan, 1)
    drawn = sorted(backoff_s(plan, 1, rng) for _ in range(1000))

    assert drawn[0] < low_s + 0.02 * (high_s - low_s)
    assert drawn[-1] > high_s - 0.02 * (high_s - low_s)
    assert sum(drawn) / 1000 == pytest.approx((low_s + high_s) / 2, rel=0.1)
    assert len(set(drawn)) == 1000


PLANS = st.builds(
    lambda base_s, multiplier, times, jitter: BackoffPlan(base_s, multiplier, base_s * times, jitter),
    base_s=st.floats(0.001, 60.0),
    multiplier=st.one_of(st.just(1.0), st.floats(1.0, 100.0)),
    times=st.one_of(st.just(1.0), st.floats(1.0, 1e6)),
    jitter=st.sampled_from(JITTERS),
)
UNIFORM = st.floats(0.0, 1.0, exclude_max=True)


@settings(deadline=None)  # a loaded machine is not a failure
@given(PLANS, st.lists(UNIFORM, min_size=1, max_size=40))
def test_no_pause_is_below_its_range_or_above_it_or_above_the_maximum(
    plan: BackoffPlan, uniforms: list[float]
) -> None:
    previous_s = None
    for n, uniform in enumerate(uniforms, start=1):
        previous_s = backoff_s(plan, n, constant(uniform), previous_s=previous_s)
        low_s, high_s = backoff_range_s(plan, n)

        assert 0.0 <= low_s <= previous_s <= high_s <= plan.max_s
        if plan.jitter in ("additive", "decorrelated", "none"):
            assert previous_s >= plan.base_s


@settings(deadline=None)
@given(PLANS, UNIFORM, st.integers(2, 60))
def test_with_equal_luck_no_pause_is_shorter_than_the_one_before(
    plan: BackoffPlan, uniform: float, count: int
) -> None:
    if plan.jitter == "decorrelated":
        uniform = max(uniform, 0.5)  # below that its pauses tend to a value of their own, from either side
    made = pauses(plan, count, uniform)

    assert all(later >= earlier for earlier, later in itertools.pairwise(made))


@settings(deadline=None)
@given(PLANS, UNIFORM, st.integers(1000, 10**9))
def test_after_any_number_of_retries_the_pause_is_the_one_of_the_maximum(
    plan: BackoffPlan, uniform: float, n: int
) -> None:
    if plan.multiplier == 1.0:
        settled = replace(plan, max_s=plan.base_s, jitter="none")  # it never grows
    elif plan.multiplier < 1.1:
        return  # a thousand steps may not be enough
    else:
        settled = replace(plan, jitter="none")
    bound_s = backoff_s(settled, n, constant(0.0))

    assert bound_s == settled.max_s
    if plan.jitter == "decorrelated":
        assert backoff_s(plan, n, constant(uniform), previous_s=plan.max_s) <= plan.max_s
    else:
        with_luck = backoff_s(plan, n, constant(uniform))
        at_the_bound = backoff_s(replace(plan, base_s=bound_s), 1, constant(uniform))
        assert with_luck == pytest.approx(at_the_bound)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(Outcome(status=429, sent=True), True, id="too many requests"),
        pytest.param(Outcome(status=429, sent=True, retry_after_s=0.0), True, id="and when to come back"),
        pytest.param(Outcome(status=503, sent=True), True, id="unavailable"),
        pytest.param(
            Outcome(status=503, sent=True, retry_after_s=0.0), False, id="and when it will be there"
        ),
        pytest.param(Outcome(status=500, sent=True), False, id="broken"),
        pytest.param(Outcome(fault=Fault.RESET, sent=True), False, id="no answer"),
    ],
)
def test_an_upstream_that_has_too_much_to_do_says_so(outcome: Outcome, expected: bool) -> None:
    assert is_throttled(outcome) is expected


def test_after_that_the_pause_begins_at_throttled_and_is_spread_like_the_rest() -> None:
    plan = BackoffPlan(0.025, 2.0, 10.0, throttled_s=1.0)

    assert [backoff_range_s(plan, n, throttled=True) for n in (1, 2, 9)] == [(0, 1.0), (0, 2.0), (0, 10.0)]
    assert [backoff_range_s(plan, n) for n in (1, 2)] == [(0, 0.025), (0, 0.05)]
    assert backoff_range_s(replace(plan, base_s=3.0), 1, throttled=True) == (0, 3.0)  # a longer base stays


def test_throttled_stands_in_for_a_shorter_maximum_and_stays_spread_in_every_way_but_none() -> None:
    """failures.md 11."""
    for jitter in JITTERS:
        plan = BackoffPlan(0.025, 2.0, 0.5, jitter, throttled_s=1.0)
        low_s, high_s = backoff_range_s(plan, 1, throttled=True)
        assert high_s == 1.0
        assert (low_s == high_s) is (jitter == "none")


def test_a_throttled_pause_no_longer_than_the_usual_one_changes_nothing() -> None:
    plan = BackoffPlan(1.0, 2.0, 1.0, "additive", throttled_s=1.0)

    assert backoff_range_s(plan, 1, throttled=True) == backoff_range_s(plan, 1) == (1.0, 1.0)


@pytest.mark.parametrize(("jitter", "longest_s"), [("additive", 2.0), ("decorrelated", 3.0)])
def test_a_throttled_pause_with_room_above_it_is_spread_as_the_file_says(
    jitter: Jitter, longest_s: float
) -> None:
    plan = BackoffPlan(0.025, 2.0, 10.0, jitter, throttled_s=1.0)

    assert backoff_range_s(plan, 1, throttled=True) == (1.0, longest_s)
