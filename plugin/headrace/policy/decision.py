"""What an exchange answers: six things to do, why a call ends, and who does them."""

from __future__ import annotations

from dataclasses import field
from enum import StrEnum
from typing import Protocol, TypeAlias

from headrace.policy.breaker.permit import Permit
from headrace.policy.frozen import frozen, slotted
from headrace.policy.outcome import Outcome


class EndReason(StrEnum):
    """Why a call ended: the closed list."""

    # No further attempt was wanted.
    SUCCESS = "success"  # an answer that `retry_on` does not name, whatever its status
    NOT_RETRIABLE = "not_retriable"  # no answer, by a fault that `retry_on` does not name
    CERTIFICATE = "certificate"  # the peer is not what it should be, or refuses TLS with us for good
    DELEGATED = "delegated"  # the caller retries by itself and decides whether there is a further try
    # Our own refusals and trouble: never retried.
    POOL_TIMEOUT = "pool_timeout"
    POOL_REJECTED = "pool_rejected"
    CANCELLED = "cancelled"  # the caller, or the client it serves, went away; also a call abandoned half way
    RESPONSE_TOO_LARGE = "response_too_large"  # a body above `pool.max_response_body`
    LOCAL_ERROR = "local_error"  # the request could not be made, or the caller's own code ended it
    # Another attempt was wanted and something forbade it (`Exchange.denied`).
    METHOD = "method"  # it may have been sent, and `methods` does not name the method
    NOT_REPLAYABLE = "not_replayable"  # the body can be sent only once
    ATTEMPTS = "attempts"  # max_attempts are used up
    EVENT_LOOP = "event_loop"  # the pause would stall the event loop that runs on the calling thread
    CIRCUIT_OPENED = (
        "circuit_opened"  # the circuit is open after this failure: no sleeping towards a shut door
    )
    RETRY_AFTER = "retry_after"  # the upstream asks for more patience than `retry_after.max`
    REQUEST_RETRIES = "request_retries"  # the inbound request has used up its max_retries_per_request
    BUDGET = "budget"  # the retry budget is spent
    # May end a call at its start (Refuse: nothing was sent) or before a further attempt (Finish).
    DEADLINE = "deadline"  # the time is up, or the pause before the next attempt does not fit
    CIRCUIT_OPEN = "circuit_open"  # no permit


@slotted
class Send:
    """Make an attempt.

    Attributes:
        attempt: Which one; count from 1.
        timeout_s: Seconds it may take: `attempt`, cut to what is left of the deadline. Time spent
            waiting for a connection is outside `attempt` but inside the deadline. So
            a transport that waited cuts again by `Exchange.deadline_at`.
        patience_s: Seconds to wait for a connection; 0: none.
        by_deadline: *patience_s* is all that the deadline leaves.
        fresh: No idle connection will do: if one was dropped silently, its neighbours were dropped, too.
        permit: The circuit's, which the call holds from now on. The exchange gives it back, not the driver.
    """

    attempt: int
    timeout_s: float
    patience_s: float
    by_deadline: bool = False
    fresh: bool = False
    permit: Permit | None = field(default=None, repr=False, compare=False)


@slotted
class Resend:
    """Send the same attempt once more, at once, over a fresh connection: the pooled one had died unnoticed.

    Attributes:
        timeout_s: Seconds that the attempt has left.
    """

    timeout_s: float


@slotted
class Renew:
    """The upstream does not take the secret that was sent: look whether its file holds another one by now.

    Attributes:
        until: When the time of the call is up, monotonic seconds; None: it has no deadline.
    """

    until: float | None


@slotted
class Sleep:
    """Wait, then ask again. Before that, even for 0 s, the failed answer is set aside and its connection given back."""

    delay_s: float


@frozen
class Finish:
    """The call is over with the last outcome: the answer that was kept, or the error."""

    reason: EndReason


@slotted
class Refuse:
    """The call is over before anything was sent.

    Attributes:
        retry_after_s: With CIRCUIT_OPEN: seconds from now until asking again makes sense; else 0.
    """

    reason: EndReason
    retry_after_s: float


@slotted
class Divert:
    """The call is over here because the circuit refuses it: its `fallback` stands in.

    Attributes:
        upstream: Name of the upstream that is asked instead; None: the answer written in the file.
        otherwise: How the call ends where the driver cannot make it to that upstream.
    """

    upstream: str | None
    otherwise: Finish | Refuse

    @property
    def reason(self) -> EndReason:
        """Why the call ended here."""
        return self.otherwise.reason


End: TypeAlias = Divert | Finish | Refuse
"""Nothing more is asked of this upstream."""

Decision: TypeAlias = Send | Resend | Renew | Sleep | End


class Performer(Protocol):
    """How one call is sent; made by an adapter, once per call."""

    def perform(self, send: Send) -> Outcome:
        """Make one attempt. Blocks; turns every error of the transport into an Outcome.

        Anything that it raises nevertheless (KeyboardInterrupt, GreenletExit, a bug) ends the call.
        """

    def resend(self, resend: Resend) -> Outcome | None:
        """Make the attempt once more, over a fresh connection. Blocks.

        None: no connection was free at once, and the failed send stands.
        """

    def renew(self, renew: Renew) -> bool:
        """Whether the call has another secret now than it was sent with; then the 401 is set aside. Blocks."""

    def set_aside(self) -> None:
        """Give the slot back and keep or close the failed answer: another attempt may follow.

        Called at most once per attempt, before the pause that follows it, even a pause of 0 s. The call may
        still end there (the circuit opened meanwhile). Then the caller gets the answer that was kept.
        """
