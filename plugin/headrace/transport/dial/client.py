"""What one upstream's TLS connections go by."""

from __future__ import annotations

import functools
import socket
import ssl
import time
from dataclasses import replace
from math import inf
from typing import Any, Final, NoReturn

from headrace.clock import monotonic
from headrace.policy.counters import UpstreamCounters, add
from headrace.policy.frozen import frozen
from headrace.policy.identities import Name, names_of
from headrace.policy.plan import TlsPlan
from headrace.transport.dial.identity import require_identity
from headrace.transport.dial.sessions import Kept, Key, Sessions
from headrace.transport.dial.tls import context_for, is_own

# What stock urllib3 and requests set on every connection. Here it has no effect.
_IGNORED: Final = frozenset({"verify_mode", "check_hostname"})
# The methods of a context that only tell something.
_TELLING: Final = frozenset({"cert_store_stats", "get_ca_certs", "get_ciphers", "session_stats"})


class SealedContextError(ssl.SSLError):
    """Something tried to change the shared context of an upstream."""


@frozen
class _InForce:
    """What the next handshake goes by.

    Attributes:
        sessions: Those made with this context; None: every handshake is a full one.
        accepted: Names of which the certificate of the peer must have one; empty: OpenSSL compares that of the host.
        verify_mode: That of the context, which would make an enum of a number each time.
    """

    plan: TlsPlan
    context: ssl.SSLContext
    sessions: Sessions | None
    accepted: frozenset[Name]
    verify_mode: ssl.VerifyMode


