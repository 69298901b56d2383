"""WSGI middleware (PEP 3333): what an inbound request gets.

The call of the application, each step of its iteration and its `close()` run in one
copied context. A generator that starts a `requests` call in its body sees the request
it belongs to, and nothing that it sets leaks into the next request of the thread.

A caller that wants the leak says so. werkzeug's debugger and the `with` of Flask's test client
go on with the contexts that the application has entered (`werkzeug.debug.preserve_context`), and leave
them where they were entered. For these, each step runs in the caller's own context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.app import File, Headrace
from headrace.clock import monotonic
from headrace.forks import current_pid, pid_page
from headrace.middleware.admission import BLANKS, MAX_ID_BYTES, Answer, HeaderNames, admit, is_sane_text
from headrace.middleware.holding import hold
from headrace.middleware.problems import CLIENT_CLOSED_REQUEST, ProblemAnswer, answer, report_mapped
from headrace.observe.events import ConfigWarning
from headrace.observe.logs import emit
from headrace.observe.metrics import Registry
from headrace.policy.plan import Configuration
from headrace.policy.trace_context import Trace, trace_of
from headrace.runtime.inbound import Inbound, bind, inbound_var, new_request_id
from headrace.runtime.service import MANY, ServiceCounters

if TYPE_CHECKING:
    from headrace.observe.tracing.otel import Tracing

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
_PHRASES = {
    CLIENT_CLOSED_REQUEST: "Client Closed Request",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_KEEPS_CONTEXT = "werkzeug.debug.preserve_context"


class WSGIMiddleware:
    """Governs the calls of *app*, a WSGI application.

    The constructor reads, validates and compiles, so a bad file stops the boot. The start happens
    at the first request in a process; metrics are there before it. Each request keeps the snapshot it began with,
    gets an id, is counted and timed. The application finds the Headrace at
    `environ["headrace.instance"]`. Streamed answers that a request has left open end after the
    `close()` of its iterable, unless `headrace.detach` has handed them on. WSGI has no shutdown: a
    Headrace made here is closed at exit.

    A list or tuple is returned as it is: no code of the application runs in its
    iteration, and the server may want its length. The server's own `wsgi.file_wrapper`
    is returned as it is, too, so that sendfile keeps working.

    Args:
        file: `upstreams.yaml`, or several files; None: HEADRACE_FILE.
        headrace: An instance of your own, instead of a file.

    Raises:
        ConfigError: The file has problems.
    """

    def __init__(
        self,
        app: WSGIApp,
        file: File | Sequence[File] | None = None,
        *,
        headrace: Headrace | None = None,
        registry: Registry | None = None,
    ) -> None:
        if headrace is not None and (file is not None or registry is not None):
            raise TypeError("give a file (and registry), or headrace=…, not both: a Headrace has its own")
        self.app = app
        self.headrace: Headrace = headrace if headrace is not None else hold(self, file, registry=registry)
        self._keys: _EnvironKeys | None = None
        self.headrace.show_metrics()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        began = monotonic()
        headrace = self.headrace
        if headrace.started_in != (pid_page[0] or current_pid()):
            headrace.start()
        in_force = headrace.in_force
        snapshot = in_force.snapshot
        keys = self._keys
        if keys is None or keys.configuration is not snapshot.configuration:
            keys = self._environ_keys_of(snapshot.configuration)

        given_id = environ.get(keys.request_id) if keys.takes_id else None
        if (
            given_id is not None
            # Most are; both together a quarter of the next look.
            and not (given_id.isalnum() and given_id.isascii() and len(given_id) <= MAX_ID_BYTES)
            and not is_sane_text(given_id)
            and not is_sane_text(given_id := given_id.strip(BLANKS))
        ):
            given_id = None
        trace: Trace = ()
        if keys.takes_trace and (traceparent := environ.get("HTTP_TRACEPARENT")) is not None:
            # The server has joined the values of several headers by commas.
            state = environ.get("HTTP_TRACESTATE")
            trace = trace_of([traceparent.strip(BLANKS)], [] if state is None else [state])
        deadline = None if keys.deadline is None else environ.get(keys.deadline)
        deadlines = () if deadline is None else (deadline.strip(BLANKS),)
        environ["headrace.instance"] = headrace

        admission = admit(headrace, snapshot, began, given_id, trace, deadlines, new_request_id)
        exchange = _AnswerIterable()
        exchange.service, exchange.keys, exchange.began = in_force.service, keys, began
        exchange.environ, exchange.forward = environ, start_response
        exchange.request_id = admission.request_id
        exchange.run = run = copy_context().run
        exchange.body, exchange.iterator, exchange.status = (), None, 0
        exchange.is_sending = exchange.is_counted = exchange.is_closed = exchange.is_mapped = False
        exchange.tracing = exchange.inbound = None
        if type(admission) is Answer:  # isinstance() takes three times as long
            return exchange.answered(admission.problem)
        exchange.inbound = inbound = admission
        exchange.tracing = snapshot.tracing
        if _KEEPS_CONTEXT in environ:
            exchange.run = run = partial(_run_bound, inbound)
        else:
            run(bind, inbound)
        try:
            body: Iterable[bytes] = run(self.app, environ, exchange.start_response)
        except BaseException as exc:
            inbound.end()
            if isinstance(exc, Exception):
                return exchange.failed(exc)
            raise
        if type(body) is list or type(body) is tuple:
            # end() is a Python-level call, so it is made only if there is something to end.
            inbound.is_over = True
            if inbound.streams:
                inbound.end()
            if exchange.tracing is not None and inbound.told is not None:
                exchange.count()
            elif exchange.status and keys.counts_served:  # `count`, written out, and `served` in it
                exchange.is_counted = True
                ended = in_force.service.ended[exchange.status]
                ended.append(monotonic() - began)
                if len(ended) >= MANY:
                    in_force.service.add_up()
            return body
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper):
            exchange.count_at_close_of(body)
            return body
        exchange.body = body
        return exchange

    def _environ_keys_of(self, configuration: Configuration) -> _EnvironKeys:
        if configuration.service.cancel_on_disconnect:
            text = (
                "service.cancel_on_disconnect has no effect under WSGI: no server tells when a client leaves"
            )
            emit(ConfigWarning(text))
        self._keys = keys = _EnvironKeys(configuration)
        return keys


class _EnvironKeys:
    """Which keys of the environ count under one configuration. Made once for each; requests read it.

    Attributes:
        header, header_lower: The name of the response's header that carries the id.
        is_mapping: Errors are answered by us.
    """

    __slots__ = (
        "configuration",
        "counts_served",
        "deadline",
        "header",
        "header_lower",
        "is_mapping",
        "request_id",
        "takes_id",
        "takes_trace",
    )

    def __init__(self, configuration: Configuration) -> None:
        names = HeaderNames(configuration)
        self.configuration = configuration
        self.header, self.header_lower = configuration.service.request_id.header, names.request_id
        self.counts_served = names.counts_served
        self.is_mapping = configuration.service.error_responses == "map"
        self.request_id = _key_of(names.request_id)
        self.takes_id = names.takes_id
        self.takes_trace = names.takes_trace
        self.deadline = None if names.deadline is None else _key_of(names.deadline)


def _run_bound(inbound: Inbound, function: Callable[..., Any], *args: Any) -> Any:
    """What *function* answers. While it runs, the caller's own context belongs to *inbound*."""
    token = inbound_var.set(inbound)
    try:
        return function(*args)
    finally:
        inbound_var.reset(token)


