"""Where the codec reads an answer otherwise than stock urllib3 or h11 does, and why. What no row names is a mistake.

The codec may be stricter: what it refuses never came from a server that meant it, or could be read in two ways. It is
laxer than h11 only where stock is as well, for people run what stock reads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from support.answers import Got, Sent, by_h11, ours, stock

OTHERS: Final[dict[str, Callable[[Sent], Got]]] = {"stock": stock, "h11": by_h11}


@dataclass(frozen=True)
class Seen:
    """One answer, and what the codec and another reader make of it."""

    sent: Sent
    ours: Got
    theirs: Got

    def says(self, pattern: bytes) -> bool:
        """Whether a part of what was sent is like *pattern*, in any case."""
        return re.search(pattern, self.sent.data, re.IGNORECASE) is not None


def differ(one: Got, other: Got) -> bool:
    """Whether two readers disagree. How much of a body can be had before an error is nobody's promise."""
    if one.error and one.error == other.error and one.status == other.status:
        return one.headers != other.headers
    return one != other


@dataclass(frozen=True)
class Difference:
    """One way in which the codec differs.

    Attributes:
        who: From whom.
        why: It is right.
        example: An answer that shows it.
        ours: What the codec's error is like; "" where it reads the answer; None: whatever.
        theirs: What the other's error is like, in the same way.
        when: What else holds.
    """

    who: str
    why: str
    example: bytes
    ours: str | None = ""
    theirs: str | None = None
    method: str = "GET"
    when: Callable[[Seen], bool] | None = None

    def covers(self, who: str, seen: Seen) -> bool:
        """Whether *seen* is this one."""
        return (
            who == self.who
            and _like(self.ours, seen.ours)
            and _like(self.theirs, seen.theirs)
            and (self.when is None or self.when(seen))
        )


def _like(pattern: str | None, got: Got) -> bool:
    if pattern is None:
        return True
    return re.search(pattern, got.words) is not None if pattern else not got.error


def _codings(got: Got) -> str:
    return ",".join(value.lower() for name, value in got.headers if name == "transfer-encoding")


def _has_informational(seen: Seen) -> bool:
    return seen.theirs.status in (102, 103)


def _may_have_no_body(seen: Seen) -> bool:
    return seen.ours.status in (101, 204, 304)


OK: Final = b"HTTP/1.1 200 OK\r\n"
FOUR: Final = b"Content-Length: 4\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
MANY: Final = b"X: x\r\n" * 99

NO_HEADER: Final = "of the head is no header"
NO_STATUS_LINE: Final = "is no status line|does not begin like"
MIXED_ENDS: Final = "some lines of the head end"
CUT_HEAD: Final = "within the head|before the first byte"
NO_SIZE: Final = "size of a chunk is none"

