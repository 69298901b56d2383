"""What identifies one logical call on the wire: its id, its idempotency key, and which attempt it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.runtime.inbound import Inbound, inbound_var, new_request_id
from headrace.runtime.upstream import Upstream

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
"""The header of draft-ietf-httpapi-idempotency-key-header: who sets it says that a repetition is recognised."""

RETRY_SEQ: Final = "X-Retry-Seq"


class Outbound:
    """The context of one logical call, the same over its attempts (and over the tries of a caller who retries himself).

    Owned by one thread.

    Args:
        method: Upper case.
        own: Headers that the call itself has set.

    Attributes:
        inbound: The inbound request that the call is part of, or None.
        request_id: Sent with every attempt, or None when the plan keeps ids from this upstream.
        headers: Added to each attempt unless the call set them.
        keyed: The call carries an idempotency key, ours or its own.
        sent: Attempts so far that may have reached the server.
    """

    __slots__ = ("_tells_sequence", "headers", "inbound", "keyed", "request_id", "sent")

    def __init__(self, upstream: Upstream, method: str, own: Mapping[str, Any] | None) -> None:
        plan = upstream.plan
        self.inbound: Inbound | None = inbound_var.get()
        self.request_id: str | None = None
        self.headers = plan.headers
        self.keyed = False
        self.sent = 0
        self._tells_sequence = plan.propagate.retry_sequence
        if plan.propagate.request_id:
            inbound = self.inbound
            self.request_id = request_id = inbound.request_id if inbound is not None else new_request_id()
            self.headers = (*plan.headers, (upstream.request_id_header, request_id))
        if method not in plan.retry.methods:
            self._take_key(upstream, method, own)

    def for_attempt(self) -> tuple[tuple[str, str], ...]:
        """The headers of the next attempt."""
        if self.sent and self._tells_sequence:
            return (*self.headers, (RETRY_SEQ, str(self.sent)))
        return self.headers

    def _take_key(self, upstream: Upstream, method: str, own: Mapping[str, Any] | None) -> None:
        plan = upstream.plan.retry.idempotency_key
        header = IDEMPOTENCY_KEY if plan is None else plan.header
        present = {name.lower() for name in own or ()}
        present.update(name.lower() for name, _ in upstream.plan.headers)
        if header.lower() in present:
            self.keyed = True
        elif plan is not None and method in plan.methods:
            self.keyed = True
            self.headers = (*self.headers, (header, new_request_id()))
