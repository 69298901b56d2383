"""Who ended an attempt: the truth table, whole."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from headrace.policy.attempt_end import CUT_IN, AttemptEnd, EndedBy, Phase, end_of
from headrace.policy.outcome import Fault

RESET, LOCAL = Fault.RESET, Fault.LOCAL_ERROR
PHASES = get_args(Phase)
ANY = None

#  is_callers, is_cancelled, was_in_time, was_shut, cut, fault -> by, fault, cut; ANY stands for both.
TABLE = [
    ((True, ANY, ANY, ANY, ANY, RESET), (EndedBy.CALLER, LOCAL, False)),
    ((False, True, ANY, ANY, ANY, RESET), (EndedBy.CLIENT, Fault.CANCELLED, False)),
    ((False, False, True, False, False, RESET), (EndedBy.PEER, RESET, False)),
    ((False, False, True, False, True, Fault.TIMEOUT), (EndedBy.PEER, Fault.TIMEOUT, True)),
    ((False, False, True, True, False, RESET), (EndedBy.OURSELVES, RESET, False)),
    ((False, False, True, True, True, Fault.TIMEOUT), (EndedBy.OURSELVES, Fault.TIMEOUT, True)),
    ((False, False, False, ANY, True, Fault.CONNECT_FAILURE), (EndedBy.PEER, Fault.CONNECT_FAILURE, True)),
    ((False, False, False, ANY, False, Fault.CERTIFICATE), (EndedBy.PEER, Fault.CERTIFICATE, False)),
    ((False, False, False, ANY, False, RESET), (EndedBy.TIMER, Fault.TIMEOUT, True)),
]


def rows() -> list[tuple[tuple[bool, bool, bool, bool, bool], Fault, tuple[EndedBy, Fault, bool]]]:
    found = []
    for (*hands, fault), end in TABLE:
        each_way = product(*[(True, False) if one is ANY else (one,) for one in hands])
        found += [(each, fault, end) for each in each_way]
    return found


@pytest.mark.parametrize(("hands", "fault", "end"), rows())
def test_whose_word_holds(
    hands: tuple[bool, bool, bool, bool, bool], fault: Fault, end: tuple[EndedBy, Fault, bool]
) -> None:
    is_callers, is_cancelled, was_in_time, was_shut, cut = hands

    found = end_of(
        fault,
        "sent",
        cut=cut,
        is_callers=is_callers,
        is_cancelled=is_cancelled,
        was_in_time=was_in_time,
        was_shut=was_shut,
    )

    assert found == AttemptEnd(*end)


def test_the_table_has_each_way_of_hands_that_may_meet() -> None:
    told = {hands for hands, _, _ in rows()}
    assert told == set(product((True, False), repeat=5))


@pytest.mark.parametrize(
    ("phase", "fault"),
    [
        ("lease", Fault.TIMEOUT),
        ("dns", Fault.RESOLVE_TIMEOUT),
        ("tcp", Fault.CONNECT_FAILURE),
        ("tls", Fault.TLS_FAILURE),
        ("sent", Fault.TIMEOUT),
    ],
)
def test_what_a_timer_cut_off_is_named_by_how_far_it_had_got(phase: Phase, fault: Fault) -> None:
    end = end_of(
        LOCAL, phase, cut=False, is_callers=False, is_cancelled=False, was_in_time=False, was_shut=True
    )

    assert end == AttemptEnd(EndedBy.TIMER, fault, cut=True)
    assert set(CUT_IN) == set(PHASES)


@pytest.mark.parametrize("fault", list(Fault))
def test_only_callers_clients_and_timers_change_what_the_exception_says(fault: Fault) -> None:
    end = end_of(
        fault, "sent", cut=False, is_callers=False, is_cancelled=False, was_in_time=True, was_shut=False
    )

    assert end.fault is fault
