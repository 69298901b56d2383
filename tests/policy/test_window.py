from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.breaker.window import CountWindow, TimeWindow, Window


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


def test_what_is_counted_in_a_slot_is_in_the_totals_once_they_are_asked_for() -> None:
    window = TimeWindow(10.0)
    window.add(1000.5, 1)
    slot = window.open()
    assert (slot.begins_at, slot.ends_at) == (1000.0, 1001.0)

    for _ in range(3):
        slot.tick()

    assert (window.calls_so_far, window.calls) == (4, 1)
    assert (window.take_in(), window.take_in()) == (3, 0)
    assert (window.calls_so_far, window.calls, window.marked) == (4, 4, 1)
    assert window.turn(slot.place)
    window.advance(1010.0)
    assert (window.calls, window.marked) == (0, 0)


def test_a_thread_that_ticks_when_the_slot_is_no_longer_the_present_one_is_still_counted() -> None:
    window = TimeWindow(10.0)
    window.add(1000.5)
    late = window.open()
    window.add(1001.5)
    window.open()

    late.tick()

    assert window.take_in() == 0, "nothing came in the present slot"
    assert window.calls == 3
    window.advance(1010.0)
    assert window.calls == 1


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param(lambda window: window.clear(), id="cleared"),
        pytest.param(lambda window: window.give_up_slots(), id="given up"),
        pytest.param(lambda window: window.add(1020.0), id="its slice has left"),
    ],
)
def test_a_thread_that_ticks_too_late_is_counted_nowhere(forget: Callable[[TimeWindow], object]) -> None:
    window = TimeWindow(10.0)
    window.add(1000.5)
    late = window.open()
    forget(window)
    before = window.calls

    late.tick()
    window.open().tick()

    assert window.take_in() == 1
    assert window.calls == before + 1


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-2.0, 3.0), st.sampled_from(["add", "tick", "take in"])),
        max_size=60,
    )
)
def test_counting_in_slots_comes_to_what_counting_under_the_lock_does(steps: list[tuple[float, str]]) -> None:
    one, other, now = TimeWindow(5.0), TimeWindow(5.0), 1000.0
    for delta_s, how in steps:
        now += delta_s
        slot = one.slot
        if how == "tick" and slot is not None and slot.begins_at <= now < slot.ends_at:
            slot.tick()
            assert other.add(now) == slot.place
        elif how == "take in":
            one.advance(now)
            other.advance(now)
            assert one.calls == other.calls
        else:
            assert one.add(now) == other.add(now)
            one.open()

    one.take_in()
    assert one.calls == other.calls
    assert list(one.batches(now)) == list(other.batches(now))


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


def test_after_a_step_of_the_clock_calls_leave_a_window_that_had_become_empty_by_their_age() -> None:
    """failures.md 69. When a call would leave, by the clock as it was before, says nothing any more."""
    window = CountWindow(10, max_age_s=60.0)
    window.add(1_000_000.0)
    window.add(1_000_001.0)
    window.advance(1_000_100.0)

    window.add(1000.0)
    window.add(1100.0)

    assert window.calls == 1


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

    assert window.turn(first) is False
    assert window.turn(second)
    assert window.turn(second) is False  # marked already
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


# Everything that a window does, against a model that stores every call

SIZES_S = st.sampled_from([5.0, 10.0, 80.0])
STEPS_S = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0, 3.5, 8.0, 30.0, -0.5, -4.0, -2_000.0, -2_250.25])
ACTS = st.sampled_from(["add", "add", "add", "slow", "mark", "mark slow", "turn", "mend", "advance", "clear"])


@dataclass
class Stored:
    """A call as the model stores it; *slice_no* is that of its instant."""

    slice_no: int
    place: int
    marked: bool
    slow: bool


