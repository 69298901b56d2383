"""An HTTP/1.1 server over bare sockets that misbehaves on command.

    with FaultServer() as server:
        server.always(Answer(body=b"fine"))            # from now on, for every path
        server.at("/slow", Answer(delay_s=0.2))        # for one path (the query is not looked at)
        server.next(Break("head"), Answer(503))        # for the next requests, one each, whatever the path
        ...
        server.wait_for(lambda: server.first_lines == 3)

What a request gets: the next of the queue, else its path's, else the general
behaviour. Whole connections are governed by `server.on_accept`. A behaviour may
also be a function of the request (`on_reuse` makes one). All of it can be
switched at any time, from any thread.

One thread per connection, which blocks in recv(); `close()` ends them all and
leaves no thread or socket behind.
"""

from __future__ import annotations

import ctypes
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, Self

_libc = ctypes.CDLL(None)

Headers = tuple[tuple[str, str], ...]
Then = Literal["keep", "fin", "rst", "half_close"]
OnAccept = Literal["serve", "rst", "fin", "silence", "drip_tls"]
OnExpect = Literal["continue", "answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, whole unless it is told otherwise.

    Attributes:
        headers: Added to Content-Length (or Transfer-Encoding) and Connection.
        close: Say `Connection: close`, and do it.
        chunked: Send the body as one chunk per `drip_body_s` step, or as one chunk.
        delay_s: Silence before the first byte.
        drip_head_s, drip_body_s: Pause after every byte of the head, or of the body; 0: all at once.
        then: What happens to the connection afterwards, unannounced: kept, closed
            while the client thinks it is idle (`fin`, `rst`), or closed for writing only.
        framed: False: no Content-Length; the body ends with the connection.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes = b"ok"
    close: bool = False
    chunked: bool = False
    delay_s: float = 0.0
    drip_head_s: float = 0.0
    drip_body_s: float = 0.0
    then: Then = "keep"
    framed: bool = True


@dataclass(frozen=True, slots=True)
class Break:
    """The connection ends at a bad moment.

    Attributes:
        at: `request`: after the whole request, without a byte of answer; `head`:
            during the head; `body`: after the head and half of the body.
        how: `rst`, or `fin`: an orderly end, so that `body` is a truncated body.
    """

    at: Literal["request", "head", "body"] = "request"
    how: Literal["rst", "fin"] = "rst"


@dataclass(frozen=True, slots=True)
class Silence:
    """The request is read and never answered; the connection stays open."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes in place of an answer, then the end of the connection (or not)."""

    data: bytes = b"\x15\x03\x01\x00\x02\x02 not HTTP\r\n\r\n"
    then: Then = "fin"


@dataclass(frozen=True, slots=True)
class Endless:
    """An answer that goes on for ever and is never silent for long: *first*, then *again* every `pause_s`."""

    first: bytes = b""
    again: bytes = b"HTTP/1.1 100 Continue\r\n\r\n"
    pause_s: float = 0.02


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came in.

    Attributes:
        headers: In their order, names as they were sent.
        nth: Number of the request on its connection, from 1.
        connection: Number of the connection, from 1.
        client_cert: What `SSLSocket.getpeercert()` says, or None.
        resumed: Whether its TLS went on with a session of before, as the server sees it; None: there is no TLS.
    """

    method: str
    target: str
    headers: Headers
    body: bytes
    nth: int
    connection: int
    client_cert: dict[str, Any] | None = None
    resumed: bool | None = None

    def header(self, name: str) -> str | None:
        """The first value of *name*, whatever its case; None when absent."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


Reply = Answer | Break | Silence | Raw | Endless
Behaviour = Reply | Callable[[Request], Reply]


def on_reuse(later: Behaviour, *, first: Behaviour = Answer()) -> Behaviour:
    """*first* for the first request of each connection, *later* for the others: an idle connection gone bad."""

    def choose(request: Request) -> Reply:
        chosen = first if request.nth == 1 else later
        return chosen(request) if callable(chosen) else chosen

    return choose


class FaultServer:
    """A listening server on an ephemeral port of 127.0.0.1. Starts when it is made; close it, or use `with`.

    Args:
        tls: Context for the server side; `server_context` makes one.
        keep: How many requests are remembered in `requests` (the counts go on).

    Attributes:
        connections: Accepted so far.
        first_lines: Request lines read so far, complete or not what followed.
        failed_handshakes: TLS handshakes that did not come about.
        on_accept: What new connections meet: `serve`, `rst`, `fin`, `silence` (not a byte is read), or
            `drip_tls`: the beginning of a handshake, byte by byte and without an end.
        on_expect: What meets `Expect: 100-continue`: a 100 (`continue`), or the answer, the body unread (`answer`).
        sip_s, sip_bytes: Pause between reads of a request's body, and what each of them takes at most.
    """

    host = "127.0.0.1"

    def __init__(self, *, tls: ssl.SSLContext | None = None, keep: int = 10_000) -> None:
        self.tls = tls
        self.connections = 0
        self.first_lines = 0
        self.failed_handshakes = 0
        self.on_accept: OnAccept = "serve"
        self.on_expect: OnExpect = "continue"
        self.sip_s = 0.0
        self.sip_bytes = 1024
        self._general: Behaviour = Answer()
        self._by_path: dict[str, Behaviour] = {}
        self._queue: deque[Behaviour] = deque()
        self._requests: deque[Request] = deque(maxlen=keep)
        self._changed = threading.Condition()  # guards all counts and the two sets below
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.port = 0
        self.listen()

    # The script.

    def always(self, behaviour: Behaviour) -> None:
        """Every request that nothing more special is said about gets *behaviour*."""
        self._general = behaviour

    def at(self, path: str, behaviour: Behaviour) -> None:
        """Requests for *path* get *behaviour*."""
        self._by_path[path] = behaviour

    def next(self, *behaviours: Behaviour) -> None:
        """The next requests get one of *behaviours* each."""
        self._queue.extend(behaviours)

    # What was seen.

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, https with TLS; no slash at the end."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """The whole requests seen, oldest first."""
        return list(self._requests)

    @property
    def open_connections(self) -> int:
        """Accepted and not closed yet, by either side as far as noticed."""
        return len(self._open)

    def wait_for(self, is_true: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        """Return once *is_true()* holds; it is asked again whenever the server has seen something. Blocks."""
        with self._changed:
            if not self._changed.wait_for(is_true, timeout_s):
                raise AssertionError(f"not within {timeout_s} s; {self!r}")

    def __repr__(self) -> str:
        return (
            f"<FaultServer {self.url}: {self.connections} connections ({self.open_connections} open), "
            f"{self.first_lines} first lines, {len(self._queue)} behaviours queued>"
        )

    # Coming and going.

    def listen(self) -> None:
        """Listen, again on the same port after `refuse()`."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(512)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._acceptor = threading.Thread(
            target=self._accept, args=(listener,), name=f"faultserver-{self.port}", daemon=True
        )
        self._acceptor.start()

    def refuse(self) -> None:
        """Stop listening: new connections are refused, open ones live on."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(); closing alone would not
        assert self._acceptor is not None
        self._acceptor.join()
        listener.close()

    def drop_all(self, *, how: Literal["rst", "fin"] = "fin") -> None:
        """End every open connection, idle ones too."""
        with self._changed:
            for sock in self._open:
                _end(sock, how)

    def close(self) -> None:
        """End everything; no thread or socket is left. Idempotent."""
        self._closing.set()
        self.refuse()
        self.drop_all()
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(5.0)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # The threads.

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # shut down
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                thread = threading.Thread(
                    target=self._serve,
                    args=(sock, number),
                    name=f"faultserver-{self.port}-{number}",
                    daemon=True,
                )
                self._open.add(sock)
                self._threads.add(thread)
                self._changed.notify_all()
            thread.start()
            if self._closing.is_set():
                _end(sock, "fin")

    def _serve(self, sock: socket.socket, number: int) -> None:
        plain = sock
        try:
            match self.on_accept:
                case "rst" | "fin" as how:
                    _end(sock, how)
                case "silence":
                    self._closing_or_hangup(sock, read=False)
                case "drip_tls":
                    self._go_on(
                        Endless(b"\x16\x03\x03\x40\x00", b"\x02"), sock
                    )  # a record of 16 KiB, announced
                case "serve":
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if self.tls is not None:
                        sock = self._handshake(plain)
                    self._answer_all(_Connection(sock, number, self._sip))
        except OSError:  # the client has gone, or close() was called
            pass
        finally:
            with self._changed:
                self._open.discard(plain)
                self._open.discard(sock)
                self._changed.notify_all()
            # After the set has forgotten it: drop_all() may not meet a descriptor that is somebody else's by now.
            sock.close()
            plain.close()
            with self._changed:  # only now: close() promises that no socket is left
                self._threads.discard(threading.current_thread())
                self._changed.notify_all()

    def _handshake(self, plain: socket.socket) -> ssl.SSLSocket:
        assert self.tls is not None
        try:
            sock = self.tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            with self._changed:
                self._open.discard(plain)
                self._open.add(sock)
            sock.do_handshake()
        except OSError:
            with self._changed:
                self.failed_handshakes += 1
                self._open.discard(sock)
            sock.close()
            raise
        return sock

    def _answer_all(self, connection: _Connection) -> None:
        nth = 0
        while not self._closing.is_set():
            if not connection.fill_line():
                return
            with self._changed:
                self.first_lines += 1
                self._changed.notify_all()
            nth += 1
            request = connection.read_request(nth, self.on_expect)
            if request is None:
                return
            with self._changed:
                self._requests.append(request)
                self._changed.notify_all()
            if not self._play(self._behaviour(request), request, connection.sock):
                return

    def _behaviour(self, request: Request) -> Reply:
        try:
            chosen = self._queue.popleft()
        except IndexError:
            chosen = self._by_path.get(request.target.partition("?")[0], self._general)
        return chosen(request) if callable(chosen) else chosen

    def _play(self, behaviour: Reply, request: Request, sock: socket.socket) -> bool:
        """Do it; whether the connection is still good for another request."""
        match behaviour:
            case Answer():
                return self._send_answer(behaviour, request, sock)
            case Break(at, how):
                body = b"0123456789" * 10
                head, body = _head(Answer(body=body), request), body[:50]
                sock.sendall({"request": b"", "head": head[: len(head) // 2], "body": head + body}[at])
                _end(sock, how)
                return False
            case Silence():
                self._closing_or_hangup(sock, read=True)
                return False
            case Raw(data, then):
                sock.sendall(data)
                return self._afterwards(then, sock)
            case Endless():
                self._go_on(behaviour, sock)
                return False

    def _send_answer(self, answer: Answer, request: Request, sock: socket.socket) -> bool:
        if answer.delay_s and self._closing.wait(answer.delay_s):
            return False
        head = _head(answer, request)
        pieces = [] if _is_bodiless(answer, request) else _pieces(answer)
        if not answer.drip_head_s and not answer.drip_body_s:
            sock.sendall(b"".join((head, *pieces)))
        else:
            dripping = _bytewise(head, answer.drip_head_s)
            if not (
                self._drip(dripping, answer.drip_head_s, sock)
                and self._drip(pieces, answer.drip_body_s, sock)
            ):
                return False
        if answer.close or not answer.framed or (request.header("Connection") or "").lower() == "close":
            _end(sock, "fin")
            return False
        return self._afterwards(answer.then, sock)

    def _drip(self, pieces: Iterable[bytes], pause_s: float, sock: socket.socket) -> bool:
        for piece in pieces:
            sock.sendall(piece)
            if pause_s and self._closing.wait(pause_s):
                return False
        return True

    def _go_on(self, endless: Endless, sock: socket.socket) -> None:
        sock.sendall(endless.first)
        while not self._closing.wait(endless.pause_s):
            sock.sendall(endless.again)

    def _sip(self) -> int:
        """Pause between two reads of a body; how much to read then."""
        if self.sip_s:
            self._closing.wait(self.sip_s)
            return self.sip_bytes
        return 65536

    def _afterwards(self, then: Then, sock: socket.socket) -> bool:
        match then:
            case "keep":
                return True
            case "half_close":
                socket.socket.shutdown(sock, socket.SHUT_WR)
                self._closing_or_hangup(sock, read=True)
                return False
            case "fin" | "rst" as how:
                _end(sock, how)
                return False

    def _closing_or_hangup(self, sock: socket.socket, *, read: bool) -> None:
        """Until the client hangs up or the server closes; without *read*, what it sends is left unread."""
        if not read:
            self._closing.wait()
            return
        while not self._closing.is_set():
            if not sock.recv(65536):
                return


class _Connection:
    """The reading side of one connection."""

    def __init__(self, sock: socket.socket, number: int, sip: Callable[[], int]) -> None:
        self.sock = sock
        self.sip = sip
        self.number = number
        self.buffer = b""
        self.client_cert = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
        self.resumed = sock.session_reused if isinstance(sock, ssl.SSLSocket) else None

    def fill(self, most: int = 65536) -> bool:
        data = self.sock.recv(most)
        self.buffer += data
        return bool(data)

    def fill_line(self) -> bool:
        """Read until a request line is in the buffer; False when the client has left before."""
        while b"\r\n" not in self.buffer:
            if not self.fill():
                return False
        return True

    def read_request(self, nth: int, on_expect: OnExpect) -> Request | None:
        """The rest of the request; None when the client has left during it."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        framing = {name.lower(): value for name, value in headers}
        is_expecting = framing.get("expect", "").lower() == "100-continue"
        if is_expecting and on_expect == "answer":
            return Request(method, target, headers, b"", nth, self.number, self.client_cert, self.resumed)
        if is_expecting:
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if framing.get("transfer-encoding", "").lower() == "chunked":
            body = self.read_chunks()
        else:
            body = self.read_exactly(int(framing.get("content-length", "0")))
        if body is None:
            return None
        return Request(method, target, headers, body, nth, self.number, self.client_cert, self.resumed)

    def read_exactly(self, size: int) -> bytes | None:
        while len(self.buffer) < size:
            if not self.fill(self.sip()):
                return None
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return body

    def read_chunks(self) -> bytes | None:
        body = b""
        while True:
            if not self.fill_line():
                return None
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            chunk = self.read_exactly(size + 2)
            if chunk is None:
                return None
            if size == 0:
                return body
            body += chunk[:-2]


