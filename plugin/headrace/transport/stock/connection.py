"""urllib3's connections, subclassed: one connect limit over all addresses, and a lease that ends with the socket."""

from __future__ import annotations

import errno
import http.client
import socket
import sys
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)
from urllib3.response import HTTPResponse

from headrace.clock import monotonic
from headrace.policy.plan import KeepalivePlan
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.connection_auth import AUTHORIZATION, authenticates_connection
from headrace.transport.dial.refusals import alert_behind
from headrace.transport.dial.sending import LOOKS, send_rest
from headrace.transport.foreign import is_foreign
from headrace.transport.standstill import GRACE_S
from headrace.transport.stock.framing import FramedAnswer, is_framed_twice
from headrace.transport.stock.garbage import (
    LONGEST_BYTES,
    refuse_unreadable_length,
)
from headrace.transport.stock.response import GovernedResponse, LimitedResponse, StreamedResponse

if TYPE_CHECKING:
    from headrace.transport.lease.pool import CloseReason, Lease, LeasePool


_SAYS_CLOSE = b"\r\nconnection: close"


class GovernedHTTPConnection(HTTPConnection):
    """A connection that belongs to a lease while it is in use.

    Owned by the thread that holds the lease; `close()` may also come from a
    finalizer (a response dropped unread), so it never blocks on the pool's lock.

    Attributes:
        ends_as: What its close is counted as.
        handshake_s: Longest TLS handshake where no attempt gives the limit: for a connection made ahead of need.
        most_at_once: Most bytes given to one send() of its socket.
        answering: The socket of the last answer. http.client takes it off the connection
            before the body has been read, if the connection ends with that answer.
        last_answer: The answer that reads from it in that case; http.client does not close it with the connection.
    """

    response_class = FramedAnswer
    lease: Lease[Any] | None = None
    leases: LeasePool[Any] | None = None
    ends_as: CloseReason = "error"
    handshake_s: float | None = None
    most_at_once = sys.maxsize
    answering: socket.socket | None = None
    last_answer: http.client.HTTPResponse | None = None
    _reading_head = False
    _says_close = False  # the request did
    _head_is_next = True  # the next thing sent is the head of a request

    def __str__(self) -> str:
        return f"HTTPConnection(host={self.host!r}, port={self.port!r})"  # as urllib3's errors name it

    def __repr__(self) -> str:
        return f"<{self} at {id(self):#x}>"

    def connect(self) -> None:
        """Connect, and note in the attempt how long that took. Blocks."""
        started = monotonic()
        super().connect()
        lease = self.lease
        if lease is not None and lease.aborted is not None:
            # The call was broken off when there was no socket yet to shut. The request must not go out now.
            raise ConnectionAbortedError("the call was broken off while it was connecting")
        attempt = current_attempt.get()
        if attempt is not None:
            attempt.connect_took_s = monotonic() - started
            if attempt.cut:  # it was cut when there was no socket yet to shut
                raise ConnectTimeoutError(self, f"Connection to {self.host} came about too late.")
            attempt.phase = "sent"

    def _new_conn(self) -> socket.socket:
        attempt = current_attempt.get()
        if attempt is None:
            return _open_socket(self, self.timeout, None)
        attempt.phase = "tcp"
        return _open_socket(self, self.timeout, attempt)

    def send(self, data: Any) -> None:
        """Send *data*; no stall may be longer than `timeouts.write`. Blocks.

        Stock's limit is on the whole of *data*. It would cut a large body over a slow line that moves all the time.
        """
        attempt = current_attempt.get()
        # http.client sends the head in one piece, and nothing with it.
        if self._head_is_next and type(data) is bytes:
            self._head_is_next = False
            head = data.lower()
            self._says_close = _SAYS_CLOSE in head
            if AUTHORIZATION in head and authenticates_connection(head):
                self._claim_for(None if attempt is None else attempt.owner)
        if attempt is None or self.debuglevel or not isinstance(data, (bytes, bytearray, memoryview)):
            super().send(data)  # a file or an iterable comes back here in pieces
            return
        if self.sock is None:
            if not self.auto_open:
                raise http.client.NotConnected
            self.connect()
        sock, most = self.sock, self.most_at_once
        sys.audit("http.client.send", self, data)
        # Set each time: the connection may have had another limit before.
        sock.settimeout(attempt.timeouts.write_s / LOOKS)
        sent = 0
        try:
            if type(data) is bytes and len(data) <= most:  # nearly every request: the socket takes it at once
                try:
                    sent = sock.send(data)
                except TimeoutError as error:
                    if is_foreign(error):
                        raise
                if sent == len(data):
                    return
            send_rest(sock, memoryview(data).cast("B")[sent:], most=most)
        except TimeoutError as error:
            text = f"Write timed out. (write timeout={attempt.timeouts.write_s:g})"
            raise ReadTimeoutError(attempt.pool, "", text) from error  # urllib3 has no error for writing
        except OSError as error:
            alert = None if is_foreign(error) else alert_behind(sock)
            if alert is not None:
                raise alert from None  # the failed write only follows from it
            raise
        finally:
            data = b""  # it holds the call's credentials, and crash reporters ship the locals of a frame

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3 itself overrides it
        """The response head. For a streamed call, sets the socket's limit to the longest silence in the body."""
        attempt = current_attempt.get()
        if attempt is not None and attempt.own_error is not None:
            raise attempt.own_error  # urllib3 took it for an error of a peer that left, perhaps after an answer
        self.answering = sock = self.sock
        self._head_is_next = True
        # http.client closes a connection that will not be kept alive as soon as the head is read. The body is
        # still to come over the same socket, so the slot stays taken until the body has ended.
        self._reading_head = True
        try:
            response = super().getresponse()
        finally:
            self._reading_head = False
        answer = self._HTTPConnection__response  # type: ignore[attr-defined]  # None: it ends with the connection
        if (
            answer is not None
            and "transfer-encoding" in response.headers
            and is_framed_twice(answer, response.headers)
        ):
            answer.is_last = True
        if self._says_close and answer is not None:
            answer.is_last = True  # RFC 9112 §9.6: no further request, whatever the peer says
        if attempt is not None:
            if (length := response.length_remaining) is None or length > LONGEST_BYTES:
                refuse_unreadable_length(response)
            attempt.sock = sock
            if attempt.streamed and sock is not None:
                sock.settimeout(attempt.timeouts.read_s)
        # urllib3 makes the response itself and has no hook for its class. The layout of the classes is the same.
        if attempt is not None and attempt.streamed:
            if attempt.max_body_bytes is None:
                response.__class__ = StreamedResponse
            else:
                response.__class__ = LimitedResponse
                response.max_bytes = attempt.max_body_bytes  # type: ignore[attr-defined]
            response.lease = self.lease  # type: ignore[attr-defined]
            if self.sock is None:
                self.last_answer = response._original_response
        else:
            response.__class__ = GovernedResponse
        return response

    def _claim_for(self, owner: object | None) -> None:
        if self.lease is not None and self.leases is not None:
            self.leases.claim(self.lease, owner)

    def close(self) -> None:
        """Close the socket and give the slot back, if this connection holds one."""
        self._head_is_next = True
        try:
            super().close()
        finally:  # the slot is free, whatever stock's close raises
            if not self._reading_head:
                self._let_go()

    def _let_go(self) -> None:
        lease, leases = self.lease, self.leases
        if lease is not None and leases is not None:
            leases.give_back_quietly(lease, self.ends_as)
            self.lease = (
                None  # only now: after an interrupt in between this may run twice, but no slot is lost
            )
        answer, self.last_answer = self.last_answer, None
        if answer is not None:
            answer.close()


