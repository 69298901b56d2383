"""The real Headrace behind real frameworks, calling a real upstream with plain `requests`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import fastapi
import flask
import pytest
import requests
from fastapi.testclient import TestClient as FastAPIClient
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

import headrace
from headrace.runtime.inbound import inbound_var
from support.asgiserver import Server

PROBLEM = "application/problem+json"


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def healthy() -> Iterator[str]:
    """An upstream that answers with the request id it was sent."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ.get("HTTP_X_REQUEST_ID", "none").encode()]

    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead() -> Iterator[str]:
    """A port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def file(tmp_path: Path, healthy: str, dead: str) -> Path:
    path = tmp_path / "upstreams.yaml"
    path.write_text(
        textwrap.dedent(f"""
            version: 1
            service: {{error_responses: propagate}}
            upstreams:
              healthy: {{base_url: "{healthy}"}}
              dead:
                base_url: "{dead}"
                retry: {{max_attempts: 1}}
                circuit_breaker: {{consecutive_failures: 1}}
        """)
    )
    return path


@pytest.fixture
def hr(file: Path) -> Iterator[headrace.Headrace]:
    with headrace.Headrace(file, registry=CollectorRegistry()) as instance:
        yield instance


def served(instance: headrace.Headrace) -> dict[str, int]:
    return instance.service.copy().served_by_class


def assert_problem(status: int, headers: Any, body: bytes, *, expected: int, request_id: str) -> None:
    assert status == expected
    assert headers["content-type"] == PROBLEM
    problem = json.loads(body)
    assert problem["upstream"] == "dead"
    assert problem["request_id"] == request_id
    assert headers["x-request-id"] == request_id
    if expected == 503:
        assert int(headers["retry-after"]) >= 1
        assert problem["retry_after_s"] > 0


# --- Starlette and FastAPI ---------------------------------------------------------------------------


def starlette_app(healthy: str, dead: str, log: list[str], **options: Any) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        log.append("up")
        yield {"db": "theirs"}
        log.append("down")

    def in_a_thread(request: Request) -> JSONResponse:
        sent = requests.get(f"{healthy}/", timeout=5).text
        inbound = inbound_var.get()
        return JSONResponse(
            {
                "sent": sent,
                "bound": inbound is not None and inbound.request_id,
                "is": request.state.headrace is headrace.current(),
                "db": getattr(request.state, "db", None),
            }
        )

    async def on_the_loop(request: Request) -> JSONResponse:
        inbound = inbound_var.get()
        return JSONResponse({"bound": inbound is not None and inbound.request_id})

    def background(request: Request) -> JSONResponse:
        def later() -> None:
            log.append(requests.get(f"{healthy}/", timeout=5).text)

        return JSONResponse({}, background=BackgroundTask(later))

    def streaming(request: Request) -> StreamingResponse:
        def body() -> Iterator[str]:
            yield requests.get(f"{healthy}/", timeout=5).text

        return StreamingResponse(body())

    def failing(request: Request) -> JSONResponse:
        requests.get(f"{dead}/pay?token=hunter2", timeout=5)
        raise AssertionError("it answered")

    def not_ours(request: Request) -> JSONResponse:
        raise requests.ConnectionError("no record")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    return Starlette(
        routes=[
            Route("/thread", in_a_thread),
            Route("/loop", on_the_loop),
            Route("/background", background),
            Route("/streaming", streaming),
            Route("/failing", failing),
            Route("/not-ours", not_ours),
            WebSocketRoute("/socket", socket),
        ],
        lifespan=lifespan,
        exception_handlers={requests.RequestException: headrace.asgi_problem},
        **options,
    )


@pytest.fixture(params=["around", "add_middleware"])
def starlette(
    request: pytest.FixtureRequest, hr: headrace.Headrace, healthy: str, dead: str
) -> tuple[Any, list[str]]:
    log: list[str] = []
    if request.param == "around":
        return headrace.ASGIMiddleware(starlette_app(healthy, dead, log), headrace=hr), log
    inside = [Middleware(headrace.ASGIMiddleware, headrace=hr)]
    return starlette_app(healthy, dead, log, middleware=inside), log


def test_starlette_handlers_on_threads_and_on_the_loop_belong_to_their_request(
    starlette: tuple[Any, list[str]], hr: headrace.Headrace
) -> None:
    app, log = starlette
    with TestClient(app) as client:
        assert log == ["up"]
        answer = client.get("/thread", headers={"X-Request-ID": "mine"})
        assert answer.json() == {"sent": "mine", "bound": "mine", "is": True, "db": "theirs"}
        assert answer.headers["x-request-id"] == "mine"
        assert client.get("/loop", headers={"X-Request-ID": "loop"}).json() == {"bound": "loop"}
    assert log == ["up", "down"]
    assert served(hr) == {"2xx": 2}


def test_starlette_background_tasks_and_streamed_bodies_belong_to_their_request(
    starlette: tuple[Any, list[str]],
) -> None:
    """failures.md 43."""
    app, log = starlette
    client = TestClient(app)  # no lifespan
    assert client.get("/background", headers={"X-Request-ID": "b"}).status_code == 200
    assert log == ["b"]
    assert client.get("/streaming", headers={"X-Request-ID": "s"}).text == "s"


def test_starlette_answers_with_problems_by_its_one_line(starlette: tuple[Any, list[str]]) -> None:
    app, _ = starlette
    client = TestClient(app, raise_server_exceptions=False)
    for expected in (502, 503):  # the first failure opens the circuit
        answer = client.get("/failing", headers={"X-Request-ID": "mine"})
        assert_problem(
            answer.status_code, answer.headers, answer.content, expected=expected, request_id="mine"
        )
        assert b"hunter2" not in answer.content


def test_starlette_gets_an_error_without_a_record_back(starlette: tuple[Any, list[str]]) -> None:
    app, _ = starlette
    assert TestClient(app, raise_server_exceptions=False).get("/not-ours").status_code == 500
    with pytest.raises(requests.ConnectionError, match="no record"):
        TestClient(app).get("/not-ours")


def test_starlette_websockets_pass(starlette: tuple[Any, list[str]]) -> None:
    """failures.md 49."""
    app, _ = starlette
    with TestClient(app) as client, client.websocket_connect("/socket") as connection:
        connection.send_text("echo")
        assert connection.receive_text() == "echo"


def test_fastapi_answers_with_problems_by_its_one_line(
    hr: headrace.Headrace, healthy: str, dead: str
) -> None:
    app = fastapi.FastAPI(exception_handlers={requests.RequestException: headrace.asgi_problem})

    @app.get("/ok")
    def ok(request: fastapi.Request) -> dict[str, Any]:
        answer = request.state.headrace.upstream("healthy").get("/")
        return {"sent": answer.text}

    @app.get("/failing")
    def failing() -> None:
        requests.get(f"{dead}/", timeout=5)

    with FastAPIClient(headrace.ASGIMiddleware(app, headrace=hr)) as client:
        assert client.get("/ok", headers={"X-Request-ID": "mine"}).json() == {"sent": "mine"}
        for expected in (502, 503):
            answer = client.get("/failing", headers={"X-Request-ID": "mine"})
            assert_problem(
                answer.status_code, answer.headers, answer.content, expected=expected, request_id="mine"
            )


# --- Flask ------------------------------------------------------------------------------------------------


def flask_app(healthy: str, dead: str) -> flask.Flask:
    app = flask.Flask(__name__)

    @app.get("/ok")
    def ok() -> Any:
        bound = inbound_var.get()
        assert bound is not None
        assert flask.request.environ["headrace.instance"] is headrace.current()
        return {"sent": requests.get(f"{healthy}/", timeout=5).text, "bound": bound.request_id}

    @app.get("/streaming")
    def streaming() -> Any:
        def body() -> Iterator[str]:
            yield requests.get(f"{healthy}/", timeout=5).text

        return flask.Response(body())

    @app.get("/failing")
    def failing() -> Any:
        requests.get(f"{dead}/pay?token=hunter2", timeout=5)

    @app.get("/not-ours")
    def not_ours() -> Any:
        raise requests.ConnectionError("no record")

    @app.get("/file")
    def file() -> Any:
        return flask.send_file(__file__)

    return app


def test_flask_views_and_streamed_bodies_belong_to_their_request(
    hr: headrace.Headrace, healthy: str, dead: str
) -> None:
    app = flask_app(healthy, dead)
    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
    client = app.test_client()
    answer = client.get("/ok", headers={"X-Request-ID": "mine"}, buffered=True)
    assert answer.json == {"sent": "mine", "bound": "mine"}
    assert answer.headers.getlist("X-Request-ID") == ["mine"]
    assert client.get("/streaming", headers={"X-Request-ID": "s"}, buffered=True).text == "s"
    assert client.get("/file", buffered=True).data == Path(__file__).read_bytes()
    assert served(hr) == {"2xx": 3}
    assert inbound_var.get() is None


def test_flask_answers_with_problems_by_its_one_line(hr: headrace.Headrace, healthy: str, dead: str) -> None:
    app = flask_app(healthy, dead)
    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
    app.register_error_handler(requests.RequestException, headrace.problem)
    client = app.test_client()
    for expected in (502, 503):
        answer = client.get("/failing", headers={"X-Request-ID": "mine"})
        assert_problem(answer.status_code, answer.headers, answer.data, expected=expected, request_id="mine")
        assert b"hunter2" not in answer.data
    assert client.get("/not-ours").status_code == 500


def test_flask_has_answered_itself_before_an_outer_middleware_could_map(
    file: Path, healthy: str, dead: str
) -> None:
    """Why the one line is needed: what Flask has made a 500 of is no exception any more."""
    file.write_text(file.read_text().replace("propagate", "map"))
    with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
        app = flask_app(healthy, dead)
        app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
        assert app.test_client().get("/failing").status_code == 500
        app.config["PROPAGATE_EXCEPTIONS"] = True
        assert app.test_client().get("/failing").status_code == 503


# --- Django -------------------------------------------------------------------------------------------------

DJANGO = """
    import asyncio, json, sys
    import requests, urllib3
    import django
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django.http import JsonResponse, StreamingHttpResponse
    from django.urls import path

    import headrace
    from headrace.runtime.inbound import inbound_var

    file, healthy, dead = sys.argv[1:]
    settings.configure(
        ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware", "headrace.middleware.django.UpstreamErrors"],
    )

    def ok(request):
        assert request.META["headrace.instance"] is headrace.current()
        return JsonResponse({"sent": requests.get(healthy, timeout=5).text, "bound": inbound_var.get().request_id})

    async def async_ok(request):
        sent = await sync_to_async(requests.get)(healthy, timeout=5)
        return JsonResponse({"sent": sent.text, "bound": inbound_var.get().request_id})

    def failing(request):
        requests.get(dead + "/pay?token=hunter2", timeout=5)

    def failing_in_urllib3(request):
        urllib3.PoolManager().request("GET", dead + "/pay?token=hunter2")

    async def async_failing(request):
        await sync_to_async(requests.get)(dead, timeout=5)

    def not_ours(request):
        raise requests.ConnectionError("no record")

    def streaming(request):
        return StreamingHttpResponse(requests.get(healthy, timeout=5).text for _ in range(1))

    urlpatterns = [
        path("ok", ok), path("async-ok", async_ok), path("failing", failing),
        path("failing-in-urllib3", failing_in_urllib3),
        path("async-failing", async_failing), path("not-ours", not_ours), path("streaming", streaming),
    ]
    django.setup()
    print(json.dumps(drive(file)))
