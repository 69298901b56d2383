"""The limits of a call that sets limits of its own."""

from __future__ import annotations

from dataclasses import replace

from headrace.policy.plan import NO_LIMIT_S, AskedTimeout, TimeoutPlan


def with_asked(plan: TimeoutPlan, asked: AskedTimeout) -> TimeoutPlan:
    """The limits of *plan* for a call that asks for *asked*."""
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
