"""What a handler leaves running keeps the id and the trace of its request, and goes by the file in force."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import Answer, FaultServer
from support.gateways import AsgiGateway, Seen, asgi_scope, call_asgi
from support.governed import rules, running
from support.surfaces import INSTALL, SURFACES, Surface

from .conftest import Serve

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
SERVICE = INSTALL + (
    "service:\n  deadline: {default: 200ms}\n  max_retries_per_request: 1\n  cancel_on_disconnect: true\n"
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


class Poller:
    """A thread that a handler starts and leaves behind; it does one thing at a time, when it is told."""

    def __init__(self) -> None:
        self._asked: queue.Queue[Callable[[], Any] | None] = queue.Queue()
        self._done: queue.Queue[Any] = queue.Queue()
        self.inbound: Inbound | None = None

    def __call__(self, _: Seen) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        self.inbound = inbound_var.get()
        self._thread = threading.Thread(target=headrace.propagate(self._run), daemon=True)
        self._thread.start()
        return 200, [], [b""]

    def _run(self) -> None:
        while (act := self._asked.get()) is not None:
            try:
                self._done.put(act())
            except Exception as error:
                self._done.put(error)

    def does(self, act: Callable[[], Any]) -> Any:
        """What *act* returns or raises, run on the thread."""
        self._asked.put(act)
        return self._done.get(timeout=60)

    def stop(self) -> None:
        """End the thread."""
        self._asked.put(None)
        self._thread.join(60)


@pytest.fixture(params=SURFACES, ids=repr)
def call(request: pytest.FixtureRequest) -> Surface:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def poller() -> Iterator[Poller]:
    poller = Poller()
    yield poller
    poller.stop()


def test_a_poller_that_a_request_started_runs_on_retries_and_hears_of_edits(
    tmp_path: Path, serve: Serve, call: Surface, server: FaultServer, poller: Poller
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=SERVICE)) as hr:
        serve(poller, hr).request({"X-Request-ID": "r-1", "traceparent": TRACE})
        assert poller.inbound is not None
        assert poller.inbound.deadline_at is not None
        time.sleep(max(0.0, poller.inbound.deadline_at - time.monotonic()) + 0.01)

        for _ in range(2):  # more retries than the request had
            server.next(Answer(503), Answer(503))
            answer = poller.does(lambda: call(hr, server.url))
            assert len(answer.headrace.attempts) == 3
        assert {one.header("X-Request-ID") for one in server.requests} == {"r-1"}
        assert {one.header("traceparent") for one in server.requests} == {TRACE}

        Path(hr.files[0]).write_text(rules(server.url, FAST + "    mode: 'off'\n", more=SERVICE))
        hr.reload()
        answer = poller.does(lambda: call(hr, server.url))
        assert not hasattr(answer, "headrace")


def test_what_goes_on_after_a_client_has_left_is_not_cancelled_with_it(
    tmp_path: Path, call: Surface, server: FaultServer, poller: Poller
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=SERVICE)) as hr:
        AsgiGateway(poller, hr).request()
        assert poller.inbound is not None
        assert poller.inbound.cancellation is not None
        poller.inbound.cancellation.cancel()

        assert poller.does(lambda: call(hr, server.url)).headrace.reason.value == "success"


def test_a_task_that_a_request_created_is_told_what_a_thread_is_told(
    tmp_path: Path, server: FaultServer
) -> None:
    found: list[Any] = []

    async def serve_one(hr: headrace.Headrace) -> None:
        tasks = []

        async def later() -> None:
            await asyncio.sleep(0.25)  # the request and its deadline are over
            server.next(Answer(503), Answer(503))
            found.append(await asyncio.to_thread(SURFACES[0], hr, server.url))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks.append(asyncio.create_task(later()))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        await call_asgi(headrace.ASGIMiddleware(app, headrace=hr), asgi_scope({"X-Request-ID": "r-1"}))
        await tasks[0]

    with running(tmp_path, rules(server.url, FAST, more=SERVICE)) as hr:
        asyncio.run(serve_one(hr))
        assert len(found[0].headrace.attempts) == 3
        assert found[0].headrace.request_id == "r-1"
