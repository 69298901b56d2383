"""prometheus_client's multiprocess mode, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

WORKER = """
import os, sys, threading
from prometheus_client import REGISTRY
from headrace.observe.metrics import Metrics
from headrace.observe.readings import Reading, ServiceReading, UpstreamReading
from headrace.policy.breaker.circuit import CircuitState, CircuitView
from headrace.policy.counters import Histogram, UpstreamCounters, add

def view(state):
    return CircuitView(
        state=state, generation=1, calls=4, failures=1, failure_rate=0.25, consecutive_failures=0,
        retry_after_s=0.0, probes_in_flight=0, verdicts=0, slow_calls=0,
    )

class Source:
    def __init__(self, idle=3, state=CircuitState.CLOSED):
        self.counters = UpstreamCounters(lock=threading.Lock())
        self.idle, self.state, self.names, self.served_duration = idle, state, ["billing"], Histogram()
    def __call__(self):
        return Reading(
            upstreams=[
                UpstreamReading(name, self.counters, 2, self.idle, 1, 0.5, 10, 10, view(self.state), 7.0)
                for name in self.names
            ],
            service=ServiceReading({"applied": 1}, "f" * 64, 5.0, {}, {"2xx": 1}, self.served_duration),
        )
    def call(self, times, duration_s=0.02):
        with self.counters.lock:
            add(self.counters.requests, "2xx", times)
            for _ in range(times):
                self.counters.duration.observe(duration_s)
                self.counters.attempts_per_call.observe(2)
                self.counters.deadline_left.observe(4.0)

source = Source()
metrics = Metrics(source)
metrics.install()
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "multiproc"
    directory.mkdir()
    return directory


def run(files: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as prometheus_client decides about the mode when it is imported."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WORKER + code],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(files)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


def pids(files: Path) -> list[str]:
    return sorted({path.stem.rsplit("_", 1)[1] for path in files.glob("gauge_liveall_*.db")})


def total(files: Path, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(files))  # type: ignore[no-untyped-call]
    return registry.get_sample_value(name, labels)


def test_counters_and_histograms_of_all_processes_add_up(files: Path) -> None:
    code = "source.call(3); metrics.flush(); source.call(2, 0.2); metrics.flush(); metrics.flush()"

    run(files, code)
    run(files, code)

    assert total(files, "headrace_requests_total", upstream="billing", outcome="2xx") == 10
    assert total(files, "headrace_request_duration_seconds_count", upstream="billing") == 10
    assert total(files, "headrace_request_duration_seconds_bucket", upstream="billing", le="0.025") == 6
    assert total(files, "headrace_request_duration_seconds_bucket", upstream="billing", le="+Inf") == 10
    assert total(files, "headrace_request_duration_seconds_sum", upstream="billing") == pytest.approx(0.92)
    assert total(files, "headrace_request_attempts_bucket", upstream="billing", le="1.0") == 0
    assert total(files, "headrace_request_attempts_bucket", upstream="billing", le="2.0") == 10
    assert total(files, "headrace_request_attempts_sum", upstream="billing") == 20
    assert total(files, "headrace_deadline_left_seconds_bucket", upstream="billing", le="5.0") == 10
    assert total(files, "headrace_config_reloads_total", result="applied") == 2


def test_inuse_idle_and_waiting_are_live_sums_and_ratios_and_states_per_process(files: Path) -> None:
    run(files, "metrics.flush()")
    run(files, "source.state = CircuitState.OPEN; metrics.flush()")
    first, second = pids(files)

    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 6
    assert total(files, "headrace_pool_connections", upstream="billing", state="inuse") == 4
    assert total(files, "headrace_pool_waiting", upstream="billing") == 2
    for pid in (first, second):
        assert total(files, "headrace_pool_hit_rate", upstream="billing", pid=pid) == 0.5
        assert total(files, "headrace_config_digest", pid=pid) == 0xFFFFFFFFFFFF
    opened = [
        total(files, "headrace_breaker_state", upstream="billing", state="open", pid=pid)
        for pid in (first, second)
    ]
    assert sorted(opened, key=str) == [0.0, 1.0]

    mark_process_dead(first, path=str(files))  # type: ignore[no-untyped-call]

    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 3
    assert total(files, "headrace_pool_hit_rate", upstream="billing", pid=first) is None


def test_a_gauge_whose_upstream_has_left_does_not_keep_its_last_value(files: Path) -> None:
    run(files, "metrics.flush(); source.names = []; metrics.flush()")
    (pid,) = pids(files)

    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 0
    assert total(files, "headrace_breaker_state", upstream="billing", state="closed", pid=pid) == 0
    rate = total(files, "headrace_pool_hit_rate", upstream="billing", pid=pid)
    assert rate is not None
    assert rate != rate  # not a number: nothing to tell, where a series cannot be removed


def test_what_was_counted_before_uninstalling_is_not_lost_and_gauges_end(files: Path) -> None:
    run(files, "source.call(4); metrics.uninstall(); metrics.uninstall(); source.call(1); metrics.flush()")

    assert total(files, "headrace_requests_total", upstream="billing", outcome="2xx") == 4
    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 0


def test_two_instances_in_one_process_add_up_also_when_one_leaves(files: Path) -> None:
    run(
        files,
        "other = Source(idle=10); second = Metrics(other); second.install()\n"
        "source.call(3); other.call(5); metrics.flush(); second.flush(); metrics.flush()\n"
        "other.call(1); second.uninstall(); source.call(1); metrics.flush()",
    )

    assert total(files, "headrace_requests_total", upstream="billing", outcome="2xx") == 10
    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 3


def test_a_forked_child_does_not_count_again_what_its_parent_counted(files: Path) -> None:
    run(
        files,
        "source.call(3)  # not flushed: the fork sees to that\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    source.call(4); metrics.flush(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "source.call(1); metrics.flush()",
    )

    assert total(files, "headrace_requests_total", upstream="billing", outcome="2xx") == 8
    assert total(files, "headrace_request_duration_seconds_count", upstream="billing") == 8
    assert total(files, "headrace_pool_connections", upstream="billing", state="idle") == 6
    assert len(pids(files)) == 2


def test_totals_that_begin_anew_are_added_as_after_a_restart(files: Path) -> None:
    run(
        files,
        "source.call(5); metrics.flush()\n"
        "source.counters = UpstreamCounters(lock=threading.Lock()); source.call(2); metrics.flush()",
    )

    assert total(files, "headrace_requests_total", upstream="billing", outcome="2xx") == 7


def test_no_registry_is_touched_so_that_nothing_shows_twice(files: Path) -> None:
    done = run(
        files, "metrics.flush(); print([m.name for m in REGISTRY.collect() if m.name.startswith('headrace')])"
    )

    assert done.stdout.strip() == "[]"


def test_a_directory_that_is_missing_costs_the_metrics_and_not_the_app(tmp_path: Path) -> None:
    done = run(tmp_path / "missing", "metrics.flush(); metrics.uninstall()")

    assert "config.warning: PROMETHEUS_MULTIPROC_DIR=" in done.stderr
    assert "create it before the workers start" in done.stderr
