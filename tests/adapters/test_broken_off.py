"""Connections that headrace itself breaks off: after a reload's drain, or beyond a lifetime's grace. Real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from urllib3.util.retry import Retry

from support.faultserver import Answer, FaultServer, Silence
from support.governed import rules, running
from support.surfaces import INSTALL, MANAGER, REQUESTS, URLOPEN, Surface, read, retrying_adapter

pytestmark = pytest.mark.both_parsers

RULES = """\
    timeouts: {deadline: 60s, attempt: 60s, read: 60s}
    retry: {max_attempts: 1}
    circuit_breaker: {consecutive_failures: 1, blame_after: 0s}
    pool: {max_lifetime: 10s, max_lifetime_grace: 1s}
"""

ONE_RETRY = retrying_adapter(Retry(1, read=0, backoff_factor=0))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def stopped(leases: Any) -> None:
    leases.stop()


def outlived(leases: Any) -> None:
    leases.tend(time.monotonic() + 100.0)


def outcome_of(act: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    """What *act* returns or raises, with *meanwhile* done while it runs."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(act())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    meanwhile()
    thread.join(10.0)
    assert not thread.is_alive(), "it goes on"
    return found[0]


@pytest.mark.parametrize("break_off", [stopped, outlived])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Answer(body=b"x" * 1000, drip_body_s=0.05), id="during a framed body"),
        pytest.param(
            Answer(body=b"x" * 1000, drip_body_s=0.05, framed=False, close=True),
            id="during a body that ends with its connection",
        ),
        pytest.param(Silence(), id="before the answer"),
    ],
)
@pytest.mark.parametrize(
    ("call", "stream"),
    [
        pytest.param(REQUESTS, False, id="requests"),
        pytest.param(REQUESTS, True, id="requests, streamed"),
        pytest.param(ONE_RETRY, False, id="requests with own retries"),
        pytest.param(URLOPEN, False, id="urlopen"),
        pytest.param(MANAGER, False, id="urllib3"),
        pytest.param(URLOPEN, True, id="urlopen, streamed"),
    ],
)
def test_it_is_no_answer_and_is_not_held_against_the_upstream(
    tmp_path: Path,
    server: FaultServer,
    call: Surface,
    stream: bool,
    break_off: Callable[[Any], None],
    reply: Any,
) -> None:
    """failures.md 6."""
    with running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        billing = hr.snapshot.upstream("billing")
        server.always(reply)

        is_stream = stream and not isinstance(reply, Silence)
        has_answered = threading.Event()

        def whole() -> Any:
            answer = call(hr, server.url, stream=stream)
            has_answered.set()
            return read(answer)

        def meanwhile() -> None:
            server.wait_for(lambda: len(server.requests) == 1)
            if is_stream:
                assert has_answered.wait(30.0)
            time.sleep(0.2)  # so that some of the body has come, mostly
            break_off(billing.endpoint.pool.leases)

        error = outcome_of(whole, meanwhile)

        assert isinstance(error, call.error)
        told = error if hasattr(error, "headrace") else error.args[0]  # requests wraps an error of a stream
        assert [one.verdict for one in told.headrace.attempts] == ["success" if is_stream else "ignored"]
        assert billing.learned.circuit.state == "closed"
        assert hr.status()["upstreams"]["billing"]["broken_bodies"] == 0
        assert billing.endpoint.pool.leases.view().inuse == 0
