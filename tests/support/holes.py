"""Addresses that swallow what is sent to them, and names that hang: what dialling has to live with. All on loopback."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

Address = tuple[int, int, int, str, tuple[Any, ...]]


def address_of(port: int, host: str = "127.0.0.1") -> Address:
    """As `getaddrinfo` would say it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """The port of a listener whose backlog is full: Linux drops what wants to connect, and answers nothing."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("a full backlog refuses nobody here")
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A port of loopback that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]  # type: ignore[no-any-return]


@dataclass
class Names:
    """What the system's resolver says from now on; what `socket.getaddrinfo` calls, not that itself.

    Attributes:
        known: The addresses of each name; a port of 0 is the one that was asked for.
        asked: The names that were asked for, in their order, with the thread that asked.
    """

    known: dict[str, list[Address]] = field(default_factory=dict)
    hanging: dict[str, threading.Event] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def hang(self, name: str) -> threading.Event:
        """Have look-ups of *name* hang until what comes back is set."""
        return self.hanging.setdefault(name, threading.Event())

    def count(self, name: str) -> int:
        """How often *name* was looked up."""
        return sum(one == name for one, _ in self.asked)


@contextlib.contextmanager
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """A resolver of the test's own, below Python's. Whatever hangs at the end is let go."""
    import _socket

    told, real = Names(), _socket.getaddrinfo  # type: ignore[attr-defined]

    def look_up(host: str, port: int, *args: Any, **kw: Any) -> Any:
        if isinstance(host, bytes):
            host = host.decode()
        if not host.endswith((".test", ".test.")):
            return real(host, port, *args, **kw)
        if len(args) > 3 and args[3] & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        told.asked.append((host, threading.current_thread().name))
        if host in told.hanging and not told.hanging[host].wait(60.0):
            raise OSError(errno.EIO, "nobody let it go")
        if host not in told.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(*one[:4], (one[4][0], one[4][1] or port, *one[4][2:])) for one in told.known[host]]

    monkeypatch.setattr(_socket, "getaddrinfo", look_up)
    try:
        yield told
    finally:
        for gate in told.hanging.values():
            gate.set()
