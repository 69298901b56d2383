"""`failure_if`: the application's own word on whether an answer is a failure."""

from __future__ import annotations

from typing import Any

from headrace.observe.events import PredicateFailed
from headrace.observe.logs import emit
from headrace.runtime.upstream import Upstream


def is_condemned(upstream: Upstream, answer: Any, status: int) -> bool:
    """Whether `failure_if` calls *answer* a failure; False, and logged once, where it raises.

    It is not asked about a *status* that `failure_on` names: that is a failure already, and its body
    is often not what the function expects.
    """
    plan = upstream.plan.circuit_breaker
    judge = plan.failure_if
    if judge is None or status in plan.failure_on.statuses:
        return False
    try:
        return bool(judge(answer))
    except Exception as error:
        kind = type(error).__name__
        if upstream.service.is_first(f"failure_if of {upstream.plan.name}", kind):
            name = f"{getattr(judge, '__module__', '?')}:{getattr(judge, '__qualname__', repr(judge))}"
            emit(PredicateFailed(upstream=upstream.plan.name, function=name, error=kind))
        return False
