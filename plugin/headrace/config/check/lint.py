"""Findings that are not errors: rules that hold, but probably not as their author thinks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from headrace.config.check.exposure import in_the_clear, without_pair
from headrace.config.check.problems import Path, Problem
from headrace.config.settings import CircuitBreaker, Settings, Upstream
from headrace.config.source.tree import MASK
from headrace.config.source.units import format_duration
from headrace.config.source.written import Rank, Written


def lint(settings: Settings, written: Written) -> Iterator[Problem]:
    """What is worth a second look. Nothing is said that only built-in defaults bring about."""
    longest = ("service", "deadline", "max")
    if settings.service.deadline.header is None and written.is_given(longest):
        yield written.problem(
            longest,
            "has no effect: it limits what a header says, and service.deadline has no header",
            "give a header as well (for example X-Request-Timeout), or remove it",
        )
    if settings.telemetry.tracing == "spans" and not _has_opentelemetry():
        yield written.problem(
            ("telemetry", "tracing"),
            "spans: nothing is traced without opentelemetry-api, which is not installed here",
            "install opentelemetry-api where the application runs",
        )
    yield from in_the_clear(settings, written)
    yield from without_pair(settings, written)
    for name, upstream in settings.upstreams.items():
        base: Path = ("upstreams", name)
        yield from _timeouts(upstream, base, written)
        yield from _retries(upstream, base, written)
        if upstream.pool.when_full != "wait" and written.is_given((*base, "pool", "max_waiting")):
            yield written.problem_between(
                (*base, "pool", "max_waiting"),
                (*base, "pool", "when_full"),
                f"has no effect: with when_full: {upstream.pool.when_full} nobody waits",
                "remove it",
            )
        yield from _breaker(upstream, base, written)
        yield from _fallback(upstream, base, written)
        if not upstream.tls.verify:
            yield written.problem(
                (*base, "tls", "verify"),
                "false: anyone who can reach the connection can read and change it",
                "write: ca: with the file of the authority that signed the upstream's certificate",
            )


def _breaker(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    breaker, base = upstream.circuit_breaker, (*base, "circuit_breaker")
    if breaker.mode == "forced_open":
        yield written.problem(
            (*base, "mode"),
            "forced_open: every call is refused, and nothing finds out whether it still has to be",
        )
    yield from _never_fails(breaker, base, written)
    threshold = (*base, "slow_call", "rate_threshold")
    if breaker.slow_call.duration is None and written.is_given(threshold):
        yield written.problem_between(
            threshold,
            (*base, "slow_call", "duration"),
            "has no effect: no call is slow as long as duration is null",
            "give duration as well",
        )
    run = (*base, "consecutive_failures")
    if written.is_given(run) and _is_never_asked(breaker):
        yield written.problem_between(
            run,
            (*base, "minimum_calls"),
            f"has no effect: it is asked while fewer than minimum_calls {breaker.minimum_calls} are known, and so "
            "many in a row are not fewer",
            "write: consecutive_failures: null, or raise minimum_calls",
        )


def _never_fails(breaker: CircuitBreaker, base: Path, written: Written) -> Iterator[Problem]:
    if breaker.failure_on or breaker.mode not in ("enforce", "observe"):
        return
    if breaker.failure_if is not None:
        return  # a failure by what the answer holds alone: that can be meant
    if breaker.slow_call.duration is not None:
        message, fix = "names no outcome: nothing but slow calls opens the circuit", ""
    else:
        message = "names no outcome: no call ever fails, so the circuit never opens"
        fix = "remove it, or write beside it: mode: disabled if that is meant"
    yield written.problem((*base, "failure_on"), message, fix)


def _fallback(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    mode = upstream.circuit_breaker.mode
    if upstream.fallback is None or mode not in ("disabled", "observe"):
        return
    table, where = (*base, "fallback"), (*base, "circuit_breaker", "mode")
    yield written.problem_between(
        table,
        where,
        f"is never given: a circuit with mode: {mode} {written.where(where, beside=written.mark(table))}"
        " refuses no call",
        "remove it, or write: circuit_breaker: {mode: enforce}",
    )


def _is_never_asked(breaker: CircuitBreaker) -> bool:
    """Whether no run of failed calls can be reached while the rate means nothing yet."""
    run, least = breaker.consecutive_failures, breaker.minimum_calls
    if run is None:
        return False
    # In time, a run may be longer than what the window still holds.
    forgets = breaker.window.type == "time" or breaker.window.max_age is not None
    return least == 1 if forgets else run >= least


def _has_opentelemetry() -> bool:
    """Whether it could be imported. Only its empty parent package is."""
    try:
        return find_spec("opentelemetry.trace") is not None
    except ImportError:  # not even the parent
        return False


def _timeouts(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    timeouts = upstream.timeouts
    read, attempt = (*base, "timeouts", "read"), (*base, "timeouts", "attempt")
    if timeouts.read > timeouts.attempt and written.is_given(read):
        yield written.problem_between(
            read,
            attempt,
            f"{written.shown(read, format_duration(timeouts.read))} is longer than the attempt"
            f" {written.shown(attempt, format_duration(timeouts.attempt))}"
            f" {written.where(attempt, beside=written.mark(read))}: it applies to the body only",
        )

    resolve, connect = (*base, "timeouts", "resolve"), (*base, "timeouts", "connect")
    if timeouts.resolve > timeouts.connect and written.is_given(resolve):
        whole_s = format_duration(timeouts.connect)
        yield written.problem(
            resolve,
            f"{written.shown(resolve, format_duration(timeouts.resolve))} is longer than the connect"
            f" {written.shown(connect, whole_s)} {written.where(connect, beside=written.mark(resolve))}, which it is"
            " a part of: it could never apply",
            f"write: resolve: {whole_s}",
        )

    handshake = (*base, "timeouts", "tls_handshake")
    if upstream.base_url.origin.scheme == "http" and written.rank(handshake) is Rank.OWN:
        yield written.problem(handshake, "has no effect: the base_url is http", "remove it")


def _retries(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    retry, timeouts = upstream.retry, upstream.timeouts
    attempts = (*base, "retry", "max_attempts")
    deadline, attempt = (*base, "timeouts", "deadline"), (*base, "timeouts", "attempt")
    given = [path for path in (attempts, deadline, attempt) if written.is_given(path)]
    if (
        given
        and timeouts.deadline is not None
        and (retry.max_attempts - 1) * timeouts.attempt >= timeouts.deadline
    ):
        count = written.shown(attempts, str(retry.max_attempts))
        attempt_text = written.shown(
            attempt if written.is_given(attempt) else deadline, format_duration(timeouts.attempt)
        )
        deadline_text = written.shown(deadline, format_duration(timeouts.deadline))
        message = f"{count} attempts of {attempt_text} do not fit the deadline {deadline_text}"
        if MASK not in message:
            fitting = max(int(timeouts.deadline // timeouts.attempt), 1)
            message += f": if they hang, there is time for {fitting}"
        nearest = min(given, key=written.distance)
        yield written.problem(nearest, message, "shorten attempt, or lower max_attempts")
    multiplier, jitter = (*base, "retry", "backoff", "multiplier"), (*base, "retry", "backoff", "jitter")
    if retry.backoff.jitter == "decorrelated" and written.is_given(multiplier):
        yield written.problem_between(
            multiplier,
            jitter,
            f"has no effect: jitter: decorrelated {written.where(jitter, beside=written.mark(multiplier))} grows"
            " from the wait before",
            "remove it",
        )
    if retry.backoff.jitter == "none" and retry.max_attempts > 1:
        yield written.problem(
            jitter,
            "none: callers that failed at one moment come back at one moment",
            "write: jitter: full",
        )
    if retry.max_attempts > 1:
        yield from _never_retried(upstream, base, written)
        yield from _unpaid(upstream, base, written)
        yield from _pauses(upstream, base, written)


def _never_retried(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    """Lists that leave nothing to be retried. Their defaults are not empty, so an empty one was written."""
    retry = upstream.retry
    if not retry.retry_on:
        yield written.problem(
            (*base, "retry", "retry_on"),
            "names no outcome: nothing is ever retried",
            "remove it, or write beside it: max_attempts: 1 if that is meant",
        )
    elif not retry.methods and retry.idempotency_key is None:
        yield written.problem(
            (*base, "retry", "methods"),
            "names no method: only what was never sent, or brings an idempotency key of its own, is retried",
            "name the methods that may be repeated, or write beside it: max_attempts: 1 if that is meant",
        )
    if retry.idempotency_key is not None and not retry.idempotency_key.methods:
        yield written.problem(
            (*base, "retry", "idempotency_key", "methods"),
            "names no method: no call ever gets a key",
            "name the methods that get one, or write: idempotency_key: null",
        )


def _unpaid(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    """Attempts that the budget can never pay: without a ratio, traffic earns nothing (`policy.retry.RetryBudget`)."""
    retry, budget = upstream.retry, upstream.retry.budget
    reserve = int(budget.min_per_second * budget.ttl + 1e-9)  # retries in any ttl
    retries = retry.max_attempts - 1
    if budget.ratio > 0 or reserve >= retries:
        return
    if reserve == 0:
        yield written.problem(
            (*base, "retry", "budget"),
            "allows no retry at all",
            "write: retry: {max_attempts: 1} if that is meant",
        )
        return
    deadline_s = upstream.timeouts.deadline
    if deadline_s is None or deadline_s > budget.ttl:
        return  # what the first retries cost may come back within the call
    paths: list[Path] = [(*base, "retry", "budget", name) for name in ("ratio", "min_per_second", "ttl")]
    paths.append((*base, "retry", "max_attempts"))
    place = min((path for path in paths if written.is_given(path)), key=written.distance)
    if any(written.is_secret(path) for path in paths):
        message = "can never pay for all the attempts of one call"
    else:
        message = (
            f"the budget pays for {reserve} retr{'y' if reserve == 1 else 'ies'} in {format_duration(budget.ttl)}"
            f" and traffic earns none (ratio: 0), so a call never makes its {retry.max_attempts} attempts"
        )
    yield written.problem(place, message, "raise ratio or min_per_second, or lower max_attempts")


def _pauses(upstream: Upstream, base: Path, written: Written) -> Iterator[Problem]:
    """A first pause that the deadline does not leave the time for."""
    backoff, deadline_s = upstream.retry.backoff, upstream.timeouts.deadline
    deadline = (*base, "timeouts", "deadline")
    if deadline_s is None:
        return
    words = {"base": "a retry", "throttled": "a retry of what was throttled (429)"}
    for name, pause_s in (("base", backoff.base), ("throttled", backoff.throttled)):
        path = (*base, "retry", "backoff", name)
        # One second is the default of `throttled`, and deadlines below it are common: that one alone is not told.
        is_written = written.is_given(path) or (name == "base" and written.is_given(deadline))
        if pause_s < deadline_s or not is_written:
            continue
        shortest_s = pause_s * _SHORTEST_PART[backoff.jitter]
        pause = written.shown(path, format_duration(pause_s))
        limit = written.shown(deadline, format_duration(deadline_s))
        where = (
            written.where(deadline, beside=written.mark(path))
            if written.is_given(deadline)
            else "(the default)"
        )
        yield written.problem_between(
            path,
            deadline,
            f"the first pause, {pause}, is not shorter than the deadline {limit} {where}: "
            f"{words[name]} {'never fits' if shortest_s >= deadline_s else 'fits only where jitter draws a short one'}",
            f"shorten {name}, or lengthen deadline",
        )


_SHORTEST_PART = {"full": 0.0, "equal": 0.5, "additive": 1.0, "decorrelated": 1.0, "none": 1.0}
"""By jitter, the shortest first pause as a part of the longest (`policy.backoff`)."""
