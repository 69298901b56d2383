"""The inbound request that the running code belongs to, if any.

A context variable, so that plain `requests` calls deep in the code see it; tasks
and thread-pool workers that copy the context see it too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from os import urandom
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from headrace.observe.logs import bound_request
from headrace.policy.retry import RetryAllowance
from headrace.runtime.cancellation import Cancellation

if TYPE_CHECKING:
    from headrace.observe.request_trace import RequestTrace
    from headrace.runtime.snapshot import Snapshot

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Inbound:
    """One inbound request.

    Attributes:
        headrace: The instance whose middleware took the request in (typed loosely: it lives a layer above).
        snapshot: The configuration this request began with, and keeps.
        request_id: Taken from the request, or made.
        allowance: Retries left to it, over all its outbound calls.
        deadline_at: When its caller stops waiting, monotonic seconds, or None if that is not known.
        trace: Its `traceparent` and `tracestate`, for upstreams when no tracer is there.
        cancellation: Aborts its outbound calls; None unless `cancel_on_disconnect` is on.
        told: What its span is to be told, or None while there is nothing.
    """

    headrace: Any
    snapshot: Snapshot
    request_id: str
    allowance: RetryAllowance
    deadline_at: float | None = None
    trace: tuple[tuple[str, str], ...] = ()
    cancellation: Cancellation | None = None
    told: RequestTrace | None = None


inbound_var: ContextVar[Inbound | None] = bound_request


def request_id() -> str | None:
    """The id of the inbound request that the running code belongs to, or None outside of any."""
    inbound = inbound_var.get()
    return None if inbound is None else inbound.request_id


def propagate(function: Callable[P, T]) -> Callable[P, T]:
    """*function*, to be run on another thread as part of the inbound request that is being served here.

    Needed for `ThreadPoolExecutor.submit`, `loop.run_in_executor` and `Thread`;
    `asyncio.to_thread`, tasks and the thread pools of ASGI frameworks copy the
    context by themselves.

    Each call runs in its own copy of the context of now, so the result may be
    called often and on several threads at once.
    """
    context = copy_context()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return run


def new_request_id() -> str:
    """A fresh id: 128 random bits, 32 hex digits.

    `urandom`, not `uuid4` (five Python-level calls) and not `random`, whose state a
    raw fork(2) shares between workers.
    """
    return urandom(16).hex()
