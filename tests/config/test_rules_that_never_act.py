"""Rules that can never act are a finding each, and the finding is true: the file is played, and they do not act."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.testing import Simulation
from support.configs import InspectText

BASE = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"


@pytest.mark.parametrize(
    ("yaml", "path", "words"),
    [
        pytest.param("retry: {retry_on: []}", "retry.retry_on", "nothing is ever retried", id="no outcome"),
        pytest.param("retry: {methods: []}", "retry.methods", "only what was never sent", id="no method"),
        pytest.param(
            "retry: {max_attempts: 2, backoff: {base: 16s, max: 20s, jitter: equal}}\n"
            "    timeouts: {deadline: 8s, attempt: 1s}",
            "retry.backoff.base",
            "the first pause, 16s, is not shorter than the deadline 8s at line 5: a retry never fits",
            id="a pause longer than the deadline",
        ),
        pytest.param(
            "retry: {backoff: {base: 20s, max: 20s, jitter: additive}}",
            "retry.backoff.base",
            "than the deadline 15s (the default): a retry never fits",
            id="a pause longer than the default deadline",
        ),
        pytest.param(
            "retry: {budget: {ratio: 0, min_per_second: 0.05}}",
            "retry.budget",
            "allows no retry at all",
            id="a budget below one",
        ),
    ],
)
def test_a_rule_that_makes_no_retry_is_told(
    yaml: str, path: str, words: str, inspect_text: InspectText, tmp_path: Path
) -> None:
    text = f"{BASE}    {yaml}\n"
    (finding,) = inspect_text(text).findings
    assert finding.path == f"upstreams.billing.{path}"
    assert words in finding.message

    (tmp_path / "u.yaml").write_text(text)
    billing = Simulation(tmp_path / "u.yaml", env={}).upstream("billing")
    billing.always(503)
    assert [len(billing.call().headrace.attempts) for _ in range(4)] == [1] * 4


def test_attempts_that_the_budget_can_never_pay_are_told(inspect_text: InspectText, tmp_path: Path) -> None:
    text = (
        f"{BASE}    retry: {{max_attempts: 5, budget: {{ratio: 0, min_per_second: 0.2}}}}\n"
        "    timeouts: {deadline: 9s, attempt: 1s}\n"
    )
    (finding,) = inspect_text(text).findings
    assert finding.path == "upstreams.billing.retry.budget.ratio"
    assert "pays for 2 retries in 10s and traffic earns none (ratio: 0)" in finding.message

    (tmp_path / "u.yaml").write_text(text)
    simulation = Simulation(tmp_path / "u.yaml", env={})
    billing = simulation.upstream("billing")
    billing.always(503)
    made = []
    for _ in range(4):
        made.append(len(billing.call().headrace.attempts))
        simulation.advance("30s")
    assert made == [3] * 4


@pytest.mark.parametrize(
    "budget",
    [
        "{ratio: 0, min_per_second: 0.4}",  # four retries in ten seconds are what five attempts need
        "{ratio: 0.1, min_per_second: 0.2}",  # traffic earns the rest
    ],
)
def test_a_budget_that_may_pay_has_no_finding(budget: str, inspect_text: InspectText) -> None:
    text = f"{BASE}    retry: {{max_attempts: 5, budget: {budget}}}\n    timeouts: {{deadline: 9s, attempt: 1s}}\n"
    assert inspect_text(text).findings == ()


def test_a_call_that_outlives_the_ttl_may_be_paid_for_later(inspect_text: InspectText) -> None:
    budget = "{ratio: 0, min_per_second: 0.2}"
    text = f"{BASE}    retry: {{max_attempts: 5, budget: {budget}}}\n    timeouts: {{deadline: 1m}}\n"
    assert inspect_text(text).findings == ()


def test_a_circuit_for_which_nothing_is_a_failure_is_told(inspect_text: InspectText, tmp_path: Path) -> None:
    text = f"{BASE}    circuit_breaker: {{failure_on: []}}\n"
    (finding,) = inspect_text(text).findings
    assert finding.message == "names no outcome: no call ever fails, so the circuit never opens"

    (tmp_path / "u.yaml").write_text(text)
    billing = Simulation(tmp_path / "u.yaml", env={}).upstream("billing")
    billing.always(503)
    for _ in range(50):
        billing.call()
    assert billing.circuit == "closed"


@pytest.mark.parametrize(
    ("breaker", "said"),
    [
        (
            "failure_on: [], slow_call: {duration: 2s}",
            ["names no outcome: nothing but slow calls opens the circuit"],
        ),
        ("failure_on: [], failure_if: 'operator:not_'", []),
        ("failure_on: [], mode: disabled", []),
    ],
)
def test_what_else_may_open_it_is_no_part_of_that(
    breaker: str, said: list[str], inspect_text: InspectText
) -> None:
    findings = inspect_text(f"{BASE}    circuit_breaker: {{{breaker}}}\n").findings
    assert [finding.message for finding in findings] == said


@pytest.mark.parametrize("mode", ["disabled", "observe"])
def test_a_fallback_behind_a_circuit_that_refuses_nothing_is_told(
    mode: str, inspect_text: InspectText
) -> None:
    (finding,) = inspect_text(
        f"{BASE}    fallback: {{status: 200}}\n    circuit_breaker: {{mode: {mode}}}\n"
    ).findings
    assert finding.path == "upstreams.billing.fallback"
    assert finding.message == f"is never given: a circuit with mode: {mode} at line 5 refuses no call"


def test_a_key_that_no_method_gets_is_told(inspect_text: InspectText) -> None:
    (finding,) = inspect_text(f"{BASE}    retry: {{idempotency_key: {{methods: []}}}}\n").findings
    assert finding.path == "upstreams.billing.retry.idempotency_key.methods"


@pytest.mark.parametrize(
    "yaml",
    [
        "retry: {max_attempts: 1, retry_on: [], methods: []}",
        "retry: {backoff: {base: 3s, max: 10s}}",
        "retry: {methods: [], idempotency_key: {methods: [GET]}}",
        "timeouts: {deadline: 900ms, attempt: 200ms}",  # below the default of `throttled`
        "timeouts: {deadline: null}\n    retry: {backoff: {base: 20m, max: 1h}}",
    ],
)
def test_rules_that_may_act_have_no_finding(yaml: str, inspect_text: InspectText) -> None:
    assert inspect_text(f"{BASE}    {yaml}\n").findings == ()


# --- Told once, where it was written --------------------------------------------------------------------


DEFAULTS = """\
defaults:
  timeouts: {attempt: 4s, deadline: 9s, read: 5s}
  retry: {max_attempts: 4, backoff: {jitter: none}}
