"""One upstream of three whose pool raises whatever is asked of it: what the loops do for the other two."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx  # noqa: F401 - patched where it is imported
import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest

import headrace
from headrace import app
from headrace.adapters import install
from headrace.observe.multiprocess import Writer
from headrace.runtime import process
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.threads import TICK_S, Housekeeping, ServiceThread
from headrace.runtime.upstream import Upstream
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.waiting import wait_until

BODY = "pool: {heartbeat: {interval: 1s}, min_idle: 1}"


def file_of(*, body: str = BODY) -> str:
    upstreams = (
        f"  {name}: {{base_url: 'http://127.0.0.1:{port}', {body}}}\n"
        for port, name in enumerate(("first", "broken", "last"), 1)
    )
    return "upstreams:\n" + "".join(upstreams)


class Broken:
    """A pool, or the leases of one, after whatever befell it."""

    def __getattr__(self, name: str) -> Any:
        raise TypeError("weak object has gone away")


class Spy:
    """A pool that notes what is asked of it and of its leases."""

    def __init__(self, real: Any, asked: set[str]) -> None:
        self._real, self._asked = real, asked

    def __getattr__(self, name: str) -> Any:
        self._asked.add(name)
        found = getattr(self._real, name)
        return Spy(found, self._asked) if name == "leases" else found


Three = tuple[headrace.Headrace, dict[str, set[str]]]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    """An instance that was never started, the pool of its second upstream broken, and what the others were asked."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(file_of())
    hr = headrace.Headrace(file, registry=CollectorRegistry())
    asked: dict[str, set[str]] = {"first": set(), "last": set()}
    for name, upstream in hr.snapshot.upstreams.items():
        endpoint, real = upstream.endpoint, upstream.endpoint.pool
        endpoint.pool = Broken() if name == "broken" else Spy(real, asked[name])  # type: ignore[assignment]
    yield hr, asked
    hr.close()


def edit(body: str) -> Callable[[headrace.Headrace], object]:
    def reload(hr: headrace.Headrace) -> None:
        Path(hr.files[0]).write_text(file_of(body=body))
        assert hr.reload() == "applied"

    return reload


def use_and_keep_house(hr: headrace.Headrace) -> None:
    """Of pools at rest, none has an idle connection that could be asked for a heartbeat."""
    for name in ("first", "last"):
        leases = hr.snapshot.upstream(name).endpoint.pool.leases
        leases.give_back(leases.acquire(0.0), reusable=False)
    hr._reloader.tick(time.monotonic())


def drain(hr: headrace.Headrace) -> None:
    """The three old pools drain, and are looked after while they do."""
    edit("pool: {tcp_keepalive: {}}")(hr)
    hr._reloader.tick(time.monotonic())


def drain_to_the_end(hr: headrace.Headrace) -> None:
    edit("pool: {tcp_keepalive: {}}")(hr)
    hr._reloader.tick(time.monotonic() + 3600.0)


