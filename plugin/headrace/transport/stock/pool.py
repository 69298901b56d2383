"""urllib3's pools, subclassed: the lease layer hands out the connections, urllib3 does the wire.

urllib3's own queue remains as an open/closed flag only. Hooks used: `_get_conn`,
`_put_conn`, `_new_conn`, `urlopen`, and `ConnectionCls.connect/close`.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any
from weakref import WeakKeyDictionary

from urllib3._collections import HTTPHeaderDict
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool, log
from urllib3.exceptions import ClosedPoolError, EmptyPoolError
from urllib3.response import BaseHTTPResponse

from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters
from headrace.policy.frozen import slotted
from headrace.policy.plan import Origin, TlsPlan, UpstreamPlan
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.dial.client import TlsClient, trust_of
from headrace.transport.dial.liveness import is_alive
from headrace.transport.dial.opening import shut
from headrace.transport.foreign import noting
from headrace.transport.lease.collector import collector
from headrace.transport.lease.pool import LeaseClosed, LeasePool, LeaseRejected, LeaseTimeout
from headrace.transport.standstill import is_readable
from headrace.transport.stock.cassette import plays_of, recorder_in_use
from headrace.transport.stock.connection import (
    GovernedHTTPConnection,
    GovernedHTTPSConnection,
    socket_options,
)
from headrace.transport.stock.library_headers import is_librarys
from headrace.transport.stock.timeout import AttemptTimeout
from headrace.transport.wire.exchange import exchange, may_speak
from headrace.transport.wire.request import host_line

BLOCKSIZE = 16 * 1024
"""Bytes of a file that are read at a time: urllib3's own default."""


class _EmptyQueue:
    """Stands in for urllib3's queue: `pool.pool is None` still means closed, and nothing is stored."""

    def __init__(self, maxsize: int = 0) -> None:
        pass

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Accepts urllib3's placeholders and forgets them."""

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """Always empty."""
        raise queue.Empty

    def qsize(self) -> int:
        """Nothing is ever in here; ask the lease pool."""
        return 0


@slotted
class InForce:
    """What new connections go by: of the plan now in force. An `OwnClassPool` has the same object as its base.

    Attributes:
        dns_name: What DNS is asked for: the host, with its final dot where the file writes one.
        fingerprint: Of the TLS files that its connections are made with; "" without TLS.
        speaks: Requests are written, and answers read, by `transport.wire` wherever that can be.
    """

    dns_name: str
    acquire_s: float
    connect_s: float
    resolve_s: float
    handshake_s: float
    speaks: bool
    fingerprint: str = ""


