"""What callers get over the own wire path is what they get over stock's: the same answers, pieces and errors."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import pickle
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
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.response import HTTPResponse

from headrace.transport.stock.response import GovernedResponse
from headrace.transport.wire import untouched
from headrace.transport.wire.response import KNOWN, WireResponse, WireStreamed
from headrace.transport.wire.untouched import is_untouched
from support.faultserver import FaultServer
from support.governed import rules, running

TEXT = b"".join(b"line %d\n" % number for number in range(40))


class Canned:
    """A server that answers a path with bytes, cut as it is told, and ends; it keeps what was asked."""

    def __init__(self, by_path: dict[str, list[bytes]]) -> None:
        self.by_path = by_path
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("0.0.0.0", 0))
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
            asked = self._read(conn)
            if not asked:
                return
            self.asked.append(asked)
            pieces = self.by_path.get(asked.split()[1].decode(), [b"HTTP/1.1 204 Fine\r\n\r\n"])
            for piece in pieces:
                conn.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.001)
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(65536):  # until the client closes
                pass

    def _read(self, conn: socket.socket) -> bytes:
        asked = b""
        while not _is_whole(asked) and (piece := conn.recv(65536)):
            asked += piece
        return asked

    def __enter__(self) -> Canned:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def _is_whole(asked: bytes) -> bool:
    """Whether *asked* is a request to its end."""
    head, end, body = asked.partition(b"\r\n\r\n")
    if not end:
        return False
    if re.search(rb"(?im)^transfer-encoding: *chunked", head):
        return body.endswith(b"0\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return length is None or len(body) >= int(length[1])


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
    if way not in (as_text, drained):  # how much is drained depends on what has come
        found.append(
            (response.tell(), response.length_remaining, response.isclosed(), response.connection is None)
        )
    with contextlib.suppress(Exception):
        response.close()
    found.append(response.closed if way is not as_text else None)
    return found


def cut(data: bytes, how: str) -> list[bytes]:
    if how == "head apart":
        end = data.find(b"\r\n\r\n") + 4
        return [data[:end], data[end:]]
    size = max(len(data) // 5, 7) if how == "small pieces" else len(data) or 1
    return [data[at : at + size] for at in range(0, len(data), size)]


MOST_BYTES_IN_PIECES = 10_000
CUTS = ("whole", "head apart", "small pieces")
PATHS = {
    f"/{number}/{at}": cut(data, how)
    for number, data in enumerate(ANSWERS.values())
    for at, how in enumerate(CUTS)
}

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    with Canned(PATHS) as server:
        yield server


@pytest.fixture(scope="module")
def by_path(tmp_path_factory: pytest.TempPathFactory, canned: Canned) -> Iterator[tuple[Ask, Ask]]:
    """Asks the server by each path: ours, and stock's."""
    body = "    circuit_breaker: {mode: disabled}\n    retry: {max_attempts: 1}\n    pool: {max_idle: 0, parser: "
    other = canned.url.replace("127.0.0.1", "127.0.0.2")
    text = rules(canned.url, body + "auto}\n") + f"  stock:\n    base_url: {other}\n{body}stdlib}}\n"
    with running(tmp_path_factory.mktemp("wire"), text) as hr:
        yield hr.upstream("billing").urlopen, hr.upstream("stock").urlopen


def test_the_table_of_stock_s_fields_is_complete() -> None:
    assert KNOWN
    assert is_untouched()


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_stock_makes_of_it(by_path: tuple[Ask, Ask], name: str, how: str) -> None:
    """However it is read; of an answer that comes in pieces, two ways are looked at."""
    ours, stocks = by_path
    target = f"/{list(ANSWERS).index(name)}/{CUTS.index(how)}"
    for way, is_buffered in WAYS:
        if len(ANSWERS[name]) > MOST_BYTES_IN_PIECES and way in (in_pieces, into, one_look, by_line):
            continue
        if how == "whole" or way in (whole, streamed):
            found = seen(partial(ours, "GET", target, preload_content=is_buffered), way, is_buffered)
            wanted = seen(partial(stocks, "GET", target, preload_content=is_buffered), way, is_buffered)
            assert found == wanted, (way.__name__, is_buffered)


