"""A connection opened on an event loop: the name, the race of its addresses, the handshake; nothing of it blocks.

What is decided is shared with the blocking side: in which order addresses are tried, and when (`policy.dialling`),
which name may be looked up (`Resolver`), which session is offered and whose certificate is accepted (`TlsClient`).

`create_connection` of asyncio tries one address after the other, and one black hole eats the whole limit; uvloop's has
no `happy_eyeballs_delay`. So the race is ours, over `sock_connect`, and both loops are only given the socket that won.

Time limits are not kept here: whoever dials ends the task (`transport.loop_deadlines`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from headrace.clock import monotonic
from headrace.policy.attempt_end import Phase
from headrace.policy.dialling import Turns, interleaved
from headrace.transport.dial.client import BioHandshake, TlsClient, Unread
from headrace.transport.dial.resolve import Resolver, resolver
from headrace.transport.dial.sockets import Address, Option
from headrace.transport.loop_deadlines import EMPTY

P = TypeVar("P", bound=asyncio.BaseProtocol)

_NO_LIMIT_S: Final = 24 * 3600.0  # asyncio wants one, and would raise errors of its own


async def dial(
    host: str,
    port: int,
    make: Callable[[socket.socket], P],
    *,
    family: int,
    options: Iterable[Option] = (),
    connect_s: float,
    tls: TlsClient | None,
    server_name: str,
    step: Callable[[Phase], object],
    names: Resolver = resolver,
) -> tuple[P, Unread | None]:
    """A connection to *host*, and what keeps its TLS session; None: that is not wanted, or it is plain.

    Args:
        host: As DNS is asked for it.
        make: Makes the protocol over the socket that is connected.
        connect_s: What the addresses have together: with many of them, each turn is shorter.
        tls: What its TLS goes by; None: it is plain.
        server_name: Whose certificate it must be, and who is asked for.
        step: Told what begins: dns, tcp, tls.

    Raises:
        socket.gaierror: The name has no address.
        OSError: It could not be made; under TLS ssl.SSLError and IdentityError as well.
    """
    loop: Any = asyncio.get_running_loop()  # typeshed would have a whole SSLContext
    step("dns")
    addresses = await names.await_addresses(host, port, family)
    step("tcp")
    sock = await first_to_answer(addresses, options=options, connect_s=connect_s)
    try:
        sys.audit("http.client.connect", None, host, port)
        if tls is None:
            transport, protocol = await loop.create_connection(lambda: make(sock), sock=sock)
            return protocol, None
        step("tls")
        handshake = BioHandshake(tls, sock, server_name)
        transport = None
        try:
            transport, protocol = await loop.create_connection(
                lambda: make(sock),
                sock=sock,
                ssl=handshake,  # nothing of it but wrap_bio() is asked for
                server_hostname=server_name,
                ssl_handshake_timeout=_NO_LIMIT_S,
            )
            return protocol, handshake.accept(transport.get_extra_info("ssl_object"))
        except BaseException:
            if transport is not None:
                transport.abort()
            handshake.failed()
            raise
    except BaseException:
        sock.close()
        raise


async def first_to_answer(
    addresses: Sequence[Address], *, options: Iterable[Option] = (), connect_s: float
) -> socket.socket:
    """A socket that is connected to one of *addresses*, as `sockets.first_to_answer` has it; the others are closed.

    Raises:
        OSError: All of them failed; the last one's error.
    """
    if not addresses:
        raise OSError("getaddrinfo returns an empty list")
    race = _Race(interleaved(addresses, family_of=lambda one: one[0]), tuple(options), connect_s)
    winner = None
    try:
        winner = await race.run()
        return winner
    finally:
        await race.close_all_but(winner)


class _Race:
    """The addresses of one name: those to be tried, and those that are being tried."""

    def __init__(self, addresses: list[Address], options: tuple[Option, ...], connect_s: float) -> None:
        self._todo = deque(addresses)
        self._options = options
        self._turns = Turns(len(addresses), limit_s=connect_s)
        self._under_way: dict[asyncio.Task[None], socket.socket] = {}
        self._error: OSError | None = None

    async def run(self) -> socket.socket:
        while self._todo or self._under_way:
            now = monotonic()
            if self._todo and (not self._under_way or self._turns.next_at <= now):
                self._begin(now)
                continue
            wait_s = self._turns.next_at - now if self._todo else None
            done, _ = await asyncio.wait(self._under_way, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    return self._under_way[task]
                self._failed(self._under_way.pop(task), error)
        error, self._error = self._error, None
        raise error or OSError("no address was tried")

    async def close_all_but(self, winner: socket.socket | None) -> None:
        """Close those that have not won, once the loop has let go of them."""
        losers = [task for task, sock in self._under_way.items() if sock is not winner]
        for task in losers:
            task.cancel()
        try:
            if losers:
                await asyncio.wait(losers)
        finally:
            for task in losers:
                self._under_way[task].close()

    def _begin(self, now: float) -> None:
        family, kind, proto, _, address = self._todo.popleft()
        self._turns.begun(now)
        sock = None
        try:
            sock = socket.socket(family, kind, proto)  # EAFNOSUPPORT without IPv6
            sock.setblocking(False)
            for option in self._options:
                sock.setsockopt(*option)
        except OSError as error:
            self._failed(sock, self._error or error)  # what the network says of another one says more
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(_connect(loop, sock, address), context=EMPTY.copy())
        self._under_way[task] = sock

    def _failed(self, sock: socket.socket | None, error: BaseException) -> None:
        if not isinstance(error, OSError):
            error = OSError(errno.EINVAL, str(error))
        self._error = error
        if sock is not None:
            sock.close()
        self._turns.failed(monotonic())


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: tuple[object, ...]) -> None:
    await loop.sock_connect(sock, address)