"""

DJANGO_WSGI = """
    def drive(file):
        from django.core.wsgi import get_wsgi_application
        from wsgiref.validate import validator
        from support.gateways import call_wsgi, wsgi_environ

        app = validator(headrace.WSGIMiddleware(get_wsgi_application(), file))
        answers = []
        for target in (
            "/ok", "/async-ok", "/streaming", "/failing", "/async-failing", "/not-ours", "/failing-in-urllib3"
        ):
            environ = wsgi_environ({"X-Request-ID": "mine"})
            environ["PATH_INFO"] = target
            answer = call_wsgi(app, environ)
            answers.append((answer.status, dict((k.lower(), v) for k, v in answer.headers), answer.body.decode()))
        return answers
"""

DJANGO_ASGI = """
    def drive(file):
        from django.core.asgi import get_asgi_application
        from support.gateways import asgi_scope, call_asgi

        app = headrace.ASGIMiddleware(get_asgi_application(), file)

        async def one(target):
            scope = asgi_scope({"X-Request-ID": "mine"}) | {"path": target}
            answer = await call_asgi(app, scope)
            return answer.status, dict((k.lower(), v) for k, v in answer.headers), answer.body.decode()

        async def main():
            targets = ("/async-ok", "/failing", "/async-failing", "/not-ours", "/failing-in-urllib3")
            kinds, sent = iter(("startup", "shutdown")), []

            async def receive():
                return {"type": f"lifespan.{next(kinds)}"}

            async def send(message):
                sent.append(message["type"])

            await app({"type": "lifespan"}, receive, send)  # Django itself raises a ValueError
            return [sent, *[await one(target) for target in targets]]

        return asyncio.run(main())
