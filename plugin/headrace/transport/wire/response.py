"""The answers of the wire path: http.client's and urllib3's objects, made of what the codec knows, filled on touch.

`WireAnswer` is what urllib3 reads from, and where requests finds the cookies. `WireResponse` is what callers get. Where
the whole body has come, nothing is made of it but bytes; headers are looked at by those who ask. Where more is to come,
the body is read as it is without the codec: by http.client's reader, with its errors and limits, from what has been
received and then from the socket.
"""

from __future__ import annotations

import http.client
import io
import socket
import zlib
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from urllib3._collections import HTTPHeaderDict
from urllib3.response import BytesQueueBuffer, HTTPResponse

from headrace.transport.stock.body import BodyTooLarge
from headrace.transport.stock.framing import FramedAnswer
from headrace.transport.stock.response import GovernedResponse, LimitedResponse, StreamedResponse
from headrace.transport.wire.blocking import MOST_BYTES, receive_rest
from headrace.transport.wire.h1 import Malformed
from headrace.transport.wire.head import PREFIX_BYTES

if TYPE_CHECKING:
    from headrace.transport.stock.connection import GovernedHTTPConnection
    from headrace.transport.wire.h1 import AnswerReader


_GZIP: Final = 16 + zlib.MAX_WBITS
_OVER: Final = OSError("cannot read from timed out object")  # http.client's words for a second read


