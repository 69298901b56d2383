"""Awaited calls by name, end to end: real servers, real sockets, both kinds of loops, all rules on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import gc
import gzip
import os
import pickle
import random
import re
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from urllib3._collections import HTTPHeaderDict

import headrace
from headrace.adapters.aio.answer import Answer as AwaitedAnswer
from headrace.adapters.aio.handle import Awaited
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    HeadraceError,
    IdentityMismatch,
    ResponseTooLarge,
    StatusError,
    TransportBroken,
    TransportError,
    TransportTimeout,
)
from headrace.runtime.inbound import inbound_var
from headrace.transport.loop_deadlines import deadlines_of
from support.authorities import server_of
from support.faultserver import Answer, Break, Endless, FaultServer, Raw, Silence, on_reuse, server_context
from support.forks import in_child
from support.governed import reason_of, rules, running
from support.holes import black_hole
from support.leaving import Request
from support.loops import OnLoop, run_with
from support.waiting import wait_until

LONG_S = 30.0
QUICK = "    retry: {backoff: {base: 1ms, max: 2ms, throttled: 1ms}}\n"
ONCE = "    retry: {max_attempts: 1}\n"


def sockets() -> set[str]:
    """Those of this process; other descriptors (the watch has some) come and go by themselves."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.add(target)
    return found


class Rig:
    """One upstream, `billing`, over a server."""

    def __init__(self, hr: headrace.Headrace, server: FaultServer) -> None:
        self.hr, self.server = hr, server

    @property
    def aio(self) -> Awaited:
        return self.hr.upstream("billing").aio

    @property
    def pool(self) -> tuple[int, int, int]:
        view = self.hr.snapshot.upstream("billing").endpoint.pool.leases.view()
        return view.inuse, view.idle, view.waiting

    @property
    def counted(self) -> dict[str, int]:
        counters = self.hr.snapshot.upstream("billing").learned.counters
        with counters.lock:
            return dict(counters.requests)


async def streamed_whole(rig: Rig) -> bytes:
    async with rig.aio.stream("GET", "/") as answer:
        return await answer.aread()


@pytest.fixture
def with_rules(tmp_path: Path, on_loop: OnLoop) -> Any:
    """Runs a test's coroutine under the rules of one upstream, and sees that nothing of it is left."""

    def run(
        act: Callable[[Rig], Awaitable[None]], body: str = QUICK, *, tls: Any = None, more: str = ""
    ) -> None:
        async def main(rig: Rig) -> None:
            async with asyncio.timeout(2 * LONG_S):
                await act(rig)
            await asyncio.sleep(0)
            assert not deadlines_of(asyncio.get_running_loop()).table
            assert rig.pool[0] == rig.pool[2] == 0
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with FaultServer(tls=tls) as server, running(tmp_path, rules(server.url, body, more=more)) as hr:
            rig = Rig(hr, server)
            on_loop(main(rig))
            assert rig.pool == (0, 0, 0)  # the loop has ended
            server.wait_for(lambda: not server.open_connections)

    return run


def test_a_call_is_governed_as_one_that_blocks(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.next(Answer(503), Answer(500), Answer(200, (("X-A", "1"), ("X-A", "2")), b'{"a": 1}'))
        answer = await rig.aio.get(
            "/invoices", params={"page": 2, "tag": ["a", "b"]}, headers={"X-Own": "mine"}
        )
        assert (answer.status_code, answer.json(), answer.text) == (200, {"a": 1}, '{"a": 1}')
        assert (answer.headers["x-a"], answer.headers.getlist("X-A")) == ("1, 2", ["1", "2"])
        assert answer.elapsed.total_seconds() > 0.0
        assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "5xx", "2xx"]
        assert answer.url == f"{rig.server.url}/invoices?page=2&tag=a&tag=b"
        last = rig.server.requests[-1]
        assert (last.target, last.header("X-Own"), last.header("X-Retry-Seq")) == (
            "/invoices?page=2&tag=a&tag=b",
            "mine",
            "2",
        )
        assert last.header("X-Request-ID") == answer.headrace.request_id
        assert (rig.pool, rig.counted) == ((0, 1, 0), {"2xx": 1})
        await asyncio.to_thread(rig.hr.upstream("billing").get, "/")  # the same counters, circuit and limit
        assert rig.pool == (0, 2, 0)
        rig.hr.snapshot.upstream("billing").endpoint.pool.leases.close_idle("idle")

    with_rules(act, QUICK + "    propagate: {retry_sequence: true}\n")


@pytest.mark.parametrize(
    ("keywords", "body", "kind"),
    [
        pytest.param({"content": b"\x00bytes"}, b"\x00bytes", None, id="bytes"),
        pytest.param({"content": "täxt"}, "täxt".encode(), None, id="text"),
        pytest.param({"json": {"k": [1, None]}}, b'{"k":[1,null]}', "application/json", id="json"),
        pytest.param(
            {"data": {"a": "1 2", "b": ["x", "y"]}},
            b"a=1+2&b=x&b=y",
            "application/x-www-form-urlencoded",
            id="a form",
        ),
        pytest.param({"content": b"z" * 3_000_000}, b"z" * 3_000_000, None, id="large"),
        pytest.param({}, b"", None, id="none"),
    ],
)
def test_bodies_of_each_kind_are_sent(
    with_rules: Any, keywords: dict[str, Any], body: bytes, kind: str | None
) -> None:
    async def act(rig: Rig) -> None:
        assert (await rig.aio.post("/", **keywords)).content == b"ok"
        request = rig.server.requests[-1]
        assert (request.body, request.header("Content-Type")) == (body, kind)
        assert request.header("Content-Length") == str(len(body))

    with_rules(act)


