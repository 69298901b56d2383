from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.outcome import Fault, Outcome, condition
from headrace.policy.plan import BudgetPlan, IdempotencyKeyPlan, UpstreamPlan
from headrace.policy.retry import (
    RehearsedAllowance,
    Retriability,
    RetryAllowance,
    RetryBudget,
    classify,
    is_keyed,
    is_resendable,
)
from support.plans import BUDGET, RETRY, retry_plan, upstream_plan

T0 = 1000.0
RETRIABLE, UNWANTED, LOCAL = Retriability.RETRIABLE, Retriability.UNWANTED, Retriability.LOCAL
METHOD, NOT_REPLAYABLE = Retriability.METHOD, Retriability.NOT_REPLAYABLE


def lost(fault: Fault, *, sent: bool = False) -> Outcome:
    return Outcome(fault=fault, sent=sent)


def answered(status: int) -> Outcome:
    return Outcome(status=status, sent=True)


# Classify


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 409, 501, 505, 511])
def test_these_statuses_are_not_retried_unless_listed(status: int) -> None:
    assert classify(answered(status), RETRY, method="GET", replayable=True) is UNWANTED

    listed = retry_plan(retry_on=condition([status]))
    assert classify(answered(status), listed, method="GET", replayable=True) is RETRIABLE


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_these_statuses_are_retried_by_default(status: int) -> None:
    assert classify(answered(status), RETRY, method="GET", replayable=True) is RETRIABLE


@pytest.mark.parametrize(
    ("outcome", "method", "replayable", "answer"),
    [
        pytest.param(lost(Fault.RESET, sent=True), "GET", True, RETRIABLE, id="GET reset"),
        pytest.param(lost(Fault.RESET, sent=True), "POST", True, METHOD, id="POST may have been received"),
        pytest.param(
            lost(Fault.TIMEOUT, sent=True), "DELETE", True, METHOD, id="DELETE may have been received"
        ),
        pytest.param(lost(Fault.CONNECT_FAILURE), "POST", True, RETRIABLE, id="POST never sent"),
        pytest.param(lost(Fault.TLS_FAILURE), "PATCH", True, RETRIABLE, id="PATCH never sent"),
        pytest.param(answered(503), "POST", True, METHOD, id="POST answered 503"),
        pytest.param(
            Outcome(status=503), "POST", True, METHOD, id="POST answered by a mock, which sends nothing"
        ),
        pytest.param(answered(503), "GET", False, NOT_REPLAYABLE, id="generator body"),
        pytest.param(
            lost(Fault.CONNECT_FAILURE), "POST", False, NOT_REPLAYABLE, id="generator body, never sent"
        ),
        pytest.param(answered(503), "POST", False, METHOD, id="both: the method is named"),
        pytest.param(lost(Fault.CERTIFICATE), "GET", True, Retriability.CERTIFICATE, id="certificate"),
        pytest.param(answered(204), "POST", False, UNWANTED, id="nothing was wanted, so nothing is denied"),
    ],
)
def test_method_and_body_decide_whether_a_wanted_attempt_is_allowed(
    outcome: Outcome, method: str, replayable: bool, answer: Retriability
) -> None:
    assert classify(outcome, RETRY, method=method, replayable=replayable) is answer


@pytest.mark.parametrize(
    "fault",
    [
        Fault.POOL_TIMEOUT,
        Fault.POOL_REJECTED,
        Fault.CANCELLED,
        Fault.RESPONSE_TOO_LARGE,
        Fault.LOCAL_ERROR,
    ],
)
def test_own_refusals_and_trouble_are_never_retried(fault: Fault) -> None:
    """failures.md 17."""
    assert classify(lost(fault), RETRY, method="GET", replayable=True) is LOCAL


def test_a_fault_that_retry_on_leaves_out_is_not_retried() -> None:
    only_resets = retry_plan(retry_on=condition(["reset"]))

    assert classify(lost(Fault.CONNECT_FAILURE), only_resets, method="GET", replayable=True) is UNWANTED


