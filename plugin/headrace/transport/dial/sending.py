"""Sending more than a socket takes at once, with a limit on each stall and not on the whole."""

from __future__ import annotations

import socket
import sys

from headrace.transport.foreign import is_foreign

try:
    import fcntl
    import termios

    _OUTQ: int | None = termios.TIOCOUTQ  # SIOCOUTQ by its other name, see tcp(7)
except (ImportError, AttributeError):  # Windows
    _OUTQ = None

LOOKS = 4
"""Looks at the socket within the longest stall. A kernel with megabytes of buffer reports room only when a
third of it is free: on a slow line that is long after the last byte moved."""


def send_rest(sock: socket.socket, rest: memoryview, *, most: int) -> None:
    """Send *rest* over *sock*. Its timeout must be the longest stall divided by LOOKS. Blocks.

    Args:
        most: Most bytes given to the socket at a time.

    Raises:
        TimeoutError: The peer has acknowledged nothing in LOOKS timeouts in a row.
        OSError: The connection broke.
    """
    looks, unsent = 0, 0
    while rest:
        try:
            rest = rest[sock.send(rest[:most]) :]
            looks = 0
        except TimeoutError as error:
            if is_foreign(error):
                raise
            left = unsent_bytes(sock)
            # The first look has nothing to compare with. Bytes that TLS did not take are sent again
            # unchanged: OpenSSL wants the same bytes.
            looks = 1 if looks and left is not None and left < unsent else looks + 1
            unsent = left or 0
            if looks == LOOKS:
                raise


def unsent_bytes(sock: socket.socket) -> int | None:
    """Bytes that the peer has not acknowledged yet; None where the system does not tell."""
    if _OUTQ is None:
        return None
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), _OUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return None
