"""What only WSGI has: iterables with close(), start_response, write, file wrappers. PEP 3333 checked by wsgiref."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

from headrace.middleware.wsgi import WSGIMiddleware
from headrace.runtime.inbound import inbound_var
from support.gateways import CONFIGURATION, FakeHeadrace, FakeSnapshot, call_wsgi, configured, wsgi_environ

from .conftest import with_record


def wrapped(app: Any, headrace: FakeHeadrace | None = None) -> Any:
    return WSGIMiddleware(app, headrace=headrace or FakeHeadrace())  # type: ignore[arg-type]


class Body:
    """An iterable that notes its closing."""

    def __init__(self, *chunks: bytes | Exception, log: list[str] | None = None) -> None:
        self._chunks = list(chunks)
        self.log = log if log is not None else []

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.log.append("close")


def answering(body: Any) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return body

    return app


def test_a_file_and_a_headrace_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="not both"):
        WSGIMiddleware(answering([]), "upstreams.yaml", headrace=FakeHeadrace())  # type: ignore[arg-type]


def test_that_cancel_on_disconnect_has_no_effect_is_said_once_for_each_configuration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    headrace = FakeHeadrace()
    app = wrapped(answering([b"fine"]), headrace)
    call_wsgi(app, wsgi_environ())
    assert caplog.records == []
    service = replace(CONFIGURATION.service, cancel_on_disconnect=True)
    headrace.snapshot = FakeSnapshot(replace(CONFIGURATION, service=service))  # a reload
    for _ in range(3):
        call_wsgi(app, wsgi_environ())
    (record,) = caplog.records
    assert "cancel_on_disconnect has no effect under WSGI" in record.getMessage()


# --- close() -------------------------------------------------------------------------------------


def test_close_is_called_exactly_once_even_if_the_server_calls_it_twice() -> None:
    """failures.md 47."""
    headrace = FakeHeadrace()
    body = Body(b"a", b"b")
    response = wrapped(answering(body), headrace)(wsgi_environ(), lambda *_: lambda _: None)
    assert list(response) == [b"a", b"b"]
    assert body.log == []
    response.close()
    response.close()
    assert body.log == ["close"]
    assert headrace.service.statuses == [200]


def test_close_is_called_when_the_client_leaves_before_the_first_chunk() -> None:
    """failures.md 47."""
    body = Body(b"a")
    wrapped(answering(body))(wsgi_environ(), lambda *_: lambda _: None).close()
    assert body.log == ["close"]


def test_close_is_called_when_the_iteration_raises() -> None:
    """failures.md 47."""
    body = Body(b"a", LookupError("bug"))
    with pytest.raises(LookupError, match="bug"):
        call_wsgi(wrapped(answering(body)), wsgi_environ())
    assert body.log == ["close"]


def test_close_is_called_when_an_error_of_the_iteration_is_mapped() -> None:
    """failures.md 47."""
    headrace = FakeHeadrace(configured(error_responses="map"))
    body = Body(b"", with_record(ConnectionError("x")))
    answer = call_wsgi(wrapped(answering(body), headrace), wsgi_environ())
    assert answer.status == 502
    assert answer.body.startswith(b"{")
    assert body.log == ["close"]
    assert headrace.service.statuses == [502]


def test_an_error_of_close_reaches_the_server_and_the_request_is_counted() -> None:
    """failures.md 47."""

    class Bad(Body):
        def close(self) -> None:
            raise LookupError("bug")

    headrace = FakeHeadrace()
    with pytest.raises(LookupError, match="bug"):
        call_wsgi(wrapped(answering(Bad(b"a")), headrace), wsgi_environ())
    assert headrace.service.statuses == [200]


def test_a_generator_is_closed_where_it_stands() -> None:
    """failures.md 47."""
    log: list[str] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"a"
            yield b"b"
        finally:
            log.append("closed")

    response = wrapped(app)(wsgi_environ(), lambda *_: lambda _: None)
    assert next(response) == b"a"
    response.close()
    assert log == ["closed"]


def test_a_request_that_is_answered_by_a_list_is_over_when_the_application_returns() -> None:
    """The server calls no close() of ours then."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(inbound_var.get())
        assert not seen[0].is_over
        start_response("200 OK", [])
        return [b"fine"]

    assert call_wsgi(wrapped(app), wsgi_environ()).body == b"fine"
    assert seen[0].is_over


# --- start_response -----------------------------------------------------------------------------------


def test_start_response_called_late_with_exc_info_reaches_the_server() -> None:
    """failures.md 47."""
    calls: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("A", "1")])
        try:
            raise LookupError("bug")
        except LookupError:
            start_response("500 Oops", [("A", "2")], sys.exc_info())
        yield b"sorry"

    def start_response(*arguments: Any) -> Any:
        calls.append(arguments)
        return lambda _: None

    headrace = FakeHeadrace()
    response = wrapped(app, headrace)(wsgi_environ({"X-Request-ID": "r"}), start_response)
    assert calls == []  # a generator has not begun before its first chunk is asked for
    assert list(response) == [b"sorry"]
    response.close()
    assert [call[:2] for call in calls] == [
        ("200 OK", [("A", "1"), ("X-Request-ID", "r")]),
        ("500 Oops", [("A", "2"), ("X-Request-ID", "r")]),
    ]
    assert len(calls[0]) == 2  # not a third None where the server may count arguments
    assert calls[1][2][0] is LookupError
    assert headrace.service.statuses == [500]


def test_the_servers_refusal_to_start_again_reaches_the_application() -> None:
    """failures.md 47."""
    body = Body(b"sent", LookupError("bug"))

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield from body
        except LookupError:
            start_response("500 Oops", [], sys.exc_info())

    with pytest.raises(LookupError, match="bug"):
        call_wsgi(wrapped(app), wsgi_environ())


