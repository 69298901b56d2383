"""Totals of one Headrace instance that belong to no single upstream.

`ServiceCounters` owns them, and which call sites a log line has named already. `ServiceCounters.lock` guards every
field but one. It is a leaf: nothing else is taken under it, and events are logged after it is released.

Every inbound request is counted and timed. So that is an append to `ServiceCounters.ended`, which needs no lock, and a
look or every sixty-fourth request adds up: the lock and the sums cost twice as much as all the rest of it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal

from headrace.observe.events import DeadlineRefused, DeadlinesDistrusted
from headrace.observe.logs import emit
from headrace.policy.counters import Histogram, add, copy_totals
from headrace.policy.deadline_header import ExpiryGuard
from headrace.policy.outcome import STATUS_CLASS

DeadlineVerdict = Literal["refused", "excused", "distrusted"]
"""refused: answered with 504. excused: served all the same, since too few requests came to tell a fault from chance.
distrusted: served all the same, since no more may be refused."""


MANY = 64
"""Served requests from which on they are added up: a tenth of a millisecond under the lock."""


class _ByStatus(dict[int, "deque[float]"]):
    """Where to note a request, by its status. All statuses of a class have the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.by_class = [(status_class, deque[float]()) for status_class in STATUS_CLASS]

    def __missing__(self, status: int) -> deque[float]:
        # Once for each status, and by two threads at once the same.
        _, place = self.by_class[status // 100 % len(self.by_class)]
        self[status] = place
        return place


class ServiceCounters:
    """Reloads, ungoverned calls, served requests, inbound deadlines. Thread-safe.

    Its own fields may lag behind by some served requests. A `copy` has them all.

    Attributes:
        ended: Served requests that are in no total yet, by their status: seconds. Any thread may append; whoever makes
            them MANY calls `add_up`.
    """

    __slots__ = (
        "_expiry",
        "_sites",
        "ended",
        "inbound_deadlines",
        "lock",
        "reloads",
        "served_by_class",
        "served_duration",
        "ungoverned",
    )

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reloads: dict[str, int] = {}
        self.ungoverned: dict[str, int] = {}
        self.inbound_deadlines: dict[str, int] = {}
        self.served_by_class: dict[str, int] = {}
        self.served_duration = Histogram()
        self._expiry = ExpiryGuard()
        self._sites: set[tuple[str, str]] = set()
        self.ended = _ByStatus()

    def copy(self) -> ServiceCounters:
        """The totals of now, as an object of its own."""
        twin = ServiceCounters()
        with self.lock:
            self._add_up()
            copy_totals(self, twin, (name for name in self.__slots__ if name != "ended"))
        return twin

    def served(self, status: int, duration_s: float) -> None:
        """Count one inbound request by status class and time it."""
        ended = self.ended[status]
        ended.append(duration_s)
        if len(ended) >= MANY:
            self.add_up()

    def add_up(self) -> None:
        """Move the requests that were served to the totals. Takes the lock."""
        with self.lock:
            self._add_up()

    def _add_up(self) -> None:
        """Add what was served to the totals. Mutates; the caller holds the lock."""
        for status_class, ended in self.ended.by_class:
            if not ended:
                continue
            # As `UpstreamCounters.add_up`: taken in C, added to copies, stored all at once.
            taken: list[float] = []
            try:
                try:
                    taken.extend(iter(ended.popleft, None))
                except IndexError:
                    pass
                by_class, duration = self.served_by_class.copy(), self.served_duration.copy()
                add(by_class, status_class, len(taken))
                duration.observe_all(taken.copy())
                none: list[float] = []
                self.served_by_class = by_class
                self.served_duration = duration
                taken = none
            except BaseException:  # an interrupt
                ended.extendleft(reversed(taken))
                raise

    def deadline_came(self, now: float) -> None:
        """Count one request that could have brought a deadline. `deadline_past` compares with these."""
        with self.lock:
            self._expiry.count(now)

    def deadline_unreadable(self) -> None:
        """Count one header that cannot be read."""
        with self.lock:
            add(self.inbound_deadlines, "unreadable")

    def deadline_past(self, now: float) -> DeadlineVerdict:
        """What becomes of a request, counted before, whose deadline is past. Counts the verdict."""
        with self.lock:
            if self._expiry.may_refuse(now):
                add(self.inbound_deadlines, "refused")
                return "refused"
            add(self.inbound_deadlines, "excused")
            return "distrusted" if self._expiry.is_exhausted else "excused"

    def refuses_past_deadline(self, header: str, now: float) -> bool:
        """Whether a request, counted before, is refused since its deadline in *header* is past.

        Counts the verdict, and logs once for each header what becomes of such requests.
        """
        verdict = self.deadline_past(now)
        if verdict == "refused":
            if self.is_first("deadline.refused", header):
                emit(DeadlineRefused(header=header))
            return True
        if verdict == "distrusted" and self.is_first("deadline.distrusted", header):
            emit(DeadlinesDistrusted(header=header))
        return False

    def reloaded(self, result: str) -> None:
        """Count one reload: `applied`, `unchanged`, `rejected` or `held`."""
        with self.lock:
            add(self.reloads, result)

    def count_ungoverned(self, reason: str, site: str) -> bool:
        """Count one call that matched a rule but is not governed; True the first time *site* does it."""
        with self.lock:
            add(self.ungoverned, reason)
        return self.is_first(reason, site)

    def is_first(self, matter: str, site: str) -> bool:
        """Whether *site* comes up with *matter* for the first time. Then it is worth a log line. Mutates."""
        with self.lock:
            key = (matter, site)
            if key in self._sites or len(self._sites) >= 1000:  # a bound, in case sites are generated
                return False
            self._sites.add(key)
            return True
