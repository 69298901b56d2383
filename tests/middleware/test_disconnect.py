"""A client that leaves is noticed although nobody asks, and the application's `receive` stays what it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import CallCancelled
from headrace.middleware.asgi import ASGIMiddleware
from headrace.middleware.disconnect import DisconnectWatch
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


def test_a_client_that_leaves_amid_its_body_is_noticed_once_what_came_before_was_taken() -> None:
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
    """Pitfall 58. `Expect: 100-continue`: a server sends 100 Continue when somebody calls `receive`."""

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


def test_a_client_that_leaves_amid_a_streamed_response_cancels_too() -> None:
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
