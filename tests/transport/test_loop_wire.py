"""HTTP/1.1 over real sockets on both kinds of loops."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any

import pytest

from headrace.clock import monotonic
from headrace.transport.dial.aio import dial
from headrace.transport.loop_deadlines import Limit, deadlines_of
from headrace.transport.wire.aio import MOST_UNREAD, Body, LoopWire
from headrace.transport.wire.errors import Malformed, TooLarge, Truncated
from support.faultserver import Answer, Break, Endless, FaultServer, Raw, Silence
from support.loops import OnLoop

LONG_S = 30.0


async def connect(port: int) -> LoopWire:
    loop = asyncio.get_running_loop()
    deadlines = deadlines_of(loop)
    wire, _ = await dial(
        "127.0.0.1",
        port,
        lambda sock: LoopWire(loop, deadlines, sock),
        family=socket.AF_INET,
        connect_s=LONG_S,
        tls=None,
        server_name="",
        step=lambda phase: None,
    )
    return wire


def begin(wire: LoopWire, method: str = "GET", *, limit_s: float = LONG_S, **kw: Any) -> Limit:
    now = monotonic()
    limit = Limit(now, wire.cut, ends_at=now + limit_s, silence_s=inf)
    deadlines_of(asyncio.get_running_loop()).add(limit, now)
    wire.begin(method, limit, **kw)
    return limit


async def call(
    wire: LoopWire,
    method: str = "GET",
    target: str = "/",
    body: Body = None,
    *,
    headers: str = "",
    write_s: float = LONG_S,
    **kw: Any,
) -> bytes:
    begin(wire, method, **kw)
    if isinstance(body, bytes):
        headers += f"Content-Length: {len(body)}\r\n"
    head = f"{method} {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode()
    await wire.send(head, body, write_s=write_s, read_s=LONG_S)
    await wire.head()
    return b"" if kw.get("streamed") else await wire.whole()


@pytest.fixture
def with_server(on_loop: OnLoop) -> Any:
    """Runs a test's coroutine with a server, and sees that neither a limit nor a connection is left."""

    def run(act: Callable[[FaultServer], Awaitable[None]]) -> None:
        async def main(server: FaultServer) -> None:
            await act(server)
            assert not deadlines_of(asyncio.get_running_loop()).table

        with FaultServer() as server:
            on_loop(main(server))
            server.wait_for(lambda: not server.open_connections)

    return run


@pytest.mark.parametrize(
    ("method", "answer", "body", "is_reusable"),
    [
        pytest.param("GET", Answer(body=b"fine"), b"fine", True, id="a length"),
        pytest.param("GET", Answer(body=b"fine", chunked=True), b"fine", True, id="chunks"),
        pytest.param("GET", Answer(body=b"x" * 3_000_000), b"x" * 3_000_000, True, id="large"),
        pytest.param("GET", Answer(body=b"drip", drip_body_s=0.01), b"drip", True, id="in pieces"),
        pytest.param("HEAD", Answer(body=b""), b"", True, id="no body"),
        pytest.param("GET", Answer(body=b"fine", framed=False, then="fin"), b"fine", False, id="until close"),
        pytest.param("GET", Answer(body=b"fine", close=True), b"fine", False, id="it says close"),
    ],
)
def test_answers_of_each_framing_come_whole(
    with_server: Any, method: str, answer: Answer, body: bytes, is_reusable: bool
) -> None:
    async def act(server: FaultServer) -> None:
        server.always(answer)
        wire = await connect(server.port)
        for _ in range(2 if is_reusable else 1):
            assert await call(wire, method) == body
            assert (wire.reader.status, wire.is_reusable) == (200, is_reusable)
            wire.rest()
        wire.close()
        assert server.connections == 1

    with_server(act)


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


@pytest.mark.parametrize(
    ("body", "headers", "sent"),
    [
        pytest.param(b"small", "", b"small", id="with the head"),
        pytest.param(b"y" * 2_000_000, "", b"y" * 2_000_000, id="larger than the socket takes"),
        pytest.param(("a", "b"), "Transfer-Encoding: chunked\r\n", b"onetwo", id="by chunks"),
        pytest.param(("a", "b"), "Content-Length: 6\r\n", b"onetwo", id="iterated over, of a length"),
    ],
)
def test_bodies_arrive_as_they_are(with_server: Any, body: Any, headers: str, sent: bytes) -> None:
    async def act(server: FaultServer) -> None:
        wire = await connect(server.port)
        content = body if isinstance(body, bytes) else _pieces(b"one", b"", b"two")
        assert await call(wire, "POST", "/", content, headers=headers) == b"ok"
        assert wire.is_reusable
        assert server.requests[-1].body == sent
        wire.close()

    with_server(act)


