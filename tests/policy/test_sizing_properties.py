"""What holds for the size rule whatever happens to the pool: bounds, causes, distances, replay."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.plan import AdaptivePlan
from headrace.policy.sizing import EVALUATE_EVERY_S, PoolLoad, Resize, ResizeReason, Sizing

MIN, MAX = 3, 40


@dataclass(frozen=True)
class Happening:
    """What the pool saw: after *gap_s*, *calls* more have come; somebody begins to wait, or housekeeping looks."""

    gap_s: float
    calls: int
    enqueued: bool
    waiting: int
    inuse_share: float


PLANS = st.builds(
    AdaptivePlan,
    min=st.just(MIN),
    grow_when_waiting=st.sampled_from([0.0, 0.3, 2.0]),
    grow_when_rate=st.sampled_from([0.0, 1.0, 1.5]),
    shrink_when_rate=st.sampled_from([0.0, 0.7, 1.0, 100.0]),
    shrink_after_s=st.sampled_from([0.5, 5.0, 30.0]),
    rate_window_s=st.sampled_from([1.0, 10.0, 60.0]),
    connections_per_rps=st.sampled_from([0.0, 0.1, 3.0]),
)
HAPPENINGS = st.lists(
    st.builds(
        Happening,
        gap_s=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0, 7.0, 45.0, 4000.0]),
        calls=st.sampled_from([0, 1, 5, 400]),
        enqueued=st.booleans(),
        waiting=st.sampled_from([0, 0, 1, 2, 30]),
        inuse_share=st.floats(0.0, 1.0),
    ),
    max_size=80,
)


@dataclass(frozen=True)
class Entry:
    """One line of a log: what was fed, and what was answered."""

    now: float
    enqueued: bool
    load: PoolLoad
    answer: Resize | None


def played(plan: AdaptivePlan, happenings: list[Happening]) -> list[Entry]:
    """The log of a pool to which *happenings* happened; each answer is applied at once."""
    sizing = Sizing(plan, max_connections=MAX)
    size, now, arrivals = MIN, 1000.0, 7
    log = []
    for one in happenings:
        now += one.gap_s
        arrivals += one.calls
        waiting = max(one.waiting, 1) if one.enqueued else one.waiting
        load = PoolLoad(waiting, round(one.inuse_share * size), size, arrivals)
        answer = fed(sizing, now, one.enqueued, load)
        log.append(Entry(now, one.enqueued, load, answer))
        size = size if answer is None else answer.to_size
    return log


def fed(sizing: Sizing, now: float, enqueued: bool, load: PoolLoad) -> Resize | None:
    return sizing.enqueued(now, load) if enqueued else sizing.looked(now, load)


@given(PLANS, HAPPENINGS)
def test_the_size_stays_between_min_and_max(plan: AdaptivePlan, happenings: list[Happening]) -> None:
    answers = [entry.answer for entry in played(plan, happenings) if entry.answer is not None]

    assert all(MIN <= answer.to_size <= MAX for answer in answers)
    assert all(answer.to_size != answer.from_size for answer in answers)


@given(PLANS, HAPPENINGS)
def test_it_never_grows_without_enough_waiting_and_only_when_somebody_begins_to_wait(
    plan: AdaptivePlan, happenings: list[Happening]
) -> None:
    for entry in played(plan, happenings):
        if entry.answer is not None and entry.answer.to_size > entry.load.size:
            assert entry.enqueued
            assert entry.load.waiting > plan.grow_when_waiting * entry.load.size
            assert entry.answer.reason is ResizeReason.WAITING


@given(PLANS, HAPPENINGS)
def test_it_never_grows_at_a_rate_that_is_not_above_the_usual_one(
    plan: AdaptivePlan, happenings: list[Happening]
) -> None:
    for entry in played(plan, happenings):
        answer = entry.answer
        if answer is not None and answer.reason is ResizeReason.WAITING and answer.baseline_rps is not None:
            assert answer.rate_rps > plan.grow_when_rate * answer.baseline_rps


@given(PLANS, HAPPENINGS)
def test_it_never_shrinks_until_nothing_has_waited_and_changed_for_long_enough(
    plan: AdaptivePlan, happenings: list[Happening]
) -> None:
    last_resize_at = last_waited_at = None
    evaluated_until = float("-inf")
    for entry in played(plan, happenings):
        answer = entry.answer
        if answer is not None and answer.to_size < entry.load.size:
            assert answer.reason is ResizeReason.SURPLUS
            assert not entry.enqueued
            assert entry.load.waiting == 0
            for since in (last_resize_at, last_waited_at):
                assert since is None or entry.now - since >= plan.shrink_after_s
            assert answer.baseline_rps is not None
            assert answer.rate_rps < plan.shrink_when_rate * answer.baseline_rps
        if answer is not None:
            last_resize_at = entry.now
        throttled = entry.enqueued and entry.now < evaluated_until
        if entry.load.waiting and not throttled:
            last_waited_at = entry.now
        if entry.enqueued and not throttled:
            evaluated_until = entry.now + EVALUATE_EVERY_S


@given(PLANS, HAPPENINGS)
def test_two_steps_up_are_a_tenth_of_a_second_apart(plan: AdaptivePlan, happenings: list[Happening]) -> None:
    steps = [
        entry.now
        for entry in played(plan, happenings)
        if entry.answer is not None and entry.answer.reason is ResizeReason.WAITING
    ]

    assert all(later >= earlier + EVALUATE_EVERY_S for earlier, later in pairwise(steps))


@given(PLANS, HAPPENINGS)
@settings(max_examples=50)
def test_a_recorded_log_gives_the_same_sizes_again(plan: AdaptivePlan, happenings: list[Happening]) -> None:
    log = played(plan, happenings)
    sizing = Sizing(plan, max_connections=MAX)

    assert [fed(sizing, entry.now, entry.enqueued, entry.load) for entry in log] == [
        entry.answer for entry in log
    ]


@given(PLANS, HAPPENINGS)
@settings(max_examples=50)
def test_what_next_at_says_need_not_be_asked_makes_no_difference_when_it_is_not(
    plan: AdaptivePlan, happenings: list[Happening]
) -> None:
    log = played(plan, happenings)
    sizing = Sizing(plan, max_connections=MAX)

    answers = [
        None
        if entry.enqueued and entry.now < sizing.next_at
        else fed(sizing, entry.now, entry.enqueued, entry.load)
        for entry in log
    ]

    assert answers == [entry.answer for entry in log]
