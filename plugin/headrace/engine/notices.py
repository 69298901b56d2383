"""Calls that do not get what the rules say: each is counted, and logged once per call site."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from headrace.observe.events import CallOnEventLoop, CallUngoverned, RetriesWithheld
from headrace.observe.logs import emit
from headrace.policy.record import Record
from headrace.runtime.upstream import Upstream
from headrace.transport.call_site import call_site

T = TypeVar("T")

passing: ContextVar[object] = ContextVar("headrace_passing", default=None)
"""The message that is being sent ungoverned: its call may reach a surface below, which must not ask about it again."""


def let_through(message: object, go: Callable[[], T]) -> T:
    """Run *go*, which sends *message* as it is, and return its result. Blocks."""
    token = passing.set(message)
    try:
        return go()
    finally:
        passing.reset(token)


def count_ungoverned(upstream: Upstream, reason: str) -> None:
    """Count one ungoverned call, and log its call site the first time."""
    site = call_site()
    if upstream.service.count_ungoverned(reason, site):
        emit(CallUngoverned(reason=reason, upstream=upstream.plan.name, call_site=site))


def report_event_loop(upstream: Upstream, wanted: str) -> None:
    """Log, once per call site, that a call could not wait because it was made on an event loop's thread."""
    site = call_site()
    if upstream.service.is_first("event_loop", site):
        emit(CallOnEventLoop(upstream=upstream.plan.name, wanted=wanted, call_site=site))


def report_withheld(upstream: Upstream, record: Record) -> None:
    """Log, once per call site, that a failed call was not retried because of its kind: others like it will not be."""
    site = call_site()
    if upstream.service.is_first(record.reason.value, site):
        emit(
            RetriesWithheld(
                upstream=record.upstream,
                method=record.method,
                reason=record.reason.value,
                why=record.why,
                call_site=site,
            )
        )
