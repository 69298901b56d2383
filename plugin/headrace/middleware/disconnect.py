"""Notices that the client of an ASGI request has left although the application does not ask for it.

ASGI says so by the message `http.disconnect`. It comes behind the rest of the body, and only
code that awaits `receive()` gets it. So `receive` is called ahead of the application, for one
message at most, which waits here until the application asks. After the last of the
body it is called once more, for the disconnect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from headrace.middleware.admission import BLANK_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class DisconnectWatch:
    """A `receive` for one request that calls *on_disconnect* when the client leaves before the response is over.

    The application gets every message, once and in order. A message that it gives up waiting for
    stays for its next `receive()`. It belongs to one event loop; `close()` leaves no task behind.

    Two kinds of requests are not read ahead: those without an event loop of asyncio (trio), and those
    that expect `100 Continue`, which the server would send as soon as the body is asked for. There a
    disconnect is noticed when the application asks.

    Attributes:
        is_over: The response is over. From then on, a disconnect is how the server ends the request.
    """

    __slots__ = ("_ahead", "_has_body", "_has_left", "_is_closed", "_on_disconnect", "_receive", "is_over")

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self._receive = receive
        self._on_disconnect = on_disconnect
        # Not delivered yet. Only the last one may be pending.
        self._ahead: deque[asyncio.Future[Message]] = deque()
        # The whole body has been read from the server; the client has left.
        self._has_body = self._has_left = False
        self._is_closed = False
        self.is_over = False

    def start(self, headers: Any) -> None:
        """Read ahead from now on, unless that could do harm. Call it on the event loop."""
        if asyncio._get_running_loop() is None:
            return
        for name, value in headers:
            if name == b"expect" and value.strip(BLANK_BYTES).lower() == b"100-continue":
                return
        self._read_ahead()

    async def receive(self) -> Message:
        """The next message, as the server's own `receive` gives it."""
        if self._ahead and (self.is_over or self._has_left or (self._has_body and not self._ahead[0].done())):
            # Some callers look for the disconnect with no time to wait (Starlette's `is_disconnected`). Some servers
            # tell them at once, whatever is left of the body.
            message = self._receive_without_wait()
            if message is not None:
                self._note_message(message)
                if message["type"] == "http.disconnect":
                    while self._ahead and self._ahead[0].done():  # nothing comes behind it
                        self._ahead.popleft()
                    return message
                self._append_arrived(message)
        while self._ahead:
            first = self._ahead[0]
            # Not `await first`: when the application stops waiting, that would cancel it and lose the message.
            if not first.done():
                await asyncio.wait((first,))
            if self._ahead and self._ahead[0] is first:  # otherwise another waiting task took it
                self._ahead.popleft()
                message = first.result()
                # If no more of the body is to come, the next message was asked for when this one came.
                if message["type"] == "http.request" and message.get("more_body"):
                    self._read_ahead()
                return message
        message = await self._receive()
        self._note_message(message)
        return message

    async def close(self, *, waits: bool = True) -> None:
        """Stop watching. What was read ahead and not delivered is dropped: the application has ended.

        Args:
            waits: Wait until no task is left. False: the tasks are only told to end.
        """
        self._is_closed = True
        pending = [one for one in self._ahead if not one.done()]
        self._ahead.clear()
        for one in pending:
            one.cancel()
        if pending and waits:
            await asyncio.wait(pending)

    def _receive_without_wait(self) -> Message | None:
        """What the server's own `receive` has to say without a wait, or None."""
        # Driven by hand: a task would begin at the next turn of the loop, which is too late.
        asked = self._receive().__await__()
        try:
            next(asked)
        except StopIteration as said:
            message: Message = said.value
            return message
        try:
            asked.close()  # if it is a coroutine
        except (AttributeError, RuntimeError):
            pass  # it is something else, which nobody waits for either
        return None

    def _append_arrived(self, message: Message) -> None:
        """Put *message* behind what has arrived, for delivery."""
        held: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        held.set_result(message)
        is_waiting = not self._ahead[-1].done()
        self._ahead.insert(len(self._ahead) - is_waiting, held)

    def _read_ahead(self) -> None:
        is_waiting = self._ahead and not self._ahead[-1].done()
        if not self._is_closed and not is_waiting:
            task = asyncio.ensure_future(self._receive())
            self._ahead.append(task)
            task.add_done_callback(self._on_arrival)

    def _on_arrival(self, task: asyncio.Future[Message]) -> None:
        # The look at the exception keeps asyncio from logging it, in case the application never asks.
        if task.cancelled() or task.exception() is not None:
            return
        message = task.result()
        self._note_message(message)
        if message["type"] == "http.request" and not message.get("more_body"):
            self._read_ahead()

    def _note_message(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._has_body = self._has_body or not message.get("more_body")
        elif message["type"] == "http.disconnect":
            self._has_left = True
            if not self.is_over:
                self._on_disconnect()
