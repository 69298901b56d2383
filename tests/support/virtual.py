"""Time and chance under the test's control."""

from __future__ import annotations

import random
from collections.abc import Callable

from headrace.testing import VirtualClock

__all__ = ["VirtualClock", "constant", "seeded"]


def seeded(seed: int = 1) -> Callable[[], float]:
    """Uniform numbers in [0, 1) that are the same in every run."""
    return random.Random(seed).random


def constant(value: float) -> Callable[[], float]:
    """A generator that always says *value*: 0.5 is the middle of every jitter."""
    return lambda: value