"""


def run_django(script: str, file: Path, healthy: str, dead: str) -> Any:
    """In a process of its own: Django's settings are one per process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(DJANGO), str(file), healthy, dead],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def with_urllib3(file: Path) -> Path:
    file.write_text(file.read_text() + "install: {urllib3: true}\n")
    return file


def test_django_under_wsgi(file: Path, healthy: str, dead: str) -> None:
    ok, async_ok, streaming, first, second, not_ours, third = run_django(
        DJANGO_WSGI, with_urllib3(file), healthy, dead
    )
    assert json.loads(ok[2]) == {"sent": "mine", "bound": "mine"}
    assert json.loads(async_ok[2]) == {"sent": "mine", "bound": "mine"}
    assert streaming[2] == "mine"
    assert_problem(*first, expected=502, request_id="mine")
    assert_problem(*second, expected=503, request_id="mine")
    assert_problem(*third, expected=503, request_id="mine")
    assert not_ours[0] == 500


def test_django_under_asgi(file: Path, healthy: str, dead: str) -> None:
    """failures.md 49."""
    lifespan, async_ok, first, second, not_ours, third = run_django(
        DJANGO_ASGI, with_urllib3(file), healthy, dead
    )
    assert lifespan == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert json.loads(async_ok[2]) == {"sent": "mine", "bound": "mine"}
    assert_problem(*first, expected=502, request_id="mine")
    assert_problem(*second, expected=503, request_id="mine")
    assert_problem(*third, expected=503, request_id="mine")
    assert not_ours[0] == 500


