"""Rounds of several things measured in turn, so that a slow moment of the machine hits them all alike."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType


def rounds_of(
    sides: Mapping[str, Callable[[], float]], *, rounds: int, most_s: float = math.inf
) -> dict[str, list[float]]:
    """What each of *sides* measured, a value per round; the order turns from round to round. Blocks.

    No round begins when *most_s* are over, but the first.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > most_s:
            break
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            measured[name].append(sides[name]())
    return measured


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the rounds of ours / theirs: a round that was slow was slow for both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of *values*, of which there is at least one."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def cpu_s(act: Callable[[], object], *, turns: int) -> float:
    """CPU seconds of this process per turn of *act*."""
    started = time.process_time()
    for _ in range(turns):
        act()
    return (time.process_time() - started) / turns


def python_calls(act: Callable[[], object]) -> int:
    """Python functions that one warm *act* enters in this thread, itself not counted: the same on every machine."""
    count = -1

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    act()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


def percentile(values: list[float], share: float) -> float:
    """The value that *share* (0..1) of *values* do not exceed: the nearest rank, never interpolated."""
    ranked = sorted(values)
    return ranked[max(0, -(-int(share * 100) * len(ranked) // 100) - 1)]
