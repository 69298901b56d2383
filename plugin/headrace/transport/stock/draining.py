"""Reading the rest of an unwanted answer to keep its connection: a little of it, and not for long."""

from __future__ import annotations

from typing import Final

from urllib3.response import BaseHTTPResponse

from headrace.clock import monotonic
from headrace.policy.exchange import KEEP_S
from headrace.transport.stock.faults import callers_own

KEEP_BYTES: Final = 64 * 1024
"""How much of a failed answer is read to keep it and its connection. A larger answer is closed: reading it costs more
than a new connection."""

_SHORTEST_S = 0.001  # a socket limit of 0 would mean non-blocking


def drained(answer: BaseHTTPResponse, *, decode: bool) -> bytes | None:
    """The body of a streamed *answer*, or None when it is too large, or too slow, to keep. Blocks."""
    sock = getattr(getattr(answer, "_connection", None), "answering", None)
    limit_s = None if sock is None else sock.gettimeout()
    ends_at = monotonic() + KEEP_S
    body = b""
    try:
        while (left_s := ends_at - monotonic()) > 0.0:
            if sock is not None:
                sock.settimeout(max(_SHORTEST_S, left_s))
            piece = answer.read1(KEEP_BYTES, decode_content=decode)
            if not piece:
                if sock is not None and sock.fileno() >= 0:
                    sock.settimeout(limit_s)  # it may be sent on again
                return body
            body += piece
            if len(body) > KEEP_BYTES:
                return None
        return None
    except Exception as error:
        if callers_own(error) is not None:
            raise
        return None  # it broke off, or a mock reads differently: no reason to lose the next attempt