# --- a real server ----------------------------------------------------------------------------------------------


@pytest.fixture
def threads_come_back() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(10)  # anyio tells its workers to end, but does not wait for it
    assert not [thread for thread in left if thread.is_alive()]


Wrap = Callable[[Any], headrace.ASGIMiddleware]


@pytest.fixture
def own(file: Path, healthy: str, threads_come_back: None) -> Wrap:
    """Wraps an application with a middleware that makes its own Headrace."""
    return lambda app: headrace.ASGIMiddleware(app, file, registry=CollectorRegistry())


def test_under_uvicorn_the_lifespan_starts_and_closes(own: Wrap, healthy: str, dead: str) -> None:
    """failures.md 49."""
    log: list[str] = []
    app = own(starlette_app(healthy, dead, log))
    assert "not started" in repr(app.headrace)
    with Server(app, lifespan="on") as server:
        assert log == ["up"]
        assert "running" in repr(app.headrace)
        with requests.Session() as client:
            answer = client.get(f"{server.url}/thread", headers={"X-Request-ID": "mine"}, timeout=10)
            assert answer.json() == {"sent": "mine", "bound": "mine", "is": True, "db": "theirs"}
            assert answer.headers["x-request-id"] == "mine"
            answer = client.get(f"{server.url}/failing", headers={"X-Request-ID": "mine"}, timeout=10)
            assert_problem(
                answer.status_code, answer.headers, answer.content, expected=502, request_id="mine"
            )
    assert log == ["up", "down"]
    assert "closed" in repr(app.headrace)
    assert served(app.headrace) == {"2xx": 1, "5xx": 1}


