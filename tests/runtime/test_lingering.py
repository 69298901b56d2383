"""A thread that outlives the patience of a close: it is told of once, and no second one comes beside it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from headrace.runtime.threads import TICK_S, AutoResetEvent, ServiceThread
from support.faultserver import FaultServer
from support.governed import rules, running
from support.waiting import wait_until

NAME = "headrace-warmup"


def warming() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == NAME]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if getattr(one, "event", "") == "thread.lingers"]


def test_a_thread_that_waits_for_a_slow_upstream_is_remembered_by_a_close_and_by_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A handshake that hangs outlives the second which a close gives it."""
    limits = "    timeouts: {tls_handshake: 60s, attempt: 60s, deadline: null}\n    pool: {min_idle: 1}\n"
    with FaultServer() as server:
        server.on_accept = "silence"
        text = rules(server.url.replace("http:", "https:"), limits)
        with running(tmp_path, text) as hr:
            wait_until(lambda: server.connections == 1)
            hr.close()
            (found,) = lines(caplog)
            assert NAME in found
            assert hr.status()["threads"][NAME]["alive"]

            hr.close()
            assert len(lines(caplog)) == 1
            hr.start()
            threading.Event().wait(4 * TICK_S)  # rounds in which a forgotten thread gets company
            assert len(warming()) == 1
            assert server.connections == 1
    wait_until(lambda: not warming())


def test_one_that_has_ended_meanwhile_makes_room_for_the_next() -> None:
    thread, gate = ServiceThread("headrace-of-a-test"), threading.Event()

    def body(ended: AutoResetEvent) -> None:
        gate.wait(60)

    thread.start(body)
    thread.stop(timeout_s=0.01)
    assert thread.is_alive
    assert thread.life()["alive"]

    gate.set()
    wait_until(lambda: not thread.is_alive)
    thread.start(body)
    thread.stop()
    assert not thread.is_alive
