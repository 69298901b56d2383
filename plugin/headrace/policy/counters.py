"""Exact totals of one upstream, by name: they outlive reloads.

Guarded by `lock` (a plain mutex given by the runtime). What may happen under it:
additions, nothing else. It is a leaf: it may be taken while another lock is held,
and no lock is ever taken while it is held.

Nearly every call has its answer at once. To count it is an append, which needs no lock (`answered`). A look or every
MANY-th such call adds up: the lock alone costs as much as all the rest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

from headrace.policy.frozen import slotted

DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds, seconds. prometheus_client's defaults, with 30 s in place of 0.075, 0.75 and 7.5."""

ATTEMPT_BUCKETS = (1, 2, 3, 5, 10)
"""Upper bounds, attempts per call: the defaults allow 3, most who raise it 5."""


@slotted
class Exemplar:
    """One observed value and the trace in which to look at it.

    Attributes:
        trace_id, span_id: 32 and 16 hex digits.
        at_s: Unix time of the observation.
    """

    trace_id: str
    span_id: str
    value: float
    at_s: float


class Histogram:
    """Counts per bucket and their sum. Not thread-safe: the owner's lock guards it.

    Attributes:
        bounds: Upper bounds of the buckets, ascending; in seconds, or in the unit that the owner observes.
        counts: Not cumulative; shape (len(bounds) + 1,), the last is +Inf.
        exemplars: The latest of each bucket that has one, by the index of its bucket.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float] = DURATION_BUCKETS_S) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def copy(self) -> Histogram:
        """The same counts in an object of their own."""
        twin = Histogram(self.bounds)
        twin.counts = list(self.counts)
        twin.sum = self.sum
        twin.exemplars = dict(self.exemplars)
        return twin

    def observe(self, value: float) -> None:
        """Add one value. Mutates."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: list[float]) -> None:
        """Add many values, at a third of the cost of as many `observe`. Mutates, also *values*: they are sorted."""
        if not values:
            return
        values.sort()
        bounds, start = self.bounds, 0
        # Values that come one after the other are alike: often there is one bucket for all.
        last = bisect_left(bounds, values[-1])
        for index in range(bisect_left(bounds, values[0]), last):
            end = bisect_right(values, bounds[index], start)
            self.counts[index] += end - start
            start = end
        self.counts[last] += len(values) - start
        self.sum += sum(values)

    def exemplify(self, exemplar: Exemplar) -> None:
        """Keep *exemplar*, whose value was observed, in place of the one its bucket has. Mutates."""
        self.exemplars[bisect_left(self.bounds, exemplar.value)] = exemplar


class Ticker:
    """A total that many threads raise without a lock.

    Attributes:
        tick: Adds one: a single call in C, exact with the GIL and without it.
    """

    __slots__ = ("_count", "_looks", "tick")

    def __init__(self, start: int = 0) -> None:
        self._count = count(start)
        self.tick = self._count.__next__
        self._looks = 0

    def total(self) -> int:
        """The total so far. Each look also ticks, and is subtracted again: the caller holds the owner's lock."""
        total = self.tick() - self._looks
        self._looks += 1
        return total

    def copy(self) -> Ticker:
        """One that goes on from the total so far; the caller holds the owner's lock."""
        return Ticker(self.total())


MANY = 32
"""Calls answered at once from which on they are added up: some microseconds under the lock. They are 5 KiB."""

PROTECTED_OUTCOMES = ("success", "failure", "ignored", "refused")


