"""A streamed answer is judged at its head; a body that breaks off later turns the verdict. Real sockets."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL, Surface, read

pytestmark = pytest.mark.both_parsers

RULES = "    retry: {max_attempts: 1}\n    circuit_breaker: {consecutive_failures: 2}\n"
BROKEN = (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, urllib3.exceptions.HTTPError)


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_body_that_breaks_off_turns_the_success_into_a_failure(
    tmp_path: Path, call: Surface, how: Any
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        server.always(Break(at="body", how=how))
        circuit = hr.snapshot.upstream("billing").learned.circuit
        for failures in (1, 2):
            answer = call(hr, server.url, stream=True)
            assert answer.headrace.attempts[0].verdict == "success"
            with pytest.raises(BROKEN):
                read(answer)
            assert answer.headrace.attempts[0].verdict == "failure"
            assert hr.status()["upstreams"]["billing"]["broken_bodies"] == failures
        assert circuit.state == "open"


def test_a_body_read_to_its_end_or_closed_early_stays_a_success(tmp_path: Path, call: Surface) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES, more=INSTALL)) as hr:
        for _ in range(3):
            assert read(call(hr, server.url, stream=True)) == b"ok"
            call(hr, server.url, stream=True).close()
        view = hr.status()["upstreams"]["billing"]
        assert (view["circuit_breaker"]["failures"], view["broken_bodies"]) == (0, 0)


def test_silence_in_the_body_is_a_failure_once_it_has_lasted(tmp_path: Path) -> None:
    body = RULES + "    timeouts: {read: 200ms}\n"
    assert "blame_after" not in body
    body = body.replace("circuit_breaker: {", "circuit_breaker: {blame_after: 20s, ")
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Answer(body=b"x" * 40, drip_body_s=5.0))
        answer = requests.get(server.url, stream=True)
        with pytest.raises(requests.RequestException):
            read(answer)
        # Cut by our own timer before `blame_after`: says nothing about the upstream.
        assert answer.headrace.attempts[0].verdict == "success"

        answer = requests.get(server.url, stream=True)
        answer.headrace._outcomes[-1].started_s -= 30.0
        with pytest.raises(requests.RequestException):
            read(answer)
        assert answer.headrace.attempts[0].verdict == "failure"


def test_an_error_of_the_body_carries_the_record(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES)) as hr:
        server.always(Break(at="body"))
        answer = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
        with pytest.raises(urllib3.exceptions.HTTPError) as caught:
            answer.read()
        assert caught.value.headrace is answer.headrace  # type: ignore[attr-defined]
        assert "the body broke off" in caught.value.__notes__[0]


def test_an_answer_that_is_dropped_unread_is_still_collected_at_once(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, RULES)) as hr:
        gc.disable()
        try:
            answer = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
            gone = weakref.ref(answer)
            del answer
            assert gone() is None
        finally:
            gc.enable()