@pytest.mark.parametrize(
    ("act", "asked_for"),
    [
        pytest.param(headrace.Headrace.status, "view", id="status"),
        pytest.param(lambda hr: hr._metrics.samples(), "view", id="metrics"),
        pytest.param(lambda hr: hr._reloader.tick(time.monotonic()), "tell_when_awake", id="housekeeping"),
        pytest.param(lambda hr: hr._reloader.tick(time.monotonic()), "want_idle", id="warm-up"),
        pytest.param(use_and_keep_house, "lend_idle", id="heartbeats"),
        pytest.param(edit("timeouts: {attempt: 1s}"), "follow", id="a-reload-of-live-keys"),
        pytest.param(edit("pool: {tcp_keepalive: {}}"), "retire", id="a-reload-that-rebuilds"),
        pytest.param(drain, "tend", id="what-drains-is-tended"),
        pytest.param(drain_to_the_end, "stop", id="what-has-drained-is-stopped"),
        pytest.param(headrace.Headrace.close, "stop", id="close"),
        pytest.param(lambda hr: hr._reloader.forget_inherited(), "forget_inherited", id="a-forked-child"),
    ],
)
def test_a_broken_pool_costs_the_others_nothing(
    three: Three, act: Callable[[headrace.Headrace], object], asked_for: str, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 59."""
    hr, asked = three
    for seen in asked.values():
        seen.clear()

    act(hr)

    assert [name for name, seen in asked.items() if asked_for in seen] == ["first", "last"]


def test_the_status_says_of_a_broken_upstream_that_it_is_and_metrics_leave_it_out(three: Three) -> None:
    """failures.md 59."""
    hr, _ = three

    status = hr.status()["upstreams"]
    assert status["broken"] == {"error": "TypeError: weak object has gone away"}
    assert status["last"]["pool"]["inuse"] == 0
    assert json.dumps(hr.status())
    named = {labels[0] for labels in hr._metrics.samples()["headrace_pool_waiting"]}
    assert named == {"first", "last"}


def test_what_goes_wrong_at_each_look_is_logged_once(
    three: Three, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GoneWrong(Exception):
        pass

    def raise_anew(self: Broken, name: str) -> Any:
        raise GoneWrong(name)

    monkeypatch.setattr(Broken, "__getattr__", raise_anew)
    hr, _ = three
    for _ in range(5):
        hr._reloader.tick(time.monotonic())
        hr.status()
    said = [record.getMessage() for record in caplog.records if record.exc_info]
    assert sorted(said) == sorted(set(said))
    assert "could not look after the connections of an upstream (broken)" in caplog.text
    assert "could not read what an upstream is doing (broken)" in caplog.text


def test_new_rules_are_in_force_for_the_others(three: Three) -> None:
    hr, _ = three
    edit("circuit_breaker: {mode: forced_open}")(hr)

    states = {
        name: one["circuit_breaker"]["mode"]
        for name, one in hr.status()["upstreams"].items()
        if "error" not in one
    }
    assert states == {"first": "forced_open", "last": "forced_open"}
    assert hr.status()["reloads"] == {"applied": 1}


def test_a_task_of_housekeeping_that_raises_costs_the_others_no_round() -> None:
    """failures.md 60."""
    rounds: list[float] = []

    def raises(now: float) -> None:
        raise UnicodeEncodeError("ascii", "ä", 0, 1, "no")

    housekeeping = Housekeeping([raises, rounds.append])
    housekeeping.start()
    try:
        wait_until(lambda: len(rounds) >= 3, timeout_s=20 * TICK_S)
        assert housekeeping.life()["alive"]
    finally:
        housekeeping.stop()
    assert not housekeeping.life()["alive"]


def test_a_thread_whose_start_was_interrupted_when_it_ran_already_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """failures.md 62."""
    start, ends = threading.Thread.start, []

    def interrupted(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    def body(ended: threading.Event) -> None:
        ends.append(ended.wait(10))

    thread = ServiceThread("headrace-of-a-test")
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.start(body)
    wait_until(lambda: not thread.is_alive)
    assert ends in ([], [True])  # it had not begun, or it was told
    thread.start(body)
    assert thread.is_alive
    thread.stop()
    assert ends[-1:] == [True]


def test_a_body_that_raises_is_logged_once_and_the_next_start_works(caplog: pytest.LogCaptureFixture) -> None:
    """failures.md 60."""

    class OfThisTest(Exception):
        pass

    def body(ended: threading.Event) -> None:
        raise OfThisTest

    thread = ServiceThread("headrace-of-a-test")
    for _ in range(3):
        thread.start(body)
        wait_until(lambda: not thread.is_alive)
    thread.stop()
    assert caplog.text.count("could not go on with the thread headrace-of-a-test") == 1


def test_an_instance_that_cannot_be_read_leaves_the_metrics_of_the_others(tmp_path: Path) -> None:
    """failures.md 59."""
    registry = CollectorRegistry()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made = []
    for name in ("a", "b"):
        file = tmp_path / name / "upstreams.yaml"
        file.write_text(rules(f"http://{name}.invalid", name=name))
        made.append(headrace.Headrace(file, registry=registry))
    with made[0], made[1]:
        del made[0]._reloader.counters["a"]  # so that nothing is left to read but
        made[0]._reloader.service = Broken()  # type: ignore[assignment]  # what raises
        text = generate_latest(registry).decode()
    assert 'headrace_pool_waiting{upstream="b"} 0.0' in text
    assert 'upstream="a"' not in text


def test_a_flush_of_one_instance_that_raises_costs_the_others_none() -> None:
    """failures.md 59."""
    writer, read = Writer(), []

    def raises() -> Any:
        raise TypeError("weak object has gone away")

    def sound() -> Any:
        read.append(1)
        return {}

    writer.add(raises)
    writer.add(sound)
    writer.flush_all()
    writer.remove(raises)
    writer.flush_all()
    assert read == [1, 1]


def test_a_library_that_cannot_be_let_go_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 59."""
    with running(tmp_path, "install: {urllib3: true}\n" + rules("http://u.invalid")) as hr:
        libraries = install._LIBRARIES
        assert all(library._patch.is_on_top() for library in libraries)

        class Stuck:
            follow = staticmethod(lambda *_, **__: Broken().follow)

        monkeypatch.setattr(install, "_LIBRARIES", (Stuck, *libraries))
        hr.close()
        assert not any(library._patch.is_on_top() for library in libraries)


def test_a_library_that_cannot_be_taken_keeps_none_half_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""
    file = tmp_path / "upstreams.yaml"
    file.write_text("install: {urllib3: true}\n" + rules("http://u.invalid"))
    hr = headrace.Headrace(file, registry=CollectorRegistry())

    class Stuck:
        follow = staticmethod(lambda *_, **__: Broken().follow)

    with monkeypatch.context() as broken:
        broken.setattr(install, "_LIBRARIES", (*install._LIBRARIES, Stuck))
        with pytest.raises(TypeError, match="weak object"):
            hr.start()
    assert install.owners() == []
    assert not any(library._patch.is_on_top() for library in install._LIBRARIES)
    with hr:
        assert install.owners() == [hr]


def test_a_library_that_cannot_follow_a_reload_leaves_the_others_at_the_old_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("http://u.invalid"))
    hr = headrace.Headrace(file, registry=CollectorRegistry())
    install.publish(hr, hr.snapshot)  # started, but for the threads: a watcher would reload on its own
    before = hr.snapshot

    class Stuck:
        follow = staticmethod(lambda *_, **__: Broken().follow)

    try:
        file.write_text(rules("http://u.invalid", "    timeouts: {attempt: 1s}\n"))
        with monkeypatch.context() as broken:
            broken.setattr(install, "_LIBRARIES", (*install._LIBRARIES, Stuck))
            with pytest.raises(TypeError, match="weak object"):
                hr.reload()
        routed = install._LIBRARIES[0]._routing.routes.match_url("http://u.invalid/")
        assert routed is not None
        assert routed[1] is before.upstream("billing")
        assert hr.snapshot is before
        assert hr.reload() == "applied"
    finally:
        hr.close()


