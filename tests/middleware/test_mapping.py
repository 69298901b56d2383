"""`map_errors`: one line, and a framework answers what either library raises."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import flask
import litestar
import pytest
import requests
import urllib3
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

import headrace
from support.gateways import Answer, asgi_scope, call_asgi, call_wsgi, wsgi_environ
from support.governed import rules, running

App = Callable[[str], Answer]
"""Answers a path."""


@pytest.fixture
def dead() -> Iterator[str]:
    """A port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def hr(tmp_path: Path, dead: str) -> Iterator[headrace.Headrace]:
    body = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: disabled}\n"
    with running(tmp_path, rules(dead, body, more="install: {urllib3: true}\n")) as hr:
        yield hr


class Views:
    """What the routes of every application do."""

    def __init__(self, dead: str) -> None:
        self._dead = dead

    def by_requests(self) -> None:
        requests.get(f"{self._dead}/pay?token=hunter2")

    def by_urllib3(self) -> None:
        urllib3.PoolManager().request("GET", f"{self._dead}/pay?token=hunter2")

    def not_ours(self) -> None:
        raise requests.ConnectionError("no record")

    def of_urllib3_and_not_ours(self) -> None:
        raise urllib3.exceptions.HTTPError("no record")

    def by_path(self) -> dict[str, Callable[[], None]]:
        return {
            "/requests": self.by_requests,
            "/urllib3": self.by_urllib3,
            "/not-ours": self.not_ours,
            "/not-ours-3": self.of_urllib3_and_not_ours,
        }


def through_asgi(app: Any) -> App:
    def get(path: str) -> Answer:
        scope = asgi_scope({"X-Request-ID": "mine"}) | {"path": path, "raw_path": path.encode()}
        sent: list[Answer] = []

        async def main() -> None:
            answer = Answer(500, [], b"")
            try:
                answer = await call_asgi(app, scope)
            except Exception:  # Starlette has answered, and lets the server log the error
                pass
            sent.append(answer)

        asyncio.run(main())
        return sent[0]

    return get


def through_wsgi(app: Any) -> App:
    def get(path: str) -> Answer:
        return call_wsgi(app, wsgi_environ({"X-Request-ID": "mine"}) | {"PATH_INFO": path})

    return get


def fastapi_app(hr: headrace.Headrace, views: Views) -> App:
    app = fastapi.FastAPI()
    for path, view in views.by_path().items():
        app.get(path)(view)
    app.add_middleware(headrace.ASGIMiddleware, headrace=hr)
    headrace.map_errors(app)
    return through_asgi(app)


def starlette_app(hr: headrace.Headrace, views: Views) -> App:
    def route(path: str, view: Callable[[], None]) -> Route:
        def endpoint(request: Request) -> None:
            view()

        return Route(path, endpoint)

    inner = Starlette(routes=[route(path, view) for path, view in views.by_path().items()])
    app = headrace.ASGIMiddleware(inner, headrace=hr)
    headrace.map_errors(app)  # looked through
    return through_asgi(app)


def litestar_routes(views: Views) -> list[Any]:
    def route(path: str, view: Callable[[], None]) -> Any:
        def handler() -> None:
            view()

        return litestar.get(path, sync_to_thread=True)(handler)

    return [route(path, view) for path, view in views.by_path().items()]


def litestar_app(hr: headrace.Headrace, views: Views) -> App:
    app = litestar.Litestar(litestar_routes(views), logging_config=None)
    headrace.map_errors(app)
    return through_asgi(headrace.ASGIMiddleware(app, headrace=hr))


def litestar_with_the_handler(hr: headrace.Headrace, views: Views) -> App:
    families = (requests.RequestException, urllib3.exceptions.HTTPError)
    handlers: Any = dict.fromkeys(families, headrace.asgi_problem)
    app = litestar.Litestar(litestar_routes(views), logging_config=None, exception_handlers=handlers)
    return through_asgi(headrace.ASGIMiddleware(app, headrace=hr))


def flask_app(hr: headrace.Headrace, views: Views) -> App:
    app = flask.Flask(__name__)
    for path, view in views.by_path().items():
        app.add_url_rule(path, path.replace("/", "_"), view)  # type: ignore[arg-type]
    headrace.map_errors(app)
    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
    return through_wsgi(app)


def flask_blueprint(hr: headrace.Headrace, views: Views) -> App:
    part = flask.Blueprint("part", __name__)
    for path, view in views.by_path().items():
        part.add_url_rule(path, path.replace("/", "_"), view)  # type: ignore[arg-type]
    headrace.map_errors(part)
    app = flask.Flask(__name__)
    app.register_blueprint(part)
    return through_wsgi(headrace.WSGIMiddleware(app, headrace=hr))


@pytest.mark.parametrize("path", ["/requests", "/urllib3"])
@pytest.mark.parametrize(
    "make",
    [fastapi_app, starlette_app, litestar_app, litestar_with_the_handler, flask_app, flask_blueprint],
)
def test_one_line_answers_what_requests_and_what_urllib3_raise(
    hr: headrace.Headrace, dead: str, make: Callable[[headrace.Headrace, Views], App], path: str
) -> None:
    answer = make(hr, Views(dead))(path)

    assert answer.status == 502
    assert answer.all("Content-Type") == ["application/problem+json"]
    assert answer.all("X-Request-ID") == ["mine"]
    problem = json.loads(answer.body)
    assert problem["upstream"] == "billing"
    assert problem["request_id"] == "mine"
    assert b"hunter2" not in answer.body


@pytest.mark.parametrize("path", ["/not-ours", "/not-ours-3"])
@pytest.mark.parametrize("make", [fastapi_app, starlette_app, litestar_app, flask_app])
def test_an_error_that_is_not_ours_stays_the_applications(
    hr: headrace.Headrace, dead: str, make: Callable[[headrace.Headrace, Views], App], path: str
) -> None:
    answer = make(hr, Views(dead))(path)

    assert answer.status == 500
    assert answer.all("Content-Type") != ["application/problem+json"]


@pytest.mark.parametrize("opens", [False, True], ids=["before it is accepted", "while it is open"])
def test_an_error_of_a_websocket_is_the_applications(hr: headrace.Headrace, dead: str, opens: bool) -> None:
    """One that is open cannot be answered: the server would raise another error about that."""

    async def talk(socket: WebSocket) -> None:
        if opens:
            await socket.accept()
        await run_in_threadpool(Views(dead).by_requests)

    app = Starlette(routes=[WebSocketRoute("/", talk)])
    app.add_middleware(headrace.ASGIMiddleware, headrace=hr)
    headrace.map_errors(app)

    with TestClient(app) as client, pytest.raises(requests.ConnectionError):
        with client.websocket_connect("/") as socket:
            socket.receive_text()


def test_what_it_does_not_know_it_refuses_and_says_what_there_is_for_it() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(TypeError, match=r"found builtins\.function.*UpstreamErrors.*error_responses: map"):
        headrace.map_errors(bare)


def test_an_application_of_flask_loads_neither_starlette_nor_anyio() -> None:
    script = """
        import sys
        import flask, headrace

        app = flask.Flask("orders")
        headrace.map_errors(app)
        headrace.WSGIMiddleware
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"starlette", "anyio", "django", "litestar"}, loaded
        assert "ASGIMiddleware" in dir(headrace)
        headrace.ASGIMiddleware
        assert "starlette" in sys.modules  # the look is not blind
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
