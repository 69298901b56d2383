"""Streamed answers passed on by the frameworks, and the clients that their tests use."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import flask
import pytest
import requests
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from werkzeug.debug import DebuggedApplication
from werkzeug.test import Client

import headrace
from headrace.runtime.inbound import inbound_var
from support.faultserver import Answer, FaultServer
from support.governed import rules, running

BODY = bytes(range(256)) * 400


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.always(Answer(body=BODY, chunked=True))
        yield server


@pytest.fixture
def hr(tmp_path: Path, upstream: FaultServer) -> Iterator[headrace.Headrace]:
    with running(tmp_path, rules(upstream.url)) as instance:
        yield instance
        assert inbound_var.get() is None
        assert instance.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


# --- Starlette ------------------------------------------------------------------------------------------


def test_starlettes_client_gets_a_relayed_answer_whole(hr: headrace.Headrace, upstream: FaultServer) -> None:
    def handler(request: Request) -> StreamingResponse:
        return StreamingResponse(requests.get(upstream.url, stream=True).iter_content(1000))

    app = Starlette(routes=[Route("/", handler)])
    with TestClient(headrace.ASGIMiddleware(app, headrace=hr)) as client:
        for _ in range(3):
            assert client.get("/").content == BODY
    assert len({request.connection for request in upstream.requests}) == 1  # read to its end, and kept


def test_a_background_task_may_read_what_the_request_has_opened(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    stored: list[bytes] = []

    def handler(request: Request) -> PlainTextResponse:
        answer = requests.get(upstream.url, stream=True)
        return PlainTextResponse("fine", background=BackgroundTask(lambda: stored.append(answer.content)))

    app = Starlette(routes=[Route("/", handler)])
    with TestClient(headrace.ASGIMiddleware(app, headrace=hr)) as client:
        assert client.get("/").text == "fine"
    assert stored == [BODY]


def test_an_async_handler_may_read_in_threads(hr: headrace.Headrace, upstream: FaultServer) -> None:
    async def handler(request: Request) -> StreamingResponse:
        answer = await asyncio.to_thread(requests.get, upstream.url, stream=True)

        async def body() -> Any:
            while piece := await asyncio.to_thread(answer.raw.read, 1000):
                yield piece

        return StreamingResponse(body())

    app = Starlette(routes=[Route("/", handler)])
    with TestClient(headrace.ASGIMiddleware(app, headrace=hr)) as client:
        assert client.get("/").content == BODY


# --- Flask --------------------------------------------------------------------------------------------------


def flask_app(hr: headrace.Headrace, url: str) -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/relayed")
    def relayed() -> flask.Response:
        answer = requests.get(url, stream=True)
        return flask.Response(flask.stream_with_context(answer.iter_content(1000)))

    @app.get("/told")
    def told() -> flask.Response:
        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield flask.request.path
            yield f" {headrace.request_id()}"

        return flask.Response(body())

    @app.get("/list")
    def as_list() -> str:
        return headrace.request_id() or ""

    @app.get("/bug")
    def bug() -> str:
        raise LookupError("bug")

    @app.get("/late-bug")
    def late_bug() -> flask.Response:
        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield "some"
            raise LookupError(flask.request.path)

        return flask.Response(body())

    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
    return app


@pytest.mark.parametrize("buffered", [True, False])
def test_flasks_client_keeps_the_contexts_of_streamed_answers(
    buffered: bool, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    app = flask_app(hr, upstream.url)
    with app.test_client() as client:
        for request_id in ("a", "b"):
            sent = {"X-Request-ID": request_id}
            answer = client.get("/told", headers=sent, buffered=buffered)
            assert answer.text == f"/told {request_id}"
            assert answer.headers["X-Request-ID"] == request_id
            assert flask.request.path == "/told"  # as the block promises
            assert headrace.request_id() is None  # which the test itself belongs to none
            answer.close()
            assert client.get("/list", headers=sent).text == request_id
            assert client.get("/relayed", buffered=buffered).data == BODY
            assert flask.request.path == "/relayed"
    assert not flask.has_request_context()
    assert not flask.has_app_context()


def test_flasks_client_gets_the_applications_errors(hr: headrace.Headrace, upstream: FaultServer) -> None:
    app = flask_app(hr, upstream.url)
    app.testing = True
    with app.test_client() as client:
        with pytest.raises(LookupError, match="bug"):
            client.get("/bug")
        with pytest.raises(LookupError, match="/late-bug"):
            client.get("/late-bug", buffered=True)
        assert client.get("/told", headers={"X-Request-ID": "a"}, buffered=True).text == "/told a"
    assert not flask.has_request_context()


def test_flasks_client_without_a_block_works_as_well(hr: headrace.Headrace, upstream: FaultServer) -> None:
    client = flask_app(hr, upstream.url).test_client()
    assert client.get("/told", headers={"X-Request-ID": "a"}).text == "/told a"
    assert client.get("/relayed").data == BODY
    assert not flask.has_request_context()


def test_werkzeugs_debugger_goes_on_with_the_contexts_of_a_bug(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """Its console runs in the context of the view that raised."""
    app = flask_app(hr, upstream.url)
    app.debug = True  # lets exceptions out, to the debugger
    debugged = DebuggedApplication(app, evalex=True, pin_security=False)
    client = Client(debugged)
    answer = client.get("/bug")
    assert answer.status_code == 500
    assert "LookupError" in answer.text
    assert any(debugged.frame_contexts.values())
    for contexts in debugged.frame_contexts.values():
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            assert flask.request.path == "/bug"
    assert client.get("/told", headers={"X-Request-ID": "a"}).text == "/told a"
    assert not flask.has_request_context()


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def test_a_plain_server_relays_streams_with_their_context(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """wsgiref's, which validates outside of the middleware and within."""
    app = flask_app(hr, upstream.url)
    inner = app.wsgi_app
    assert isinstance(inner, headrace.WSGIMiddleware)
    inner.app = validator(inner.app)
    server = make_server("127.0.0.1", 0, validator(app), handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        for request_id in ("a", "b"):
            told = requests.get(f"{url}/told", headers={"X-Request-ID": request_id}, timeout=20)
            assert told.text == f"/told {request_id}"
            assert requests.get(f"{url}/relayed", timeout=20).content == BODY
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- Django -----------------------------------------------------------------------------------------------------

DJANGO = """
    import asyncio, sys
    import requests
    import django
    from django.conf import settings
    from django.http import StreamingHttpResponse
    from django.test import Client
    from django.urls import path
    import headrace
    from support.gateways import asgi_scope, call_asgi, call_wsgi, wsgi_environ

    kind, file, url = sys.argv[1:]
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None)
    def relayed(request):
        return StreamingHttpResponse(requests.get(url, stream=True).iter_content(1000))
    urlpatterns = [path("", relayed)]
    django.setup()
    if kind == "asgi":
        from django.core.asgi import get_asgi_application
        app = headrace.ASGIMiddleware(get_asgi_application(), file)
        get = lambda: asyncio.run(call_asgi(app, asgi_scope())).body
    else:
        from django.core.wsgi import get_wsgi_application
        app = headrace.WSGIMiddleware(get_wsgi_application(), file)
        get = lambda: call_wsgi(app, wsgi_environ()).body
    body = bytes(range(256)) * 400
    assert [get(), get()] == [body, body]
    assert app.headrace.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0
    assert b"".join(Client().get("/").streaming_content) == body      # it goes around the middleware
    print("fine")
"""


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_django_relays_answers(kind: str, tmp_path: Path, upstream: FaultServer) -> None:
    """In a process of its own: Django's settings are one per process."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(upstream.url))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(DJANGO), kind, str(file), upstream.url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PYTHONPATH": ":".join([str(Path(__file__).parents[1]), *sys.path])},
    )
    assert done.stdout == "fine\n", done.stderr
