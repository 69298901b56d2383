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
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final, NoReturn

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from headrace.transport.wire.errors import Malformed, TooLarge, Truncated
from headrace.transport.wire.head import (
    BEGINNING,
    CRLF,
    FIELD_LINE,
    LF,
    PREFIX_BYTES,
    Body,
    check_head,
    fields_of,
    framing_of,
    has_other_eol,
    render_fields,
    render_head,
    said_of,
)

__all__ = [
    "AnswerReader",
    "Limits",
    "Malformed",
    "TooLarge",
    "Truncated",
    "render_fields",
    "render_head",
]


@dataclass(frozen=True, slots=True)
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


_USUAL: Final = Limits()


class State(Enum):
    """What an answer's next byte belongs to."""

    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    UNTIL_CLOSE = auto()
    BEHIND = auto()
    """To no answer: this one is complete."""
    BROKEN = auto()
    """To nothing that can be read."""


_HEAD: Final = State.HEAD  # looked up once: a member of an Enum takes longer to find than a global
_BEHIND: Final = State.BEHIND
_BROKEN: Final = State.BROKEN
_WITHOUT_BODY: Final = frozenset({204, 304})

_AT_ONCE_BYTES: Final = 32_768
"""A longer piece is seldom a whole answer, and llhttp would copy it in vain."""

_SHORTEST_LINE_BYTES: Final = 4  # b"a:\r\n"

_CHUNK_SIZE: Final = {
    # Blanks behind the size: some servers pad it, and h11 and stock read it, too.
    eol: re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\r\n\0]*)?" + eol)
    for eol in (CRLF, LF)
}


class _Callbacks:
    """What llhttp calls: C functions only."""

    __slots__ = ("on_body", "on_message_complete")

    def __init__(self, parts: list[bytes], ends: list[None]) -> None:
        self.on_body = parts.append
        self.on_message_complete = partial(ends.append, None)


