"""What reading an answer costs: the codec, llhttp alone, h11, and http.client with the email parser.

    python tests/bench/codec.py [--rounds 41] [--turns 300]

All get the same pieces, in the same rounds, without a socket. CPU time of the process: median over the rounds and
quartiles, in microseconds; the ratio to http.client is the median of the rounds' ratios. Asserts nothing.
"""

from __future__ import annotations

import argparse
import http.client
import io
import statistics
from collections.abc import Callable
from functools import partial

import h11
from httptools import HttpResponseParser
from interleaved import cpu_s, ratio, rounds_of

from headrace.transport.wire.h1 import AnswerReader

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sat, 28 Nov 2026 07:24:00 GMT\r\n"
    b"Content-Type: application/json\r\n"
    b'%b\r\nLast-Modified: Sat, 28 Nov 2026 07:00:00 GMT\r\nConnection: keep-alive\r\nETag: "65655555-400"\r\n'
    b"Accept-Ranges: bytes\r\n\r\n"
)
LENGTH, CHUNKED = b"Content-Length: %d", b"Transfer-Encoding: chunked"
CHUNK = b"400\r\n" + b"x" * 1024 + b"\r\n"
MOST = 65_536  # bytes that a driver receives at once


def pieces(data: bytes, at: int = 0) -> tuple[bytes, ...]:
    """*data* as it is received: first up to *at*, if that is given, then as much as fits."""
    first = (data[:at],) if at else ()
    return *first, *(data[i : i + MOST] for i in range(at, len(data), MOST))


def by_length(n: int) -> bytes:
    return HEAD % (LENGTH % n) + b"x" * n


SHAPES = {
    "1 KiB": pieces(by_length(1024)),
    "1 KiB, head and body apart": pieces(by_length(1024), len(HEAD % (LENGTH % 1024))),
    "8 KiB in 8 chunks": pieces(HEAD % CHUNKED + CHUNK * 8 + b"0\r\n\r\n"),
    "8 KiB in 8 chunks, apart": pieces(HEAD % CHUNKED + CHUNK * 8 + b"0\r\n\r\n", len(HEAD % CHUNKED)),
    "8 KiB in 128 chunks": pieces(HEAD % CHUNKED + (b"40\r\n" + b"x" * 64 + b"\r\n") * 128 + b"0\r\n\r\n"),
    "100 KiB": pieces(by_length(100 * 1024)),
    "no body, 204": pieces(
        b"HTTP/1.1 204 No Content\r\nServer: nginx\r\nDate: Sat, 28 Nov 2026 07:24:00 GMT\r\n\r\n"
    ),
}


class Codec:
    """One reader for all answers, as on a kept connection."""

    def __init__(self, *, headers: bool = False) -> None:
        self.reader, self.headers = AnswerReader(), headers

    def __call__(self, data: tuple[bytes, ...]) -> bytes:
        reader = self.reader
        reader.begin("GET")
        for piece in data:
            reader.feed(piece)
        if self.headers:
            _ = reader.raw_headers
        return reader.take()


class Llhttp:
    """The floor: bodies into a list, and nothing looked at."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.on_body = self.parts.append
        self.parser = HttpResponseParser(self)

    def __call__(self, data: tuple[bytes, ...]) -> bytes:
        for piece in data:
            self.parser.feed_data(piece)
        body = b"".join(self.parts)
        self.parts.clear()
        return body


class Pieces(io.RawIOBase):
    """A socket's raw reader that gives *left*, one piece a read."""

    left: tuple[bytes, ...]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self.left:
            return 0
        piece, n = self.left[0], min(len(self.left[0]), len(buffer))
        buffer[:n] = piece[:n]
        self.left = self.left[1:] if n == len(piece) else (piece[n:], *self.left[1:])
        return n


class Line:
    """What http.client asks of a socket for an answer."""

    def __init__(self, left: tuple[bytes, ...]) -> None:
        self.raw = Pieces()
        self.raw.left = left

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self.raw)


def stock(data: tuple[bytes, ...]) -> bytes:
    answer = http.client.HTTPResponse(Line(data), method="GET")  # type: ignore[arg-type]
    answer.begin()
    return answer.read()


def by_h11(data: tuple[bytes, ...]) -> bytes:
    conn = h11.Connection(h11.CLIENT)
    conn.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    conn.send(h11.EndOfMessage())
    body = []
    for piece in data:
        conn.receive_data(piece)
        while (event := conn.next_event()) is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body.append(bytes(event.data))
    return b"".join(body)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args()
    readers: dict[str, Callable[[tuple[bytes, ...]], bytes]] = {
        "codec": Codec(),
        "codec, headers": Codec(headers=True),
        "llhttp alone": Llhttp(),
        "h11": by_h11,
        "http.client": stock,
    }
    for shape, data in SHAPES.items():
        bodies = {name: read(data) for name, read in readers.items()}
        assert len(set(bodies.values())) == 1, bodies.keys()
        measured = rounds_of(
            {
                name: partial(cpu_s, partial(read, data), turns=options.turns)
                for name, read in readers.items()
            },
            rounds=options.rounds,
        )
        print(shape)
        for name, values in measured.items():
            low, middle, high = (1e6 * one for one in statistics.quantiles(values, n=4))
            share = ratio(values, measured["http.client"])
            print(f"  {name:16}{middle:8.2f} µs  [{low:.2f}-{high:.2f}]  {share:6.3f} of http.client")


if __name__ == "__main__":
    main()