def test_a_stream_comes_piece_by_piece_and_no_more_is_read_than_may_wait(with_server: Any) -> None:
    size = 20_000_000

    async def act(server: FaultServer) -> None:
        server.always(Answer(body=b"z" * size))
        wire = await connect(server.port)
        await call(wire, streamed=True)
        await asyncio.sleep(0.3)
        assert wire._unread <= MOST_UNREAD + 300_000
        n_bytes = 0
        while piece := await wire.more(LONG_S):
            n_bytes += len(piece)
        assert n_bytes == size
        assert wire.is_reusable
        wire.close()

    with_server(act)


def test_a_stream_that_ends_while_it_is_paused_goes_back_listening(with_server: Any) -> None:
    """The next exchange over it would hear nothing, and a retry would hide that."""

    async def act(server: FaultServer) -> None:
        server.always(Answer(body=b"z" * (MOST_UNREAD + 1)))
        wire = await connect(server.port)
        await call(wire, streamed=True)
        async with asyncio.timeout(LONG_S):
            while not (wire.reader.done and wire._is_paused):
                await asyncio.sleep(0.001)
                if wire.reader.done and not wire._is_paused:  # the end came with what would have paused it
                    wire._is_paused = True
                    wire._transport.pause_reading()
        assert wire._is_paused
        wire.reader.take()  # as its reader would have, in the same turn
        wire.rest()
        server.always(Answer(body=b"next"))
        assert await call(wire, limit_s=LONG_S) == b"next"
        wire.close()

    with_server(act)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        pytest.param(Break("request", "rst"), ConnectionResetError, id="reset before the answer"),
        pytest.param(Break("request", "fin"), Truncated, id="closed before the answer"),
        pytest.param(Break("head", "fin"), Truncated, id="closed within the head"),
        pytest.param(Break("body", "fin"), Truncated, id="closed within the body"),
        pytest.param(Raw(), Malformed, id="no HTTP"),
        pytest.param(Silence(), TimeoutError, id="silence"),
        pytest.param(Endless(), TimeoutError, id="endless"),
    ],
)
def test_what_ends_an_exchange_is_told_and_not_what_follows_from_it(
    with_server: Any, behaviour: Any, error: type[Exception]
) -> None:
    async def act(server: FaultServer) -> None:
        server.always(behaviour)
        wire = await connect(server.port)
        is_slow = error is TimeoutError
        with pytest.raises(error) as raised:
            await call(wire, limit_s=0.3 if is_slow else LONG_S)
        assert type(raised.value) is error
        assert not wire.is_reusable
        for _ in range(3):
            await asyncio.sleep(0)
        assert wire.is_lost
        with pytest.raises(ConnectionResetError):
            wire.begin("GET", Limit(monotonic(), wire.cut))

    with_server(act)


def test_what_comes_behind_an_answer_or_at_rest_ends_the_connection(with_server: Any) -> None:
    """failures.md 53."""

    async def act(server: FaultServer) -> None:
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        server.always(Raw(whole + whole, then="keep"))
        wire = await connect(server.port)
        assert await call(wire) == b"ok"
        assert not wire.is_reusable
        wire.close()
        server.always(Raw(whole, then="keep"))
        server.next(Answer(), Answer(then="fin"))
        wire = await connect(server.port)
        assert await call(wire) == b"ok"
        wire.rest()
        assert await wire.becomes_quiet()
        assert await call(wire) == b"ok"  # then the server closes
        told: list[str] = []
        wire.on_unasked = lambda: told.append("ended")
        wire.rest()
        async with asyncio.timeout(LONG_S):
            while not told:
                await asyncio.sleep(0.001)
        assert not wire.is_open

    with_server(act)


