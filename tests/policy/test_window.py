from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.window import TimeWindow


def test_a_fresh_window_counts_nothing() -> None:
    window = TimeWindow(10.0)

    assert (window.calls, window.marked) == (0, 0)


def test_a_call_is_counted_until_its_slice_has_left_the_window() -> None:
    window = TimeWindow(10.0)
    window.add(1000.5, 1, 1)

    window.advance(1009.9)
    assert (window.calls, window.marked) == (1, 1)
    window.advance(1010.0)
    assert (window.calls, window.marked) == (0, 0)


def test_a_long_silence_empties_the_window_in_one_step() -> None:
    window = TimeWindow(10.0)
    window.add(1000.0, 3, 2)

    window.add(1e9, 1, 0)

    assert (window.calls, window.marked) == (1, 0)


def test_clear_forgets_all_and_counting_goes_on() -> None:
    window = TimeWindow(10.0)
    window.add(1000.0, 3, 2)

    window.clear()
    window.add(1001.0, 1, 1)

    assert (window.calls, window.marked) == (1, 1)


def test_a_clock_step_backwards_neither_empties_nor_freezes_the_window() -> None:
    """Pitfall 8.

    Monotonic clocks do not step, but threads hand in instants out of order.
    """
    window = TimeWindow(10.0)
    window.add(1000.0, 1, 1)

    window.add(400.0, 1, 1)
    window.advance(400.0)
    assert (window.calls, window.marked) == (2, 2)

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
        window.add(now, 1, int(marked))

        kept = [was_marked for number, was_marked in stored if number > newest - 10]
        assert (window.calls, window.marked) == (len(kept), sum(kept))
