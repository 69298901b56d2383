"""The look at an idle connection: what a peer may have done meanwhile, plain and over TLS, on every kind of system."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import ssl
import struct
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import trustme

from headrace.transport.dial import liveness
from headrace.transport.dial.liveness import is_alive
from support.faultserver import server_context
from support.leases import End


class Pair(liveness.Watched):
    """Two ends of a connection; the peer's over TLS is driven by hand, so that it can send half a record."""

    def __init__(self, version: str | None, ca: trustme.CA) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        plain = socket.create_connection(listener.getsockname())
        self.peer, _ = listener.accept()
        listener.close()
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tls: ssl.SSLObject | None = None
        self.sock = plain
        if version is not None:
            self._handshake(plain, version, ca)
        self.sock.settimeout(5.0)

    def _handshake(self, plain: socket.socket, version: str, ca: trustme.CA) -> None:
        server = server_context(ca, "127.0.0.1")
        client = ssl.create_default_context()
        ca.configure_trust(client)
        server.minimum_version = server.maximum_version = ssl.TLSVersion[version]
        self._in, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.wrap_bio(self._in, self.out, server_side=True)
        sock = client.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        sock.setblocking(False)
        self.sock = sock
        done = 0
        while done < 2:
            done = 0
            for act in (sock.do_handshake, self.tls.do_handshake):
                with contextlib.suppress(ssl.SSLWantReadError):
                    act()
                    done += 1
            # Whatever the peer says after its part is over (the tickets of 1.3) is left for the look.
            self.flush()
            with contextlib.suppress(BlockingIOError):
                self._in.write(self.peer.recv(65536, socket.MSG_DONTWAIT))

    def flush(self) -> None:
        if data := self.out.read():
            self.peer.sendall(data)

    def says(self, data: bytes, part: int | None = None) -> None:
        if self.tls is not None:
            self.tls.write(data)
            data = self.out.read()
        self.peer.sendall(data[:part])

    def close(self) -> None:
        self.sock.close()
        self.peer.close()


def reset(pair: Pair) -> None:
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.peer.close()


def close_notify(pair: Pair) -> None:
    if pair.tls is None:
        pair.peer.shutdown(socket.SHUT_WR)
        return
    with contextlib.suppress(ssl.SSLWantReadError):
        pair.tls.unwrap()
    pair.flush()


DEEDS: dict[str, Callable[[Pair], object]] = {
    "one byte": lambda pair: pair.says(b"x"),
    "an answer": lambda pair: pair.says(b"HTTP/1.1 200 OK\r\n\r\n"),
    "more than a look takes": lambda pair: pair.says(b"x" * 40_000),
    "part of a header": lambda pair: pair.says(b"x" * 50, part=3),
    "a header": lambda pair: pair.says(b"x" * 50, part=5),
    "part of a record": lambda pair: pair.says(b"x" * 50, part=20),
    "its end": lambda pair: pair.peer.shutdown(socket.SHUT_WR),
    "a reset": reset,
    "a farewell": close_notify,
    "our own end": lambda pair: pair.sock.close(),
}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=[None, "TLSv1_2", "TLSv1_3"])
def pair(request: pytest.FixtureRequest, ca: trustme.CA) -> Iterator[Pair]:
    pair = Pair(request.param, ca)
    yield pair
    pair.close()


@pytest.fixture(params=["poll", "no poll"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no poll":
        monkeypatch.delattr(select, "poll")
    monkeypatch.setattr(liveness, "_select_poll", object())


@pytest.mark.usefixtures("_system")
def test_a_silent_peer_is_alive_however_often_one_looks(pair: Pair) -> None:
    """failures.md 22: over TLS 1.3 its tickets are there to be read at the first look, and no sign of an end."""
    assert [is_alive(pair) for _ in range(3)] == [True, True, True]
    pair.sock.settimeout(5.0)
    pair.says(b"answer")
    assert pair.sock.recv(6) == b"answer"
    assert is_alive(pair)


@pytest.mark.usefixtures("_system")
@pytest.mark.parametrize("deed", [pytest.param(one, id=name) for name, one in DEEDS.items()])
@pytest.mark.parametrize("looked_before", [False, True])
def test_a_peer_that_has_said_anything_or_has_gone_is_not(
    pair: Pair, deed: Callable[[Pair], object], looked_before: bool
) -> None:
    """failures.md 53."""
    if looked_before:
        assert is_alive(pair)
    deed(pair)
    assert not is_alive(pair)


@pytest.mark.usefixtures("_system")
def test_what_openssl_has_taken_already_is_seen(pair: Pair) -> None:
    """failures.md 53. The socket is silent: the rest of a record that was read in part is in OpenSSL."""
    pair.says(b"answer and more")
    assert pair.sock.recv(6) == b"answer"
    assert not is_alive(pair)


@pytest.mark.usefixtures("_system")
def test_a_descriptor_above_1023_is_looked_at_like_any_other(pair: Pair) -> None:
    """select() cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    spare: list[socket.socket] = []
    try:
        is_alive(pair)  # a detached TLS socket would leave the tickets to nobody
        while not spare or spare[-1].fileno() <= 1024:
            spare.append(socket.socket())
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert ours.fileno() > 1023
            assert is_alive(End(ours))
            theirs.send(b"x")
            assert not is_alive(End(ours))
    finally:
        for sock in spare:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_has_another_socket_by_now_is_looked_at_anew() -> None:
    first, its_peer = socket.socketpair()
    second, others_peer = socket.socketpair()
    with first, its_peer, second, others_peer:
        conn = End(first)
        assert is_alive(conn)
        conn.sock = second
        its_peer.send(b"x")
        assert is_alive(conn)
        others_peer.send(b"x")
        assert not is_alive(conn)


def test_under_gevent_the_systems_own_poll_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent's switches to its hub; its patches may come at any time, so it is asked when they are seen."""

    class Cooperative:
        def __init__(self) -> None:
            raise AssertionError("gevent's poll() was asked")

    own = select.poll
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_alive(End(ours))
        patches = types.ModuleType("gevent.monkey")
        patches.get_original = lambda module, name: own  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "gevent.monkey", patches)
        monkeypatch.setattr(select, "poll", Cooperative)
        assert is_alive(End(ours))
        theirs.send(b"x")
        assert not is_alive(End(ours))
    monkeypatch.undo()
    assert not is_alive(End(ours))
    assert liveness._poll is own
