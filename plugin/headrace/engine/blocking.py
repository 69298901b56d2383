"""The loop around one call, blocking. It performs what the exchange decides and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from headrace.policy.exchange import Divert, End, Exchange, Finish, Performer, Refuse, Send, Sleep


def run(
    exchange: Exchange,
    performer: Performer,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> End:
    """Drive *exchange* to its end. Blocks; lets whatever *performer*, *clock* or *sleep* raise pass through.

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
                        performer.set_aside()
                    outcome = performer.perform(decision)
                    in_hand = True
                    exchange.record(outcome, clock())
                case Sleep():
                    performer.set_aside()
                    in_hand = False
                    sleep(decision.delay_s)
                case Divert() | Finish() | Refuse():
                    return decision
                case _:
                    assert_never(decision)
    finally:
        exchange.abandon(clock())
