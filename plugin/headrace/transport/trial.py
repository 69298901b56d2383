"""Connections to one origin tried step by step, for somebody who wants to know what comes of each.

The look-up, the limits, the handshake and the words of its refusals are those of calls. Two things differ: every
address is tried, all at once, where a call takes the first to answer; and no request is sent. Under TLS 1.3 a server
says only after the handshake that it does not take the client certificate, so the first connection is listened to for
a moment. What the chain of a refused certificate is, an unverified handshake tells.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import inf
from typing import Any, Final

from headrace.clock import monotonic
from headrace.policy.attempt_end import Phase
from headrace.policy.dialling import interleaved
from headrace.policy.identities import offered_by
from headrace.policy.plan import Origin, TlsPlan, UpstreamPlan
from headrace.transport.dial.client import TlsClient
from headrace.transport.dial.identity import NO_TEXT
from headrace.transport.dial.opening import Opening
from headrace.transport.dial.resolve import ResolveTimeout, resolver
from headrace.transport.dial.sockets import Address
from headrace.transport.dial.tls import TlsError, context_for, is_own, issuer_of, subject_of
from headrace.transport.stock.faults import advice_on, fault_of
from headrace.transport.trial_steps import (
    Again,
    Certificate,
    Connected,
    Failed,
    LookedUp,
    Secured,
    Step,
    Tried,
)

LISTENS_S: Final = 1.0
"""Longest wait after a TLS 1.3 handshake for a refusal. A ticket ends it: servers send those once they accept."""

_LOOKS_S = 0.05
_NO_ISSUER = frozenset({2, 20, 21})
"""OpenSSL's X509_V_ERR_… of an issuer that is not found: 2 and 20 of any certificate, 21 of the only one."""
_OTHER_NAME = frozenset({62, 64})
"""The same of a certificate that is not the host's: by its name, by its address."""


def steps(plan: UpstreamPlan, origin: Origin) -> Iterator[Step]:
    """Try *origin*, one of those of *plan*: what came of each step as soon as it is over. Blocks, within `timeouts`."""
    secure = plan.tls if origin.scheme == "https" else None
    try:
        client = None if secure is None else TlsClient(secure)
    except TlsError as error:  # it could be loaded a moment ago
        yield Failed("local_error", str(error).partition("\n")[0])
        return
    began, limits = monotonic(), plan.timeouts
    ends_at = began + limits.connect_s
    try:
        addresses = resolver.addresses(
            plan.dns_name(origin),
            origin.port,
            _family(),
            ends_at=min(began + limits.resolve_s, ends_at),
            opening=Opening(),
        )
    except (OSError, UnicodeError) as error:
        yield _not_looked_up(error, plan, origin)
        return
    addresses = interleaved(addresses, family_of=lambda one: one[0])
    yield LookedUp(monotonic() - began, tuple(map(_shown, addresses)))
    with ExitStack() as stack:
        tried, found = _try_all(addresses, ends_at, limit_s=limits.connect_s, stack=stack)
        if found is None:
            yield _not_connected(tried)
            return
        yield Connected(tried)
        if client is not None:
            yield from _secure(client, plan, origin, *found)


def _family() -> socket.AddressFamily:
    from urllib3.util.connection import allowed_gai_family

    return allowed_gai_family()


def _not_looked_up(error: Exception, plan: UpstreamPlan, origin: Origin) -> Failed:
    limits = plan.timeouts
    if isinstance(error, ResolveTimeout):
        name, limit_s = min(
            ("resolve", limits.resolve_s), ("connect", limits.connect_s), key=lambda one: one[1]
        )
        text = f"{origin.host} was not looked up within {limit_s:g} s (timeouts.{name})"
        return Failed("resolve_timeout", text, "ask the name server by hand: it is silent, or slow")
    if isinstance(error, UnicodeError):
        return Failed("local_error", f"{origin.host}: label empty or too long")
    fault, _ = fault_of(error, "dns")
    advice = "is the name in base_url right, and known to the name server of this machine?"
    return Failed(fault, f"{origin.host} could not be looked up: {error}", advice)


# --- TCP ------------------------------------------------------------------------------------------------


