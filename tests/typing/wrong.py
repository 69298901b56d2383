"""What a strict user is told of: each marked line is an error to both checkers, or the mark itself is one."""

# pyright: reportUnknownMemberType=false
# It comes with each attribute that is not there.

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import requests
from flask import Flask
from starlette.applications import Starlette

import headrace
from headrace.testing import Simulation, VirtualClock

if TYPE_CHECKING:
    from headrace.adapters.handles import Handle


def setting_up(hr: headrace.Headrace) -> None:
    headrace.Headrace(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.Headrace(["a.yaml", 7])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    headrace.Headrace(registry="default")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.install("a.yaml", "b.yaml")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    headrace.start()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    if hr.reload() == "apply":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        hr.stop()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    hr.snapshot = hr.snapshot  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    hr.upstream(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session: str = hr.session()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(session)


def get_invoice(number: int) -> bytes:
    return str(number).encode()


def by_name(billing: Handle) -> None:
    billing.get()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    billing.fetch("/invoices/7")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    billing.post(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.urlopen("GET", "/", b"body")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    billing.urlopen("GET", "/", headers=[("Accept", "*/*")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.get("/").headrace  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    billing.protect(get_invoice)("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.protect("get_invoice")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    billing.protect(get_invoice, failure_on=OSError("this one"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    billing.protect(success_on=404)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]

    @billing.protect(success_on=LookupError)
    def number() -> int:
        return 7

    text: str = number()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(text)


def what_became_of_it(answer: requests.Response, error: headrace.UpstreamError) -> None:
    headrace.record_of(answer).upstream  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    record = headrace.record_of(answer)
    if record is not None:
        record.attempt  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        record.attempts[0].took_s  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        record.attempts[0].status = 200  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        record.denied.value  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        if record.reason == 503:  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
            print(record)
    error.attempts.append(None)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    error.attempts[0].took_s  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    error.retry_after_s  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(error, headrace.DeadlineExceeded):
        error.retry_after_s  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def refused(error: headrace.ConfigError) -> None:
    error.problems[0].text  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    error.problems[0].line = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    where: str = error.problems[0].line  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(where)


def middleware(inner: Starlette, flask: Flask, hr: headrace.Headrace) -> None:
    headrace.ASGIMiddleware(flask.wsgi_app)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.WSGIMiddleware(inner)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.ASGIMiddleware(inner, hr)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.ASGIMiddleware(inner, file="a.yaml", reload=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    headrace.ASGIMiddleware(inner, registry="mine")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.WSGIMiddleware(flask.wsgi_app, registry="mine")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.WSGIMiddleware(flask.wsgi_app, headrace="a.yaml")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.problem("circuit open")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def fetch(number: int) -> str:
    return str(number)


def threads() -> None:
    headrace.propagate(fetch)("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.PropagatingExecutor(4)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.PropagatingExecutor(ThreadPoolExecutor(4)).submit(fetch, "7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    headrace.detach("text")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    headrace.RequestIdFilter(outside=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    length: int = headrace.request_id()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(length)


def played() -> None:
    simulation = Simulation("upstreams.yaml", seed="7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing = simulation.upstream("billing")
    billing.answers(503, takes=0.08)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.answers(b"503")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.always(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    billing.always(lambda: 503)  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
    billing.call("GET", True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    billing.call().headers  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    billing.traffic(every=0.01, times=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    simulation.advance(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with simulation.request(deadline=2.0):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        billing.circuit = "open"  # type: ignore[misc, assignment]  # pyright: ignore[reportAttributeAccessIssue]
    VirtualClock("0s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
