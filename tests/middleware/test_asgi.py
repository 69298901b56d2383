"""What only ASGI has: lifespan, other scope types, messages."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.middleware import asgi, holding
from headrace.middleware.asgi import ASGIMiddleware
from headrace.policy.plan import InboundDeadlinePlan
from headrace.runtime.inbound import inbound_var
from support.gateways import CONFIGURATION, FakeHeadrace, asgi_scope, call_asgi, configured
from support.plans import upstream_plan

from .conftest import with_record


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    """Speaks HTTP, and dies on anything else, like a hand-written application."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


# --- what the middleware is given ------------------------------------------------------------


def test_a_file_and_a_headrace_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="not both"):
        ASGIMiddleware(plain_app, "upstreams.yaml", headrace=FakeHeadrace())  # type: ignore[arg-type]


# --- messages ----------------------------------------------------------------------------------


def test_it_adds_few_calls_to_a_request_and_none_of_starlettes() -> None:
    """failures.md 43. Counted, not timed: one Python-level call costs about a microsecond."""
    middleware = ASGIMiddleware(plain_app, headrace=FakeHeadrace())  # type: ignore[arg-type]

    bare = asyncio.run(calls_of(plain_app))
    ours = asyncio.run(calls_of(middleware))
    added = len(ours) - len(bare)
    assert added <= 5, ours  # __call__, admit, send twice, the end of the last
    assert not [name for name in ours if name.startswith("starlette")]


def test_what_a_request_brings_along_costs_calls_only_where_it_is_read() -> None:
    trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    bare = len(asyncio.run(calls_of(plain_app)))

    def added(headers: dict[str, str], **service: Any) -> int:
        headrace = FakeHeadrace(
            replace(
                CONFIGURATION,
                service=replace(CONFIGURATION.service, **service),
                upstreams={"billing": upstream_plan()},
            )
        )
        middleware = ASGIMiddleware(plain_app, headrace=headrace)  # type: ignore[arg-type]
        return len(asyncio.run(calls_of(middleware, headers | {"X-Request-ID": "a"}))) - bare

    deadline = InboundDeadlinePlan(header="X-Request-Timeout", default_s=None, max_s=60.0)
    assert added({"X-Request-Timeout": "1"}) <= 5  # nobody reads it
    assert added(trace) <= 8  # read, trace_of, trace_id_of
    assert added({}, deadline=deadline) <= 9  # deadline_at, deadline_came, count, add
    assert added({"X-Request-Timeout": "1"}, deadline=deadline) <= 12  # and read, trace_of, parse


async def calls_of(app: Any, headers: dict[str, str] | None = None) -> list[str]:
    """The Python functions that a second request through *app* calls."""
    scope = asgi_scope({"X-Request-ID": "a", "Accept": "*/*"} | (headers or {}))

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    await app(scope, receive, send)  # starts
    names: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            names.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        await app(scope, receive, send)
    finally:
        sys.setprofile(None)
    return names


def test_a_context_variable_that_the_application_sets_is_visible_outside() -> None:
    """failures.md 43. BaseHTTPMiddleware runs the application in a task of its own, with a copy."""
    inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="unset")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inside.set("set")
        await plain_app(scope, receive, send)

    async def main() -> str:
        await call_asgi(ASGIMiddleware(app, headrace=FakeHeadrace()), asgi_scope())  # type: ignore[arg-type]
        return inside.get()

    assert asyncio.run(main()) == "set"


def test_a_task_that_the_handler_leaves_behind_still_belongs_to_the_request() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            seen.append(inbound_var.get())

        scope["state"]["task"] = asyncio.create_task(later())
        await plain_app(scope, receive, send)

    async def main() -> None:
        scope = asgi_scope({"X-Request-ID": "mine"})
        await call_asgi(ASGIMiddleware(app, headrace=FakeHeadrace()), scope)  # type: ignore[arg-type]
        await scope["state"]["task"]

    asyncio.run(main())
    assert seen[0].request_id == "mine"


def test_requests_under_way_at_once_keep_apart() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        before = inbound_var.get()
        await asyncio.sleep(0)
        assert before is inbound_var.get()
        await plain_app(scope, receive, send)

    async def main() -> list[list[str]]:
        middleware = ASGIMiddleware(app, headrace=FakeHeadrace())  # type: ignore[arg-type]
        scopes = [asgi_scope({"X-Request-ID": str(number)}) for number in range(20)]
        answers = await asyncio.gather(*(call_asgi(middleware, scope) for scope in scopes))
        return [answer.all("X-Request-ID") for answer in answers]

    assert asyncio.run(main()) == [[str(number)] for number in range(20)]


