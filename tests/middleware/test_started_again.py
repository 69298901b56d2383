"""Started and closed more than once in one process: what is kept, who shares it, and what a dead owner claims."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from headrace.adapters import install
from headrace.app import instances
from support.faultserver import Answer, FaultServer
from support.gateways import asgi_scope, call_asgi
from support.governed import rules

OPENS = (
    "    retry: {max_attempts: 1}\n"
    "    circuit_breaker: {consecutive_failures: 1, open_for: {base: 1m, max: 1m, jitter: 0}}\n"
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path, server: FaultServer) -> Iterator[Path]:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(server.url, OPENS))
    yield file
    for one in instances():
        one.close()


async def calling_app(scope: Any, receive: Any, send: Any) -> None:
    """Calls the upstream of the query string on a thread, as a plain handler does."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    url = scope["query_string"].decode()
    try:
        answer = await asyncio.to_thread(requests.get, url)
        status = answer.status_code if hasattr(answer, "headrace") else 299
    except headrace.CircuitOpenError:
        status = 503
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body"})


async def invocation(app: Any, url: str) -> int:
    """One lifespan around one request, as Mangum makes them for AWS Lambda; the status of the answer."""
    sent: asyncio.Queue[str] = asyncio.Queue()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(message: Any) -> None:
        await sent.put(message["type"])

    lifespan = asyncio.create_task(app({"type": "lifespan"}, messages.get, send))
    await messages.put({"type": "lifespan.startup"})
    assert await sent.get() == "lifespan.startup.complete"
    answer = await call_asgi(app, {**asgi_scope(), "query_string": url.encode()})
    await messages.put({"type": "lifespan.shutdown"})
    assert await sent.get() == "lifespan.shutdown.complete"
    await lifespan
    return answer.status


def served(app: Any, url: str) -> int:
    return asyncio.run(invocation(app, url))


def middleware(file: Path, registry: CollectorRegistry) -> Any:
    return headrace.ASGIMiddleware(calling_app, file, registry=registry)


def test_a_circuit_that_opened_in_one_invocation_is_open_in_the_next(file: Path, server: FaultServer) -> None:
    app = middleware(file, CollectorRegistry())
    server.next(Answer(503))
    assert served(app, server.url) == 503  # the upstream's own

    assert served(app, server.url) == 503
    assert len(server.requests) == 1


def test_from_the_second_invocation_on_connections_are_kept_for_the_next(
    file: Path, server: FaultServer
) -> None:
    app = middleware(file, CollectorRegistry())
    for _ in range(4):
        assert served(app, server.url) == 200
        assert install.owners() == []
        assert [one.name for one in threading.enumerate() if one.name.startswith("headrace-")] == []
    assert [one.connection for one in server.requests] == [1, 2, 2, 2]

    app.headrace.close()
    assert not hasattr(requests.get(server.url), "headrace")


def test_an_edit_between_two_invocations_is_taken_and_its_pool_given_up(
    file: Path, server: FaultServer
) -> None:
    app = middleware(file, CollectorRegistry())
    for _ in range(2):
        served(app, server.url)
    kept = app.headrace.snapshot.upstream("billing").endpoint.pool
    file.write_text(rules(server.url, OPENS + "    pool: {tcp_keepalive: {idle: 7s}}\n"))

    assert served(app, server.url) == 200

    assert app.headrace.snapshot.upstream("billing").endpoint.pool is not kept
    assert kept.leases.stopped
    assert kept.leases.view().idle == 0


def test_what_was_closed_by_hand_knows_what_it_had_learned(file: Path, server: FaultServer) -> None:
    hr = headrace.Headrace(file, registry=CollectorRegistry())
    with hr:
        server.next(Answer(503))
        requests.get(server.url)
    with hr:
        with pytest.raises(headrace.CircuitOpenError):
            requests.get(server.url)
        hr.upstream("billing").reset()
        assert requests.get(server.url).status_code == 200
        assert hr.status()["upstreams"]["billing"]["requests"] == {"5xx": 1, "circuit_open": 1, "2xx": 1}


