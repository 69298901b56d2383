"""A client that leaves is noticed although nobody asks, and the application's `receive` stays what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import anyio
import pytest
import requests

from headrace.errors import CallCancelled
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.disconnect import DisconnectWatch
from headrace.policy.decision import EndReason
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.inbound import inbound_var
from support.gateways import CONFIGURATION, FakeHeadrace, asgi_scope

from .conftest import with_record

LEFT = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


WHOLE = part(b"", more=False)


class Server:
    """A server's side of one request: hands messages out as they are put in, one for each call."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.taken = 0
        self.asking = 0
        for message in messages:
            self.messages.put_nowait(message)

    async def receive(self) -> Any:
        self.asking += 1
        try:
            message = await self.messages.get()
        finally:
            self.asking -= 1
        self.taken += 1
        if isinstance(message, Exception):
            raise message
        return message


class Rig:
    """A watch over a server's `receive`, which counts the disconnects that it reports."""

    def __init__(self, *messages: dict[str, Any], headers: Any = ()) -> None:
        self.server = Server(*messages)
        self.reported = 0
        self.watch = DisconnectWatch(self.server.receive, self._note)
        self.watch.start(headers)

    def _note(self) -> None:
        self.reported += 1


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In an event loop that must be left without a task."""

    async def main() -> None:
        await test()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_client_that_leaves_is_noticed_although_the_application_never_asks() -> None:
    async def test() -> None:
        rig = Rig(WHOLE)
        await settled()
        assert rig.reported == 0
        rig.server.messages.put_nowait(LEFT)
        await settled()
        assert rig.reported == 1
        await rig.watch.close()

    run(test)


def test_the_application_gets_every_message_in_order_and_then_what_the_server_says() -> None:
    async def test() -> None:
        messages = [part(b"a"), part(b"b"), part(b"", more=True), part(b"c", more=False), LEFT, LEFT]
        rig = Rig(*messages)
        assert [await rig.watch.receive() for _ in messages] == messages
        assert rig.server.taken == len(messages)
        await rig.watch.close()

    run(test)


def test_a_disconnect_that_was_noticed_is_still_delivered_behind_the_body() -> None:
    async def test() -> None:
        rig = Rig(WHOLE, LEFT)
        await settled()
        assert rig.reported == 1
        assert await rig.watch.receive() == WHOLE
        assert await rig.watch.receive() == LEFT
        assert rig.reported == 1
        await rig.watch.close()

    run(test)


def test_at_most_one_message_of_the_body_is_read_ahead() -> None:
    async def test() -> None:
        rig = Rig(part(b"a"), part(b"b"), part(b"c"), part(b"d", more=False))
        await settled()
        assert rig.server.taken == 1
        assert await rig.watch.receive() == part(b"a")
        await settled()
        assert rig.server.taken == 2
        await rig.watch.close()

    run(test)


def test_a_client_that_leaves_during_its_body_is_noticed_once_what_came_before_was_taken() -> None:
    async def test() -> None:
        rig = Rig(part(b"a"), LEFT)
        await settled()
        assert rig.reported == 0  # the server has not been asked: nothing is buffered beyond one message
        assert await rig.watch.receive() == part(b"a")
        await settled()
        assert rig.reported == 1
        await rig.watch.close()

    run(test)


def test_waiting_in_vain_loses_no_message() -> None:
    async def test() -> None:
        rig = Rig()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(rig.watch.receive(), 0.01)
        assert rig.server.asking == 1
        rig.server.messages.put_nowait(WHOLE)
        assert await rig.watch.receive() == WHOLE
        await rig.watch.close()

    run(test)


def test_two_who_wait_at_once_get_a_message_each() -> None:
    """Starlette listens for the disconnect in one task while the body may be read in another."""

    async def test() -> None:
        rig = Rig()
        both = asyncio.gather(rig.watch.receive(), rig.watch.receive())
        await settled()
        for message in (part(b"a"), part(b"b", more=False)):
            rig.server.messages.put_nowait(message)
        assert await both == [part(b"a"), part(b"b", more=False)]
        await rig.watch.close()

    run(test)


def test_what_the_servers_receive_raises_reaches_the_application() -> None:
    async def test() -> None:
        rig = Rig(OSError("gone"))  # type: ignore[arg-type]
        await settled()
        with pytest.raises(OSError, match="gone"):
            await rig.watch.receive()
        await rig.watch.close()

    run(test)


def test_an_error_that_nobody_asks_for_is_not_reported_by_asyncio() -> None:
    problems: list[Any] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        rig = Rig(OSError("gone"))  # type: ignore[arg-type]
        await settled()
        await rig.watch.close()
        del rig
        await settled()

    run(test)
    assert problems == []


def test_a_disconnect_after_the_response_is_only_how_the_server_ends_the_request() -> None:
    async def test() -> None:
        rig = Rig(WHOLE)
        rig.watch.is_over = True
        rig.server.messages.put_nowait(LEFT)
        await settled()
        assert rig.reported == 0
        await rig.watch.close()

    run(test)


def test_closing_ends_what_waits_and_asks_no_further() -> None:
    async def test() -> None:
        rig = Rig(WHOLE)
        await settled()
        assert rig.server.asking == 1
        await rig.watch.close()
        assert rig.server.asking == 0
        assert rig.server.taken == 1
        await rig.watch.close()  # again

    run(test)


@pytest.mark.parametrize("value", [b"100-Continue", b"100-continue \t", b" 100-continue"])
def test_a_body_that_the_client_sends_only_when_asked_is_not_asked_for(value: bytes) -> None:
    """failures.md 58. `Expect: 100-continue`: a server sends 100 Continue when somebody calls `receive`."""

    async def test() -> None:
        rig = Rig(part(b"a", more=False), LEFT, headers=[(b"expect", value)])
        await settled()
        assert rig.server.taken == 0
        assert await rig.watch.receive() == part(b"a", more=False)
        assert await rig.watch.receive() == LEFT
        assert rig.reported == 1
        await rig.watch.close()

    run(test)


def test_without_a_loop_of_asyncio_it_notices_what_the_application_asks_for() -> None:
    """Under trio; here the watch is simply started where no loop runs."""
    messages = iter([WHOLE, LEFT])
    reported: list[int] = []

    async def receive() -> Any:
        return next(messages)

    watch = DisconnectWatch(receive, lambda: reported.append(1))
    watch.start(())

    async def test() -> None:
        assert await watch.receive() == WHOLE
        assert await watch.receive() == LEFT
        await watch.close()

    run(test)
    assert reported == [1]


# --- told at once, as without headrace ------------------------------------------------------------------


class StateServer:
    """A server's side as uvicorn has it: no queue, but what is the case when it is asked."""

    def __init__(self, *, body: bytes = b"") -> None:
        self.body: bytes | None = body
        self.has_left = self.is_over = False
        self.changed = asyncio.Event()
        self.changed.set()

    async def receive(self) -> Any:
        if not (self.has_left or self.is_over):
            await self.changed.wait()
            self.changed.clear()
        if self.has_left or self.is_over:
            return LEFT
        body, self.body = self.body, b""
        return part(body or b"", more=False)

    def leave(self) -> None:
        self.has_left = True
        self.changed.set()

    def end(self) -> None:
        self.is_over = True
        self.changed.set()


