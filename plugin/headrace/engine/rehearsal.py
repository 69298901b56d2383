"""The loop around one call that is only rehearsed (`mode: observe`), in virtual time.

The exchange is the one that decides in production, on a circuit and a budget that only rehearsed calls
feed. The first attempt is the real call: it is made as if headrace were not there, and compared with the limits
afterwards. A further attempt is assumed to end as the first did, after the same time. It is cut as
it would be in production. The pauses before it pass on the virtual clock only.

Three things cannot be known: whether a retry would have ended differently, how much sooner a cut or refused call
would have freed what it held, and at which moment of an attempt the silence was (`read`, `connect`).
"""

from __future__ import annotations

from dataclasses import replace

from headrace.engine.blocking import run
from headrace.policy.decision import Divert, EndReason, Refuse, Renew, Resend, Send
from headrace.policy.exchange import Exchange
from headrace.policy.frozen import slotted
from headrace.policy.outcome import Fault, Outcome


@slotted
class Seen:
    """What became of the real call.

    Attributes:
        outcome: Its facts; `duration_s` runs to its end, even beyond the limits.
        head_s: When the head of its answer came, seconds from its start; None: not known, so its end is taken.
        streamed: The caller reads its body later.
        is_wanted: Its answer would be retried, so the limit of an attempt holds to the end of the answer.
    """

    outcome: Outcome
    head_s: float | None
    streamed: bool
    is_wanted: bool


@slotted
class Foretold:
    """What enforcing would have made of the call.

    Attributes:
        retries: Attempts after the first; count.
        refused: The circuit would have refused the call, or its next attempt.
        timed_out: A limit would have cut an attempt, or the deadline was over before the first.
        reason: Why the call would have ended.
        diverted: The call's `fallback` would have stood in.
    """

    retries: int
    refused: bool
    timed_out: bool
    reason: EndReason
    diverted: bool = False


def rehearse(exchange: Exchange, first: Send | Divert | Refuse, seen: Seen) -> Foretold:
    """Drive *exchange* to its end, from *first*: what it decided when the call began. Does not block.

    The permit goes back in every case.
    """
    replay = _Replay(exchange, seen)
    try:
        if isinstance(first, Send):
            exchange.record(replay.perform(first), replay.now)
        end = run(exchange, replay, clock=lambda: replay.now, sleep=replay.sleep)
    finally:
        exchange.abandon(replay.now)
        # Also for a caller that retries by itself: its tries are part of the real call, which is over.
        exchange.settle(replay.now)
    return Foretold(
        retries=max(0, len(exchange.outcomes) - 1),
        refused=exchange.refused is not None,
        timed_out=replay.was_cut or (isinstance(end, Refuse) and end.reason is EndReason.DEADLINE),
        reason=end.reason,
        diverted=isinstance(end, Divert),
    )


class _Replay:
    """A `Performer`: each attempt goes as the real call went, under the limits, in virtual time.

    Attributes:
        now: The virtual clock, monotonic seconds.
        was_cut: A limit has cut an attempt.
    """

    __slots__ = ("_deadline_at", "_seen", "now", "was_cut")

    def __init__(self, exchange: Exchange, seen: Seen) -> None:
        self._seen = seen
        self._deadline_at = exchange.deadline_at
        self.now = seen.outcome.started_s
        self.was_cut = False

    def perform(self, send: Send | Resend) -> Outcome:
        """What becomes of the attempt. Advances the clock."""
        left_s = None if self._deadline_at is None else self._deadline_at - self.now
        outcome = _under_limits(self._seen, send.timeout_s, left_s)
        self.was_cut = self.was_cut or outcome is not self._seen.outcome
        outcome = replace(outcome, started_s=self.now)
        self.now += outcome.wait_s + outcome.duration_s
        return outcome

    resend = perform

    def renew(self, renew: Renew) -> bool:
        """False: nothing is sent again, and no file is read."""
        return False

    def set_aside(self) -> None:
        """Nothing is held: there is no connection."""

    def sleep(self, delay_s: float) -> None:
        """Let the pause pass. Advances the clock."""
        self.now += delay_s


def _under_limits(seen: Seen, limit_s: float, left_s: float | None) -> Outcome:
    """The outcome of an attempt that goes as the real call went, under limits. The same object if no limit cuts it.

    Args:
        limit_s: Seconds to the head of an answer, or to the end of an answer that is retried.
        left_s: Seconds left of the deadline, which bounds a buffered body as well; None: there is none.
    """
    outcome = seen.outcome
    to_head_s = outcome.duration_s
    if seen.head_s is not None and outcome.fault is None and not seen.is_wanted:
        to_head_s = seen.head_s
    if to_head_s > limit_s:
        ends_s = limit_s
    elif left_s is not None and outcome.duration_s > left_s and not seen.streamed:
        ends_s = left_s
    else:
        return outcome
    never_sent = outcome.fault is not None and not outcome.sent
    return Outcome(
        outcome.fault if never_sent else Fault.TIMEOUT, sent=not never_sent, cut=True, duration_s=ends_s
    )
