"""A connection on its way, which another thread may break off: the deadline's, a client's that has left."""

from __future__ import annotations

import socket
import threading
from typing import Protocol


class Gate(Protocol):
    """What somebody waits at until it is opened: a lock that is held, or what wakes a task of an event loop."""

    def release(self) -> object:
        """Open it. RuntimeError: it is open already, or nobody can wait at it any more."""


class Opening:
    """What is under way until a connection stands: a name look-up, sockets that connect, a handshake.

    Owned by the thread that opens it. `break_off` may come from any thread, at any moment: whatever is begun is
    entered here first, and then `go_on` is asked.

    Attributes:
        sockets: Those that connect, or shake hands.
        gate: What the owner waits at while the name is looked up, or None.
        is_broken_off: Nothing more is to be begun.
    """

    __slots__ = ("gate", "is_broken_off", "sockets")

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.gate: threading.Lock | None = None
        self.is_broken_off = False

    def go_on(self) -> None:
        """Raise ConnectionAbortedError once it was broken off."""
        if self.is_broken_off:
            raise ConnectionAbortedError("the call was broken off while it was connecting")

    def break_off(self) -> None:
        """End what is under way, soon: its owner's waits return, and find that it was broken off. Does not block.

        On Linux a shutdown ends a connect that is under way. Where it does not, the owner looks at
        `is_broken_off` at its next turn.
        """
        self.is_broken_off = True  # first: the owner looks at it once it is awake
        for sock in tuple(self.sockets):
            shut(sock)
        gate = self.gate
        if gate is not None:
            open_gate(gate)


def shut(sock: socket.socket) -> None:
    """End what another thread is doing with *sock*; it closes it. Does not block, never raises."""
    try:
        # Never SSLSocket.shutdown: it drops the TLS layer, and a later write would go out in plaintext.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass


def open_gate(gate: Gate) -> None:
    """Let the one pass who waits at *gate*, or comes to it next."""
    try:
        gate.release()
    except RuntimeError:
        pass  # it is open already
