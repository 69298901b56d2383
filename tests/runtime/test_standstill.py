"""A process that stood still has not watched its peers: real processes, stopped, over real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from headrace.clock import monotonic
from headrace.transport.stock.connection import GovernedHTTPConnection
from headrace.transport.stock.probe import Beat, beat
from support.faultserver import Answer, FaultServer, Silence, server_context
from support.governed import rules
from support.standing import Nursery, Standing, Surface

THREADS = 6
STOOD_STILL_S = 1.8
LIMIT = "    timeouts: {attempt: 1s, deadline: 10s}\n"
LARGE = 300_000


class SlowToShakeHands:
    """A server's context that begins its part of the handshake 0.4 s after it was connected to."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def wrap_socket(self, *args: Any, **kw: Any) -> ssl.SSLSocket:
        time.sleep(0.4)
        return self.context.wrap_socket(*args, **kw)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(params=["plain", "tls"])
def served(
    request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path
) -> Iterator[tuple[FaultServer, str]]:
    """A server, and the rules for calls to it."""
    if request.param == "plain":
        with FaultServer() as server:
            yield server, rules(server.url, LIMIT)
        return
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultServer(tls=server_context(authority)) as server:
        yield server, rules(server.url, LIMIT + f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n")


@pytest.mark.parametrize("length", [pytest.param(2, id="small"), pytest.param(LARGE, id="large")])
@pytest.mark.parametrize("surface", ["requests", "requests-stream", "urlopen", "urlopen-stream"])
def test_what_has_arrived_while_the_process_was_stopped_is_an_answer(
    nursery: Nursery, tmp_path: Path, served: tuple[FaultServer, str], surface: Surface, length: int
) -> None:
    """failures.md 67."""
    server, text = served
    server.always(Answer(body=b"x" * length, delay_s=0.4))
    with Standing(nursery, tmp_path, text, surface=surface, threads=THREADS) as child:
        server.wait_for(lambda: len(server.requests) == THREADS, timeout_s=30.0)  # bodies too
        child.stop(STOOD_STILL_S)
        report = child.report()
    assert report["ended"] == [f"200 {length}"] * THREADS
    assert (report["state"], report["failures"]) == ("closed", 0)


@pytest.mark.parametrize("length", [pytest.param(2, id="small"), pytest.param(LARGE, id="large")])
def test_what_has_arrived_while_a_c_call_held_the_gil_is_an_answer(
    nursery: Nursery, tmp_path: Path, served: tuple[FaultServer, str], length: int
) -> None:
    """failures.md 67. Over TLS CPython itself says TimeoutError then."""
    server, text = served
    server.always(Answer(body=b"x" * length, delay_s=0.4))
    with Standing(nursery, tmp_path, text, threads=THREADS) as child:
        server.wait_for(lambda: len(server.requests) == THREADS, timeout_s=30.0)  # bodies too
        child.hold_gil(STOOD_STILL_S)
        report = child.report()
    assert report["ended"] == [f"200 {length}"] * THREADS
    assert (report["state"], report["failures"]) == ("closed", 0)


def test_a_peer_that_drips_and_is_cut_after_a_standstill_is_not_blamed(
    nursery: Nursery, tmp_path: Path
) -> None:
    """failures.md 67."""
    with FaultServer() as server:
        server.always(Answer(drip_head_s=0.05, headers=(("X-Long", "x" * 2000),)))
        with Standing(nursery, tmp_path, rules(server.url, LIMIT), threads=2) as child:
            server.wait_for(lambda: len(server.requests) == 2, timeout_s=30.0)
            child.stop(STOOD_STILL_S)
            report = child.report()
    assert report["ended"] == ["ReadTimeout ignored"] * 2
    assert report["calls"] == 0


def test_a_real_hang_is_cut_at_its_limit_and_blamed(
    nursery: Nursery, tmp_path: Path, served: tuple[FaultServer, str]
) -> None:
    """failures.md 67. The other side of it."""
    server, text = served
    server.always(Silence())
    with Standing(nursery, tmp_path, text, threads=2) as child:
        report = child.report()
    assert report["ended"] == ["ReadTimeout failure"] * 2
    assert report["failures"] == 2


def test_who_waits_for_a_connection_still_gets_the_one_that_comes_free(
    nursery: Nursery, tmp_path: Path, served: tuple[FaultServer, str]
) -> None:
    """failures.md 67. The thread that was to give it back has stood still, too."""
    server, text = served
    text = text.replace("attempt: 1s", "attempt: 1s, acquire: 1s") + "    pool: {max_connections: 1}\n"
    server.next(Answer(delay_s=0.4))
    with Standing(nursery, tmp_path, text, threads=2) as child:
        server.wait_for(lambda: len(server.requests) == 1, timeout_s=30.0)
        child.stop(STOOD_STILL_S)
        report = child.report()
    assert report["ended"] == ["200 2"] * 2


def test_a_handshake_goes_on_after_the_process_was_stopped_during_it(
    nursery: Nursery, tmp_path: Path, authority: trustme.CA
) -> None:
    """failures.md 67."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trust = f"    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n"
    context: Any = SlowToShakeHands(server_context(authority))
    with FaultServer(tls=context) as server:
        with Standing(nursery, tmp_path, rules(server.url, LIMIT + trust), threads=THREADS) as child:
            server.wait_for(lambda: server.connections == THREADS, timeout_s=30.0)
            child.stop(STOOD_STILL_S)
            report = child.report()
    assert report["ended"] == ["200 2"] * THREADS


def test_a_heartbeat_whose_answer_is_there_is_no_miss_however_late_it_is_looked_for() -> None:
    """failures.md 67."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        conn = GovernedHTTPConnection("127.0.0.1", 80)
        conn.sock = ours
        one = Beat(conn, "/health", (), ends_at=monotonic() - 1.0)
        try:
            beat([one])
        finally:
            conn.close()
    assert one.answered