class ModelOfTime:
    """A window of ten slices that forgets nothing and counts when it is asked."""

    def __init__(self, size_s: float) -> None:
        self.slice_s = size_s / 10
        self.newest = 0
        self.stored: list[Stored] = []

    def see(self, now: float) -> None:
        slice_no = int(now // self.slice_s)
        if (
            now < (self.newest - 100) * self.slice_s - 900.0
        ):  # a step of the clock: what is held keeps its age
            for call in self.stored:
                call.slice_no += slice_no - self.newest
            self.newest = slice_no
        self.newest = max(self.newest, slice_no)

    @property
    def held(self) -> list[Stored]:
        return [call for call in self.stored if call.slice_no > self.newest - 10]


@settings(deadline=None, max_examples=100)
@given(SIZES_S, st.lists(st.tuples(STEPS_S, ACTS, st.integers(0, 59)), max_size=60), SIZES_S)
def test_a_time_window_does_what_a_model_does_that_stores_every_call(
    size_s: float, steps: list[tuple[float, str, int]], other_s: float
) -> None:
    # However often the clock is stepped back, it shows no negative time: no monotonic clock does.
    window, model, now = TimeWindow(size_s), ModelOfTime(size_s), 1_000_000.0
    for step_s, act, which in steps:
        now += step_s
        if act == "advance":
            window.advance(now)
            model.see(now)
        elif act == "clear":
            window.clear()
            model.stored.clear()
        elif act in ("turn", "mend"):
            if model.stored:
                call = model.stored[which % len(model.stored)]
                if call.marked is (act == "mend"):
                    assert window.turn(call.place, -1 if act == "mend" else 1) is (call in model.held)
                    call.marked = not call.marked
        else:
            place = window.add(now, int("mark" in act), int("slow" in act))
            model.see(now)
            model.stored.append(Stored(model.newest, place, "mark" in act, "slow" in act))

        held = model.held
        assert (window.calls, window.marked, window.slow) == _counts(held)
        assert window.oldest_calls == sum(call.slice_no == model.newest - 9 for call in held)

    now = max(now, (model.newest + 1) * model.slice_s)
    window.advance(now)
    model.see(now)
    other = TimeWindow(other_s)
    other.take_over(window, now)
    first = int(now // other.slice_s) - 9
    kept = [
        call for call in model.held if min(now, (call.slice_no + 1) * model.slice_s) // other.slice_s >= first
    ]
    assert (other.calls, other.marked, other.slow) == _counts(kept)
    assert not any(other.turn(call.place) for call in model.stored)


def _counts(calls: list[Stored]) -> tuple[int, int, int]:
    return len(calls), sum(call.marked for call in calls), sum(call.slow for call in calls)


@pytest.mark.parametrize("newer", [lambda: TimeWindow(10.0), lambda: CountWindow(8), lambda: TimeWindow(1.0)])
@pytest.mark.parametrize("older", [lambda: TimeWindow(10.0), lambda: CountWindow(8)])
def test_a_place_that_an_older_window_gave_out_names_nothing_in_the_one_that_took_over(
    older: Callable[[], Window], newer: Callable[[], Window]
) -> None:
    """A call that began before a reload and whose body breaks off after it must not turn another call's success."""
    before, after = older(), newer()
    places = [before.add(1000.0 + second) for second in range(8)]

    after.take_over(before, 1007.5)

    assert [after.turn(place) for place in places] == [False] * 8
    assert after.turn(after.add(1007.5)) is True


@pytest.mark.parametrize("window", [TimeWindow(10.0), CountWindow(8)], ids=["time", "count"])
def test_a_place_that_was_not_given_out_yet_names_nothing(window: Window) -> None:
    place = window.add(1000.0)

    assert window.turn(place + 1) is False


@pytest.mark.parametrize(("leaves_at", "calls"), [(2.25, 1), (2.5, 0)])
def test_a_count_window_begins_at_the_zero_of_the_clock_too(leaves_at: float, calls: int) -> None:
    window = CountWindow(8, max_age_s=2.0)
    window.add(0.5)

    window.advance(leaves_at)

    assert window.calls == calls


@pytest.mark.parametrize("window", [TimeWindow(10.0), CountWindow(8, max_age_s=10.0)], ids=["time", "count"])
def test_a_window_that_was_cleared_counts_on_from_nothing(window: Window) -> None:
    for _ in range(3):
        window.add(1000.0, 1, 1)
    window.clear()
    assert (window.calls, window.marked, window.slow) == (0, 0, 0)

    window.add(1005.0, 1)
    window.advance(1012.0)
    assert (window.calls, window.marked, window.slow) == (1, 1, 0)


def test_a_call_leaves_a_count_window_at_its_age_when_the_next_one_comes() -> None:
    window = CountWindow(8, max_age_s=2.0)
    window.add(1000.0, 1)
    window.add(1000.5)  # from here on, it knows when the first leaves

    window.add(1002.0)

    assert (window.calls, window.marked) == (2, 0)


@pytest.mark.parametrize("newer", [lambda: TimeWindow(10.0), lambda: CountWindow(8)])
def test_what_was_slow_and_what_failed_is_taken_over_call_by_call(newer: Callable[[], Window]) -> None:
    older, window = CountWindow(8), newer()
    for marked, slow in [(1, 0), (0, 1), (1, 1), (0, 0)]:
        older.add(1000.0, marked, slow)

    window.take_over(older, 1000.0)

    assert (window.calls, window.marked, window.slow) == (4, 2, 2)


def test_of_a_slice_the_slow_and_the_failed_are_taken_for_the_newest() -> None:
    older, window = TimeWindow(10.0), CountWindow(2)
    for marked, slow in [(1, 1), (0, 0), (0, 0), (0, 0)]:
        older.add(1000.0, marked, slow)

    window.take_over(older, 1000.0)

    assert (window.calls, window.marked, window.slow) == (2, 1, 1)


def test_what_is_too_old_by_the_time_of_the_reload_is_not_taken_over() -> None:
    older, window = CountWindow(8), CountWindow(8, max_age_s=2.0)
    older.add(1000.0)
    window.take_over(older, 1000.0)  # it has no ages: what it holds is as young as can be
    assert window.calls == 1

    aged = CountWindow(8, max_age_s=10.0)
    aged.add(1000.0)
    young = CountWindow(8, max_age_s=2.0)
    young.take_over(aged, 1005.0)
    assert young.calls == 0


@pytest.mark.parametrize(("at", "calls"), [(8_100.0, 3), (8_099.0, 0)])
def test_a_call_that_comes_too_early_for_a_late_thread_tells_of_a_step_of_the_clock(
    at: float, calls: int
) -> None:
    """failures.md 69."""
    window = CountWindow(10, max_age_s=100.0)
    window.add(10_000.0)
    window.add(10_000.0)  # from the second on, it knows when the first leaves

    window.add(at)
    window.advance(8_200.0)

    assert window.calls == calls
