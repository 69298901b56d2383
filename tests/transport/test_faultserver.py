"""The fault server does what its behaviours say, so that other tests may rely on it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
import urllib3

from support.faultserver import Answer, Break, FaultServer, Raw, Silence, on_reuse, server_context
from support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def converse(server: FaultServer, *, requests: int = 1, timeout_s: float = 2.0) -> tuple[bytes, str]:
    """What a client reads after *requests* pipelined ones, and how it ended: `fin`, `rst` or `silence`."""
    received = b""
    try:
        # Connecting is part of it: with a busy machine in between, the reset is there before connect() looks.
        with socket.create_connection((server.host, server.port), timeout=timeout_s) as sock:
            sock.sendall(b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
            while data := sock.recv(65536):
                received += data
    except TimeoutError:
        return received, "silence"
    except ConnectionError:
        return received, "rst"
    return received, "fin"


@pytest.mark.parametrize(
    ("behaviour", "received", "ended"),
    [
        pytest.param(
            Answer(close=True), b"Content-Length: 2\r\nConnection: close\r\n\r\nok", "fin", id="answer"
        ),
        pytest.param(Answer(framed=False), b"HTTP/1.1 200 OK\r\n\r\nok", "fin", id="unframed"),
        pytest.param(Answer(then="rst"), b"\r\n\r\nok", "rst", id="answer, then reset"),
        pytest.param(Answer(then="half_close"), b"\r\n\r\nok", "fin", id="answer, then half-close"),
        pytest.param(
            Answer(status=204, close=True), b"204 No Content\r\nConnection: close\r\n\r\n", "fin", id="204"
        ),
        pytest.param(
            Answer(chunked=True, drip_head_s=0.0001, drip_body_s=0.0001, then="fin"),
            b"\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            "fin",
            id="dripped chunks",
        ),
        pytest.param(Break("request"), b"", "rst", id="reset for an answer"),
        pytest.param(Break("request", "fin"), b"", "fin", id="closed for an answer"),
        pytest.param(Break("head"), b"HTTP/1.1 200 OK\r\nCon", "rst", id="reset during the head"),
        pytest.param(
            Break("body"),
            b"Content-Length: 100\r\n\r\n" + b"0123456789" * 5,
            "rst",
            id="reset during the body",
        ),
        pytest.param(Break("body", "fin"), b"\r\n\r\n" + b"0123456789" * 5, "fin", id="truncated body"),
        pytest.param(Raw(b"SSH-2.0-x\r\n"), b"SSH-2.0-x\r\n", "fin", id="garbage"),
    ],
)
def test_a_behaviour_is_what_the_client_sees(
    server: FaultServer, behaviour: Any, received: bytes, ended: str
) -> None:
    server.next(behaviour)
    data, how = converse(server)
    # A reset makes the kernel drop what the client has not read yet: how much of it arrives is chance.
    assert data.endswith(received) or (ended == "rst" and received not in data)
    assert how == ended


def test_silence_reads_the_request_and_says_nothing(server: FaultServer) -> None:
    server.always(Silence())
    assert converse(server, timeout_s=0.05) == (b"", "silence")
    assert server.first_lines == 1


@pytest.mark.parametrize(("on_accept", "ended"), [("rst", "rst"), ("fin", "fin"), ("silence", "silence")])
def test_whole_connections_can_be_refused_service(server: FaultServer, on_accept: Any, ended: str) -> None:
    server.on_accept = on_accept
    data, how = converse(server, timeout_s=0.2)
    assert data == b""
    assert how in (ended, "rst")  # our request may meet a socket that was closed already
    assert server.first_lines == 0


def test_the_queue_goes_before_the_path_and_the_path_before_the_rest(server: FaultServer) -> None:
    server.always(Answer(500))
    server.at("/a", Answer(201))
    server.next(Answer(202), Answer(203))
    with urllib3.HTTPConnectionPool(server.host, server.port, retries=False) as pool:
        assert [pool.request("GET", path).status for path in ("/b", "/a", "/a?q", "/b")] == [
            202,
            203,
            201,
            500,
        ]


def test_a_connection_can_go_bad_between_two_requests(server: FaultServer) -> None:
    server.always(on_reuse(Break("request")))
    data, how = converse(server, requests=2)
    assert data.endswith(b"ok")
    assert how == "rst"


def test_requests_are_recorded_whole(server: FaultServer) -> None:
    with urllib3.HTTPConnectionPool(server.host, server.port, retries=False) as pool:
        pool.request("POST", "/p?q", body=b"sized", headers={"X-A": "1"})
        pool.request("PUT", "/c", body=iter([b"in ", b"chunks"]), chunked=True)
    sized, chunked = server.requests
    assert (sized.method, sized.target, sized.body, sized.header("x-a"), sized.nth) == (
        "POST",
        "/p?q",
        b"sized",
        "1",
        1,
    )
    assert (chunked.body, chunked.nth, chunked.connection) == (b"in chunks", 2, sized.connection)
    assert (server.connections, server.first_lines) == (1, 2)


def test_a_first_line_counts_even_if_nothing_follows(server: FaultServer) -> None:
    with socket.create_connection((server.host, server.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHo")
        server.wait_for(lambda: server.first_lines == 1)
    assert server.requests == []


def test_wait_for_says_what_it_saw_instead(server: FaultServer) -> None:
    with pytest.raises(AssertionError, match="0 first lines"):
        server.wait_for(lambda: server.first_lines, timeout_s=0.01)


def test_it_can_refuse_connections_and_listen_again_on_the_same_port(server: FaultServer) -> None:
    port = server.port
    server.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, port))
    server.listen()
    assert server.port == port
    server.always(Answer(close=True))
    assert converse(server)[1] == "fin"


def test_tls_is_served_and_failed_handshakes_are_counted() -> None:
    ca = trustme.CA()
    with FaultServer(tls=server_context(ca)) as server:
        with pytest.raises(urllib3.exceptions.SSLError):
            urllib3.request("GET", server.url, retries=False)
        server.wait_for(lambda: server.failed_handshakes == 1)
        assert server.url.startswith("https://127.0.0.1:")


def test_fifty_clients_are_served_at_once_and_nothing_is_left_after_close() -> None:
    before = set(threading.enumerate())
    with FaultServer(keep=10) as server:

        def run() -> None:
            with urllib3.HTTPConnectionPool(server.host, server.port, retries=False) as pool:
                for _ in range(5):
                    assert pool.request("GET", "/").data == b"ok"

        clients = [threading.Thread(target=run) for _ in range(50)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(20.0)
        assert (server.connections, server.first_lines, len(server.requests)) == (50, 250, 10)
    assert server.open_connections == 0
    wait_until(lambda: set(threading.enumerate()) == before, what="no thread left")


@pytest.mark.parametrize(
    "behaviour", [Silence(), Answer(delay_s=60.0), Answer(drip_body_s=60.0), Answer()], ids=repr
)
def test_close_interrupts_whatever_is_going_on(behaviour: Any) -> None:
    with FaultServer() as server:
        server.always(behaviour)
        sock = socket.create_connection((server.host, server.port))
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.wait_for(lambda: server.requests)
        started = time.monotonic()
        server.close()
    assert time.monotonic() - started < 5.0
    assert server.open_connections == 0
    sock.close()
