"""What the rules make of one outcome of one method, and which line says so: a part of `headrace explain`.

It asks the functions that decide about real calls, so that it cannot tell another story.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import assert_never

from headrace.config.check.problems import dotted
from headrace.config.explain.effective import EffectiveValues
from headrace.config.source.sources import mode_override
from headrace.config.source.tree import MASK
from headrace.policy.attempt_end import CUT_IN
from headrace.policy.backoff import backoff_range_s, is_throttled
from headrace.policy.blame import blame
from headrace.policy.breaker.circuit import Verdict
from headrace.policy.outcome import UPSTREAM_FAULTS, Condition, Fault, Outcome, condition
from headrace.policy.plan import UpstreamPlan
from headrace.policy.retry import Retriability, classify, key_header

_MAY_HAVE_BEEN_SENT = frozenset(
    {Fault.RESET, Fault.TIMEOUT, Fault.PROTOCOL_ERROR, Fault.CANCELLED, Fault.RESPONSE_TOO_LARGE}
    # TLS 1.3 refuses a client after its request; a signal's handler ends a call where it is.
    | {Fault.CERTIFICATE, Fault.LOCAL_ERROR}
)
_MAY_BE_CUT = frozenset(CUT_IN.values())
_SHOWN_PAUSES = 3
_WHILE_ALLOWED = "while attempts, budget, deadline and circuit allow"

_UNENFORCED = {
    "observe": ", but the breaker only observes",
    "forced_open": ", but the breaker is forced open",
    "disabled": ", but the breaker is disabled",
}


def explain_outcome(
    values: EffectiveValues,
    plan: UpstreamPlan,
    method: str,
    *,
    status: int | None,
    fault: Fault | None,
    env: Mapping[str, str],
) -> Iterator[str]:
    """Whether that end of an attempt would be retried, after how long, and whether it is held against the upstream.

    Args:
        method: Upper case.
        status, fault: One of the two.
        env: For HEADRACE_MODE.
    """
    outcome = Outcome(fault, status, sent=fault is None or fault in _MAY_HAVE_BEEN_SENT)
    if fault is None:
        yield f"{method} answered with {status}"
    else:
        yield f"{method} ended by {fault.value}: {'it may have been sent' if outcome.sent else 'it was never sent'}"
    yield from _mode(values, plan, env)
    keyed = _key_maker(values, plan, method)
    answer = classify(outcome, plan.retry, method=method, replayable=True, keyed=keyed is not None)
    yield f"  retried: {_retried(values, plan, method, outcome, answer, keyed)}"
    if answer is Retriability.RETRIABLE and plan.retry.max_attempts > 1:
        yield f"  after: {_pauses(values, plan, throttled=is_throttled(outcome))}"
        if fault is None and plan.retry.retry_after.headers:
            yield f"  or after: {_asked(values, plan)}"
    yield f"  counted as {_counted(values, plan, outcome)}"


def explain_method(
    values: EffectiveValues, plan: UpstreamPlan, method: str, *, env: Mapping[str, str]
) -> Iterator[str]:
    """When *method*, upper case, is retried, and after how long."""
    yield method
    yield from _mode(values, plan, env)
    words = values.text("retry", "retry_on")
    on = f"{words} (retry.retry_on {values.who('retry', 'retry_on')})"
    if plan.retry.max_attempts == 1:
        yield f"  retried: no, {_only_one(values)}"
        return
    keyed = _key_maker(values, plan, method)
    if method in plan.retry.methods or keyed is not None:
        yield f"  retried: on {on}, {keyed or _listed(values, method)}; {_WHILE_ALLOWED}"
    else:
        yield f"  retried: only if it was never sent, on {on}: {_unlisted(values, plan, method)}"
    yield f"  after: {_pauses(values, plan)}"


def _mode(values: EffectiveValues, plan: UpstreamPlan, env: Mapping[str, str]) -> Iterator[str]:
    override = mode_override(env)
    mode = override or plan.mode
    where = "HEADRACE_MODE" if override else values.who("mode")
    if mode == "observe":
        yield f"  mode is observe ({where}): what follows is counted and not done"
    elif mode == "off":
        yield f"  mode is off ({where}): nothing of what follows is done"


def _retried(
    values: EffectiveValues,
    plan: UpstreamPlan,
    method: str,
    outcome: Outcome,
    answer: Retriability,
    keyed: str | None,
) -> str:
    what = outcome.status if outcome.fault is None else outcome.fault.value
    match answer:
        case Retriability.UNWANTED:
            return f"no, {what} is not in retry.retry_on ({values.who('retry', 'retry_on')})"
        case Retriability.CERTIFICATE:
            return "no, whatever the file says: the peer is not who it should be, or refuses TLS with us"
        case Retriability.LOCAL:
            return (
                "no, whatever the file says: it is trouble of our own, which another attempt would meet again"
            )
        case Retriability.METHOD:
            if plan.retry.max_attempts == 1:
                return f"no, {_only_one(values)}"
            sent = "an answer means that it was sent" if outcome.fault is None else "it may have been sent"
            return f"no, {_unlisted(values, plan, method, sent)}"
        case Retriability.RETRIABLE:
            if plan.retry.max_attempts == 1:
                return f"no, {_only_one(values)}"
            word = _deciding_word(values, ("retry", "retry_on"), outcome)
            if method in plan.retry.methods:
                return f"yes, {word}; {_WHILE_ALLOWED}"
            return f"yes, {word}, and {keyed or f'{method} was never sent'}; {_WHILE_ALLOWED}"
        case Retriability.NOT_REPLAYABLE:
            raise AssertionError("asked about a body that can be sent again")
        case _:
            assert_never(answer)


def _only_one(values: EffectiveValues) -> str:
    return f"retry.max_attempts is 1 ({values.who('retry', 'max_attempts')})"


def _listed(values: EffectiveValues, method: str) -> str:
    return f"{method} is in retry.methods ({values.who('retry', 'methods')})"


def _unlisted(values: EffectiveValues, plan: UpstreamPlan, method: str, sent: str | None = None) -> str:
    header = key_header(plan.retry)
    because = "" if sent is None else f" and {sent}"
    return (
        f"{method} is not in retry.methods ({values.who('retry', 'methods')}){because};"
        f" yes if the call itself sets {header}"
    )


def _key_maker(values: EffectiveValues, plan: UpstreamPlan, method: str) -> str | None:
    """Words for where the idempotency key of a *method* that `methods` leaves out comes from, or None without one."""
    if method in plan.retry.methods:
        return None
    key = plan.retry.idempotency_key
    header = key_header(plan.retry)
    own = next((name for name, _ in plan.headers if name.lower() == header.lower()), None)
    if own is not None:
        return f"{method} carries {own} ({values.who('headers', own)})"
    if key is not None and method in key.methods:
        path = ("retry", "idempotency_key")
        at = (*path, "methods") if values.is_given(*path, "methods") else path
        return f"{method} gets an idempotency key ({dotted(at)} {values.who(*at)})"
    return None


def _pauses(values: EffectiveValues, plan: UpstreamPlan, *, throttled: bool = False) -> str:
    """`0s to 25ms, then 0s to 50ms (retry.backoff.base upstreams.yaml:9)`."""
    throttled = throttled and plan.retry.backoff.throttled_s > plan.retry.backoff.base_s
    names = ("throttled" if throttled else "base", "multiplier", "max", "jitter")
    paths = [("retry", "backoff", name) for name in names]
    given = [path for path in paths if values.is_given(*path)]
    who = (
        ", ".join(f"{dotted(path)} {values.who(*path)}" for path in given) or "retry.backoff built-in default"
    )
    if any(values.text(*path) == MASK for path in paths):
        return f"{MASK} ({who})"
    count = plan.retry.max_attempts - 1
    shown_pauses = range(1, min(count, _SHOWN_PAUSES) + 1)
    ranges = [backoff_range_s(plan.retry.backoff, n, throttled=throttled) for n in shown_pauses]
    shown = [_time(low) if low == high else f"{_time(low)} to {_time(high)}" for low, high in ranges]
    more = ", and so on" if count > _SHOWN_PAUSES else ""
    return f"{', then '.join(shown)}{more} ({who})"


def _asked(values: EffectiveValues, plan: UpstreamPlan) -> str:
    path = ("retry", "retry_after")
    names = " or ".join(header.name for header in plan.retry.retry_after.headers)
    most = values.text(*path, "max")
    return (
        f"what {names} asks for, if that is longer and at most {most}; more ends the call"
        f" ({dotted((*path, 'max'))} {values.who(*path, 'max')})"
    )


def _time(value_s: float) -> str:
    return f"{value_s * 1000:.4g}ms" if 0.0 < value_s < 1.0 else f"{value_s:.4g}s"


def _counted(values: EffectiveValues, plan: UpstreamPlan, outcome: Outcome) -> str:
    breaker = plan.circuit_breaker
    path = ("circuit_breaker", "failure_on")
    # The question is about an attempt that had run long enough. What holds of one cut earlier is said in words.
    verdict = blame(Outcome(outcome.fault, outcome.status, duration_s=float("inf")), breaker)
    fault = outcome.fault
    match verdict:
        case Verdict.SUCCESS:
            unless = ""
            if values.is_given("circuit_breaker", "failure_if") and breaker.failure_if is not None:
                unless = f", unless circuit_breaker.failure_if says so ({values.who('circuit_breaker', 'failure_if')})"
            return f"success: {outcome.status} is not in {dotted(path)} ({values.who(*path)}){unless}"
        case Verdict.IGNORED:
            if fault is Fault.CERTIFICATE or fault not in UPSTREAM_FAULTS:
                return (
                    "neither success nor failure, whatever the file says: it tells nothing about the upstream"
                )
            return (
                f"neither success nor failure: {fault.value} is not in {dotted(path)} ({values.who(*path)})"
            )
        case Verdict.FAILURE:
            word = _deciding_word(values, path, outcome)
            cut = ""
            if fault in _MAY_BE_CUT and breaker.blame_after_s:
                at = ("circuit_breaker", "blame_after")
                cut = f"; cut by a timer, only if it had run for {values.text(*at)} ({dotted(at)} {values.who(*at)})"
            return f"failure: {word}{cut}{_UNENFORCED.get(breaker.mode, '')}"
        case _:
            assert_never(verdict)


def _deciding_word(values: EffectiveValues, path: tuple[str, str], outcome: Outcome) -> str | None:
    """`retry.retry_on has 5xx (upstreams.yaml:12)`, or None when no word covers *outcome*."""
    for index, word in enumerate(values.words(*path)):
        named: Condition = condition([word])
        if named.matches(outcome):
            who = values.who(*path, index) if values.is_given(*path) else values.who(*path)
            return f"{dotted(path)} has {word} ({who})"
    return None
