"""Waiting for a condition instead of sleeping for a guess."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], object], *, timeout_s: float = 5.0, what: str = "the condition") -> None:
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
