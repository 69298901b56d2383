"""`cancel_on_disconnect` behind uvicorn: a client that closes its connection takes its outbound calls along."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

import headrace
from support.asgiserver import Server
from support.faultserver import Answer, Break, Endless, FaultServer, Silence
from support.waiting import wait_until


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def hr(tmp_path: Path, upstream: FaultServer) -> Iterator[headrace.Headrace]:
    file = tmp_path / "upstreams.yaml"
    file.write_text(
        textwrap.dedent(f"""
            version: 1
            service: {{cancel_on_disconnect: true, error_responses: map}}
            upstreams:
              billing:
                base_url: {upstream.url}
                timeouts: {{deadline: 60s, attempt: 60s, read: 60s}}
        """)
    )
    with headrace.Headrace(file, registry=CollectorRegistry()) as instance:
        yield instance


class Client:
    """A client that sends a request and may leave without waiting for the answer."""

    def __init__(self, url: str, target: str, *, body: bytes = b"", rest: int = 0) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + rest}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def leave(self) -> None:
        self.socket.close()

    def answer(self) -> bytes:
        """All that comes until the server has said enough."""
        data = b""
        while b"\r\n\r\n" not in data or not data.endswith(b"fine"):
            piece = self.socket.recv(65536)
            if not piece:
                break
            data += piece
        self.socket.close()
        return data


def assert_cancelled(outcomes: list[Any], hr: headrace.Headrace) -> None:
    wait_until(lambda: outcomes, timeout_s=20, what="the handler's end")
    assert isinstance(outcomes[0], headrace.CallCancelled)
    leases = hr.snapshot.upstream("billing").endpoint.pool.leases
    wait_until(lambda: leases.view().inuse == 0, what="nothing in use")


def noting(outcomes: list[Any], act: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        try:
            outcomes.append(act())
        except Exception as error:
            outcomes.append(error)
            raise

    return run


def starlette_def(call: Callable[[], Any]) -> Any:
    def handler(request: Request) -> PlainTextResponse:
        call()
        return PlainTextResponse("fine")

    return Starlette(routes=[Route("/", handler, methods=["POST"])])


def starlette_to_thread(call: Callable[[], Any]) -> Any:
    async def handler(request: Request) -> PlainTextResponse:
        await asyncio.to_thread(call)
        return PlainTextResponse("fine")

    return Starlette(routes=[Route("/", handler, methods=["POST"])])


def fastapi_def(call: Callable[[], Any]) -> Any:
    app = FastAPI()

    @app.post("/")
    def handler() -> str:
        call()
        return "fine"

    return app


def starlette_propagate(call: Callable[[], Any]) -> Any:
    async def handler(request: Request) -> PlainTextResponse:
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, headrace.propagate(call))
        return PlainTextResponse("fine")

    return Starlette(routes=[Route("/", handler, methods=["POST"])])


def starlette_executor(call: Callable[[], Any]) -> Any:
    async def handler(request: Request) -> PlainTextResponse:
        with headrace.PropagatingExecutor(ThreadPoolExecutor(1)) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, call)
        return PlainTextResponse("fine")

    return Starlette(routes=[Route("/", handler, methods=["POST"])])


APPS = [
    pytest.param(starlette_def, id="starlette: def"),
    pytest.param(starlette_to_thread, id="starlette: asyncio.to_thread"),
    pytest.param(fastapi_def, id="fastapi: def"),
    pytest.param(starlette_propagate, id="headrace.propagate"),
    pytest.param(starlette_executor, id="PropagatingExecutor"),
]


@pytest.mark.parametrize("make", APPS)
def test_the_calls_of_a_client_that_leaves_are_cut(
    make: Callable[[Callable[[], Any]], Any], hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Silence())
    outcomes: list[Any] = []
    app = make(noting(outcomes, lambda: requests.get(f"{upstream.url}/a")))
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/", body=b"all of it")
        upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
        client.leave()
        assert_cancelled(outcomes, hr)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("make", APPS)
def test_a_client_that_stays_gets_its_answer(
    make: Callable[[Callable[[], Any]], Any], hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Answer(delay_s=0.1))
    outcomes: list[Any] = []
    app = make(noting(outcomes, lambda: requests.get(f"{upstream.url}/a")))
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server, requests.Session() as s:
        for _ in range(3):  # over one connection: what was read ahead belongs to its own request
            answer = s.post(f"{server.url}/", data=b"all of it", timeout=20)
            assert (answer.status_code, answer.text.strip('"')) == (200, "fine")
    assert [outcome.status_code for outcome in outcomes] == [200] * 3


def test_a_body_in_many_parts_arrives_whole_and_in_order(hr: headrace.Headrace) -> None:
    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(hash(await request.body())))

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    body = bytes(range(256)) * 20_000  # 5 MB
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        answer = requests.post(f"{server.url}/", data=body, timeout=20)
        assert answer.text == str(hash(body))
        chunked = requests.post(
            f"{server.url}/", data=(body[at : at + 70_000] for at in range(0, len(body), 70_000)), timeout=20
        )
        assert chunked.text == str(hash(body))


def test_a_background_task_goes_on_when_its_client_leaves(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Answer(delay_s=0.5))
    outcomes: list[Any] = []
    call = noting(outcomes, lambda: requests.get(f"{upstream.url}/a"))

    async def handler(request: Request) -> PlainTextResponse:
        return PlainTextResponse("fine", background=BackgroundTask(call))

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/")
        assert client.answer().endswith(b"fine")  # and leaves
        upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
        wait_until(lambda: outcomes, timeout_s=20)
    assert outcomes[0].status_code == 200


def test_a_streamed_response_ends_with_its_client(hr: headrace.Headrace, upstream: FaultServer) -> None:
    upstream.always(Silence())
    outcomes: list[Any] = []
    call = noting(outcomes, lambda: requests.get(f"{upstream.url}/a"))

    def handler(request: Request) -> StreamingResponse:
        def body() -> Iterator[str]:
            yield "some"
            call()

        return StreamingResponse(body())

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/")
        upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
        client.leave()
        assert_cancelled(outcomes, hr)


def test_a_client_that_leaves_during_its_body_is_noticed_when_the_application_reads(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Silence())
    outcomes: list[Any] = []
    call = noting(outcomes, lambda: requests.get(f"{upstream.url}/a"))

    async def handler(request: Request) -> PlainTextResponse:
        asked = asyncio.create_task(asyncio.to_thread(call))
        while not upstream.requests:
            await asyncio.sleep(0.01)
        left.set()
        try:
            await request.body()
        finally:
            await asyncio.wait([asked])
            asked.exception()
        return PlainTextResponse("fine")

    left = threading.Event()
    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/", body=b"some", rest=1000)
        assert left.wait(20)
        client.leave()
        assert_cancelled(outcomes, hr)


def test_nothing_is_cut_unless_the_file_says_so(
    hr: headrace.Headrace, upstream: FaultServer, tmp_path: Path
) -> None:
    file = Path(hr.files[0])
    file.write_text(file.read_text().replace("cancel_on_disconnect: true", "cancel_on_disconnect: false"))
    hr.reload()
    upstream.always(Answer(delay_s=0.5))
    outcomes: list[Any] = []
    app = starlette_def(noting(outcomes, lambda: requests.get(f"{upstream.url}/a")))
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/")
        upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
        client.leave()
        wait_until(lambda: outcomes, timeout_s=20)
    assert outcomes[0].status_code == 200


# --- and leaves no trace of it -------------------------------------------------------------------------


def reading(hr: headrace.Headrace, tmp_path: Path, **service: Any) -> None:
    """Have *service* in force."""
    file = Path(hr.files[0])
    document = yaml.safe_load(file.read_text())
    document["service"] |= service
    document["upstreams"]["billing"]["pool"] = {"max_connections": 8}
    document["upstreams"]["billing"]["timeouts"]["acquire"] = "30s"
    file.write_text(json.dumps(document))
    hr.reload()


BYTES = Endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 1000, pause_s=0.002)


def relay(url: str, **app: Any) -> Any:
    def handler(request: Request) -> StreamingResponse:
        return StreamingResponse(requests.get(url, stream=True).iter_content(100))

    return Starlette(routes=[Route("/", handler, methods=["POST"])], **app)


@contextlib.contextmanager
def without_the_collector() -> Iterator[None]:
    """It would find answers before their requests have ended, and warn of sockets of theirs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_amid(server: Server, clients: int) -> None:
    """Each gets the beginning of an answer, and is not refused."""

    def one(_: int) -> bytes:
        client = Client(server.url, "/")
        head = client.socket.recv(100)
        client.socket.recv(1000)
        client.leave()
        return head

    with ThreadPoolExecutor(8) as pool:
        heads = list(pool.map(one, range(clients)))
    assert {head.partition(b"\r\n")[0] for head in heads} == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize("cancels", [False, True])
