"""No trip rule is half there: each has its transition, its threshold, its words, and a run of calls that shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from headrace.config import load
from headrace.policy.breaker.circuit import CircuitState, Transition, Trigger, Verdict
from headrace.policy.breaker.transition import TRANSITIONS
from headrace.policy.breaker.trip import TRIP_RULES
from headrace.policy.plan import CircuitPlan, CountWindowPlan, SlowCallPlan
from support.plans import circuit_plan
from support.trips import BREAKER, RUNS, told_by

NOT_OF_THE_RULES: Mapping[str, str] = {
    "failure_on": "it says what a failure is",
    "failure_if": "it says what a failure is",
    "blame_after_s": "it says what a failure is",
    "half_open": "it says when an open circuit closes",
}
"""Parts of the plan that say nothing about when a closed circuit opens, and what they say."""

each_rule = pytest.mark.parametrize("rule", TRIP_RULES)


@pytest.fixture
def plan(tmp_path: Path) -> CircuitPlan:
    (tmp_path / "u.yaml").write_text(f"upstreams: {{a: {{base_url: http://a, circuit_breaker: {BREAKER}}}}}")
    return load("u.yaml", env={}, cwd=tmp_path).upstreams["a"].circuit_breaker


def test_a_closed_circuit_opens_by_the_trip_rules_and_by_nothing_else() -> None:
    closed = {
        trigger: after for (before, trigger), after in TRANSITIONS.items() if before is CircuitState.CLOSED
    }
    assert closed == dict.fromkeys(TRIP_RULES, CircuitState.OPEN)


def test_every_trigger_changes_the_state_of_some_circuit() -> None:
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


def test_every_trip_rule_has_a_run_that_shows_it() -> None:
    assert RUNS.keys() == TRIP_RULES.keys(), "give a new rule its calls in support/trips.py"


@each_rule
def test_the_last_call_of_its_run_opens_the_circuit_by_the_rule(rule: Trigger, plan: CircuitPlan) -> None:
    assert told_by(plan, RUNS[rule][:-1]) == []
    (told,) = told_by(plan, RUNS[rule])
    assert (told.from_state, told.to_state, told.reason) == (CircuitState.CLOSED, CircuitState.OPEN, rule)


@each_rule
def test_the_threshold_that_is_told_is_the_one_that_was_reached(rule: Trigger, plan: CircuitPlan) -> None:
    (told,) = told_by(plan, RUNS[rule])
    assert told.threshold is not None
    (raised,) = _with_one_raised(plan, told.threshold)
    assert told_by(raised, RUNS[rule]) == []


@each_rule
def test_the_words_of_an_opening_hold_its_threshold_and_are_the_rules_own(
    rule: Trigger, plan: CircuitPlan
) -> None:
    openings = {trigger: told for trigger in TRIP_RULES for told in told_by(plan, RUNS[trigger])}
    assert f"{openings[rule].threshold:g}" in re.findall(r"[\d.]+", openings[rule].why)
    assert [trigger for trigger, told in openings.items() if _words(told) == _words(openings[rule])] == [rule]


def test_no_number_of_the_breaker_is_left_out_by_the_rules(plan: CircuitPlan) -> None:
    asked = set()

    class Watched(CircuitPlan):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    names = {field.name for field in fields(plan)}
    watched = Watched(**{name: getattr(plan, name) for name in names})

    for calls in RUNS.values():
        told_by(watched, calls)

    assert names - asked == NOT_OF_THE_RULES.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {}, " at 55% of 20+ calls in 10 s or 45% as slow as 1 s, with fewer at 7 in a row", id="all rules"
        ),
        pytest.param(
            {"window": CountWindowPlan(50, None)},
            " at 55% of 20+ calls of the last 50 or 45% as slow as 1 s, with fewer at 7 in a row",
            id="a window of calls",
        ),
        pytest.param(
            {"window": CountWindowPlan(50, 30.0)},
            " at 55% of 20+ calls of the last 50 in 30 s or 45% as slow as 1 s, with fewer at 7 in a row",
            id="a window of calls with an age",
        ),
        pytest.param(
            {"slow_call": SlowCallPlan(None, 0.45), "consecutive_failures": None},
            " at 55% of 20+ calls in 10 s",
            id="what is off is not named",
        ),
    ],
)
def test_the_summary_of_a_file_says_which_rules_open_the_circuit(
    changes: Mapping[str, Any], words: str, plan: CircuitPlan
) -> None:
    changed = replace(plan, **changes)
    assert "".join(rule.summary(changed, "{:g} s".format) for rule in TRIP_RULES.values()) == words


@pytest.mark.parametrize(
    ("most", "words"),
    [(1, "1 failed call in a row"), (2, "2 failed calls in a row")],
)
def test_the_failures_in_a_row_are_told_in_good_english(most: int, words: str) -> None:
    (told,) = told_by(circuit_plan(consecutive_failures=most), [(Verdict.FAILURE, 0.0)] * most)
    assert told.why == words


@pytest.mark.parametrize(("successes", "opens"), [(4, True), (5, False)])
def test_failures_in_a_row_count_only_until_there_are_calls_enough_for_a_rate(
    successes: int, opens: bool
) -> None:
    """failures.md 87."""
    plan = circuit_plan(minimum_calls=10, failure_rate_threshold=0.9, consecutive_failures=5)
    calls = [(Verdict.SUCCESS, 0.0)] * successes + [(Verdict.FAILURE, 0.0)] * 5
    assert bool(told_by(plan, calls)) is opens


@pytest.mark.parametrize("by", ["failure", "slow call"])
def test_one_call_is_enough_for_a_rate_where_the_file_says_so(by: str) -> None:
    plan = circuit_plan(minimum_calls=1, consecutive_failures=None, slow_call=SlowCallPlan(1.0, 0.5))
    call = (Verdict.FAILURE, 0.0) if by == "failure" else (Verdict.SUCCESS, 1.0)
    assert len(told_by(plan, [call])) == 1


def _words(told: Transition) -> str:
    return re.sub(r"[\d.]+", "…", told.why)


def _with_one_raised(plan: Any, number: float) -> Iterator[Any]:
    """*plan* with one of the numbers in it that equal *number* raised a little: a plan for each."""
    for field in fields(plan):
        value = getattr(plan, field.name)
        if is_dataclass(value):
            changed = _with_one_raised(value, number)
        elif value == number:
            changed = iter((value + (1 if isinstance(value, int) else 0.01),))
        else:
            continue
        yield from (replace(plan, **{field.name: other}) for other in changed)
