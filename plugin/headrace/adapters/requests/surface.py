"""The requests surface: the governed loop around `HTTPAdapter.send`.

Each attempt is the original `send` of the adapter at hand, so subclasses, mocks and
instrumentation keep working. Only the pool that it sends through is the upstream's.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import ReadTimeout
from requests.models import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from headrace.adapters.body import position_of, rewind
from headrace.adapters.bundles import is_bundle_of, is_bundle_of_environment
from headrace.adapters.failures import broken_off, facts_of, failure_of
from headrace.adapters.fallback import canned, headers_for, url_at
from headrace.adapters.layers import without_ours
from headrace.adapters.own_connections import PlainPoolManager, settled_by_adapter
from headrace.adapters.owner import owner_behind
from headrace.adapters.requests.body import hand_out, read_body
from headrace.adapters.requests.built import IS_KNOWN, response_of
from headrace.adapters.requests.own_retries import send_in_tries
from headrace.adapters.requests.stock import is_stock_below
from headrace.adapters.timeouts import limits_of
from headrace.adapters.twins import REQUESTS
from headrace.adapters.urllib3.buffered import BufferedResponse
from headrace.adapters.urllib3.own_retries import count_delegated, retries_itself
from headrace.adapters.urllib3.quick import VIEW, quickly
from headrace.engine.begun import Begun
from headrace.engine.call import Call
from headrace.engine.lane import Told, record_of_told
from headrace.engine.notices import count_ungoverned, let_through
from headrace.engine.shadow import observed
from headrace.engine.surface import Failure, Streamed, Substitute
from headrace.engine.tries import Tries
from headrace.policy.plan import FallbackPlan, TimeoutPlan, UpstreamPlan
from headrace.policy.request import Request
from headrace.runtime.carrying import carry
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.dial.client import TlsClient, trust_of
from headrace.transport.stock.draining import drained
from headrace.transport.stock.response import StreamedResponse
from headrace.transport.stock.timeout import AttemptTimeout

Send = Callable[..., Response]
"""`HTTPAdapter.send`, unbound."""

_status: Callable[[Response], int] = operator.attrgetter("status_code")


def send(
    original: Send,
    upstream: Upstream,
    adapter: HTTPAdapter,
    request: PreparedRequest,
    stream: bool,
    timeout: Any,
    verify: Any,
    cert: Any,
    proxies: Mapping[str, str] | None,
) -> Response:
    """One call to *upstream*, governed as its mode says. Blocks.

    The arguments after *adapter* are those of `HTTPAdapter.send`, in its order.

    Raises:
        UpstreamError: The twin that is also a requests exception.
        requests.RequestException: What the last attempt raised.
    """

    def go() -> Response:  # no partial: its repr would show the arguments, with passwords of proxies
        return original(
            adapter, request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
        )

    if upstream.mode == "off":
        return go()
    reason = reason_to_pass(upstream.plan, adapter, request.url, verify, cert, proxies)
    if reason is not None:
        count_ungoverned(upstream, reason)
        return let_through(request, go)
    is_delegated = retries_itself(adapter.max_retries)
    timeouts = upstream.plan.timeouts if timeout is None else limits_of(upstream, timeout)
    method = (request.method or "GET").upper()
    body = request.body
    # Not requests' own `_body_position`: a request that is prepared once and sent twice begins elsewhere then.
    replayable, body_at = (True, None) if body is None or type(body) is bytes else position_of(body)
    # Response hooks, or a `send` around ours, look at it before the Session reads the content.
    is_seen = not stream and (
        bool(request.hooks and request.hooks.get("response"))
        or not (type(adapter).send is HTTPAdapter.send or isinstance(adapter, GovernedAdapter))
    )
    asked = Request(request, method, request.headers, timeouts, stream, replayable)
    if upstream.mode == "observe":
        asked.streamed = stream or is_seen
        return observed(
            upstream,
            go,
            asked,
            status_of=_status,
            facts_of=facts_of,
            nth_try=int(is_delegated),
            read=None if asked.streamed else _read,
        )
    begun = None
    if not (stream or is_seen or is_delegated or cert):
        quick = quickly_as_prepared(original, upstream, timeouts, adapter, request)
        if type(quick) is Begun:
            begun = quick
        elif quick is not None:
            return quick  # type: ignore[no-any-return]
    verify = as_existing(verify)
    tries = None
    if is_delegated:
        if _asks_for_a_pool(original):
            return send_in_tries(go, upstream, adapter, request, asked, is_seen=is_seen, body_at=body_at)
        tries = Tries(upstream)  # one, as far as we can see
        count_delegated(upstream)
    try:
        return send_by_call(
            original,
            upstream,
            adapter,
            request,
            asked,
            begun=begun,
            tries=tries,
            is_seen=is_seen,
            body_at=body_at,
            verify=verify,
            cert=cert,
            proxies=proxies,
        )
    finally:
        if tries is not None:
            tries.settle()


def as_existing(verify: Any) -> Any:
    """*verify* of a governed call, as stock's `send` takes it."""
    if verify is not True and isinstance(verify, (str, os.PathLike)) and not os.path.exists(verify):
        # The environment names it (`reason_to_pass`). The rule's connection does not go by it, but stock's
        # `cert_verify` would refuse a bundle that is not there.
        return True
    return verify