upstreams:
  a: {base_url: https://a}
  b: {base_url: https://b}
  c: {base_url: https://c, timeouts: {deadline: 8s}}
  d: {base_url: https://d, extends: c}
  e: {base_url: https://e, extends: d, timeouts: {attempt: 3s}}
"""


def test_a_finding_is_told_once_and_at_the_value_that_brings_it_about(inspect_text: InspectText) -> None:
    found = [(one.path, one.line) for one in inspect_text(DEFAULTS).findings]

    assert sorted(found) == [
        ("defaults.retry.backoff.jitter", 3),
        ("defaults.retry.max_attempts", 3),
        ("defaults.timeouts.read", 2),
        ("upstreams.c.timeouts.deadline", 7),  # with another number than the defaults alone
        ("upstreams.e.timeouts.attempt", 9),  # too little for all attempts
        ("upstreams.e.timeouts.attempt", 9),  # and less than read
    ]


CONTRADICTIONS = """\
defaults:
  pool: {min_idle: 5, max_lifetime_grace: 3s}
  circuit_breaker: {window: {size: 10s}, minimum_calls: 0}
  tls: {insecure_skip_verify: true, verify: false}
upstreams:
  a: {base_url: https://a, pool: {max_lifetime: null}, circuit_breaker: {window: {type: count}}}
  b: {base_url: https://b, extends: a}
  c: {base_url: https://c, tls: {verify: true}}
  d: {base_url: https://d, extends: b, pool: {max_connections: 2}}
  e: {base_url: https://e, extends: d}
"""


def test_a_contradiction_is_told_once_and_at_the_nearer_value(inspect_text: InspectText) -> None:
    problems = inspect_text(CONTRADICTIONS).problems

    assert [(one.path, one.line) for one in problems] == [
        ("defaults.circuit_breaker.minimum_calls", 3),
        ("upstreams.a.pool.max_lifetime", 6),
        ("upstreams.a.circuit_breaker.window.type", 6),
        ("upstreams.c.tls.verify", 8),
        ("upstreams.d.pool.max_connections", 9),
    ]
    assert problems[1].message == (
        "with this, max_lifetime_grace at line 2: has no use: max_lifetime is null (at line 6)"
    )


def test_many_heirs_of_one_bad_value_leave_room_for_the_other_checks(inspect_text: InspectText) -> None:
    heirs = "".join(f"  u{number}: {{base_url: 'http://u{number}'}}\n" for number in range(600))
    text = f"defaults: {{retry: {{max_attempts: x}}, pool: {{min_idle: 3, max_connections: 2}}}}\nupstreams:\n{heirs}"

    problems = inspect_text(text).problems

    assert [one.path for one in problems] == ["defaults.retry.max_attempts", "defaults.pool.min_idle"]
