"""Scripted calls as data: what happens, and what must come of it.

Every driver is run through the same histories and must agree in result, sleeps,
answers set aside and circuit state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from headrace.policy.breaker.circuit import CircuitState
from headrace.policy.decision import EndReason
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import UpstreamPlan
from support.plans import BACKOFF, BUDGET, TIMEOUTS, circuit_plan, retry_plan, upstream_plan

PLAN = upstream_plan(retry=retry_plan(backoff=replace(BACKOFF, base_s=0.2)))
OK = Outcome(status=200, sent=True)
UNAVAILABLE = Outcome(status=503, sent=True)
TOO_MANY = Outcome(status=429, sent=True, retry_after_s=1.5)
RESET = Outcome(fault=Fault.RESET, sent=True)
DIED = Outcome(fault=Fault.RESET, sent=True, started_s=1000.0, reused=True)  # when the clock starts
UNREACHABLE = Outcome(fault=Fault.CONNECT_FAILURE)
TIMEOUT = Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=4.0)
POOL_FULL = Outcome(fault=Fault.POOL_TIMEOUT)


@dataclass(frozen=True)
class Call:
    """One call and what must come of it. The clock starts at 1000 s and the rng always says 0.5.

    Attributes:
        replies: What each attempt takes, seconds, and ends in. An exception is raised out of the attempt.
        after_s: Time that passes before the call, seconds.
        reason: How it must end; None when the exception must come out.
        sleeps: Pauses, seconds.
        set_aside: Answers set aside, count.
        events: Order of things: "send 1", "set aside", "sleep". Only asserted when given.
    """

    replies: Sequence[tuple[float, Outcome | BaseException]]
    reason: EndReason | None
    sleeps: Sequence[float] = ()
    set_aside: int = 0
    after_s: float = 0.0
    method: str = "GET"
    events: Sequence[str] = ()


@dataclass(frozen=True)
class History:
    """Calls through one circuit and budget, one after the other.

    Attributes:
        state: Of the circuit in the end.
        counted: Calls and failures in the circuit's window in the end; a call counts once.
        probes_in_flight: In the end: permits of half-open probes that nobody gave back.
    """

    name: str
    calls: Sequence[Call]
    state: CircuitState
    counted: tuple[int, int]
    probes_in_flight: int = 0
    plan: UpstreamPlan = field(default=PLAN)


_FAIL_FAST = Call([(0.1, RESET)], EndReason.METHOD, method="POST")
_OPENS = [_FAIL_FAST] * 5

HISTORIES: Sequence[History] = (
    History(
        name="success at once",
        calls=[Call([(0.1, OK)], EndReason.SUCCESS, events=["send 1"])],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="two failures, then success",
        calls=[
            Call(
                [(0.1, UNAVAILABLE), (0.1, RESET), (0.1, OK)],
                EndReason.SUCCESS,
                sleeps=[0.1, 0.2],
                set_aside=2,
                events=["send 1", "set aside", "sleep", "send 2", "set aside", "sleep", "send 3"],
            )
        ],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="attempts run out and the last answer is not set aside",
        calls=[Call([(0.1, UNAVAILABLE)] * 3, EndReason.ATTEMPTS, sleeps=[0.1, 0.2], set_aside=2)],
        state=CircuitState.CLOSED,
        counted=(1, 1),
    ),
    History(
        name="no pause: set aside before the next send",
        calls=[
            Call(
                [(0.1, RESET), (0.1, OK)],
                EndReason.SUCCESS,
                set_aside=1,
                events=["send 1", "set aside", "send 2"],
            )
        ],
        state=CircuitState.CLOSED,
        counted=(1, 0),
        plan=upstream_plan(retry=retry_plan(backoff=replace(BACKOFF, base_s=0.0))),
    ),
    History(
        name="a pooled connection that had died: sent again at once, and neither retried nor blamed",
        calls=[
            Call(
                [(0.1, DIED), (0.1, Outcome(status=200, sent=True))],
                EndReason.SUCCESS,
                events=["send 1", "resend"],
            )
        ],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="Retry-After is waited",
        calls=[Call([(0.1, TOO_MANY), (0.1, OK)], EndReason.SUCCESS, sleeps=[1.5], set_aside=1)],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="Retry-After beyond its maximum ends the call",
        calls=[Call([(0.1, replace(TOO_MANY, retry_after_s=31.0))], EndReason.RETRY_AFTER)],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="time-outs until the pause no longer fits the deadline",
        calls=[Call([(4.0, TIMEOUT), (3.85, TIMEOUT)], EndReason.DEADLINE, sleeps=[0.1], set_aside=1)],
        state=CircuitState.CLOSED,
        counted=(1, 1),
        plan=upstream_plan(
            retry=retry_plan(backoff=replace(BACKOFF, base_s=0.2)), timeouts=replace(TIMEOUTS, deadline_s=8.0)
        ),
    ),
    History(
        name="POST is retried only when it was never sent",
        calls=[
            Call(
                [(0.1, UNREACHABLE), (0.1, RESET)], EndReason.METHOD, sleeps=[0.1], set_aside=1, method="POST"
            )
        ],
        state=CircuitState.CLOSED,
        counted=(1, 1),
    ),
    History(
        name="own refusals are neither retried nor blamed",
        calls=[Call([(0.5, POOL_FULL)], EndReason.POOL_TIMEOUT)] * 6,
        state=CircuitState.CLOSED,
        counted=(0, 0),
    ),
    History(
        name="the budget runs dry",
        calls=[
            Call([(0.1, UNAVAILABLE), (0.1, OK)], EndReason.SUCCESS, sleeps=[0.1], set_aside=1),
            Call([(0.1, UNAVAILABLE)], EndReason.BUDGET),
        ],
        state=CircuitState.CLOSED,
        counted=(2, 1),
        plan=upstream_plan(
            retry=retry_plan(
                backoff=replace(BACKOFF, base_s=0.2), budget=replace(BUDGET, ratio=0.0, min_per_second=0.1)
            )
        ),
    ),
    History(
        name="an attempt that hangs and opens the circuit ends its call, the next is refused",
        calls=[
            Call([(0.1, UNAVAILABLE)] * 3, EndReason.ATTEMPTS, sleeps=[0.1, 0.2], set_aside=2),
            Call([(4.0, TIMEOUT)], EndReason.CIRCUIT_OPENED),
            Call([], EndReason.CIRCUIT_OPEN),
        ],
        state=CircuitState.OPEN,
        counted=(2, 2),
        plan=upstream_plan(
            circuit=circuit_plan(consecutive_failures=2),
            retry=retry_plan(backoff=replace(BACKOFF, base_s=0.2)),
        ),
    ),
    History(
        name="recovery: probes close the circuit",
        calls=[
            *_OPENS,
            Call([], EndReason.CIRCUIT_OPEN, after_s=4.5),
            Call([(0.1, OK)], EndReason.SUCCESS, after_s=0.5),
            Call([(0.1, OK)], EndReason.SUCCESS),
            Call([(0.1, OK)], EndReason.SUCCESS),
            Call([(0.1, OK)], EndReason.SUCCESS),
        ],
        state=CircuitState.CLOSED,
        counted=(1, 0),
    ),
    History(
        name="a failed probe opens the circuit again",
        calls=[
            *_OPENS,
            Call([(0.1, UNAVAILABLE)] * 3, EndReason.ATTEMPTS, sleeps=[0.1, 0.2], set_aside=2, after_s=5.0),
        ],
        state=CircuitState.OPEN,
        counted=(5, 5),
    ),
    History(
        name="a probe the caller interrupts gives its place back",
        calls=[*_OPENS, Call([(0.1, KeyboardInterrupt())], None, after_s=5.0)],
        state=CircuitState.HALF_OPEN,
        counted=(5, 5),
    ),
    History(
        name="a bug in the adapter comes out and is not blamed on the upstream",
        calls=[Call([(0.1, ZeroDivisionError())], None)] * 6,
        state=CircuitState.CLOSED,
        counted=(0, 0),
    ),
)