class AnswerReader:
    """Reads one answer after the other from what one connection has received. Not thread-safe.

    For each request: `begin`, then `feed` until it says True, and `take` what has come of the body meanwhile.

    Attributes:
        started: A byte of the answer has come, be it of a 1xx: the request must not be sent again unasked.
        head_done: Its head is complete: status, version, head, chunked and length hold, and what is read from them.
        status: Its status; 0 before its head is complete.
        version: 10 or 11.
        head: Its head as sent, with the empty line.
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
        "_ends",
        "_eol",
        "_fields",
        "_held",
        "_is_clean",
        "_is_last",
        "_left",
        "_limits",
        "_looked",
        "_many_headers_bytes",
        "_method",
        "_parser",
        "_parts",
        "_received",
        "_state",
        "_trailer_bytes",
        "behind",
        "chunked",
        "done",
        "head",
        "head_done",
        "informational",
        "length",
        "reusable",
        "started",
        "status",
        "trailers",
        "version",
    )

    def __init__(self, limits: Limits = _USUAL) -> None:
        self._limits = limits
        # What is no longer than this passes no limit but that of headers.
        self._at_once_bytes = min(_AT_ONCE_BYTES, limits.head_bytes, limits.line_bytes)
        self._many_headers_bytes = _SHORTEST_LINE_BYTES * limits.headers
        if limits.body_bytes is not None:
            self._at_once_bytes = min(self._at_once_bytes, limits.body_bytes)
        self._parts: list[bytes] = []
        self._ends: list[None] = []
        self._parser = HttpResponseParser(_Callbacks(self._parts, self._ends))
        self._is_clean = True  # the parser stands before an answer
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
        self.head = self.behind = b""
        self.length: int | None = None
        self.informational: list[int] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self._state = _HEAD
        self._method = method
        self._fields: list[tuple[bytes, bytes]] | None = None
        self._parts.clear()

    def feed(self, data: bytes) -> bool:
        """Read *data*, which has been received. Mutates.

        Returns:
            The answer is complete.

        Raises:
            Malformed: It is no answer, or could be read in two ways. What came of its body before can be taken.
        """
        if self.started:
            return self._read(data)
        if not data:
            return False
        self.started = True
        method, parts, ends = self._method, self._parts, self._ends
        if len(data) > self._at_once_bytes or method == "HEAD" or method == "CONNECT":
            return self._read_first(data)
        # Flat: 1 KiB takes a microsecond here, and each Python call would be a tenth of one.
        if self._is_clean:
            parser = self._parser
        else:
            self._parser = parser = HttpResponseParser(_Callbacks(parts, ends))
        self._is_clean = False
        ends.clear()
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return self._read_first(data)  # in words, or laxer, where stock has to be
        if len(ends) != 1:
            return self._read_first(data)  # more is to come, or it came with a 1xx or another answer
        n_bytes, n_parts, end = len(data), len(parts), data.find(b"\r\n\r\n") + 4
        head = data[:end]
        said = head.lower()
        status = parser.get_status_code()
        # llhttp passes over line ends between two answers. They are behind this one, too: so its end is computed.
        if n_parts == 0:
            is_usual = end == n_bytes
        elif n_parts == 1 and end + len(parts[0]) == n_bytes:
            is_usual = status not in _WITHOUT_BODY
        else:
            # The last line that is not empty is a size, for a trailer has a colon in it: so there are no trailers, and
            # nothing is behind the empty line, for the end of the chunks was seen once.
            is_usual = self.chunked = (
                data[-7:] == b"\r\n0\r\n\r\n"
                and b"\ntransfer-encoding: chunked\r" in said
                and said.count(b"\ntransfer-encoding:") == 1
                and status not in _WITHOUT_BODY
            )
        if (
            not is_usual
            or status < 200
            or data[:9] != b"HTTP/1.1 "
            or data.find(b"\n") != data.find(b"\r") + 1  # llhttp before 9.4.2 takes it behind the status line
            or (end > self._many_headers_bytes and said.count(b"\n") - 2 > self._limits.headers)
        ):
            return self._read_first(data)
        at = said.find(b"\nconnection:")
        if at < 0 or (
            said[at : at + 24] == b"\nconnection: keep-alive\r" and said.find(b"\nconnection:", at + 24) < 0
        ):
            self.reusable = self._is_clean = True
        else:  # should_keep_alive() does not know any more, and llhttp has misread blanks behind it
            said_ = said_of(fields_of(head), method=method, status=status, version=11)
            self.reusable = self._is_clean = not said_.closes
        self.head, self.status = head, status
        self.length = None if self.chunked else n_bytes - end
        self._state = _BEHIND
        self.head_done = self.done = True
        return True

    def end(self) -> None:
        """The peer has closed: no more will come. Mutates.

        Raises:
            Truncated: The answer is not complete, and this does not end it.
        """
        _ENDINGS[self._state](self)
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
        if self._state is State.LENGTH:
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
            self._count(n)
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
        self._parts.clear()
        self.chunked = False
        self._held = bytearray()  # of a line, or of the head: the piece before has ended amid it
        self._looked = 0  # as much of it has no line end of another kind
        self._eol = b""  # not known yet
        self._received = 0
        return self._read(data)

    def _read(self, data: bytes) -> bool:
        self._data, self._at = data, 0
        try:
            while _READERS[self._state](self):
                pass
        except Malformed:
            self._state = _BROKEN
            raise
        finally:
            self._data = b""
        return self.done

    def _read_head(self) -> bool:
        if not self._held:
            window: bytes | bytearray = self._data
            start = self._at
            known = 0
        else:
            known = len(self._held)
            window = self._held
            window += self._data[self._at :]
            start = 0
        looked = start + self._looked
        if not self._eol:
            self._see_first_line(window, start, looked)
        eol = self._eol
        end = -1 if not eol else window.find(eol + eol, max(start, looked - 3))
        if eol and has_other_eol(window, eol, looked, len(window) if end < 0 else end):
            raise Malformed("some lines of the head end in CR and LF, others in one of them")
        n_bytes = (len(window) if end < 0 else end + 2 * len(eol)) - start
        if n_bytes > self._limits.head_bytes:
            raise TooLarge(f"the head is longer than {self._limits.head_bytes} bytes")
        if end < 0:
            if not known:
                self._held += window[start:]
            self._looked = n_bytes - (window[-1] == 13)  # what comes may be the LF of a line end
            return False
        head = bytes(window[start : start + n_bytes])
        self._at += n_bytes - known
        self._held.clear()
        self._looked = 0
        check_head(head, eol)
        fields = fields_of(head)
        if len(fields) > self._limits.headers:
            raise TooLarge(f"there are more than {self._limits.headers} headers")
        status = int(head[9:12])
        if 100 <= status <= 199 and status != 101:
            self._skip(status)
        else:
            self._see_head(head, fields, status)
        return True

    def _see_first_line(self, window: bytes | bytearray, start: int, looked: int) -> None:
        if BEGINNING.fullmatch(window, start, min(len(window), start + PREFIX_BYTES)) is None:
            raise Malformed("what has come does not begin like an answer of HTTP/1.1")
        at = window.find(LF, looked)
        if at >= 0:
            self._eol = CRLF if window[at - 1] == 13 else LF

    def _skip(self, status: int) -> None:
        self.informational.append(status)
        if len(self.informational) > self._limits.informational:
            raise TooLarge(f"there are more than {self._limits.informational} answers with a status of 1xx")
        self._eol = b""

    def _see_head(self, head: bytes, fields: list[tuple[bytes, bytes]], status: int) -> None:
        version = 11 if head[7] == 49 else 10
        said = said_of(fields, method=self._method, status=status, version=version)
        framing = framing_of(said)
        self.head, self._fields, self.status, self.version = head, fields, status, version
        self.chunked, self.length = framing.body is Body.CHUNKED, framing.length
        self._is_last = framing.is_last or said.closes
        self._state = _BODIES[framing.body]
        self._left = framing.length or 0
        self.head_done = True
        most = self._limits.body_bytes
        if most is not None and self._left > most:
            raise self._too_long()
        if self._state is _BEHIND or (self._state is State.LENGTH and not self._left):
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
            self._count(len(part))
            self._parts.append(part)
        return self._left

    def _read_until_close(self) -> bool:
        self._left = len(self._data) - self._at
        self._take_left()
        return False

    def _read_chunk_size(self) -> bool:
        line = self._line("a chunk size with its extensions", self._limits.line_bytes)
        if line is None:
            return False
        found = _CHUNK_SIZE[self._eol].fullmatch(line)
        if found is None or (size := int(found[1], 16)) > sys.maxsize:
            raise Malformed("the size of a chunk is none")
        self._left = size
        self._state = State.CHUNK_DATA if size else State.TRAILERS
        self._trailer_bytes = 0
        return True

    def _read_chunk_data(self) -> bool:
        if self._take_left():
            return False
        self._state = State.CHUNK_END
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
        self._state = State.CHUNK_SIZE
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
            self.trailers += fields_of(LF + line)
        return True

    def _line(self, what: str, most: int, had: int = 0) -> bytes | None:
        """The next line with its end, unchecked; None: it has not come as a whole. Before it were *had* of *most*."""
        at = self._data.find(LF, self._at)
        end = len(self._data) if at < 0 else at + 1
        if had + len(self._held) + end - self._at > most:
            raise TooLarge(f"there are more than {most} bytes of {what}")
        piece = self._data[self._at : end]
        self._at = end
        if at < 0:
            self._held += piece
            return None
        if self._held:
            piece = bytes(self._held) + piece
            self._held.clear()
        return piece

    def _read_behind(self) -> bool:
        surplus = self._data[self._at :]
        if surplus:
            self.behind += surplus
            self.reusable = False
        self._at = len(self._data)
        return False

    def _refuse(self) -> NoReturn:
        raise Malformed("what came before could not be read")

    def _count(self, n: int) -> None:
        self._received += n
        most = self._limits.body_bytes
        if most is not None and self._received > most:
            raise self._too_long()

    def _too_long(self) -> TooLarge:
        return TooLarge(f"the body is longer than {self._limits.body_bytes} bytes")

    def _finish(self) -> None:
        self._complete()
        self.reusable = not self._is_last

    def _complete(self) -> None:
        self._state = _BEHIND
        self.done = True

    def _end_of_head(self) -> NoReturn:
        where = "amid the head" if self.started else "before the first byte"
        raise Truncated(f"the stream has ended {where} of an answer")

    def _end_of_body(self) -> NoReturn:
        of = "" if self.length is None else f" of {self.length}"
        text = f"the stream has ended after {self._received}{of} bytes of the body"
        raise Truncated(text, expected=self.length, received=self._received)


_READERS: Final[Mapping[State, Callable[[AnswerReader], bool]]] = {
    State.HEAD: AnswerReader._read_head,
    State.LENGTH: AnswerReader._read_length,
    State.CHUNK_SIZE: AnswerReader._read_chunk_size,
    State.CHUNK_DATA: AnswerReader._read_chunk_data,
    State.CHUNK_END: AnswerReader._read_chunk_end,
    State.TRAILERS: AnswerReader._read_trailer,
    State.UNTIL_CLOSE: AnswerReader._read_until_close,
    State.BEHIND: AnswerReader._read_behind,
    State.BROKEN: AnswerReader._refuse,
}
"""What reads on, by state. Says whether there may be more to read in the piece."""

_BODIES: Final[Mapping[Body, State]] = {
    Body.NONE: State.BEHIND,
    Body.OTHER_PROTOCOL: State.BEHIND,
    Body.LENGTH: State.LENGTH,
    Body.CHUNKED: State.CHUNK_SIZE,
    Body.UNTIL_CLOSE: State.UNTIL_CLOSE,
}
"""The state behind the head."""

_ENDINGS: Final[Mapping[State, Callable[[AnswerReader], object]]] = {
    State.HEAD: AnswerReader._end_of_head,
    State.LENGTH: AnswerReader._end_of_body,
    State.CHUNK_SIZE: AnswerReader._end_of_body,
    State.CHUNK_DATA: AnswerReader._end_of_body,
    State.CHUNK_END: AnswerReader._end_of_body,
    State.TRAILERS: AnswerReader._complete,  # some peers close instead of sending the empty line, as stock knows
    State.UNTIL_CLOSE: AnswerReader._complete,
    State.BEHIND: AnswerReader._complete,
    State.BROKEN: AnswerReader._refuse,
}
"""What the end of the stream means, by state."""
