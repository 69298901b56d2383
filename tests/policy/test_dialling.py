"""In which order addresses are tried and when, and when a name may be looked up: in virtual time."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.dialling import (
    MOST_LOOK_UPS,
    MOST_YOUNG,
    STAGGER_S,
    YOUNG_S,
    Turns,
    interleaved,
    may_begin_at,
    share_s,
)


@pytest.mark.parametrize(
    ("sorted_by_system", "tried"),
    [
        pytest.param(["6a", "6b", "4a", "4b"], ["6a", "4a", "6b", "4b"], id="two families"),
        pytest.param(["4a", "6a", "6b", "6c"], ["4a", "6a", "6b", "6c"], id="the first stays first"),
        pytest.param(["6a", "6b", "6c", "4a"], ["6a", "4a", "6b", "6c"], id="one runs out"),
        pytest.param(["4a", "4b"], ["4a", "4b"], id="one family"),
        pytest.param([], [], id="none"),
    ],
)
def test_families_take_turns_and_keep_their_order(sorted_by_system: list[str], tried: list[str]) -> None:
    assert interleaved(sorted_by_system, family_of=lambda one: one[0]) == tried


@given(st.lists(st.tuples(st.sampled_from([2, 10, 30]), st.integers(0, 3))))
def test_no_address_is_lost_and_none_is_tried_twice_as_often(addresses: list[tuple[int, int]]) -> None:
    tried = interleaved(addresses, family_of=lambda one: one[0])
    assert sorted(tried) == sorted(addresses)
    for family in (2, 10, 30):
        assert [one for one in tried if one[0] == family] == [one for one in addresses if one[0] == family]


def begun_at(turns: Turns, addresses: int, *, fails_after_s: dict[int, float] | None = None) -> list[float]:
    """When each of *addresses* has its turn, where those of *fails_after_s* fail so long after that."""
    found: list[float] = []
    fails = dict(fails_after_s or {})
    now = 0.0
    while len(found) < addresses:
        due = {found[nth] + after_s: nth for nth, after_s in fails.items() if nth < len(found)}
        first_failure = min(due, default=inf)
        now = max(now, min(turns.next_at, first_failure))
        if first_failure <= turns.next_at:
            del fails[due[first_failure]]
            turns.failed(now)
        if turns.next_at <= now:
            turns.begun(now)
            found.append(now)
    return found


@pytest.mark.parametrize(
    ("addresses", "limit_s", "fails_after_s", "at"),
    [
        pytest.param(3, 2.0, {}, [0.0, 0.25, 0.5], id="silence"),
        pytest.param(3, inf, {}, [0.0, 0.25, 0.5], id="no limit"),
        pytest.param(2, 0.3, {}, [0.0, 0.1], id="a short limit is shared out"),
        pytest.param(3, 2.0, {0: 0.0}, [0.0, 0.0, 0.25], id="the first is refused"),
        pytest.param(3, 2.0, {1: 0.05}, [0.0, 0.25, 0.3], id="the second is refused"),
        pytest.param(3, 2.0, {0: 0.3}, [0.0, 0.25, 0.3], id="the first fails while the second is under way"),
    ],
)
def test_the_next_one_is_tried_after_the_stagger_or_at_a_failure(
    addresses: int, limit_s: float, fails_after_s: dict[int, float], at: list[float]
) -> None:
    turns = Turns(addresses, limit_s=limit_s)
    assert begun_at(turns, addresses, fails_after_s=fails_after_s) == pytest.approx(at)
    assert turns.next_at == inf


@given(st.integers(1, 50), st.floats(0.001, 100.0))
def test_the_last_one_has_its_turn_in_time_and_no_less_to_answer_than_the_others(
    addresses: int, limit_s: float
) -> None:
    turns = Turns(addresses, limit_s=limit_s)
    *_, last = begun_at(turns, addresses)
    assert limit_s - last >= turns.stagger_s * 0.999
    assert turns.stagger_s <= STAGGER_S


def test_a_failure_after_the_last_turn_makes_no_further_turn() -> None:
    turns = Turns(1, limit_s=2.0)
    turns.begun(0.0)
    turns.failed(0.1)
    assert turns.next_at == inf


def test_one_after_the_other_they_have_equal_shares() -> None:
    left_s, shares = 2.0, []
    for left in (4, 3, 2, 1):
        shares.append(share_s(left_s, left))
        left_s -= shares[-1]
    assert shares == [0.5, 0.5, 0.5, 0.5]


def test_a_name_is_looked_up_at_once_while_few_others_are() -> None:
    assert may_begin_at([100.0] * (MOST_YOUNG - 1), 100.0) == 100.0


def test_names_that_hang_do_not_keep_a_healthy_one_waiting() -> None:
    """failures.md 78."""
    now = 100.0
    hanging = [now - YOUNG_S] * (MOST_LOOK_UPS - 1)
    assert may_begin_at(hanging, now) == now


def test_it_waits_until_one_of_many_counts_as_hanging() -> None:
    begun = [99.9, 99.8, 99.7, *[100.0] * 6, 98.0]  # nine are young: two of them have to get older
    assert may_begin_at(begun, 100.0) == pytest.approx(99.8 + YOUNG_S)


def test_there_is_an_end_to_threads() -> None:
    assert may_begin_at([0.0] * MOST_LOOK_UPS, 100.0) == inf


@given(st.lists(st.floats(0.0, 10.0), max_size=MOST_LOOK_UPS - 1), st.floats(10.0, 11.0))
def test_at_the_instant_that_is_said_there_is_room(begun: list[float], now: float) -> None:
    at = may_begin_at(begun, now)
    assert now <= at < inf
    assert may_begin_at(begun, at + 1e-6) <= at + 1e-6
