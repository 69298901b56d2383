"""The housekeeping thread: what has to happen without a call to happen in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

TICK_S = 0.5
"""Seconds between rounds: half the smallest idle timeout that makes sense, and the lag of multiprocess metrics."""

_log = logging.getLogger("headrace")


class Housekeeping:
    """Runs *tasks* every TICK_S on the daemon thread `headrace-housekeeping`.

    A task that raises is logged and runs again next time. `start` and `stop` are
    called by one thread at a time (the owner's lifecycle lock).
    """

    def __init__(self, tasks: Sequence[Callable[[float], None]]) -> None:
        self._tasks = tuple(tasks)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="headrace-housekeeping", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Blocks until the round under way is over."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while True:  # the first round at once: connections to be kept warm
            now = time.monotonic()
            for task in self._tasks:
                try:
                    task(now)
                except Exception:
                    _log.exception("housekeeping task failed")
            if self._ended.wait(TICK_S):
                return