@pytest.mark.parametrize(
    ("method", "target", "keywords"),
    [
        pytest.param("GET", "/a?b=c", {}, id="nothing of its own"),
        pytest.param("GET", "/a%2fb?c=%41&d=[1]#e", {}, id="a target that is encoded"),
        pytest.param("get", "/a", {}, id="lower case"),
        pytest.param("DELETE", "/a", {}, id="DELETE"),
        pytest.param("HEAD", "/a", {}, id="HEAD"),
        pytest.param("POST", "/a", {}, id="POST without a body"),
        pytest.param("POST", "/a", {"body": b"\x00\xff"}, id="bytes"),
        pytest.param("PUT", "/a", {"body": "é"}, id="text"),
        pytest.param("PATCH", "/a", {"body": b""}, id="an empty body"),
        pytest.param("GET", "/a", {"body": b"x"}, id="GET with a body"),
        pytest.param("PROPFIND", "/a", {}, id="a method of its own"),
        pytest.param("POST", "/a", {"body": [b"a", b"b"]}, id="an iterable"),
        pytest.param("POST", "/a", {"body": io.BytesIO(b"file")}, id="a file"),
        pytest.param("POST", "/a", {"body": bytearray(b"ab")}, id="a buffer"),
        pytest.param("POST", "/a", {"body": b"ab", "chunked": True}, id="chunks"),
        pytest.param(
            "POST",
            "/a",
            {"body": b"ab", "headers": {"content-length": "2", "HOST": "x.test", "Accept-Encoding": "br"}},
            id="headers in place of stock's",
        ),
        pytest.param("GET", "/a", {"headers": {"User-Agent": "mine/1", "X-Latin": "caf\xe9"}}, id="latin-1"),
        pytest.param(
            "GET",
            "/a",
            {"headers": urllib3.HTTPHeaderDict([("X-Twice", "1"), ("X-Twice", "2"), ("Cookie", "a=b")])},
            id="a header twice",
        ),
        pytest.param("GET", "/a", {"headers": {"X-Bytes": b"a"}}, id="bytes as a value"),
        pytest.param("GET", "/a", {"headers": {"X-Folded": "a\r\n b"}}, id="a folded value"),
        pytest.param(
            "GET", "/a", {"headers": {"User-Agent": urllib3.util.SKIP_HEADER}}, id="a header left out"
        ),
        pytest.param("GET", "/a", {"headers": {"X-Number": 7}}, id="a number"),
        pytest.param("GET", "/a", {"headers": {"X Y": "a"}}, id="a name that is none"),
        pytest.param(
            "GET", "/a", {"headers": {"X-Split": "a\r\nX-Other: b"}}, id="a second header in a value"
        ),
        pytest.param("GET", "/a", {"headers": {"X-Greek": "λ"}}, id="beyond latin-1"),
        pytest.param("GE T", "/a", {}, id="a method that is none"),
    ],
)
def test_a_request_is_what_stock_makes_of_it(
    by_path: tuple[Ask, Ask], canned: Canned, method: str, target: str, keywords: dict[str, Any]
) -> None:
    """Byte for byte, but for the request's id and the name of the host."""
    asked = []
    for ask in by_path:
        canned.asked.clear()
        body = keywords.get("body")
        if isinstance(body, io.BytesIO):
            body.seek(0)
        try:
            ask(method, target, **keywords)
        except Exception as error:
            asked.append(told(error))
        else:
            (one,) = canned.asked
            one = re.sub(rb"X-Request-ID: [0-9a-f]+", b"X-Request-ID: 1", one)
            asked.append(one.replace(b"Host: 127.0.0.2:", b"Host: 127.0.0.1:"))
    assert asked[0] == asked[1]


@pytest.mark.wire_path
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HTTPConnectionPool, "urlopen"),
        (HTTPConnectionPool, "_make_request"),
        (HTTPConnection, "request"),
        (HTTPConnection, "putrequest"),
        (HTTPConnection, "getresponse"),
        (http.client.HTTPConnection, "putrequest"),
        (http.client.HTTPConnection, "putheader"),
        (http.client.HTTPConnection, "endheaders"),
        (http.client.HTTPConnection, "getresponse"),
        (http.client.HTTPResponse, "begin"),
        (HTTPResponse, "__init__"),
    ],
    ids=lambda one: one if isinstance(one, str) else one.__module__,
)
def test_what_has_replaced_a_part_of_stock_sees_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Sentry and Datadog wrap http.client, OpenTelemetry urllib3's `urlopen`."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        ask = hr.upstream("billing").urlopen
        assert isinstance(ask("GET", "/"), WireResponse)
        original, calls = getattr(owner, name), []

        def wrapper(*args: Any, **kw: Any) -> Any:
            calls.append(name)
            return original(*args, **kw)

        with monkeypatch.context() as replaced:
            replaced.setattr(owner, name, wrapper)
            assert ask("GET", "/").data == b"ok"
        assert calls
        assert isinstance(ask("GET", "/"), WireResponse)


