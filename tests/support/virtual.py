"""Time and chance under the test's control."""

from __future__ import annotations

import random
from collections.abc import Callable


class VirtualClock:
    """Monotonic seconds that pass only when told; call it for the time.

    Attributes:
        now: The instant, seconds.
        sleeps: What `sleep` was asked for, oldest first, seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, delta_s: float) -> float:
        """Let time pass. Mutates; gives the new instant."""
        self.now += delta_s
        return self.now

    def sleep(self, delay_s: float) -> None:
        """Record the wish and let that time pass. Mutates."""
        self.sleeps.append(delay_s)
        self.now += delay_s


def seeded(seed: int = 1) -> Callable[[], float]:
    """Uniform numbers in [0, 1) that are the same in every run."""
    return random.Random(seed).random


def constant(value: float) -> Callable[[], float]:
    """A generator that always says *value*: 0.5 is the middle of every jitter."""
    return lambda: value
