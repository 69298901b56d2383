"""A urllib3 response whose body is at hand: what is left of an answer when its connection has gone back."""

from __future__ import annotations

import io
from typing import Any

from urllib3.response import BaseHTTPResponse, HTTPResponse


class KeptResponse(HTTPResponse):
    """*answer* once more, unread.

    Args:
        body: As it came over the wire, or the error that reading it ended with.
    """

    def __init__(
        self,
        answer: BaseHTTPResponse,
        body: bytes | Exception,
        *,
        decode_content: bool,
        method: str,
        url: str,
    ) -> None:
        super().__init__(
            body=io.BytesIO(body) if isinstance(body, bytes) else _Broken(body),
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
        self._kept = (body, decode_content, method, url)

    def again(self) -> KeptResponse:
        """The same, unread."""
        body, decode_content, method, url = self._kept
        return KeptResponse(self, body, decode_content=decode_content, method=method, url=url)


class _Broken(io.RawIOBase):
    """A body that ends as it did when it was read first."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> Any:
        raise self._error
