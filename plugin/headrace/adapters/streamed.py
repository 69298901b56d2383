"""A streamed answer whose body breaks off: judged a success at its head, it is a failure after all."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from urllib3.exceptions import HTTPError

from headrace.policy.counters import UpstreamCounters
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Outcome
from headrace.runtime.carrying import carry
from headrace.runtime.record import Record
from headrace.transport.faults import fault_of
from headrace.transport.urllib3_connection import StreamedResponse

if TYPE_CHECKING:
    from headrace.observe.call_trace import CallTrace


def follow(
    raw: object, exchange: Exchange, record: Record, counters: UpstreamCounters, trace: CallTrace | None
) -> None:
    """Hear of it when the body of *raw* breaks off as its caller reads it. Keeps nothing that refers to *raw*."""
    if isinstance(raw, StreamedResponse):
        raw.on_break = functools.partial(_broke, exchange, record, counters, trace)


def _broke(
    exchange: Exchange,
    record: Record,
    counters: UpstreamCounters,
    trace: CallTrace | None,
    error: HTTPError,
    by_us: bool,
) -> None:
    carry(record, on=error)
    if exchange.is_cancelled:
        error.add_note(
            f'headrace: upstream "{record.upstream}": the body was broken off, for the client of the inbound request '
            f"has left (request id {record.request_id or '-'})"
        )
        return
    if by_us:
        error.add_note(
            f'headrace: upstream "{record.upstream}": the body was broken off by headrace: its pool was stopped, or '
            f"its connection's lifetime was over (request id {record.request_id or '-'})"
        )
        return
    now = time.monotonic()
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
