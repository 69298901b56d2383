"""The limits of what one event loop has under way: one table, looked at by one timer.

A timer for each call would cost more than the call. So there is one table of `Limit`s for each loop. While it has any,
it is looked at every TICK_S at least; while it is empty, no timer runs.

**Who ends an attempt.** What takes a limit out of the table has ended what it limits, as in `runtime.deadlines`. The
protocol takes it out at the last byte, and not the task that waits for the answer: on a loop that was blocked the timer
may come before that task, and would cut off an answer that has arrived.

**Late looks.** A loop that was blocked has read nothing meanwhile: its silence is not the peer's. What a look comes too
late is added to every limit, and a look that is very late cuts nothing; bytes that have arrived are read before the
next one. That is why looks are never far apart: what was not foreseen cannot be late. (failures.md 67 is the same of
threads.)

Apart from the timer itself all of it is arithmetic: the clock and the timer are given. Owned by the thread of its loop.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextvars import Context
from math import inf
from typing import Any, Final, Literal

from headrace.clock import monotonic
from headrace.transport.standstill import LATE_S, MOST_GRACES

TICK_S: Final = 0.1
"""Longest time between two looks. An answer of many pieces that was on its way while the loop was blocked lives for as
long again as it takes to read it, if this is short beside the limits of calls."""

AGAIN_S: Final = 0.01
"""Seconds from a look that came very late to the next one: the loop has read what had arrived by then."""

EMPTY: Final = Context()
"""What timers and connections run in: the context of a call must not live as long as they do. Never entered itself."""

By = Literal["time", "silence"]


class Limit:
    """How long something may take, and for how long nothing may come meanwhile. Owned by one loop.

    Attributes:
        began: Monotonic seconds.
        ends_at: When its time is up; inf: never.
        quiet_since: When something came last, or a step began.
        silence_s: How long it may be quiet; inf: for ever.
        on_end: Called once, when it has been taken out of the table by a look; told by what.
        unsent: Bytes that are still to leave, where a body is being sent: fewer of them is no silence. -1: none waits,
            and the body's owner has more. None: nothing is being sent.
        then_s: The longest silence once they have left.
        was_extended: A look that came late has added to it: whether the peer was silent is not known.
        ended_by: What has ended it; None: nothing has.
    """

    __slots__ = (
        "_graces",
        "_left",
        "began",
        "ended_by",
        "ends_at",
        "on_end",
        "quiet_since",
        "silence_s",
        "then_s",
        "unsent",
        "was_extended",
    )

    def __init__(
        self, now: float, on_end: Callable[[By], object], *, ends_at: float = inf, silence_s: float = inf
    ) -> None:
        self.began = self.quiet_since = now
        self.ends_at = ends_at
        self.silence_s = silence_s
        self.on_end = on_end
        self.unsent: Callable[[], int] | None = None
        self.then_s = inf
        self.was_extended = False
        self.ended_by: By | None = None
        self._left = -1
        self._graces = 0

    @property
    def due_at(self) -> float:
        """When it ends unless something comes."""
        quiet_until = self.quiet_since + self.silence_s
        return quiet_until if quiet_until < self.ends_at else self.ends_at

    def step(self, now: float, silence_s: float) -> None:
        """Another step of the same begins *now*, and may take *silence_s*. Mutates."""
        self.quiet_since = now
        self.silence_s = silence_s

    def extend(self, late_s: float, now: float) -> None:
        """Add what a look came too late, as far as it concerns what this limits. Mutates."""
        late_s = min(late_s, now - self.began)
        self.ends_at += late_s
        self.quiet_since = min(self.quiet_since + late_s, now)
        if late_s > LATE_S:
            self.was_extended = True

    def gets_grace(self) -> bool:
        """Whether it outlives a look that came very late, although it is due. Mutates: there are only so many."""
        self._graces += 1
        return self._graces <= MOST_GRACES

    def look_at_sending(self, now: float) -> None:
        """See whether bytes have left since the last look. Mutates."""
        if self.unsent is None:
            return
        left, self._left = self._left, self.unsent()
        if self._left == 0:
            self.unsent = None
            self.step(now, self.then_s)
        elif left != self._left or self._left < 0:
            self.quiet_since = now


class LoopDeadlines:
    """The limits of one event loop. Not thread-safe: all of it on the thread of that loop.

    Args:
        call_later: The loop's: seconds, a function, and a context.
        clock: Monotonic seconds.

    Attributes:
        table: The limits that hold. What takes one out has ended what it limits.
        wake_at: When it is looked at next; inf: no timer runs. A limit that is due before that must be `add`ed.
    """

    __slots__ = ("_call_later", "_clock", "_timer", "table", "wake_at")

    def __init__(self, call_later: Callable[..., Any], *, clock: Callable[[], float] = monotonic) -> None:
        self._call_later = call_later
        self._clock = clock
        self._timer: Any = None
        self.table: dict[Limit, None] = {}
        self.wake_at = inf

    def add(self, limit: Limit, now: float) -> None:
        """Have *limit* hold from *now* on; again, where it was moved forward. Mutates."""
        self.table[limit] = None
        due_at = limit.due_at
        if due_at < self.wake_at:
            self._wake(now, due_at)

    def remove(self, limit: Limit) -> bool:
        """Whether *limit* was in force; it is not any more."""
        return self.table.pop(limit, self) is None

    def look(self, now: float, late_s: float) -> float:
        """End the limits that are due. When to look again; inf: there is none left.

        Args:
            late_s: How long after its time this look comes.
        """
        next_at = inf
        for limit in tuple(self.table):
            if late_s > 0.0:
                limit.extend(late_s, now)
            limit.look_at_sending(now)
            due_at = limit.due_at
            if due_at <= now:
                if late_s <= LATE_S or not limit.gets_grace():
                    self._end(limit, "time" if limit.ends_at <= now else "silence")
                    continue
                due_at = now + AGAIN_S
            next_at = min(next_at, due_at)
        return next_at

    def _end(self, limit: Limit, by: By) -> None:
        if self.remove(limit):
            limit.ended_by = by
            limit.on_end(by)

    def _wake(self, now: float, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.wake_at = min(at, now + TICK_S)
        # Without the context of the call that happens to need it: the timer would keep it alive.
        self._timer = self._call_later(max(self.wake_at - now, 0.0), self._on_timer, context=EMPTY.copy())

    def _on_timer(self) -> None:
        now, planned_at = self._clock(), self.wake_at
        self._timer, self.wake_at = None, inf
        next_at = now + AGAIN_S  # where somebody's `on_end` raises
        try:
            next_at = self.look(now, now - planned_at)
        finally:
            if next_at < self.wake_at:
                self._wake(now, next_at)

    def __repr__(self) -> str:
        return f"<LoopDeadlines: {len(self.table)} in force>"


_by_loop: dict[int, tuple[AbstractEventLoop, LoopDeadlines]] = {}
"""Those of each loop, by its id. What is here of a loop that was closed goes when the next one is entered."""


def deadlines_of(loop: AbstractEventLoop) -> LoopDeadlines:
    """The limits of *loop*, which runs on this thread."""
    found = _by_loop.get(id(loop))
    if found is not None and found[0] is loop:
        return found[1]
    for number, (other, _) in _by_loop.copy().items():
        if other.is_closed():
            _by_loop.pop(number, None)
    made = LoopDeadlines(loop.call_later)
    _by_loop[id(loop)] = loop, made
    return made
