"""A start, close or reload that fails or is interrupted half way: it is undone, or done; never half in force."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
from prometheus_client import CollectorRegistry
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager

import headrace
from headrace import app
from headrace.adapters import install
from headrace.runtime.threads import Housekeeping
from headrace.runtime.watch.watcher import Watcher
from support.faultserver import FaultServer
from support.governed import rules
from support.interrupts import interrupted_within
from support.waiting import wait_until

LIFECYCLE = (
    "headrace/app.py",
    "adapters/install.py",
    "adapters/requests/patch.py",
    "adapters/urllib3/patch.py",
    "runtime/reload.py",
    "runtime/threads.py",
    "runtime/watch/watcher.py",
    "observe/isolation.py",
    "observe/metrics.py",
)
EVERYTHING = ("",)
"""The standard library and prometheus_client, too."""
THREADS = ("headrace-watch", "headrace-housekeeping", "headrace-warmup")


class AtExit:
    """What is to be called at the end, of which atexit itself does not tell."""

    def __init__(self) -> None:
        self.callbacks: list[object] = []

    def register(self, callback: object) -> None:
        self.callbacks.append(callback)

    def unregister(self, callback: object) -> None:
        self.callbacks = [one for one in self.callbacks if one != callback]


class Process:
    """What one instance leaves behind in this process, compared with what there was before."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.atexit = AtExit()
        self.registry = CollectorRegistry()
        self._send = HTTPAdapter.send
        self._choose = HTTPAdapter.get_connection_with_tls_context
        self._pools = PoolManager.connection_from_pool_key
        self._transports = _httpx_methods()

    def make(self) -> headrace.Headrace:
        return headrace.Headrace(self.file, registry=self.registry)

    def left_behind(self) -> list[str]:
        found = []
        if install.owners():
            found.append("claims")
        if (
            HTTPAdapter.send is not self._send
            or HTTPAdapter.get_connection_with_tls_context is not self._choose
        ):
            found.append("patch of requests")
        if PoolManager.connection_from_pool_key is not self._pools:
            found.append("patch of urllib3")
        if _httpx_methods() != self._transports:
            found.append("patch of httpx")
        if list(self.registry.collect()):
            found.append("metrics")
        if self.atexit.callbacks:
            found.append("atexit")
        return found

    def assert_clean(self, point: object) -> None:
        """Nothing is left, no thread lives on, and another instance of the same file comes and goes."""
        assert (point, self.left_behind()) == (point, [])
        wait_until(lambda: not living(), timeout_s=30, what=f"the end of the threads at point {point}")
        with self.make() as other:
            assert install.owners() == [other]
            assert set(living()) >= {"headrace-watch", "headrace-housekeeping"}
        assert (point, self.left_behind()) == (point, [])


def _httpx_methods() -> list[object]:
    return [
        method
        for library in (httpx, httpx2)
        for method in (library.HTTPTransport.handle_request, library.AsyncHTTPTransport.handle_async_request)
    ]


def living() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name in THREADS and one.is_alive()]


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("http://u.invalid", more="install: {urllib3: true}\n"))
    found = Process(file)
    monkeypatch.setattr(app, "atexit", found.atexit)
    yield found
    wait_until(lambda: not living(), timeout_s=30)


# --- errors ----------------------------------------------------------------------------

