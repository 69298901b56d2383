"""A sliding window over time that costs the same however much traffic it sees."""

from __future__ import annotations


class TimeWindow:
    """Counts of the last *size_s* seconds in two columns: all calls, and the marked ones.

    A ring of partial sums (slices) and a running total: adding is O(1), time moves
    the ring by whole slices, so the window is n_slices long, of which the youngest is
    not over: it reaches back between n_slices - 1 and n_slices of them. The circuit
    marks failures; the retry budget counts first attempts and marks retries.

    Not thread-safe: the owner's lock guards it. Instants are monotonic seconds;
    one that lies before the current slice (threads read the clock before they
    get the lock) is counted in the current slice, so time never runs backwards here.

    Attributes:
        calls: Total of the first column over the window.
        marked: Total of the second column over the window.

    Source: resilience4j SlidingTimeWindowMetrics; ten slices as in Finagle's and Polly's windows.
    """

    __slots__ = ("_calls", "_epoch", "_marked", "calls", "marked", "slice_s")

    def __init__(self, size_s: float, *, n_slices: int = 10, slice_s: float | None = None) -> None:
        self.slice_s = size_s / n_slices if slice_s is None else slice_s
        self._calls = [0] * n_slices
        self._marked = [0] * n_slices
        self._epoch = 0  # number of the current slice since the clock's zero
        self.calls = 0
        self.marked = 0

    def add(self, now: float, calls: int, marked: int) -> None:
        """Add to the slice of *now*. Mutates."""
        # Flat, and advance() not called in the common case: a Python call costs about a microsecond in situ.
        epoch = int(now // self.slice_s)
        if epoch > self._epoch:
            self.advance(now)
        place = self._epoch % len(self._calls)
        self._calls[place] += calls
        self._marked[place] += marked
        self.calls += calls
        self.marked += marked

    @property
    def oldest_calls(self) -> int:
        """What the oldest slice holds of `calls`: without it the window is a slice shorter."""
        return self._calls[(self._epoch + 1) % len(self._calls)]

    def advance(self, now: float) -> None:
        """Forget what *now* has pushed out of the window. Mutates."""
        epoch = int(now // self.slice_s)
        n_slices = len(self._calls)
        for passed in range(max(self._epoch + 1, epoch - n_slices + 1), epoch + 1):
            place = passed % n_slices
            self.calls -= self._calls[place]
            self.marked -= self._marked[place]
            self._calls[place] = self._marked[place] = 0
        self._epoch = max(self._epoch, epoch)

    def clear(self) -> None:
        """Forget everything. Mutates."""
        n_slices = len(self._calls)
        self._calls = [0] * n_slices
        self._marked = [0] * n_slices
        self.calls = self.marked = 0
