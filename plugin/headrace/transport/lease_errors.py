"""What a pool of leases says of itself, and why there is no lease."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolView:
    """How the pool stood at one instant; `inuse` counts pooled leases, one-off ones apart."""

    inuse: int
    idle: int
    waiting: int
    one_off: int
    max_connections: int
    retired: bool
    stopped: bool


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """A lease that somebody should look after.

    Attributes:
        site: `file:line` where it was taken, or None when that was not noted.
        held_s: Seconds it has been held so far; None when it was dropped and reclaimed.
    """

    site: str | None
    held_s: float | None


class LeaseError(Exception):
    """No lease; the text holds the numbers.

    Attributes:
        inuse, idle, waiting, max_connections: The pool at that instant; `waiting` without the one that gave up.
        waited_s: Seconds waited in vain.
    """

    def __init__(self, what: str, view: PoolView, *, waited_s: float) -> None:
        super().__init__(
            f"{what} (waited {waited_s:.3f} s; {view.inuse} in use, {view.idle} idle, "
            f"{view.waiting} waiting, max {view.max_connections})"
        )
        self.inuse = view.inuse
        self.idle = view.idle
        self.waiting = view.waiting
        self.max_connections = view.max_connections
        self.waited_s = waited_s


class LeaseTimeout(LeaseError):
    """No connection came free in time."""


class LeaseRejected(LeaseError):
    """The pool is full, and `when_full` or `max_waiting` says not to wait."""


class LeaseCancelled(LeaseError):
    """Whoever the wait was for has gone."""


class LeaseClosed(LeaseError):
    """The pool was stopped."""
