"""The books of a retry storm: when calls began, when they were repeated, and what the budget allows of that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

SIZE_S = 10.0
RATIO = 0.2
RESERVE = 30.0
"""The default budget: {ratio: 0.2, min_per_second: 3, ttl: 10s}."""


@dataclass(frozen=True, slots=True)
class Window:
    """(end_s - 10, end_s] of a run.

    Attributes:
        firsts: First tries of the last 20 s.
        retries: Of these 10 s.
    """

    end_s: float
    firsts: int
    retries: int

    @property
    def allowed(self) -> float:
        """0.2 × first tries of the last 20 s + 30."""
        return RATIO * self.firsts + RESERVE

    @property
    def holds(self) -> bool:
        """Whether the budget was kept in it."""
        return self.retries <= self.allowed + 1e-6


def window(firsts: Sequence[float], retries: Sequence[float], end_s: float) -> Window:
    """The window that ends at *end_s*; *firsts* and *retries* are sorted instants."""
    return Window(
        end_s,
        bisect_right(firsts, end_s) - bisect_right(firsts, end_s - 2 * SIZE_S),
        bisect_right(retries, end_s) - bisect_right(retries, end_s - SIZE_S),
    )


def worst(firsts: Sequence[float], retries: Sequence[float]) -> Window | None:
    """Of all windows the one that uses up most of what it is allowed, or None without a retry.

    The use grows only when a retry comes or a first try leaves the 20 s: windows that end
    with either are all there are to look at.
    """
    ends = [*retries, *(at + 2 * SIZE_S for at in firsts)]
    shown = (window(firsts, retries, end) for end in ends)
    return max(shown, key=lambda one: one.retries / one.allowed) if retries else None
