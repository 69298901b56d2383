"""The inbound request that the running code belongs to, if any.

A context variable holds it. So plain `requests` calls deep in the code see it, and so do tasks and the workers of
thread pools that copy the context. `Inbound` owns what a request has opened and must end with it.

There is no lock here, but for what is made on demand. `Inbound.streams` is changed by single steps on a dict, and
`is_over` is one store. Leases are ended under the lock of their pool, and calls under that of `Cancellation`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import field
from os import urandom
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from headrace import context
from headrace.observe.isolation import each
from headrace.policy.frozen import slotted
from headrace.policy.retry import RehearsedAllowance, RetryAllowance
from headrace.runtime import process
from headrace.runtime.cancellation import Cancellation

if TYPE_CHECKING:
    from headrace.observe.tracing.request_trace import RequestTrace
    from headrace.runtime.cancellation import Token
    from headrace.runtime.snapshot import Snapshot
    from headrace.transport.lease.pool import LeasePool

_making = threading.RLock()
"""That there is one allowance and one `streams` for a request. A leaf, held while these are made; re-entrant,
for a finalizer may make a call."""

_MANY = 64
"""Streamed answers from which on ended ones are looked for."""

P = ParamSpec("P")
T = TypeVar("T")


NO_STREAMS: Final[dict[Any, Any]] = {}
"""Those of a request that has opened none. Never changed: the first one gets a dict of its own."""


@slotted
class Inbound:
    """One inbound request. Thread-safe in `cover`, `release` and `end`.

    A task or thread that it has left behind may refer to it for longer than it lasts. Then it `is_over`, and only
    its id and its trace still count.

    Attributes:
        headrace: The instance whose middleware took the request in. Typed loosely: its class is a layer above.
        snapshot: The configuration that this request began with, and keeps.
        request_id: Taken from the request, or made.
        allowance: Retries that are left, over all its outbound calls. Made by the first look, unless it was given:
            nearly every request ends without one.
        deadline_at: When its caller stops waiting, monotonic seconds; None if that is not known.
        trace: Its `traceparent` and `tracestate`, passed on to upstreams where there is no tracer.
        cancellation: Aborts its outbound calls; None unless `cancel_on_disconnect` is on.
        told: What its span is to be told; None while there is nothing.
        rehearsed: Retries that its observed calls would have made; None while there are none.
        streams: The pools of the streamed answers that it has opened, by the tokens of their leases. A token is a weak
            reference; one whose lease has ended does nothing here. A single operation is atomic, with and without
            the GIL.
        is_over: It has ended. Never becomes False again.
    """

    headrace: Any
    snapshot: Snapshot
    request_id: str
    allowance: RetryAllowance
    deadline_at: float | None = None
    trace: tuple[tuple[str, str], ...] = ()
    cancellation: Cancellation | None = None
    told: RequestTrace | None = None
    rehearsed: RehearsedAllowance | None = None
    streams: dict[Token, LeasePool[Any]] = field(default_factory=dict, repr=False)
    is_over: bool = False

    def __getattr__(self, name: str) -> RetryAllowance:
        # Asked only for a slot that nobody has set.
        if name != "allowance":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _making:
            try:
                allowance: RetryAllowance = object.__getattribute__(self, name)
            except AttributeError:
                n = self.snapshot.configuration.service.max_retries_per_request
                self.allowance = allowance = RetryAllowance((None,) * n)
        return allowance

    def cover(self, token: Token, pool: LeasePool[Any]) -> None:
        """Have the answer over *token* end with this request; at once, if the request is over."""
        streams = self.streams
        if streams is NO_STREAMS:
            with _making:
                if self.streams is NO_STREAMS:
                    self.streams = {}
                streams = self.streams
        streams[token] = pool
        # At powers of two: a request that opens many, one after the other, pays about once for each.
        if (n := len(streams)) >= _MANY and not n & (n - 1):
            for held in list(streams.copy()):
                if (lease := held()) is None or lease.token is not held:
                    streams.pop(held, None)
        if self.is_over:  # looked at after the store: `end` copies after its own
            pool.end(token, "abandoned")

    def release(self, token: Token) -> None:
        """Let the answer over *token* outlive this request, and its client."""
        if self.streams is not NO_STREAMS:
            self.streams.pop(token, None)
        if self.cancellation is not None:
            self.cancellation.release(token)

    def end(self) -> None:
        """End the request, and with it the answers that it has left unread. Idempotent.

        Blocks for locks of lease pools, and until a thread that reads one of the answers has let go of it; the shut
        socket makes it do so. It is called on the event loop, too.
        """
        self.is_over = True
        if self.streams is NO_STREAMS:  # looked at after the store, as in `cover`
            return
        streams = self.streams.copy()
        self.streams.clear()
        each(streams.items(), _end, doing="end a streamed answer with its inbound request")


def _end(stream: tuple[Token, LeasePool[Any]]) -> None:
    token, pool = stream
    pool.end(token, "abandoned")


def _forget_inherited() -> None:
    global _making
    _making = threading.RLock()


process.after_fork(_forget_inherited)

inbound_var: ContextVar[Inbound | None] = context.inbound_var

bind, unbind = inbound_var.set, inbound_var.reset
"""For what is done at each request: to look a method up takes as long as to call it."""


def request_id() -> str | None:
    """The id of the inbound request that the running code belongs to, or None outside of any."""
    inbound = inbound_var.get()
    return None if inbound is None else inbound.request_id


def propagate(function: Callable[P, T]) -> Callable[P, T]:
    """*function*, to be run on another thread as part of the inbound request that is served here.

    `ThreadPoolExecutor.submit`, `loop.run_in_executor` and `Thread` need it. `asyncio.to_thread`, tasks and the thread
    pools of ASGI frameworks copy the context by themselves.

    Each call runs in its own copy of the present context. So the result may be called often, and on several threads at
    once.
    """
    context = copy_context()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return run


def new_request_id() -> str:
    """A fresh id: 128 random bits, 32 hex digits.

    `uuid4` would take five Python-level calls. `random` has a state that raw fork(2) shares between workers.
    """
    return urandom(16).hex()
