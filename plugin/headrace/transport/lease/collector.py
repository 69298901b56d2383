"""Python's garbage collector, asked by a pool that is full: what holds its slots may be garbage already."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Final

from headrace.clock import monotonic

PATIENCE_S: Final = 0.1
"""How long somebody waits for a slot before the collector is asked: a pool that is busy serves him sooner."""

EVERY_S: Final = 5.0
_DO_NOT_WAIT: Final = (False,)
_LARGEST_SHARE: Final = 0.05
"""Of the time, spent collecting: a heap of gigabytes takes seconds, and every thread stands still meanwhile."""


class Collector:
    """Full collections, few of them however many pools ask. Thread-safe; one for the process.

    A response that nobody holds any more may be in a cycle, with the exception and the frames of the
    request that was broken off. It goes when the oldest generation is collected, which a process that
    waits for its slots, and allocates nothing, does not come to (failures.md 61).
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
        self._turn = threading.Lock()  # held by the one who collects

    def ask(self) -> bool:
        """Collect, unless that was done lately or is under way; whether it was. Call it without any lock."""
        if 0.0 <= self._clock() - self._ended_at < self._pause_s:  # below 0, the clock was stepped back
            return False
        turn, is_ours = self._turn, False
        try:
            # As in `LeasePool._settle`: an interrupt cannot come between taking it and knowing that.
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
        """In a forked child: whoever held the lock does not exist here."""
        self._turn = threading.Lock()


collector: Final = Collector()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector.forget_inherited)