def _is_bodiless(answer: Answer, request: Request) -> bool:
    return request.method == "HEAD" or answer.status in (204, 304)


def _head(answer: Answer, request: Request) -> bytes:
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {answer.status} {phrase}"]
    if answer.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif answer.framed and answer.status not in (204, 304):
        lines.append(f"Content-Length: {len(answer.body)}")
    if answer.close:
        lines.append("Connection: close")
    lines.extend(f"{name}: {value}" for name, value in answer.headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _pieces(answer: Answer) -> list[bytes]:
    pieces = _bytewise(answer.body, answer.drip_body_s)
    if not answer.chunked:
        return pieces
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece] + [b"0\r\n\r\n"]


def _bytewise(data: bytes, pause_s: float) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))] if pause_s else [data]


def _end(sock: socket.socket, how: Literal["rst", "fin"]) -> None:
    """End the TCP connection now, under any TLS, from any thread; its owner closes the descriptor."""
    try:
        if how == "rst":
            # SO_LINGER 0 makes close() send RST; shutting down first would send FIN. connect(AF_UNSPEC) sends
            # RST as well, without giving up the descriptor that the owner may be about to use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            _disconnect(sock)
        else:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # has ended already


def _disconnect(sock: socket.socket) -> None:
    _libc.connect(sock.fileno(), b"\0" * 16, 16)  # AF_UNSPEC; Python's connect() cannot say it


def server_context(ca: Any, *names: str, client_ca: Any = None) -> ssl.SSLContext:
    """A server-side context with a certificate that *ca* (trustme.CA) issues for *names*.

    Args:
        names: Host names or addresses; 127.0.0.1 and localhost when none is given.
        client_ca: trustme.CA whose client certificates are demanded; None: none is asked for.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
    if client_ca is not None:
        client_ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
