"""An answer means the same however it was cut on its way; what could mean two things is refused, or is the last one."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.transport.wire.h1 import (
    USUAL,
    AnswerReader,
    Limits,
    Malformed,
    TooLarge,
    Truncated,
    render_fields,
    render_head,
)


@dataclass(frozen=True)
class Read:
    """What a reader says of what it was fed.

    Attributes:
        is_over: The stream ended behind it.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    reason: str = "OK"
    version: int = 11
    length: int | None = None
    chunked: bool = False
    done: bool = True
    reusable: bool = True
    behind: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    informational: tuple[int, ...] = ()
    error: type[Exception] | None = None


def read(
    pieces: Iterable[bytes], method: str = "GET", *, ends: bool = False, limits: Limits | None = None
) -> Read:
    """What a new reader makes of *pieces*, which are then followed by the end of the stream if it *ends*."""
    reader = AnswerReader() if limits is None else AnswerReader(limits)
    reader.begin(method)
    return read_with(reader, pieces, ends=ends)


def read_with(reader: AnswerReader, pieces: Iterable[bytes], *, ends: bool = False) -> Read:
    error: type[Exception] | None = None
    body = b""
    try:
        for piece in pieces:
            assert reader.feed(piece) is reader.done
            assert reader.started is True
            body += reader.take()
        if ends:
            reader.end()
    except (Malformed, Truncated) as caught:
        error = type(caught)
        body += reader.take()
    return Read(
        status=reader.status,
        body=body,
        headers=tuple(reader.raw_headers),
        reason=reader.reason,
        version=reader.version,
        length=reader.length,
        chunked=reader.chunked,
        done=reader.done,
        reusable=reader.reusable,
        behind=reader.behind,
        trailers=tuple(reader.trailers),
        informational=tuple(reader.informational),
        error=error,
    )


def singly(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({one for one in at if 0 < one < len(data)}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@dataclass(frozen=True)
class Case:
    """What is sent, and what is read.

    Attributes:
        ends: The stream ends behind it.
    """

    data: bytes
    read: Read = field(default_factory=Read)
    method: str = "GET"
    ends: bool = False


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (status, *lines, b""))


def fields(*lines: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, value.strip()) for name, _, value in (line.partition(b":") for line in lines))


def answer(
    *lines: bytes,
    body: bytes = b"",
    status: bytes = b"HTTP/1.1 200 OK",
    method: str = "GET",
    ends: bool = False,
    **said: object,
) -> Case:
    """An answer with the header *lines*, and what is read of it; *said* is what is not as usual."""
    known = Read(
        status=int(status[9:12]), headers=fields(*lines), length=len(body), body=body, reusable=not ends
    )
    expected = replace(known, **said)  # type: ignore[arg-type]
    return Case(head(*lines, status=status) + body + expected.behind, expected, method, ends)


FOUR = b"Content-Length: 4"
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b'4\r\nmine\r\n1;a="b;c";d\r\n!\r\n000A\r\n0123456789\r\n0\r\n\r\n'
UNCHUNKED = b"mine!0123456789"
chunked = {"chunked": True, "length": None}

