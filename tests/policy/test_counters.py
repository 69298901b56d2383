"""Totals: what a bucket holds, what a tick costs nobody, and which of them stand together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.breaker.permit import Permit
from headrace.policy.counters import (
    DURATION_BUCKETS_S,
    MANY,
    PROTECTED_OUTCOMES,
    Exemplar,
    Histogram,
    Ticker,
    UpstreamCounters,
    add,
    totals_of,
)
from headrace.policy.gate import settle
from support.interrupts import interrupted_at
from support.plans import circuit_plan
from support.virtual import seeded


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0.0, 0), (0.005, 0), (0.006, 1), (30.0, 11), (30.1, 12)],
)
def test_a_value_is_counted_up_to_the_bound_that_it_equals(value: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(value)

    assert [index for index, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.sum == value


@given(
    st.lists(
        st.floats(0.0, 100.0) | st.sampled_from([*DURATION_BUCKETS_S, *(2 * b for b in DURATION_BUCKETS_S)])
    )
)
def test_many_values_at_once_count_as_one_after_the_other(values: list[float]) -> None:
    """Most of all those that equal a bound."""
    one_by_one, at_once = Histogram(), Histogram()
    for value in values:
        one_by_one.observe(value)
    half = len(values) // 2
    at_once.observe_all(values[:half])
    at_once.observe_all(values[half:])
    assert at_once.counts == one_by_one.counts
    assert at_once.sum == pytest.approx(one_by_one.sum)


def test_a_bucket_shows_the_latest_of_its_exemplars() -> None:
    histogram = Histogram((1, 2))
    first, second, other = (
        Exemplar("a" * 32, "b" * 16, 0.5, 1.0),
        Exemplar("c" * 32, "d" * 16, 1.0, 2.0),
        Exemplar("e" * 32, "f" * 16, 9.0, 3.0),
    )
    for exemplar in (first, second, other):
        histogram.exemplify(exemplar)

    assert histogram.exemplars == {0: second, 2: other}


def test_a_look_at_a_ticker_is_not_counted_and_its_copy_goes_on_from_there() -> None:
    ticker = Ticker(3)
    ticker.tick()
    assert (ticker.total(), ticker.total()) == (4, 4)

    copy = ticker.copy()
    copy.tick()

    assert (ticker.total(), copy.total()) == (4, 5)


def test_tickers_that_have_not_ticked_are_in_no_total() -> None:
    tickers = {outcome: Ticker() for outcome in PROTECTED_OUTCOMES}
    tickers["failure"].tick()

    assert totals_of(tickers) == {"failure": 1}


def test_a_copy_of_the_counters_is_apart_from_them() -> None:
    counters = UpstreamCounters()
    add(counters.requests, "2xx", 2)
    counters.resent += 1
    counters.protected["success"].tick()
    counters.wait.observe(0.01)
    copy = counters.copy()

    add(counters.requests, "2xx")
    counters.resent += 1
    counters.protected["success"].tick()
    counters.wait.observe(0.01)

    assert (copy.requests, copy.resent, totals_of(copy.protected)) == ({"2xx": 2}, 1, {"success": 1})
    assert (sum(copy.wait.counts), copy.wait.bounds) == (1, counters.wait.bounds)


def test_calls_that_were_answered_at_once_are_added_up_for_the_reader() -> None:
    counters = UpstreamCounters()
    counters.answered.extend(
        [("2xx", 0.02, 3.0, False), ("2xx", 0.3, -1.0, True), ("2xx", 0.02, None, False)]
    )
    add(counters.requests, "2xx")

    for _ in range(2):  # once, however often they are read
        copy = counters.copy()
        assert (copy.requests, copy.attempts, len(copy.answered)) == ({"2xx": 4}, {"2xx": 3}, 0)
        assert (copy.attempts_per_call.counts[0], copy.attempts_per_call.sum) == (3, 3)
        assert (copy.duration.counts[2], copy.duration.counts[6], copy.duration.sum) == (
            2,
            1,
            pytest.approx(0.34),
        )
        assert (copy.deadline_left.counts[0], copy.deadline_left.counts[9]) == (1, 1)
        assert (sum(copy.deadline_left.counts), copy.deadline_left.sum) == (2, 3.0)
        assert copy.own_timeouts == 1


def test_eight_threads_that_settle_and_one_that_reads_lose_nothing() -> None:
    counters, per_thread = UpstreamCounters(lock=threading.Lock()), 5000
    circuit = Circuit(circuit_plan(), rng=seeded(), lock=threading.Lock())
    permit = circuit.acquire(1.0)
    assert isinstance(permit, Permit)
    left: list[int] = [8]

    def read() -> None:
        while left[0]:
            copy = counters.copy()
            assert sum(copy.duration.counts) == copy.requests.get("2xx", 0) == copy.attempts.get("2xx", 0)

    def call() -> None:
        for _ in range(per_thread):
            settle(circuit, permit, counters, "2xx", 1.0, duration_s=0.01, took_s=0.01, left_s=1.0)
            assert len(counters.answered) < MANY + 8, "they are not left to whoever looks"

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        for one in [pool.submit(call) for _ in range(8)]:
            one.result(60)
        left[0] = 0
        reader.result(60)

    copy = counters.copy()
    assert copy.requests == copy.attempts == {"2xx": 8 * per_thread}
    assert sum(copy.duration.counts) == sum(copy.deadline_left.counts) == 8 * per_thread
    assert copy.duration.sum == pytest.approx(8 * per_thread * 0.01)


def test_an_interrupt_while_calls_are_added_up_loses_none_and_adds_none_twice() -> None:
    for point in range(1, 200):
        counters = UpstreamCounters(lock=threading.RLock())
        for _ in range(10):
            counters.answered.append(("2xx", 0.01, 1.0, True))
        was_hit = interrupted_at(point, counters.add_up)
        found = counters.copy()
        assert (
            *(found.requests["2xx"], found.attempts["2xx"], sum(found.duration.counts)),
            *(sum(found.deadline_left.counts), found.attempts_per_call.counts[0], found.own_timeouts),
        ) == (10,) * 6
        assert not counters.answered
        if not was_hit:
            break
    assert 10 < point < 199
