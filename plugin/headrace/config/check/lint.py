"""Findings that are not errors: rules that hold, but probably not as their author thinks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

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
            "write beside it: header: X-Request-Timeout, or remove it",
        )
    if settings.telemetry.tracing == "spans" and not _has_opentelemetry():
        yield written.problem(
            ("telemetry", "tracing"),
            "spans: nothing is traced without opentelemetry-api, which is not installed here",
            "install opentelemetry-api where the application runs",
        )
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
    if retry.max_attempts > 1 and retry.budget.ratio == 0 and retry.budget.min_per_second == 0:
        yield written.problem(
            (*base, "retry", "budget"),
            "allows no retry at all",
            "write: retry: {max_attempts: 1} if that is meant",
        )
