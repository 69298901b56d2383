"""Connections that headrace itself breaks off: after a reload's drain, or beyond a lifetime's grace. Real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, FaultServer, Silence
from support.governed import rules, running

RULES = """\
    timeouts: {deadline: 60s, attempt: 60s, read: 60s}
    retry: {max_attempts: 1}
    circuit_breaker: {consecutive_failures: 1, blame_after: 0s}
    pool: {max_lifetime: 10s, max_lifetime_grace: 1s}
"""
INSTALL = "install: {urllib3: true}\n"

Call = Callable[..., Any]


def by_requests(hr: headrace.Headrace, url: str) -> bytes:
    return requests.get(f"{url}/a").content


def by_stream(hr: headrace.Headrace, url: str) -> bytes:
    return requests.get(f"{url}/a", stream=True).content


def by_tries(hr: headrace.Headrace, url: str) -> bytes:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(1, read=0, backoff_factor=0)))
        return session.get(f"{url}/a").content


def by_urlopen(hr: headrace.Headrace, url: str) -> bytes:
    return hr.upstream("billing").urlopen("GET", "/a").data


def by_manager(hr: headrace.Headrace, url: str) -> bytes:
    return urllib3.PoolManager().request("GET", f"{url}/a").data


def by_stream_of_urllib3(hr: headrace.Headrace, url: str) -> bytes:
    return hr.upstream("billing").urlopen("GET", "/a", preload_content=False).read()


@pytest.fixture(
    params=[by_requests, by_stream, by_tries, by_urlopen, by_manager, by_stream_of_urllib3],
    ids=lambda call: call.__name__,
)
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def stopped(leases: Any) -> None:
    leases.stop()


def outlived(leases: Any) -> None:
    leases.tend(time.monotonic() + 100.0)


def outcome_of(act: Callable[[], Any], amid: Callable[[], None]) -> Any:
    """What *act* returns or raises, with *amid* done while it runs."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(act())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    amid()
    thread.join(10.0)
    assert not thread.is_alive(), "it goes on"
    return found[0]


@pytest.mark.parametrize("break_off", [stopped, outlived])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Answer(body=b"x" * 1000, drip_body_s=0.05), id="amid a framed body"),
        pytest.param(
            Answer(body=b"x" * 1000, drip_body_s=0.05, framed=False, close=True),
            id="amid a body that ends with its connection",
        ),
        pytest.param(Silence(), id="before the answer"),
    ],
)
def test_it_is_no_answer_and_is_not_held_against_the_upstream(
    tmp_path: Path, server: FaultServer, call: Call, break_off: Callable[[Any], None], reply: Any
) -> None:
    """Pitfall 6."""
    with running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        state = hr.snapshot.upstream("billing").state
        server.always(reply)

        def amid() -> None:
            server.wait_for(lambda: len(server.requests) == 1)
            time.sleep(0.2)  # some of the body has come
            break_off(state.pool.leases)

        error = outcome_of(lambda: call(hr, server.url), amid)

        is_requests = call in (by_requests, by_stream, by_tries)
        assert isinstance(error, requests.RequestException if is_requests else urllib3.exceptions.HTTPError)
        told = error if hasattr(error, "headrace") else error.args[0]  # requests wraps an error of a stream
        is_stream = call in (by_stream, by_stream_of_urllib3) and not isinstance(reply, Silence)
        assert [one.verdict for one in told.headrace.attempts] == ["success" if is_stream else "ignored"]
        assert state.circuit.state == "closed"
        assert hr.status()["upstreams"]["billing"]["broken_bodies"] == 0
        assert state.pool.leases.view().inuse == 0
