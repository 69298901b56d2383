"""The loop around one call, blocking. It does what the exchange decides and decides nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from headrace.policy.decision import Divert, End, Finish, Performer, Refuse, Renew, Resend, Send, Sleep
from headrace.policy.exchange import Exchange
from headrace.policy.gate import Answer


def run(
    exchange: Exchange,
    performer: Performer,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
    first: Answer | None = None,
) -> End:
    """Drive *exchange* to its end. Blocks; exceptions of *performer*, *clock* and *sleep* pass through.

    The permit goes back in every case. The circuit ignores an attempt that did not return.

    Args:
        clock: Monotonic seconds.
        sleep: Waits the given seconds.
        first: What the gate has said of the first attempt, where it was asked without *exchange*; None: it was not.
    """
    try:
        while True:
            decision = exchange.decide(clock(), first=first)
            first = None
            match decision:
                case Send():
                    outcome = performer.perform(decision)
                    exchange.record(outcome, clock())
                case Resend():
                    exchange.record(performer.resend(decision), clock())
                case Renew():
                    exchange.renewed(performer.renew(decision), clock())
                case Sleep():
                    performer.set_aside()
                    if decision.delay_s > 0.0:
                        sleep(decision.delay_s)
                case Divert() | Finish() | Refuse():
                    return decision
                case _:
                    assert_never(decision)
    finally:
        exchange.abandon(clock())
