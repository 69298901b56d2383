"""What calls and requests tell OpenTelemetry. Imported by `tracing` alone: opentelemetry-api is optional.

Attributes and events of a call go on the span that is current when it begins;
under `tracing: spans` what belongs to an attempt goes on a CLIENT span of its own.
Only recording spans are touched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Protocol

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from headrace.observe import span_facts as facts
from headrace.policy.circuit import Circuit
from headrace.policy.counters import Exemplar
from headrace.policy.exchange import Exchange, Send
from headrace.policy.outcome import Outcome

Headers = tuple[tuple[str, str], ...]

_SUPPRESS_HTTP: Final[str | None] = getattr(contexts, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", None)
_SUPPRESS_ALL: Final[str | None] = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", None)
# Set by an HTTP instrumentation around the call that it has made a span for, so that the next one inside makes none.
# In the API's package, under private names, until the specification has decided (its own comment).


def _reader() -> Callable[[], Mapping[str, object]]:
    """Answers the current context; empty: no span, no baggage, nothing to tell."""
    contexts.get_current()  # loads what is behind it
    # The variable itself where there is one: every governed call asks, and get_current() is two Python-level calls.
    variable = getattr(getattr(contexts, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return variable.get if isinstance(variable, ContextVar) else contexts.get_current


class Tracing:
    """The rule of one configuration. Thread-safe: it holds nothing.

    Args:
        makes_spans: A CLIENT span per attempt (`tracing: spans`).

    Attributes:
        is_wanted: Whether a call that begins now has anything to tell. In C: a call with no span around it
            makes no Python-level call for tracing.
        has_context: Whether there is a tracing context at all; in C, too.
    """

    __slots__ = ("_tracer", "has_context", "is_wanted")

    def __init__(self, *, makes_spans: bool) -> None:
        self.has_context: Callable[[], object] = _reader()
        self.is_wanted: Callable[[], object] = partial(bool, True) if makes_spans else self.has_context
        # The API's own, which finds the application's provider whenever that is set.
        self._tracer = trace.get_tracer("headrace", version("headrace")) if makes_spans else None

    def call(
        self,
        upstream: str,
        circuit: Circuit,
        *,
        address: str,
        port: int | None,
        method: str,
        url: Callable[[], str],
        propagates: bool,
        own: Iterable[str],
        request: Request | None,
        earlier: Sequence[Outcome] = (),
    ) -> CallTrace:
        """What one call, which begins now, is going to tell.

        Args:
            address, port: The upstream's.
            method: Upper case.
            url: Answers the URL; asked for spans only.
            propagates: Its attempts carry the context on the wire.
            own: Names of headers that the call has set itself.
            request: The inbound request that it is part of, or None.
            earlier: Outcomes of the tries before, where the caller retries himself.
        """
        context = contexts.get_current()
        spans = None
        if self._tracer is not None and not _is_suppressed(context):
            spans = _AttemptSpans(
                self._tracer, method=method, url=url, address=address, port=port, earlier=earlier
            )
        propagates = propagates and _W3C.isdisjoint(map(str.lower, own))
        return CallTrace(
            upstream,
            circuit,
            address=address,
            context=context,
            spans=spans,
            propagates=propagates,
            request=request,
            earlier=earlier,
        )

    def observed_call(
        self, upstream: str, circuit: Circuit, *, address: str, request: Request | None
    ) -> CallTrace:
        """What a call of `mode: observe` is going to tell: nothing on the wire, no span, no error of its making."""
        return CallTrace(
            upstream,
            circuit,
            address=address,
            context=contexts.get_current(),
            request=request,
            is_observed=True,
        )

    def trace_id(self) -> str | None:
        """Id of the current trace, 32 hex digits, or None when there is none."""
        context = trace.get_current_span().get_span_context()
        return format(context.trace_id, "032x") if context.is_valid else None

    def meet(self, request: Request) -> None:
        """Remember the span that *request* is served in, if it is open already. Mutates *request*."""
        span = trace.get_current_span()
        if span.is_recording():
            _told_of(request).span = span

    def tell(self, request: Request) -> None:
        """Put what is known of *request* on its span.

        To be called when the answer begins, and when it has ended: a server span that was opened inside our
        middleware is over by then, one outside it may still learn of later calls.
        """
        told = request.told
        span = None if told is None else told.span
        if span is None:
            span = trace.get_current_span()
        if not span.is_recording():
            return
        attributes: dict[str, Any] = {"headrace.request_id": request.request_id}
        if told is not None:
            with told.lock:
                retries = dict(told.retries)
            if retries:
                attributes["headrace.upstreams"] = tuple(retries)
                attributes["headrace.retries"] = sum(retries.values())
        span.set_attributes(attributes)


class RequestTrace:
    """What there is to tell of one inbound request. Thread-safe.

    Attributes:
        span: The one that it is served in, or None as long as nobody has seen it.
        retries: Retries used, by upstream called; guarded by `lock`.
    """

    __slots__ = ("lock", "retries", "span")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.span: Span | None = None
        self.retries: dict[str, int] = {}


class Request(Protocol):
    """An inbound request, as far as it is told of."""

    request_id: str
    told: RequestTrace | None


class Performer(Protocol):
    """What makes the attempts of a call: an `engine.blocking.Attempt`."""

    def perform(self, send: Send) -> Outcome:
        """Make one attempt. Blocks."""

    def set_aside(self) -> None:
        """Free the slot before a pause."""


class CallTrace:
    """What one call tells. Owned by one thread; goes around what makes the attempts, and is ended once.

    Attributes:
        performer: Makes the attempts; set before the first, None where nobody asks for any.
    """

    __slots__ = (
        "_address",
        "_carried",
        "_circuit",
        "_context",
        "_earlier",
        "_generation",
        "_is_observed",
        "_last",
        "_propagates",
        "_request",
        "_span",
        "_spans",
        "_upstream",
        "performer",
    )

    def __init__(
        self,
        upstream: str,
        circuit: Circuit,
        *,
        address: str,
        context: Context,
        request: Request | None,
        earlier: Sequence[Outcome] = (),
        spans: _AttemptSpans | None = None,
        propagates: bool = False,
        is_observed: bool = False,
    ) -> None:
        self._upstream = upstream
        self._circuit = circuit
        self._generation = circuit.generation  # the last that has been told
        self._address = address
        self._span = span = trace.get_current_span(context)
        self._context = context
        self._is_observed = is_observed
        self._spans = spans
        self._propagates = propagates
        self._request = request
        self.performer: Performer | None = None
        self._earlier = earlier
        self._last: Outcome | None = earlier[-1] if earlier else None
        self._carried: dict[str, str] = {}
        if propagates and spans is None:
            propagate.inject(self._carried, context)
        if request is not None and span.is_recording() and _is_served(span):
            _told_of(request).span = span

    def headers(self, others: Headers) -> Headers:
        """Those of the attempt under way: *others*, and our context in the place of one that is only passed on."""
        carried = self._carried
        if not carried:
            return others
        replaced = set(carried)
        # A span's, in whatever format: that of our caller's caller would contradict it.
        if replaced != _BAGGAGE:
            replaced |= _W3C
        if replaced.isdisjoint([name for name, _ in others]):
            return (*others, *carried.items())
        return (*[pair for pair in others if pair[0] not in replaced], *carried.items())

    def perform(self, send: Send) -> Outcome:
        """Make one attempt, in a span of its own if that is the rule. Blocks."""
        spans, performer = self._spans, self.performer
        assert performer is not None
        if spans is None:
            if self._last is not None:
                self._tell_retry(self._span, send.attempt, self._last)
            self._last = outcome = performer.perform(send)
            return outcome
        self._end_attempt(spans)  # of an attempt that was followed by this one without a pause
        context = spans.open(send.attempt, self._context)
        if self._last is not None:
            self._tell_retry(spans.span, send.attempt, self._last)
        if self._propagates:
            self._carried.clear()
            propagate.inject(self._carried, context)
        token = contexts.attach(context)
        try:
            self._last = outcome = performer.perform(send)
        except BaseException:
            spans.judge(None)
            raise
        finally:
            contexts.detach(token)
        spans.judge(outcome)
        return outcome

    def set_aside(self) -> None:
        """As the performer's. The attempt is over, and what it did to the circuit known."""
        if self._spans is not None:
            self._end_attempt(self._spans)
        if self.performer is not None:
            self.performer.set_aside()

    def end(self, exchange: Exchange, *, label: str | None) -> None:
        """Tell how the call ended.

        Args:
            label: Why it was refused or broken off, or None: its last attempt says it.
        """
        self.performer = None  # it refers to the answer, whose body may be followed with this
        if self._spans is not None:
            self._end_attempt(self._spans)
        if self._request is not None:
            told = _told_of(self._request)
            with told.lock:
                retries = len(exchange.outcomes) - (not self._earlier)
                told.retries[self._upstream] = told.retries.get(self._upstream, 0) + max(0, retries)
        span = self._span
        if not span.is_recording():
            return
        self._tell_transitions(span)
        attributes = facts.breaker_attributes(self._upstream, self._circuit.view(time.monotonic()))
        # A server's span says at which address somebody was served, and how that ended: none of it is ours.
        is_ours = not _is_served(span)
        if self._is_observed:
            attributes["headrace.mode"] = "observe"
        if exchange.refused is not None:
            span.add_event(facts.REFUSED, facts.refusal_attributes(self._upstream, exchange.refused))
            if is_ours and not self._is_observed:
                why = f'upstream "{self._upstream}": {exchange.refused}'
                span.set_status(Status(StatusCode.ERROR, why))
        if is_ours:
            attributes["server.address"] = self._address
            attributes |= facts.call_attributes((*self._earlier, *exchange.outcomes), label)
        span.set_attributes(attributes)

    def body_broke(self, outcome: Outcome) -> None:
        """Tell that the body broke off as the caller read it, if his span is still open."""
        span = self._span
        if span.is_recording():
            self._tell_transitions(span)
            attributes = facts.breaker_attributes(self._upstream, self._circuit.view(time.monotonic()))
            if not _is_served(span):
                attributes["error.type"] = facts.cause_of(outcome)
            span.set_attributes(attributes)

    def exemplar(self, duration_s: float) -> Exemplar | None:
        """Where to look for a call that took *duration_s*, or None unless its trace is kept (sampled)."""
        context = self._span.get_span_context()
        if not context.is_valid and self._spans is not None:
            context = self._spans.last
        if not context.is_valid or not context.trace_flags.sampled:
            return None
        return Exemplar(
            trace.format_trace_id(context.trace_id),
            trace.format_span_id(context.span_id),
            duration_s,
            time.time(),
        )

    def _tell_retry(self, span: Span, attempt: int, failed: Outcome) -> None:
        if span.is_recording():
            delay_s = time.monotonic() - (failed.started_s + failed.wait_s + failed.duration_s)
            number = len(self._earlier) + attempt
            span.add_event(facts.RETRY, facts.retry_attributes(self._upstream, number, delay_s, failed))

    def _end_attempt(self, spans: _AttemptSpans) -> None:
        span = spans.span
        if span.is_recording():
            self._tell_transitions(span)
            view = self._circuit.view(time.monotonic())
            span.set_attributes(facts.breaker_attributes(self._upstream, view))
        spans.end()

    def _tell_transitions(self, span: Span) -> None:
        """Every change of the circuit since the last time, whoever caused it."""
        for transition in self._circuit.history:
            if transition.generation > self._generation:
                self._generation = transition.generation
                ago_s = time.monotonic() - transition.at_s
                span.add_event(
                    facts.TRANSITION,
                    facts.transition_attributes(self._upstream, transition),
                    time.time_ns() - int(ago_s * 1e9),
                )