@pytest.mark.parametrize(
    ("fault", "reused", "answered", "repeatable", "is_resent"),
    [
        pytest.param(Fault.RESET, True, False, True, True, id="died in the pool"),
        pytest.param(Fault.RESET, False, False, True, False, id="a new connection"),
        pytest.param(Fault.RESET, True, True, True, False, id="an answer had begun"),
        pytest.param(Fault.RESET, True, False, False, False, id="must not be repeated"),
        pytest.param(Fault.TIMEOUT, True, False, True, False, id="silence says nothing of the pool"),
    ],
)
def test_a_request_goes_out_again_at_once_only_where_its_pooled_connection_had_died_unheard(
    fault: Fault, reused: bool, answered: bool, repeatable: bool, is_resent: bool
) -> None:
    failed = replace(lost(fault, sent=True), reused=reused, answered=answered)
    assert is_resendable(failed, repeatable=repeatable) is is_resent


KEYED = upstream_plan(
    retry=retry_plan(idempotency_key=IdempotencyKeyPlan(header="X-Idem", methods=frozenset({"POST"})))
)


@pytest.mark.parametrize(
    ("plan", "method", "own", "carries"),
    [
        pytest.param(KEYED, "POST", [], True, id="one is made"),
        pytest.param(KEYED, "PUT", [], False, id="none is made for this method"),
        pytest.param(KEYED, "PUT", ["x-idem"], True, id="the call's own"),
        pytest.param(KEYED, "GET", ["X-Idem"], False, id="not asked for where it may be repeated anyhow"),
        pytest.param(upstream_plan(), "PUT", ["Idempotency-Key"], True, id="the draft's header"),
        pytest.param(KEYED, "PUT", ["Idempotency-Key"], False, id="the file names another header"),
        pytest.param(
            replace(KEYED, headers=(("x-IDEM", "1"),)), "PUT", [], True, id="among the file's headers"
        ),
    ],
)
def test_what_makes_a_call_carry_an_idempotency_key(
    plan: UpstreamPlan, method: str, own: list[str], carries: bool
) -> None:
    assert is_keyed(plan, method, own) is carries


# Allowance of an inbound request


def test_an_allowance_gives_what_it_has_and_takes_back_what_was_not_used() -> None:
    allowance = RetryAllowance([None] * 2)
    assert [allowance.take() for _ in range(3)] == [True, True, False]

    allowance.put_back()

    assert [allowance.take() for _ in range(2)] == [True, False]


def test_a_rehearsal_takes_nothing_from_the_real_allowance_and_stops_where_that_would() -> None:
    real = RetryAllowance([None] * 2)
    rehearsed = RehearsedAllowance(real)
    assert [rehearsed.take() for _ in range(3)] == [True, True, False]
    rehearsed.put_back()
    assert rehearsed.take()

    assert len(real) == 2
    real.take()
    rehearsed.put_back()
    assert rehearsed.take() is False  # one is left, and one has been rehearsed


# Budget


def test_a_fresh_budget_holds_its_reserve() -> None:
    budget = RetryBudget(BUDGET)

    assert budget.balance(T0) == 30.0
    assert sum(budget.try_withdraw(T0) for _ in range(50)) == 30


def test_each_first_attempt_earns_its_ratio_of_a_retry() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.29, min_per_second=0.0, ttl_s=10.0))
    for _ in range(100):
        budget.deposit(T0)

    assert sum(budget.try_withdraw(T0) for _ in range(100)) == 29  # 0.29 × 100 is 28.999… in binary


def test_a_balance_that_is_short_of_a_token_by_the_rounding_alone_pays() -> None:
    budget = RetryBudget(BudgetPlan(ratio=1.0 - 1e-9, min_per_second=0.0, ttl_s=10.0))
    budget.deposit(T0)
    assert budget.balance(T0) == 1.0 - 1e-9

    assert budget.try_withdraw(T0)


def test_a_denied_withdrawal_costs_nothing() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.5, min_per_second=0.0, ttl_s=10.0))
    budget.deposit(T0)
    assert budget.try_withdraw(T0) is False
    budget.deposit(T0)

    assert budget.try_withdraw(T0)


def test_deposits_and_withdrawals_are_forgotten_after_the_ttl() -> None:
    budget = RetryBudget(BUDGET)
    for _ in range(100):
        budget.deposit(T0)
    for _ in range(10):
        budget.try_withdraw(T0)
    assert budget.balance(T0 + 9.9) == 40.0

    assert budget.balance(T0 + 11.0) == 30.0


