"""The size rule of an adaptive pool: when it grows, when it shrinks, by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.policy.plan import AdaptivePlan
from headrace.policy.sizing import PoolLoad, Resize, ResizeReason, Sizing

T0 = 1000.0
PLAN = AdaptivePlan(
    min=10,
    grow_when_waiting=0.3,
    grow_when_rate=1.5,
    shrink_when_rate=0.7,
    shrink_after_s=30.0,
    rate_window_s=60.0,
    connections_per_rps=0.1,
)


class Pool:
    """A pool under a steady or changing rate of calls, second by second; nothing waits unless said."""

    def __init__(self, plan: AdaptivePlan = PLAN, *, size: int = 10, max_connections: int = 200) -> None:
        self.sizing = Sizing(plan, max_connections=max_connections)
        self.now = T0
        self.size = size
        self.arrivals = 0
        self.inuse = 0
        self.sizing.looked(self.now, self.load(0))

    def load(self, waiting: int) -> PoolLoad:
        return PoolLoad(waiting=waiting, inuse=self.inuse, size=self.size, arrivals=self.arrivals)

    def run(self, seconds: int, *, rps: int) -> list[Resize]:
        """Let time pass at *rps*, housekeeping once a second; what was answered, applied."""
        answers = []
        for _ in range(seconds):
            self.now += 1.0
            self.arrivals += rps
            answers.append(self.apply(self.sizing.looked(self.now, self.load(0))))
        return [answer for answer in answers if answer is not None]

    def wait(self, waiting: int, *, later_s: float = 0.0) -> Resize | None:
        """One more call has to wait."""
        self.now += later_s
        self.arrivals += 1
        return self.apply(self.sizing.enqueued(self.now, self.load(waiting)))

    def apply(self, answer: Resize | None) -> Resize | None:
        if answer is not None:
            self.size = answer.to_size
        return answer


def surging(*, size: int = 10, **changes: float) -> Pool:
    """A pool whose usual rate is about 21 and whose rate of the last minute is about 40."""
    pool = Pool(replace(PLAN, **changes), size=size)
    pool.run(60, rps=20)
    pool.run(60, rps=40)
    return pool


def test_it_grows_when_many_wait_and_calls_come_faster_than_usual() -> None:
    pool = surging()

    answer = pool.wait(4)

    assert answer is not None
    assert (answer.from_size, answer.to_size, answer.reason) == (10, 14, ResizeReason.WAITING)
    assert answer.waiting == 4
    assert answer.rate_rps == pytest.approx(40, abs=0.1)
    assert answer.baseline_rps == pytest.approx(20.7, abs=0.5)


@pytest.mark.parametrize(
    ("size", "waiting", "grows"),
    [
        pytest.param(10, 3, False, id="exactly the share does not do"),
        pytest.param(10, 4, True, id="one more does"),
        pytest.param(100, 30, False, id="the share of a larger pool is larger"),
        pytest.param(100, 31, True, id="and one more does there too"),
        pytest.param(1, 1, True, id="in a pool of one a single waiter is many"),
    ],
)
def test_how_many_must_wait(size: int, waiting: int, grows: bool) -> None:
    assert (surging(size=size).wait(waiting) is not None) is grows


def test_however_many_wait_it_does_not_grow_at_the_usual_rate() -> None:
    pool = Pool()
    pool.run(120, rps=40)

    assert pool.wait(1000) is None


def test_before_the_first_full_minute_waiting_alone_decides() -> None:
    pool = Pool()
    pool.run(10, rps=40)

    answer = pool.wait(4)

    assert answer is not None
    assert (answer.to_size, answer.baseline_rps) == (14, None)


def test_before_the_first_full_minute_it_does_not_shrink() -> None:
    pool = Pool(size=50)

    assert pool.run(59, rps=0) == []


@pytest.mark.parametrize(
    ("per_rps", "step"),
    [
        pytest.param(0.1, 4, id="a connection for ten calls per second"),
        pytest.param(0.19, 7, id="rounded down"),
        pytest.param(0.0, 1, id="at least one"),
        pytest.param(1000.0, 190, id="at most up to max_connections"),
    ],
)
def test_a_step_of_growth_goes_by_the_rate(per_rps: float, step: int) -> None:
    answer = surging(connections_per_rps=per_rps).wait(500)

    assert answer is not None
    assert answer.to_size - answer.from_size == step


def test_growth_is_considered_every_hundred_milliseconds_at_most() -> None:
    pool = surging()

    assert pool.wait(50) is not None
    assert pool.wait(50, later_s=0.05) is None
    assert pool.wait(50, later_s=0.0499) is None
    assert pool.wait(50, later_s=0.0002) is not None


def test_what_comes_between_two_considerations_is_not_remembered() -> None:
    pool, other = surging(), surging()
    for one in (pool, other):
        one.wait(0)
    for _ in range(5):
        pool.sizing.enqueued(pool.now + 0.01, pool.load(77))

    assert pool.run(60, rps=0) == other.run(60, rps=0)


def test_at_max_connections_it_is_as_large_as_it_gets() -> None:
    pool = surging(size=200)

    assert pool.wait(1000) is None


def quiet(*, size: int = 50, peak_inuse: int = 10, **changes: float) -> Pool:
    """A pool whose usual rate is about 39 and at which nothing has come since just now."""
    pool = Pool(replace(PLAN, **changes), size=size)
    pool.run(60, rps=40)
    pool.wait(1)
    pool.inuse = peak_inuse
    return pool


def test_it_shrinks_by_half_of_what_was_not_in_use_when_calls_come_slower_and_nobody_waits() -> None:
    pool = quiet()

    answers = pool.run(30, rps=10)

    assert [(one.from_size, one.to_size, one.reason) for one in answers] == [(50, 30, ResizeReason.SURPLUS)]
    assert (answers[0].peak_inuse, answers[0].waiting) == (10, 0)
    assert answers[0].rate_rps < 0.7 * (answers[0].baseline_rps or 0)


def test_it_does_not_shrink_at_the_usual_rate() -> None:
    assert quiet().run(600, rps=30) == []


def test_it_waits_the_whole_time_after_somebody_waited() -> None:
    pool = quiet()
    pool.run(29, rps=0)
    pool.wait(1)

    assert pool.run(29, rps=0) == []
    assert len(pool.run(1, rps=0)) == 1


def test_somebody_who_still_waits_counts_at_each_look() -> None:
    pool = quiet()
    for _ in range(100):
        pool.now += 1.0
        assert pool.sizing.looked(pool.now, pool.load(1)) is None


def test_each_step_down_takes_another_thirty_seconds() -> None:
    pool = quiet()

    sizes = [len(pool.run(30, rps=0)) for _ in range(4)]

    assert sizes == [1, 1, 1, 1]
    assert pool.size == 13  # 50, 30, 20, 15, 13


def test_it_does_not_shrink_right_after_it_has_grown() -> None:
    pool = surging()
    assert pool.wait(4) is not None

    assert pool.run(29, rps=0) == []


@pytest.mark.parametrize(
    ("size", "peak", "to_size"),
    [
        pytest.param(50, 10, 30, id="half of the rest"),
        pytest.param(50, 11, 31, id="half, rounded down"),
        pytest.param(12, 11, 11, id="at least one"),
        pytest.param(12, 12, 11, id="at least one, even if all were in use at once: nobody waited"),
        pytest.param(11, 0, 10, id="never below min"),
    ],
)
def test_a_step_down(size: int, peak: int, to_size: int) -> None:
    answers = quiet(size=size, peak_inuse=peak).run(30, rps=0)

    assert [answer.to_size for answer in answers] == [to_size]


def test_at_min_it_is_as_small_as_it_gets() -> None:
    assert quiet(size=10, peak_inuse=0).run(600, rps=0) == []


def test_a_peak_counts_for_as_long_as_it_is_quiet_and_no_longer() -> None:
    pool = quiet(peak_inuse=40)
    pool.run(1, rps=0)
    pool.inuse = 0

    assert [one.to_size for one in pool.run(29, rps=0)] == [45]  # (50 - 40) // 2
    assert [one.to_size for one in pool.run(30, rps=0)] == [23]  # (45 - 0) // 2


def test_the_baseline_forgets_half_in_ten_minutes() -> None:
    pool = Pool()
    pool.run(60, rps=40)
    assert pool.sizing.baseline_rps == pytest.approx(40.0)

    pool.run(60, rps=0)  # until the rate itself is 0
    before = pool.sizing.baseline_rps
    pool.run(600, rps=0)

    assert before is not None
    assert pool.sizing.baseline_rps == pytest.approx(before / 2)


def test_the_baseline_begins_with_the_first_full_minute() -> None:
    pool = Pool()

    pool.run(59, rps=40)
    assert pool.sizing.baseline_rps is None
    pool.run(1, rps=40)
    assert pool.sizing.baseline_rps == pytest.approx(40.0)


def test_the_rate_is_over_the_last_minute() -> None:
    pool = Pool(replace(PLAN, connections_per_rps=1.0, grow_when_rate=0.0))
    pool.run(100, rps=100)
    pool.run(60, rps=7)

    answer = pool.wait(50)

    assert answer is not None
    assert answer.rate_rps == pytest.approx(7, abs=0.1)


def test_the_first_calls_of_a_process_are_not_a_rate_of_thousands() -> None:
    pool = Pool()
    pool.arrivals += 30
    pool.now += 0.001

    answer = pool.wait(20)

    assert answer is not None
    assert answer.to_size == 13


def test_a_clock_that_is_read_out_of_order_changes_nothing() -> None:
    pool = quiet()

    pool.sizing.looked(pool.now - 5.0, pool.load(0))

    assert [one.to_size for one in pool.run(30, rps=0)] == [30]
    assert pool.sizing.baseline_rps is not None


def test_counters_that_begin_elsewhere_make_no_difference() -> None:
    sizing = Sizing(PLAN, max_connections=200)
    for second in range(61):
        sizing.looked(T0 + second, PoolLoad(waiting=0, inuse=0, size=10, arrivals=10**9 + 5 * second))

    assert sizing.baseline_rps == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("changes", "waiting"),
    [
        pytest.param({"grow_when_rate": 1.0}, 9, id="growth"),
        pytest.param({"shrink_when_rate": 1.0}, 0, id="shrinking"),
    ],
)
def test_at_exactly_the_usual_rate_the_size_stays(changes: dict[str, float], waiting: int) -> None:
    sizing = Sizing(replace(PLAN, **changes), max_connections=200)
    for second in range(200):
        load = PoolLoad(waiting=0, inuse=0, size=20, arrivals=40 * second)
        assert sizing.looked(T0 + second, load) is None

    assert sizing.enqueued(T0 + second, replace(load, waiting=waiting)) is None


@pytest.mark.parametrize(
    ("later_s", "is_due"),
    [
        pytest.param(0.0, True, id="at the instant"),
        pytest.param(-0.0625, False, id="before it"),
        pytest.param(-900.0, False, id="by a thread that is late"),
        pytest.param(-900.25, True, id="by a clock that was stepped back"),
    ],
)
def test_growth_is_considered_from_the_instant_on_that_is_told(later_s: float, is_due: bool) -> None:
    sizing = Sizing(PLAN, max_connections=200)
    sizing.enqueued(T0, PoolLoad(waiting=0, inuse=0, size=10, arrivals=0))

    assert sizing.is_due(sizing.next_at + later_s) is is_due


def test_after_a_peak_has_passed_the_next_highest_counts_and_not_a_lull_between_them() -> None:
    pool = quiet(peak_inuse=40)
    for seconds, inuse in ((1, 40), (4, 5)):
        pool.inuse = inuse
        pool.run(seconds, rps=0)
    pool.wait(1)  # from here on it has to be quiet for half a minute
    pool.inuse = 10
    pool.run(5, rps=0)
    pool.inuse = 3

    answers = pool.run(25, rps=0)

    assert [(one.to_size, one.peak_inuse) for one in answers] == [(30, 10)]


def test_an_instant_as_early_as_a_late_thread_may_be_is_that_of_one() -> None:
    sizing = Sizing(PLAN, max_connections=200)
    sizing.enqueued(T0, PoolLoad(waiting=0, inuse=0, size=10, arrivals=0))

    assert sizing.is_due(sizing.next_at - 0.1 - 900.0) is False


def test_a_peak_as_old_as_the_quiet_that_is_asked_for_counts() -> None:
    pool = quiet()
    pool.inuse = 40
    pool.wait(1, later_s=0.125)
    pool.inuse = 0

    assert [one.to_size for one in pool.run(30, rps=0)] == [45]  # (50 - 40) // 2


@pytest.mark.parametrize(
    ("step_s", "steps"),
    [
        pytest.param(1.0, 61, id="a sixtieth of the window apart, all are kept"),
        pytest.param(0.99, 63, id="closer together, every second"),
    ],
)
def test_the_rate_is_exact_to_a_sixtieth_of_its_window(step_s: float, steps: int) -> None:
    pool = Pool(size=50)
    answers = []
    for step in range(steps):
        pool.now = T0 + step_s * (step + 1)
        pool.arrivals += 10 * (step == 0)
        answers.append(pool.sizing.looked(pool.now, pool.load(0)))

    assert answers[:-1] == [None] * (steps - 1)  # the first calls count until their sample is a window old
    assert answers[-1] is not None
    assert answers[-1].rate_rps == 0.0


def test_who_is_late_turns_no_time_back() -> None:
    pool = Pool(size=50)
    pool.run(60, rps=40)
    pool.sizing.enqueued(pool.now - 1.0, pool.load(1))  # it has read the clock before the look of just now

    assert pool.run(29, rps=0) == []
    assert len(pool.run(1, rps=0)) == 1
