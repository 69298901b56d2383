"""Python's garbage collector, which a full pool asks to run: what holds its slots may be garbage already."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Final

from headrace.clock import monotonic

PATIENCE_S: Final = 0.1
"""How long a call waits for a slot before the collector is asked, seconds. A pool that is only busy serves it sooner.
"""

EVERY_S: Final = 5.0
_DO_NOT_WAIT: Final = (False,)
_LARGEST_SHARE: Final = 0.05
"""Largest share of time spent collecting: a heap of gigabytes takes seconds, and every thread stands still meanwhile.
"""


class Collector:
    """Makes full collections, but only a few, however many pools ask. Thread-safe; one for the process.

    A response that is no longer used may be in a cycle with the exception and the frames of the
    request that was broken off. It is freed when the oldest generation is collected. A process that
    waits for its slots allocates nothing, so it does not come to that (failures.md 61).
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = monotonic,
        collect: Callable[[], object] = gc.collect,
    ) -> None:
        self._clock = clock
        self._collect = collect
        self._ended_at = 0.0
        self._pause_s = 0.0
        self._turn = threading.Lock()  # held by the thread that collects

    def ask(self) -> bool:
        """Collect unless that was done lately or is under way; answers whether it did. Call it without any lock."""
        if 0.0 <= self._clock() - self._ended_at < self._pause_s:  # below 0: the clock was stepped back
            return False
        turn, is_ours = self._turn, False
        try:
            # As in `LeasePool._settle`: no interrupt can come between taking the lock and knowing that it is taken.
            (is_ours,) = map(turn.acquire, _DO_NOT_WAIT)
            if not is_ours:
                return False
            began = self._clock()
            self._collect()
            self._ended_at = ended = self._clock()
            self._pause_s = max(EVERY_S, (ended - began) / _LARGEST_SHARE)
        finally:
            if is_ours:
                turn.release()
        return True

    def forget_inherited(self) -> None:
        """Make a new lock in a forked child: the thread that may have held the old one does not exist here."""
        self._turn = threading.Lock()


collector: Final = Collector()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector.forget_inherited)