class GovernedHTTPPool(HTTPConnectionPool):
    """The connections of one upstream. Thread-safe: all bookkeeping is in `leases`.

    Attributes:
        leases: Which call holds which connection; the truth about inuse, idle and waiting.
        in_force: Mutated by each `follow`.
        host_line: The Host header of its requests.
        own_classes: By the pool of a caller with a connection class of its own, what its calls go by (`own_class`);
            None: there was none yet.
    """

    ConnectionCls = GovernedHTTPConnection
    QueueCls = _EmptyQueue  # type: ignore[assignment]
    leases: LeasePool[GovernedHTTPConnection]
    own_classes: WeakKeyDictionary[HTTPConnectionPool, Any] | None = None
    in_force: InForce
    origin: Origin
    host_line: str

    def _new_conn(self) -> GovernedHTTPConnection:
        # Stock's method gives the pool's own TLS fields to the connection, and requests' cert_verify writes to
        # those on every call. Here, nothing that a call passes changes the trust of a governed connection.
        self.num_connections += 1
        if log.isEnabledFor(logging.DEBUG):  # urllib3's logger, and its words
            log.debug(
                "Starting new %s connection (%d): %s:%s",
                self.scheme.upper(),
                self.num_connections,
                self.host,
                self.port or ("443" if self.scheme == "https" else "80"),
            )
        # urllib3's connection gives a final dot to DNS, and leaves it out everywhere else.
        conn = self.ConnectionCls(host=self.in_force.dns_name, port=self.port, **self.conn_kw)
        conn.leases = self.leases
        conn.handshake_s = self.in_force.handshake_s
        conn.resolve_s = self.in_force.resolve_s
        return conn

    def _get_conn(self, timeout: float | None = None) -> GovernedHTTPConnection:
        attempt = current_attempt.get()
        lease = None
        if HTTPConnectionPool.ConnectionCls is not HTTPConnection and (
            recorder := recorder_in_use(self.scheme or "http")
        ):
            return self._recorded(recorder, attempt)
        if attempt is not None and attempt.pool is self:
            lease, attempt.lease = attempt.lease, None
            if lease is None and attempt.cut:
                # After this error nothing is tried again.
                raise EmptyPoolError(self, "the time of this attempt is up")
        if lease is None:
            # A caller's own urllib3 retries, or urlopen() on the pool itself: these wait like all other calls.
            try:
                lease = self.leases.acquire(
                    self.in_force.acquire_s if timeout is None else timeout,
                    owner=None if attempt is None else attempt.owner,
                )
            except (LeaseTimeout, LeaseRejected) as error:
                raise EmptyPoolError(self, str(error)) from None
            except LeaseClosed as error:
                raise ClosedPoolError(self, str(error)) from None
            if attempt is not None and attempt.pool is self:
                attempt.token = lease.token
                if attempt.cut:  # during the wait: the token that the deadline thread knew had ended
                    self.leases.give_back(lease, reusable=True)
                    raise EmptyPoolError(self, "the time of this attempt is up")
        conn = lease.conn
        if conn is None:
            conn = lease.conn = self._new_conn()
        elif attempt is not None:
            attempt.phase = "sent"
        conn.lease = lease
        return conn

    def _recorded(self, recorder: Any, attempt: Attempt | None) -> GovernedHTTPConnection:
        """A connection of a recorder's. The attempt keeps its lease, which goes back unused."""
        if attempt is not None and attempt.pool is self:
            attempt.phase = "sent"
            attempt.was_played = plays_of(recorder)
        conn: GovernedHTTPConnection = recorder(
            host=self.host, port=self.port, **self.conn_kw
        )  # as urllib3 sees it
        return conn

    def _put_conn(self, conn: Any) -> None:
        # None: urllib3 closed the connection, and the lease went back with that.
        if conn is None:
            return
        if not isinstance(conn, GovernedHTTPConnection):  # a recorder's
            conn.close()
            return
        # The connection keeps the lease that is over. Giving it back again does nothing. If it were taken off the
        # connection first, an interrupt after that would lose the slot.
        if conn.lease is not None:
            self.leases.give_back(
                conn.lease,
                reusable=is_between_answers(conn),
                reason="dead" if _had_its_last_answer(conn) else "error",
            )

    def urlopen(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *args: Any,
        **kw: Any,
    ) -> BaseHTTPResponse:
        """One exchange over a leased connection, with the headers of the attempt added. Blocks."""
        attempt = current_attempt.get()
        if attempt is not None and attempt.headers:
            headers = with_defaults(self.headers if headers is None else headers, attempt.headers)
        if (
            attempt is not None
            and not args
            and (attempt.pieces is not None or may_speak(attempt, self, body, kw))
        ):
            answer = exchange(
                self,
                attempt,
                method,
                url,
                body,
                self.headers if headers is None else headers,
                retries=kw["retries"],
                decode_content=kw.get("decode_content", True),
                enforce_content_length=kw.get("enforce_content_length", True),
            )
            if answer is not None:
                return answer
        if kw.get("timeout") is attempt is not None:
            kw["timeout"] = AttemptTimeout(attempt)
        if attempt is not None and body is not None and type(body) is not bytes:
            body = noting(body, attempt, blocksize=self.conn_kw.get("blocksize", BLOCKSIZE))
        if args:  # stock's loop, calling itself
            return super().urlopen(method, url, body, headers, *args, **kw)
        # By keyword, as callers do: a wrapper of stock's urlopen (OpenTelemetry's first instrumentations) may add
        # headers of its own, and looks for ours only there.
        return super().urlopen(method, url, body, headers=headers, **kw)

    def _validate_conn(self, conn: Any) -> None:
        # Connect before there is a request. Stock connects while it sends. An error would then have the whole
        # request, with its secrets, in the frames of http.client, and crash reporters ship those.
        if conn.sock is None:
            conn.connect()

    def is_alive(self, conn: GovernedHTTPConnection | None) -> bool:
        """Whether the peer of an idle connection has neither closed it nor sent anything. Does not block."""
        return conn is not None and is_alive(conn)

    def has_arrived(self, token: Any) -> bool:
        """Whether something unread has arrived for the lease with *token*. Does not block."""
        # Without the lock: a look at a connection that was leased again by now does no harm.
        lease = None if token is None else token()
        conn = None if lease is None else lease.conn
        return conn is not None and is_readable(conn.sock or conn.answering)

    def open_idle(self) -> None:
        """Make one connection, TLS included, ahead of need. Blocks for `connect_s` and `handshake_s`.

        Raises:
            HTTPError, OSError: The connection could not be made.
        """
        generation = self.leases.generation  # before the handshake begins
        conn = self._new_conn()
        conn.timeout = self.in_force.connect_s
        try:
            conn.connect()
        except BaseException:
            conn.close()
            raise
        self.leases.offer(conn, generation=generation)

    def try_connection(self, trust: SSLContext | None = None) -> dict[str, Any]:
        """The peer's certificate, as `getpeercert()` has it, by one connection that is closed again; {}: unreadable.

        The handshake is a full one. Blocks for `connect_s` and `handshake_s`, as `open_idle` does.

        Args:
            trust: A context to connect with, under the name of the host; None: as the rules have it.

        Raises:
            HTTPError, OSError: The connection could not be made.
        """
        conn: Any = self._new_conn()
        conn.timeout = self.in_force.connect_s
        if trust is not None:
            conn.ssl_context, conn.server_hostname, conn.assert_hostname = trust, None, None
        elif isinstance(conn.ssl_context, TlsClient):
            conn.ssl_context = conn.ssl_context.without_sessions()
        try:
            conn.connect()
            try:
                return conn.sock.getpeercert() or {}
            except UnicodeDecodeError:  # a name in it is no text
                return {}
        finally:
            conn.close()

    def follow(self, plan: UpstreamPlan) -> tuple[int, int] | None:
        """Go by *plan*, which has the TLS rules and the `tcp_keepalive` that this pool was built with.

        Returns:
            As `rotate`.
        """
        self.limit(plan)
        return None if plan.tls is None else self.rotate(plan.tls)

    def limit(self, plan: UpstreamPlan) -> None:
        """Go by the limits of *plan*; connections stay what they are made with."""
        now, limits = self.in_force, plan.timeouts
        now.dns_name = plan.dns_name(self.origin)
        now.acquire_s = limits.acquire_s
        now.connect_s = limits.connect_s
        now.resolve_s = limits.resolve_s
        now.handshake_s = limits.tls_handshake_s
        now.speaks = plan.pool.parser == "auto"
        self.leases.follow(plan.pool)

    def rotate(self, plan: TlsPlan) -> tuple[int, int] | None:
        """Let go of the connections, unless they were made with what *plan* has. New ones are made with that already.

        Returns:
            How many were closed, and how many are in use; None: there was nothing to do.
        """
        if self.in_force.fingerprint == plan.fingerprint:
            return None
        self.in_force.fingerprint = plan.fingerprint
        return self.leases.rotate(plan.rotation_drain_s)

    def close(self) -> None:
        """Refuse new leases and close idle connections; connections in use are closed when they come back."""
        self.pool = None
        self.leases.retire()

    def forget_inherited(self) -> None:
        """Give up the connections in a forked child: they are the parent's. The peer is told nothing."""
        self.leases.forget_inherited()

    def __str__(self) -> str:
        return f"{self.scheme.upper()}ConnectionPool(host={self.host!r}, port={self.port!r})"  # as errors name it

    def __repr__(self) -> str:
        leases = getattr(self, "leases", None)  # not yet there while it is built
        return f"<{type(self).__name__} {self.scheme}://{self.host}:{self.port} {leases!r}>"


