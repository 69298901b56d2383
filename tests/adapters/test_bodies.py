"""Which bodies are sent again, as they were, and which are sent once: every surface, real sockets."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from support.faultserver import Answer, Break, FaultServer, Raw, on_reuse
from support.governed import rules, running
from support.surfaces import INSTALL, REQUESTS, Surface

RULES = (
    "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [GET, PUT], budget: {min_per_second: 1000}}\n"
    "    circuit_breaker: {mode: disabled}\n"
)
Send = Callable[[str, Any], Any]


@contextlib.contextmanager
def sending(call: Surface, folder: Path, server: FaultServer) -> Iterator[Send]:
    """Sends a method and a body to *server* by *call*."""
    with running(folder, rules(server.url, RULES, more=INSTALL)) as hr:
        yield lambda method, body: call(hr, server.url, method, data=body)


@pytest.fixture
def send(call: Surface, tmp_path: Path, server: FaultServer) -> Iterator[Send]:
    with sending(call, tmp_path, server) as send:
        yield send


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


_opened: list[Any] = []


@pytest.fixture(autouse=True)
def close_what_was_opened() -> Iterator[None]:
    yield
    while _opened:
        with contextlib.suppress(
            BufferError
        ):  # http.client holds a view of a mapped file until it is collected
            _opened.pop().close()


def opened(file: Any) -> Any:
    """*file*, closed after the test."""
    _opened.append(file)
    return file


def at(position: int, file: Any) -> Any:
    file.seek(position)
    return file


def real_file(content: bytes) -> Any:
    file = opened(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(content)
    return at(0, file)


def mapped(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory.write(content)
    return at(0, memory)  # type: ignore[no-any-return]


def spooled(content: bytes) -> Any:
    file = opened(tempfile.SpooledTemporaryFile())  # noqa: SIM115
    file.write(content)
    return at(0, file)


CAN_BE_SENT_AGAIN = [
    pytest.param(lambda: b"whole", id="bytes"),
    pytest.param(lambda: "whole", id="text"),
    pytest.param(lambda: bytearray(b"whole"), id="bytearray"),
    pytest.param(lambda: memoryview(b"whole"), id="memoryview"),
    pytest.param(lambda: io.BytesIO(b"whole"), id="file in memory"),
    pytest.param(lambda: at(5, io.BytesIO(b"skip|whole")), id="file in memory, from its middle"),
    pytest.param(lambda: io.StringIO("whole"), id="text file"),
    pytest.param(lambda: real_file(b"whole"), id="file"),
    pytest.param(lambda: at(5, real_file(b"skip|whole")), id="file, from its middle"),
    pytest.param(lambda: spooled(b"whole"), id="spooled file"),
    pytest.param(lambda: mapped(b"whole"), id="mapped file"),
]


class ClosesItself(io.BytesIO):
    """Closed as soon as it has been read."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            self.close()
        return data


class WillNotGoBack(io.BytesIO):
    """Seeks until it is read, and then no more: a socket behind a buffer, say."""

    is_read = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.is_read = True
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if self.is_read:
            raise OSError("Illegal seek")
        return super().seek(offset, whence)


class OnlySaysSo(WillNotGoBack):
    """Answers a seek, and stays where it is."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return offset if self.is_read else io.BytesIO.seek(self, offset, whence)


class NoPosition(io.BytesIO):
    def tell(self) -> int:
        raise OSError("no position")


class StrangePosition:
    """A file of somebody's own that does what it likes."""

    def __init__(self) -> None:
        self._data = [b"whole", b""]

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def read(self, size: int = -1) -> bytes:
        return self._data.pop(0)

    def seek(self, offset: Any) -> None:
        raise RuntimeError("no")

    def tell(self) -> Any:
        return "here"