def test_the_applications_list_of_headers_is_not_changed() -> None:
    headers = [("A", "1")]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", headers)
        return []

    assert call_wsgi(wrapped(app), wsgi_environ()).all("X-Request-ID")
    assert headers == [("A", "1")]


@pytest.mark.parametrize("error_responses", ["propagate", "map"])
def test_the_write_callable_works(error_responses: str) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"two ")
        return [b"three"]

    headrace = FakeHeadrace(configured(error_responses=error_responses))
    assert call_wsgi(wrapped(app, headrace), wsgi_environ()).body == b"one two three"


def test_an_error_after_write_is_not_mapped() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])(b"sent")
        raise with_record(ConnectionError("late"))

    headrace = FakeHeadrace(configured(error_responses="map"))
    with pytest.raises(ConnectionError, match="late"):
        call_wsgi(wrapped(app, headrace), wsgi_environ())


def test_an_error_after_start_response_but_before_a_byte_is_mapped() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/html")])
        raise with_record(ConnectionError("x"))

    headrace = FakeHeadrace(configured(error_responses="map"))
    answer = call_wsgi(wrapped(app, headrace), wsgi_environ())
    assert (answer.status, answer.all("Content-Type")) == (502, ["application/problem+json"])


# --- one context ------------------------------------------------------------------------------------------


def test_call_iteration_and_close_share_one_context_and_nothing_of_it_leaks() -> None:
    mark: ContextVar[str] = ContextVar("mark", default="unset")
    seen: list[Any] = []

    class Marked(Body):
        def __iter__(self) -> Iterator[bytes]:
            seen.append(mark.get())
            mark.set("iteration")
            yield b"a"
            seen.append(inbound_var.get())

        def close(self) -> None:
            seen.append(mark.get())
            seen.append(inbound_var.get())

    def app(environ: Any, start_response: Any) -> Any:
        seen.append(inbound_var.get())
        mark.set("call")
        start_response("200 OK", [])
        return Marked()

    call_wsgi(wrapped(app), wsgi_environ({"X-Request-ID": "r"}))
    inbound, in_iteration, late, in_close, at_close = seen
    assert (in_iteration, in_close) == ("call", "iteration")
    assert inbound is late
    assert inbound is at_close
    assert inbound.request_id == "r"
    assert mark.get() == "unset"
    assert inbound_var.get() is None


def test_iteration_may_go_on_in_another_thread() -> None:
    seen: list[Any] = []

    class Late(Body):
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            seen.append(inbound_var.get())

    response = wrapped(answering(Late()))(wsgi_environ({"X-Request-ID": "r"}), lambda *_: lambda _: None)
    assert next(response) == b"a"
    thread = threading.Thread(target=lambda: list(response))
    thread.start()
    thread.join()
    response.close()
    assert seen[0].request_id == "r"


# --- what passes as it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [[b"one"], (b"one",)], ids=["list", "tuple"])
def test_a_list_is_returned_as_it_is_because_the_server_may_want_its_length(body: Any) -> None:
    headrace = FakeHeadrace()
    assert wrapped(answering(body), headrace)(wsgi_environ(), lambda *_: lambda _: None) is body
    assert headrace.service.statuses == [200]


def test_the_servers_file_wrapper_is_returned_as_it_is_and_its_file_is_closed_once(tmp_path: Path) -> None:
    """failures.md 47."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    file = path.open("rb")
    headrace = FakeHeadrace()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    environ = wsgi_environ() | {"wsgi.file_wrapper": FileWrapper}
    response = wrapped(app, headrace)(environ, lambda *_: lambda _: None)
    assert type(response) is FileWrapper
    assert headrace.service.calls == []
    assert b"".join(response) == b"x" * 10_000
    response.close()
    response.close()
    assert file.closed
    assert headrace.service.statuses == [200]


def test_a_file_wrapper_that_is_a_function_is_iterated_over() -> None:
    """uWSGI's."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](Body(b"a", b"b"))

    environ = wsgi_environ() | {"wsgi.file_wrapper": lambda body: body}
    assert call_wsgi(wrapped(app), environ).body == b"ab"


# --- cost and a real server -------------------------------------------------------------------------------------


def test_it_adds_few_calls_to_a_request() -> None:
    """Counted, not timed: one Python-level call costs about a microsecond."""

    def calls_of(app: Any) -> list[str]:
        environ = wsgi_environ({"X-Request-ID": "a"})

        def start_response(*_: Any) -> Any: ...

        list(app(environ, start_response))  # starts
        names: list[str] = []

        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call":
                names.append(frame.f_code.co_name)

        sys.setprofile(note)
        try:
            app(environ, start_response)
        finally:
            sys.setprofile(None)
        return names

    app = answering([b"fine"])
    added = len(calls_of(wrapped(app))) - len(calls_of(app))
    assert added <= 3, calls_of(wrapped(app))  # __call__, admit, start_response


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def served() -> Iterator[Callable[[Any], int]]:
    """Serves an application on a real socket; the port."""
    running: list[Any] = []

    def serve(app: Any) -> int:
        server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server.server_port

    yield serve
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_real_server_that_validates_serves_through_it(served: Callable[[Any], int]) -> None:
    headrace = FakeHeadrace()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield environ["headrace.instance"].snapshot.configuration.digest.encode()

    port = served(validator(wrapped(validator(app), headrace)))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/", headers={"X-Request-ID": "over the wire".replace(" ", "-")})
        response = connection.getresponse()
        assert response.read() == b"0" * 64
        assert response.headers.get_all("X-Request-ID") == ["over-the-wire"]
    finally:
        connection.close()
    assert headrace.service.statuses == [200]
