"""What is left of a failed answer before the next attempt: read if it is little and comes soon, else not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from support.faultserver import Answer, FaultServer
from support.governed import rules, running

OWN = Retry(2, status_forcelist=[503], backoff_factor=0)
RULES = "    retry: {backoff: {base: 1ms}}\n    timeouts: {deadline: 30s, attempt: 20s, read: 20s}\n"

Send = Callable[[str], Any]
UNKIND = [
    pytest.param(Answer(503, body=b"x" * 20_000_000), id="large"),
    pytest.param(Answer(503, body=b"x" * 20_000_000, chunked=True), id="large, in chunks"),
    pytest.param(Answer(503, body=b"x" * 1000, drip_body_s=0.1), id="dripping"),
    pytest.param(Answer(503, body=b"x" * 1000, drip_body_s=0.1, chunked=True), id="dripping chunks"),
    pytest.param(Answer(503, body=b"x" * 9, drip_body_s=10.0), id="stalled"),
    pytest.param(Answer(503, body=b"x" * 9, drip_body_s=10.0, framed=False), id="stalled, without an end"),
]


def by_requests(url: str) -> Any:
    return requests.get(url, stream=True)


def by_requests_with_retries(url: str) -> Any:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=OWN))
    return session.get(url, stream=True)


def by_urllib3(url: str) -> Any:
    return urllib3.request("GET", url, preload_content=False)


def by_urllib3_with_retries(url: str) -> Any:
    return urllib3.request("GET", url, preload_content=False, retries=OWN)


@pytest.fixture(params=[by_requests, by_requests_with_retries, by_urllib3, by_urllib3_with_retries])
def send(request: pytest.FixtureRequest) -> Send:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize("answer", UNKIND)
def test_a_failed_answer_that_is_large_or_slow_is_closed_and_does_not_hold_up_the_next_attempt(
    tmp_path: Path, server: FaultServer, send: Send, answer: Answer
) -> None:
    """Whoever retries, headrace or the caller: 64 KiB, half a second, and on with it.

    Pitfall 15.
    """
    with running(tmp_path, rules(server.url, RULES, more="install: {urllib3: true}\n")) as hr:
        server.next(answer)
        began = time.monotonic()
        with send(server.url) as response:
            took_s = time.monotonic() - began
            assert response.headrace.reason.value == "success"
            assert [one.outcome for one in response.headrace.attempts] == ["5xx", "2xx"]
            assert (getattr(response, "raw", None) or response).read() == b"ok"
        assert took_s < 3.0  # not 10, and not 100
        assert server.connections == 2
        assert hr.snapshot.upstream("billing").state.pool.leases.view().inuse == 0


def test_a_small_one_is_read_and_its_connection_kept(tmp_path: Path, server: FaultServer, send: Send) -> None:
    with running(tmp_path, rules(server.url, RULES, more="install: {urllib3: true}\n")):
        server.next(Answer(503, body=b"busy" * 1000), Answer(503, body=b"busy", chunked=True))
        with send(server.url) as response:
            assert len(response.headrace.attempts) == 3
            assert (getattr(response, "raw", None) or response).read() == b"ok"
        assert server.connections == 1


def test_its_limits_are_gone_with_it(tmp_path: Path, server: FaultServer, send: Send) -> None:
    """The half second is the drain's, not the next answer's."""
    with running(tmp_path, rules(server.url, RULES, more="install: {urllib3: true}\n")):
        server.next(Answer(503, body=b"busy"), Answer(delay_s=0.7))
        with send(server.url) as response:
            assert [one.outcome for one in response.headrace.attempts] == ["5xx", "2xx"]
        assert server.connections == 1
