"""What an explicit `timeout=` of a call means for its limits."""

from __future__ import annotations

from typing import Any

from urllib3.util.timeout import Timeout

from headrace.policy.plan import TimeoutPlan


def timeouts_of_call(plan: TimeoutPlan, timeout: Any) -> TimeoutPlan:
    """The limits of one call: *plan*, or what its explicit *timeout* puts in place of connect, read and attempt.

    A call that allows c for connecting and r of silence gets attempts of c + r: less
    would cut what it asked for. As in urllib3, c holds for TCP and once more for the TLS
    handshake; r is also how long sending may stall. Its `deadline` stays.

    Args:
        timeout: As requests and urllib3 take it: None, seconds, (connect, read), or a Timeout.

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
    if not any(map(_is_given, (timeout._connect, timeout._read, timeout.total))):
        return plan
    connect_s = _seconds(timeout._connect, plan.connect_s)
    read_s = _seconds(timeout._read, plan.read_s)
    handshake_s = _seconds(timeout._connect, plan.tls_handshake_s)
    write_s = _seconds(timeout._read, plan.write_s)
    total_s = _seconds(timeout.total, connect_s + read_s)
    return TimeoutPlan(
        deadline_s=plan.deadline_s,
        attempt_s=total_s,
        connect_s=min(connect_s, total_s),
        tls_handshake_s=min(handshake_s, total_s),
        read_s=min(read_s, total_s),
        write_s=min(write_s, total_s),
        acquire_s=plan.acquire_s,
    )


def _seconds(value: Any, default: float) -> float:
    return float(value) if _is_given(value) else default


def _is_given(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
