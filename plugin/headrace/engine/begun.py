"""A first attempt that was begun without a `Call`, for the call that goes on with it."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.frozen import slotted
from headrace.policy.gate import Answer
from headrace.policy.retry import RetryBudget
from headrace.transport.attempt import Attempt
from headrace.transport.lease.pool import Lease


@slotted
class Begun:
    """What was done already. The call does the rest as if it had done this, too.

    Attributes:
        first: The attempt as it was decided and paid for, with its permit; or what forbids it.
        circuit, budget: Those that were asked.
        request_id: Sent with it, or that of the inbound request; None: there is none.
        began: When the call began, and asked for its connection; monotonic seconds.
        lease: What it got; None: nothing, and *error* says why.
        attempt: The one that was made over the lease, with what was received; None: nothing was sent.
        headers: Those of the rules that it was sent with.
        error: What has ended the wait for the lease, or has come from elsewhere (an interrupt), or None.
    """

    first: Answer
    circuit: Circuit
    budget: RetryBudget
    request_id: str | None
    began: float
    lease: Lease[Any] | None
    attempt: Attempt | None
    error: BaseException | None
    headers: tuple[tuple[str, str], ...] | None = field(default=None, repr=False)

    def raise_error(self) -> None:
        """Raise the error, if there is one, and forget it: what is raised refers to frames that refer to this."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error
