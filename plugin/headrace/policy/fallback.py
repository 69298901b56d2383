"""Who gets the `fallback`: the rule behind `decision.Divert`."""

from __future__ import annotations

from headrace.policy.plan import FallbackPlan


def stands_in(
    fallback: FallbackPlan,
    *,
    has_answer: bool,
    was_tried: bool,
    may_have_arrived: bool,
    replayable: bool,
    method_is_listed: bool,
) -> bool:
    """Whether *fallback* takes the place of an upstream whose circuit refuses a call, or its next attempt.

    The answer of the file is sent nowhere, so it may always stand in for an error. Another upstream would do the
    work, so it is asked only where that cannot come to doing it twice.

    Args:
        has_answer: The upstream's own answer to an earlier attempt is kept. It is better than any in its place.
        was_tried: An attempt was made, so that a body which can be sent only once may be used up.
        may_have_arrived: An attempt, or a try of a caller who retries, may have reached the upstream.
        replayable: The body can be sent again.
        method_is_listed: `retry.methods` of the upstream that refuses names the method. An idempotency key does not
            do: only the upstream that has seen it can tell a repetition by it.
    """
    if has_answer:
        return False
    if fallback.upstream is None:
        return True
    if was_tried and not replayable:
        return False
    return method_is_listed or not may_have_arrived
