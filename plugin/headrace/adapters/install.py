"""What is governed in this process: whose URLs, and which library is patched for it.

One table of claims per process. `_lock` guards it and the patches; it is taken by
start, close and reload only. Calls read the routes of their library without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from headrace.adapters import routing
from headrace.adapters.requests_patch import RequestsPatch
from headrace.adapters.routing import Routing, busiest_unknown_hosts
from headrace.adapters.urllib3_patch import Urllib3Patch
from headrace.errors import ConfigError
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import RouteTable, url_of
from headrace.runtime import process
from headrace.runtime.snapshot import Snapshot, routes_of

__all__ = ["busiest_unknown_hosts", "owners", "publish", "withdraw"]


class _Patch(Protocol):
    def undo(self) -> bool: ...


class _Library:
    """One library, its routes, and its patch while anybody wants it."""

    def __init__(self, routing: Routing, make_patch: Callable[[Routing], _Patch]) -> None:
        self._routing = routing
        self._make_patch = make_patch
        self._patch: _Patch | None = None

    def follow(self, published: list[Snapshot]) -> None:
        """Route to *published*; patch with the first that wants this library, undo with the last. Under `_lock`."""
        wanting = [snapshot for snapshot in published if self._routing.wanted_by(snapshot)]
        self._routing.routes = RouteTable(
            pair for snapshot in wanting for pair in routes_of(snapshot.upstreams.values())
        )
        if wanting and self._patch is None:
            self._patch = self._make_patch(self._routing)
        elif not wanting and self._patch is not None and self._patch.undo():
            # Otherwise it stays, finds no route for anything, and passes through: taking it out from under
            # another patch would undo that one as well.
            self._patch = None


_lock = threading.Lock()
_published: dict[object, Snapshot] = {}
_LIBRARIES = (
    _Library(Routing(lambda install: install.requests), RequestsPatch),
    _Library(Routing(lambda install: install.urllib3), Urllib3Patch),
)


def publish(owner: object, snapshot: Snapshot) -> None:
    """Make the URLs of *snapshot* lead to it, in place of what *owner* published before. Thread-safe.

    Raises:
        ConfigError: Another instance claims one of them; nothing has changed then.
    """
    with _lock:
        _refuse_double_claims(owner, snapshot)
        _published[owner] = snapshot
        _follow()


def withdraw(owner: object) -> None:
    """Take the URLs of *owner* out; with the last go the patches, and what they counted. Thread-safe; idempotent."""
    with _lock:
        if _published.pop(owner, None) is not None:
            _follow()
            if not _published:
                routing.forget_unknown()


def owners() -> list[object]:
    """Everybody who has published, oldest first."""
    with _lock:
        return list(_published)


def _follow() -> None:
    published = list(_published.values())
    for library in _LIBRARIES:
        library.follow(published)


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


def _forget_inherited() -> None:
    """In a forked child: whoever held the locks does not exist here."""
    global _lock
    _lock = threading.Lock()
    routing.forget_inherited()


process.after_fork(_forget_inherited)
