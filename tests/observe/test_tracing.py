"""What governed calls tell OpenTelemetry: a real SDK, real sockets, the real instrumentations beside us."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from urllib3.util.retry import Retry

import headrace
from headrace.adapters import handles
from headrace.observe.tracing.span_facts import redacted
from support.faultserver import Answer, Break, FaultServer, Silence, on_reuse
from support.governed import rules, running
from support.spans import OwnFormat, Spans, attributes, events, is_error, recorder, traceparent
from support.surfaces import (
    INSTALL,
    MANAGER,
    REQUESTS,
    SURFACES,
    URLOPEN,
    Surface,
    across,
    retrying_adapter,
    retrying_call,
)
from support.waiting import wait_until

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


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


def tracing(mode: str) -> str:
    return f"telemetry: {{tracing: {mode}}}\n{INSTALL}"


ON_EACH = across(*SURFACES)
OWN = Retry(total=3, status_forcelist=[503], backoff_factor=0)


def op(name: str = "op", kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[trace.Span]:
    return trace.get_tracer("test").start_as_current_span(name, kind=kind)


def port_of(server: FaultServer) -> int:
    return int(server.url.rpartition(":")[2])


# --- annotate -------------------------------------------------------------------------------------------


@ON_EACH
def test_a_call_puts_its_upstream_and_the_breakers_state_on_the_current_span(
    call: Surface, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("annotate"))) as hr, op():
        call(hr, server.url)

    (span,) = spans.ended()  # and it made none
    assert attributes(span) == {
        "headrace.upstream": "billing",
        "headrace.breaker.state": "closed",
        "circuit.breaker.state": "closed",
        "circuit.breaker.failed.calls": 0,
        "headrace.breaker.slow_calls": 0,
        "server.address": "127.0.0.1",
    }
    assert (span.events, is_error(span)) == ((), False)
    assert server.requests[0].header("traceparent") == traceparent(span)


@ON_EACH
def test_each_retry_is_an_event_with_its_number_its_pause_and_its_cause(
    call: Surface, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.next(Answer(503), Break("head"))
    body = "    retry: {backoff: {base: 20ms, throttled: 1ms, multiplier: 1}}\n"
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr, op():
        call(hr, server.url)

    first, second = events(spans.one("op"), "headrace.retry")
    assert (first["headrace.retry.attempt"], first["headrace.retry.cause"]) == (2, "503")
    assert (second["headrace.retry.attempt"], second["headrace.retry.cause"]) == (3, "reset")
    for event in (first, second):
        assert event["headrace.upstream"] == "billing"
        assert isinstance(event["headrace.retry.delay"], float)
        assert 0 <= event["headrace.retry.delay"] < 1
    found = attributes(spans.one("op"))
    assert found["http.request.resend_count"] == 2
    assert "error.type" not in found  # the third attempt succeeded


def test_a_call_that_fails_says_with_what(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    server.always(Answer(503))
    with running(tmp_path, rules(server.url, FAST, more=tracing("annotate"))) as hr:
        handle = hr.upstream("billing")
        with op("status"):
            handle.get("/a")
        server.always(Break())
        with op("fault"), pytest.raises(requests.ConnectionError):
            handle.post("/a")
        server.always(Answer(404))
        with op("an answer"):
            handle.get("/a")

    assert attributes(spans.one("status"))["error.type"] == "503"
    assert attributes(spans.one("fault"))["error.type"] == "reset"
    assert "error.type" not in attributes(spans.one("an answer"))


@pytest.mark.parametrize("mode", ["annotate", "spans"])
def test_a_resend_over_a_fresh_connection_counts_as_one(
    mode: str, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(on_reuse(Break("request", "fin")))
    with running(tmp_path, rules(server.url, FAST, more=tracing(mode))) as hr:
        handle = hr.upstream("billing")
        handle.get("/a")
        spans.clear()
        with op():
            response = handle.get("/a")

    assert response.headrace.attempts[0].resent
    told = spans.ended()  # under `spans` the attempt's as well: it was one attempt
    assert len(told) == (1 if mode == "annotate" else 2)
    assert [attributes(span)["http.request.resend_count"] for span in told] == [1] * len(told)


TRIPS = FAST + "    circuit_breaker: {consecutive_failures: 2, open_for: {base: 10s, jitter: 0}}\n"
TRIPS_AT_ONCE = TRIPS.replace("consecutive_failures: 2", "consecutive_failures: 1")


@ON_EACH
def test_the_call_that_opens_the_circuit_and_the_call_that_is_refused_say_so(
    call: Surface, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(Answer(500))
    body = TRIPS.replace("retry: {", "retry: {max_attempts: 1, ")
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        with op("harmless"):
            call(hr, server.url)
        with op("opens it"):
            call(hr, server.url)
        with op("refused"), pytest.raises(headrace.CircuitOpenError):
            call(hr, server.url)

    assert events(spans.one("harmless"), "headrace.breaker.transition") == []
    (changed,) = events(spans.one("opens it"), "headrace.breaker.transition")
    assert changed == {
        "headrace.upstream": "billing",
        "headrace.breaker.from_state": "closed",
        "headrace.breaker.to_state": "open",
        "headrace.breaker.reason": "consecutive_failures",
        "headrace.breaker.calls": 2,
        "headrace.breaker.failures": 2,
        "headrace.breaker.consecutive_failures": 2,
        "headrace.breaker.slow_calls": 0,
        "headrace.breaker.threshold": 2,
        "headrace.breaker.open_for": 10.0,
    }
    assert attributes(spans.one("opens it"))["headrace.breaker.state"] == "open"
    assert not is_error(spans.one("opens it"))

    span = spans.one("refused")
    (refused,) = events(span, "headrace.breaker.refused")
    assert (refused["headrace.breaker.state"], refused["headrace.breaker.refusal"]) == ("open", "open")
    assert 9.0 < float(str(refused["headrace.breaker.retry_after"])) <= 10.0
    assert refused["headrace.breaker.reason"] == "consecutive_failures"
    assert events(span, "headrace.breaker.transition") == []
    assert is_error(span)
    assert "circuit open for" in (span.status.description or "")
    assert attributes(span)["error.type"] == "circuit_open"
    assert attributes(span)["circuit.breaker.failed.calls"] == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "fallback", ["{status: 200, body: stale}", "{upstream: spare}"], ids=["an answer", "an upstream"]
)
def test_a_refusal_that_a_fallback_makes_good_is_told_and_no_error(
    fallback: str, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.at("/b/a", Answer(500))
    body = TRIPS.replace("retry: {", f"fallback: {fallback}\n    retry: {{max_attempts: 1, ")
    text = rules(f"{server.url}/b", body + f"  spare:\n    base_url: {server.url}/s\n")
    with running(tmp_path, text) as hr:
        for name in ("first", "opens it", "refused"):
            with op(name):
                answer = hr.upstream("billing").get("/a")

    assert (answer.status_code, answer.headrace.fallback_for) == (200, "billing")
    span = spans.one("refused")
    (refused,) = events(span, "headrace.breaker.refused")
    assert refused["headrace.upstream"] == "billing"
    assert not is_error(span)


def test_a_call_that_was_under_way_when_another_opened_the_circuit_met_that_transition(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    opened = threading.Event()
    server.at("/slow", lambda request: Answer() if opened.wait(20) else Answer(500))
    server.at("/bad", Answer(500))
    body = TRIPS.replace("retry: {", "retry: {max_attempts: 1, ")
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        handle = hr.upstream("billing")

        def slow() -> None:
            with op("slow"):
                handle.get("/slow")

        thread = threading.Thread(target=slow)
        thread.start()
        server.wait_for(lambda: any(one.target == "/slow" for one in server.requests))
        for _ in range(2):
            handle.get("/bad")
        opened.set()
        thread.join()

    (changed,) = events(spans.one("slow"), "headrace.breaker.transition")
    assert changed["headrace.breaker.to_state"] == "open"
    (event,) = spans.one("slow").events
    span = spans.one("slow")
    assert (span.start_time or 0) < event.timestamp < (span.end_time or 0)
    assert "error.type" not in attributes(span)


@pytest.mark.parametrize("mode", ["annotate", "spans"])
@across(retrying_adapter(OWN), retrying_call(OWN))
def test_the_tries_of_a_caller_that_retries_itself_are_told_as_one_calls_retries(
    call: Surface, mode: str, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.next(Answer(503), Answer(503))
    with running(tmp_path, rules(server.url, FAST, more=tracing(mode))) as hr, op():
        call(hr, server.url)

    assert len(server.requests) == 3
    assert attributes(spans.one("op"))["http.request.resend_count"] == 2
    told = [event for span in spans.ended() for event in events(span, "headrace.retry")]
    assert [event["headrace.retry.attempt"] for event in told] == [2, 3]
    if mode == "spans":
        counts = [attributes(span).get("http.request.resend_count") for span in spans.clients()]
        assert counts == [None, 1, 2]


def test_a_body_that_breaks_off_late_is_told_while_the_span_is_open(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(Break("body"))
    body = TRIPS.replace("consecutive_failures: 2", "consecutive_failures: 1")
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        with op():
            response = hr.upstream("billing").get("/a", stream=True)
            with pytest.raises(requests.RequestException):
                _ = response.content

    span = spans.one("op")
    assert attributes(span)["error.type"] == "reset"
    assert attributes(span)["headrace.breaker.state"] == "open"
    assert len(events(span, "headrace.breaker.transition")) == 1


def test_a_circuit_that_the_file_holds_open_refuses_without_numbers(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    body = "    circuit_breaker: {mode: forced_open}\n"
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        with op(), pytest.raises(headrace.CircuitOpenError):
            hr.upstream("billing").get("/a")

    (refused,) = events(spans.one("op"), "headrace.breaker.refused")
    assert refused["headrace.breaker.refusal"] == "forced_open"
    assert "headrace.breaker.reason" not in refused


def test_slow_calls_are_counted_on_the_span(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    body = "    circuit_breaker: {minimum_calls: 2, slow_call: {duration: 50ms}}\n"
    server.always(Answer(delay_s=0.1))
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        for name in ("first", "opens it"):
            with op(name):
                hr.upstream("billing").get("/a")

    assert attributes(spans.one("first"))["headrace.breaker.slow_calls"] == 1
    (changed,) = events(spans.one("opens it"), "headrace.breaker.transition")
    assert changed["headrace.breaker.slow_calls"] == 2


def test_a_probe_tells_both_transitions_that_it_caused(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    body = (
        "    retry: {max_attempts: 1}\n"
        "    circuit_breaker: {consecutive_failures: 1, open_for: {base: 50ms, jitter: 0},"
        " half_open: {max_probes: 1}}\n"
    )
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        handle = hr.upstream("billing")
        server.next(Answer(500))
        handle.get("/a")
        wait_until(lambda: hr.status()["upstreams"]["billing"]["circuit_breaker"]["retry_after"] == 0)
        with op():
            handle.get("/a")

    told = events(spans.one("op"), "headrace.breaker.transition")
    assert [one["headrace.breaker.to_state"] for one in told] == ["half_open", "closed"]


def test_a_servers_span_gets_our_names_only(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    """`server.address` and `error.type` of a server's span say where and how the request was served, not the call."""
    server.always(Answer(500))
    body = TRIPS.replace("retry: {", "retry: {max_attempts: 1, ")
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        with op("serve", SpanKind.SERVER):
            hr.upstream("billing").get("/a")
            hr.upstream("billing").get("/a")
            with pytest.raises(headrace.CircuitOpenError):
                hr.upstream("billing").get("/a")

    span = spans.one("serve")
    assert set(attributes(span)) == {
        "headrace.upstream",
        "headrace.breaker.state",
        "circuit.breaker.state",
        "circuit.breaker.failed.calls",
        "headrace.breaker.slow_calls",
    }
    assert not is_error(span)
    assert len(events(span, "headrace.breaker.refused")) == 1


