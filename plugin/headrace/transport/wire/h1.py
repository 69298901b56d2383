"""The answers of one HTTP/1.1 connection: bytes in, head and body out.

Two readers, one meaning. An answer that has come in one piece and is of the usual shapes is passed by llhttp in C,
with callbacks that are C functions, too: about a microsecond for 1 KiB. All else is read by the table of states below,
which knows every shape and has the words for what is wrong. llhttp never has the last word: where it refuses, or
leaves a doubt, the table decides, so what is read depends neither on its version nor on how an answer was cut.
(In one module, though it is long: it is one object, its states, and the flat path that stands for most of them.)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NoReturn, TypeAlias

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from headrace.policy.frozen import frozen
from headrace.transport.wire.errors import Malformed, TooLarge, Truncated
from headrace.transport.wire.head import (
    BEGINNING,
    CRLF,
    FIELD_LINE,
    LF,
    PREFIX_BYTES,
    WITHOUT_BODY,
    Body,
    check_head,
    fields_of,
    framing_of,
    refuse_other_eol,
    render_fields,
    render_head,
    said_of,
)

__all__ = [
    "USUAL",
    "AnswerReader",
    "Limits",
    "Malformed",
    "TooLarge",
    "Truncated",
    "render_fields",
    "render_head",
]


@frozen
class Limits:
    """What an answer may have at most.

    Attributes:
        head_bytes: Of a head with its status line, and of all trailers together. http.client has this limit for a line.
        headers: Their count, and that of trailers; as in http.client.
        line_bytes: Of a chunk's size with its extensions.
        informational: 1xx heads before an answer. RFC 9110 has no limit; a server may send one now and then for hours.
        body_bytes: Of a body as sent, without the framing of chunks; None: no limit.
    """

    head_bytes: int = 65_536
    headers: int = 100
    line_bytes: int = 65_536
    informational: int = 100
    body_bytes: int | None = None


USUAL: Final = Limits()
"""Those of http.client, as it is published."""

_AT_ONCE_BYTES: Final = 32_768
"""A longer piece is seldom a whole answer, and llhttp would copy it in vain."""

_AS_HEADS_END: Final = frozenset({"HEAD", "CONNECT"})
"""Methods whose answers end with their heads, whatever these say."""

Whole: TypeAlias = tuple[int, bytes, bytes, bytes, bool, bool]
"""An answer that has come in one piece: status, head, head in lower case, body, whether it was framed by chunks, and
whether another answer may follow."""

_SHORTEST_LINE_BYTES: Final = 4  # b"a:\r\n"

_SIZE_LINE: Final = {
    # Blanks behind the size: some servers pad it, and h11 and stock read it, too.
    eol: re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\r\n\0]*)?" + eol)
    for eol in (CRLF, LF)
}


_BEGINNING_BYTES: Final = 32
_SIZE_BEGINNING: Final = re.compile(rb"(?:[0-9A-Fa-f]+[ \t]*(?:;[^\0]*|\r?\n?))?")
"""Any beginning of such a line: what is none is told before its end has come."""


@frozen
class _Stage:
    """How an answer stands.

    Attributes:
        read: Reads on in the piece; says whether the next stage may have something to read in it.
        end: The stream has ended.
    """

    read: Callable[[AnswerReader], bool]
    end: Callable[[AnswerReader], object]


class _Callbacks:
    """What llhttp calls: C functions only."""

    __slots__ = ("on_body", "on_message_begin", "on_message_complete")

    def __init__(self, parts: list[bytes], edges: list[None]) -> None:
        self.on_body = parts.append
        self.on_message_begin = self.on_message_complete = partial(edges.append, None)


class AnswerReader:
    """Reads one answer after the other from what one connection has received. Not thread-safe.

    For each request: `begin`, then `feed` until it says True, and `take` what has come of the body meanwhile.

    Attributes:
        started: A byte of the answer has come, be it of a 1xx: the request must not be sent again unasked.
        head_done: Its head is complete: status, version, head, chunked and length hold, and what is read from them.
        status: Its status; 0 before its head is complete.
        version: 10 or 11.
        head: Its head as sent, with the empty line.
        lowered: The same in lower case, to look for headers in.
        chunked: Its body is framed by chunks.
        length: Bytes of its body; None: the head does not tell.
        trailers: Names and values that came behind a chunked body.
        done: It is complete.
        reusable: It is complete, and another one may follow: nobody has said close, nothing has come behind it, it has
            one end only, and the peer has not left.
        behind: What came behind it; after a switch of protocols, the first bytes of the other one.
        informational: The 1xx that came before it.
    """

    __slots__ = (
        "_at",
        "_at_once_bytes",
        "_data",
        "_edges",
        "_eol",
        "_fields",
        "_held",
        "_is_last",
        "_left",
        "_limits",
        "_looked",
        "_many_headers_bytes",
        "_method",
        "_parser",
        "_parts",
        "_received",
        "_stage",
        "_trailer_bytes",
        "behind",
        "chunked",
        "done",
        "head",
        "head_done",
        "informational",
        "length",
        "lowered",
        "reusable",
        "started",
        "status",
        "trailers",
        "version",
    )

    def __init__(self, limits: Limits = USUAL) -> None:
        self._limits = limits
        # What is no longer than this passes no limit but that of headers.
        self._at_once_bytes = min(_AT_ONCE_BYTES, limits.head_bytes, limits.line_bytes)
        self._many_headers_bytes = _SHORTEST_LINE_BYTES * limits.headers
        if limits.body_bytes is not None:
            self._at_once_bytes = min(self._at_once_bytes, limits.body_bytes)
        self._parts: list[bytes] = []
        self._edges: list[None] = []
        self._parser: HttpResponseParser | None = None  # one that stands before an answer
        self.reusable = True
        self.begin("GET")
        self.reusable = True

    def begin(self, method: str) -> None:
        """The next answer is to a request with *method*, in upper case. Mutates.

        Raises:
            RuntimeError: No answer may follow the last one, or it is not complete.
        """
        if not self.reusable:
            raise RuntimeError("no answer may follow on this connection")
        self.started = self.head_done = self.done = self.reusable = self.chunked = False
        self.status = 0
        self.version = 11
        self.head = self.lowered = self.behind = b""
        self.length: int | None = None
        self.informational: list[int] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self._stage = _HEAD
        self._method = method
        self._fields: list[tuple[bytes, bytes]] | None = None
        self._parts.clear()

    def feed(self, data: bytes, is_odd: bool = False) -> bool:
        """Read *data*, which has been received. Mutates.

        Args:
            is_odd: `whole` was asked already.

        Returns:
            The answer is complete.

        Raises:
            Malformed: It is no answer, or could be read in two ways. What came of its body before can be taken.
        """
        if not data:
            return self.done
        if self.started:
            return self._read(data)
        self.started = True
        whole = None if is_odd else self.whole(self._method, data)
        if whole is None:
            return self._read_first(data)
        self.status, self.head, self.lowered, body, self.chunked, self.reusable = whole
        if body:
            self._parts.append(body)
        if not self.chunked:
            self.length = len(body)
        self._stage = _BEHIND
        self.head_done = self.done = True
        return True

    def whole(self, method: str, data: bytes) -> Whole | None:
        """The answer to a request with *method*, if *data*, its first piece, is all of it, and of a usual shape.

        It stands for `begin` and `feed`, and nothing else here tells of that answer. None: `begin` and `feed` (as
        *is_odd*) must be asked. Not to be called unless the last answer is `reusable`. Mutates.

        Flat: 1 KiB takes some microsecond here, and each Python call would be a tenth of one.
        """
        n_bytes = len(data)
        # What ends like a head has its body still to come, most often.
        if (
            n_bytes > self._at_once_bytes
            or method in _AS_HEADS_END
            or (data[-1] == 0x0A and data[-4:] == b"\r\n\r\n" and data[-7:-4] != b"\r\n0")
        ):
            return None
        parts, edges, parser = self._parts, self._edges, self._parser
        if parts:  # of the answer before, which nobody has taken
            parts.clear()
        if parser is None:
            self._parser = parser = HttpResponseParser(_Callbacks(parts, edges))
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return self._leave()  # to say it in words, or to read what stock reads
        # A beginning and an end. Else more is to come, or it came with a 1xx or with part of another answer.
        if len(edges) != 2 or not data.startswith(b"HTTP/1.1 "):
            return self._leave()
        edges.clear()
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        said = head.lower()
        status: int = parser.get_status_code()
        # llhttp passes over line ends between two answers. They are behind this one, too: so its end is computed.
        if len(parts) == 1 and end + len(parts[0]) == n_bytes:
            body, chunked = parts.pop(), False
        # The last line that is not empty is a size, for a trailer has a colon in it. So there are no trailers, and
        # nothing is behind the empty line.
        elif (
            data[-7:] == b"\r\n0\r\n\r\n"
            and said.find(b"\ntransfer-encoding: chunked\r") >= 0
            and said.count(b"\ntransfer-encoding:") == 1
        ):
            body, chunked = parts[0] if len(parts) == 1 else b"".join(parts), True
            parts.clear()
        else:
            return self._leave()
        if (
            status < 200
            or status in WITHOUT_BODY
            # llhttp before 9.4.2 does not look at the byte behind this one.
            or data[data.find(b"\r") + 1] != 0x0A
            or (end > self._many_headers_bytes and said.count(b"\n") - 2 > self._limits.headers)
        ):
            return self._leave()
        at = said.find(b"\nconnection:")
        reusable = at < 0 or (
            said.startswith(b"\nconnection: keep-alive\r", at) and said.find(b"\nconnection:", at + 24) < 0
        )
        if not reusable:  # should_keep_alive() has forgotten it by now
            reusable = not said_of(said, method=method).closes
        self.reusable = reusable
        return status, head, said, body, chunked, reusable

    def _leave(self) -> Whole | None:
        """Forget what llhttp has made of a piece that is not for it. Mutates."""
        self._parser = None
        self._parts.clear()
        self._edges.clear()
        return None

    def end(self) -> None:
        """The peer has closed: no more will come. Mutates.

        Raises:
            Truncated: The answer is not complete, and this does not end it.
        """
        self._stage.end(self)
        self.reusable = False

    def take(self) -> bytes:
        """What has come of the body since it was last asked; b"" where nothing has. Mutates."""
        parts = self._parts
        if len(parts) == 1:
            return parts.pop()
        body = b"".join(parts)
        parts.clear()
        return body

    def rest(self) -> int | None:
        """Bytes of the body that are still to come; None: its end is not known by a length.

        A driver may receive them by itself, and say so by `passed`.
        """
        if self._stage is _LENGTH:
            return self._left
        return 0 if self.done and self.length is not None else None

    def passed(self, n: int) -> None:
        """*n* bytes of the body have been received elsewhere. Mutates.

        Raises:
            ValueError: So many are not to come.
        """
        rest = self.rest()
        if rest is None or not 0 <= n <= rest:
            raise ValueError(f"{n} bytes cannot have come: {rest} are to come")
        if n:
            self._left -= n
            self._received += n
            if not self._left:
                self._finish()

    @property
    def reason(self) -> str:
        """The reason phrase, as latin-1; "" where there is none."""
        return self.head[13 : self.head.find(b"\n")].strip().decode("latin-1")

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Names and values of the head in their order, without the blanks around a value."""
        found = self._fields
        if found is None:
            self._fields = found = fields_of(self.head)
        return found

    # ── the table of states ──

    def _read_first(self, data: bytes) -> bool:
        self._held = bytearray()  # of a line, or of the head: the piece before has ended within it
        self._looked = 0  # as much of it has no line end of another kind
        self._eol = b""  # not known yet
        self._received = 0
        return self._read(data)

    def _read(self, data: bytes) -> bool:
        self._data, self._at = data, 0
        try:
            while self._stage.read(self):
                pass
        except Malformed:
            self._stage = _BROKEN
            raise
        finally:
            self._data = b""
        return self.done

    def _read_head(self) -> bool:
        held = len(self._held)
        if held:
            window: bytes | bytearray = self._held
            start = 0
            window += self._data[self._at :]
        else:
            window = self._data
            start = self._at
        looked = start + self._looked
        # As if it had come byte by byte, no more is looked at than what passes the limit.
        most = start + self._limits.head_bytes + 1
        if not self._eol:
            at = window.find(LF, looked, most)
            if at >= 0:
                self._eol = CRLF if window[at - 1 : at] == b"\r" else LF
                looked = start
        eol = self._eol
        end = window.find(eol + eol, max(start, looked - 3)) if eol else -1
        n_bytes = (len(window) if end < 0 else end + 2 * len(eol)) - start
        if end < 0 or n_bytes > self._limits.head_bytes:
            self._see_part(window, start, looked, min(most, len(window) if end < 0 else end))
            if n_bytes > self._limits.head_bytes:
                raise TooLarge(f"the head is longer than {self._limits.head_bytes} bytes")
            if not held:
                self._held += window[start:]
            self._looked = n_bytes - (window[-1:] == b"\r")  # what comes may be the LF of a line end
            return False
        head = bytes(window[start : start + n_bytes])
        self._at += n_bytes - held
        self._held.clear()
        self._looked = 0
        check_head(head, eol)
        if head.count(LF) - 2 > self._limits.headers:
            raise TooLarge(f"there are more than {self._limits.headers} headers")
        if head[9] == 0x31 and head[9:12] != b"101":
            self._skip(int(head[9:12]))
        else:
            self._see_head(head)
        return True

    def _see_part(self, window: bytes | bytearray, start: int, looked: int, end: int) -> None:
        """Refuse as early as can be what cannot become a head."""
        if BEGINNING.fullmatch(window, start, min(len(window), start + PREFIX_BYTES)) is None:
            raise Malformed("what has come does not begin like an answer of HTTP/1.1")
        if self._eol:
            refuse_other_eol(window, self._eol, looked, end)

    def _skip(self, status: int) -> None:
        self.informational.append(status)
        if len(self.informational) > self._limits.informational:
            raise TooLarge(f"there are more than {self._limits.informational} answers with a status of 1xx")
        self._eol = b""

    def _see_head(self, head: bytes) -> None:
        self.lowered = lowered = head.lower()
        said = said_of(lowered, method=self._method)
        framing = framing_of(said)
        self.head, self.status, self.version = head, said.status, said.version
        self.chunked, self.length = framing.body is Body.CHUNKED, framing.length
        self._is_last = framing.is_last or said.closes
        self._left = framing.length or 0
        self._stage = _BODIES[framing.body]
        self.head_done = True
        most = self._limits.body_bytes
        if most is not None and self._left > most:
            raise self._too_long()
        if framing.length == 0:
            self._finish()

    def _read_length(self) -> bool:
        if self._take_left():
            return False
        self._finish()
        return True

    def _take_left(self) -> int:
        data, at = self._data, self._at
        part = data[at : at + self._left] if at or len(data) > self._left else data
        if part:
            self._at += len(part)
            self._left -= len(part)
            self._add(part)
        return self._left

    def _read_until_close(self) -> bool:
        self._left = len(self._data) - self._at
        self._take_left()
        return False

    def _read_chunk_size(self) -> bool:
        if not self._held:
            self._read_whole_chunks()
        line = self._line(
            "a chunk size with its extensions", self._limits.line_bytes, beginning=_SIZE_BEGINNING
        )
        if line is None:
            return False
        found = _SIZE_LINE[self._eol].fullmatch(line)
        if found is None or (size := int(found[1], 16)) > sys.maxsize:
            raise Malformed("the size of a chunk is none")
        self._left = size
        self._stage = _CHUNK_DATA if size else _TRAILERS
        self._trailer_bytes = 0
        return True

    def _read_whole_chunks(self) -> None:
        """Read the chunks that are in the piece from their first byte to their last, but for the last chunk."""
        data, at, eol = self._data, self._at, self._eol
        size_at, most = _SIZE_LINE[eol].match, self._limits.line_bytes
        add = self._parts.append if self._limits.body_bytes is None else self._add
        received = 0
        # Flat: a stream has thousands of them.
        while found := size_at(data, at):
            start = found.end()
            size = int(found[1], 16)
            end = start + size
            if not size or start - at > most or data[end : end + len(eol)] != eol:
                break
            add(data[start:end])
            received += size
            self._at = at = end + len(eol)
        if self._limits.body_bytes is None:
            self._received += received

    def _read_chunk_data(self) -> bool:
        if self._take_left():
            return False
        self._stage = _CHUNK_END
        return True

    def _read_chunk_end(self) -> bool:
        eol = self._eol
        had = len(self._held)
        self._held += self._data[self._at : self._at + len(eol) - had]
        if not eol.startswith(self._held):
            raise Malformed("a chunk is longer than its size")
        self._at += len(self._held) - had
        if len(self._held) < len(eol):
            return False
        self._held.clear()
        self._stage = _CHUNK_SIZE
        return True

    def _read_trailer(self) -> bool:
        eol = self._eol
        line = self._line("the trailers", self._limits.head_bytes, self._trailer_bytes)
        if line is None:
            return False
        self._trailer_bytes += len(line)
        if line == eol:
            self._finish()
        elif FIELD_LINE[eol].fullmatch(line) is None:
            raise Malformed("a trailer is no header")
        elif len(self.trailers) == self._limits.headers:
            raise TooLarge(f"there are more than {self._limits.headers} trailers")
        else:
            name, _, value = line.partition(b":")
            self.trailers.append((name, value.strip(b" \t\r\n")))
        return True

    def _line(
        self, what: str, most: int, had: int = 0, beginning: re.Pattern[bytes] | None = None
    ) -> bytes | None:
        """The next line with its end, unchecked; None: it has not come as a whole.

        Args:
            had: How many of *most* bytes were before it.
            beginning: What the first bytes of a line that is not whole are like.
        """
        at = self._data.find(LF, self._at)
        end = len(self._data) if at < 0 else at + 1
        piece = self._data[self._at : end]
        self._at = end
        line: bytes | bytearray = piece
        if self._held:
            self._held += piece
            line = self._held
        is_too_long = had + len(line) > most
        if at >= 0 and not is_too_long:
            self._held = bytearray()
            return bytes(line)
        # As if it had come byte by byte, no more is looked at than what passes the limit.
        if (
            beginning is not None
            and beginning.fullmatch(line, 0, min(_BEGINNING_BYTES, most - had + 1)) is None
        ):
            raise Malformed("the size of a chunk is none")
        if is_too_long:
            raise TooLarge(f"there are more than {most} bytes of {what}")
        if not self._held:
            self._held += piece
        return None

    def _read_behind(self) -> bool:
        surplus = self._data[self._at :]
        if surplus:
            self.behind += surplus
            self.reusable = False
        self._at = len(self._data)
        return False

    def _refuse(self) -> NoReturn:
        raise Malformed("what came before could not be read")

    def _add(self, part: bytes) -> None:
        self._received += len(part)
        most = self._limits.body_bytes
        if most is not None and self._received > most:
            self._parts.append(part[: most - self._received])
            raise self._too_long()
        self._parts.append(part)

    def _too_long(self) -> TooLarge:
        return TooLarge(f"the body is longer than {self._limits.body_bytes} bytes", is_of_body=True)

    def _finish(self) -> None:
        self._complete()
        self.reusable = not self._is_last

    def _complete(self) -> None:
        self._stage = _BEHIND
        self.done = True

    def _end_of_head(self) -> NoReturn:
        where = "within the head" if self.started else "before the first byte"
        raise Truncated(f"the stream has ended {where} of an answer")

    def _end_of_body(self) -> NoReturn:
        of = "" if self.length is None else f" of {self.length}"
        text = f"the stream has ended after {self._received}{of} bytes of the body"
        raise Truncated(text, expected=self.length, received=self._received)


