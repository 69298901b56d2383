"""Sliding windows of calls: over time, or over a number of last calls. The cost of a record is independent of traffic.

Two verbs and three totals. `add` counts a call and says at which *place*. `turn` later marks a
call counted at a place, or takes its mark off, as long as that place is in the window. The
circuit marks failures; the retry budget counts first attempts and marks retries.

Not thread-safe: the owner's lock guards a window. The one exception is `Slot.tick`. Instants are monotonic seconds. One
before the newest is taken for the newest, so time never runs backwards here: threads read the clock before
they get the lock. An instant that is earlier than any thread can be late means that the clock was stepped back.
Then what is in the window stays, and ages from there (failures.md 69).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from typing import Final, TypeAlias, assert_never

from headrace.policy.frozen import slotted
from headrace.policy.plan import CountWindowPlan, TimeWindowPlan, WindowPlan

LATEST_S = 900.0
"""How far back an instant may lie, besides ten windows, and still be that of a late thread. Seconds.

An earlier instant means a step of the clock. After a smaller step a window may stand still for that long. The time
is so long because a process that was suspended during a call is that late.
"""


@slotted
class Batch:
    """Calls that can no longer be told apart, on their way from one window to another.

    Attributes:
        at: The latest instant at which they can have been counted.
        marked: How many of *calls* are marked; slow likewise.
    """

    at: float
    calls: int
    marked: int
    slow: int


class Slot:
    """Where unmarked calls of one slice are counted without the owner's lock.

    `tick` is a single call in C, exact with the GIL and without it: `itertools.count` steps by compare-and-exchange
    where there is no GIL. Nobody has to be first or last among those who tick: the window adds up what has come by
    then whenever its totals are asked for. A thread may be stopped after it has found the slot and before it ticks.
    So a slot is looked at for as long as its slice is the current one or the one before.

    Attributes:
        begins_at, ends_at: Calls of these instants belong here; seconds, the end is not included.
        place: Of each call that is counted here.
        tick: Counts one. Any thread may call it.
    """

    __slots__ = ("_seen", "begins_at", "ends_at", "place", "tick")

    def __init__(self, begins_at: float, ends_at: float, place: int) -> None:
        self.begins_at = begins_at
        self.ends_at = ends_at
        self.place = place
        self.tick: Callable[[], int] = count().__next__
        self._seen = 0  # ticks so far, our own looks included

    def news(self) -> int:
        """How many calls were counted since the last look. Mutates; the owner holds its lock."""
        so_far = self.tick()
        news = so_far - self._seen
        self._seen = so_far + 1
        return news

    @property
    def unseen(self) -> int:
        """How many calls `news` would answer. Changes nothing; for a repr, which has no lock."""
        told = repr(self.tick.__self__)  # type: ignore[attr-defined]  # "count(5)"
        return int(told[6:-1]) - self._seen


class TimeWindow:
    """Counts of the last *size_s* seconds.

    A ring of partial sums (slices) and a running total. Adding is O(1). Time moves
    the ring by whole slices. The window is n_slices long, and the youngest slice is
    not over: so the window reaches back between n_slices - 1 and n_slices slices.

    Attributes:
        calls: Total over the window; marked and slow likewise. What was counted in slots is in it after `take_in`,
            `advance` or `batches`.
        slot: That of the current slice; None while nobody has asked for it.

    Source: resilience4j SlidingTimeWindowMetrics; ten slices as in Finagle's and Polly's windows.
    """

    __slots__ = (
        "_at",
        "_calls",
        "_ends_at",
        "_epoch",
        "_late_from",
        "_marked",
        "_place",
        "_slot_before",
        "_slow",
        "calls",
        "marked",
        "slice_s",
        "slot",
        "slow",
    )

    def __init__(self, size_s: float, *, n_slices: int = 10, slice_s: float | None = None) -> None:
        self.slice_s = size_s / n_slices if slice_s is None else slice_s
        self._epoch = 0  # number of the current slice since the clock's zero
        self._at = 0  # where the current slice is in the ring
        self._ends_at = self.slice_s
        self._late_from = -inf  # an earlier instant is not that of a late thread
        self._place = 0  # of the current slice; runs beside the epoch
        self._calls = [0] * n_slices
        self._marked = [0] * n_slices
        self._slow = [0] * n_slices
        self.calls = self.marked = self.slow = 0
        self.slot: Slot | None = None
        self._slot_before: Slot | None = (
            None  # the last one that was the current slice's, if it is still asked
        )

    @property
    def next_place(self) -> int:
        """Above every place given out so far."""
        return self._place + 1

    def open(self) -> Slot:
        """The slot of the current slice. Mutates.

        It counts for this window until two further ones were opened, or all are given up. Whether it is the right one,
        whoever ticks looks up in it.
        """
        slot = self.slot
        if slot is None:
            self.slot = slot = Slot(self._epoch * self.slice_s, self._ends_at, self._place)
        return slot

    def take_in(self) -> int:
        """Add what was counted in slots to the totals; answers how much of it in the present slot. Mutates."""
        slot, before, found = self.slot, self._slot_before, 0
        if slot is not None and (found := slot.news()):
            self._calls[self._at] += found
            self.calls += found
        if before is not None and (late := before.news()):
            self._calls[(self._epoch - self._place + before.place) % len(self._calls)] += late
            self.calls += late
        return found

    def give_up_slots(self) -> None:
        """Have no slot any more, neither the present one nor what is ticked in it from now on. Mutates."""
        self.take_in()
        self.slot = self._slot_before = None

    def add(self, now: float, marked: int = 0, slow: int = 0, calls: int = 1) -> int:
        """Count *calls* in the slice of *now* and answer their place. Mutates."""
        # Flat, and without advance() in the common case: a Python call costs about a microsecond in situ.
        if now >= self._ends_at or now < self._late_from:
            self.advance(now)
        at = self._at
        self._calls[at] += calls
        self.calls += calls
        if marked:
            self._marked[at] += marked
            self.marked += marked
        if slow:
            self._slow[at] += slow
            self.slow += slow
        return self._place

    def turn(self, place: int, by: int = 1) -> bool:
        """Mark an unmarked call counted at *place*; False when the place has left the window. Mutates.

        A slice knows sums only: a caller that turns one call twice has marked two.

        Args:
            by: 1; -1 takes the mark off a marked call.
        """
        age = self._place - place
        if not 0 <= age < len(self._calls):
            return False
        self.take_in()
        at = (self._epoch - age) % len(self._calls)
        self._marked[at] += by
        self.marked += by
        return True

    @property
    def calls_so_far(self) -> int:
        """`calls`, with what was counted in slots. Changes nothing; for a repr, which has no lock."""
        return self.calls + (0 if self.slot is None else self.slot.unseen)

    @property
    def oldest_calls(self) -> int:
        """The part of `calls` that the oldest slice holds: without it the window is a slice shorter."""
        return self._calls[(self._epoch + 1) % len(self._calls)]

    def advance(self, now: float) -> None:
        """Forget what has left the window by *now*. Mutates."""
        self.take_in()
        epoch = int(now // self.slice_s)
        n_slices = len(self._calls)
        if now < self._late_from:
            self._step_back(epoch)
            return
        if epoch <= self._epoch:
            return
        for passed in range(max(self._epoch + 1, epoch - n_slices + 1), epoch + 1):
            at = passed % n_slices
            self.calls -= self._calls[at]
            self.marked -= self._marked[at]
            self.slow -= self._slow[at]
            self._calls[at] = self._marked[at] = self._slow[at] = 0
        self._place += epoch - self._epoch
        self._enter_slice(epoch)

    def _enter_slice(self, epoch: int) -> None:
        n_slices = len(self._calls)
        self._epoch = epoch
        self._at = epoch % n_slices
        # One stays: a thread that has found it may still be about to tick. It would have to stand still for a whole
        # slice to be too late, and then a single call would be missing.
        before = self.slot or self._slot_before
        has_left = before is None or self._place - before.place >= n_slices
        self.slot, self._slot_before = None, None if has_left else before
        # No double lies between the exact product and this one, so `now >= _ends_at` and the floor division agree.
        self._ends_at = (epoch + 1) * self.slice_s
        self._late_from = (epoch - 10 * n_slices) * self.slice_s - LATEST_S

    def _step_back(self, epoch: int) -> None:
        """Take slice *epoch*, into which the clock was stepped back, for the current one; its contents stay."""
        by = (epoch - self._epoch) % len(self._calls)
        for ring in (self._calls, self._marked, self._slow):
            ring[:] = ring[-by:] + ring[:-by]
        self._enter_slice(epoch)

    def clear(self) -> None:
        """Forget every call, and the slots. Mutates."""
        n_slices = len(self._calls)
        self.slot = self._slot_before = None
        self._calls = [0] * n_slices
        self._marked = [0] * n_slices
        self._slow = [0] * n_slices
        self.calls = self.marked = self.slow = 0

    def batches(self, now: float) -> Iterator[Batch]:
        """What is in the window, oldest first: a batch per slice, dated to the slice's end, or to *now* if earlier.

        Mutates no more than `take_in`.
        """
        self.take_in()
        n_slices = len(self._calls)
        for epoch in range(self._epoch - n_slices + 1, self._epoch + 1):
            at = epoch % n_slices
            if self._calls[at] or self._marked[at]:
                ended_at = min(now, (epoch + 1) * self.slice_s)
                yield Batch(ended_at, self._calls[at], self._marked[at], self._slow[at])

    def take_over(self, older: Window, now: float) -> None:
        """Take over what *older* holds, as far as it fits this window. Mutates; to be called once, on a fresh window.

        The places that *older* gave out have left.
        """
        for batch in older.batches(now):
            self.add(batch.at, batch.marked, batch.slow, batch.calls)
        self.advance(now)
        self._place = older.next_place + len(
            self._calls
        )  # the oldest slice's place is above all of *older*'s


_MARKED: Final = 1


class CountWindow:
    """Counts of the last *size* calls; with *max_age_s*, only of those in the last *max_age_s* seconds.

    A ring with a byte per call and, with max_age_s, its instant. Adding is O(1), amortised
    where calls also leave by age.

    Attributes:
        calls: Total over the window; marked and slow likewise.

    Source: resilience4j FixedSizeSlidingWindowMetrics, which keeps no age.
    """

    __slots__ = (
        "_bits",
        "_instants",
        "_late_from",
        "_leaves_at",
        "_max_age_s",
        "_newest",
        "_place",
        "calls",
        "marked",
        "slow",
    )

    _late_from: (
        float  # an earlier instant is not that of a late thread; set by the first call that is counted
    )

    def __init__(self, size: int, *, max_age_s: float | None = None) -> None:
        self._bits = bytearray(size)
        self._max_age_s = max_age_s
        self._instants = None if max_age_s is None else array("d", bytes(8 * size))
        self._newest = 0.0
        self._leaves_at = -inf  # before this instant no call leaves by its age; may be too early
        self._place = (
            0  # of the next call: the number of calls so far. Its remainder is the index in the ring
        )
        self.calls = self.marked = self.slow = 0

    @property
    def next_place(self) -> int:
        """Above every place given out so far."""
        return self._place

    # There are no slots here: each call has a place of its own.
    slot: Final = None

    def open(self) -> None:
        """None."""
        return

    def take_in(self) -> int:
        """0."""
        return 0

    def give_up_slots(self) -> None:
        """Nothing."""

    @property
    def calls_so_far(self) -> int:
        """`calls`."""
        return self.calls

    def add(self, now: float, marked: int = 0, slow: int = 0) -> int:
        """Count one call and answer its place. Mutates.

        Args:
            marked: 0 or 1; slow likewise.
        """
        place, bits = self._place, self._bits
        at = place % len(bits)
        if self._instants is not None:
            if now >= self._leaves_at or now < self._late_from:
                self.advance(now)
            elif now > self._newest:
                self._newest = now
            self._instants[at] = self._newest
        if self.calls == len(bits):
            leaving = bits[at]
            if leaving:
                self.marked -= leaving & _MARKED
                self.slow -= leaving >> 1
        else:
            self.calls += 1
        bits[at] = 0
        if marked or slow:
            bits[at] = marked | slow << 1
            self.marked += marked
            self.slow += slow
        self._place = place + 1
        return place

    def turn(self, place: int, by: int = 1) -> bool:
        """Mark the call counted at *place*; False when it has left, or is marked. Mutates.

        Args:
            by: 1; -1 takes the mark off, and then the answer is False when there is none.
        """
        if not self._place - self.calls <= place < self._place:
            return False
        at = place % len(self._bits)
        if (self._bits[at] & _MARKED == _MARKED) is (by > 0):
            return False
        self._bits[at] ^= _MARKED
        self.marked += by
        return True

    def advance(self, now: float) -> None:
        """Forget the calls that are too old by *now*. Mutates."""
        instants, max_age_s = self._instants, self._max_age_s
        if instants is None or max_age_s is None:
            return
        if now > self._newest:
            self._newest = now
        elif now < self._newest - 10 * max_age_s - LATEST_S:  # the clock was stepped back
            by = self._newest - now
            for at, instant in enumerate(instants):
                instants[at] = instant - by
            self._newest = now
        size = len(instants)
        self._late_from = self._newest - 10 * max_age_s - LATEST_S
        self._leaves_at = -inf
        while self.calls:
            at = (self._place - self.calls) % size
            if instants[at] + max_age_s > self._newest:
                self._leaves_at = instants[at] + max_age_s
                return
            leaving = self._bits[at]
            self.marked -= leaving & _MARKED
            self.slow -= leaving >> 1
            self.calls -= 1

    def clear(self) -> None:
        """Forget every call. Mutates."""
        self.calls = self.marked = self.slow = 0

    def batches(self, now: float) -> Iterator[Batch]:
        """What is in the window, oldest first: a batch per call, dated to *now* when ages are not kept."""
        size, instants = len(self._bits), self._instants
        for place in range(self._place - self.calls, self._place):
            bits = self._bits[place % size]
            at = now if instants is None else instants[place % size]
            yield Batch(at, 1, bits & _MARKED, bits >> 1)

    def take_over(self, older: Window, now: float) -> None:
        """Take over the newest calls that *older* holds. Mutates; to be called once, on a fresh window.

        The order within one batch is not known: the marked and the slow are taken for the newest.
        The places that *older* gave out have left.
        """
        self._place = older.next_place
        size = len(self._bits)
        for batch in older.batches(now):
            calls = batch.calls
            for number in range(max(0, calls - size), calls):
                self.add(batch.at, int(number >= calls - batch.marked), int(number >= calls - batch.slow))
        self.advance(now)


Window: TypeAlias = TimeWindow | CountWindow


def window_for(plan: WindowPlan) -> Window:
    """An empty window as *plan* wants it."""
    match plan:
        case TimeWindowPlan():
            return TimeWindow(plan.size_s)
        case CountWindowPlan():
            return CountWindow(plan.size, max_age_s=plan.max_age_s)
        case _:
            assert_never(plan)
