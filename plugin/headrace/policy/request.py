"""One request as its caller made it, and what the rules need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from headrace.policy.frozen import slotted
from headrace.policy.plan import TimeoutPlan


@slotted(eq=False)
class Request:
    """One request. Per call; owned by one thread.

    Attributes:
        message: The object that is sent, compared by identity: another one sent meanwhile (a token refresh, say) is
            not this request.
        method: Upper case.
        headers: Headers that the call itself has set.
        timeouts: The plan's limits, or those that the call asks for.
        streamed: The caller reads the body of the answer, after the call.
        replayable: The body can be sent again from its start. Becomes False when it turns out that it cannot.
        keyed: It carries an idempotency key, so it may be sent again whatever its method.
    """

    message: object = field(repr=False)  # its own repr may hold credentials
    method: str
    headers: Mapping[str, Any] | None = field(repr=False)
    timeouts: TimeoutPlan
    streamed: bool = False
    replayable: bool = True
    keyed: bool = False
