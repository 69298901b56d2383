"""Governed calls straight through urllib3: what `Session.send` and `HTTPAdapter.send` do, where nobody looks.

Between a handle, or a session of ours, and its upstream's pool lie six hundred calls of requests that carry arguments
on. Here they are left out. What remains of requests is what a caller can see: the answer is a `requests.Response`, the
errors are requests' own (requests is asked for them), and redirects are followed by requests.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import requests
import requests.sessions
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from requests.models import REDIRECT_STATI, PreparedRequest, Response
from requests.structures import CaseInsensitiveDict
from urllib3.response import HTTPResponse

from headrace.adapters.body import position_of, rewind
from headrace.adapters.failures import failure_of
from headrace.adapters.requests.answer import Response as DirectResponse
from headrace.adapters.requests.body import hand_out, read_body
from headrace.adapters.requests.plain import Plain
from headrace.adapters.requests.surface import Surface as LongSurface
from headrace.adapters.requests.surface import stock_send
from headrace.adapters.timeouts import limits_of
from headrace.adapters.twins import REQUESTS
from headrace.adapters.urllib3.quick import VIEW, quickly
from headrace.engine.begun import Begun
from headrace.engine.call import Call
from headrace.engine.lane import Told
from headrace.engine.surface import Failure, Streamed, Substitute
from headrace.policy.plan import FallbackPlan
from headrace.policy.request import Request
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from headrace.transport.stock.pool import GovernedHTTPPool
from headrace.transport.stock.response import StreamedResponse
from headrace.transport.wire.response import WireResponse

_REDIRECTS = frozenset(REDIRECT_STATI)


def send_direct(
    upstream: Upstream,
    adapter: HTTPAdapter,
    asked: Plain,
    owner: object | None,
    *,
    timeout: Any,
    stream: bool,
) -> Response:
    """The answer of *upstream*, governed, without its redirects. Blocks.

    Args:
        adapter: What the call would have gone through.
        owner: As `Surface.owner`.
        timeout: As requests takes it.

    Raises:
        UpstreamError: The twin that is also a requests exception.
        requests.RequestException: What the last attempt raised.
    """
    plan = upstream.plan
    clock = requests.sessions.preferred_clock
    began, begun = clock(), None
    timeouts = plan.timeouts if timeout is None else limits_of(upstream, timeout)
    if not (stream or asked.chunked):
        headers = asked.headers
        if type(headers) is CaseInsensitiveDict:
            headers = dict(headers._store.values())
        quick = quickly(
            upstream,
            timeouts,
            asked.method,
            asked.target,
            asked.body,
            headers,
            partial(_view, asked, adapter),
            owner,
        )
        if type(quick) is Begun:
            begun = quick
        elif quick is not None:
            quick._took_s = clock() - began
            return quick  # type: ignore[no-any-return]
    replayable, body_at = (True, None) if type(asked.body) in _AT_HAND else position_of(asked.body)
    is_judged = plan.circuit_breaker.failure_if is not None
    surface = DirectSurface(upstream.endpoint.pool, adapter, asked, owner, body_at, is_judged, stream)
    request = Request(surface, asked.method, asked.headers, timeouts, stream, replayable)
    answer = Call(upstream, surface, request, begun=begun).run()
    answer.elapsed = timedelta(0, clock() - began)
    return answer


def _view(
    asked: Plain, adapter: HTTPAdapter, status: int, head: bytes, body: bytes, told: Told
) -> DirectResponse | None:
    """The answer to *asked* that went the short way; None where its body cannot be decoded."""
    raw = VIEW(status, head, body, told)
    if raw is None:
        return None
    answer = _new_response(DirectResponse)  # `__init__`, written out
    answer.raw = answer._wire = raw
    answer.status_code, answer.url, answer.connection, answer._asked = status, asked.url, adapter, asked
    answer._content, answer._content_consumed = raw._body, True
    raw._body, raw._retries, raw.decode_content = b"", adapter.max_retries, False
    return answer


_new_response: Callable[[type[DirectResponse]], DirectResponse] = DirectResponse.__new__
_status: Callable[[Response], int] = operator.attrgetter("status_code")
_AT_HAND = frozenset({type(None), bytes})


def is_redirect(answer: Response) -> bool:
    """Whether requests would follow *answer*. Makes no headers where the status says no."""
    return answer.status_code in _REDIRECTS and answer.is_redirect


def follow(
    session: requests.Session,
    answer: Response,
    asked: Plain,
    *,
    allow_redirects: bool,
    timeout: Any,
    stream: bool,
    verify: Any = True,
) -> Response:
    """What `Session.send` does with *answer*, a redirect: *session* follows it, or notes what would be next. Blocks.

    Source: `Session.send`, after the response hooks.
    """
    extract_cookies_to_jar(session.cookies, asked.prepared(), answer.raw)
    hops = session.resolve_redirects(
        answer,
        asked.prepared(),
        stream=stream,
        timeout=timeout,
        verify=verify,
        cert=None,
        proxies={},
        yield_requests=not allow_redirects,
    )
    if allow_redirects:
        history = [answer, *hops]
        answer = history.pop()
        if history:
            answer.history = history
    else:
        answer._next = next(hops, None)  # type: ignore[assignment]
    if not stream:
        answer.content  # noqa: B018 - as stock: the broken body of a redirect is an error now
    return answer


class DirectSurface:
    """One call through requests that goes to the upstream's pool at once.

    What is seldom asked is asked of the surface that goes the long way.
    """

    __slots__ = ("_adapter", "_asked", "_body_at", "_is_judged", "_pool", "_stream", "owner")

    twins = REQUESTS
    owns_all = False
    status = staticmethod(_status)

    def __init__(
        self,
        pool: GovernedHTTPPool,
        adapter: HTTPAdapter,
        asked: Plain,
        owner: object | None,
        body_at: int | None,
        is_judged: bool,
        stream: bool,
    ) -> None:
        self._pool = pool
        self._adapter = adapter
        self._asked = asked
        self.owner = owner
        self._body_at = body_at
        self._is_judged = is_judged
        self._stream = stream

    def send(self, attempt: Attempt) -> Response:
        asked = self._asked
        try:
            raw = self._pool.urlopen(
                asked.method,
                asked.target,
                asked.body,
                headers=dict(
                    asked.headers
                ),  # calls share them, and a wrapper of stock's urlopen may add its own
                retries=self._adapter.max_retries,
                redirect=False,
                assert_same_host=False,
                timeout=attempt,
                chunked=asked.chunked,
                preload_content=False,
                decode_content=False,
            )
        except Exception as error:
            told = as_requests_sends(error, asked.prepared())
            if told is error:
                raise
            raise told  # noqa: B904 - its context is *error*, as in requests
        if isinstance(raw, HTTPResponse):
            return DirectResponse(raw, asked, self._adapter)
        return self._adapter.build_response(asked.prepared(), raw)  # a recorder's

    def read(self, answer: Response, attempt: Attempt) -> None:
        wire = answer.raw
        if type(wire) is WireResponse and attempt.max_body_bytes is None and answer._content is False:
            whole = wire.take(None)
            if whole is not None:
                answer._content, answer._content_consumed = whole, True
                return
        if (
            not isinstance(answer, DirectResponse)
            or attempt.max_body_bytes is not None
            or answer.status_code in _REDIRECTS  # its broken body is no error yet
            or "content-encoding" in wire.headers
            or wire.chunked  # requests reads the chunks by itself, with other words for what is wrong with them
        ):
            read_body(answer, attempt, is_seen=False, is_judged=self._is_judged)
            return
        try:
            answer._content = wire.read()
        except Exception as error:
            wire.close()
            told = _as_requests_reads(error)
            if told is error:
                raise
            raise told  # noqa: B904 - likewise
        answer._content_consumed = True

    def headers(self, answer: Response) -> Mapping[str, str]:
        found: Any = answer.raw if isinstance(answer, DirectResponse) else answer
        return found.headers  # type: ignore[no-any-return]

    def hand_out(self, answer: Response) -> None:
        hand_out(answer)

    def rewind(self) -> bool:
        return rewind(self._asked.body, self._body_at)

    def streamed(self, answer: Response) -> Streamed | None:
        return answer.raw if isinstance(answer.raw, StreamedResponse) else None

    def close(self, answer: Response) -> None:
        answer.close()

    def set_aside(self, answer: Response) -> Response | None:
        return self._long_way().set_aside(answer)

    def canned(self, fallback: FallbackPlan) -> Response:
        return self._long_way().canned(fallback)

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[Response] | None:
        return self._long_way().towards(other, refused)

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        return failure_of(error, attempt, presents=presents, as_broken=self._long_way().as_broken)

    def timed_out(self, text: str, attempt: Attempt) -> ReadTimeout:
        return self._long_way().timed_out(text, attempt)

    def broken_off(self, text: str) -> RequestsConnectionError:
        return self._long_way().broken_off(text)

    def family(self) -> dict[str, Any]:
        return {"request": self._asked.prepared(), "response": None}

    def url(self) -> str:
        return self._asked.url

    def _long_way(self) -> LongSurface:
        return LongSurface(
            stock_send(),
            self._adapter,
            self._asked.prepared(),
            self._body_at,
            False,
            self._is_judged,
            stream=self._stream,
            verify=True,
            cert=None,
            proxies={},
        )


class _Told:
    """Stands in for a pool, and for a response of urllib3: it fails with *error*."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def urlopen(self, *args: Any, **kw: Any) -> Any:
        raise self._error

    def stream(self, *args: Any, **kw: Any) -> Any:
        raise self._error


class _Telling(HTTPAdapter):
    """An adapter that connects to nothing."""

    def __init__(self, pool: _Told) -> None:
        self.max_retries = None  # type: ignore[assignment]  # as stock's: never asked
        self._pool = pool

    def get_connection_with_tls_context(self, *args: Any, **kw: Any) -> Any:
        return self._pool

    def cert_verify(self, *args: Any, **kw: Any) -> None:
        """There is no connection."""


def as_requests_sends(error: Exception, request: PreparedRequest) -> Exception:
    """What `HTTPAdapter.send` makes of *error* of urllib3: *error* itself, or one of requests."""
    try:
        stock_send()(_Telling(_Told(error)), request)
    except Exception as told:
        return told
    raise AssertionError("it cannot be sent")


def _as_requests_reads(error: Exception) -> Exception:
    """What `Response.content` makes of *error* of urllib3."""
    response = Response()
    response.status_code, response.raw = 200, _Told(error)
    try:
        response.content  # noqa: B018
    except Exception as told:
        return told
    raise AssertionError("it cannot be read")