# ── the table of states: what reads on, and what the end of the stream means ──

_HEAD: Final = _Stage(AnswerReader._read_head, AnswerReader._end_of_head)
_LENGTH: Final = _Stage(AnswerReader._read_length, AnswerReader._end_of_body)
_CHUNK_SIZE: Final = _Stage(AnswerReader._read_chunk_size, AnswerReader._end_of_body)
_CHUNK_DATA: Final = _Stage(AnswerReader._read_chunk_data, AnswerReader._end_of_body)
_CHUNK_END: Final = _Stage(AnswerReader._read_chunk_end, AnswerReader._end_of_body)
# Some peers close instead of sending the last, empty line; stock reads their answers.
_TRAILERS: Final = _Stage(AnswerReader._read_trailer, AnswerReader._complete)
_UNTIL_CLOSE: Final = _Stage(AnswerReader._read_until_close, AnswerReader._complete)
_BEHIND: Final = _Stage(AnswerReader._read_behind, AnswerReader._complete)
_BROKEN: Final = _Stage(AnswerReader._refuse, AnswerReader._refuse)

_BODIES: Final[Mapping[Body, _Stage]] = {
    Body.NONE: _BEHIND,
    Body.OTHER_PROTOCOL: _BEHIND,
    Body.LENGTH: _LENGTH,
    Body.CHUNKED: _CHUNK_SIZE,
    Body.UNTIL_CLOSE: _UNTIL_CLOSE,
}
"""What comes behind a head."""
