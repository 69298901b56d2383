"""The patch of requests: `HTTPAdapter.send` and its choice of pool, replaced and put back.

Others patch the same methods (mocks, instrumentation) and put back what they found,
in any order. Their exit may throw out a layer of ours, or bring one back after we have
left. So each start lays a new layer on top unless ours is there already, and a layer
below a newer one of ours steps aside.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response
from requests.sessions import Session

from headrace.adapters.layers import is_ours, without_ours
from headrace.adapters.requests import surface as governed
from headrace.adapters.requests.straight import is_librarys, request_straight
from headrace.adapters.routing import Routing, count_unknown
from headrace.adapters.urllib3.patch import settled
from headrace.transport.attempt import current_attempt


class RequestsPatch:
    """`HTTPAdapter.send` and its choice of pool, replaced; `undo` puts back what was there."""

    def __init__(self, routing: Routing) -> None:
        # A forgotten layer of ours on top is replaced, not covered.
        original_send = without_ours(HTTPAdapter.send)
        original_request = without_ours(Session.request)
        original_choose = without_ours(HTTPAdapter.get_connection_with_tls_context)

        def send(
            self: HTTPAdapter,
            request: PreparedRequest,
            stream: bool = False,
            timeout: Any = None,
            verify: Any = True,
            cert: Any = None,
            proxies: Any = None,
        ) -> Response:
            attempt = current_attempt.get()
            # Otherwise this is the attempt itself, or a newer layer of ours, on top, has seen the call already.
            if (attempt is None or attempt.message is not request) and (
                _newest is send or HTTPAdapter.send is not _newest
            ):
                upstream = routing.find(request.url or "")
                if upstream is not None:
                    return governed.send(
                        original_send, upstream, self, request, stream, timeout, verify, cert, proxies
                    )
                count_unknown(request.url or "")
            return original_send(self, request, stream, timeout, verify, cert, proxies)

        def get_connection_with_tls_context(
            self: HTTPAdapter,
            request: PreparedRequest,
            verify: Any,
            proxies: Any = None,
            cert: Any = None,
        ) -> Any:
            attempt = current_attempt.get()
            if attempt is not None and attempt.message is request:
                return attempt.pool
            # `send` above has settled what becomes of this call. The urllib3 below must not ask again.
            token = settled.set(True)
            try:
                return original_choose(self, request, verify, proxies=proxies, cert=cert)
            finally:
                settled.reset(token)

        def request(
            self: Session,
            method: Any,
            url: Any,
            params: Any = None,
            data: Any = None,
            headers: Any = None,
            cookies: Any = None,
            files: Any = None,
            auth: Any = None,
            timeout: Any = None,
            allow_redirects: Any = True,
            proxies: Any = None,
            hooks: Any = None,
            stream: Any = None,
            verify: Any = None,
            cert: Any = None,
            json: Any = None,
        ) -> Response:
            answer = request_straight(
                routing,
                self,
                method,
                url,
                params,
                data,
                headers,
                cookies,
                files,
                auth,
                timeout,
                allow_redirects,
                proxies,
                hooks,
                stream,
                verify,
                cert,
                json,
            )
            if answer is not None:
                return answer
            return original_request(
                self,
                method,
                url,
                params=params,
                data=data,
                headers=headers,
                cookies=cookies,
                files=files,
                auth=auth,
                timeout=timeout,
                allow_redirects=allow_redirects,
                proxies=proxies,
                hooks=hooks,
                stream=stream,
                verify=verify,
                cert=cert,
                json=json,
            )

        global _newest
        _newest = send
        send.headrace_original = original_send  # type: ignore[attr-defined]
        get_connection_with_tls_context.headrace_original = original_choose  # type: ignore[attr-defined]
        request.headrace_original = original_request  # type: ignore[attr-defined]
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(request, name, getattr(original_request, name, None))
        _replace(HTTPAdapter, "send", send)
        if is_librarys(
            original_request
        ):  # another sees each call as it is made, with the arguments that it has
            _replace(Session, "request", request)
        _replace(HTTPAdapter, "get_connection_with_tls_context", get_connection_with_tls_context)

    @staticmethod
    def imported() -> tuple[ModuleType, ...]:
        """requests: headrace itself imports it."""
        return (requests,)

    @staticmethod
    def is_on_top() -> bool:
        """Whether a layer of ours is the first that a call meets."""
        return is_ours(HTTPAdapter.send)

    @staticmethod
    def undo() -> None:
        """Put back what a layer of ours on top has found. A covered layer stays: it is still called."""
        _replace(Session, "request", without_ours(Session.request))
        _replace(HTTPAdapter, "send", without_ours(HTTPAdapter.send))
        _replace(
            HTTPAdapter,
            "get_connection_with_tls_context",
            without_ours(HTTPAdapter.get_connection_with_tls_context),
        )


_newest: Callable[..., Any] | None = None
"""The layer laid last. One thread at a time writes it (`install`)."""


def _replace(kind: type[Any], name: str, function: Callable[..., Any]) -> None:
    setattr(kind, name, function)