READ: dict[str, Case] = {
    # ── by a length ──
    "a length": answer(FOUR, body=b"mine"),
    "a length, lower case": answer(b"content-length:4", body=b"mine"),
    "a length with zeros and blanks": answer(b"Content-Length: \t 0004 \t", body=b"mine"),
    "a length of 0": answer(b"Content-Length: 0"),
    "a doubled length": answer(FOUR, FOUR, body=b"mine"),
    "a list of the same length": answer(b"Content-Length: 4, 4", body=b"mine"),
    "a body of CR and LF": answer(b"Content-Length: 8", body=b"\r\n\r\n\r\n\r\n"),
    "a body that is an answer": answer(b"Content-Length: 38", body=head(b"Content-Length: 0")),
    "a POST": answer(FOUR, body=b"mine", method="POST"),
    # ── by chunks ──
    "chunks": Case(head(CHUNKED) + CHUNKS, Read(headers=fields(CHUNKED), body=UNCHUNKED, **chunked)),
    "no chunks": Case(head(CHUNKED) + b"0\r\n\r\n", Read(headers=fields(CHUNKED), **chunked)),
    "one chunk": Case(
        head(CHUNKED) + b"4\r\nmine\r\n0\r\n\r\n", Read(headers=fields(CHUNKED), body=b"mine", **chunked)
    ),
    "chunks, in capitals": Case(
        head(b"TRANSFER-ENCODING:CHUNKED") + CHUNKS,
        Read(headers=((b"TRANSFER-ENCODING", b"CHUNKED"),), body=UNCHUNKED, **chunked),
    ),
    "a padded size": Case(
        head(CHUNKED) + b"4  \t\r\nmine\r\n0  \r\n\r\n",
        Read(headers=fields(CHUNKED), body=b"mine", **chunked),
    ),
    "trailers": Case(
        head(CHUNKED) + b"4\r\nmine\r\n0\r\nX-A: 1 \r\nX-B:2\r\nContent-Length: 7\r\n\r\n",
        Read(
            headers=fields(CHUNKED),
            body=b"mine",
            trailers=((b"X-A", b"1"), (b"X-B", b"2"), (b"Content-Length", b"7")),
            **chunked,
        ),
    ),
    "a trailer that ends like the last chunk": Case(
        head(CHUNKED) + b"4\r\nmine\r\n0\r\nX-A: 0\r\n\r\n",
        Read(headers=fields(CHUNKED), body=b"mine", trailers=((b"X-A", b"0"),), **chunked),
    ),
    "an extension of the last chunk": Case(
        head(CHUNKED) + b"4\r\nmine\r\n00;last\r\n\r\n",
        Read(headers=fields(CHUNKED), body=b"mine", **chunked),
    ),
    "chunks, in HTTP/1.0": Case(
        head(CHUNKED, b"Connection: keep-alive", status=b"HTTP/1.0 200 OK") + CHUNKS,
        Read(
            headers=fields(CHUNKED, b"Connection: keep-alive"),
            body=UNCHUNKED,
            version=10,
            reusable=False,
            **chunked,
        ),
    ),
    "the end instead of the last line of chunks": Case(
        head(CHUNKED) + b"4\r\nmine\r\n0\r\n",
        Read(headers=fields(CHUNKED), body=b"mine", reusable=False, **chunked),
        ends=True,
    ),
    # ── framed in two ways: it is the last one ──
    "a length and chunks": Case(
        head(FOUR, CHUNKED) + CHUNKS,
        Read(headers=fields(FOUR, CHUNKED), body=UNCHUNKED, reusable=False, **chunked),
    ),
    "chunks and lengths that differ": Case(
        head(CHUNKED, FOUR, b"Content-Length: 5") + CHUNKS,
        Read(headers=fields(CHUNKED, FOUR, b"Content-Length: 5"), body=UNCHUNKED, reusable=False, **chunked),
    ),
    "a length and an unknown coding": answer(
        FOUR, b"Transfer-Encoding: xchunked", body=b"mine", reusable=False
    ),
    "an unknown coding": answer(b"Transfer-Encoding: xchunked", body=b"mine", length=None, ends=True),
    "chunks behind another coding": Case(
        head(b"Transfer-Encoding: gzip, chunked") + CHUNKS,
        Read(headers=fields(b"Transfer-Encoding: gzip, chunked"), body=UNCHUNKED, reusable=False, **chunked),
    ),
    "chunks below another coding": answer(
        b"Transfer-Encoding: chunked, gzip", body=CHUNKS, length=None, ends=True
    ),
    "chunks, said twice": Case(
        head(CHUNKED, CHUNKED) + CHUNKS,
        Read(headers=fields(CHUNKED, CHUNKED), body=UNCHUNKED, reusable=False, **chunked),
    ),
    # ── until the end ──
    "neither length nor chunks": answer(body=b"mine", length=None, ends=True),
    "neither, and no body": answer(length=None, ends=True),
    "neither, in HTTP/1.0": answer(
        body=b"mine", status=b"HTTP/1.0 200 OK", version=10, length=None, ends=True
    ),
    "an empty length of a peer that closes": answer(
        b"Content-Length:", b"Connection: close", body=b"mine", length=None, ends=True
    ),
    "a length that is none of a peer that closes": answer(
        b"Content-Length: -5", b"Connection: close", body=b"mine", length=None, ends=True
    ),
    "an empty length in HTTP/1.0": answer(
        b"Content-Length: ", status=b"HTTP/1.0 200 OK", version=10, body=b"mine", length=None, ends=True
    ),
    # ── without a body, whatever is said ──
    "HEAD": answer(b"Content-Length: 30000", method="HEAD", length=0),
    "HEAD of chunks": answer(CHUNKED, method="HEAD", length=0),
    "HEAD without either": answer(method="HEAD", length=0),
    "204": answer(status=b"HTTP/1.1 204 No Content", reason="No Content"),
    "204 with a length": answer(FOUR, status=b"HTTP/1.1 204 No Content", reason="No Content", length=0),
    "304 with a length": answer(FOUR, status=b"HTTP/1.1 304 Not Modified", reason="Not Modified", length=0),
    "304 of chunks": answer(CHUNKED, status=b"HTTP/1.1 304 Not Modified", reason="Not Modified", length=0),
    "205 with a body": answer(
        FOUR, status=b"HTTP/1.1 205 Reset Content", reason="Reset Content", body=b"mine"
    ),
    # ── who closes ──
    "close": answer(FOUR, b"Connection: close", body=b"mine", reusable=False),
    "close, in capitals and among others": answer(
        FOUR, b"Connection: TE,\tCLOSE ", body=b"mine", reusable=False
    ),
    "close in a second header": answer(
        FOUR, b"Connection: keep-alive", b"Connection: close", body=b"mine", reusable=False
    ),
    "keep-alive": answer(FOUR, b"Connection: keep-alive", body=b"mine"),
    "a header that is called like it": answer(
        FOUR, b"X-Connection: close", b"Connections: close", body=b"mine"
    ),
    "a word with close in it": answer(FOUR, b"Connection: closed", body=b"mine"),
    "HTTP/1.0": answer(FOUR, status=b"HTTP/1.0 200 OK", version=10, body=b"mine", reusable=False),
    "HTTP/1.0 with keep-alive": answer(
        FOUR, b"Connection: Keep-Alive", status=b"HTTP/1.0 200 OK", version=10, body=b"mine"
    ),
    # ── heads of real servers ──
    "no reason": answer(FOUR, status=b"HTTP/1.1 200", reason="", body=b"mine"),
    "an empty reason": answer(FOUR, status=b"HTTP/1.1 200 ", reason="", body=b"mine"),
    "a reason of any bytes": answer(
        FOUR, status=b"HTTP/1.1 200 \xe4\x00 (\x01)", reason="ä\x00 (\x01)", body=b"mine"
    ),
    "an unknown status": answer(
        FOUR, status=b"HTTP/1.1 999 Request denied", reason="Request denied", body=b"mine"
    ),
    "no headers": answer(length=None, body=b"mine", ends=True),
    "values of any bytes": answer(FOUR, b"X: \xe4\xff\x01\x7f\t.", body=b"mine"),
    "empty values": answer(b"X:", b"Y: ", FOUR, body=b"mine"),
    "a name of all tokens": answer(b"!#$%&'*+-.^_`|~09azAZ: x", FOUR, body=b"mine"),
    "lines that all end in LF": Case(
        b"HTTP/1.1 200 OK\nX: y \nContent-Length: 4\n\nmine",
        Read(headers=((b"X", b"y"), (b"Content-Length", b"4")), length=4, body=b"mine"),
    ),
    "lines that all end in LF, and chunks": Case(
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\nmine\n0\n\n",
        Read(headers=fields(CHUNKED), body=b"mine", **chunked),
    ),
    # ── before it ──
    "100": Case(
        head(status=b"HTTP/1.1 100 Continue") + head(FOUR) + b"mine",
        Read(headers=fields(FOUR), length=4, body=b"mine", informational=(100,)),
    ),
    "some 1xx": Case(
        head(status=b"HTTP/1.1 100")
        + head(b"Link: </a>", b"Content-Length: 7", b"Connection: close", status=b"HTTP/1.1 103 Early Hints")
        + head(status=b"HTTP/1.1 102 Processing")
        + head(FOUR)
        + b"mine",
        Read(headers=fields(FOUR), length=4, body=b"mine", informational=(100, 103, 102)),
    ),
    "a 100 whose lines end in LF": Case(
        b"HTTP/1.1 100 Continue\n\n" + head(FOUR) + b"mine",
        Read(headers=fields(FOUR), length=4, body=b"mine", informational=(100,)),
    ),
    "100 before an answer to HEAD": Case(
        head(status=b"HTTP/1.1 100 Continue") + head(FOUR),
        Read(headers=fields(FOUR), length=0, informational=(100,)),
        "HEAD",
    ),
    # ── behind it ──
    "a second answer": answer(FOUR, body=b"mine", behind=head(FOUR) + b"your", reusable=False),
    "a proxy's 408": answer(
        FOUR, body=b"mine", behind=head(b"Connection: close", status=b"HTTP/1.1 408 Late"), reusable=False
    ),
    "the beginning of a second answer": answer(FOUR, body=b"mine", behind=b"HTTP/1.1 20", reusable=False),
    "surplus": answer(FOUR, body=b"mine", behind=b"mine again", reusable=False),
    "an LF": answer(FOUR, body=b"mine", behind=b"\n", reusable=False),
    "a CR and LF": answer(FOUR, body=b"mine", behind=b"\r\n", reusable=False),
    "surplus of a peer that closes": answer(
        FOUR, b"Connection: close", body=b"mine", behind=b"x", reusable=False
    ),
    "a body of HEAD": answer(FOUR, method="HEAD", length=0, behind=b"mine", reusable=False),
    "a body of 204": answer(
        FOUR, status=b"HTTP/1.1 204 No Content", reason="No Content", length=0, behind=b"mine", reusable=False
    ),
    "a body of 304": answer(
        FOUR,
        status=b"HTTP/1.1 304 Not Modified",
        reason="Not Modified",
        length=0,
        behind=b"mine",
        reusable=False,
    ),
    "chunks of 304": answer(
        CHUNKED,
        status=b"HTTP/1.1 304 Not Modified",
        reason="Not Modified",
        length=0,
        behind=CHUNKS,
        reusable=False,
    ),
    "something behind no body": answer(b"Content-Length: 0", behind=b"x", reusable=False),
    **{
        f"{what} behind chunks": Case(
            head(CHUNKED) + CHUNKS + behind,
            Read(headers=fields(CHUNKED), body=UNCHUNKED, behind=behind, reusable=False, **chunked),
        )
        for what, behind in {
            "a second answer": head(CHUNKED) + CHUNKS,
            "surplus": b"x",
            "a CR and LF": b"\r\n",
            "a last chunk": b"0\r\n\r\n",
            "an answer without an end, that ends like chunks": head() + CHUNKS,
            "a CR": b"\r",
        }.items()
    },
    # ── another protocol ──
    "101": answer(
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        status=b"HTTP/1.1 101 Switching Protocols",
        reason="Switching Protocols",
        behind=b"\x81\x05hello",
        reusable=False,
    ),
    "101 without a word": answer(status=b"HTTP/1.1 101 ", reason="", reusable=False),
    "100 and 101": Case(
        head(status=b"HTTP/1.1 100 ") + head(b"Upgrade: x", status=b"HTTP/1.1 101 ") + b"\r\nx",
        Read(
            status=101,
            reason="",
            headers=fields(b"Upgrade: x"),
            length=0,
            informational=(100,),
            behind=b"\r\nx",
            reusable=False,
        ),
    ),
    "an announced upgrade": answer(b"Upgrade: h2c", b"Connection: upgrade", FOUR, body=b"mine"),
    "a tunnel": answer(FOUR, method="CONNECT", length=0, behind=b"\x16\x03\x01", reusable=False),
    "no tunnel": answer(FOUR, status=b"HTTP/1.1 407 No", reason="No", method="CONNECT", body=b"mine"),
}

