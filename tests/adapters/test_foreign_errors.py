"""Errors of the caller's own code that run through a call: they belong to the caller, and leave as they are."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter

import headrace
from headrace.transport.foreign import is_foreign
from support.faultserver import Answer, FaultServer, Silence, server_context
from support.governed import rules, running
from support.surfaces import (
    INSTALL,
    SESSION,
    SURFACES,
    Surface,
    across,
    read,
    retrying_adapter,
    retrying_manager,
)

ALARM_S = 0.3
PATIENT = """\
    timeouts: {attempt: 20s, deadline: 60s, connect: 20s, tls_handshake: 20s, read: 20s, write: 20s}
    circuit_breaker: {blame_after: 1ms}
"""


class TookTooLong(TimeoutError):
    """What the application's own time limit raises."""


@contextlib.contextmanager
def alarm(seconds: float, handler: Any = None) -> Iterator[None]:
    """SIGALRM after *seconds*; its handler raises TookTooLong."""

    def raise_it(signum: int, frame: FrameType | None) -> None:
        raise TookTooLong("the application's own limit")

    before = signal.signal(signal.SIGALRM, handler or raise_it)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


RETRIES = urllib3.Retry(3, allowed_methods=None)

ON_EACH = across(*SURFACES, SESSION, retrying_adapter(RETRIES), retrying_manager(RETRIES))


@pytest.fixture(params=["plain", "tls"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FaultServer, str]]:
    """A server, and the rules for calls to it."""
    if request.param == "plain":
        with FaultServer() as server:
            yield server, rules(server.url, PATIENT, more=INSTALL)
        return
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultServer(tls=server_context(authority)) as server:
        trust = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n"
        yield server, rules(server.url, PATIENT + trust, more=INSTALL)


def is_unblamed(hr: headrace.Headrace) -> bool:
    view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
    return (view.calls, view.failures) == (0, 0) and hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


@ON_EACH
def test_a_signal_handlers_timeout_leaves_at_once_unretried_and_unblamed(
    tmp_path: Path, served: tuple[FaultServer, str], call: Surface
) -> None:
    """failures.md 68."""
    server, text = served
    server.always(Silence())
    with running(tmp_path, text) as hr:
        with alarm(ALARM_S), pytest.raises(TookTooLong) as caught:
            call(hr, server.url)
        assert server.first_lines == 1
        assert is_unblamed(hr)
        record = headrace.record_of(caught.value)
        assert record is not None
        assert [(one.outcome, one.verdict) for one in record.attempts] == [("local_error", "ignored")]


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@ON_EACH
def test_during_a_body_it_leaves_as_well(
    tmp_path: Path, served: tuple[FaultServer, str], call: Surface, stream: bool
) -> None:
    """failures.md 68."""
    server, text = served
    server.always(Answer(body=b"x" * 1000, drip_body_s=0.05))
    with running(tmp_path, text) as hr:
        with alarm(ALARM_S), pytest.raises(TookTooLong):
            read(call(hr, server.url, stream=stream))
        assert server.first_lines == 1
        view = hr.snapshot.upstreams["billing"].learned.circuit.view(time.monotonic())
        assert view.failures == 0
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_during_sending_it_is_not_a_stall(tmp_path: Path, served: tuple[FaultServer, str]) -> None:
    """failures.md 68."""
    server, text = served
    server.sip_s = 60.0
    with running(tmp_path, text) as hr, alarm(ALARM_S), pytest.raises(TookTooLong):
        hr.upstream("billing").post("/", data=b"x" * 20_000_000)
    assert server.first_lines == 1


def test_during_connecting_no_further_address_is_tried(tmp_path: Path) -> None:
    """failures.md 68. And during the handshake nothing is sent."""
    authority = trustme.CA()
    with (
        FaultServer(tls=server_context(authority)) as server,
        running(tmp_path, rules(server.url, PATIENT)) as hr,
    ):
        server.on_accept = "silence"
        with alarm(ALARM_S), pytest.raises(TookTooLong):
            hr.upstream("billing").get("/")
        assert server.connections == 1
        assert is_unblamed(hr)


class _Handler:
    def __call__(self, signum: int, frame: FrameType | None) -> None:
        raise TookTooLong


@pytest.mark.parametrize(
    "handler", [pytest.param(_Handler(), id="object"), pytest.param(_Handler().__call__, id="method")]
)
def test_a_handler_may_be_any_callable(tmp_path: Path, handler: Any) -> None:
    """failures.md 68."""
    with FaultServer() as server, running(tmp_path, rules(server.url, PATIENT)) as hr:
        server.always(Silence())
        with alarm(ALARM_S, handler), pytest.raises(TookTooLong):
            hr.upstream("billing").get("/")


