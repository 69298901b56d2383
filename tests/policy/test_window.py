from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.breaker.window import CountWindow, TimeWindow


def test_a_fresh_window_counts_nothing() -> None:
    window = TimeWindow(10.0)

    assert (window.calls, window.marked) == (0, 0)


def test_a_call_is_counted_until_its_slice_has_left_the_window() -> None:
    window = TimeWindow(10.0)
    window.add(1000.5, 1)

    window.advance(1009.9)
    assert (window.calls, window.marked) == (1, 1)
    window.advance(1010.0)
    assert (window.calls, window.marked) == (0, 0)


def test_a_long_silence_empties_the_window_in_one_step() -> None:
    window = TimeWindow(10.0)
    window.add(1000.0, 2, 1, 3)

    window.add(1e9)

    assert (window.calls, window.marked) == (1, 0)


def test_clear_forgets_all_and_counting_goes_on() -> None:
    window = TimeWindow(10.0)
    window.add(1000.0, 2, 1, 3)

    window.clear()
    window.add(1001.0, 1)

    assert (window.calls, window.marked) == (1, 1)


def test_a_clock_step_backwards_neither_empties_nor_freezes_the_window() -> None:
    """failures.md 8.

    Monotonic clocks do not step, but threads hand in instants out of order.
    """
    window = TimeWindow(10.0)
    window.add(1000.0, 1)

    window.add(400.0, 1)
    window.advance(400.0)
    assert (window.calls, window.marked) == (2, 2)
    window.add(1000.5)
    assert (window.calls, window.marked) == (3, 2)

    window.advance(1010.0)
    assert (window.calls, window.marked) == (0, 0)


@settings(deadline=None)  # a loaded machine is not a failure
@given(
    st.lists(st.tuples(st.floats(-2.0, 30.0), st.booleans()), max_size=60), st.sampled_from([0.5, 1.0, 10.0])
)
def test_the_counts_equal_those_of_a_model_that_stores_every_call(
    steps: list[tuple[float, bool]], size_s: float
) -> None:
    window = TimeWindow(size_s)
    stored: list[tuple[int, bool]] = []
    now, newest = 1000.0, 0

    for delta_s, marked in steps:
        now += delta_s
        newest = max(newest, int(now // (size_s / 10)))
        stored.append((newest, marked))
        window.add(now, int(marked))

        kept = [was_marked for number, was_marked in stored if number > newest - 10]
        assert (window.calls, window.marked) == (len(kept), sum(kept))


# Windows of calls


def test_a_count_window_holds_the_last_calls() -> None:
    window = CountWindow(3)
    for marked, slow in [(1, 1), (0, 1), (1, 0), (0, 0)]:
        window.add(1000.0, marked, slow)

    assert (window.calls, window.marked, window.slow) == (3, 1, 1)


def test_a_call_leaves_a_count_window_at_its_age() -> None:
    window = CountWindow(100, max_age_s=2.0)
    window.add(1000.0, 1)
    window.add(1001.0)

    window.advance(1001.9)
    assert (window.calls, window.marked) == (2, 1)
    window.advance(1002.0)
    assert (window.calls, window.marked) == (1, 0)


def test_a_clock_step_backwards_does_not_disturb_a_count_window() -> None:
    """failures.md 8."""
    window = CountWindow(100, max_age_s=2.0)
    window.add(1000.0, 1)

    window.add(400.0, 1)
    window.advance(300.0)
    assert (window.calls, window.marked) == (2, 2)

    window.advance(1002.0)
    assert (window.calls, window.marked) == (0, 0)


@pytest.mark.parametrize("make", [lambda: TimeWindow(100.0), lambda: CountWindow(10, max_age_s=100.0)])
def test_ten_windows_and_a_quarter_of_an_hour_back_a_thread_was_late_and_beyond_the_clock_has_stepped(
    make: Callable[[], TimeWindow | CountWindow],
) -> None:
    """failures.md 69."""
    window = make()
    window.add(10_000.0, 1)

    window.advance(8_100.0)
    window.advance(9_000.0)
    assert window.calls == 1

    window.advance(8_099.0)
    window.advance(8_189.0)
    assert (window.calls, window.marked) == (1, 1)
    window.advance(8_200.0)
    assert (window.calls, window.marked) == (0, 0)


def test_a_call_that_is_counted_after_a_step_of_the_clock_leaves_at_its_age() -> None:
    """failures.md 69."""
    window = CountWindow(10, max_age_s=0.1)
    window.add(10_000.0, 1)
    window.add(10_000.0, 1)  # from the second on, it knows when the first leaves

    window.add(9_080.0)
    window.advance(9_080.2)

    assert (window.calls, window.marked) == (0, 0)


def test_a_window_begins_at_the_zero_of_the_clock() -> None:
    window = TimeWindow(10.0)

    assert window.turn(window.add(0.5))

    window.advance(9.9)
    assert (window.calls, window.marked) == (1, 1)
    window.advance(10.0)
    assert (window.calls, window.marked) == (0, 0)


def test_what_a_place_names_can_be_marked_until_it_has_left() -> None:
    window = CountWindow(2)
    first, second = window.add(1000.0), window.add(1000.0)
    window.add(1000.0)

    assert not window.turn(first)
    assert window.turn(second)
    assert not window.turn(second)  # marked already
    assert (window.calls, window.marked) == (2, 1)


@settings(deadline=None)  # a loaded machine is not a failure
@given(
    st.lists(st.tuples(st.floats(-2.0, 3.0), st.booleans(), st.booleans(), st.booleans()), max_size=60),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([None, 1.0, 5.0]),
)
def test_a_count_window_equals_a_model_that_stores_every_call(
    steps: list[tuple[float, bool, bool, bool]], size: int, max_age_s: float | None
) -> None:
    window = CountWindow(size, max_age_s=max_age_s)
    stored: list[list[float | bool]] = []  # at, marked, slow
    now, newest = 1000.0, 0.0

    for delta_s, marked, slow, turns in steps:
        now += delta_s
        newest = max(newest, now)
        stored.append([newest, marked, slow])
        place = window.add(now, int(marked), int(slow))
        if turns and window.turn(place):
            stored[-1][1] = True

        kept = stored[-size:]
        if max_age_s is not None:
            kept = [one for one in kept if one[0] + max_age_s > newest]
        assert (window.calls, window.marked, window.slow) == (
            len(kept),
            sum(one[1] for one in kept),
            sum(one[2] for one in kept),
        )
