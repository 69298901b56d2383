"""The short way of a call: one attempt over a warm connection that has a good answer at once.

Nearly every call goes this way. It builds no `Call`, no `Exchange` and no object of a library, and asks the same pure
functions: `gate.next_send` whether it may be sent, `gate.settle` at its end. Whatever is not of this kind (an open
circuit, no warm connection, an answer that a rule may name, an error) is handed on as `Begun`, at any moment, and a
`Call` goes on as if it had done all of it by itself. What needs the long way from its start, `lane_of` and `first_try`
say before anything is done.

It is one flat body, because a Python-level call costs about a microsecond in situ, and this is where calls spend their
time. What happens between taking the lease and giving it back has the order that it has in `engine.call`.
"""

from __future__ import annotations

import sys
from asyncio import _get_running_loop
from os import urandom
from typing import Any, Final, NamedTuple, Protocol

from headrace.clock import monotonic
from headrace.engine.begun import Begun
from headrace.policy.decision import EndReason, Send
from headrace.policy.gate import next_send, settle
from headrace.policy.outcome import STATUS_CLASS, Outcome
from headrace.policy.breaker.permit import Verdict
from headrace.policy.record import Record
from headrace.policy.retry import RETRY_AFTER_FROM
from headrace.runtime.deadlines import deadlines
from headrace.runtime.inbound import inbound_var
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.connection_auth import is_of_connection
from headrace.transport.dial.sending import LOOKS, send_rest
from headrace.transport.lease.pool import LeaseError
from headrace.transport.wire.blocking import MOST_BYTES, PIECE_BYTES
from headrace.transport.wire.exchange import is_ready

in_flight = deadlines.table

_NEVER: Final = float("inf")
_SHORTEST_S: Final = 0.001  # a socket limit of 0 would mean non-blocking
_IN_ONE_GO: Final = 16 * 1024  # as much as one TLS record: a socket between two answers takes it at once


class Told(NamedTuple):
    """What is known of a call that went the short way. A record is made of it when somebody asks."""

    upstream: Upstream
    method: str
    request_id: str | None
    outcome: tuple[int, float, float, float]
    """Status; when it asked for its connection; how long it waited for it; how long the attempt took."""

    def record(self) -> Record:
        """The record of the call, a new one each time."""
        status, started_s, wait_s, duration_s = self.outcome
        outcome = Outcome(
            status=status, sent=True, started_s=started_s, wait_s=wait_s, duration_s=duration_s
        )
        return Record(
            self.upstream.plan.name,
            self.method,
            self.request_id,
            EndReason.SUCCESS,
            None,
            self.upstream.digest,
            [outcome],
            [Verdict.SUCCESS],
        )


class View(Protocol):
    """Makes the answer that the caller gets."""

    def __call__(self, status: int, head: bytes, body: bytes, chunked: bool, told: Told, /) -> Any:
        """The answer, which has come as a whole; None where something is odd about it.

        Args:
            body: As sent, without the framing of chunks.
        """


class Lane:
    """What the short way has to know of one upstream. Immutable; made once per snapshot.

    Attributes:
        trouble: Statuses below 300 that a rule names. (From 300 on every answer goes the long way.)
        id_line: The beginning of the line with the request's id; None: the upstream is sent no id.
        passes_trace: The trace of the inbound request goes on to it.
    """

    __slots__ = ("id_line", "passes_trace", "trouble")

    def __init__(self, upstream: Upstream) -> None:
        plan = upstream.plan
        rules = plan.retry.retry_on.statuses | plan.circuit_breaker.failure_on.statuses
        self.trouble = frozenset(status for status in rules if status < RETRY_AFTER_FROM)
        propagate = plan.propagate
        self.id_line = f"{upstream.request_id_header}: ".encode() if propagate.request_id else None
        self.passes_trace = propagate.traceparent


def lane_of(upstream: Upstream) -> Lane | None:
    """The lane of *upstream*; None where each of its calls needs the long way."""
    plan = upstream.plan
    if (
        upstream.mode != "enforce"
        or plan.circuit_breaker.failure_if is not None
        or plan.pool.max_response_body_bytes is not None
        or plan.pool.parser != "auto"
        or (plan.propagate.deadline and upstream.deadline_header is not None)
        or is_of_connection(dict(plan.headers))
    ):
        return None
    return Lane(upstream)


def first_try(
    upstream: Upstream, lane: Lane, method: str, front: bytes, body: bytes | None, view: View
) -> Any:
    """The answer as *view* makes it; `Begun`: a `Call` must go on; None: nothing was done. Blocks.

    Args:
        method: Upper case; with no idempotency key.
        front: The head of the request, each line with its end, but for what names this very call.
    """
    tracing = upstream.tracing
    if (tracing is not None and tracing.is_wanted()) or _get_running_loop() is not None:
        return None
    inbound, deadline_at = inbound_var.get(), None
    began = monotonic()
    timeouts = upstream.plan.timeouts
    if timeouts.deadline_s is not None:
        deadline_at = began + timeouts.deadline_s
    id_line = lane.id_line
    if inbound is None:
        request_id = None if id_line is None else urandom(16).hex()
    elif inbound.cancellation is not None or (inbound.trace and lane.passes_trace):
        return None
    else:
        request_id = inbound.request_id
        at = inbound.deadline_at
        if at is not None and not inbound.is_over and (deadline_at is None or at < deadline_at):
            deadline_at = at
    data = front if id_line is None else b"%b%b%b\r\n\r\n" % (front, id_line, request_id.encode())