def test_an_iterated_body_is_sent_once_by_chunks_and_never_again_empty(with_rules: Any) -> None:
    """failures.md 13."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0)
        yield b"two"

    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise ZeroDivisionError("the caller's own")

    async def act(rig: Rig) -> None:
        await rig.aio.put("/", content=pieces())
        assert (rig.server.requests[-1].body, rig.server.requests[-1].header("Transfer-Encoding")) == (
            b"onetwo",
            "chunked",
        )
        rig.server.always(Answer(503))
        answer = await rig.aio.put("/", content=pieces())
        assert (answer.status_code, answer.headrace.reason.value) == (503, "not_replayable")
        with pytest.raises(ZeroDivisionError) as raised:
            await rig.aio.put("/", content=broken())
        assert reason_of(raised.value) == "local_error"
        assert len(rig.server.requests) == 2

    with_rules(act, "    retry: {methods: [GET, PUT]}\n")


STALLED = "    retry: {max_attempts: 1}\n    timeouts: {attempt: %s, read: %s, write: 500ms, deadline: %s}\n"


@pytest.mark.parametrize(
    ("limits", "end", "error"),
    [
        pytest.param(("500ms", "500ms", "60s"), None, TransportTimeout, id="attempt"),
        pytest.param(("500ms", "500ms", "500ms"), None, (DeadlineExceeded, TransportTimeout), id="deadline"),
        pytest.param(
            ("60s", "60s", "60s"), lambda rig: rig.server.drop_all(), TransportBroken, id="the peer"
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_body_that_never_yields_again_is_bounded_and_closed(
    with_rules: Any, limits: tuple[str, ...], end: Any, error: Any, streamed: bool
) -> None:
    async def act(rig: Rig) -> None:
        log: list[str] = []
        is_stalled = asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            try:
                yield b"x"
                is_stalled.set()
                await asyncio.Event().wait()
            finally:
                log.append("closed")

        async def send() -> None:
            if streamed:
                async with rig.aio.stream("POST", "/", content=content()) as answer:
                    await answer.aread()
            else:
                await rig.aio.post("/", content=content())

        call = asyncio.create_task(send())
        await is_stalled.wait()
        if end is not None:
            await asyncio.to_thread(rig.server.wait_for, lambda: rig.server.open_connections)
            end(rig)
        began = time.monotonic()
        with pytest.raises(error):
            await call
        assert time.monotonic() - began < LONG_S / 2
        assert (log, call.cancelling(), rig.pool) == (["closed"], 0, (0, 0, 0))

    with_rules(act, STALLED % limits)


def test_close_ends_a_call_whose_body_never_yields_again(tmp_path: Path, on_loop: OnLoop) -> None:
    async def act(hr: headrace.Headrace) -> None:
        is_stalled = asyncio.Event()

        async def content() -> AsyncIterator[bytes]:
            yield b"x"
            is_stalled.set()
            await asyncio.Event().wait()

        call = asyncio.create_task(hr.upstream("billing").aio.post("/", content=content()))
        async with asyncio.timeout(LONG_S):
            await is_stalled.wait()
            hr.close()
            with pytest.raises(HeadraceError):
                await call

    limits = STALLED % ("60s", "60s", "60s")
    with FaultServer() as server, running(tmp_path, rules(server.url, limits)) as hr:
        on_loop(act(hr))


def test_a_body_is_closed_where_the_answer_comes_before_its_end(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        log: list[str] = []
        rig.server.on_expect = "answer"
        rig.server.always(Answer(413, close=True))

        async def content() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(100_000)
                    await asyncio.sleep(0)
            finally:
                log.append("closed")

        headers = {"Expect": "100-continue"}
        answer = await rig.aio.post("/", content=content(), headers=headers)
        assert (answer.status_code, log) == (413, ["closed"])

    with_rules(act, ONCE)


@pytest.mark.parametrize("n_bytes", [2, 60])
def test_a_body_that_is_iterated_over_is_as_long_as_it_says(with_rules: Any, n_bytes: int) -> None:
    """Else what follows on the connection is somebody else's request, or a part of this one."""

    async def act(rig: Rig) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

        with pytest.raises(ValueError, match="its Content-Length"):
            await rig.aio.post("/", content=content(), headers={"Content-Length": str(n_bytes)})
        assert (await rig.aio.get("/mine")).status_code == 200
        assert [one.target for one in rig.server.requests] == ["/mine"]

    with_rules(act, QUICK)


@pytest.mark.filterwarnings(
    "ignore:unclosed transport:ResourceWarning"
)  # asyncio's, of the loop that was closed
@pytest.mark.parametrize("holder", ["a thread", "the loop"])
def test_a_loop_that_is_closed_under_its_calls_locks_nobody_out(tmp_path: Path, holder: str) -> None:
    body = "    retry: {max_attempts: 1}\n    pool: {max_connections: 1}\n"
    body += "    timeouts: {acquire: 30s, deadline: 60s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        upstream, leases = hr.upstream("billing"), hr.snapshot.upstream("billing").endpoint.pool.leases
        server.next(Answer(delay_s=1.0))
        thread = threading.Thread(target=upstream.get, args=("/",))
        if holder == "a thread":
            thread.start()
            wait_until(lambda: server.requests)

        async def main() -> list[asyncio.Task[Any]]:
            tasks = [asyncio.create_task(upstream.aio.get("/")) for _ in range(2)]
            while leases.view().waiting < (2 if holder == "a thread" else 1) or not server.requests:
                await asyncio.sleep(0.001)
            return tasks

        loop = asyncio.new_event_loop()
        tasks = loop.run_until_complete(main())
        loop.close()
        assert upstream.get("/").status_code == 200
        assert run_with(asyncio.new_event_loop, upstream.aio.get("/")).status_code == 200
        if holder == "a thread":
            thread.join(LONG_S)
        assert (leases.view().inuse, leases.view().waiting, leases.shelves) == (0, 0, {})
        while tasks:
            tasks.pop()._log_destroy_pending = False  # type: ignore[attr-defined]
        del loop
        gc.collect()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "deflate, raw", "gzip, gzip"])
@pytest.mark.parametrize("streamed", [False, True])
def test_codings_are_taken_off(with_rules: Any, coding: str, streamed: bool) -> None:
    body = b"coded " * 50_000
    sent = {
        "gzip": gzip.compress(body[:7]) + gzip.compress(body[7:]),
        "deflate": zlib.compress(body),
        "deflate, raw": zlib.compress(body)[2:-4],
        "gzip, gzip": gzip.compress(gzip.compress(body)),
    }[coding]
    named = coding.removesuffix(", raw")

    async def act(rig: Rig) -> None:
        rig.server.always(Answer(200, (("Content-Encoding", named),), sent))
        if streamed:
            async with rig.aio.stream("GET", "/") as answer:
                assert await answer.aread() == body
                assert answer.content == body
        else:
            assert (await rig.aio.get("/")).content == body
        assert rig.server.requests[-1].header("Accept-Encoding") == "gzip, deflate"
        assert (await rig.aio.head("/")).content == b""
        rig.server.always(Answer(200, (("Content-Encoding", named),), sent[:-9]))
        with pytest.raises(TransportError, match="protocol_error"):
            await (streamed_whole(rig) if streamed else rig.aio.get("/"))

    with_rules(act, ONCE)


