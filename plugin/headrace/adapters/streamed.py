"""A streamed answer after its head: whom it ends with, and what becomes of it if its body breaks off or is too large.

Judged a success at its head, a body that breaks off makes it a failure after all.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from headrace.adapters.endings import too_large
from headrace.adapters.surface import Surface
from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters
from headrace.policy.exchange import EndReason, Exchange
from headrace.policy.outcome import Outcome
from headrace.policy.record import Record
from headrace.runtime.carrying import carry
from headrace.runtime.inbound import Inbound
from headrace.runtime.upstream import Upstream
from headrace.transport.stock.connection import LimitedResponse, StreamedResponse
from headrace.transport.stock.faults import fault_of

if TYPE_CHECKING:
    from headrace.observe.tracing.call_trace import CallTrace
    from headrace.transport.lease.pool import CloseReason, LeasePool

A = TypeVar("A", bound=requests.Response | BaseHTTPResponse)


def detach(answer: A) -> A:
    """*answer*, which from now on outlives the inbound request that it was opened in, and is its holder's to close.

    For a streamed one (`stream=True`, `preload_content=False`) that is read on after that request, by a thread
    of its own, say, or for another request: else its connection is closed with the request. For any other
    answer, outside of a request, or a second time, nothing is to be done. Too late once the request has ended.

    Raises:
        TypeError: *answer* is no response of requests or urllib3.
    """
    if isinstance(answer, requests.Response):
        raw: object = answer.raw
    elif isinstance(answer, BaseHTTPResponse):
        raw = answer
    else:
        raise TypeError(
            f"detach() takes a response of requests or urllib3 and returns it, not {type(answer).__name__!r}"
        )
    if isinstance(raw, StreamedResponse) and raw.let_go is not None:
        let_go, raw.let_go = raw.let_go, None
        let_go()
    return answer


def follow(
    raw: object,
    exchange: Exchange,
    record: Record,
    upstream: Upstream,
    surface: Surface[Any],
    trace: CallTrace | None,
    *,
    opened_in: Inbound | None,
    pool: LeasePool[Any],
) -> None:
    """Have *raw* end with the request *opened_in*, and hear of it when its body breaks off, or is too large.

    Keeps nothing that refers to *raw*.
    """
    if not isinstance(raw, StreamedResponse):
        return
    raw.on_break = functools.partial(_broke, exchange, record, upstream.state.counters, trace)
    if isinstance(raw, LimitedResponse):
        raw.on_excess = functools.partial(_exceeded, record, upstream, surface, raw.max_bytes)
    token = None if raw.lease is None else raw.lease.token
    if opened_in is not None and token is not None:
        raw.let_go = functools.partial(opened_in.releases, token)
        opened_in.covers(token, pool)


def _exceeded(record: Record, upstream: Upstream, surface: Surface[Any], max_bytes: int) -> Exception:
    record.reason = EndReason.RESPONSE_TOO_LARGE
    error = too_large(upstream, surface, max_bytes, request_id=record.request_id)
    error.attempts = record.attempts
    carry(record, on=error)
    for note in record.notes():
        error.add_note(note)
    return error


def _broke(
    exchange: Exchange,
    record: Record,
    counters: UpstreamCounters,
    trace: CallTrace | None,
    error: HTTPError,
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
        return  # which it says itself
    if by_us is not None:
        error.add_note(
            f'headrace: upstream "{record.upstream}": the body was broken off by headrace: its pool was stopped, or '
            f"its connection's lifetime was over (request id {record.request_id or '-'})"
        )
        return
    now = monotonic()
    answered = exchange.outcomes[-1]
    fault, cut = fault_of(error, "sent")
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
