"""One handler served as an ASGI and as a WSGI application behind our middleware: shared behaviour is tested in both."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from wsgiref.validate import validator

from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.wsgi import WSGIMiddleware
from headrace.policy.plan import (
    Configuration,
    InstallPlan,
    ReloadPlan,
    RequestIdPlan,
    ServicePlan,
    TelemetryPlan,
)
from headrace.runtime.service import ServiceCounters

Headers = list[tuple[str, str]]

CONFIGURATION = Configuration(
    service=ServicePlan(
        request_id=RequestIdPlan(header="X-Request-ID", accept=True),
        max_retries_per_request=10,
        error_responses="propagate",
    ),
    install=InstallPlan(requests=True, urllib3=False),
    reload=ReloadPlan(debounce_s=0.1, max_delay_s=1.0, poll_s=2.0, drain_s=30.0),
    telemetry=TelemetryPlan(served_requests=True),
    upstreams={},
    digest="0" * 64,
    watched=(),
)


def configured(
    *,
    header: str = "X-Request-ID",
    accept: bool = True,
    error_responses: Any = "propagate",
    served_requests: bool = True,
) -> Configuration:
    """A configuration without upstreams."""
    return replace(
        CONFIGURATION,
        service=ServicePlan(
            request_id=RequestIdPlan(header=header, accept=accept),
            max_retries_per_request=10,
            error_responses=error_responses,
        ),
        telemetry=TelemetryPlan(served_requests=served_requests),
    )


@dataclass(frozen=True)
class FakeSnapshot:
    """As much of a snapshot as a middleware reads."""

    configuration: Configuration
    tracing: None = None


class FakeService(ServiceCounters):
    """Keeps what was served, by its status."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = defaultdict(deque)  # type: ignore[assignment]

    @property
    def calls(self) -> list[tuple[int, float]]:
        """Status and seconds of each request; those of the status that came first, first."""
        return [(status, duration_s) for status, ended in self.ended.items() for duration_s in ended]

    @property
    def statuses(self) -> list[int]:
        """The statuses counted, likewise."""
        return [status for status, _ in self.calls]


class FakeHeadrace:
    """As much of a Headrace as a middleware touches; notes starts and closes, and on which thread."""

    def __init__(self, configuration: Configuration = CONFIGURATION) -> None:
        self.snapshot = FakeSnapshot(configuration)
        self.service = FakeService()
        self.in_force = self
        self.log: list[str] = []
        self.threads: list[threading.Thread] = []
        self.start_error: Exception | None = None
        self.started_in = 0

    def start(self) -> None:
        """Note it."""
        self.log.append("headrace.start")
        self.threads.append(threading.current_thread())
        if self.start_error is not None:
            raise self.start_error
        self.started_in = os.getpid()

    def close(self) -> None:
        """Note it."""
        self.log.append("headrace.close")

    def suspend(self) -> None:
        """Note it, as the close that it is to a lifespan."""
        self.close()

    def show_metrics(self) -> None:
        """There are none."""


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: Headers
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of every header called *name*."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class Seen:
    """What a handler sees of its request, whatever the interface."""

    headrace: Any
    method: str


Handler = Callable[[Seen], tuple[int, Headers, Iterable[bytes]]]


class Gateway(Protocol):
    """A server that serves one handler behind our middleware."""

    def __init__(self, handler: Handler, headrace: Any) -> None: ...

    def request(self, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        """One request; raises what the middleware lets out."""
        ...


class WsgiGateway:
    """A WSGI server in a nutshell, with wsgiref's validator on both sides of the middleware."""

    def __init__(self, handler: Handler, headrace: Any) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            status, headers, chunks = handler(Seen(environ["headrace.instance"], environ["REQUEST_METHOD"]))
            start_response(f"{status} Status", [("Content-Type", "text/plain"), *headers])
            return iter(chunks)

        self.app = validator(WSGIMiddleware(validator(app), headrace=headrace))

    def request(self, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        """One request."""
        return call_wsgi(self.app, wsgi_environ(headers, method=method))


class AsgiGateway:
    """An ASGI server in a nutshell."""

    def __init__(self, handler: Handler, headrace: Any) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            status, headers, chunks = handler(Seen(scope["state"]["headrace"], scope["method"]))
            raw = [(name.lower().encode(), value.encode()) for name, value in headers]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})

        self.app = ASGIMiddleware(app, headrace=headrace)

    def request(self, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        """One request."""
        return asyncio.run(call_asgi(self.app, asgi_scope(headers, method=method)))


def asgi_scope(headers: Mapping[str, str] | None = None, *, method: str = "GET") -> dict[str, Any]:
    """An HTTP scope, without `state`, as a server without a lifespan gives it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (headers or {}).items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


async def call_asgi(app: Any, scope: dict[str, Any]) -> Answer:
    """Serve *scope* as a server would, to a client that stays."""
    answer = Answer(0, [], b"")
    has_received = False

    async def receive() -> dict[str, Any]:
        nonlocal has_received
        if has_received:
            await asyncio.Event().wait()
        has_received = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert answer.status == 0, "a response was started twice"
            answer.status = message["status"]
            answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def wsgi_environ(headers: Mapping[str, str] | None = None, *, method: str = "GET") -> dict[str, Any]:
    """An environ as PEP 3333 wants it."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in (headers or {}).items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ


def call_wsgi(app: Any, environ: dict[str, Any]) -> Answer:
    """Serve *environ* as a server would: headers leave with the first chunk that is not empty."""
    answer = Answer(0, [], b"")
    has_sent = False

    def start_response(status: str, headers: Headers, exc_info: Any = None) -> Any:
        if exc_info and has_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info or not answer.status, "start_response called twice without exc_info"
        answer.status, answer.headers = int(status[:3]), headers
        return write

    def write(data: bytes) -> None:
        nonlocal has_sent
        has_sent = has_sent or bool(data)
        answer.body += data

    chunks = app(environ, start_response)
    try:
        for chunk in chunks:
            write(chunk)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    return answer
