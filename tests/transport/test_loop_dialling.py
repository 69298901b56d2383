"""Connections opened on an event loop: names, races, handshakes. Real sockets, both kinds of loops."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import trustme

from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters
from headrace.policy.plan import SessionPlan, TlsPlan
from headrace.transport.dial.aio import dial, first_to_answer
from headrace.transport.dial.client import TlsClient, Unread
from headrace.transport.dial.identity import IdentityError
from headrace.transport.dial.resolve import Resolver
from headrace.transport.loop_deadlines import EMPTY, Limit, deadlines_of
from headrace.transport.wire.aio import LoopWire
from support.authorities import ADDRESS, URI, server_of
from support.faultserver import FaultServer, server_context
from support.holes import Names, address_of, black_hole, closed_port, names
from support.loops import OnLoop

ENOUGH_S = 10.0


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    with names(monkeypatch) as told:
        yield told


def tls_plan(ca: Path, **changes: Any) -> TlsPlan:
    values: dict[str, Any] = {
        "verify": True,
        "ca": str(ca),
        "cert": None,
        "key": None,
        "server_name": None,
        "min_version": "1.2",
        "fingerprint": str(ca),
        "sessions": SessionPlan(size=10, ttl_s=600.0),
    }
    return TlsPlan(**(values | changes))


async def open_to(
    port: int, tls: TlsClient | None = None, *, host: str = "127.0.0.1", **kw: Any
) -> tuple[LoopWire, Unread | None, list[str]]:
    loop, steps = asyncio.get_running_loop(), list[str]()
    deadlines = deadlines_of(loop)
    wire, unread = await dial(
        host,
        port,
        lambda sock: LoopWire(loop, deadlines, sock),
        family=socket.AF_UNSPEC,
        connect_s=ENOUGH_S,
        tls=tls,
        server_name=host,
        step=steps.append,
        **kw,
    )
    return wire, unread, steps


async def call(wire: LoopWire, unread: Unread | None = None) -> int:
    now = monotonic()
    limit = Limit(now, wire.cut, ends_at=now + ENOUGH_S)
    deadlines_of(asyncio.get_running_loop()).add(limit, now)
    wire.begin("GET", limit)
    await wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None, write_s=ENOUGH_S, read_s=ENOUGH_S)
    await wire.head()
    await wire.whole()
    if unread is not None:
        unread.read(wire.tls)
    wire.rest()
    return wire.reader.status


def test_a_dead_address_costs_a_turn_and_not_the_limit(on_loop: OnLoop) -> None:
    async def main(hole: int, port: int) -> None:
        began = monotonic()
        sock = await first_to_answer([address_of(hole), address_of(port)], connect_s=ENOUGH_S)
        assert sock.getpeername()[1] == port
        assert monotonic() - began < ENOUGH_S / 4
        sock.close()

    with black_hole() as hole, FaultServer() as server:
        on_loop(main(hole, server.port))


def test_one_that_refuses_costs_nothing_and_the_last_error_is_told(on_loop: OnLoop) -> None:
    async def main(port: int) -> None:
        sock = await first_to_answer(
            [address_of(closed_port()), address_of(port)],
            connect_s=ENOUGH_S,
            options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            await first_to_answer([address_of(closed_port()), address_of(closed_port())], connect_s=ENOUGH_S)

    with FaultServer() as server:
        on_loop(main(server.port))


def test_a_race_that_is_cancelled_leaves_no_socket(on_loop: OnLoop) -> None:
    async def main(hole: int) -> None:
        task = asyncio.create_task(first_to_answer([address_of(hole), address_of(hole)], connect_s=0.3))
        await asyncio.sleep(0.15)  # both are under way
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    with black_hole() as hole:
        on_loop(main(hole))
    gc.collect()  # an open one warns, and warnings are errors


def test_a_name_that_hangs_does_not_block_the_loop_and_can_be_left(on_loop: OnLoop, looked_up: Names) -> None:
    looked_up.hanging["slow.test"] = threading.Event()
    resolver = Resolver()

    async def main(port: int) -> None:
        looked_up.known["quick.test"] = [address_of(0)]
        task = asyncio.create_task(open_to(port, host="slow.test", names=resolver))
        await asyncio.sleep(0.05)
        wire, _, steps = await open_to(port, host="quick.test", names=resolver)
        assert steps == ["dns", "tcp"]
        assert await call(wire) == 200
        wire.close()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FaultServer() as server:
        on_loop(main(server.port))
    looked_up.hanging["slow.test"].set()


def test_all_who_ask_for_a_name_wait_for_one_look_up(on_loop: OnLoop, looked_up: Names) -> None:
    looked_up.hanging["one.test"] = threading.Event()
    looked_up.known["one.test"] = [address_of(0)]
    resolver = Resolver()

    async def main() -> None:
        tasks = [asyncio.create_task(resolver.await_addresses("one.test", 80, 0)) for _ in range(5)]
        await asyncio.sleep(0.05)
        looked_up.hanging["one.test"].set()
        found = await asyncio.wait_for(asyncio.gather(*tasks), ENOUGH_S)
        assert len(found) == 5

    on_loop(main())
    assert [name for name, *_ in looked_up.asked] == ["one.test"]


def test_an_unknown_name_is_an_error_of_the_resolver(on_loop: OnLoop, looked_up: Names) -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror):
            await open_to(80, host="unknown.test", names=Resolver())

    on_loop(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_second_handshake_goes_on_with_the_session_of_the_first(
    on_loop: OnLoop, authority: trustme.CA, ca: Path, version: ssl.TLSVersion
) -> None:
    counters = UpstreamCounters(lock=threading.Lock())
    client = TlsClient(tls_plan(ca), counters)
    context = server_context(authority)
    context.minimum_version = context.maximum_version = version

    async def main(server: FaultServer) -> None:
        for _ in range(3):
            wire, unread, steps = await open_to(server.port, client)
            assert steps == ["dns", "tcp", "tls"]
            assert await call(wire, unread) == 200
            assert await wire.becomes_quiet()  # whatever tickets came
            assert await call(wire) == 200
            wire.close()

    with FaultServer(tls=context) as server:
        on_loop(main(server))
        assert [request.resumed for request in server.requests[::2]] == [False, True, True]
    assert counters.tls_handshakes == {"no": 1, "yes": 2}


def test_a_session_of_another_context_is_not_offered(
    on_loop: OnLoop, authority: trustme.CA, ca: Path
) -> None:
    """failures.md 34."""
    client, other = TlsClient(tls_plan(ca)), TlsClient(tls_plan(ca, min_version="1.3"))

    async def main(server: FaultServer) -> None:
        wire, unread, _ = await open_to(server.port, other)
        await call(wire, unread)
        wire.close()
        mine, theirs = client._now.sessions, other._now.sessions
        assert mine is not None
        assert theirs is not None
        mine._known, theirs._known = theirs._known, mine._known
        for _ in range(2):
            wire, unread, _ = await open_to(server.port, client)
            await call(wire, unread)
            wire.close()

    with FaultServer(tls=server_context(authority)) as server:
        on_loop(main(server))
        assert [request.resumed for request in server.requests] == [False, False, True]


def test_a_peer_of_another_identity_is_sent_nothing(on_loop: OnLoop, authority: trustme.CA, ca: Path) -> None:
    context = server_of(authority, "spiffe://a.test/other")

    async def main(server: FaultServer) -> None:
        with pytest.raises(IdentityError, match=r"spiffe://a\.test/other"):
            await open_to(server.port, TlsClient(tls_plan(ca, identities=("spiffe://a.test/us",))))
        wire, _, _ = await open_to(
            server.port, TlsClient(tls_plan(ca, identities=("spiffe://a.test/other",)))
        )
        assert await call(wire) == 200
        wire.close()

    with FaultServer(tls=context) as server:
        on_loop(main(server))
        assert len(server.requests) == 1
        server.wait_for(lambda: not server.open_connections)


def test_a_certificate_with_a_name_that_is_no_text_ends_no_dialling_and_is_of_nobody(
    on_loop: OnLoop, authority: trustme.CA, ca: Path
) -> None:
    """asyncio reads the certificate by itself, and would end the dialling in UnicodeDecodeError."""
    context = server_of(authority, raw=[(ADDRESS, bytes([127, 0, 0, 1])), (URI, b"\xff")])

    async def main(server: FaultServer) -> None:
        with pytest.raises(IdentityError, match="names nobody"):
            await open_to(server.port, TlsClient(tls_plan(ca, identities=("spiffe://a.test/us",))))
        assert server.requests == []
        client = TlsClient(tls_plan(ca))
        for _ in range(2):
            wire, unread, _ = await open_to(server.port, client)
            assert await call(wire, unread) == 200
            wire.close()

    with FaultServer(tls=context) as server:
        on_loop(main(server))
        # Nobody can say when its certificate ends, and a resumed handshake does not look.
        assert [request.resumed for request in server.requests] == [False, False]
        server.wait_for(lambda: not server.open_connections)


def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    on_loop: OnLoop, authority: trustme.CA, ca: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))

    async def main(server: FaultServer, wrong: FaultServer) -> None:
        for port, trusted in ((server.port, other), (wrong.port, ca)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await open_to(port, TlsClient(tls_plan(trusted)))

    with (
        FaultServer(tls=server_context(authority)) as server,
        FaultServer(tls=server_of(authority, dns=("elsewhere.test",))) as wrong,
    ):
        on_loop(main(server, wrong))
        assert (server.requests, wrong.requests) == ([], [])


def test_a_handshake_that_hangs_can_be_left(on_loop: OnLoop, ca: Path) -> None:
    async def main(server: FaultServer) -> None:
        task = asyncio.create_task(open_to(server.port, TlsClient(tls_plan(ca))))
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FaultServer() as server:
        server.on_accept = "drip_tls"
        on_loop(main(server))
        server.wait_for(lambda: not server.open_connections)


def test_a_connection_keeps_no_context_of_its_opener_alive(on_loop: OnLoop) -> None:
    class Value:
        pass

    variable: ContextVar[Value] = ContextVar("of_an_opener")

    async def main(port: int) -> None:
        async def opener() -> tuple[LoopWire, ref[Value]]:
            value = Value()
            variable.set(value)
            task = asyncio.get_running_loop().create_task(open_to(port), context=EMPTY.copy())
            return (await task)[0], ref(value)

        wire, seen = await asyncio.create_task(opener())
        await call(wire)
        gc.collect()
        assert seen() is None
        wire.close()

    with FaultServer() as server:
        on_loop(main(server.port))