async def looked_at(receive: Any) -> bool:
    """Whether the client has left, asked without a wait: the look of Starlette's `is_disconnected`."""
    message: dict[str, Any] = {}
    with anyio.CancelScope() as scope:
        scope.cancel()
        message = await receive()
    return bool(message.get("type") == "http.disconnect")


@pytest.mark.parametrize("reads_body", [True, False])
@pytest.mark.parametrize("settles", [True, False])
@pytest.mark.parametrize("how", ["leave", "end"])
def test_a_look_without_a_wait_is_answered_as_the_server_would(
    how: str, settles: bool, reads_body: bool
) -> None:
    async def test() -> None:
        server = StateServer(body=b"all of it")
        watch = DisconnectWatch(server.receive, lambda: None)
        watch.start(())
        await settled()
        if reads_body:
            assert await watch.receive() == part(b"all of it", more=False)
            assert not await looked_at(watch.receive)
        watch.is_over = how == "end"
        getattr(server, how)()
        if settles or (how == "leave" and not reads_body):  # the server has its say first
            await settled()
        for _ in range(2):
            assert await looked_at(watch.receive)
        await watch.close()

    run(test)


def test_a_look_without_a_wait_is_answered_out_of_a_queue_as_well() -> None:
    """As hypercorn has it: each message comes once."""

    async def test() -> None:
        rig = Rig(WHOLE)
        await settled()
        assert await rig.watch.receive() == WHOLE
        assert not await looked_at(rig.watch.receive)
        rig.server.messages.put_nowait(LEFT)  # and nobody has run since
        assert await looked_at(rig.watch.receive)
        assert rig.reported == 1
        assert not await looked_at(rig.watch.receive)  # it says so once, as it would without us
        await rig.watch.close()

    run(test)


