"""What an explicit `timeout=` of a call means for its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from urllib3.util.timeout import Timeout

from headrace.policy.plan import NO_LIMIT_S, AskedTimeout, TimeoutPlan


def timeouts_of_call(plan: TimeoutPlan, timeout: Any) -> TimeoutPlan:
    """The limits of one call: *plan*, and in it what its explicit *timeout* asks for.

    A timeout is silence, as requests documents it: c for connecting, r for reading. It takes the place of `connect`
    and `read`, up or down. As in urllib3, c holds for TCP and once more for the TLS handshake; r is
    also how long sending may stall. `attempt` and `deadline` are limits of another kind: where somebody
    wrote them they stay, and as defaults they are raised to what was asked for, and never lowered. A written
    None is no limit of that kind. urllib3's `total` bounds an attempt as it says.

    Args:
        timeout: As requests and urllib3 take it: seconds, (connect, read), or a Timeout. None: there is none.

    Raises:
        ValueError: Not a timeout, in the words of urllib3.
    """
    if timeout is None:
        return plan
    if isinstance(timeout, tuple):
        try:
            connect, read = timeout
        except ValueError:
            raise ValueError(
                f"Invalid timeout {timeout}. Pass a (connect, read) timeout tuple, "
                f"or a single float to set both timeouts to the same value."
            ) from None
        timeout = Timeout(connect=connect, read=read)
    elif not isinstance(timeout, Timeout):
        timeout = Timeout(connect=timeout, read=timeout)
    elif timeout._connect is timeout._read is timeout.total is None:
        return plan  # what requests makes of no timeout, where it comes through a governed urllib3
    asked = AskedTimeout(
        _seconds(timeout._connect),
        _seconds(timeout._read),
        None if timeout.total is None else _seconds(timeout.total),  # no total is its default
    )
    if asked.connect_s is asked.read_s is asked.total_s is None:
        return plan
    return with_asked(plan, asked)


def with_asked(plan: TimeoutPlan, asked: AskedTimeout) -> TimeoutPlan:
    """*plan* for a call that asks for *asked*."""
    connect_s = plan.connect_s if asked.connect_s is None else asked.connect_s
    handshake_s = plan.tls_handshake_s if asked.connect_s is None else asked.connect_s
    read_s = plan.read_s if asked.read_s is None else asked.read_s
    write_s = plan.write_s if asked.read_s is None else asked.read_s
    needed_s, total_s = connect_s + read_s, asked.total_s
    if total_s is not None:
        needed_s = min(needed_s, total_s)
        connect_s, handshake_s = min(connect_s, total_s), min(handshake_s, total_s)
        read_s, write_s = min(read_s, total_s), min(write_s, total_s)
    attempt_s = plan.attempt_s
    if not plan.attempt_is_written:
        attempt_s = min(max(attempt_s, needed_s), NO_LIMIT_S)
    if total_s is not None and total_s < attempt_s:
        attempt_s = total_s
    deadline_s = plan.deadline_s
    if deadline_s is not None and not plan.deadline_is_written:
        deadline_s = None if needed_s >= NO_LIMIT_S else max(deadline_s, plan.acquire_s + needed_s)
    return replace(
        plan,
        deadline_s=deadline_s,
        attempt_s=attempt_s,
        connect_s=connect_s,
        tls_handshake_s=handshake_s,
        read_s=read_s,
        write_s=write_s,
        asked=asked,
    )


def _seconds(value: Any) -> float | None:
    """Seconds; None where nothing was said (urllib3's sentinel)."""
    if value is None:
        return NO_LIMIT_S
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return min(float(value), NO_LIMIT_S) if is_number else None
