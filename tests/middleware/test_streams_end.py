"""A streamed answer ends with the inbound request that it was opened in, unless `headrace.detach` hands it on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from urllib3.util.retry import Retry

import headrace
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.wsgi import WSGIMiddleware
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import Answer, Endless, FaultServer, server_context
from support.gateways import asgi_scope, call_asgi, call_wsgi, wsgi_environ
from support.governed import rules, running
from support.surfaces import (
    REQUESTS,
    SESSION,
    SURFACES,
    URLOPEN,
    Surface,
    across,
    retrying_adapter,
    retrying_manager,
)

HEAD = b"HTTP/1.1 200 OK\r\n"
BODIES = [
    pytest.param(Endless(HEAD + b"Content-Length: 1000000000\r\n\r\n", b"some"), id="Content-Length"),
    pytest.param(Endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\nsome\r\n"), id="chunked"),
    pytest.param(Endless(HEAD + b"\r\n", b"some"), id="ends with its connection"),
    pytest.param(
        Endless(HEAD + b"Connection: close\r\nContent-Length: 1000000000\r\n\r\n", b"some"),
        id="Connection: close",
    ),
]
ENDLESS = BODIES[1].values[0]
assert isinstance(ENDLESS, Endless)


RETRIES = Retry(2, status_forcelist=[503])
ON_EACH = across(*SURFACES, SESSION, retrying_adapter(RETRIES), retrying_manager(RETRIES))

Serve = Callable[[headrace.Headrace, Callable[[], object]], None]
"""Has a function called within one inbound request; returns when that has ended."""


def under_asgi(hr: headrace.Headrace, handler: Callable[[], object]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(handler)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    asyncio.run(call_asgi(ASGIMiddleware(app, headrace=hr), asgi_scope()))


def under_wsgi(hr: headrace.Headrace, handler: Callable[[], object]) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        handler()
        yield b"fine"

    call_wsgi(WSGIMiddleware(app, headrace=hr), wsgi_environ())


def under_wsgi_with_a_list(hr: headrace.Headrace, handler: Callable[[], object]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        handler()
        return [b"fine"]

    call_wsgi(WSGIMiddleware(app, headrace=hr), wsgi_environ())


@pytest.fixture(params=[under_asgi, under_wsgi, under_wsgi_with_a_list])
def serve(request: pytest.FixtureRequest) -> Serve:
    chosen: Serve = request.param
    return chosen


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.always(ENDLESS)
        yield server


def text(base_url: str, body: str = "") -> str:
    return rules(
        base_url,
        body or "    pool: {max_connections: 8}\n    timeouts: {acquire: 50ms}\n",
        more="install: {requests: true, urllib3: true}\n",
    )


@pytest.fixture
def hr(tmp_path: Path, upstream: FaultServer) -> Iterator[headrace.Headrace]:
    with running(tmp_path, text(upstream.url)) as instance:
        yield instance


@pytest.fixture(autouse=True)
def without_the_collector() -> Iterator[None]:
    """Nothing here may be owed to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_use(hr: headrace.Headrace) -> int:
    return hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse


def closed(hr: headrace.Headrace) -> dict[str, int]:
    in_use(hr)  # brings the counters up to date
    return dict(hr.snapshot.upstream("billing").learned.counters.closed)


def a_piece(answer: Any) -> bytes:
    raw = answer.raw if isinstance(answer, requests.Response) else answer
    piece: bytes = raw.read(4, decode_content=False)
    return piece


def go_on_reading(answer: Any) -> None:
    for _ in answer.iter_content(4) if isinstance(answer, requests.Response) else answer.stream(4):
        pass


def assert_ended(answer: Any) -> None:
    """Reading raises what the library has for a body that breaks off; each time."""
    library = (
        requests.exceptions.ChunkedEncodingError
        if isinstance(answer, requests.Response)
        else urllib3.exceptions.ProtocolError
    )
    for _ in range(2):
        with pytest.raises(library, match=r"headrace\.detach"):
            go_on_reading(answer)
    raw = answer.raw if isinstance(answer, requests.Response) else answer
    for read in (
        lambda: raw.read(4),
        lambda: raw.read(),
        lambda: raw.read1(4),
        lambda: raw.readinto(bytearray(4)),
        lambda: raw.data,
        lambda: list(raw),
    ):
        with pytest.raises(urllib3.exceptions.ProtocolError, match=r"headrace\.detach"):
            read()


