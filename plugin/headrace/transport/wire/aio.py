"""One HTTP/1.1 connection on an event loop: an `asyncio.Protocol` over the codec.

In: a head, a body, a `Limit`. Out: the answer's head, then its body as a whole or piece by piece. What an error means
to a caller, and which connection is used again, is decided above. Nothing here knows of attempts or of urllib3.

**Who wakes whom.** `data_received` feeds the codec, and wakes the one task that waits: at the head, at the end, at a
piece, whichever it waits for. At the last byte the protocol itself takes the limit out of the table
(`transport.loop_deadlines`).

**First cause wins.** What has broken the exchange off is kept, and everything that follows from it is not: after an
`abort` the loop reports a lost connection, which says nothing.

**Back-pressure.** Reading is paused while more than `MOST_UNREAD` bytes of a streamed body wait for their reader. A
stream that ends while it is paused is resumed before its connection goes back: the next exchange on it would hear
nothing. A body is written as fast as the socket takes it.

**A body that is iterated over** is somebody else's code, and may never yield again. What breaks the exchange off, and
the whole answer, cancel the wait for its next piece, as `asyncio.timeout` would. It is held to its Content-Length: one
byte more would be the next request's, one less would eat that.

**At rest**, between two exchanges, nothing may come: whatever does ends the connection, and so does what comes behind
a complete answer (failures.md 53).

Callbacks run in the context in which the connection was opened, which is an empty one; no context variable is read.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from headrace.clock import monotonic
from headrace.transport.dial.liveness import Watched, is_alive
from headrace.transport.dial.sending import unsent_bytes
from headrace.transport.loop_deadlines import Limit, LoopDeadlines
from headrace.transport.wire.h1 import USUAL, AnswerReader, Limits, Malformed, Truncated

MOST_UNREAD: Final = 256 * 1024
"""Bytes of a streamed body that may wait for their reader. One read of the loop may come on top of it."""

_PIECE_BYTES: Final = 64 * 1024
"""What is written of a body before the socket is asked whether it takes more."""

_IN_ONE_GO: Final = 12 * 1024
"""Longest body that goes out in one piece with its head."""

_TURNS: Final = 3
"""Turns of the loop in which it reads what has come, through TLS as well: asyncio appends its own callbacks behind
those that are due."""

Body = bytes | AsyncIterator[bytes] | None


class LoopWire(asyncio.Protocol, Watched):
    """A connection of one event loop. Not thread-safe but for `close` and `discard`.

    Args:
        sock: The socket beneath, also beneath TLS. It is looked at only.

    Attributes:
        sock: As given.
        reader: The codec of this connection.
        limit: That of the exchange under way; None: there is none, or its answer is complete.
        is_lost: There is no connection any more.
        is_last: The request has said that it is the last one, or its connection is nobody else's.
        on_unasked: Called when the connection has ended at rest, or something has come that nobody asked for.
        on_answer: Called once, at the first byte of the first answer.
    """

    # No __slots__: `Watched` has none.

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deadlines: LoopDeadlines, sock: socket.socket
    ) -> None:
        self.sock = sock
        self.reader = AnswerReader()
        self.limit: Limit | None = None
        self.is_lost = self.is_last = False
        self.on_unasked: Callable[[], object] | None = None
        self.on_answer: Callable[[LoopWire], object] | None = None
        self._loop = loop
        self._deadlines = deadlines
        self._limits = USUAL
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None  # what has broken the exchange off, until it is raised
        self._is_broken = False
        self._at_rest = True
        self._streamed = False
        self._unread = 0
        self._is_paused = False
        self._is_full = False  # the transport takes no more for now
        self._is_sent = True  # as a whole
        self._wants_head = False  # whoever waits
        self._asking: asyncio.Task[Any] | None = None  # what waits for the next piece of a request's body
        self._has_asked_off = False  # it was cancelled by us

    # ── what the loop calls ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop's."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """The loop's."""
        if self._at_rest:
            self._end_at_rest()
            return
        if self._is_broken:
            return
        reader, limit = self.reader, self.limit
        if limit is not None:
            limit.quiet_since = monotonic()
        if self.on_answer is not None:
            told, self.on_answer = self.on_answer, None
            told(self)
        try:
            is_done = reader.feed(data)
        except Malformed as error:
            self._break(error)
            return
        if is_done:
            self._answered()
        elif self._streamed and reader.head_done:
            if limit is not None and self._is_sent:
                self._take_out()  # the head is what was limited, or this silence
            self._unread += len(data)
            if self._unread > MOST_UNREAD and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
            self._wake()
        elif self._wants_head and reader.head_done:
            self._wake()

    def eof_received(self) -> None:
        """The loop's. The transport closes itself after it."""
        if self._at_rest:
            self._end_at_rest()
        elif not (self.reader.done or self._is_broken):
            self._end_of_stream()

    def connection_lost(self, exc: Exception | None) -> None:
        """The loop's."""
        self.is_lost = True
        if self._at_rest:
            self._end_at_rest()
        elif not (self.reader.done or self._is_broken):
            if exc is not None and self._drain():
                self._answered()
            elif exc is not None and not self._is_broken:
                self._break(exc)
            elif not self._is_broken:
                self._end_of_stream()
        self._is_full = False
        self._wake()

    def pause_writing(self) -> None:
        """The loop's."""
        self._is_full = True

    def resume_writing(self) -> None:
        """The loop's."""
        self._is_full = False
        self._wake()

    # ── what its holder calls ──

    @property
    def is_open(self) -> bool:
        """Whether another exchange may begin: nothing has ended it so far as this process was told."""
        return not (self.is_lost or self._is_broken or self._transport.is_closing())

    @property
    def is_reusable(self) -> bool:
        """Whether it is between two answers, and open."""
        reader = self.reader
        return self._is_sent and reader.done and reader.reusable and not self.is_last and self.is_open

    @property
    def tls(self) -> Any:
        """Its `ssl.SSLObject`; None: it is plain."""
        return self._transport.get_extra_info("ssl_object")

    def is_quiet(self) -> bool:
        """Whether it is open and nothing is there to be read, below TLS. 2 to 4 µs."""
        return self.is_open and is_alive(self)

    async def becomes_quiet(self) -> bool:
        """The same; but under TLS the loop may read first: what has come may be session tickets."""
        if self.is_quiet():
            return True
        if self.tls is None:
            return False
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return self.is_quiet()

    def begin(
        self, method: str, limit: Limit, *, streamed: bool = False, max_body_bytes: int | None = None
    ) -> None:
        """Begin an exchange: a request with *method*, in upper case, will be sent. Mutates.

        Args:
            limit: It is in the table, and ends the exchange by `cut`. Taken out once the answer is complete.
            streamed: The limit is that of the head, and the body is taken piece by piece (`more`).
            max_body_bytes: Longest body, as sent; None: no limit.

        Raises:
            ConnectionError: There is no connection any more.
        """
        if not self.is_open:
            raise ConnectionResetError("the connection was lost between two calls")
        if max_body_bytes != self._limits.body_bytes:
            self._limits = USUAL if max_body_bytes is None else Limits(body_bytes=max_body_bytes)
            self.reader = AnswerReader(self._limits)
        self.reader.begin(method)
        self.limit, self._streamed = limit, streamed
        self._at_rest = self._is_sent = False
        self._unread = 0

    async def send(self, head: bytes, body: Body, *, write_s: float, read_s: float) -> None:
        """Send the request; return at once where its answer is there already.

        A body that is iterated over is framed as its head says, by chunks or by a length, to which it is held. A
        generator is closed where it is left before its end.

        Args:
            write_s: Longest stall while it is sent.
            read_s: Longest silence from then on.

        Raises:
            OSError: The connection broke, or the time was up. Also what the iterator of the body raises.
            ValueError: That has more bytes or fewer than its length; the connection cannot be used again.
        """
        if body is None or (isinstance(body, bytes) and len(body) <= _IN_ONE_GO):
            self._transport.write(head if body is None else head + body)
        elif isinstance(body, bytes):
            self._transport.write(head)
            self._watch_sending(write_s, read_s)
            for at in range(0, len(body), _PIECE_BYTES):
                if not await self._goes_on():
                    return
                self._transport.write(body[at : at + _PIECE_BYTES])
        else:
            length = _length_in(head)
            self._transport.write(head)
            self._watch_sending(write_s, read_s)
            if not await self._send_pieces(body, length):
                return
        self._is_sent = True
        if self._streamed and self.reader.head_done:
            self._take_out()  # it held as long as there was something to send
        if self._transport.get_write_buffer_size():
            self._watch_sending(write_s, read_s)

    async def head(self) -> None:
        """Wait for the head of the answer.

        Raises:
            Malformed, Truncated, OSError: What has ended the exchange.
        """
        self._wants_head = True
        while not self.reader.head_done:
            await self._wait()
        self._wants_head = False

    async def complete(self) -> None:
        """Wait for the end of the answer. Raises as `head`."""
        while not self.reader.done:
            await self._wait()

    async def whole(self) -> bytes:
        """The same; its body, as sent."""
        await self.complete()
        return self.reader.take()

    async def more(self, silence_s: float) -> bytes:
        """The next piece of a streamed body, as sent; b"" at its end. Raises as `head`.

        Args:
            silence_s: How long nothing may come.
        """
        reader = self.reader
        while True:
            piece = reader.take()
            if piece or (reader.done and not self._is_broken):
                self._unread = 0
                self._resume()
                return piece
            now = monotonic()
            limit = Limit(now, self.cut, silence_s=silence_s)
            self.limit = limit
            self._deadlines.add(limit, now)
            try:
                await self._wait()
            finally:
                self._deadlines.remove(limit)
                self.limit = None

    def rest(self) -> None:
        """The exchange is over, and another one may follow. Mutates."""
        self._resume()
        self._at_rest = True
        self.limit = None

    def cut(self, by: object = None) -> None:
        """End the exchange: its limit has ended. First cause wins; without an errno, as each limit of ours."""
        self._break(TimeoutError("timed out"))

    def break_off(self) -> None:
        """End the exchange: headrace itself wants it to end."""
        self._break(ConnectionAbortedError("the connection was shut by headrace"))

    def close(self) -> None:
        """Close it for good; of an exchange under way nothing comes any more. Thread-safe; never raises."""
        if asyncio._get_running_loop() is self._loop:
            self._abort()
            return
        try:
            self._loop.call_soon_threadsafe(self._abort)
        except RuntimeError:
            # The loop is closed, and what it had is of nobody: asyncio leaves the socket open (uvloop does not).
            self.is_lost = True
            self._close_socket()

    def discard(self) -> None:
        """Close a forked child's copy. The loop and its selector are the parent's, too: nothing of them is touched."""
        self.is_lost = True
        self._close_socket()

    # ── ──

    def _close_socket(self) -> None:
        try:
            # Whoever else knows the socket (uvloop does) must not close a descriptor that is another file's by then.
            with open(os.devnull, "rb") as nothing:
                os.dup2(nothing.fileno(), self.sock.fileno(), inheritable=False)
        except (OSError, ValueError):
            pass
        try:
            self.sock.close()
        except OSError:
            pass

    def _abort(self) -> None:
        if not self._at_rest and not self.reader.done:
            self._break(ConnectionAbortedError("the connection was closed"))
        elif self._transport is not None:
            self.on_unasked = None
            self._transport.abort()

    def _watch_sending(self, write_s: float, read_s: float) -> None:
        limit = self.limit
        if limit is not None:
            limit.unsent, limit.then_s = self._unsent, read_s
            limit.step(monotonic(), write_s)
            self._deadlines.add(limit, monotonic())

    def _unsent(self) -> int:
        waiting: int = self._transport.get_write_buffer_size()
        waiting += unsent_bytes(self.sock) or 0
        return waiting if waiting or self._is_sent else -1

    async def _send_pieces(self, body: AsyncIterator[bytes], length: int | None) -> bool:
        """Send *body*, by chunks where it has no *length*; False where the answer was there before its end."""
        left, is_over = length, False
        try:
            while True:
                try:
                    piece = await self._next_of(body)
                except StopAsyncIteration:
                    is_over = True
                    break
                if not await self._goes_on():
                    return False
                if not isinstance(piece, bytes):
                    # It may be changed meanwhile, and its length may be another one than that of its bytes.
                    piece = bytes(memoryview(piece))
                if not piece:
                    continue
                if left is None:
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    continue
                left -= len(piece)
                if left < 0:
                    raise ValueError(f"the body has more bytes than its Content-Length, {length}")
                self._transport.write(piece)
            if not await self._goes_on():
                return False
            if left:
                raise ValueError(f"the body ended {left} bytes before its Content-Length, {length}")
            if left is None:
                self._transport.write(b"0\r\n\r\n")
            return True
        except GeneratorExit:
            is_over = True  # the loop has ended: nothing may be awaited
            raise
        finally:
            if not is_over and isinstance(body, AsyncGenerator):
                await body.aclose()

    async def _next_of(self, body: AsyncIterator[bytes]) -> bytes:
        """The next piece of *body*; b"" where the exchange has ended meanwhile. StopAsyncIteration at its end."""
        task = asyncio.current_task()
        n_cancelled = 0 if task is None else task.cancelling()
        self._asking = task
        try:
            return await anext(body)
        except asyncio.CancelledError:
            if task is None or not self._has_asked_off or task.cancelling() > n_cancelled + 1:
                raise  # somebody else has cancelled the call
            return b""
        finally:
            self._asking = None
            if task is not None and self._has_asked_off:
                self._has_asked_off = False
                task.uncancel()

    def _ask_off(self) -> None:
        """End the wait for the next piece of a body, soon: what ends the exchange may be the body itself."""
        if self._asking is not None:
            self._loop.call_soon(self._cancel_asking)

    def _cancel_asking(self) -> None:
        if self._asking is not None and not self._has_asked_off:
            self._has_asked_off = self._asking.cancel()

    async def _goes_on(self) -> bool:
        """Whether more of the body is to be sent, once there is room; not where the answer is there already."""
        while self._is_full and not (self.reader.done or self._is_broken):
            await self._wait()
        if self._is_broken:
            self._raise()
        return not (self.reader.done or self.is_lost)

    async def _wait(self) -> None:
        """Wait until something has happened. Raises what has broken the exchange off."""
        if self._is_broken:
            self._raise()
        self._waiter = waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _raise(self) -> None:
        # It is not kept: it will refer to frames that refer to this.
        error, self._error = self._error, None
        try:
            raise error or ConnectionAbortedError("the connection was closed")
        finally:
            del error

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take_out(self) -> None:
        limit, self.limit = self.limit, None
        if limit is not None:
            self._deadlines.remove(limit)

    def _answered(self) -> None:
        self._take_out()
        self._ask_off()
        self._wake()

    def _end_of_stream(self) -> None:
        try:
            self.reader.end()
        except (Truncated, Malformed) as error:
            self._break(error)
        else:
            self._answered()

    def _drain(self) -> bool:
        """Read what came before the connection broke in writing; whether that is an answer.

        A server may refuse a request before it has read all of it, and hang up. The loop drops the answer.
        """
        if self.tls is not None:
            return False
        try:
            while not self.reader.done:
                data = self.sock.recv(_PIECE_BYTES)
                if not data:
                    self.reader.end()
                    break
                self.reader.feed(data)
        except (OSError, ValueError, Truncated):
            return False
        except Malformed as error:
            self._break(error)
            return False
        return self.reader.done

    def _break(self, error: BaseException) -> None:
        if self._is_broken or (self.is_lost and self._at_rest):
            return
        self._is_broken, self._error = True, error
        self._is_sent = False
        self._take_out()
        if self._transport is not None:
            self._transport.abort()
        self._ask_off()
        self._wake()

    def _end_at_rest(self) -> None:
        told, self.on_unasked = self.on_unasked, None
        if self._transport is not None and not self.is_lost:
            self._transport.abort()
        self._is_broken = True
        if told is not None:
            told()

    def _resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            if not self.is_lost:
                self._transport.resume_reading()

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else "at rest" if self._at_rest else "busy"
        return f"<LoopWire {state}>"


def _length_in(head: bytes) -> int | None:
    """The length that *head* gives its body; None: it goes by chunks.

    Raises:
        ValueError: Neither, or both: where the body ends is not certain.
    """
    is_chunked, lengths = False, []
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            lengths.append(value.strip())
        elif name == b"transfer-encoding":
            if is_chunked or value.strip() != b"chunked":
                raise ValueError("a body that is iterated over goes by chunks, or by its length")
            is_chunked = True
    if len(lengths) + is_chunked != 1 or not all(one.isdigit() for one in lengths):
        raise ValueError(
            "a body that is iterated over needs one Content-Length, or Transfer-Encoding: chunked"
        )
    return None if is_chunked else int(lengths[0])