class GovernedHTTPSPool(GovernedHTTPPool, HTTPSConnectionPool):  # type: ignore[misc]  # one _new_conn for both
    """The same over TLS."""

    ConnectionCls = GovernedHTTPSConnection


def with_defaults(headers: Mapping[str, str], extra: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """A copy of *headers* with those of *extra* that it does not have (names without regard to case).

    What the library put there by itself gives way, too.
    """
    if type(headers) is dict:
        if not headers:
            return dict(extra)
        merged: Any = headers.copy()
        present = {name.lower(): name for name in headers}
        for name, value in extra:
            own = present.get(name.lower())
            if own is None or is_librarys(name, headers[own]):
                merged[own or name] = value
        return merged  # type: ignore[no-any-return]
    if isinstance(headers, HTTPHeaderDict) or not hasattr(headers, "copy"):
        merged = _Headers(headers)
    else:
        merged = headers.copy()
    for name, value in extra:
        if name not in merged or is_librarys(name, merged[name]):
            merged[name] = value
    return merged  # type: ignore[no-any-return]


class _Headers(HTTPHeaderDict):
    """urllib3's headers without its repr, which joins the values and so shows secret ones."""

    def __getitem__(self, key: str) -> str:
        # Stock's joins the values even if there is one. botocore's are bytes, and it looks at them.
        values = self.getlist(key)
        return values[0] if len(values) == 1 else super().__getitem__(key)

    def __repr__(self) -> str:
        return f"HTTPHeaderDict({list(self)})"


def build_pool(
    plan: UpstreamPlan, origin: Origin, counters: UpstreamCounters, *, tls: TlsClient | None = None
) -> GovernedHTTPPool:
    """A pool for *origin*, one of those that *plan* claims; opens no socket.

    Args:
        tls: What its connections go by; None: they are plain.
    """
    leases: LeasePool[GovernedHTTPConnection] = LeasePool(
        plan.pool,
        counters,
        clock=monotonic,
        is_alive=is_alive,
        close=_close,
        abort=_abort,
        discard=_discard,
        collect=collector.ask,
    )
    options = socket_options(plan.pool.tcp_keepalive)
    pool: GovernedHTTPPool
    if tls is None:
        pool = GovernedHTTPPool(origin.host, origin.port, socket_options=options)
    else:
        trust = trust_of(tls)
        pool = GovernedHTTPSPool(origin.host, origin.port, socket_options=options, **trust)
        pool.conn_kw.update(trust)  # stock's `__init__` keeps some of it elsewhere, where calls can write
    pool.origin = origin
    pool.leases = leases
    pool.in_force = InForce("", 0.0, 0.0, 0.0, 0.0, speaks=False)
    pool.host_line = host_line(origin)
    pool.limit(plan)
    if tls is not None:  # which follows the plan when that takes force, and then the pool does
        pool.in_force.fingerprint = tls.plan.fingerprint
    return pool


def is_between_answers(conn: GovernedHTTPConnection) -> bool:
    """Whether the next request may be sent on *conn*: it is open, and no answer is half read (released early) or due.

    http.client takes a 1xx other than 100 for the answer. The real answer follows, or another protocol does:
    the next call must not get it.
    """
    answer = conn._HTTPConnection__response  # type: ignore[attr-defined]  # http.client keeps it there
    return conn.sock is not None and (
        answer is None or (answer.isclosed() and answer.status >= 200 and not answer.is_last)
    )


def _had_its_last_answer(conn: GovernedHTTPConnection) -> bool:
    """Whether an answer was read whole, and the peer has said, or shown, that it is the last one."""
    answer = conn._HTTPConnection__response  # type: ignore[attr-defined]
    return conn.sock is None or (answer is not None and answer.isclosed() and answer.is_last)


def _close(conn: GovernedHTTPConnection) -> None:
    conn.close()


def _discard(conn: GovernedHTTPConnection) -> None:
    """Close this process's copy of an inherited socket. No shutdown, no TLS alert: the parent goes on with its own."""
    sock, conn.sock, conn.lease = conn.sock, None, None
    if sock is not None and (descriptor := sock.detach()) >= 0:
        os.close(descriptor)


def _abort(conn: GovernedHTTPConnection) -> None:
    """Break off what the holder of *conn* is doing with it; the holder closes it."""
    opening = conn.opening
    if opening is not None:
        opening.break_off()
    sock = conn.sock or conn.answering
    if sock is not None:
        shut(sock)