def _try_all(
    addresses: Sequence[Address], ends_at: float, *, limit_s: float, stack: ExitStack
) -> tuple[tuple[Tried, ...], tuple[socket.socket, Address] | None]:
    """What came of each of *addresses*, all tried at once, and the first of them that has answered. Blocks.

    Args:
        stack: Closes what is returned.
    """
    came: dict[int, Tried] = {}
    sockets: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        began = monotonic()

        def settle(index: int, number: int) -> None:
            problem = None if number == 0 else _problem(number)
            came[index] = Tried(_shown(addresses[index]), monotonic() - began, problem)

        for index, (family, kind, proto, _, address) in enumerate(addresses):
            try:
                sock = stack.enter_context(socket.socket(family, kind, proto))
                sock.setblocking(False)
                number = sock.connect_ex(address)
            except OSError as error:  # EAFNOSUPPORT without IPv6
                settle(index, error.errno or errno.EIO)
                continue
            sockets[index] = sock
            if number in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                selector.register(sock, selectors.EVENT_WRITE, index)
            else:
                settle(index, number)
        while selector.get_map() and (left_s := ends_at - monotonic()) > 0.0:
            for key, _ in selector.select(left_s):
                selector.unregister(key.fileobj)
                sock = sockets[key.data]
                settle(key.data, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        for index in sockets.keys() - came.keys():
            text = f"timed out after {limit_s:g} s (timeouts.connect): no answer at all"
            came[index] = Tried(_shown(addresses[index]), monotonic() - began, text)
    tried = tuple(came[index] for index in range(len(addresses)))
    best = next((index for index in range(len(addresses)) if came[index].problem is None), None)
    for index, sock in sockets.items():
        if index != best:
            sock.close()
    return tried, None if best is None else (sockets[best], addresses[best])


def _not_connected(tried: tuple[Tried, ...]) -> Failed:
    problems = [*dict.fromkeys(one.problem for one in tried if one.problem)]
    advice = "is the service up, and are host and port of base_url right?"
    if any("timed out" in problem for problem in problems):
        advice = "nothing comes back: a firewall, a wrong address, or a host that is down"
    return Failed("connect_failure", f"no address connects: {'; '.join(problems)}", advice, tried=tried)


def _problem(number: int) -> str:
    if number == errno.ECONNREFUSED:
        return "refused: nothing listens on this port"
    return os.strerror(number).lower()


def _shown(address: Address) -> str:
    host, port = address[4][:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- TLS ------------------------------------------------------------------------------------------------


def _secure(
    client: TlsClient, plan: UpstreamPlan, origin: Origin, sock: socket.socket, address: Address
) -> Iterator[Step]:
    rules, limit_s = client.plan, plan.timeouts.tls_handshake_s
    server_name = rules.server_name or origin.host.partition("%")[0]
    phase: Phase = "tls"
    asked: list[object] | None = None
    try:
        began = monotonic()
        with _noting_requests(rules) as asked:
            secured = _shake_hands(client, sock, server_name, limit_s)
        with secured:
            took_s = monotonic() - began
            phase = "sent"
            yield Secured(
                _shown(address),
                took_s,
                secured.version() or "",
                (secured.cipher() or ("",))[0],
                server_name,
                _chain_of(secured),
                None if asked is None else bool(asked),
            )
            _listen(secured)
            if rules.sessions is None:
                yield Again(None, 0.0)
                return
            if secured.unread is not None:
                secured.unread.read(secured)
        phase = "tcp"
        with socket.socket(*address[:3]) as second:
            second.settimeout(plan.timeouts.connect_s)
            second.connect(address[4])
            phase, began = "tls", monotonic()
            with _shake_hands(client, second, server_name, limit_s) as again:
                yield Again(bool(again.session_reused), monotonic() - began)
    except (OSError, ValueError) as error:  # the latter: a name that OpenSSL does not take
        chain: tuple[Certificate, ...] = ()
        if isinstance(error, ssl.SSLCertVerificationError):
            chain = _unverified_chain(rules, address, server_name, plan)
        presents = rules.cert is not None
        failed = _not_secured(error, phase, limit_s=limit_s, presents=presents, chain=chain)
        if phase == "tls" and asked and failed.advice is not None:
            said = "it got that of tls.cert" if presents else "there is none to give it"
            failed = replace(
                failed, text=f"{failed.text}; the server asks for a client certificate, and {said}"
            )
        yield failed


def _shake_hands(client: TlsClient, sock: socket.socket, server_name: str, limit_s: float) -> Any:
    sock.settimeout(limit_s)
    return client.wrap_socket(sock, server_hostname=server_name)


@contextmanager
def _noting_requests(rules: TlsPlan) -> Iterator[list[object] | None]:
    """The certificate requests that come meanwhile; None: they cannot be seen.

    Python has no public word for it. Its hook for messages is its own, for debugging (`_msg_callback`).
    """
    context: Any = context_for(rules)
    if not is_own(type(context)) or not hasattr(type(context), "_msg_callback"):
        yield None
        return
    seen: list[object] = []

    def note(_: Any, direction: str, __: Any, ___: Any, message: Any, ____: bytes) -> None:
        if direction == "read" and getattr(message, "name", "") == "CERTIFICATE_REQUEST":
            seen.append(message)

    context._msg_callback = note
    try:
        yield seen
    finally:
        context._msg_callback = None


def _listen(secured: Any) -> None:
    """Raise what the server says against us right after the handshake. Blocks, for LISTENS_S at most.

    Raises:
        OSError: It refuses, or has hung up.
    """
    if secured.version() != "TLSv1.3":
        return
    ends_at = monotonic() + LISTENS_S
    secured.settimeout(_LOOKS_S)
    while monotonic() < ends_at:
        try:
            if not secured.recv(1):
                raise ConnectionResetError(errno.ECONNRESET, "the server hangs up right after the handshake")
            return
        except TimeoutError:
            session = secured.session
            if session is not None and session.has_ticket:
                return


def _not_secured(
    error: Exception, phase: Phase, *, limit_s: float, presents: bool, chain: tuple[Certificate, ...]
) -> Failed:
    fault, cut = fault_of(error, phase)
    if cut and phase == "tls":
        text = f"the handshake was not over within {limit_s:g} s (timeouts.tls_handshake)"
        return Failed(
            fault, text, "the port connects, and then says nothing: is it one for TLS, and its server well?"
        )
    advice = advice_on(error, phase, presents=presents)
    if phase == "tcp":
        return Failed(fault, f"a second connection failed: {error}")
    return Failed(fault, in_words(error) + _about(error, chain), advice, chain=chain)


def in_words(error: Exception) -> str:
    """*error* of a handshake without the marks of OpenSSL: what its errors say, and where in its source, is no help."""
    if isinstance(error, ssl.SSLEOFError) or getattr(error, "reason", "") == "UNEXPECTED_EOF_WHILE_READING":
        return "the server hangs up during the handshake"
    if isinstance(error, ssl.SSLCertVerificationError):
        # An IdentityError has no code, and says more as a whole.
        code = getattr(error, "verify_code", 0)
        return str(getattr(error, "verify_message", "") if code else error.args[-1])
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def _about(error: Exception, chain: tuple[Certificate, ...]) -> str:
    code = getattr(error, "verify_code", 0)
    if chain and code in _OTHER_NAME:
        return f"; it names {', '.join(chain[0].names) or 'nobody'}"
    if not chain or code not in _NO_ISSUER:
        return ""
    issuer = chain[-1].issuer or "nobody"
    if len(chain) == 1:
        return f"; the server sends this one certificate alone, without that of its issuer ({issuer})"
    return f"; the server sends {len(chain)} certificates, and the last is issued by {issuer}, which is not trusted"


def _unverified_chain(
    rules: TlsPlan, address: Address, server_name: str, plan: UpstreamPlan
) -> tuple[Certificate, ...]:
    """What the server of *address* presents; () where it cannot be had."""
    limits = plan.timeouts
    try:
        client = TlsClient(replace(rules, verify=False, identities=(), sessions=None))
        with socket.socket(*address[:3]) as sock:
            sock.settimeout(limits.connect_s)
            sock.connect(address[4])
            with _shake_hands(client, sock, server_name, limits.tls_handshake_s) as secured:
                return _chain_of(secured)
    except OSError:
        return ()


def _chain_of(secured: Any) -> tuple[Certificate, ...]:
    # `ssl` has a public word for it from 3.13 on, which gives no more than the bytes.
    get = getattr(secured._sslobj, "get_unverified_chain", None)
    if get is not None:
        return tuple(_certificate(one.get_info) for one in get() or ())
    own = _certificate(secured.getpeercert)
    return () if own is _NOTHING else (own,)


_NOTHING: Final = Certificate("", "", (), -inf, inf)


def _certificate(get_info: Callable[[], Mapping[str, Any]]) -> Certificate:
    try:
        info = get_info()
        if not info:  # of a peer that was not verified
            return _NOTHING
        return Certificate(
            subject_of(info),
            issuer_of(info),
            offered_by(info),
            ssl.cert_time_to_seconds(info["notBefore"]) if "notBefore" in info else -inf,
            ssl.cert_time_to_seconds(info["notAfter"]) if "notAfter" in info else inf,
        )
    except ValueError:  # a name that is no text, a date that is none: calls do not look at them
        return replace(_NOTHING, names=(NO_TEXT,))
