"""Time under a test's control."""

from __future__ import annotations


class VirtualClock:
    """Monotonic seconds that pass only when told; call it for the time.

    Attributes:
        now: The instant, seconds.
        sleeps: What `sleep` was asked for, oldest first, seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now: float = now
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, delta_s: float) -> float:
        """Let time pass. Mutates; answers the new instant."""
        # To the nanosecond: a hundred tenths of a second are ten seconds, not a little less.
        self.now = round(self.now + delta_s, 9)
        return self.now

    def sleep(self, delay_s: float) -> None:
        """Record the wish and let that time pass. Mutates."""
        self.sleeps.append(delay_s)
        self.advance(delay_s)
