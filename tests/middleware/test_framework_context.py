"""The context of an inbound request in Starlette, FastAPI, Flask and Django, down to a real upstream."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import flask
import pytest
import requests
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import headrace
from support.faultserver import Answer, FaultServer
from support.faultserver import Request as Seen
from support.gateways import asgi_scope, call_asgi, call_wsgi, wsgi_environ

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
SENT = {
    "X-Request-ID": "Root=1-67891233-abcdef012345678912345678",
    "X-Request-Timeout": "7.5",
    "traceparent": PARENT,
    "tracestate": "a=1,b=2",
}

Get = Callable[[dict[str, str]], tuple[int, dict[str, str], bytes]]
"""Answers one request with these headers: status, headers (names in small letters), body."""


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    """Answers with the headers that it was sent."""

    def echo(request: Seen) -> Answer:
        return Answer(body=json.dumps({name.lower(): value for name, value in request.headers}).encode())

    with FaultServer() as server:
        server.always(echo)
        yield server


@pytest.fixture
def file(tmp_path: Path, upstream: FaultServer) -> Path:
    file = tmp_path / "upstreams.yaml"
    file.write_text(
        textwrap.dedent(f"""
            version: 1
            service: {{deadline: {{header: X-Request-Timeout}}}}
            upstreams:
              billing: {{base_url: {upstream.url}, propagate: {{deadline: true}}}}
        """)
    )
    return file


def under_asgi(app: Any) -> Get:
    def get(headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        answer = asyncio.run(call_asgi(app, asgi_scope(headers)))
        return answer.status, {name.lower(): value for name, value in answer.headers}, answer.body

    return get


def under_wsgi(app: Any) -> Get:
    def get(headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        answer = call_wsgi(app, wsgi_environ(headers))
        return answer.status, {name.lower(): value for name, value in answer.headers}, answer.body

    return get


def starlette(hr: headrace.Headrace, url: str) -> Get:
    def handler(request: Request) -> JSONResponse:
        return JSONResponse({"id": headrace.request_id(), "sent": requests.get(url, timeout=10).json()})

    return under_asgi(headrace.ASGIMiddleware(Starlette(routes=[Route("/", handler)]), headrace=hr))


def starlette_async(hr: headrace.Headrace, url: str) -> Get:
    async def handler(request: Request) -> JSONResponse:
        sent = await asyncio.to_thread(requests.get, url, timeout=10)
        return JSONResponse({"id": headrace.request_id(), "sent": sent.json()})

    return under_asgi(headrace.ASGIMiddleware(Starlette(routes=[Route("/", handler)]), headrace=hr))


def fastapi_def(hr: headrace.Headrace, url: str) -> Get:
    app = fastapi.FastAPI()

    @app.get("/")
    def handler() -> dict[str, Any]:
        return {"id": headrace.request_id(), "sent": requests.get(url, timeout=10).json()}

    return under_asgi(headrace.ASGIMiddleware(app, headrace=hr))


def flask_app(hr: headrace.Headrace, url: str) -> Get:
    app = flask.Flask(__name__)

    @app.get("/")
    def handler() -> Any:
        return {"id": headrace.request_id(), "sent": requests.get(url, timeout=10).json()}

    return under_wsgi(headrace.WSGIMiddleware(app.wsgi_app, headrace=hr))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(starlette, id="starlette"),
        pytest.param(starlette_async, id="starlette async"),
        pytest.param(fastapi_def, id="fastapi"),
        pytest.param(flask_app, id="flask"),
    ],
)
def test_a_framework(
    make: Callable[[headrace.Headrace, str], Get], file: Path, upstream: FaultServer
) -> None:
    """failures.md 45."""
    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        get = make(hr, upstream.url)
        assert_context(get(SENT))
        assert_late([get(SENT | {"X-Request-Timeout": "0"}) for _ in range(9)])


def assert_context(answer: tuple[int, dict[str, str], bytes]) -> None:
    """What was sent in has arrived in the handler, at the upstream, and on the response."""
    status, headers, body = answer
    assert status == 200, body
    told = json.loads(body)
    assert told["id"] == SENT["X-Request-ID"]
    assert headers["x-request-id"] == SENT["X-Request-ID"]
    sent = told["sent"]
    assert sent["x-request-id"] == SENT["X-Request-ID"]
    parent, is_told = sent["traceparent"], isinstance(trace.get_tracer_provider(), TracerProvider)
    # Where a test before this one has set OpenTelemetry up for the process, FastAPI makes a span of its own.
    assert (parent[:36] if is_told else parent) == (PARENT[:36] if is_told else PARENT)
    assert sent["tracestate"] == "a=1,b=2"
    assert 0.0 < float(sent["x-request-timeout"]) <= 7.5


def assert_late(answers: list[tuple[int, dict[str, str], bytes]]) -> None:
    """Of nine too late and one in time before them, two were refused."""
    late = [answer for answer in answers if answer[0] == 504]
    assert len(late) == 2
    for _, headers, body in late:
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-request-id"] == SENT["X-Request-ID"]
        assert json.loads(body)["request_id"] == SENT["X-Request-ID"]


DJANGO = """
    import json, sys
    import requests
    import django
    from django.conf import settings
    from django.http import JsonResponse
    from django.urls import path
    import headrace
    from support.gateways import asgi_scope, call_asgi, call_wsgi, wsgi_environ

    kind, file, url = sys.argv[1:4]
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None, MIDDLEWARE=[]
    )
    def view(request):
        return JsonResponse({"id": headrace.request_id(), "sent": requests.get(url, timeout=10).json()})
    urlpatterns = [path("", view)]
    django.setup()
    headers = json.loads(sys.argv[4])
    if kind == "asgi":
        import asyncio
        from django.core.asgi import get_asgi_application
        app = headrace.ASGIMiddleware(get_asgi_application(), file)
        get = lambda headers: asyncio.run(call_asgi(app, asgi_scope(headers)))
    else:
        from django.core.wsgi import get_wsgi_application
        app = headrace.WSGIMiddleware(get_wsgi_application(), file)
        get = lambda headers: call_wsgi(app, wsgi_environ(headers))
    answers = [get(headers)] + [get(headers | {"X-Request-Timeout": "0"}) for _ in range(9)]
    print(json.dumps([
        (one.status, {name.lower(): value for name, value in one.headers}, one.body.decode()) for one in answers
    ]))
"""


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_django(kind: str, file: Path, upstream: FaultServer) -> None:
    """In a process of its own: Django's settings are one per process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DJANGO), kind, str(file), upstream.url, json.dumps(SENT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    first, *rest = json.loads(done.stdout)
    assert_context(first)
    assert_late(rest)
