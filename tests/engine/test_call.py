"""The whole engine over a scripted transport: no socket, no HTTP library, no server.

What is proved over real sockets elsewhere (`tests/adapters`) is not proved again here: only that the engine
needs nothing of a library but its surface, and gives back what it takes however an attempt ends.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.clock import monotonic
from headrace.engine.call import Call
from headrace.engine.surface import Failure, Streamed, Substitute, Twins
from headrace.errors import (
    CallCancelled,
    CircuitOpenError,
    DeadlineExceeded,
    IdentityMismatch,
    PoolRejected,
    PoolTimeout,
    ResponseTooLarge,
)
from headrace.policy.breaker.circuit import Circuit
from headrace.policy.counters import UpstreamCounters
from headrace.policy.outcome import Fault, condition
from headrace.policy.plan import FallbackPlan, UpstreamPlan
from headrace.policy.record import Record
from headrace.policy.retry import RetryBudget
from headrace.runtime.carrying import record_of
from headrace.runtime.deadlines import deadlines
from headrace.runtime.reports import CircuitReporter
from headrace.runtime.service import ServiceCounters
from headrace.runtime.state import Endpoint, Learned
from headrace.runtime.upstream import Upstream
from headrace.transport.attempt import Attempt
from support.leases import Conn, Rig
from support.plans import BACKOFF, circuit_plan, pool_plan, request, retry_plan, upstream_plan
from support.virtual import constant


@pytest.fixture(autouse=True)
def no_deadline_thread() -> Iterator[None]:
    """It is the process's, started by the first attempt; an instance ends it when it closes, and here is none."""
    yield
    deadlines.stop()


PLAN = upstream_plan(retry=retry_plan(backoff=replace(BACKOFF, base_s=0.001)))


