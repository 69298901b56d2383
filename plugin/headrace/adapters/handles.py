"""Calls by name: `hr.upstream("billing").get("/invoices/7")`, and sessions governed by URL without a patch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, overload

import requests
import urllib3
from requests.adapters import DEFAULT_POOLSIZE
from requests.models import PreparedRequest
from urllib3.response import BaseHTTPResponse

from headrace.adapters.own_connections import PlainPoolManager, is_settled_for_all
from headrace.adapters.owner import CallByName, call_by_name
from headrace.adapters.requests.by_name import HandleAdapter
from headrace.adapters.requests.direct import follow, is_redirect, send_direct
from headrace.adapters.requests.plain import Head, Plain, head_of, is_plain_path, plain_request
from headrace.adapters.requests.session import GovernedSession
from headrace.adapters.requests.stock import is_stock
from headrace.adapters.requests.surface import GovernedAdapter
from headrace.adapters.timeouts import NOT_GIVEN, limits_of
from headrace.adapters.urllib3.quick import VIEW, quickly
from headrace.adapters.urllib3.surface import urlopen
from headrace.engine.begun import Begun
from headrace.engine.protect import Errors, InForce, protected
from headrace.policy.paths import may_leave
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import target_of, url_of
from headrace.runtime.upstream import Upstream
from headrace.transport.dial.client import TlsClient

if TYPE_CHECKING:
    from headrace.adapters.aio.handle import Awaited

P = ParamSpec("P")
T = TypeVar("T")

Session: TypeAlias = requests.Session
"""For annotations above, where no HTTP library is imported."""

_DIRECT = frozenset({"params", "data", "headers", "timeout", "allow_redirects", "stream", "json"})
"""Keywords of a call that needs nothing of a Session."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FORBIDDEN = re.compile(r"[\x00-\x20\\\x7f]")
# What `checked_path` has nothing against, asked in C: no empty segment, and none that begins with a dot.
is_safe: Callable[[str], object] = re.compile(
    r"(?:/(?![./])[A-Za-z0-9\-._~!$&'()*+,=:@]*)+(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?%]*)?"
).fullmatch
# The same of what urllib3 encodes nothing in, too.
_is_plain: Callable[[str], object] = re.compile(
    r"(?:/(?![./])[A-Za-z0-9\-._~!$&'()*+,=:@]*)+(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*)?"
).fullmatch


