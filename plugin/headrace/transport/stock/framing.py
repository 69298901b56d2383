"""Where an answer ends: bytes that http.client reads beyond the end, ends that can be read two ways, and chunk lines.

The first two decide whether another answer may follow on the connection.
"""

from __future__ import annotations

import http
import http.client
import io
import operator
import re
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from urllib3.exceptions import InvalidChunkLength, ProtocolError

from headrace.transport.attempt import current_attempt

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

MAX_LINE_BYTES: Final = 64 * 1024
"""Longest line of a chunk's size with its extensions, and of a trailer: http.client's limit for a header."""

MAX_TRAILERS: Final = 100
"""http.client's limit for headers."""

AT_ONCE_BYTES: Final = 16 * 1024 * 1024
"""Memory that is asked for at once. A peer may announce any length, and send nothing of it. A longer body is copied."""

_is_size = re.compile(rb"[0-9A-Fa-f]+[ \t\r\n]*").fullmatch
"""RFC 9112 §7.1, and blanks behind it. Python's own numbers may have a sign, a prefix and underscores, too."""

_SAYS: Final = re.compile(rb"\r\n(content-length|transfer-encoding):[ \t]*([^\r]*)")

_READS_FROM: Final = "_sock" in socket.SocketIO.readinto.__code__.co_names
"""Whether the standard library's raw reader still has its socket where it has been since 3.2."""


class _Silence:
    """A socket that has no data and never blocks."""

    # `not buffer` is False, that is 0 bytes. It is a C function; a Python one would cost a call.
    recv_into = operator.not_


class _Lines:
    """The reader of a head, which remembers its last line."""

    last = b""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def readline(self, limit: int = -1) -> bytes:
        """The next line."""
        self.last = line = self.reader.readline(limit)
        return line  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


class FramedAnswer(http.client.HTTPResponse):
    """http.client's answer, which tells its attempt that it has begun, and looks at what it throws away.

    Its reader takes from the socket what is there, up to 8 KiB at a time. Bytes that it has taken beyond the
    end of the answer are thrown away with the reader, and a look at the socket does not find them. They belong
    to no request, and more of them may be still to come (failures.md 53).

    Attributes:
        is_last: No other answer may follow this one on its connection.
    """

    is_last = False

    def begin(self) -> None:
        """Read the head. Blocks.

        Raises:
            RemoteDisconnected: The stream has ended amid it, and no body is missing yet. http.client takes what has
                come for the whole head. As a body without a length ends with its connection, that would be a success
                (failures.md 90). Where a length or chunks are announced, their reader finds that they are missing.
        """
        reader: Any = self.fp
        if self.headers is not None or not hasattr(reader, "readline"):  # it was read, or a test double's
            super().begin()
            return
        self.fp = lines = _Lines(reader)
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = reader
        if not lines.last and not self.chunked and not self.length:
            raise http.client.RemoteDisconnected("Remote end closed connection amid the head of its answer")

    def _read_status(self) -> tuple[str, int, str]:  # http.client asks for the status line, again after a 100
        found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]  # typeshed leaves it out
        attempt = current_attempt.get()
        if attempt is not None and found[1] != http.HTTPStatus.CONTINUE:
            attempt.answered = True
        return found

    def _close_conn(self) -> None:  # http.client calls this where an answer is over
        reader: Any = self.fp
        self.fp = None  # type: ignore[assignment]  # as http.client does
        self.is_last = self.is_last or self.will_close or has_more(reader)
        reader.close()

    def _read_next_chunk_size(self) -> int:  # http.client calls this; the errors are its own
        size, _, _ = _line_of(self.fp, "chunk size").partition(b";")
        try:
            n_bytes = int(size, 16)
        except ValueError:
            self._close_conn()
            raise
        self.is_last = self.is_last or _is_size(size) is None
        return n_bytes

    def _safe_read(self, amt: int) -> bytes:  # http.client and urllib3 call this for what must come whole
        if amt <= AT_ONCE_BYTES or amt > sys.maxsize:  # stock's reader refuses what is no length at all
            return super()._safe_read(amt)  # type: ignore[misc,no-any-return]
        parts, left = [], amt
        while left:
            most = min(left, AT_ONCE_BYTES)
            parts.append(self.fp.read(most))
            left -= len(parts[-1])
            if len(parts[-1]) < most:
                raise http.client.IncompleteRead(b"".join(parts), left)
        return b"".join(parts)

    def _read_and_discard_trailer(self) -> None:  # http.client calls this after the last chunk
        discard_trailers(self.fp)


