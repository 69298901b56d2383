"""Pure ASGI middleware: what an inbound HTTP request gets, and the application's lifespan.

It does not use Starlette's BaseHTTPMiddleware, which costs a hundred times as much and cuts
context variables (failures.md 43).
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool

from headrace.app import File, Headrace
from headrace.clock import monotonic
from headrace.forks import current_pid, pid_page
from headrace.middleware.admission import BLANK_BYTES, MAX_ID_BYTES, Answer, HeaderNames, admit, is_sane_bytes
from headrace.middleware.disconnect import DisconnectWatch
from headrace.middleware.holding import hold, lifespan_begins, lifespan_ends
from headrace.middleware.problems import (
    CLIENT_CLOSED_REQUEST,
    ProblemAnswer,
    answer,
    comes_of_a_cancelled_call,
    report_mapped,
)
from headrace.observe.events import LifespanUnsupported
from headrace.observe.logs import emit
from headrace.observe.metrics import Registry
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.inbound import Inbound, bind, new_request_id, unbind
from headrace.runtime.service import MANY, ServiceCounters

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Message types that end a response without `more_body` (ASGI extensions).
_ENDS = frozenset({"http.response.pathsend"})


class ASGIMiddleware:
    """Governs the calls of *app*, an ASGI application.

    The constructor reads, validates and compiles, so a bad file stops the boot. The start
    happens in the lifespan's startup, or at the first request in a process. Each request keeps
    the snapshot it began with, gets an id, is counted and timed. Handlers find the
    Headrace at `request.state.headrace`. Streamed answers that a request has left open end when
    the application has returned, unless `headrace.detach` has handed them on. WebSockets and
    unknown scope types pass straight through.

    FastAPI and Starlette take it as `app.add_middleware(ASGIMiddleware, "upstreams.yaml")`, which holds however the
    application is started: `fastapi run` looks for the FastAPI object, and would pass over what is wrapped around it.
    Any other application is wrapped from outside, `app = ASGIMiddleware(app, "upstreams.yaml")`.

    Args:
        file: `upstreams.yaml`, or several files; None: HEADRACE_FILE.
        headrace: An instance of your own, instead of a file. It is started here, and the
            code that made it must close it. An instance made here is closed after the
            application's shutdown.

    Raises:
        ConfigError: The file has problems. Starlette builds what was added only when the lifespan begins, and servers
            take an error there for an application without a lifespan. Then the lifespan's answer is the error.
    """

    headrace: Headrace

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
        self._refused: Exception | None = None
        self._is_ours = headrace is None
        self._given_up = False  # while starting
        self._names: HeaderNames | None = None
        try:
            self.headrace = hold(self, file, registry=registry) if headrace is None else headrace
        except Exception as error:
            if not _is_amid_a_lifespan():
                raise
            self._refused = error
            return
        self.headrace.show_metrics()

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there: `headrace`, where the file was refused.
        refused = self.__dict__.get("_refused")
        if name == "headrace" and refused is not None:
            raise refused
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        # Flat: five Python-level calls per request besides the application's, six where an id is made (a test counts
        # them). Nothing is made that only an outbound call would need.
        if scope["type"] != "http":
            await (self._lifespan if scope["type"] == "lifespan" else self.app)(scope, receive, send)
            return
        began = monotonic()
        headrace = self.headrace
        if headrace.started_in != (pid_page[0] or current_pid()):
            await self._start()
        in_force = headrace.in_force
        snapshot, names = in_force.snapshot, self._names
        if names is None or names.configuration is not snapshot.configuration:
            names = self._names = HeaderNames(snapshot.configuration)

        wanted, header, given = names.wanted, names.request_id_bytes, b""
        found: list[tuple[bytes, bytes]] | None = None
        for name, value in scope["headers"]:
            if name in wanted:
                if name != header:
                    found = [*(found or ()), (name, value.strip(BLANK_BYTES))]
                elif not given and (
                    (value.isalnum() and len(value) <= MAX_ID_BYTES)  # most are; an eighth of the next look
                    or is_sane_bytes(value)
                    or is_sane_bytes(value := value.strip(BLANK_BYTES))
                ):
                    given = value
        trace, deadlines = names.read(found) if found else ((), ())
        # Changed in place, as Starlette itself does it: instrumentation outside reads the scope after the call.
        state = scope.get("state")
        if state is None:
            state = scope["state"] = {}
        state["headrace"] = headrace

        admission = admit(headrace, snapshot, began, given.decode(), trace, deadlines, new_request_id)
        response = _Response()
        response.service, response.names, response.began = in_force.service, names, began
        response.forward, response.id_bytes = send, given or admission.request_id.encode()
        response.status, response.is_over = 0, False
        if type(admission) is Answer:  # isinstance() takes three times as long
            response.tracing = response.watch = None
            await response.answer(admission.problem, is_head=scope.get("method") == "HEAD")
            return
        response.inbound = inbound = admission
        response.tracing, response.watch = snapshot.tracing, None
        if names.cancels:
            receive = response.watched(receive, scope["headers"])
        token = bind(inbound)
        try:
            await self.app(scope, receive, response.send)
        except Exception as exc:
            if not await response.handle(exc, is_head=scope.get("method") == "HEAD"):
                raise
        finally:
            if response.tracing is not None and inbound.told is not None:
                response.tracing.tell(inbound)
            try:  # suppress() is three Python-level calls
                unbind(token)
            except ValueError:
                pass  # the collector has closed an abandoned coroutine, in another context
            inbound.is_over = True
            if not response.is_over or inbound.streams or response.watch is not None:
                await response.settle(sys.exc_info()[0])

    async def _start(self) -> None:
        # Off the event loop: it reads files, starts threads, patches.
        self._given_up = False
        await run_in_threadpool(self._start_unless_given_up)

    def _start_unless_given_up(self) -> None:
        self.headrace.start()
        # The lifespan that waited for this has given up. If it does so after this line, it finds all and closes it.
        if self._given_up and self._is_ours:
            lifespan_ends(self.headrace, self)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start before the application's startup, close after its shutdown.

        The server sees all that the application does with the scope, its errors included. An application that raises
        or returns without having asked for a message (Django) knows no lifespan. Then this one is headrace's own, so
        that the server has nothing to warn of, and says when to close.
        """
        first = await receive()
        is_startup, has_asked = first["type"] == "lifespan.startup", False
        if is_startup:
            try:
                if self._is_ours:
                    lifespan_begins(self.headrace, self)
                await self._start()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"headrace did not start: {error}"})
                return
            except BaseException:  # cancelled; the thread of the start goes on
                await self._give_up()
                raise
        if scope.get("state") is not None:
            scope["state"]["headrace"] = self.headrace  # the server hands it to every scope, WebSockets too

        async def receive_first() -> Message:
            nonlocal first, has_asked
            has_asked = True
            if first:
                message, first = first, {}
                return message
            return await receive()

        async def send_and_close(message: Message) -> None:
            if message["type"] != "lifespan.startup.complete":  # shutdown complete or failed, startup failed
                await self._close()
            await send(message)

        try:
            try:
                await self.app(scope, receive_first, send_and_close)
            except Exception as error:
                if has_asked or not is_startup:
                    raise
                emit(LifespanUnsupported(error=f"{type(error).__name__}: {error}"))
            if is_startup and not has_asked:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send_and_close({"type": "lifespan.shutdown.complete"})
        except Exception:
            raise
        except GeneratorExit:  # closed by the collector: nothing may be awaited any more
            self._given_up = self._is_ours
            if self._is_ours:
                lifespan_ends(self.headrace, self)
            raise
        except BaseException:  # cancelled in the middle of it: no shutdown will come
            await self._give_up()
            raise

    async def _give_up(self) -> None:
        """Close as soon as a start that is under way is over, however often this is cancelled."""
        self._given_up = True
        with CancelScope(shield=True):
            await self._close()

    async def _close(self) -> None:
        if self._is_ours:
            await run_in_threadpool(lifespan_ends, self.headrace, self)


