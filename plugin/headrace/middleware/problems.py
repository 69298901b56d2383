"""Answers for errors that governed calls let out, as problem+json (RFC 9457).

The same trouble has the same answer, whichever library the call was made with. So the record decides, which is in
one language for all of them, and the class of the exception only where the record knows nothing: a body that broke
off after its head. `mapping` has the line with which each framework gets these answers.

The text of an exception never goes into an answer: requests and urllib3 put whole
URLs into it, with tokens in the query (failures.md 52).
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from headrace.adapters.twins import FAMILIES
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
)
from headrace.observe.events import ErrorMapped
from headrace.observe.logs import emit
from headrace.policy.decision import EndReason
from headrace.policy.outcome import Fault
from headrace.policy.record import Record
from headrace.runtime.carrying import and_what_it_wraps, carried_by, record_of
from headrace.runtime.inbound import inbound_var

MEDIA_TYPE = "application/problem+json"

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that did not wait. Nobody gets it. In logs and metrics it blames no upstream."""


class ProblemAnswer(NamedTuple):
    """A response as (body, status, headers): what Flask takes from a handler as it is."""

    body: bytes
    status: int
    headers: dict[str, str]


class _Kind(NamedTuple):
    status: int
    word: str
    title: str
    detail: str


_REFUSED = _Kind(503, "circuit_open", "Upstream refused", 'calls to upstream "{}" are suspended')
_POOL_FULL = _Kind(503, "pool_full", "Upstream busy", 'no connection to upstream "{}" came free')
_TIMEOUT = _Kind(504, "timeout", "Upstream timeout", 'upstream "{}" did not answer in time')
_CANCELLED = _Kind(
    CLIENT_CLOSED_REQUEST,
    "cancelled",
    "Client closed request",
    'the call to upstream "{}" was broken off',
)
_TOO_LARGE = _Kind(
    502, "response_too_large", "Upstream answer too large", 'the answer of upstream "{}" was too large'
)
_BUSY = _Kind(503, "upstream_busy", "Upstream busy", 'upstream "{}" asks for patience')
_ANSWERED_BADLY = _Kind(
    502, "upstream_error", "Upstream error", 'upstream "{}" answered with an error of its own'
)
_FAILED = _Kind(502, "upstream_failed", "Upstream failed", 'upstream "{}" could not be reached or broke off')

_KINDS: dict[type[BaseException], _Kind] = {
    CircuitOpenError: _REFUSED,
    CallCancelled: _CANCELLED,
    PoolTimeout: _POOL_FULL,
    PoolRejected: _POOL_FULL,
    DeadlineExceeded: _TIMEOUT,
    ResponseTooLarge: _TOO_LARGE,
}

# Compared by name: only transport/ and adapters/ import an HTTP library.
_TIMEOUT_CLASSES = frozenset(
    {("requests.exceptions", "Timeout"), ("urllib3.exceptions", "TimeoutError"), ("builtins", "TimeoutError")}
)


def answer(exc: BaseException) -> ProblemAnswer | None:
    """The answer for *exc*, or None when it is none of headrace's business.

    Refused, or pool full: 503 with `Retry-After`. Timeout or deadline: 504. Cancelled because the client
    has left: 499. Anything else that the upstream did: 502; so for the error of `raise_for_status()`, 503 where the
    answer was 429 or 503, and none for any other 4xx. It is not ours without a record, or where the call
    ended by the caller's own doing: a request that could not be made, an error of its body.
    """
    record = _record_of(exc)
    kind = None if record is None else _kind(exc, record)
    if record is None or kind is None:
        return None
    retry_after_s = getattr(exc, "retry_after_s", None)
    if retry_after_s is None:
        retry_after_s = record.retry_after_s
    body: dict[str, Any] = {
        "type": f"urn:headrace:problem:{kind.word}",
        "title": kind.title,
        "status": kind.status,
        "detail": kind.detail.format(record.upstream),
        "upstream": record.upstream,
    }
    inbound = inbound_var.get()
    request_id = record.request_id or (inbound.request_id if inbound is not None else None)
    if request_id is not None:
        body["request_id"] = request_id
    if retry_after_s is not None:
        body["retry_after_s"] = round(retry_after_s, 3)
    headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
    if kind.status == 503:
        # Whole seconds (RFC 9110 10.2.3), never 0: that would invite an immediate retry.
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s or 0.0)))
    return ProblemAnswer(json.dumps(body).encode(), kind.status, headers)