def test_two_hundred_clients_that_leave_during_a_relayed_stream_hold_no_slot(
    cancels: bool, hr: headrace.Headrace, upstream: FaultServer, tmp_path: Path
) -> None:
    """failures.md 61. The answer is part of a cycle then, and nobody collects."""
    reading(hr, tmp_path, cancel_on_disconnect=cancels)
    upstream.always(BYTES)
    with (
        without_the_collector(),
        Server(headrace.ASGIMiddleware(relay(upstream.url), headrace=hr), lifespan="off") as server,
    ):
        leave_amid(server, 200)
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        wait_until(lambda: leases.view().inuse == 0, timeout_s=20)
        upstream.wait_for(lambda: upstream.open_connections == 0, timeout_s=20)
        requests.get(upstream.url, stream=True).close()
        assert leases.view().inuse == 0
    counters = hr.snapshot.upstream("billing").learned.counters
    assert sum(counters.closed.values()) == 201
    assert counters.closed.get("leaked", 0) == 0
    assert counters.broken_bodies == 0
    assert server.alarms == []


@pytest.mark.parametrize("error_responses", ["propagate", "map"])
@pytest.mark.parametrize("handlers", [{}, {requests.RequestException: headrace.asgi_problem}])
@pytest.mark.parametrize("make", [*APPS, pytest.param(None, id="relayed")])
def test_no_error_is_logged_for_a_client_that_has_left(
    make: Callable[[Callable[[], Any]], Any] | None,
    handlers: Any,
    error_responses: str,
    hr: headrace.Headrace,
    upstream: FaultServer,
    tmp_path: Path,
) -> None:
    reading(hr, tmp_path, error_responses=error_responses)
    upstream.always(Silence() if make else BYTES)
    outcomes: list[Any] = []
    if make is None:
        app = relay(upstream.url, exception_handlers=handlers)
    else:
        app = make(noting(outcomes, lambda: requests.get(f"{upstream.url}/a")))
        for kind, handler in handlers.items():
            app.add_exception_handler(kind, handler)
    with (
        without_the_collector(),
        Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server,
    ):
        if make is None:
            leave_amid(server, 30)
            leases = hr.snapshot.upstream("billing").endpoint.pool.leases
            wait_until(lambda: leases.view().inuse == 0, timeout_s=20)
        else:
            client = Client(server.url, "/", body=b"all of it")
            upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
            client.leave()
            assert_cancelled(outcomes, hr)
    assert server.alarms == []
    assert hr.service.copy().served_by_class.get("5xx", 0) == 0


