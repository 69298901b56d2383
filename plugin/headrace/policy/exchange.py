"""One logical call: what to do next, given what has happened so far.

An exchange belongs to one call and is not thread-safe. The circuit and the budget it is given are
shared. It measures nothing and waits for nothing. A driver asks `decide(now)`, does what the answer
says, tells `record(outcome, now)` after each Send and Resend, and runs `abandon(now)` in `finally`.

The order of a call is fixed:
1. deadline, circuit;
2. the attempt, once more over a fresh connection where the pooled one had died unnoticed, and once more after a 401
   where the file of a secret holds another one by now;
3. for another attempt: rules (`retry_on`, certificate, own refusals), method, replayable, cancelled, attempts,
   circuit opened, Retry-After, deadline, event loop, allowance of the inbound request, budget;
4. the pause, then deadline and circuit again.

Where the circuit refuses, the `fallback` is considered last. Static reasons come before circumstances.
The budget comes last because asking it spends.

The circuit is told of calls, not of attempts: once per call, by the last attempt that says anything. It is told of
a success at once. A failure is held back until it is known that no attempt follows (`HOLD_S`).

The module is longer than most because the order above is one argument: each reason is read beside the one before it.
What it answers is in `decision`, what it asks of an outcome in `retry`, `blame`, `backoff` and `fallback`. Steps 1 and
4 (deadline, circuit) are in `gate`: they can be taken without an exchange, which then goes on from the first attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, assert_never

from headrace.policy.backoff import backoff_s, is_throttled
from headrace.policy.blame import blame
from headrace.policy.breaker.circuit import Circuit, Permit, Refused, Verdict
from headrace.policy.decision import (
    Decision,
    Divert,
    End,
    EndReason,
    Finish,
    Refuse,
    Renew,
    Resend,
    Send,
    Sleep,
)
from headrace.policy.fallback import stands_in
from headrace.policy.gate import Answer, deadline_of, next_send
from headrace.policy.outcome import Fault, Outcome
from headrace.policy.plan import UpstreamPlan
from headrace.policy.request import Request
from headrace.policy.retry import Retriability, RetryBudget, classify, is_resendable
from headrace.policy.served import Served as Served

HOLD_S: Final = 1.0
"""How long the circuit may have to wait for the next attempt to replace a failure by something better, seconds.

