"""What calls and requests tell OpenTelemetry. Imported by `gate` alone: opentelemetry-api is optional.

Attributes and events of a call go on the span that is current when it begins;
under `tracing: spans` what belongs to an attempt goes on a CLIENT span of its own.
Only recording spans are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace

from headrace.observe.tracing.attempt_spans import AttemptSpans, is_suppressed
from headrace.observe.tracing.call_trace import W3C, CallTrace
from headrace.observe.tracing.request_trace import Request, told_of
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.outcome import Outcome


def _context_reader() -> Callable[[], Mapping[str, object]]:
    """A function that answers the current context. An empty one means: no span, no baggage, nothing to tell."""
    contexts.get_current()  # loads the implementation behind it
    # The variable itself, where there is one. Every governed call asks, and get_current() is two Python-level calls.
    variable = getattr(getattr(contexts, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return variable.get if isinstance(variable, ContextVar) else contexts.get_current


def _version() -> str | None:
    try:
        return version("headrace")
    except PackageNotFoundError:  # run from its sources
        return None


class Tracing:
    """The rule of one configuration. Thread-safe: it holds nothing.

    Args:
        makes_spans: A CLIENT span per attempt (`tracing: spans`).

    Attributes:
        is_wanted: Whether a call that begins now has anything to tell. It is a C function: a call with no span
            around it makes no Python-level call for tracing.
        has_context: Whether there is a tracing context at all. A C function, too.
    """

    __slots__ = ("_tracer", "has_context", "is_wanted")

    def __init__(self, *, makes_spans: bool) -> None:
        self.has_context: Callable[[], object] = _context_reader()
        self.is_wanted: Callable[[], object] = partial(bool, True) if makes_spans else self.has_context
        # The API's own tracer. It finds the application's provider whenever that is set.
        self._tracer = trace.get_tracer("headrace", _version()) if makes_spans else None

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
            propagates: The attempts carry the context on the wire.
            own: Names of headers that the call has set itself.
            request: The inbound request that the call is part of, or None.
            earlier: Outcomes of the tries before, where the caller retries by itself.
        """
        context = contexts.get_current()
        spans = None
        if self._tracer is not None and not is_suppressed(context):
            spans = AttemptSpans(
                self._tracer, method=method, url=url, address=address, port=port, earlier=earlier
            )
        propagates = propagates and W3C.isdisjoint([name.lower() for name in own])
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

    def protected_call(self, upstream: str, circuit: Circuit) -> CallTrace:
        """What one call of a protected function is going to tell: nothing of where it goes, no span."""
        return CallTrace(upstream, circuit, address="", context=contexts.get_current(), request=None)

    def trace_id(self) -> str | None:
        """Id of the current trace, 32 hex digits, or None when there is none."""
        context = trace.get_current_span().get_span_context()
        return format(context.trace_id, "032x") if context.is_valid else None

    def meet(self, request: Request) -> None:
        """Remember the span that *request* is served in, if it is open already. Mutates *request*."""
        span = trace.get_current_span()
        if span.is_recording():
            told_of(request).span = span

    def tell(self, request: Request) -> None:
        """Put what is known of *request* on its span.

        Call it when the answer begins and when it ends. In between there may be further calls, and
        a span that was opened inside our middleware may be over by the end.
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