def test_a_bug_that_comes_up_when_a_client_has_left_is_logged_all_the_same(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Silence())
    outcomes: list[Any] = []
    call = noting(outcomes, lambda: requests.get(f"{upstream.url}/a"))

    def handler(request: Request) -> PlainTextResponse:
        try:
            call()
        except requests.RequestException:
            raise LookupError("a bug in what handles it")  # noqa: B904 - it does not say that it comes of it
        return PlainTextResponse("fine")

    app = Starlette(routes=[Route("/", handler, methods=["POST"])])
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/")
        upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
        client.leave()
        assert_cancelled(outcomes, hr)
    (alarm,) = server.alarms
    assert "a bug in what handles it" in alarm


def test_an_upstream_that_fails_while_the_client_waits_is_logged_as_ever(
    hr: headrace.Headrace, upstream: FaultServer, tmp_path: Path
) -> None:
    reading(hr, tmp_path, error_responses="propagate")
    upstream.always(Break())
    app = starlette_def(lambda: requests.post(f"{upstream.url}/a"))
    with Server(headrace.ASGIMiddleware(app, headrace=hr), lifespan="off") as server:
        assert requests.post(server.url, timeout=20).status_code == 500
    (alarm,) = server.alarms
    assert "ConnectionError" in alarm


@pytest.mark.parametrize("reads_body", [False, True])
@pytest.mark.parametrize("when", ["after the response", "after the call that was cut"])
def test_whether_the_client_has_left_is_answered_as_without_headrace(
    when: str, reads_body: bool, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """Starlette's `is_disconnected` looks without a wait."""
    upstream.always(Silence() if when == "after the call that was cut" else Answer())
    seen: list[Any] = []

    class Endpoint:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            request = Request(scope, receive)
            if reads_body:
                await request.body()
            try:
                await asyncio.to_thread(requests.get, f"{upstream.url}/a")
            except headrace.CallCancelled:
                pass
            else:
                await PlainTextResponse("fine")(scope, receive, send)
            seen.append(await request.is_disconnected())

    with Server(headrace.ASGIMiddleware(Endpoint(), headrace=hr), lifespan="off") as server:
        client = Client(server.url, "/", body=b"all of it")
        if when == "after the response":
            assert client.answer().endswith(b"fine")
        else:
            upstream.wait_for(lambda: len(upstream.requests) == 1, timeout_s=20)
            client.leave()
        wait_until(lambda: seen, timeout_s=20)
    assert seen == [True]