def _generator(error: Exception) -> Iterator[bytes]:
    yield b"a piece"
    raise error


class _File:
    """A file whose second read fails."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = None
        self.later = error

    def read(self, size: int = -1) -> bytes:
        if self.error is not None:
            raise self.error
        self.error = self.later
        return b"a piece"


@pytest.mark.parametrize("body", [_generator, _File], ids=["generator", "file"])
@pytest.mark.parametrize("kind", [TimeoutError, OSError, ConnectionResetError, BrokenPipeError, ValueError])
@ON_EACH
def test_what_the_body_raises_is_the_callers(
    tmp_path: Path, call: Surface, kind: type[Exception], body: Callable[[Exception], Any]
) -> None:
    """failures.md 68. urllib3 takes a ConnectionResetError for the peer's, and reads on."""
    with FaultServer() as server, running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        error = kind("mine")
        with pytest.raises(kind) as caught:
            call(hr, server.url, "PUT", data=body(error))
        assert caught.value is error
        assert is_unblamed(hr)
        record = headrace.record_of(error)
        assert record is not None
        assert [(one.outcome, one.verdict) for one in record.attempts] == [("local_error", "ignored")]


class _Building(HTTPAdapter):
    """Makes something of each answer, a cache's entry say, and fails over it."""

    error: Exception

    def build_response(self, req: Any, resp: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("retries", [0, urllib3.Retry(3)], ids=["", "own retries"])
@pytest.mark.parametrize("kind", [PermissionError, TimeoutError, ConnectionResetError, ValueError])
def test_what_an_adapter_raises_over_an_answer_is_the_callers_and_holds_no_connection(
    tmp_path: Path, kind: type[Exception], retries: Any, stream: bool
) -> None:
    """failures.md 68. The answer is in the traceback: unclosed, it keeps its slot until the collector comes by."""
    with FaultServer() as server, running(tmp_path, rules(server.url, PATIENT)) as hr:
        adapter = _Building(max_retries=retries)
        adapter.error = kind("mine")
        with requests.Session() as session:
            session.mount(server.url, adapter)
            with pytest.raises(kind) as caught:
                session.get(server.url, stream=stream)
        assert caught.value is adapter.error
        assert len(server.requests) == 1
        assert is_unblamed(hr)


def test_observed_it_is_not_blamed_either(tmp_path: Path) -> None:
    """failures.md 68."""
    text = PATIENT + "    mode: observe\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, text)) as hr:
        server.always(Silence())
        with alarm(ALARM_S), pytest.raises(requests.ReadTimeout):  # as stock has it
            requests.get(server.url)
        with pytest.raises(requests.ConnectionError):
            requests.put(server.url, data=_generator(OSError("mine")))
        assert is_unblamed(hr)


def test_errors_of_sockets_and_of_what_stands_for_them_are_not_foreign() -> None:
    """failures.md 68. The other side: a replaced socket function speaks for the peer."""
    import socket

    with FaultServer() as server:
        server.always(Silence())
        with socket.create_connection((server.host, server.port)) as sock:
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError) as caught:
                socket.SocketIO(sock, "r").read(1)
    assert not is_foreign(caught.value)
    assert not is_foreign(TimeoutError())


# What refuses to be written on.


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenInSlots(Exception):
    reason: str


class Slotted(Exception):
    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Unwilling(OSError):
    __hash__ = None  # type: ignore[assignment]

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(f"nobody sets {name}")

    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


@pytest.mark.parametrize("kind", [Frozen, FrozenInSlots, Slotted, Unwilling])
@ON_EACH
def test_an_exception_that_refuses_attributes_leaves_as_it_is_with_its_record(
    tmp_path: Path, call: Surface, kind: type[Exception]
) -> None:
    """failures.md 73."""
    with FaultServer() as server, running(tmp_path, rules(server.url, PATIENT, more=INSTALL)) as hr:
        error = kind("mine")
        with pytest.raises(kind) as caught:
            call(hr, server.url, "PUT", data=_generator(error))
        assert caught.value is error
        record = headrace.record_of(error)
        assert record is not None
        assert record.upstream == "billing"
        assert is_unblamed(hr)


def test_the_record_of_an_answer_is_the_one_on_it_and_of_anything_else_none(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        answer = hr.upstream("billing").get("/")
        record: headrace.Record | None = headrace.record_of(answer)
        assert record is not None
        assert record is answer.headrace  # type: ignore[attr-defined]
    assert headrace.record_of(ValueError()) is None
    assert headrace.record_of(None) is None