@dataclass(eq=False)
class Answer:
    """An answer, as the scripted library gives it."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    is_closed: bool = False


class Reset(Exception):
    """What the scripted library raises where the connection ended."""


class ScriptedSurface:
    """A library that answers by a script: a status, or an exception to be raised. It holds its lease while it sends."""

    twins = Twins(
        CircuitOpenError,
        DeadlineExceeded,
        PoolTimeout,
        PoolRejected,
        CallCancelled,
        ResponseTooLarge,
        IdentityMismatch,
    )
    owner = None
    owns_all = False

    def __init__(self, *script: int | Answer | Exception) -> None:
        self._script = list(script)
        self.did: list[str] = []

    def send(self, attempt: Attempt) -> Answer:
        attempt.phase = "sent"
        lease, attempt.lease = attempt.lease, None
        assert lease is not None
        reply = self._script.pop(0)
        self.did.append("send" if not isinstance(reply, Exception) else type(reply).__name__)
        if isinstance(reply, Exception):
            raise reply
        lease.conn = lease.conn or Conn()
        attempt.pool.leases.give_back(lease, reusable=True)
        return reply if isinstance(reply, Answer) else Answer(reply)

    def read(self, answer: Answer, attempt: Attempt) -> None:
        self.did.append("read")

    def hand_out(self, answer: Answer) -> None:
        """As it is."""

    def rewind(self) -> bool:
        self.did.append("rewind")
        return True

    def status(self, answer: Answer) -> int:
        return answer.status

    def headers(self, answer: Answer) -> Mapping[str, str]:
        return answer.headers

    def streamed(self, answer: Answer) -> Streamed | None:
        return None

    def close(self, answer: Answer) -> None:
        answer.is_closed = True

    def set_aside(self, answer: Answer) -> Answer | None:
        self.did.append("set aside")
        return answer

    def canned(self, fallback: FallbackPlan) -> Answer:
        assert fallback.status is not None
        return Answer(fallback.status)

    def towards(self, other: Upstream, refused: Upstream) -> Substitute[Answer] | None:
        return None

    def failure(self, error: Exception, attempt: Attempt, *, presents: bool) -> Failure:
        fault = Fault.RESET if isinstance(error, Reset) else Fault.LOCAL_ERROR
        own = None if isinstance(error, Reset) else error
        return Failure(fault, cut=False, error=error, own=own, advice=None)

    def timed_out(self, text: str, attempt: Attempt) -> Exception:
        return TimeoutError(text)

    def broken_off(self, text: str) -> Exception:
        return Reset(text)

    def family(self) -> dict[str, Any]:
        return {}

    def url(self) -> str:
        return "http://billing.internal/"


@dataclass
class Bench:
    """An upstream whose connections are nothing but objects."""

    plan: UpstreamPlan = PLAN

    def __post_init__(self) -> None:
        self.leases = Rig(self.plan.pool).pool
        counters = UpstreamCounters(lock=threading.Lock())
        pool = SimpleNamespace(leases=self.leases, host="billing.internal", port=80)
        self.endpoint = Endpoint(self.plan.base.origin, cast(Any, pool))
        self.learned = Learned(
            circuit=Circuit(self.plan.circuit_breaker, rng=constant(0.5)),
            budget=RetryBudget(self.plan.retry.budget),
            reporter=CircuitReporter("billing", counters, is_observed=False),
            counters=counters,
        )
        self.upstream = Upstream(
            plan=self.plan,
            learned=self.learned,
            endpoint=self.endpoint,
            endpoints=(self.endpoint,),
            mode="enforce",
            digest="digest",
            request_id_header="X-Request-ID",
            deadline_header=None,
            service=ServiceCounters(),
        )

    def call(self, surface: ScriptedSurface, method: str = "GET", **facts: Any) -> Answer:
        return Call(self.upstream, surface, request(method, timeouts=self.plan.timeouts, **facts)).run()

    @property
    def is_idle(self) -> bool:
        """Whether every lease went back."""
        return self.leases.view().inuse == 0


def told(carrier: object) -> Record:
    record = record_of(carrier)
    assert record is not None
    return record


def test_a_happy_call() -> None:
    bench, surface = Bench(), ScriptedSurface(200)

    answer = bench.call(surface)

    assert (answer.status, surface.did) == (200, ["send", "read"])
    assert [one.outcome for one in told(answer).attempts] == ["2xx"]
    assert bench.is_idle
    assert bench.learned.counters.requests == {"2xx": 1}


def test_failures_are_retried_and_the_slot_is_free_between_them() -> None:
    bench, surface = Bench(), ScriptedSurface(Reset(), 503, 200)

    answer = bench.call(surface)

    assert [one.outcome for one in told(answer).attempts] == ["reset", "5xx", "2xx"]
    assert surface.did == ["Reset", "rewind", "send", "read", "rewind", "send", "read"]
    assert bench.is_idle


def test_a_pooled_connection_that_had_died_is_no_attempt() -> None:
    bench, surface = Bench(), ScriptedSurface(200, Reset(), 200)
    bench.call(surface)

    answer = bench.call(surface)

    (attempt,) = told(answer).attempts
    assert (attempt.outcome, attempt.resent) == ("2xx", True)
    assert bench.is_idle


def test_the_last_error_leaves_as_the_library_raised_it() -> None:
    bench, error = Bench(), Reset("gone")

    with pytest.raises(Reset) as caught:
        bench.call(ScriptedSurface(error), "POST")

    assert caught.value is error
    assert told(error).reason.value == "method"
    assert bench.is_idle


def test_an_error_of_the_callers_own_ends_the_call_and_says_nothing_of_the_upstream() -> None:
    bench, error = Bench(), KeyError("body")

    with pytest.raises(KeyError) as caught:
        bench.call(ScriptedSurface(error))

    assert caught.value is error
    assert bench.learned.circuit.view(0.0).calls == 0
    assert bench.is_idle


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, GeneratorExit])
def test_an_interrupt_passes_through_and_the_slot_is_free(interruption: type[BaseException]) -> None:
    bench = Bench()

    class Interrupted(ScriptedSurface):
        def send(self, attempt: Attempt) -> Answer:
            raise interruption

    with pytest.raises(interruption):
        bench.call(Interrupted())

    assert bench.is_idle
    assert bench.learned.counters.requests == {"cancelled": 1}


def test_a_refused_call_gets_the_answer_of_the_file() -> None:
    plan = replace(PLAN, circuit_breaker=circuit_plan(mode="forced_open"))
    fallback = FallbackPlan(upstream=None, status=203, headers=(), body=b"")
    bench, surface = Bench(replace(plan, fallback=fallback)), ScriptedSurface()

    assert bench.call(surface).status == 203
    assert bench.learned.counters.fallbacks == 1


def test_a_refused_call_without_one_ends_in_the_surfaces_twin() -> None:
    bench = Bench(replace(PLAN, circuit_breaker=circuit_plan(mode="forced_open")))

    with pytest.raises(CircuitOpenError):
        bench.call(ScriptedSurface())

    assert bench.learned.counters.requests == {"circuit_open": 1}


def test_a_full_pool_refuses_and_is_no_fault_of_the_upstream() -> None:
    bench = Bench(replace(PLAN, pool=pool_plan(max_connections=1, when_full="reject")))
    held = bench.leases.acquire(0.0)

    with pytest.raises(PoolRejected):
        bench.call(ScriptedSurface())

    bench.leases.give_back(held, reusable=False)
    assert bench.is_idle
    assert bench.learned.circuit.view(0.0).calls == 0


def test_a_streamed_failure_is_set_aside_before_the_next_attempt() -> None:
    bench, surface = Bench(), ScriptedSurface(503, 200)

    bench.call(surface, streamed=True)

    assert surface.did == ["send", "rewind", "set aside", "send"]


@pytest.mark.parametrize(("status", "sends"), [(200, 2), (299, 2), (300, 1), (503, 1)])
def test_retry_after_is_heeded_from_where_it_has_a_meaning(status: int, sends: int) -> None:
    """RFC 9110 §10.2.3: with 3xx, 429 and 503. A file may have a 2xx retried; a Retry-After with it delays nothing."""
    plan = replace(PLAN, retry=replace(PLAN.retry, retry_on=condition([status]), max_attempts=2))
    surface = ScriptedSurface(Answer(status, {"Retry-After": "3600"}), 204)  # longer than headrace waits

    answer = Bench(plan).call(surface)

    assert surface.did.count("send") == sends
    assert answer.status == (204 if sends == 2 else status)


def test_a_failed_answer_has_half_a_second_to_be_set_aside() -> None:
    """One that drips in, or stalls, would hold the slot and the retry for as long as its peer likes."""

    class Dripping(ScriptedSurface):
        def set_aside(self, answer: Answer) -> Answer | None:
            (self.ends_at,) = deadlines.table.values()
            self.began_by = monotonic()
            return super().set_aside(answer)

    surface = Dripping(503, 200)
    earliest = monotonic()

    Bench().call(surface, streamed=True)

    assert earliest + 0.5 <= surface.ends_at <= surface.began_by + 0.5
    assert len(deadlines.table) == 0


def test_the_engine_is_there_without_an_http_library() -> None:
    """Of its own modules none names one; what it stands on (`runtime`) still builds urllib3's pools."""
    script = """
import sys, ast, pathlib, headrace.engine
for file in pathlib.Path(headrace.engine.__file__).parent.glob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [
            one.name for one in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.split(".")[0] not in ("requests", "urllib3", "http"), (file.name, name)
            assert not name.startswith("headrace.transport.stock"), (file.name, name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
