"""urllib3's `Timeout` for one attempt of ours."""

from __future__ import annotations

from urllib3.util.timeout import Timeout

from headrace.clock import monotonic
from headrace.transport.attempt import Attempt
from headrace.transport.standstill import GRACE_S


class AttemptTimeout(Timeout):
    """The limits of *attempt* as urllib3 is told of them. The deadline thread ends the attempt itself.

    When the time is over by the end of sending, stock gives up before it has looked at the socket. A process
    that stood still there would lose an answer that has arrived (failures.md 67).
    """

    def __init__(self, attempt: Attempt) -> None:
        # Stock's __init__ checks each limit. These are a plan's, or a caller's that were checked already.
        self._connect = attempt.timeouts.connect_s
        self._read = attempt.timeouts.read_s
        self.total = attempt.limit_s
        self._start_connect = None

    def clone(self) -> AttemptTimeout:
        """A new timeout with the same limits."""
        # Not through __init__, which checks each limit again: twice a call, at 11 calls of Python code.
        fresh = AttemptTimeout.__new__(AttemptTimeout)
        fresh._connect = self._connect
        fresh._read = self._read
        fresh.total = self.total
        fresh._start_connect = None
        return fresh

    def start_connect(self) -> float:
        """Begin to count, on our clock."""
        self._start_connect = now = monotonic()
        return now

    def get_connect_duration(self) -> float:
        """Seconds since `start_connect`."""
        return monotonic() - (self._start_connect or monotonic())

    @property
    def read_timeout(self) -> float | None:
        """Longest silence that is left, seconds; never 0, at least a grace."""
        total, read, started = self.total, self._read, self._start_connect
        if total is None or started is None:
            return read  # type: ignore[return-value]  # never the stand-in for the default: an attempt's limits are given
        left_s = total - (monotonic() - started)  # type: ignore[operator]  # likewise
        if left_s <= 0.0:
            left_s = GRACE_S
        return left_s if read is None else min(left_s, read)  # type: ignore[type-var,return-value]  # likewise
