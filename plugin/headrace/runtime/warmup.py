"""Connections made ahead of need, for `pool.min_idle`: at the start, after a reload, after a burst."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from headrace.clock import monotonic
from headrace.observe.isolation import answers
from headrace.runtime.threads import Bell, Life, ServiceThread
from headrace.runtime.upstream import Upstream, name_of
from headrace.transport.stock.pool import GovernedHTTPPool

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

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._thread = ServiceThread("headrace-warmup", clock=clock)
        self._pauses: WeakKeyDictionary[GovernedHTTPPool, tuple[float, float]] = WeakKeyDictionary()

    def look(self, now: float, upstreams: Iterable[Upstream]) -> None:
        """Start making what *upstreams* want, unless that is under way. Does not block."""
        if self._thread.is_alive:
            return

        def wants(upstream: Upstream) -> bool:
            pool = upstream.endpoint.pool
            return (
                upstream.mode == "enforce"
                and upstream.plan.pool.min_idle > 0
                and not 0.0 < self._pauses.get(pool, (0.0, 0.0))[1] - now <= LONGEST_PAUSE_S
                and bool(pool.leases.want_idle())
            )

        asked = answers(upstreams, wants, doing="tell whether an upstream wants idle connections", of=name_of)
        wanting = [upstream.endpoint.pool for upstream, is_wanting in asked if is_wanting]
        if wanting:
            self._thread.start(functools.partial(self._make, wanting))

    def stop(self) -> None:
        """Make no more. Blocks until the connection under way is made, a second at most. Idempotent."""
        self._thread.stop(timeout_s=1.0)

    def life(self) -> Life:
        """The sign of life of the thread."""
        return self._thread.life()

    def _make(self, wanting: list[GovernedHTTPPool], ended: Bell) -> None:
        left = MOST_PER_ROUND
        while wanting:
            for pool in tuple(wanting):
                if ended.has_rung or left == 0:
                    return
                self._thread.looked()
                left -= 1
                try:
                    if pool.leases.want_idle():
                        pool.open_idle()
                        self._pauses.pop(pool, None)
                    else:
                        wanting.remove(pool)
                except Exception as error:
                    pause_s = min(2 * self._pauses.get(pool, (PAUSE_S / 2, 0.0))[0], LONGEST_PAUSE_S)
                    self._pauses[pool] = pause_s, self._clock() + pause_s
                    wanting.remove(pool)
                    _log.debug("no idle connection to %s, again in %g s: %s", pool.host, pause_s, error)
