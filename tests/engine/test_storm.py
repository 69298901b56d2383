"""A retry storm in virtual time: 100 callers, an upstream that fails whole for 10 s, no breaker to help."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import Finish, Refuse, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import BudgetPlan, UpstreamPlan
from headrace.policy.retry import RetryBudget
from support.plans import BUDGET, circuit_plan, request, retry_plan, upstream_plan
from support.storm import SIZE_S, worst

CLIENTS = 100
ANSWERS_AFTER_S = 0.005
FAILS_FROM_S, FAILS_TO_S, ENDS_S = 25.0, 35.0, 60.0


@dataclass
class Storm:
    """One run. `firsts` and `retries` are when attempts were sent, in order."""

    plan: UpstreamPlan
    think_s: float
    fault: Fault | None = None
    firsts: list[float] = field(default_factory=list)
    retries: list[float] = field(default_factory=list)

    def run(self) -> Storm:
        """Each client calls, takes a pause, calls again; every step is an event on a heap."""
        rng = random.Random(7)
        circuit = Circuit(self.plan.circuit_breaker, rng=rng.random)
        budget = RetryBudget(self.plan.retry.budget)
        order = count()
        events: list[tuple[float, int, Exchange | None, Outcome | None]] = []

        def at(instant: float, exchange: Exchange | None, outcome: Outcome | None = None) -> None:
            heapq.heappush(events, (instant, next(order), exchange, outcome))

        for _ in range(CLIENTS):
            at(rng.uniform(0.0, 2 * self.think_s), None)
        while events:
            now, _, exchange, outcome = heapq.heappop(events)
            if exchange is None:
                if now > ENDS_S:
                    continue
                exchange = self._call(circuit, budget, now, rng)
            if outcome is not None:
                exchange.record(outcome, now)
            match exchange.decide(now):
                case Send(attempt):
                    (self.firsts if attempt == 1 else self.retries).append(now)
                    at(now + ANSWERS_AFTER_S, exchange, self._answer(now))
                case Sleep(delay_s):
                    at(now + delay_s, exchange)
                case Finish() | Refuse():
                    exchange.abandon(now)
                    at(now + rng.uniform(0.0, 2 * self.think_s), None)
        return self

    def _call(self, circuit: Circuit, budget: RetryBudget, now: float, rng: random.Random) -> Exchange:
        return Exchange(
            self.plan,
            circuit,
            budget,
            request(timeouts=self.plan.timeouts),
            now=now,
            rng=rng.random,
        )

    def _answer(self, now: float) -> Outcome:
        if not FAILS_FROM_S <= now < FAILS_TO_S:
            return Outcome(status=200, sent=True)
        return Outcome(status=503, sent=True) if self.fault is None else Outcome(fault=self.fault, sent=True)


def storm_plan(budget: BudgetPlan = BUDGET, max_attempts: int = 4) -> UpstreamPlan:
    return upstream_plan(
        circuit=circuit_plan(mode="disabled"), retry=retry_plan(budget=budget, max_attempts=max_attempts)
    )


@pytest.mark.parametrize("think_s", [0.2, 1.0, 10.0], ids=["500 calls/s", "100 calls/s", "10 calls/s"])
@pytest.mark.parametrize("fault", [None, Fault.RESET], ids=["503", "reset"])
def test_in_any_ten_seconds_of_a_storm_retries_stay_within_the_budget(
    think_s: float, fault: Fault | None
) -> None:
    """failures.md 12."""
    storm = Storm(storm_plan(), think_s, fault).run()
    tightest = worst(storm.firsts, storm.retries)
    assert tightest is not None

    assert tightest.holds, tightest
    assert len(storm.retries) > 30  # more than the reserve: calls did earn some
    assert storm.retries[-1] < FAILS_TO_S + storm.plan.retry.backoff.max_s  # it ends with what caused it


def test_a_storm_without_a_budget_breaks_that_bound() -> None:
    storm = Storm(storm_plan(replace(BUDGET, ratio=1.0, min_per_second=1e5)), 1.0).run()
    tightest = worst(storm.firsts, storm.retries)
    assert tightest is not None
    failing = [at for at in storm.firsts if FAILS_FROM_S <= at < FAILS_TO_S - SIZE_S / 10]

    assert not tightest.holds
    assert len(storm.retries) > 2.9 * len(failing)  # four attempts each: what everybody else does
