"""The inbound request that a call is made for, as far as it bounds the call."""

from __future__ import annotations

from typing import Protocol

from headrace.policy.frozen import slotted
from headrace.policy.retry import RetryAllowance


class Cancellable(Protocol):
    """The client that the call is made for."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the client has gone. Another thread sets it; it is never unset."""


@slotted
class Served:
    """The inbound request that a call is made for, as far as it bounds the call.

    Attributes:
        deadline_at: When the request must be over, monotonic seconds. The call's own deadline holds if it is earlier.
        allowance: Retries that the request has left; None: no limit on them.
        cancellation: Tells when nobody waits for the answer any more; then no further attempt is made.
    """

    deadline_at: float | None = None
    allowance: RetryAllowance | None = None
    cancellation: Cancellable | None = None
