"""Pure ASGI middleware: what an inbound HTTP request gets, and the application's lifespan.

Never Starlette's BaseHTTPMiddleware: it costs a hundred times as much and cuts
context variables (failures.md 43).
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import repeat
from os import getpid
from typing import Any

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool

from headrace.app import File, Headrace
from headrace.clock import monotonic
from headrace.middleware.context import BLANK_BYTES, HeaderNames, Trace, deadline_at, is_sane_bytes
from headrace.middleware.disconnect import DisconnectWatch
from headrace.middleware.problems import (
    CLIENT_CLOSED_REQUEST,
    ProblemAnswer,
    answer,
    comes_of_a_cancelled_call,
    too_late,
)
from headrace.observe.events import ErrorMapped
from headrace.observe.logs import emit
from headrace.observe.metrics import Registry
from headrace.policy.retry import RetryAllowance
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.carrying import record_of
from headrace.runtime.inbound import Inbound, inbound_var, new_request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Message types that end a response without `more_body` (ASGI extensions).
_ENDS = frozenset({"http.response.pathsend"})


class ASGIMiddleware:
    """Governs the calls of *app*, an ASGI application.

    The constructor reads, validates and compiles, so a bad file stops the boot; the
    lifespan's startup, or the first request in a process, starts. Each request keeps
    the snapshot it began with, gets an id, is counted and timed; handlers find the
    Headrace at `request.state.headrace`. Streamed answers that a request has left open end when
    the application has returned, unless `headrace.detach` has handed them on. WebSockets and
    unknown scope types pass straight through.

    Wrap the application from outside, `app = ASGIMiddleware(app, "upstreams.yaml")`:
    Starlette's `add_middleware` builds the stack only during the lifespan, where
    uvicorn takes any error for an application without one.

    Args:
        file: `upstreams.yaml`, or several files; None: HEADRACE_FILE.
        headrace: An instance of your own, instead of a file. It is started here but
            closed by whoever made it; one made here is closed after the
            application's shutdown.

    Raises:
        ConfigError: The file has problems.
    """

    def __init__(
        self,
        app: ASGIApp,
        file: File | Sequence[File] | None = None,
        *,
        headrace: Headrace | None = None,
        registry: Registry | None = None,
    ) -> None:
        if headrace is not None and (file is not None or registry is not None):
            raise TypeError("give a file (and registry), or headrace=…, not both: a Headrace has its own")
        self.app = app
        self.headrace: Headrace = headrace if headrace is not None else Headrace(file, registry=registry)
        self._is_ours = headrace is None
        self._given_up = False  # while starting
        self._names: HeaderNames | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        # Long and flat: five Python-level calls per request beyond the application's (counted by a test).
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        began = monotonic()
        headrace = self.headrace
        if headrace.started_in != getpid():
            await self._start()
        snapshot = headrace.snapshot
        configuration = snapshot.configuration
        service = configuration.service
        names = self._names
        if names is None or names.configuration is not configuration:
            names = self._names = HeaderNames(configuration)
        header, wanted = names.request_id_bytes, names.wanted

        request_id = ""
        more: list[tuple[bytes, bytes]] | None = None
        for name, value in scope["headers"]:
            if name in wanted:
                value = value.strip(BLANK_BYTES)
                if name == header:
                    if not request_id and is_sane_bytes(value):
                        request_id = value.decode("ascii")
                elif more is None:
                    more = [(name, value)]
                else:
                    more.append((name, value))
        trace: Trace = ()
        deadlines: list[str] = []
        if more is not None:
            trace, deadlines = names.read(more)
            if trace and names.id_is_trace:
                request_id = trace[0][1][3:35]
        tracing = snapshot.tracing
        # Asked in C: a request without a span around it pays nothing.
        outer = tracing if tracing is not None and tracing.has_context() else None
        if outer is not None and service.request_id.is_trace_id:
            request_id = outer.trace_id() or request_id
        if not request_id:
            request_id = new_request_id()

        # In place, as Starlette itself does it: instrumentation outside reads the scope after the call.
        state = scope.get("state")
        if state is None:
            scope["state"] = {"headrace": headrace}
        else:
            state["headrace"] = headrace

        status = 0
        is_over = False
        inbound: Inbound | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_over
            kind = message["type"]
            if kind == "http.response.start":
                # Nobody gets an answer that begins after its client has left.
                has_left = cancellation is not None and cancellation.is_cancelled
                status = CLIENT_CLOSED_REQUEST if has_left else message["status"]
                headers = list(message.get("headers", ()))
                for name, _ in headers:
                    if name == header or name.lower() == header:
                        break
                else:
                    headers.append((header, request_id.encode("ascii")))
                    message = {**message, "headers": headers}
                if tracing is not None and inbound is not None and tracing.has_context():
                    tracing.tell(inbound)  # of what has been called by now: it may break off
                await send(message)
                return
            is_last = (kind == "http.response.body" and not message.get("more_body")) or kind in _ENDS
            if watch is not None and is_last:
                watch.is_over = True
            if is_last and tracing is not None and inbound is not None and inbound.told is not None:
                tracing.tell(inbound)  # before it is sent: with that the server's span ends
            await send(message)
            if is_last:
                if not is_over and configuration.telemetry.served_requests:
                    headrace.service.served(status, monotonic() - began)
                is_over = True

        due_at = watch = cancellation = None
        if service.deadline is not None:
            now = began  # starting took some of the caller's time, too
            due_at = deadline_at(service.deadline, deadlines, headrace.service, now)
            if due_at is not None and due_at <= now:
                await _send_answer(too_late(request_id), send_with_id, is_head=scope.get("method") == "HEAD")
                return
        if service.cancel_on_disconnect:
            cancellation = Cancellation()
            watch = DisconnectWatch(receive, cancellation.cancel)
            watch.start(scope["headers"])
            receive = watch.receive
        allowance = RetryAllowance(repeat(None, service.max_retries_per_request))
        inbound = Inbound(headrace, snapshot, request_id, allowance, due_at, trace, cancellation)
        if outer is not None:
            outer.meet(inbound)
        token = inbound_var.set(inbound)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception as exc:
            if not status and service.error_responses == "map" and (found := answer(exc)) is not None:
                if found.status != CLIENT_CLOSED_REQUEST:  # that is nobody's trouble
                    emit(
                        ErrorMapped(
                            upstream="" if (record := record_of(exc)) is None else record.upstream,
                            status=found.status,
                            error=type(exc).__name__,
                            request_id=request_id,
                        )
                    )
                await _send_answer(found, send_with_id, is_head=scope.get("method") == "HEAD")
            elif cancellation is not None and cancellation.is_cancelled and comes_of_a_cancelled_call(exc):
                pass  # our own doing, and there is nobody to answer: the server would make an alarm of it
            else:
                status = status or 500  # what the server is going to answer
                raise
        finally:
            if status and not is_over and configuration.telemetry.served_requests:  # broken off
                headrace.service.served(status, monotonic() - began)
            if tracing is not None and inbound.told is not None:
                tracing.tell(inbound)
            try:  # suppress() is three Python-level calls
                inbound_var.reset(token)
            except ValueError:
                pass  # an abandoned coroutine, closed by the collector in somebody else's context
            # Not end(), a Python-level call, unless there is something to end.
            inbound.is_over = True
            if inbound.streams:
                inbound.end()
            if watch is not None and cancellation is not None:
                ends_by = sys.exc_info()[0]
                if ends_by is CancelledError and not watch.is_over:
                    cancellation.cancel()  # some servers tell in this way that the client has left
                # One that the collector closes may not wait any more.
                await watch.close(waits=ends_by is not GeneratorExit)

    async def _start(self) -> None:
        # Off the event loop: it reads files, starts threads, patches.
        self._given_up = False
        await run_in_threadpool(self._start_unless_given_up)

    def _start_unless_given_up(self) -> None:
        self.headrace.start()
        if (
            self._given_up and self._is_ours
        ):  # by whoever waited for this; if it comes later than here, it finds all
            self.headrace.close()
            self.headrace.started_in = 0

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start before the application's startup, close after its shutdown.

        An application without a lifespan works too. What the application does with the
        scope, raising included, is what the server sees.
        """
        first = await receive()
        if first["type"] == "lifespan.startup":
            try:
                await self._start()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"headrace did not start: {error}"})
                return
            except BaseException:  # cancelled; the thread that starts goes on
                await self._give_up()
                raise
        if scope.get("state") is not None:
            scope["state"]["headrace"] = self.headrace  # the server hands it to every scope, WebSockets too

        async def receive_first() -> Message:
            nonlocal first
            if first:
                message, first = first, {}
                return message
            return await receive()

        async def send_and_close(message: Message) -> None:
            if message["type"] != "lifespan.startup.complete":  # shutdown complete or failed, startup failed
                await self._close()
            await send(message)

        try:
            await self.app(scope, receive_first, send_and_close)
        except Exception:
            raise  # most likely an application without a lifespan: the server goes on without one
        except GeneratorExit:  # closed by the collector: nothing may be awaited any more
            self._given_up = self._is_ours
            if self._is_ours:
                self.headrace.close()
            raise
        except BaseException:  # cancelled amid it: no shutdown will come
            await self._give_up()
            raise

    async def _give_up(self) -> None:
        """Close once a start that is under way is over, whoever else is cancelling."""
        self._given_up = True
        with CancelScope(shield=True):
            await self._close()

    async def _close(self) -> None:
        if self._is_ours:
            await run_in_threadpool(self.headrace.close)
            self.headrace.started_in = 0


async def _send_answer(found: ProblemAnswer, send: Send, *, is_head: bool) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in found.headers.items()
    ]
    headers.append((b"content-length", str(len(found.body)).encode()))
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else found.body})