_BODY = head(CHUNKED)
REFUSED: dict[str, Case] = {
    name: Case(data)
    for name, data in {
        # ── framed in two ways ──
        "lengths that differ": head(FOUR, b"Content-Length: 5") + b"mine!",
        "lengths that differ, of a peer that closes": head(FOUR, b"Connection: close", b"Content-Length: 5")
        + b"mine!",
        "a length and none that differ, of a peer that closes": head(
            FOUR, b"Connection: close", b"Content-Length: x"
        ),
        "lengths that differ, without a body": head(
            FOUR, b"Content-Length: 5", status=b"HTTP/1.1 304 Not Modified"
        ),
        "a list of lengths that differ": head(b"Content-Length: 4, 5") + b"mine!",
        "an empty length": head(b"Content-Length:") + b"mine",
        "a length that is no number": head(b"Content-Length: five") + b"mine",
        "a negative length": head(b"Content-Length: -5"),
        "a length with a sign": head(b"Content-Length: +4") + b"mine",
        "a length with an underscore": head(b"Content-Length: 0_4") + b"mine",
        "a length in hexadecimal": head(b"Content-Length: 0x4") + b"mine",
        "two words of length": head(b"Content-Length: 4 4") + b"mine",
        "a length of 2^63": head(b"Content-Length: 9223372036854775808"),
        "a length of 10^30": head(b"Content-Length: 1" + b"0" * 30),
        "a length of 5000 digits": head(b"Content-Length: " + b"9" * 5000, b"Connection: close"),
        # ── lines ──
        "a folded line": head(b"X: a", b" b", FOUR) + b"mine",
        "a folded first line": head(b" X: a", FOUR) + b"mine",
        "a folded line with a tab": head(b"X: a", b"\tContent-Length: 3", FOUR) + b"mine",
        "a bare LF in a value": head(b"X: a\nContent-Length: 3", FOUR) + b"mine",
        "a bare CR in a value": head(b"X: a\rContent-Length: 3", FOUR) + b"mine",
        "a CR in a value of lines that end in LF": b"HTTP/1.1 200 OK\nX: a\rb\nContent-Length: 4\n\nmine",
        "CR and LF among lines that end in LF": b"HTTP/1.1 200 OK\nX: a\r\nContent-Length: 4\n\nmine",
        "a CR in a status line that ends in LF": b"HTTP/1.1 200 O\rK\nContent-",
        "a status line that ends in LF": b"HTTP/1.1 200 OK\nContent-Length: 4\r\n\r\nmine",
        "a last line of the head that ends in LF": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\nmine",
        "NUL in a value": head(b"X: a\0b", FOUR) + b"mine",
        "NUL in a name": head(b"X\0: a", FOUR) + b"mine",
        "a blank before the colon": head(b"Content-Length : 4") + b"mine",
        "a tab before the colon": head(b"Transfer-Encoding\t: chunked", FOUR) + b"mine",
        "a blank in a name": head(b"Content Length: 4") + b"mine",
        "no colon": head(b"X", FOUR) + b"mine",
        "no name": head(b": x", FOUR) + b"mine",
        "a name beyond ASCII": head(b"X\xe4: a", FOUR) + b"mine",
        # ── the status line ──
        "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
        "SMTP": b"220 mx.example ESMTP\r\n",
        "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
        "HTTP/2's preface": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        "HTTP/2.0": head(FOUR, status=b"HTTP/2.0 200 OK") + b"mine",
        "HTTP/1.2": head(FOUR, status=b"HTTP/1.2 200 OK") + b"mine",
        "HTTP/0.9": b"<html>mine",
        "RTSP": head(FOUR, status=b"RTSP/1.0 200 OK") + b"mine",
        "lower case": head(FOUR, status=b"http/1.1 200 OK") + b"mine",
        "an empty line before it": b"\r\n" + head(FOUR) + b"mine",
        "a status that is none": head(status=b"HTTP/1.1 abc OK"),
        "a status of two digits": head(status=b"HTTP/1.1 20 OK"),
        "a status of four digits": head(status=b"HTTP/1.1 2000 OK"),
        "a status below 100": head(status=b"HTTP/1.1 099 OK"),
        "two blanks before the status": head(status=b"HTTP/1.1  200 OK"),
        "a tab before the status": head(status=b"HTTP/1.1\t200 OK"),
        "a CR behind the CR of the status line": b"HTTP/1.1 200 OK\r\rX: y\r\n" + FOUR + b"\r\n\r\nmine",
        "a byte behind the CR of the status line": b"HTTP/1.1 200 OK\rX: y\r\n" + FOUR + b"\r\n\r\nmine",
        "a bare CR in the reason": head(FOUR, status=b"HTTP/1.1 200 O\rK") + b"mine",
        "a body of a 1xx": head(FOUR, status=b"HTTP/1.1 150 Odd") + b"mine",
        "a 1xx with a folded line": head(b"X: a", b" b", status=b"HTTP/1.1 103 Hints") + head(FOUR) + b"mine",
        # ── chunks ──
        "a chunk size that is none, without an end": _BODY + b"x",
        "a chunk size with garbage, without an end": _BODY + b"4 x",
        "a chunk size with a bare CR, without an end": _BODY + b"4\r4",
        "a negative chunk size": _BODY + b"-5\r\nhello\r\n0\r\n\r\n",
        "a chunk size with a sign": _BODY + b"+5\r\nhello\r\n0\r\n\r\n",
        "a chunk size with an underscore": _BODY + b"0_5\r\nhello\r\n0\r\n\r\n",
        "a chunk size with 0x": _BODY + b"0x5\r\nhello\r\n0\r\n\r\n",
        "a chunk of 10^30": _BODY + b"c9f2c9cd04674edea40000000\r\nhello\r\n0\r\n\r\n",
        "a chunk of 2^63": _BODY + b"8000000000000000\r\nhello\r\n0\r\n\r\n",
        "a chunk size that is none": _BODY + b"xyz\r\nhello\r\n0\r\n\r\n",
        "an empty chunk size": _BODY + b"\r\n5\r\nhello\r\n0\r\n\r\n",
        "an extension without a size": _BODY + b";a=b\r\nhello\r\n0\r\n\r\n",
        "a blank before the size": _BODY + b" 5\r\nhello\r\n0\r\n\r\n",
        "garbage behind a chunk size": _BODY + b"5 zzz\r\nhello\r\n0\r\n\r\n",
        "garbage as a second chunk size": _BODY + b"5\r\nhello\r\n-7\r\nhello\r\n0\r\n\r\n",
        "a chunk longer than its size": _BODY + b"4\r\nhello\r\n0\r\n\r\n",
        "a chunk shorter than its size": _BODY + b"6\r\nhello\r\n0\r\n\r\n",
        "a size that ends in LF": _BODY + b"5\nhello\r\n0\r\n\r\n",
        "a chunk that ends in LF": _BODY + b"5\r\nhello\n0\r\n\r\n",
        "a chunk that ends in CR": _BODY + b"5\r\nhello\r0\r\n\r\n",
        "a bare LF in an extension": _BODY + b"5;a\nX: y\r\nhello\r\n0\r\n\r\n",
        "a bare CR in an extension": _BODY + b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "NUL in an extension": _BODY + b"5;a\0b\r\nhello\r\n0\r\n\r\n",
        "a trailer that is no header": _BODY + b"0\r\nX\r\n\r\n",
        "a folded trailer": _BODY + b"0\r\nX: a\r\n b\r\n\r\n",
        "a blank before a trailer's colon": _BODY + b"0\r\nX : a\r\n\r\n",
        "a trailer that ends in LF": _BODY + b"0\r\nX: a\n\r\n",
        "a last line that ends in LF": _BODY + b"0\r\n\n",
    }.items()
}

