"""What a `PoolManager` hands out for an origin that a route names: its own pool, with governed calls in front.

`RoutedHTTPPool` stands for the manager's pool and decides per call, by path. Callers set attributes on the pool that
they were handed (headers, retries, a client certificate), and the manager's pool has to go by them. So the front keeps
no settings: it passes on each attribute that is read, set or deleted.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final, NamedTuple

import urllib3
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ClosedPoolError
from urllib3.poolmanager import PoolKey, PoolManager
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry
from urllib3.util.timeout import Timeout

from headrace.adapters.body import position_of
from headrace.adapters.failures import facts_of
from headrace.adapters.own_connections import (
    STOCK,
    is_settled_by_class,
    is_settled_by_manager,
    is_stocks_pool,
)
from headrace.adapters.routing import Routing, count_unknown
from headrace.adapters.timeouts import NOT_GIVEN, limits_of
from headrace.adapters.urllib3.hop import Hop, RefusalInFlight
from headrace.adapters.urllib3.own_retries import (
    RedirectsOnly,
    count_delegated,
    is_default,
    redirects_only,
    retries_itself,
    unsent_only,
)
from headrace.adapters.urllib3.quick import QuickResponse, quickly, view_of
from headrace.adapters.urllib3.surface import UrlopenSurface, status_of
from headrace.adapters.urllib3.trust import brings_own_tls
from headrace.engine.begun import Begun
from headrace.engine.call import Call
from headrace.engine.notices import count_ungoverned, passing
from headrace.engine.shadow import observed
from headrace.engine.tries import Tries
from headrace.policy.paths import quoted
from headrace.policy.plan import TimeoutPlan
from headrace.policy.request import Request
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import current_attempt
from headrace.transport.stock.own_class import OwnClassPool, governed_over, over_own_class

_FRONT = "_headrace_front"
_MADE_WITH = "_headrace_made"
# `urllib3.request()` always passes a timeout. Its default is no caller's wish, and would undo the limits of the rule.
_TIMEOUT_OF_REQUEST = inspect.signature(urllib3.request).parameters["timeout"].default
_DEFAULT_MANAGER: object = getattr(urllib3, "_DEFAULT_POOL", None)


_DEFAULT_RETRY: Final = Retry.DEFAULT


class QuickAnswer(QuickResponse):
    """What a call through a manager gets that went the short way: no redirect. A manager counts by `retries`."""

    _retries = redirects_only(Retry.from_int(None, redirect=False))


_VIEW: Final = view_of(QuickAnswer)


ready_var: ContextVar[tuple[RoutedHTTPPool, BaseHTTPResponse] | None] = ContextVar(
    "headrace_answered", default=None
)


@contextlib.contextmanager
def answered(pool: RoutedHTTPPool, answer: BaseHTTPResponse) -> Iterator[None]:
    """Within it, the next call through *pool* has been made already, and this is its *answer*."""
    token = ready_var.set((pool, answer))
    try:
        yield
    finally:
        ready_var.reset(token)


class RoutedHTTPPool(HTTPConnectionPool):
    """A manager's pool that governs the calls that a route names. Thread-safe as the pool behind it.

    It has few attributes of its own, set once. All others are those of the pool behind it, whichever of the two a
    caller reads or writes. A method that a caller replaces, as mocks do, is replaced here alone: the calls that go to
    stock must not come back to it.

    Attributes:
        stock: The manager's own pool; it makes every call that is not ours.
    """

    stock: HTTPConnectionPool
    _base: str
    _is_settled: bool
    _key: PoolKey
    _made_with: dict[str, Any]
    _named: frozenset[str]
    _of_default_manager: bool
    _routing: Routing

    # The classes have the first three, and `request` reads the last: `__getattr__` is not asked. A getter in C costs no
    # Python call.
    scheme = property(attrgetter("stock.scheme"))
    ConnectionCls = property(attrgetter("stock.ConnectionCls"))
    QueueCls = property(attrgetter("stock.QueueCls"))
    headers = property(attrgetter("stock.headers"))

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self).get("stock"), name)  # a copy that is being made has no stock yet

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self) or callable(getattr(type(self), name, None)):
            super().__setattr__(name, value)
        else:
            setattr(self.stock, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            delattr(self.stock, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.stock)})

    def urlopen(  # type: ignore[override]  # as urllib3 itself overrides it
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Retry | bool | int | None = None,
        redirect: bool = True,
        assert_same_host: bool = True,
        timeout: Any = NOT_GIVEN,
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
        ready = ready_var.get()
        if ready is not None and ready[0] is self:
            ready_var.set(None)
            return ready[1]
        stock = self.stock
        upstream = self._upstream_of(url, headers)
        begun = None
        if (
            upstream is not None
            and upstream.mode == "enforce"
            and retries is None
            and preload_content is decode_content is True
            and pool_timeout is release_conn is body_pos is None
            and not chunked
            and not response_kw
            # Whether the pool has stock's defaults, its classes and its retries, and is open.
            and type(stock) in FRONTS
            and stock.pool is not None
            and stock.retries is Retry.DEFAULT is _DEFAULT_RETRY
            and stock.ConnectionCls.__module__ == STOCK
        ):
            # As PoolManager calls where its caller has said nothing of its own.
            quick = quickly(
                upstream,
                self._timeouts(upstream, timeout, None),
                method,
                url,
                body,
                stock.headers if headers is None else headers,
                _VIEW,
                stock,
            )
            if type(quick) is Begun:
                begun = quick
            elif quick is not None:
                return quick  # type: ignore[no-any-return]
        # requests calls like this, and makes such a timeout where nobody has said anything.
        is_of_requests = not (redirect or assert_same_host or preload_content or decode_content)
        limit = NOT_GIVEN if is_of_requests and _is_none_thrice(timeout) else timeout
        asked = {
            "headers": headers,
            "redirect": redirect,
            "assert_same_host": assert_same_host,
            "timeout": timeout,
            "pool_timeout": pool_timeout,
            "release_conn": release_conn,
            "chunked": chunked,
            "body_pos": body_pos,
            "preload_content": preload_content,
            "decode_content": decode_content,
            **response_kw,
        }
        if upstream is None or upstream.mode != "enforce":

            def go() -> BaseHTTPResponse:  # no partial: its repr would show the arguments, with credentials
                return stock.urlopen(method, url, body, retries=wanted, **asked)

            wanted = retries
            if upstream is None or upstream.mode == "off":
                return go()
            if not isinstance(retries, Retry):
                retries = Retry.from_int(retries, redirect=redirect, default=stock.retries)
            request = Request(
                None,
                method.upper(),
                stock.headers if headers is None else headers,
                self._timeouts(upstream, limit, pool_timeout),
                not preload_content,
                position_of(body)[0],
            )
            return _observed(upstream, go, request, nth_try=int(self._decides(retries)))
        if not isinstance(retries, Retry):
            retries = Retry.from_int(retries, redirect=redirect, default=stock.retries)
        if is_default(retries):
            retries = redirects_only(retries)
        tries = None
        own = None
        if stock.ConnectionCls.__module__ != STOCK and is_settled_by_class(stock.ConnectionCls):
            own = over_own_class(upstream.endpoint.pool, stock, stock.ConnectionCls)
        if self._decides(retries):
            tries = Tries(upstream)
            retries = retries if position_of(body)[0] else unsent_only(retries)
        hop = _ManagerHop(stock, upstream, self._timeouts(upstream, limit, pool_timeout), tries)
        hop.front, hop.release_conn, hop.own, hop.begun = self, release_conn, own, begun
        try:
            return HTTPConnectionPool.urlopen(hop, method, url, body, retries=retries, **asked)
        except RefusalInFlight:
            pass  # raised below, outside of this handler: as its own context it would be a cycle
        except BaseException as error:
            hop.tell(error)
            raise
        finally:
            if tries is not None:
                tries.settle()
        raise hop.take_refusal()

    def _upstream_of(self, url: str, headers: Mapping[str, str] | None) -> Upstream | None:
        """The upstream that governs a call to *url* through this pool, or None: the call goes to stock."""
        stock = self.stock
        attempt = current_attempt.get()
        if (
            attempt is not None
            and headers is not None
            and headers is getattr(attempt.message, "headers", None)
        ):
            return None  # an attempt of the requests surface: its adapter has picked a pool of its own
        message = passing.get()
        if message is not None and headers is not None and headers is getattr(message, "headers", None):
            return None  # the requests surface has decided that it passes through
        if url.startswith("/"):
            # As stock will do it. A parser of URLs would take out tabs and newlines.
            url = self._base + quoted(url)
        elif stock.proxy is None and not stock.is_same_host(url):
            return None
        upstream = self._routing.find(url)
        if upstream is None:
            count_unknown(url)
            return None
        if upstream.mode == "off":
            return None
        if stock.proxy is not None:
            count_ungoverned(upstream, "proxy")
            return None
        if self._is_settled or stock.conn_kw != self._made_with:
            count_ungoverned(upstream, "manager")
            return None
        kind: Any = stock.ConnectionCls
        if kind.__module__ != STOCK and is_settled_by_class(kind) and governed_over(kind) is None:
            count_ungoverned(upstream, "pool_class")
            return None
        tls = upstream.plan.tls
        if (
            tls is not None
            and stock.scheme == "https"
            and brings_own_tls(self._key, tls, stock, named=self._named)
        ):
            count_ungoverned(upstream, "tls")
            return None
        return upstream

    def _decides(self, retries: Retry) -> bool:
        """Whether the caller decides about attempts: then headrace makes one per try.

        A client with classes of its own has its own loop above, if it tells urllib3 to make no retries.
        """
        if isinstance(retries, RedirectsOnly) or is_default(retries):
            return False
        return type(self.stock) not in FRONTS or retries_itself(retries)

    def _timeouts(self, upstream: Upstream, timeout: Any, pool_timeout: float | None) -> TimeoutPlan:
        """The limits of one call: the rule's, or what the call, or else its manager, asks for."""
        if self._of_default_manager and timeout == _TIMEOUT_OF_REQUEST:
            timeout = NOT_GIVEN
        elif timeout is NOT_GIVEN:
            timeout = self.stock.timeout
            if type(timeout) is Timeout and timeout._connect is timeout._read is NOT_GIVEN:
                timeout = NOT_GIVEN if timeout.total is None else timeout  # `limits_of` says so, by a call
        limits = upstream.plan.timeouts if timeout is NOT_GIVEN else limits_of(upstream, timeout)
        return limits if pool_timeout is None else replace(limits, acquire_s=float(pool_timeout))

    def __str__(self) -> str:
        return str(self.stock)  # error texts name the class


