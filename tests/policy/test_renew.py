"""A 401 whose secret has a newer value: the exchange has the request sent once more, and counts it as one attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headrace.policy.breaker.circuit import Circuit
from headrace.policy.breaker.permit import Verdict
from headrace.policy.decision import EndReason, Finish, Refuse, Renew, Resend, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.outcome import Fault, Outcome, condition
from headrace.policy.plan import FileHeader, FilePart, UpstreamPlan
from headrace.policy.retry import RetryBudget
from support.plans import TIMEOUTS, request, retry_plan, upstream_plan
from support.virtual import constant

PLAN = replace(upstream_plan(), file_headers=(FileHeader("Authorization", (FilePart("/token"),)),))


def unauthorised(started_s: float = 0.0) -> Outcome:
    return Outcome(status=401, sent=True, started_s=started_s, wait_s=0.5, duration_s=0.1)


class Scene:
    def __init__(self, plan: UpstreamPlan = PLAN, *, renews: bool = True, **facts: object) -> None:
        self.circuit = Circuit(plan.circuit_breaker, rng=constant(0.5))
        self.budget = RetryBudget(plan.retry.budget)
        self.exchange = Exchange(
            plan,
            self.circuit,
            self.budget,
            request(timeouts=plan.timeouts, **facts),
            now=0.0,
            rng=constant(0.5),
            renews=renews,
        )

    def send(self, now: float, outcome: Outcome) -> None:
        assert isinstance(self.exchange.decide(now), Send)
        self.exchange.record(outcome, now)

    @property
    def counted(self) -> tuple[int, int]:
        view = self.circuit.view(9.0)
        return view.calls, view.failures


def test_the_request_is_sent_again_as_the_same_attempt() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    assert scene.exchange.decide(1.0) == Renew(scene.exchange.deadline_at)
    assert scene.exchange.decide(1.0) == Renew(scene.exchange.deadline_at)  # until it is told
    balance = scene.budget.balance(1.0)
    scene.exchange.renewed(True, 1.0)

    again = scene.exchange.decide(1.0)
    assert isinstance(again, Send)
    assert again.attempt == 1
    assert scene.exchange.sent == 1
    assert scene.counted == (0, 0)
    scene.exchange.record(Outcome(status=200, sent=True, started_s=1.0, duration_s=0.2), 2.0)

    assert scene.exchange.decide(2.0) == Finish(EndReason.SUCCESS)
    (outcome,) = scene.exchange.outcomes
    assert (outcome.status, outcome.renewed, outcome.started_s, outcome.wait_s) == (200, True, 0.0, 0.5)
    assert outcome.duration_s == pytest.approx(0.7)  # from the first lease to the end of the second answer
    assert scene.exchange.sent == 2
    assert scene.counted == (1, 0)
    assert scene.budget.balance(2.0) == balance


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        pytest.param(Scene(renews=False), "nobody can read the file", id="no driver"),
        pytest.param(Scene(upstream_plan()), "no header follows a file", id="no file"),
        pytest.param(Scene(replayable=False), "the body is spent", id="no body"),
    ],
)
def test_a_401_is_an_answer_where(scene: Scene, why: str) -> None:
    scene.send(0.0, unauthorised())
    assert scene.exchange.decide(1.0) == Finish(EndReason.SUCCESS), why
    assert scene.counted == (1, 0)


def test_a_401_whose_secret_has_not_changed_is_an_answer() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.renewed(False, 1.0)
    assert scene.exchange.decide(1.0) == Finish(EndReason.SUCCESS)
    assert scene.exchange.outcomes[0].renewed is False
    assert scene.exchange.sent == 1
    assert scene.counted == (1, 0)


def test_it_comes_before_the_rules_that_retry_a_401_and_happens_once() -> None:
    plan = replace(PLAN, retry=retry_plan(retry_on=condition([401])))
    scene = Scene(plan)
    scene.send(0.0, unauthorised())
    assert isinstance(scene.exchange.decide(1.0), Renew)
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, unauthorised(1.0))
    assert isinstance(scene.exchange.decide(2.0), Sleep)
    second = scene.exchange.decide(2.0)
    assert isinstance(second, Send)
    assert second.attempt == 2
    assert scene.exchange.sent == 2


@pytest.mark.parametrize("fault", [Fault.POOL_REJECTED, Fault.POOL_TIMEOUT])
def test_the_401_stands_where_there_is_no_connection_for_the_second_request(fault: Fault) -> None:
    scene = Scene()
    first = unauthorised()
    scene.send(0.0, first)
    scene.exchange.decide(1.0)
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(fault=fault))
    assert scene.exchange.decide(1.0) == Finish(EndReason.SUCCESS)
    assert scene.exchange.outcomes == [first]
    assert scene.exchange.kept is first
    assert scene.exchange.sent == 1


@pytest.mark.parametrize("fault", [Fault.POOL_REJECTED, Fault.POOL_TIMEOUT])
def test_the_want_of_a_connection_is_the_end_where_the_401_could_not_be_kept(fault: Fault) -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.answer_is_lost()
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(fault=fault))
    end = scene.exchange.decide(1.0)
    assert isinstance(end, Finish)
    assert end.reason.value == fault.value
    assert scene.exchange.kept is None


def test_a_401_that_could_not_be_kept_is_forgotten_once_there_is_another_answer() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.answer_is_lost()
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(status=200, sent=True))
    assert scene.exchange.decide(1.0) == Finish(EndReason.SUCCESS)
    assert scene.exchange.kept is scene.exchange.outcomes[0]


@pytest.mark.parametrize("is_lost", [False, True], ids=["kept", "lost"])
def test_the_401_stands_where_the_time_is_up(is_lost: bool) -> None:
    scene = Scene(replace(PLAN, timeouts=replace(TIMEOUTS, deadline_s=2.0)))
    scene.send(0.0, unauthorised())
    assert scene.exchange.decide(1.0) == Renew(2.0)
    if is_lost:
        scene.exchange.answer_is_lost()
    scene.exchange.renewed(True, 3.0)
    assert scene.exchange.decide(3.0) == Finish(EndReason.DEADLINE if is_lost else EndReason.SUCCESS)
    assert (scene.exchange.kept is None) is is_lost
    assert [outcome.renewed for outcome in scene.exchange.outcomes] == [False]
    assert scene.exchange.sent == 1
    assert scene.counted == (1, 0)


@pytest.mark.parametrize("is_lost", [False, True], ids=["kept", "lost"])
def test_the_401_stands_where_the_circuit_has_opened_meanwhile(is_lost: bool) -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    if is_lost:
        scene.exchange.answer_is_lost()
    for _ in range(100):
        permit = scene.circuit.acquire(1.0)
        if not hasattr(permit, "generation"):
            break
        scene.circuit.record(permit, Verdict.FAILURE, 1.0)
    scene.exchange.renewed(True, 1.0)
    end = scene.exchange.decide(1.0)
    assert end == Finish(EndReason.CIRCUIT_OPEN if is_lost else EndReason.SUCCESS)
    assert scene.exchange.decide(1.0) == end
    assert (scene.exchange.retry_after_s is not None) is is_lost


def test_the_second_request_may_be_resent_over_a_fresh_connection() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(fault=Fault.RESET, sent=True, reused=True, started_s=1.0))
    assert isinstance(scene.exchange.decide(1.0), Resend)
    scene.exchange.record(Outcome(status=200, sent=True, started_s=1.1), 1.2)
    assert scene.exchange.decide(1.2) == Finish(EndReason.SUCCESS)
    (outcome,) = scene.exchange.outcomes
    assert outcome.renewed
    assert outcome.resent


def test_a_second_request_that_fails_is_judged_and_retried_as_the_attempt_that_it_is() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(fault=Fault.TIMEOUT, sent=True, cut=True, duration_s=4.0, started_s=1.0))
    assert isinstance(scene.exchange.decide(5.0), Sleep)
    assert scene.exchange.sent == 2


@pytest.mark.parametrize("told", ["nothing", "that there is one"])
def test_a_call_that_is_given_up_in_between_owes_the_circuit_nothing(told: str) -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    if told != "nothing":
        scene.exchange.renewed(True, 1.0)
    scene.exchange.abandon(1.0)
    assert scene.exchange.reason is EndReason.CANCELLED
    assert scene.counted == (0, 0)
    assert not isinstance(scene.exchange.decide(1.0), Refuse | Send)


def test_who_tells_without_being_asked_is_wrong() -> None:
    scene = Scene()
    with pytest.raises(RuntimeError, match="without a Renew"):
        scene.exchange.renewed(True, 0.0)


def test_further_tries_of_a_caller_that_retries_by_itself_do_not_begin_again() -> None:
    scene = Scene()
    scene.send(0.0, unauthorised())
    scene.exchange.decide(1.0)
    scene.exchange.renewed(True, 1.0)
    scene.send(1.0, Outcome(status=503, sent=True))
    scene.exchange.decide(1.0)
    following = Exchange(
        PLAN,
        scene.circuit,
        scene.budget,
        request(),
        now=2.0,
        rng=constant(0.5),
        renews=True,
        nth_try=2,
        after=scene.exchange,
    )
    assert isinstance(following.decide(2.0), Send)
    following.record(unauthorised(2.0), 3.0)
    assert following.decide(3.0) == Finish(EndReason.SUCCESS)
