"""What an adapter of requests, or a manager of urllib3, has settled about its connections itself.

Examples are a pin, a source address, pool classes of its own. A governed call goes over the upstream's connections, so
none of these would hold. Such a call passes through untouched instead. A difference from stock is found by comparison
with stock, not by a list of all that others may think of.

Nothing is remembered about an adapter. Some change the settings of their pools from call to call (requests_toolbelt's
HostHeaderSSLAdapter), and the comparison costs a microsecond, one Python call.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import requests.adapters
import urllib3.poolmanager
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import SSL_KEYWORDS, PoolKey, PoolManager

from headrace.adapters.bundles import is_bundle_of
from headrace.policy.plan import TlsPlan
from headrace.transport.stock.cassette import is_recorder
from headrace.transport.stock.own_class import SAYS_NOTHING

Scheme = Literal["http", "https"]
Reason = Literal["adapter", "manager", "tls"]

# Methods of an adapter that say nothing about its connections: those before and after a connection is chosen, which
# governed calls use as well; those for proxies, since calls through a proxy pass through anyway; and
# `init_poolmanager`, which is judged by the manager that it has made.
_NOT_ABOUT_CONNECTIONS = {"send", "close", "add_headers", "request_url", "build_response"} | {
    "proxy_manager_for",
    "proxy_headers",
    "init_poolmanager",
}
_CHOICES = frozenset(
    name
    for kind in (BaseAdapter, HTTPAdapter)
    for name, value in vars(kind).items()
    if callable(value) and not name.startswith("__")
).difference(_NOT_ABOUT_CONNECTIONS)
_choices_of: Callable[[object], Any] = operator.attrgetter(*sorted(_CHOICES))
_OLD_HOOK_NAME = "_get_connection"
"""The same hook in requests 2.32.0 and 2.32.1. An adapter that has it has a wish."""

TLS_SETTINGS = frozenset(SSL_KEYWORDS) | {"assert_fingerprint", "assert_hostname"}
"""urllib3's own list, and what that list lacks below 2.3."""

_METHODS_OF_MANAGER = frozenset(name for name, value in vars(PoolManager).items() if callable(value))
# None of these says where a connection leads, where it comes from, or what it trusts. The rule has limits of its own.
_SIZES_AND_LIMITS = frozenset({"block", "blocksize", "headers", "maxsize", "retries", "timeout"})
_KEYS_OF_EVERY_POOL = frozenset(
    {"key_" + name for name in (*_SIZES_AND_LIMITS, "scheme", "host", "port")}
    | {
        "key__proxy",
        "key__proxy_headers",
        "key__proxy_config",
    }  # a call through a proxy passes through by itself
    | {"key_" + name for name in TLS_SETTINGS}  # compared with the rule (urllib3_trust)
)
_STOCK_POOLS = frozenset(kind.__module__ for kind in HTTPSConnectionPool.__mro__)
_POOL_OF: dict[str, type[HTTPConnectionPool]] = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}

STOCK = HTTPConnection.__module__
"""The module of urllib3's own connection classes. Recorders and HTTP/2 put in others, for all pools at once."""

_seen_to_be_stocks: tuple[Any, ...] = ()
"""Choices of classes that were compared already. A handful: `HTTPAdapter` itself may be patched and put back."""


@lru_cache(maxsize=64)
def is_stocks_pool(kind: type[Any]) -> bool:
    """Whether *kind* is a pool class of urllib3's, or one that differs in its connection class alone."""
    return all(
        name == "ConnectionCls" or name in SAYS_NOTHING or not hasattr(HTTPSConnectionPool, name)
        for one in kind.__mro__
        if one.__module__ not in _STOCK_POOLS
        for name in vars(one)
    )


class PlainPoolManager(PoolManager):
    """A manager with stock's pools, whatever is installed: for calls about which headrace has decided."""

    connection_from_pool_key = PoolManager.connection_from_pool_key

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.pool_classes_by_scheme = _PLAIN_POOL_OF


class PlainHTTPPool(HTTPConnectionPool):
    """Stock's pool, except that it connects before there is a request.

    Stock connects while it sends. A failure then has the whole request, with headers of the file, in the
    frames of http.client, and crash reporters ship these.
    """

    def _validate_conn(self, conn: Any) -> None:
        if conn.sock is None:
            conn.connect()

    def __str__(self) -> str:
        return f"HTTPConnectionPool(host={self.host!r}, port={self.port!r})"


