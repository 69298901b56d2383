"""Rounds of several things measured in turn, so that a slow moment of the machine hits them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def rounds_of(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """What each of *sides* measured, a value per round; the order turns from round to round. Blocks."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            measured[name].append(sides[name]())
    return measured


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours / theirs: a round that was slow was slow for both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def cpu_s(act: Callable[[], object], *, turns: int) -> float:
    """CPU seconds of this process per turn of *act*."""
    started = time.process_time()
    for _ in range(turns):
        act()
    return (time.process_time() - started) / turns


def percentile(values: list[float], share: float) -> float:
    """The value that *share* (0..1) of *values* do not exceed: the nearest rank, never interpolated."""
    ranked = sorted(values)
    return ranked[max(0, -(-int(share * 100) * len(ranked) // 100) - 1)]
