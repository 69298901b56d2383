"""What one upstream's TLS connections go by."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from headrace.policy.plan import TlsPlan
from headrace.transport.dial.tls import context_for

# What stock urllib3 and requests set on every connection. Here it has no effect.
_IGNORED: Final = frozenset({"verify_mode", "check_hostname"})
# The methods of a context that only tell something.
_TELLING: Final = frozenset({"cert_store_stats", "get_ca_certs", "get_ciphers", "session_stats"})


class SealedContextError(ssl.SSLError):
    """Something tried to change the shared context of an upstream."""


@dataclass(frozen=True, slots=True)
class _InForce:
    """What the next handshake goes by."""

    plan: TlsPlan
    context: ssl.SSLContext


class TlsClient:
    """What one upstream's TLS connections go by, in the place of an `ssl.SSLContext`. Thread-safe.

    It holds a context that others share, and lets nobody change it. urllib3 and requests write to the context that
    they are given. urllib3 sets `verify_mode` and ALPN for every new connection. requests has it load its own bundle,
    which would add all public CAs to a private one (failures.md 31). Those writes do nothing. Any other change raises
    SealedContextError, which is an `ssl.SSLError` and so stays in the family of errors that callers expect.

    It is no subclass: a class that somebody put into `ssl.SSLContext`, as truststore does, has its state elsewhere.

    Blocks when it is made (`context_for`).

    Raises:
        TlsError: As `context_for`.
    """

    __slots__ = ("__weakref__", "_now")

    _now: _InForce

    def __init__(self, plan: TlsPlan) -> None:
        object.__setattr__(self, "_now", _InForce(plan, context_for(plan)))

    def follow(self, plan: TlsPlan) -> None:
        """Go by *plan* from the next handshake on. Mutates, by one store; idempotent.

        Blocks if no context for *plan* is in use yet (`context_for`).

        Raises:
            TlsError: As `context_for`. Then what was in force stays in force.
        """
        if plan != self._now.plan:
            object.__setattr__(self, "_now", _InForce(plan, context_for(plan)))

    @property
    def plan(self) -> TlsPlan:
        """What is in force."""
        return self._now.plan

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """A TLS socket over *sock*, as `ssl.SSLContext.wrap_socket`. Blocks for the handshake."""
        return self._now.context.wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=server_hostname,
        )

    def wrap_bio(self, *args: Any, **kw: Any) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`: TLS within the TLS of a proxy needs it."""
        return self._now.context.wrap_bio(*args, **kw)

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


def trust_of(client: TlsClient) -> dict[str, Any]:
    """What urllib3's pools take as keyword arguments, to trust and present what *client* does."""
    return {"ssl_context": client, "server_hostname": client.plan.server_name}


def _refuse(what: str) -> NoReturn:
    raise SealedContextError(
        f"{what}: this TLS context is shared by all calls to an upstream and cannot be changed; "
        "change `tls:` of the upstream instead"
    )