Back-offs of the default rules are mostly shorter, and timeouts longer. So the circuit hears of an upstream that
hangs before the last attempt to it has ended.
"""

KEEP_S: Final = 0.5
"""How long it may take to set a failed answer aside, seconds. An answer that only drips in, or stalls, is closed."""

_SHORTEST_S: Final = 0.001
"""Nothing can be sent in less time, seconds."""

_FINISH: Mapping[EndReason, Finish] = MappingProxyType({reason: Finish(reason) for reason in EndReason})
_FINISH_SUCCESS: Final = _FINISH[EndReason.SUCCESS]
# A global is one look-up; a member of an enum class goes through its metaclass.
_SUCCESS: Final = Verdict.SUCCESS
_FAILURE: Final = Verdict.FAILURE
_IGNORED: Final = Verdict.IGNORED

_LOCAL_REASONS: Mapping[Fault, EndReason] = MappingProxyType(
    {
        Fault.POOL_TIMEOUT: EndReason.POOL_TIMEOUT,
        Fault.POOL_REJECTED: EndReason.POOL_REJECTED,
        Fault.CANCELLED: EndReason.CANCELLED,
        Fault.RESPONSE_TOO_LARGE: EndReason.RESPONSE_TOO_LARGE,
        Fault.LOCAL_ERROR: EndReason.LOCAL_ERROR,
    }
)


UNAUTHORISED: Final = 401
"""The answer to a request whose credentials are missing or not taken (RFC 9110 §15.5.2)."""

_NO_CONNECTION: Final = frozenset({Fault.POOL_TIMEOUT, Fault.POOL_REJECTED})


class Exchange:
    """One logical call, as a sequence of decisions.

    Args:
        plan: Rules that the call starts with and keeps to its end.
        request: What is sent, and within which limits.
        now: When the call started, monotonic seconds; the deadline runs from here.
        rng: Uniform numbers in [0, 1), for the back-off.
        may_wait: False where waiting would stall an event loop. Then there is no pause and no wait for a connection.
        served: The inbound request that the call is made for, or None.
        nth_try: Which try this is of a caller that retries by itself, from 1; one attempt is made per try. A further
            try adds nothing to the budget. It takes from the budget and the allowance what they have, and is made
            even if they have nothing: headrace cannot deny it, but denies its own retries in favour of it.
            0: headrace alone retries.
        after: The try before this one, or None. The circuit is told of all tries as of one call.
        renews: Whoever drives it can read the files of secrets anew. Then a 401 is followed by `Renew`, once per call,
            where the request can be sent again. The request that is sent with another secret is the same attempt: it
            costs no budget, and the circuit hears of the second answer alone. But the first has reached the upstream,
            so `sent` counts it.

    Attributes:
        outcomes: One per attempt made, oldest first.
        verdicts: What each of *outcomes* says about the upstream. The circuit is told the last that says anything.
        deadline_at: When the time is up, or None for no deadline.
        reason: Why the call ended, or None while it runs.
        denied: What forbade an attempt that the rules wanted, or None. Set at most once.
        refused: The circuit's last refusal, or None.
        retry_after_s: What the last answer (`Retry-After`) or the circuit asks to wait, or None.
        may_wait: As given.
        retried: Statuses that the rules retry where the call may be repeated.
        sent: Attempts so far that may have reached the upstream, including those of earlier tries; count.
    """

    __slots__ = (
        "_allowance",
        "_awaits_outcome",
        "_backoff_s",
        "_began",
        "_budget",
        "_cancellation",
        "_circuit",
        "_ended",
        "_failed_send",
        "_fresh",
        "_limit_s",
        "_longest_s",
        "_lost_answer_of",
        "_nth_try",
        "_permit",
        "_place",
        "_plan",
        "_renews",
        "_request",
        "_rng",
        "_spurned",
        "_told_verdict",
        "_unauthorised",
        "_undecided",
        "_verdict",
        "deadline_at",
        "denied",
        "may_wait",
        "outcomes",
        "reason",
        "refused",
        "retried",
        "retry_after_s",
        "sent",
        "verdicts",
    )

    def __init__(
        self,
        plan: UpstreamPlan,
        circuit: Circuit,
        budget: RetryBudget,
        request: Request,
        *,
        now: float,
        rng: Callable[[], float],
        may_wait: bool = True,
        served: Served | None = None,
        nth_try: int = 0,
        after: Exchange | None = None,
        renews: bool = False,
    ) -> None:
        self._plan = plan
        self._circuit = circuit
        self._budget = budget
        self._request = request
        self._rng = rng
        self._nth_try = nth_try
        self.may_wait = may_wait
        self.retried = plan.retry.retry_on.statuses
        self._allowance = self._cancellation = None
        if served is not None:
            self._allowance = served.allowance
            self._cancellation = served.cancellation
        self._backoff_s: float | None = None  # our own last pause, without what the upstream asked for
        self._permit: Permit | None = None  # the call's, from its first attempt to its end
        self._awaits_outcome = False  # a Send was decided and not yet recorded
        self._verdict: Verdict = _IGNORED  # the last that says anything
        self._told_verdict: Verdict | None = None  # what the circuit has heard of this call
        self._longest_s = 0.0  # the longest attempt
        self._place: int | None = None  # where the circuit counts what it was told
        self._undecided: Outcome | None = None  # recorded, and decide() has not looked at it yet
        self._ended: End | None = None
        self._lost_answer_of = 0  # the attempt, from 1, whose answer was set aside and could not be kept
        # A failed send that is repeated, or is to be, as if it had not happened.
        self._failed_send: Outcome | None = None
        self._renews = renews and bool(plan.file_headers)
        self._unauthorised: Outcome | None = (
            None  # a 401, and it is not known yet whether there is another secret
        )
        self._spurned: Outcome | None = (
            None  # a 401, and there is: the request is to be sent again, or is out again
        )
        self._limit_s = 0.0  # of the attempt last sent
        self._fresh = False
        self.sent = 0
        self.outcomes: list[Outcome] = []
        self.verdicts: list[Verdict] = []
        self._began = now
        self.deadline_at = deadline_of(request.timeouts, now, served)
        self.reason: EndReason | None = None
        self.denied: EndReason | None = None
        self.refused: Refused | None = None
        self.retry_after_s: float | None = None
        if after is not None:
            self._follow(after)

    @property
    def deadline_s(self) -> float | None:
        """Seconds from the start of the call to `deadline_at`, or None."""
        own_s, began = self._request.timeouts.deadline_s, self._began
        if self.deadline_at is None or (own_s is not None and self.deadline_at == began + own_s):
            return own_s
        return self.deadline_at - began

    @property
    def kept(self) -> Outcome | None:
        """The attempt whose answer the caller gets if the call ends now; None: no answer, or it could not be kept.

        An attempt that got no connection leaves the answer of the one before it as it is.
        """
        if self.reason is EndReason.CANCELLED:
            return None  # nobody waits for it
        made = len(self.outcomes)
        while made and self.outcomes[made - 1].fault in _NO_CONNECTION:
            made -= 1
        if not made or self.outcomes[made - 1].fault is not None or self._lost_answer_of == made:
            return None
        return self.outcomes[made - 1]

    @property
    def is_cancelled(self) -> bool:
        """Whether the client that the call is made for has gone."""
        return self._cancellation is not None and self._cancellation.is_cancelled

    @property
    def is_repeatable(self) -> bool:
        """Whether the request can be sent again, and may be although it may have arrived."""
        request = self._request
        return request.replayable and (request.keyed or request.method in self._plan.retry.methods)

    def is_retried(self, status: int | None) -> bool:
        """Whether the rules retry an answer of *status*: then `attempt` bounds it to its end.

        That holds also where no attempt is left, and where the caller is the one that retries.
        """
        return status in self.retried and (self._nth_try > 0 or self.is_repeatable)

    def decide(self, now: float, *, first: Answer | None = None) -> Decision:
        """What to do next. Mutates: takes a permit with a Send, a token with a retry.

        Asked again after the end, it answers the same end.

        Args:
            first: What `gate.next_send` has answered for the first attempt, where it was asked without this exchange;
                the exchange goes on from there. None: the exchange asks it.

        Raises:
            RuntimeError: A Send is out and its outcome was not recorded; or *first* comes after the first.
        """
        if self._ended is not None:
            return self._ended
        if self._awaits_outcome:
            raise RuntimeError("decide() while an attempt is out: record its outcome first")
        if self._unauthorised is not None:
            return Renew(self.deadline_at)
        if self._failed_send is not None:
            left_s = self._failed_send.started_s + self._failed_send.wait_s + self._limit_s - now
            self._awaits_outcome = True
            if left_s > _SHORTEST_S:
                return Resend(left_s)
            self.record(None, now)
        outcome = self._undecided
        if outcome is not None:
            self._undecided = None
            # Nearly every call ends here, so this comes before classify(): an answer that no rule names.
            if outcome.fault is None and outcome.status not in self.retried:
                self.reason = _FINISH_SUCCESS.reason
                self._ended = _FINISH_SUCCESS
                if self._told_verdict is not _SUCCESS:
                    self.settle(now)
                return _FINISH_SUCCESS
            wait = self._wait_or_end(outcome, now)
            # Where the caller retries by itself, its next try or its end says how the call ended.
            if isinstance(wait, Finish) and (
                wait.reason is not EndReason.DELEGATED or self._is_long(outcome.duration_s)
            ):
                self.settle(now)
            return wait
        answer, permit, n_made = first, self._permit, len(self.outcomes)
        if answer is None:
            pay = None
            if n_made == 0 and self._spurned is None:
                pay = self._budget.deposit if self._nth_try <= 1 else self._charge_try
            answer = next_send(
                self._request.timeouts,
                self._circuit,
                now,
                deadline_at=self.deadline_at,
                may_wait=self.may_wait,
                cancellation=self._cancellation,
                pay=pay,
                renew=None if permit is None else self._renew_permit,
                attempt=n_made + 1,
                fresh=self._fresh,
            )
        elif permit is not None:
            raise RuntimeError("decide() with a first attempt, and there was one before")
        if self._spurned is not None and not isinstance(answer, Send):
            return self._stand_by(self._spurned, answer, now)
        if isinstance(answer, Send):
            self._permit = answer.permit
            self._awaits_outcome = True
            self._limit_s = answer.timeout_s
            return answer
        end = self._refuse(answer)
        self.settle(now)
        return end

    def record(self, outcome: Outcome | None, now: float) -> None:
        """Tell what became of the attempt last sent. Mutates; tells the circuit of a success.

        Args:
            outcome: Facts of the attempt; None for a Resend that found no connection.

        Raises:
            RuntimeError: No attempt is out.
        """
        permit = self._permit
        if permit is None or not self._awaits_outcome:
            raise RuntimeError("record() without an attempt that is out")
        self._awaits_outcome = False
        if self._failed_send is not None:
            outcome, self._failed_send = _merged(self._failed_send, outcome), None
        elif outcome is None:
            raise RuntimeError("record() without an outcome, and the attempt was no Resend")
        elif outcome.fault is not None:
            if is_resendable(outcome, repeatable=self.is_repeatable):
                self._failed_send = outcome
                return
            # If something (a NAT) silently dropped this connection, it also dropped its idle neighbours. Each of
            # them would cost the next attempt its whole timeout (failures.md 18).
            if outcome.fault not in _NO_CONNECTION:
                self._fresh = outcome.reused and not outcome.answered
        if self._spurned is not None:
            outcome = self._answered_again(self._spurned, outcome)
        elif self._renews and outcome.status == UNAUTHORISED and self._request.replayable:
            self._unauthorised = outcome
            return
        verdict = blame(outcome, self._plan.circuit_breaker)
        self._undecided = outcome
        self.outcomes.append(outcome)
        self.verdicts.append(verdict)
        self.sent += outcome.sent
        self.retry_after_s = outcome.retry_after_s
        if outcome.duration_s > self._longest_s:
            self._longest_s = outcome.duration_s
        if verdict is not _IGNORED:
            self._verdict = verdict
            if verdict is _SUCCESS and self._told_verdict is None and outcome.status not in self.retried:
                self._told_verdict = verdict
                self._place = self._circuit.record(permit, verdict, now, self._longest_s)

    def renewed(self, is_newer: bool, now: float) -> None:
        """Tell whether there is another secret than the one that was answered by a 401. Mutates; once after a `Renew`.

        Raises:
            RuntimeError: Nobody was asked.
        """
        outcome, self._unauthorised = self._unauthorised, None
        if outcome is None:
            raise RuntimeError("renewed() without a Renew")
        self._renews = False
        if is_newer:
            self._spurned = outcome
            self.sent += 1
        else:
            self._stand(outcome, now)

    def _stand(self, outcome: Outcome, now: float) -> None:
        """Take *outcome*, a 401, for what it is: the answer to the attempt. Mutates."""
        self._awaits_outcome = True
        self.record(outcome, now)

    def _stand_by(self, spurned: Outcome, why: Refused | EndReason, now: float) -> Decision:
        """What follows where the request may not be sent again after all: the 401 is the answer. Mutates."""
        self._spurned = None
        self.sent -= 1
        self._stand(spurned, now)
        if self._lost_answer_of != len(self.outcomes):
            return self.decide(now)
        if isinstance(why, Refused):
            self.refused, self.retry_after_s, why = why, why.retry_after_s, EndReason.CIRCUIT_OPEN
        self.settle(now)
        return self._deny(why)

    def _answered_again(self, spurned: Outcome, outcome: Outcome) -> Outcome:
        """The outcome of the attempt whose first answer was *spurned*, and whose second is *outcome*. Mutates."""
        self._spurned = None
        is_lost = self._lost_answer_of > len(self.outcomes)
        if outcome.fault in _NO_CONNECTION and not is_lost:
            self.sent -= 1  # it was not sent again: the first answer stands
            return spurned
        self._lost_answer_of = 0
        was_resent = outcome.resent or spurned.resent
        outcome = _merged(spurned, outcome)
        outcome.resent, outcome.renewed = was_resent, True
        return outcome

    def settle(self, now: float) -> None:
        """Tell the circuit how the call ended, unless it has heard already. No attempt follows. Mutates; idempotent."""
        permit, place, told, held = self._permit, self._place, self._told_verdict, self._verdict
        if permit is None or told is held:
            return
        self._told_verdict = held
        if told is None:
            self._place = self._circuit.record(permit, held, now, self._longest_s)
        elif place is not None:
            if held is _FAILURE:
                self._circuit.turn(permit, place, now)
            elif not self._circuit.mend(permit, place, now):
                self._place = self._circuit.record(permit, held, now, self._longest_s)

    def body_broke(self, outcome: Outcome, now: float) -> None:
        """Tell that the streamed answer which ended the call broke off while it was read. Mutates; may transition.

        The call's success becomes a failure if *outcome* is one and the circuit still counts the call.
        """
        permit, place = self._permit, self._place
        if (
            permit is None
            or place is None
            or self._verdict is not _SUCCESS
            or blame(outcome, self._plan.circuit_breaker) is not _FAILURE
        ):
            return
        self._verdict = self._told_verdict = _FAILURE
        if self._circuit.turn(permit, place, now):
            self.verdicts[-1] = _FAILURE

    def body_is_spent(self) -> None:
        """Tell that the body cannot be sent again after all. Mutates."""
        self._request.replayable = False

    def answer_is_lost(self) -> None:
        """Tell that the answer of the last attempt was set aside and could not be kept. Mutates."""
        is_held = self._unauthorised is not None  # its attempt is not recorded yet
        self._lost_answer_of = len(self.outcomes) + is_held

    def abandon(self, now: float) -> None:
        """Give back what is outstanding: the caller is gone, or the call is over. Mutates; idempotent."""
        if self._ended is None:
            self._end(EndReason.CANCELLED)
        if self._awaits_outcome:
            self._awaits_outcome = False
            self.settle(now)
        elif self._told_verdict is not self._verdict and self.reason is not EndReason.DELEGATED:
            self.settle(now)

    def _follow(self, before: Exchange) -> None:
        """Take over from the try *before* what the circuit has still to be told. Mutates both."""
        self._permit, before._permit = before._permit, None
        self._verdict, self._told_verdict = before._verdict, before._told_verdict
        self._longest_s, self._place = before._longest_s, before._place
        self.sent, self._fresh = before.sent, before._fresh
        self._renews = self._renews and before._renews

    def _is_long(self, wait_s: float) -> bool:
        """Whether *wait_s* is too long to hold a failure back: the circuit should hear of it now."""
        return wait_s > HOLD_S and self._verdict is _FAILURE

    def _renew_permit(self, now: float) -> Permit | Refused:
        """A permit for another attempt of this call: the one that it holds if that is still good. Mutates."""
        circuit, permit = self._circuit, self._permit
        is_good = self._told_verdict is None or self._place is not None  # a probe that was judged is over
        if permit is not None and is_good and circuit.still_holds(permit):
            return permit
        answer = circuit.acquire(now)  # what was not told yet of the call is void: the circuit has moved on
        if isinstance(answer, Permit):
            self._permit, self._place = answer, None
            self._verdict, self._told_verdict = _IGNORED, None
        return answer

    def _refuse(self, why: Refused | EndReason) -> End:
        """The end of a call that may not be sent, or not once more. Mutates."""
        if isinstance(why, EndReason):
            return self._deny_send(why)
        self.refused = why
        self.retry_after_s = why.retry_after_s
        return self._divert(self._deny_send(EndReason.CIRCUIT_OPEN))

    def _charge_try(self, now: float) -> None:
        self._budget.try_withdraw(now)
        if self._allowance is not None:
            self._allowance.take()

    def _divert(self, otherwise: Finish | Refuse) -> End:
        """The end of a call that the circuit refuses: its fallback where there is one, else *otherwise*. Mutates."""
        fallback, outcomes = self._plan.fallback, self.outcomes
        if fallback is None or not stands_in(
            fallback,
            has_answer=self.kept is not None,
            was_tried=bool(outcomes),
            may_have_arrived=self.sent > 0,
            replayable=self._request.replayable,
            method_is_listed=self._request.method in self._plan.retry.methods,
        ):
            return otherwise
        self._ended = divert = Divert(fallback.upstream, otherwise)
        return divert

    def _deny_send(self, reason: EndReason) -> Finish | Refuse:
        if self.outcomes:
            return self._deny(reason)
        self.reason = reason
        refusal = Refuse(reason, self.retry_after_s or 0.0)
        self._ended = refusal
        return refusal

    def _wait_or_end(self, outcome: Outcome, now: float) -> Sleep | Finish:
        """The pause before another attempt, or why there is none."""
        retry, request = self._plan.retry, self._request
        answer = classify(
            outcome, retry, method=request.method, replayable=request.replayable, keyed=request.keyed
        )
        match answer:
            case Retriability.UNWANTED:
                return self._end(EndReason.SUCCESS if outcome.fault is None else EndReason.NOT_RETRIABLE)
            case Retriability.CERTIFICATE:
                return self._end(EndReason.CERTIFICATE)
            case Retriability.LOCAL:
                return self._end(
                    EndReason.LOCAL_ERROR if outcome.fault is None else _LOCAL_REASONS[outcome.fault]
                )
            case _ if self._nth_try:
                if outcome.sent and not request.replayable:
                    return self._deny(EndReason.NOT_REPLAYABLE)
                return self._end(EndReason.DELEGATED)
            case Retriability.METHOD:
                return self._deny(EndReason.METHOD)
            case Retriability.NOT_REPLAYABLE:
                return self._deny(EndReason.NOT_REPLAYABLE)
            case Retriability.RETRIABLE:
                pass
            case _:
                assert_never(answer)
        if self.is_cancelled:
            return self._deny(EndReason.CANCELLED)
        n_made = len(self.outcomes)
        if n_made >= retry.max_attempts:
            return self._deny(EndReason.ATTEMPTS)
        asked_s = outcome.retry_after_s or 0.0
        if self._is_long(outcome.duration_s + asked_s):
            self.settle(now)
        if self._circuit.is_shut:
            return self._deny(EndReason.CIRCUIT_OPENED)
        if asked_s > retry.retry_after.max_s:
            return self._deny(EndReason.RETRY_AFTER)
        # Retry-After is the shortest pause that the upstream wants (RFC 9110 §10.2.3). Our own pause, with its
        # jitter, stays where it is longer.
        self._backoff_s = backoff_s(
            retry.backoff,
            n_made,
            self._rng,
            previous_s=self._backoff_s,
            throttled=is_throttled(outcome),
        )
        delay_s = max(asked_s, self._backoff_s)
        if self.deadline_at is not None and now + delay_s >= self.deadline_at:
            return self._deny(EndReason.DEADLINE)
        if delay_s > 0.0 and not self.may_wait:
            return self._deny(EndReason.EVENT_LOOP)
        allowance = self._allowance
        if allowance is not None and not allowance.take():
            return self._deny(EndReason.REQUEST_RETRIES)
        if not self._budget.try_withdraw(now):
            if allowance is not None:
                allowance.put_back()
            return self._deny(EndReason.BUDGET)
        return Sleep(delay_s)

    def _deny(self, reason: EndReason) -> Finish:
        self.denied = reason
        return self._end(reason)

    def _end(self, reason: EndReason) -> Finish:
        self.reason = reason
        finish = _FINISH[reason]
        self._ended = finish
        return finish


def _merged(failed: Outcome, again: Outcome | None) -> Outcome:
    """One outcome of a send that *failed* and was made *again*; *failed* itself if *again* is None: it was not."""
    if again is None:
        return failed
    again.duration_s += again.started_s - failed.started_s - failed.wait_s
    again.started_s, again.wait_s, again.resent = failed.started_s, failed.wait_s, True
    again.sent = again.sent or failed.sent  # the fresh connection may never have been made
    return again
