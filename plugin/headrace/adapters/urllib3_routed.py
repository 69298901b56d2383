"""What a `PoolManager` hands out for an origin that a route names: its own pool, with governed calls in front.

`RoutedHTTPPool` stands for the manager's pool and shares its attributes; it decides
per call, by path. `_Hop` is one governed hop of one call: stock's `urlopen` around it
(redirects, a caller's own retries, the exceptions that callers know), and the call of
`adapters.call`, over the upstream's pool, in the place of the wire.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ClosedPoolError
from urllib3.poolmanager import PoolKey
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry
from urllib3.util.timeout import _DEFAULT_TIMEOUT

from headrace.adapters.body import position_of
from headrace.adapters.call import Call
from headrace.adapters.observe import observed
from headrace.adapters.own_retries import delegated, is_default, redirects_only, retries_itself
from headrace.adapters.routing import Routing, count_unknown
from headrace.adapters.timeouts import timeouts_of_call
from headrace.adapters.ungoverned import passed_through
from headrace.adapters.urllib3 import UrlopenSurface, status_of
from headrace.adapters.urllib3_trust import brings_own_tls
from headrace.errors import UpstreamError
from headrace.policy.plan import TimeoutPlan
from headrace.runtime.record import Record
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import current_attempt

_FRONT = "_headrace_front"
# `urllib3.request()` always passes a timeout; its own default is nobody's wish, and would undo the rule's limits.
_TIMEOUT_OF_REQUEST = inspect.signature(urllib3.request).parameters["timeout"].default
_DEFAULT_MANAGER: object = getattr(urllib3, "_DEFAULT_POOL", None)


class RoutedHTTPPool(HTTPConnectionPool):
    """A manager's pool, with the calls that a route names governed. Thread-safe as the pool behind it.

    It has every attribute of that pool, by sharing them: what a caller reads or
    sets here, he reads or sets there. Its own are in slots.

    Attributes:
        stock: The manager's own pool; it makes every call that is not ours.
    """

    __slots__ = ("_base", "_key", "_of_default_manager", "_routing", "stock")

    stock: HTTPConnectionPool
    _base: str
    _key: PoolKey
    _of_default_manager: bool
    _routing: Routing

    def urlopen(  # type: ignore[override]  # as urllib3 itself overrides it
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | bool | int | None = None,
        redirect: bool = True,
        assert_same_host: bool = True,
        timeout: Any = _DEFAULT_TIMEOUT,
        pool_timeout: int | None = None,
        release_conn: bool | None = None,
        chunked: bool = False,
        body_pos: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        **response_kw: Any,
    ) -> BaseHTTPResponse:
        """One call, governed as the mode of its upstream says. Blocks; the arguments are stock's.

        Raises:
            UpstreamError: Refused by circuit, pool or deadline; also a urllib3 exception, never wrapped.
            urllib3.exceptions.HTTPError: What stock raises: MaxRetryError around what the last attempt raised,
                or that itself where *retries* is False.
        """
        upstream = self._upstream_of(url, headers)
        if upstream is None or upstream.mode != "enforce":
            go = functools.partial(
                self.stock.urlopen,
                method,
                url,
                body,
                headers,
                retries,
                redirect,
                assert_same_host,
                timeout,
                pool_timeout,
                release_conn,
                chunked,
                body_pos,
                preload_content,
                decode_content,
                **response_kw,
            )
            if upstream is None or upstream.mode == "off":
                return go()
            replayable, _ = position_of(body)
            is_own = isinstance(retries, Retry) and not is_default(retries) and retries_itself(retries)
            return observed(
                upstream,
                go,
                status_of=status_of,
                method=method.upper(),
                replayable=replayable,
                timeouts=self._timeouts(upstream.plan.timeouts, timeout, pool_timeout),
                max_attempts=1 if is_own else upstream.plan.retry.max_attempts,
                streamed=not preload_content,
            )
        if not isinstance(retries, Retry):
            retries = Retry.from_int(retries, redirect=redirect, default=self.retries)
        if is_default(retries):
            retries = redirects_only(retries)
        is_delegated = retries_itself(retries)
        if is_delegated:
            delegated(upstream)
        hop = _Hop.__new__(_Hop)
        hop.__dict__ = self.__dict__
        hop.scheme = self.scheme
        hop.front = self
        hop.upstream = upstream
        hop.timeouts = self._timeouts(upstream.plan.timeouts, timeout, pool_timeout)
        hop.max_attempts = 1 if is_delegated else upstream.plan.retry.max_attempts
        hop.release_conn = release_conn
        hop.record = hop.refusal = None
        try:
            return HTTPConnectionPool.urlopen(
                hop,
                method,
                url,
                body,
                headers,
                retries,
                redirect,
                assert_same_host,
                timeout,
                pool_timeout,
                release_conn,
                chunked,
                body_pos,
                preload_content,
                decode_content,
                **response_kw,
            )
        except _Refused:
            pass  # raised below, outside: as the context of itself it would be a cycle
        except Exception as error:
            hop.tell(error)
            raise
        raise hop.take_refusal()

    def _upstream_of(self, url: str, headers: Mapping[str, str] | None) -> Upstream | None:
        """Whose rules hold for a call to *url* through this pool, or None: it goes to stock."""
        attempt = current_attempt.get()
        if (
            attempt is not None
            and headers is not None
            and headers is getattr(attempt.message, "headers", None)
        ):
            return None  # an attempt of the requests surface, by an adapter that picked a pool of its own
        if url.startswith("/"):
            url = self._base + url
        elif self.proxy is None and not self.is_same_host(url):
            return None
        upstream = self._routing.find(url)
        if upstream is None:
            count_unknown(url)
            return None
        if upstream.mode == "off":
            return None
        if self.proxy is not None:
            passed_through(upstream, "proxy")
            return None
        tls = upstream.plan.tls
        if tls is not None and self.scheme == "https" and brings_own_tls(self._key, tls, self.host):
            passed_through(upstream, "tls")
            return None
        return upstream

    def _timeouts(self, plan: TimeoutPlan, timeout: Any, pool_timeout: float | None) -> TimeoutPlan:
        """The limits of one call: the rule's, or what the call, or else its manager, asks for."""
        if self._of_default_manager and timeout == _TIMEOUT_OF_REQUEST:
            timeout = None
        elif timeout is _DEFAULT_TIMEOUT:
            timeout = self.timeout
        limits = timeouts_of_call(plan, timeout)
        return limits if pool_timeout is None else replace(limits, acquire_s=float(pool_timeout))

    def __str__(self) -> str:
        return str(self.stock)  # error texts name the class


