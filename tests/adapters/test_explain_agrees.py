"""What `headrace explain` says about an outcome is what becomes of a real call that ends in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from headrace.cli import main
from support.faultserver import Answer, Break, FaultServer, Raw, Silence
from support.governed import rules, running

RULES = """\
    timeouts: {attempt: 500ms}
    retry:
      max_attempts: 2
      methods: [GET, PUT]
      backoff: {base: 1ms, throttled: 1ms}
      idempotency_key: {methods: [PATCH]}
    circuit_breaker: {consecutive_failures: null, blame_after: 0s}
"""
ENDS = {
    "reset": Break("request"),
    "timeout": Silence(),
    "protocol_error": Raw(b"nonsense\r\n\r\n"),
}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def said(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[bool, str]:
    """Whether it would be retried, and what the circuit is told."""
    assert main(["explain", str(folder / "upstreams.yaml"), *arguments]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    retried = next(line for line in lines if line.startswith("retried: "))
    counted = next(line for line in lines if line.startswith("counted as ")).removeprefix("counted as ")
    verdict = "ignored" if counted.startswith("neither") else counted.partition(":")[0]
    return retried.startswith("retried: yes"), verdict


def done(url: str, method: str) -> tuple[bool, str]:
    """Whether it was retried, and what the circuit was told of the first attempt."""
    try:
        record = requests.request(method, url, data=b"body" if method != "GET" else None).headrace
    except requests.RequestException as error:
        record = error.headrace  # type: ignore[attr-defined]
    return len(record.attempts) > 1, record.attempts[0].verdict


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "PATCH"])
@pytest.mark.parametrize("status", [200, 404, 408, 429, 500, 501, 503])
def test_explain_says_of_an_answer_what_becomes_of_it(
    tmp_path: Path, server: FaultServer, capsys: pytest.CaptureFixture[str], method: str, status: int
) -> None:
    server.always(Answer(status))
    with running(tmp_path, rules(server.url, RULES)):
        assert done(server.url, method) == said(
            tmp_path, capsys, server.url, "--method", method, "--status", str(status)
        )


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("fault", [*ENDS, "connect_failure"])
def test_explain_says_of_an_error_what_becomes_of_it(
    tmp_path: Path, server: FaultServer, capsys: pytest.CaptureFixture[str], method: str, fault: str
) -> None:
    if fault == "connect_failure":
        server.refuse()
    else:
        server.always(ENDS[fault])
    with running(tmp_path, rules(server.url, RULES)):
        assert done(server.url, method) == said(
            tmp_path, capsys, server.url, "--method", method, "--error", fault
        )
