"""urllib3's connections, subclassed: dialled by us (`transport.dial`), and with a lease that ends with the socket."""

from __future__ import annotations

import errno
import http.client
import re
import socket
import sys
from collections.abc import Sequence
from functools import lru_cache
from math import inf
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import urllib3.connection
import urllib3.util.connection
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
from headrace.policy.plan import NO_LIMIT_S, KeepalivePlan
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.connection_auth import AUTHORIZATION, authenticates_connection
from headrace.transport.dial.client import TlsClient
from headrace.transport.dial.liveness import Watched
from headrace.transport.dial.opening import Opening
from headrace.transport.dial.refusals import alert_behind
from headrace.transport.dial.resolve import is_own, resolver
from headrace.transport.dial.sending import LOOKS, send_rest
from headrace.transport.dial.sockets import Address, first_to_answer
from headrace.transport.foreign import is_foreign
from headrace.transport.standstill import GRACE_S
from headrace.transport.stock.framing import FramedAnswer, declared_bytes, is_framed_twice
from headrace.transport.stock.garbage import (
    LONGEST_BYTES,
    refuse_unreadable_length,
)
from headrace.transport.stock.response import GovernedResponse, LimitedResponse, StreamedResponse

if TYPE_CHECKING:
    from headrace.transport.dial.client import Unread
    from headrace.transport.lease.pool import CloseReason, Lease, LeasePool
    from headrace.transport.wire.h1 import AnswerReader


_SAYS_CLOSE = b"\r\nconnection: close"
_IN_A_NAME = re.compile(r"[\0- \x7f]").search
_IN_A_VALUE = re.compile(r"[\0\r\n]").search
_CONNECTION_PY = urllib3.util.connection.is_connection_dropped.__code__.co_filename