@pytest.mark.parametrize("ttl_s", [5.0, 30.0], ids=["shorter", "longer"])
def test_what_was_earned_and_spent_is_known_after_a_reload_that_changes_the_ttl(ttl_s: float) -> None:
    """An edit during an outage hands nobody a fresh reserve: that would be the storm."""
    budget = RetryBudget(BudgetPlan(ratio=0.5, min_per_second=1.0, ttl_s=10.0))
    for _ in range(40):
        budget.deposit(T0)
    while budget.try_withdraw(T0):
        pass
    assert budget.balance(T0) == 0.0  # 20 earned and a reserve of 10, all spent

    budget.apply(BudgetPlan(ratio=0.5, min_per_second=1.0, ttl_s=ttl_s), T0)

    assert repr(budget) == "<RetryBudget: 30 retries over 40 first attempts>"
    assert budget.balance(T0) == ttl_s - 10.0  # the reserve is another one, the rest is as before


@pytest.mark.parametrize(("ttl_s", "earned"), [(5.0, 0.0), (30.0, 1.0)], ids=["shorter", "longer"])
def test_after_a_reload_what_was_earned_is_forgotten_when_the_new_ttl_says(
    ttl_s: float, earned: float
) -> None:
    budget = RetryBudget(BudgetPlan(ratio=1.0, min_per_second=0.0, ttl_s=10.0))
    budget.deposit(T0)

    budget.apply(BudgetPlan(ratio=1.0, min_per_second=0.0, ttl_s=ttl_s), T0 + 1)

    assert budget.balance(T0 + (7 if ttl_s < 10 else 25)) == earned


def test_a_first_attempt_pays_for_nothing_beyond_the_ttl() -> None:
    budget = RetryBudget(BudgetPlan(ratio=1.0, min_per_second=0.0, ttl_s=10.0))
    budget.deposit(T0)

    assert budget.balance(T0 + 9.5) == 1.0
    assert budget.balance(T0 + 10.0) == 0.0  # although it is remembered


def test_a_retry_counts_for_its_ttl_and_at_most_a_tenth_of_it_longer() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.0, min_per_second=1.0, ttl_s=10.0))
    assert budget.try_withdraw(T0) is True

    assert budget.balance(T0 + 10.99) == 9.0  # T0 is the beginning of a slice
    assert budget.balance(T0 + 11.0) == 10.0


def test_a_retry_that_no_first_attempt_was_made_beside_is_known_after_a_reload_too() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.0, min_per_second=1.0, ttl_s=10.0))
    assert budget.try_withdraw(T0)

    budget.apply(BudgetPlan(ratio=0.0, min_per_second=1.0, ttl_s=20.0), T0)

    assert budget.balance(T0) == 19.0


def test_a_new_ratio_counts_for_what_was_earned_before() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.5, min_per_second=0.0, ttl_s=10.0))
    for _ in range(4):
        budget.deposit(T0)

    budget.apply(BudgetPlan(ratio=1.0, min_per_second=0.0, ttl_s=10.0), T0)

    assert budget.balance(T0) == 4.0


def test_a_budget_without_ratio_and_reserve_pays_for_nothing() -> None:
    budget = RetryBudget(BudgetPlan(ratio=0.0, min_per_second=0.0, ttl_s=10.0))
    budget.deposit(T0)

    assert budget.try_withdraw(T0) is False
    assert repr(budget) == "<RetryBudget: 0 retries over 1 first attempts>"


@settings(deadline=None)  # a loaded machine is not a failure
@given(
    st.builds(
        BudgetPlan,
        ratio=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
        min_per_second=st.sampled_from([0.0, 0.3, 1.0]),
        ttl_s=st.sampled_from([1.0, 10.0]),
    ),
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 8), st.integers(0, 8)), max_size=40),
)
def test_over_any_ttl_retries_stay_within_ratio_and_reserve(
    plan: BudgetPlan, steps: list[tuple[float, int, int]]
) -> None:
    budget = RetryBudget(plan)
    firsts: list[float] = []
    retries: list[float] = []
    now = T0
    for delta_s, n_firsts, n_retries in steps:
        now += delta_s
        for _ in range(n_firsts):
            budget.deposit(now)
            firsts.append(now)
        retries.extend(now for _ in range(n_retries) if budget.try_withdraw(now))

    for end in retries:
        paid = sum(end - plan.ttl_s < at <= end for at in retries)
        earned = sum(end - plan.ttl_s - 1e-6 < at <= end for at in firsts)
        assert paid <= plan.ratio * earned + plan.min_per_second * plan.ttl_s + 1e-6
