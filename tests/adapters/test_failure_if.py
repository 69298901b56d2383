"""`failure_if`: an error inside a 200 is a failure to the circuit. Real sockets, both libraries."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import requests

import headrace
from support.faultserver import Answer, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, Surface

asked: list[str] = []


def is_error(response: Any) -> bool:
    """What an application would write: the body says whether it worked."""
    asked.append(type(response).__name__)  # not the response: it would keep its pool
    body = response.content if isinstance(response, requests.Response) else response.data
    return b'"error"' in body


def raises(response: Any) -> bool:
    raise KeyError("secret-token")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "shop_rules", sys.modules[__name__])
    asked.clear()


def body(function: str = "is_error", more: str = "") -> str:
    breaker = f"{{consecutive_failures: 2, failure_if: 'shop_rules:{function}'}}"
    return f"    circuit_breaker: {breaker}\n{more}"


BAD = Answer(200, body=b'{"error": "no stock"}')


def test_an_error_inside_a_200_counts_as_a_failure_and_is_not_retried(tmp_path: Path, call: Surface) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, body(), more=INSTALL)) as hr,
    ):
        server.always(BAD)
        answers = [call(hr, server.url) for _ in range(2)]

        assert [one.headrace.attempts[0].verdict for one in answers] == ["failure", "failure"]
        assert [one.headrace.reason.value for one in answers] == ["success", "success"]  # it was an answer
        assert len(server.requests) == 2
        with pytest.raises(headrace.CircuitOpenError):
            call(hr, server.url)


def test_an_answer_that_it_accepts_counts_by_its_status(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body())) as hr:
        server.next(Answer(200), Answer(501))
        assert requests.get(server.url).headrace.attempts[0].verdict == "success"
        assert requests.get(server.url).headrace.attempts[0].verdict == "success"
        assert hr.snapshot.upstream("billing").learned.circuit.state == "closed"


def test_it_is_not_asked_about_a_streamed_answer_whose_body_is_the_callers_to_read(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body())) as hr:
        server.always(BAD)
        with requests.get(server.url, stream=True) as response:
            assert response.headrace.attempts[0].verdict == "success"
        hr.upstream("billing").urlopen("GET", "/", preload_content=False).release_conn()
        assert asked == []


def test_one_that_raises_is_said_once_without_its_text_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body("raises"))) as hr:
        with caplog.at_level(logging.ERROR, "headrace"):
            for _ in range(3):
                assert requests.get(server.url).status_code == 200

        assert hr.snapshot.upstream("billing").learned.circuit.state == "closed"
        (line,) = [one.getMessage() for one in caplog.records if "failure_if" in one.getMessage()]
        assert "KeyError" in line
        assert "secret-token" not in line


def test_observed_calls_are_judged_too(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, body(more="    mode: observe\n"))) as hr,
    ):
        server.always(BAD)
        for _ in range(3):
            assert requests.get(server.url).json() == {"error": "no stock"}
        assert hr.snapshot.upstream("billing").learned.circuit.state == "open"


def test_it_is_not_asked_where_the_status_says_it_already(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, body())) as hr:
        server.next(Answer(503), Answer(404))
        assert requests.post(server.url).headrace.attempts[0].verdict == "failure"
        assert asked == []
        assert hr.upstream("billing").get("/").status_code == 404
        assert asked == ["Response"]