class RoutedHTTPSPool(RoutedHTTPPool, HTTPSConnectionPool):
    """The same over TLS."""


FRONTS: Final[Mapping[type[HTTPConnectionPool], type[RoutedHTTPPool]]] = {
    HTTPConnectionPool: RoutedHTTPPool,
    HTTPSConnectionPool: RoutedHTTPSPool,
}
"""By urllib3's own classes."""


def front_of(kind: Any) -> type[RoutedHTTPPool] | None:
    """What stands in front of a manager's pool of class *kind*; None: nothing, as it does more than urllib3's."""
    front = FRONTS.get(kind)
    if front is None and is_stocks_pool(kind):
        return RoutedHTTPSPool if issubclass(kind, HTTPSConnectionPool) else RoutedHTTPPool
    return front


def _is_none_thrice(timeout: Any) -> bool:
    return isinstance(timeout, Timeout) and timeout._connect is timeout._read is timeout.total is None


def _observed(
    upstream: Upstream, go: Callable[[], BaseHTTPResponse], request: Request, *, nth_try: int
) -> BaseHTTPResponse:
    return observed(upstream, go, request, status_of=status_of, facts_of=facts_of, nth_try=nth_try)


def routed(
    stock: HTTPConnectionPool, key: PoolKey, routing: Routing, *, manager: PoolManager
) -> RoutedHTTPPool:
    """The front of *stock*: the same object as long as anything holds it.

    *stock* refers to it weakly. A cycle would keep the sockets of an evicted pool
    until the next collection.

    Args:
        key: The key under which *manager* keeps *stock*.
    """
    notes = vars(stock)
    reference: weakref.ref[RoutedHTTPPool] | None = notes.get(_FRONT)
    front = None if reference is None else reference()
    if front is None or front._routing is not routing:
        made: _Made | None = notes.get(_MADE_WITH)
        if made is None or made.facts["_routing"] is not routing:
            made = notes[_MADE_WITH] = _made(stock, key, routing, manager, made)
        # No `__init__`: stock's would make a queue and settings of its own.
        settings = manager.connection_pool_kw
        front = made.new(made.kind)
        held = vars(front)
        held.update(made.facts)
        held["stock"] = stock
        held["_of_default_manager"] = manager is _DEFAULT_MANAGER
        held["_named"] = (
            _NONE if not settings else frozenset([name for name in settings if settings[name] is not None])
        )
        notes[_FRONT] = weakref.ref(front)
    return front


