"""Work of an executor as part of the inbound request that hands it in."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import copy_context

import pytest

import headrace
from headrace.policy.retry import RetryAllowance
from headrace.runtime.inbound import Inbound, inbound_var


@pytest.fixture
def pool() -> Iterator[headrace.PropagatingExecutor]:
    with headrace.PropagatingExecutor(ThreadPoolExecutor(2)) as executor:
        yield executor


def as_part_of(request_id: str, act: object) -> object:
    """What *act* returns as part of a request with this id."""

    def bound() -> object:
        inbound_var.set(Inbound(None, None, request_id, RetryAllowance()))  # type: ignore[arg-type]
        return act()  # type: ignore[operator]

    return copy_context().run(bound)


def test_submitted_work_belongs_to_the_request_that_submits_it(pool: headrace.PropagatingExecutor) -> None:
    def submit() -> tuple[str | None, ...]:
        futures = [pool.submit(headrace.request_id) for _ in range(3)]
        return tuple(future.result() for future in futures)

    assert as_part_of("one", submit) == ("one",) * 3
    assert as_part_of("two", submit) == ("two",) * 3  # on the same threads
    assert pool.submit(headrace.request_id).result() is None


def test_raw_executors_know_nothing_of_the_request() -> None:
    """What the wrapper is for."""
    with ThreadPoolExecutor(1) as raw:
        assert as_part_of("one", lambda: raw.submit(headrace.request_id).result()) is None


def test_arguments_and_errors_pass(pool: headrace.PropagatingExecutor) -> None:
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert pool.submit(int, "11", base=2).result() == 3
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result()


def test_mapped_work_belongs_to_the_request_and_may_run_at_once(pool: headrace.PropagatingExecutor) -> None:
    both_are_here = threading.Barrier(2, timeout=30)

    def work(number: int) -> tuple[int, str | None]:
        both_are_here.wait()
        return number, headrace.request_id()

    assert as_part_of("one", lambda: list(pool.map(work, [1, 2]))) == [(1, "one"), (2, "one")]


def test_map_passes_its_timeout_on(pool: headrace.PropagatingExecutor) -> None:
    release = threading.Event()
    with pytest.raises(concurrent.futures.TimeoutError):
        list(pool.map(lambda _: release.wait(30), [1], timeout=0.01))
    release.set()


def test_an_event_loop_runs_work_in_it(pool: headrace.PropagatingExecutor) -> None:
    async def main() -> str | None:
        return await asyncio.get_running_loop().run_in_executor(pool, headrace.request_id)

    assert as_part_of("one", lambda: asyncio.run(main())) == "one"


def test_shutting_it_down_shuts_the_executor_inside_down() -> None:
    inside = ThreadPoolExecutor(1)
    with headrace.PropagatingExecutor(inside):
        pass
    with pytest.raises(RuntimeError, match="shutdown"):
        inside.submit(print)


def test_futures_may_be_cancelled_with_the_shutdown() -> None:
    release, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait(30)

    pool = headrace.PropagatingExecutor(ThreadPoolExecutor(1))
    pool.submit(work)
    queued = pool.submit(print)
    began.wait(30)
    pool.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled()
    release.set()
    pool.shutdown()


def test_an_executor_of_other_processes_is_refused_with_the_reason() -> None:
    with ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="outside of this interpreter"):
        headrace.PropagatingExecutor(processes)