RAW_DEFLATE = zlib.compress(b"coded " * 50)[2:-4]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("coding", "sent"),
    [
        pytest.param("gzip", gzip.compress(b"coded " * 50) + b"\0", id="a zero behind it"),
        pytest.param("gzip", gzip.compress(b"coded " * 50) + b"\0" * 4, id="zeros behind it"),
        pytest.param("gzip", gzip.compress(b"coded " * 50) + b"junk" * 900, id="junk behind it"),
        pytest.param(
            "gzip", gzip.compress(b"coded ") + gzip.compress(b"coded " * 49) + b"\0" * 9, id="two, then zeros"
        ),
        pytest.param(
            "gzip", gzip.compress(b"coded " * 50) + b"\x1f\x8bjunk", id="junk that begins like gzip"
        ),
        pytest.param("deflate", zlib.compress(b"coded " * 50), id="deflate"),
        pytest.param("deflate", RAW_DEFLATE, id="raw deflate"),
        pytest.param("deflate", zlib.compress(b"coded " * 50) + b"junk", id="junk behind deflate"),
    ],
)
def test_what_blocking_calls_can_read_is_read_however_it_comes(
    with_rules: Any, coding: str, sent: bytes, streamed: bool
) -> None:
    async def act(rig: Rig) -> None:
        for drip_s in (0.0, 0.0005):
            rig.server.always(Answer(200, (("Content-Encoding", coding),), sent[:400], drip_body_s=drip_s))
            get = rig.hr.upstream("billing").get
            assert (await asyncio.to_thread(get, "/")).content == b"coded " * 50
            found = await streamed_whole(rig) if streamed else (await rig.aio.get("/")).content
            assert found == b"coded " * 50
        rig.hr.snapshot.upstream("billing").endpoint.pool.leases.close_idle("idle")

    with_rules(act, ONCE)


@pytest.mark.parametrize(
    ("coding", "sent"),
    [
        pytest.param("gzip", b"junk" + gzip.compress(b"x"), id="junk before gzip"),
        pytest.param("gzip", gzip.compress(b"x") + gzip.compress(b"y" * 99)[:-9], id="a second gzip cut"),
        pytest.param("gzip", gzip.compress(b"x")[:-1], id="gzip cut"),
        pytest.param("deflate", RAW_DEFLATE[:-1], id="raw deflate cut"),
        pytest.param("deflate", b"\xff" * 9, id="no deflate"),
        pytest.param("deflate", b"\x78", id="a byte of deflate"),
    ],
)
def test_what_is_not_whole_is_refused_however_it_comes(with_rules: Any, coding: str, sent: bytes) -> None:
    async def act(rig: Rig) -> None:
        for drip_s in (0.0, 0.0005):
            rig.server.always(Answer(200, (("Content-Encoding", coding),), sent, drip_body_s=drip_s))
            with pytest.raises(TransportError, match="protocol_error"):
                await rig.aio.get("/")
            with pytest.raises(TransportError, match="protocol_error"):
                await streamed_whole(rig)

    with_rules(act, ONCE)


def test_a_body_of_more_than_five_codings_is_refused_and_nothing_is_made_for_them(with_rules: Any) -> None:
    """Each takes the memory of a decoder, and a head has room for thousands of them. urllib3 allows as many."""
    body = b"five"
    for _ in range(5):
        body = gzip.compress(body)

    async def act(rig: Rig) -> None:
        rig.server.always(Answer(200, (("Content-Encoding", ", ".join(["gzip"] * 5 + ["identity"])),), body))
        assert (await rig.aio.get("/")).content == await streamed_whole(rig) == b"five"
        for many in (6, 10_000):
            rig.server.always(Answer(200, (("Content-Encoding", ",".join(["gzip"] * many)),), body))
            with pytest.raises(TransportError, match="more than 5 codings"):
                await rig.aio.get("/")
            with pytest.raises(TransportError, match="more than 5 codings"):
                await streamed_whole(rig)
            assert (await rig.aio.head("/")).content == b""  # it has no body
        tracemalloc.start()
        try:
            async with rig.aio.stream("GET", "/"):
                assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    with_rules(act, ONCE)


@pytest.mark.parametrize(
    ("behaviour", "error", "outcome", "also"),
    [
        pytest.param(Silence(), TransportTimeout, "timeout", TimeoutError, id="silence"),
        pytest.param(Endless(), TransportTimeout, "timeout", TimeoutError, id="drip"),
        pytest.param(Break("request", "rst"), TransportBroken, "reset", ConnectionError, id="reset"),
        pytest.param(Break("body", "fin"), TransportBroken, "reset", ConnectionError, id="half a body"),
        pytest.param(Raw(), TransportError, "protocol_error", HeadraceError, id="no HTTP"),
    ],
)
def test_what_went_wrong_is_told_in_classes_of_our_own(
    with_rules: Any, behaviour: Any, error: type[Exception], outcome: str, also: type[Exception]
) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(behaviour)
        with pytest.raises(error) as raised:
            await rig.aio.get("/")
        assert isinstance(raised.value, also)
        assert isinstance(raised.value, TransportError)
        assert (raised.value.upstream, raised.value.fault) == ("billing", outcome)
        (attempt,) = raised.value.headrace.attempts  # type: ignore[attr-defined]
        assert (attempt.outcome, attempt.sent) == (outcome, True)
        assert any("attempt 1" in note for note in raised.value.__notes__)
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)

    with_rules(act, ONCE + "    timeouts: {attempt: 300ms, read: 200ms}\n")


def test_connections_that_cannot_be_made_were_never_sent(with_rules: Any, tmp_path: Path) -> None:
    async def refused(rig: Rig) -> None:
        rig.server.refuse()
        rig.server.drop_all()
        with pytest.raises(TransportBroken) as raised:
            await rig.aio.post("/", content=b"x")
        attempts = raised.value.headrace.attempts  # type: ignore[attr-defined]
        assert [(one.outcome, one.sent) for one in attempts] == [("connect_failure", False)] * 3

    with_rules(refused)


def test_an_address_that_answers_nothing_is_bounded_by_connect(tmp_path: Path, on_loop: OnLoop) -> None:
    async def main(hr: headrace.Headrace) -> None:
        began = time.monotonic()
        with pytest.raises(TransportTimeout) as raised:
            await hr.upstream("billing").aio.get("/")
        assert time.monotonic() - began < LONG_S
        (attempt,) = raised.value.headrace.attempts  # type: ignore[attr-defined]
        assert (attempt.outcome, attempt.sent) == ("connect_failure", False)

    body = ONCE + "    timeouts: {connect: 200ms}\n"
    with black_hole() as port, running(tmp_path, rules(f"http://127.0.0.1:{port}", body)) as hr:
        on_loop(main(hr))


def test_an_answer_that_is_not_retried_is_bounded_by_silence_and_the_deadline(with_rules: Any) -> None:
    """failures.md 89."""

    async def act(rig: Rig) -> None:
        slow = b"x" * 100
        rig.server.always(Answer(200, body=slow, drip_body_s=0.01))
        assert (await rig.aio.get("/")).content == slow
        rig.server.always(Answer(503, body=slow, drip_body_s=0.01))
        with pytest.raises(TransportTimeout):
            await rig.aio.get("/")

    with_rules(act, ONCE + "    timeouts: {attempt: 300ms, read: 250ms, deadline: 30s}\n")


