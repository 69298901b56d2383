"""The patch of urllib3: the one place where every `PoolManager` gets its pools from, and a short cut to it.

A manager goes on keeping its own pools, under its own limit. For an origin that a
route names it hands out a pool in front of them, which governs calls by path. The
upstream's connections are never among those that a manager may evict or close.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import urllib3
from urllib3 import PoolManager
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.poolmanager import PoolKey
from urllib3.response import BaseHTTPResponse

from headrace.adapters.layers import is_ours, without_ours
from headrace.adapters.routing import Routing, count_unknown
from headrace.adapters.urllib3.pools import QuickAnswer, answered, front_of, ready_var, routed
from headrace.adapters.urllib3.straight import is_librarys, pool_of
from headrace.engine.notices import count_ungoverned, passing

settled: ContextVar[bool] = ContextVar("headrace_settled", default=False)
"""Set while requests chooses the pool of a call that the requests surface has decided about already."""


class Urllib3Patch:
    """`PoolManager.connection_from_pool_key`, replaced; `undo` puts back what was there."""

    def __init__(self, routing: Routing) -> None:
        # A forgotten layer of ours on top is replaced, not covered.
        original = without_ours(PoolManager.connection_from_pool_key)

        def connection_from_pool_key(
            self: PoolManager, pool_key: PoolKey, request_context: dict[str, Any]
        ) -> HTTPConnectionPool:
            ready = ready_var.get()
            if ready is not None and ready[0]._key == pool_key and not settled.get():
                return ready[0]  # its call has been made: the manager may have let go of the pool since
            pool = original(self, pool_key, request_context)
            if settled.get():
                return pool
            if front_of(type(pool)) is None:
                # Its calls are not seen, so their paths are not known. The code that asks for it is counted.
                if passing.get() is None:
                    upstream = routing.of_origin(pool.scheme, pool.host, pool.port or 0)
                    if upstream is not None and upstream.mode != "off":
                        count_ungoverned(upstream, "pool_class")
                return pool
            # Behind a forward proxy the pool's origin is the proxy's: only the URL of a call tells.
            if self.proxy is None and not routing.names_origin(pool.scheme, pool.host, pool.port or 0):
                count_unknown(f"{pool.scheme}://{pool.host}:{pool.port}")
                return pool
            return routed(pool, pool_key, routing, manager=self)

        original_urlopen = without_ours(PoolManager.urlopen)

        def urlopen(
            self: PoolManager, method: str, url: str, redirect: bool = True, **kw: Any
        ) -> BaseHTTPResponse:
            if not settled.get():
                found = pool_of(self, url, routing)
                if found is not None:
                    pool, target = found
                    answer = pool.urlopen(
                        method,
                        target,
                        **{"headers": self.headers, **kw, "assert_same_host": False, "redirect": False},
                    )
                    if type(answer) is QuickAnswer or not redirect or not answer.get_redirect_location():
                        return answer
                    with answered(pool, answer):
                        return original_urlopen(self, method, url, redirect=redirect, **kw)
            return original_urlopen(self, method, url, redirect=redirect, **kw)

        connection_from_pool_key.headrace_original = original  # type: ignore[attr-defined]
        urlopen.headrace_original = original_urlopen  # type: ignore[attr-defined]
        urlopen.__name__, urlopen.__qualname__ = original_urlopen.__name__, original_urlopen.__qualname__
        urlopen.__doc__ = original_urlopen.__doc__
        _replace("connection_from_pool_key", connection_from_pool_key)
        if is_librarys(
            original_urlopen
        ):  # another sees each call as it is made, with the arguments that it has
            _replace("urlopen", urlopen)

    @staticmethod
    def imported() -> tuple[ModuleType, ...]:
        """urllib3: headrace itself imports it."""
        return (urllib3,)

    @staticmethod
    def is_on_top() -> bool:
        """Whether a layer of ours is the first that a call meets."""
        return is_ours(PoolManager.connection_from_pool_key)

    @staticmethod
    def undo() -> None:
        """Put back what a layer of ours on top has found. A covered layer stays: it is still called."""
        _replace("urlopen", without_ours(PoolManager.urlopen))
        _replace("connection_from_pool_key", without_ours(PoolManager.connection_from_pool_key))


def _replace(name: str, function: Callable[..., Any]) -> None:
    setattr(PoolManager, name, function)
