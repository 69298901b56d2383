"""Under gunicorn: what its workers count together, and what they share with their master: nothing."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from support.faultserver import Answer, Break, FaultServer, on_reuse
from support.governed import rules
from support.gunicorn import gunicorn
from support.waiting import wait_until


@pytest.fixture
def upstream() -> Iterator[FaultServer]:
    with FaultServer() as upstream:
        yield upstream


CALLS = """
    import os, flask, headrace, requests

    app = flask.Flask(__name__)

    @app.get("/-/pid")
    def pid():
        return str(os.getpid())

    @app.get("/<path:target>")
    def call(target):
        try:
            requests.get(f"{os.environ['UPSTREAM']}/{target}")
        except requests.RequestException:
            pass
        return str(os.getpid())

    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app)
"""


def test_what_two_workers_count_is_what_the_upstream_counts(tmp_path: Path, upstream: FaultServer) -> None:
    """Leases are the requests that it read, misses the connections that it accepted, attempts its answers."""
    upstream.at("/close", Answer(close=True))
    upstream.at("/busy", Answer(503))
    upstream.at("/missing", Answer(404))
    upstream.at("/reset", Break("request", "rst"))
    upstream.at("/stale", on_reuse(Break("request", "fin")))
    body = (
        "    pool: {max_connections: 8}\n"  # more than threads in a worker: a resend always finds a slot
        "    circuit_breaker: {mode: disabled}\n"
        "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
        # None of them is what is counted here: a call that a busy machine cuts would be one more attempt.
        "    timeouts: {deadline: 5m, attempt: 1m, connect: 1m, read: 1m, acquire: 1m}\n"
    )
    (tmp_path / "upstreams.yaml").write_text(rules(upstream.url, body))
    counted = tmp_path / "metrics"
    counted.mkdir()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(counted))  # type: ignore[no-untyped-call]

    def metric(name: str, label: str = "") -> Counter[str]:
        """Values of the family *name* summed by *label*."""
        values: Counter[str] = Counter()
        for family in registry.collect():
            for sample in family.samples:
                if sample.name == name:
                    values[sample.labels.get(label, "")] += int(sample.value)
        return values

    workers = "worker_class, workers, threads, timeout = 'gthread', 2, 4, 300\n"
    with gunicorn(
        tmp_path, CALLS, conf=workers, UPSTREAM=upstream.url, PROMETHEUS_MULTIPROC_DIR=str(counted)
    ) as (url, _):

        def call(seed: int) -> set[str]:
            rng = random.Random(seed)
            paths = ["ok"] * 5 + ["close", "busy", "missing", "reset", "stale"]
            return {requests.get(f"{url}/{rng.choice(paths)}", timeout=60).text for _ in range(40)}

        up: set[str] = set()
        wait_until(lambda: up.add(requests.get(f"{url}/-/pid", timeout=60).text) or len(up) == 2)
        with ThreadPoolExecutor(8) as crowd:
            assert len(set().union(*crowd.map(call, range(8)))) == 2  # both workers took part
        # While they run: the gauges are live sums.
        wait_until(lambda: sum(metric("headrace_requests_total").values()) == 320, what="the last flush")
        wait_until(  # the last call may have ended between the look at the gauges and that at the counters
            lambda: (
                metric("headrace_pool_connections", "state")["inuse"]
                == metric("headrace_pool_waiting")[""]
                == 0
            ),
            what="a flush at rest",
        )
        idle = metric("headrace_pool_connections", "state")["idle"]
        upstream.wait_for(lambda: upstream.open_connections == idle)

    seen = upstream.requests
    by_path = Counter(request.target for request in seen)
    # What broke off on a reused connection was sent again over a fresh one, within the same attempt.
    resent = sum(request.target in ("/reset", "/stale") and request.nth > 1 for request in seen)
    assert resent > 10
    acquires = metric("headrace_pool_acquires_total", "result")
    assert acquires == {"hit": len(seen) - upstream.connections, "miss": upstream.connections}
    assert len(seen) == upstream.first_lines
    attempts = metric("headrace_attempts_total", "outcome")
    resent_resets = sum(request.target == "/reset" and request.nth > 1 for request in seen)
    assert attempts == {
        "2xx": by_path["/ok"] + by_path["/close"] + by_path["/stale"] - (resent - resent_resets),
        "4xx": by_path["/missing"],
        "5xx": by_path["/busy"],
        "reset": by_path["/reset"] - resent_resets,
    }
    calls = metric("headrace_requests_total")[""]
    assert calls == 320
    assert metric("headrace_retries_total")[""] == attempts.total() - calls
    closed = metric("headrace_pool_connections_closed_total")[""]
    assert closed == upstream.connections  # the workers have exited
    assert metric("headrace_pool_wait_seconds_count")[""] == acquires.total()


PRELOADED = """
    import os, flask, headrace, requests

    UPSTREAM = os.environ["UPSTREAM"]
    hr = headrace.install()
    assert requests.get(f"{UPSTREAM}/import").headrace.upstream == "billing"
    app = flask.Flask(__name__)

    @app.get("/")
    def index():
        assert requests.get(f"{UPSTREAM}/{os.getpid()}").headrace.upstream == "billing"
        assert hr.upstream("billing").urlopen("GET", f"/{os.getpid()}").status == 200
        return str(os.getpid())

    app.wsgi_app = headrace.WSGIMiddleware(app.wsgi_app, headrace=hr)
"""

PRELOAD = """
    import os, requests

    preload_app, workers = True, 2

    def child_exit(server, worker):
        requests.get(f"{os.environ['UPSTREAM']}/reaped")
"""


def test_workers_leave_a_preloading_master_its_connection(tmp_path: Path, upstream: FaultServer) -> None:
    """failures.md 26: the master calls at import and after a worker has died, over one connection, which is its own."""
    (tmp_path / "upstreams.yaml").write_text(rules(upstream.url))
    with gunicorn(tmp_path, PRELOADED, conf=PRELOAD, UPSTREAM=upstream.url) as (url, master):
        pids = call_until(url, 2)

        os.kill(pids[0], signal.SIGTERM)
        upstream.wait_for(lambda: any(one.target == "/reaped" for one in upstream.requests))
        pids = call_until(url, 3, known=pids)

        assert master.pid not in pids
        by_process = {
            target: {one.connection for one in upstream.requests if one.target == target}
            for target in {one.target for one in upstream.requests}
        }
        assert by_process["/import"] == by_process["/reaped"] == {1}
        workers = [by_process[f"/{pid}"] for pid in pids]
        assert sum(map(len, workers)) == len(set.union({1}, *workers)) - 1  # nobody's is another's
        assert all(workers)


def call_until(url: str, count: int, known: list[int] | None = None) -> list[int]:
    """The pids of *count* workers that have answered, those in *known* first. Blocks."""
    pids = list(known or ())

    def call() -> bool:
        with ThreadPoolExecutor(4) as crowd:
            for text in crowd.map(lambda _: requests.get(url, timeout=60).text, range(4)):
                if int(text) not in pids:
                    pids.append(int(text))
        return len(pids) >= count

    wait_until(call, what=f"answers of {count} workers")
    return pids
