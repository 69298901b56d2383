"""What an inbound request brings along, read by both middlewares alike."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from headrace.middleware.admission import deadline_at
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.wsgi import WSGIMiddleware
from headrace.policy.deadline_header import allowed_s
from headrace.policy.plan import InboundDeadlinePlan, PropagatePlan
from headrace.runtime.inbound import Inbound, inbound_var
from headrace.runtime.service import ServiceCounters
from support.gateways import CONFIGURATION, FakeHeadrace, Headers, Seen, asgi_scope, call_asgi
from support.plans import upstream_plan

from .conftest import Serve

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
UPSTREAM = upstream_plan()


def headrace_with(
    deadline: InboundDeadlinePlan | None = None, *, passes_trace: bool = True, **request_id: Any
) -> FakeHeadrace:
    service = CONFIGURATION.service
    propagate = PropagatePlan(request_id=True, retry_sequence=True, traceparent=passes_trace)
    return FakeHeadrace(
        replace(
            CONFIGURATION,
            service=replace(service, deadline=deadline, request_id=replace(service.request_id, **request_id)),
            upstreams={"billing": replace(UPSTREAM, propagate=propagate)},
        )
    )


def deadline(
    header: str | None = "X-Request-Timeout", *, default_s: float | None = None, max_s: float = 60.0
) -> InboundDeadlinePlan:
    return InboundDeadlinePlan(header=header, default_s=default_s, max_s=max_s)


class Quiet(WSGIRequestHandler):
    """werkzeug's, without a word."""

    def log(self, *_: Any) -> None: ...


class Handler:
    """Notes the inbound requests that it sees."""

    def __init__(self) -> None:
        self.seen: list[Inbound] = []

    def __call__(self, _: Seen) -> tuple[int, Headers, list[bytes]]:
        inbound = inbound_var.get()
        assert inbound is not None
        self.seen.append(inbound)
        return 200, [], [b"fine"]


def left_s(inbound: Inbound) -> float | None:
    return None if inbound.deadline_at is None else inbound.deadline_at - time.monotonic()


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "sent", "expected_s"),
    [
        pytest.param(deadline(), {"X-Request-Timeout": "2.5"}, 2.5, id="seconds"),
        pytest.param(deadline(), {"x-request-TIMEOUT": "2500ms"}, 2.5, id="milliseconds"),
        pytest.param(deadline("grpc-timeout"), {"grpc-timeout": "3S"}, 3.0, id="gRPC"),
        pytest.param(deadline("Grpc-Timeout"), {"grpc-timeout": "3S"}, 3.0, id="gRPC, written with capitals"),
        pytest.param(deadline(), {"X-Request-Timeout": "3S"}, None, id="gRPC's units elsewhere"),
        pytest.param(deadline(), {"X-Request-Timeout": "600"}, 60.0, id="cut to max"),
        pytest.param(
            deadline(default_s=30.0), {"X-Request-Timeout": "45"}, 45.0, id="longer than the default"
        ),
        pytest.param(deadline(), {}, None, id="absent"),
        pytest.param(deadline(default_s=30.0), {}, 30.0, id="absent: default"),
        pytest.param(
            deadline(None, default_s=30.0), {"X-Request-Timeout": "1"}, 30.0, id="no header is read"
        ),
        pytest.param(deadline(default_s=30.0), {"X-Request-Timeout": "soon"}, 30.0, id="garbage: default"),
        pytest.param(deadline(), {"X-Request-Timeout": "-3"}, None, id="negative"),
        pytest.param(deadline(), {"X-Request-Timeout": "nan"}, None, id="nan"),
        pytest.param(deadline(), {"X-Request-Timeout": "9" * 10_240}, None, id="10 KB"),
        pytest.param(deadline(), {"X-Request-Timeout": "\xb2"}, None, id="not ASCII"),
        pytest.param(None, {"X-Request-Timeout": "1"}, None, id="not configured"),
    ],
)
def test_the_deadline_of_a_request(
    plan: InboundDeadlinePlan | None, sent: dict[str, str], expected_s: float | None, serve: Serve
) -> None:
    handler = Handler()
    assert serve(handler, headrace_with(plan)).request(sent).status == 200
    left = left_s(handler.seen[0])
    if expected_s is None:
        assert left is None
    else:
        assert left is not None
        assert expected_s - 5.0 < left <= expected_s  # however slow this machine is today