class GovernedHTTPConnection(HTTPConnection, Watched):
    """A connection that belongs to a lease while it is in use.

    Owned by the thread that holds the lease; `close()` may also come from a
    finalizer (a response dropped unread), so it never blocks on the pool's lock.

    Attributes:
        ends_as: What its close is counted as.
        handshake_s: Longest TLS handshake where no attempt gives the limit: for a connection made ahead of need.
        resolve_s: Longest name look-up there.
        opening: What another thread breaks off while it is connecting; None: it is not.
        most_at_once: Most bytes given to one send() of its socket.
        answering: The socket of the last answer. http.client takes it off the connection
            before the body has been read, if the connection ends with that answer.
        last_answer: The answer that reads from it in that case; http.client does not close it with the connection.
        reader: The codec, once it has read an answer of this connection.
        unread: Keeps the TLS session, once the first answer has begun; None: that is not wanted, or was done.
    """

    response_class = FramedAnswer
    lease: Lease[Any] | None = None
    leases: LeasePool[Any] | None = None
    ends_as: CloseReason = "error"
    handshake_s: float | None = None
    resolve_s = inf
    opening: Opening | None = None
    most_at_once = sys.maxsize
    answering: socket.socket | None = None
    last_answer: http.client.HTTPResponse | None = None
    reader: AnswerReader | None = None
    unread: Unread | None = None
    _reading_head = False
    _says_close = False  # the request did
    _head_is_next = True  # the next thing sent is the head of a request
    _declared: int | None = None  # what it says of its body, as `declared_bytes` has it
    _body_bytes = 0  # what has been sent of it

    def __str__(self) -> str:
        return f"HTTPConnection(host={self.host!r}, port={self.port!r})"  # as urllib3's errors name it

    def __repr__(self) -> str:
        return f"<{self} at {id(self):#x}>"

    def connect(self) -> None:
        """Connect, and note in the attempt how long that took. Blocks; another thread may break it off."""
        started = monotonic()
        attempt, lease = current_attempt.get(), self.lease
        self.opening = opening = Opening()
        if lease is not None and lease.aborted is not None:  # before there was anything to break off
            opening.is_broken_off = True
        if attempt is not None:
            attempt.opening = opening
        try:
            self._open()
        finally:
            self.opening = None
            if attempt is not None:
                attempt.opening = None
        if (
            lease is not None and lease.aborted is not None
        ):  # at the last moment: the request must not go out now
            raise ConnectionAbortedError("the call was broken off while it was connecting")
        if attempt is not None:
            attempt.connect_took_s = monotonic() - started
            if attempt.cut:  # it was cut when there was no socket yet to shut
                raise ConnectTimeoutError(self, f"Connection to {self.host} came about too late.")
            attempt.phase = "sent"

    def _open(self) -> None:
        super().connect()

    def _new_conn(self) -> socket.socket:
        attempt = current_attempt.get()
        if attempt is not None:
            attempt.phase = "tcp"
        return _open_socket(self, self.timeout, attempt)

    def putheader(self, header: str | bytes, *values: Any) -> None:
        """As in stock, which lets folded values, NUL and names that end in a blank through (failures.md 92).

        Raises:
            ValueError: Some server could read another header, or a header more. The text does not show the value.
        """
        if _IN_A_NAME(_text_of(header)):
            raise ValueError(f"Invalid header name {header!r:.64}: it has a blank or a control character")
        for value in values:
            if isinstance(value, (str, bytes)) and _IN_A_VALUE(_text_of(value)):
                raise ValueError(f"Invalid value of header {header!r:.64}: it has CR, LF or NUL")
        super().putheader(header, *values)  # type: ignore[arg-type]  # urllib3 says less than it takes

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
            self._declared, self._body_bytes = declared_bytes(head), 0
            if AUTHORIZATION in head and authenticates_connection(head):
                self._claim_for(None if attempt is None else attempt.owner)
        elif isinstance(data, (bytes, bytearray, memoryview)):
            self._body_bytes += memoryview(data).nbytes
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
        if answer is not None and self._declared is not None and self._declared != self._body_bytes:
            # The peer has seen another end of the request: it reads a second one, or the next one as a body. The
            # answer to that would be the next caller's (failures.md 91).
            answer.is_last = True
        if self.unread is not None:
            self.keep_session(sock)
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

    def keep_session(self, sock: socket.socket | None) -> None:
        """Keep the TLS session of *sock*, for connections to come. Once: the next answers find nothing to keep."""
        unread, self.unread = self.unread, None
        if unread is not None and sock is not None:
            unread.read(sock)

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

    def connect(self) -> None:
        """Connect, and shake hands. Blocks; another thread may break it off."""
        self.unread = None
        super().connect()
        self.unread = getattr(self.sock, "unread", None)

    def _open(self) -> None:
        """As stock: what it does for a context that our client is, without what that ignores. Blocks.

        Stock asks for proxies, sets what cannot be set, and asks for what the client answers by `__getattr__`: a
        fifth of what Python does for a new connection.
        """
        name: str = self.server_hostname or self._dns_host
        client: Any = self.ssl_context
        if (
            type(self) is not GovernedHTTPSConnection
            or type(client) is not TlsClient
            or not client.verifies_by_itself
            or not _is_name(name)
            or self.proxy is not None
            or self.assert_hostname
            or self.assert_fingerprint
            or not _is_stocks_way()
        ):
            super()._open()
            return
        self.sock = sock = self._new_conn()
        self.sock = client.wrap_socket(sock, server_hostname=name.rstrip("."))
        self.is_verified = client.plan.verify
        self._has_connected_to_proxy = False

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


_is_name = re.compile(r"[^\[\]:%]+").fullmatch
"""Stock takes an IPv6 address out of its brackets, and its zone off."""

_OWN_WAY: Final = tuple(
    getattr(owner, name, None)
    for owner, name in (
        (HTTPSConnection, "connect"),
        (urllib3.connection, "ssl_wrap_socket"),
        (urllib3.connection, "_ssl_wrap_socket_and_match_hostname"),
    )
)
_CAME_FIRST: Final = all(
    isinstance(function, FunctionType) and "urllib3" in function.__code__.co_filename for function in _OWN_WAY
)
"""Whether nobody had replaced any of these by the time that this was imported."""


