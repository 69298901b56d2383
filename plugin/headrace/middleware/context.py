"""What an inbound request brings along: its id, its trace, and how long its caller waits.

An id is passed on and logged unchanged, whatever its format (failures.md 45: peers throw
away what is not a UUID), so it must not be able to end a header line or a log line.

White space around a value is no part of it (RFC 9110 §5.5), and not every server takes it off: uvicorn with
httptools and werkzeug leave what comes behind. Both middlewares do, where they take a value, with
`BLANKS`; in place, for a function would be called for every request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from headrace.observe.events import DeadlineRefused, DeadlinesDistrusted
from headrace.observe.logs import emit
from headrace.policy.deadline_header import GRPC_HEADER, parse_remaining_s
from headrace.policy.plan import Configuration, InboundDeadlinePlan
from headrace.policy.trace_context import joined_tracestate, trace_id_of
from headrace.runtime.service import ServiceCounters

MAX_ID_BYTES = 200
"""Longer than any format in use (an AWS trace header has about 100), shorter than what would hurt a log."""

is_sane_bytes = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_ID_BYTES).fullmatch
"""Whether a raw header value is 1..200 visible ASCII characters: no space, control or non-ASCII byte.

A C callable on purpose, like `is_sane_text`: it runs once per request."""

is_sane_text = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_BYTES}}}").fullmatch
"""`is_sane_bytes` for WSGI's native strings."""

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

BLANKS: Final = " \t"
"""What may stand around a field value (OWS of RFC 9110 §5.6.3)."""

BLANK_BYTES: Final = BLANKS.encode("ascii")

Trace = tuple[tuple[str, str], ...]
"""Headers to pass on, valid: `traceparent`, and perhaps `tracestate`; or none."""


class HeaderNames:
    """Which headers count under one configuration. Made once for each; requests read it.

    Attributes:
        request_id: Of the inbound id, and of the response, lower case; request_id_bytes the same.
        deadline: Lower case; None: none is read.
        takes_id: A sane id of the caller is taken.
        id_is_trace: The trace id of the caller is taken.
        takes_trace: Anybody has use for the trace: an upstream that it is passed on to, or the id.
        wanted: All that is read, lower case, as ASGI has names.
    """

    __slots__ = (
        "configuration",
        "deadline",
        "id_is_trace",
        "request_id",
        "request_id_bytes",
        "takes_id",
        "takes_trace",
        "wanted",
    )

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        service = configuration.service
        plan = service.request_id
        self.request_id = plan.header.lower()
        self.request_id_bytes = self.request_id.encode("ascii")
        self.takes_id = plan.accept and not plan.is_trace_id
        self.id_is_trace = plan.accept and plan.is_trace_id
        self.deadline: str | None = None
        if service.deadline is not None and service.deadline.header is not None:
            self.deadline = service.deadline.header.lower()
        self.takes_trace = self.id_is_trace or any(
            upstream.propagate.traceparent for upstream in configuration.upstreams.values()
        )
        names = [self.request_id] if self.takes_id else []
        names += [self.deadline] if self.deadline is not None else []
        names += [TRACEPARENT, TRACESTATE] if self.takes_trace else []
        self.wanted = frozenset(name.encode("ascii") for name in names)

    def read(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[Trace, list[str]]:
        """Of *headers*, wanted ones without blanks around their values: the trace to pass on, and what the
        deadline headers say."""
        values: dict[str, list[str]] = {TRACEPARENT: [], TRACESTATE: [], self.deadline or "": []}
        for name, value in headers:
            values[name.decode("latin-1")].append(value.decode("latin-1"))
        return trace_of(values[TRACEPARENT], values[TRACESTATE]), values[self.deadline or ""]


def trace_of(traceparents: Sequence[str], tracestates: Sequence[str]) -> Trace:
    """What of a caller's trace headers is passed on.

    Two traceparents contradict each other, and a tracestate without a valid traceparent means nothing.
    """
    if len(traceparents) != 1 or trace_id_of(traceparents[0]) is None:
        return ()
    state = joined_tracestate(tracestates) if tracestates else None
    if state is None:
        return ((TRACEPARENT, traceparents[0]),)
    return (TRACEPARENT, traceparents[0]), (TRACESTATE, state)


def deadline_at(
    plan: InboundDeadlinePlan, values: Sequence[str], service: ServiceCounters, now: float
) -> float | None:
    """When the caller stops waiting; not after *now*: the request is to be refused; None: it has no deadline.

    A header that says nothing is as good as none. One that says that the time is over is believed
    as long as few do (`ExpiryGuard`). Counts, and says each once.

    Args:
        values: Of each header that carries the deadline; two contradict each other.
        now: When the request came, monotonic seconds.
    """
    header = plan.header
    if header is not None:
        service.deadline_came(now)
        if values:
            remaining_s = None
            if len(values) == 1:
                remaining_s = parse_remaining_s(values[0], is_grpc=header.lower() == GRPC_HEADER)
            if remaining_s is None:
                service.deadline_unreadable()
            elif remaining_s > 0.0:
                return now + min(remaining_s, plan.max_s)
            elif _is_refused(header, service, now):
                return now
    # `policy.deadline_header.allowed_s`, written out here and above: Python calls of every request are counted.
    return None if plan.default_s is None else now + plan.default_s


def _is_refused(header: str, service: ServiceCounters, now: float) -> bool:
    verdict = service.deadline_past(now)
    if verdict == "refused":
        if service.is_first("deadline.refused", header):
            emit(DeadlineRefused(header=header))
        return True
    if verdict == "distrusted" and service.is_first("deadline.distrusted", header):
        emit(DeadlinesDistrusted(header=header))
    return False
