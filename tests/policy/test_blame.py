from __future__ import annotations

import pytest

from headrace.policy.blame import blame
from headrace.policy.breaker.circuit import Verdict
from headrace.policy.outcome import Fault, Outcome, condition
from support.plans import circuit_plan

SUCCESS, FAILURE, IGNORED = Verdict.SUCCESS, Verdict.FAILURE, Verdict.IGNORED


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        pytest.param(Outcome(status=200, sent=True), SUCCESS, id="an answer"),
        pytest.param(Outcome(status=404, sent=True), SUCCESS, id="4xx is success"),
        pytest.param(Outcome(status=429, sent=True), SUCCESS, id="429 is success"),
        pytest.param(Outcome(status=503, sent=True), FAILURE, id="5xx"),
        pytest.param(Outcome(status=501, sent=True), SUCCESS, id="501 is not among 5xx"),
        pytest.param(Outcome(status=200, sent=True, condemned=True), FAILURE, id="named by failure_if"),
        pytest.param(Outcome(fault=Fault.CONNECT_FAILURE), FAILURE, id="refused"),
        pytest.param(Outcome(fault=Fault.TLS_FAILURE), FAILURE, id="handshake broken off"),
        pytest.param(Outcome(fault=Fault.RESET, sent=True), FAILURE, id="reset"),
        pytest.param(Outcome(fault=Fault.PROTOCOL_ERROR, sent=True), FAILURE, id="not HTTP"),
        pytest.param(
            Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=0.5), FAILURE, id="cut, long enough"
        ),
        pytest.param(
            Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=0.49), IGNORED, id="cut too early"
        ),
        pytest.param(
            Outcome(fault=Fault.CONNECT_FAILURE, cut=True, duration_s=0.1), IGNORED, id="connect cut early"
        ),
        pytest.param(Outcome(fault=Fault.CERTIFICATE), IGNORED, id="certificate: in no word of failure_on"),
    ],
)
def test_an_outcome_is_blamed_by_failure_on_and_blame_after(outcome: Outcome, verdict: Verdict) -> None:
    assert blame(outcome, circuit_plan()) is verdict


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 499])
def test_a_4xx_is_never_blamed_on_the_upstream_unless_the_rules_name_it(status: int) -> None:
    """failures.md 6."""
    answer = Outcome(status=status, sent=True)

    assert blame(answer, circuit_plan()) is SUCCESS
    assert blame(answer, circuit_plan(failure_on=condition([status]))) is FAILURE


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
def test_local_trouble_is_never_blamed_on_the_upstream(fault: Fault) -> None:
    """failures.md 6."""
    assert blame(Outcome(fault=fault, duration_s=9.0), circuit_plan()) is IGNORED


def test_an_attempt_our_own_deadline_cut_short_is_not_blamed_on_the_upstream() -> None:
    """failures.md 6."""
    cut_short = Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=0.02)

    assert blame(cut_short, circuit_plan()) is IGNORED


def test_a_connection_that_we_have_shut_ourselves_is_not_blamed_on_the_upstream() -> None:
    """failures.md 6."""
    ours = Outcome(fault=Fault.RESET, sent=True, broken_off=True, duration_s=9.0)

    assert blame(ours, circuit_plan()) is IGNORED


def test_a_cut_that_came_because_this_process_stood_still_is_not_blamed_on_the_upstream() -> None:
    late = Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, excused=True, duration_s=9.0)

    assert blame(late, circuit_plan()) is IGNORED


def test_a_fault_that_failure_on_leaves_out_is_not_a_success_either() -> None:
    """failures.md 5."""
    only_statuses = circuit_plan(failure_on=condition(["5xx"]))

    assert blame(Outcome(fault=Fault.RESET, sent=True), only_statuses) is IGNORED