DIFFERENCES: Final = (
    # ── stricter than stock ──
    Difference(
        "stock",
        "Such a line ends the head for http.client, and the headers behind it are lost, a length among them; a folded "
        "one, or a bare CR, is a second header for some readers. llhttp and h11 refuse most of them, too.",
        OK + b"X : a\r\n" + FOUR + b"\r\nmine",
        ours=NO_HEADER,
    ),
    Difference(
        "stock",
        "http.client takes a status line apart at any blanks and asks little of the version.",
        b"HTTP/1.1\t200 OK\r\n" + FOUR + b"\r\nmine",
        ours=NO_STATUS_LINE,
    ),
    Difference(
        "stock",
        "A line end that is not like the others is how a header is smuggled in. Stock takes every LF "
        "for one.",
        OK + b"X: a\nContent-Length: 1\r\n\r\nmine",
        ours=MIXED_ENDS,
    ),
    Difference(
        "stock",
        "Part of a status line is one to http.client, and bad. Nobody has said anything wrong yet.",
        b"HTTP/1.1 20",
        ours=CUT_HEAD,
        theirs="BadStatusLine",
    ),
    Difference(
        "stock",
        "For http.client a head ends with the stream, too; a proxy that died amid it has sent no answer.",
        OK + b"Content-Le",
        ours=CUT_HEAD,
    ),
    Difference(
        "stock",
        "A length that cannot be read, or two: http.client waits for the end of a stream that need not come. What "
        "headrace has refused on top of stock, it still does.",
        OK + b"Content-Length: five\r\n\r\nmine",
        ours="is no length|Lengths differ",
    ),
    Difference(
        "stock",
        "int() takes signs, underscores, blanks and 0x.",
        OK + CHUNKED + b"\r\n+4\r\nmine\r\n0\r\n\r\n",
        ours=NO_SIZE,
    ),
    Difference(
        "stock",
        "http.client throws away the two bytes behind a chunk unseen.",
        OK + CHUNKED + b"\r\n4\r\nmine!!0\r\n\r\n",
        ours="longer than its size",
    ),
    Difference(
        "stock",
        "http.client throws trailers away unseen.",
        OK + CHUNKED + b"\r\n0\r\nX : a\r\n\r\n",
        ours="a trailer is no header",
    ),
    Difference(
        "stock",
        "http.client reads a size that the stream ends in. `0` may be the beginning of another one.",
        OK + CHUNKED + b"\r\n4\r\nmine\r\n0",
        ours=r"after \d+ bytes of the body",
        theirs="",
    ),
    Difference(
        "stock",
        "The same of a peer that closes: its end is the end, for http.client it should have sent ten bytes.",
        OK + b"Connection: close\r\nContent-Length: 1_0\r\n\r\nmine",
        theirs="IncompleteRead",
    ),
    # ── and stock is wrong ──
    Difference(
        "stock",
        "102 and 103 come before an answer. http.client knows 100 alone, and takes the answer for the"
        " next one.",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + FOUR + b"\r\nmine",
        ours=None,
        when=_has_informational,
    ),
    Difference(
        "stock",
        "101, 204 and 304 have no body. urllib3 reads chunks that belong to the next answer.",
        b"HTTP/1.1 304 Not Modified\r\n" + CHUNKED + b"\r\n4\r\nmine\r\n0\r\n\r\n",
        when=_may_have_no_body,
    ),
    Difference(
        "stock",
        "Chunks below another coding are not to be seen, and urllib3 and http.client differ about them.",
        OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n4\r\nmine\r\n0\r\n\r\n",
        when=lambda seen: _codings(seen.ours) not in ("", "chunked") and "chunked" in _codings(seen.ours),
    ),
    Difference(
        "stock",
        "Its limit of a hundred headers counts the empty line.",
        OK + MANY + FOUR + b"\r\nmine",
        theirs="got more than 100 headers",
    ),
    # ── stricter than h11 ──
    Difference(
        "h11",
        "h11 unfolds lines; the issue wants them refused, and llhttp refuses them.",
        OK + b"X: a\r\n b\r\n" + FOUR + b"\r\nmine",
        ours=NO_HEADER,
    ),
    Difference(
        "h11",
        "h11 asks for no version: it reads HTTP/2.0 and 0.9.",
        b"HTTP/1.2 200 OK\r\n" + FOUR + b"\r\nmine",
        ours=NO_STATUS_LINE,
    ),
    Difference(
        "h11",
        "No body is as long as 2^63 bytes.",
        OK + b"Content-Length: 9223372036854775808\r\n\r\nmine",
        ours="is no length",
        theirs="closed",
    ),
    Difference(
        "h11",
        "h11 takes every LF for a line end, as stock.",
        OK + b"X: a\nContent-Length: 1\r\n\r\nmine",
        ours=MIXED_ENDS,
    ),
    Difference(
        "h11",
        "h11 has the limit of its buffer alone: in a piece that is longer it sees none.",
        OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        ours="longer than 65536 bytes|more than 100 headers",
    ),
    Difference(
        "h11",
        "Where the lines of a head end in LF, those of its chunks do.",
        OK.replace(b"\r", b"") + CHUNKED.replace(b"\r", b"") + b"\n4\r\nmine\r\n0\r\n\r\n",
        ours=NO_SIZE,
    ),
    Difference(
        "h11",
        "h11 unfolds trailers, too, and their lines may end in LF.",
        OK + CHUNKED + b"\r\n0\r\nX: a\r\n b\r\n\r\n",
        ours="a trailer is no header",
    ),
    # ── laxer than h11, as stock is ──
    Difference(
        "h11",
        "h11 takes any end of the stream amid a message for a mistake of the peer's.",
        OK + b"Content-Le",
        ours="the stream has ended",
        theirs="peer|closed|Closed",
    ),
    Difference(
        "h11",
        "h11 has no coding but chunked. Stock reads those answers, and headrace closes behind them.",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nmine\r\n0\r\n\r\n",
        ours=None,
        theirs="Transfer-Encoding",
    ),
    Difference(
        "h11",
        "h11 refuses the controls VT and FF in a value and a reason, and NUL in a reason. Nobody "
        "takes them for a line end.",
        OK + b"X: a\x0bb\r\n" + FOUR + b"\r\nmine",
        ours=None,
        theirs="illegal (header|status) line",
    ),
    Difference(
        "h11",
        "Of the request that was compared h11 knows that it has asked for no upgrade. The codec hands"
        " a 101 to whoever asked.",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        theirs="_SWITCH_UPGRADE",
    ),
    Difference(
        "h11",
        "An unreadable length of a peer that closes: sites have lived with an empty one for years.",
        OK + b"Connection: close\r\nContent-Length: \r\n\r\nmine",
        theirs="Content-Length",
    ),
    Difference(
        "h11",
        "A blank before an extension.",
        OK + CHUNKED + b"\r\n4 ;a\r\nmine\r\n0\r\n\r\n",
        theirs="illegal chunk header",
    ),
    Difference(
        "h11",
        "The end of the stream instead of the last, empty line of chunks.",
        OK + CHUNKED + b"\r\n4\r\nmine\r\n0\r\n",
        theirs="peer",
    ),
    # ── how h11 tells it ──
    Difference(
        "h11",
        "h11 writes codings in lower case, and equal lengths once.",
        OK + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        ours=None,
        theirs=None,
        when=lambda seen: (
            (seen.ours.error, seen.ours.status, _as_h11(seen.ours))
            == (seen.theirs.error, seen.theirs.status, seen.theirs.headers)
        ),
    ),
)


def _as_h11(got: Got) -> tuple[tuple[str, str], ...]:
    told: list[tuple[str, str]] = []
    for name, value in got.headers:
        if name == "transfer-encoding":
            told.append((name, value.lower()))
        elif name != "content-length" or name not in dict(told):
            told.append((name, value.split(",")[0] if name == "content-length" else value))
    return tuple(told)


def compared(answers: Iterable[Sent]) -> tuple[Counter[Difference | None], list[tuple[str, Seen]]]:
    """How often each difference was met; None counts the readings that agree. And what no row covers."""
    met: Counter[Difference | None] = Counter()
    unlisted: list[tuple[str, Seen]] = []
    for sent in answers:
        own = ours(sent)
        for who, read in OTHERS.items():
            seen = Seen(sent, own, read(sent))
            if not differ(seen.ours, seen.theirs):
                met[None] += 1
                continue
            row = next((row for row in DIFFERENCES if row.covers(who, seen)), None)
            if row is None:
                unlisted.append((who, seen))
            else:
                met[row] += 1
    return met, unlisted
