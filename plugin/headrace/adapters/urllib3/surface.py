"""Calls through urllib3: `hr.upstream("x").urlopen(…)`, and the surface that calls by URL use as well."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import urllib3
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from headrace.adapters.body import position_of, rewind
from headrace.adapters.failures import as_it_is, broken_off, facts_of, failure_of
from headrace.adapters.fallback import canned, headers_for, url_at
from headrace.adapters.own_connections import PlainPoolManager
from headrace.adapters.owner import CallByName
from headrace.adapters.timeouts import NOT_GIVEN, timeouts_of_call
from headrace.adapters.twins import URLLIB3
from headrace.adapters.urllib3.buffered import BufferedResponse
from headrace.adapters.urllib3.quick import NO_RETRY
from headrace.engine.begun import Begun
from headrace.engine.call import Call
from headrace.engine.outbound import Outbound
from headrace.engine.shadow import observed
from headrace.engine.surface import Failure, Streamed, Substitute
from headrace.policy.plan import FallbackPlan, TimeoutPlan, UrlPrefix
from headrace.policy.request import Request
from headrace.policy.routes import url_of
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.connection_auth import is_of_connection
from headrace.transport.dial.client import trust_of
from headrace.transport.stock.body import body_of
from headrace.transport.stock.draining import drained
from headrace.transport.stock.own_class import OwnClassPool
from headrace.transport.stock.pool import GovernedHTTPPool, with_defaults
from headrace.transport.stock.response import StreamedResponse
from headrace.transport.wire.response import WireResponse

status_of: Callable[[BaseHTTPResponse], int] = operator.attrgetter("status")


def urlopen(
    upstream: Upstream,
    stock: urllib3.PoolManager,
    method: str,
    target: str,
    timeouts: TimeoutPlan,
    begun: Begun | None,
    *,
    body: Any,
    headers: Mapping[str, str] | None,
    timeout: Any,
    preload_content: bool,
    decode_content: bool,
    **response_kw: Any,
) -> BaseHTTPResponse:
    """One call to *upstream*, the long way. Blocks; redirects are returned, not followed.

    Args:
        stock: Makes the call where the mode is `observe` or `off`.
        method: Upper case.
        target: Path and query on the upstream's origin, already checked.
        timeouts: Those that hold for this call, where the rules are enforced.
        begun: What the short way has done of it; None: nothing.
        body: bytes, str, a file or an iterable.
        timeout: As urllib3 takes it; see `timeouts_of_call`.

    Raises:
        UpstreamError: The twin that is also a urllib3 exception.
        urllib3.exceptions.HTTPError: What the last attempt raised (never MaxRetryError).
    """
    if body is None or isinstance(body, (bytes, str)):
        replayable, body_at = True, None
    else:
        replayable, body_at = position_of(body)
    if upstream.mode != "enforce":
        return _unenforced(
            upstream,
            stock,
            method,
            target,
            body,
            headers,
            timeout,
            preload_content,
            decode_content,
            replayable,
            response_kw,
        )
    surface = UrlopenSurface(
        upstream.endpoint.pool,
        method,
        target,
        body,
        headers,
        body_at,
        {"preload_content": preload_content, "decode_content": decode_content, **response_kw},
        CallByName(),
    )
    request = Request(surface, method, headers, timeouts, not preload_content, replayable)
    return Call(upstream, surface, request, begun=begun).run()


def _unenforced(
    upstream: Upstream,
    stock: urllib3.PoolManager,
    method: str,
    target: str,
    body: Any,
    headers: Mapping[str, str] | None,
    timeout: Any,
    preload_content: bool,
    decode_content: bool,
    replayable: bool,
    response_kw: dict[str, Any],
) -> BaseHTTPResponse:
    """The same call where the rules are not in force: made over *stock*, and observed if they are rehearsed."""
    origin = upstream.plan.base.origin
    if headers and is_of_connection(headers):
        stock = PlainPoolManager()  # for this call alone: all callers of a handle share the other one
    tls = upstream.endpoint.tls
    trust = {} if tls is None else trust_of(tls)
    pool = stock.connection_from_host(
        upstream.plan.dns_name(origin), origin.port, origin.scheme, pool_kwargs=trust
    )
    if timeout is not NOT_GIVEN:
        response_kw["timeout"] = timeout

        # The moment when the head comes is part of what is judged. So we read on from there, not urllib3.
    is_read_here = preload_content and upstream.mode == "observe"

    def go() -> BaseHTTPResponse:  # no partial: its repr would show the arguments, with credentials
        return pool.urlopen(
            method,
            target,
            body=body,
            headers=with_defaults(headers or {}, Outbound(upstream, "", headers).headers),
            retries=False,
            redirect=False,
            preload_content=preload_content and not is_read_here,
            decode_content=decode_content,
            **response_kw,
        )

    def read(answer: BaseHTTPResponse) -> None:
        try:
            answer._body = answer.read(decode_content=decode_content)  # type: ignore[attr-defined]
        except BaseException:
            answer.close()
            raise

    if upstream.mode == "off":
        return go()
    timeouts = timeouts_of_call(upstream.plan.timeouts, timeout)
    return observed(
        upstream,
        go,
        Request(None, method, headers, timeouts, not preload_content, replayable),
        status_of=status_of,
        facts_of=facts_of,
        read=read if is_read_here else None,
    )


def url_through(pool: GovernedHTTPPool, target: str) -> str:
    """The URL that *target* has when it is sent through *pool*."""
    if not target.startswith("/"):
        return target  # whole already, as PoolManager passes it
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    return f"{pool.scheme}://{host}:{pool.port}{target}"


class UrlopenSurface:
    """One call through urllib3."""

    __slots__ = (
        "_body",
        "_body_at",
        "_headers",
        "_method",
        "_pool",
        "_response_kw",
        "_target",
        "owner",
        "owns_all",
    )

    twins = URLLIB3

    def __init__(
        self,
        pool: GovernedHTTPPool,
        method: str,
        target: str,
        body: Any,
        headers: Mapping[str, str] | None,
        body_at: int | None,
        response_kw: dict[str, Any],
        owner: object,
    ) -> None:
        self._pool = pool
        self.owner = owner
        self.owns_all = isinstance(pool, OwnClassPool)
        self._method = method
        self._target = target
        self._body = body
        self._headers = headers
        self._body_at = body_at
        self._response_kw = response_kw

    def send(self, attempt: Attempt) -> BaseHTTPResponse:
        response_kw = self._response_kw
        if response_kw["preload_content"]:
            # The head comes first: it decides how long the body may take.
            response_kw = {**response_kw, "preload_content": False, "release_conn": None}
        elif response_kw.get("release_conn"):
            # Stock gives the connection back before its answer is read. A lease that went back unread would be closed,
            # and the answer with it; so it goes back at the end of the body.
            response_kw = {**response_kw, "release_conn": None}
        return self._pool.urlopen(
            self._method,
            self._target,
            self._body,
            headers=self._headers,
            retries=NO_RETRY,
            redirect=False,
            assert_same_host=False,  # the target is a path
            timeout=attempt,  # urllib3's object is made of it only where stock is asked
            **response_kw,
        )

    def read(self, answer: BaseHTTPResponse, attempt: Attempt) -> None:
        try:
            decode = self._response_kw["decode_content"]
            if type(answer) is WireResponse:
                whole = answer.take(attempt.max_body_bytes)
                if whole is not None:
                    answer._body = whole
                    return
            if attempt.max_body_bytes is None and "content-encoding" not in answer.headers:
                body = answer.read(decode_content=decode)
            else:
                body = body_of(answer, attempt, decode=decode)
            answer._body = body  # type: ignore[attr-defined]  # where urllib3 puts what it preloads: `data` finds it
        except Exception:
            answer.close()
            raise

    def hand_out(self, answer: BaseHTTPResponse) -> None:
        """Nothing to do: it is read, as urllib3 itself would have done."""

    def rewind(self) -> bool:
        return rewind(self._body, self._body_at)

    status = staticmethod(status_of)  # a function in C costs no Python call

    def headers(self, answer: BaseHTTPResponse) -> Mapping[str, str]:
        return answer.headers

    def streamed(self, answer: BaseHTTPResponse) -> Streamed | None:
        return answer if isinstance(answer, StreamedResponse) else None

    def close(self, answer: BaseHTTPResponse) -> None:
        answer.close()

    def set_aside(self, answer: BaseHTTPResponse) -> BaseHTTPResponse | None:
        if self._response_kw["preload_content"]:
            return answer
        body = drained(answer, decode=False)
        answer.close()
        if body is None:
            return None
        return BufferedResponse(
            answer,
            body,
            decode_content=self._response_kw["decode_content"],
            method=self._method,
            url=self._target,
        )

    def canned(self, fallback: FallbackPlan) -> BaseHTTPResponse:
        answer = canned(
            fallback,
            method=self._method,
            url=self._target,
            decode_content=self._response_kw["decode_content"],
        )
        if self._response_kw["preload_content"]:
            answer.data  # noqa: B018 - as urllib3 reads it
        return answer

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[BaseHTTPResponse] | None:
        pool = self._pool
        if self.owns_all:
            return None  # there, it would go over connections of another class than its caller's
        host = f"[{pool.host}]" if ":" in pool.host else pool.host
        base = f"{pool.scheme}://{host}:{pool.port}"
        url = url_at(other, refused, self._target if "://" in self._target else base + self._target)
        if url is None:
            return None
        headers = headers_for(other, refused, self._headers or {})
        target = url.removeprefix(url_of(UrlPrefix(other.plan.base.origin, ()))) or "/"
        surface = UrlopenSurface(
            other.endpoint.pool,
            self._method,
            target,
            self._body,
            headers,
            self._body_at,
            self._response_kw,
            self.owner,
        )
        return Substitute(surface, surface, headers)

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        return failure_of(error, attempt, presents=presents, as_broken=as_it_is)

    def timed_out(self, text: str, attempt: Attempt) -> ReadTimeoutError:
        return ReadTimeoutError(attempt.pool, "", text)

    def broken_off(self, text: str) -> ProtocolError:
        return broken_off(text)

    def family(self) -> dict[str, Any]:
        return {"pool": self._pool}

    def url(self) -> str:
        return url_through(self._pool, self._target)
