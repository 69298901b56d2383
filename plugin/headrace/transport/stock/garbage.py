"""Answers that are no HTTP where http.client does not say so: an error of arithmetic instead (failures.md 64)."""

from __future__ import annotations

import http.client
import sys
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Final

from urllib3.exceptions import ProtocolError

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

LONGEST_BYTES: Final = sys.maxsize
"""A longer body, or chunk of it, cannot be read."""

_READERS: Final = frozenset({"http.client", "urllib3.response"})


def is_garbage(error: BaseException) -> bool:
    """Whether *error* is what reading an answer makes of a length that is none: negative, or of thirty digits."""
    if not isinstance(error, (ValueError, OverflowError)) or "closed file" in str(error):
        return False  # of a body that was closed under its reader's hands, by ours or the caller's
    frames = tuple(_frames(error.__traceback__))
    # The last one: a signal handler amid the reading has a frame of its own.
    return bool(frames) and _reads_an_answer(frames[-1])


def told_as_broken(error: Exception) -> Exception:
    """*error*; where it is garbage, the library's class for a body that is broken, which stock does not give it."""
    if not is_garbage(error):
        return error
    broken = ProtocolError(f"Connection broken: {error!r}", error)
    broken.__cause__ = error
    return broken


def refuse_unreadable_length(response: HTTPResponse) -> None:
    """Refuse *response*, whose length is not known or absurd, where its Content-Length is none (RFC 9112 §6.3).

    http.client takes an answer whose length is no number to end with its connection, which a peer that keeps it open
    never closes. One that says it will is read as stock reads it: sites have lived with an empty Content-Length for
    years.

    Raises:
        HTTPException: It is; *response* is closed.
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
    """Whether a chunked body was ended by a chunk size that is none, rather than by its end."""
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