def test_under_uvicorn_an_application_without_a_lifespan_works(own: Wrap) -> None:
    """failures.md 49."""

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    app = own(bare)
    with Server(app) as server, requests.Session() as client:
        assert client.get(f"{server.url}/", timeout=10).text == "fine"
    app.headrace.close()


def test_under_uvicorn_a_start_that_fails_stops_the_boot(own: Wrap, file: Path) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application ran")

    with headrace.Headrace(file, registry=CollectorRegistry()):  # claims the same URLs
        server = Server(own(never))
        server.thread.start()
        server.thread.join(20)
        assert not server.server.started
        server.socket.close()


GUNICORN = """
    import os
    import flask
    import requests
    import headrace
    from headrace.runtime.inbound import inbound_var

    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        bound = inbound_var.get()
        sent = requests.get(os.environ["HEALTHY"], timeout=5).text
        return {"sent": sent, "bound": bound.request_id, "pid": os.getpid(), "built_in": BUILT_IN}

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app)
    assert "not started" in repr(app.wsgi_app.headrace)
    BUILT_IN = os.getpid()
"""


def test_under_gunicorn_each_forked_worker_starts_with_its_first_request(
    file: Path, healthy: str, tmp_path: Path
) -> None:
    """Built before the fork (`--preload`), started after it; files leave by sendfile."""
    module = tmp_path / "service.py"
    module.write_text(textwrap.dedent(GUNICORN))
    arguments = ["-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0", "service:app"]
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={"HEADRACE_FILE": str(file), "HEALTHY": healthy, "PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            url = next(
                found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line))
            )
            with requests.Session() as client:
                answers = [client.get(url, headers={"X-Request-ID": "mine"}, timeout=20) for _ in range(8)]
                assert client.get(f"{url}/file", timeout=20).text == module.read_text()
        finally:
            server.terminate()
            rest = server.stderr.read() if server.stderr is not None else ""
    for answer in answers:
        said = answer.json()
        assert (said["sent"], said["bound"]) == ("mine", "mine"), rest
        assert answer.headers["X-Request-ID"] == "mine"
        assert said["pid"] != said["built_in"]


def test_a_request_keeps_the_configuration_it_began_with_over_a_reload(
    hr: headrace.Headrace, file: Path, healthy: str
) -> None:
    app = flask.Flask(__name__)

    @app.get("/")
    def index() -> str:
        file.write_text(file.read_text().replace("propagate", "map, request_id: {header: X-Trace}"))
        before = hr.snapshot
        assert hr.reload() == "applied"
        inbound = inbound_var.get()
        assert inbound is not None
        assert inbound.snapshot is before
        assert hr.snapshot is not before
        return requests.get(healthy, timeout=5).text

    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)  # type: ignore[method-assign]
    first = app.test_client().get("/", headers={"X-Request-ID": "mine"}, buffered=True)
    assert first.text == "mine"  # sent on under the old name
    assert first.headers["X-Request-ID"] == "mine"
    second = app.test_client().get("/missing", buffered=True)
    assert "X-Request-ID" not in second.headers
    assert second.headers["X-Trace"]


@pytest.mark.parametrize("kind", [headrace.ASGIMiddleware, headrace.WSGIMiddleware])
def test_a_bad_file_stops_the_boot_when_the_middleware_is_built(kind: Any, tmp_path: Path) -> None:
    """failures.md 50."""
    bad = tmp_path / "upstreams.yaml"
    with pytest.raises(headrace.ConfigError):
        kind(lambda *_: None, bad)
    bad.write_text("version: 1\nupstreams: {billing: {base_uri: http://billing}}\n")
    with pytest.raises(headrace.ConfigError, match="base_url"):
        kind(lambda *_: None, bad)