def test_the_deadline_ends_a_call_whatever_its_attempts_may_take(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Silence())
        with pytest.raises(DeadlineExceeded) as raised:
            await rig.aio.get("/")
        assert raised.value.deadline_s == pytest.approx(0.4)

    with_rules(act, "    timeouts: {deadline: 400ms, attempt: 300ms}\n" + QUICK)


def test_an_answer_that_arrived_while_the_loop_was_blocked_is_no_timeout(with_rules: Any) -> None:
    """failures.md 67. A retry, or a failure, would be held against an upstream that was in time."""

    async def act(rig: Rig) -> None:
        await rig.aio.get("/")
        for body in (b"a" * 1000, b"b" * 100_000, b"c" * 3_000_000):
            rig.server.always(Answer(body=body, delay_s=0.05))
            asyncio.get_running_loop().call_later(0.02, time.sleep, 1.3)
            answer = await rig.aio.get("/")
            assert answer.content == body
            assert len(answer.headrace.attempts) == 1

    with_rules(act, ONCE + "    timeouts: {attempt: 1s}\n")


def test_a_circuit_that_opens_refuses_both_kinds_of_calls(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(500))
        for _ in range(3):
            assert (await rig.aio.get("/")).status_code == 500
        with pytest.raises(CircuitOpenError) as raised:
            await rig.aio.get("/")
        assert raised.value.retry_after_s > 0.0
        with pytest.raises(CircuitOpenError):
            await asyncio.to_thread(rig.hr.upstream("billing").get, "/")
        assert len(rig.server.requests) == 3

    with_rules(act, ONCE + "    circuit_breaker: {consecutive_failures: 3}\n")


def test_a_refused_call_gets_its_fallback(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(500))
        await rig.aio.get("/")
        answer = await rig.aio.get("/")
        assert (answer.status_code, answer.json()) == (200, {"from": "file"})
        assert answer.headrace.reason.value == "circuit_open"

    body = ONCE + "    circuit_breaker: {consecutive_failures: 1}\n"
    with_rules(act, body + '    fallback: {status: 200, body: \'{"from": "file"}\'}\n')


def test_a_refused_call_goes_to_another_upstream(tmp_path: Path, on_loop: OnLoop) -> None:
    async def main(hr: headrace.Headrace, server: FaultServer, other: FaultServer) -> None:
        server.always(Answer(500))
        await hr.upstream("billing").aio.get("/a/1")
        answer = await hr.upstream("billing").aio.get("/a/1", headers={"Authorization": "secret"})
        assert (answer.content, answer.headrace.fallback_for) == (b"other", "billing")
        assert (other.requests[-1].target, other.requests[-1].header("Authorization")) == ("/b/a/1", None)

    with FaultServer() as server, FaultServer() as other:
        other.always(Answer(body=b"other"))
        body = ONCE + "    circuit_breaker: {consecutive_failures: 1}\n    fallback: {upstream: spare}\n"
        text = rules(server.url, body) + f"  spare:\n    base_url: {other.url}/b\n"
        with running(tmp_path, text) as hr:
            on_loop(main(hr, server, other))


def test_a_pooled_connection_that_died_unnoticed_costs_no_attempt(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(on_reuse(Break("request", "rst")))
        await rig.aio.get("/")
        answer = await rig.aio.get("/")
        (attempt,) = answer.headrace.attempts
        assert (attempt.outcome, attempt.resent) == ("2xx", True)

    with_rules(act, ONCE)


async def one_is_under_way_and_one_waits(rig: Rig) -> None:
    """Asked in each round of the loop: no timer comes in between, however late they are."""
    ends_at = time.monotonic() + 20.0
    while rig.pool != (1, 0, 1):
        assert time.monotonic() < ends_at, rig.pool
        await asyncio.sleep(0)


def test_the_pool_bounds_calls_and_says_why_there_is_no_connection(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        over = threading.Event()
        rig.server.always(lambda _: Answer() if over.wait(30) else Answer(500))
        calls = [asyncio.create_task(rig.aio.get("/")) for _ in range(3)]
        await one_is_under_way_and_one_waits(rig)
        left = set(calls)
        while len(left) > 1:
            _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        over.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(one).__name__ for one in results) == ["Answer", "PoolRejected", "PoolTimeout"]
        assert rig.server.connections == 1

    pool = "    pool: {max_connections: 1, max_waiting: 1}\n    timeouts: {acquire: 100ms}\n"
    with_rules(act, ONCE + pool)


def test_limits_of_a_call_take_the_place_of_the_files(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Silence())
        with pytest.raises(TransportTimeout):
            await rig.aio.get("/", timeout=0.05)
        rig.server.always(Answer(delay_s=0.3))
        assert (await rig.aio.get("/", timeout=(1.0, 5.0))).status_code == 200

    with_rules(act, ONCE + "    timeouts: {read: 100ms, attempt: 200ms}\n")


def test_a_stream_is_read_piece_by_piece_and_gives_its_connection_back(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(body=b"line one\r\nline two\nlast", chunked=True, drip_body_s=0.001))
        async with rig.aio.stream("GET", "/") as answer:
            assert rig.pool == (1, 0, 0)
            with pytest.raises(RuntimeError, match="aread"):
                answer.content  # noqa: B018
            assert [line async for line in answer.aiter_lines()] == ["line one", "line two", "last"]
            assert rig.pool == (0, 1, 0)
            with pytest.raises(RuntimeError):
                [piece async for piece in answer.aiter_bytes()]
        rig.server.always(Answer(body=b"x" * 10))
        async with rig.aio.stream("GET", "/") as answer:
            assert [len(one) async for one in answer.aiter_bytes(4)] == [4, 4, 2]
        async with rig.aio.stream("GET", "/") as answer:
            assert [one async for one in answer.aiter_text()] == ["x" * 10]
        assert rig.server.connections == 1
        rig.server.always(Answer(body=b"y" * 5_000_000))
        async with rig.aio.stream("GET", "/") as answer:
            pass  # the body is not read
        assert rig.pool == (0, 0, 0)
        assert answer.is_closed

    with_rules(act)


async def in_part(answer: AwaitedAnswer) -> None:
    async for _ in answer.aiter_bytes(5):
        break


async def in_part_still_open(answer: AwaitedAnswer) -> Any:
    pieces = answer.aiter_bytes(5)
    await anext(pieces)
    return pieces


@pytest.mark.parametrize("begin", [in_part, in_part_still_open])
@pytest.mark.parametrize("drip_s", [0.0, 0.02])
@pytest.mark.parametrize(
    "again",
    [
        pytest.param(lambda answer: answer.aread(), id="aread"),
        pytest.param(lambda answer: anext(answer.aiter_bytes()), id="aiter_bytes"),
        pytest.param(lambda answer: anext(answer.aiter_text()), id="aiter_text"),
        pytest.param(lambda answer: anext(answer.aiter_lines()), id="aiter_lines"),
    ],
)
def test_a_stream_that_was_read_in_part_cannot_be_read_from_its_middle(
    with_rules: Any, begin: Any, drip_s: float, again: Any
) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(body=b"0123456789" * 3, drip_body_s=drip_s))
        async with rig.aio.stream("GET", "/") as answer:
            held = await begin(answer)
            with pytest.raises(RuntimeError, match="read already"):
                await again(answer)
            with pytest.raises(RuntimeError, match="aread"):
                answer.content  # noqa: B018
            if held is not None:  # whoever has begun reads on
                assert b"".join([one async for one in held]) == (b"0123456789" * 3)[5:]
        for _ in range(9):  # the loop closes what was left of them
            await asyncio.sleep(0)

    with_rules(act, ONCE)