few = settings(max_examples=20)  # of each of a hundred and fifty
read_ = pytest.mark.parametrize("case", [pytest.param(one, id=name) for name, one in READ.items()])
refused = pytest.mark.parametrize("case", [pytest.param(one, id=name) for name, one in REFUSED.items()])


@read_
def test_an_answer_is_read_whole(case: Case) -> None:
    """failures.md 53: framed in two ways, or something behind it. failures.md 58: blanks behind a value."""
    assert read([case.data], case.method, ends=case.ends) == case.read


@read_
def test_an_answer_is_read_byte_by_byte(case: Case) -> None:
    """failures.md 53."""
    assert read(singly(case.data), case.method, ends=case.ends) == case.read


@read_
@few
@given(data=st.data())
def test_an_answer_is_read_in_any_pieces(case: Case, data: st.DataObject) -> None:
    """failures.md 53."""
    at = data.draw(st.sets(st.integers(1, len(case.data) - 1), max_size=8))
    assert read(cut(case.data, at), case.method, ends=case.ends) == case.read


@refused
def test_what_is_no_answer_is_refused_however_it_was_cut(case: Case) -> None:
    """failures.md 64, and 53 for what two readers could read in two ways."""
    whole = read([case.data])
    assert (whole.error, whole.done, whole.reusable, whole.behind) == (Malformed, False, False, b"")
    assert read(singly(case.data)) == whole


