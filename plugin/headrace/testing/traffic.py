"""Many calls at once on a virtual clock: they begin at their instants, and none waits for another."""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Protocol, TypeAlias, assert_never

from headrace.policy.breaker.permit import Verdict
from headrace.policy.decision import Divert, Finish, Refuse, Renew, Resend, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.frozen import frozen
from headrace.policy.outcome import Outcome
from headrace.testing.clock import VirtualClock

Steps: TypeAlias = Generator[float, None, Finish | Refuse]
"""A call under way: yields how long it has nothing to do, seconds; returns how it ended."""


@frozen
class Traffic:
    """What has become of many calls.

    Attributes:
        calls: How many were made.
        failed: Those that ended without an answer, or with one that `failure_on` names.
        refused: Those that the circuit refused before anything was sent.
        took_s: From the first to the end of the last, seconds.
    """

    calls: int
    failed: int
    refused: int
    took_s: float

    @property
    def lost(self) -> float:
        """Share of calls that failed or were refused, in [0, 1]."""
        return (self.failed + self.refused) / self.calls


class Meets(Protocol):
    """What tells an attempt its outcome, without waiting for it."""

    def meet(self, send: Send | Resend) -> Outcome:
        """What becomes of the attempt that begins now."""


def steps(exchange: Exchange, attempt: Meets, clock: Callable[[], float]) -> Steps:
    """Drive *exchange* to its end, as `engine.blocking.run` does. The code that steps does the waiting."""
    try:
        while True:
            decision = exchange.decide(clock())
            match decision:
                case Send() | Resend():
                    outcome = attempt.meet(decision)
                    yield outcome.wait_s + outcome.duration_s
                    exchange.record(outcome, clock())
                case Renew():
                    exchange.renewed(False, clock())  # no file is read
                case Sleep():
                    yield decision.delay_s
                case Divert():
                    return decision.otherwise  # the fallback is no answer of this upstream
                case Finish() | Refuse():
                    return decision
                case _:
                    assert_never(decision)
    finally:
        exchange.abandon(clock())


def play(
    begin: Callable[[], tuple[Exchange, Meets]], clock: VirtualClock, *, every_s: float, times: int
) -> Traffic:
    """Make *times* calls, one every *every_s* seconds from now, to the end of the last. Advances *clock*.

    Args:
        begin: A new call, at the instant of asking.
    """
    began_s, begun, failed, refused = clock.now, 0, 0, 0
    # When each call goes on, and the order in which that was set.
    waiting: list[tuple[float, int, Steps, Exchange]] = []
    told = 0
    while waiting or begun < times:
        begins_at = began_s + begun * every_s
        if begun < times and (not waiting or begins_at <= waiting[0][0]):
            clock.advance(max(0.0, begins_at - clock.now))
            exchange, attempt = begin()
            under_way = steps(exchange, attempt, clock)
            begun += 1
        else:
            at_s, _, under_way, exchange = heappop(waiting)
            clock.advance(max(0.0, at_s - clock.now))
        try:
            told += 1
            heappush(waiting, (clock.now + next(under_way), told, under_way, exchange))
        except StopIteration as end:
            if isinstance(end.value, Refuse):
                refused += 1
            else:
                failed += exchange.outcomes[-1].fault is not None or exchange.verdicts[-1] is Verdict.FAILURE
    return Traffic(calls=times, failed=failed, refused=refused, took_s=clock.now - began_s)