class _AttemptSpans:
    """The CLIENT spans of one call, one at a time. Owned by one thread.

    A span is open until its outcome has been told to the circuit, and ends at the
    instant at which its attempt did.

    Attributes:
        span: The one that is open; the invalid one while none is.
        last: Context of the latest.
    """

    __slots__ = (
        "_address",
        "_attempt",
        "_ended_at_ns",
        "_method",
        "_port",
        "_resent",
        "_tracer",
        "_url",
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
        # Beyond the retries of this call: pooled connections that had died unnoticed, a caller's own tries.
        self._resent = len(earlier) + sum([outcome.resent for outcome in earlier])
        self._attempt = self._ended_at_ns = 0
        self.span: Span = trace.INVALID_SPAN
        self.last = trace.INVALID_SPAN_CONTEXT

    def open(self, attempt: int, context: Context) -> Context:
        """Begin the span of the *attempt*-th; its context, in which other instrumentations make none."""
        self._attempt = attempt
        attributes = facts.request_attributes(self._method, self._url(), self._address, self._port)
        if attempt + self._resent > 1:
            attributes[facts.RESEND_COUNT] = attempt - 1 + self._resent
        self.span = span = self._tracer.start_span(
            facts.span_name(self._method), context, SpanKind.CLIENT, attributes
        )
        self.last = span.get_span_context()
        context = trace.set_span_in_context(span, context)
        return context if _SUPPRESS_HTTP is None else contexts.set_value(_SUPPRESS_HTTP, True, context)

    def judge(self, outcome: Outcome | None) -> None:
        """Put *outcome* on the open span; None: it was broken off."""
        self._ended_at_ns = time.time_ns()
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

    def end(self) -> None:
        """End the open span."""
        span, self.span = self.span, trace.INVALID_SPAN
        span.end(self._ended_at_ns)


# As propagators write them: in lower case.
_BAGGAGE: Final = frozenset({"baggage"})
_W3C: Final = frozenset({"traceparent", "tracestate"})

_SERVED: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER})


def _is_served(span: Span) -> bool:
    return getattr(span, "kind", None) in _SERVED  # of the SDK: the API's Span does not tell


def _is_suppressed(context: Context) -> bool:
    return any(key is not None and context.get(key) for key in (_SUPPRESS_HTTP, _SUPPRESS_ALL))


_telling = threading.Lock()


def _told_of(request: Request) -> RequestTrace:
    """What is told of *request*. Mutates it the first time; calls on several threads may be that."""
    told = request.told
    if told is None:
        with _telling:
            told = request.told
            if told is None:
                told = request.told = RequestTrace()
    return told
