"""The public face as code that somebody writes under `mypy --strict` and pyright's `strict`. Checked, never run.

`./tests/typing/check` says how. What must not pass is in `wrong.py`.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type
from wsgiref.simple_server import make_server

import pytest
import requests
import uvicorn
from flask import Flask
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from urllib3.response import BaseHTTPResponse

import headrace
from headrace.testing import (
    CallResult,
    Moment,
    ScriptExhausted,
    SimulatedUpstream,
    Simulation,
    Timeline,
    Traffic,
    VirtualClock,
    isolated,
)

if TYPE_CHECKING:
    from headrace.errors import Problem

# Setting up


def instances(registry: CollectorRegistry) -> None:
    assert_type(headrace.Headrace(), headrace.Headrace)
    headrace.Headrace("upstreams.yaml")
    headrace.Headrace(Path("upstreams.yaml"), registry=registry)
    files: Sequence[str | Path] = ["base.yaml", Path("mine.yaml")]
    headrace.Headrace(files)
    assert_type(headrace.install("upstreams.yaml", registry=registry), headrace.Headrace)
    with headrace.install() as hr:
        assert_type(hr, headrace.Headrace)
    with headrace.Headrace(("a.yaml", "b.yaml")) as hr:
        assert_type(hr, headrace.Headrace)


def lifecycle(hr: headrace.Headrace) -> str:
    assert_type(hr.start(), None)
    result = hr.reload()
    if result == "applied" or result == "unchanged" or result == "held":
        hr.close()
    status: dict[str, Any] = hr.status()
    assert_type(hr.files, tuple[str, ...])
    assert_type(hr.started_in, int)
    assert_type(hr.snapshot.digest, str)
    assert_type(hr.snapshot.upstream("billing").plan.name, str)
    names: list[str] = sorted(hr.snapshot.upstreams)
    return f"{status['digest']} {names} {hr!r}"


def found() -> headrace.Headrace | None:
    try:
        return headrace.current()
    except LookupError:
        return None


# Calls by name


def by_name(hr: headrace.Headrace) -> None:
    billing: headrace.Handle = hr.upstream("billing")
    assert_type(billing.name, str)
    assert_type(billing.get("/invoices/7"), requests.Response)
    assert_type(billing.get("/invoices", params={"page": 2}, timeout=3, stream=True), requests.Response)
    assert_type(billing.request("GET", "/invoices/7", headers={"Accept": "text/plain"}), requests.Response)
    assert_type(billing.post("/invoices", json={"amount": 12}), requests.Response)
    assert_type(billing.post("/invoices", b"raw"), requests.Response)
    assert_type(billing.put("/invoices/7", data={"amount": "12"}), requests.Response)
    assert_type(billing.patch("/invoices/7", data="text"), requests.Response)
    assert_type(billing.delete("/invoices/7"), requests.Response)
    assert_type(billing.head("/invoices/7"), requests.Response)
    assert_type(billing.options("/invoices"), requests.Response)
    answer = billing.urlopen(
        "PUT", "/invoices/7", body=b"{}", headers={"Accept": "*/*"}, timeout=1.5, preload_content=False
    )
    assert_type(answer, BaseHTTPResponse)
    assert_type(answer.status, int)


async def awaited(hr: headrace.Headrace) -> None:
    billing: headrace.AwaitedHandle = hr.upstream("billing").aio
    assert_type(billing.name, str)
    answer = await billing.get("/invoices/7", params={"page": 2}, headers={"Accept": "*/*"}, timeout=3)
    assert_type(answer, headrace.AwaitedAnswer)
    assert_type(answer.raise_for_status(), headrace.AwaitedAnswer)
    assert_type(answer.status_code, int)
    assert_type(answer.headers["Content-Type"], str)
    assert_type(answer.content, bytes)
    assert_type(answer.text, str)
    assert_type(answer.encoding, str)
    assert_type(answer.url, str)
    assert_type(answer.http_version, str)
    assert_type(answer.reason_phrase, str)
    assert_type(answer.elapsed.total_seconds(), float)
    assert_type(answer.headrace, headrace.Record)
    assert (answer.is_success, answer.is_error, answer.is_closed) == (True, False, True)
    assert answer.json() == {}
    await billing.request("GET", "/invoices/7")
    await billing.post("/invoices", json={"amount": 12})
    await billing.put("/invoices/7", data={"amount": "12"})
    await billing.patch("/invoices/7", content=b"raw")
    await billing.delete("/invoices/7")
    await billing.head("/invoices/7")
    await billing.options("/invoices")
    async with billing.stream("GET", "/export") as export:
        assert_type(export, headrace.AwaitedAnswer)
        async for piece in export.aiter_bytes(1024):
            assert_type(piece, bytes)
        async for text in export.aiter_text():
            assert_type(text, str)
        async for line in export.aiter_lines():
            assert_type(line, str)
        assert_type(await export.aread(), bytes)
        await export.aclose()


async def what_an_awaited_call_raises(billing: headrace.AwaitedHandle) -> object:
    try:
        return (await billing.get("/invoices/7")).raise_for_status()
    except headrace.StatusError as error:
        return error.response
    except (headrace.TransportTimeout, headrace.TransportBroken) as error:
        return error.upstream
    except headrace.TransportError as error:
        return error.fault


def suspended(hr: headrace.Headrace) -> None:
    assert_type(hr.suspend(), None)


def reset(hr: headrace.Headrace) -> None:
    assert_type(hr.upstream("billing").reset(), None)


def by_url(hr: headrace.Headrace) -> requests.Response:
    with hr.session() as session:
        assert_type(session, requests.Session)
        session.headers["Accept"] = "application/json"
        return session.get("https://billing.internal/invoices/7")


class Stub:
    def get_invoice(self, number: int, *, currency: str = "EUR") -> bytes:
        return f"{number} {currency}".encode()


def not_found(error: Exception) -> bool:
    return "404" in str(error)


def protected(billing: headrace.Handle, stub: Stub) -> None:
    get_invoice = billing.protect(stub.get_invoice)
    assert_type(get_invoice(7, currency="CHF"), bytes)
    assert_type(billing.protect(stub.get_invoice, failure_on=OSError)(7), bytes)
    assert_type(billing.protect(len, failure_on=(OSError, ValueError), success_on=not_found)([]), int)

    @billing.protect
    def plain(number: int) -> str:
        return str(number)

    @billing.protect(failure_on=OSError, success_on=LookupError)
    def with_arguments(number: int, /, *rest: str) -> list[str]:
        return [str(number), *rest]

    assert_type(plain(7), str)
    assert_type(with_arguments(7, "a"), list[str])


# What became of a call


def record(answer: requests.Response, raw: BaseHTTPResponse, error: BaseException) -> None:
    assert_type(headrace.record_of(answer), headrace.Record | None)
    assert_type(headrace.record_of(raw), headrace.Record | None)
    record = headrace.record_of(error)
    if record is None:
        return
    assert_type(record.upstream, str)
    assert_type(record.method, str)
    assert_type(record.request_id, str | None)
    assert_type(record.retry_after_s, float | None)
    assert_type(record.config_digest, str)
    assert_type(record.fallback_for, str | None)
    assert_type(record.why, str)
    assert_type(record.notes(), list[str])
    reason: str = record.reason
    denied: str | None = record.denied
    fault: str | None = record.fault
    assert_type(record.timed_out, bool)
    if record.reason == "budget" or record.denied == "method":
        print(reason, denied, fault, record.reason.value)
    if record.reason is headrace.EndReason.BUDGET:
        print(record.denied)
    for attempt in record.attempts:
        told(attempt)
    assert_type(pickle.loads(pickle.dumps(record)), Any)


def told(attempt: headrace.AttemptRecord) -> None:
    assert_type(attempt.started_s, float)
    assert_type(attempt.paused_s, float)
    assert_type(attempt.wait_s, float)
    assert_type(attempt.connect_s, float | None)
    assert_type(attempt.duration_s, float)
    assert_type(attempt.outcome, str)
    assert_type(attempt.status, int | None)
    assert_type(attempt.verdict, str)
    assert_type(attempt.sent, bool)
    assert_type(attempt.retry_seq, int)
    assert_type(attempt.resent, bool)
    assert_type(attempt.played, bool)
    assert_type(attempt.renewed, bool)


def errors(call: Callable[[], requests.Response]) -> float:
    try:
        call()
    except headrace.CircuitOpenError as error:
        assert_type(error.retry_after_s, float)
        return error.retry_after_s
    except headrace.DeadlineExceeded as error:
        assert_type(error.deadline_s, float)
    except headrace.ResponseTooLarge as error:
        assert_type(error.max_bytes, int)
    except headrace.IdentityMismatch as error:
        assert_type(error.offered, tuple[str, ...])
        assert_type(error.wanted, tuple[str, ...])
    except (headrace.PoolTimeout, headrace.PoolRejected, headrace.CallCancelled) as error:
        assert_type(error.upstream, str)
    except headrace.UpstreamError as error:
        assert_type(error.upstream, str)
        assert_type(error.request_id, str | None)
        assert_type(error.attempts, tuple[headrace.AttemptRecord, ...])
    except headrace.UnknownUpstream as error:
        unknown: LookupError = error
        print(unknown)
    except requests.RequestException as error:
        assert_type(headrace.record_of(error), headrace.Record | None)
    except headrace.HeadraceError as error:
        plain: Exception = error
        print(plain)
    return 0.0


def refused(file: str) -> list[str]:
    try:
        headrace.Headrace(file)
    except headrace.ConfigError as error:
        assert_type(error.problems, tuple[Problem, ...])
        assert_type(error.watched, tuple[str, ...])
        return [
            f"{one.file}:{one.line}:{one.column}: {one.path} {one.message} {one.fix}"
            for one in error.problems
        ]
    return []


# Middleware


async def invoice(request: Request) -> Response:
    hr: headrace.Headrace = request.state.headrace
    return JSONResponse({"id": headrace.request_id(), "digest": hr.snapshot.digest})


def asgi(registry: CollectorRegistry, hr: headrace.Headrace) -> None:
    inner = Starlette(
        routes=[Route("/", invoice)], exception_handlers={requests.RequestException: headrace.asgi_problem}
    )
    app = headrace.ASGIMiddleware(inner, "upstreams.yaml")
    headrace.ASGIMiddleware(inner, [Path("a.yaml"), "b.yaml"], registry=registry)
    headrace.ASGIMiddleware(inner, headrace=hr)
    headrace.ASGIMiddleware(app)
    assert_type(app.headrace, headrace.Headrace)
    inner.add_middleware(headrace.ASGIMiddleware, file="upstreams.yaml")
    inner.add_middleware(headrace.ASGIMiddleware, "upstreams.yaml")
    headrace.map_errors(inner)
    Starlette(middleware=[Middleware(headrace.ASGIMiddleware, headrace=hr)], routes=[Mount("/", app=app)])
    uvicorn.run(app)


async def by_hand(request: Request, error: Exception) -> Response:
    assert_type(await headrace.asgi_problem(request, error), Response)
    body, status, headers = headrace.problem(error)
    assert_type(body, bytes)
    assert_type(status, int)
    assert_type(headers, dict[str, str])
    return Response(body, status, headers)


def flask(registry: CollectorRegistry, hr: headrace.Headrace) -> None:
    flask = Flask("orders")
    app = headrace.WSGIMiddleware(flask.wsgi_app, "upstreams.yaml", registry=registry)
    flask.register_error_handler(requests.RequestException, headrace.problem)
    headrace.WSGIMiddleware(flask, headrace=hr)
    headrace.WSGIMiddleware(app)
    assert_type(app.headrace, headrace.Headrace)
    with make_server("", 8000, app) as server:
        server.serve_forever()


# The inbound request


def fetch(number: int, *, page: int = 1) -> str:
    return f"{number} {page}"


def threads() -> None:
    assert_type(headrace.request_id(), str | None)
    assert_type(headrace.propagate(fetch)(7, page=2), str)
    with headrace.PropagatingExecutor(ThreadPoolExecutor(4)) as pool:
        assert_type(pool, headrace.PropagatingExecutor)
        assert_type(pool.submit(fetch, 7, page=2), Future[str])
        assert_type(list(pool.map(fetch, [7, 8])), list[str])


def streamed(answer: requests.Response, raw: BaseHTTPResponse) -> None:
    assert_type(headrace.detach(answer), requests.Response)
    assert_type(headrace.detach(raw), BaseHTTPResponse)


def events(handler: logging.Handler) -> None:
    handler.addFilter(headrace.RequestIdFilter())
    handler.addFilter(headrace.RequestIdFilter("orders", outside="none"))

    def opened(record: logging.LogRecord) -> bool:
        return getattr(record, "event", None) == "breaker.opened"

    logging.getLogger("headrace").addFilter(opened)


# Tests


def played(file: Path) -> None:
    simulation = Simulation(file, env={"TOKEN": "x"}, seed=7)
    Simulation("upstreams.yaml")
    Simulation(["a.yaml", file])
    assert_type(simulation.now_s, float)
    assert_type(simulation.digest, str)
    billing = simulation.upstream("billing")
    assert_type(billing, SimulatedUpstream)
    billing.answers(503, "reset", 200, times=2, takes="80ms", retry_after="2s", body=b"{}")
    billing.always(200, takes="1s")
    billing.always(lambda at_s: 503 if 10 <= at_s < 40 else "timeout")
    with simulation.request(deadline="2s"):
        result = billing.call("POST", replayable=False, keyed=True)
    assert_type(result, CallResult)
    assert_type(result.status, int | None)
    assert_type(result.headrace, headrace.Record)
    assert_type(result.pauses_s, tuple[float, ...])
    assert_type(result.began_s, float)
    assert_type(result.took_s, float)
    assert result.reason == "success"
    simulation.advance("5m")
    found = billing.traffic(every="10ms", times=1000, method="GET")
    assert_type(found, Traffic)
    assert_type((found.calls, found.failed, found.refused), tuple[int, int, int])
    assert_type(found.lost, float)
    assert billing.circuit == "open"
    assert_type(billing.circuit_view.calls, int)
    assert_type(billing.budget_tokens, float)
    assert_type(billing.arrived, int)
    assert_type(billing.unplayed, int)
    assert_type(billing.timeline, Timeline)
    assert billing.transitions == [(0.4, "open"), (2.4, "half_open")]
    for moment in billing.timeline:
        assert_type(moment, Moment)
        assert_type(moment.at_s, float)
        assert_type(moment.what, str)
    with pytest.raises(ScriptExhausted):
        billing.call()


def virtual() -> None:
    clock = VirtualClock(0.0)
    now: Callable[[], float] = clock
    assert_type(clock.advance(1.0), float)
    sleep: Callable[[float], object] = clock.sleep
    sleep(now())
    assert_type(clock.sleeps, list[float])
    with isolated():
        pass


@pytest.mark.headrace("upstreams.yaml", env={"TOKEN": "x"})
def test_an_invoice(headrace_instance: headrace.Headrace) -> None:
    assert headrace_instance.upstream("billing").get("/").status_code == 200


@pytest.fixture
def running(headrace_isolation: headrace.Headrace | None) -> headrace.Headrace:
    assert headrace_isolation is not None
    return headrace_isolation


PUBLIC: Sequence[str] = headrace.__all__
Handler = Callable[[Request, Exception], Awaitable[Response]]
handler: Handler = headrace.asgi_problem
FLASK_HANDLER: Callable[[Exception], tuple[bytes, int, dict[str, str]]] = headrace.problem


def numbers() -> Iterator[bytes]:
    yield b"a body that can be sent once"


def once(billing: headrace.Handle) -> requests.Response:
    return billing.post("/invoices", numbers())
