"""What a peer sends unasked is nobody's answer: its connection is closed, and the next call gets its own."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

import headrace
from support.faultserver import server_context
from support.governed import rules, running
from support.surfaces import HANDLE, INSTALL, SESSION, SURFACES, Surface, body_of, retrying_adapter
from support.talker import Asked, Line, Talker
from support.unasked import storm

pytestmark = pytest.mark.both_parsers

FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-For: nobody\r\n\r\nFORGED"


@dataclass(frozen=True)
class Shape:
    """An answer, whole, and what comes behind it.

    Attributes:
        method: Of the call that it answers.
        is_last: It ends its connection though nothing comes behind it.
    """

    answer: bytes
    surplus: bytes = FORGED
    method: str = "GET"
    is_last: bool = False


def answer(*lines: bytes, body: bytes = b"mine", status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""]) + body


CHUNKED = b"4\r\nmine\r\n0\r\n\r\n"
STRAY_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SHAPES = {
    "a second answer": Shape(answer(b"Content-Length: 4")),
    "a proxy's 408": Shape(answer(b"Content-Length: 4"), STRAY_408),
    "surplus after Content-Length": Shape(answer(b"Content-Length: 4"), b"mine again"),
    "one byte": Shape(answer(b"Content-Length: 4"), b"\n"),
    "surplus after chunks": Shape(answer(b"Transfer-Encoding: chunked", body=CHUNKED)),
    "a body of HEAD": Shape(answer(b"Content-Length: 30000", body=b""), b"x" * 30000, "HEAD"),
    "a body of 204": Shape(answer(status=b"204 No Content", body=b"")),
    "a body of 304": Shape(answer(b"Content-Length: 4", status=b"304 Not Modified", body=b""), b"mine"),
    "a doubled Content-Length": Shape(answer(b"Content-Length: 4", b"Content-Length: 4")),
    "Content-Length and chunks": Shape(
        answer(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=CHUNKED), is_last=True
    ),
    "Content-Length and an unknown coding": Shape(
        answer(b"Content-Length: 4", b"Transfer-Encoding: xchunked"), is_last=True
    ),
}
shapes = pytest.mark.parametrize("shape", [pytest.param(one, id=name) for name, one in SHAPES.items()])

VICTIMS: dict[str, dict[str, Any]] = {
    "GET": {},
    "HEAD": {},
    "POST": {"headers": {"Idempotency-Key": "k"}, "body": b"pay"},
}


class Peer:
    """Answers `/first` with a shape, and everything else with what it was asked for.

    Attributes:
        told: Set by the test: now the surplus, unless it came with the answer.
        said: Set by the peer: it is out.
    """

    def __init__(self, shape: Shape, *, at_once: bool) -> None:
        self.shape, self.at_once = shape, at_once
        self.told, self.said = threading.Event(), threading.Event()

    def say(self, line: Line, asked: Asked) -> None:
        if asked.target != "/first":
            own = f"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-For: {asked.target}\r\n\r\n".encode()
            line.send(own + (b"" if asked.method == "HEAD" else b"own"))
        elif self.at_once:
            line.send(self.shape.answer + self.shape.surplus)
        else:
            line.send(self.shape.answer)
            self.told.wait(10)
            self.told.clear()
            if self.shape.surplus:
                line.send(self.shape.surplus)
            self.said.set()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["plain", "TLS 1.2", "TLS 1.3"])
def tls(request: pytest.FixtureRequest, ca: trustme.CA) -> ssl.SSLContext | None:
    if request.param == "plain":
        return None
    context = server_context(ca, "127.0.0.1")
    if request.param == "TLS 1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.fixture
def governed(tmp_path: Path, ca: trustme.CA) -> Callable[[Talker], Any]:
    """A Headrace over the one upstream, also by URL of urllib3; each call has one attempt."""
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def run(peer: Talker) -> Any:
        tls = f"    tls: {{ca: '{tmp_path}/ca.pem'}}\n" if peer.url.startswith("https") else ""
        return running(
            tmp_path,
            rules(peer.url, f"    retry: {{max_attempts: 1}}\n{tls}", more=INSTALL),
        )

    return run


def closed(hr: headrace.Headrace) -> dict[str, int]:
    found: dict[str, int] = hr.status()["upstreams"]["billing"]["pool"]["closed"]
    return found


@shapes
def test_what_came_after_an_answer_is_not_the_next_calls(
    shape: Shape, tls: ssl.SSLContext | None, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 53. However short a while ago the connection was used, and whether or not it may be sent twice."""
    peer = Peer(shape, at_once=False)
    with Talker(peer.say, tls=tls) as server, governed(server) as hr:
        handle = hr.upstream("billing")
        for method, options in VICTIMS.items():
            peer.said.clear()
            first = handle.urlopen(shape.method, "/first")
            assert first.data in (b"mine", b"")
            peer.told.set()
            assert peer.said.wait(10)

            victim = handle.urlopen(method, "/victim", **options)

            assert victim.headers["X-For"] == "/victim"
            assert victim.headrace.attempts[-1].resent is False
        assert closed(hr) == {"dead": len(VICTIMS)}


