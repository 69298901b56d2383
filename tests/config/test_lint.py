"""Findings: rules that hold, but hardly as their author thinks."""

from __future__ import annotations

import pytest

from support.configs import InspectText

BASE = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"


@pytest.mark.parametrize(
    ("yaml", "path", "words"),
    [
        pytest.param(
            "timeouts: {read: 10s}",
            "timeouts.read",
            "applies to the body only",
            id="read-above-attempt",
        ),
        pytest.param(
            "timeouts: {connect: 1s, resolve: 1500ms}",
            "timeouts.resolve",
            "1.5s is longer than the connect 1s at line 4, which it is a part of: it could never apply",
            id="resolve-above-connect",
        ),
        pytest.param(
            "retry: {max_attempts: 5}",
            "retry.max_attempts",
            "there is time for 3",
            id="attempts-above-deadline",
        ),
        pytest.param(
            "timeouts: {deadline: 5s}",
            "timeouts.deadline",
            "3 attempts of 4s do not fit the deadline 5s",
            id="deadline",
        ),
        pytest.param(
            "tls: {verify: false, insecure_skip_verify: true}",
            "tls.verify",
            "can read and change",
            id="verify",
        ),
        pytest.param(
            "pool: {when_full: new, max_waiting: 5}", "pool.max_waiting", "nobody waits", id="max-waiting"
        ),
        pytest.param(
            "retry: {budget: {ratio: 0, min_per_second: 0}}", "retry.budget", "no retry at all", id="budget"
        ),
        pytest.param(
            "circuit_breaker: {mode: forced_open}",
            "circuit_breaker.mode",
            "every call is refused",
            id="forced-open",
        ),
        pytest.param(
            "circuit_breaker: {slow_call: {rate_threshold: 0.5}}",
            "circuit_breaker.slow_call.rate_threshold",
            "no call is slow as long as duration is null",
            id="slow-call-threshold",
        ),
        pytest.param(
            "circuit_breaker: {window: {type: count}, minimum_calls: 5, consecutive_failures: 5}",
            "circuit_breaker.consecutive_failures",
            "has no effect: it is asked while fewer than minimum_calls 5 are known",
            id="a-run-that-is-never-asked",
        ),
        pytest.param(
            "circuit_breaker: {minimum_calls: 1, consecutive_failures: 5}",
            "circuit_breaker.consecutive_failures",
            "has no effect",
            id="a-run-that-is-never-asked-in-time",
        ),
        pytest.param(
            "retry: {backoff: {jitter: none}}", "retry.backoff.jitter", "come back at one moment", id="none"
        ),
        pytest.param(
            "retry: {backoff: {jitter: decorrelated, multiplier: 3}}",
            "retry.backoff.multiplier",
            "has no effect: jitter: decorrelated at line 4",
            id="decorrelated",
        ),
    ],
)
def test_finding(inspect_text: InspectText, yaml: str, path: str, words: str) -> None:
    inspection = inspect_text(f"{BASE}    {yaml}\n")
    assert inspection.problems == ()
    (finding,) = inspection.findings
    assert finding.path == f"upstreams.billing.{path}"
    assert finding.line == 4
    assert words in finding.message
    assert inspection.configuration is not None
    assert inspection.configuration.warnings == (str(finding),)


def test_finding_in_defaults_is_said_once(inspect_text: InspectText) -> None:
    inspection = inspect_text(
        "defaults: {timeouts: {read: 10s}}\nupstreams: {a: {base_url: http://a}, b: {base_url: http://b}}"
    )
    assert [finding.path for finding in inspection.findings] == ["defaults.timeouts.read"]


def test_a_limit_of_inbound_deadlines_that_no_header_brings_has_no_effect(inspect_text: InspectText) -> None:
    (finding,) = inspect_text(f"service: {{deadline: {{max: 5s}}}}\n{BASE}").findings
    assert finding.path == "service.deadline.max"
    assert "has no effect" in finding.message
    assert inspect_text(f"service: {{deadline: {{header: X-T, max: 5s}}}}\n{BASE}").findings == ()


@pytest.mark.parametrize(
    "yaml",
    [
        "timeouts: {attempt: 2s}",
        "timeouts: {connect: 1s}",
        "timeouts: {connect: 1s, resolve: 1s}",
        "retry: {max_attempts: 1}",
        "timeouts: {deadline: null}",
    ],
)
def test_sound_rule_has_no_finding(inspect_text: InspectText, yaml: str) -> None:
    assert inspect_text(f"{BASE}    {yaml}\n").findings == ()


def test_a_handshake_limit_without_tls_is_a_finding_where_it_is_written_for_that_upstream(
    inspect_text: InspectText,
) -> None:
    inspection = inspect_text(
        "defaults: {timeouts: {tls_handshake: 1s}}\n"
        "upstreams:\n"
        "  a: {base_url: http://a, timeouts: {tls_handshake: 1s}}\n"
        "  b: {base_url: http://b}\n"
        "  c: {base_url: https://c, timeouts: {tls_handshake: 1s}}\n"
    )
    assert [(one.path, one.line) for one in inspection.findings] == [
        ("upstreams.a.timeouts.tls_handshake", 3)
    ]