@pytest.mark.parametrize("kind", [headrace.ASGIMiddleware, headrace.WSGIMiddleware])
def test_the_same_file_wrapped_twice_is_one_instance(file: Path, server: FaultServer, kind: Any) -> None:
    registry = CollectorRegistry()
    one, other = (kind(calling_app, file, registry=registry) for _ in range(2))
    assert one.headrace is other.headrace
    assert kind(calling_app, file, registry=CollectorRegistry()).headrace is not one.headrace
    assert headrace.Headrace(file, registry=registry) is not one.headrace  # made by hand: closed by hand


def test_it_is_closed_when_the_last_of_the_lifespans_is_over(file: Path, server: FaultServer) -> None:
    registry = CollectorRegistry()
    inner = middleware(file, registry)

    async def outer_app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await invocation(inner, server.url)  # with a lifespan of its own
        await calling_app(scope, receive, send)

    outer = headrace.ASGIMiddleware(outer_app, file, registry=registry)
    assert outer.headrace is inner.headrace
    assert served(outer, server.url) == 200  # governed, although the inner lifespan was over
    assert install.owners() == []
    outer.headrace.close()


def test_a_bad_file_stops_the_second_boot_too(file: Path, server: FaultServer) -> None:
    registry = CollectorRegistry()
    first = middleware(file, registry)
    good = file.read_text()
    for start in (False, True):
        file.write_text(good)
        if start:
            first.headrace.start()
        file.write_text("upstreams: [")
        with pytest.raises(headrace.ConfigError):
            middleware(file, registry)
    first.headrace.close()


@pytest.mark.parametrize("kind", [headrace.ASGIMiddleware, headrace.WSGIMiddleware])
def test_an_owner_whose_application_is_gone_claims_nothing(
    tmp_path: Path, file: Path, server: FaultServer, kind: Any
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(rules(server.url, name="other"))
    gone = kind(calling_app, file, registry=CollectorRegistry())
    gone.headrace.start()
    with pytest.raises(headrace.ConfigError, match="already claimed"):
        headrace.Headrace(other, registry=CollectorRegistry()).start()

    del gone
    gc.collect()

    with headrace.Headrace(other, registry=CollectorRegistry()) as hr:
        assert requests.get(server.url).headrace.upstream == "other"  # type: ignore[attr-defined]
        assert install.owners() == [hr]


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    answer = requests.get(environ["QUERY_STRING"])
    start_response("200 OK" if hasattr(answer, "headrace") else "299 Ungoverned", [])
    return [b""]


def served_by_wsgi(app: Any, url: str) -> str:
    said: list[str] = []
    environ: dict[str, Any] = {"QUERY_STRING": url}
    setup_testing_defaults(environ)
    for _ in app(environ, lambda status, headers, *_: said.append(status)):
        pass
    return said[0]


def test_a_new_application_starts_what_was_closed_under_the_one_before(
    file: Path, server: FaultServer
) -> None:
    registry = CollectorRegistry()
    first = headrace.WSGIMiddleware(wsgi_app, file, registry=registry)
    assert served_by_wsgi(first, server.url) == "200 OK"
    first.headrace.close()  # by hand, in a teardown

    second = headrace.WSGIMiddleware(wsgi_app, file, registry=registry)

    assert second.headrace is first.headrace
    assert served_by_wsgi(second, server.url) == "200 OK"


def test_a_suspended_instance_whose_application_is_gone_is_closed_at_the_next_start(
    tmp_path: Path, file: Path, server: FaultServer
) -> None:
    app = middleware(file, CollectorRegistry())
    for _ in range(2):
        served(app, server.url)
    leases = app.headrace.snapshot.upstream("billing").endpoint.pool.leases
    assert leases.view().idle == 1
    del app
    gc.collect()

    other = tmp_path / "other.yaml"
    other.write_text(rules("http://other.invalid", name="other"))
    with headrace.Headrace(other, registry=CollectorRegistry()):
        assert (leases.stopped, leases.view().idle) == (True, 0)
