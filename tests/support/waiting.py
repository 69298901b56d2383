"""Waiting for a condition instead of sleeping for a guess, and limits of time that a busy machine keeps."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def wait_until(
    is_true: Callable[[], object], *, timeout_s: float = 30.0, what: str = "the condition"
) -> None:
    """Return once *is_true()* holds; looks every millisecond. Blocks.

    Raises:
        AssertionError: It did not hold within *timeout_s*.
    """
    ends_at = time.monotonic() + timeout_s
    pause = threading.Event()
    while not is_true():
        if time.monotonic() >= ends_at:
            raise AssertionError(f"{what} did not hold within {timeout_s} s")
        pause.wait(0.001)


def in_each_pause(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[float]:
    """Have calls do *act* where they would sleep before a further attempt. Answers those pauses as they come, seconds.

    So what others do in a pause is done in it, on the calling thread, however busy the machine is. A call whose client
    may leave does not sleep in this way.
    """
    pauses: list[float] = []

    def pause(delay_s: float) -> None:
        pauses.append(delay_s)
        act()

    monkeypatch.setattr(time, "sleep", pause)
    return pauses


BUSY = 10
"""How many times longer than it should a thing may take on a machine that has other things to do."""


def is_about(took_s: float, limit_s: float) -> bool:
    """Whether *took_s* is what *limit_s* makes it: no shorter (but for rounding), and no longer than BUSY times that.

    So what would be meant by another limit has to be further off than that.
    """
    return 0.98 * limit_s <= took_s <= BUSY * limit_s


@contextlib.contextmanager
def ends_within(limit_s: float, *, not_before: float = 0.0) -> Iterator[None]:
    """The block takes *not_before* to BUSY times *limit_s* seconds."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert not_before <= took_s <= BUSY * limit_s, f"took {took_s:.3f} s"
