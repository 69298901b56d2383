"""Whether another answer may follow on a connection: what http.client has read past an end, or may read two ways."""

from __future__ import annotations

import http.client
import operator
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

_READS_FROM: Final = "_sock" in socket.SocketIO.readinto.__code__.co_names
"""Whether the standard library's raw reader has its socket where it has had it since 3.2."""


class _Silence:
    """A socket that has nothing to say, and does not block over it."""

    # Of a buffer that is False: 0 bytes. A function of C, where one of ours would cost a call.
    recv_into = operator.not_


class FramedAnswer(http.client.HTTPResponse):
    """http.client's answer, which looks at what it throws away.

    Its reader takes from the socket what is there, up to 8 KiB at a time. What it has taken beyond the
    end of the answer goes with it, unseen, and nobody looking at the socket finds it. It is no answer
    that anybody asked for, and the rest of it may be still to come (Pitfall 53).

    Attributes:
        is_last: No other answer may follow it on its connection.
    """

    is_last = False

    def _close_conn(self) -> None:  # http.client calls this where an answer is over
        reader: Any = self.fp
        self.fp = None  # type: ignore[assignment]  # as http.client does
        self.is_last = self.is_last or self.will_close or has_more(reader)
        reader.close()


def has_more(reader: Any) -> bool:
    """Whether *reader*, which will not be used again, has bytes that nobody has read. Does not block. 0.5 µs."""
    raw: Any = getattr(reader, "raw", None)
    sock = getattr(raw, "_sock", None)
    if sock is None:
        return False  # a test double's
    try:
        # There is no asking for what is buffered alone: with nothing there, peek() reads. So for a moment there is
        # nothing to read from; a socket that does not block, the public way, is a system call or two.
        is_stock = type(raw) is socket.SocketIO
        if not (_READS_FROM and is_stock):
            sock.settimeout(0.0)
            return bool(reader.peek(1))
        raw._sock = _Silence
        try:
            return bool(reader.peek(1))
        finally:
            raw._sock = sock
    except (OSError, ValueError, AttributeError):
        return False


def is_framed_twice(answer: http.client.HTTPResponse, response: HTTPResponse) -> bool:
    """Whether somebody else may take another length than ours for that of *answer* (RFC 9112 §6.3).

    Its connection is closed after it. Two lengths that differ are not among it: urllib3 refuses those.

    Args:
        response: What urllib3 has made of it.
    """
    headers = response.headers
    if "transfer-encoding" in headers and (not answer.chunked or "content-length" in headers):
        return True
    # http.client reads the first Content-Length, urllib3 all of them: here, one of the others is no number.
    return response.length_remaining is None and answer.length is not None
