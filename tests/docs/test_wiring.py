"""What the pages show of frameworks, servers, jobs and inbound requests works as shown."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from celery import Celery
from starlette.applications import Starlette
from starlette.testclient import TestClient

import headrace
from support.faultserver import Answer, Break, FaultServer
from support.gateways import WsgiGateway
from support.pages import blocks, python, run, shows, text_of, write
from support.waiting import wait_until


def assert_governed(get: Callable[[str], Any], upstream: FaultServer) -> None:
    """An invoice is answered, with a request id; with a 502 problem once the upstream breaks off; metrics say so."""
    answer = get("/invoices/7")
    assert (answer.status_code, json.loads(answer.text)) == (200, {"invoice": 7})
    assert upstream.requests[-1].header("X-Request-ID") == answer.headers["X-Request-ID"]
    upstream.next(*[Break()] * 4)  # the first on a pooled connection: resent
    answer = get("/invoices/7")
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "application/problem+json")
    shown = get("/metrics").text
    assert 'headrace_requests_total{outcome="reset",upstream="billing"} 1.0' in shown


@shows("README: headrace/3")
def test_the_first_screen_installs(folder: Path, upstream: FaultServer) -> None:
    app = run("README: headrace/3", upstream, app=Starlette())["app"]
    assert isinstance(app, headrace.ASGIMiddleware)
    with TestClient(app):
        assert requests.get(upstream.url).headrace.upstream == "billing"  # type: ignore[attr-defined]
    assert not hasattr(requests.get(upstream.url), "headrace")


@shows("README: Install it, see it in a minute/2", "README: Install it, see it in a minute/3")
def test_the_minute(tmp_path: Path) -> None:
    """Its file is loaded with all the others; here is what comes of it, where nothing listens on that port."""
    (tmp_path / "upstreams.yaml").write_text(text_of("README: Install it, see it in a minute/1"))
    (tmp_path / "minute.py").write_text(text_of("README: Install it, see it in a minute/2"))
    assert python("minute.py", tmp_path) == text_of("README: Install it, see it in a minute/3")


@shows("frameworks: Starlette/1", "frameworks: FastAPI/1", "frameworks: Litestar/1")
@pytest.mark.parametrize(
    "key", ["frameworks: Starlette/1", "frameworks: FastAPI/1", "frameworks: Litestar/1"]
)
def test_asgi_wiring(key: str, folder: Path, upstream: FaultServer) -> None:
    with TestClient(run(key, upstream)["app"]) as client:
        assert_governed(client.get, upstream)


@shows("frameworks: Flask/1", "status: Status/1")
def test_flask_wiring_and_a_status_route(folder: Path, upstream: FaultServer) -> None:
    names = run("frameworks: Flask/1", upstream)
    run("status: Status/1", upstream, **names)
    client = names["app"].test_client()
    try:
        assert_governed(client.get, upstream)
        status = client.get("/upstreams").json
        assert status["upstreams"]["billing"]["requests"] == {"2xx": 1, "reset": 1}
    finally:
        names["app"].wsgi_app.headrace.close()


DJANGO = """
import json, os, sys
import django
from django.conf import settings

MIDDLEWARE = []
exec(open("settings_block.py").read())
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF="urls", MIDDLEWARE=MIDDLEWARE, SECRET_KEY="x", USE_TZ=True, LOGGING_CONFIG=None
)
import wsgi

def get(path):
    answer = {}
    def start_response(status, headers, exc_info=None):
        answer.update(status=int(status[:3]), type=dict(headers)["Content-Type"])
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80",
        "wsgi.input": sys.stdin.buffer, "wsgi.url_scheme": "http",
    }
    body = wsgi.application(environ, start_response)
    answer["body"] = b"".join(body).decode()
    return answer

