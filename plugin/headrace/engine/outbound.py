"""What identifies one logical call on the wire: its id, its idempotency key, and which attempt it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from headrace.policy.deadline_header import GRPC_HEADER, format_remaining
from headrace.policy.plan import UpstreamPlan
from headrace.policy.retry import is_keyed, sets_key
from headrace.runtime.inbound import Inbound, inbound_var, new_request_id
from headrace.runtime.upstream import Upstream

RETRY_SEQ: Final = "X-Retry-Seq"


class Outbound:
    """The context of one logical call. All its attempts share it, as do all tries of a caller that retries by itself.

    Owned by one thread.

    Args:
        method: Upper case.
        own: Headers that the call itself has set.
        request_id: The id that was sent already; None: it is decided here.
        ruled: The headers of the rules that were sent already; None: those of now are taken.

    Attributes:
        ruled: The headers of the rules, with which *headers* begins.
        inbound: The inbound request that the call is part of, or None.
        request_id: Sent with every attempt unless the plan keeps ids from this upstream. In that case it is still
            the inbound request's id, for records and errors, or None outside of one.
        headers: Added to each attempt unless the call set them.
        keyed: The call carries an idempotency key, ours or its own.
        deadline_header: Header in which the rest of the deadline is sent, or None.
    """

    request_id: str | None

    __slots__ = (
        "_tells_sequence",
        "deadline_header",
        "headers",
        "inbound",
        "keyed",
        "request_id",
        "ruled",
    )

    def __init__(
        self,
        upstream: Upstream,
        method: str,
        own: Mapping[str, Any] | None,
        request_id: str | None = None,
        ruled: tuple[tuple[str, str], ...] | None = None,
    ) -> None:
        plan = upstream.plan
        if ruled is None:
            ruled = plan.headers if upstream.live is None else upstream.live.now()
        self.inbound: Inbound | None = inbound_var.get()
        inbound = self.inbound
        self.request_id = request_id
        if request_id is None and inbound is not None:
            self.request_id = inbound.request_id
        self.headers = self.ruled = ruled
        self.keyed = False
        propagate = plan.propagate
        self._tells_sequence = propagate.retry_sequence
        self.deadline_header = upstream.deadline_header if propagate.deadline else None
        if propagate.request_id:
            if self.request_id is None:
                self.request_id = new_request_id()
            self.headers = (*ruled, (upstream.request_id_header, self.request_id))
        if inbound is not None and inbound.trace and propagate.traceparent:
            self._pass_trace(inbound.trace, upstream, own)
        if method not in plan.retry.methods and is_keyed(plan, method, own or ()):
            self.keyed = True
            self._take_key(plan, own or ())

    def for_attempt(self, sent: int, left_s: float | None) -> tuple[tuple[str, str], ...]:
        """The headers of the next attempt.

        Args:
            sent: Earlier attempts that may have reached the upstream; count.
            left_s: Seconds left of the deadline; None: there is none.
        """
        headers = self.headers
        if sent and self._tells_sequence:
            headers = (*headers, (RETRY_SEQ, str(sent)))
        name = self.deadline_header
        if name is not None and left_s is not None:
            headers = (*headers, (name, format_remaining(left_s, is_grpc=name.lower() == GRPC_HEADER)))
        return headers

    def rule_anew(self, ruled: tuple[tuple[str, str], ...]) -> None:
        """Send *ruled* in place of the headers of the rules: the same names with other values. Mutates."""
        self.headers = (*ruled, *self.headers[len(self.ruled) :])
        self.ruled = ruled

    def _pass_trace(
        self, trace: tuple[tuple[str, str], ...], upstream: Upstream, own: Mapping[str, Any] | None
    ) -> None:
        """Pass *trace* on as a whole or not at all: a tracestate belongs to its traceparent."""
        # A tracer that injects its own headers into each attempt replaces these.
        if not any(name.lower() == "traceparent" for name in (*(own or ()), *dict(upstream.plan.headers))):
            self.headers = (*self.headers, *trace)

    def _take_key(self, plan: UpstreamPlan, own: Iterable[str]) -> None:
        key = plan.retry.idempotency_key
        if key is not None and not sets_key(plan, own):
            self.headers = (*self.headers, (key.header, new_request_id()))
