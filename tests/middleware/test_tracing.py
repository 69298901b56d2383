"""What the server's span is told of a request, with OpenTelemetry's own middleware outside and inside of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as AsgiTelemetry
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as WsgiTelemetry
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry

import headrace
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.wsgi import WSGIMiddleware
from support.faultserver import Answer, FaultServer
from support.gateways import asgi_scope, call_asgi, call_wsgi, wsgi_environ
from support.governed import rules
from support.spans import OwnFormat, Spans, attributes, events, recorder

Handler = Callable[[headrace.Headrace], Iterable[bytes]]
"""Answers the body, chunk by chunk; what it does before the first is done before the answer begins."""

Request = Callable[..., Any]
"""One request with the headers given."""


@pytest.fixture
def spans() -> Iterator[Spans]:
    found = recorder()
    found.clear()
    yield found
    assert trace.get_current_span() is trace.INVALID_SPAN, "the context was not given back"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


Serve = Callable[..., Request]


@pytest.fixture(params=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    """Serves a handler behind our middleware and OpenTelemetry's, if any; the handler gets the Headrace."""
    started = []

    def make(handler: Handler, text: str, *, telemetry: str = "outside") -> Request:
        file = tmp_path / "upstreams.yaml"
        file.write_text(text)
        hr = headrace.Headrace(file, registry=CollectorRegistry())
        started.append(hr)
        app: Any
        if request.param == "asgi":
            app = asgi_app(handler, hr)
            inner = AsgiTelemetry(app) if telemetry == "inside" else app
            outer: Any = ASGIMiddleware(inner, headrace=hr)
            outer = AsgiTelemetry(outer) if telemetry == "outside" else outer
            return lambda headers=None: asyncio.run(call_asgi(outer, asgi_scope(headers)))
        app = wsgi_app(handler, hr)
        inner = WsgiTelemetry(app) if telemetry == "inside" else app
        outer = WSGIMiddleware(inner, headrace=hr)
        outer = WsgiTelemetry(outer) if telemetry == "outside" else outer
        return lambda headers=None: call_wsgi(outer, wsgi_environ(headers))

    yield make
    for hr in started:
        hr.close()


def asgi_app(handler: Handler, hr: headrace.Headrace) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        chunks = iter(handler(hr))
        first = await asyncio.to_thread(next, chunks)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while first is not None:
            await send({"type": "http.response.body", "body": first, "more_body": True})
            first = await asyncio.to_thread(next, chunks, None)
        await send({"type": "http.response.body"})

    return app


def wsgi_app(handler: Handler, hr: headrace.Headrace) -> Any:
    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        chunks = iter(handler(hr))
        first = next(chunks)
        start_response("200 OK", [])

        def body() -> Iterator[bytes]:
            yield first
            yield from chunks

        return body()

    return app


FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


def two(server: FaultServer, more: str = "") -> str:
    ledger = f"  ledger:\n    base_url: {server.url}/l\n"
    return rules(f"{server.url}/b", FAST + ledger + FAST, more=more)


def of_server(spans: Spans) -> ReadableSpan:
    (found,) = [span for span in spans.ended() if span.kind is SpanKind.SERVER]
    return found