def test_of_two_that_read_a_stream_at_once_one_is_told_so(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(body=b"0123456789", drip_body_s=0.01))
        async with rig.aio.stream("GET", "/") as answer:
            first, second = await asyncio.gather(answer.aread(), answer.aread(), return_exceptions=True)
            assert first == await answer.aread() == b"0123456789"
            assert isinstance(second, RuntimeError)
            assert [one async for one in answer.aiter_bytes()] == [b"0123456789"]  # it is kept

    with_rules(act, ONCE)


@pytest.mark.parametrize(
    ("charset", "body", "text"),
    [
        pytest.param("hex", b"a\xff", "a\ufffd", id="hex"),
        pytest.param("rot13", b"a", "a", id="rot13"),
        pytest.param("base64", b"a", "a", id="base64"),
        pytest.param("zlib", b"a", "a", id="zlib"),
        pytest.param("undefined", b"a\xff.", "a\ufffd.", id="undefined"),
        pytest.param("idna", b"a\xff.", "a\ufffd.", id="idna"),
        pytest.param("punycode", b"a" * 300_000, "a" * 300_000, id="punycode"),
        pytest.param("unicode_escape", b"\\u1\\z", "\\u1\\z", id="unicode_escape"),
        pytest.param("no-such", b"a", "a", id="unknown"),
        pytest.param("utf-16", "h\u00e9\n\u65e5".encode("utf-16-le"), "h\u00e9\n\u65e5", id="utf-16"),
        pytest.param("utf-16", b"\xfe\xff" + "h\u65e5".encode("utf-16-be"), "h\u65e5", id="utf-16, marked"),
        pytest.param(
            "utf-16", b"\xff\xfe" + "h\u65e5".encode("utf-16-le"), "h\u65e5", id="utf-16, marked LE"
        ),
        pytest.param("utf-16", b"a\0b", "a\ufffd", id="utf-16, cut"),
        pytest.param("utf-16", b"a", "\ufffd", id="utf-16, a byte"),
        pytest.param("utf-16", b"", "", id="utf-16, empty"),
        pytest.param("utf-32", "h\u65e5".encode("utf-32-le"), "h\u65e5", id="utf-32"),
        pytest.param("utf-32", "h\u65e5".encode("utf-32"), "h\u65e5", id="utf-32, marked"),
        pytest.param("latin-1", b"\xe9", "\u00e9", id="latin-1"),
        pytest.param("shift_jis", "\u65e5".encode("shift_jis"), "\u65e5", id="shift_jis"),
    ],
)
def test_whatever_charset_the_peer_says_text_is_text(
    with_rules: Any, charset: str, body: bytes, text: str
) -> None:
    async def act(rig: Rig) -> None:
        kind = (("Content-Type", f"text/plain; charset={charset}"),)
        for drip_s in (0.0, 0.005) if len(body) < 100 else (0.0,):
            rig.server.always(Answer(200, kind, body, drip_body_s=drip_s))
            assert (await rig.aio.get("/")).text == text
            async with rig.aio.stream("GET", "/") as answer:
                assert "".join([one async for one in answer.aiter_text()]) == text
            async with rig.aio.stream("GET", "/") as answer:
                assert [one async for one in answer.aiter_lines()] == (text.split("\n") if text else [])

    with_rules(act, ONCE)


def test_a_stream_that_fails_at_its_head_is_retried_and_one_that_breaks_later_turns_the_verdict(
    with_rules: Any,
) -> None:
    async def act(rig: Rig) -> None:
        rig.server.next(Answer(503, body=b"kept"), Answer(body=b"good"))
        async with rig.aio.stream("GET", "/") as answer:
            assert await answer.aread() == b"good"
            assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "2xx"]
        assert rig.server.connections == 1
        rig.server.next(Answer(503, body=b"kept"), Answer(503, body=b"kept"), Answer(503, body=b"last"))
        rig.server.always(Break("body", "rst"))
        async with rig.aio.stream("GET", "/") as answer:
            assert (answer.status_code, await answer.aread()) == (503, b"last")
        with pytest.raises(TransportBroken) as raised:
            async with rig.aio.stream("GET", "/") as answer:
                await answer.aread()
        assert raised.value.headrace.attempts[-1].verdict == "failure"  # type: ignore[attr-defined]
        assert any("broke off" in note for note in raised.value.__notes__)
        rig.server.always(Answer(body=b"slow" * 100, drip_body_s=0.5))
        with pytest.raises(TransportTimeout):
            async with rig.aio.stream("GET", "/") as answer:
                await answer.aread()

    with_rules(act, QUICK + "    timeouts: {read: 200ms}\n")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_body_that_is_too_large_is_refused(with_rules: Any, chunked: bool, coding: str | None) -> None:
    body = b"L" * 20_000
    headers = (("Content-Encoding", "gzip"),) if coding else ()

    async def act(rig: Rig) -> None:
        rig.server.always(Answer(200, headers, gzip.compress(body) if coding else body, chunked=chunked))
        with pytest.raises(ResponseTooLarge) as raised:
            await rig.aio.get("/")
        assert (raised.value.max_bytes, reason_of(raised.value)) == (10_240, "response_too_large")
        with pytest.raises(ResponseTooLarge):
            async with rig.aio.stream("GET", "/") as answer:
                await answer.aread()

    with_rules(act, "    pool: {max_response_body: 10KiB}\n")


