"""One exchange over a connected socket, blocking: the request goes out, the answer goes into the codec.

Nothing here knows of attempts, leases or urllib3. What may raise, raises as the socket does; what an error means to a
caller, `exchange` says.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from headrace.transport.dial.sending import LOOKS, send_rest
from headrace.transport.foreign import is_foreign
from headrace.transport.wire.h1 import Malformed, Truncated

if TYPE_CHECKING:
    from headrace.transport.wire.h1 import AnswerReader

PIECE_BYTES: Final = 64 * 1024
"""Most bytes asked of a socket at a time. The memory is given back before the next look, but for what has come."""

MOST_BYTES: Final = 256 * 1024
"""Largest answer that goes through the codec as a whole. A larger body is read into one buffer, by a reader in C."""


def send(sock: socket.socket, data: bytes, *, write_s: float, most: int) -> None:
    """Send *data*; no stall may be longer than *write_s*. Blocks. Sets the limit of *sock*.

    Args:
        most: Most bytes given to the socket at a time.

    Raises:
        TimeoutError: The peer took nothing for *write_s*.
        OSError: The connection broke.
    """
    # Set each time: the socket may have had another limit before.
    sock.settimeout(write_s / LOOKS)
    sent = 0
    if len(data) <= most:  # nearly every request: the socket takes it at once
        try:
            sent = sock.send(data)
        except TimeoutError as error:
            if is_foreign(error):
                raise
        if sent == len(data):
            return
    send_rest(sock, memoryview(data)[sent:], most=most)


def receive(sock: socket.socket, reader: AnswerReader, pieces: list[bytes], *, whole: bool) -> bool:
    """Receive an answer until it is whole, or its head is there; True: it is whole. Blocks, within the limit of *sock*.

    Mutates: *pieces* gets all that was received.

    Args:
        whole: Go on behind the head, up to MOST_BYTES.

    Raises:
        Malformed: It is no HTTP, or not in the codec's opinion.
        Truncated: The stream has ended within it, or before it.
        OSError: The connection broke, or nothing came within the limit.
    """
    recv, feed = sock.recv, reader.feed
    left = MOST_BYTES - sum(map(len, pieces))
    while True:
        data = recv(PIECE_BYTES)
        if not data:
            reader.end()  # raises, unless this body ends with its connection
            return True
        pieces.append(data)
        left -= len(data)
        if feed(data):
            return True
        if reader.head_done and (not whole or left < 0):
            return False


def receive_length(sock: socket.socket, reader: AnswerReader, pieces: list[bytes]) -> bytes | None:
    """The body of an answer whose length is known, the part included that *reader* has; None: its length is not known.

    The codec is told and does not see it: it would copy it. Blocks, within the limit of *sock*. Mutates: *pieces* gets
    all that was received.

    Raises:
        Truncated: The stream has ended before.
        OSError: The connection broke, or nothing came within the limit.
    """
    rest = reader.rest()
    if rest is None:
        return None
    left, recv, parts = rest, sock.recv, [reader.take()]
    while left:
        data = recv(left if left < MOST_BYTES else MOST_BYTES)  # nothing that is behind the body
        if not data:
            reader.end()  # raises
        pieces.append(data)
        parts.append(data)
        left -= len(data)
    reader.passed(rest)
    return b"".join(parts)


def receive_rest(
    sock: socket.socket, reader: AnswerReader, pieces: list[bytes]
) -> bytes | OSError | Malformed | Truncated | None:
    """The body of an answer whose head is there, or what has come in the way; None: it is large. Blocks. Mutates."""
    # The error is an answer here, and not raised: its frames must not refer to what will keep it.
    try:
        body = receive_length(sock, reader, pieces)
        if body is None and receive(sock, reader, pieces, whole=True):
            body = reader.take()
        return body
    except (OSError, Malformed, Truncated) as error:
        return error