# --- what ends -------------------------------------------------------------------------------------


def assert_an_answer_ends(
    call: Surface, body: Endless, serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(body)
    kept: list[Any] = []

    def handler() -> None:
        answer = call(hr, upstream.url, stream=True)
        assert a_piece(answer) == b"some"
        kept.append(answer)
        assert in_use(hr) == 1

    serve(hr, handler)
    assert in_use(hr) == 0
    assert closed(hr) == {"abandoned": 1}
    upstream.wait_for(lambda: upstream.open_connections == 0, timeout_s=20)
    assert_ended(kept[0])
    learned = hr.snapshot.upstream("billing").learned
    assert (learned.counters.broken_bodies, learned.circuit.view(0.0).failures) == (0, 0)
    assert closed(hr) == {"abandoned": 1}  # reading it, and closing it, counts nothing further
    kept[0].close()
    assert (in_use(hr), closed(hr)) == (0, {"abandoned": 1})


@pytest.mark.parametrize("body", BODIES)
@ON_EACH
def test_an_answer_left_open_ends_with_its_request(
    call: Surface, body: Endless, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61."""
    assert_an_answer_ends(call, body, under_asgi, hr, upstream)


@across(REQUESTS, URLOPEN)
def test_whatever_the_interface(
    call: Surface, serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61."""
    assert_an_answer_ends(call, ENDLESS, serve, hr, upstream)


@pytest.mark.parametrize("body", BODIES)
def test_one_whose_body_is_half_iterated_is_not_taken_for_whole(
    body: Endless, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61. The generators of both libraries take a closed file for the end of the body."""
    upstream.always(body)
    kept: list[Iterator[bytes]] = []

    def handler() -> None:
        kept.append(requests.get(upstream.url, stream=True).iter_content(2))
        kept.append(urllib3.PoolManager().request("GET", upstream.url, preload_content=False).stream(2))
        assert [next(one) for one in kept] == [b"so", b"so"]

    under_wsgi(hr, handler)
    assert in_use(hr) == 0
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match=r"headrace\.detach"):
        list(kept[0])
    with pytest.raises(urllib3.exceptions.ProtocolError, match=r"headrace\.detach"):
        list(kept[1])


def test_over_tls(tmp_path: Path, serve: Serve) -> None:
    """failures.md 61."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultServer(tls=server_context(ca, "localhost")) as upstream:
        upstream.always(ENDLESS)
        url = upstream.url.replace("127.0.0.1", "localhost")
        with running(tmp_path, text(url, f"    tls: {{ca: {tmp_path}/ca.pem}}\n")) as hr:
            kept: list[Any] = []
            serve(hr, lambda: kept.append(requests.get(url, stream=True)))
            assert (in_use(hr), closed(hr)) == (0, {"abandoned": 1})
            upstream.wait_for(lambda: upstream.open_connections == 0, timeout_s=20)
            assert_ended(kept[0])


def test_what_has_ended_by_itself_is_left_alone(
    serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Answer(body=b"x" * 100_000, chunked=True))
    kept: list[Any] = []

    def handler() -> None:
        for _ in range(200):  # more than are remembered before what has ended is forgotten
            kept.append(requests.get(upstream.url, stream=True))
            assert len(kept[-1].content) == 100_000
        inbound = inbound_var.get()
        assert inbound is not None
        assert len(inbound.streams) <= 64

    serve(hr, handler)
    assert (in_use(hr), closed(hr)) == (0, {})
    assert len({request.connection for request in upstream.requests}) == 1
    assert requests.get(upstream.url).status_code == 200
    assert len({request.connection for request in upstream.requests}) == 1
    assert {len(answer.content) for answer in kept} == {100_000}


def test_the_connection_of_a_call_after_that_is_not_hit(
    serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """Its answer was read to the end in the request; the connection is somebody else's by now."""
    upstream.at("/whole", Answer(body=b"whole", chunked=True))
    with contextlib.ExitStack() as later:

        def handler() -> None:
            assert requests.get(f"{upstream.url}/whole", stream=True).content == b"whole"
            other = threading.Thread(target=lambda: later.push(requests.get(upstream.url, stream=True)))
            other.start()  # of no request
            other.join()

        serve(hr, handler)
        assert in_use(hr) == 1
    assert len({request.connection for request in upstream.requests}) == 1


def test_a_call_that_is_not_streamed_leaves_nothing_to_end(
    serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    upstream.always(Answer())
    seen: list[int] = []

    def handler() -> None:
        requests.get(upstream.url)
        inbound = inbound_var.get()
        assert inbound is not None
        seen.append(len(inbound.streams))

    serve(hr, handler)
    assert seen == [0]


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_under_other_modes_an_answer_outlives_its_request_as_without_headrace(
    mode: str, tmp_path: Path, serve: Serve, upstream: FaultServer
) -> None:
    with running(tmp_path, text(upstream.url, f"    mode: {mode}\n")) as hr:
        kept: list[Any] = []
        serve(hr, lambda: kept.append(requests.get(upstream.url, stream=True)))
        assert a_piece(headrace.detach(kept[0])) == b"some"
        kept[0].close()


# --- how a request ends ------------------------------------------------------------------------------


class Bug(Exception): ...


@pytest.mark.parametrize("error", [Bug, KeyboardInterrupt, asyncio.CancelledError])
def test_a_request_that_fails_ends_its_answers_too(
    error: type[BaseException], serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61. The exception holds the frames, and these hold the answer."""
    if serve is under_asgi and error is KeyboardInterrupt:
        return  # that one ends the event loop, and with it everything

    def handler() -> None:
        answer = requests.get(upstream.url, stream=True)
        a_piece(answer)
        raise error

    with pytest.raises(error) as kept:
        serve(hr, handler)
    assert kept.tb is not None
    assert (in_use(hr), closed(hr)) == (0, {"abandoned": 1})


def test_a_task_of_the_server_that_is_cancelled_ends_its_answers_too(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61."""
    kept: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(await asyncio.to_thread(requests.get, upstream.url, stream=True))
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(call_asgi(ASGIMiddleware(app, headrace=hr), asgi_scope()))  # type: ignore[arg-type]
        while not kept:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_use(hr) == 0

    asyncio.run(main())
    assert_ended(kept[0])


def test_the_close_of_the_iterable_may_still_read_under_wsgi(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    log: list[Any] = []

    class Body:
        def __init__(self) -> None:
            self.answer = requests.get(upstream.url, stream=True)

        def __iter__(self) -> Iterator[bytes]:
            yield a_piece(self.answer)

        def close(self) -> None:
            log.append(a_piece(self.answer))
            log.append(self.answer)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Body()

    assert call_wsgi(WSGIMiddleware(app, headrace=hr), wsgi_environ()).body == b"some"
    assert log[0] == b"some"
    assert in_use(hr) == 0
    assert_ended(log[1])


def test_a_close_that_raises_ends_them_as_well(hr: headrace.Headrace, upstream: FaultServer) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            kept.append(requests.get(upstream.url, stream=True))
            yield b"a"

        def close(self) -> None:
            raise Bug

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Body()

    kept: list[Any] = []
    with pytest.raises(Bug):
        call_wsgi(WSGIMiddleware(app, headrace=hr), wsgi_environ())
    assert in_use(hr) == 0


def test_the_servers_file_wrapper_may_send_an_answer_and_then_it_ends(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    from wsgiref.util import FileWrapper

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        answer = requests.get(upstream.url, stream=True)
        kept.append(answer)
        return environ["wsgi.file_wrapper"](Uncloseable(answer.raw), 4)

    class Uncloseable:
        def __init__(self, raw: Any) -> None:
            self.read = raw.read

        def close(self) -> None: ...

    kept: list[Any] = []
    body = WSGIMiddleware(app, headrace=hr)(
        wsgi_environ() | {"wsgi.file_wrapper": FileWrapper}, lambda *_: lambda _: None
    )
    assert next(iter(body)) == b"some"
    assert in_use(hr) == 1
    body.close()  # type: ignore[attr-defined]
    assert in_use(hr) == 0
    assert_ended(kept[0])


def test_one_that_cannot_be_ended_keeps_no_other_open(
    hr: headrace.Headrace, upstream: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 59."""

    class Broken:
        def end(self, token: Any, reason: str) -> bool:
            raise RuntimeError("injected")

    def handler() -> None:
        inbound = inbound_var.get()
        assert inbound is not None
        inbound.cover(weakref.ref(held), Broken())  # type: ignore[arg-type]
        kept.append(requests.get(upstream.url, stream=True))

    held, kept = Bug(), []
    under_wsgi(hr, handler)
    assert in_use(hr) == 0
    assert "could not end a streamed answer" in caplog.text


def test_a_close_that_stumbles_over_its_answer_costs_no_slot(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """As where greenlets share a thread: the file of another that reads cannot be closed."""

    class Busy:
        def close(self) -> None:
            raise RuntimeError("reentrant call")

    for body in (BODIES[0].values[0], BODIES[3].values[0]):  # the answer is http.client's, or ours, to close
        upstream.always(body)  # type: ignore[arg-type]
        answer = requests.get(upstream.url, stream=True)
        conn = answer.raw._connection
        assert in_use(hr) == 1
        own = conn.last_answer or conn._HTTPConnection__response
        if conn.last_answer is None:
            conn._HTTPConnection__response = Busy()
        else:
            conn.last_answer = Busy()
        with contextlib.suppress(RuntimeError):
            conn.close()
        assert in_use(hr) == 0
        own.close()


# --- threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [*BODIES, pytest.param(None, id="silence")])
def test_a_thread_that_is_still_reading_is_stopped(
    body: Endless | None, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61."""
    upstream.always(body or Endless(HEAD + b"Content-Length: 100\r\n\r\nsome", b"", pause_s=60.0))
    errors: list[BaseException] = []
    began = threading.Event()

    def read() -> None:
        answer = requests.get(upstream.url, stream=True, timeout=60)
        try:
            for _ in answer.iter_content(2):
                began.set()
        except BaseException as error:
            errors.append(error)

    def handler() -> None:
        threads.append(threading.Thread(target=headrace.propagate(read)))
        threads[0].start()
        assert began.wait(20)

    threads: list[threading.Thread] = []
    under_wsgi(hr, handler)
    assert in_use(hr) == 0
    threads[0].join(20)
    assert not threads[0].is_alive()
    (error,) = errors
    assert isinstance(error, requests.exceptions.ChunkedEncodingError)
    assert "headrace.detach" in str(error)
    assert closed(hr) == {"abandoned": 1}


def test_an_answer_that_comes_after_the_end_of_its_request_ends_at_once(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """failures.md 61."""
    asked, over, kept = threading.Event(), threading.Event(), []

    def late(request: Any) -> Endless:
        asked.set()
        assert over.wait(20)
        return ENDLESS  # type: ignore[return-value]

    def handler() -> None:
        call = headrace.propagate(lambda: kept.append(requests.get(upstream.url, stream=True, timeout=60)))
        threads.append(threading.Thread(target=call))
        threads[0].start()
        assert asked.wait(20)

    upstream.always(late)
    threads: list[threading.Thread] = []
    under_wsgi(hr, handler)
    over.set()
    threads[0].join(20)
    assert in_use(hr) == 0
    assert_ended(kept[0])


def test_what_a_request_has_left_running_keeps_its_id_and_nothing_else(
    hr: headrace.Headrace, upstream: FaultServer
) -> None:
    """Its deadline, its retries and its file are those of a request that is over."""
    upstream.always(Answer())
    over, seen = threading.Event(), []

    def poll() -> None:
        assert over.wait(20)
        seen.append(headrace.request_id())
        upstream.always(ENDLESS)
        seen.append(hr.upstream("billing").get("/", stream=True))
        seen.append(inbound_var.get())

    def handler() -> None:
        inbound = inbound_var.get()
        assert inbound is not None
        inbound.deadline_at = 0.0  # long past
        mine.append(inbound.request_id)
        threads.append(threading.Thread(target=headrace.propagate(poll)))
        threads[0].start()

    threads: list[threading.Thread] = []
    mine: list[str] = []
    under_wsgi(hr, handler)
    file = Path(hr.files[0])
    file.write_text(file.read_text().replace("max_connections: 8", "max_connections: 9"))
    hr.reload()
    over.set()
    threads[0].join(20)
    request_id, answer, inbound = seen
    assert request_id == mine[0] == upstream.requests[-1].header("X-Request-ID")
    assert answer.headrace.config_digest == hr.snapshot.configuration.digest
    assert isinstance(inbound, Inbound)
    assert inbound.is_over
    assert a_piece(answer) == b"some"  # it ends with no request
    answer.close()


# --- detach -------------------------------------------------------------------------------------------


@ON_EACH
def test_one_that_is_handed_on_outlives_its_request(
    call: Surface, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    kept: list[Any] = []

    def handler() -> None:
        answer = call(hr, upstream.url, stream=True)
        kept.append(answer)
        assert headrace.detach(answer) is answer
        assert headrace.detach(answer) is answer

    under_asgi(hr, handler)
    assert in_use(hr) == 1
    assert a_piece(kept[0]) == b"some"
    kept[0].close()
    assert (in_use(hr), closed(hr)) == (0, {"error": 1})


def test_one_that_is_handed_on_outlives_the_client_of_its_request_too(
    tmp_path: Path, upstream: FaultServer
) -> None:
    whole = text(upstream.url).replace("version: 1", "version: 1\nservice: {cancel_on_disconnect: true}")
    with running(tmp_path, whole) as hr:
        kept: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            one, other = [await asyncio.to_thread(requests.get, upstream.url, stream=True) for _ in range(2)]
            kept.extend([headrace.detach(one), other])
            gone.set()
            inbound = inbound_var.get()
            assert inbound is not None
            assert inbound.cancellation is not None
            while not inbound.cancellation.is_cancelled:
                await asyncio.sleep(0.001)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        async def main() -> None:
            async def receive() -> dict[str, Any]:
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None: ...

            await ASGIMiddleware(app, headrace=hr)(asgi_scope(), receive, send)

        gone = asyncio.Event()
        asyncio.run(main())
        assert in_use(hr) == 1
        assert a_piece(kept[0]) == b"some"
        kept[0].close()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            go_on_reading(kept[1])


@pytest.mark.parametrize("thing", [None, b"x", object(), "an answer", requests.Response])
def test_what_is_no_answer_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="takes a response of requests or urllib3"):
        headrace.detach(thing)


def test_an_answer_with_nothing_to_detach_is_returned(hr: headrace.Headrace, upstream: FaultServer) -> None:
    upstream.always(Answer())
    for answer in (requests.Response(), requests.get(upstream.url), urllib3.HTTPResponse(b"x")):
        assert headrace.detach(answer) is answer  # type: ignore[type-var]
    with requests.get(upstream.url, stream=True) as outside:
        assert headrace.detach(outside).content == b"ok"


def test_detach_says_nothing_once_the_request_is_over_and_reading_still_does(
    serve: Serve, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    kept: list[Any] = []
    serve(hr, lambda: kept.append(requests.get(upstream.url, stream=True)))
    assert headrace.detach(kept[0]) is kept[0]
    assert_ended(kept[0])


def test_copying_one_to_a_file_after_its_request_raises(
    tmp_path: Path, hr: headrace.Headrace, upstream: FaultServer
) -> None:
    kept: list[Any] = []
    under_wsgi(hr, lambda: kept.append(requests.get(upstream.url, stream=True)))
    with (
        (tmp_path / "copy").open("wb") as copy,
        pytest.raises(urllib3.exceptions.ProtocolError, match="detach"),
    ):
        shutil.copyfileobj(kept[0].raw, copy)
