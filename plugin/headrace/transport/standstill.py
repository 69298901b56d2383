"""When this process itself stood still: stopped, throttled, or the GIL held by somebody's C code.

Whoever wakes well after his limit has not watched its end, so that end says nothing yet of the peer: what has
arrived meanwhile is an answer (failures.md 67). The deadline thread gives a grace (`runtime.deadlines`), waits
for connections get one (`lease`), and TLS sockets read once more (`PatientSSLSocket`).
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from typing import Any

from headrace.clock import monotonic
from headrace.transport.foreign import is_foreign

LATE_S = 0.05
"""Seconds past its limit from which on a wait ended too late to mean anything.

Ten times what the scheduler and five threads' turns at the GIL take (5 ms each).
"""

GRACE_S = 0.1
"""Seconds that are given instead: one period of a container's CPU quota (cfs_period_us), in which everybody runs."""

MOST_GRACES = 5
"""Graces that one attempt is given on end, half a second in all. One was too little: six threads that woke on a
machine with four busy processes had read their answers and not come any further in 100 ms. It has an end, for where
every look is late, a container throttled all the time, a limit must hold all the same."""


def is_readable(sock: socket.socket | None) -> bool:
    """Whether something has arrived at *sock*, the end of the stream included, that nobody has read. Does not block.

    Of the bytes below TLS: what the TLS layer holds already is its owner's to know. Takes any thread, and a
    socket that is closed meanwhile (then False).
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
    """Whether *gate* was opened within *limit_s*, or within all graces where this process has stood still: whoever
    was about to open it has, too, and has those graces to come to it. Blocks."""
    began = monotonic()
    if gate.acquire(timeout=limit_s):
        return True
    return monotonic() - began >= limit_s + LATE_S and gate.acquire(timeout=MOST_GRACES * GRACE_S)


class PatientSSLSocket(ssl.SSLSocket):
    """CPython's, which looks once more when its limit was overrun by far.

    CPython looks at the clock before it looks at the socket: when getting the GIL back has taken longer than the
    limit, it says TimeoutError although the answer is there (`_ssl.c`, PySSL_select). Plain sockets poll first.
    """

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Up to *len* bytes, or into *buffer*. Blocks."""
        began = monotonic()
        try:
            return super().read(len, buffer)
        except TimeoutError as error:
            if not _is_too_late(self, began, error):
                raise
        return super().read(len, buffer)

    def do_handshake(self, block: bool = False) -> None:
        """As CPython's. Blocks."""
        began = monotonic()
        try:
            super().do_handshake(block)
        except TimeoutError as error:
            if not _is_too_late(self, began, error):
                raise
        else:
            return
        super().do_handshake(block)


def _is_too_late(sock: ssl.SSLSocket, began: float, error: TimeoutError) -> bool:
    """Whether *error*, of a wait since *began*, came well after its limit, and there is something to read."""
    if is_foreign(error):
        return False
    limit_s = sock.gettimeout()
    return limit_s is not None and monotonic() - began >= limit_s + LATE_S and is_readable(sock)