@refused
@few
@given(data=st.data())
def test_what_is_no_answer_is_refused_in_any_pieces(case: Case, data: st.DataObject) -> None:
    """failures.md 64."""
    at = data.draw(st.sets(st.integers(1, len(case.data) - 1), max_size=8))
    assert read(cut(case.data, at)) == read([case.data])


# ── the end of the stream ──


CUT_SHORT: dict[str, tuple[bytes, str, int | None, int | None]] = {
    "before the first byte": (b"", "before the first byte", None, None),
    "in the status line": (b"HTTP/1.1 2", "within the head", None, None),
    "before the empty line": (b"HTTP/1.1 200 OK\r\n" + FOUR + b"\r\n", "within the head", None, None),
    "behind a 1xx": (head(status=b"HTTP/1.1 100 Continue"), "within the head", None, None),
    "before the body": (head(FOUR), "after 0 of 4 bytes", 4, 0),
    "in the body": (head(FOUR) + b"min", "after 3 of 4 bytes", 4, 3),
    "before the chunks": (head(CHUNKED), "after 0 bytes", None, 0),
    "in a size": (head(CHUNKED) + b"4", "after 0 bytes", None, 0),
    "in a chunk": (head(CHUNKED) + b"4\r\nmin", "after 3 bytes", None, 3),
    "behind a chunk": (head(CHUNKED) + b"4\r\nmine", "after 4 bytes", None, 4),
    "in an extension": (head(CHUNKED) + b"4;" + b"x" * 40 + b"\r", "after 0 bytes", None, 0),
    "between two chunks": (head(CHUNKED) + b"4\r\nmine\r\n", "after 4 bytes", None, 4),
    "in the size of the last chunk": (head(CHUNKED) + b"4\r\nmine\r\n0", "after 4 bytes", None, 4),
}


