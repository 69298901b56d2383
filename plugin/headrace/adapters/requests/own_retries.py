"""Adapters of requests with retries of their own: the adapter's `send` around stock's loop around governed tries.

`HTTPAdapter.send` gets an `_AdapterHop` for a pool. So the caller's `Retry` does all that it does
elsewhere, and the caller gets what requests makes of its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from urllib3.exceptions import ProtocolError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from headrace.adapters.body import rewind
from headrace.adapters.failures import as_it_is, broken_off, failure_of
from headrace.adapters.fallback import canned, headers_for, url_at
from headrace.adapters.owner import owner_behind
from headrace.adapters.requests.body import read_body
from headrace.adapters.twins import REQUESTS
from headrace.adapters.urllib3.buffered import BufferedResponse
from headrace.adapters.urllib3.hop import Hop, RefusalInFlight, is_callers_own
from headrace.adapters.urllib3.own_retries import count_delegated, unsent_only
from headrace.adapters.urllib3.quick import NO_RETRY
from headrace.adapters.urllib3.surface import url_through
from headrace.engine.call import Call
from headrace.engine.surface import Failure, Streamed, Substitute
from headrace.engine.tries import Tries
from headrace.errors import UpstreamError
from headrace.policy.plan import FallbackPlan, UrlPrefix
from headrace.policy.request import Request
from headrace.policy.routes import url_of
from headrace.runtime.carrying import carried_by, carry
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt, current_attempt
from headrace.transport.stock.pool import GovernedHTTPPool
from headrace.transport.stock.response import StreamedResponse


def send_in_tries(
    go: Callable[[], Response],
    upstream: Upstream,
    adapter: HTTPAdapter,
    prepared: PreparedRequest,
    request: Request,
    *,
    is_seen: bool,
    body_at: int | None,
) -> Response:
    """One call to *upstream*, tried as often as the `max_retries` of *adapter* say. Blocks.

    Args:
        go: Stock's `send` of *prepared* by *adapter*.
        request: What the rules need to know of it.
        is_seen: Other code looks at the raw answer before its content is read.
        body_at: As `body.position_of` says.

    Raises:
        UpstreamError: The twin that is also a requests exception; no further try was made.
        requests.RequestException: What requests makes of the last try.
    """
    tries = Tries(upstream)
    timeouts, stream = request.timeouts, request.streamed
    hop = _AdapterHop(upstream.endpoint.pool, upstream, timeouts, tries)
    hop.adapter = adapter
    hop.prepared = prepared
    hop.stream = stream
    hop.replayable = request.replayable
    hop.body_at = body_at
    outer = current_attempt.get()
    try:
        # It stands in for the whole call: by it the adapter finds its pool. Each try has its own.
        current_attempt.set(Attempt(hop, prepared, None, (), timeouts, math.inf, stream))
        response = go()
        if not stream and not is_seen and not response.is_redirect:
            response.content  # noqa: B018 - the Session is about to do this: its error gets the record, too
        if hop.record is not None:
            carry(hop.record, on=response)
        return response
    except RefusalInFlight:
        pass  # raised below, outside of this handler: as its own context it would be a cycle
    except BaseException as error:
        hop.tell(error)
        raise
    finally:
        current_attempt.set(outer)
        tries.settle()
    raise hop.take_refusal()


class _AdapterHop(Hop):
    """The pool through which `HTTPAdapter.send` sends one request."""

    __slots__ = ("adapter", "body_at", "prepared", "replayable", "stream")

    adapter: HTTPAdapter
    prepared: PreparedRequest
    stream: bool
    replayable: bool
    body_at: int | None
    tries: Tries

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
        """Stock's loop, or the next round of it."""
        self.try_again(url)
        if not self.replayable and isinstance(retries, Retry) and not retries.history:
            retries = unsent_only(retries)
        if args:  # stock's loop, calling itself
            return super().urlopen(method, url, body, headers, retries, *args, **kw)
        return super().urlopen(method, url, body, headers=headers, retries=retries, **kw)

    def govern(
        self,
        method: str,
        url: str,
        body: Any,
        headers: Mapping[str, str] | None,
        response_kw: dict[str, Any],
    ) -> BaseHTTPResponse:
        """One try, over the upstream's pool. Blocks."""
        count_delegated(self.upstream)
        surface = _Surface(
            self.upstream.endpoint.pool,
            self.adapter,
            self.prepared,
            url,
            headers or {},
            self.body_at,
            stream=self.stream,
            chunked=response_kw["chunked"],
        )
        try:
            request = Request(surface, method, headers, self.timeouts, self.stream, self.replayable)
            answer = Call(self.upstream, surface, request, tries=self.tries).run()
        except Exception as error:
            # For stock's loop an answer with a broken body is an answer: requests reads the body after the loop.
            broken = surface.broken
            if broken is None or isinstance(error, UpstreamError) or is_callers_own(error):
                raise
            if surface.late is not None:
                broken = BufferedResponse(broken, surface.late, decode_content=False, method=method, url=url)
            if (record := carried_by(error)) is not None:
                carry(record, on=broken)
            return broken
        wire: BaseHTTPResponse = answer.raw
        if isinstance(wire, BufferedResponse):
            wire = wire.handed_out()
        if (record := carried_by(answer)) is not None:
            carry(record, on=wire)
        return wire

    def __str__(self) -> str:
        return f"{self.scheme.upper()}ConnectionPool(host={self.host!r}, port={self.port!r})"


