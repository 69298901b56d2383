"""What the head of an answer says, above all where its body ends; and heads of requests, rendered.

The grammar is RFC 9112's with what real servers need: a reason may be missing, a value may hold any byte but CR, LF
and NUL. Lines may all end in LF alone (§2.2 allows it, and old servers do it). A head in which some do is refused:
it is what a header that somebody has smuggled in looks like.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

from headrace.policy.frozen import slotted
from headrace.transport.wire.errors import Malformed

CRLF: Final = b"\r\n"
LF: Final = b"\n"

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
_STATUS_LINE: Final = rb"HTTP/1\.[01] [1-9][0-9][0-9](?: [^\r\n]*)?"
_FIELD_LINE: Final = _TOKEN + rb":[^\r\n\0]*"

STATUS_LINE: Final = {eol: re.compile(_STATUS_LINE + eol) for eol in (CRLF, LF)}
FIELD_LINE: Final = {eol: re.compile(_FIELD_LINE + eol) for eol in (CRLF, LF)}
_HEAD: Final = {
    eol: re.compile(_STATUS_LINE + eol + rb"(?:" + _FIELD_LINE + eol + rb")*" + eol) for eol in (CRLF, LF)
}
_SAYS: Final = re.compile(rb"\n(content-length|transfer-encoding|connection):[ \t]*([^\r\n]*)")
_LISTS: Final = {b"content-length": "lengths", b"transfer-encoding": "codings", b"connection": "options"}
_NUMBER: Final = re.compile(rb"[0-9]+")
_SHORT_NUMBER: Final = re.compile(rb"0*([0-9]{1,19})")  # sys.maxsize has nineteen digits
WITHOUT_BODY: Final = frozenset({204, 304})

PREFIX_BYTES: Final = 13  # "HTTP/1.1 200 "


def _prefixes(*each: bytes) -> bytes:
    """A pattern for any beginning of what the patterns *each* stand for, one after the other."""
    whole = b""
    for one in reversed(each):
        whole = rb"(?:" + one + whole + rb")?"
    return whole


BEGINNING: Final = re.compile(
    _prefixes(
        b"H",
        b"T",
        b"T",
        b"P",
        b"/",
        b"1",
        rb"\.",
        rb"[01]",
        b" ",
        rb"[1-9]",
        rb"[0-9]",
        rb"[0-9]",
        rb"[ \r\n]",
    )
)
"""Any beginning of a status line, up to its first thirteen bytes: what speaks no HTTP is told by its first ones."""


class Body(Enum):
    """How the end of a body is known."""

    NONE = auto()
    """There is none, whatever the head says."""
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    OTHER_PROTOCOL = auto()
    """HTTP has ended on this connection: what follows belongs to whoever asked for it."""


@slotted
class Framing:
    """Where the body of an answer ends.

    Attributes:
        length: Bytes of the body; None: the head does not tell.
        is_last: No other answer may follow: somebody in between may have seen another end (RFC 9112 §6.3).
    """

    body: Body
    length: int | None = None
    is_last: bool = False


@slotted
class Said:
    """What a head says about its body.

    Attributes:
        method: Of the request, in upper case.
        version: 10 or 11.
        lengths: What stands in Content-Length, one for each that was given.
        codings: What stands in Transfer-Encoding, in lower case.
        options: What stands in Connection, in lower case.
    """

    method: str
    status: int
    version: int
    lengths: list[bytes]
    codings: list[bytes]
    options: list[bytes]

    @property
    def closes(self) -> bool:
        """The peer will close the connection."""
        return b"close" in self.options or (self.version < 11 and b"keep-alive" not in self.options)


def _is_other_protocol(said: Said) -> bool:
    return said.status == 101 or (said.method == "CONNECT" and 200 <= said.status <= 299)


def _lengths_differ(said: Said) -> bool:
    """Also where there is no body: whoever sends that may have been made to."""
    return len(said.lengths) > 1 and len(set(said.lengths)) > 1 and not _is_chunked(said)


def _has_no_body(said: Said) -> bool:
    return said.method == "HEAD" or said.status in WITHOUT_BODY


def _is_chunked(said: Said) -> bool:
    """The last coding is what frames it. gzip below it is left to whoever asked for that."""
    return bool(said.codings) and said.codings[-1] == b"chunked"


def _by_chunks(said: Said) -> Framing:
    return Framing(Body.CHUNKED, is_last=bool(said.lengths) or len(said.codings) > 1 or said.version < 11)


def _has_a_length(said: Said) -> bool:
    """All that were given are one number, and it can be counted to."""
    lengths = said.lengths
    found = _SHORT_NUMBER.fullmatch(lengths[0]) if lengths else None
    return found is not None and int(found[1]) <= sys.maxsize


def _by_length(said: Said) -> Framing:
    # Python refuses to make a number of thousands of digits, be they zeros.
    return Framing(Body.LENGTH, int(said.lengths[0][-19:]), is_last=bool(said.codings))


def _has_no_length(said: Said) -> bool:
    return not said.lengths


def _ends_unread(said: Said) -> bool:
    """A length that is none, of a peer that closes: sites have lived with an empty one for years. Stock reads them.

    Where it is a number, however long, it is believed, and cannot be true.
    """
    return said.closes and _NUMBER.fullmatch(said.lengths[0]) is None


def _refuse(said: Said) -> Framing:
    raise Malformed("Content-Lengths differ" if _lengths_differ(said) else "Content-Length is no length")


# RFC 9112 §6.3, in its order: the first row that applies. Where the RFC leaves it open, a row does what http.client and
# urllib3 do, and is the last answer.
_FRAMINGS: Final[tuple[tuple[Callable[[Said], bool], Callable[[Said], Framing]], ...]] = (
    (_is_other_protocol, lambda said: Framing(Body.OTHER_PROTOCOL, 0, is_last=True)),
    (_lengths_differ, _refuse),
    (_has_no_body, lambda said: Framing(Body.NONE, 0)),
    (_is_chunked, _by_chunks),
    (_has_a_length, _by_length),
    (_has_no_length, lambda said: Framing(Body.UNTIL_CLOSE, is_last=True)),
    (_ends_unread, lambda said: Framing(Body.UNTIL_CLOSE, is_last=True)),
    (lambda said: True, _refuse),
)


def framing_of(said: Said) -> Framing:
    """Where the body of an answer ends whose head says *said*.

    Raises:
        Malformed: It has several lengths that differ, or one that cannot be read.
    """
    for applies, then in _FRAMINGS:
        if applies(said):
            return then(said)
    raise AssertionError("the last row applies to all")


def fields_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """Names and values of *head*, which is valid, in their order; values without the blanks around them."""
    # Splitting takes two thirds of the time of a regular expression.
    return [
        (name, value.strip(b" \t\r"))
        for name, _, value in [line.partition(b":") for line in head.split(LF)[1:-2]]
    ]


def refuse_other_eol(head: bytes | bytearray, eol: bytes, start: int, end: int) -> None:
    """Refuse part of *head*, whose first line ends in *eol*, if it has a line that does not.

    Args:
        start: Where the part begins; not between a CR and its LF.

    Raises:
        Malformed: It has one.
    """
    if eol == LF:
        is_mixed = head.find(b"\r", start, end) >= 0
    else:
        is_mixed = head.count(LF, start, end) != head.count(CRLF, start, end)
    if is_mixed:
        raise Malformed("some lines of the head end in CR and LF, others in one of them")


def check_head(head: bytes, eol: bytes) -> None:
    """Refuse *head*, whose lines end in *eol*, if it is not valid.

    Raises:
        Malformed: A line of it is no header; its number is said, 1 is the status line. Or its lines do not end alike.
    """
    if _HEAD[eol].fullmatch(head) is not None:
        return
    refuse_other_eol(head, eol, 0, len(head))
    for number, line in enumerate(head[: -len(eol)].split(LF)[:-1], start=1):
        grammar = STATUS_LINE if number == 1 else FIELD_LINE
        if grammar[eol].fullmatch(line + LF) is None:
            raise Malformed(f"line {number} of the head is no {'status line' if number == 1 else 'header'}")
    raise AssertionError("lines that are all valid are a valid head")


def said_of(lowered: bytes, *, method: str) -> Said:
    """What a head that is valid, and *lowered* in lower case, says about its body and the connection."""
    said = Said(method, int(lowered[9:12]), 11 if lowered[7] == 0x31 else 10, [], [], [])
    for name, value in _SAYS.findall(lowered):
        found = getattr(said, _LISTS[name])
        if b"," in value:
            found += [one.strip(b" \t") for one in value.split(b",")]
        else:
            found.append(value.rstrip(b" \t"))
    return said


# ── heads of requests ──

_START: Final = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/1\.1\r\n")
_FIELDS: Final = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0]*\r\n)*")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Text = str | bytes


def render_fields(fields: Iterable[tuple[Text, Text]]) -> bytes:
    """The lines of *fields*, as they are sent.

    Raises:
        ValueError: A name is no token; a value has CR, LF or NUL in it, or is text beyond latin-1. The text names the
            field and does not show the value.
    """
    pairs = [(_as_text(name), _as_text(value)) for name, value in fields]
    text = "".join([f"{name}: {value}\r\n" for name, value in pairs])
    # Each line is valid, and there are as many as there should be: then none has come out of a value.
    if _FIELDS.fullmatch(text) is None or text.count("\n") != len(pairs):
        raise ValueError(_what_is_wrong(pairs))
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        pass  # it holds the whole text, secrets of the rules too: not even its context may be kept
    raise ValueError(_what_is_wrong(pairs))


def render_head(
    method: bytes, target: bytes, fixed: bytes = b"", tail: Iterable[tuple[Text, Text]] = ()
) -> bytes:
    """The head of a request.

    Args:
        target: What is asked for, percent-encoded: visible ASCII.
        fixed: Lines that `render_fields` has made for many requests.
        tail: What this one has besides.

    Raises:
        ValueError: *method* is no token, *target* has other bytes in it, or a field of *tail* is as in `render_fields`.
    """
    start = b"%b %b HTTP/1.1\r\n" % (method, target)
    if _START.fullmatch(start) is None:
        raise ValueError(
            "the method is no token, or the target has a blank, a control character or one beyond ASCII"
        )
    return b"%b%b%b\r\n" % (start, fixed, render_fields(tail) if tail else b"")


def _as_text(one: Text) -> str:
    return one.decode("latin-1") if isinstance(one, bytes) else one


def _what_is_wrong(pairs: Iterable[tuple[str, str]]) -> str:
    for name, one in pairs:
        value = f"{one}"  # a number, say, is let through
        if _NAME.fullmatch(name) is None:
            return f"{name!r:.64} is no name of a header"
        if re.search(r"[\r\n\0]", value):
            return f"the value of header {name!r:.64} has CR, LF or NUL in it"
        if re.search(r"[^\0-\xff]", value):
            return f"the value of header {name!r:.64} is beyond latin-1"
    raise AssertionError("fields that are all valid make valid lines")