@pytest.mark.parametrize("how", [lambda data: [data] if data else [], singly], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", CUT_SHORT)
def test_an_answer_that_breaks_off_is_told_with_what_has_come(
    name: str, how: Callable[[bytes], list[bytes]]
) -> None:
    """Whether a byte has come decides whether the request may be sent again."""
    data, words, expected, received = CUT_SHORT[name]
    reader = AnswerReader()
    reader.begin("GET")
    for piece in how(data):
        assert reader.feed(piece) is False
    with pytest.raises(Truncated, match=words) as caught:
        reader.end()
    assert (caught.value.expected, caught.value.received) == (expected, received)
    assert (reader.started, reader.done, reader.reusable) == (bool(data), False, False)


def test_nothing_is_not_a_byte() -> None:
    """An empty piece says that nothing has come, not that anything has ended."""
    reader = AnswerReader()
    reader.begin("GET")
    assert (reader.feed(b""), reader.started, reader.head_done, reader.status) == (False, False, False, 0)
    assert (reader.feed(head(FOUR) + b"mi"), reader.started) == (False, True)
    assert reader.feed(b"") is False
    assert (reader.feed(b"ne"), reader.take()) == (True, b"mine")
    assert reader.feed(b"") is True
    assert reader.reusable is True


def test_nothing_between_a_1xx_and_the_answer_is_not_a_byte() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    for piece in (
        head(status=b"HTTP/1.1 100 Continue"),
        b"",
        head(FOUR)[:5],
        b"",
        head(FOUR)[5:],
        b"",
        b"mine",
    ):
        done = reader.feed(piece)
    assert (done, reader.take(), reader.informational) == (True, b"mine", [100])


def test_a_connection_that_ends_behind_an_answer_is_not_used_again() -> None:
    assert read([head(FOUR) + b"mine"], ends=True).reusable is False


def test_a_reader_that_has_refused_reads_no_more() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    with pytest.raises(Malformed, match="does not begin like an answer"):
        reader.feed(b"SSH-2.0")
    for go_on in (lambda: reader.feed(head(FOUR) + b"mine"), reader.end):
        with pytest.raises(Malformed, match="before"):
            go_on()
    assert (reader.done, reader.take()) == (False, b"")


@pytest.mark.parametrize(
    "data",
    [head(b"Connection: keep-alive", FOUR) + b"mine", head(CHUNKED) + b"4\r\nmine\r\n" * 9 + b"0\r\n\r\n"],
    ids=["a length", "chunks"],
)
def test_a_usual_answer_in_one_piece_is_one_python_call_by_itself_and_one_more_by_feed(data: bytes) -> None:
    reader = AnswerReader()
    called: list[str] = []

    def counted(act: Callable[[], object]) -> object:
        called.clear()
        sys.setprofile(
            lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None
        )
        try:
            return act()
        finally:
            sys.setprofile(None)

    for _ in range(3):
        reader.begin("GET")
        counted(partial(reader.feed, data))
        assert reader.done
    assert called == ["feed", "whole"]
    assert counted(partial(reader.whole, "GET", data)) is not None
    assert called == ["whole"]


@pytest.mark.parametrize(
    ("method", "data"),
    [
        pytest.param("GET", head(b"Connection: keep-alive", FOUR) + b"mine", id="a length"),
        pytest.param("POST", head(CHUNKED) + b"4\r\nmine\r\n" * 9 + b"0\r\n\r\n", id="chunks"),
        pytest.param("GET", head(b"Connection: close", FOUR) + b"mine", id="the last one"),
        pytest.param("GET", head(FOUR) + b"mine and more", id="something behind it"),
        pytest.param("GET", head(FOUR) + b"mi", id="a part"),
        pytest.param("GET", head(FOUR), id="the head alone"),
        pytest.param("GET", head(b"Content-Length: 0"), id="nothing but a head"),
        pytest.param("HEAD", head(FOUR), id="HEAD"),
        pytest.param("GET", b"HTTP/1.1 204 No Content\r\n\r\n", id="204"),
        pytest.param("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nmine", id="HTTP/1.0"),
        pytest.param("GET", b"HTTP/1.1 100 Continue\r\n\r\n" + head(FOUR) + b"mine", id="behind a 1xx"),
        pytest.param("GET", head(FOUR, b"Content-Length: 5") + b"mine", id="no answer"),
    ],
)
def test_an_answer_that_is_looked_at_as_a_whole_is_what_feed_makes_of_it(method: str, data: bytes) -> None:
    def told(reader: AnswerReader, act: Callable[[], bool]) -> tuple[object, ...]:
        try:
            act()
        except Malformed as error:
            return (str(error),)
        return reader.status, reader.head, reader.lowered, reader.take(), reader.chunked, reader.reusable

    fed, asked = AnswerReader(), AnswerReader()
    for reader in (fed, asked):
        reader.feed(head(FOUR) + b"left")  # the body before, which nobody has taken
    fed.begin(method)
    expected = told(fed, lambda: fed.feed(data))
    whole = asked.whole(method, data)
    if whole is None:
        asked.begin(method)
        assert told(asked, lambda: asked.feed(data, True)) == expected
        assert (asked.done, asked.rest(), asked.informational) == (fed.done, fed.rest(), fed.informational)
    else:
        assert whole == expected
        assert fed.done
        assert asked.reusable is fed.reusable


# ── one answer after the other ──


def test_answers_of_all_shapes_follow_each_other_on_one_connection() -> None:
    """failures.md 53: what one leaves behind in the parser is not the next one's."""
    reader = AnswerReader()
    kept = {name: case for name, case in READ.items() if case.read.reusable}
    assert len(kept) > 30
    for case in [*kept.values(), *reversed(kept.values())]:
        for pieces in ([case.data], singly(case.data), cut(case.data, [case.data.find(b"\r\n\r\n") + 4])):
            reader.begin(case.method)
            assert (reader.started, reader.head_done, reader.take()) == (False, False, b"")
            assert read_with(reader, pieces) == case.read


@pytest.mark.parametrize("name", [name for name, case in READ.items() if not case.read.reusable])
def test_behind_what_is_the_last_answer_none_can_begin(name: str) -> None:
    """failures.md 53."""
    case = READ[name]
    reader = AnswerReader()
    reader.begin(case.method)
    read_with(reader, [case.data], ends=case.ends)
    with pytest.raises(RuntimeError, match="no answer may follow"):
        reader.begin("GET")


def test_none_can_begin_before_one_is_complete() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    reader.feed(head(FOUR) + b"min")
    with pytest.raises(RuntimeError):
        reader.begin("GET")


def test_what_comes_later_behind_an_answer_ends_the_connection_too() -> None:
    """failures.md 53."""
    reader = AnswerReader()
    reader.begin("GET")
    assert reader.feed(head(FOUR) + b"mine")
    assert reader.reusable is True
    assert reader.feed(b"HTTP/1.1")
    assert reader.feed(b" 200")
    assert (reader.reusable, reader.behind, reader.take()) == (False, b"HTTP/1.1 200", b"mine")


def test_a_body_is_taken_as_it_comes() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    reader.feed(head(CHUNKED))
    assert (reader.head_done, reader.take(), reader.rest()) == (True, b"", None)
    reader.feed(b"4\r\nmi")
    assert (reader.take(), reader.take()) == (b"mi", b"")
    reader.feed(b"ne\r\n1\r\n!\r\n0\r\n")
    assert (reader.take(), reader.done) == (b"ne!", False)
    assert reader.feed(b"\r\n")


def test_the_rest_of_a_body_may_be_read_past_the_reader() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    for _ in range(2):
        assert reader.rest() is None
        reader.feed(head(b"Content-Length: 10") + b"abc")
        assert (reader.rest(), reader.take()) == (7, b"abc")
        reader.passed(5)
        assert (reader.rest(), reader.done) == (2, False)
        for n in (3, -1):
            with pytest.raises(ValueError, match="2 are to come"):
                reader.passed(n)
        reader.passed(0)
        reader.passed(2)
        assert (reader.rest(), reader.done, reader.reusable, reader.take()) == (0, True, True, b"")
        with pytest.raises(ValueError, match="0 are to come"):
            reader.passed(1)
        reader.begin("GET")


def test_a_body_that_is_read_past_the_reader_may_break_off() -> None:
    reader = AnswerReader()
    reader.begin("GET")
    reader.feed(head(b"Content-Length: 10") + b"abc")
    reader.passed(5)
    with pytest.raises(Truncated) as caught:
        reader.end()
    assert (caught.value.expected, caught.value.received) == (10, 8)


@pytest.mark.parametrize("data", [head(CHUNKED), head()], ids=["chunks", "until the end"])
def test_what_has_no_length_is_not_read_past_the_reader(data: bytes) -> None:
    reader = AnswerReader()
    reader.begin("GET")
    reader.feed(data)
    with pytest.raises(ValueError, match="None are to come"):
        reader.passed(1)


# ── limits ──

SMALL = Limits(head_bytes=100, headers=4, line_bytes=20, informational=2, body_bytes=10)
TEN = b"Content-Length: 10"
AT_THE_LIMIT: dict[str, tuple[bytes, bytes, str]] = {
    "a head": (
        head(b"X: " + b"x" * 56, TEN) + b"0123456789",
        head(b"X: " + b"x" * 57, TEN),
        "head is longer than 100",
    ),
    "a status line": (
        head(status=b"HTTP/1.1 204 " + b"x" * 83),
        b"HTTP/1.1 204 " + b"x" * 88,
        "head is longer than 100",
    ),
    "headers": (head(*[b"X:"] * 3, FOUR) + b"mine", head(*[b"X:"] * 4, FOUR), "more than 4 headers"),
    "1xx": (
        head(status=b"HTTP/1.1 100 ") * 2 + head(FOUR) + b"mine",
        head(status=b"HTTP/1.1 100 ") * 3,
        "more than 2 answers",
    ),
    "a length": (head(TEN) + b"0123456789", head(b"Content-Length: 11"), "body is longer than 10"),
    "chunks": (
        head(CHUNKED) + b"5\r\n01234\r\n" * 2 + b"0\r\n\r\n",
        head(CHUNKED) + b"5\r\n01234\r\n" * 2 + b"1\r\nx",
        "body is longer than 10",
    ),
    "an extension": (
        head(CHUNKED) + b"5;" + b"x" * 16 + b"\r\n01234\r\n0\r\n\r\n",
        head(CHUNKED) + b"5;" + b"x" * 17 + b"\r\n",
        "more than 20 bytes",
    ),
    "a size without an end": (
        head(CHUNKED) + b"0" * 17 + b"5\r\n01234\r\n0\r\n\r\n",
        head(CHUNKED) + b"0" * 21,
        "more than 20",
    ),
    "trailers": (
        head(CHUNKED) + b"0\r\n" + b"X:\r\n" * 4 + b"\r\n",
        head(CHUNKED) + b"0\r\n" + b"X:\r\n" * 5,
        "more than 4 trailers",
    ),
    "bytes of trailers": (
        head(CHUNKED) + b"0\r\n" + (b"X:" + b"x" * 45 + b"\r\n") * 2 + b"\r\n",
        head(CHUNKED) + b"0\r\n" + (b"X:" + b"x" * 45 + b"\r\n") * 2 + b"X:x",
        "more than 100 bytes",
    ),
}


@pytest.mark.parametrize("how", [lambda data: [data], singly], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_a_limit_is_what_may_be_and_no_more(name: str, how: Callable[[bytes], list[bytes]]) -> None:
    """failures.md 70."""
    within, beyond, words = AT_THE_LIMIT[name]
    assert read(how(within), limits=SMALL).done
    assert read(how(beyond), limits=SMALL).error is TooLarge
    reader = AnswerReader(SMALL)
    reader.begin("GET")
    *before, last = how(beyond)
    for piece in before:
        reader.feed(piece)
    with pytest.raises(TooLarge, match=words):
        reader.feed(last)


@pytest.mark.parametrize(
    "data",
    [
        head(b"Content-Length: 11") + b"0123456789x",
        head(CHUNKED) + b"b\r\n0123456789x\r\n0\r\n\r\n",
        head(b"X: " + b"x" * 57, TEN) + b"0123456789",
        head(*[b"X:"] * 4, FOUR) + b"mine",
    ],
    ids=["a length", "chunks", "a head", "headers"],
)
def test_an_answer_that_has_come_whole_has_the_same_limits(data: bytes) -> None:
    assert read([data], limits=SMALL).error is TooLarge
    assert read([data]).done


def test_what_is_behind_a_limit_is_not_looked_at_however_it_came() -> None:
    """A finding of tests/bench/fuzz_h1.py: in one piece it was malformed, byte by byte too large."""
    data = head(CHUNKED) + b"3" + b"0" * 24 + b"\r0\n"

    assert read([data], limits=SMALL) == read(singly(data), limits=SMALL)
    assert read([data], limits=SMALL).error is TooLarge


def test_a_body_until_the_end_has_a_limit_too() -> None:
    assert read([head(), b"0123456789"], ends=True, limits=SMALL).done
    assert read([head(), b"0123456789", b"x"], limits=SMALL) == replace(
        read([head(), b"0123456789"], limits=SMALL), error=TooLarge
    )
    beyond = read([head(), b"01234567", b"89x"], limits=SMALL)
    assert (beyond.body, beyond.error) == (b"0123456789", TooLarge)


def test_a_body_of_nothing_passes_a_limit_of_nothing() -> None:
    nothing = Limits(body_bytes=0)
    for how in (lambda data: [data], singly):
        assert read(how(head(CHUNKED) + b"0\r\n\r\n"), limits=nothing).done
        assert read(how(head(b"Content-Length: 0")), limits=nothing).done
        assert read(how(head(CHUNKED) + b"1\r\nx\r\n0\r\n\r\n"), limits=nothing).error is TooLarge


def test_the_usual_limits_are_those_of_http_client() -> None:
    """As in adapters/test_garbage.py."""
    client: Any = http.client
    assert (USUAL.head_bytes, USUAL.line_bytes, USUAL.headers) == (
        client._MAXLINE,
        client._MAXLINE,
        client._MAXHEADERS,
    )
    for data in (
        head(status=b"HTTP/1.1 200 " + b"O" * 100_000),
        head(b"X: " + b"x" * 100_000),
        head(*[b"X: x"] * 1000),
        head(CHUNKED) + b"0" * 100_000 + b"5\r\nhello\r\n0\r\n\r\n",
        head(status=b"HTTP/1.1 102 Processing") * 101,
    ):
        assert read([data]).error is TooLarge
        assert read(cut(data, range(0, len(data), 1000))).error is TooLarge
    assert read([head(*[b"X: x"] * 99, FOUR) + b"mine"]).done


# ── errors ──


@refused
def test_no_error_shows_a_value(case: Case) -> None:
    """failures.md 52."""
    secret = case.data.replace(b"X: a", b"X: s3cr3t").replace(b"five", b"s3cr3t").replace(b"zzz", b"s3cr3t")
    reader = AnswerReader()
    reader.begin("GET")
    with pytest.raises(Malformed) as caught:
        reader.feed(secret)
    assert "s3cr3t" not in repr(caught.value)
    assert str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((FOUR, b"X : y"), "line 3 of the head is no header"),
        ((FOUR, b"X: y", b" z"), "line 4 of the head is no header"),
        ((FOUR, b"Content-Length: 5"), "Content-Lengths differ"),
        ((b"Content-Length: x",), "Content-Length is no length"),
    ],
)
def test_an_error_says_where_and_what(lines: tuple[bytes, ...], words: str) -> None:
    reader = AnswerReader()
    reader.begin("GET")
    with pytest.raises(Malformed, match=f"^{words}$"):
        reader.feed(head(*lines))