def _is_amid_a_lifespan() -> bool:
    """Whether a frame above serves a lifespan. Asked only where something has failed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "scope" in frame.f_code.co_varnames:
            scope = frame.f_locals.get("scope")
            if isinstance(scope, MutableMapping) and scope.get("type") == "lifespan":
                return True
        frame = frame.f_back
    return False


class _Response:
    """The response to one request. It gets the id, it is counted once, and the request's span is told of it.

    It has no `__init__`, which would be one more Python-level call: `ASGIMiddleware.__call__` sets every slot. A
    default at the class would make each look at the attribute twice as long (3.12, 3.13).

    Attributes:
        began: When the request came, monotonic seconds.
        names: Say which header is added, unless the application has set it.
        id_bytes: What it says.
        forward: The server's `send`.
        tracing: None also while the request has not been admitted. Then there is no `inbound`.
        status: The status that was sent, or that the server is going to send; 0: none yet.
        is_over: All of it has been sent, and counted.
        watch: Its `on_disconnect` is the `cancel` of `inbound.cancellation`; None: there is neither.
    """

    __slots__ = (
        "began",
        "forward",
        "id_bytes",
        "inbound",
        "is_over",
        "names",
        "service",
        "status",
        "tracing",
        "watch",
    )

    service: ServiceCounters
    names: HeaderNames
    began: float
    id_bytes: bytes
    forward: Send
    inbound: Inbound
    tracing: Tracing | None
    status: int
    is_over: bool
    watch: DisconnectWatch | None

    def send(self, message: Message) -> Awaitable[None]:
        """Send one message of the application, by awaiting the answer. Not a coroutine function: that would be two."""
        tracing, kind = self.tracing, message["type"]
        if kind == "http.response.start":
            # Where the client has left, nobody would get an answer that begins now.
            self.status = (
                CLIENT_CLOSED_REQUEST if self.watch is not None and self.has_left else message["status"]
            )
            header = self.names.request_id_bytes
            length = len(header)  # asked first: names have their own case, and lower() is a call for each
            headers = [*message.get("headers", ())]
            for name, _ in headers:
                if len(name) == length and name.lower() == header:
                    break
            else:
                headers.append((header, self.id_bytes))
                # The application's may be a constant. A display of a dict takes three times as long as its copy.
                message = message.copy() if type(message) is dict else {**message}
                message["headers"] = headers
            if tracing is not None and tracing.has_context():
                tracing.tell(self.inbound)  # what has been called by now: the answer may break off
            return self.forward(message)
        if message.get("more_body") if kind == "http.response.body" else kind not in _ENDS:
            return self.forward(message)
        return self._send_last(message)

    async def _send_last(self, message: Message) -> None:
        """Send the last message, and count the request."""
        tracing = self.tracing
        if self.watch is not None:
            self.watch.is_over = True
        if tracing is not None and self.inbound.told is not None:
            tracing.tell(self.inbound)  # before it is sent: the server's span ends with that
        await self.forward(message)
        if not self.is_over:
            self.is_over = True
            if self.names.counts_served:  # `served`, written out
                ended = self.service.ended[self.status]
                ended.append(monotonic() - self.began)
                if len(ended) >= MANY:
                    self.service.add_up()

    @property
    def has_left(self) -> bool:
        """Whether the client has, as far as anybody watches for that."""
        cancellation = None if self.watch is None else self.inbound.cancellation
        return cancellation is not None and cancellation.is_cancelled

    async def answer(self, found: ProblemAnswer, *, is_head: bool) -> None:
        """Send *found* in place of an answer of the application.

        Args:
            is_head: It has no body.
        """
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in found.headers.items()
        ]
        headers.append((b"content-length", str(len(found.body)).encode()))
        await self.send({"type": "http.response.start", "status": found.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"" if is_head else found.body})

    async def handle(self, exc: Exception, *, is_head: bool) -> bool:
        """Answer *exc* under `error_responses: map`. False: the error is left to the server."""
        if (
            not self.status
            and self.names.configuration.service.error_responses == "map"
            and (found := answer(exc)) is not None
        ):
            if found.status != CLIENT_CLOSED_REQUEST:  # a client that has left is no error
                report_mapped(found, exc, self.inbound.request_id)
            await self.answer(found, is_head=is_head)
            return True
        if self.has_left and comes_of_a_cancelled_call(exc):
            return True  # we have caused it, and nobody waits for an answer: the server would make an alarm of it
        self.status = self.status or 500  # what the server is going to answer
        return False

    def watched(self, receive: Receive, headers: Any) -> Receive:
        """A *receive* that aborts the outbound calls of the request when its client leaves."""
        self.inbound.cancellation = cancellation = Cancellation()
        self.watch = DisconnectWatch(receive, cancellation.cancel)
        self.watch.start(headers)
        return self.watch.receive

    async def settle(self, ends_by: type[BaseException] | None) -> None:
        """End what the request has left open: its count, its streams, its watch.

        Args:
            ends_by: The error that passes through, if any.
        """
        if self.status and not self.is_over and self.names.counts_served:  # broken off
            self.service.served(self.status, monotonic() - self.began)
        if self.inbound.streams:
            self.inbound.end()
        if self.watch is not None and self.inbound.cancellation is not None:
            if ends_by is CancelledError and not self.watch.is_over:
                self.inbound.cancellation.cancel()  # some servers say in this way that the client has left
            # A coroutine that the collector closes may not wait any more.
            await self.watch.close(waits=ends_by is not GeneratorExit)