@pytest.mark.parametrize("name", untouched.NAMES)
def test_it_is_seen_whatever_part_of_stock_is_replaced(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as replaced:
        where, _, part = name.partition(".")
        replaced.setattr(getattr(untouched.WHERE, where), part, lambda: None)
        assert not is_untouched()
    assert is_untouched()


def test_a_wrapper_that_equals_what_it_wraps_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """wrapt's proxies do."""

    class Proxy:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    monkeypatch.setattr(http.client.HTTPConnection, "endheaders", Proxy())
    assert not is_untouched()


def test_debug_output_of_http_client_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
        assert hr.upstream("billing").urlopen("GET", "/a").data == b"ok"
        assert "send: b'GET /a HTTP/1.1" in capsys.readouterr().out


class Kept(Canned):
    """The same, and it answers on as long as the client asks; `dialled` says by which connection it was asked."""

    def __init__(self, by_path: dict[str, list[bytes]]) -> None:
        self.dialled: list[int] = []
        super().__init__(by_path)

    def _answer(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            while asked := self._read(conn):
                self.dialled.append(conn.fileno())
                conn.sendall(self.by_path[asked.split()[1].decode()][0])


@pytest.mark.wire_path
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("_MAXHEADERS", framed(b"ok", *(b"X-%d: 1" % number for number in range(150)))),
        ("_MAXLINE", framed(b"ok", b"X-Long: " + 70_000 * b"x")),
    ],
)
def test_a_limit_of_http_client_s_that_was_raised_holds_for_the_codec_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: bytes
) -> None:
    """Else stock reads such an answer, and its connection is used once."""
    monkeypatch.setattr(http.client, name, 100_000)
    with Kept({"/": [answer]}) as server, running(tmp_path, rules(server.url)) as hr:
        ask = hr.upstream("billing").urlopen
        answers = [ask("GET", "/") for _ in range(3)]

    assert [one.data for one in answers] == [b"ok"] * 3
    assert all(isinstance(one, WireResponse) for one in answers)
    assert len(server.dialled) == 3
    assert len(set(server.dialled)) == 1


@pytest.mark.wire_path
def test_an_edit_of_the_parser_holds_from_the_next_attempt_on(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        ask = hr.upstream("billing").urlopen
        before = ask("GET", "/")
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, "    pool: {parser: stdlib}\n"))
        hr.reload()
        after = ask("GET", "/")

        assert (type(before), type(after)) == (WireResponse, GovernedResponse)
        assert [one.connection for one in server.requests] == [1, 1]


@pytest.mark.wire_path
def test_requests_gets_its_cookies_and_a_response_that_can_be_pickled(
    by_path: tuple[Ask, Ask], canned: Canned
) -> None:
    with requests.Session() as session:
        found = session.get(f"{canned.url}/0/0")
        copy = pickle.loads(pickle.dumps(found))

        assert isinstance(found.raw, WireResponse)
        assert dict(session.cookies) == dict(found.cookies) == {"a": "1", "b": "2"}
        assert (copy.content, copy.status_code, copy.headers) == (TEXT, 200, found.headers)
        assert [*found.iter_content(7)] == [TEXT[at : at + 7] for at in range(0, len(TEXT), 7)]


@pytest.mark.wire_path
@pytest.mark.parametrize("name", ["plain", "chunked", "until close"])
def test_a_streamed_answer_that_is_dropped_unread_is_a_leak(tmp_path: Path, name: str) -> None:
    target = f"/{list(ANSWERS).index(name)}/0"
    with Canned(PATHS) as server, running(tmp_path, rules(server.url)) as hr:
        answer = hr.upstream("billing").urlopen("GET", target, preload_content=False)
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (type(answer), pool["inuse"]) == (WireStreamed, 1)
        del answer
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["inuse"], pool["idle"], pool["closed"]) == (0, 0, {"leaked": 1})