def test_a_failure_rate_is_told_once_there_is_one(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    body = "    retry: {max_attempts: 1}\n    circuit_breaker: {minimum_calls: 2}\n"
    with running(tmp_path, rules(server.url, body, more=tracing("annotate"))) as hr:
        server.next(Answer(500))
        for name in ("first", "second"):
            with op(name):
                hr.upstream("billing").get("/a")

    assert "headrace.breaker.failure_rate" not in attributes(spans.one("first"))
    assert attributes(spans.one("second"))["headrace.breaker.failure_rate"] == 0.5


def test_a_span_that_does_not_record_is_left_alone_and_its_context_still_travels(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with running(tmp_path, rules(server.url, FAST, more=tracing("annotate"))) as hr:
        with unsampled.start_as_current_span("op") as span:
            hr.upstream("billing").get("/a")

    assert spans.ended() == []
    sent = server.requests[0].header("traceparent") or ""
    assert sent.startswith(f"00-{trace.format_trace_id(span.get_span_context().trace_id)}-")
    assert int(sent[-2:], 16) & 1 == 0  # not sampled


def test_observed_calls_are_told_of_as_such_and_nothing_of_it_is_on_the_wire(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(Answer(500))
    body = TRIPS.replace("retry: {", "mode: observe\n    retry: {max_attempts: 1, ")
    with running(tmp_path, rules(server.url, body, more=tracing("spans"))):
        for name in ("first", "opens it", "would be refused"):
            with op(name):
                requests.get(f"{server.url}/a")

    assert spans.clients() == []
    assert attributes(spans.one("opens it"))["headrace.mode"] == "observe"
    assert len(events(spans.one("opens it"), "headrace.breaker.transition")) == 1
    span = spans.one("would be refused")
    assert len(events(span, "headrace.breaker.refused")) == 1
    assert not is_error(span)
    assert attributes(span)["error.type"] == "500"
    assert all(one.header("traceparent") is None for one in server.requests)


# --- spans ----------------------------------------------------------------------------------------------


@ON_EACH
def test_every_attempt_is_a_client_span_below_the_current_one(
    call: Surface, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.next(Answer(503))
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr, op():
        call(hr, server.url, path="/a/7?card=4111&x")

    failed, good = spans.clients()
    parent = spans.one("op").context
    assert {span.parent.span_id for span in (failed, good) if span.parent} == {parent and parent.span_id}
    of_both = {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": port_of(server),
        "url.full": f"{server.url}/a/7?card=REDACTED&REDACTED",
        "headrace.upstream": "billing",
        "headrace.breaker.state": "closed",
        "circuit.breaker.state": "closed",
        "circuit.breaker.failed.calls": 0,  # the call: a retry saved it
        "headrace.breaker.slow_calls": 0,
    }
    assert (failed.name, is_error(failed)) == ("GET", True)
    assert attributes(failed) == of_both | {"http.response.status_code": 503, "error.type": "503"}
    assert (good.name, is_error(good)) == ("GET", False)
    assert attributes(good) == of_both | {"http.response.status_code": 200, "http.request.resend_count": 1}
    assert len(events(good, "headrace.retry")) == 1
    assert (failed.end_time or 0) <= (good.start_time or 0)
    # Each on the wire under its own span, so that what the upstream traces hangs below the right attempt.
    assert [one.header("traceparent") for one in server.requests] == [traceparent(failed), traceparent(good)]
    assert attributes(spans.one("op"))["http.request.resend_count"] == 1


def test_without_a_span_around_it_an_attempt_begins_a_trace(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr:
        hr.upstream("billing").get("/a")

    (span,) = spans.ended()
    assert (span.kind, span.parent) == (SpanKind.CLIENT, None)
    assert server.requests[0].header("traceparent") == traceparent(span)


def test_an_attempt_without_an_answer_is_an_error_with_the_faults_name(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    body = "    retry: {max_attempts: 1}\n    timeouts: {attempt: 1s}\n"
    with running(tmp_path, rules(server.url, body, more=tracing("spans"))) as hr:
        server.next(Silence(), Answer(404))
        with pytest.raises(requests.Timeout):
            hr.upstream("billing").get("/a")
        hr.upstream("billing").get("/a")

    silent, missing = spans.clients()
    assert (attributes(silent)["error.type"], is_error(silent)) == ("timeout", True)
    assert "http.response.status_code" not in attributes(silent)
    # To a client 4xx is an error, say the conventions; to the circuit it is none.
    assert (attributes(missing)["error.type"], is_error(missing)) == ("404", True)


def test_an_attempt_that_got_no_connection_is_a_span_too(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    body = "    pool: {max_connections: 1, when_full: reject}\n"
    with running(tmp_path, rules(server.url, body, more=tracing("spans"))) as hr:
        handle = hr.upstream("billing")
        held = handle.get("/a", stream=True)
        spans.clear()
        with pytest.raises(headrace.PoolRejected):
            handle.get("/a")
        held.close()

    (span,) = spans.clients()
    assert (attributes(span)["error.type"], is_error(span)) == ("pool_rejected", True)


def test_a_transition_is_told_on_the_span_of_the_attempt_and_a_refusal_on_the_current_one(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(Answer(500))
    with running(tmp_path, rules(server.url, TRIPS_AT_ONCE, more=tracing("spans"))) as hr:
        hr.upstream("billing").get("/a")
        with op("refused"), pytest.raises(headrace.CircuitOpenError):
            hr.upstream("billing").get("/a")

    *before, last = spans.clients()  # the refused call made no attempt
    assert [events(span, "headrace.breaker.transition") for span in before] == [[], []]
    assert len(events(last, "headrace.breaker.transition")) == 1
    assert attributes(last)["headrace.breaker.state"] == "open"
    assert len(events(spans.one("refused"), "headrace.breaker.refused")) == 1
    assert is_error(spans.one("refused"))


def test_an_interrupted_attempt_ends_its_span(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    class Interrupting(requests.adapters.HTTPAdapter):
        def build_response(self, *args: Any) -> requests.Response:  # during the attempt
            raise KeyboardInterrupt

    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))), requests.Session() as session:
        session.mount("http://", Interrupting())
        with op(), pytest.raises(KeyboardInterrupt):
            session.get(f"{server.url}/a")

    assert [span.name for span in spans.ended()] == ["GET", "op"]
    (span,) = spans.clients()
    assert (attributes(span)["error.type"], is_error(span)) == ("cancelled", True)
    assert attributes(spans.one("op"))["error.type"] == "cancelled"


def test_a_call_during_an_attempt_is_a_span_below_it(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    class WithToken(requests.adapters.HTTPAdapter):
        def add_headers(self, request: Any, **kw: Any) -> None:  # during the attempt
            request.headers["Authorization"] = hr.upstream("billing").get("/token").text

    with (
        running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr,
        requests.Session() as session,
    ):
        session.mount("http://", WithToken())
        session.get(f"{server.url}/a")

    token, call = spans.ended()
    assert [attributes(span)["url.full"] for span in (token, call)] == [
        f"{server.url}/token",
        f"{server.url}/a",
    ]
    assert token.parent is not None
    assert token.parent == call.context


def test_a_method_that_the_conventions_do_not_know_is_no_name(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr:
        hr.upstream("billing").request("PROPFIND", "/a")

    (span,) = spans.clients()
    assert span.name == "HTTP"
    assert attributes(span)["http.request.method"] == "_OTHER"
    assert attributes(span)["http.request.method_original"] == "PROPFIND"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param("http://a/b", "http://a/b", id="nothing to hide"),
        pytest.param("http://a/b?", "http://a/b?", id="an empty query"),
        pytest.param("http://u:p@a:1/b", "http://REDACTED:REDACTED@a:1/b", id="credentials"),
        pytest.param("http://u@a", "http://REDACTED:REDACTED@a", id="a user, no path"),
        pytest.param("http://a/@b/c@d", "http://a/@b/c@d", id="an @ of the path"),
        pytest.param("http://[::1]:1/b?t=1#f", "http://[::1]:1/b?t=REDACTED", id="IPv6 and a fragment"),
        pytest.param("http://a/?a=1&b=&c", "http://a/?a=REDACTED&b=REDACTED&REDACTED", id="a query"),
        pytest.param("http://a/?u=http://x:y@z/", "http://a/?u=REDACTED", id="a URL in the query"),
    ],
)
def test_a_url_is_shown_without_credentials_and_values(url: str, shown: str) -> None:
    """failures.md 52."""
    assert redacted(url) == shown


# --- Beside the instrumentations ------------------------------------------------------------------------


@contextmanager
def instrumented(*instrumentors: Any) -> Iterator[None]:
    for instrumentor in instrumentors:
        instrumentor.instrument()
    try:
        yield
    finally:
        for instrumentor in reversed(instrumentors):
            instrumentor.uninstrument()


INSTRUMENTORS: dict[str, list[Any]] = {
    "requests": [RequestsInstrumentor()],
    "urllib3": [URLLib3Instrumentor()],
    "both": [RequestsInstrumentor(), URLLib3Instrumentor()],
}


@ON_EACH
@pytest.mark.parametrize("mode", ["annotate", "spans"])
@pytest.mark.parametrize("who", INSTRUMENTORS)
@pytest.mark.parametrize("order", ["headrace first", "instrumentation first"])
def test_no_client_span_is_doubled_by_an_instrumentation(
    order: str, who: str, mode: str, call: Surface, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.next(Answer(503))
    governed = running(tmp_path, rules(server.url, FAST, more=tracing(mode)))
    theirs = instrumented(*INSTRUMENTORS[who])
    outer: AbstractContextManager[Any]
    outer, inner = (governed, theirs) if order == "headrace first" else (theirs, governed)
    with outer as one, inner as other, op():
        hr = one or other
        assert isinstance(hr, headrace.Headrace)
        call(hr, server.url)

    clients = spans.clients()
    ids = {span.context.span_id for span in clients if span.context}
    assert all(span.parent is None or span.parent.span_id not in ids for span in clients), "one in another"
    assert len(server.requests) == 2
    if clients:
        # What reaches the upstream names a span that was exported, the one that stands for this attempt.
        sent = [request.header("traceparent") for request in server.requests]
        if len(clients) == 2:
            assert sent == [traceparent(span) for span in clients]
        else:
            assert sent == [traceparent(clients[0])] * 2
    if who != "urllib3" and call.library == "requests":
        assert len(clients) == 1  # theirs, around the call with its retries
        assert len(events(clients[0], "headrace.retry")) == 1
        assert attributes(clients[0])["headrace.upstream"] == "billing"
    elif who != "requests" and call is MANAGER:
        assert len(clients) == 1  # theirs, around the call, too: stock's urlopen
        assert attributes(clients[0])["http.request.resend_count"] == 1
    elif mode == "spans":
        assert len(clients) == 2  # ours, around what theirs would have been
        assert attributes(clients[1])["http.request.resend_count"] == 1
    else:
        assert len(clients) == (0 if who == "requests" else 2)  # theirs, per attempt


def test_a_refusal_keeps_its_words_where_urllib3_is_instrumented(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    server.always(Answer(500))
    with running(tmp_path, rules(server.url, TRIPS_AT_ONCE, more=tracing("annotate"))) as hr:
        hr.upstream("billing").get("/a")
        with instrumented(URLLib3Instrumentor()), pytest.raises(headrace.CircuitOpenError):
            urllib3.PoolManager().request("GET", f"{server.url}/a")

    (span,) = spans.clients()
    assert "circuit open for" in (span.status.description or "")
    assert len(events(span, "headrace.breaker.refused")) == 1


def test_where_http_instrumentation_is_suppressed_no_span_is_made(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr:
        with op(), suppress_http_instrumentation():
            hr.upstream("billing").get("/a")

    assert [span.name for span in spans.ended()] == ["op"]
    assert attributes(spans.one("op"))["headrace.upstream"] == "billing"


# --- On the wire ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["annotate", "spans"])
@across(REQUESTS, URLOPEN)
def test_a_context_that_the_call_set_itself_stays(
    call: Surface, mode: str, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    own = {"Traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    with running(tmp_path, rules(server.url, FAST, more=tracing(mode))) as hr, op():
        context.attach(baggage.set_baggage("user", "7"))
        call(hr, server.url, headers=own)

    names = [name.lower() for name, _ in server.requests[0].headers]
    assert server.requests[0].header("traceparent") == own["Traceparent"]
    assert (names.count("traceparent"), "tracestate" in names, "baggage" in names) == (1, False, False)


def test_the_propagator_is_the_applications(
    server: FaultServer, spans: Spans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", OwnFormat())
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr, op():
        hr.upstream("billing").get("/a")

    (span,) = spans.clients()
    assert span.context is not None
    assert server.requests[0].header("x-own") == trace.format_span_id(span.context.span_id)
    assert server.requests[0].header("traceparent") is None


def test_calls_on_other_threads_belong_to_the_trace_with_propagate(
    server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("spans"))) as hr:
        with op():
            thread = threading.Thread(target=headrace.propagate(lambda: hr.upstream("billing").get("/a")))
            thread.start()
            thread.join()

    (span,) = spans.clients()
    assert span.parent is not None
    assert span.parent == spans.one("op").context


# --- What it costs --------------------------------------------------------------------------------------


def python_calls(act: Callable[[], object]) -> int:
    """Python-level calls that *act* makes, once it is warm; the least of a few times, for some come with the clock."""
    counts = []
    made = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal made
        made += event == "call"

    for _ in range(8):
        made = 0
        sys.setprofile(count)
        try:
            act()
        finally:
            sys.setprofile(None)
        counts.append(made)
    return min(counts)


def test_off_tells_nothing(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("off"))) as hr, op():
        hr.upstream("billing").get("/a")

    (span,) = spans.ended()
    assert attributes(span) == {}
    assert server.requests[0].header("traceparent") is None


def test_an_edit_switches_it_on(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    with running(tmp_path, rules(server.url, FAST, more=tracing("off"))) as hr:
        handle = hr.upstream("billing")
        handle.get("/a")
        assert spans.ended() == []
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, FAST, more=tracing("spans")))
        hr.reload()
        handle.get("/a")

    assert len(spans.clients()) == 1


@pytest.mark.parametrize(
    ("around", "most"),
    [
        pytest.param(nullcontext, 0, id="no span: nothing at all"),
        # Two thirds of them are the propagator's and http.client's, which sends one header more.
        pytest.param(
            lambda: TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("op"),
            60,
            id="a span that does not record: its context travels",
        ),
        pytest.param(op, 110, id="a recording span: the SDK writes attributes"),
    ],
)
def test_a_call_that_succeeds_at_once_pays_for_tracing_in_python_calls(
    around: Callable[[], AbstractContextManager[Any]],
    most: int,
    server: FaultServer,
    spans: Spans,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []
    if most:  # a call within a span goes the long way; what tracing costs it there is asked
        monkeypatch.setattr(handles, "quickly", lambda *_: None)
    for mode in ("off", "annotate"):
        with running(tmp_path, rules(server.url, more=tracing(mode))) as hr, around():
            handle = hr.upstream("billing")
            counts.append(python_calls(lambda handle=handle: handle.urlopen("GET", "/a")))

    off, annotate = counts
    assert annotate - off <= most, (off, annotate)


# --- Exemplars ------------------------------------------------------------------------------------------


def exemplars(registry: CollectorRegistry) -> list[Any]:
    """(upper bound, exemplar) of the latency buckets that have one, out of the OpenMetrics text."""
    text = generate_latest(registry).decode()
    return [
        (sample.labels["le"], sample.exemplar)
        for family in text_string_to_metric_families(text)
        if family.name == "headrace_request_duration_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    ]


@pytest.mark.parametrize("mode", ["annotate", "spans"])
def test_a_latency_bucket_shows_the_latest_sampled_trace_in_it(
    mode: str, server: FaultServer, spans: Spans, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, FAST, more=tracing(mode)))
    server.at("/slow", Answer(delay_s=0.3))
    with headrace.Headrace(file, registry=registry) as hr:
        handle = hr.upstream("billing")
        with op("slow"):
            handle.get("/slow")
        with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("op"):
            handle.get("/slow")
        found = exemplars(registry)

    ((bound, exemplar),) = found
    slow = spans.one("slow").context
    assert slow is not None
    assert exemplar.labels == {
        "trace_id": trace.format_trace_id(slow.trace_id),
        "span_id": trace.format_span_id(slow.span_id),
    }
    assert 0.3 <= exemplar.value <= float(bound)
    assert exemplar.timestamp is not None


def test_no_exemplar_without_a_trace(server: FaultServer, spans: Spans, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, FAST, more=tracing("annotate")))
    with headrace.Headrace(file, registry=registry) as hr:
        hr.upstream("billing").get("/a")
        assert exemplars(registry) == []


# --- Without OpenTelemetry ------------------------------------------------------------------------------

WITHOUT = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "opentelemetry":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
"""


def run_without_opentelemetry(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(WITHOUT) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("mode", ["annotate", "spans", "off"])
def test_without_opentelemetry_nothing_of_it_is_imported_and_calls_go_on(
    mode: str, server: FaultServer, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, FAST, more=tracing(mode)))
    done = run_without_opentelemetry(
        """
        import logging, headrace, requests
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
        with headrace.install(sys.argv[1]):
            print(requests.get(sys.argv[2]).headrace.reason.value)
        print([name for name in sys.modules if name.startswith("opentelemetry")])
        """,
        str(file),
        server.url,
    )
    assert done.stderr == ""
    *warned, ended, imported = done.stdout.splitlines()
    assert (ended, imported) == ("success", "[]")
    if mode == "spans":
        (line,) = warned
        assert "opentelemetry-api, which is not installed" in line
    else:
        assert warned == []


def test_an_opentelemetry_that_cannot_be_imported_costs_the_traces_and_not_the_app(
    server: FaultServer, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, FAST))
    code = (
        "import sys, headrace, requests\n"
        "with headrace.install(sys.argv[1]): print(requests.get(sys.argv[2]).headrace.reason.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), server.url],
        env={**os.environ, "OTEL_PROPAGATORS": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "success"
    assert "nothing is traced: opentelemetry cannot be imported" in done.stderr
    assert "nonsense" in done.stderr


def test_opentelemetry_is_not_imported_where_tracing_is_off(server: FaultServer, tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, FAST, more=tracing("off")))
    code = (
        "import sys, headrace, requests\n"
        "with headrace.install(sys.argv[1]): requests.get(sys.argv[2])\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_check_says_that_spans_need_opentelemetry_and_passes(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("http://billing.internal", more="telemetry: {tracing: spans}\n"))
    done = run_without_opentelemetry(
        "from headrace.cli import main\nsys.exit(main(['check', sys.argv[1]]))", str(file)
    )
    assert done.returncode == 0
    assert "telemetry.tracing" in done.stdout + done.stderr
    assert "install opentelemetry-api" in done.stdout + done.stderr