def test_what_the_application_writes_into_the_scope_is_seen_outside() -> None:
    """Instrumentation around us reads the route from the scope after the call."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = "/orders/{id}"
        await plain_app(scope, receive, send)

    scope = asgi_scope()
    asyncio.run(call_asgi(ASGIMiddleware(app, headrace=FakeHeadrace()), scope))  # type: ignore[arg-type]
    assert scope["route"] == "/orders/{id}"


def test_state_of_the_servers_lifespan_is_kept() -> None:
    headrace = FakeHeadrace()
    scope = asgi_scope() | {"state": {"db": "theirs"}}
    asyncio.run(call_asgi(ASGIMiddleware(plain_app, headrace=headrace), scope))  # type: ignore[arg-type]
    assert scope["state"] == {"db": "theirs", "headrace": headrace}


def test_headers_may_be_any_iterable_and_are_not_changed_in_the_applications_message() -> None:
    start = {"type": "http.response.start", "status": 200}
    lists: list[Any] = [[(b"a", b"b")], ((b"a", b"b"),), iter([(b"a", b"b")]), None]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        given = lists[0]
        await send(start if given is None else {**start, "headers": given})
        await send({"type": "http.response.body"})

    middleware = ASGIMiddleware(app, headrace=FakeHeadrace())  # type: ignore[arg-type]
    while lists:
        answer = asyncio.run(call_asgi(middleware, asgi_scope({"X-Request-ID": "r"})))
        assert answer.all("x-request-id") == ["r"]
        lists.pop(0)
    assert "headers" not in start


def test_an_id_of_the_applications_own_is_found_however_it_is_written() -> None:
    """Names are lower case in ASGI, and not every application keeps to it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-request-xy", b"as long"), (b"X-Request-Id", b"own")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    middleware = ASGIMiddleware(app, headrace=FakeHeadrace())  # type: ignore[arg-type]
    answer = asyncio.run(call_asgi(middleware, asgi_scope({"X-Request-ID": "r"})))
    assert answer.all("x-request-id") == ["own"]


def test_of_several_request_ids_the_first_sane_one_is_taken() -> None:
    """As ASGI has them; a WSGI server has joined them by commas."""
    scope = asgi_scope()
    scope["headers"] = [(b"x-request-id", value) for value in (b"two words", b"first", b"second")]
    answer = asyncio.run(call_asgi(ASGIMiddleware(plain_app, headrace=FakeHeadrace()), scope))  # type: ignore[arg-type]
    assert answer.all("X-Request-ID") == ["first"]


@pytest.mark.parametrize("kind", ["http.response.pathsend", "http.response.trailers"])
def test_responses_that_end_by_an_extension_are_counted_once(kind: str) -> None:
    headrace = FakeHeadrace()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "trailers": True})
        await send({"type": kind, "path": "/x"})

    asyncio.run(call_asgi(ASGIMiddleware(app, headrace=headrace), asgi_scope()))  # type: ignore[arg-type]
    assert headrace.service.statuses == [200]


def test_what_runs_after_the_last_byte_is_not_in_the_duration() -> None:
    headrace = FakeHeadrace()
    counted: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await plain_app(scope, receive, send)
        counted.append(len(headrace.service.calls))  # a background task

    asyncio.run(call_asgi(ASGIMiddleware(app, headrace=headrace), asgi_scope()))  # type: ignore[arg-type]
    assert counted == [1]
    assert len(headrace.service.calls) == 1