class _Made(NamedTuple):
    """What a manager has settled about a pool of its own, noted with the pool.

    Attributes:
        kind: The class of its fronts.
        facts: What each of them has as attributes.
    """

    kind: type[RoutedHTTPPool]
    facts: dict[str, Any]
    new: Callable[..., RoutedHTTPPool] = HTTPConnectionPool.__new__


_NONE: Final[frozenset[str]] = frozenset()


def _made(
    stock: HTTPConnectionPool, key: PoolKey, routing: Routing, manager: PoolManager, before: _Made | None
) -> _Made:
    kind = front_of(type(stock))
    assert kind is not None, "the patch has asked"
    host = f"[{stock.host}]" if ":" in stock.host else stock.host
    return _Made(
        kind,
        {
            "_base": f"{stock.scheme}://{host}:{stock.port}",
            "_is_settled": is_settled_by_manager(manager, key)
            if before is None
            else before.facts["_is_settled"],
            "_key": key,
            "_made_with": stock.conn_kw.copy() if before is None else before.facts["_made_with"],
            "_routing": routing,
        },
    )


class _ManagerHop(Hop):
    """A hop of a call that was made to the pool of a manager.

    Attributes:
        front: That pool.
        release_conn: As the call has it.
        own: What its attempts go by where that pool's connections are of another class than stock's.
        begun: Its first attempt, where that was begun already; None: it was not.
    """

    __slots__ = ("begun", "front", "own", "release_conn")

    begun: Begun | None

    front: RoutedHTTPPool
    own: OwnClassPool | None
    release_conn: bool | None

    def urlopen(  # type: ignore[override]  # as urllib3 itself overrides it
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: Any = None,
        *args: Any,
        **kw: Any,
    ) -> BaseHTTPResponse:
        """Stock's next try, or a redirect. A redirect is a call of its own and finds its upstream anew."""
        if self.tries is not None:
            if retries.history[-1].redirect_location is None:
                self.try_again(url)
                return super().urlopen(method, url, body, headers, retries, *args, **kw)
            self.tries.settle()
        return self.front.urlopen(method, url, body, headers, retries, *args, **kw)

    def govern(
        self,
        method: str,
        url: str,
        body: Any,
        headers: Mapping[str, str] | None,
        response_kw: dict[str, Any],
    ) -> BaseHTTPResponse:
        """One governed call, or one try of it, over the upstream's pool. Blocks."""
        if self.tries is not None:
            count_delegated(self.upstream)
        replayable, body_at = (True, None) if body is None or type(body) is bytes else position_of(body)
        response_kw["release_conn"] = self.release_conn
        surface = UrlopenSurface(
            self.own or self.upstream.endpoint.pool,
            method,
            url,
            body,
            headers,
            body_at,
            response_kw,
            # Not its manager: stock shares connections by pool, and a caller with a pool needs no manager.
            self.own or self.front.stock,
        )
        streamed = not response_kw["preload_content"]
        request = Request(surface, method, headers, self.timeouts, streamed, replayable)
        begun, self.begun = self.begun, None
        return Call(self.upstream, surface, request, tries=self.tries, begun=begun).run()

    def _get_conn(self, timeout: float | None = None) -> Any:
        if self.pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        return super()._get_conn(timeout)

    def __str__(self) -> str:
        return str(self.front)
