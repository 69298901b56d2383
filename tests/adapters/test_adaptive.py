"""An adaptive pool under real calls: it grows with the callers, and says so."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from headrace.policy.plan import AdaptivePlan
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.waiting import wait_until

ADAPTIVE = (
    "    pool: {max_connections: 6, adaptive: {min: 2, grow_when_waiting: 0}}\n    timeouts: {acquire: 10s}\n"
)


def at_once(url: str, callers: int) -> list[int]:
    """Status codes of *callers* threads that call at the same time."""
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(requests.get(url).status_code))
        for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return statuses


def test_the_pool_grows_with_its_callers_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="headrace")
    with FaultServer() as server, running(tmp_path, rules(server.url, ADAPTIVE)) as hr:
        assert hr.status()["upstreams"]["billing"]["pool"]["target_size"] == 2
        leases, all_are_there = hr.snapshot.upstream("billing").endpoint.pool.leases, threading.Event()

        def once_all_are_there(_: object) -> Answer:  # three are answered, and one waits
            wait_until(
                lambda: all_are_there.is_set() or (len(server.requests) == 3 and leases.view().waiting == 1)
            )
            all_are_there.set()
            return Answer()

        server.always(once_all_are_there)

        assert at_once(server.url, 4) == [200] * 4

        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["target_size"], pool["max_connections"]) == (3, 6)
        assert server.connections == 3
        told = [record.getMessage() for record in caplog.records if "pool.resized" in record.getMessage()]
        assert len(told) == 1
        assert 'upstream "billing": pool grown from 2 to 3 connections: waiting (1 waiting' in told[0]


def test_the_size_that_the_pool_may_have_now_is_a_metric(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    file = tmp_path / "upstreams.yaml"
    file.write_text(
        "upstreams:\n"
        "  fixed: {base_url: http://a.test, pool: {max_connections: 7}}\n"
        "  adaptive: {base_url: http://b.test, pool: {max_connections: 7, adaptive: {min: 3}}}\n"
    )
    with headrace.Headrace(file, registry=registry):
        sizes = [
            registry.get_sample_value("headrace_pool_target_size", {"upstream": name})
            for name in ("fixed", "adaptive")
        ]

    assert sizes == [7, 3]


def test_housekeeping_looks_after_the_size(tmp_path: Path) -> None:
    with running(
        tmp_path, rules("http://a.test", ADAPTIVE.replace("min: 2", "min: 2, rate_window: 100ms"))
    ) as hr:
        sizer = hr.snapshot.upstream("billing").endpoint.sizer
        assert sizer is not None
        hr._reloader.tick(1e9)
        hr._reloader.tick(1e9 + 1)

        assert sizer.baseline_rps == 0.0


def test_a_pool_of_fixed_size_has_no_sizer(tmp_path: Path) -> None:
    with running(tmp_path, rules("http://a.test")) as hr:
        assert hr.snapshot.upstream("billing").endpoint.sizer is None
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.on_enqueue is None


def test_an_edit_of_the_rule_is_in_force_at_once(tmp_path: Path) -> None:
    with running(tmp_path, rules("http://a.test", ADAPTIVE)) as hr:
        (tmp_path / "upstreams.yaml").write_text(rules("http://a.test", ADAPTIVE.replace("min: 2", "min: 4")))

        assert hr.reload() == "applied"

        assert hr.status()["upstreams"]["billing"]["pool"]["target_size"] == 4
        plan = hr.snapshot.upstream("billing").plan.pool.adaptive
        assert isinstance(plan, AdaptivePlan)
        assert plan.min == 4
