"""`handle.protect`: an upstream's circuit around what goes neither through requests nor through urllib3."""

from __future__ import annotations

import functools
import os
import pickle
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

import headrace
from headrace.policy.breaker.circuit import CircuitState
from support.faultserver import FaultServer
from support.forks import in_child
from support.governed import rules, running

URL = "http://127.0.0.1:1"
BREAKER = "    circuit_breaker: {{consecutive_failures: 2{}}}\n"


def body(more: str = "") -> str:
    return BREAKER.format(more)


class Refusal(Exception):
    """An answer, as a driver gives it."""


def fails(*_: object) -> None:
    raise OSError("gone")


def circuit_of(hr: headrace.Headrace) -> Any:
    return hr.snapshot.upstream("billing").learned.circuit


def told(hr: headrace.Headrace) -> dict[str, int]:
    return dict(hr.status()["upstreams"]["billing"]["protected"])


def test_failures_open_the_circuit_and_the_next_call_is_refused_unmade(tmp_path: Path) -> None:
    with running(tmp_path, rules(URL, body())) as hr:
        calls = []

        @hr.upstream("billing").protect
        def fetch(number: int) -> int:
            """Fetch one."""
            calls.append(number)
            if number > 1:
                raise OSError(number)
            return number

        assert fetch(1) == 1
        for number in (2, 3):
            with pytest.raises(OSError, match=str(number)):
                fetch(number)
        with pytest.raises(headrace.CircuitOpenError) as caught:
            fetch(4)

        assert calls == [1, 2, 3]
        assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch one.")
        error = caught.value
        assert error.upstream == "billing"
        assert error.retry_after_s > 0
        assert error.headrace.reason == "circuit_open"  # type: ignore[attr-defined]
        assert pickle.loads(pickle.dumps(error)).headrace == error.headrace  # type: ignore[attr-defined]
        assert told(hr) == {"success": 1, "failure": 2, "refused": 1}
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["refused"] == 1


def test_it_shares_the_circuit_with_calls_of_requests(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body())) as hr:
        for _ in range(2):
            with pytest.raises(OSError):
                hr.upstream("billing").protect(fails)()
        with pytest.raises(headrace.CircuitOpenError):
            hr.upstream("billing").get("/")
        assert server.first_lines == 0


@pytest.mark.parametrize(
    ("said", "raised", "verdict"),
    [
        pytest.param({}, ValueError(), "failure", id="any exception, unless it is said"),
        pytest.param({"failure_on": OSError}, OSError(), "failure", id="named"),
        pytest.param({"failure_on": (OSError, KeyError)}, KeyError(), "failure", id="one of several"),
        pytest.param(
            {"failure_on": OSError}, ValueError(), "ignored", id="not named: nothing of the upstream"
        ),
        pytest.param({"success_on": Refusal}, Refusal(), "success", id="an answer"),
        pytest.param(
            {"failure_on": lambda error: "x" in str(error)}, ValueError("x"), "failure", id="function"
        ),
        pytest.param(
            {"failure_on": lambda error: "x" in str(error)}, ValueError("y"), "ignored", id="function, no"
        ),
        pytest.param({}, KeyboardInterrupt(), "ignored", id="an interrupt"),
        pytest.param({}, GeneratorExit(), "ignored", id="cancelled"),
        pytest.param({}, TimeoutError(), "ignored", id="cut before blame_after"),
        pytest.param(
            {}, headrace.DeadlineExceeded("over"), "ignored", id="cut likewise, by a deadline of ours"
        ),
        pytest.param({}, headrace.CircuitOpenError("open"), "ignored", id="refused by a circuit of ours"),
        pytest.param({}, headrace.PoolRejected("full"), "ignored", id="refused by a pool of ours"),
        pytest.param({}, headrace.CallCancelled("left"), "ignored", id="its client has left"),
    ],
)
def test_what_an_exception_says_of_the_upstream(
    tmp_path: Path, said: dict[str, Any], raised: BaseException, verdict: str
) -> None:
    with running(tmp_path, rules(URL, body())) as hr:

        @hr.upstream("billing").protect(**said)
        def call() -> None:
            raise raised

        with pytest.raises(type(raised)) as caught:
            call()
        assert caught.value is raised
        assert told(hr) == {verdict: 1}


def test_a_timeout_that_had_its_time_is_a_failure_and_slow_successes_open_it_too(tmp_path: Path) -> None:
    slow = body(", minimum_calls: 2, blame_after: 10ms, slow_call: {duration: 20ms, rate_threshold: 0.5}")
    with running(tmp_path, rules(URL, slow)) as hr:

        def late(error: Exception | None) -> None:
            time.sleep(0.03)
            if error is not None:
                raise error

        call = hr.upstream("billing").protect(late)
        with pytest.raises(TimeoutError):
            call(TimeoutError())
        assert told(hr) == {"failure": 1}
        call(None)
        assert circuit_of(hr).state is CircuitState.OPEN