class RoutedHTTPSPool(RoutedHTTPPool, HTTPSConnectionPool):
    """The same over TLS."""

    __slots__ = ()


_FRONTS: dict[type[HTTPConnectionPool], type[RoutedHTTPPool]] = {
    HTTPConnectionPool: RoutedHTTPPool,
    HTTPSConnectionPool: RoutedHTTPSPool,
}


def is_stock(pool: HTTPConnectionPool) -> bool:
    """Whether *pool* is of urllib3's own class: what a manager with other classes hands out is not reached."""
    return type(pool) in _FRONTS


def routed(stock: HTTPConnectionPool, key: PoolKey, routing: Routing, *, manager: object) -> RoutedHTTPPool:
    """The front of *stock*: the very same as long as somebody holds it.

    *stock* refers to it weakly. A cycle would keep the sockets of an evicted pool
    until the next collection.

    Args:
        key: Under which *manager* keeps *stock*.
    """
    reference: weakref.ref[RoutedHTTPPool] | None = stock.__dict__.get(_FRONT)
    front = None if reference is None else reference()
    if front is None or front._routing is not routing:
        kind = _FRONTS[type(stock)]
        front = kind.__new__(kind)
        host = f"[{stock.host}]" if ":" in stock.host else stock.host
        front.stock = stock
        front._base = f"{stock.scheme}://{host}:{stock.port}"
        front._key = key
        front._of_default_manager = manager is _DEFAULT_MANAGER
        front._routing = routing
        front.__dict__ = stock.__dict__
        stock.__dict__[_FRONT] = weakref.ref(front)
    return front


