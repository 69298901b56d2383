"""A thread that outlives the patience of a close: it is told of once, and no second one comes beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.policy.plan import ReloadPlan
from headrace.runtime.threads import TICK_S, AutoResetEvent, ServiceThread
from headrace.runtime.watch import watcher as watching
from headrace.runtime.watch.watcher import Watcher
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


# --- the thread that watches the files: what it calls may take long ------------------------


PLAN = ReloadPlan(debounce_s=0.02, max_delay_s=1.0, poll_s=600.0, drain_s=1.0)
WATCH = "headrace-watch"


def watching_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == WATCH]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that waits less for a `changed()`, which these tests hold up for longer than any patience."""
    monkeypatch.setattr(watching, "STOP_PATIENCE_S", 0.05)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds up a `changed()`; opened in the end, whatever happens."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.usefixtures("impatient")
def test_a_watcher_that_is_started_while_its_callback_outlives_a_stop_goes_on_with_the_same_thread(
    tmp_path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The start returns at once, and what is edited from then on is heard."""
    file, held, entered = tmp_path / "file", [], threading.Semaphore(0)
    file.write_text("0")

    def changed() -> None:
        held.append(file.read_text())
        entered.release()
        gate.wait(60)

    watcher = Watcher([str(file)], changed, PLAN)
    watcher.start()
    assert entered.acquire(timeout=30)
    (thread,) = watching_threads()
    watcher.stop()
    watcher.stop()
    (found,) = lines(caplog)
    assert WATCH in found
    assert watcher.life()["alive"]

    start = threading.Thread(target=watcher.start)
    start.start()
    start.join(30)
    is_back = not start.is_alive()
    file.write_text("1")
    gate.set()
    assert is_back, "the start waits for the callback"
    assert entered.acquire(timeout=30)
    assert held == ["0", "1"]
    assert watching_threads() == [thread]
    watcher.stop()
    wait_until(lambda: not watching_threads())


@pytest.mark.usefixtures("impatient")
def test_a_watcher_whose_callback_outlives_a_stop_ends_with_it(tmp_path: Path, gate: threading.Event) -> None:
    file, entered = tmp_path / "file", threading.Semaphore(0)
    file.write_text("0")

    def changed() -> None:
        entered.release()
        gate.wait(60)

    watcher = Watcher([str(file)], changed, PLAN)
    watcher.start()
    assert entered.acquire(timeout=30)
    watcher.stop()
    gate.set()
    wait_until(lambda: not watching_threads())
    assert not watcher.life()["alive"]

    watcher.start()  # and that one is new
    file.write_text("1")
    assert entered.acquire(timeout=30)
    watcher.stop()
    wait_until(lambda: not watching_threads())


@pytest.mark.usefixtures("impatient")
def test_a_start_after_a_reload_that_outlives_the_close_brings_no_second_watching_thread(
    tmp_path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's log holds up the event of a reload, on the thread that has read the file."""
    entered = threading.Event()

    def hold_up(record: logging.LogRecord) -> bool:
        if threading.current_thread().name == WATCH and getattr(record, "event", "") == "config.applied":
            entered.set()
            gate.wait(60)
        return True

    text = rules("http://127.0.0.1:9", more="reload: {debounce: 20ms}\n")
    log = logging.getLogger("headrace")
    caplog.set_level(logging.INFO, "headrace")
    log.addFilter(hold_up)
    try:
        with running(tmp_path, text) as hr:
            file = tmp_path / "upstreams.yaml"
            file.write_text(text + "    timeouts: {attempt: 7s}\n")
            assert entered.wait(30)
            (thread,) = watching_threads()
            hr.close()
            assert len(lines(caplog)) == 1
            assert hr.status()["threads"][WATCH]["alive"]
            file.write_text(text + "    timeouts: {attempt: 8s}\n")
            hr.start()
            assert watching_threads() == [thread]
            assert hr.snapshot.upstream("billing").plan.timeouts.attempt_s == 8

            gate.set()
            file.write_text(text + "    timeouts: {attempt: 9s}\n")
            wait_until(lambda: hr.snapshot.upstream("billing").plan.timeouts.attempt_s == 9)
            assert watching_threads() == [thread]
    finally:
        log.removeFilter(hold_up)
    wait_until(lambda: not watching_threads())
