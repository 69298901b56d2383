"""The record of a call and what is counted of it: each attempt, what came between, why there was no further one."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field

import pytest

from headrace.policy.breaker.circuit import CircuitState, Refused, Verdict
from headrace.policy.breaker.permit import Refusal
from headrace.policy.counters import Exemplar, UpstreamCounters
from headrace.policy.decision import EndReason
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.record import Record, tally

REFUSED = Refused(Refusal.OPEN, 2.0, CircuitState.OPEN, None)
NEVER_SENT = Outcome(fault=Fault.CONNECT_FAILURE, started_s=10.0, duration_s=0.25)
UNAVAILABLE = Outcome(status=503, sent=True, started_s=10.5, wait_s=0.25, connect_s=0.125, duration_s=1.0)
OK = Outcome(status=200, sent=True, started_s=12.0, duration_s=0.5, resent=True)


def record(
    *outcomes: Outcome,
    reason: EndReason = EndReason.SUCCESS,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> Record:
    verdicts = [Verdict.FAILURE if one.status != 200 else Verdict.SUCCESS for one in outcomes]
    return Record("billing", "POST", request_id, reason, retry_after_s, "d" * 64, list(outcomes), verdicts)


def test_an_attempt_tells_its_pause_its_sequence_and_what_it_says_about_the_upstream() -> None:
    attempts = record(NEVER_SENT, UNAVAILABLE, OK).attempts

    assert [one.paused_s for one in attempts] == [0.0, 0.25, 0.25]
    assert [one.retry_seq for one in attempts] == [0, 0, 1]  # the first never left
    assert [(one.outcome, one.status, one.verdict) for one in attempts] == [
        ("connect_failure", None, "failure"),
        ("5xx", 503, "failure"),
        ("2xx", 200, "success"),
    ]
    assert [one.resent for one in attempts] == [False, False, True]


def test_what_the_circuit_thinks_of_the_last_attempt_by_now_is_taken_over() -> None:
    one = record(OK)
    one.judge_last(Verdict.FAILURE)

    assert one.attempts[-1].verdict == "failure"


def test_the_story_has_a_line_for_each_attempt_and_one_for_the_end() -> None:
    resent = "sent again at once: the pooled connection was dead"
    told = record(
        NEVER_SENT, UNAVAILABLE, OK, reason=EndReason.ATTEMPTS, request_id="r1", retry_after_s=2.0
    ).notes()

    assert [line.removeprefix('headrace: upstream "billing" ') for line in told] == [
        "attempt 1: connect_failure after 0.250 s (not connected)",
        "attempt 2, 0.250 s later: 503 after 1.000 s (connected in 0.125 s, waited 0.250 s for it)",
        f"attempt 3, 0.250 s later: 200 after 0.500 s (reused connection, {resent})",
        "not retried: retry.max_attempts are used up, retry after 2.0 s (attempts, request id r1)",
    ]


@pytest.mark.parametrize(
    ("one", "denied", "why"),
    [
        pytest.param(record(OK), None, "ended with an answer that", id="nothing was wanted"),
        pytest.param(
            record(UNAVAILABLE, reason=EndReason.METHOD),
            EndReason.METHOD,
            "not retried: POST may",
            id="denied",
        ),
        pytest.param(
            record(reason=EndReason.CIRCUIT_OPEN),
            None,
            "not sent: the circuit lets",
            id="refused, not denied",
        ),
        pytest.param(
            record(Outcome(fault=Fault.CERTIFICATE, advice="renew it"), reason=EndReason.CERTIFICATE),
            None,
            "never retried: renew it",
            id="advice comes first",
        ),
        pytest.param(
            record(Outcome(fault=Fault.CERTIFICATE), reason=EndReason.CERTIFICATE),
            None,
            "never retried: the peer is not",
            id="a certificate without advice",
        ),
    ],
)
def test_why_a_call_ended_is_said_and_a_denial_only_where_a_retry_was_wanted(
    one: Record, denied: EndReason | None, why: str
) -> None:
    assert one.denied is denied
    assert one.why.startswith(why)


@pytest.mark.parametrize("reason", EndReason)
def test_every_reason_has_words_and_pickles(reason: EndReason) -> None:
    one = record(UNAVAILABLE, reason=reason)

    assert one.why
    assert pickle.loads(pickle.dumps(one)).notes() == one.notes()


@dataclass
class Over:
    """An exchange that is over."""

    outcomes: list[Outcome] = field(default_factory=list)
    deadline_at: float | None = None
    denied: EndReason | None = None
    refused: Refused | None = None


def test_a_call_is_counted_once_with_each_of_its_attempts() -> None:
    counters = UpstreamCounters()
    exemplar = Exemplar("a" * 32, "b" * 16, 2.5, 1.0)

    tally(
        counters,
        Over([NEVER_SENT, UNAVAILABLE, OK], deadline_at=20.0),
        label=None,
        duration_s=2.5,
        exemplar=exemplar,
    )

    assert counters.requests == {"2xx": 1}
    assert counters.attempts == {"connect_failure": 1, "5xx": 1, "2xx": 1}
    assert counters.retries == {"connect_failure": 1, "5xx": 1}  # by what caused them
    assert counters.resent == 1
    assert (counters.attempts_per_call.sum, sum(counters.attempts_per_call.counts)) == (3, 1)
    assert counters.deadline_left.sum == pytest.approx(10.0 + 9.25 + 8.0)
    assert list(counters.duration.exemplars.values()) == [exemplar]
    assert (counters.retries_denied, counters.refused) == ({}, 0)


def test_what_was_left_of_a_deadline_is_counted_of_attempts_that_had_a_connection_and_is_never_negative() -> (
    None
):
    counters = UpstreamCounters()
    nobodys = Outcome(fault=Fault.POOL_TIMEOUT, started_s=10.0, wait_s=0.5)
    late = Outcome(status=503, sent=True, started_s=11.0, wait_s=2.0)

    tally(counters, Over([nobodys, late], deadline_at=12.0), label=None, duration_s=3.0)
    tally(counters, Over([OK]), label=None, duration_s=0.5)  # without a deadline

    assert (sum(counters.deadline_left.counts), counters.deadline_left.sum) == (1, 0.0)


def test_a_refused_call_has_a_label_of_its_own_and_no_attempt() -> None:
    counters = UpstreamCounters()

    tally(counters, Over(refused=REFUSED), label="circuit_open", duration_s=0.0)
    tally(counters, Over([UNAVAILABLE], denied=EndReason.BUDGET), label=None, duration_s=1.0)

    assert counters.requests == {"circuit_open": 1, "5xx": 1}
    assert sum(counters.attempts_per_call.counts) == 1
    assert (counters.refused, counters.retries_denied) == (1, {"budget": 1})
