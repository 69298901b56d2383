"""What an awaited call gets: close to httpx's `Response` in its names."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from http.client import responses as reasons
from typing import TYPE_CHECKING, Any, Final, Self

from urllib3._collections import HTTPHeaderDict

from headrace.clock import monotonic
from headrace.errors import StatusError
from headrace.policy.outcome import Fault
from headrace.policy.record import Record
from headrace.transport.wire.errors import Malformed, TooLarge
from headrace.transport.wire.head import fields_of

if TYPE_CHECKING:
    from headrace.engine.aio import Way
    from headrace.transport.lease.place import CloseReason, Lease
    from headrace.transport.wire.aio import LoopWire

ACCEPTED: Final = "gzip, deflate"

_MOST_CODINGS: Final = 5  # as in urllib3
_HEADER_BYTES: Final = 1024  # far more than stands before the first byte that deflate gives out

_BOMS: Final = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_NO_CHARSETS: Final = frozenset({"punycode", "unicode-escape"})
"""Codecs of text that no server means: one takes hours for a megabyte, one warns of what it reads."""

_CHARSET: Final = re.compile(r";[ \t]*charset=\"?([^\s;\"]+)", re.IGNORECASE)


class Undecodable(Malformed):
    """The body is not of the coding that its head says."""


class Decoder:
    """Takes the codings of a body off, piece by piece.

    Args:
        codings: As in `Content-Encoding`, in their order; lower case.
        most: Longest body, decoded; None: no limit.
    """

    def __init__(self, codings: list[str], most: int | None) -> None:
        # A body with a coding that we do not know stays as it is, as in requests.
        known = all(one in ("gzip", "x-gzip", "deflate", "identity") for one in codings)
        steps = [one for one in reversed(codings) if one != "identity"] if known else []
        self._has_too_many = len(steps) > _MOST_CODINGS  # said where there is a body: a HEAD has none
        self._steps = [] if self._has_too_many else [_Inflate(one) for one in steps]
        self._left = most

    def decode(self, data: bytes) -> bytes:
        """What *data* comes to.

        Raises:
            Undecodable: It is not of that coding; or of more codings than anybody means.
            TooLarge: It comes to more than it may.
        """
        if self._has_too_many and data:
            raise Undecodable(f"the body has more than {_MOST_CODINGS} codings")
        for step in self._steps:
            data = step.decode(data, self._left)
        if self._left is not None:
            if len(data) > self._left:
                raise TooLarge("the body is longer than it may be, decoded", is_of_body=True)
            self._left -= len(data)
        return data

    def end(self) -> None:
        """There is no more. Raises Undecodable where there should be."""
        for step in self._steps:
            step.end()


class _Inflate:
    def __init__(self, coding: str) -> None:
        self._is_gzip = coding.endswith("gzip")
        self._made = self._anew()
        self._has_begun = self._is_over = False
        self._is_later = False  # gzip: a member after the first
        # deflate: all of it, until it is known to have its header
        self._held: bytes | None = None if self._is_gzip else b""

    def _anew(self) -> Any:
        return zlib.decompressobj(16 + zlib.MAX_WBITS if self._is_gzip else zlib.MAX_WBITS)

    def decode(self, data: bytes, most: int | None) -> bytes:
        parts: list[bytes] = []
        limit, size = 0 if most is None else most + 1, 0
        self._has_begun = self._has_begun or bool(data)
        try:
            while data and not self._is_over:
                if self._made.eof:
                    if not self._is_gzip or not data.startswith(b"\x1f"):
                        self._is_over = True  # behind it, as browsers do: nothing
                        break
                    self._made, self._is_later = self._anew(), True  # gzip may have several members
                part = self._inflate(data, limit)
                size += len(part)
                parts.append(part)
                if limit and size >= limit:
                    break
                data = self._made.unused_data
        except zlib.error as error:
            if self._is_later:  # as urllib3 does
                self._is_over = True
                return b"".join(parts)
            raise Undecodable(f"the body cannot be decoded: {error}") from error
        return b"".join(parts)

    def _inflate(self, data: bytes, limit: int) -> bytes:
        held = self._held
        if held is None:
            return self._made.decompress(data, limit)  # type: ignore[no-any-return]
        try:
            part: bytes = self._made.decompress(data, limit)
        except zlib.error:  # some servers send it without its header
            self._held, self._made = None, zlib.decompressobj(-zlib.MAX_WBITS)
            return self._made.decompress(held + data, limit)  # type: ignore[no-any-return]
        held += data
        self._held = None if part or len(held) > _HEADER_BYTES else held
        return part

    def end(self) -> None:
        if self._has_begun and not self._made.eof and not self._is_over:
            raise Undecodable("the body ends before its coding does")


def _as_begun(encoding: str, beginning: bytes) -> str:
    """*encoding* for a body with that *beginning*: without a mark, little-endian, as browsers read it."""
    boms = _BOMS.get(encoding)
    return encoding if boms is None or beginning.startswith(boms) else f"{encoding}-le"


class Answer:
    """One answer of an awaited call. Owned by its task.

    A streamed one (`stream()`) is read by `aread()`, `aiter_bytes()` and their like, and closed by `aclose()`; it is
    closed where its `async with` ends. Read to its end, it has given its connection back.

    Attributes:
        status_code: Its status.
        url: What was asked for.
        http_version: `HTTP/1.1` or `HTTP/1.0`.
        elapsed: From the call to the head of this answer, retries and pauses included.
        headrace: What became of the call.
        is_closed: Nothing more can be read off the wire.
    """

    headrace: Record

    # What follows a streamed body: `engine.surface.Streamed`.
    lease: Lease[Any] | None = None
    let_go: Callable[[], object] | None = None
    on_break: Callable[[Exception, Fault, bool, CloseReason | None], None] | None = None
    on_excess: Callable[[], Exception] | None = None
    max_bytes: int | None = None

    def __init__(
        self,
        status: int,
        headers: HTTPHeaderDict | None,
        *,
        url: str,
        method: str,
        reason: str | None = None,
        version: int = 11,
        content: bytes | None = None,
    ) -> None:
        self.status_code = status
        self._headers = headers
        self._raw_headers: Callable[[], list[tuple[bytes, bytes]]] = list
        self.url = url
        self.http_version = "HTTP/1.1" if version == 11 else "HTTP/1.0"
        self.elapsed = timedelta(0)
        self.is_closed = content is not None
        self._reason = reason
        self._method = method
        self._content = content
        self._way: Way | None = None
        self._wire: LoopWire | None = None
        self._decoder: Decoder | None = None
        self._read_s = 0.0
        self._is_taken = False  # somebody reads it, or has
        self._as_told: Callable[[Exception], tuple[Exception, Fault, bool]] | None = None

    @classmethod
    def of(cls, wire: LoopWire, way: Way, *, url: str, method: str, streamed: bool, most: int | None) -> Self:
        """The answer that *wire* has: its head, and its body unless that is *streamed*.

        Raises:
                Undecodable, TooLarge: Its body cannot be had.
        """
        reader = wire.reader
        answer = cls(
            reader.status, None, url=url, method=method, reason=reader.reason, version=reader.version
        )
        answer._raw_headers = partial(fields_of, reader.head)  # most callers look at none
        codings: list[str] = []
        if b"\ncontent-encoding:" in reader.lowered:
            named = answer.headers["content-encoding"].split(",")
            codings = [one.strip().lower() for one in named if one.strip()]
        decoder = Decoder(codings, most)
        if streamed:
            answer._wire, answer._way, answer._decoder, answer.lease = wire, way, decoder, way.lease
            answer.max_bytes = most
        else:
            content = decoder.decode(reader.take())
            decoder.end()
            answer._content, answer.is_closed = content, True
        return answer

    def follow(self, read_s: float, as_told: Callable[[Exception], tuple[Exception, Fault, bool]]) -> None:
        """Be read with *read_s* of silence at most; *as_told* makes of an error what its caller gets. Mutates."""
        self._read_s, self._as_told = read_s, as_told

    @property
    def headers(self) -> HTTPHeaderDict:
        """Looked up without regard to case; several of one name are joined by commas, and `getlist()` has each."""
        found = self._headers
        if found is None:
            self._headers = found = HTTPHeaderDict()
            for name, value in self._raw_headers():
                found.add(name.decode("latin-1"), value.decode("latin-1"))
        return found

    @property
    def reason_phrase(self) -> str:
        """As sent, or as the status has it."""
        return reasons.get(self.status_code, "") if self._reason is None else self._reason

    @property
    def is_success(self) -> bool:
        """2xx."""
        return 200 <= self.status_code <= 299

    @property
    def is_error(self) -> bool:
        """4xx and 5xx."""
        return 400 <= self.status_code <= 599

    @property
    def content(self) -> bytes:
        """The body, decoded.

        Raises:
            RuntimeError: It is streamed, and was not read: `await answer.aread()`.
        """
        if self._content is None:
            raise RuntimeError("the body of a streamed answer is not there yet: await answer.aread()")
        return self._content

    @property
    def encoding(self) -> str:
        """The charset that its head says, where Python knows it; else utf-8."""
        found = _CHARSET.search(self.headers.get("content-type", ""))
        if found is not None:
            try:
                name = codecs.lookup(found[1]).name
                # Some are no charsets (hex), some replace nothing (idna): they raise, or give bytes.
                text: object = codecs.getincrementaldecoder(name)("replace").decode(b"\xff", True)
            except Exception:
                return "utf-8"
            if isinstance(text, str) and name not in _NO_CHARSETS:
                return name
        return "utf-8"

    @property
    def text(self) -> str:
        """The body as text; what cannot be decoded is replaced."""
        content = self.content
        return content.decode(_as_begun(self.encoding, content), "replace")

    def json(self, **kw: Any) -> Any:
        """The body as JSON; *kw* as for `json.loads`."""
        return json.loads(self.content, **kw)

    def raise_for_status(self) -> Self:
        """Itself.

        Raises:
            StatusError: The status is 4xx or 5xx.
        """
        if self.is_error:
            text = f"{self.status_code} {self.reason_phrase} for {self._method} {self.url}"
            raise StatusError(text, response=self)
        return self

    async def aread(self) -> bytes:
        """The body, decoded. Raises as `aiter_bytes`."""
        if self._content is None:
            self._content = b"".join([piece async for piece in self.aiter_bytes()])
        return self._content

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """The body piece by piece, decoded.

        Args:
            chunk_size: Bytes of each piece but the last; None: as they come.

        Raises:
            TransportError: It broke off, or nothing came for `timeouts.read`.
            ResponseTooLarge: It is longer than `pool.max_response_body`.
            RuntimeError: It was read already, or closed.
        """
        held = bytearray()
        async for piece in self._pieces():
            if chunk_size is None:
                yield piece
                continue
            held += piece
            while len(held) >= chunk_size:
                yield bytes(held[:chunk_size])
                del held[:chunk_size]
        if held:
            yield bytes(held)

    async def aiter_text(self, chunk_size: int | None = None) -> AsyncIterator[str]:
        """The same as text."""
        encoding, held, decoder = self.encoding, b"", None
        needed = 4 if encoding in _BOMS else 0
        async for piece in self.aiter_bytes(chunk_size):
            if decoder is None:
                held += piece
                if len(held) < needed:
                    continue
                piece = held
                decoder = codecs.getincrementaldecoder(_as_begun(encoding, held))("replace")
            if text := decoder.decode(piece):
                yield text
        if decoder is not None:
            held = b""
        else:
            decoder = codecs.getincrementaldecoder(_as_begun(encoding, held))("replace")
        if text := decoder.decode(held, True):
            yield text

    async def aiter_lines(self) -> AsyncIterator[str]:
        """The same line by line, without their ends."""
        held = ""
        async for text in self.aiter_text():
            *lines, held = (held + text).split("\n")
            for line in lines:
                yield line.removesuffix("\r")
        if held:
            yield held

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._content is not None:
            if self._content:
                yield self._content
            return
        decoder, wire = self._decoder, self._wire
        if decoder is None or wire is None or self.is_closed:
            raise RuntimeError("the body was read already, or the answer was closed")
        if self._is_taken:  # what is left is no body, and two cannot wait for one piece
            raise RuntimeError(
                "the body was read already, if only in part: aread() first, then as often as you like"
            )
        self._is_taken = True
        try:
            while not self.is_closed:
                data = await wire.more(self._read_s)
                if not data:
                    decoder.end()
                    self._give_back()
                    return
                if piece := decoder.decode(data):
                    yield piece
            raise RuntimeError("the answer was closed while it was read")
        except Exception as error:
            raise self._broke(error) from error
        except BaseException:
            self.close()
            raise

    def _broke(self, error: Exception) -> Exception:
        lease, as_told = self.lease, self._as_told
        if self.is_closed or as_told is None:
            return error
        aborted = None if lease is None else lease.aborted
        self.close()
        if isinstance(error, TooLarge) and error.is_of_body and self.on_excess is not None:
            return self.on_excess()
        told, fault, cut = as_told(error)
        if self.on_break is not None:
            self.on_break(told, fault, cut, aborted)
        return told

    def _give_back(self) -> None:
        self.is_closed = True
        way, wire = self._way, self._wire
        if way is not None and wire is not None:
            way.shelf.give_back(way.lease, reusable=wire.is_reusable, reason="dead")
        self._way = self._wire = None

    def close(self) -> None:
        """Close it, on the thread of its loop: what is left of its body is not read. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            way = self._way
            if way is not None:
                way.shelf.give_back(way.lease, reusable=False)
            self._way = self._wire = None

    async def aclose(self) -> None:
        """Close it: what is left of its body is not read. Idempotent."""
        wire = self._wire
        if not self.is_closed and wire is not None and wire.reader.done:
            self._give_back()
        self.close()

    async def keep(self, most: int, ends_at: float) -> bool:
        """Whether all of its body could be read by *ends_at*, and is kept; else it is closed. Mutates."""
        wire, decoder = self._wire, self._decoder
        if wire is None or decoder is None:
            return self._content is not None
        parts, size = [], 0
        try:
            while data := await wire.more(max(ends_at - monotonic(), 0.001)):
                parts.append(decoder.decode(data))
                size += len(parts[-1])
                if size > most or monotonic() >= ends_at:
                    self.close()
                    return False
        except Exception:
            self.close()
            return False
        except BaseException:
            self.close()
            raise
        self._give_back()
        self._content = b"".join(parts)
        return True

    def __del__(self) -> None:
        way = self._way
        if way is not None:  # dropped unread: without a lock, for the collector may run anywhere
            self._way = None
            way.shelf.drop(way.lease)

    def __repr__(self) -> str:
        return f"<Answer [{self.status_code} {self.reason_phrase}]>"
