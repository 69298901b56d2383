"""A first attempt that was begun without a `Call`, for the call that goes on with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import Send
from headrace.policy.retry import RetryBudget
from headrace.transport.attempt import Attempt
from headrace.transport.lease.pool import Lease


@dataclass(slots=True)
class Begun:
    """What was done already. The call does the rest as if it had done this, too.

    Attributes:
        send: The attempt as it was decided and paid for, with its permit.
        circuit, budget: Those that were asked.
        request_id: Sent with it, or that of the inbound request; None: there is none.
        began: When the call began, monotonic seconds.
        asked_at: When it asked for its connection.
        lease: What it got; None: nothing, and *error* says why.
        attempt: What was sent over the lease, in the table of deadlines unless its time was up; None: nothing was.
        answer: The head of the answer, as the surface has it; None: none has come.
        error: What has ended the attempt, or the wait for the lease, or None.
    """

    send: Send
    circuit: Circuit
    budget: RetryBudget
    request_id: str | None
    began: float
    asked_at: float
    lease: Lease[Any] | None = None
    attempt: Attempt | None = None
    answer: Any = None
    error: BaseException | None = None