class _Surface:
    """One try through requests. It goes over the wire as in urllib3, and it is judged as a response of requests."""

    __slots__ = (
        "_adapter",
        "_body_at",
        "_chunked",
        "_headers",
        "_pool",
        "_request",
        "_stream",
        "_target",
        "broken",
        "late",
        "owner",
    )

    twins = REQUESTS
    owns_all = False

    def __init__(
        self,
        pool: GovernedHTTPPool,
        adapter: HTTPAdapter,
        request: PreparedRequest,
        target: str,
        headers: Mapping[str, str],
        body_at: int | None,
        *,
        stream: bool,
        chunked: bool,
    ) -> None:
        self._pool = pool
        self._adapter = adapter
        self.owner = owner_behind(adapter)
        self._request = request
        self._target = target
        self._headers = headers
        self._body_at = body_at
        self._stream = stream
        self._chunked = chunked
        self.broken: BufferedResponse | None = None
        self.late: ReadTimeoutError | None = None

    def send(self, attempt: Attempt) -> Response:
        request = self._request
        method = request.method or "GET"
        raw = self._pool.urlopen(
            method,
            self._target,
            request.body,
            headers=self._headers,
            retries=NO_RETRY,
            redirect=False,
            assert_same_host=False,  # the target is a path
            timeout=attempt,
            chunked=self._chunked,
            preload_content=False,
            decode_content=False,
        )
        return self._adapter.build_response(request, raw)

    def read(self, answer: Response, attempt: Attempt) -> None:
        try:
            read_body(answer, attempt, is_seen=True, is_judged=True)  # stock's loop looks at it
        except Exception:
            kept = answer.raw
            self.broken = kept.again() if isinstance(kept, BufferedResponse) else None
            raise

    def hand_out(self, answer: Response) -> None:
        """Not here: `govern` does it."""

    def rewind(self) -> bool:
        return rewind(self._request.body, self._body_at)

    def status(self, answer: Response) -> int:
        return answer.status_code

    def headers(self, answer: Response) -> Mapping[str, str]:
        return answer.headers

    def streamed(self, answer: Response) -> Streamed | None:
        return answer.raw if isinstance(answer.raw, StreamedResponse) else None

    def close(self, answer: Response) -> None:
        answer.close()

    def set_aside(self, answer: Response) -> Response | None:
        return answer  # a try is one attempt: stock's loop sets it aside

    def canned(self, fallback: FallbackPlan) -> Response:
        method = self._request.method or "GET"
        raw = canned(fallback, method=method, url=self._target, decode_content=False)
        return self._adapter.build_response(self._request, raw)

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[Response] | None:
        url = url_at(other, refused, self._request.url or "")
        if url is None:
            return None
        headers = headers_for(other, refused, self._headers)
        surface = _Surface(
            other.endpoint.pool,
            self._adapter,
            self._request,
            url.removeprefix(url_of(UrlPrefix(other.plan.base.origin, ()))) or "/",
            headers,
            self._body_at,
            stream=self._stream,
            chunked=self._chunked,
        )
        return Substitute(surface, surface, headers)

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        return failure_of(error, attempt, presents=presents, as_broken=as_it_is)

    def timed_out(self, text: str, attempt: Attempt) -> ReadTimeoutError:
        self.late = late = ReadTimeoutError(attempt.pool, "", text)
        return late  # stock's loop makes something of it

    def broken_off(self, text: str) -> ProtocolError:
        return broken_off(text)

    def family(self) -> dict[str, Any]:
        return {"request": self._request, "response": None}

    def url(self) -> str:
        return url_through(self._pool, self._target)
