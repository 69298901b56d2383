"""The limits of one event loop: virtual time, but for what only a real loop can show."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from math import inf
from typing import Any
from weakref import ref

import pytest

from headrace.clock import monotonic
from headrace.transport.loop_deadlines import TICK_S, Limit, LoopDeadlines, deadlines_of
from headrace.transport.standstill import MOST_GRACES
from support.loops import OnLoop


class Timers:
    """The timers of a loop whose time is `now`; at most one is set, as far as we go."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], object]]] = []
        self.fired = 0

    def call_later(self, delay_s: float, act: Callable[[], object], *, context: Any = None) -> Any:
        entry = (self.now + delay_s, act)
        self.due.append(entry)
        timers = self

        class Handle:
            def cancel(self) -> None:
                if entry in timers.due:
                    timers.due.remove(entry)

        return Handle()

    def go(self, to: float, *, late_s: float = 0.0) -> None:
        """Let time pass; each timer fires *late_s* too late."""
        while self.due and min(self.due)[0] + late_s <= to:
            at, act = min(self.due)
            self.due.remove((at, act))
            self.now = max(self.now, at + late_s)
            self.fired += 1
            act()
        self.now = max(self.now, to)


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def deadlines(timers: Timers) -> LoopDeadlines:
    return LoopDeadlines(timers.call_later, clock=lambda: timers.now)


def limited(deadlines: LoopDeadlines, now: float, **limits: float) -> tuple[Limit, list[str]]:
    ends: list[str] = []
    limit = Limit(now, ends.append, **limits)
    deadlines.add(limit, now)
    return limit, ends


def test_what_takes_too_long_ends_once_and_at_its_time(timers: Timers, deadlines: LoopDeadlines) -> None:
    limit, ends = limited(deadlines, 1000.0, ends_at=1001.05)
    timers.go(1001.04)
    assert ends == []
    timers.go(1001.06)
    timers.go(1010.0)
    assert (ends, limit.ended_by) == (["time"], "time")


def test_silence_ends_what_has_time_left_and_a_byte_is_none(timers: Timers, deadlines: LoopDeadlines) -> None:
    limit, ends = limited(deadlines, 1000.0, ends_at=1010.0, silence_s=1.0)
    timers.go(1000.9)
    limit.quiet_since = timers.now
    timers.go(1001.8)
    assert ends == []
    timers.go(1002.0)
    assert ends == ["silence"]


def test_what_was_taken_out_in_time_is_never_ended(timers: Timers, deadlines: LoopDeadlines) -> None:
    limit, ends = limited(deadlines, 1000.0, ends_at=1001.0)
    assert deadlines.remove(limit)
    assert not deadlines.remove(limit)
    timers.go(1005.0)
    assert ends == []


def test_a_loop_that_was_blocked_adds_that_to_every_limit(timers: Timers, deadlines: LoopDeadlines) -> None:
    """failures.md 67. Nothing was read meanwhile, so nothing is known of the peer."""
    limit, ends = limited(deadlines, 1000.0, ends_at=1001.0, silence_s=0.5)
    timers.go(1001.4, late_s=1.3)  # the first look, planned at 1000.1
    assert timers.fired == 1
    assert ends == []
    assert limit.was_extended
    timers.go(1003.0)
    assert ends == ["silence"]
    assert timers.now >= limit.quiet_since + 0.5
    assert limit.ends_at == pytest.approx(1002.3)


def test_looks_are_never_far_apart_while_there_is_anything(timers: Timers, deadlines: LoopDeadlines) -> None:
    limited(deadlines, 1000.0, ends_at=1060.0)
    timers.go(1010.0)
    assert timers.fired >= 10.0 / TICK_S - 1


def test_no_timer_runs_while_there_is_nothing(timers: Timers, deadlines: LoopDeadlines) -> None:
    limit, _ = limited(deadlines, 1000.0, ends_at=1060.0)
    deadlines.remove(limit)
    timers.go(1001.0)
    assert (timers.due, deadlines.wake_at) == ([], inf)


def test_a_limit_holds_even_where_every_look_is_very_late(timers: Timers, deadlines: LoopDeadlines) -> None:
    limit, ends = limited(deadlines, 1000.0, ends_at=1000.2)
    for _ in range(20 * MOST_GRACES):
        timers.go(timers.now + 1.0, late_s=0.9)
    assert ends == ["time"]
    assert limit.was_extended


def test_an_earlier_limit_moves_the_next_look_forward(timers: Timers, deadlines: LoopDeadlines) -> None:
    limited(deadlines, 1000.0, ends_at=1060.0)
    _, ends = limited(deadlines, 1000.0, ends_at=1000.02)
    timers.go(1000.03)
    assert ends == ["time"]


@pytest.mark.parametrize(
    ("left", "ends"),
    [
        pytest.param([5, 4, 3, 2, 1] * 40, [], id="bytes leave, if slowly"),
        pytest.param([-1] * 200, [], id="the body's owner has no more at the moment"),
        pytest.param([5] * 200, ["silence"], id="nothing leaves"),
    ],
)
def test_a_body_that_leaves_slowly_is_no_silence(
    timers: Timers, deadlines: LoopDeadlines, left: list[int], ends: list[str]
) -> None:
    limit, found = limited(deadlines, 1000.0, ends_at=2000.0, silence_s=1.0)
    sizes = iter(left)
    limit.unsent = lambda: next(sizes)
    timers.go(1010.0)
    assert found == ends


def test_once_a_body_has_left_the_silence_of_the_peer_counts(
    timers: Timers, deadlines: LoopDeadlines
) -> None:
    limit, ends = limited(deadlines, 1000.0, ends_at=2000.0, silence_s=1.0)
    limit.unsent, limit.then_s = lambda: 0, 3.0
    timers.go(1003.0)
    assert (ends, limit.unsent) == ([], None)
    timers.go(1003.3)
    assert ends == ["silence"]


def test_one_that_raises_at_its_end_leaves_the_others_their_limits(
    timers: Timers, deadlines: LoopDeadlines
) -> None:
    def fail(by: str) -> None:
        raise ZeroDivisionError

    deadlines.add(Limit(1000.0, fail, ends_at=1000.05), 1000.0)
    _, ends = limited(deadlines, 1000.0, ends_at=1000.5)
    with pytest.raises(ZeroDivisionError):
        timers.go(1000.06)
    timers.go(1001.0)
    assert ends == ["time"]


def test_on_a_real_loop_the_timer_keeps_no_context_alive(on_loop: OnLoop) -> None:
    class Value:
        pass

    variable: ContextVar[Value] = ContextVar("of_a_call")

    async def main() -> None:
        deadlines = deadlines_of(asyncio.get_running_loop())
        assert deadlines is deadlines_of(asyncio.get_running_loop())

        def call() -> ref[Value]:
            value = Value()
            variable.set(value)
            deadlines.add(Limit(monotonic(), print, ends_at=monotonic() + 600.0), monotonic())
            return ref(value)

        seen = copy_context().run(call)
        gc.collect()
        assert seen() is None
        deadlines.table.clear()

    on_loop(main())


def test_on_a_real_loop_that_was_blocked_nothing_ends_before_it_could_be_heard(on_loop: OnLoop) -> None:
    async def main() -> None:
        deadlines, ends = deadlines_of(asyncio.get_running_loop()), list[str]()
        limit = Limit(monotonic(), ends.append, ends_at=monotonic() + 0.3)
        deadlines.add(limit, monotonic())
        await asyncio.sleep(0)
        time.sleep(1.0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert ends == []
        while not ends:
            await asyncio.sleep(0.01)

    on_loop(main())