class Received(io.RawIOBase):
    """Reads what has been received, then what comes over the wire.

    Args:
        data: What has been received and is still to be read.
        wire: Reads from the socket; None: nothing more comes.
        error: What reading on has raised already; it is raised once more.
    """

    def __init__(self, data: bytes, wire: io.RawIOBase | None, error: Exception | None = None) -> None:
        self._data = memoryview(data)
        self._wire = wire
        self._error = error
        self._is_silent = False

    @property
    def _sock(
        self,
    ) -> socket.socket | None:  # where http.client's own reader has it: hooks look for a certificate
        return getattr(self._wire, "_sock", None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        data = self._data
        if data:
            n = min(len(buffer), len(data))
            buffer[:n] = data[:n]
            self._data = data[n:]
            return n
        if self._is_silent:
            return 0
        if self._error is not None:
            error, self._error = self._error, _OVER
            try:
                raise error
            finally:
                del error  # a frame that it refers to must not refer to it
        if self._wire is None:
            return 0
        # From now on without a call of ours: one for each look at the socket is what a large body costs.
        self.readinto = self._wire.readinto  # type: ignore[method-assign]
        return self.readinto(buffer)

    def has_more(self, reader: io.BufferedReader) -> bool:
        """Whether *reader*, which reads from this, or this has unread bytes. Does not block."""
        self.__dict__.pop("readinto", None)
        self._is_silent = True
        try:
            return bool(reader.peek(1))
        except ValueError:
            return False
        finally:
            self._is_silent = False

    def fileno(self) -> int:
        if self._wire is None:
            raise OSError("there is no socket")
        return self._wire.fileno()

    def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        super().close()


def received_again(sock: socket.socket, data: bytes, error: Exception | None = None) -> io.BufferedReader:
    """A reader of *data* and of what comes after it over *sock*, as `sock.makefile("rb")` is one."""
    return io.BufferedReader(Received(data, sock.makefile("rb", buffering=0), error))


def _fields_in(answer: Any) -> list[tuple[str, str]]:
    """Names and values in the head of *answer*, in order."""
    lines = answer.head.decode("latin-1").split("\n")[1:-2]  # the codec has passed it: each has a colon
    return [(one[0], one[2].strip(" \t\r")) for one in [line.partition(":") for line in lines]]


class WireAnswer(FramedAnswer):
    """http.client's answer. Its head was read by the codec, and `begin` is not called.

    Attributes:
        head: As it came.
        body: The whole body, its framing removed; None: it has not come yet, or it was taken.
        pieces: What was received, from the first byte on; emptied once nobody can ask for it any more.
        reader: Where what comes next goes; None: the codec is left out of it.
        sock: Where what comes next comes from, until `fp` reads from it.
        error: What a wait for more has ended with.
    """

    debuglevel = 0
    chunk_left = None
    is_last = False
    closed = property(attrgetter("_is_over"))
    _is_over = False

    def __init__(
        self,
        reader: AnswerReader,
        pieces: list[bytes],
        method: str,
        sock: socket.socket | None,
        body: bytes | None,
    ) -> None:
        # Not http.client's, which makes a file of the socket.
        self.reader: AnswerReader | None = reader
        self.head = head = reader.head
        self.status = self.code = status = reader.status
        self.reason = (
            head[PREFIX_BYTES : head.find(b"\n")].strip().decode("latin-1")
        )  # as the codec does: a call less
        self.version = reader.version
        self._method = method
        self.pieces = pieces
        self.body = body
        self.sock = sock
        self.error: Exception | None = None
        if method == "HEAD":
            self.chunked, self.length = reader.chunked, 0
        elif status < 200 or status == 204 or status == 304:
            self.chunked, self.length = False, 0
        else:
            self.chunked, self.length = reader.chunked, None if reader.chunked else reader.length

    @cached_property
    def fp(self) -> Any:  # type: ignore[override]
        """The body as it comes over the wire. http.client reads from it, and sets it to None at the end."""
        pieces, self.pieces = self.pieces, []
        body, self.body = self.body, None
        sock, self.sock, self.reader = self.sock, None, None
        if body is not None and not self.chunked:
            return io.BytesIO(body)
        data = behind(self.head, pieces)
        if body is not None or sock is None:
            return io.BytesIO(data)
        return received_again(sock, data, self.error)

    @cached_property
    def msg(self) -> http.client.HTTPMessage:  # type: ignore[override]
        """The headers, as http.client has them."""
        message = http.client.HTTPMessage()
        message._headers = self.fields.copy()  # type: ignore[attr-defined]  # as its parser fills it
        message._payload = ""  # type: ignore[attr-defined]
        return message

    fields = cached_property(_fields_in)

    @cached_property
    def headers(self) -> http.client.HTTPMessage:  # type: ignore[override]
        """The same object."""
        return self.msg

    @cached_property
    def will_close(self) -> bool:  # type: ignore[override]
        """No other answer follows on the connection."""
        if not self.chunked and self.length is None:
            return True
        if self.version == 11 and b"\nconnection:" not in self.head.lower():
            return False
        return bool(self._check_close())  # type: ignore[attr-defined]

    def isclosed(self) -> bool:
        """Whether there is nothing more to be read."""
        return self.__dict__.get("fp", self) is None

    def close(self) -> None:
        """Nothing more will be read."""
        if "fp" not in self.__dict__:
            self.is_taken()
            return
        fp = self.fp
        self._is_over = True
        if fp is not None:
            self._close_conn()

    def flush(self) -> None:
        """Nothing is written."""

    def is_taken(self) -> None:
        """Nothing is left to be read: all of it was taken, or it was given up."""
        self.body, self.pieces, self.sock, self.reader = None, [], None, None
        self.fp = None
        self._is_over = True

    def _close_conn(self) -> None:
        self._is_over = True
        super()._close_conn()


def behind(head: bytes, pieces: list[bytes]) -> bytes:
    """What of *pieces*, an answer as it was received, comes behind its *head*."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if data.startswith(head):
        return data[len(head) :]
    return data[data.index(b"\n" + head) + 1 + len(head) :]  # behind a 100 Continue


class _Filled(GovernedResponse):
    """urllib3's response over a `WireAnswer`. What stock's `__init__` works out is worked out on touch."""

    # What stock's `__init__` sets on each object, where it is the same for all. `KNOWN` holds it to that.
    version_string = "HTTP/1.1"
    msg = None
    auto_close = True
    chunk_left = None
    _body: Any = None
    _decoder = None
    _decoder_initialized = False
    _fp_bytes_read = 0
    _has_decoded_content = False
    _retries = None
    _connection: Any
    _sock_shutdown: Callable[[int], None] | None
    _uncached_read_occurred = False
    _fp: Any
    _original_response: Any
    _fields: Any = property(attrgetter("_original_response.fields"))

    def __init__(
        self,
        answer: WireAnswer,
        *,
        method: str,
        url: str,
        decode_content: bool,
        enforce_content_length: bool,
        pool: Any,
        conn: GovernedHTTPConnection,
        retries: Any,
    ) -> None:
        self._fp = self._original_response = answer
        self.status = answer.status
        self.version = answer.version
        self.reason = answer.reason
        self.chunked = answer.chunked
        self.length_remaining = answer.length
        self.decode_content = decode_content
        self.enforce_content_length = enforce_content_length
        self._request_url = url
        self._pool = pool
        self._connection = conn
        self._sock_shutdown = conn.sock.shutdown
        self._retries = retries

    @property
    def headers(self) -> HTTPHeaderDict:
        """The headers; made when somebody asks for them."""
        found: HTTPHeaderDict | None = self.__dict__.get("_headers")
        if found is None:
            self._headers = found = HTTPHeaderDict()
            add = found.add  # given all at once, it looks at length of what kind they are
            for name, value in self._fields:
                add(name, value)
        return found

    @headers.setter
    def headers(self, headers: HTTPHeaderDict) -> None:
        self._headers = headers

    @cached_property
    def _decoded_buffer(self) -> BytesQueueBuffer:  # type: ignore[override]
        return BytesQueueBuffer()


class _AsStock:
    """Whether a response is closed as stock has it, where nothing was noted on the object itself."""

    def __get__(self, response: Any, kind: type) -> Any:
        return self if response is None else HTTPResponse.closed.__get__(response)


class WireResponse(_Filled):
    """The response of a buffered call. Nearly always its whole body has come by the time it is made."""

    closed = property(attrgetter("_is_closed"))  # asked in C, also by the finalizer
    _is_closed = _AsStock()

    def take(self, max_bytes: int | None) -> bytes | None:
        """The body, if all of it has come and nobody has looked at it; the response reads as empty from then on.

        None: it must be read, and decoded perhaps.

        Raises:
            BodyTooLarge: It has more than *max_bytes*.
        """
        answer = self._fp
        if answer.body is None and answer.reader is not None:
            self._receive_rest(answer)
        body: bytes | None = answer.body
        if body is None or b"\ncontent-encoding:" in answer.head.lower():
            return None
        if max_bytes is not None and len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
        self._fp_bytes_read += len(body)
        if self.length_remaining is not None:
            self.length_remaining -= len(body)
        self._uncached_read_occurred = True
        # `answer.is_taken()`, written out
        answer.body, answer.pieces, answer.sock, answer.reader = None, [], None, None
        answer.fp = None
        answer._is_over = self._is_closed = True
        conn, self._connection = self._connection, None
        if conn is not None:
            lease = conn.lease
            if lease is not None:  # it may have been ended in our place
                reusable = not answer.is_last and conn.sock is not None
                conn.leases.give_back(lease, reusable=reusable, reason="dead")
        return body

    def _receive_rest(self, answer: WireAnswer) -> None:
        """Receive the rest of the body through the codec, unless it is large. Blocks.

        What goes wrong is not told here. Stock's reader finds the same, and has an error of its own for each.
        """
        reader, sock, conn = answer.reader, answer.sock, self._connection
        answer.reader = None
        if reader is None or sock is None or conn is None:
            return
        if answer.length is not None and answer.length > MOST_BYTES:
            return  # one buffer, filled by a reader in C
        body = receive_rest(sock, reader, answer.pieces)
        if isinstance(body, Malformed):
            answer.is_last = True
        elif isinstance(body, OSError):
            answer.error = body
        if not isinstance(body, bytes):
            return
        answer.body, answer.sock = body, None
        answer.is_last = answer.is_last or not reader.reusable

    @property
    def data(self) -> bytes:
        """The body, as in urllib3."""
        body: bytes | None = self._body
        return super().data if body is None else body


class _Facts(NamedTuple):
    """What a `WireAnswer` asks a reader for."""

    status: int
    reason: str
    version: int
    head: bytes
    chunked: bool
    length: int | None


class _TakenAnswer(WireAnswer):
    """http.client's answer, of which nothing is left to be read."""

    def __bool__(self) -> bool:
        """Whether there may be cookies in it: requests asks before it looks for them, which takes 90 calls.

        Who has touched the headers may have put one there: adapters that authenticate do.
        """
        return "msg" in self.__dict__ or b"\nset-cookie" in self.head.lower()


class WholeResponse(WireResponse):
    """The response of a call that went the short way (`engine.lane`): its whole body has come, and was decoded.

    Only what nearly everybody asks for is set when it is made. What else urllib3's response has is made on touch.

    Attributes:
        head: As it came.
        told: What becomes the call's record when somebody asks for it; and the head in lower case.
        n_sent: Bytes of the body as it was sent.
    """

    version = 11
    decode_content = True
    enforce_content_length = True
    closed = True  # as stock's, once its body was read. Asked by the finalizer, too, which makes nothing then
    _connection = None
    _sock_shutdown = None
    _uncached_read_occurred = True
    _fields = property(_fields_in)  # of the head itself: `_original_response` is not made for it

    head: bytes
    told: Any
    n_sent: int
    record_of: Callable[[Any], Any]

    def __init__(self) -> None:
        """Its maker sets what it has."""

    def set_whole(self, body: bytes) -> bool:
        """Take *body*, as sent, for the body; False where it cannot be decoded. Mutates."""
        self.n_sent = len(body)
        self._body = body
        lowered = self.head.lower()
        if b"\ncontent-encoding:" not in lowered:
            return True
        try:
            if b"\ncontent-encoding: gzip\r" in lowered and lowered.count(b"\ncontent-encoding:") == 1:
                # What urllib3's decoder does to one member and nothing behind it, at a third of the time.
                unzip = zlib.decompressobj(_GZIP)
                whole = unzip.decompress(body)
                if not unzip.unused_data:
                    self._body = whole
                    return True
            self._init_decoder()
            self._body = self._decode(body, True, True) or b""
        except Exception:
            return False
        return True

    @cached_property
    def reason(self) -> str:  # type: ignore[override]
        """The reason phrase."""
        return self.head[13 : self.head.find(b"\r")].strip().decode("latin-1")

    @cached_property
    def chunked(self) -> bool:  # type: ignore[override]
        """Whether it came in chunks."""
        return self.status != 204 and b"\ntransfer-encoding:" in self.head.lower()

    @cached_property
    def length_remaining(self) -> int | None:  # type: ignore[override]
        """Bytes of the body that are still to be read; None: it came in chunks."""
        return None if self.chunked else 0

    @cached_property
    def _fp_bytes_read(self) -> int:  # type: ignore[override]
        return self.n_sent

    @cached_property
    def _original_response(self) -> WireAnswer:  # type: ignore[override]
        length = None if self.chunked else self.n_sent
        facts: Any = _Facts(self.status, self.reason, 11, self.head, self.chunked, length)
        answer = _TakenAnswer(facts, [], self.told[1], None, b"")
        answer.is_taken()
        return answer

    @cached_property
    def _fp(self) -> WireAnswer:  # type: ignore[override]
        return self._original_response

    @cached_property
    def _request_url(self) -> str:  # type: ignore[override]
        return self.told[2]  # type: ignore[no-any-return]

    @cached_property
    def _pool(self) -> Any:  # type: ignore[override]
        return self.told[0].endpoint.pool

    @cached_property
    def headrace(self) -> Any:
        """What became of the call."""
        return self.record_of(self.told)


class WireStreamed(_Filled, StreamedResponse):
    """The response of a streamed call."""


class WireLimited(_Filled, LimitedResponse):
    """The same, with a limit on the size of its body."""


def _is_known() -> bool:
    """Whether a response of stock's has no field that `_Filled` does not know of: of another urllib3, it may have."""
    own = {"status", "version", "reason", "chunked", "length_remaining", "decode_content"} | {
        "enforce_content_length",
        "headers",
    }
    own |= {"_request_url", "_pool"}
    made = HTTPResponse(b"", status=200, preload_content=False)
    return all(
        name in own or hasattr(_Filled, name) or name in _Filled.__annotations__ for name in vars(made)
    )


KNOWN = _is_known()
"""Whether urllib3's response is the one that these are made for. If not, stock makes the responses."""
