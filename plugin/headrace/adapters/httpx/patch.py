"""The patch of httpx: calls to a URL that a rule names are counted as ungoverned, and sent as they are.

httpx is never imported for this. It is patched once the application has imported it, under either of its names.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from headrace.adapters.routing import Routing
from headrace.engine.notices import count_ungoverned

MODULES = ("httpx", "httpx2")
_METHODS = (("HTTPTransport", "handle_request"), ("AsyncHTTPTransport", "handle_async_request"))


class HttpxPatch:
    """The methods by which httpx sends a request, replaced in what is imported; `undo` puts back what was there."""

    def __init__(self, routing: Routing) -> None:
        for transport, method in _sending():
            original = getattr(transport, method)
            if not hasattr(original, "headrace_original"):
                setattr(transport, method, _counted(original, routing))

    # No generators below: CPython swallows an interrupt of a start or a close that comes while one is finalized.

    @staticmethod
    def imported() -> tuple[ModuleType, ...]:
        """What the application has imported of httpx so far, whole."""
        found: tuple[ModuleType, ...] = ()
        for name in MODULES:
            module = sys.modules.get(name)
            if module is not None and hasattr(module, _METHODS[-1][0]):
                found = (*found, module)
        return found

    @staticmethod
    def is_on_top() -> bool:
        """Whether a layer of ours is the first that a call meets, in all that is imported. Of nothing, it is not."""
        sending = _sending()
        for transport, method in sending:
            if not hasattr(getattr(transport, method), "headrace_original"):
                return False
        return bool(sending)

    @staticmethod
    def undo() -> None:
        """Put back what a layer of ours on top has found. A covered layer stays: it is still called."""
        for transport, method in _sending():
            layer = getattr(transport, method)
            setattr(transport, method, getattr(layer, "headrace_original", layer))


def _sending() -> list[tuple[type, str]]:
    return [(getattr(module, name), method) for module in HttpxPatch.imported() for name, method in _METHODS]


def _counted(original: Callable[..., Any], routing: Routing) -> Callable[..., Any]:
    """*original*, which sends a request or makes the coroutine that does, after a count of the call."""

    @functools.wraps(original)
    def send(self: Any, request: Any) -> Any:
        upstream = routing.find(str(request.url))
        if upstream is not None and upstream.mode != "off":
            count_ungoverned(upstream, "httpx")
        return original(self, request)

    send.headrace_original = original  # type: ignore[attr-defined]
    return send
