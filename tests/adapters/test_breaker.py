"""The breaker against a real server: who gets through half open, what a hung and a cancelled probe cost."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

import headrace
from support.faultserver import Answer, FaultServer, Silence
from support.governed import rules, running
from support.waiting import wait_until

QUICK = (
    "    retry: {max_attempts: 1}\n"
    "    timeouts: {attempt: %(attempt)s}\n"
    "    circuit_breaker:\n"
    "      consecutive_failures: 2\n"
    "      open_for: {base: 300ms, max: 300ms, jitter: 0}\n"
    "      half_open: {%(half_open)s}\n"
)


def body(half_open: str = "max_probes: 3", attempt: str = "4s") -> str:
    return QUICK % {"half_open": half_open, "attempt": attempt}


def opened(hr: headrace.Headrace, server: FaultServer) -> None:
    """Open the circuit and wait until it may be half open."""
    server.next(Answer(503), Answer(503))
    for _ in range(2):
        hr.upstream("billing").get("/")
    assert state(hr) == "open"  # until the next call asks
    circuit = hr.snapshot.upstream("billing").learned.circuit
    wait_until(lambda: circuit.view(time.monotonic()).retry_after_s == 0.0)


def state(hr: headrace.Headrace) -> str:
    return hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"]  # type: ignore[no-any-return]


def test_of_twenty_callers_at_a_half_open_circuit_exactly_max_probes_arrive(tmp_path: Path) -> None:
    """failures.md 1."""
    with FaultServer() as server, running(tmp_path, rules(server.url, body(attempt="15s"))) as hr:
        opened(hr, server)
        before = len(server.requests)
        refused: list[None] = []

        def answers_once_all_others_are_refused(_: object) -> Answer:
            wait_until(lambda: len(refused) == 17, timeout_s=10)
            return Answer()

        server.always(answers_once_all_others_are_refused)
        start = threading.Barrier(20)

        def call(_: int) -> int | str:
            start.wait(20)
            try:
                return hr.upstream("billing").get("/").status_code
            except headrace.CircuitOpenError as error:
                refused.append(None)
                return str(error)

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(call, range(20)))

        assert len(server.requests) - before == 3
        assert answers.count(200) == 3
        refusals = [answer for answer in answers if answer != 200]
        assert all("half open with no place for another probe: 3 under way" in str(text) for text in refusals)
        assert state(hr) == "closed"


def test_a_hung_probe_frees_itself_and_the_circuit_recovers(tmp_path: Path) -> None:
    """Its call goes on, for its own timeout allows that; the probe's lease alone is over.

    failures.md 2.
    """
    hangs = body("max_probes: 1, probe_timeout: 4s").replace("    timeouts: {attempt: 4s}\n", "")
    with FaultServer() as server, running(tmp_path, rules(server.url, hangs)) as hr:
        circuit = hr.snapshot.upstream("billing").learned.circuit
        opened(hr, server)
        server.next(Answer(delay_s=7))
        hung = threading.Thread(target=lambda: requests.get(server.url, timeout=10))
        hung.start()
        server.wait_for(lambda: len(server.requests) == 3)
        began, answer = time.monotonic(), None

        while answer is None and time.monotonic() - began < 30:
            try:
                answer = requests.get(server.url, timeout=10)
            except headrace.CircuitOpenError as error:
                time.sleep(min(error.retry_after_s + 0.01, 1.0))

        assert answer is not None
        assert answer.status_code == 200
        reasons = [transition.reason.value for transition in circuit.history]
        assert reasons[-3:] == ["probe expired", "open_for elapsed", "probes succeeded"]
        hung.join(10)
        assert state(hr) == "closed"  # its late answer changes nothing


class TimeLimit(BaseException):
    """As Celery's soft time limit, out of a signal handler."""


def test_a_cancelled_probe_gives_its_place_back(tmp_path: Path) -> None:
    """failures.md 3. failures.md 8: nothing of ours eats what the signal raised."""

    def interrupt(*_: object) -> None:
        raise TimeLimit

    with FaultServer() as server, running(tmp_path, rules(server.url, body("max_probes: 1"))) as hr:
        opened(hr, server)
        server.next(Silence())
        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        try:
            with pytest.raises(TimeLimit):
                hr.upstream("billing").get("/")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        view = hr.snapshot.upstream("billing").learned.circuit.view(time.monotonic())
        assert (view.state.value, view.probes_in_flight, view.verdicts) == ("half_open", 0, 0)
        assert hr.upstream("billing").get("/").status_code == 200
        assert state(hr) == "closed"


def test_slow_answers_open_the_circuit_and_say_so(tmp_path: Path) -> None:
    slow = "    circuit_breaker: {window: {type: count, size: 4}, slow_call: {duration: 500ms, rate_threshold: 0.5}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, slow)) as hr:
        server.next(Answer(), Answer(), Answer(delay_s=0.6), Answer(delay_s=0.6))
        for _ in range(4):
            assert hr.upstream("billing").get("/").status_code == 200

        with pytest.raises(
            headrace.CircuitOpenError, match=r"slow-call rate 0\.50 over 4 calls, threshold 0\.5"
        ):
            hr.upstream("billing").get("/")


def test_after_closing_calls_come_back_by_and_by(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body("max_probes: 1, ramp: 1h"))) as hr:
        opened(hr, server)
        for _ in range(2):  # the probe, and the first call after it
            hr.upstream("billing").get("/")

        with pytest.raises(headrace.CircuitOpenError, match="letting through 0% of calls") as caught:
            hr.upstream("billing").get("/")

        assert 3000 < caught.value.retry_after_s <= 3600
        assert state(hr) == "closed"