# ── requests ──


def test_a_head_is_rendered() -> None:
    fixed = render_fields([("Host", "a.example"), ("X-Umlaut", "ä"), (b"X-Bytes", b"\xff"), ("X-Empty", "")])
    assert fixed == b"Host: a.example\r\nX-Umlaut: \xe4\r\nX-Bytes: \xff\r\nX-Empty: \r\n"
    assert render_head(b"GET", b"/a?b=%20c", fixed, [("X-Request-ID", "1")]) == (
        b"GET /a?b=%20c HTTP/1.1\r\n" + fixed + b"X-Request-ID: 1\r\n\r\n"
    )
    assert render_head(b"OPTIONS", b"*") == b"OPTIONS * HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    "target", [b"", b"/a b", b"/a\r\nX: y", b"/a\n", b"/a\0", b"/a\x7f", "/ä".encode(), b"/ HTTP/1.1\r\nX:"]
)
def test_a_target_that_would_be_more_than_one_is_refused(target: bytes) -> None:
    """failures.md 57."""
    with pytest.raises(ValueError, match="target"):
        render_head(b"GET", target)


@pytest.mark.parametrize("method", [b"", b"GET ", b"G\r\nT", b"GET / HTTP/1.1\r\n", b"G(T", b"G\xe4T"])
def test_a_method_that_is_no_token_is_refused(method: bytes) -> None:
    with pytest.raises(ValueError, match="method"):
        render_head(method, b"/")


