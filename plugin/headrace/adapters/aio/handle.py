"""Calls by name that are awaited: `await hr.upstream("billing").aio.get("/invoices/7")`."""

from __future__ import annotations

import asyncio
import json as json_module
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

from headrace.adapters.aio.answer import Answer
from headrace.adapters.aio.surface import AwaitedSurface
from headrace.adapters.handles import checked_path, is_safe
from headrace.adapters.timeouts import NOT_GIVEN, limits_of
from headrace.clock import monotonic
from headrace.engine.aio import AwaitedCall
from headrace.errors import HeadraceError
from headrace.policy.counters import UpstreamCounters
from headrace.policy.request import Request
from headrace.runtime.state import learned_nothing
from headrace.runtime.upstream import Upstream

Content: TypeAlias = "bytes | bytearray | str | AsyncIterable[bytes] | None"

_UNRULED: Final = "aio"
_LEFT_AS_IT_IS: Final = "/?:@!$&'()*+,;=-._~%[]"


class Awaited:
    """The calls of one upstream, awaited. It holds no state, and may be used on any number of event loops.

    The same rules, circuit, budget, counters and limit of connections hold as for calls that block. Redirects are
    answers, and cookies are not kept. It needs asyncio (uvloop as well).
    """

    __slots__ = ("_resolve", "name")

    def __init__(self, name: str, resolve: Callable[[str], Upstream]) -> None:
        self.name = name
        self._resolve = resolve

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        data: Any = None,
        json: Any = None,
        timeout: Any = NOT_GIVEN,
    ) -> Answer:
        """Call *path* below the `base_url`; the answer with its body.

        Args:
            params: The query, as `urllib.parse.urlencode` takes it.
            content: The body. What is iterated over is sent once, by chunks unless a Content-Length is given.
            data: A form, likewise a mapping or pairs.
            json: Sent as JSON.
            timeout: Limits of this call's own: seconds, (connect, read), or None for none.

        Raises:
            UnknownUpstream: The name has left the file.
            ValueError: *path* is a whole URL, or leaves the base; or the request cannot be sent so.
            UpstreamError: Refused by circuit, pool or deadline.
            TransportError: The last attempt had no answer.
        """
        return await self._call(method, path, params, headers, content, data, json, timeout, streamed=False)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Any = None,
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        data: Any = None,
        json: Any = None,
        timeout: Any = NOT_GIVEN,
    ) -> AsyncIterator[Answer]:
        """The same, and its body is yet to be read: `async with billing.aio.stream("GET", path) as answer:`."""
        answer = await self._call(method, path, params, headers, content, data, json, timeout, streamed=True)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def get(self, path: str, **kw: Any) -> Answer:
        """GET; see `request`."""
        return await self.request("GET", path, **kw)

    async def options(self, path: str, **kw: Any) -> Answer:
        """OPTIONS; see `request`."""
        return await self.request("OPTIONS", path, **kw)

    async def head(self, path: str, **kw: Any) -> Answer:
        """HEAD; see `request`."""
        return await self.request("HEAD", path, **kw)

    async def post(self, path: str, **kw: Any) -> Answer:
        """POST; see `request`."""
        return await self.request("POST", path, **kw)

    async def put(self, path: str, **kw: Any) -> Answer:
        """PUT; see `request`."""
        return await self.request("PUT", path, **kw)

    async def patch(self, path: str, **kw: Any) -> Answer:
        """PATCH; see `request`."""
        return await self.request("PATCH", path, **kw)

    async def delete(self, path: str, **kw: Any) -> Answer:
        """DELETE; see `request`."""
        return await self.request("DELETE", path, **kw)

    async def _call(
        self,
        method: str,
        path: str,
        params: Any,
        headers: Mapping[str, str] | None,
        content: Content,
        data: Any,
        json: Any,
        timeout: Any,
        *,
        streamed: bool,
    ) -> Answer:
        if asyncio._get_running_loop() is None:
            raise HeadraceError(
                f'upstream "{self.name}": calls of .aio need a running event loop of asyncio (uvloop is one); '
                "trio is not supported: await them by trio-asyncio, or call .get() on a thread"
            )
        began = monotonic()
        upstream = self._resolve(self.name)
        if upstream.mode != "enforce":
            upstream = _unruled(upstream)
        method = method.upper()
        own = dict(headers or {})
        body = _body_of(own, content, data, json)
        surface = AwaitedSurface(
            upstream, method, _target_of(upstream, path, params), own, body, streamed=streamed
        )
        timeouts = upstream.plan.timeouts if timeout is NOT_GIVEN else limits_of(upstream, timeout)
        replayable = body is None or isinstance(body, bytes)
        request = Request(surface, method, own, timeouts, streamed, replayable)
        answer: Answer = await AwaitedCall(upstream, surface, request).run()
        answer.elapsed = timedelta(0, monotonic() - began)
        return answer

    def __repr__(self) -> str:
        return f"<Awaited {self.name!r}>"


def _unruled(upstream: Upstream) -> Upstream:
    """*upstream* where its rules are not enforced: one attempt, no circuit; nothing is learned or counted of calls."""
    found: Upstream | None = upstream.compiled.get(_UNRULED)
    if found is None:
        plan = upstream.plan
        plan = replace(
            plan,
            retry=replace(plan.retry, max_attempts=1),
            circuit_breaker=replace(plan.circuit_breaker, mode="disabled"),
            fallback=None,
        )
        nothing = learned_nothing(plan, UpstreamCounters(lock=threading.Lock()), mode=upstream.mode)
        found = replace(upstream, plan=plan, learned=nothing, fallback=None, compiled={})
        upstream.compiled[_UNRULED] = found
    return found


def _target_of(upstream: Upstream, path: str, params: Any) -> str:
    base = upstream.plan.base
    prefix = "/" + "/".join(base.segments) if base.segments else ""
    if not params and is_safe(path):  # nothing in it is encoded, and it cannot leave the base
        return prefix + path
    target = prefix + checked_path(base, path).partition("#")[0]
    if params:
        query = urlencode(params, doseq=True)
        target += ("&" if "?" in target else "?") + query
    if not target.startswith("/"):
        target = f"/{target}"
    return quote(target, safe=_LEFT_AS_IT_IS)


def _body_of(
    headers: dict[str, str], content: Content, data: Any, json: Any
) -> bytes | AsyncIterable[bytes] | None:
    """The body, and its Content-Type in *headers* unless they have one. Mutates *headers*.

    Raises:
        TypeError: More than one of them is given; or the content is nothing that can be sent.
    """
    if sum(one is not None for one in (content, data, json)) > 1:
        raise TypeError("give one of content, data and json")
    kind, body = None, content
    if json is not None:
        kind = "application/json"
        body = json_module.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    elif data is not None:
        kind = "application/x-www-form-urlencoded"
        body = urlencode(data, doseq=True).encode()
    if kind is not None and not any(name.lower() == "content-type" for name in headers):
        headers["Content-Type"] = kind
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytearray, memoryview)):
        return bytes(body)
    if body is None or isinstance(body, bytes) or hasattr(body, "__aiter__"):
        return body
    raise TypeError(f"content must be bytes, text or an async iterable of bytes, not {type(body).__name__}")
