"""`app.add_middleware(headrace.ASGIMiddleware, "upstreams.yaml")`: as FastAPI's own documents add a middleware.

Starlette builds what was added when the first scope comes, which is the lifespan's where the server has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import fastapi
import pytest
import requests
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

import headrace
from headrace.app import instances
from support.asgiserver import Server
from support.faultserver import FaultServer
from support.governed import rules

Make = Callable[..., Starlette]


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as upstream:
        yield upstream


@pytest.fixture
def file(tmp_path: Path, upstream: FaultServer) -> Path:
    path = tmp_path / "upstreams.yaml"
    path.write_text(rules(upstream.url))
    return path


def application(upstream: FaultServer, log: list[str]) -> fastapi.FastAPI:
    """One that notes in *log* whether its upstream is governed: at its startup, in a request, at its shutdown."""

    def note() -> None:
        log.append(getattr(requests.get(upstream.url).__dict__.get("headrace"), "upstream", "ungoverned"))

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        note()
        yield
        note()

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/")
    def index() -> None:
        note()

    return app


@pytest.fixture
def make(upstream: FaultServer, file: Path) -> Make:
    def make(log: list[str]) -> Starlette:
        app = application(upstream, log)
        app.add_middleware(headrace.ASGIMiddleware, str(file), registry=CollectorRegistry())
        return app

    return make


def test_what_was_added_governs_from_the_startup_of_the_application_to_its_shutdown(make: Make) -> None:
    """failures.md 82."""
    log: list[str] = []
    with Server(make(log)) as server:
        assert requests.get(server.url).status_code == 200
        (hr,) = [one for one in instances() if one.status()["running"]]

    assert log == ["billing"] * 3
    assert not hr.status()["running"]
    assert server.alarms == []


def test_a_bad_file_stops_the_start_also_where_the_middleware_was_added(make: Make, file: Path) -> None:
    """failures.md 82. uvicorn takes an error in the lifespan for an application without one, and serves."""
    file.write_text(file.read_text() + "    retri: {}\n")
    log: list[str] = []
    with Server(make(log)) as server:
        assert not server.server.started

    assert "upstreams.billing.retri" in "".join(server.alarms)
    assert "upstreams.yaml:5:5" in "".join(server.alarms)
    assert log == []


def test_without_a_lifespan_what_was_added_starts_at_the_first_request(make: Make, file: Path) -> None:
    good = file.read_text()
    file.write_text(good + "    retri: {}\n")
    log: list[str] = []
    with Server(make(log), lifespan="off") as server:
        assert requests.get(server.url).status_code == 500  # the only way in which it can be told
        assert "upstreams.billing.retri" in "".join(server.alarms)
        file.write_text(good)
        assert requests.get(server.url).status_code == 200

        (hr,) = [one for one in instances() if one.status()["running"]]
        hr.close()  # else it is closed at exit
    assert log == ["billing"]


def test_what_was_added_to_a_mounted_application_starts_at_its_first_request(make: Make) -> None:
    """A lifespan does not reach what is mounted."""
    log: list[str] = []
    outer = Starlette()
    outer.mount("/api", make(log))
    with Server(outer) as server:
        assert requests.get(f"{server.url}/api/").status_code == 200

        (hr,) = [one for one in instances() if one.status()["running"]]
        hr.close()
    assert log == ["billing"]


def test_what_is_wrong_with_a_file_is_raised_where_the_application_is_wrapped(
    upstream: FaultServer, file: Path
) -> None:
    file.write_text("version: 2\n")
    with pytest.raises(headrace.ConfigError):
        headrace.ASGIMiddleware(application(upstream, []), file)