@pytest.mark.parametrize("telemetry", ["outside", "inside"])
def test_the_servers_span_is_told_the_id_the_upstreams_and_the_retries(
    telemetry: str, serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        server.next(Answer(503), Answer(), Answer(503), Answer(503))
        hr.upstream("ledger").get("/a")
        hr.upstream("billing").get("/a")
        hr.upstream("ledger").get("/a")
        yield b"done"

    serve(handler, two(server), telemetry=telemetry)({"X-Request-ID": "of-the-caller"})

    found = attributes(of_server(spans))
    assert found["headrace.request_id"] == "of-the-caller"
    assert found["headrace.upstreams"] == ("ledger", "billing")
    assert found["headrace.retries"] == 3
    assert len(events(of_server(spans), "headrace.retry")) == 3


def test_calls_that_a_streamed_answer_makes_are_told_as_well(
    serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        yield b"begun"
        hr.upstream("billing").get("/a")
        yield b"done"

    serve(handler, two(server))()

    assert attributes(of_server(spans))["headrace.upstreams"] == ("billing",)


def test_calls_in_the_spans_of_an_instrumentation_are_told_on_the_servers(
    serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    request = serve(handler, two(server), telemetry="inside")
    instrumentor = RequestsInstrumentor()
    instrumentor.instrument()
    try:
        request()
    finally:
        instrumentor.uninstrument()

    (client,) = spans.clients()
    assert attributes(client)["headrace.upstream"] == "billing"
    assert attributes(of_server(spans))["headrace.upstreams"] == ("billing",)


@pytest.mark.parametrize("telemetry", ["outside", "inside"])
def test_a_request_that_calls_nobody_is_told_its_id(
    telemetry: str, serve: Serve, server: FaultServer, spans: Spans
) -> None:
    serve(lambda hr: iter([b"done"]), two(server), telemetry=telemetry)()

    found = attributes(of_server(spans))
    assert len(str(found["headrace.request_id"])) == 32
    assert "headrace.upstreams" not in found


def test_a_handler_that_fails_has_told_what_it_called(
    serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        raise ZeroDivisionError
        yield b""

    request = serve(handler, two(server))
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        request()

    assert attributes(of_server(spans))["headrace.upstreams"] == ("billing",)


def test_nothing_is_told_where_tracing_is_off(serve: Serve, server: FaultServer, spans: Spans) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    serve(handler, two(server, "telemetry: {tracing: off}\n"))()

    assert not [name for name in attributes(of_server(spans)) if name.startswith("headrace.")]
    assert server.requests[0].header("traceparent") is None


FROM_TRACE = "service: {request_id: {from: trace}}\n"


def test_the_id_is_the_tracers_trace_id_where_that_is_wanted(
    serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    answer = serve(handler, two(server, FROM_TRACE))()

    context = of_server(spans).context
    assert context is not None
    trace_id = trace.format_trace_id(context.trace_id)
    assert answer.all("X-Request-ID") == [trace_id]
    assert server.requests[0].header("X-Request-ID") == trace_id


TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize("mode", ["annotate", "spans"])
def test_a_tracers_context_takes_the_place_of_the_callers(
    mode: str, serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    request = serve(handler, two(server, f"telemetry: {{tracing: {mode}}}\n"))
    request({"traceparent": TRACEPARENT, "tracestate": "vendor=1"})

    sent = [value for name, value in server.requests[0].headers if name.lower() == "traceparent"]
    parent = of_server(spans) if mode == "annotate" else spans.clients()[0]
    assert parent.context is not None
    # The same trace, another parent; the caller's state came through the tracer, which has read it, and once.
    assert sent == [f"00-{'a' * 32}-{trace.format_span_id(parent.context.span_id)}-{TRACEPARENT[-2:]}"]
    states = [value for name, value in server.requests[0].headers if name.lower() == "tracestate"]
    assert states == ["vendor=1"]


def test_a_tracers_context_in_another_format_takes_it_as_well(
    serve: Serve, server: FaultServer, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two formats of two different parents would contradict each other."""

    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", OwnFormat())
    serve(handler, two(server))({"traceparent": TRACEPARENT})

    context = of_server(spans).context
    assert context is not None
    assert server.requests[0].header("x-own") == trace.format_span_id(context.span_id)
    assert server.requests[0].header("traceparent") is None


@pytest.mark.parametrize("mode", ["annotate", "spans"])
def test_an_upstream_that_is_to_know_nothing_of_the_trace_gets_none(
    mode: str, serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    text = f"telemetry: {{tracing: {mode}}}\ndefaults: {{propagate: {{traceparent: false}}}}\n"
    serve(handler, two(server, text))({"traceparent": TRACEPARENT, "tracestate": "vendor=1"})

    names = {name.lower() for name, _ in server.requests[0].headers}
    assert names.isdisjoint({"traceparent", "tracestate", "baggage"})
    assert len(spans.clients()) == (1 if mode == "spans" else 0)


def test_without_a_span_the_callers_context_is_passed_on(
    serve: Serve, server: FaultServer, spans: Spans
) -> None:
    def handler(hr: headrace.Headrace) -> Iterator[bytes]:
        hr.upstream("billing").get("/a")
        yield b"done"

    serve(handler, two(server), telemetry="none")({"traceparent": TRACEPARENT, "tracestate": "vendor=1"})

    assert server.requests[0].header("traceparent") == TRACEPARENT
    assert server.requests[0].header("tracestate") == "vendor=1"
