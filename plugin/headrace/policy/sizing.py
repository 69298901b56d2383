"""How many connections a pool may have, when the file leaves that open (`pool.adaptive`).

A pool grows when many calls wait *and* calls come faster than they usually do. It shrinks when
no call has waited for a while *and* they come slower. Pure: the rule is told what
was seen and when, and answers a new size, so a recorded log gives the same sizes
again. Only an `adaptive` pool has such a rule. Only the wait for a connection and
housekeeping feed it: a call that finds a connection free pays nothing.

What is usual is the *baseline*, an exponentially weighted mean of the rate. It begins
with the first full `rate_window`. Before that there is nothing to compare with:
waiting alone decides on growth, and nothing is given up.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from headrace.policy.breaker.window import LATEST_S
from headrace.policy.frozen import frozen, slotted
from headrace.policy.plan import AdaptivePlan

EVALUATE_EVERY_S = 0.1
"""Growth is considered at most this often: a step must have served some call before the next one is judged."""

BASELINE_HALF_LIFE_S = 600.0
"""What was usual ten minutes ago counts half: a busy hour becomes usual, a burst does not."""

_N_SAMPLES = 60  # of the count of arrivals, per rate_window: the rate is exact to 1/60 of the window
_SHORTEST_S = 1.0  # over less time, two first calls would look like a thousand calls per second


class ResizeReason(StrEnum):
    """Why a pool's size changed."""

    WAITING = "waiting"
    """Too many calls waited, and calls came faster than usual."""
    SURPLUS = "surplus"
    """No call waited, and calls came slower than usual."""


@slotted
class PoolLoad:
    """What was seen of a pool at one instant.

    Attributes:
        waiting: Calls in the queue, including one that is about to wait; count.
        inuse: Most connections in use at once since the previous load; count.
        size: Connections that the pool may have now; count.
        arrivals: Calls that have ever asked for a connection; count. Only differences matter.
    """

    waiting: int
    inuse: int
    size: int
    arrivals: int


@frozen
class Resize:
    """A new size, with the numbers that led to it.

    Attributes:
        waiting: Calls that were waiting; count.
        peak_inuse: Most connections in use at once during the last `shrink_after`; count.
        rate_rps: Calls per second over `rate_window`, or over what there is of it.
        baseline_rps: Calls per second that are usual, or None before the first full `rate_window`.
    """

    from_size: int
    to_size: int
    reason: ResizeReason
    waiting: int
    peak_inuse: int
    rate_rps: float
    baseline_rps: float | None