@pytest.mark.parametrize("default_s", [None, 2.0])
@pytest.mark.parametrize("said_s", [None, 1.0, 3.0, 90.0])
def test_the_middlewares_allow_what_the_policy_and_the_simulation_allow(
    said_s: float | None, default_s: float | None
) -> None:
    """The rule is written out in `deadline_at`, for a call per request is counted."""
    plan = deadline(default_s=default_s, max_s=3.0)
    values = [] if said_s is None else [f"{said_s:g}"]
    allowed = allowed_s(plan, said_s)
    expected = None if allowed is None else 100.0 + allowed
    assert deadline_at(plan, values, ServiceCounters(), 100.0) == expected


def test_a_header_that_says_nothing_is_counted_and_an_absent_one_is_not(serve: Serve) -> None:
    headrace = headrace_with(deadline())
    gateway = serve(Handler(), headrace)
    gateway.request({"X-Request-Timeout": "soon"})
    gateway.request({})
    gateway.request({"X-Request-Timeout": "1"})
    assert headrace.service.inbound_deadlines == {"unreadable": 1}


def test_two_deadlines_contradict_each_other() -> None:
    """Under WSGI the server has joined them by a comma, which is garbage as well."""
    handler = Handler()
    headrace = headrace_with(deadline())
    scope = asgi_scope()
    scope["headers"] = [(b"x-request-timeout", b"1"), (b"x-request-timeout", b"50")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handler(Seen(None, "GET"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    asyncio.run(call_asgi(ASGIMiddleware(app, headrace=headrace), scope))  # type: ignore[arg-type]
    assert handler.seen[0].deadline_at is None
    assert headrace.service.inbound_deadlines == {"unreadable": 1}


@pytest.mark.parametrize("past", ["0", "0.000", "0ms", "-0.000"])
def test_a_request_that_comes_too_late_is_answered_with_504_before_the_application_runs(
    past: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    handler, headrace = Handler(), headrace_with(deadline())
    gateway = serve(handler, headrace)
    for _ in range(8):
        gateway.request({"X-Request-Timeout": "5"})

    answers = [
        gateway.request({"X-Request-Timeout": past, "X-Request-ID": "mine"}, method=method)
        for method in ("GET", "HEAD")
    ]

    assert [answer.status for answer in answers] == [504, 504]
    assert len(handler.seen) == 8
    problem = json.loads(answers[0].body)
    assert problem["type"] == "urn:headrace:problem:deadline_past"
    assert (problem["status"], problem["request_id"]) == (504, "mine")
    assert answers[1].body == b""
    for answer in answers:
        assert answer.all("Content-Type") == ["application/problem+json"]
        assert answer.all("X-Request-ID") == ["mine"]
        assert answer.all("Content-Length") == [str(len(answers[0].body))]
    assert headrace.service.statuses == [200] * 8 + [504, 504]
    assert headrace.service.inbound_deadlines == {"refused": 2}
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["deadline.refused"]
    assert inbound_var.get() is None


def test_when_every_deadline_is_past_one_in_five_is_refused_and_the_rest_is_served_without_it(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock or a unit is wrong somewhere: refusing all of them would be the outage."""
    caplog.set_level(logging.INFO, "headrace")
    handler, headrace = Handler(), headrace_with(deadline(default_s=30.0))
    gateway = serve(handler, headrace)

    statuses = [gateway.request({"X-Request-Timeout": "0"}).status for _ in range(20)]

    assert statuses.count(504) == 4
    assert {inbound.deadline_at is not None and (left_s(inbound) or 0) > 20 for inbound in handler.seen} == {
        True
    }
    assert headrace.service.inbound_deadlines == {"refused": 4, "excused": 16}
    events = [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records]
    assert events == [("INFO", "deadline.refused"), ("WARNING", "deadline.distrusted")]


def test_a_lone_request_that_comes_too_late_is_served_and_nobody_is_alarmed(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    handler, headrace = Handler(), headrace_with(deadline())
    assert serve(handler, headrace).request({"X-Request-Timeout": "0"}).status == 200
    assert handler.seen[0].deadline_at is None
    assert headrace.service.inbound_deadlines == {"excused": 1}
    assert caplog.records == []


def test_a_jump_of_the_wall_clock_changes_no_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Handler()
    gateway = serve(handler, headrace_with(deadline()))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400.0)
    gateway.request({"X-Request-Timeout": "10"})
    monkeypatch.setattr(time, "time", lambda: real() - 86_400.0)
    left = left_s(handler.seen[0])
    assert left is not None
    assert 5.0 < left <= 10.0


def test_what_starting_took_is_the_callers_time_too(serve: Serve) -> None:
    handler, headrace = Handler(), headrace_with(deadline())
    start = headrace.start

    def slow() -> None:
        time.sleep(0.2)
        start()

    headrace.start = slow  # type: ignore[method-assign]
    serve(handler, headrace).request({"X-Request-Timeout": "10"})
    left = left_s(handler.seen[0])
    assert left is not None
    assert left <= 9.8


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        pytest.param({"traceparent": PARENT}, (("traceparent", PARENT),), id="traceparent"),
        pytest.param(
            {"Traceparent": PARENT, "Tracestate": "a=1, b=2"},
            (("traceparent", PARENT), ("tracestate", "a=1,b=2")),
            id="with a tracestate",
        ),
        pytest.param({"tracestate": "a=1"}, (), id="a tracestate alone"),
        pytest.param({"traceparent": "00-x-y-z", "tracestate": "a=1"}, (), id="an invalid traceparent"),
        pytest.param(
            {"traceparent": PARENT, "tracestate": "nonsense"}, (("traceparent", PARENT),), id="bad tracestate"
        ),
        pytest.param({"traceparent": PARENT + "\r\nX-Evil: 1"}, (), id="CR LF"),
        pytest.param({"traceparent": "0" * 10_240}, (), id="10 KB"),
        pytest.param({}, (), id="none"),
    ],
)
def test_the_trace_of_a_request(
    sent: dict[str, str], passed: tuple[tuple[str, str], ...], serve: Serve
) -> None:
    handler = Handler()
    serve(handler, headrace_with()).request(sent)
    assert handler.seen[0].trace == passed


def test_several_tracestate_headers_are_one_and_two_traceparents_are_none() -> None:
    """As ASGI has them; a WSGI server has joined both by commas, which the cases above cover."""
    handler = Handler()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handler(Seen(None, "GET"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    middleware = ASGIMiddleware(app, headrace=headrace_with())  # type: ignore[arg-type]
    for parents in (1, 2):
        scope = asgi_scope()
        scope["headers"] = [(b"tracestate", b"a=1"), *[(b"traceparent", PARENT.encode())] * parents]
        scope["headers"].append((b"tracestate", b"b=2"))
        asyncio.run(call_asgi(middleware, scope))
    one, two = handler.seen
    assert one.trace == (("traceparent", PARENT), ("tracestate", "a=1,b=2"))
    assert two.trace == ()


def test_nobody_reads_a_trace_that_no_upstream_gets(serve: Serve) -> None:
    handler = Handler()
    serve(handler, headrace_with(passes_trace=False)).request({"traceparent": PARENT})
    assert handler.seen[0].trace == ()


def test_the_request_id_may_be_the_trace_id(serve: Serve) -> None:
    handler = Handler()
    gateway = serve(handler, headrace_with(is_trace_id=True, passes_trace=False))
    answer = gateway.request({"traceparent": PARENT, "X-Request-ID": "theirs"})
    assert answer.all("X-Request-ID") == [TRACE_ID]
    assert handler.seen[0].request_id == TRACE_ID


@pytest.mark.parametrize("parent", [None, "00-nonsense", PARENT.upper(), PARENT.replace(TRACE_ID, "0" * 32)])
def test_without_a_valid_trace_the_id_is_made(parent: str | None, serve: Serve) -> None:
    headers = {"X-Request-ID": "theirs"} | ({} if parent is None else {"traceparent": parent})
    (made,) = serve(Handler(), headrace_with(is_trace_id=True)).request(headers).all("X-Request-ID")
    assert len(made) == 32
    assert set(made) <= set("0123456789abcdef")
    assert made not in ("theirs", "0" * 32)


def test_an_id_of_10_kb_is_replaced(serve: Serve) -> None:
    """failures.md 45."""
    (made,) = serve(Handler(), headrace_with()).request({"X-Request-ID": "x" * 10_240}).all("X-Request-ID")
    assert len(made) == 32


# --- blanks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", " ", "\t "])
@pytest.mark.parametrize("behind", ["", " ", "\t", " \t \t "])
def test_blanks_around_a_header_are_no_part_of_its_value(before: str, behind: str, serve: Serve) -> None:
    """failures.md 58. uvicorn with httptools and werkzeug leave in what comes behind."""
    sent = {"X-Request-ID": "abc", "traceparent": PARENT, "tracestate": "a=1", "X-Request-Timeout": "2.5"}
    handler, headrace = Handler(), headrace_with(deadline())
    padded = {name: f"{before}{value}{behind}" for name, value in sent.items()}
    assert serve(handler, headrace).request(padded).all("X-Request-ID") == ["abc"]
    (inbound,) = handler.seen
    assert inbound.request_id == "abc"
    assert inbound.trace == (("traceparent", PARENT), ("tracestate", "a=1"))
    assert 0.0 < (left_s(inbound) or 0.0) <= 2.5
    assert headrace.service.inbound_deadlines == {}


def test_blanks_behind_grpcs_deadline_and_a_trace_that_is_the_id(serve: Serve) -> None:
    """failures.md 58."""
    handler = Handler()
    gateway = serve(handler, headrace_with(deadline("grpc-timeout"), is_trace_id=True))
    answer = gateway.request({"grpc-timeout": "3S ", "traceparent": PARENT + "\t"})
    assert answer.all("X-Request-ID") == [TRACE_ID]
    assert 0.0 < (left_s(handler.seen[0]) or 0.0) <= 3.0


@pytest.mark.parametrize("value", ["", " ", " \t "])
def test_a_value_of_nothing_but_blanks_is_empty(value: str, serve: Serve) -> None:
    """failures.md 58."""
    names = ("X-Request-ID", "traceparent", "tracestate", "X-Request-Timeout")
    handler, headrace = Handler(), headrace_with(deadline())
    (made,) = serve(handler, headrace).request(dict.fromkeys(names, value)).all("X-Request-ID")
    (inbound,) = handler.seen
    assert inbound.request_id == made
    assert len(made) == 32
    assert (inbound.trace, inbound.deadline_at) == ((), None)
    assert headrace.service.inbound_deadlines == {"unreadable": 1}


@pytest.mark.parametrize("within", ["a b", "a\tb", " a b "])
def test_a_blank_within_an_id_still_makes_it_unfit(within: str, serve: Serve) -> None:
    (made,) = serve(Handler(), headrace_with()).request({"X-Request-ID": within}).all("X-Request-ID")
    assert len(made) == 32


def test_a_server_that_leaves_blanks_in_loses_nothing() -> None:
    """failures.md 58. werkzeug's, over a real socket."""
    handler, headrace = Handler(), headrace_with(deadline())

    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert environ["HTTP_X_REQUEST_ID"] == "abc \t"
        handler(Seen(None, "GET"))
        start_response("200 OK", [("Content-Length", "4")])
        return [b"fine"]

    middleware = WSGIMiddleware(app, headrace=headrace)  # type: ignore[arg-type]
    server = make_server("127.0.0.1", 0, middleware, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as client:
            lines = ["GET / HTTP/1.1", "Host: x", "X-Request-ID: abc \t", f"traceparent: {PARENT} "]
            lines += ["X-Request-Timeout: 2.5\t", "Connection: close", "", ""]
            client.sendall("\r\n".join(lines).encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert b"X-Request-ID: abc\r\n" in answer
    (inbound,) = handler.seen
    assert (inbound.request_id, inbound.trace) == ("abc", (("traceparent", PARENT),))
    assert 0.0 < (left_s(inbound) or 0.0) <= 2.5