@shapes
def test_what_came_with_an_answer_ends_its_connection(
    shape: Shape, tls: ssl.SSLContext | None, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 53. http.client has read it with the answer, and a look at the socket finds nothing."""
    peer = Peer(shape, at_once=True)
    with Talker(peer.say, tls=tls) as server, governed(server) as hr:
        handle = hr.upstream("billing")
        handle.urlopen(shape.method, "/first")
        assert handle.urlopen("GET", "/victim").headers["X-For"] == "/victim"
        assert closed(hr) == {"dead": 1}
        with handle.urlopen(shape.method, "/first", preload_content=False) as streamed:
            for _ in streamed.stream(2):
                pass
        assert handle.urlopen("GET", "/victim").headers["X-For"] == "/victim"
        assert closed(hr) == {"dead": 2}


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.is_last])
def test_an_answer_framed_twice_ends_its_connection_though_nothing_comes_behind_it(
    name: str, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 53. RFC 9112 §6.3: somebody in between may have taken the other length for it."""
    peer = Peer(Shape(SHAPES[name].answer, b""), at_once=True)
    with Talker(peer.say) as server, governed(server) as hr:
        hr.upstream("billing").urlopen("GET", "/first")
        hr.upstream("billing").urlopen("GET", "/victim")
        assert (server.connections, closed(hr)) == (2, {"dead": 1})


@pytest.mark.parametrize("name", ["a second answer", "surplus after chunks", "a doubled Content-Length"])
def test_an_answer_with_nothing_behind_it_keeps_its_connection(
    name: str, tls: ssl.SSLContext | None, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 22: and the tickets that come with TLS 1.3 are no answers."""
    peer = Peer(Shape(SHAPES[name].answer, b""), at_once=True)
    with Talker(peer.say, tls=tls) as server, governed(server) as hr:
        for _ in range(5):
            hr.upstream("billing").urlopen("GET", "/first")
            hr.upstream("billing").urlopen("GET", "/victim")
        assert (server.connections, closed(hr)) == (1, {})


@pytest.mark.parametrize("size", [3, 5, 20])
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_part_of_a_tls_record_is_not_silence(
    size: int, version: str, ca: trustme.CA, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 53. A read that says "nothing yet" has taken the part, and the rest comes to the next call."""
    context = server_context(ca, "127.0.0.1")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    said = threading.Event()

    def say(line: Line, asked: Asked) -> None:
        line.send(f"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-For: {asked.target}\r\n\r\nown".encode())
        if asked.target == "/first":
            line.send_part(FORGED * 30, size)
            said.set()

    with Talker(say, tls=context) as server, governed(server) as hr:
        hr.upstream("billing").urlopen("GET", "/first")
        assert said.wait(10)
        assert hr.upstream("billing").urlopen("GET", "/victim").headers["X-For"] == "/victim"
        assert closed(hr) == {"dead": 1}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("call", "stream"),
    [
        *(pytest.param(one, False, id=one.name) for one in (*SURFACES, SESSION, retrying_adapter(2))),
        pytest.param(HANDLE, True, id="handle, streamed"),
    ],
)
def test_on_every_surface_a_call_gets_its_own_answer(
    call: Surface, stream: bool, at_once: bool, governed: Callable[[Talker], Any]
) -> None:
    """failures.md 53."""
    peer = Peer(SHAPES["a second answer"], at_once=at_once)
    with Talker(peer.say) as server, governed(server) as hr:
        assert body_of(call(hr, server.url, path="/first", stream=stream))
        if not at_once:
            peer.told.set()
            assert peer.said.wait(10)
        answer = call(hr, server.url, path="/victim", stream=stream)
        assert body_of(answer)
        assert answer.headers["X-For"] == "/victim"
        assert closed(hr) == {"dead": 1}


def test_in_a_storm_of_unasked_answers_nobody_gets_a_foreign_one(tmp_path: Path) -> None:
    """failures.md 53. `tests/bench/unasked.py` makes 10,000 calls of it."""
    told = storm(tmp_path, threads=20, rounds=20, tls=None)
    assert told.calls == 400
    assert told.unasked == 40
    assert told.foreign == 0
    assert told.closed["dead"] >= 39  # what came behind an answer of the last round may go unseen