def send_by_call(
    original: Send,
    upstream: Upstream,
    adapter: HTTPAdapter,
    request: PreparedRequest,
    asked: Request,
    *,
    begun: Begun | None = None,
    tries: Tries | None = None,
    is_seen: bool = False,
    body_at: int | None,
    verify: Any,
    cert: Any = None,
    proxies: Mapping[str, str] | None,
) -> Response:
    """The long way of a call: each attempt is *original*, an adapter's `send`. Blocks.

    Args:
        begun: What the short way has done already.
        is_seen: Somebody looks at the answer before its content is read.
        body_at: Where the body begins.
        verify: A bundle that is there, or True.
    """
    surface = Surface(
        original,
        adapter,
        request,
        body_at,
        is_seen,
        upstream.plan.circuit_breaker.failure_if is not None,
        stream=asked.streamed,
        verify=verify,
        cert=cert,
        proxies=proxies,
    )
    return Call(upstream, surface, asked, tries=tries, begun=begun).run()


# A path that requests hands on as it stands. It leaves a bare question mark out, and some versions a second slash.
_target_of: Callable[[str], re.Match[str] | None] = re.compile(
    r"https?://[A-Za-z0-9.:\[\]-]+(/(?!/)[^?#]*(?:\?[^#]+)?)"
).fullmatch


def quickly_as_prepared(
    original: Send, upstream: Upstream, timeouts: TimeoutPlan, adapter: HTTPAdapter, request: PreparedRequest
) -> Any:
    """What `quickly` answers to *request*; None, too, where *original* may do something of its own. Blocks."""
    body, headers = request.body, request.headers
    if (
        type(request) is not PreparedRequest
        or type(adapter) not in _PLAIN_ADAPTERS
        or type(headers) is not CaseInsensitiveDict
        or not OF_ADAPTER.isdisjoint(adapter.__dict__)
        or not is_stock_below(original)
    ):
        return None
    target = _target_of(request.url or "")
    if target is None or (body is not None and "content-length" not in headers._store):  # it goes in chunks
        return None
    return quickly_through(
        upstream, timeouts, adapter, request, request.method or "", target[1], body, headers
    )


def quickly_through(
    upstream: Upstream,
    timeouts: TimeoutPlan,
    adapter: HTTPAdapter,
    request: PreparedRequest,
    method: str,
    target: str,
    body: object,
    headers: Mapping[str, Any],
) -> Any:
    """What `quickly` answers, as *adapter* answers *request*. Blocks."""
    view = partial(_view, adapter, request)
    return quickly(upstream, timeouts, method, target, body, headers, view, owner_behind(adapter))