class Handle:
    """An upstream by name. It holds no state: each call resolves the name in the configuration in force.

    Thread-safe. Cookies are not kept between calls, and the environment's proxies
    and .netrc are not read: a handle talks to the upstream that the file names.
    """

    __slots__ = (
        "_adapter",
        "_find_by_url",
        "_head",
        "_in_force",
        "_reset",
        "_resolve",
        "_session",
        "_spelled",
        "_stock",
        "name",
    )

    def __init__(
        self,
        name: str,
        resolve: Callable[[str], Upstream],
        in_force: InForce,
        find_by_url: Callable[[PreparedRequest], Upstream | None],
        stock: urllib3.PoolManager,
        reset: Callable[[str], None],
    ) -> None:
        self.name: str = name
        self._resolve = resolve
        self._in_force = in_force
        self._find_by_url = find_by_url
        self._stock = stock
        self._reset = reset
        self._adapter = HandleAdapter(self._find, self._trusts, name)
        self._session = _session_over(self._adapter)
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._head: Head | None = head_of(self._session.headers)
        self._spelled: tuple[UrlPrefix | None, str, str | None] = (None, "", None)

    def request(self, method: str, path: str, **kw: Any) -> requests.Response:
        """Call *path* below the `base_url`. Blocks; *kw* as for `requests.request`.

        Raises:
            UnknownUpstream: The name has left the file.
            requests.exceptions.InvalidURL: *path* is a whole URL, or leaves the base.
            UpstreamError: Refused by circuit, pool or deadline; also a requests exception.
            requests.RequestException: What the last attempt raised.
        """
        upstream = self._resolve(self.name)
        plan = upstream.plan
        base = plan.base
        if "%" in path or ";" in path or not is_plain_path(path):
            path = checked_path(base, path)
        if (
            upstream.mode == "enforce"
            and _DIRECT.issuperset(kw)
            and is_stock()
            and not is_settled_for_all(self._adapter, base.origin.scheme)
        ):
            return self._direct(upstream, method, path, **kw)
        url = url_of(base) + path
        outer = call_by_name.get()
        try:
            call_by_name.set(CallByName())
            return self._session.request(method, url, **kw)
        finally:
            call_by_name.set(outer)  # not reset(): an interrupt may have come before the token was stored

    def _direct(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        timeout: Any = None,
        allow_redirects: bool = True,
        stream: bool | None = None,
        json: Any = None,
    ) -> requests.Response:
        """The same past the functions of requests, which are stock's now. Blocks."""
        base, url, prefix = self._spelled
        if base is not upstream.plan.base:
            self._spelled = base, url, prefix = _spelled(upstream.plan.base)
        asked = None
        if prefix is not None and self._head is not None:
            asked = plain_request(method, url, prefix, path, self._head, headers, params, data, json)
        if asked is None:
            asked = Plain.of(
                self._session.prepare_request(
                    requests.Request(
                        method.upper(),
                        url + path,
                        headers=headers,
                        data=data or {},
                        json=json,
                        params=params or {},
                    )
                )
            )
        is_streamed = bool(stream)
        owner = CallByName() if headers else None
        answer = send_direct(upstream, self._adapter, asked, owner, timeout=timeout, stream=is_streamed)
        if not is_redirect(answer):
            return answer
        outer = call_by_name.get()
        try:
            call_by_name.set(CallByName())
            return follow(
                self._session,
                answer,
                asked,
                allow_redirects=allow_redirects,
                timeout=timeout,
                stream=is_streamed,
            )
        finally:
            call_by_name.set(outer)

    def get(self, path: str, **kw: Any) -> requests.Response:
        """GET; see `request`."""
        return self.request("GET", path, **kw)

    def options(self, path: str, **kw: Any) -> requests.Response:
        """OPTIONS; see `request`."""
        return self.request("OPTIONS", path, **kw)

    def head(self, path: str, **kw: Any) -> requests.Response:
        """HEAD, redirects not followed; see `request`."""
        kw.setdefault("allow_redirects", False)
        return self.request("HEAD", path, **kw)

    def post(self, path: str, data: Any = None, json: Any = None, **kw: Any) -> requests.Response:
        """POST; see `request`."""
        return self.request("POST", path, data=data, json=json, **kw)

    def put(self, path: str, data: Any = None, **kw: Any) -> requests.Response:
        """PUT; see `request`."""
        return self.request("PUT", path, data=data, **kw)

    def patch(self, path: str, data: Any = None, **kw: Any) -> requests.Response:
        """PATCH; see `request`."""
        return self.request("PATCH", path, data=data, **kw)

    def delete(self, path: str, **kw: Any) -> requests.Response:
        """DELETE; see `request`."""
        return self.request("DELETE", path, **kw)

    def urlopen(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: Any = NOT_GIVEN,
        preload_content: bool = True,
        decode_content: bool = True,
        **response_kw: Any,
    ) -> BaseHTTPResponse:
        """Call *target* below the `base_url` through urllib3, cheaper than requests. Blocks.

        Redirects are returned, not followed.

        Args:
            timeout: As urllib3 takes it: None is no limit.
            preload_content: False: the caller reads the body and must close or release the response.
            response_kw: `chunked`, `enforce_content_length`, as for `HTTPConnectionPool.urlopen`.

        Raises:
            UnknownUpstream: The name has left the file.
            ValueError: *target* is a whole URL, or leaves the base.
            UpstreamError: Refused by circuit, pool or deadline; also a urllib3 exception.
            urllib3.exceptions.HTTPError: What the last attempt raised.
        """
        upstream = self._resolve(self.name)
        base = upstream.plan.base
        prefix = "/" + "/".join(base.segments) if base.segments else ""
        is_plain = not prefix and _is_plain(target) is not None
        if not is_plain:
            target = (
                prefix + (target if is_safe(target) else _below(prefix, checked_path(base, target))) or "/"
            )
        if not method.isupper():
            method = method.upper()
        begun, timeouts = None, upstream.plan.timeouts
        if timeout is not NOT_GIVEN and upstream.mode == "enforce":
            timeouts = limits_of(upstream, timeout)
        if preload_content is decode_content is True and not response_kw:
            quick = quickly(upstream, timeouts, method, target, body, headers, VIEW, None, is_plain)
            if type(quick) is Begun:
                begun = quick
            elif quick is not None:
                return quick  # type: ignore[no-any-return]
        return urlopen(
            upstream,
            self._stock,
            method,
            target,
            timeouts,
            begun,
            body=body,
            headers=headers,
            timeout=timeout,
            preload_content=preload_content,
            decode_content=decode_content,
            **response_kw,
        )

    @overload
    def protect(self, function: Callable[P, T], /) -> Callable[P, T]: ...

    @overload
    def protect(
        self, function: Callable[P, T], /, *, failure_on: Errors = ..., success_on: Errors = ...
    ) -> Callable[P, T]: ...

    @overload
    def protect(
        self, /, *, failure_on: Errors = ..., success_on: Errors = ...
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...

    def protect(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        failure_on: Errors = Exception,
        success_on: Errors = (),
    ) -> Callable[..., Any]:
        """*function* behind this upstream's circuit, for calls that do not go through requests or urllib3.

        Write `billing.protect(stub.GetInvoice)(request)`, or use it as a decorator, `@billing.protect`,
        with arguments as well. It applies the breaker alone: no retry, no limit, no fallback. The
        caller gets what the function returns or raises, untouched.

        A return is a success. An exception of *success_on* is a success, too; one of *failure_on* is
        a failure. All other exceptions say nothing about the upstream. Neither does what is no `Exception`
        (KeyboardInterrupt, CancelledError), a `TimeoutError` before `blame_after`, or a refusal by
        headrace itself, of a governed call inside. The duration is held against `slow_call`. A probe
        that takes longer than `half_open.probe_timeout` has failed.

        A call of the same upstream through requests or urllib3 is governed by itself. Inside a protected
        function it is counted twice, and needs a second probe's place when the circuit is half open.

        Args:
            function: A plain function, or anything that is called like one.
            failure_on: Exception classes, or a function that answers for one exception.
            success_on: Likewise, and asked first: "not found" is an answer.

        Returns:
            A function with the name, the signature and the docstring of *function*. Thread-safe if *function* is;
            it raises `CircuitOpenError` where the circuit refuses, and `UnknownUpstream`
            when the name has left the file.

        Raises:
            TypeError: *function* only makes a coroutine or a generator, or *failure_on* or *success_on* are no
            exceptions.
        """
        if function is None:
            return functools.partial(self.protect, failure_on=failure_on, success_on=success_on)
        return protected(
            self.name, self._resolve, self._in_force, function, failure_on=failure_on, success_on=success_on
        )

    @property
    def aio(self) -> Awaited:
        """The same calls, awaited: `await handle.aio.get("/invoices/7")`."""
        from headrace.adapters.aio.handle import Awaited  # most processes await nothing

        return Awaited(self.name, self._resolve)

    def reset(self) -> None:
        """Forget what this process has learned of the upstream: its circuit and its retry budget begin anew.

        For the operator who knows better than the window: the upstream is mended, or a test begins. It is logged as
        `upstream.reset`. Connections and counts stay. Calls under way end with the circuit and the budget that they
        began with. Other processes are not told. Thread-safe.

        Raises:
            UnknownUpstream: The name has left the file.
        """
        self._reset(self.name)

    def forget_inherited(self, stock: urllib3.PoolManager) -> None:
        """In a forked child: plain connections of its own as well, for the modes `observe` and `off`."""
        self._stock = stock
        for adapter in self._session.adapters.values():
            adapter.init_poolmanager(DEFAULT_POOLSIZE, DEFAULT_POOLSIZE)  # type: ignore[attr-defined]

    def _find(self, request: PreparedRequest) -> Upstream | None:
        """This upstream, unless a redirect has led away from it."""
        upstream = self._resolve(self.name)
        target = target_of(request.url or "")
        base = upstream.plan.base
        is_below = target is not None and target.segments[: len(base.segments)] == base.segments
        if target is not None and target.origin == base.origin and is_below:
            return upstream
        return self._find_by_url(request)

    def _trusts(self, request: PreparedRequest) -> TlsClient | None:
        """The file's TLS, also where it is not enforced: without it a private CA could not be reached by name."""
        upstream = self._find(request)
        return None if upstream is None or upstream.plan.name != self.name else upstream.endpoint.tls

    def __repr__(self) -> str:
        try:
            return f"<Handle {self._resolve(self.name)!r}>"
        except Exception:  # the name or the instance has gone, and a report of just that contains this repr
            return f"<Handle {self.name!r}, which is not in force>"


def _spelled(base: UrlPrefix) -> tuple[UrlPrefix, str, str | None]:
    """*base*, its URL, and its path, if requests leaves them as they are; else None for the path."""
    url = url_of(base)
    prepared = PreparedRequest()
    prepared.prepare_url(f"{url}/a", None)
    is_left = prepared.url == f"{url}/a"
    return base, url, prepared.path_url.removesuffix("/a") if is_left else None


def _no_trust(request: PreparedRequest) -> TlsClient | None:
    """Of its own: stock's holds."""
    return None


def governed_session(
    find: Callable[[PreparedRequest], Upstream | None],
    trusts: Callable[[PreparedRequest], TlsClient | None] = _no_trust,
) -> requests.Session:
    """A `requests.Session`. Its calls are governed where *find* names an upstream; *trusts* as in `GovernedAdapter`.

    It can be copied, and pickled if *find* and *trusts* can.
    """
    return _session_over(GovernedAdapter(find, trusts))


def _session_over(adapter: GovernedAdapter) -> requests.Session:
    session = GovernedSession()
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def close_plain(handle: Handle) -> None:
    """Close the idle connections of *handle* that no rule governs. Its next call makes others."""
    handle._session.close()


def stock_pools() -> urllib3.PoolManager:
    """Plain urllib3, for handles of upstreams that are only observed, or off."""
    return PlainPoolManager(maxsize=10)


def _below(prefix: str, path: str) -> str:
    """*path*, with a slash in front where it has only a query and there is no *prefix* (RFC 9112 §3.2.1)."""
    return f"/{path}" if path.startswith("?") and not prefix else path


def checked_path(base: UrlPrefix, path: str) -> str:
    """*path* with a leading slash, safe to append to *base*.

    Raises:
        requests.exceptions.InvalidURL: A whole URL, `//host`, or dot segments that leave the base (a ValueError, too).
    """
    if not path:
        return ""
    if path.startswith("//") or _FORBIDDEN.search(path):
        raise requests.exceptions.InvalidURL(
            f"{path[:80]!r} must be a path below {url_of(base)}: no //host, spaces, backslashes or control characters"
        )
    bare = path.partition("?")[0].partition("#")[0]
    if _SCHEME.match(bare):
        raise requests.exceptions.InvalidURL(
            f"{path[:80]!r} is a whole URL; pass the path below {url_of(base)}"
        )
    if may_leave(bare):
        raise requests.exceptions.InvalidURL(f"{path[:80]!r} leaves {url_of(base)}")
    return path if path[0] in "/?" else f"/{path}"
