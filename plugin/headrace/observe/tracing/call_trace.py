"""What one governed call tells OpenTelemetry, and which context its attempts carry."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from headrace.clock import monotonic
from headrace.observe.tracing import span_facts as facts
from headrace.observe.tracing.attempt_spans import AttemptSpans
from headrace.observe.tracing.request_trace import Request, told_of
from headrace.policy.breaker.circuit import Circuit, Refused
from headrace.policy.counters import Exemplar
from headrace.policy.decision import Performer, Renew, Resend, Send
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Outcome

T = TypeVar("T")
Headers = tuple[tuple[str, str], ...]

# As propagators write them: in lower case.
W3C: Final = frozenset({"traceparent", "tracestate"})
_BAGGAGE: Final = frozenset({"baggage"})

_SERVED: Final = frozenset({SpanKind.SERVER, SpanKind.CONSUMER})


def is_served(span: Span) -> bool:
    """Whether *span* tells how an inbound request, or a message, was served."""
    return getattr(span, "kind", None) in _SERVED  # of the SDK: the API's Span does not tell


class CallTrace:
    """What one call tells. Owned by one thread. It stands around the performer of the attempts, and is ended once.

    Attributes:
        performer: Makes the attempts. Set before the first one; None where no attempt is asked for.
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
        "_to_judge",
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
        spans: AttemptSpans | None = None,
        propagates: bool = False,
        is_observed: bool = False,
    ) -> None:
        self._upstream = upstream
        self._circuit = circuit
        self._generation = circuit.generation  # of the last transition that has been told
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
        self._to_judge: Outcome | None = None  # of the attempt with the open span
        self._carried: dict[str, str] = {}
        if propagates and spans is None:
            propagate.inject(self._carried, context)
        if request is not None and span.is_recording() and is_served(span):
            told_of(request).span = span

    def headers(self, others: Headers) -> Headers:
        """Headers of the attempt under way: *others*, with our context in place of one that is only passed on."""
        carried = self._carried
        if not carried:
            return others
        replaced = set(carried)
        # Ours is of a span, in whatever format. The one of our caller's caller would contradict it.
        if replaced != _BAGGAGE:
            replaced |= W3C
        if replaced.isdisjoint([name for name, _ in others]):
            return (*others, *carried.items())
        return (*[pair for pair in others if pair[0] not in replaced], *carried.items())

    def perform(self, send: Send) -> Outcome:
        """Make one attempt, in a span of its own if the rule wants that. Blocks."""
        spans, performer = self._spans, self.performer
        assert performer is not None
        if spans is None:
            if self._last is not None:
                self._tell_retry(self._span, send.attempt, self._last)
            self._last = outcome = performer.perform(send)
            return outcome
        context = spans.open(send.attempt, self._context)
        if self._last is not None:
            self._tell_retry(spans.span, send.attempt, self._last)
        if self._propagates:
            self._carried.clear()
            propagate.inject(self._carried, context)
        self._last = self._to_judge = outcome = self._run_in_span(
            spans, context, lambda: performer.perform(send)
        )
        return outcome

    def resend(self, resend: Resend) -> Outcome | None:
        """Make the attempt once more, in the same span. Blocks."""
        spans, performer = self._spans, self.performer
        assert performer is not None
        if spans is None:
            outcome = performer.resend(resend)
        else:
            outcome = self._run_in_span(spans, spans.context, lambda: performer.resend(resend))
        if outcome is not None:
            self._last = outcome
            self._to_judge = None if spans is None else outcome
        return outcome

    def renew(self, renew: Renew) -> bool:
        """As the performer's. What is sent again has a span of its own, and is no retry. Blocks."""
        assert self.performer is not None
        is_newer = self.performer.renew(renew)
        if is_newer:
            self._last = None
            if self._spans is not None:
                self._end_attempt(self._spans)
                self._spans.sent_again()
        return is_newer

    def _run_in_span(self, spans: AttemptSpans, context: Context, go: Callable[[], T]) -> T:
        token = contexts.attach(context)
        try:
            return go()
        except BaseException:
            self._to_judge = None
            spans.judge(None)
            raise
        finally:
            contexts.detach(token)

    def set_aside(self) -> None:
        """As the performer's. The attempt is over, and it is known what it did to the circuit."""
        if self._spans is not None:
            self._end_attempt(self._spans)
        if self.performer is not None:
            self.performer.set_aside()

    def end(self, exchange: Exchange, *, label: str | None) -> None:
        """Tell how the call ended.

        Args:
            label: Why it was refused or broken off, or None: its last attempt says it.
        """
        # It refers to the answer, and this object may live as long as the answer's body is read.
        self.performer = None
        if self._spans is not None:
            self._end_attempt(self._spans)
        if self._request is not None:
            told = told_of(self._request)
            with told.lock:
                retries = len(exchange.outcomes) - (not self._earlier)
                told.retries[self._upstream] = told.retries.get(self._upstream, 0) + max(0, retries)
        span = self._span
        if not span.is_recording():
            return
        self._tell_transitions(span)
        attributes = facts.breaker_attributes(self._upstream, self._circuit.view(monotonic()))
        if self._is_observed:
            attributes["headrace.mode"] = "observe"
        if exchange.refused is not None:
            span.add_event(facts.REFUSED, facts.refusal_attributes(self._upstream, exchange.refused))
        # A server's span tells at which address a request was served, and how that ended. Neither is ours to set.
        if not is_served(span):
            attributes["server.address"] = self._address
            attributes |= facts.call_attributes((*self._earlier, *exchange.outcomes), label)
        span.set_attributes(attributes)

    def refused(self, why: str) -> None:
        """Tell that the caller gets an error because the circuit refused, and no fallback stood in."""
        span = self._span
        if span.is_recording() and not is_served(span):
            span.set_status(Status(StatusCode.ERROR, why))

    def end_protected(self, refused: Refused | None) -> None:
        """Tell how the call of a protected function ended. The function's own error is for its caller to tell."""
        span = self._span
        if not span.is_recording():
            return
        self._tell_transitions(span)
        span.set_attributes(facts.breaker_attributes(self._upstream, self._circuit.view(monotonic())))
        if refused is not None:
            span.add_event(facts.REFUSED, facts.refusal_attributes(self._upstream, refused))
            self.refused(str(refused))

    def settled(self) -> None:
        """Tell what the end of the whole call did to the circuit, where the caller retries by itself."""
        if self._span.is_recording():
            self._tell_transitions(self._span)
            view = self._circuit.view(monotonic())
            self._span.set_attributes(facts.breaker_attributes(self._upstream, view))

    def body_broke(self, outcome: Outcome) -> None:
        """Tell that the body broke off while the caller read it, if the caller's span is still open."""
        span = self._span
        if span.is_recording():
            self._tell_transitions(span)
            attributes = facts.breaker_attributes(self._upstream, self._circuit.view(monotonic()))
            if not is_served(span):
                attributes["error.type"] = facts.cause_of(outcome)
            span.set_attributes(attributes)

    def exemplar(self, duration_s: float) -> Exemplar | None:
        """The trace in which to look at a call that took *duration_s*, or None if it is not kept (not sampled)."""
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
            delay_s = monotonic() - (failed.started_s + failed.wait_s + failed.duration_s)
            number = len(self._earlier) + attempt
            span.add_event(facts.RETRY, facts.retry_attributes(self._upstream, number, delay_s, failed))

    def _end_attempt(self, spans: AttemptSpans) -> None:
        span = spans.span
        # Not earlier: an attempt that is sent once more is judged by the end of that.
        outcome, self._to_judge = self._to_judge, None
        if outcome is not None:
            spans.judge(outcome)
        if span.is_recording():
            self._tell_transitions(span)
            view = self._circuit.view(monotonic())
            span.set_attributes(facts.breaker_attributes(self._upstream, view))
        spans.end()

    def _tell_transitions(self, span: Span) -> None:
        """Tell every change of the circuit since the last time, also those that other calls have caused."""
        for transition in self._circuit.history:
            if transition.generation > self._generation:
                self._generation = transition.generation
                ago_s = monotonic() - transition.at_s
                span.add_event(
                    facts.TRANSITION,
                    facts.transition_attributes(self._upstream, transition),
                    time.time_ns() - int(ago_s * 1e9),
                )
