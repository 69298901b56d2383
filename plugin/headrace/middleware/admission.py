"""Which inbound request is let in, and with what: the one decision that both middlewares ask for.

What a middleware has found in the headers by a scan of its own comes in, with the snapshot that the request begins
with. One of two goes out: the `Inbound` that the application is called for, or the `Answer` that it is not called
for. A new reason to turn a request away, or to answer in the application's place, is one more step of `admit`.

Nothing here has a clock, a source of ids, a log or I/O of its own: all of it comes in by parameters.

An id is passed on and logged unchanged, whatever its format (failures.md 45: peers throw
away what is not a UUID). So it must not be able to end a header line or a log line.

White space around a value is no part of it (RFC 9110 §5.5). Not every server takes it off: uvicorn with
httptools, and werkzeug, leave the space behind a value. Both middlewares take it off where they take a value, with
`BLANKS`. They do so in place, because a function would be called for every request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, final

from headrace.middleware.problems import ProblemAnswer, too_late
from headrace.policy.deadline_header import GRPC_HEADER, parse_remaining_s
from headrace.policy.plan import Configuration, InboundDeadlinePlan
from headrace.policy.trace_context import TRACEPARENT, TRACESTATE, Trace, trace_of
from headrace.runtime.inbound import NO_STREAMS, Inbound

if TYPE_CHECKING:
    from headrace.app import Headrace
    from headrace.runtime.service import ServiceCounters
    from headrace.runtime.snapshot import Snapshot

MAX_ID_BYTES = 200
"""Longer than any format in use (an AWS trace header has about 100), shorter than a value that would hurt a log."""

is_sane_bytes = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_ID_BYTES).fullmatch
"""Whether a raw header value is 1..200 visible ASCII characters: no space, control or non-ASCII byte.

A C callable on purpose, like `is_sane_text`: it runs once per request."""

is_sane_text = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_BYTES}}}").fullmatch
"""`is_sane_bytes` for WSGI's native strings."""

BLANKS: Final = " \t"
"""What may stand around a field value (OWS of RFC 9110 §5.6.3)."""

BLANK_BYTES: Final = BLANKS.encode("ascii")


class HeaderNames:
    """Which headers count under one configuration. Made once for each; requests read it.

    Attributes:
        request_id: Of the inbound id, and of the response, lower case; request_id_bytes the same.
        counts_served: Every request is counted and timed.
        deadline: Lower case; None: none is read.
        cancels: Outbound calls end with the client.
        takes_id: A sane id of the caller is taken.
        takes_trace: The trace has a use: an upstream gets it, or the id is made of it.
        wanted: All headers that are read, lower case, as ASGI has names.
    """

    __slots__ = (
        "cancels",
        "configuration",
        "counts_served",
        "deadline",
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
        self.counts_served = configuration.telemetry.served_requests
        self.cancels = service.cancel_on_disconnect
        self.takes_id = plan.accept and not plan.is_trace_id
        self.deadline: str | None = None
        if service.deadline is not None and service.deadline.header is not None:
            self.deadline = service.deadline.header.lower()
        self.takes_trace = (plan.accept and plan.is_trace_id) or any(
            upstream.propagate.traceparent for upstream in configuration.upstreams.values()
        )
        names = [self.request_id] if self.takes_id else []
        names += [self.deadline] if self.deadline is not None else []
        names += [TRACEPARENT, TRACESTATE] if self.takes_trace else []
        self.wanted = frozenset(name.encode("ascii") for name in names)

    def read(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[Trace, list[str]]:
        """The trace to pass on, and what the deadline headers say. *headers* are wanted ones, without blanks
        around their values."""
        values: dict[str, list[str]] = {TRACEPARENT: [], TRACESTATE: [], self.deadline or "": []}
        for name, value in headers:
            values[name.decode("latin-1")].append(value.decode("latin-1"))
        return trace_of(values[TRACEPARENT], values[TRACESTATE]), values[self.deadline or ""]


@final
class Answer(NamedTuple):
    """The answer to a request that the application is not called for. It is counted like any other answer."""

    request_id: str
    problem: ProblemAnswer


Admission: TypeAlias = Inbound | Answer
"""Closed. An admitted request *is* its `Inbound`: an `Admitted` around it would be made for every request."""


def admit(
    headrace: Headrace,
    snapshot: Snapshot,
    now: float,
    given_id: str | None,
    trace: Trace,
    deadlines: Sequence[str],
    new_id: Callable[[], str],
) -> Admission:
    """Whether a request is let in: its id, how long it may take, what it may cause, what it belongs to.

    Counts what the deadline headers say. It is called in the tracing context that the request came in. Call it without
    keywords: a call with some takes twice as long.

    Args:
        snapshot: The configuration that the request begins with, and keeps.
        now: When it came, monotonic seconds. Not later: the start took some of the caller's time, too.
        given_id: The caller's id, sane; None or empty: there is none that may be taken.
        trace: The part of the caller's trace that is passed on.
        deadlines: The values of the headers that carry the deadline, without blanks around them.
        new_id: Makes an id. Asked at most once, and only where the request has brought none.
    """
    service = snapshot.configuration.service
    tracing = snapshot.tracing
    # Asked in C: a request without a span around it pays nothing.
    outer = tracing if tracing is not None and tracing.has_context() else None
    if service.request_id.is_trace_id:
        if trace and service.request_id.accept:
            given_id = trace[0][1][3:35]
        if outer is not None:
            given_id = outer.trace_id() or given_id
    request_id = given_id or new_id()

    due_at = None
    if service.deadline is not None:
        due_at = deadline_at(service.deadline, deadlines, headrace.service, now)
        if due_at is not None and due_at <= now:
            return Answer(request_id, too_late(request_id))

    # Without `__init__`, a Python-level call for every request (a test counts these; another compares all fields). The
    # allowance is made when it is asked for.
    inbound = _blank()
    inbound.headrace = headrace
    inbound.snapshot = snapshot
    inbound.request_id = request_id
    inbound.deadline_at = due_at
    inbound.trace = trace
    inbound.cancellation = inbound.told = inbound.rehearsed = None
    inbound.streams = NO_STREAMS
    inbound.is_over = False
    if outer is not None:
        outer.meet(inbound)
    return inbound


_blank: Callable[[], Inbound] = partial(object.__new__, Inbound)
"""In C: to look `__new__` up at the class takes twice as long as to call it."""


def deadline_at(
    plan: InboundDeadlinePlan, values: Sequence[str], service: ServiceCounters, now: float
) -> float | None:
    """When the caller stops waiting. Not after *now*: the request is to be refused. None: it has no deadline.

    A header that says nothing counts as none. A header that says that the time is over is believed
    as long as few requests say so (`ExpiryGuard`). Counts.

    Args:
        values: Of the headers that carry the deadline; two contradict each other.
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
            elif service.refuses_past_deadline(header, now):
                return now
    # `policy.deadline_header.allowed_s`, written out here and above: Python calls of every request are counted.
    return None if plan.default_s is None else now + plan.default_s
