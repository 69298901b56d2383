"""Requests at a steady pace from a few threads, and what became of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from types import TracebackType
from typing import Self

from sample_app.stage import Reply, fetch


class Traffic:
    """Load on one path while the `with` block lasts.

    Attributes:
        outcomes: Replies by status, and by exception name where there was none.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        threads: int = 4,
        pause_s: float = 0.005,
        see: Callable[[Reply], None] | None = None,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port, self._path, self._pause_s = port, path, pause_s
        self._see = see
        self._lock = threading.Lock()  # guards outcomes, and calls of see
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)

    @property
    def total(self) -> int:
        with self._lock:
            return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Everything that was not answered 200."""
        with self._lock:
            return sum(self.outcomes.values()) - self.outcomes["200"]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                reply = fetch(self._port, self._path)
            except (OSError, HTTPException) as error:
                with self._lock:
                    self.outcomes[type(error).__name__] += 1
            else:
                with self._lock:
                    self.outcomes[str(reply.status)] += 1
                    if self._see is not None:
                        self._see(reply)
            time.sleep(self._pause_s)
