"""Who gets the fallback: the whole table, and what an exchange makes of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.decision import Divert, EndReason, Finish, Refuse, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.fallback import stands_in
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import FallbackPlan
from headrace.policy.retry import RetryBudget
from support.plans import request, upstream_plan
from support.virtual import constant

SPARE = FallbackPlan(status=200, headers=(), body=b"", upstream="spare")
CANNED = FallbackPlan(status=203, headers=(), body=b"[]", upstream=None)
RESET = Outcome(Fault.RESET, sent=True)
NEVER_SENT = Outcome(Fault.CONNECT_FAILURE)
UNAVAILABLE = Outcome(status=503, sent=True)
FACTS = ("has_answer", "was_tried", "may_have_arrived", "replayable", "method_is_listed")


def allowed(fallback: FallbackPlan) -> set[frozenset[str]]:
    """Each set of facts under which *fallback* stands in."""
    return {
        frozenset(name for name, holds in zip(FACTS, row, strict=True) if holds)
        for row in product([False, True], repeat=len(FACTS))
        if stands_in(fallback, **dict(zip(FACTS, row, strict=True))) is not False
    }


def test_the_answer_of_the_file_stands_in_for_every_error_and_for_no_answer() -> None:
    assert allowed(CANNED) == {
        frozenset(name for name, holds in zip(FACTS[1:], row, strict=True) if holds)
        for row in product([False, True], repeat=4)
    }


def test_another_upstream_is_asked_where_nothing_can_be_done_twice() -> None:
    nothing_was_tried = [(), ("replayable",), ("method_is_listed",), ("replayable", "method_is_listed")]
    tried = ("was_tried", "replayable")
    arrived = ("may_have_arrived", "method_is_listed")
    assert allowed(SPARE) == {
        *map(frozenset, nothing_was_tried),
        frozenset(tried),
        frozenset((*tried, "method_is_listed")),
        frozenset((*tried, *arrived)),
        # With a try before this one, which a caller who retries has made:
        frozenset(arrived),
        frozenset((*arrived, "replayable")),
    }


def begun(fallback: FallbackPlan | None, method: str = "GET", after: Exchange | None = None) -> Exchange:
    """A call that may repeat whatever it likes, at 0 s."""
    plan = replace(upstream_plan(), fallback=fallback)
    return Exchange(
        plan,
        Circuit(plan.circuit_breaker, rng=constant(0.5)),
        RetryBudget(plan.retry.budget),
        request(method, timeouts=plan.timeouts, keyed=True),
        now=0.0,
        rng=constant(0.5),
        nth_try=0 if after is None else 2,
        after=after,
    )


def shut(exchange: Exchange) -> None:
    plan = exchange._plan.circuit_breaker
    exchange._circuit.apply(replace(plan, mode="forced_open"), 0.0)


def refused_after(exchange: Exchange, outcome: Outcome, *, body_is_spent: bool = False) -> object:
    """The decision after one attempt that ended in *outcome* and a pause in which the circuit opened."""
    exchange.decide(0.0)
    exchange.record(outcome, 0.0)
    assert isinstance(exchange.decide(0.0), Sleep)
    if body_is_spent:
        exchange.body_is_spent()
    shut(exchange)
    return exchange.decide(1.0)


def test_a_call_that_is_refused_at_its_start_is_diverted_and_stays_so() -> None:
    exchange = begun(SPARE, "POST")
    shut(exchange)

    divert = exchange.decide(0.0)

    assert divert == Divert("spare", Refuse(EndReason.CIRCUIT_OPEN, 60.0))
    assert (divert.reason, exchange.reason) == (EndReason.CIRCUIT_OPEN, EndReason.CIRCUIT_OPEN)
    assert exchange.refused is not None
    assert exchange.decide(0.0) is divert


def test_a_call_without_a_fallback_is_not_diverted() -> None:
    exchange = begun(None)
    shut(exchange)
    assert exchange.decide(0.0) == Refuse(EndReason.CIRCUIT_OPEN, 60.0)


ENDS = Finish(EndReason.CIRCUIT_OPEN)


@pytest.mark.parametrize(
    ("fallback", "method", "outcome", "expected"),
    [
        pytest.param(SPARE, "GET", RESET, Divert("spare", ENDS), id="a listed method may go elsewhere"),
        pytest.param(SPARE, "POST", RESET, ENDS, id="a key does not let it go elsewhere"),
        pytest.param(SPARE, "POST", NEVER_SENT, Divert("spare", ENDS), id="unless it was never sent"),
        pytest.param(CANNED, "POST", RESET, Divert(None, ENDS), id="the file's answer is sent nowhere"),
        pytest.param(SPARE, "GET", UNAVAILABLE, ENDS, id="an answer is kept"),
        pytest.param(CANNED, "GET", UNAVAILABLE, ENDS, id="and is better than the file's"),
    ],
)
def test_a_call_that_is_refused_before_its_next_attempt(
    fallback: FallbackPlan, method: str, outcome: Outcome, expected: object
) -> None:
    exchange = begun(fallback, method)
    assert refused_after(exchange, outcome) == expected
    assert exchange.denied is EndReason.CIRCUIT_OPEN


def test_a_body_that_is_spent_goes_nowhere() -> None:
    assert refused_after(begun(SPARE), NEVER_SENT, body_is_spent=True) == ENDS


def test_an_answer_that_could_not_be_kept_is_none() -> None:
    exchange = begun(SPARE)
    exchange.decide(0.0)
    exchange.record(UNAVAILABLE, 0.0)
    assert isinstance(exchange.decide(0.0), Sleep)
    exchange.answer_is_lost()
    shut(exchange)

    assert exchange.decide(1.0) == Divert("spare", ENDS)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param([NEVER_SENT, UNAVAILABLE], ENDS, id="an answer at last"),
        pytest.param([UNAVAILABLE, NEVER_SENT], Divert("spare", ENDS), id="an answer that is gone"),
    ],
)
def test_it_is_the_last_attempt_that_has_an_answer_or_none(outcomes: list[Outcome], expected: object) -> None:
    exchange = begun(SPARE)
    exchange.decide(0.0)
    exchange.record(outcomes[0], 0.0)
    exchange.decide(0.0)

    assert refused_after(exchange, outcomes[1]) == expected


def test_the_answer_of_a_later_attempt_is_not_the_one_that_was_lost() -> None:
    exchange = begun(SPARE)
    exchange.decide(0.0)
    exchange.record(UNAVAILABLE, 0.0)
    exchange.decide(0.0)
    exchange.answer_is_lost()
    assert refused_after(exchange, UNAVAILABLE) == ENDS


@pytest.mark.parametrize(
    ("outcome", "is_diverted"), [(RESET, False), (NEVER_SENT, True)], ids=["sent", "never sent"]
)
def test_what_an_earlier_try_of_the_caller_has_sent_is_not_forgotten(
    outcome: Outcome, is_diverted: bool
) -> None:
    first = begun(SPARE, "POST")
    first.decide(0.0)
    first.record(outcome, 0.0)
    second = begun(SPARE, "POST", after=begun(SPARE, "POST", after=first))
    shut(second)

    assert isinstance(second.decide(0.0), Divert) is is_diverted
