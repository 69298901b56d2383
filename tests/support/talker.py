"""A server that says what the test wants, also what nobody asked for, and over TLS also part of a record."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Self


class Line:
    """One connection to the server; used by its thread.

    Attributes:
        number: From 1, in the order of accepting.
    """

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None, number: int) -> None:
        self.number = number
        self._sock = sock
        self._unread = b""
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._in, self._out, server_side=True)
            self._pump(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        """Send *data*; over TLS, as whole records."""
        self._sock.sendall(self._on_the_wire(data))

    def send_part(self, data: bytes, size: int) -> None:
        """Send the first *size* bytes of what *data* is on the wire; the rest never comes."""
        self._sock.sendall(self._on_the_wire(data)[:size])

    def request(self) -> Asked | None:
        """The next one, whole; None at the end."""
        while b"\r\n\r\n" not in self._unread:
            if not self._fill():
                return None
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._unread) < size:
            if not self._fill():
                return None
        self._unread = self._unread[size:]
        method, target, _ = first.split(" ")
        return Asked(method, target, headers)

    def _fill(self) -> bool:
        data = self._sock.recv(65536) if self._tls is None else self._pump(lambda: self._tls.read(65536))  # type: ignore[union-attr]
        self._unread += data
        return bool(data)

    def _on_the_wire(self, data: bytes) -> bytes:
        if self._tls is None:
            return data
        self._tls.write(data)
        return self._out.read()

    def _pump(self, act: Callable[[], Any]) -> Any:
        while True:
            try:
                result = act()
            except ssl.SSLWantReadError:
                self._flush()
                if not (data := self._sock.recv(65536)):
                    return b""
                self._in.write(data)
            except ssl.SSLError:
                return b""
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        if data := self._out.read():
            self._sock.sendall(data)


class Asked:
    """A request as it came in; header names in small letters."""

    def __init__(self, method: str, target: str, headers: dict[str, str]) -> None:
        self.method, self.target, self.headers = method, target, headers


class Talker:
    """Listens on 127.0.0.1 and calls *say* for each request, in a thread for each connection. Use `with`.

    Attributes:
        connections: Accepted so far.
    """

    def __init__(self, say: Callable[[Line, Asked], object], *, tls: ssl.SSLContext | None = None) -> None:
        self._say, self._tls = say, tls
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, https with TLS."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(5.0)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or Nagle holds the surplus for 40 ms
            self._open.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), sock:
            line = Line(sock, self._tls, number)
            while (asked := line.request()) is not None:
                self._say(line, asked)
        self._open.discard(sock)