_PLAIN_POOL_OF: dict[str, type[HTTPConnectionPool]] = {"http": PlainHTTPPool, "https": HTTPSConnectionPool}


def is_settled_by_class(kind: Any) -> bool:
    """Whether *kind* is neither stock's connection class nor a recorder's."""
    return kind.__module__ != STOCK and not is_recorder(kind)


def is_settled_for_all(adapter: HTTPAdapter, scheme: Scheme) -> bool:
    """Whether *adapter* of ours, which nobody else has, connects to an upstream of *scheme* in a way of its own.

    That is what `settled_by_adapter` says of it as long as requests is as published (`is_stock`): then it has only the
    classes to look at that all pools of urllib3 share.
    """
    kind = _POOL_OF[scheme].ConnectionCls
    return type(adapter.poolmanager) is not PlainPoolManager or (
        kind.__module__ != STOCK and is_settled_by_class(kind)
    )


def settled_by_adapter(adapter: HTTPAdapter, scheme: Scheme, tls: TlsPlan | None = None) -> Reason | None:
    """What *adapter* has settled for its connections to an upstream of *scheme*. None: nothing, as stock's.

    Args:
        tls: The TLS of the rule, or None: a bundle of the same content is no wish.
    """
    kind = type(adapter)
    choices = _choices_of(kind)
    if choices not in _seen_to_be_stocks and not _are_stocks(choices):
        return "adapter"
    if not _CHOICES.isdisjoint(adapter.__dict__) or hasattr(adapter, _OLD_HOOK_NAME):
        return "adapter"
    manager = adapter.__dict__.get("poolmanager")
    if type(manager) is not PoolManager and type(manager) is not PlainPoolManager:
        return "adapter"
    pool_class = manager.pool_classes_by_scheme.get(scheme)
    if (
        (pool_class is not _POOL_OF[scheme] and pool_class is not _PLAIN_POOL_OF[scheme])
        or (pool_class.ConnectionCls.__module__ != STOCK and is_settled_by_class(pool_class.ConnectionCls))
        or manager.key_fn_by_scheme.get(scheme) is not urllib3.poolmanager.key_fn_by_scheme[scheme]
        or not _METHODS_OF_MANAGER.isdisjoint(manager.__dict__)
    ):
        return "adapter"
    if _SIZES_AND_LIMITS.issuperset(manager.connection_pool_kw):
        return None
    return _settled_by_settings(manager.connection_pool_kw, scheme, tls)


def is_settled_by_manager(manager: PoolManager, key: PoolKey) -> bool:
    """Whether *manager* has settled, TLS apart, how the connections of its pool *key* are made."""
    make: Any = type(manager)._new_pool
    if "_new_pool" in vars(manager) or getattr(make, "__globals__", None) is not vars(urllib3.poolmanager):
        return True
    if not isinstance(
        key, PoolKey
    ):  # its own key function made it, so the key does not tell what the pool was made with
        return True
    return any(
        value is not None and field not in _KEYS_OF_EVERY_POOL and not _is_default(field[4:], value)
        for field, value in zip(key._fields, key, strict=True)
    )


def _are_stocks(choices: tuple[Any, ...]) -> bool:
    """Whether all of *choices* are requests' functions, or ours in their place. A wrapper of one is neither."""
    global _seen_to_be_stocks
    for choice in choices:
        where = getattr(choice, "__globals__", None)
        if where is not vars(requests.adapters) and not _is_ours(where):
            return False
    _seen_to_be_stocks = (choices, *_seen_to_be_stocks[:3])
    return True


def _is_ours(where: dict[str, Any] | None) -> bool:
    return where is not None and str(where.get("__name__")).startswith("headrace.adapters.")


def _settled_by_settings(settings: dict[str, Any], scheme: Scheme, tls: TlsPlan | None) -> Reason | None:
    found: Reason | None = None
    for name, value in settings.items():
        if value is None or name in _SIZES_AND_LIMITS or _is_default(name, value):
            continue
        if name not in TLS_SETTINGS:
            return "adapter"
        if name in ("ca_certs", "ca_cert_dir") and tls is not None and is_bundle_of(tls, value):
            continue
        if scheme == "https":  # else urllib3 takes no notice of it
            found = "tls"
    return found


def _is_default(name: str, value: Any) -> bool:
    return name == "socket_options" and list(value) == HTTPConnection.default_socket_options
