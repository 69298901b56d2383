"""What a call tells about itself: on responses and exceptions, in numbers and in words."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

import headrace
from headrace.policy.decision import EndReason
from headrace.policy.outcome import Outcome
from headrace.policy.record import Record
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running

STEADY = "    retry: {backoff: {base: 20ms, throttled: 1ms, jitter: none}}\n"
URLLIB3 = "install: {urllib3: true}\n"

Send = Callable[[str, str], Any]


def by_requests(method: str, url: str) -> Any:
    return requests.request(method, url, data=b"order" if method == "POST" else None)


def by_urllib3(method: str, url: str) -> Any:
    with urllib3.PoolManager() as manager:
        return manager.request(method, url, body=b"order" if method == "POST" else None)


@pytest.fixture(params=[by_requests, by_urllib3])
def send(request: pytest.FixtureRequest) -> Send:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def told(error: BaseException) -> list[str]:
    """The notes of *error*, times and ids masked, and the wait that only a loaded machine tells of."""
    masked = [re.sub(r"[0-9a-f]{32}", "ID", re.sub(r"\d+\.\d+ s", "N s", one)) for one in error.__notes__]
    return [one.replace(", waited N s for it", "") for one in masked]


def withheld(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [one for one in caplog.records if getattr(one, "event", "") == "retries.withheld"]


def test_a_post_that_is_not_retried_says_so_on_its_answer_and_once_in_the_log(
    tmp_path: Path, server: FaultServer, send: Send, caplog: pytest.LogCaptureFixture
) -> None:
    """Not retried by default, and the note says why, with the key that changes it.

    failures.md 10.
    """
    caplog.set_level("INFO")
    with running(tmp_path, rules(server.url, STEADY, more=URLLIB3)) as hr:
        server.always(Answer(503, body=b"busy"))
        for _ in range(3):
            response = send("POST", server.url)
            assert response.headrace.denied is EndReason.METHOD
            assert response.headrace.why == (
                "not retried: POST may have arrived, and retry.methods does not name it "
                "(name it there, or send an Idempotency-Key)"
            )
        assert len(server.requests) == 3
        (said,) = withheld(caplog)
        assert (said.method, said.reason) == ("POST", "method")
        assert "test_record.py:" in said.call_site
        assert "POST may have arrived" in said.getMessage()
        assert hr.status()["upstreams"]["billing"]["retry"]["denied"] == {"method": 3}


def test_a_body_that_can_be_sent_once_is_said_as_well(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with running(tmp_path, rules(server.url, "    retry: {methods: [PUT]}\n")):
        server.always(Answer(503))
        response = requests.put(server.url, data=iter([b"a"]))
        assert response.headrace.denied is EndReason.NOT_REPLAYABLE
        assert [one.reason for one in withheld(caplog)] == ["not_replayable"]


def test_where_the_file_wants_no_retries_nobody_is_told_of_one_that_was_not_made(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with running(tmp_path, rules(server.url, "    retry: {max_attempts: 1}\n")):
        server.always(Answer(503))
        requests.post(server.url)
        assert withheld(caplog) == []


def test_an_answer_that_no_rule_wants_repeated_was_denied_nothing(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with running(tmp_path, rules(server.url)):
        for status in (200, 404, 501):
            server.next(Answer(status))
            record = requests.post(server.url).headrace
            assert (record.reason, record.denied) == (EndReason.SUCCESS, None)
        assert withheld(caplog) == []


def test_an_exception_tells_each_attempt_each_pause_and_why_there_was_no_further_one(
    tmp_path: Path, server: FaultServer, send: Send
) -> None:
    """`Max retries exceeded` says nothing of what was tried.

    failures.md 16.
    """
    with running(tmp_path, rules(server.url, STEADY, more=URLLIB3)):
        server.next(Answer(503, close=True), Break("request"), Break("body", "fin"))
        with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
            send("GET", server.url)

        assert told(caught.value) == [
            'headrace: upstream "billing" attempt 1: 503 after N s (connected in N s)',
            'headrace: upstream "billing" attempt 2, N s later: reset after N s (connected in N s)',
            'headrace: upstream "billing" attempt 3, N s later: reset after N s (connected in N s)',
            'headrace: upstream "billing" not retried: retry.max_attempts are used up (attempts, request id ID)',
        ]
        attempts = caught.value.headrace.attempts  # type: ignore[union-attr]
        assert [one.outcome for one in attempts] == ["5xx", "reset", "reset"]


def test_a_single_attempt_is_not_told_as_if_there_had_been_more(
    tmp_path: Path, server: FaultServer, send: Send
) -> None:
    with running(tmp_path, rules(server.url, "    retry: {max_attempts: 1}\n", more=URLLIB3)):
        server.refuse()
        with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
            send("GET", server.url)
        assert told(caught.value) == [
            'headrace: upstream "billing" attempt 1: connect_failure after N s (not connected)',
            'headrace: upstream "billing" not retried: retry.max_attempts are used up (attempts, request id ID)',
        ]


def test_the_pauses_and_the_sequence_of_the_record_are_those_of_the_wire(
    tmp_path: Path, server: FaultServer, send: Send
) -> None:
    with running(tmp_path, rules(server.url, STEADY, more=URLLIB3)):
        server.next(Answer(503), Answer(503))
        attempts = send("GET", server.url).headrace.attempts

        assert attempts[0].paused_s == 0.0
        assert 0.02 <= attempts[1].paused_s < 0.2
        assert 0.04 <= attempts[2].paused_s < 0.4
        assert [str(one.retry_seq) for one in attempts[1:]] == [
            one.header("X-Retry-Seq") for one in server.requests[1:]
        ]
        assert [one.sent for one in attempts] == [True] * 3


def test_an_attempt_that_never_left_does_not_count_as_one_that_may_have_arrived(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, STEADY)):
        server.refuse()
        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)
        attempts = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert [(one.sent, one.retry_seq) for one in attempts] == [(False, 0)] * 3


def test_a_record_pickles_with_all_it_says(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, STEADY)):
        server.next(Answer(503))
        record = requests.get(server.url).headrace

        again = pickle.loads(pickle.dumps(record))

        assert again == record
        assert (again.attempts, again.why, again.notes()) == (record.attempts, record.why, record.notes())


def test_a_refusal_has_the_story_of_what_was_tried_before(tmp_path: Path, server: FaultServer) -> None:
    body = (
        "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n    circuit_breaker: {consecutive_failures: 1}\n"
    )
    with running(tmp_path, rules(server.url, body)):
        server.always(Break("request"))
        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)
        assert told(caught.value)[-1].startswith(
            'headrace: upstream "billing" not retried: retry.max_attempts are used up (attempts'
        )
        with pytest.raises(headrace.CircuitOpenError) as refused:
            requests.get(server.url)
        (note,) = told(refused.value)
        assert note.startswith('headrace: upstream "billing" not sent: the circuit lets nothing through')


@pytest.mark.parametrize("reason", EndReason)
@pytest.mark.parametrize("attempts", [0, 1])
def test_each_reason_has_words(reason: EndReason, attempts: int) -> None:
    record = Record("billing", "POST", None, reason, None, "d", [Outcome()] * attempts, [])
    assert re.fullmatch(r"[a-z][^{}]{10,}", record.why)


def test_the_error_of_a_streamed_body_leads_to_the_record(tmp_path: Path, server: FaultServer) -> None:
    """requests makes an error of its own of it, when the call is long over."""
    with running(tmp_path, rules(server.url)):
        server.always(Break("body", "rst"))
        answer = requests.get(server.url, stream=True)
        with pytest.raises(requests.RequestException) as caught:
            answer.content  # noqa: B018
    record = headrace.record_of(caught.value)
    assert record is not None
    assert record.upstream == "billing"
    assert [one.verdict for one in record.attempts] == ["failure"]


def test_the_error_of_an_answer_leads_to_the_record(tmp_path: Path, server: FaultServer) -> None:
    """Those of requests have the answer as `response`, and so have many of those that SDKs make of it."""

    class OfAnSdk(Exception):
        def __init__(self, response: Any) -> None:
            self.response = response

    class Hostile(Exception):
        @property
        def response(self) -> Any:
            raise LookupError

    with running(tmp_path, rules(server.url)):
        server.always(Answer(404))
        answer = requests.get(server.url)
        with pytest.raises(requests.HTTPError) as caught:
            answer.raise_for_status()
    assert headrace.record_of(caught.value) is headrace.record_of(answer) is not None
    assert headrace.record_of(OfAnSdk(answer)) is headrace.record_of(answer)
    assert headrace.record_of(Hostile()) is None
    assert headrace.record_of(ValueError("of nothing")) is None