class TlsClient:
    """What one upstream's TLS connections go by, in the place of an `ssl.SSLContext`. Thread-safe.

    It holds a context that others share, and lets nobody change it. urllib3 and requests write to the context that
    they are given. urllib3 sets `verify_mode` and ALPN for every new connection. requests has it load its own bundle,
    which would add all public CAs to a private one (failures.md 31). Those writes do nothing. Any other change raises
    SealedContextError, which is an `ssl.SSLError` and so stays in the family of errors that callers expect.

    It is no subclass: a class that somebody put into `ssl.SSLContext`, as truststore does, has its state elsewhere.

    Blocks when it is made (`context_for`).

    Args:
        counters: Where its handshakes are counted; None: they are not.

    Raises:
        TlsError: As `context_for`.
    """

    __slots__ = ("__weakref__", "_counters", "_now")

    _counters: UpstreamCounters | None
    _now: _InForce

    def __init__(self, plan: TlsPlan, counters: UpstreamCounters | None = None) -> None:
        object.__setattr__(self, "_counters", counters)
        object.__setattr__(self, "_now", _in_force(plan))

    def follow(self, plan: TlsPlan) -> None:
        """Go by *plan* from the next handshake on. Mutates, by one store; idempotent.

        Sessions go with the context that they were made with. Blocks if no context for *plan* is in use yet
        (`context_for`).

        Raises:
            TlsError: As `context_for`. Then what was in force stays in force.
        """
        before = self._now
        if plan == before.plan:
            return
        after = _in_force(plan)
        if after.context is before.context and plan.sessions == before.plan.sessions:
            after = replace(after, sessions=before.sessions)
        object.__setattr__(self, "_now", after)

    def without_sessions(self) -> TlsClient:
        """One that goes by the same, whose handshakes are full and are not counted.

        Raises:
            TlsError: As `context_for`.
        """
        return TlsClient(replace(self._now.plan, sessions=None))

    def forget_inherited(self) -> None:
        """In a forked child: keep sessions of its own. A thread that is not here may have held the parent's lock."""
        now = self._now
        object.__setattr__(self, "_now", replace(now, sessions=_sessions_of(now.plan, now.context)))

    @property
    def plan(self) -> TlsPlan:
        """What is in force."""
        return self._now.plan

    @property
    def verify_mode(self) -> ssl.VerifyMode:
        """As that of an `ssl.SSLContext`; urllib3 asks for it at each new connection."""
        return self._now.verify_mode

    @property
    def verifies_by_itself(self) -> bool:
        """Whether its handshake compares all that is to be: no class that somebody put into `ssl` has a hand in it."""
        return self._now.sessions is not None or is_own(type(self._now.context))

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """A TLS socket over *sock*, as `ssl.SSLContext.wrap_socket`. Blocks for the handshake.

        Which session is offered is not the caller's to say. Whoever gets the first answer over it asks
        `PatientSSLSocket.unread`.

        Raises:
            IdentityError: The peer is none of those that are accepted. The connection is closed.
        """
        now = self._now
        sessions, key = now.sessions, None
        offered: Kept | None = None
        if sessions is not None and server_hostname and do_handshake_on_connect and not server_side:
            key = _key_of(sock, server_hostname)
            if key is not None:
                offered = sessions.offer(key, now=monotonic(), wall=time.time())
        try:
            secured: Any = now.context.wrap_socket(
                sock,
                server_side=server_side,
                do_handshake_on_connect=do_handshake_on_connect,
                suppress_ragged_eofs=suppress_ragged_eofs,
                server_hostname=server_hostname,
                session=None if offered is None else offered.session,
            )
        except BaseException as error:
            if sessions is not None and key is not None and offered is not None:
                sessions.drop(key, offered)
                if type(error) is ValueError:  # "Session refers to a different SSLContext." (failures.md 34)
                    raise ssl.SSLError(str(error)) from error
            raise
        resumed = secured.session_reused
        if now.accepted:
            try:
                _require_handshake(resumed)
                require_identity(secured, now.accepted)
            except BaseException:
                secured.close()
                if sessions is not None and key is not None and offered is not None:
                    sessions.drop(key, offered)
                raise
        if resumed is not None and do_handshake_on_connect:  # None: there is no connection yet
            self._count(resumed=resumed)
            if (
                sessions is not None
                and key is not None
                and sessions.settle(key, offered, resumed=resumed, now=monotonic())
            ):
                secured.unread = Unread(sessions, key, offered)
        return secured  # type: ignore[no-any-return]

    def _count(self, *, resumed: bool) -> None:
        counters = self._counters
        if counters is not None:
            with counters.lock:
                add(counters.tls_handshakes, "yes" if resumed else "no")

    def wrap_bio(self, *args: Any, **kw: Any) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`: TLS within the TLS of a proxy needs it. Refused where identities are wanted."""
        now = self._now
        if now.accepted:
            _require_handshake(None)
        return now.context.wrap_bio(*args, **kw)

    def load_verify_locations(self, *args: Any, **kw: Any) -> None:
        """Does nothing."""

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Does nothing."""

    def __getattr__(self, name: str) -> Any:
        """What can be read of the context in force. Its methods, but for those that only tell something, refuse."""
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = getattr(self._now.context, name)
        if not callable(found) or name in _TELLING or isinstance(found, type):
            return found
        return lambda *args, **kw: _refuse(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _IGNORED:
            _refuse(name)

    def __delattr__(self, name: str) -> None:
        _refuse(name)

    def __repr__(self) -> str:
        return f"<TlsClient {self._now.context!r}>"


@frozen
class Unread:
    """A session that is to be kept once the first answer has begun. Only then is it there, under TLS 1.3."""

    sessions: Sessions
    key: Key
    offered: Kept | None

    def read(self, sock: Any) -> None:
        """Keep the session of *sock*. Takes 120 to 250 µs. Never raises."""
        sessions, key, offered = self.sessions, self.key, self.offered
        if not sessions.is_wanted(key, offered):
            return
        try:
            session = sock.session
            if session is None:  # it is closed
                return
            # `session is not None` says nothing: under TLS 1.3 there is an object before there is a ticket.
            works = session.has_ticket or (bool(session.id) and sock.version() != "TLSv1.3")
            hint_s, expires_at = session.ticket_lifetime_hint, _expires_at(sock)
        except (OSError, ValueError):
            return
        sessions.keep(
            key,
            session,
            offered,
            works=works,
            hint_s=hint_s,
            expires_at=expires_at,
            now=monotonic(),
            wall=time.time(),
        )


class BioHandshake:
    """One handshake of a `TlsClient` without a socket of its own, in the place of the context that a loop is given.

    What `TlsClient.wrap_socket` does for a blocking one. Owned by the loop.

    Args:
        sock: The connected socket beneath: which server it is of.
    """

    def __init__(self, client: TlsClient, sock: socket.socket, server_hostname: str) -> None:
        self._client = client
        self._now = now = client._now
        self._offered: Kept | None = None
        self._key: Key | None = None
        if now.sessions is not None and server_hostname:
            self._key = _key_of(sock, server_hostname)
            if self._key is not None:
                self._offered = now.sessions.offer(self._key, now=monotonic(), wall=time.time())

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`; which session is offered is not the caller's to say.

        One of another context is not offered after all (failures.md 34): uvloop would leave the socket open.
        """
        wrap = functools.partial(
            self._now.context.wrap_bio, incoming, outgoing, server_side, server_hostname=server_hostname
        )
        if self._offered is not None:
            try:
                return wrap(session=self._offered.session)
            except ValueError:
                self.failed()
                self._offered = None
        return wrap()

    def accept(self, made: ssl.SSLObject) -> Unread | None:
        """What keeps the session of *made*, whose handshake is done; None: that is not wanted. Before a byte is sent.

        Raises:
            IdentityError: The peer is none of those that are accepted.
        """
        now, sessions, key, offered = self._now, self._now.sessions, self._key, self._offered
        resumed = bool(made.session_reused)
        if now.accepted:
            require_identity(made, now.accepted)
        self._client._count(resumed=resumed)
        if sessions is None or key is None:
            return None
        if sessions.settle(key, offered, resumed=resumed, now=monotonic()):
            return Unread(sessions, key, offered)
        return None

    def failed(self) -> None:
        """There is no connection: what was offered is not offered again."""
        sessions = self._now.sessions
        if sessions is not None and self._key is not None and self._offered is not None:
            sessions.drop(self._key, self._offered)


def _expires_at(sock: Any) -> float:
    """When the certificate of the peer of *sock* is over, Unix time; never, where it was not verified.

    Raises:
        ValueError: It cannot be read.
    """
    certificate = sock.getpeercert()
    if certificate:
        return ssl.cert_time_to_seconds(certificate["notAfter"])
    if sock.context.verify_mode == ssl.CERT_NONE:
        return inf
    raise ValueError("the certificate cannot be read")


def _in_force(plan: TlsPlan) -> _InForce:
    context = context_for(plan)
    accepted = names_of(plan.identities)
    return _InForce(plan, context, _sessions_of(plan, context), accepted, context.verify_mode)


def _sessions_of(plan: TlsPlan, context: ssl.SSLContext) -> Sessions | None:
    # A class that somebody put into `ssl` verifies by itself, after the handshake. A resumed one does not bring all
    # that it may look at: there is no chain in a session, only the certificate of the peer.
    if plan.sessions is None or not is_own(type(context)):
        return None
    return Sessions(size=plan.sessions.size, ttl_s=plan.sessions.ttl_s)


def _require_handshake(resumed: bool | None) -> None:
    """Raise where there was no handshake yet: nobody would compare the identity of the peer after it."""
    if resumed is None:
        raise SealedContextError("tls.identities can only be compared once a handshake was made")


def _key_of(sock: socket.socket, server_hostname: str) -> Key | None:
    try:
        peer = sock.getpeername()
    except OSError:
        return None  # it is not connected, or not any more: the handshake will tell
    return (server_hostname, peer[1]) if isinstance(peer, tuple) else None


def trust_of(client: TlsClient) -> dict[str, Any]:
    """What urllib3's pools take as keyword arguments, to trust and present what *client* does."""
    trust: dict[str, Any] = {"ssl_context": client, "server_hostname": client.plan.server_name}
    if client.plan.identities:
        trust["assert_hostname"] = False  # urllib3 would compare the name of the host by itself
    return trust


def _refuse(what: str) -> NoReturn:
    raise SealedContextError(
        f"{what}: this TLS context is shared by all calls to an upstream and cannot be changed; "
        "change `tls:` of the upstream instead"
    )
