"""Tests of applications freeze time: calls go on in real time, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import freezegun
import pytest
import requests
import time_machine

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.waiting import wait_until

Freeze = Callable[[datetime.datetime], contextlib.AbstractContextManager[Any]]

BEFORE_THIS_MACHINE_WAS_STARTED = datetime.datetime(1970, 1, 1, 0, 0, 1)  # by freezegun's monotonic clock
IN_DECADES = datetime.datetime(2070, 1, 1)
INSTANTS = pytest.mark.parametrize("at", [BEFORE_THIS_MACHINE_WAS_STARTED, IN_DECADES], ids=["1970", "2070"])


@pytest.fixture(params=["freezegun", "time-machine"])
def freeze(request: pytest.FixtureRequest) -> Freeze:
    if request.param == "freezegun":
        return freezegun.freeze_time
    return lambda at: time_machine.travel(at, tick=False)


@INSTANTS
def test_a_circuit_that_opens_in_frozen_time_recovers_in_its_open_period(
    tmp_path: Path, freeze: Freeze, at: datetime.datetime
) -> None:
    """failures.md 69."""
    body = """\
    retry: {max_attempts: 1}
    circuit_breaker: {consecutive_failures: 2, open_for: {base: 200ms, max: 200ms}, half_open: {ramp: 100ms}}
"""
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        handle = hr.upstream("billing")
        server.always(Answer(503))
        with freeze(at):
            for _ in range(2):
                assert handle.get("/").status_code == 503
            breaker = hr.status()["upstreams"]["billing"]["circuit_breaker"]
            assert breaker["state"] == "open"  # until the next call asks
            assert 0.0 <= breaker["retry_after"] < 1.0
        server.always(Answer())

        def recovers() -> bool:
            with contextlib.suppress(headrace.CircuitOpenError):
                return handle.get("/").status_code == 200
            return False

        wait_until(recovers)
        view = hr.snapshot.upstreams["billing"].learned.circuit
        wait_until(lambda: recovers() and view.state.value == "closed")


@INSTANTS
def test_a_circuit_that_is_open_recovers_in_frozen_time(
    tmp_path: Path, freeze: Freeze, at: datetime.datetime
) -> None:
    """failures.md 69."""
    body = """\
    retry: {max_attempts: 1}
    circuit_breaker: {consecutive_failures: 1, open_for: {base: 200ms, max: 200ms}}
"""
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        handle = hr.upstream("billing")
        server.next(Answer(503))
        assert handle.get("/").status_code == 503
        pause = threading.Event()
        with freeze(at):
            for _ in range(500):
                with contextlib.suppress(headrace.CircuitOpenError):
                    assert handle.get("/").status_code == 200
                    return
                pause.wait(0.01)
        pytest.fail("never admitted")


@INSTANTS
def test_calls_in_frozen_time_are_not_timed_out(
    tmp_path: Path, freeze: Freeze, at: datetime.datetime
) -> None:
    """failures.md 69. Neither on this thread nor on others, which freezegun leaves alone."""
    body = "    timeouts: {attempt: 20s, deadline: 40s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.2))
        with freeze(at), ThreadPoolExecutor(4) as pool:
            assert requests.get(server.url).status_code == 200
            assert hr.upstream("billing").urlopen("GET", "/").status == 200
            calls = [pool.submit(requests.get, server.url) for _ in range(4)]
            assert [one.result().status_code for one in calls] == [200] * 4


@INSTANTS
def test_a_limit_holds_in_frozen_time(tmp_path: Path, freeze: Freeze, at: datetime.datetime) -> None:
    """failures.md 69."""
    body = "    timeouts: {attempt: 300ms, deadline: 5s}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(drip_head_s=0.05))
        with freeze(at), pytest.raises(requests.ReadTimeout) as caught:
            hr.upstream("billing").get("/")
        record = headrace.record_of(caught.value)
        assert record is not None
        assert 0.3 <= record.attempts[0].duration_s < 3.0


@INSTANTS
def test_time_may_freeze_and_thaw_during_a_call(
    tmp_path: Path, freeze: Freeze, at: datetime.datetime
) -> None:
    """failures.md 69."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr, ThreadPoolExecutor(2) as pool:
        server.always(Answer(delay_s=0.3))
        begun_before = pool.submit(hr.upstream("billing").get, "/")
        server.wait_for(lambda: server.first_lines == 1)
        with freeze(at):
            begun_within = pool.submit(hr.upstream("billing").get, "/")
            server.wait_for(lambda: server.first_lines == 2)
            assert begun_before.result().status_code == 200
        assert begun_within.result().status_code == 200
        for call in (begun_before, begun_within):
            record = headrace.record_of(call.result())
            assert record is not None
            assert 0.2 < record.attempts[0].duration_s < 3.0


def test_first_imported_in_frozen_time_it_still_goes_by_the_real_clock() -> None:
    """failures.md 69."""
    script = """
import freezegun, time
began = time.monotonic()
with freezegun.freeze_time("2070-01-01"):
    from headrace.clock import monotonic
assert 0.0 <= monotonic() - began < 60.0, monotonic() - began
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_its_instants_are_those_of_the_standard_librarys_clock() -> None:
    from headrace.clock import monotonic

    before, now, after = time.monotonic(), monotonic(), time.monotonic()
    assert before <= now <= after