def test_an_answer_that_is_dropped_unread_frees_its_connection_without_a_collection(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(body=b"d" * 5_000_000))
        gc.disable()
        try:
            context = rig.aio.stream("GET", "/")
            answer = await rig.aio._call("GET", "/", None, None, None, None, None, 5.0, streamed=True)
            assert rig.pool == (1, 0, 0)
            del answer, context
            for _ in range(3):
                await asyncio.sleep(0)
            assert rig.pool == (0, 0, 0)
        finally:
            gc.enable()

    with_rules(act)


def test_a_bad_status_raises_when_it_is_asked_to(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        assert (await rig.aio.get("/")).raise_for_status().is_success
        rig.server.always(Answer(404, body=b"none"))
        answer = await rig.aio.get("/x")
        assert answer.is_error
        with pytest.raises(StatusError, match="404 Not Found for GET http") as raised:
            answer.raise_for_status()
        assert raised.value.response is answer
        assert headrace.record_of(raised.value) is answer.headrace

    with_rules(act)


@pytest.mark.parametrize(
    "path", ["//elsewhere.test/", "http://elsewhere.test/", "/../up", "/a b", "/a\r\nX: 1", "/%2e%2e/up"]
)
def test_paths_that_leave_the_base_are_refused(with_rules: Any, path: str) -> None:
    async def act(rig: Rig) -> None:
        with pytest.raises(ValueError):
            await rig.aio.get(path)
        assert rig.server.connections == 0

    with_rules(act)


def test_headers_that_smuggle_are_refused_before_there_is_a_connection(with_rules: Any) -> None:
    """failures.md 92."""

    async def act(rig: Rig) -> None:
        for headers in ({"X": "a\r\nY: b"}, {"X ": "a"}, {"X": "\0"}):
            with pytest.raises(ValueError):
                await rig.aio.get("/", headers=headers)
        assert rig.server.connections == 0
        assert rig.pool == (0, 0, 0)

    with_rules(act)


async def of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


class Label(str, enum.Enum):  # noqa: UP042
    """As many write the names of their headers: its text is not what it formats to."""

    LENGTH = "Content-Length"


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        pytest.param({"Content-Length": "3"}, lambda: b"abc" + SMUGGLED, id="too short"),
        pytest.param({"content-LENGTH": b"3"}, lambda: b"abc" + SMUGGLED, id="too short, in bytes"),
        pytest.param({b"Content-Length": b"3"}, lambda: b"abc" + SMUGGLED, id="a name in bytes"),
        pytest.param({Label.LENGTH: "3"}, lambda: b"abc" + SMUGGLED, id="a name of another class"),
        pytest.param({"Content-Length": "60"}, lambda: b"abc", id="too long"),
        pytest.param({"Content-Length": "+3"}, lambda: b"abc", id="no number"),
        pytest.param({"Content-Length": "36"}, lambda: None, id="of nothing"),
        pytest.param({"Content-Length": "3", "content-length": "3"}, lambda: b"abc", id="twice"),
        pytest.param({"Content-Length": "3", "content-length": "40"}, lambda: b"abc", id="two that differ"),
        pytest.param({"Content-Length": "3, 3"}, lambda: of(b"abc"), id="a list, iterated"),
        pytest.param({"Content-Length": "-3"}, lambda: of(b"abc"), id="negative, iterated"),
        pytest.param({"Content-Length": "\xb3"}, lambda: of(b"abc"), id="a digit that is none, iterated"),
        pytest.param({"Content-Length": "9" * 5000}, lambda: of(b"abc"), id="thousands of digits, iterated"),
        pytest.param({"Transfer-Encoding": "chunked"}, lambda: b"0\r\n\r\n" + SMUGGLED, id="chunked bytes"),
        pytest.param({"Transfer-Encoding": "chunked"}, lambda: None, id="chunked nothing"),
        pytest.param({"Transfer-Encoding": "gzip, chunked"}, lambda: of(SMUGGLED), id="two codings"),
        pytest.param(
            {"Transfer-Encoding": "identity, chunked"}, lambda: of(SMUGGLED), id="identity, chunked"
        ),
        pytest.param({"Transfer-Encoding": "chunked "}, lambda: of(SMUGGLED), id="a blank behind it"),
        pytest.param({"Transfer-Encoding": ""}, lambda: of(SMUGGLED), id="an empty coding"),
        pytest.param(
            {"Transfer-Encoding": "chunked", "Content-Length": "3"}, lambda: of(b"abc"), id="both, iterated"
        ),
    ],
)
def test_a_head_that_ends_the_body_elsewhere_is_refused_before_there_is_a_connection(
    with_rules: Any, headers: Any, content: Callable[[], Any]
) -> None:
    """What is behind that end would be the next request, and its answer that of another call."""

    async def act(rig: Rig) -> None:
        with pytest.raises((ValueError, TypeError)) as raised:
            await rig.aio.post("/", content=content(), headers=headers)
        assert reason_of(raised.value) == "local_error"
        assert rig.server.connections == 0
        assert (await rig.aio.get("/mine")).content == b"ok"
        assert [one.target for one in rig.server.requests] == ["/mine"]

    with_rules(act, ONCE)


@pytest.mark.parametrize(
    ("headers", "content", "body"),
    [
        pytest.param({"Content-Length": "3"}, lambda: b"abc", b"abc", id="its length"),
        pytest.param({"Content-Length": 3}, lambda: b"abc", b"abc", id="a number"),
        pytest.param({"content-length": b"3"}, lambda: b"abc", b"abc", id="in bytes"),
        pytest.param({Label.LENGTH: "3"}, lambda: b"abc", b"abc", id="a name of another class"),
        pytest.param({"Content-Length": "0"}, lambda: None, b"", id="of nothing"),
        pytest.param({"Content-Length": "6"}, lambda: of(b"abc", b"def"), b"abcdef", id="iterated"),
        pytest.param({"Transfer-Encoding": "Chunked"}, lambda: of(b"abc", b"def"), b"abcdef", id="chunked"),
    ],
)
def test_a_head_that_says_where_the_body_ends_is_sent_as_it_is(
    with_rules: Any, headers: Any, content: Callable[[], Any], body: bytes
) -> None:
    async def act(rig: Rig) -> None:
        for _ in range(2):
            await rig.aio.post("/", content=content(), headers=headers)
        framing = [
            [name for name, _ in one.headers if name.lower() in ("content-length", "transfer-encoding")]
            for one in rig.server.requests
        ]
        assert [len(one) for one in framing] == [1, 1]
        assert [one.body for one in rig.server.requests] == [body, body]
        assert rig.server.connections == 1

    with_rules(act, ONCE)


def everything_in(error: BaseException | None) -> str:
    """What whoever reports *error* could show of it: texts, arguments and attributes, of all it hangs together with."""
    shown, todo, seen = "", [error], set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        shown += f"{one} {one.args!r} {getattr(one, 'object', None)!r} {getattr(one, '__notes__', None)!r}"
        todo += [one.__cause__, one.__context__]
    return shown


