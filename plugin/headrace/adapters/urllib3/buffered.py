"""A urllib3 response with its body at hand: what is left of an answer when its connection has gone back."""

from __future__ import annotations

import io
import socket
from types import SimpleNamespace
from typing import Any

from urllib3.response import BaseHTTPResponse, HTTPResponse


class BufferedResponse(HTTPResponse):
    """*answer* once more, unread.

    Args:
        body: As it came over the wire, or the error that reading it ended with.
        sock: The socket that it came over. Hooks that authenticate a connection look for its certificate, by
            `raw._fp.fp.raw._sock` (requests-ntlm, requests-kerberos).
    """

    def __init__(
        self,
        answer: BaseHTTPResponse,
        body: bytes | Exception,
        *,
        decode_content: bool,
        method: str,
        url: str,
        sock: socket.socket | None = None,
    ) -> None:
        self._is_short = is_short = bool(getattr(answer, "_is_short", answer.length_remaining))
        wire = _WholeBody(body) if isinstance(body, bytes) else _BrokenBody(body, is_short=is_short)
        wire.fp = SimpleNamespace(raw=SimpleNamespace(_sock=sock))
        super().__init__(
            body=wire,
            headers=answer.headers,
            status=answer.status,
            version=answer.version,
            reason=answer.reason,
            preload_content=False,
            decode_content=decode_content,
            original_response=getattr(answer, "_original_response", None),  # requests finds the cookies there
            enforce_content_length=False,
            request_method=method,
            request_url=url,
        )
        self.version_string = getattr(answer, "version_string", "HTTP/?")
        self._made_of: tuple[bytes | Exception, bool, str, str, socket.socket | None] | None
        self._made_of = (body, decode_content, method, url, sock)

    def again(self) -> BufferedResponse:
        """The same, unread. Once it is handed out, there is no other."""
        if self._made_of is None:
            return self
        body, decode_content, method, url, sock = self._made_of
        return BufferedResponse(self, body, decode_content=decode_content, method=method, url=url, sock=sock)

    def handed_out(self) -> BufferedResponse:
        """The same, unread, and for its reader alone: what the reader has read is not kept."""
        last = self.again()
        last._made_of = None
        return last

    def supports_chunked_reads(self) -> bool:
        """Whether the chunks are there as they came. They are not, whatever the headers say."""
        return False


class _WholeBody(io.BytesIO):
    """A body that is here."""

    fp: object


class _BrokenBody(io.RawIOBase):
    """A body that ends as it did when it was read first: with the error.

    The error is raised once. As in urllib3, a body that is closed then reads as empty. A body that is short of its
    Content-Length raises the error at each read by pieces.
    """

    fp: object

    def __init__(self, error: Exception, *, is_short: bool) -> None:
        self._error = error
        self._is_short = is_short
        self._is_told = False

    def readable(self) -> bool:
        return True

    def isclosed(self) -> bool:
        """Whether there is nothing more to be read; urllib3 asks this before each piece."""
        return self.closed

    def close(self) -> None:
        if not self._is_short:
            super().close()

    def read(self, size: int = -1, /) -> Any:
        if self._is_told and not (self._is_short and size > 0):
            return b""
        self._is_told = True
        raise self._error
