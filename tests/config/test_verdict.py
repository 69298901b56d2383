"""`headrace explain --method --status --error`: retried or not, after how long, blamed or not, and who says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.cli import main
from headrace.policy.outcome import Fault

FILE = """\
upstreams:
  billing:
    base_url: https://billing.internal
    retry:
      retry_on: [network, 503]
      methods: [GET]
      max_attempts: 6
      backoff: {base: 30ms, jitter: equal}
      idempotency_key: {}
  invoices:
    extends: billing
    base_url: https://invoices.internal
    headers: {x-idem: fixed}
    retry: {idempotency_key: {header: X-Idem, methods: [PATCH]}, backoff: {jitter: decorrelated}}
    circuit_breaker: {mode: disabled, failure_on: [reset, 502]}
  plain:
    base_url: http://plain
  once:
    base_url: http://once
    mode: observe
    retry: {max_attempts: 1}
    circuit_breaker: {blame_after: 0s}
"""
BILLING, INVOICES, PLAIN, ONCE = (
    "https://billing.internal",
    "https://invoices.internal",
    "http://plain",
    "http://once",
)

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u.yaml").write_text(FILE)
    return "u.yaml"


def explained(file: str, capsys: Captured, *arguments: str) -> list[str]:
    """The lines between the order of a call and the effective values."""
    assert main(["explain", file, *arguments]) == 0
    return capsys.readouterr().out.split("\n\n")[2].splitlines()


@pytest.mark.parametrize(
    ("url", "method", "fault", "retried", "counted"),
    [
        pytest.param(
            BILLING,
            "GET",
            "reset",
            "yes, retry.retry_on has network (u.yaml:5); while attempts, budget, deadline and circuit allow",
            "failure: circuit_breaker.failure_on has network (built-in default)",
            id="reset",
        ),
        pytest.param(
            BILLING,
            "PUT",
            "reset",
            "no, PUT is not in retry.methods (u.yaml:6) and it may have been sent; "
            "yes if the call itself sets Idempotency-Key",
            "failure: circuit_breaker.failure_on has network (built-in default)",
            id="PUT may have been sent",
        ),
        pytest.param(
            BILLING,
            "PUT",
            "connect_failure",
            "yes, retry.retry_on has network (u.yaml:5), and PUT was never sent; "
            "while attempts, budget, deadline and circuit allow",
            "failure: circuit_breaker.failure_on has network (built-in default); cut by a timer, only if it had run"
            " for 500ms (circuit_breaker.blame_after built-in default)",
            id="PUT was never sent",
        ),
        pytest.param(
            BILLING,
            "POST",
            "timeout",
            "yes, retry.retry_on has network (u.yaml:5), and POST gets an idempotency key "
            "(retry.idempotency_key u.yaml:9); while attempts, budget, deadline and circuit allow",
            "failure: circuit_breaker.failure_on has network (built-in default); cut by a timer, only if it had run"
            " for 500ms (circuit_breaker.blame_after built-in default)",
            id="POST with a key of ours",
        ),
        pytest.param(
            INVOICES,
            "PUT",
            "reset",
            "yes, retry.retry_on has network (extends billing, u.yaml:5), and PUT carries x-idem (u.yaml:13); "
            "while attempts, budget, deadline and circuit allow",
            "failure: circuit_breaker.failure_on has reset (u.yaml:15), but the breaker is disabled",
            id="a key among the headers",
        ),
        pytest.param(
            INVOICES,
            "GET",
            "timeout",
            "yes, retry.retry_on has network (extends billing, u.yaml:5); "
            "while attempts, budget, deadline and circuit allow",
            "neither success nor failure: timeout is not in circuit_breaker.failure_on (u.yaml:15)",
            id="a fault that failure_on leaves out",
        ),
        pytest.param(
            ONCE,
            "GET",
            "tls_failure",
            "no, retry.max_attempts is 1 (u.yaml:21)",
            "failure: circuit_breaker.failure_on has network (built-in default)",
            id="once",
        ),
        pytest.param(
            PLAIN,
            "GET",
            "certificate",
            "no, whatever the file says: the peer is not who it should be, or refuses TLS with us",
            "neither success nor failure, whatever the file says: it tells nothing about the upstream",
            id="certificate",
        ),
        pytest.param(
            PLAIN,
            "GET",
            "pool_rejected",
            "no, whatever the file says: it is trouble of our own, which another attempt would meet again",
            "neither success nor failure, whatever the file says: it tells nothing about the upstream",
            id="trouble of our own",
        ),
    ],
)
def test_an_attempt_without_an_answer(
    file: str, capsys: Captured, url: str, method: str, fault: str, retried: str, counted: str
) -> None:
    lines = explained(file, capsys, url, "--method", method, "--error", fault)

    assert f"  retried: {retried}" in lines
    assert f"  counted as {counted}" in lines


@pytest.mark.parametrize("fault", list(Fault))
def test_every_error_says_whether_anything_was_sent(file: str, capsys: Captured, fault: Fault) -> None:
    unsent = {Fault.CONNECT_FAILURE, Fault.TLS_FAILURE, Fault.POOL_TIMEOUT, Fault.POOL_REJECTED}
    unsent |= {Fault.DNS_FAILURE, Fault.RESOLVE_TIMEOUT}
    head, *_ = explained(file, capsys, PLAIN, "--error", fault.value.upper())

    assert (
        head == f"GET ended by {fault.value}: it {'was never' if fault in unsent else 'may have been'} sent"
    )


@pytest.mark.parametrize(
    ("url", "pauses"),
    [
        (PLAIN, "0s to 25ms, then 0s to 50ms (retry.backoff built-in default)"),
        (
            BILLING,
            (
                "15ms to 30ms, then 30ms to 60ms, then 60ms to 120ms, and so on"
                " (retry.backoff.base u.yaml:8, retry.backoff.jitter u.yaml:8)"
            ),
        ),
        (
            INVOICES,
            (
                "30ms to 90ms, then 30ms to 270ms, then 30ms to 810ms, and so on"
                " (retry.backoff.base extends billing, u.yaml:8, retry.backoff.jitter u.yaml:14)"
            ),
        ),
    ],
    ids=["defaults", "equal", "decorrelated"],
)
def test_the_first_pauses_are_said_as_ranges(file: str, capsys: Captured, url: str, pauses: str) -> None:
    assert f"  after: {pauses}" in explained(file, capsys, url, "--error", "reset")


def test_what_asks_for_patience_gets_it_and_explain_says_so(file: str, capsys: Captured) -> None:
    for status in ("429", "503"):
        after = "  after: 0s to 1s, then 0s to 1s (retry.backoff built-in default)"
        assert after in explained(file, capsys, PLAIN, "--status", status)
    after = (
        "  after: 500ms to 1s, then 500ms to 1s, then 500ms to 1s, and so on (retry.backoff.jitter u.yaml:8)"
    )
    assert after in explained(file, capsys, BILLING, "--status", "503")


def test_a_written_maximum_cuts_the_default_of_throttled_and_explain_says_so(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 89."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "upstreams: {a: {base_url: http://a, retry: {backoff: {max: 200ms}}},"
        " b: {base_url: http://b, retry: {backoff: {max: 200ms, throttled: 2s}}}}"
    )
    assert main(["explain", "s.yaml", "http://a", "--status", "429"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "after: 0s to 200ms, then 0s to 200ms (retry.backoff.max s.yaml:1)" in out
    assert "retry.backoff.throttled 200ms built-in default, cut to fit" in out
    assert main(["explain", "s.yaml", "http://b", "--status", "429"]) == 0
    assert "after: 0s to 2s, then 0s to 2s (retry.backoff.throttled s.yaml:1," in capsys.readouterr().out


def test_an_answer_may_ask_for_more_and_an_error_cannot(file: str, capsys: Captured) -> None:
    asked = (
        "  or after: what Retry-After asks for, if that is longer and at most 30s; more ends the call"
        " (retry.retry_after.max built-in default)"
    )
    assert asked in explained(file, capsys, PLAIN, "--status", "503")
    assert asked not in explained(file, capsys, PLAIN, "--error", "reset")


def test_what_is_not_retried_has_no_pauses(file: str, capsys: Captured) -> None:
    for arguments in (
        [PLAIN, "--status", "404"],
        [ONCE, "--status", "503"],
        [PLAIN, "--error", "certificate"],
    ):
        assert not [line for line in explained(file, capsys, *arguments) if "after:" in line]


@pytest.mark.parametrize(
    ("url", "method", "retried"),
    [
        pytest.param(
            BILLING,
            "get",
            "on [network, 503] (retry.retry_on u.yaml:5), GET is in retry.methods (u.yaml:6); "
            "while attempts, budget, deadline and circuit allow",
            id="listed",
        ),
        pytest.param(
            BILLING,
            "POST",
            "on [network, 503] (retry.retry_on u.yaml:5), POST gets an idempotency key "
            "(retry.idempotency_key u.yaml:9); while attempts, budget, deadline and circuit allow",
            id="keyed",
        ),
        pytest.param(
            PLAIN,
            "POST",
            "only if it was never sent, on [network, 5xx, 408, 429] (retry.retry_on built-in default): POST is not in"
            " retry.methods (built-in default); yes if the call itself sets Idempotency-Key",
            id="neither",
        ),
        pytest.param(ONCE, "GET", "no, retry.max_attempts is 1 (u.yaml:21)", id="once"),
    ],
)
def test_a_method_by_itself(file: str, capsys: Captured, url: str, method: str, retried: str) -> None:
    lines = explained(file, capsys, url, "--method", method)

    assert lines[0] == method.upper()
    assert f"  retried: {retried}" in lines


def test_a_mode_that_does_not_enforce_is_said_first(
    file: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = "  mode is observe (u.yaml:20): what follows is counted and not done"
    assert explained(file, capsys, ONCE, "--status", "503")[1] == observed
    assert explained(file, capsys, ONCE, "--method", "GET")[1] == observed
    monkeypatch.setenv("HEADRACE_MODE", "off")
    switched_off = "  mode is off (HEADRACE_MODE): nothing of what follows is done"
    assert explained(file, capsys, PLAIN, "--error", "reset")[1] == switched_off


def test_pauses_made_of_a_secret_are_masked(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAUSE", "37ms")
    (tmp_path / "s.yaml").write_text(
        "upstreams: {a: {base_url: http://a, retry: {backoff: {base: '${env:PAUSE}'}}}}"
    )
    assert main(["explain", "s.yaml", "http://a", "--status", "502"]) == 0
    out = capsys.readouterr().out
    assert "  after: *** (retry.backoff.base s.yaml:1)" in out
    assert "37ms" not in out