def _is_stocks_way() -> bool:
    """Whether nobody has replaced what urllib3 secures a connection with: others note handshakes, or forbid them."""
    connect, wrap, match = _OWN_WAY
    module: Any = urllib3.connection
    return (
        _CAME_FIRST
        and HTTPSConnection.connect is connect
        and module.ssl_wrap_socket is wrap
        and module._ssl_wrap_socket_and_match_hostname is match
    )


def _text_of(one: str | bytes) -> str:
    return one.decode("latin-1") if isinstance(one, bytes) else one


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


def _open_socket(
    conn: GovernedHTTPConnection, limit_s: float | None, attempt: Attempt | None
) -> socket.socket:
    """A TCP socket to the host of *conn*, within *limit_s* and by the end of *attempt*, name look-up included. Blocks.

    Whatever somebody has put in the place of urllib3's `create_connection` is called instead of all this. Errors are
    those of urllib3's `_new_conn`: no other OSError leaves, but ConnectionAbortedError where it was broken off, and
    one of the caller's own code.
    """
    now, opening = monotonic(), conn.opening or Opening()
    ends_at = inf if limit_s is None else now + limit_s
    resolve_s = conn.resolve_s
    if attempt is not None:
        ends_at = min(ends_at, attempt.ends_at)
        resolve_s = attempt.timeouts.resolve_s
    create: Any = urllib3.util.connection.create_connection  # looked up late, as urllib3 does
    is_stock, is_looked_up = is_own(create, "create_connection", _CONNECTION_PY), False
    try:
        if is_stock:
            addresses = _addresses_of(conn, min(ends_at, now + resolve_s), attempt, opening)
            is_looked_up = True
            if attempt is not None:
                attempt.phase = "tcp"
            source, options = conn.source_address, conn.socket_options or ()
            sock = first_to_answer(
                addresses, ends_at=ends_at, opening=opening, options=options, source=source
            )
        else:
            left_s = None if ends_at == inf else max(ends_at - now, GRACE_S)
            sock = create(
                (conn._dns_host, conn.port),
                left_s,
                source_address=conn.source_address,
                socket_options=conn.socket_options,
            )
    except OSError as raised:
        error = raised
        if opening.is_broken_off:
            if attempt is None or not attempt.cut:
                opening.go_on()
            error = TimeoutError("timed out")  # it was broken off since its time was up
        if is_foreign(error):
            raise
        is_looked_up = is_looked_up or not (is_stock or isinstance(error, socket.gaierror))
        if attempt is not None and not is_looked_up:
            attempt.phase = "dns"
        raise _in_urllib3s_words(error, conn, limit_s, resolve_s if not is_looked_up else None) from error
    try:
        sock.settimeout(None if limit_s is None else min(limit_s, NO_LIMIT_S))
        sys.audit("http.client.connect", conn, conn.host, conn.port)
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses_of(
    conn: GovernedHTTPConnection, ends_at: float, attempt: Attempt | None, opening: Opening
) -> Sequence[Address]:
    host = conn._dns_host
    if not _can_be_asked_for(host):
        raise LocationParseError(f"'{host}', label empty or too long")
    if attempt is not None:
        attempt.phase = "dns"
    family = (
        urllib3.util.connection.allowed_gai_family()
    )  # looked up late: people replace it, or set HAS_IPV6
    found = resolver.addresses(host, conn.port, family, ends_at=ends_at, opening=opening)
    opening.go_on()
    return found


@lru_cache(maxsize=256)
def _can_be_asked_for(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _in_urllib3s_words(
    error: OSError, conn: HTTPConnection, limit_s: float | None, resolve_s: float | None
) -> Exception:
    """What urllib3 raises for *error*. *resolve_s*: the limit of the look-up, if that was under way."""
    if isinstance(error, socket.gaierror):
        return NameResolutionError(conn.host, conn, error)
    if isinstance(error, TimeoutError) and error.errno != errno.ETIMEDOUT:
        limits = f"connect timeout={limit_s}"
        if resolve_s is not None:
            limits = f"looking up its name; resolve timeout={resolve_s:g}, {limits}"
        return ConnectTimeoutError(conn, f"Connection to {conn.host} timed out. ({limits})")
    return NewConnectionError(conn, f"Failed to establish a new connection: {error}")
