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

    The file's answer involves no other upstream, so it may always stand in for an error. Another upstream would do
    the work. So it is asked only where the work cannot be done twice.

    Args:
        has_answer: The upstream's own answer to an earlier attempt is kept. It is better than any in its place.
        was_tried: An attempt was made, so a body that can be sent only once may be used up.
        may_have_arrived: An attempt, or a try of a caller that retries by itself, may have reached the upstream.
        replayable: The body can be sent again.
        method_is_listed: `retry.methods` of the upstream that refuses names the method. An idempotency key is not
            enough: only an upstream that has seen the key can tell a repetition by it.
    """
    if has_answer:
        return False
    if fallback.upstream is None:
        return True
    if was_tried and not replayable:
        return False
    return method_is_listed or not may_have_arrived
