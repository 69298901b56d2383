"""What a pool of leases reports about itself, and why there is no lease."""

from __future__ import annotations

from headrace.policy.frozen import frozen


@frozen
class PoolView:
    """The pool at one instant; `inuse` and `idle` count connections, without the one-off ones."""

    inuse: int
    idle: int
    waiting: int
    one_off: int
    max_connections: int
    retired: bool
    stopped: bool


@frozen
class LeaseReport:
    """A lease that needs attention.

    Attributes:
        site: `file:line` where it was taken, or None when that was not noted.
        held_s: Seconds it has been held so far; None when it was dropped and reclaimed.
    """

    site: str | None
    held_s: float | None


@frozen
class LeaseFault:
    """A step of the bookkeeping failed for one lease, waiter or connection, which was then given up.

    Attributes:
        error: Type and text of the exception.
        site: `file:line` that raised it.
    """

    error: str
    site: str

    @classmethod
    def of(cls, error: Exception) -> LeaseFault:
        """The fault for *error*, which was just caught."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        site = "unknown" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return cls(f"{type(error).__name__}: {error}", site)


class LeaseError(Exception):
    """No lease; the text holds the numbers.

    Attributes:
        inuse, idle, waiting, max_connections: The pool at that instant; `waiting` without the call that gave up.
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
    """The client that the wait was for has gone."""


class LeaseClosed(LeaseError):
    """The pool was stopped."""
