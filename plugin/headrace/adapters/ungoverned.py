"""Calls that do not get what the rules say: counted, and said once per call site."""

from __future__ import annotations

import sys

from headrace.observe.events import CallOnEventLoop, CallUngoverned
from headrace.observe.logs import emit
from headrace.runtime.upstream import Upstream

_LIBRARIES = ("headrace.", "requests.", "urllib3.")


def passed_through(upstream: Upstream, reason: str) -> None:
    """Count one ungoverned call, and log its call site the first time."""
    site = call_site()
    if upstream.service.passed_through(reason, site):
        emit(CallUngoverned(reason=reason, upstream=upstream.plan.name, call_site=site))


def stands_on_event_loop(upstream: Upstream, wanted: str) -> None:
    """Say, once per call site, that a call could not wait because it was made on an event loop's thread."""
    site = call_site()
    if upstream.service.is_first("event_loop", site):
        emit(CallOnEventLoop(upstream=upstream.plan.name, wanted=wanted, call_site=site))


def call_site() -> str:
    """`file:line` of the nearest caller outside the HTTP libraries and headrace."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if not f"{module}.".startswith(_LIBRARIES):
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
