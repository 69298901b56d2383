"""Totals of one Headrace instance that belong to no single upstream."""

from __future__ import annotations

import threading
from typing import Literal

from headrace.observe.events import DeadlineRefused, DeadlinesDistrusted
from headrace.observe.logs import emit
from headrace.policy.counters import Histogram, add, copy_totals
from headrace.policy.deadline_header import ExpiryGuard
from headrace.policy.outcome import STATUS_CLASS

DeadlineVerdict = Literal["refused", "excused", "distrusted"]
"""refused: answered with 504. excused: served all the same, too few requests came to tell a fault from chance.
distrusted: served all the same, as many were refused already as may be."""


class ServiceCounters:
    """Reloads, ungoverned calls, served requests, inbound deadlines.

    Thread-safe: `lock` guards every field; a leaf lock.
    """

    __slots__ = (
        "_expiry",
        "_sites",
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

    def copy(self) -> ServiceCounters:
        """The totals of now, apart from these."""
        twin = ServiceCounters()
        with self.lock:
            copy_totals(self, twin, self.__slots__)
        return twin

    def served(self, status: int, duration_s: float) -> None:
        """Count one inbound request by status class and time it."""
        with self.lock:
            add(self.served_by_class, STATUS_CLASS[status // 100 % 10])
            self.served_duration.observe(duration_s)

    def deadline_came(self, now: float) -> None:
        """Count one request that could have brought a deadline: what `deadline_past` compares with."""
        with self.lock:
            self._expiry.count(now)

    def deadline_unreadable(self) -> None:
        """Count one header that says nothing."""
        with self.lock:
            add(self.inbound_deadlines, "unreadable")

    def deadline_past(self, now: float) -> DeadlineVerdict:
        """What becomes of a request, counted before, whose deadline is past; counts that."""
        with self.lock:
            if self._expiry.may_refuse(now):
                add(self.inbound_deadlines, "refused")
                return "refused"
            add(self.inbound_deadlines, "excused")
            return "distrusted" if self._expiry.is_exhausted else "excused"

    def refuses_past_deadline(self, header: str, now: float) -> bool:
        """Whether a request, counted before, is refused since its deadline in *header* is past.

        Counts it, and says once for each header what becomes of such requests.
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
        """Whether *site* comes up with *matter* for the first time: what is worth one log line, not a thousand."""
        with self.lock:
            key = (matter, site)
            if key in self._sites or len(self._sites) >= 1000:  # a bound, should sites be generated
                return False
            self._sites.add(key)
            return True
