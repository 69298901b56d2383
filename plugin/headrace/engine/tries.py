"""One call of a caller that retries by itself: headrace makes one attempt per try. Here is what the tries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.clock import monotonic
from headrace.engine.outbound import Outbound
from headrace.policy.breaker.circuit import Refused, Verdict
from headrace.policy.decision import EndReason
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.record import tally
from headrace.runtime.upstream import Upstream

if TYPE_CHECKING:
    from headrace.observe.tracing.call_trace import CallTrace


class Tries:
    """One context on the wire, one deadline, one record; counted as one call. Owned by one thread.

    Attributes:
        began: When the first try began, monotonic seconds; the deadline runs from here.
        made: Tries so far, including the one under way; count.
        outcomes, verdicts: Of the attempts of all tries, oldest first; records share them.
        deadline_at, denied, refused: As in the last try's exchange.
        own_timeout: The call has limits of its own, in place of the file's.
        last: The last try's exchange, or None. The next try tells the circuit what this one has not told yet.
    """

    __slots__ = (
        "_label",
        "_outbound",
        "_trace",
        "_upstream",
        "began",
        "deadline_at",
        "denied",
        "last",
        "made",
        "outcomes",
        "own_timeout",
        "refused",
        "verdicts",
    )

    def __init__(self, upstream: Upstream) -> None:
        self._upstream: Upstream | None = upstream
        self._outbound: Outbound | None = None
        self._label: str | None = None
        self._trace: CallTrace | None = None
        self.began = monotonic()
        self.made = 0
        self.own_timeout = False
        self.last: Exchange | None = None
        self.outcomes: list[Outcome] = []
        self.verdicts: list[Verdict] = []
        self.deadline_at: float | None = None
        self.denied: EndReason | None = None
        self.refused: Refused | None = None

    def begin(self, upstream: Upstream, method: str, headers: Mapping[str, Any] | None) -> Outbound:
        """Begin a try, and answer what identifies the call on the wire, the same for each try. Mutates."""
        self.made += 1
        if self._outbound is None:
            self._outbound = Outbound(upstream, method, headers)
        return self._outbound

    def add(self, exchange: Exchange, *, label: str | None, trace: CallTrace | None) -> None:
        """Add a try that has ended; *label* as for `record.tally`. Mutates.

        Args:
            trace: The try's trace, or None.
        """
        self.last = exchange
        self.outcomes += exchange.outcomes
        self.verdicts += exchange.verdicts
        self.deadline_at = exchange.deadline_at
        self.denied = exchange.denied
        self.refused = exchange.refused
        self._label = label
        self._trace = trace

    @property
    def is_body_spent(self) -> bool:
        """Whether the last try has used up a body that cannot be sent again."""
        return self.denied is EndReason.NOT_REPLAYABLE

    def interrupted(self) -> None:
        """Tell that the caller went away, perhaps during its own pause. Mutates."""
        self._label = Fault.CANCELLED.value

    def settle(self) -> None:
        """Count the call once, and tell the circuit how it ended. Mutates the counters of its upstream.

        Does nothing where no try was made.
        """
        upstream, self._upstream = self._upstream, None
        if upstream is not None and self.last is not None:
            self.last.settle(monotonic())
            if self._trace is not None:
                self._trace.settled()
        if upstream is not None and (self.outcomes or self._label is not None):
            duration_s = monotonic() - self.began
            tally(
                upstream.learned.counters,
                self,
                label=self._label,
                duration_s=duration_s,
                exemplar=None if self._trace is None else self._trace.exemplar(duration_s),
                own_timeout=self.own_timeout,
            )