def discard_trailers(reader: Any) -> None:
    """Read the trailers, which may come between the last chunk and the end of an answer. Blocks.

    Raises:
        http.client.HTTPException: There are too many of them, or one is too long.
    """
    for _ in range(MAX_TRAILERS + 1):
        line = _line_of(reader, "trailer line")
        if line in (b"\r\n", b"\n", b""):  # some peers end the connection instead of sending the last line
            return
    raise http.client.HTTPException(f"got more than {MAX_TRAILERS} trailers")


def next_chunk_bytes(response: HTTPResponse) -> int:
    """Size of the next chunk of *response*; 0 at its end, and then its trailers are read, too. Blocks.

    Replaces urllib3's function, which has no limit on a line before 2.8, and none on the trailers. The errors are
    those that urllib3 raises.
    """
    answer: Any = response._fp
    size, _, _ = _line_of(answer.fp, "chunk size").partition(b";")
    try:
        n_bytes = int(size, 16)
        if not 0 <= n_bytes <= sys.maxsize:
            raise ValueError
    except ValueError:
        response.close()
        if size:
            raise InvalidChunkLength(response, size) from None
        raise ProtocolError("Response ended prematurely") from None
    if _is_size(size) is None:
        answer.is_last = True  # others read it otherwise
    if n_bytes == 0:
        discard_trailers(answer.fp)
        answer._close_conn()
        answer.fp = io.BytesIO()  # where urllib3 looks for trailers of its own
    return n_bytes


def _line_of(reader: Any, what: str) -> bytes:
    line: bytes = reader.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        raise http.client.LineTooLong(what)
    return line


def has_more(reader: Any) -> bool:
    """Whether *reader*, which will not be used again, has unread bytes. Does not block. Takes 0.5 µs."""
    raw: Any = getattr(reader, "raw", None)
    if hasattr(raw, "has_more"):  # the wire path's
        return bool(raw.has_more(reader))
    sock = getattr(raw, "_sock", None)
    if sock is None:
        return False  # a test double's reader
    try:
        # No method looks at the buffer alone: when it is empty, peek() reads. So for a moment the reader gets a
        # socket without data. A non-blocking socket, the public way, would cost a system call or two.
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


def declared_bytes(head: bytes) -> int | None:
    """Bytes of the body that a request with *head*, in lower case, says it has; None: it says them chunk by chunk.

    -1: It says that in more than one way, or in none that can be read.
    """
    said = _SAYS.findall(head)
    lengths = {value.strip() for name, value in said if name == b"content-length"}
    codings = [value.strip() for name, value in said if name == b"transfer-encoding"]
    if codings:
        return None if codings == [b"chunked"] and not lengths else -1
    if not lengths:
        return 0
    (length,) = lengths if len(lengths) == 1 else (b"",)
    return int(length) if length.isdigit() and len(length) < 20 else -1


def is_framed_twice(answer: http.client.HTTPResponse, headers: Mapping[str, str]) -> bool:
    """Whether *answer*, which has a Transfer-Encoding, may have another length for another reader (RFC 9112 §6.3).

    The connection of such an answer is closed after it. An answer with two lengths, or an invalid one, is refused as a
    whole.

    Args:
        headers: Headers of the answer, looked up without regard to case.
    """
    return not answer.chunked or "content-length" in headers
