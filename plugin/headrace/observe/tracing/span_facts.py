"""The attributes that spans and their events get: names and values only, no OpenTelemetry in here.

traces.md lists the names of `headrace.*`. `circuit.breaker.*` are aliases from the
article that the idea comes from. The others are OpenTelemetry's semantic
conventions for HTTP client spans.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from headrace.policy.breaker.permit import CircuitView, Refused
from headrace.policy.breaker.transition import Transition
from headrace.policy.outcome import Fault, Outcome

Attributes = dict[str, str | bool | int | float]

TRANSITION: Final = "headrace.breaker.transition"
REFUSED: Final = "headrace.breaker.refused"
RETRY: Final = "headrace.retry"
RESEND_COUNT: Final = "http.request.resend_count"

_HIDDEN: Final = "REDACTED"  # the conventions' own word

_KNOWN_METHODS: Final = frozenset(
    # By this variable the conventions let people change the list (that of RFC 9110, with PATCH and QUERY).
    os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "").split(",")
    if os.environ.get("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS")
    else ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)


def breaker_attributes(upstream: str, view: CircuitView) -> Attributes:
    """What the circuit of *upstream* was like when the call ended."""
    state = str(view.state)
    attributes: Attributes = {
        "headrace.upstream": upstream,
        "headrace.breaker.state": state,
        "circuit.breaker.state": state,
        "circuit.breaker.failed.calls": view.failures,
        "headrace.breaker.slow_calls": view.slow_calls,
    }
    if view.failure_rate is not None:
        attributes["headrace.breaker.failure_rate"] = view.failure_rate
    return attributes


def transition_attributes(upstream: str, transition: Transition) -> Attributes:
    """One change of state, with the numbers that caused it."""
    attributes: Attributes = {
        "headrace.upstream": upstream,
        "headrace.breaker.from_state": transition.from_state.value,
        "headrace.breaker.to_state": transition.to_state.value,
    }
    if transition.open_for_s is not None:
        attributes["headrace.breaker.open_for"] = transition.open_for_s
    if transition.is_observed:
        attributes["headrace.breaker.mode"] = "observe"
    return attributes | _numbers(transition)


def refusal_attributes(upstream: str, refused: Refused) -> Attributes:
    """One refusal, with the numbers that opened the circuit, unless the configuration opened it."""
    attributes: Attributes = {
        "headrace.upstream": upstream,
        "headrace.breaker.state": refused.state.value,
        "headrace.breaker.refusal": refused.kind.value,
        "headrace.breaker.retry_after": refused.retry_after_s,
    }
    return attributes if refused.cause is None else attributes | _numbers(refused.cause)


def _numbers(cause: Transition) -> Attributes:
    attributes: Attributes = {
        "headrace.breaker.reason": cause.reason.value,
        "headrace.breaker.calls": cause.calls,
        "headrace.breaker.failures": cause.failures,
        "headrace.breaker.consecutive_failures": cause.consecutive_failures,
        "headrace.breaker.slow_calls": cause.slow_calls,
    }
    if cause.failure_rate is not None:
        attributes["headrace.breaker.failure_rate"] = cause.failure_rate
    if cause.threshold is not None:
        attributes["headrace.breaker.threshold"] = cause.threshold
    return attributes


def retry_attributes(upstream: str, attempt: int, delay_s: float, failed: Outcome) -> Attributes:
    """Attempt number *attempt* (from 2), begun *delay_s* after *failed*."""
    return {
        "headrace.upstream": upstream,
        "headrace.retry.attempt": attempt,
        "headrace.retry.delay": delay_s,
        "headrace.retry.cause": cause_of(failed),
    }


def cause_of(outcome: Outcome) -> str:
    """The status, or the fault: `503`, `timeout`. Few values: fit for `error.type`."""
    return outcome.fault.value if outcome.fault is not None else str(outcome.status)


def outcome_attributes(outcome: Outcome | None) -> Attributes:
    """What became of an attempt. None: it was broken off. To a client, a status from 400 on is an error."""
    if outcome is None:
        return {"error.type": Fault.CANCELLED.value}
    attributes: Attributes = {}
    if outcome.status is not None:
        attributes["http.response.status_code"] = outcome.status
    if outcome.fault is not None or (outcome.status or 0) >= 400:
        attributes["error.type"] = cause_of(outcome)
    return attributes


def call_attributes(outcomes: Sequence[Outcome], label: str | None) -> Attributes:
    """How a call of *outcomes* ended, and how often it was sent again.

    Args:
        label: Why it was refused or broken off, or None: its last attempt says it.
    """
    attributes: Attributes = {}
    resent = len(outcomes) - 1 + sum([outcome.resent + outcome.renewed for outcome in outcomes])
    if resent > 0:
        attributes[RESEND_COUNT] = resent
    if label is not None:
        attributes["error.type"] = label
    elif outcomes and (outcomes[-1].fault is not None or (outcomes[-1].status or 0) >= 500):
        attributes["error.type"] = cause_of(outcomes[-1])
    return attributes


def request_attributes(method: str, url: str, address: str, port: int | None) -> Attributes:
    """What is known of an attempt before it is made; samplers may look at it.

    Args:
        method: Upper case.
    """
    known = method in _KNOWN_METHODS
    attributes: Attributes = {
        "http.request.method": method if known else "_OTHER",
        "server.address": address,
        "url.full": redacted(url),
    }
    if not known:
        attributes["http.request.method_original"] = method
    if port is not None:
        attributes["server.port"] = port
    return attributes


def span_name(method: str) -> str:
    """The method. A path would be no name: there are too many of them."""
    return method if method in _KNOWN_METHODS else "HTTP"


def redacted(url: str) -> str:
    """*url* without user and password, without fragment, and with each value of the query hidden.

    The conventions name four query keys to hide (`sig`, …) and let an instrumentation
    hide more. Nobody can know here which keys of which upstream are secret.

    >>> redacted("https://ann:pw@pay.example/v2/cards?page=2&sig=0f#top")
    'https://REDACTED:REDACTED@pay.example/v2/cards?page=REDACTED&sig=REDACTED'
    """
    bare, _, _ = url.partition("#")
    head, mark, query = bare.partition("?")
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    _, at, host = authority.rpartition("@")
    user = f"{_HIDDEN}:{_HIDDEN}@" if at else ""
    hidden = "&".join(
        f"{name}={_HIDDEN}" if equals else _HIDDEN
        for name, equals, _ in (pair.partition("=") for pair in query.split("&"))
    )
    return f"{scheme}{separator}{user}{host}{slash}{path}{mark}{hidden if query else ''}"