def test_a_header_beyond_latin_1_is_told_by_its_name_and_no_value_is_shown(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        with pytest.raises(ValueError, match="'X-Own' is beyond latin-1") as raised:
            await rig.aio.get("/", headers={"X-Own": "\u65e5", "Cookie": "sid=topsecret"})
        assert not re.search("s3cr3t|topsecret|\u65e5", everything_in(raised.value))
        assert rig.server.connections == 0

    with_rules(act, ONCE + "    headers: {Authorization: 'Bearer s3cr3t'}\n")


# ── TLS ──


def test_tls_is_the_files_and_sessions_are_resumed(with_rules: Any, authority: trustme.CA, ca: Path) -> None:
    async def act(rig: Rig) -> None:
        for _ in range(3):
            assert (await rig.aio.get("/", headers={"Connection": "close"})).status_code == 200
        assert [one.resumed for one in rig.server.requests] == [False, True, True]
        assert (await rig.aio.get("/")).status_code == 200
        assert (await rig.aio.get("/")).status_code == 200
        assert rig.server.connections == 4

    with_rules(act, f"    tls: {{ca: '{ca}'}}\n", tls=server_context(authority))


def test_a_peer_that_is_not_trusted_is_sent_nothing(
    with_rules: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))

    async def act(rig: Rig) -> None:
        with pytest.raises(TransportBroken) as raised:
            await rig.aio.get("/")
        assert (raised.value.fault, reason_of(raised.value)) == ("certificate", "certificate")
        assert any("tls.ca" in note for note in raised.value.__notes__)
        assert rig.server.requests == []

    with_rules(act, f"    tls: {{ca: '{other}'}}\n", tls=server_context(authority))


def test_a_peer_of_another_identity_is_sent_nothing(with_rules: Any, authority: trustme.CA, ca: Path) -> None:
    async def act(rig: Rig) -> None:
        with pytest.raises(IdentityMismatch) as raised:
            await rig.aio.get("/")
        assert raised.value.offered == ("spiffe://a.test/other",)
        assert rig.server.requests == []

    tls = server_of(authority, "spiffe://a.test/other")
    with_rules(act, f"    tls: {{ca: '{ca}', identities: ['spiffe://a.test/us']}}\n", tls=tls)


def test_a_handshake_that_hangs_is_bounded(with_rules: Any, authority: trustme.CA, ca: Path) -> None:
    async def act(rig: Rig) -> None:
        rig.server.on_accept = "drip_tls"
        with pytest.raises(TransportTimeout) as raised:
            await rig.aio.get("/")
        assert raised.value.fault == "tls_failure"

    body = ONCE + f"    timeouts: {{tls_handshake: 200ms}}\n    tls: {{ca: '{ca}'}}\n"
    with_rules(act, body, tls=server_context(authority))


# ── cancellation ──


def test_cancelled_at_each_turn_a_call_leaves_nothing(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        loop = asyncio.get_running_loop()
        for warm in (False, True):
            for turns in range(25):
                rig.server.next(Answer(503), Answer(delay_s=0.002))
                if not warm:
                    rig.server.drop_all()
                task = asyncio.create_task(rig.aio.get("/"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                await asyncio.sleep(0)
                assert rig.pool[0] == 0, (warm, turns)
                assert not deadlines_of(loop).table
                rig.server._queue.clear()
        for delay_s in (0.001, 0.003, 0.01, 0.03, 0.1):
            rig.server.next(Answer(503, delay_s=0.02), Answer(503, delay_s=0.02), Silence())
            task = asyncio.create_task(rig.aio.get("/"))
            await asyncio.sleep(delay_s)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0)
            assert (rig.pool[0], rig.pool[2]) == (0, 0)
            rig.server._queue.clear()
        assert (await rig.aio.get("/")).status_code == 200

    body = "    retry: {backoff: {base: 20ms, max: 20ms, throttled: 20ms}}\n    pool: {max_connections: 2}\n"
    with_rules(act, body + "    circuit_breaker: {mode: disabled}\n")


def test_a_stream_that_is_cancelled_is_closed(with_rules: Any) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(body=b"slow" * 100, drip_body_s=0.1))

        async def call() -> None:
            async with rig.aio.stream("GET", "/") as answer:
                await answer.aread()

        task = asyncio.create_task(call())
        rig_pool = await asyncio.to_thread(wait_until, lambda: len(rig.server.requests) == 1)
        assert rig_pool is None
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert rig.pool == (0, 0, 0)

    with_rules(act)


def test_a_storm_of_cancelled_calls_leaves_nothing(with_rules: Any) -> None:
    chance = random.Random(7)

    async def act(rig: Rig) -> None:
        rig.server.always(
            lambda request: Answer(delay_s=0.001) if request.nth % 7 else Break("request", "rst")
        )
        await rig.aio.get("/")
        before = len(sockets())
        for _ in range(10):
            tasks = [asyncio.create_task(rig.aio.get("/")) for _ in range(60)]
            for task in tasks:
                if chance.random() < 0.6:
                    asyncio.get_running_loop().call_later(chance.random() * 0.1, task.cancel)
            await asyncio.wait(tasks)
            await asyncio.sleep(0)
            assert (rig.pool[0], rig.pool[2]) == (0, 0)
            assert not deadlines_of(asyncio.get_running_loop()).table
        assert len(asyncio.all_tasks()) <= 2
        await asyncio.to_thread(rig.server.wait_for, lambda: rig.server.open_connections <= 8)
        await asyncio.to_thread(wait_until, lambda: len(sockets()) <= before + 2 * 8, what="no more sockets")

    with_rules(act, QUICK + "    pool: {max_connections: 8}\n    circuit_breaker: {mode: disabled}\n")


def test_the_client_that_leaves_ends_its_awaited_calls(with_rules: Any) -> None:
    """On the wire, in the pause, while it waits for a connection."""

    async def act(rig: Rig) -> None:
        rig.server.always(Silence())
        request = Request(rig.hr)
        context = contextvars.copy_context()
        context.run(inbound_var.set, request._inbound)
        loop = asyncio.get_running_loop()
        on_wire = loop.create_task(rig.aio.get("/"), context=context.copy())
        await asyncio.to_thread(rig.server.wait_for, lambda: len(rig.server.requests) == 1)
        waiting = loop.create_task(rig.aio.get("/"), context=context.copy())
        await one_is_under_way_and_one_waits(rig)
        await asyncio.to_thread(request.cancellation.cancel)
        for task in (on_wire, waiting):
            with pytest.raises(CallCancelled):
                await task
        assert rig.pool == (0, 0, 0)

        rig.server.always(Answer(503))
        request = Request(rig.hr)
        context = contextvars.copy_context()
        context.run(inbound_var.set, request._inbound)
        sleeping = loop.create_task(rig.aio.get("/"), context=context.copy())
        await asyncio.to_thread(rig.server.wait_for, lambda: len(rig.server.requests) == 2)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        request.cancellation.cancel()
        with pytest.raises(CallCancelled):
            await sleeping
        assert time.monotonic() - began < 6.0

    body = "    pool: {max_connections: 1}\n    retry: {backoff: {base: 60s, max: 60s, jitter: none}}\n"
    with_rules(act, body + "    timeouts: {deadline: null, acquire: 30s, attempt: 60s, read: 60s}\n")


# ── coming and going ──


def test_many_loops_one_after_the_other_leave_no_socket(tmp_path: Path, on_loop: OnLoop) -> None:
    async def main(hr: headrace.Headrace) -> None:
        await asyncio.gather(*(hr.upstream("billing").aio.get("/") for _ in range(3)))

    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        on_loop(main(hr))
        server.wait_for(lambda: not server._threads)  # each closes its socket before it ends
        before = sockets()
        for _ in range(10):
            on_loop(main(hr))
        server.wait_for(lambda: not server._threads)
        wait_until(lambda: sockets() <= before, what="no further socket")
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.shelves == {}


def test_two_loops_in_two_threads_share_one_limit(tmp_path: Path) -> None:
    async def main(hr: headrace.Headrace) -> None:
        answers = await asyncio.gather(*(hr.upstream("billing").aio.get("/") for _ in range(10)))
        assert [one.status_code for one in answers] == [200] * 10

    with FaultServer() as server:
        server.always(Answer(delay_s=0.005))
        body = "    pool: {max_connections: 2}\n    timeouts: {acquire: 30s, deadline: 60s}\n"
        with running(tmp_path, rules(server.url, body)) as hr:
            errors: list[BaseException] = []

            def run() -> None:
                try:
                    run_with(asyncio.new_event_loop, main(hr))
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            most = 0
            while any(thread.is_alive() for thread in threads):
                most = max(most, server.open_connections)
                time.sleep(0.001)
            for thread in threads:
                thread.join()
            assert errors == []
            assert most <= 3  # the server sees a close a moment later


def test_a_reload_keeps_connections_and_one_that_rebuilds_them_drains_calls(
    tmp_path: Path, on_loop: OnLoop
) -> None:
    async def main(hr: headrace.Headrace, server: FaultServer) -> None:
        aio = hr.upstream("billing").aio
        await aio.get("/")
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, "    timeouts: {attempt: 5s}\n"))
        await asyncio.to_thread(hr.reload)
        await aio.get("/")
        assert server.connections == 1
        server.always(Answer(delay_s=0.3))
        under_way = asyncio.create_task(aio.get("/"))
        await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 3)
        text = rules(server.url, "    pool: {tcp_keepalive: {idle: 30s, interval: 5s, count: 3}}\n")
        (tmp_path / "upstreams.yaml").write_text(text)
        await asyncio.to_thread(hr.reload)
        assert (await under_way).status_code == 200
        await aio.get("/")
        assert server.connections == 2
        await asyncio.to_thread(server.wait_for, lambda: server.open_connections == 1)

    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        on_loop(main(hr, server))


