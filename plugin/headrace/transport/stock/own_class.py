"""A caller's own connection class, with ours below it: how an SDK's connections are governed and stay the SDK's.

botocore, for one, has urllib3's pools make connections that wait for `100 Continue` by themselves. A class made here
has theirs on top and ours beneath, so that each `super()` of theirs finds ours before urllib3's. That is sound where
theirs changes what is written, and only adds to what ours do: send, close, read a head. A class that dials by itself
is no such class.

The connections are leased from the upstream's pool and count towards its size. They belong to one `OwnClassPool`, which
stands beside one pool of one manager: no other caller gets them, and that caller gets no others.
"""

from __future__ import annotations

import http.client
import ssl
from functools import lru_cache
from types import FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import urllib3.connection
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import EmptyPoolError
from urllib3.response import HTTPResponse

from headrace.transport.attempt import current_attempt
from headrace.transport.stock.connection import GovernedHTTPConnection, GovernedHTTPSConnection
from headrace.transport.stock.pool import GovernedHTTPPool

_STOCK: Final = frozenset({urllib3.connection.__name__, http.client.__name__, "builtins"})
# Written into every class, or of no effect on a connection.
SAYS_NOTHING: Final = frozenset(
    {"__annotations__", "__dict__", "__doc__", "__firstlineno__", "__module__", "__orig_bases__"}
    | {"__parameters__", "__qualname__", "__repr__", "__static_attributes__", "__str__", "__weakref__"}
)
# What a request is written with: all of it goes out by `send`.
_WRITES: Final = frozenset(
    {"_send_output", "_send_request", "endheaders", "putheader", "putrequest", "request", "request_chunked"}
)
# Where a connection leads and whom it trusts. What their `__init__` makes of these is not what the rule says.
_SETTLED: Final = (
    *(
        "host",
        "port",
        "_dns_host",
        "source_address",
        "socket_options",
        "proxy",
        "proxy_config",
        "ssl_context",
    ),
    *("ca_certs", "ca_cert_dir", "ca_cert_data", "cert_reqs", "cert_file", "key_file", "key_password"),
    *("assert_hostname", "assert_fingerprint", "server_hostname"),
    *("ssl_version", "ssl_minimum_version", "ssl_maximum_version"),
)
# Ours do their part in these, so theirs must call the next one.
_ADDED_TO: Final = frozenset({"__init__", "close", "getresponse", "send"})


class _OverTheirs:
    """The top of a class made here: what has to be known of an answer whatever class it has."""

    def getresponse(self) -> HTTPResponse:
        response: HTTPResponse = super().getresponse()  # type: ignore[misc]
        answer: Any = self._HTTPConnection__response  # type: ignore[attr-defined]
        if answer is not None and not hasattr(answer, "is_last"):
            # An answer class of theirs: nobody has looked for bytes beyond its end.
            answer.is_last = True
            attempt = current_attempt.get()
            if attempt is not None:
                attempt.answered = True
        return response


@lru_cache(maxsize=64)
def governed_over(theirs: type[Any]) -> type[GovernedHTTPConnection] | None:
    """The class of *theirs* with ours below it; None where that would not be sound."""
    ours = GovernedHTTPSConnection if issubclass(theirs, HTTPSConnection) else GovernedHTTPConnection
    if not issubclass(theirs, HTTPConnection) or issubclass(theirs, GovernedHTTPConnection):
        return None
    for kind in theirs.__mro__:
        if kind.__module__ not in _STOCK and not all(
            _is_sound(name, value, ours) for name, value in vars(kind).items()
        ):
            return None
    try:
        governed = type(f"Governed{theirs.__name__}", (_OverTheirs, theirs, ours), {})
    except TypeError:  # their layouts, or the order of their bases, do not go together
        return None
    settings: dict[str, Any] = {}
    if ours is GovernedHTTPSConnection:
        settings["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:  # a constructor opens nothing
        is_same = _are_settled_alike(governed("trial.invalid", **settings), ours("trial.invalid", **settings))
    except Exception:
        return None
    return governed if is_same else None


def _is_sound(name: str, value: object, ours: type) -> bool:
    if name in SAYS_NOTHING or name in _WRITES or not hasattr(ours, name):
        return True
    return name in _ADDED_TO and isinstance(value, FunctionType) and _calls_next(value, name)


def _are_settled_alike(conn: HTTPConnection, other: HTTPConnection) -> bool:
    """Whether both lead to the same peer and trust the same."""
    return all(getattr(conn, name, None) == getattr(other, name, None) for name in _SETTLED)


def _calls_next(function: FunctionType, name: str) -> bool:
    """Whether *function* has a `super().<name>` in it. A base that is named would pass ours over."""
    code = function.__code__
    return "__class__" in code.co_freevars and name in code.co_names


class OwnClassPool(GovernedHTTPPool):
    """A caller's face of an upstream's pool: the same leases, over connections of the caller's class.

    It is the owner of its connections. They are closed when it is gone, and it goes with the pool of the manager that
    it was made for.

    Attributes:
        base: The upstream's pool, referred to weakly.
        theirs: The class that the caller has asked for.
    """

    base: ref[GovernedHTTPPool]
    theirs: type[HTTPConnection]

    def __init__(
        self,
        base: GovernedHTTPPool,
        theirs: type[HTTPConnection],
        governed: type[GovernedHTTPConnection],
    ) -> None:
        # Stock's `__init__` is not called: all is as in the upstream's pool. What a reload changes there is in
        # objects that both have; a plain value would be the one of today for ever.
        vars(self).update(vars(base))
        self.scheme = base.scheme
        self.base = ref(base)  # a cycle otherwise
        self.theirs = theirs
        self.ConnectionCls = governed

    def _get_conn(self, timeout: float | None = None) -> GovernedHTTPConnection:
        attempt = current_attempt.get()
        lease = None
        if attempt is not None and attempt.pool is self.base():
            lease, attempt.lease = attempt.lease, None
        if attempt is None or lease is None:
            raise EmptyPoolError(self, "the time of this attempt is up")
        conn: GovernedHTTPConnection | None = lease.conn
        if conn is None:
            self.leases.claim(lease, self)
            lease.connection.conn = conn = self._new_conn()
        else:
            attempt.phase = "sent"
        conn.lease = lease
        return conn

    def _new_conn(self) -> GovernedHTTPConnection:
        conn = super()._new_conn()
        ours = GovernedHTTPSConnection if isinstance(conn, HTTPSConnection) else GovernedHTTPConnection
        if not _are_settled_alike(conn, ours(host=self.in_force.dns_name, port=self.port, **self.conn_kw)):
            # Its constructor did something else for the trial (`governed_over`). Better no call than another trust.
            raise ssl.SSLError(
                f"{self.theirs.__name__} settles where it leads or whom it trusts: not governed"
            )
        return conn

    def __str__(self) -> str:
        return f"{self.scheme.upper()}ConnectionPool(host={self.host!r}, port={self.port!r})"


def over_own_class(base: GovernedHTTPPool, caller: HTTPConnectionPool, theirs: Any) -> OwnClassPool | None:
    """What calls through *caller*, whose connections are of class *theirs*, go by to the upstream of *base*.

    The same object for as long as *caller* lives and keeps to that class. None: *theirs* cannot be governed.
    """
    governed = governed_over(theirs)
    if governed is None:
        return None
    known = base.own_classes
    if known is None:
        known = base.own_classes = WeakKeyDictionary()
    found = known.get(caller)
    if found is None or found.theirs is not theirs:
        found = known[caller] = OwnClassPool(base, theirs, governed)
    return found
