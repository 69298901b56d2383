"""A forwarding TCP proxy that forgets idle connections as a NAT or a firewall does: silently.

    with SilentProxy(server.port) as proxy:
        requests.get(proxy.url)        # forwarded
        proxy.forget_idle()            # no FIN, no RST, to neither side
        requests.get(proxy.url)        # whatever is sent over the old connection is swallowed

One thread for all connections; nothing is left after `close()`.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from support.waiting import wait_until


@dataclass(eq=False, slots=True)
class _Link:
    """One connection of a client and its twin to the target.

    Attributes:
        forgotten: Nothing is forwarded any more, in either direction.
        has_swallowed: The client has sent something since.
    """

    client: socket.socket
    target: socket.socket
    moved_at: float = field(default_factory=time.monotonic)
    forgotten: bool = False
    has_swallowed: bool = False


class SilentProxy:
    """Listens on an ephemeral port of 127.0.0.1 and forwards to *target_port* there. Starts when it is made.

    Args:
        forget_after_s: A connection on which nothing moved for so long is forgotten; None: only by `forget_idle`.

    Attributes:
        connections: Accepted so far.
    """

    host = "127.0.0.1"

    def __init__(self, target_port: int, *, forget_after_s: float | None = None) -> None:
        self.connections = 0
        self._target = (self.host, target_port)
        self._forget_after_s = forget_after_s
        self._lock = threading.Lock()  # guards the links and what they say
        self._links: set[_Link] = set()
        self._forgotten: list[_Link] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((self.host, 0), backlog=512)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._poke, self._poked = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._poked, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"silentproxy-{self.port}", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`; no slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Connections over which something could still be sent."""
        with self._lock:
            return sum(not link.forgotten for link in self._links)

    @property
    def forgotten(self) -> int:
        """Connections forgotten so far."""
        with self._lock:
            return len(self._forgotten)

    @property
    def swallowed(self) -> int:
        """Of the forgotten connections, those over which a client has sent something afterwards."""
        with self._lock:
            return sum(link.has_swallowed for link in self._forgotten)

    def forget_idle(self, *, quiet_s: float = 0.02) -> int:
        """Forget every open connection; how many. Blocks until all have been quiet for *quiet_s*."""

        def is_quiet() -> bool:
            now = time.monotonic()
            with self._lock:
                return all(now - link.moved_at >= quiet_s for link in self._links)

        wait_until(is_quiet, what="quiet on the proxy")
        with self._lock:
            return sum(self._forget(link) for link in self._links)

    def close(self) -> None:
        """End every connection, and the thread. Idempotent."""
        if self._thread.is_alive():
            self._poke.send(b"!")
            self._thread.join(5.0)
        for link in self._links:
            link.client.close()
            link.target.close()
        self._links.clear()
        for sock in (self._listener, self._poke, self._poked):
            sock.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # The thread.

    def _run(self) -> None:
        while True:
            tick_s = None if self._forget_after_s is None else 0.005
            for key, _ in self._selector.select(tick_s):
                if key.fileobj is self._poked:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._move(key.data, key.fileobj)  # type: ignore[arg-type]
            if self._forget_after_s is not None:
                now = time.monotonic()
                with self._lock:
                    for link in self._links:
                        if now - link.moved_at >= self._forget_after_s:
                            self._forget(link)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # the client has gone already
            return
        target = socket.create_connection(self._target, timeout=5)
        target.settimeout(5)
        client.settimeout(5)
        for sock in (client, target):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, target)
        with self._lock:
            self.connections += 1
            self._links.add(link)
        self._selector.register(client, selectors.EVENT_READ, link)
        self._selector.register(target, selectors.EVENT_READ, link)

    def _forget(self, link: _Link) -> bool:
        """With the lock held; whether it was not forgotten before."""
        if link.forgotten:
            return False
        link.forgotten = True
        self._forgotten.append(link)
        return True

    def _move(self, link: _Link, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        with self._lock:
            if link.forgotten:
                link.has_swallowed |= bool(data) and sock is link.client
                if not data:
                    self._selector.unregister(sock)  # the end, too, is not passed on
                return
            link.moved_at = time.monotonic()
        if data:
            try:
                (link.target if sock is link.client else link.client).sendall(data)
                return
            except OSError:
                pass  # the other side has gone
        for one in (link.client, link.target):
            self._selector.unregister(one)
            one.close()
        with self._lock:
            self._links.discard(link)