class NoFile(io.RawIOBase):
    """Inherits `seek` and `tell` and means neither: a pipe, or the body of an answer passed on."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return 0

    def readinto(self, buffer: Any) -> int:
        piece, self._data = self._data[: len(buffer)], self._data[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


def pipe(content: bytes) -> Any:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return opened(os.fdopen(reading, "rb"))


SENT_ONCE = [
    pytest.param(lambda: (part for part in (b"who", b"le")), id="generator"),
    pytest.param(lambda: iter([b"who", b"le"]), id="iterator"),
    pytest.param(lambda: pipe(b"whole"), id="pipe"),
    pytest.param(lambda: NoFile(b"whole"), id="no file"),
    pytest.param(lambda: NoPosition(b"whole"), id="no position"),
    pytest.param(lambda: StrangePosition(), id="strange position"),
    pytest.param(lambda: WillNotGoBack(b"whole"), id="will not go back"),
    pytest.param(lambda: OnlySaysSo(b"whole"), id="only says that it goes back"),
    pytest.param(lambda: ClosesItself(b"whole"), id="closes itself"),
]


@pytest.mark.parametrize("make", CAN_BE_SENT_AGAIN)
def test_a_body_that_can_be_read_again_is_sent_again_from_where_it_began(
    send: Send, server: FaultServer, make: Callable[[], Any]
) -> None:
    server.next(Answer(503, close=True), Break("request"))
    response = send("PUT", make())

    assert [request.body for request in server.requests] == [b"whole"] * 3
    assert [one.outcome for one in response.headrace.attempts] == ["5xx", "reset", "2xx"]


@pytest.mark.parametrize("make", CAN_BE_SENT_AGAIN)
def test_so_it_is_when_the_pooled_connection_had_died(
    send: Send, server: FaultServer, make: Callable[[], Any]
) -> None:
    send("GET", None)
    server.always(on_reuse(Break("request", "fin")))
    response = send("PUT", make())

    assert [request.body for request in server.requests] == [b"", b"whole", b"whole"]
    assert [(one.outcome, one.resent) for one in response.headrace.attempts] == [("2xx", True)]


@pytest.mark.parametrize("make", SENT_ONCE)
def test_a_body_that_cannot_be_read_again_is_sent_once_and_the_answer_is_the_callers(
    send: Send, server: FaultServer, make: Callable[[], Any]
) -> None:
    """A used-up generator, sent again, is an empty body that the server takes for the request.

    failures.md 13.
    """
    server.always(Answer(503, body=b"busy"))
    response = send("PUT", make())

    assert [request.body for request in server.requests] == [b"whole"]
    assert getattr(response, "status_code", None) or response.status == 503
    assert (response.headrace.reason.value, len(response.headrace.attempts)) == ("not_replayable", 1)


@pytest.mark.parametrize("make", SENT_ONCE)
def test_nor_is_it_sent_again_over_a_fresh_connection(
    send: Send, server: FaultServer, make: Callable[[], Any]
) -> None:
    send("GET", None)
    server.always(on_reuse(Break("request", "fin")))
    with pytest.raises((requests.ConnectionError, urllib3.exceptions.HTTPError)) as caught:
        send("PUT", make())

    assert [request.body for request in server.requests] == [b"", b"whole"]
    (attempt,) = caught.value.headrace.attempts  # type: ignore[union-attr]
    assert (attempt.outcome, attempt.resent) == ("reset", False)


def test_what_requests_makes_of_files_and_json_is_bytes_and_sent_alike_each_time(
    tmp_path: Path, server: FaultServer
) -> None:
    with sending(REQUESTS, tmp_path, server):
        for extra in (
            {"files": {"file": ("a.txt", io.BytesIO(b"content"), "text/plain")}, "data": {"n": "1"}},
            {"json": {"n": 1}},
            {"data": {"n": "1"}},
            {"data": [("n", "1"), ("n", "2")]},
        ):
            server.next(Answer(503))
            assert requests.put(server.url, **extra).status_code == 200  # type: ignore[arg-type]
            first, second = server.requests[-2:]
            assert first.body
            assert (first.body, first.header("Content-Type")) == (second.body, second.header("Content-Type"))


def test_a_request_prepared_once_and_sent_twice_is_replayed_from_where_each_call_began(
    tmp_path: Path, server: FaultServer
) -> None:
    with sending(REQUESTS, tmp_path, server), requests.Session() as session:
        file = io.BytesIO(b"whole")
        prepared = session.prepare_request(requests.Request("PUT", server.url, data=file))
        for _ in range(2):
            file.seek(0)
            server.next(Answer(503))
            session.send(prepared)
        assert [request.body for request in server.requests] == [b"whole"] * 4


UNKIND = st.sampled_from(
    [
        Answer(503),
        Answer(408, close=True),
        Answer(429, headers=(("Retry-After", "0"),)),
        Answer(503, then="rst"),
        Break("request", "rst"),
        Break("request", "fin"),
        Break("head", "rst"),
        Break("head", "fin"),
        Break("body", "rst"),
        Break("body", "fin"),
        Raw(),
        Raw(b""),
    ]
)
NOT_AGAIN = st.sampled_from(
    [("POST", lambda: b"order"), ("DELETE", lambda: None), ("POST", lambda: io.BytesIO(b"order"))]
    + [("PUT", case.values[0]) for case in SENT_ONCE]
)


def test_a_request_that_may_not_be_replayed_reaches_the_server_at_most_once(
    tmp_path: Path, server: FaultServer, call: Surface
) -> None:
    """Once its first byte was sent: whatever the server does, on fresh and on reused connections."""
    with sending(call, tmp_path, server) as send:

        @settings(max_examples=60, deadline=None, database=None)
        @given(request=NOT_AGAIN, behaviours=st.lists(UNKIND, min_size=1, max_size=4), warm=st.booleans())
        def check(request: tuple[str, Callable[[], Any]], behaviours: list[Any], warm: bool) -> None:
            if warm:
                send("GET", None)
            else:
                server.drop_all()
            method, make = request
            before = server.first_lines
            server.next(*behaviours)
            with contextlib.suppress(requests.RequestException, urllib3.exceptions.HTTPError):
                send(method, make())
            assert server.first_lines - before <= 1
            server._queue.clear()

        check()


def test_a_refusal_of_the_connection_leaves_no_doubt_so_any_method_is_tried_again(
    tmp_path: Path, server: FaultServer
) -> None:
    with sending(REQUESTS, tmp_path, server):
        server.refuse()
        with pytest.raises(requests.ConnectionError) as caught:
            requests.post(server.url, data=b"order")
        assert len(caught.value.headrace.attempts) == 3  # type: ignore[attr-defined]
        assert not isinstance(caught.value, headrace.UpstreamError)