def test_a_client_that_leaves_before_the_answer_is_not_counted_as_served() -> None:
    headrace = FakeHeadrace()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(call_asgi(ASGIMiddleware(app, headrace=headrace), asgi_scope()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        while headrace.log != ["headrace.start"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert headrace.service.calls == []


def test_an_error_before_the_response_is_mapped_even_if_the_body_was_read() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise with_record(ConnectionError("x"))

    middleware = ASGIMiddleware(app, headrace=FakeHeadrace(configured(error_responses="map")))  # type: ignore[arg-type]
    assert asyncio.run(call_asgi(middleware, asgi_scope())).status == 502


def test_starting_does_not_block_the_event_loop() -> None:
    headrace = FakeHeadrace()

    async def main() -> None:
        await call_asgi(ASGIMiddleware(plain_app, headrace=headrace), asgi_scope())  # type: ignore[arg-type]

    asyncio.run(main())
    assert headrace.threads != [threading.main_thread()]


# --- other scope types ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["websocket", "something.new"])
def test_scopes_of_other_types_pass_untouched(kind: str) -> None:
    """failures.md 49."""
    passed: list[Any] = []

    async def app(*arguments: Any) -> None:
        passed.extend(arguments)

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    scope = {"type": kind}
    headrace = FakeHeadrace()
    asyncio.run(ASGIMiddleware(app, headrace=headrace)(scope, receive, send))  # type: ignore[arg-type]
    assert passed[0] is scope
    assert passed[1] is receive
    assert passed[2] is send
    assert scope == {"type": kind}
    assert headrace.log == []


# --- lifespan --------------------------------------------------------------------------------------


class Owned(ASGIMiddleware):
    """A middleware that made its Headrace itself, and so closes it."""

    def __init__(self, app: Any, headrace: FakeHeadrace) -> None:
        super().__init__(app, headrace=headrace)  # type: ignore[arg-type]
        self._is_ours = True
        holding._held[self.headrace] = holding._Held()


async def live(app: Any, *, scope: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A whole lifespan, as a server drives it; what was sent."""
    to_app: asyncio.Queue[Any] = asyncio.Queue()
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "lifespan.startup.complete":
            await to_app.put({"type": "lifespan.shutdown"})

    await to_app.put({"type": "lifespan.startup"})
    await app(scope if scope is not None else {"type": "lifespan", "state": {}}, to_app.get, send)
    return sent


def living_app(log: list[str], *, fails_at: str = "") -> Any:
    """An application with a lifespan, which notes what it does."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            log.append(f"app.{kind}")
            if kind == fails_at:
                await send({"type": f"lifespan.{kind}.failed", "message": "no database"})
                return
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                return

    return app


def types(sent: list[dict[str, Any]]) -> list[str]:
    return [message["type"].removeprefix("lifespan.") for message in sent]


def test_headrace_starts_before_the_application_and_closes_after_it() -> None:
    """failures.md 49."""
    headrace = FakeHeadrace()
    sent = asyncio.run(live(Owned(living_app(headrace.log), headrace)))
    assert types(sent) == ["startup.complete", "shutdown.complete"]
    assert headrace.log == ["headrace.start", "app.startup", "app.shutdown", "headrace.close"]


def test_a_given_headrace_is_started_but_left_open_for_the_code_that_made_it() -> None:
    headrace = FakeHeadrace()
    asyncio.run(live(ASGIMiddleware(living_app(headrace.log), headrace=headrace)))  # type: ignore[arg-type]
    assert headrace.log == ["headrace.start", "app.startup", "app.shutdown"]


@pytest.mark.parametrize("fails_at", ["startup", "shutdown"])
def test_headrace_closes_when_the_application_says_it_failed(fails_at: str) -> None:
    """failures.md 49."""
    headrace = FakeHeadrace()
    sent = asyncio.run(live(Owned(living_app(headrace.log, fails_at=fails_at), headrace)))
    assert sent[-1] == {"type": f"lifespan.{fails_at}.failed", "message": "no database"}
    assert headrace.log[-2:] == [f"app.{fails_at}", "headrace.close"]


async def returns(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await plain_app(scope, receive, send)


@pytest.mark.parametrize("app", [pytest.param(plain_app, id="raises"), pytest.param(returns, id="returns")])
def test_of_an_application_that_knows_no_lifespan_the_server_sees_ours(app: Any) -> None:
    """failures.md 49. Some servers warn where they see none, and nobody would hear of the shutdown."""
    headrace = FakeHeadrace()
    middleware = Owned(app, headrace)
    assert types(asyncio.run(live(middleware))) == ["startup.complete", "shutdown.complete"]
    assert headrace.log == ["headrace.start", "headrace.close"]
    assert asyncio.run(call_asgi(middleware, asgi_scope())).status == 200


def test_what_such_an_application_raises_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A middleware that cannot be built looks the same, and servers that see our lifespan say nothing of it."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no setting DATABASE")

    with caplog.at_level("INFO", logger="headrace"):
        assert types(asyncio.run(live(Owned(broken, FakeHeadrace())))) == [
            "startup.complete",
            "shutdown.complete",
        ]
    (line,) = [
        one.getMessage() for one in caplog.records if getattr(one, "event", "") == "lifespan.unsupported"
    ]
    assert "LookupError: no setting DATABASE" in line


def test_a_start_that_fails_stops_the_boot_and_the_application_never_runs() -> None:
    headrace = FakeHeadrace()
    headrace.start_error = RuntimeError("another instance claims https://billing.internal")
    sent = asyncio.run(live(Owned(living_app(headrace.log), headrace)))
    assert types(sent) == ["startup.failed"]
    assert "another instance claims https://billing.internal" in sent[0]["message"]
    assert headrace.log == ["headrace.start"]


def test_an_exception_of_the_applications_startup_reaches_the_server() -> None:
    """failures.md 49."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise LookupError("bug")

    with pytest.raises(LookupError, match="bug"):
        asyncio.run(live(Owned(app, FakeHeadrace())))


def test_the_lifespan_state_hands_headrace_to_every_scope_and_works_without_state() -> None:
    headrace = FakeHeadrace()
    scope: dict[str, Any] = {"type": "lifespan", "state": {"db": 1}}
    asyncio.run(live(Owned(living_app([]), headrace), scope=scope))
    assert scope["state"] == {"db": 1, "headrace": headrace}
    without: dict[str, Any] = {"type": "lifespan"}
    asyncio.run(live(Owned(living_app([]), headrace), scope=without))
    assert without == {"type": "lifespan"}


def test_a_second_lifespan_starts_anew() -> None:
    headrace = FakeHeadrace()
    middleware = Owned(living_app(headrace.log), headrace)
    asyncio.run(live(middleware))
    asyncio.run(live(middleware))
    assert headrace.log.count("headrace.start") == 2


def test_basehttpmiddleware_is_nowhere_in_it() -> None:
    """failures.md 43."""
    assert asgi.__file__ is not None
    assert "import BaseHTTPMiddleware" not in Path(asgi.__file__).read_text()