print(json.dumps([get("/"), get("/"), get("/metrics")]))
"""


@shows("frameworks: Django/1", "frameworks: Django/2", "frameworks: Django/3")
def test_django_wiring(folder: Path, upstream: FaultServer) -> None:
    """In a process of its own: Django is configured once."""
    write(folder, "wsgi.py", "frameworks: Django/1", upstream)
    write(folder, "settings_block.py", "frameworks: Django/2", upstream)
    (folder / "urls.py").write_text(
        "import requests\n"
        "from django.http import HttpResponse\n"
        "from django.urls import path\n"
        f"urlpatterns = [path('', lambda request: HttpResponse(requests.get({upstream.url!r}).text))]\n"
        + blocks()["frameworks: Django/3"].text
    )
    (folder / "main.py").write_text(DJANGO)
    upstream.next(Answer(body=b"fine"), *[Break()] * 4)  # the first on a pooled connection: resent

    first, second, metrics = json.loads(python("main.py", folder))

    assert first["body"] == "fine"
    assert (second["status"], second["type"]) == (502, "application/problem+json")
    assert 'headrace_requests_total{outcome="reset",upstream="billing"} 1.0' in metrics["body"]


@shows("processes: A job/1", "processes: A job/2")
def test_a_job(folder: Path, upstream: FaultServer, capsys: pytest.CaptureFixture[str]) -> None:
    run("processes: A job/1", upstream)
    assert capsys.readouterr().out == blocks()["processes: A job/2"].text


@shows("frameworks: Celery/1")
def test_a_task_of_celery(folder: Path, upstream: FaultServer) -> None:
    """Without a worker. `live/test_set_ups.py` has one of each pool."""
    names = run(
        "frameworks: Celery/1", upstream
    )  # held as a module holds them: a signal does not keep its receivers
    app = Celery("orders", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task
    def invoice() -> Any:
        return requests.get(upstream.url).headrace.upstream  # type: ignore[attr-defined]

    try:
        assert not hasattr(requests.get(upstream.url), "headrace")
        assert [invoice.delay().get() for _ in range(2)] == ["billing", "billing"]
    finally:
        names["hr"].close()
        app.close()


@shows("processes: Jupyter/1")
def test_a_cell_that_is_run_again(folder: Path, upstream: FaultServer) -> None:
    names = run("processes: Jupyter/1", upstream)
    first = names["hr"]
    second = run("processes: Jupyter/1", upstream, **names)["hr"]
    with second:
        assert second is headrace.current()
        assert second is not first


@shows("inbound: Inbound context/1")
def test_work_on_other_threads_belongs_to_the_request(folder: Path, upstream: FaultServer) -> None:
    ids: list[str | None] = []

    def fetch(number: int) -> int:
        ids.append(headrace.request_id())
        return number

    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        names = run(
            "inbound: Inbound context/1", upstream, headrace=headrace, threading=threading, fetch=fetch
        )
        names["pool"].shutdown()
        wait_until(lambda: len(ids) == 3)
        assert names["invoices"] == [7, 8]
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        WsgiGateway(handler, hr).request({"X-Request-ID": "mine"})
    assert ids == ["mine"] * 3


@shows("inbound: Streamed answers/1")
def test_an_answer_that_is_handed_on_is_read_after_its_request(folder: Path, upstream: FaultServer) -> None:
    stored: list[bytes] = []
    over = threading.Event()

    def store(download: requests.Response) -> None:
        assert over.wait(20)
        with download:
            stored.append(download.content)

    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        run(
            "inbound: Streamed answers/1",
            upstream,
            headrace=headrace,
            requests=requests,
            threading=threading,
            store=store,
        )
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        WsgiGateway(handler, hr).request()
        over.set()
        wait_until(lambda: stored, timeout_s=20)
    assert stored == [b'{"invoice": 7}']


@shows("inbound: Ids and traces/1")
def test_the_applications_own_log_lines_get_the_id(
    folder: Path, upstream: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def handler(_: Any) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        logging.getLogger("orders").warning("within")
        return 200, [], [b""]

    with headrace.Headrace() as hr:
        names = run("inbound: Ids and traces/1", upstream, headrace=headrace, logging=logging)
        try:
            WsgiGateway(handler, hr).request({"X-Request-ID": "mine"})
            logging.getLogger("orders").warning("outside")
        finally:
            logging.getLogger().removeHandler(names["handler"])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.endswith(("within", "outside"))] == ["mine within", "- outside"]


@pytest.mark.parametrize(
    ("variable", "files"),
    [
        pytest.param(None, ["upstreams.yaml"], id="not set"),
        pytest.param("", ["upstreams.yaml"], id="set to nothing, as compose files and charts do"),
        pytest.param("other.yaml", ["other.yaml"], id="another name"),
        pytest.param(f"upstreams.yaml{os.pathsep}other.yaml", ["upstreams.yaml", "other.yaml"], id="two"),
    ],
)
def test_without_a_name_the_file_is_found(
    variable: str | None, files: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "other.yaml").write_text((folder / "upstreams.yaml").read_text())
    if variable is None:
        monkeypatch.delenv("HEADRACE_FILE", raising=False)
    else:
        monkeypatch.setenv("HEADRACE_FILE", variable)
    assert headrace.Headrace().files == tuple(str(folder / name) for name in files)