def test_a_look_in_vain_loses_nothing_and_the_client_is_noticed_all_the_same() -> None:
    async def test() -> None:
        for server in (Server(WHOLE), StateServer()):
            reported: list[int] = []
            watch = DisconnectWatch(server.receive, lambda reported=reported: reported.append(1))  # type: ignore[misc]
            watch.start(())
            assert (await watch.receive())["type"] == "http.request"
            for _ in range(5):
                assert not await looked_at(watch.receive)
            if isinstance(server, Server):
                server.messages.put_nowait(LEFT)
            else:
                server.leave()
            await settled()
            assert reported == [1]
            assert await watch.receive() == LEFT
            await watch.close()

    run(test)


def test_the_rest_of_a_body_comes_in_order_after_the_response_too() -> None:
    """A queue has not forgotten it, and somebody may still read."""

    async def test() -> None:
        rig = Rig(part(b"a"), part(b"b"), part(b"c", more=False))
        await settled()
        rig.watch.is_over = True
        assert [(await rig.watch.receive())["body"] for _ in range(3)] == [b"a", b"b", b"c"]
        rig.server.messages.put_nowait(LEFT)
        assert await rig.watch.receive() == LEFT
        assert rig.reported == 0
        await rig.watch.close()

    run(test)


def test_a_receive_that_is_no_coroutine_is_looked_at_too() -> None:
    """A server may answer with a future, which cannot be closed."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Any]] = []

        def receive() -> asyncio.Future[Any]:
            answers.append(loop.create_future())
            return answers[-1]

        watch = DisconnectWatch(receive, lambda: None)
        watch.start(())
        answers[0].set_result(WHOLE)
        await settled()
        assert await watch.receive() == WHOLE
        assert not await looked_at(watch.receive)
        watch.is_over = True
        assert not await looked_at(watch.receive)
        for answer in answers:
            if not answer.done():
                answer.set_result(LEFT)
        await settled()
        assert await watch.receive() == LEFT
        await watch.close()

    run(test)


# --- in the middleware --------------------------------------------------------------------------------


def headrace_with(*, cancel_on_disconnect: bool = True, error_responses: Any = "propagate") -> FakeHeadrace:
    service = replace(
        CONFIGURATION.service, cancel_on_disconnect=cancel_on_disconnect, error_responses=error_responses
    )
    return FakeHeadrace(replace(CONFIGURATION, service=service))


async def ignore(message: Any) -> None: ...


async def respond(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


def test_switched_off_the_application_gets_the_servers_own_receive() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([receive, inbound_var.get()])

    async def test() -> None:
        server = Server(WHOLE)
        given = server.receive
        middleware = ASGIMiddleware(app, headrace=headrace_with(cancel_on_disconnect=False))  # type: ignore[arg-type]
        await middleware(asgi_scope(), given, ignore)
        assert seen[0] is given
        assert seen[1].cancellation is None
        assert server.taken == 0

    run(test)


def cancellation_now() -> Cancellation:
    inbound = inbound_var.get()
    assert inbound is not None
    assert inbound.cancellation is not None
    return inbound.cancellation


def test_a_client_that_leaves_cancels_what_the_request_has_under_way() -> None:
    async def test() -> None:
        server = Server(WHOLE)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            cancellation = cancellation_now()
            waiting = asyncio.create_task(asyncio.to_thread(cancellation.sleep, 60.0))
            await settled()
            assert not cancellation.is_cancelled
            server.messages.put_nowait(LEFT)
            await asyncio.wait_for(waiting, 10.0)
            assert cancellation.is_cancelled
            assert await receive() == WHOLE
            assert await receive() == LEFT

        await ASGIMiddleware(app, headrace=headrace_with())(asgi_scope(), server.receive, ignore)  # type: ignore[arg-type]

    run(test)


def test_what_goes_on_after_the_response_is_not_cancelled() -> None:
    async def test() -> None:
        server = Server(WHOLE)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def send_and_end(message: Any) -> None: ...

            await respond(send)
            server.messages.put_nowait(LEFT)  # as uvicorn does at the end of each response
            await settled()
            assert not cancellation_now().is_cancelled  # a background task

        await ASGIMiddleware(app, headrace=headrace_with())(asgi_scope(), server.receive, ignore)  # type: ignore[arg-type]

    run(test)


def test_a_client_that_leaves_during_a_streamed_response_cancels_too() -> None:
    async def test() -> None:
        server = Server(WHOLE)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"some", "more_body": True})
            server.messages.put_nowait(LEFT)
            await settled()
            assert cancellation_now().is_cancelled

        await ASGIMiddleware(app, headrace=headrace_with())(asgi_scope(), server.receive, ignore)  # type: ignore[arg-type]

    run(test)


def test_an_error_of_the_application_passes_and_no_task_is_left() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("bug")

    async def test() -> None:
        middleware = ASGIMiddleware(app, headrace=headrace_with())  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="bug"):
            await middleware(asgi_scope(), Server(WHOLE).receive, ignore)
        assert inbound_var.get() is None

    run(test)


def test_a_request_that_the_server_cancels_takes_its_calls_along_and_leaves_no_task() -> None:
    """Some servers cancel the application's task when the client leaves; a thread of its would go on."""
    cancellations: list[Cancellation] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        cancellations.append(cancellation_now())
        await asyncio.Event().wait()

    async def test() -> None:
        server = Server(WHOLE)
        middleware = ASGIMiddleware(app, headrace=headrace_with())  # type: ignore[arg-type]
        task = asyncio.create_task(middleware(asgi_scope(), server.receive, ignore))  # type: ignore[arg-type]
        while not server.asking:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.asking == 0
        assert cancellations[0].is_cancelled

    run(test)


