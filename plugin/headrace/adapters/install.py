"""What is governed in this process: which instance has which URLs, and which library is patched for that.

A process has one table of claims. `_lock` guards it and the patches. Only start, close
and reload take it; calls read the routes of their library without it.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Protocol

from headrace.adapters import routing
from headrace.adapters.httpx.patch import HttpxPatch
from headrace.adapters.requests.patch import RequestsPatch
from headrace.adapters.routing import Routing, busiest_unknown_hosts
from headrace.adapters.urllib3.patch import Urllib3Patch
from headrace.config.check.problems import Problem
from headrace.errors import ConfigError
from headrace.observe.isolation import each
from headrace.policy.plan import UrlPrefix
from headrace.policy.routes import RouteTable, url_of
from headrace.runtime import process
from headrace.runtime.snapshot import Snapshot, routes_of

__all__ = ["busiest_unknown_hosts", "follow_imports", "owners", "publish", "repair", "withdraw"]


class _Patch(Protocol):
    def __init__(self, routing: Routing) -> None: ...
    @staticmethod
    def imported() -> tuple[ModuleType, ...]: ...
    @staticmethod
    def is_on_top() -> bool: ...
    @staticmethod
    def undo() -> None: ...


class _Library:
    """One library, its routes, and its patch while any configuration wants it."""

    def __init__(self, routing: Routing, patch: type[_Patch]) -> None:
        self._routing = routing
        self._patch = patch
        self._is_wanted = False
        self._patched: tuple[
            ModuleType, ...
        ] = ()  # as far as we know: others may have put back what they found

    def follow(self, published: list[Snapshot], *, is_start: bool) -> None:
        """Route to *published*. Patch at a start that wants this library, undo with the last one. Under `_lock`.

        A reload does not patch what was patched before: a mock that a test has laid over our patch must stay on top.
        """
        wanting = [snapshot for snapshot in published if self._routing.wanted_by(snapshot)]
        if len(wanting) == 1:
            self._routing.routes = wanting[0].routes
        else:
            self._routing.routes = RouteTable(
                pair for snapshot in wanting for pair in routes_of(snapshot.upstreams.values())
            )
        self._is_wanted = bool(wanting)
        if not wanting:
            # A layer under another patch stays. It finds no route for anything and passes all calls through: to take
            # it out would undo the other patch as well.
            self._patch.undo()
        elif (is_start or self.is_behind()) and not self._patch.is_on_top():
            self._patch(self._routing)
        self._patched = self._patch.imported() if wanting else ()

    def is_behind(self) -> bool:
        """Whether something of the library has been imported that should be patched and is not."""
        return self._is_wanted and self._patched != self._patch.imported()


_lock = threading.Lock()
_published: dict[object, Snapshot] = {}
_LIBRARIES = (
    _Library(Routing(lambda install: install.requests), RequestsPatch),
    _Library(Routing(lambda install: install.urllib3), Urllib3Patch),
    _Library(Routing(lambda install: True), HttpxPatch),  # it only counts
)


def publish(owner: object, snapshot: Snapshot) -> None:
    """Make the URLs of *snapshot* lead to it, in place of what *owner* published before. Thread-safe.

    If it raises, an interrupt included, nothing has changed.

    Raises:
        ConfigError: Another instance claims one of them.
    """
    with _lock:
        _refuse_double_claims(owner, snapshot)
        before = _published.get(owner)
        try:
            _published[owner] = snapshot
            published = list(_published.values())
            for library in _LIBRARIES:
                library.follow(published, is_start=before is None)
        except BaseException:
            if before is not None:
                _published[owner] = before
            else:
                _published.pop(owner, None)
            _follow()
            raise


def withdraw(owner: object) -> None:
    """Take the URLs of *owner* out. With the last go the patches and what they counted. Thread-safe; idempotent."""
    with _lock:
        _published.pop(owner, None)
        _follow()  # even if it was not in there: an earlier withdrawal may have been interrupted here
        if not _published:
            routing.forget_unknown()


def repair() -> None:
    """Lay the patches anew that others have thrown out, take out those left over. Thread-safe; idempotent."""
    with _lock:
        _follow(is_start=True)


def follow_imports(now: float) -> None:
    """Patch what the application has imported since the last look. For the housekeeping. Thread-safe."""
    if _published and any(library.is_behind() for library in _LIBRARIES):
        with _lock:
            _follow()


def owners() -> list[object]:
    """All owners that have published, oldest first."""
    with _lock:
        return list(_published)


def _follow(*, is_start: bool = False) -> None:
    """Make every library go by what is published now. One that cannot does not stop the others."""
    published = list(_published.values())
    each(
        _LIBRARIES,
        lambda library: library.follow(published, is_start=is_start),
        doing="have a library's calls go by what is published",
    )


def _refuse_double_claims(owner: object, snapshot: Snapshot) -> None:
    if not any(other is not owner for other in _published):
        return
    claimed: dict[UrlPrefix, str] = {}
    for other, published in _published.items():
        if other is not owner:
            for prefix, upstream in routes_of(published.upstreams.values()):
                claimed[prefix] = upstream.plan.name
    for prefix, upstream in routes_of(snapshot.upstreams.values()):
        if prefix in claimed:
            name = upstream.plan.name
            text = (
                f'upstream "{name}": {url_of(prefix)} is already claimed by upstream '
                f'"{claimed[prefix]}" of another Headrace in this process; one prefix, one owner'
            )
            file = next(iter(snapshot.configuration.watched), "")  # the first that was read
            raise ConfigError(text, problems=(Problem(file, 0, 0, f"upstreams.{name}", text),))


def _forget_inherited() -> None:
    """In a forked child: the thread that held the lock does not exist here."""
    global _lock
    _lock = threading.Lock()
    routing.forget_inherited()


process.after_fork(_forget_inherited)
