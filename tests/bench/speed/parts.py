"""Parts of a call by themselves: the breaker, the metrics, the middleware, the pool."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from table import Factory, Gauge, Lab, Many, Work


def nothing() -> None:
    """What is protected, and what a floor does."""


def simply(work: Callable[[], Work]) -> Factory:
    """Work that needs no cleaning up; *work* makes it, where it is measured."""

    @contextmanager
    def make(lab: Lab) -> Iterator[Work]:
        yield work()

    return make


# --- breaker ----------------------------------------------------------------------------------------------


def clock_alone() -> Work:
    """The loop and the two clock readings that `permit_and_record` makes."""

    def run(turns: int) -> None:
        now = time.monotonic
        for _ in range(turns):
            began = now()
            now() - began

    return Many(run)


def permit_and_record() -> Work:
    """What a call asks of its circuit: may it go, and how it went."""
    from headrace.policy.breaker.circuit import Circuit
    from headrace.policy.breaker.permit import Verdict
    from support.plans import CIRCUIT

    circuit = Circuit(CIRCUIT, rng=lambda: 0.5, lock=threading.Lock())
    success = Verdict.SUCCESS

    def run(turns: int) -> None:
        acquire, record, now = circuit.acquire, circuit.record, time.monotonic
        for _ in range(turns):
            began = now()
            permit = circuit.shared_permit or acquire(began)  # as `gate.next_send` asks
            record(permit, success, began, now() - began)  # type: ignore[arg-type]

    return Many(run)


@contextmanager
def protected(lab: Lab) -> Iterator[Work]:
    """`protect` around a function that does nothing."""
    from ours import by_requests

    yield lab.once(by_requests).upstream("plain").protect(nothing)


def other_breaker(name: str) -> Work:
    """A peer around the same function."""
    import breaker

    return breaker.peers()[name]


# --- metrics ----------------------------------------------------------------------------------------------


def locked_addition() -> Work:
    """The least that an exact total can cost."""
    lock, total = threading.Lock(), 0

    def run(turns: int) -> None:
        nonlocal total
        for _ in range(turns):
            with lock:
                total += 1

    return Many(run)


def counted_call() -> Work:
    """What is counted of one ended call: outcome, attempt, duration, attempts, what was left of its time.

    As a call that is answered at once is settled. Its circuit is a function in C that does nothing here.
    """
    from headrace.policy.breaker.permit import Permit
    from headrace.policy.counters import UpstreamCounters
    from headrace.policy.gate import settle

    counters = UpstreamCounters(lock=threading.Lock())
    circuit: Any = SimpleNamespace(record=functools.partial(sys.audit, "headrace.bench"))
    permit = Permit(0)
    return lambda: settle(circuit, permit, counters, "2xx", 1.0, duration_s=0.001, took_s=0.001, left_s=9.0)


def prometheus_call(*, are_children_kept: bool) -> Work:
    """The same five with prometheus_client, the children of its labels kept or asked for at each call."""
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    requests, attempts = (
        prometheus_client.Counter(name, name, ["upstream", "outcome"], registry=registry)
        for name in ("requests", "attempts")
    )
    duration, tries, left = (
        prometheus_client.Histogram(name, name, ["upstream"], registry=registry)
        for name in ("duration", "tries", "left")
    )

    def kept() -> Callable[[], None]:
        one, two = requests.labels("billing", "2xx"), attempts.labels("billing", "2xx")
        three, four, five = (metric.labels("billing") for metric in (duration, tries, left))

        def act() -> None:
            one.inc()
            two.inc()
            three.observe(0.001)
            four.observe(1)
            five.observe(10.0)

        return act

    def asked() -> None:
        requests.labels("billing", "2xx").inc()
        attempts.labels("billing", "2xx").inc()
        duration.labels("billing").observe(0.001)
        tries.labels("billing").observe(1)
        left.labels("billing").observe(10.0)

    return kept() if are_children_kept else asked


# --- middleware -------------------------------------------------------------------------------------------


@contextmanager
def inbound(lab: Lab, *, kind: str, is_governed: bool) -> Iterator[Work]:
    """One request in process, by the application alone or through our middleware."""
    from ours import by_requests

    import headrace
    import middleware

    make, application, around = {
        "ASGI": (middleware.asgi_request, middleware.asgi_app, headrace.ASGIMiddleware),
        "WSGI": (middleware.wsgi_request, middleware.wsgi_app, headrace.WSGIMiddleware),
    }[kind]
    if is_governed:
        application = around(application, headrace=lab.once(by_requests))  # type: ignore[operator]
    yield make(application, middleware.WITH_AN_ID)


@contextmanager
def inbound_starlette(lab: Lab) -> Iterator[Work]:
    """The same request through a BaseHTTPMiddleware that does nothing; it needs an event loop."""
    from starlette.middleware.base import BaseHTTPMiddleware

    import middleware

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    application = BaseHTTPMiddleware(middleware.asgi_app, dispatch)
    headers = [(name.lower().encode(), value.encode()) for name, value in middleware.WITH_AN_ID.items()]
    loop = asyncio.new_event_loop()

    async def receive() -> Any:
        await loop.create_future()  # never

    async def send(message: Any) -> None: ...

    async def requests(turns: int) -> None:
        for _ in range(turns):
            scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "state": {}}
            await application(scope, receive, send)

    yield Many(lambda turns: loop.run_until_complete(requests(turns)))
    loop.close()


# --- pool -------------------------------------------------------------------------------------------------


@contextmanager
def _sides(lab: Lab) -> Iterator[dict[str, Any]]:
    """A warm pool of each kind over sockets to one listener."""
    import lease_vs_queue

    listener = lease_vs_queue.Listener()
    slots = lease_vs_queue.SLOTS
    yield {
        "lease": lease_vs_queue.lease_side(listener),
        "urllib3": lease_vs_queue.stock_side(listener, maxsize=slots, block=True),
        "queue": lease_vs_queue.queue_side(listener),
    }


@contextmanager
def checkout(lab: Lab, *, side: str) -> Iterator[Work]:
    """Checkout and return, nobody else about."""
    yield lab.once(_sides)[side].turn


@contextmanager
def crowded(lab: Lab, *, side: str, hold_s: float, what: str) -> Iterator[Work]:
    """One figure of 32 threads on 4 slots; *what* is a field of `lease_vs_queue.Crowded`."""
    import lease_vs_queue

    one = lab.once(_sides)[side]
    turns = lease_vs_queue.THREADS * 20
    yield Gauge(lambda: getattr(lease_vs_queue.crowded(one, hold_s=hold_s, turns=turns), what))
