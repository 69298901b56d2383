"""A forked child: its own sockets, its own locks, and no word on its parent's connections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

import headrace
from headrace.runtime import process
from headrace.transport.dial import tls
from support.faultserver import Answer, FaultServer
from support.forks import in_child
from support.governed import rules, running
from support.waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def test_a_forked_child_calls_over_a_connection_of_its_own(tmp_path: Path, server: FaultServer) -> None:
    """failures.md 26."""
    with running(tmp_path, rules(server.url)):
        requests.get(f"{server.url}/before")

        assert in_child(lambda: requests.get(f"{server.url}/child")) == 0

        requests.get(f"{server.url}/after")
        assert [(one.target, one.connection) for one in server.requests] == [
            ("/before", 1),
            ("/child", 2),
            ("/after", 1),
        ]


def test_a_handle_made_before_the_fork_works_in_the_child_over_its_own_connection(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, "    mode: observe\n")) as hr:
        handle = hr.upstream("billing")
        handle.get("/before")
        handle.urlopen("GET", "/before")

        def call() -> None:
            handle.get("/child")
            handle.urlopen("GET", "/child")

        assert in_child(call) == 0
        by_parent = {one.connection for one in server.requests if one.target == "/before"}
        by_child = {one.connection for one in server.requests if one.target == "/child"}
        assert not by_parent & by_child


def test_a_child_that_closes_or_exits_leaves_the_calls_of_its_parent_alone(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 26."""
    server.at("/slow", Answer(delay_s=0.3))
    with running(tmp_path, rules(server.url)) as hr:
        answers: list[requests.Response] = []
        caller = threading.Thread(target=lambda: answers.append(requests.post(f"{server.url}/slow")))
        caller.start()
        server.wait_for(lambda: server.first_lines == 1)

        assert in_child(hr.close) == 0  # what atexit does in a child that ends as Python processes end

        caller.join()
        assert [answer.status_code for answer in answers] == [200]
        assert server.first_lines == 1
        assert len(hr.status()["upstreams"]["billing"]["attempts"]) == 1


def test_a_child_can_start_and_close_for_itself(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url)) as hr:
        requests.get(server.url)

        def serve() -> None:
            hr.start()
            assert hr.status()["running"]
            requests.get(server.url)
            # The watch tries first, for a moment, whether it can have more threads.
            wait_until(
                lambda: (
                    sorted(
                        name
                        for thread in threading.enumerate()
                        if (name := thread.name).startswith("headrace-")
                    )
                    == ["headrace-deadline", "headrace-housekeeping", "headrace-watch"]
                )
            )
            hr.close()

        assert in_child(serve) == 0
        assert hr.status()["running"]
        requests.get(server.url)
        assert [one.connection for one in server.requests] == [1, 2, 1]


def test_locks_that_other_threads_held_at_the_fork_do_not_hang_the_child(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 26."""
    with running(tmp_path, rules(server.url)) as hr:
        upstream = hr.upstream("billing") and hr.snapshot.upstream("billing")
        reloader = hr._reloader
        held = (
            upstream.endpoint.pool.leases._lock,
            upstream.learned.circuit._lock,
            upstream.learned.budget._lock,
            upstream.learned.counters.lock,
            hr.service.lock,
            reloader._lock,
            hr._lock,
        )
        for lock in held:
            lock.acquire()  # type: ignore[attr-defined]

        def serve() -> None:
            requests.get(server.url)
            hr.start()
            hr.reload()
            hr.status()
            hr.close()

        try:
            status = in_child(serve)
        finally:
            for lock in held:
                lock.release()  # type: ignore[attr-defined]
        assert status == 0


def test_a_reload_by_hand_in_a_child_is_in_force_for_its_plain_calls(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, "    headers: {X-Rule: old}\n")) as hr:

        def edit_and_call() -> None:
            (tmp_path / "upstreams.yaml").write_text(rules(server.url, "    headers: {X-Rule: new}\n"))
            assert hr.reload() == "applied"
            requests.get(f"{server.url}/child")
            requests.get(f"{server.url}/child")

        assert in_child(edit_and_call) == 0

        children = [one for one in server.requests if one.target == "/child"]
        assert [one.header("X-Rule") for one in children] == ["new", "new"]
        assert len({one.connection for one in children}) == 1  # over a pool that keeps its connections


def test_a_lock_held_while_a_tls_context_is_built_does_not_hang_the_child(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("https://billing.internal"))
    with tls._contexts_lock:
        assert in_child(lambda: headrace.Headrace(file)) == 0


def test_where_the_fork_hook_was_skipped_the_next_call_renews_before_it_takes_a_lock(
    tmp_path: Path, server: FaultServer
) -> None:
    """Raw fork(2), as uWSGI does it: a thread that held a lock is not in the child.

    Set up by hand in an ordinary child: in one of a bare fork(2) CPython itself may wait for ever for a thread
    that wanted the interpreter lock, which is nobody's to mend but its own.

    failures.md 26.
    """
    with running(tmp_path, rules(server.url)) as hr:
        handle = hr.upstream("billing")
        handle.get("/before")

        def call_under_foreign_locks(call: Callable[[], object]) -> None:
            learned = hr.snapshot.upstream("billing").learned
            for lock in (learned.circuit._lock, learned.budget._lock, learned.counters.lock):
                lock.__enter__()
            process.pid = -1
            call()

        for call in (lambda: requests.get(f"{server.url}/child"), lambda: handle.urlopen("GET", "/child")):
            assert in_child(lambda call=call: call_under_foreign_locks(call)) == 0  # type: ignore[misc]
        handle.get("/after")

        assert [one.connection for one in server.requests] == [1, 2, 3, 1]


def test_a_child_that_dies_with_a_probe_costs_its_parent_none(tmp_path: Path, server: FaultServer) -> None:
    """Each process has a circuit of its own: the child's is closed, whatever the parent's was doing.

    failures.md 2.
    """
    body = (
        "    retry: {max_attempts: 1}\n"
        "    circuit_breaker:\n"
        "      {consecutive_failures: 1, open_for: {base: 50ms, jitter: 0}, half_open: {max_probes: 2}}\n"
    )
    with running(tmp_path, rules(server.url, body)) as hr:
        server.next(Answer(503))
        requests.get(server.url)
        circuit = hr.snapshot.upstream("billing").learned.circuit
        time.sleep(0.06)
        requests.get(server.url)  # one verdict
        assert circuit.state == "half_open"

        def die_amid_a_call() -> None:
            assert hr.snapshot.upstream("billing").learned.circuit.state == "closed"
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # SIGALRM kills
            requests.get(f"{server.url}/child")

        server.at("/child", Answer(delay_s=5))
        assert in_child(die_amid_a_call) == -signal.SIGALRM

        view = circuit.view(time.monotonic())
        assert (view.state, view.verdicts, view.probes_in_flight) == ("half_open", 1, 0)
        requests.get(server.url)
        assert circuit.state == "closed"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted there")
def test_a_server_that_forks_after_it_has_loaded_the_application_has_one_thread(tmp_path: Path) -> None:
    """`gunicorn --preload`: the middleware shows its metrics, and the thread that registered them has gone."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("http://127.0.0.1:9"))
    program = """
import os, sys
import headrace
from prometheus_client import CollectorRegistry
for _ in range(60):
    made = headrace.WSGIMiddleware(lambda *_: [], sys.argv[1], registry=CollectorRegistry())
    print(len(os.listdir("/proc/self/task")), end=" ")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"] * 60