def test_close_ends_what_is_idle_and_a_closed_instance_says_so(tmp_path: Path, on_loop: OnLoop) -> None:
    async def main(hr: headrace.Headrace, server: FaultServer) -> None:
        aio = hr.upstream("billing").aio
        await aio.get("/")
        server.always(Silence())
        under_way = asyncio.create_task(aio.get("/"))
        await asyncio.to_thread(server.wait_for, lambda: len(server.requests) == 2)
        await asyncio.to_thread(hr.close)
        with pytest.raises(HeadraceError):
            await under_way
        with pytest.raises(HeadraceError, match="closed"):
            await aio.get("/")
        await asyncio.to_thread(server.wait_for, lambda: not server.open_connections)

    with FaultServer() as server, running(tmp_path, rules(server.url, ONCE)) as hr:
        on_loop(main(hr, server))


def test_a_forked_child_calls_over_connections_of_its_own(tmp_path: Path) -> None:
    """failures.md 26."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:

        async def call() -> int:
            answer = await hr.upstream("billing").aio.get("/")
            return answer.status_code

        async def main() -> None:
            assert await call() == 200

            def child() -> None:
                asyncio._set_running_loop(None)
                assert run_with(asyncio.new_event_loop, call()) == 200

            assert await asyncio.to_thread(in_child, child) == 0
            assert await call() == 200
            assert [request.connection for request in server.requests] == [1, 2, 1]

        run_with(asyncio.new_event_loop, main())


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_where_rules_are_not_enforced_a_call_is_made_once(with_rules: Any, mode: str) -> None:
    async def act(rig: Rig) -> None:
        rig.server.always(Answer(503))
        for _ in range(6):
            assert (await rig.aio.get("/")).status_code == 503
        assert len(rig.server.requests) == 6
        assert rig.counted == {}

    with_rules(act, f"    mode: {mode}\n    circuit_breaker: {{consecutive_failures: 2}}\n")


def test_without_a_loop_of_asyncio_it_says_what_is_wanted(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        call = hr.upstream("billing").aio.get("/")
        with pytest.raises(HeadraceError, match="trio is not supported"):
            call.send(None)


def test_it_works_within_anyio(tmp_path: Path) -> None:
    anyio = pytest.importorskip("anyio")

    async def main(hr: headrace.Headrace) -> None:
        aio = hr.upstream("billing").aio
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(aio.get, "/")
        with anyio.move_on_after(0.1) as scope:
            await aio.get("/slow")
        assert scope.cancelled_caught
        assert (await aio.get("/")).status_code == 200

    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.at("/slow", Silence())
        anyio.run(main, hr)
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


def test_a_secret_that_was_replaced_is_sent_after_a_401(with_rules: Any, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("old")

    async def act(rig: Rig) -> None:
        def judge(request: Any) -> Answer:
            return Answer(200 if request.header("X-Token") == "new" else 401)

        rig.server.always(judge)
        secret.write_text("new")
        answer = await rig.aio.get("/")
        (attempt,) = answer.headrace.attempts
        assert (answer.status_code, attempt.renewed) == (200, True)

    with_rules(act, f"    headers: {{X-Token: '${{file:{secret}}}'}}\n")


def test_an_answer_says_what_it_is() -> None:
    answer = AwaitedAnswer(204, HTTPHeaderDict(), url="u", method="GET", content=b"")
    assert repr(answer) == "<Answer [204 No Content]>"
    assert (answer.reason_phrase, answer.http_version, answer.encoding) == ("No Content", "HTTP/1.1", "utf-8")
