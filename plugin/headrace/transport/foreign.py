"""Errors of the caller's own code that ran during an attempt: a signal handler's, a body's (failures.md 68).

A `TimeoutError` that a SIGALRM handler raises comes out of the very socket call that it interrupted, and libraries
wrap it like a peer's. The difference is where it was raised. That is looked at only when there is an error, so it
costs nothing before.
"""

from __future__ import annotations

import functools
import http.client
import signal
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.util.request import body_to_chunks

from headrace.transport.attempt import Attempt

_WIRE = frozenset(
    {"gevent", "headrace", "http", "requests", "select", "selectors", "socket", "ssl", "urllib3"}
)
"""Packages whose code runs between the caller and the socket."""

_BUILDS_AN_ANSWER = "build_response"
"""A method of requests' adapters that is called once an answer is there. A subclass may do anything in it (a cache, a
parser), and the wire is done by then."""

_READ_A_BODY = frozenset(
    {
        HTTPConnection.request.__code__,  # it iterates over the body; all sending happens in functions that it calls
        http.client.HTTPConnection._read_readable.__code__,  # type: ignore[attr-defined]
        *(one for one in body_to_chunks.__code__.co_consts if isinstance(one, CodeType)),  # reads files
    }
)


def is_foreign(error: BaseException) -> bool:
    """Whether *error*, which looks like a socket's, was raised by the caller's code. Looks at its traceback.

    True for an error raised by a signal handler, by the body of the request while it is read, or by an adapter's own
    `build_response`, and for a TimeoutError that another thread has injected. A replaced socket function (a mock's, a
    proxy's) counts as the socket.
    """
    wire: FrameType | None = None
    beyond: list[FrameType] = []  # frames that the last frame of the wire has called
    for frame in _frames(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _WIRE:
            wire = frame
            beyond.clear()
        else:
            beyond.append(frame)
    if wire is None:
        return False  # it was never raised, or its frames are not known
    if wire.f_code in _READ_A_BODY:
        return True
    if beyond and beyond[0].f_code.co_name == _BUILDS_AN_ANSWER:
        return True
    if beyond:
        handlers = frozenset(_handlers())
        return any(frame.f_code in handlers for frame in beyond)
    # A socket's error always has arguments; one injected by its class (PyThreadState_SetAsyncExc) has none.
    return type(error) is TimeoutError and not error.args


def noting(body: Any, attempt: Attempt, *, blocksize: int) -> Any:
    """*body*, in pieces as urllib3 reads it. An error that the body itself raises is noted as `attempt.own_error`.

    Bytes, text and buffers come back as they are, and so does an object that cannot be read at all.
    """
    if isinstance(body, (bytes, str, bytearray, memoryview)):
        return body
    if hasattr(body, "read"):
        return _noting(_read(body, blocksize), attempt)
    try:
        memoryview(body)
    except TypeError:
        return _noting(body, attempt) if hasattr(body, "__iter__") else body
    return body


def _read(file: Any, blocksize: int) -> Iterator[Any]:
    while piece := file.read(blocksize):
        yield piece


def _noting(pieces: Any, attempt: Attempt) -> Iterator[Any]:
    try:
        yield from pieces
    except Exception as error:
        # The traceback alone is not enough: urllib3 goes on after a ConnectionResetError, as if the
        # peer had answered early.
        attempt.own_error = error
        raise


def _frames(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _handlers() -> Iterator[CodeType]:
    """The code of the signal handlers in force."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        handler = getattr(handler, "__func__", handler)
        if not hasattr(handler, "__code__"):
            handler = getattr(type(handler), "__call__", None)  # noqa: B004 - the method itself is wanted
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code
