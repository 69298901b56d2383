"""Which exception a call without an answer ends in, and why."""

from __future__ import annotations

from typing import Any

from headrace.clock import monotonic
from headrace.engine.surface import Surface
from headrace.errors import IdentityMismatch, ResponseTooLarge
from headrace.policy.decision import EndReason, Finish, Refuse
from headrace.policy.exchange import Exchange
from headrace.runtime.upstream import Upstream
from headrace.transport.dial.identity import IdentityError, in_words
from headrace.transport.lease.pool import LeaseError


def final_error(
    upstream: Upstream,
    surface: Surface[Any],
    exchange: Exchange,
    decision: Finish | Refuse,
    *,
    request_id: str | None,
    last: Exception | None,
) -> Exception:
    """The exception that leaves: one of ours, in the twin class for the library in use, or *last*.

    Args:
        last: What the library raised in the last attempt; None: that attempt had an answer, or none was made.
    """
    name, twins = upstream.plan.name, surface.twins
    family = {"upstream": name, "request_id": request_id, **surface.family()}
    deadline_s = exchange.deadline_s
    if decision.reason is EndReason.CANCELLED:
        return twins.cancelled(
            f'upstream "{name}": the client of the inbound request has left, so the call was broken off',
            **family,
        )
    if decision.reason is EndReason.CIRCUIT_OPEN and (last is None or isinstance(decision, Refuse)):
        return twins.circuit_open(
            f'upstream "{name}": {exchange.refused}', retry_after_s=exchange.retry_after_s or 0.0, **family
        )
    if deadline_s is not None and _ran_out_of_time(exchange, decision):
        text = f"the deadline of {deadline_s:.4g} s is over"
        if deadline_s <= 0.0:
            text = f"the deadline was over {-deadline_s:.4g} s before the call"
        error = twins.deadline(f'upstream "{name}": {text}', deadline_s=max(deadline_s, 0.0), **family)
        error.__cause__ = last
        return error
    if last is not None:
        return last
    # The last answer was dropped to free its connection (it was larger or slower than what is kept), and then no
    # further attempt was made.
    return twins.deadline(
        f'upstream "{name}": {decision.reason.value} before another attempt, and the failed answer was too '
        f"large, or too slow, to keep",
        deadline_s=deadline_s or 0.0,
        **family,
    )


def pool_error(
    upstream: Upstream,
    surface: Surface[Any],
    error: LeaseError,
    *,
    request_id: str | None,
    timed_out: bool,
) -> Exception:
    """The exception that leaves when there was no connection, with the reason and the numbers of *error*."""
    twins = surface.twins
    twin = twins.pool_timeout if timed_out else twins.pool_rejected
    name = upstream.plan.name
    return twin(f'upstream "{name}": {error}', upstream=name, request_id=request_id, **surface.family())


def too_large(
    upstream: Upstream, surface: Surface[Any], max_bytes: int, *, request_id: str | None
) -> ResponseTooLarge:
    """The exception that a body of more than *max_bytes* ends in."""
    name = upstream.plan.name
    return surface.twins.too_large(
        f'upstream "{name}": the body of the answer is larger than pool.max_response_body, {max_bytes} bytes',
        max_bytes=max_bytes,
        upstream=name,
        request_id=request_id,
        **surface.family(),
    )


def wrong_identity(
    upstream: Upstream, surface: Surface[Any], found: IdentityError, *, request_id: str | None
) -> IdentityMismatch:
    """The exception that the certificate of somebody else ends in."""
    name = upstream.plan.name
    return surface.twins.identity(
        f'upstream "{name}": {in_words(found.offered, found.wanted)}',
        offered=found.offered,
        wanted=found.wanted,
        upstream=name,
        request_id=request_id,
        **surface.family(),
    )


def _ran_out_of_time(exchange: Exchange, decision: Finish | Refuse) -> bool:
    """Whether the deadline ended the call, and not the last attempt's own failure."""
    if isinstance(decision, Refuse):
        return decision.reason is EndReason.DEADLINE
    return (
        exchange.deadline_at is not None
        and bool(exchange.outcomes)
        and exchange.outcomes[-1].cut
        and monotonic() >= exchange.deadline_at
    )
