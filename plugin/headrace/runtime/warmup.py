"""Connections made ahead of need, for `pool.min_idle`: at the start, after a reload, after a burst."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from headrace.runtime.upstream import Upstream
from headrace.transport.urllib3_pool import GovernedHTTPPool

PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MOST_PER_ROUND = 100
"""Connections made before housekeeping is asked again; whatever `min_idle` says, a reload may have unsaid it."""

_log = logging.getLogger("headrace")


class Warmer:
    """Makes idle connections on the daemon thread `headrace-warmup`, which lives while there are any to make.

    Not on the housekeeping thread: a name look-up cannot be bounded, and an upstream
    that is down must not keep the others' idle connections from being closed. One
    connection at a time, in turn over the upstreams that want one; they are nobody's
    calls, so a failure is nobody's either: the circuit does not hear of it, and the
    upstream is left alone for 1, 2, 4, … at most 60 s.

    `look` and `stop` are called by one thread at a time; what they share with the
    thread is only touched while it is not alive.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._pauses: WeakKeyDictionary[GovernedHTTPPool, tuple[float, float]] = WeakKeyDictionary()

    def look(self, now: float, upstreams: Iterable[Upstream]) -> None:
        """Start making what *upstreams* want, unless that is under way. Does not block."""
        if self._thread is not None and self._thread.is_alive():
            return
        wanting = [
            upstream.state.pool
            for upstream in upstreams
            if upstream.mode == "enforce"
            and upstream.plan.pool.min_idle
            and now >= self._pauses.get(upstream.state.pool, (0.0, 0.0))[1]
            and upstream.state.pool.leases.want_idle()
        ]
        if wanting:
            self._ended.clear()
            self._thread = threading.Thread(
                target=self._make, args=(wanting,), name="headrace-warmup", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Make no more. Blocks until the connection under way is made, a second at most."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
        self._thread = None

    def _make(self, wanting: list[GovernedHTTPPool]) -> None:
        left = MOST_PER_ROUND
        while wanting:
            for pool in tuple(wanting):
                if self._ended.is_set() or left == 0:
                    return
                if not pool.leases.want_idle():
                    wanting.remove(pool)
                    continue
                left -= 1
                try:
                    pool.open_idle()
                except Exception as error:
                    pause_s = min(2 * self._pauses.get(pool, (PAUSE_S / 2, 0.0))[0], LONGEST_PAUSE_S)
                    self._pauses[pool] = pause_s, self._clock() + pause_s
                    wanting.remove(pool)
                    _log.debug("no idle connection to %s, again in %g s: %s", pool.host, pause_s, error)
                else:
                    self._pauses.pop(pool, None)
