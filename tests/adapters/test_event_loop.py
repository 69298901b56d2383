"""Blocking calls on the thread of a running event loop: they work, and never wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import requests

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import reason_of, rules, running
from support.waiting import ends_within


def test_on_an_event_loop_a_full_pool_fails_at_once_and_says_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The holder of the only connection may be the very loop that would be stalled."""
    body = "    pool: {max_connections: 1}\n    timeouts: {acquire: 60s, deadline: 90s}\n"

    async def handler(url: str) -> None:
        with requests.get(url, stream=True):
            for _ in range(2):
                with ends_within(1.0), pytest.raises(headrace.PoolRejected) as caught:
                    requests.get(url)
                assert reason_of(caught.value) == "pool_rejected"

    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        asyncio.run(handler(server.url))

    (said,) = [record for record in caplog.records if getattr(record, "event", "") == "call.on_event_loop"]
    assert "test_event_loop.py:" in said.getMessage()


def test_on_an_event_loop_no_back_off_is_slept(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 60s, max: 60s}}\n    timeouts: {deadline: 5m}\n"

    async def handler(url: str) -> requests.Response:
        return requests.get(url)

    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(503))
        with ends_within(1.0):
            response = asyncio.run(handler(server.url))

        assert (response.status_code, response.headrace.reason.value) == (503, "event_loop")
        assert hr.status()["upstreams"]["billing"]["retry"]["denied"] == {"event_loop": 1}
        assert len(server.requests) == 1


def test_in_a_thread_of_the_loop_everything_waits_as_it_should(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"

    async def handler(url: str) -> requests.Response:
        return await asyncio.to_thread(requests.get, url)

    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.next(Answer(503))
        assert asyncio.run(handler(server.url)).status_code == 200