def test_a_connection_that_the_peer_closed_while_the_loop_was_blocked_is_seen(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        wire = await connect(server.port)
        await call(wire)
        wire.rest()
        assert wire.is_quiet()
        server.drop_all()
        time.sleep(0.1)  # the loop hears of nothing
        assert wire.is_open
        assert not wire.is_quiet()
        wire.close()

    with_server(act)


def test_an_answer_that_arrived_while_the_loop_was_blocked_counts(with_server: Any) -> None:
    """failures.md 67."""

    async def act(server: FaultServer) -> None:
        server.always(Answer(body=b"in time", delay_s=0.05))
        wire = await connect(server.port)
        asyncio.get_running_loop().call_later(0.02, time.sleep, 1.5)
        assert await call(wire, limit_s=0.5) == b"in time"
        wire.close()

    with_server(act)


def test_a_refusal_that_comes_before_the_body_has_left_is_the_answer(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        server.on_expect = "answer"
        server.always(Answer(413, body=b"too much", close=True))
        wire = await connect(server.port)
        body = b"q" * 5_000_000
        answer = await call(wire, "POST", "/", body, headers="Expect: 100-continue\r\n")
        assert (wire.reader.status, answer) == (413, b"too much")
        assert not wire.is_reusable
        wire.close()

    with_server(act)


class Stalls:
    """A body of one piece that never yields again. Remembers whether it was ended, as a generator is."""

    def __init__(self, *, is_stubborn: bool = False) -> None:
        self.is_stubborn, self.is_closed = is_stubborn, False
        self.is_stalled = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            yield b"x"
            self.is_stalled.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.is_stubborn:
                    raise
            yield b"y"
        finally:
            self.is_closed = True


def the_limit(wire: LoopWire, server: FaultServer) -> None:
    """`call` has been given 0.3 s."""


@pytest.mark.parametrize("is_stubborn", [False, True], ids=["", "and that swallows its cancellation"])
@pytest.mark.parametrize(
    ("end", "error"),
    [
        pytest.param(the_limit, TimeoutError, id="the limit"),
        pytest.param(lambda wire, server: wire.break_off(), ConnectionAbortedError, id="headrace"),
        pytest.param(lambda wire, server: server.drop_all(), OSError, id="the peer"),
    ],
)
def test_a_body_that_never_yields_again_outlives_nothing(
    with_server: Any, end: Any, error: type[Exception], is_stubborn: bool
) -> None:
    async def act(server: FaultServer) -> None:
        wire, body = await connect(server.port), Stalls(is_stubborn=is_stubborn)
        limit_s = 0.3 if end is the_limit else LONG_S
        headers = "Transfer-Encoding: chunked\r\n"
        task = asyncio.create_task(call(wire, "POST", "/", body.pieces(), headers=headers, limit_s=limit_s))
        async with asyncio.timeout(LONG_S / 2):
            await body.is_stalled.wait()
            await asyncio.to_thread(server.wait_for, lambda: server.open_connections)
            end(wire, server)
            with pytest.raises((error, Truncated) if error is OSError else error):
                await task
        assert (body.is_closed, task.cancelling(), wire.is_reusable) == (True, 0, False)

    with_server(act)


def test_an_answer_ends_the_wait_for_the_rest_of_a_body(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        server.on_expect = "answer"
        server.always(Answer(413, body=b"too much", close=True))
        wire, body = await connect(server.port), Stalls()
        headers = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"
        async with asyncio.timeout(LONG_S / 2):
            assert await call(wire, "POST", "/", body.pieces(), headers=headers) == b"too much"
        assert (wire.reader.status, body.is_closed, wire.is_reusable) == (413, True, False)
        me = asyncio.current_task()
        assert me is not None
        assert me.cancelling() == 0
        wire.close()

    with_server(act)


@pytest.mark.parametrize("is_stalled", [False, True])
def test_a_body_that_breaks_off_its_own_exchange_is_told_so(with_server: Any, is_stalled: bool) -> None:
    async def act(server: FaultServer) -> None:
        wire = await connect(server.port)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"x"
            wire.break_off()
            if is_stalled:
                await asyncio.Event().wait()
            yield b"y"

        async with asyncio.timeout(LONG_S / 2):
            with pytest.raises(ConnectionAbortedError):
                await call(wire, "POST", "/", pieces(), headers="Transfer-Encoding: chunked\r\n")
            for _ in range(3):
                await asyncio.sleep(0)  # nothing comes after it

    with_server(act)


def test_a_task_that_is_cancelled_while_its_exchange_is_broken_off_stays_cancelled(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        for theirs_first in (True, False):
            wire, body = await connect(server.port), Stalls()
            headers = "Transfer-Encoding: chunked\r\n"
            task = asyncio.create_task(call(wire, "POST", "/", body.pieces(), headers=headers))
            await body.is_stalled.wait()
            if theirs_first:
                task.cancel()
            wire.break_off()
            if not theirs_first:
                asyncio.get_running_loop().call_soon(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert body.is_closed
            assert task.cancelling() == 1
        # nothing that ends an exchange has ended the limits of those that were cancelled
        deadlines_of(asyncio.get_running_loop()).table.clear()

    with_server(act)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_head_that_comes_before_the_body_has_left_ends_no_limit_of_it(
    with_server: Any, is_streamed: bool
) -> None:
    """The peer has begun to answer, and will neither end that nor read on."""

    async def act(server: FaultServer) -> None:
        server.on_expect = "answer"
        server.always(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun", then="keep"))
        wire, body = await connect(server.port), Stalls()
        headers = "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"
        async with asyncio.timeout(LONG_S / 2):
            with pytest.raises(TimeoutError, match="timed out"):
                await call(
                    wire, "POST", "/", body.pieces(), headers=headers, limit_s=0.5, streamed=is_streamed
                )
        assert wire.reader.head_done
        assert body.is_closed

    with_server(act)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        pytest.param("Content-Length: 2\r\n", "more bytes than its Content-Length, 2", id="longer"),
        pytest.param("Content-Length: 0\r\n", "more bytes than its Content-Length, 0", id="longer than none"),
        pytest.param("Content-Length: 60\r\n", "54 bytes before its Content-Length, 60", id="shorter"),
        pytest.param("Content-Length: 6\r\ncontent-length: 6\r\n", "needs one", id="two lengths"),
        pytest.param("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "needs one", id="both"),
        pytest.param("Content-Length: +6\r\n", "needs one", id="no number"),
        pytest.param("", "needs one", id="neither"),
        pytest.param("Transfer-Encoding: gzip, chunked\r\n", "goes by chunks", id="another coding"),
    ],
)
def test_a_body_that_is_iterated_over_is_held_to_its_frame(
    with_server: Any, headers: str, error: str
) -> None:
    """What is too much would be the next request on the connection, and what is missing would eat that."""

    async def act(server: FaultServer) -> None:
        wire, body, is_closed = await connect(server.port), b"one", []

        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield body
                yield b"two"
            finally:
                is_closed.append(True)

        content = pieces()
        with pytest.raises(ValueError, match=error):
            await call(wire, "POST", "/", content, headers=headers)
        assert not wire.is_reusable
        assert is_closed == ([True] if "Content-Length, " in error else [])
        wire.close()
        assert all(one.body == b"" for one in server.requests)  # that of no length is whole
        assert len(server.requests) <= 1

    with_server(act)


def test_pieces_are_as_long_as_their_bytes(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        wire = await connect(server.port)
        for headers in ("Transfer-Encoding: chunked\r\n", "Content-Length: 11\r\n"):
            content: Any = _pieces(memoryview(b"12345678").cast("I"), bytearray(b"abc"))  # type: ignore[arg-type]
            assert await call(wire, "POST", "/", content, headers=headers) == b"ok"
            assert server.requests[-1].body == b"12345678abc"
        assert wire.is_reusable
        wire.close()

    with_server(act)


def test_a_peer_that_takes_nothing_of_a_body_is_cut_off(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        server.sip_s, server.sip_bytes = 60.0, 1
        wire = await connect(server.port)
        with pytest.raises(TimeoutError):
            await call(wire, "POST", "/", b"q" * 20_000_000, write_s=0.3)
        server.close()

    with_server(act)


def test_a_peer_that_takes_a_body_slowly_is_not(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        server.sip_s, server.sip_bytes = 0.02, 100_000
        wire = await connect(server.port)
        assert await call(wire, "POST", "/", b"q" * 6_000_000, write_s=0.5) == b"ok"
        wire.close()

    with_server(act)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_its_limit_ends_the_exchange(with_server: Any, chunked: bool) -> None:
    async def act(server: FaultServer) -> None:
        server.always(Answer(body=b"w" * 1000, chunked=chunked))
        wire = await connect(server.port)
        with pytest.raises(TooLarge):
            await call(wire, max_body_bytes=999)
        server.always(Answer(body=b"w" * 999, chunked=chunked))
        wire = await connect(server.port)
        assert len(await call(wire, max_body_bytes=999)) == 999
        wire.close()

    with_server(act)


def test_a_cancelled_wait_leaves_the_connection_to_be_closed(with_server: Any) -> None:
    async def act(server: FaultServer) -> None:
        server.always(Silence())
        wire = await connect(server.port)
        task = asyncio.create_task(call(wire))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not wire.is_reusable
        wire.close()
        deadlines_of(asyncio.get_running_loop()).table.clear()

    with_server(act)
