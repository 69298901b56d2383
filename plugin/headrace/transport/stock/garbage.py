"""Answers that are not HTTP where http.client does not say so but raises an arithmetic error (failures.md 64)."""

from __future__ import annotations

import http.client
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final

from urllib3.exceptions import ProtocolError

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

LONGEST_BYTES: Final = sys.maxsize
"""A longer body, or a longer chunk, cannot be read."""

_READERS: Final = frozenset({"http.client", "urllib3.response"})


def is_garbage(error: BaseException) -> bool:
    """Whether *error* comes from reading an answer with an invalid length: negative, or of thirty digits."""
    if not isinstance(error, (ValueError, OverflowError)) or "closed file" in str(error):
        return False  # we or the caller closed the body while it was read
    frames = tuple(_frames(error.__traceback__))
    # The last frame counts: a signal handler that runs during the reading has a frame of its own.
    return bool(frames) and _reads_an_answer(frames[-1])


def told_as_broken(error: Exception) -> Exception:
    """*error*, or for garbage the library's error for a broken body: stock does not raise that one."""
    if not is_garbage(error):
        return error
    broken = ProtocolError(f"Connection broken: {error!r}", error)
    broken.__cause__ = error
    return broken


def refuse_unreadable_length(response: HTTPResponse) -> None:
    """Refuse *response*, which has an unknown or absurd length, if its Content-Length is invalid (RFC 9112 §6.3).

    Where the length is not a number, http.client takes the answer to end with its connection. A peer that keeps the
    connection open never closes it. If the peer says that it will close it, the answer is read as in stock urllib3:
    sites have lived with an empty Content-Length for years.

    Raises:
        HTTPException: The Content-Length is invalid; *response* is closed.
    """
    headers = response.headers
    if response.length_remaining is None and _ends_with_its_connection(response):
        return
    if "content-length" in headers and "transfer-encoding" not in headers:
        length = headers["content-length"][:64]
        response.close()
        raise http.client.HTTPException(f"Content-Length is no length: {length!r}")


def _ends_with_its_connection(response: HTTPResponse) -> bool:
    said = response.headers.get("connection", "").lower()
    return "close" in said or (response.version < 11 and "keep-alive" not in said)


def is_framed_by_garbage(error: http.client.IncompleteRead) -> bool:
    """Whether an invalid chunk size ended a chunked body, and not the end of the stream."""
    cause = error.__context__
    return isinstance(cause, ValueError) and not str(cause).endswith(": b''")


def _reads_an_answer(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return name in _READERS and frame.f_code.co_qualname.startswith("HTTPResponse.")


def _frames(trace: TracebackType | None) -> list[FrameType]:
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames
