"""The patch of requests: `HTTPAdapter.send` and its choice of pool, replaced and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response

from headrace.adapters import requests as governed
from headrace.adapters.routing import Routing, count_unknown
from headrace.adapters.urllib3_patch import settled
from headrace.transport.attempt import current_attempt


class RequestsPatch:
    """`HTTPAdapter.send` and its choice of pool, replaced; `undo` puts back what was there."""

    def __init__(self, routing: Routing) -> None:
        self._send = original_send = HTTPAdapter.send
        self._choose = original_choose = HTTPAdapter.get_connection_with_tls_context

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
            if attempt is None or attempt.message is not request:  # else: this is the attempt itself
                upstream = routing.find(request.url or "")
                if upstream is not None:
                    return governed.send(
                        original_send,
                        upstream,
                        self,
                        request,
                        stream=stream,
                        timeout=timeout,
                        verify=verify,
                        cert=cert,
                        proxies=proxies,
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
            # What becomes of this call was settled above, in `send`: the urllib3 below must not ask again.
            token = settled.set(True)
            try:
                return original_choose(self, request, verify, proxies=proxies, cert=cert)
            finally:
                settled.reset(token)

        send.headrace_original = original_send  # type: ignore[attr-defined]
        self._our_send: Callable[..., Any] = send
        self._our_choose: Callable[..., Any] = get_connection_with_tls_context
        _replace("send", send)
        _replace("get_connection_with_tls_context", get_connection_with_tls_context)

    def undo(self) -> bool:
        """Put the originals back; False when somebody has patched over ours since, who still calls it."""
        if (
            HTTPAdapter.send is not self._our_send
            or HTTPAdapter.get_connection_with_tls_context is not self._our_choose
        ):
            return False
        _replace("send", self._send)
        _replace("get_connection_with_tls_context", self._choose)
        return True


def _replace(name: str, function: Callable[..., Any]) -> None:
    setattr(HTTPAdapter, name, function)