def test_a_renewal_that_raises_in_a_forked_child_costs_the_others_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """failures.md 59."""
    renewed: list[str] = []

    def raises() -> None:
        raise TypeError("weak object has gone away")

    monkeypatch.setattr(process, "_renewals", [raises, lambda: renewed.append("second")])
    monkeypatch.setattr(process, "pid", -1)
    process.renew()
    assert renewed == ["second"]
    assert process.pid == os.getpid()


def test_an_instance_that_cannot_be_renewed_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 59."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("http://u.invalid"))
    made = [headrace.Headrace(file, registry=CollectorRegistry()) for _ in range(3)]
    made[1]._reloader = Broken()  # type: ignore[assignment]
    locks = [hr._reloader._lock for hr in (made[0], made[2])]

    monkeypatch.setattr(app, "_instances", made)
    app._forget_inherited()
    assert all(hr._reloader._lock is not lock for hr, lock in zip((made[0], made[2]), locks, strict=True))


def test_a_call_that_cannot_be_aborted_keeps_no_other_going() -> None:
    """failures.md 59."""
    aborted: list[object] = []

    class Pool:
        def abort(self, token: object) -> None:
            aborted.append(token)

    cancellation = Cancellation()
    cancellation.cover("a", Broken())  # type: ignore[arg-type]
    cancellation.cover("b", Pool())  # type: ignore[arg-type]
    cancellation.cancel()
    assert aborted == ["b"]


def test_a_filter_of_the_applications_log_that_raises_costs_no_call(tmp_path: Path) -> None:
    """failures.md 59."""

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the application's filter is broken")

    logger, broken = logging.getLogger("headrace"), Filter()
    with FaultServer() as server:
        server.at("/", Answer(500))
        body = "    retry: {max_attempts: 1}\n    circuit_breaker: {consecutive_failures: 1}\n"
        with running(tmp_path, rules(server.url, body)):
            logger.addFilter(broken)
            try:
                assert requests.get(server.url).status_code == 500  # opens the circuit, which is logged
                with pytest.raises(headrace.CircuitOpenError):
                    requests.get(server.url)
            finally:
                logger.removeFilter(broken)


def test_no_thread_for_a_heartbeat_gives_the_connections_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 59."""
    with FaultServer() as server:
        file = tmp_path / "upstreams.yaml"
        file.write_text(rules(server.url, "    pool: {heartbeat: {interval: 1s}, max_connections: 2}\n"))
        hr = headrace.Headrace(file, registry=CollectorRegistry())
        hr.upstream("billing").get("/")
        upstream: Upstream = hr.snapshot.upstream("billing")
        leases = upstream.endpoint.pool.leases

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", start)
            hr._reloader.tick(time.monotonic() + 10.0)
        assert (leases.view().inuse, leases.view().idle) == (0, 1)
        hr.close()
