"""KeyboardInterrupt at every point of a call: Ctrl-C, Celery's soft time limit, a greenlet that is killed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

import headrace
from headrace.runtime.deadlines import deadlines
from headrace.transport.attempt import current_attempt
from support.faultserver import FaultServer
from support.governed import rules, running
from support.interrupts import interrupt_storm, interrupted_at, interrupted_within
from support.waiting import wait_until

OBSERVING = ("headrace/engine/shadow.py", "headrace/engine/rehearsal.py")


def streamed(hr: headrace.Headrace, url: str) -> None:
    with requests.get(url, stream=True) as response:
        for _ in response.iter_content(1):
            pass


# An interrupt inside socket() or a finalizer of the standard library leaves the rest to the collector, with a warning.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda hr, url: hr.upstream("billing").urlopen("GET", "/"), id="handle.urlopen"),
        pytest.param(lambda hr, url: requests.get(url), id="requests.get"),
        pytest.param(streamed, id="streamed"),
    ],
)
def test_an_interrupt_anywhere_in_a_call_costs_no_slot(
    tmp_path: Path, call: Callable[[headrace.Headrace, str], object]
) -> None:
    """failures.md 21."""
    only_one = "    pool: {max_connections: 1}\n    timeouts: {acquire: 1s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, only_one)) as hr:
        call(hr, server.url)
        lost, stuck = [], []
        point = 0
        while True:
            point += 5  # of some thousands; with 1 it takes half a minute and holds as well
            if not interrupted_at(point, lambda: call(hr, server.url)):
                break
            if current_attempt.get() is not None:
                stuck.append(point)
                current_attempt.set(None)
            pool = hr.snapshot.upstream("billing").endpoint.pool.leases
            if pool.view().inuse:
                gc.collect()
            if pool.view().inuse:
                lost.append(point)
                for lease in list(pool._inuse):
                    pool.give_back(lease, reusable=False)

        assert (lost, stuck) == ([], [])
        wait_until(lambda: not deadlines.table)  # the thread clears what an interrupt left there
        assert point > 200
        assert requests.get(server.url).status_code == 200
    gc.collect()  # here, where its warnings are expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_in_an_observed_call_is_not_counted_as_a_call_under_way_for_ever(
    tmp_path: Path,
) -> None:
    """failures.md 21. `inuse` would stay wrong, and calls would be foretold to find the pool full."""
    rehearsed = "    mode: observe\n    pool: {max_connections: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, rehearsed)) as hr:
        lost = []
        point = 0
        while True:
            point += 1
            # In our own code: inside stock's queue it leaves a lock locked, and stock then waits for that for good.
            if not interrupted_within(OBSERVING, point, lambda: requests.get(server.url))[0]:
                break
            if hr.status()["upstreams"]["billing"]["pool"]["inuse"]:
                gc.collect()
            if hr.status()["upstreams"]["billing"]["pool"]["inuse"]:
                lost.append(point)
                break
        assert lost == []
        assert point > 20
        requests.get(server.url)
        assert hr.status()["upstreams"]["billing"]["observed"] == {}
    gc.collect()  # here, where its warnings are expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_interrupts_at_random_points_of_all_kinds_of_calls_leave_the_pools_right(
    tmp_path: Path, seed: int
) -> None:
    """failures.md 59. `tests/bench/interrupts.py` does it for as many seeds as one likes."""
    assert interrupt_storm(tmp_path, seed, interrupts=200) == []
    gc.collect()
