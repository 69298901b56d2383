"""Answers of HTTP/1.1, good and bad, made from a seed; and what stock urllib3, h11 and the codec each make of one.

    for one in generated(seed=1, count=2_000):
        ours(one), stock(one), by_h11(one)

Each is given the same pieces, and the end of the stream behind them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import h11
from urllib3.connection import HTTPConnection

from headrace.policy.outcome import Fault
from headrace.transport.stock.faults import fault_of
from headrace.transport.wire.h1 import AnswerReader, Malformed, Truncated

Headers = tuple[tuple[str, str], ...]
BROKE_OFF = "broke off"
NO_HTTP = "no HTTP"


@dataclass(frozen=True)
class Sent:
    """What a peer sends in answer to a request with *method*, cut into *pieces*."""

    pieces: tuple[bytes, ...]
    method: str

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True)
class Got:
    """What a reader makes of it.

    Attributes:
        error: How it ended, where it is not complete. Its words are not compared.
        status: 0 where the head was not read.
        headers: Names in lower case and values without blanks around them, by name: urllib3 keeps equal names together.
        body: What can be had of it; of one that has an error, that is up to the reader.
    """

    error: str | None
    status: int = 0
    headers: Headers = ()
    body: bytes = b""
    words: str = field(default="", compare=False)


# ── what is sent ──

_STATUS_LINES = [
    *[b"HTTP/1.1 200 OK"] * 30,
    *[b"HTTP/1.1 404 Not Found", b"HTTP/1.1 500 Oops", b"HTTP/1.1 201 Created"] * 4,
    *[b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified"] * 2,
    *[b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 206 \xe4\xff", b"HTTP/1.1 999 Denied", b"HTTP/1.1 205 Reset"],
    *[b"HTTP/1.1 101 Switching", b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK"],
    *[b"HTTP/2.0 200 OK", b"HTTP/1.2 200 OK", b"HTTP/0.9 200 OK", b"http/1.1 200 OK", b"ICY 200 OK", b"SSH-2.0-x"],
    *[b"HTTP/1.1 099 Low", b"HTTP/1.1 abc OK", b"HTTP/1.1 200OK", b"HTTP/1.1 +20 OK", b"HTTP/1.1 200 a\rb", b""],
    *[b"HTTP/1.1 200 a\0b", b"HTTP/1.1"],
]  # fmt: skip
_GOOD_FIELDS = [
    *[b"Content-Type: application/json", b"Date: Sat, 28 Nov 2026 07:00:00 GMT", b"Server: nginx", b'ETag: "1"'] * 4,
    *[b"Set-Cookie: a=1", b"Set-Cookie: b=2; Path=/", b"Vary: Accept, Origin", b"X-Empty:"] * 2,
    b"X-Blanks:  \t a b \t ",
    *[b"X-Latin: \xe4\xf6", b"x-lower:1", b"X_Under: 1", b"X-Colon: a:b", b"Link: <a>;\trel=b", b'X-Quote: "a,b"'],
    *[b"Connection: keep-alive", b"Connection: close", b"Keep-Alive: timeout=5", b"Upgrade: h2c"],
]  # fmt: skip
_ODD_FIELDS = [
    b"X-Folded: a\r\n b", b"X-Folded: a\r\n\tb", b" X-Leading: a", b"X-Blank : a", b"X Blank: a", b"NoColon",
    b": noname", b"X-Nul: a\0b", b"X-Control: a\x01b", b"X-Del: a\x7fb", b"X-Cr: a\rb", b"X-Lf: a\nX-Lf2: b",
    b"X\xe4: a", b"X(: a", b"Content-Length : 3", b"Transfer-Encoding : chunked", b"From me: x",
    b"X-Long: " + b"x" * 70_000, b"", b"X-Vt: a\x0bb", b"X-Nel: a\x85b", b"X-Ff: a\x0cb", b"X-Bare: a\n\tb",
]  # fmt: skip
_ODD_LENGTHS = [
    b"", b"five", b"-5", b"+%d", b"0x%x", b"%d_0", b"%d, %d", b"%d %d", b"%d,", b"000%d", b"%d.0",
    b"1" + b"0" * 30, b"9" * 5000, b"9223372036854775808", b"\xb2", b"%d\t",
]  # fmt: skip
_CODINGS = [
    *[b"chunked"] * 12, b"Chunked", b" chunked ", b"gzip, chunked", b"chunked, gzip", b"identity",
    b"xchunked", b"chunked, chunked", b"", b"gzip", b"chunked;q=1", b"\x0bchunked",
]  # fmt: skip
_BODIES = [
    b"", b"x", b"mine", b"0123456789" * 30, b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\n",
    b"\0\xff",
]  # fmt: skip
_EXTENSIONS = [
    b";a=b", b';a="b;c"', b";a", b" ", b"\t", b" ;a", b"; a", b";", b";a=b;c=d", b"zzz", b";a\nb", b";a\rb",
    b";\0",
]  # fmt: skip
_SIZES = [b"+%x", b"0x%x", b"-%x", b"%x_", b" %x", b"", b"xyz", b"%x" + b"0" * 20, b"0_%x", b"\xa0%x"]
_TRAILERS = [
    b"X-Trailer: a", b"Content-Length: 7", b"NoColon", b"X-Zero: 0", b" folded", b"X : a", b"X: a\nY: b",
]  # fmt: skip
_BEHIND = [
    b"\r\n", b"\n", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nFORGED", b"0\r\n\r\n", b"HTTP/1.1 2",
    b"\r\n\r\n", b"\r", b"HTTP/1.1 408 Late\r\nConnection: close\r\n\r\n",
]  # fmt: skip
_BEFORE = [
    *[b"HTTP/1.1 100 Continue\r\n\r\n"] * 6, b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 100 Continue\r\nX : a\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n", b"HTTP/1.1 100\nX: y\n\n", b"\r\n",
    b"HTTP/1.0 100 Continue\r\n\r\n",
]  # fmt: skip


def generated(*, seed: int, count: int) -> Iterator[Sent]:
    """*count* answers; the first ones are the same whatever the count."""
    for number in range(count):
        yield one(random.Random(f"{seed}/{number}"))


def one(rng: random.Random) -> Sent:
    """An answer: most are good, some have an oddity of this list, some a few bytes wrong."""
    odd = rng.random() < 0.5
    method = rng.choice(["GET"] * 9 + ["HEAD", "POST", "OPTIONS"])
    status = rng.choice(_STATUS_LINES if odd else _STATUS_LINES[:42])
    lines = rng.choices(_GOOD_FIELDS, k=rng.randrange(6))
    body = rng.choice(_BODIES)
    framing = rng.choice(["length"] * 6 + ["chunks"] * 6 + ["close", "both", "twice", "odd length", "coding"])
    own: list[bytes] = []
    if framing in ("length", "both"):
        own.append(b"Content-Length: %d" % len(body))
    elif framing == "twice":
        own += [
            b"Content-Length: %d" % (len(body) + rng.choice([0, 0, 1, -1])),
            b"Content-Length: %d" % len(body),
        ]
    elif framing == "odd length" and odd:
        text = rng.choice(_ODD_LENGTHS)
        own.append(
            b"Content-Length: "
            + text.replace(b"%d", str(len(body)).encode()).replace(b"%x", b"%x" % len(body))
        )
    if framing in ("chunks", "both", "coding"):
        own.append(
            b"Transfer-Encoding: " + rng.choice(_CODINGS if framing == "coding" or odd else _CODINGS[:13])
        )
        if rng.random() < 0.03:
            own.append(b"Transfer-Encoding: chunked")
        body = _chunked(rng, body, odd=odd)
    lines += own
    if odd and rng.random() < 0.4:
        lines.append(rng.choice(_ODD_FIELDS))
    if odd and rng.random() < 0.02:
        lines += [b"X: x"] * rng.choice([90, 98, 99, 100, 101, 200])
    rng.shuffle(lines)
    eol = b"\n" if odd and rng.random() < 0.1 else b"\r\n"
    before = b"".join(rng.choices(_BEFORE, k=rng.choice([1, 1, 2, 3]))) if rng.random() < 0.1 else b""
    data = before + eol.join([status, *lines, b"", b""]) + body
    if rng.random() < 0.1:
        data += rng.choice(_BEHIND)
    if odd and rng.random() < 0.4:
        data = mutated(rng, data)
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    return Sent(tuple(pieces_of(rng, data)), method)


def _chunked(rng: random.Random, body: bytes, *, odd: bool) -> bytes:
    chunks, at = [], 0
    while at < len(body):
        size = rng.choice([1, 2, 5, 16, 100, 1000])
        chunk = body[at : at + size]
        at += size
        odd_size = odd and rng.random() < 0.05
        length = rng.choice(_SIZES).replace(b"%x", b"%x" % len(chunk)) if odd_size else b"%x" % len(chunk)
        if rng.random() < (0.2 if odd else 0.05):
            length += rng.choice(_EXTENSIONS if odd else _EXTENSIONS[:3])
        end = rng.choice([b"\n", b"", b"\r", b"x\r\n"]) if odd and rng.random() < 0.02 else b"\r\n"
        start = b"\n" if odd and rng.random() < 0.02 else b"\r\n"
        chunks.append(length + start + chunk + end)
    last = (
        b"0" * rng.choice([1, 1, 1, 1, 5])
        + (rng.choice(_EXTENSIONS) if odd and rng.random() < 0.1 else b"")
        + b"\r\n"
    )
    trailers = b""
    if rng.random() < 0.1:
        trailers = b"".join(line + b"\r\n" for line in rng.choices(_TRAILERS if odd else _TRAILERS[:2], k=2))
    return b"".join(chunks) + last + trailers + b"\r\n"


_SPECIAL = [
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"9", b"\x7f", b"\x80", b"\xff", b"-",
    b"chunked",
]  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """*data* with a few bytes lost, changed, doubled, swapped or put in."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        at = rng.randrange(len(data) + 1)
        end = at + rng.choice([0, 1, 1, 1, 2, 8])
        what = rng.random()
        if what < 0.5:
            put = rng.choice(_SPECIAL)
        elif what < 0.7:
            put = bytes([rng.randrange(256)])
        elif what < 0.8:
            put = b""
        elif what < 0.9:
            put = data[at:end] * 2
        else:
            other = rng.randrange(len(data) + 1)
            put = data[other : other + rng.choice([2, 10, 40])]
        data = data[:at] + put + data[end:]
    return data