class UpstreamCounters:
    """Totals of one upstream since the process started.

    Attributes:
        requests: Ended calls by outcome label (`2xx`…`5xx`, a fault, `circuit_open`, `deadline`).
        attempts: Ended attempts by outcome label.
        retries: Attempts after the first, by the outcome label that caused them.
        retries_denied: Retries that the rules wanted and something forbade, by reason.
        retries_delegated: Tries of callers that retry by themselves: one attempt each.
        own_timeouts: Calls whose own `timeout=` took the place of limits of the file.
        fallbacks: Refused calls that got their fallback.
        broken_bodies: Streamed answers that broke off while they were read.
        collections: Garbage collections that a full pool asked for.
        resent: Requests sent once more because the pooled connection had died unnoticed.
        renewed: Requests sent once more, with a newer secret, after a 401.
        transitions: Circuit transitions by (from_state, to_state).
        refused: Calls the open circuit refused.
        protected: Calls of protected functions by what the circuit was told (success, failure, ignored), or refused.
        duration: Of ended calls; seconds.
        wait: For a connection, until there was one or the caller gave up; seconds.
        attempts_per_call: Of calls that made at least one; count.
        deadline_left: What the call had left of its deadline each time an attempt got its connection; seconds.
        observed: Under `mode: observe` (the upstream's or its breaker's): what would have been done, by action.
        answered: Calls that had a good answer at their first attempt, and that no total has yet: outcome label, how
            long the call took, what it had left of its deadline (None: it has none), whether its own `timeout=` held.
            Any thread may append. `copy` and `add_up` move them to the totals.
        rotations: Changes of what TLS files hold, by what became of them (taken, refused).
        acquires: Connection checkouts by result (hit, miss, timeout, rejected, deadline, cancelled).
        tls_handshakes: That succeeded, by whether they went on with a session of one before (yes, no).
        closed: Connections closed by reason (idle, lifetime, dead, surplus, retired, rotated, error, leaked,
            abandoned).
    """

    __slots__ = (
        "acquires",
        "answered",
        "attempts",
        "attempts_per_call",
        "broken_bodies",
        "closed",
        "collections",
        "deadline_left",
        "duration",
        "fallbacks",
        "lock",
        "observed",
        "own_timeouts",
        "protected",
        "refused",
        "renewed",
        "requests",
        "resent",
        "retries",
        "retries_delegated",
        "retries_denied",
        "rotations",
        "tls_handshakes",
        "transitions",
        "wait",
    )

    def __init__(self, *, lock: AbstractContextManager[Any] | None = None) -> None:
        self.lock: AbstractContextManager[Any] = lock if lock is not None else nullcontext()
        self.requests: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.answered: deque[tuple[str, float, float | None, bool]] = deque()
        self.retries: dict[str, int] = {}
        self.retries_denied: dict[str, int] = {}
        self.retries_delegated = 0
        self.broken_bodies = 0
        self.own_timeouts = 0
        self.fallbacks = 0
        self.collections = 0
        self.resent = 0
        self.renewed = 0
        self.transitions: dict[tuple[str, str], int] = {}
        self.refused = 0
        self.observed: dict[str, int] = {}
        self.rotations: dict[str, int] = {}
        self.protected = {outcome: Ticker() for outcome in PROTECTED_OUTCOMES}
        self.acquires: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.tls_handshakes: dict[str, int] = {}
        self.duration = Histogram()
        self.wait = Histogram()
        self.attempts_per_call = Histogram(ATTEMPT_BUCKETS)
        self.deadline_left = Histogram()

    def copy(self) -> UpstreamCounters:
        """The totals of one moment, in an object of their own. Takes the lock, only to add up and to copy."""
        twin = UpstreamCounters()
        with self.lock:
            self._take_in()
            copy_totals(self, twin, self.__slots__)
        return twin

    def add_up(self) -> None:
        """Move the calls that were answered at once to the totals. Takes the lock."""
        with self.lock:
            self._take_in()

    def _take_in(self) -> None:
        answered = self.answered
        if not answered:
            return
        taken: list[tuple[str, float, float | None, bool]] = []
        try:
            try:
                taken.extend(iter(answered.popleft, None))  # in C, so that nothing comes between the two
            except IndexError:
                pass  # that is how it ends
            if not taken:
                return
            # In C where it can be: this is most of what such a call costs here.
            labels, took_s, left_s, own_timeouts = zip(*taken, strict=True)
            # In copies, which then come all at once: an interrupt finds nothing half added.
            duration, deadline_left = self.duration.copy(), self.deadline_left.copy()
            duration.observe_all(list(took_s))
            # Less than nothing is left where the connection came too late: that is no time.
            deadline_left.observe_all([max(one, 0.0) for one in left_s if one is not None])
            requests, attempts = self.requests.copy(), self.attempts.copy()
            for label in set(labels):
                number = labels.count(label)
                add(requests, label, number)
                add(attempts, label, number)
            per_call = self.attempts_per_call.copy()
            per_call.counts[0] += len(taken)  # the first bound is one attempt
            per_call.sum += len(taken)
            n_own = self.own_timeouts + sum(own_timeouts)
            none: list[Any] = []
            # Stores only: no interrupt can come between them.
            self.requests = requests
            self.attempts = attempts
            self.duration = duration
            self.deadline_left = deadline_left
            self.attempts_per_call = per_call
            self.own_timeouts = n_own
            taken = none
        except BaseException:  # an interrupt
            answered.extendleft(reversed(taken))
            raise


def copy_totals(source: object, twin: object, slots: Iterable[str]) -> None:
    """Copy all that *source* counts into *twin*: what is in *slots*, except `lock` and private names.

    The totals are listed nowhere, so none can be forgotten. Mutates *twin*; the caller holds the lock.
    """
    for name in slots:
        if name != "lock" and not name.startswith("_"):
            setattr(twin, name, copied(getattr(source, name)))


def copied(total: Any) -> Any:
    """A copy of *total*; the caller holds the lock."""
    match total:
        case Histogram() | Ticker():
            return total.copy()
        case deque():
            return deque()  # what was noted there has been added up
        case dict():
            return {key: copied(value) for key, value in total.items()}
        case _:
            return total


def add(totals: dict[Any, int], key: Any, amount: int = 1) -> None:
    """Add *amount* under *key*. Mutates; the caller holds the lock."""
    totals[key] = totals.get(key, 0) + amount


def totals_of(tickers: Mapping[str, Ticker]) -> dict[str, int]:
    """The totals of *tickers* that are not 0; the caller holds the lock."""
    return {name: total for name, ticker in tickers.items() if (total := ticker.total())}
