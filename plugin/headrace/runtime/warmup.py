"""Connections made ahead of need, for `pool.min_idle`: at the start, after a reload, after a burst.

`Warmer` owns how long each pool is left alone after a failure. It has no lock: one thread at a time calls `look` and
`stop`, and these touch what they share with the warming thread only while that is not alive.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from headrace.clock import monotonic
from headrace.observe.isolation import answers
from headrace.runtime.threads import AutoResetEvent, Life, ServiceThread
from headrace.runtime.upstream import Upstream, name_of
from headrace.transport.stock.pool import GovernedHTTPPool

PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Seconds for which a pool is left alone after a failure: the first pause, which doubles, and the longest."""
MOST_PER_ROUND = 100
"""Connections made in a round, however many `min_idle` says. A reload may have changed that meanwhile."""

_log = logging.getLogger("headrace")


class Warmer:
    """Makes idle connections on the daemon thread `headrace-warmup`, which lives while there are any to make.

    It has its own thread since connecting takes its time: an upstream that is down would keep housekeeping
    from closing the idle connections of others. It makes one connection at a time, in turn over the upstreams that
    want one. These are no calls: the circuit does not hear of a failure, and the upstream is left alone for 1, 2, 4, …
    at most 60 s.
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

    def _make(self, wanting: list[GovernedHTTPPool], ended: AutoResetEvent) -> None:
        left = MOST_PER_ROUND
        while wanting:
            for pool in tuple(wanting):
                if ended.was_set or left == 0:
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
