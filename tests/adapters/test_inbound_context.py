"""What of an inbound request reaches its outbound calls: deadline, trace, id. Both interfaces, real sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import headrace
from support.faultserver import Answer, Break, FaultServer, Silence
from support.gateways import AsgiGateway, Gateway, Seen, WsgiGateway
from support.governed import rules, running
from support.surfaces import HANDLE, INSTALL, REQUESTS, URLOPEN, Surface
from support.waiting import ends_within

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(params=[AsgiGateway, WsgiGateway], ids=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


MORE = INSTALL + "service: {deadline: {header: X-Request-Timeout}}\n"
FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


def calling(serve: Any, hr: headrace.Headrace, act: Callable[[], Any]) -> tuple[Gateway, list[Any]]:
    """A gateway whose handler keeps what *act* returns or raises."""
    kept: list[Any] = []

    def handler(_: Seen) -> tuple[int, list[tuple[str, str]], list[bytes]]:
        # Not on the thread of the event loop, where no call may pause.
        with headrace.PropagatingExecutor(ThreadPoolExecutor(1)) as pool:
            future = pool.submit(act)
            kept.append(future.exception() or future.result())
        return 200, [], [b""]

    return serve(handler, hr), kept


def seen(server: FaultServer, name: str) -> list[str | None]:
    return [request.header(name) for request in server.requests]


# --- deadline ---------------------------------------------------------------------------------------


def test_what_is_left_of_the_inbound_deadline_bounds_every_call(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        server.always(Silence())
        gateway, (kept) = calling(serve, hr, lambda: call(hr, server.url))
        with ends_within(0.3):  # not the 15 s of the rule
            gateway.request({"X-Request-Timeout": "300ms"})

        assert isinstance(kept[0], headrace.DeadlineExceeded)
        assert 0.0 < kept[0].deadline_s <= 0.3
        assert kept[0].headrace.reason.value in ("deadline", "attempts")  # type: ignore[attr-defined]


def test_the_calls_own_deadline_stays_where_it_is_the_earlier_one(
    tmp_path: Path, serve: Any, server: FaultServer
) -> None:
    with running(
        tmp_path, rules(server.url, "    timeouts: {deadline: 200ms, attempt: 200ms}\n", more=MORE)
    ) as hr:
        server.always(Silence())
        gateway, kept = calling(serve, hr, lambda: REQUESTS(hr, server.url))
        gateway.request({"X-Request-Timeout": "30"})
        assert isinstance(kept[0], headrace.DeadlineExceeded)
        assert kept[0].deadline_s == 0.2


TELLING = FAST + "    propagate: {deadline: true}\n"


def test_each_attempt_tells_what_is_left_then(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    slow = (
        "    retry: {backoff: {base: 50ms, multiplier: 1, jitter: none}}\n    propagate: {deadline: true}\n"
    )
    with running(tmp_path, rules(server.url, slow, more=MORE)) as hr:
        server.next(Answer(503), Break(at="head"), Answer(200))
        gateway, kept = calling(serve, hr, lambda: call(hr, server.url))
        gateway.request({"X-Request-Timeout": "50"})

        assert len(kept[0].headrace.attempts) == 3
        told = [text or "" for text in seen(server, "X-Request-Timeout")]
        assert [len(text.partition(".")[2]) for text in told] == [3, 3, 3]
        first, second, third = map(float, told)
        assert 5.0 < third <= second - 0.045 < first - 0.045 <= 50


def test_grpc_timeout_is_told_in_its_own_format(tmp_path: Path, serve: Any, server: FaultServer) -> None:
    more = MORE.replace("X-Request-Timeout", "grpc-timeout")
    with running(tmp_path, rules(server.url, TELLING, more=more)) as hr:
        gateway, _ = calling(serve, hr, lambda: REQUESTS(hr, server.url))
        gateway.request({"grpc-timeout": "80S"})
        (told,) = seen(server, "grpc-timeout")
        assert told is not None
        assert told.endswith("m")
        assert 8000 < int(told[:-1]) <= 80_000


def test_outside_of_a_request_the_calls_own_deadline_is_told(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, TELLING, more=MORE)) as hr:
        REQUESTS(hr, server.url)
        (told,) = seen(server, "X-Request-Timeout")
        assert 10.0 < float(told or "") <= 15.0


def test_nothing_is_told_without_a_deadline_or_without_being_asked_to(
    tmp_path: Path, server: FaultServer
) -> None:
    endless = TELLING + "    timeouts: {deadline: null}\n"
    with running(tmp_path, rules(server.url, endless, more=MORE)) as hr:
        REQUESTS(hr, server.url)
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        REQUESTS(hr, server.url)
    assert seen(server, "X-Request-Timeout") == [None, None]


def test_what_a_call_tells_itself_stays(tmp_path: Path, call: Surface, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, TELLING, more=MORE)) as hr:
        call(hr, server.url, headers={"x-request-timeout": "1"})
        assert seen(server, "X-Request-Timeout") == ["1"]


# --- trace --------------------------------------------------------------------------------------------


def test_the_trace_is_passed_on_as_it_came_with_every_attempt(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        server.next(Answer(503), Answer(200))
        gateway, _ = calling(serve, hr, lambda: call(hr, server.url))
        gateway.request({"traceparent": PARENT, "tracestate": "a=1"})
        assert seen(server, "traceparent") == [PARENT, PARENT]
        assert seen(server, "tracestate") == ["a=1", "a=1"]


def test_a_call_with_a_trace_of_its_own_keeps_it_and_gets_no_state_of_another(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        gateway, _ = calling(serve, hr, lambda: call(hr, server.url, headers={"Traceparent": OTHER}))
        gateway.request({"traceparent": PARENT, "tracestate": "a=1"})
        assert seen(server, "traceparent") == [OTHER]
        assert seen(server, "tracestate") == [None]


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_a_call_by_name_passes_the_trace_on_in_every_mode(
    tmp_path: Path, serve: Any, mode: str, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, f"    mode: {mode}\n", more=MORE)) as hr:
        gateway, _ = calling(serve, hr, lambda: (HANDLE(hr, server.url), URLOPEN(hr, server.url)))
        gateway.request({"traceparent": PARENT})
        assert seen(server, "traceparent") == [PARENT, PARENT]


def test_a_third_party_gets_neither_trace_nor_id(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    third = "    propagate: {traceparent: false, request_id: false}\n"
    with running(tmp_path, rules(server.url, third, more=MORE)) as hr:
        gateway, _ = calling(serve, hr, lambda: call(hr, server.url))
        gateway.request({"traceparent": PARENT, "X-Request-ID": "mine"})
        assert seen(server, "traceparent") == [None]
        assert seen(server, "X-Request-ID") == [None]


# --- id ---------------------------------------------------------------------------------------------------

IDS = ["0190f0f7-8a3c-7e6b-b1c7-3c2f6c0a9e11", "Root=1-67891233-abcdef012345678912345678;Sampled=1", "7"]


@pytest.mark.parametrize("sent", IDS)
def test_an_id_of_any_format_is_passed_on_as_it_came(
    tmp_path: Path, serve: Any, call: Surface, sent: str, server: FaultServer
) -> None:
    """failures.md 45."""
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        server.next(Answer(503), Answer(200))
        gateway, kept = calling(serve, hr, lambda: call(hr, server.url))
        assert gateway.request({"X-Request-ID": sent}).all("X-Request-ID") == [sent]
        assert seen(server, "X-Request-ID") == [sent, sent]
        assert kept[0].headrace.request_id == sent


@pytest.mark.parametrize("sent", ["a\r\nX-Evil: 1", "a\nb", "x" * 10_240, "a b", ""])
def test_an_id_that_could_do_harm_reaches_no_upstream(
    tmp_path: Path, serve: Any, sent: str, server: FaultServer
) -> None:
    """failures.md 45."""
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        gateway, _ = calling(serve, hr, lambda: REQUESTS(hr, server.url))
        (made,) = gateway.request({"X-Request-ID": sent}).all("X-Request-ID")
        assert seen(server, "X-Request-ID") == [made]
        assert seen(server, "X-Evil") == [None]
        assert len(made) == 32


def test_an_error_carries_the_id_of_its_request_also_where_it_is_not_sent(
    tmp_path: Path, serve: Any, call: Surface, server: FaultServer
) -> None:
    body = "    propagate: {request_id: false}\n    circuit_breaker: {consecutive_failures: 1}\n"
    with running(tmp_path, rules(server.url, body, more=MORE)) as hr:
        server.always(Break(at="head"))
        gateway, kept = calling(serve, hr, lambda: call(hr, server.url))
        for _ in range(2):
            gateway.request({"X-Request-ID": "mine"})
        broken, refused = kept
        assert isinstance(refused, headrace.CircuitOpenError)
        assert (broken.headrace.request_id, refused.headrace.request_id, refused.request_id) == (
            "mine",
            "mine",
            "mine",
        )
        assert "request id mine" in refused.__notes__[-1]


def test_the_id_is_at_hand_in_the_handler(tmp_path: Path, serve: Any, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        gateway, kept = calling(serve, hr, headrace.request_id)
        gateway.request({"X-Request-ID": "mine"})
        assert kept == ["mine"]
        assert headrace.request_id() is None