class Sizing:
    """The size rule of one pool, with what it remembers. Not thread-safe: the owner's lock guards it.

    Instants are monotonic seconds; one before the last is taken as the last. An instant more than `LATEST_S`
    before the last means that the clock was stepped back: time goes on from there (failures.md 69).

    Args:
        plan: The thresholds and the smallest size.
        max_connections: The largest size; count, >= plan.min.

    Attributes:
        next_at: Until then `enqueued` answers None and remembers nothing, so it need not be asked.
    """

    __slots__ = (
        "_baseline_rps",
        "_max_connections",
        "_now",
        "_peaks",
        "_plan",
        "_quiet_since",
        "_samples",
        "_stepped_s",
        "next_at",
    )

    # Both are set by the first load.
    _now: float
    _quiet_since: float  # since then no call has waited, and the size has not changed

    def __init__(self, plan: AdaptivePlan, *, max_connections: int) -> None:
        self._plan = plan
        self._max_connections = max_connections
        # How far the clock was stepped back so far. What is remembered goes by the clock as it was before.
        self._stepped_s = 0.0
        self._samples: deque[tuple[float, int]] = deque()  # at, arrivals; the oldest is a rate_window old
        self._peaks: deque[tuple[float, int]] = deque()  # at, inuse; falling, so the first is the peak
        self._baseline_rps: float | None = None
        self.next_at = float("-inf")

    @property
    def baseline_rps(self) -> float | None:
        """Calls per second that are usual, or None before the first full `rate_window`."""
        return self._baseline_rps

    def is_due(self, now: float) -> bool:
        """Whether `enqueued` would look at all."""
        return now >= self.next_at or now < self.next_at - EVALUATE_EVERY_S - LATEST_S

    def enqueued(self, now: float, load: PoolLoad) -> Resize | None:
        """A call has to wait: the larger size that is needed, or None. Mutates.

        Grows when waiting > grow_when_waiting · size and rate > grow_when_rate · baseline, by
        max(1, int(rate · connections_per_rps)), up to max_connections.
        """
        if not self.is_due(now):
            return None
        rate_rps = self._remember(now, load)
        self.next_at = self._now - self._stepped_s + EVALUATE_EVERY_S
        plan = self._plan
        if load.waiting <= plan.grow_when_waiting * load.size:
            return None
        if self._baseline_rps is not None and rate_rps <= plan.grow_when_rate * self._baseline_rps:
            return None
        step = max(1, int(rate_rps * plan.connections_per_rps))
        to_size = min(load.size + step, self._max_connections)
        return self._resize(load, to_size, ResizeReason.WAITING, rate_rps) if to_size > load.size else None

    def looked(self, now: float, load: PoolLoad) -> Resize | None:
        """Housekeeping has looked: the smaller size that will do, or None. Mutates.

        Shrinks when no call waited for shrink_after and rate < shrink_when_rate · baseline, by half of
        the connections that the peak of that time did not use, at least 1, down to min. Each resize begins
        a new shrink_after: otherwise the pool would shrink at the pace of housekeeping.
        """
        rate_rps = self._remember(now, load)
        plan, baseline_rps = self._plan, self._baseline_rps
        if self._now - self._quiet_since < plan.shrink_after_s:
            return None
        if baseline_rps is None or rate_rps >= plan.shrink_when_rate * baseline_rps:
            return None
        step = max(1, (load.size - self._peaks[0][1]) // 2)
        to_size = max(load.size - step, plan.min)
        return self._resize(load, to_size, ResizeReason.SURPLUS, rate_rps) if to_size < load.size else None

    def _remember(self, now: float, load: PoolLoad) -> float:
        """Remember *load* and answer the rate now, in calls per second."""
        samples, plan = self._samples, self._plan
        if not samples:
            self._quiet_since = self._now = now
            samples.append((now, load.arrivals))
        now += self._stepped_s
        if now < self._now - LATEST_S:
            self._stepped_s += self._now - now
            now = self._now
        passed_s = max(now - self._now, 0.0)
        self._now = now = self._now + passed_s

        if now - samples[-1][0] >= plan.rate_window_s / _N_SAMPLES:
            samples.append((now, load.arrivals))
        while len(samples) > 1 and now - samples[1][0] >= plan.rate_window_s:
            samples.popleft()
        since, arrivals = samples[0]
        rate_rps = max(load.arrivals - arrivals, 0) / max(now - since, _SHORTEST_S)

        if self._baseline_rps is not None:
            weight = 1.0 - 0.5 ** (passed_s / BASELINE_HALF_LIFE_S)
            self._baseline_rps += weight * (rate_rps - self._baseline_rps)
        elif now - since >= plan.rate_window_s:
            self._baseline_rps = rate_rps

        peaks = self._peaks
        while peaks and peaks[-1][1] <= load.inuse:
            peaks.pop()
        peaks.append((now, load.inuse))
        while now - peaks[0][0] > plan.shrink_after_s:
            peaks.popleft()
        if load.waiting:
            self._quiet_since = now
        return rate_rps

    def _resize(self, load: PoolLoad, to_size: int, reason: ResizeReason, rate_rps: float) -> Resize:
        self._quiet_since = self._now
        return Resize(
            load.size, to_size, reason, load.waiting, self._peaks[0][1], rate_rps, self._baseline_rps
        )
