"""What callers get over the own wire path is what they get over stock's: the same answers, pieces and errors."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from urllib3.util.retry import Retry

import headrace
from headrace.transport.wire.response import KNOWN, WireResponse, WireStreamed
from headrace.transport.wire.untouched import is_untouched
from support.faultserver import Answer, FaultServer
from support.governed import rules, running

TEXT = b"".join(b"line %d\n" % number for number in range(40))


class Canned:
    """A server that answers each request with the same bytes, cut as it is told; it keeps what was asked."""

    def __init__(self, pieces: list[bytes], *, ends: bool = True) -> None:
        self.pieces, self.ends = pieces, ends
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._answer, args=(conn,), daemon=True))
                self._threads[-1].start()

    def _answer(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.asked.append(self._read(conn))
            for piece in self.pieces:
                conn.sendall(piece)
                if len(self.pieces) > 1:
                    time.sleep(0.001)
            if self.ends:
                conn.shutdown(socket.SHUT_WR)
            while conn.recv(65536):  # until the client closes
                pass

    def _read(self, conn: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head and (piece := conn.recv(65536)):
            head += piece
        return head

    def __enter__(self) -> Canned:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def head(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def framed(body: bytes, *lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return head(*lines, b"Content-Length: %d" % len(body), first=first) + body


def chunks(*each: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*each, b""))


CHUNKED = b"Transfer-Encoding: chunked"
ANSWERS = {
    "plain": framed(TEXT, b"X-One: 1", b"x-one: 2", b"Set-Cookie: a=1; Path=/", b"set-cookie: b=2"),
    "empty": framed(b""),
    "204": head(first=b"HTTP/1.1 204 No Content"),
    "304 with a length": head(b"Content-Length: 9", first=b"HTTP/1.1 304 Not Modified"),
    "404": framed(b"gone", first=b"HTTP/1.1 404 Not Found"),
    "redirect": framed(b"there", b"Location: /there", first=b"HTTP/1.1 302 Found"),
    "no reason": framed(b"ok", first=b"HTTP/1.1 200"),
    "empty reason": framed(b"ok", first=b"HTTP/1.1 200 "),
    "odd status": framed(b"ok", first=b"HTTP/1.1 799 Odd  one"),
    "latin-1": framed(b"ok", b"X-Name: caf\xe9", first=b"HTTP/1.1 200 caf\xe9"),
    "blanks": framed(b"ok", b"X-Padded: \t a b", b"X-Empty:"),
    "chunked": head(CHUNKED) + chunks(TEXT[:100], TEXT[100:]),
    "chunked, many": head(CHUNKED) + chunks(*(TEXT[at : at + 7] for at in range(0, len(TEXT), 7))),
    "chunked, empty": head(CHUNKED) + chunks(),
    "chunked, extensions": head(CHUNKED) + b"5;a=b\r\nhello\r\n0;z\r\nX-After: 1\r\n\r\n",
    "chunked, large": head(CHUNKED) + chunks(*[bytes(range(256)) * 512] * 4),
    "gzip": framed(gzip.compress(TEXT), b"Content-Encoding: gzip"),
    "gzip, chunked": head(CHUNKED, b"Content-Encoding: gzip") + chunks(gzip.compress(TEXT)),
    "deflate": framed(zlib.compress(TEXT), b"content-encoding: deflate"),
    "gzip that is none": framed(b"no gzip at all", b"Content-Encoding: gzip"),
    "gzip, cut": framed(gzip.compress(TEXT)[:30], b"Content-Encoding: gzip"),
    "until close": head(b"Connection: close") + TEXT,
    "no length": head() + TEXT,
    "no length, large": head() + bytes(range(256)) * 2048,
    "large": framed(bytes(range(256)) * 4096),
    "middling": framed(bytes(range(256)) * 400),
    "1.0": framed(b"ok", first=b"HTTP/1.0 200 OK"),
    "1.0, kept": framed(b"ok", b"Connection: keep-alive", first=b"HTTP/1.0 200 OK"),
    "a 100 before": b"HTTP/1.1 100 Continue\r\n\r\n" + framed(TEXT),
    "LF alone": framed(TEXT).replace(b"\r\n", b"\n"),
    "a folded header": framed(b"ok", b"X-Long: a", b" b"),
    "a blank before the colon": framed(b"ok", b"X-Odd : a"),
    "no header at all": framed(b"ok", b"this is no header"),
    "the same length twice": framed(b"ok", b"Content-Length: 2"),
    "other lengths": framed(b"ok", b"Content-Length: 3"),
    "a list of lengths": head(b"Content-Length: 2, 2") + b"ok",
    "a length that is none": head(b"Content-Length: two") + b"ok",
    "a negative length": head(b"Content-Length: -2") + b"ok",
    "a length of thirty digits": head(b"Content-Length: " + b"9" * 30) + b"ok",
    "a length and chunks": framed(b"", CHUNKED) + chunks(b"hello"),
    "another coding": head(b"Transfer-Encoding: gzip, chunked") + chunks(b"hello"),
    "chunked twice": head(CHUNKED, CHUNKED) + chunks(b"hello"),
    "HTTP/2.0": framed(b"ok", first=b"HTTP/2.0 200 OK"),
    "HTTP/1.2": framed(b"ok", first=b"HTTP/1.2 200 OK"),
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "a status of two digits": framed(b"ok", first=b"HTTP/1.1 20 OK"),
    "nothing": b"",
    "half a status line": b"HTTP/1.1 20",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a head and no end": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n",
    "a body cut short": framed(TEXT)[:-50],
    "a large body cut short": framed(bytes(300_000))[:-50],
    "no body": framed(TEXT)[: -len(TEXT)],
    "a chunk cut short": head(CHUNKED) + chunks(TEXT)[:100],
    "chunks without an end": head(CHUNKED) + chunks(TEXT)[:-5],
    "an end of chunks cut short": head(CHUNKED) + chunks(TEXT)[:-2],
    "no chunk": head(CHUNKED),
    "a size that is none": head(CHUNKED) + b"5\r\nhello\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a negative size": head(CHUNKED) + b"-5\r\nhello\r\n0\r\n\r\n",
    "a hundred and one headers": framed(b"ok", *(b"X-%d: 1" % number for number in range(101))),
    "a header of 70,000 bytes": framed(b"ok", b"X-Long: " + b"a" * 70_000),
    "more than it says": framed(b"ok") + b"HTTP/1.1 200 OK\r\n\r\n",
}


def whole(response: Any) -> list[bytes]:
    return [response.data, response.data, response.read()]


def by_read(response: Any) -> list[bytes]:
    return [response.read(), response.read()]


def undecoded(response: Any) -> list[bytes]:
    return [response.read(decode_content=False)]


def in_pieces(response: Any) -> list[bytes]:
    return [*iter(lambda: response.read(13), b"")]


def into(response: Any) -> list[bytes]:
    buffer, pieces = bytearray(11), []
    while n := response.readinto(buffer):
        pieces.append(bytes(buffer[:n]))
    return pieces


def streamed(response: Any) -> list[bytes]:
    return [*response.stream(64)]


def streamed_as_it_comes(response: Any) -> list[bytes]:
    return [*response.stream(None)] if response.chunked else [b"".join(response.stream(None))]


def one_look(response: Any) -> list[bytes]:
    return [b"".join(iter(lambda: response.read1(9), b""))]


def by_line(response: Any) -> list[bytes]:
    return [*response]


def as_text(response: Any) -> list[str]:
    response.auto_close = False
    return [io.TextIOWrapper(response, "latin-1", newline="").read()]


def some_of_it(response: Any) -> list[bytes]:
    first = response.read(5)
    return [first, response.data]


def drained(response: Any) -> list[bytes]:
    response.drain_conn()
    return [response.read()]


WAYS: list[tuple[Callable[[Any], list[Any]], bool]] = [
    *((way, True) for way in (whole, by_read)),
    *(
        (way, False)
        for way in (
            whole,
            by_read,
            undecoded,
            in_pieces,
            into,
            streamed,
            streamed_as_it_comes,
            one_look,
            by_line,
        )
    ),
    *((way, False) for way in (as_text, some_of_it, drained)),
]


def told(error: BaseException) -> tuple[Any, ...]:
    """What an error is, in words that do not name this run."""
    text = re.sub(r"0x[0-9a-f]+|host='[^']+'", "…", str(error))
    causes = [type(one) for one in error.args if isinstance(one, BaseException)]
    return (type(error), text, causes)


def seen(ask: Callable[[], Any], way: Callable[[Any], list[Any]], is_buffered: bool) -> list[Any]:
    """All that a caller sees of what *ask* answers, read by *way*."""
    try:
        response = ask()
    except Exception as error:
        return [told(error)]
    message = response._original_response.msg
    found: list[Any] = [
        (response.status, response.reason, response.version, response.version_string),
        [(name, value.rstrip()) for name, value in response.headers.items()],
        [(name, value.rstrip()) for name, value in message.items()],
        (message.get_all("set-cookie"), response.getheader("X-ONE"), response.headers.getlist("x-one")),
        (response.chunked, response.geturl(), response.get_redirect_location(), response.decode_content),
        response.readable(),
    ]
    if not is_buffered:
        found.append((response.length_remaining, response.supports_chunked_reads(), response.tell()))
    try:
        found.append(way(response))
    except Exception as error:
        found.append(told(error))
    if way is not as_text:
        found.append(
            (response.tell(), response.length_remaining, response.isclosed(), response.connection is None)
        )
    with contextlib.suppress(Exception):
        response.close()
    found.append(response.closed if way is not as_text else None)
    return found


@contextlib.contextmanager
def asking(
    tmp_path: Path, url: str, method: str, *, is_buffered: bool
) -> Iterator[tuple[Callable[[], Any], ...]]:
    """Asks by each path."""
    body = "    circuit_breaker: {mode: disabled}\n    retry: {max_attempts: 1}\n    pool: {max_idle: 0, parser: "
    text = rules(url, body + "auto}\n")
    other = url.replace("127.0.0.1", "localhost")
    text += f"  stock:\n    base_url: {other}\n{body}stdlib}}\n"
    with running(tmp_path, text) as hr:
        yield tuple(partial(hr.upstream(name).urlopen, method, "/a?b=c") for name in ("stock", "billing"))


def test_the_table_of_stock_s_fields_is_complete() -> None:
    assert KNOWN
    assert is_untouched()


@pytest.mark.parametrize("cut", ["whole", "head apart", "small pieces"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_stock_makes_of_it(tmp_path: Path, name: str, cut: str) -> None:
    data = ANSWERS[name]
    pieces, ways = [data], WAYS
    if cut != "whole":
        end = data.find(b"\r\n\r\n") + 4
        pieces, ways = (
            [data[:end], data[end:]],
            [(way, kind) for way, kind in WAYS if way in (whole, streamed)],
        )
    if cut == "small pieces":
        size = max(len(data) // 12, 7)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
    with Canned(pieces) as server, asking(tmp_path, server.url) as (by_stock, by_us):
        for way, is_buffered in ways:
            found = seen(partial(by_us, preload_content=is_buffered), way, is_buffered)
            wanted = seen(partial(by_stock, preload_content=is_buffered), way, is_buffered)
            assert found == wanted, (way.__name__, is_buffered)
