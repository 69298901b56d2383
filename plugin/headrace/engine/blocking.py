"""The loop around one call, blocking. It performs what the exchange decides and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, assert_never

from headrace.policy.exchange import Divert, End, Exchange, Finish, Refuse, Send, Sleep
from headrace.policy.outcome import Outcome


class Attempt(Protocol):
    """How one call is sent; made by an adapter, once per call."""

    def perform(self, send: Send) -> Outcome:
        """Make one attempt. Blocks; turns every error of the transport into an Outcome.

        What it raises nevertheless (KeyboardInterrupt, GreenletExit, a bug) ends the call.
        """

    def set_aside(self) -> None:
        """Give the slot back and keep or close the failed answer: another attempt may follow.

        Called at most once per attempt, before the sleep or the Send that follows it. The call may
        still end there (the circuit opened meanwhile); then the answer kept is what the caller gets.
        """


def run(
    exchange: Exchange,
    attempt: Attempt,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> End:
    """Drive *exchange* to its end. Blocks; lets whatever *attempt*, *clock* or *sleep* raise pass through.

    The permit goes back in every case; an attempt that did not return is ignored by the circuit.

    Args:
        clock: Monotonic seconds.
        sleep: Waits the given seconds.
    """
    in_hand = False  # an answer (or error) of an attempt that was not set aside
    try:
        while True:
            decision = exchange.decide(clock())
            match decision:
                case Send():
                    if in_hand:
                        attempt.set_aside()
                    outcome = attempt.perform(decision)
                    in_hand = True
                    exchange.record(outcome, clock())
                case Sleep():
                    attempt.set_aside()
                    in_hand = False
                    sleep(decision.delay_s)
                case Divert() | Finish() | Refuse():
                    return decision
                case _:
                    assert_never(decision)
    finally:
        exchange.abandon(clock())
