"""The adapter of a handle: headers and address of the file, hop by hop; a connection of its own for whom needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests
from requests.models import PreparedRequest

from headrace.adapters.owner import call_by_name
from headrace.adapters.requests.surface import GovernedAdapter
from headrace.engine.outbound import Outbound
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import current_attempt
from headrace.transport.connection_auth import is_of_connection
from headrace.transport.dial.client import TlsClient
from headrace.transport.stock.pool import with_defaults


class HandleAdapter(GovernedAdapter):
    """Adds the headers of the rule, hop by hop, also where the rule is not enforced.

    An ungoverned call is not limited, retried or refused, but its address and headers are still the
    file's. The headers go to the upstream only. On the request of the caller, requests would take them
    along wherever a redirect leads (it strips Authorization and nothing else).
    """

    def __init__(
        self,
        find: Callable[[PreparedRequest], Upstream | None],
        trusts: Callable[[PreparedRequest], TlsClient | None],
        name: str,
    ) -> None:
        super().__init__(find, trusts)
        self._name = name

    def get_connection_with_tls_context(
        self, request: PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The upstream's pool while an attempt of ours runs, else stock's. An authenticating call has its own."""
        attempt, call = current_attempt.get(), call_by_name.get()
        if call is not None and (attempt is None or attempt.message is not request):
            if call.adapter is None and is_of_connection(request.headers):
                call.adapter = GovernedAdapter(self._find, self._trusts)
            if call.adapter is not None:
                return call.adapter.get_connection_with_tls_context(request, verify, proxies, cert)
        return super().get_connection_with_tls_context(request, verify, proxies, cert)

    @property
    def headrace_owner(self) -> object | None:
        """What `owner_behind` asks for: the call, since all callers of the handle share this adapter."""
        return call_by_name.get()

    def send(self, request: PreparedRequest, *args: Any, **kw: Any) -> requests.Response:
        """As `HTTPAdapter.send`. Blocks."""
        upstream = self._find(request)
        if upstream is not None and upstream.mode != "enforce" and upstream.plan.name == self._name:
            hop: Any = request.copy()
            hop.headers = with_defaults(hop.headers, Outbound(upstream, "", hop.headers).headers)
            hop.url = _as_dns_is_asked(hop.url, upstream)
            request = hop
        return super().send(request, *args, **kw)


def _as_dns_is_asked(url: str, upstream: Upstream) -> str:
    """*url*, which is *upstream*'s, with the final dot that the file writes. Stock gives that to DNS alone."""
    origin = upstream.plan.base.origin
    name, written = upstream.plan.dns_name(origin), f"{origin.scheme}://{origin.host}"
    rest = url.removeprefix(written)
    if name == origin.host or rest == url or rest[:1] not in ("", ":", "/", "?", "#"):
        return url
    return f"{origin.scheme}://{name}{rest}"
