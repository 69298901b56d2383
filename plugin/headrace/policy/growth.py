"""Exponential growth with a ceiling: the shape that back-offs and open periods share."""

from __future__ import annotations


def grown_s(base_s: float, multiplier: float, max_s: float, n: int) -> float:
    """Length of the *n*-th step: base_s · multiplier^(n - 1), at most *max_s*.

    Args:
        base_s: Length of the first step, seconds, >= 0.
        multiplier: Factor from one step to the next, >= 1.
        max_s: Ceiling, seconds.
        n: Which step; count, >= 1.
    """
    try:
        return min(max_s, base_s * multiplier ** (n - 1))
    except OverflowError:  # 2.0 ** 1024; an upstream that is down for a week gets here
        return max_s
