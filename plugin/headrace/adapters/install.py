"""The one place where headrace reaches into a library: routes of the process, and the patch of requests.

One route table per process. `_lock` guards the table and the patch; it is taken
by start, close and reload only. Calls read `_routes`, one reference, without it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from requests.models import PreparedRequest, Response

from headrace.adapters import requests as governed
from headrace.errors import ConfigError
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import RouteTable, url_of
from headrace.runtime.inbound import inbound_var
from headrace.runtime.snapshot import Snapshot, routes_of
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import current_attempt

_MOST_HOSTS = 1000

_lock = threading.Lock()
_published: dict[object, Snapshot] = {}
_routes: RouteTable[Upstream] = RouteTable(())
_patch: _RequestsPatch | None = None
_unknown: dict[str, int] = {}
_unknown_lock = threading.Lock()


def publish(owner: object, snapshot: Snapshot) -> None:
    """Make the URLs of *snapshot* lead to it, in place of what *owner* published before. Thread-safe.

    Raises:
        ConfigError: Another instance claims one of them; nothing has changed then.
    """
    global _routes
    with _lock:
        _refuse_double_claims(owner, snapshot)
        _published[owner] = snapshot
        _routes = _merged()
        _patch_as_needed()


def withdraw(owner: object) -> None:
    """Take the URLs of *owner* out; with the last owner goes the patch. Thread-safe; idempotent."""
    global _routes
    with _lock:
        if _published.pop(owner, None) is not None:
            _routes = _merged()
            _patch_as_needed()


def owners() -> list[object]:
    """Everybody who has published, oldest first."""
    with _lock:
        return list(_published)


def find(url: str) -> Upstream | None:
    """The upstream that *url* belongs to: by the snapshot the inbound request began with, else the one in force."""
    inbound = inbound_var.get()
    if inbound is not None:
        bound = inbound.snapshot.routes.match_url(url)
        # A request that outlived `reload.drain` finds its pool stopped, and goes on with what is in force.
        if bound is not None and not bound[1].state.pool.leases.stopped:
            return bound[1]
    found = _routes.match_url(url)
    return None if found is None else found[1]


def busiest_unknown_hosts(most: int = 20) -> list[tuple[str, int]]:
    """Hosts that no file names, with the calls that passed through to them, busiest first."""
    with _unknown_lock:
        rows = list(_unknown.items())
    return sorted(rows, key=lambda row: -row[1])[:most]


class _RequestsPatch:
    """`HTTPAdapter.send` and its choice of pool, replaced; `undo` puts back what was there."""

    def __init__(self) -> None:
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
                upstream = find(request.url or "")
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
                _count_unknown(request.url or "")
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
            return original_choose(self, request, verify, proxies=proxies, cert=cert)

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


def _patch_as_needed() -> None:
    """Patch with the first instance that wants it, undo with the last. Under `_lock`."""
    global _patch
    wanted = any(snapshot.configuration.install.requests for snapshot in _published.values())
    if wanted and _patch is None:
        _patch = _RequestsPatch()
    elif not wanted and _patch is not None and _patch.undo():
        # Otherwise it stays, finds no route for anything, and passes through: taking it out from under
        # another patch would undo that one as well.
        _patch = None


def _forget_inherited() -> None:
    """In a forked child: whoever held the locks does not exist here."""
    global _lock, _unknown_lock
    _lock = threading.Lock()
    _unknown_lock = threading.Lock()


def _merged() -> RouteTable[Upstream]:
    return RouteTable(
        pair
        for snapshot in _published.values()
        if snapshot.configuration.install.requests
        for pair in routes_of(snapshot.upstreams.values())
    )


def _refuse_double_claims(owner: object, snapshot: Snapshot) -> None:
    claimed: dict[UrlPrefix, str] = {}
    for other, published in _published.items():
        if other is not owner:
            for prefix, upstream in routes_of(published.upstreams.values()):
                claimed[prefix] = upstream.plan.name
    for prefix, upstream in routes_of(snapshot.upstreams.values()):
        if prefix in claimed:
            raise ConfigError(
                f'upstream "{upstream.plan.name}": {url_of(prefix)} is already claimed by upstream '
                f'"{claimed[prefix]}" of another Headrace in this process; one prefix, one owner',
                problems=(prefix,),
            )


def _count_unknown(url: str) -> None:
    host = url.split("/", 3)[2].rpartition("@")[2] if url.count("/") >= 2 else url[:64]
    with _unknown_lock:
        if host in _unknown or len(_unknown) < _MOST_HOSTS:
            _unknown[host] = _unknown.get(host, 0) + 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
