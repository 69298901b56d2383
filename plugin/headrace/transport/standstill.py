"""When this process itself stood still: it was stopped or throttled, or C code held the GIL.

A thread that wakes well after its limit did not see the limit pass. So the limit says nothing about the peer yet, and
what has arrived meanwhile is an answer (failures.md 67). The deadline thread gives a grace (`runtime.deadlines`),
waits for connections get one (`lease`), and TLS sockets read once more (`PatientSSLSocket`).
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from headrace.clock import monotonic
from headrace.transport.attempt import current_attempt
from headrace.transport.foreign import is_foreign

LATE_S = 0.05
"""A wait that ends more than this after its limit means nothing. Seconds.

It is ten times what the scheduler and five threads' turns at the GIL take (5 ms each).
"""

GRACE_S = 0.1
"""Seconds given instead: one period of a container's CPU quota (cfs_period_us), in which every thread runs."""

MOST_GRACES = 5
"""Graces that one attempt gets in a row, half a second in all. One was too little: six threads that woke on a
machine with four busy processes had read their answers and got no further in 100 ms. The number is bounded because a
limit must hold even where every look is late, as in a container that is throttled all the time."""


def is_readable(sock: socket.socket | None) -> bool:
    """Whether something unread has arrived at *sock*, the end of the stream included. Does not block.

    It looks at the bytes below TLS: only the owner knows what the TLS layer holds already. Any thread may call it.
    False for a socket that is closed meanwhile.
    """
    if sock is None:
        return False
    try:
        poll = getattr(select, "poll", None)
        if poll is None:  # Windows
            return bool(select.select([sock], [], [], 0)[0])
        poller = poll()
        poller.register(sock.fileno(), select.POLLIN)
        return bool(poller.poll(0))
    except (OSError, ValueError):
        return False


def opened_in_time(gate: threading.Lock, limit_s: float) -> bool:
    """Whether *gate* was opened within *limit_s*, or within all graces where this process has stood still. Blocks.

    The thread that was about to open it has stood still, too, and has those graces to do it.
    """
    began = monotonic()
    if gate.acquire(timeout=limit_s):
        return True
    return monotonic() - began >= limit_s + LATE_S and gate.acquire(timeout=MOST_GRACES * GRACE_S)


if TYPE_CHECKING:
    from headrace.transport.dial.client import Unread

    _Base = ssl.SSLSocket
else:
    _Base = object


@lru_cache(maxsize=8)
def patient_over(base: Any) -> type[PatientSSLSocket]:
    """The class of TLS sockets that are those of *base*, CPython's or gevent's, and patient."""
    return cast("type[PatientSSLSocket]", type("PatientSSLSocket", (PatientSSLSocket, base), {}))


class PatientSSLSocket(_Base):
    """A TLS socket, on top of CPython's or gevent's, which looks once more when its limit was far overrun.

    CPython looks at the clock before it looks at the socket. When getting the GIL back has taken longer than the
    limit, it raises TimeoutError although the answer is there (`_ssl.c`, PySSL_select). Plain sockets poll first.

    Attributes:
        unread: Keeps its session, once the first answer has begun; None: that is not wanted.
    """

    unread: Unread | None = None

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Up to *len* bytes, or into *buffer*. Blocks."""
        began = monotonic()
        try:
            return super().read(len, buffer)
        except TimeoutError as error:
            if not _is_too_late(self, began, error):
                raise
        return super().read(len, buffer)

    def getpeername(self) -> Any:
        """As CPython's, which asks before the handshake; see `recv`."""
        try:
            return super().getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # it goes on after that
                self._close_unmade()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As CPython's, which calls it before the handshake where the peer has gone already. Blocks.

        CPython up to 3.12 leaves the descriptor open when that fails (`ssl.py`, SSLSocket._create), and nobody else
        knows the socket.
        """
        try:
            return super().recv(buflen, flags)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EINVAL):  # it goes on after those
                self._close_unmade()
            raise

    def _close_unmade(self) -> None:
        if self._sslobj is None:  # type: ignore[attr-defined]  # the TLS layer is not there yet
            self.close()

    def do_handshake(self, block: bool = False) -> None:
        """As CPython's. Blocks. Another thread may break it off."""
        attempt = current_attempt.get()
        if attempt is not None and attempt.opening is not None:
            # This socket has taken the place of the plain one, which nobody can shut any more.
            attempt.opening.sockets.append(self)
            attempt.opening.go_on()
        began = monotonic()
        arguments = (block,) if block else ()  # gevent's takes none
        try:
            super().do_handshake(*arguments)
        except TimeoutError as error:
            if not _is_too_late(self, began, error):
                raise
        else:
            return
        super().do_handshake(*arguments)


def _is_too_late(sock: ssl.SSLSocket, began: float, error: TimeoutError) -> bool:
    """Whether *error*, which ended a wait since *began*, came well after its limit, and there is something to read."""
    if is_foreign(error):
        return False
    limit_s = sock.gettimeout()
    return limit_s is not None and monotonic() - began >= limit_s + LATE_S and is_readable(sock)
