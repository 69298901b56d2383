"""What a pool counts under its own lock, which it holds anyway. The upstream's counters are told now and then.

A second lock on every checkout would be a tenth of its cost. The totals are exact all the same:
every number changes under the pool's lock (`waits` by single list operations),
and every reader of the counters asks the pool first (`LeasePool.view`).
"""

from __future__ import annotations

from headrace.policy.counters import Ticker, UpstreamCounters, add

HIT_RATE_WINDOW_S = 10


class LeaseTally:
    """Totals of one pool. Guarded by the pool's lock, but for `tick`.

    Attributes:
        tick: Counts a hit without the lock: a single call in C. It is among `hits` from the next look on.
        hits, misses: Leases with an idle connection, and without.
        waited: Leases of both kinds that had to wait; each appends to `waits` once its thread runs again.
        failures: Acquires that ended without a lease.
        failed, closed: Failures by result, and connections given up by reason; not yet told to the counters.
        collections: Garbage collections asked for; not yet told.
        waits: Seconds waited, by waiters and by acquires that failed; not yet told.
        turn_at: When a new second begins, on the pool's clock, and `turn()` is due.
    """

    __slots__ = (
        "_marks",
        "_ticker",
        "_ticks",
        "_told",
        "closed",
        "collections",
        "failed",
        "failures",
        "hits",
        "misses",
        "tick",
        "turn_at",
        "waited",
        "waits",
    )

    def __init__(self) -> None:
        self.hits = self.misses = self.waited = self.failures = self.collections = 0
        self.failed: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.waits: list[float] = []
        self.turn_at = 0.0
        self._ticker = Ticker()
        self.tick = self._ticker.tick
        self._ticks = 0  # those that are among `hits`
        self._told = (0, 0, 0)
        # Second, hits and acquires before it; oldest first, one for each second of the window.
        self._marks: list[tuple[int, int, int]] = []

    def turn(self, now: float) -> None:
        """Remember the counts at the first acquire of a second."""
        self._take_in()
        second = int(now)
        if self._marks and second < self._marks[-1][0]:  # the clock was stepped back
            self._marks.clear()
        self.turn_at = second + 1.0
        self._marks.append((second, self.hits, self._acquires()))
        self._forget(second)

    def hit_rate(self, now: float) -> float | None:
        """Share of acquires in the last 10 s that got an idle connection; None when there were none."""
        self._take_in()
        self._forget(int(now))
        if self._marks and self._marks[-1][0] > now + HIT_RATE_WINDOW_S:
            self._marks.clear()
        if not self._marks:
            return None
        _, hits, acquires = self._marks[0]
        made = self._acquires() - acquires
        return (self.hits - hits) / made if made else None

    @property
    def has_news(self) -> bool:
        """Whether `tell` has anything to add, apart from ticks.

        Whose connection was hit without the lock holds it, or has it idle, or its close is to be told.
        """
        return bool(
            self._told != (self.hits, self.misses, self.waited)
            or self.waits
            or self.failed
            or self.closed
            or self.collections
        )

    def tell(self, counters: UpstreamCounters) -> None:
        """Add what is new to *counters*. Takes their lock, which is a leaf."""
        self._take_in()
        hits, misses, waited = self._told
        self._told = self.hits, self.misses, self.waited
        with counters.lock:
            for result, amount in (("hit", self.hits - hits), ("miss", self.misses - misses)):
                if amount:
                    add(counters.acquires, result, amount)
            counters.wait.counts[0] += self.hits + self.misses - self.waited - (hits + misses - waited)
            for totals, told in ((self.failed, counters.acquires), (self.closed, counters.closed)):
                for word, amount in totals.items():
                    add(told, word, amount)
                totals.clear()
            counters.collections += self.collections
            self.collections = 0
            waits = self.waits[:]
            del self.waits[: len(waits)]  # what was appended meanwhile stays
            for wait_s in waits:
                counters.wait.observe(wait_s)

    def _take_in(self) -> None:
        ticks = self._ticker.total()
        self.hits += ticks - self._ticks
        self._ticks = ticks

    def _acquires(self) -> int:
        return self.hits + self.misses + self.failures

    def _forget(self, second: int) -> None:
        while self._marks and self._marks[0][0] <= second - HIT_RATE_WINDOW_S:
            self._marks.pop(0)