def too_late(request_id: str) -> ProblemAnswer:
    """The answer to a request that comes with a deadline already past."""
    body = {
        "type": "urn:headrace:problem:deadline_past",
        "title": "Deadline already past",
        "status": 504,
        "detail": "the request came after the time that its caller had set for the answer",
        "request_id": request_id,
    }
    headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
    return ProblemAnswer(json.dumps(body).encode(), 504, headers)


def report_mapped(found: ProblemAnswer, exc: Exception, request_id: str) -> None:
    """Log that *exc* is answered by *found*. The server, which would have made an alarm of it, does not see it."""
    record = _record_of(exc)
    emit(
        ErrorMapped(
            upstream="" if record is None else record.upstream,
            status=found.status,
            error=type(exc).__name__,
            request_id=request_id,
        )
    )


def comes_of_a_cancelled_call(exc: BaseException) -> bool:
    """Whether *exc* is the error that a call, or the body of an answer, was cancelled with, or names it as its cause.

    An error that merely came up while such an error was handled is another matter.
    """
    seen: list[BaseException] = []
    todo = [exc]
    while todo and len(seen) < 64:  # a cycle of causes is legal Python
        one = todo.pop()
        if any(one is other for other in seen):
            continue
        seen.append(one)
        record = carried_by(one)
        if record is not None and record.reason is EndReason.CANCELLED:
            return True
        nested = (*one.args, one.__dict__.get("reason"), one.__cause__)  # requests, urllib3, the application
        if isinstance(one, BaseExceptionGroup):
            nested = (*nested, *one.exceptions)
        todo += [cause for cause in nested if isinstance(cause, BaseException)]
    return False


def problem(exc: Exception) -> ProblemAnswer:
    """The answer for *exc*; a Flask error handler.

    Raises:
        Exception: *exc* itself when it carries no record.
    """
    found = answer(exc)
    if found is None:
        raise exc
    return found


def _record_of(exc: BaseException) -> Record | None:
    # Of the libraries' own errors alone: what an application raises around one of them is its own to answer.
    return record_of(exc) if isinstance(exc, FAMILIES) else carried_by(exc)


def _kind(exc: BaseException, record: Record) -> _Kind | None:
    causes = and_what_it_wraps(exc)
    if not any(map(carried_by, causes)):
        return _kind_of_answer(record)
    for cause in causes:
        for cls, kind in _KINDS.items():
            if isinstance(cause, cls):
                return kind
    if record.reason is EndReason.CANCELLED:
        return _CANCELLED
    if record.fault is Fault.LOCAL_ERROR:
        return None
    # Not by the class where the record knows: in urllib3 a refused connection is a kind of ConnectTimeoutError.
    if record.timed_out or (record.fault is None and any(map(_is_timeout, causes))):
        return _TIMEOUT
    return _FAILED


def _kind_of_answer(record: Record) -> _Kind | None:
    """For the error that `raise_for_status()` makes of an answer. None: the upstream finds fault with the request."""
    status = record.attempts[-1].status if record.attempts else None
    if status is None or (status < 500 and status != 429):
        return None
    return _BUSY if status in (429, 503) else _ANSWERED_BADLY


def _is_timeout(exc: BaseException) -> bool:
    return any((cls.__module__, cls.__name__) in _TIMEOUT_CLASSES for cls in type(exc).__mro__)