def pieces_of(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """*data*, cut at random: whole, in a few pieces, or in many small ones."""
    most = rng.choice([len(data), len(data), 200, 50, 7, 1]) or 1
    if len(data) > 5000:
        most = max(most, 500)
    at = 0
    while at < len(data):
        size = most if most in (1, len(data)) else rng.randint(1, most)
        yield data[at : at + size]
        at += size


# ── what is made of it ──


def ours(sent: Sent) -> Got:
    """What the codec makes of it."""
    reader = AnswerReader()
    reader.begin(sent.method)
    error, words = None, ""
    try:
        for piece in sent.pieces:
            reader.feed(piece)
        if not reader.done:
            reader.end()
    except (Malformed, Truncated) as caught:
        error, words = NO_HTTP if isinstance(caught, Malformed) else BROKE_OFF, str(caught)
    if not reader.head_done:
        return Got(error, words=words)
    return Got(error, reader.status, _by_name(reader.raw_headers), reader.take(), words)


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    pairs = [
        (name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t\r\n")) for name, value in headers
    ]
    return tuple(sorted(pairs, key=itemgetter(0)))


class _Wire(io.RawIOBase):
    """A socket's raw reader: gives one piece a read."""

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._pieces = [*pieces]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        n = min(len(piece), len(buffer))
        buffer[:n] = piece[:n]
        if n < len(piece):
            self._pieces.insert(0, piece[n:])
        return n


class _Socket:
    """What http.client asks of a socket."""

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self._wire = _Wire(pieces)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(self._wire)

    def sendall(self, data: bytes) -> None: ...
    def settimeout(self, timeout: object) -> None: ...
    def close(self) -> None: ...


def stock(sent: Sent) -> Got:
    """What urllib3 and http.client make of it."""
    conn = HTTPConnection("a.example")
    conn.sock = _Socket(sent.pieces)  # type: ignore[assignment]
    got = Got(None)
    body = b""
    try:
        conn.request(sent.method, "/", preload_content=False)
        response = conn.getresponse()
        headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.iteritems()
        ]
        got = Got(None, response.status, _by_name(headers))
        for piece in response.stream(2**16, decode_content=False):
            body += piece
    except Exception as error:
        got = Got(_named(error), got.status, got.headers, words=repr(error))
    finally:
        conn.close()
    return Got(got.error, got.status, got.headers, body, got.words)


def _named(error: Exception) -> str:
    fault, _ = fault_of(error, "sent")
    return {Fault.PROTOCOL_ERROR: NO_HTTP, Fault.RESET: BROKE_OFF}.get(fault, f"{fault}: {error!r}")


def by_h11(sent: Sent) -> Got:
    """What h11 makes of it."""
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=65_536)
    conn.send(h11.Request(method=sent.method, target="/", headers=[("Host", "a.example")]))
    conn.send(h11.EndOfMessage())
    got, body = Got(BROKE_OFF), b""
    try:
        for piece in (*sent.pieces, b""):
            conn.receive_data(piece)
            while True:
                event = conn.next_event()
                match event:
                    case h11.Response():
                        got = Got(None, event.status_code, _by_name(event.headers))
                    case h11.Data():
                        body += bytes(event.data)
                    case h11.EndOfMessage():
                        return Got(None, got.status, got.headers, body)
                    case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                        break
                    case h11.InformationalResponse(status_code=101):
                        return Got(None, 101, _by_name(event.headers))
    except h11.RemoteProtocolError as error:
        broke = "closed connection without" in str(error) or (not sent.data)
        return Got(BROKE_OFF if broke else NO_HTTP, got.status, got.headers, body, str(error))
    return Got(BROKE_OFF, got.status, got.headers, body)
