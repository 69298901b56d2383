"""Spans as an exporter gets them: one real SDK for the whole process, since OpenTelemetry allows one to be set."""

from __future__ import annotations

from functools import cache
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode


class Spans:
    """The spans that have ended since the last `clear`."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def ended(self) -> list[ReadableSpan]:
        """In the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def clients(self) -> list[ReadableSpan]:
        """The CLIENT spans among them, in the order of their beginnings."""
        found = [span for span in self.ended() if span.kind is SpanKind.CLIENT]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        """The only one called *name*."""
        (found,) = [span for span in self.ended() if span.name == name]
        return found

    def clear(self) -> None:
        """Forget them."""
        self._exporter.clear()


class OwnFormat(TextMapPropagator):
    """A propagator that writes the id of the span, in a header of its own, and reads nothing."""

    fields = frozenset({"x-own"})  # type: ignore[assignment]

    def extract(self, carrier: Any, context: Context | None = None, getter: Any = None) -> Context:
        """*context* as it is."""
        return Context() if context is None else context

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        """Write it."""
        carrier["x-own"] = trace.format_span_id(trace.get_current_span(context).get_span_context().span_id)


@cache
def recorder() -> Spans:
    """What records every sampled span of the process, from the first call of this on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return Spans(exporter)


def events(span: ReadableSpan, name: str) -> list[dict[str, object]]:
    """Attributes of the events called *name*."""
    return [dict(event.attributes or {}) for event in span.events if event.name == name]


def attributes(span: ReadableSpan) -> dict[str, object]:
    """All attributes of *span*."""
    return dict(span.attributes or {})


def is_error(span: ReadableSpan) -> bool:
    """Whether its status is ERROR."""
    return span.status.status_code is StatusCode.ERROR


def traceparent(span: ReadableSpan) -> str:
    """The header that makes *span* the parent of what receives it; flags as the SDK sets them for a sampled root."""
    context = span.context
    assert context is not None
    return (
        f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
        f"-{context.trace_flags:02x}"
    )
