"""TCP to the first of several addresses that answers: RFC 8305 on blocking sockets.

The first address has an ordinary blocking connect, for a quarter of a second at the most: nearly always it answers, and
then this costs what `socket.create_connection` does. Where it does not, **the kernel goes on connecting** after the
TimeoutError. So its socket is kept, and only now a race begins: the next address beside it, then the next. The first
to answer wins, and the others are closed.

TLS is not part of it: an address that accepts and then hangs in the handshake has won.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from headrace.clock import monotonic
from headrace.policy.dialling import Turns, interleaved, share_s
from headrace.transport.dial.opening import Opening
from headrace.transport.foreign import is_foreign
from headrace.transport.standstill import GRACE_S, LATE_S

Address: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"
"""As `getaddrinfo` gives it: family, type, protocol, canonical name, address."""

_FAMILY = 0  # its place in there

_LONGEST_WAIT_S = 3600.0
"""The system takes a C int of milliseconds. Whoever wakes from a longer wait looks again."""

Option: TypeAlias = "tuple[int, int, int | bytes]"


def first_to_answer(
    addresses: Sequence[Address],
    *,
    ends_at: float,
    opening: Opening,
    options: Iterable[Option] = (),
    source: tuple[str, int] | None = None,
) -> socket.socket:
    """A socket that is connected to one of *addresses*; the others are closed. Its timeout is anything. Blocks.

    One *opening* is for one call.

    Args:
        ends_at: When the time of all of them together is up, monotonic seconds; inf: never.
        opening: Where it can be broken off; the socket is entered there.
        options: Set on each socket before it connects.
        source: Where each of them connects from.

    Raises:
        TimeoutError: None of them answered in time; without an errno.
        ConnectionAbortedError: It was broken off.
        OSError: All of them failed; the last one's error. One of the caller's code (a signal handler's) as it is.
    """
    if not addresses:
        raise OSError("getaddrinfo returns an empty list")
    ordered = addresses
    if len(addresses) > 1:
        ordered = interleaved(addresses, family_of=lambda one: one[_FAMILY])
    race = _Race(ordered, ends_at, opening, tuple(options), source)
    winner = None
    try:
        winner = race.run() if _may_race() else race.one_by_one()
        return winner
    finally:
        race.close_all_but(winner)


class _Race:
    """The addresses of one name: those to be tried, and those that are being tried."""

    __slots__ = ("_ends_at", "_error", "_grace", "_opening", "_options", "_source", "_todo", "_turns")

    def __init__(
        self,
        addresses: Sequence[Address],
        ends_at: float,
        opening: Opening,
        options: tuple[Option, ...],
        source: tuple[str, int] | None,
    ) -> None:
        self._todo = deque(addresses)
        self._ends_at = ends_at
        self._turns = Turns(len(addresses), limit_s=max(ends_at - monotonic(), 0.0))
        self._opening = opening
        self._options = options
        self._source = source
        self._error: OSError | None = None
        self._grace = GRACE_S

    def run(self) -> socket.socket:
        while True:
            now = monotonic()
            under_way = self._opening.sockets
            if self._todo and not under_way:
                winner = self._begin(min(self._turns.stagger_s, self._left_s(now)), now)
            elif self._todo and self._turns.next_at <= now < self._ends_at:
                winner = self._begin(0.0, now)
            elif under_way:
                winner = self._watch(now)
            else:
                raise self._error or OSError("no address was tried")
            if winner is not None:
                return winner

    def one_by_one(self) -> socket.socket:
        """The same where a connect cannot be left to itself: each has a share of the time."""
        while self._todo:
            now = monotonic()
            winner = self._begin(share_s(self._left_s(now), len(self._todo)), now)
            if winner is not None:
                return winner
            if self._opening.sockets:  # its share is over
                self.close_all_but(None)
                self._error = TimeoutError("timed out")
        raise self._error or OSError("no address was tried")

    def close_all_but(self, winner: socket.socket | None) -> None:
        """Close those that have not won. An interrupt in here leaves the rest to be collected."""
        sockets = self._opening.sockets
        for sock in tuple(sockets):
            if sock is not winner:
                sockets.remove(sock)
                sock.close()

    def _begin(self, limit_s: float, now: float) -> socket.socket | None:
        """Try the next address, and wait for it for *limit_s*; None where it is under way still, or has failed."""
        family, kind, proto, _, address = self._todo.popleft()
        self._turns.begun(now)
        sock, is_tried = None, False
        try:
            sock = socket.socket(family, kind, proto)  # EAFNOSUPPORT without IPv6
            self._opening.sockets.append(sock)
            for option in self._options:
                sock.setsockopt(*option)
            if self._source is not None:
                sock.bind(self._source)
            sock.settimeout(min(limit_s, _LONGEST_WAIT_S))
            self._opening.go_on()
            is_tried = True
            sock.connect(address)  # not connect_ex(): what others put in place of connect() is to hold
        except BlockingIOError:
            return None
        except OSError as error:
            self._opening.go_on()
            if is_foreign(error):
                raise
            if isinstance(error, TimeoutError) and error.errno is None:
                return None  # with an errno it would be the kernel's verdict
            if not is_tried and self._error is not None:
                error = self._error  # what the network says of another address says more
            self._failed(sock, error)
            return None
        return sock

    def _watch(self, now: float) -> socket.socket | None:
        """Wait for one of those under way, until the next one's turn or the end."""
        until = min(self._ends_at, self._turns.next_at)
        # Looked at even when it is late: who has answered meanwhile has answered.
        ready = _decided(self._opening.sockets, max(until - now, 0.0))
        self._opening.go_on()
        for sock in ready:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number == 0:
                try:
                    sock.getpeername()
                except OSError as error:
                    self._failed(sock, error)
                    continue
                return sock
            self._failed(sock, OSError(number, os.strerror(number)))
        if not ready:
            self._left_s(monotonic())
        return None

    def _left_s(self, now: float) -> float:
        """Seconds that are left, or a grace where this process stood still. Raises TimeoutError at the end."""
        left_s = self._ends_at - now
        if left_s > 0.0:
            return left_s
        if left_s > -LATE_S or not self._grace:
            raise TimeoutError("timed out")
        self._ends_at, self._grace = now + self._grace, 0.0
        return GRACE_S

    def _failed(self, sock: socket.socket | None, error: OSError) -> None:
        if isinstance(error, socket.gaierror):
            # Of bind(): the source is of another family. Nothing is wrong with the name that was asked for.
            error = OSError(errno.EADDRNOTAVAIL, f"cannot connect from {self._source}: {error.strerror}")
        self._error = error
        if sock is not None:
            self._opening.sockets.remove(sock)
            sock.close()
        self._turns.failed(monotonic())


def _may_race() -> bool:
    """Whether `socket.socket` connects as the kernel does: CPython's, or gevent's. PySocks' negotiates in connect()."""
    kind = socket.socket
    return kind.__module__.partition(".")[0] in ("socket", "gevent")


def _decided(sockets: list[socket.socket], limit_s: float) -> list[socket.socket]:
    """Those of *sockets* that have connected, or failed to; empty after *limit_s*. Blocks."""
    limit_s = min(limit_s, _LONGEST_WAIT_S)
    # Looked up late: under gevent the one that lets others run is wanted.
    poll = getattr(select, "poll", None)
    if poll is None:  # Windows, which tells of failures by the third
        _, writable, failed = select.select((), sockets, sockets, limit_s)
        return [sock for sock in sockets if sock in writable or sock in failed]
    poller = poll()
    by_number = {sock.fileno(): sock for sock in sockets}
    for number in by_number:
        poller.register(number, select.POLLOUT)
    found = poller.poll(limit_s * 1000.0)
    return [by_number[number] for number, _ in found]