def _key_of(header: str) -> str:
    return "HTTP_" + header.upper().replace("-", "_")


class _AnswerIterable:
    """One request under way: WSGI's response iterable. One thread at a time, as WSGI promises.

    It has no `__init__`, which would be one more Python-level call: `WSGIMiddleware.__call__` sets every slot.

    Attributes:
        began: When the request came, monotonic seconds.
        forward: The server's `start_response`.
        run: Runs a step of the application in the context of the request.
        body, iterator: Whatever the application returned, and its iterator once that was asked for.
        status: The status that was sent, or that the server is going to send; 0: none yet.
        inbound: None while the request has not been admitted.
    """

    __slots__ = (
        "began",
        "body",
        "environ",
        "forward",
        "inbound",
        "is_closed",
        "is_counted",
        "is_mapped",
        "is_sending",
        "iterator",
        "keys",
        "request_id",
        "run",
        "service",
        "status",
        "tracing",
    )

    began: float
    body: Any
    environ: Environ
    forward: StartResponse
    inbound: Inbound | None
    is_closed: bool
    is_counted: bool
    is_mapped: bool
    is_sending: bool
    iterator: Any
    keys: _EnvironKeys
    request_id: str
    run: Callable[..., Any]
    service: ServiceCounters
    status: int
    tracing: Tracing | None

    def start_response(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        """The server's, with the request id added unless the application has set one. exc_info goes through."""
        self.status = int(status[:3])
        keys = self.keys
        wanted = keys.header_lower
        length = len(wanted)  # asked first: lower() is a call for each
        for name, _ in headers:
            if len(name) == length and name.lower() == wanted:
                break
        else:
            headers = [*headers, (keys.header, self.request_id)]
        if self.tracing is not None and self.inbound is not None and self.tracing.has_context():
            self.tracing.tell(self.inbound)
        write = self.forward(status, headers, *exc_info) if exc_info else self.forward(status, headers)
        if not keys.is_mapping:
            return write  # no caller asks whether something was sent

        def noted_write(data: bytes) -> object:
            self.is_sending = True
            return write(data)

        return noted_write

    def __iter__(self) -> _AnswerIterable:
        return self

    def __next__(self) -> bytes:
        if self.is_mapped:
            raise StopIteration
        try:
            if self.iterator is None:
                self.iterator = self.run(iter, self.body)
            chunk: bytes = self.run(next, self.iterator)
        except StopIteration:
            raise
        except Exception as exc:
            answered = self.failed(exc)
            self.is_mapped = True
            return b"".join(answered)
        if chunk:
            self.is_sending = True
        return chunk

    def close(self) -> None:
        """The application's `close()`, once (failures.md 47), the end of the request, and the count."""
        if self.is_closed:
            return
        self.is_closed = True
        close = getattr(self.body, "close", None)
        try:
            if close is not None:
                self.run(close)
        finally:
            if self.inbound is not None:
                self.inbound.end()
            self.count()

    def count(self) -> None:
        """Count the request, once, unless it never got an answer."""
        if self.is_counted or not self.status:
            return
        self.is_counted = True
        if self.tracing is not None and self.inbound is not None and self.inbound.told is not None:
            self.tracing.tell(self.inbound)
        if self.keys.counts_served:  # `served`, written out
            ended = self.service.ended[self.status]
            ended.append(monotonic() - self.began)
            if len(ended) >= MANY:
                self.service.add_up()

    def count_at_close_of(self, body: Any) -> None:
        """Put our `close` in place of that of a file wrapper. The server recognises the wrapper by its class."""
        self.body = _ReplacedClose(body.close) if hasattr(body, "close") else ()
        try:
            body.close = self.close
        except AttributeError:  # an extension type
            self.count()

    def failed(self, exc: Exception) -> Iterable[bytes]:
        """The answer for *exc* under `error_responses: map`, else raises *exc*. Call it in the handler of *exc*."""
        found = self._mapped(exc)
        if found is None:
            if not self.is_sending:
                self.status = 500  # what the server is going to answer
            if self.iterator is None:  # the server got nothing it could close
                self.count()
            raise exc
        # exc_info is passed only at a second call. The server then raises the original again if it has sent headers
        # after all. werkzeug's test client raises it in any case.
        body = self._start_answer(found, *((sys.exc_info(),) if self.status else ()))
        report_mapped(found, exc, self.request_id)
        if self.iterator is None:
            self.count()
        return body

    def answered(self, found: ProblemAnswer) -> Iterable[bytes]:
        """*found* in place of the application's answer; counted."""
        body = self._start_answer(found)
        self.count()
        return body

    def _start_answer(self, found: ProblemAnswer, *exc_info: Any) -> Iterable[bytes]:
        headers = [*found.headers.items(), ("Content-Length", str(len(found.body)))]
        self.start_response(f"{found.status} {_PHRASES[found.status]}", headers, *exc_info)
        return [b""] if self.environ.get("REQUEST_METHOD") == "HEAD" else [found.body]

    def _mapped(self, exc: Exception) -> ProblemAnswer | None:
        if self.is_sending or not self.keys.is_mapping:
            return None
        found: ProblemAnswer | None = self.run(answer, exc)
        return found


class _ReplacedClose:
    """Remembers the `close` that was replaced."""

    __slots__ = ("close",)

    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close
