"""Which pool a manager would hand out for a URL, without the fifteen calls in which it finds out.

A manager takes a URL apart and makes a key of all its settings, for each call. Here the key is remembered with the
manager, by what stands before the path, for as long as the settings are equal. The manager is asked for the pool each
time: it may have evicted it, and it goes by who was asked for last.

Only where urllib3's functions are as published and the manager is urllib3's own; any other goes through urllib3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from urllib3 import PoolManager, poolmanager
from urllib3.poolmanager import PoolKey

from headrace.adapters.layers import without_ours
from headrace.adapters.routing import Routing
from headrace.adapters.urllib3.pools import RoutedHTTPPool, front_of, routed

_KEYS: Final = "_headrace_keys"
_MOST_KEYS: Final = 64
_PORTS: Final = {"http": 80, "https": 443}
# A target in which urllib3 encodes nothing and removes nothing: no escape, no fragment, no segment that begins with a
# dot or is empty, no bare question mark.
_parts_of: Callable[[str], re.Match[str] | None] = re.compile(
    r"((https?)://([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?)"
    r"((?:/(?![./])[A-Za-z0-9\-._~!$&'()*+,;=:@]*)+(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?]+)?)"
).fullmatch
_METHODS: Final = frozenset(
    name for kind in PoolManager.__mro__ for name, value in vars(kind).items() if callable(value)
).difference(vars(object))
_CHANGEABLE: Final = frozenset({"headers", "_proxy_headers", "_socks_options", "socket_options", "strict"})
"""Settings whose value may change while it stays the same object, and one that urllib3 warns of."""

_stock: Any = PoolManager
_from_host, _from_context, _merge, _absolute = (
    _stock.connection_from_host,
    _stock.connection_from_context,
    _stock._merge_pool_kwargs,
    _stock._proxy_requires_url_absolute_form,
)
_parse_url: Any = vars(poolmanager)["parse_url"]
_key_of: Final = dict(poolmanager.key_fn_by_scheme)


def is_librarys(function: Any) -> bool:
    """Whether *function* is urllib3's own, from the module of its managers."""
    return type(function) is FunctionType and function.__globals__ is vars(poolmanager)


_IS_OWN: Final = all(map(is_librarys, (_from_host, _from_context, _merge, _absolute)))
"""Whether they were the library's own when this was imported."""


_below: tuple[Any, Any] = (None, None)
"""How managers find the pool of a key, when it was last looked at, and stock's way below it; None: there is another.

A layer of ours, that is. It need not be the one laid last: others put back what they have found.
"""


def pool_of(manager: Any, url: Any, routing: Routing) -> tuple[RoutedHTTPPool, str] | None:
    """The pool that *manager* hands out for *url* and the target of a request to it; None: ask urllib3."""
    global _below
    if type(manager) is not PoolManager or type(url) is not str or not _IS_OWN:
        return None
    finds, from_pool_key = _below
    if finds is not _stock.connection_from_pool_key:
        finds = _stock.connection_from_pool_key
        stock = without_ours(finds)
        from_pool_key = stock if stock is not finds and is_librarys(stock) else None
        _below = finds, from_pool_key
    if from_pool_key is None:
        return None
    parts = _parts_of(url)
    notes = vars(manager)
    if (
        parts is None
        or manager.proxy is not None
        or not (
            _stock.connection_from_host is _from_host
            and _stock.connection_from_context is _from_context
            and _stock._merge_pool_kwargs is _merge
            and _stock._proxy_requires_url_absolute_form is _absolute
            and poolmanager.parse_url is _parse_url  # type: ignore[attr-defined]
        )
        or not _METHODS.isdisjoint(notes)
    ):
        return None
    origin, scheme, host, port, target = parts.groups()
    settings = manager.connection_pool_kw
    make = manager.key_fn_by_scheme.get(scheme)
    keys = notes.get(_KEYS)
    known = None if keys is None else keys.get(origin)
    if known is not None and known[1] == settings and known[2] is make:
        key = known[0]
        try:
            return routed(manager.pools[key], key, routing, manager=manager), target
        except KeyError:
            pass
    if (
        make is not _key_of[scheme]
        or not _CHANGEABLE.isdisjoint(settings)
        or not routing.names_origin(scheme, host.lower(), int(port or _PORTS[scheme]))
    ):
        return None
    found = poolmanager.parse_url(url)  # type: ignore[attr-defined]
    if not found.host or found.request_uri != target:
        return None
    context = manager._merge_pool_kwargs(None)
    context["scheme"], context["host"] = found.scheme, found.host
    context["port"] = _PORTS[scheme] if found.port is None else found.port
    key = make(context)
    pool = from_pool_key(manager, key, context)
    if type(key) is not PoolKey or front_of(type(pool)) is None:
        return None
    if keys is None:
        keys = notes[_KEYS] = {}
    elif len(keys) >= _MOST_KEYS:
        keys.clear()
    keys[origin] = key, settings.copy(), make
    return routed(pool, key, routing, manager=manager), target