@pytest.mark.parametrize("as_bytes", [False, True], ids=["text", "bytes"])
@pytest.mark.parametrize(
    "value", ["a\r\nX: y", "a\n b", "a\nb", "a\rb", "a\0", "s3cr3t\n", "\r\n", "a\r\n\r\nGET / HTTP/1.1"]
)
def test_a_value_that_would_be_more_than_one_is_refused_and_not_shown(value: str, as_bytes: bool) -> None:
    """failures.md 52."""
    with pytest.raises(ValueError, match="the value of header 'X-A' has CR, LF or NUL in it") as caught:
        render_fields([("X-B", "b"), ("X-A", value.encode() if as_bytes else value)])
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("beside", ["secret", 7])
def test_a_value_beyond_latin_1_is_refused_and_nothing_of_the_head_is_kept(beside: Any) -> None:
    with pytest.raises(ValueError, match="the value of header 'X-B' is beyond latin-1") as raised:
        render_fields([("X-A", beside), ("X-B", "hidden \u65e5")])
    assert type(raised.value) is ValueError  # an encoder's error holds all that it was to encode
    assert raised.value.__context__ is None


@pytest.mark.parametrize("name", ["", "X ", "X:", "X: y\r\nZ", "X\n", "Ä", "X\0", " X"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        render_fields([(name, "x")])
    with pytest.raises(ValueError, match="no name of a header"):
        render_head(b"GET", b"/", b"", [(name, "x")])


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=6))))
def test_what_is_rendered_is_read_as_it_was_given(pairs: list[tuple[str, str]]) -> None:
    try:
        lines = render_fields(pairs)
    except ValueError:
        return
    found = read([b"HTTP/1.1 204 \r\n" + lines + b"\r\n"])
    assert found.error is None
    assert [(name.decode("latin-1"), value.decode("latin-1")) for name, value in found.headers] == [
        (name, value.strip(" \t")) for name, value in pairs
    ]
