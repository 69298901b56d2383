"""A streamed answer after its head: which request it ends with, and what follows if its body breaks or is too large.

The answer was judged a success at its head. A body that breaks off turns it into a failure.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.clock import monotonic
from headrace.engine.endings import too_large
from headrace.engine.surface import Streamed, Surface
from headrace.policy.counters import UpstreamCounters
from headrace.policy.decision import EndReason
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.record import Record
from headrace.runtime.carrying import carry
from headrace.runtime.inbound import Inbound
from headrace.runtime.upstream import Upstream

if TYPE_CHECKING:
    from headrace.observe.tracing.call_trace import CallTrace
    from headrace.transport.lease.pool import CloseReason, LeasePool


def follow(
    body: Streamed,
    exchange: Exchange,
    record: Record,
    upstream: Upstream,
    surface: Surface[Any],
    trace: CallTrace | None,
    *,
    opened_in: Inbound | None,
    pool: LeasePool[Any],
) -> None:
    """Let *body* end with the request *opened_in*, and listen for a break or an excess of size.

    Keeps nothing that refers to *body*.
    """
    body.on_break = functools.partial(_report_break, exchange, record, upstream.learned.counters, trace)
    if body.max_bytes is not None:
        body.on_excess = functools.partial(_excess_error, record, upstream, surface, body.max_bytes)
    token = None if body.lease is None else body.lease.token
    if opened_in is not None and token is not None:
        body.let_go = functools.partial(opened_in.release, token)
        opened_in.cover(token, pool)


def _excess_error(record: Record, upstream: Upstream, surface: Surface[Any], max_bytes: int) -> Exception:
    record.reason = EndReason.RESPONSE_TOO_LARGE
    error = too_large(upstream, surface, max_bytes, request_id=record.request_id)
    error.attempts = record.attempts
    carry(record, on=error)
    for note in record.notes():
        error.add_note(note)
    return error


def _report_break(
    exchange: Exchange,
    record: Record,
    counters: UpstreamCounters,
    trace: CallTrace | None,
    error: Exception,
    fault: Fault,
    cut: bool,
    by_us: CloseReason | None,
) -> None:
    if exchange.is_cancelled:
        record = replace(record, reason=EndReason.CANCELLED)
    carry(record, on=error)
    if exchange.is_cancelled:
        error.add_note(
            f'headrace: upstream "{record.upstream}": the body was broken off, for the client of the inbound request '
            f"has left (request id {record.request_id or '-'})"
        )
        return
    if by_us == "abandoned":
        return  # the error says so itself
    if by_us is not None:
        error.add_note(
            f'headrace: upstream "{record.upstream}": the body was broken off by headrace: its pool was stopped, or '
            f"its connection's lifetime was over (request id {record.request_id or '-'})"
        )
        return
    now = monotonic()
    answered = exchange.outcomes[-1]
    duration_s = now - answered.started_s - answered.wait_s
    outcome = Outcome(fault, sent=True, cut=cut, duration_s=duration_s)
    exchange.body_broke(outcome, now)
    if trace is not None:
        trace.body_broke(outcome)
    record.judge_last(exchange.verdicts[-1])
    with counters.lock:
        counters.broken_bodies += 1
    error.add_note(
        f'headrace: upstream "{record.upstream}": the body broke off {duration_s:.3f} s into the attempt, after its '
        f"head was answered with {answered.status} (request id {record.request_id or '-'})"
    )