class GovernedHTTPSConnection(GovernedHTTPConnection, HTTPSConnection):
    """The same over TLS, with the shared context of the TLS policy."""

    most_at_once = 16 * 1024  # one TLS record: send() takes all that it is given, or stalls

    def __str__(self) -> str:
        return f"HTTPSConnection(host={self.host!r}, port={self.port!r})"

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        attempt = current_attempt.get()
        if attempt is None:
            sock.settimeout(self.handshake_s)
        else:
            attempt.phase = "tls"
            left_s = attempt.ends_at - monotonic()
            # This limits the whole handshake: OpenSSL's read under Python has an end in time, not a limit per byte.
            # If this process has stood still, no time is left, and the deadline thread gives a grace.
            sock.settimeout(min(attempt.timeouts.tls_handshake_s, max(left_s, GRACE_S)))
        return sock


_KEEPALIVE = (  # the option is named differently on macOS; a system without one keeps its default
    ("idle_s", getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))),
    ("interval_s", getattr(socket, "TCP_KEEPINTVL", None)),
    ("count", getattr(socket, "TCP_KEEPCNT", None)),
)


def socket_options(keepalive: KeepalivePlan | None) -> list[tuple[int, int, int]]:
    """Options of every socket of a pool: no delay, as in urllib3, and the kernel's probes."""
    options: list[tuple[int, int, int]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if keepalive is not None:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        options += [
            (socket.IPPROTO_TCP, option, round(getattr(keepalive, name)))
            for name, option in _KEEPALIVE
            if option is not None
        ]
    return options


def _open_socket(conn: HTTPConnection, limit_s: float | None, attempt: Attempt | None) -> socket.socket:
    """A connected TCP socket, within *limit_s* over all addresses together, and by the end of *attempt*. Blocks.

    urllib3's create_connection gives each address the whole limit: a name with
    eight dead addresses would take eight times as long. Name look-up is not bounded
    (getaddrinfo cannot be interrupted). Errors are those of urllib3's `_new_conn`.
    """
    host = conn._dns_host
    try:
        host.encode("idna")
    except UnicodeError:
        raise LocationParseError(f"'{host}', label empty or too long") from None
    try:
        addresses = socket.getaddrinfo(host, conn.port, 0, socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise NameResolutionError(conn.host, conn, error) from error
    ends_at = None if limit_s is None else monotonic() + limit_s
    if (
        attempt is not None
    ):  # the look-up took time, so less of the attempt is left than when the limit was set
        ends_at = attempt.ends_at if ends_at is None else min(ends_at, attempt.ends_at)
    last: OSError | None = None
    for family, kind, proto, _, address in addresses:
        left_s = None if ends_at is None else ends_at - monotonic()
        if left_s is not None and left_s <= 0:
            if last is not None or attempt is None or attempt.cut:
                last = last or TimeoutError()
                break
            left_s = GRACE_S  # the deadline thread has not cut the attempt, so this process has stood still
        sock = socket.socket(family, kind, proto)
        try:
            for option in conn.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(left_s)
            if conn.source_address:
                sock.bind(conn.source_address)
            sock.connect(address)
        except OSError as error:
            sock.close()
            if is_foreign(error):
                raise
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            sys.audit("http.client.connect", conn, conn.host, conn.port)
            return sock
    if isinstance(last, TimeoutError) and last.errno != errno.ETIMEDOUT:
        raise ConnectTimeoutError(
            conn, f"Connection to {conn.host} timed out. (connect timeout={limit_s})"
        ) from last
    raise NewConnectionError(conn, f"Failed to establish a new connection: {last}") from last
