"""When watched files are read, and whether what was read is a change. Pure: the instants are parameters.

`Settling` owns the pokes that have come and the content that was last reported. `Watcher._lock` guards it.
"""

from __future__ import annotations

from headrace.policy.plan import ReloadPlan
from headrace.runtime.watch.fingerprint import Prints


class Settling:
    """When to read the files, and whether a reading is a change to be reported. Pure; not thread-safe.

    After the poke of an event, the files are read once no poke has come for `debounce_s`, or `max_delay_s` after the
    first poke. Where the poll finds a difference, no event says when its writer is done. So the files are read again
    after `debounce_s`, and the change is reported when two readings agree, at the latest after `max_delay_s`.

    Attributes:
        known: The content last reported, or given as known. A file that is not in it counts as changed.
        news: The files that have changed at the last report; none where it was reported whether they have or not.
    """

    __slots__ = (
        "_again_at",
        "_first_poke_at",
        "_last_poke_at",
        "_plan",
        "_read_at",
        "_suspect",
        "known",
        "news",
    )

    def __init__(self, plan: ReloadPlan, *, now: float, known: Prints | None = None) -> None:
        self._plan = plan
        self.known: dict[str, bytes] = dict(known or {})
        self.news: frozenset[str] = frozenset()
        self._first_poke_at: float | None = None
        self._last_poke_at = now
        self._read_at = now  # of the next reading that no event asks for; the first is due at once
        self._again_at: float | None = None
        self._suspect: Prints | None = None

    def poke(self, now: float) -> bool:
        """Note that something may have changed. True for the first poke of a series: then wake the waiter."""
        self._last_poke_at = now
        if self._first_poke_at is None:
            self._first_poke_at = now
            return True
        return False

    def look_at(self, now: float) -> None:
        """Read at *now*, whatever else is due."""
        self._read_at = now

    def again_at(self, instant: float) -> None:
        """Report at *instant* even if nothing has changed by then."""
        self._again_at = instant

    def replan(self, plan: ReloadPlan) -> None:
        """Take the rules of a reloaded file."""
        self._plan = plan

    def clip(self, now: float) -> None:
        """Move what is due later than its whole delay from *now*: the clock may have stepped back. Mutates."""
        self._read_at = min(self._read_at, now + self._plan.poll_s)
        self._last_poke_at = min(self._last_poke_at, now)
        if self._first_poke_at is not None:
            self._first_poke_at = min(self._first_poke_at, now)

    def due_at(self) -> float:
        """The instant of the next reading."""
        due = self._read_at
        if self._first_poke_at is not None:
            due = min(due, self._quiet_at(self._first_poke_at))
        if self._again_at is not None:
            due = min(due, self._again_at)
        return due

    def take(self, now: float) -> float | None:
        """Begin the reading that is due. Mutates.

        Pokes from here on belong to the next reading: what they stand for may happen after this one.

        Returns:
            The instant of the first poke, if the pokes have settled; else None.
        """
        self._read_at = now + self._plan.poll_s
        first = self._first_poke_at
        if first is None or now < self._quiet_at(first):
            return None
        self._first_poke_at = None
        return first

    def judge(self, now: float, prints: Prints, *, first_poke_at: float | None) -> bool:
        """Whether to report *prints*, which were read after `take` answered *first_poke_at*.

        Mutates: a reading that is reported is the known one from then on.
        """
        again = self._again_at is not None and now >= self._again_at
        news = [file for file, held in prints.items() if self.known.get(file) != held]
        differs = bool(news)
        suspect, self._suspect = self._suspect, None
        if differs and not again:
            if first_poke_at is None:
                if self._first_poke_at is None:  # else an event has come, which has a reading of its own
                    self._suspect = prints
                    self.poke(now)
                return False
            if suspect is not None and suspect != prints and now < first_poke_at + self._plan.max_delay_s:
                self._suspect = prints
                self._first_poke_at, self._last_poke_at = first_poke_at, now
                return False
        if again:
            self._again_at = None
        self.news = frozenset(() if again else news)
        self.known = dict(prints)  # this also forgets files that are no longer watched
        return differs or again

    def _quiet_at(self, first_poke_at: float) -> float:
        return min(self._last_poke_at + self._plan.debounce_s, first_poke_at + self._plan.max_delay_s)