class _Refused(Exception):
    """Takes one of our refusals past stock's handlers, which would wrap some of them."""


class _NoConnection:
    """Stands in for the connection that stock's `urlopen` leases: the governed call leases its own."""

    __slots__ = ("timeout",)
    proxy = None

    def close(self) -> None:
        """Nothing is open."""


class _NoTimeout:
    """Stands in for what stock would set on that connection: the limits of a governed call are its own."""

    connect_timeout = None


_NO_TIMEOUT = _NoTimeout()  # cloning the call's costs seven calls


class _Hop(HTTPConnectionPool):
    """One hop of one call. Owned by one thread.

    Stock's `urlopen` runs on it unchanged: that keeps the caller's `Retry`, redirects
    and exceptions exactly as they are, without a copy of that loop here. Where it
    would send, the governed call is made, each attempt of which is the `urlopen` of
    the upstream's pool with `retries=False, redirect=False`.

    Attributes:
        record: What became of the last governed call, or None before its end.
        refusal: Our own error that ended it, on its way out.
    """

    __slots__ = (
        "front",
        "max_attempts",
        "record",
        "refusal",
        "release_conn",
        "scheme",
        "timeouts",
        "upstream",
    )

    front: RoutedHTTPPool
    upstream: Upstream
    timeouts: TimeoutPlan
    max_attempts: int
    release_conn: bool | None
    record: Record | None
    refusal: UpstreamError | None

    def urlopen(self, *args: Any, **kw: Any) -> BaseHTTPResponse:
        """Stock's next try or redirect: it finds its upstream anew."""
        return self.front.urlopen(*args, **kw)

    def _get_conn(self, timeout: float | None = None) -> Any:
        if self.pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        return _NoConnection()

    def _put_conn(self, conn: Any) -> None:
        """Nothing was leased."""

    def _get_timeout(self, timeout: Any) -> Any:
        return _NO_TIMEOUT

    def _make_request(  # type: ignore[override]
        self,
        conn: Any,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | None = None,
        timeout: Any = None,
        chunked: bool = False,
        response_conn: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        **response_kw: Any,
    ) -> BaseHTTPResponse:
        replayable, body_at = position_of(body)
        method = method.upper()
        surface = UrlopenSurface(
            self.upstream.state.pool,
            method,
            url,
            body,
            headers,
            body_at,
            {
                "preload_content": preload_content,
                "decode_content": decode_content,
                "chunked": chunked,
                "release_conn": self.release_conn,
                **response_kw,
            },
        )
        try:
            response = Call(
                self.upstream,
                surface,
                message=surface,
                streamed=not preload_content,
                timeouts=self.timeouts,
                method=method,
                replayable=replayable,
                max_attempts=self.max_attempts,
                headers=headers,
            ).run()
        except UpstreamError as error:
            self.refusal = error
        except Exception as error:
            self.record = getattr(error, "headrace", None)
            raise
        else:
            self.record = response.headrace  # type: ignore[attr-defined]
            response.retries = retries  # PoolManager counts redirects by it
            return response
        raise _Refused

    def take_refusal(self) -> UpstreamError:
        """Our own error that ended the call; this hop forgets it. Mutates."""
        refusal, self.refusal = self.refusal, None
        assert refusal is not None
        return refusal

    def tell(self, error: Exception) -> None:
        """Put the record on what stock made of the end of this call, and the story with it. Mutates *error*."""
        if self.record is None or hasattr(error, "headrace"):
            return
        error.headrace = self.record  # type: ignore[attr-defined]
        reason = getattr(error, "reason", None)
        if isinstance(reason, Exception) and hasattr(reason, "__notes__"):
            del reason.__notes__  # told once, on what leaves
        for note in self.record.notes():
            error.add_note(note)

    def __str__(self) -> str:
        return str(self.front)