STEPS = [
    pytest.param(app.install, "publish", id="publish"),
    pytest.param(app.Metrics, "install", id="metrics"),
    pytest.param(Housekeeping, "start", id="housekeeping"),
    pytest.param(AtExit, "register", id="atexit"),
    pytest.param(Watcher, "__init__", id="watcher"),
    pytest.param(Watcher, "start", id="watch-thread"),
    pytest.param(app.Reloader, "announcements", id="announcements"),
]
ERRORS = [
    pytest.param(RuntimeError("can't start new thread"), id="error"),
    pytest.param(KeyboardInterrupt(), id="interrupt"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_a_start_that_fails_at_any_step_is_undone(
    owner: Any, name: str, error: BaseException, when: str, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""
    hr, real = process.make(), getattr(owner, name)

    def fails(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            real(*args, **kwargs)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, fails)
        with pytest.raises(type(error)):
            hr.start()
    assert not hr.status()["running"]
    assert hr.started_in == 0
    process.assert_clean(name)
    with hr:  # and it starts all the same, once it can
        assert install.owners() == [hr]
    process.assert_clean(name)


def test_a_start_that_failed_leaves_a_handle_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62: every call was refused by a stopped pool."""
    with FaultServer() as server:
        file = tmp_path / "upstreams.yaml"
        file.write_text(rules(server.url))
        hr = headrace.Headrace(file, registry=CollectorRegistry())
        for _ in range(2):
            with monkeypatch.context() as broken:
                broken.setattr(Housekeeping, "start", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    hr.start()
            assert hr.upstream("billing").get("/").status_code == 200
            assert not hasattr(requests.get(server.url), "headrace")
        with hr:
            assert hasattr(requests.get(server.url), "headrace")
        with monkeypatch.context() as broken:  # started over, it fails: closed it was, closed it is
            broken.setattr(Housekeeping, "start", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                hr.start()
        with pytest.raises(headrace.HeadraceError, match="closed"):
            hr.upstream("billing").get("/")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        pytest.param(Watcher, "stop", id="watcher"),
        pytest.param(Housekeeping, "stop", id="housekeeping"),
        pytest.param(app.Reloader, "close", id="pools"),
        pytest.param(app.Metrics, "uninstall", id="metrics"),
        pytest.param(app.install, "withdraw", id="claims"),
    ],
)
def test_a_step_of_close_that_raises_keeps_none_of_the_others_from_being_done(
    owner: Any, name: str, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""
    hr, real = process.make(), getattr(owner, name)
    hr.start()

    def does_it_and_fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise TypeError("weak object has gone away")

    with monkeypatch.context() as broken:
        broken.setattr(owner, name, does_it_and_fails)
        hr.close()
    process.assert_clean(name)


# --- interrupts ------------------------------------------------------------------------


def each_point(act: Callable[[int], tuple[bool, bool]]) -> int:
    """Have *act* interrupted at each of its points in turn; how many there are."""
    swallowed, point = [], 0
    while True:
        point += 1
        reached, came_out = act(point)
        if not reached:
            assert swallowed == []
            return point - 1
        if not came_out:
            swallowed.append(point)


def test_an_interrupt_anywhere_in_a_start_undoes_it(process: Process) -> None:
    """failures.md 62."""

    def start(point: int) -> tuple[bool, bool]:
        hr = process.make()
        found = interrupted_within(EVERYTHING, point, hr.start)
        if found[0]:
            assert (point, hr.status()["running"], hr.started_in) == (point, False, 0)
            process.assert_clean(point)
        hr.close()
        return found

    assert each_point(start) > 100


def test_an_interrupt_anywhere_in_a_with_statement_leaves_nothing(process: Process) -> None:
    """failures.md 62."""

    def enter(point: int) -> tuple[bool, bool]:
        def block() -> None:
            with headrace.install(process.file, registry=process.registry):
                pass

        found = interrupted_within(("headrace/app.py",), point, block)
        for one in app.instances():
            one.close()  # an interrupt before or during the close itself: a second one finds what is left
        process.assert_clean(point)
        return found

    assert each_point(enter) > 50


def test_an_interrupt_anywhere_in_a_close_leaves_the_rest_to_the_next_one(process: Process) -> None:
    """failures.md 62."""
    left_to_the_next = 0

    def close(point: int) -> tuple[bool, bool]:
        nonlocal left_to_the_next
        hr = process.make()
        hr.start()
        found = interrupted_within(EVERYTHING, point, hr.close)
        left_to_the_next += bool(process.left_behind())
        hr.close()
        process.assert_clean(point)
        return found

    assert each_point(close) > 100
    assert left_to_the_next < 20  # nearly always all is done, and the interrupt raised at the end


def test_an_interrupt_anywhere_in_a_suspend_leaves_the_rest_to_the_next_one(process: Process) -> None:
    """Pools that drain are stopped, those in force are kept for the next start, and nothing is forgotten.

    failures.md 62.
    """
    url, left_to_the_next = "http://u.invalid", 0

    def suspend(point: int) -> tuple[bool, bool]:
        nonlocal left_to_the_next
        process.file.write_text(rules(url, more="install: {urllib3: true}\n"))
        hr = process.make()
        hr.start()
        drains = hr.snapshot.upstream("billing").endpoint.pool.leases
        process.file.write_text(
            rules(url, "    pool: {tcp_keepalive: {}}\n", more="install: {urllib3: true}\n")
        )
        hr.reload()
        kept = hr.snapshot.upstream("billing").endpoint.pool.leases
        assert drains is not kept
        try:
            found = interrupted_within(EVERYTHING, point, hr.suspend)
            left_to_the_next += process.left_behind() != ["atexit"] or not drains.stopped
            hr.suspend()
            assert (point, process.left_behind(), hr.is_open) == (point, ["atexit"], True)
            assert (point, drains.stopped, kept.stopped) == (point, True, False)
            wait_until(lambda: not living(), timeout_s=30, what=f"the end of the threads at point {point}")
            hr.start()
            assert (point, install.owners()) == (point, [hr])
            assert hr.snapshot.upstream("billing").endpoint.pool.leases is kept
        finally:
            hr.close()
        assert (point, process.left_behind(), kept.stopped, hr.is_open) == (point, [], True, False)
        return found

    assert each_point(suspend) > 100
    assert left_to_the_next < 20


def test_an_interrupt_anywhere_in_the_undoing_of_a_failed_start_leaves_the_rest_to_close(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""

    def raises(watcher: Watcher) -> None:
        raise RuntimeError("can't start new thread")

    def start(point: int) -> tuple[bool, bool]:
        hr = process.make()
        with monkeypatch.context() as broken:
            broken.setattr(Watcher, "start", raises)

            def failing() -> None:
                with pytest.raises(RuntimeError):
                    hr.start()

            found = interrupted_within(EVERYTHING, point, failing)
        hr.close()
        process.assert_clean(point)
        return found

    assert each_point(start) > 100


def test_an_interrupt_anywhere_in_a_reload_leaves_the_old_rules_or_the_new_ones(process: Process) -> None:
    """failures.md 62."""
    url = "http://u.invalid"
    old = rules(url, "    pool: {max_connections: 5}\n", more="install: {urllib3: true}\n")
    new = rules(url, "    pool: {max_connections: 6, tcp_keepalive: {}}\n", more="install: {urllib3: true}\n")
    results = set()

    def reload(point: int) -> tuple[bool, bool]:
        process.file.write_text(old)
        hr = process.make()
        install.publish(hr, hr.snapshot)  # started, but for the threads: a watcher would reload on its own
        before = hr.snapshot
        process.file.write_text(new)
        try:
            found = interrupted_within((*LIFECYCLE, "runtime/upstream.py"), point, hr.reload)
            snapshot = hr.snapshot
            results.add(snapshot is before)
            upstream = snapshot.upstream("billing")
            for library in install._LIBRARIES:
                routed = library._routing.routes.match_url(url)
                assert routed is not None
                assert (point, routed[1]) == (point, upstream)
            assert upstream.endpoint.pool.leases.plan == upstream.plan.pool
            old_pool = before.upstream("billing").endpoint
            draining = [one.endpoint for one in hr._reloader._draining]
            assert (point, draining) == (point, [] if snapshot is before else [old_pool])
            assert old_pool.pool.leases.retired is (snapshot is not before)
            assert hr.reload() == ("applied" if snapshot is before else "unchanged")
        finally:
            hr.close()
        assert old_pool.pool.leases.stopped
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.stopped
        return found

    assert each_point(reload) > 50
    assert results == {True, False}


# --- the lifespan of an ASGI application -----------------------------------------------


class Lifespan:
    """A server's side of a lifespan that it cancels."""

    def __init__(self, application: Any) -> None:
        self.sent: list[str] = []
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_app.put_nowait({"type": "lifespan.startup"})
        self.task = asyncio.ensure_future(application({"type": "lifespan"}, self._to_app.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message["type"])

    async def is_cancelled(self) -> bool:
        self.task.cancel()
        try:
            await self.task
        except asyncio.CancelledError:
            return True
        return False


def test_a_lifespan_that_is_cancelled_during_our_start_is_closed_when_that_is_over(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 62."""
    starting, go_on, real = threading.Event(), threading.Event(), Housekeeping.start

    def slowly(housekeeping: Housekeeping) -> None:
        starting.set()
        assert go_on.wait(10)
        real(housekeeping)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("never asked")

    async def serve() -> None:
        lifespan = Lifespan(headrace.ASGIMiddleware(application, process.file, registry=process.registry))
        await asyncio.to_thread(starting.wait, 10)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        assert await lifespan.is_cancelled()

    with monkeypatch.context() as slow:
        slow.setattr(Housekeeping, "start", slowly)
        asyncio.run(serve())
    process.assert_clean("start")


@pytest.mark.parametrize("phase", ["startup", "serving"])
def test_a_lifespan_that_is_cancelled_during_the_applications_is_closed(phase: str, process: Process) -> None:
    """failures.md 62."""

    async def serve() -> None:
        reached = asyncio.Event()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if phase == "serving":
                await send({"type": "lifespan.startup.complete"})
            reached.set()
            await receive()

        lifespan = Lifespan(headrace.ASGIMiddleware(application, process.file, registry=process.registry))
        await reached.wait()
        assert len(install.owners()) == 1
        assert await lifespan.is_cancelled()

    asyncio.run(serve())
    process.assert_clean(phase)