def test_an_abandoned_request_does_not_wait_while_it_is_collected() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def test() -> None:
        server = Server(WHOLE)
        middleware = ASGIMiddleware(app, headrace=headrace_with())  # type: ignore[arg-type]
        await middleware._start()
        coroutine = middleware(asgi_scope(), server.receive, ignore)
        coroutine.send(None)
        await settled()
        coroutine.close()  # RuntimeError if it awaited anything
        await settled()
        assert server.asking == 0

    run(test)


def cancelled_call() -> Exception:
    error = with_record(CallCancelled("x", upstream="billing"))
    error.headrace = replace(error.headrace, reason=EndReason.CANCELLED)  # type: ignore[attr-defined]
    return error


def raised(error: BaseException, *, frm: BaseException | None = None) -> BaseException:
    error.__cause__ = frm
    return error


@pytest.mark.parametrize("has_begun", [True, False])
@pytest.mark.parametrize("has_left", [True, False])
@pytest.mark.parametrize(
    ("make", "is_ours"),
    [
        pytest.param(cancelled_call, True, id="a call"),
        pytest.param(lambda: requests.ConnectionError(cancelled_call()), True, id="wrapped by a library"),
        pytest.param(lambda: raised(RuntimeError("begun"), frm=cancelled_call()), True, id="raised from it"),
        pytest.param(lambda: ExceptionGroup("x", [cancelled_call()]), True, id="in a group"),
        pytest.param(lambda: LookupError("bug"), False, id="a bug"),
        pytest.param(lambda: with_record(requests.ReadTimeout("x")), False, id="a call that failed"),
    ],
)
def test_what_a_client_that_left_has_made_fail_is_no_error_of_the_application(
    make: Callable[[], Exception], is_ours: bool, has_left: bool, has_begun: bool
) -> None:
    headrace = headrace_with()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if has_left:
            server.messages.put_nowait(LEFT)
            await settled()
        raise make()

    async def test() -> None:
        middleware = ASGIMiddleware(app, headrace=headrace)  # type: ignore[arg-type]
        if is_ours and has_left:
            await middleware(asgi_scope(), server.receive, ignore)
        else:
            with pytest.raises(type(make())):
                await middleware(asgi_scope(), server.receive, ignore)

    server = Server(WHOLE)
    run(test)
    expected = [200] if has_begun else [] if is_ours and has_left else [500]
    assert headrace.service.statuses == expected


def test_a_bug_during_the_handling_of_a_cancelled_call_is_the_applications() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        server.messages.put_nowait(LEFT)
        await settled()
        try:
            raise cancelled_call()
        except CallCancelled:
            raise LookupError("bug")  # noqa: B904 - which is the point

    async def test() -> None:
        with pytest.raises(LookupError, match="bug"):
            await ASGIMiddleware(app, headrace=headrace_with())(asgi_scope(), server.receive, ignore)  # type: ignore[arg-type]

    server = Server(WHOLE)
    run(test)


def test_an_answer_that_begins_after_its_client_has_left_is_counted_as_499() -> None:
    """Starlette makes a 500 of a cancelled call; nobody gets it, and it is nobody's fault."""
    headrace = headrace_with()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        server.messages.put_nowait(LEFT)
        await settled()
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"sorry"})
        raise cancelled_call()

    async def test() -> None:
        await ASGIMiddleware(app, headrace=headrace)(asgi_scope(), server.receive, ignore)  # type: ignore[arg-type]

    server = Server(WHOLE)
    run(test)
    assert headrace.service.statuses == [499]


def test_a_call_cut_short_by_its_client_is_answered_without_an_alarm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The status is for logs and metrics: 499 blames no upstream, and nobody gets it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise with_record(CallCancelled("x", upstream="billing"))

    async def test() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headrace = headrace_with(error_responses="map")
        await ASGIMiddleware(app, headrace=headrace)(asgi_scope(), Server(WHOLE).receive, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 499
        assert headrace.service.statuses == [499]

    run(test)
    assert caplog.records == []
