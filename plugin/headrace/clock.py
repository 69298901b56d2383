"""The one monotonic clock: seconds since some instant, for everything here that waits, limits or ages.

What freezes time in tests must not reach it. freezegun replaces `time.monotonic`, and each module's own name for it,
for as long as it holds the clock, but not for threads; and no socket, lock or thread waits by a frozen clock. Half
of a time limit by one clock and half by the other is a call that has always timed out, or a circuit that is
open for decades (failures.md 69). Tests that want to move time have `headrace.testing`, whose clock is virtual.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Final

monotonic: Final[Callable[[], float]] = (
    # Linux's time.monotonic() is this very clock. Under another name it is not found by freezegun, and is the real
    # one also where headrace is first imported in frozen time. A partial is called without a frame of Python.
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    if sys.platform == "linux"
    else functools.partial(time.monotonic)
)
"""Seconds; only differences mean anything. The instants of `time.monotonic()`."""