def _view(
    adapter: HTTPAdapter, request: PreparedRequest, status: int, head: bytes, body: bytes, told: Told
) -> Response | None:
    """What the adapter makes of an answer that went the short way; None where its body cannot be decoded."""
    raw = VIEW(status, head, body, told)
    if raw is None:
        return None
    content: Any = raw._body
    raw._body, raw._retries, raw.decode_content = b"", adapter.max_retries, False
    if IS_KNOWN:
        return response_of(adapter, request, raw, content, record_of_told(told))
    answer = adapter.build_response(request, raw)
    answer._content, answer._content_consumed = content, True
    carry(record_of_told(told), on=answer)
    return answer


def _read(response: Response) -> None:
    if not response.is_redirect:
        response.content  # noqa: B018 - the Session is about to do this, and the body is part of what is judged


def _asks_for_a_pool(original: Send) -> bool:
    """Whether *original* will send through the pool that we answer with: mocks do not."""
    return getattr(original, "__module__", None) == HTTPAdapter.__module__


class GovernedAdapter(HTTPAdapter):
    """An adapter that governs its calls, with or without `install`.

    Args:
        find: The upstream that a request belongs to, or None to send it as stock does.
        trusts: Answers which TLS holds for a request that is sent as stock does, or None for stock's own.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_find", "_trusts"]  # noqa: RUF012 - what a pickle keeps; a list, as in requests

    def __init__(
        self,
        find: Callable[[PreparedRequest], Upstream | None],
        trusts: Callable[[PreparedRequest], TlsClient | None],
    ) -> None:
        super().__init__()
        self._find = find
        self._trusts = trusts

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        """Stock's pools, also where urllib3 is governed: `send` has decided before they are asked."""
        super().init_poolmanager(connections, maxsize, block=block, **pool_kwargs)
        self.poolmanager = PlainPoolManager(
            num_pools=connections, maxsize=maxsize, block=block, **pool_kwargs
        )

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        """As `HTTPAdapter.send`. Blocks."""
        upstream = self._find(request)
        if upstream is None:
            return stock_send()(self, request, stream, timeout, verify, cert, proxies)
        return send(stock_send(), upstream, self, request, stream, timeout, verify, cert, proxies)

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The upstream's pool while an attempt of ours runs, else stock's."""
        attempt = current_attempt.get()
        if attempt is not None and attempt.message is request:
            return attempt.pool
        tls = self._trusts(request) if verify is True and not cert and not proxies else None
        if tls is not None:
            host, _ = self.build_connection_pool_key_attributes(request, verify, cert)
            return self.poolmanager.connection_from_host(**host, pool_kwargs=trust_of(tls))
        return super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)


_PLAIN_ADAPTERS: Final = frozenset({HTTPAdapter, GovernedAdapter})
OF_ADAPTER: Final = frozenset({"send", "build_response", "add_headers", "request_url"})
"""What `settled_by_adapter` does not look at."""


class Surface:
    """One call through requests."""

    __slots__ = (
        "_adapter",
        "_arguments",
        "_asked",
        "_body_at",
        "_is_judged",
        "_is_seen",
        "_original",
        "_request",
        "owner",
    )

    twins = REQUESTS
    owns_all = False
    status = staticmethod(_status)

    def __init__(
        self,
        original: Send,
        adapter: HTTPAdapter,
        request: PreparedRequest,
        body_at: int | None,
        is_seen: bool,
        is_judged: bool,
        asked: PreparedRequest | None = None,
        **arguments: Any,
    ) -> None:
        self._original = original
        self._adapter = adapter
        self.owner = owner_behind(adapter)
        self._request = request
        self._body_at = body_at
        self._is_seen = is_seen
        self._is_judged = is_judged
        self._asked = asked  # for a fallback elsewhere: the request that this one replaces
        self._arguments = arguments

    def send(self, attempt: Attempt) -> Response:
        response = self._original(
            self._adapter, self._request, timeout=AttemptTimeout(attempt), **self._arguments
        )
        if self._asked is not None:
            _answer_as_to(self._asked, response)
        return response

    def read(self, answer: Response, attempt: Attempt) -> None:
        read_body(answer, attempt, is_seen=self._is_seen, is_judged=self._is_judged)

    def hand_out(self, answer: Response) -> None:
        hand_out(answer)

    def rewind(self) -> bool:
        return rewind(self._request.body, self._body_at)

    def headers(self, answer: Response) -> Mapping[str, str]:
        return answer.headers

    def streamed(self, answer: Response) -> Streamed | None:
        return answer.raw if isinstance(answer.raw, StreamedResponse) else None

    def close(self, answer: Response) -> None:
        answer.close()

    def set_aside(self, answer: Response) -> Response | None:
        if not self._arguments["stream"]:
            return answer
        wire = answer.raw
        body = drained(wire, decode=False)
        wire.close()
        if body is None:
            return None
        request = self._request
        answer.raw = BufferedResponse(
            wire,
            body,
            decode_content=wire.decode_content,
            method=request.method or "GET",
            url=wire.url or "",
        )
        return answer

    def canned(self, fallback: FallbackPlan) -> Response:
        request = self._request
        raw = canned(fallback, method=_method(request), url=request.url or "")
        return self._adapter.build_response(request, raw)

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[Response] | None:
        url = url_at(other, refused, self._request.url or "")
        if url is None:
            return None
        request = self._request.copy()
        request.url = url
        request.headers = CaseInsensitiveDict(headers_for(other, refused, request.headers))
        # The upstream's own trust holds and no proxy is asked, as for every governed call.
        arguments = {**self._arguments, "verify": True, "cert": None, "proxies": None}
        asked = self._asked
        if asked is None and other.plan.base.origin != refused.plan.base.origin:
            asked = self._request
        surface = Surface(
            self._original,
            self._adapter,
            request,
            self._body_at,
            self._is_seen,
            other.plan.circuit_breaker.failure_if is not None,
            asked,
            **arguments,
        )
        return Substitute(surface, request, request.headers)

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        return failure_of(error, attempt, presents=presents, as_broken=self.as_broken)

    def timed_out(self, text: str, attempt: Attempt) -> ReadTimeout:
        return ReadTimeout(ReadTimeoutError(attempt.pool, "", text), request=self._request)

    def broken_off(self, text: str) -> RequestsConnectionError:
        return self.as_broken(broken_off(text))

    def as_broken(self, cause: ProtocolError) -> RequestsConnectionError:
        return RequestsConnectionError(cause, request=self._request)

    def family(self) -> dict[str, Any]:
        return {"request": self._request, "response": None}

    def url(self) -> str:
        return self._request.url or ""


def _answer_as_to(asked: PreparedRequest, response: Response) -> None:
    """Keep a Session from taking credentials of *asked* to its fallback, and the fallback's cookies for its host's.

    Mutates *response*. Its own `cookies` have been read.
    """
    # A Session that follows a redirect strips credentials where it leaves the host of this request. It takes them
    # from the caller's request, and they are meant for that host.
    response.request = asked
    headers = getattr(getattr(response.raw, "_original_response", None), "msg", None)
    if headers is not None:  # requests looks for cookies there
        del headers["Set-Cookie"]


def _method(request: PreparedRequest) -> str:
    return (request.method or "GET").upper()


def reason_to_pass(
    plan: UpstreamPlan,
    adapter: HTTPAdapter,
    url: str | None,
    verify: Any,
    cert: Any,
    proxies: Mapping[str, str] | None,
) -> str | None:
    """Why this call must pass through untouched, or None: the label of `headrace_ungoverned_calls_total`."""
    if proxies and select_proxy(url or "", dict(proxies)):
        return "proxy"
    tls = plan.tls
    settled = settled_by_adapter(adapter, "http" if tls is None else "https", tls)
    if settled is not None or tls is None:
        return settled
    if cert:
        return "tls"
    if verify is None or verify is True or verify is tls.verify:
        return None
    if isinstance(verify, (str, os.PathLike)) and (
        is_bundle_of_environment(verify) or is_bundle_of(tls, verify)
    ):
        return None
    return "tls"


def stock_send() -> Send:
    """`HTTPAdapter.send` as it is now, without our own patch: mocks and instrumentation of it see the call."""
    send: Send = HTTPAdapter.send
    return without_ours(send)
