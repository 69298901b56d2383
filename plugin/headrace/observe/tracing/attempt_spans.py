"""A CLIENT span per attempt, as OpenTelemetry's conventions for HTTP clients describe it (stable since 1.23)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from headrace.observe.tracing import span_facts as facts
from headrace.policy.outcome import Outcome

# An HTTP instrumentation that has made a span for a call sets these keys around it, so that the next one inside makes
# none. The API's package has them under private names until the specification has decided about them.
_SUPPRESS_HTTP: Final[str | None] = getattr(contexts, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", None)
_SUPPRESS_ALL: Final[str | None] = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", None)


_INSIDE_ATTEMPT: Final = contexts.create_key("headrace-attempt")


def is_suppressed(context: Context) -> bool:
    """Whether an instrumentation around us has made the span already, or wants none.

    False if that was one of our own attempts: a call inside an attempt, for a token say, is another call.
    """
    if _INSIDE_ATTEMPT in context:
        return False
    return any(key is not None and context.get(key) for key in (_SUPPRESS_HTTP, _SUPPRESS_ALL))


class AttemptSpans:
    """The CLIENT spans of one call, one at a time. Owned by one thread.

    A span is open until its outcome has been told to the circuit.

    Attributes:
        span: The open span; the invalid one while none is open.
        context: The context that the code under the open span runs in.
        last: The span context of the latest span.
    """

    __slots__ = (
        "_address",
        "_attempt",
        "_method",
        "_port",
        "_resent",
        "_tracer",
        "_url",
        "context",
        "last",
        "span",
    )

    def __init__(
        self,
        tracer: Tracer,
        *,
        method: str,
        url: Callable[[], str],
        address: str,
        port: int | None,
        earlier: Sequence[Outcome],
    ) -> None:
        self._tracer = tracer
        self._method = method
        self._url = url
        self._address = address
        self._port = port
        # Sends beyond the retries of this call: over pooled connections that had died, and a caller's own tries.
        self._resent = len(earlier) + sum([outcome.resent + outcome.renewed for outcome in earlier])
        self._attempt = 0
        self.span: Span = trace.INVALID_SPAN
        self.last = trace.INVALID_SPAN_CONTEXT
        self.context = Context()

    def open(self, attempt: int, context: Context) -> Context:
        """Begin the span of attempt number *attempt*. Answers its context: other instrumentations make none in it."""
        self._attempt = attempt
        attributes = facts.request_attributes(self._method, self._url(), self._address, self._port)
        if attempt + self._resent > 1:
            attributes[facts.RESEND_COUNT] = attempt - 1 + self._resent
        self.span = span = self._tracer.start_span(
            facts.span_name(self._method), context, SpanKind.CLIENT, attributes
        )
        self.last = span.get_span_context()
        context = contexts.set_value(_INSIDE_ATTEMPT, True, trace.set_span_in_context(span, context))
        if _SUPPRESS_HTTP is not None:
            context = contexts.set_value(_SUPPRESS_HTTP, True, context)
        self.context = context
        return context

    def judge(self, outcome: Outcome | None) -> None:
        """Put *outcome* on the open span. None: the attempt was broken off."""
        span = self.span
        if not span.is_recording():
            return
        attributes = facts.outcome_attributes(outcome)
        if outcome is not None and outcome.resent:
            self._resent += 1
            attributes[facts.RESEND_COUNT] = self._attempt - 1 + self._resent
        span.set_attributes(attributes)
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR))

    def sent_again(self) -> None:
        """Count a send that is neither a retry nor over another connection."""
        self._resent += 1

    def end(self) -> None:
        """End the open span."""
        span, self.span = self.span, trace.INVALID_SPAN
        span.end()
