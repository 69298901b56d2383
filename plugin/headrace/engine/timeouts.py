"""The limits of a call that sets limits of its own."""

from __future__ import annotations

from dataclasses import replace

from headrace.policy.plan import NO_LIMIT_S, AskedTimeout, TimeoutPlan


def with_asked(plan: TimeoutPlan, asked: AskedTimeout) -> TimeoutPlan:
    """The limits of *plan* for a call that asks for *asked*; they are the file's where it says so.

    Source: `Timeout.connect_timeout` and `read_timeout` of urllib3, for what a total means to the other two.
    """
    if plan.caller == "ignore":
        return plan
    total_s = asked.total_s
    connect_s = handshake_s = asked.connect_s
    read_s = write_s = asked.read_s
    if total_s is not None:
        connect_s = handshake_s = total_s if connect_s is None else min(connect_s, total_s)
        read_s = write_s = total_s if read_s is None else min(read_s, total_s)
    if connect_s is None or handshake_s is None:
        connect_s, handshake_s = plan.connect_s, plan.tls_handshake_s
    if read_s is None or write_s is None:
        read_s, write_s = plan.read_s, plan.write_s
    resolve_s = plan.resolve_s if plan.resolve_is_written else max(plan.resolve_s, connect_s)
    needed_s = connect_s + read_s
    attempt_s = min(max(plan.attempt_s, needed_s), NO_LIMIT_S)
    if total_s is not None:
        needed_s, attempt_s = min(needed_s, total_s), min(attempt_s, total_s)
    deadline_s = plan.deadline_s
    if deadline_s is not None and not plan.deadline_is_written:
        deadline_s = None if needed_s >= NO_LIMIT_S else max(deadline_s, plan.acquire_s + needed_s)
    return replace(
        plan,
        deadline_s=deadline_s,
        attempt_s=attempt_s,
        resolve_s=resolve_s,
        connect_s=connect_s,
        tls_handshake_s=handshake_s,
        read_s=read_s,
        write_s=write_s,
        asked=asked,
    )