def test_a_probe_that_is_interrupted_gives_its_place_back(tmp_path: Path) -> None:
    text = rules(URL, body(", open_for: {base: 10ms}, half_open: {max_probes: 1}"))
    with running(tmp_path, text) as hr:
        outcome: list[BaseException | None] = [OSError(), OSError(), KeyboardInterrupt(), None]

        @hr.upstream("billing").protect
        def call() -> None:
            error = outcome.pop(0)
            if error is not None:
                raise error

        for _ in range(2):
            with pytest.raises(OSError):
                call()
        time.sleep(0.05)
        with pytest.raises(KeyboardInterrupt):
            call()
        call()
        assert circuit_of(hr).state is CircuitState.CLOSED


def test_a_probe_that_is_refused_within_by_the_same_circuit_gives_its_place_back(tmp_path: Path) -> None:
    """A protected function may call the same upstream through requests; headrace's own no is not the upstream's."""
    more = ", open_for: {base: 10ms, max: 10ms, jitter: 0}, half_open: {max_probes: 1}"
    with FaultServer() as server, running(tmp_path, rules(server.url, body(more))) as hr:
        billing = hr.upstream("billing")
        for _ in range(2):
            with pytest.raises(OSError):
                billing.protect(fails)()
        time.sleep(0.02)
        with pytest.raises(headrace.CircuitOpenError, match="half open"):
            billing.protect(lambda: billing.get("/"))()
        assert circuit_of(hr).state is CircuitState.HALF_OPEN
        assert billing.get("/").ok
        assert circuit_of(hr).state is CircuitState.CLOSED


def test_where_the_rules_only_observe_or_are_off_everything_is_made(tmp_path: Path) -> None:
    for mode, counted in (("observe", {"failure": 2}), ("off", {})):
        with running(tmp_path, rules(URL, body() + f"    mode: {mode}\n")) as hr:
            call = hr.upstream("billing").protect(fails)
            for _ in range(4):
                with pytest.raises(OSError):
                    call()
            assert told(hr) == counted
            observed = hr.status()["upstreams"]["billing"]["observed"]
            assert observed == ({"refused": 2} if mode == "observe" else {})


def test_a_reload_is_followed_and_a_name_that_left_is_unknown(tmp_path: Path) -> None:
    with running(tmp_path, rules(URL, body())) as hr:
        call = hr.upstream("billing").protect(fails)
        with pytest.raises(OSError):
            call()
        (tmp_path / "upstreams.yaml").write_text(rules(URL, BREAKER.format("").replace("2", "1")))
        hr.reload()
        with pytest.raises(OSError):
            call()
        with pytest.raises(headrace.CircuitOpenError):  # one failure is enough now
            call()
        (tmp_path / "upstreams.yaml").write_text(rules(URL, name="other"))
        hr.reload()
        with pytest.raises(headrace.UnknownUpstream):
            call()
    with pytest.raises(headrace.HeadraceError):
        hr.upstream("other").protect(fails)()


def test_every_call_of_many_threads_is_counted(tmp_path: Path) -> None:
    quiet = "    circuit_breaker: {mode: disabled}\n"
    with running(tmp_path, rules(URL, quiet)) as hr:

        def odd(number: int) -> None:
            if number % 2:
                raise OSError

        call = hr.upstream("billing").protect(odd)

        def work() -> None:
            for number in range(2000):
                try:
                    call(number)
                except OSError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told(hr) == {"success": 8000, "failure": 8000}
        view = circuit_of(hr).view(time.monotonic())
        assert (view.calls, view.failures) == (16000, 8000)
        text = generate_latest(hr._metrics._registry).decode()
        assert 'headrace_protected_calls_total{outcome="failure",upstream="billing"} 8000.0' in text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_by_a_circuit_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path, rules(URL, body())) as hr:
        call = hr.upstream("billing").protect(fails)
        for _ in range(2):
            with pytest.raises(OSError):
                call()

        def calls() -> None:
            with pytest.raises(OSError):  # its own circuit is closed
                call()

        assert in_child(calls) == 0
        with pytest.raises(headrace.CircuitOpenError):
            call()


async def coroutine() -> None:
    """No plain function."""


async def stream() -> AsyncIterator[int]:
    yield 1


def generator() -> Iterator[int]:
    yield 1


class Callable_:
    async def __call__(self) -> None:
        """A coroutine in disguise."""


@pytest.mark.parametrize(
    "function",
    [coroutine, stream, generator, Callable_(), functools.partial(coroutine), 3],
    ids=["coroutine", "asynchronous generator", "generator", "coroutine in disguise", "partial", "number"],
)
def test_what_is_over_before_its_work_begins_is_refused(tmp_path: Path, function: Any) -> None:
    with running(tmp_path, rules(URL)) as hr, pytest.raises(TypeError, match="protect"):
        hr.upstream("billing").protect(function)


@pytest.mark.parametrize("said", [KeyboardInterrupt, (OSError, BaseException), "OSError", 3], ids=repr)
def test_what_names_no_exceptions_is_refused(tmp_path: Path, said: Any) -> None:
    with running(tmp_path, rules(URL)) as hr, pytest.raises(TypeError, match="does not say which exceptions"):
        hr.upstream("billing").protect(fails, failure_on=said)
