"""SDKs and decorators that retry above the call: served as they expect, and never multiplied."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import tenacity
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running
from support.sdks import BotocoreLike, SdkApiError, SdkConnectionError, StripeLike

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms, max: 2ms}}\n"
CALLS = 20
# A reserve of 10 retries, and a fifth of the first attempts.
STORM = (
    "    retry: {backoff: {base: 1ms, throttled: 1ms, max: 2ms}, budget: {ratio: 0.2, min_per_second: 1, ttl: 10s}}\n"
    "    circuit_breaker: {mode: disabled}\n"
)
MORE = "install: {urllib3: true}\n"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def stripe(server: FaultServer) -> Iterator[StripeLike]:
    client = StripeLike(server.url, max_network_retries=2)
    yield client
    client.close()


@pytest.fixture
def botocore(server: FaultServer) -> Iterator[BotocoreLike]:
    client = BotocoreLike(server.url)
    yield client
    client.close()


# stripe


def test_a_key_that_the_sdk_sets_lets_its_post_be_retried_and_stays_its_own(
    tmp_path: Path, server: FaultServer, stripe: StripeLike
) -> None:
    with running(tmp_path, rules(server.url, FAST)):
        server.next(Answer(503), Break("request"), Answer(200, body=b"paid"))
        answer = stripe.charge(12)

        assert (answer["body"], stripe.tries) == (b"paid", 1)  # the SDK has seen one call that went well
        assert answer["response"].headrace.attempts[0].outcome == "5xx"
        assert len({one.header("Idempotency-Key") for one in server.requests}) == 1
        assert len(server.requests[0].header("Idempotency-Key") or "") == 36  # the SDK's, not one of ours
        assert {one.body for one in server.requests} == {b"amount=12"}
        assert [one.header("X-Retry-Seq") for one in server.requests][:2] == [None, "1"]


def test_the_sdks_exceptions_stay_its_own_and_have_ours_within(
    tmp_path: Path, server: FaultServer, stripe: StripeLike
) -> None:
    with running(tmp_path, rules(server.url, STORM)):
        server.always(Break("request"))
        with pytest.raises(SdkConnectionError) as caught:
            stripe.balance()
        cause = caught.value.__cause__
        assert isinstance(cause, requests.ConnectionError)
        assert cause.headrace.upstream == "billing"  # type: ignore[attr-defined]
        assert any("attempt" in note for note in cause.__notes__)

        server.always(Answer(402))
        with pytest.raises(SdkApiError) as declined:
            stripe.balance()
        assert declined.value.status == 402


def test_a_refusal_is_a_connection_error_to_the_sdk_and_its_tries_reach_nobody(
    tmp_path: Path, server: FaultServer, stripe: StripeLike
) -> None:
    with running(tmp_path, rules(server.url, FAST + "    circuit_breaker: {consecutive_failures: 3}\n")):
        server.always(Answer(503))
        for _ in range(3):
            with pytest.raises((SdkApiError, SdkConnectionError)) as caught:
                stripe.charge(1)
        assert isinstance(caught.value.__cause__, headrace.CircuitOpenError)
        assert len(server.requests) == 9  # its first three tries are three calls, of three attempts each
        assert stripe.tries == 9


def test_the_sdks_retries_and_ours_stay_within_the_budget(
    tmp_path: Path, server: FaultServer, stripe: StripeLike
) -> None:
    """Each of its tries is a call to us: what we add to all of them is a fifth, and the reserve.

    failures.md 12.
    """
    with running(tmp_path, rules(server.url, STORM)) as hr:
        server.always(Answer(503))
        for _ in range(CALLS):
            with pytest.raises(SdkApiError):
                stripe.charge(1)
        assert stripe.tries == CALLS * 3
        assert len(server.requests) <= stripe.tries * 1.2 + 10 < stripe.tries * 3
        status = hr.status()["upstreams"]["billing"]
        assert status["requests"] == {"5xx": stripe.tries}  # nothing is lost
        assert status["attempts"] == {"5xx": len(server.requests)}


# botocore


def test_an_sdk_with_pool_classes_of_its_own_makes_all_tries_and_the_circuit_hears_of_them(
    tmp_path: Path, server: FaultServer, botocore: BotocoreLike
) -> None:
    """failures.md 12: `retries=False` at a client with classes of its own: its loop is above.

    test_boto3.py has the real one.
    """
    with running(tmp_path, rules(server.url, FAST, more=MORE)) as hr:
        server.next(Answer(503), Break("request"))
        answer = botocore.put("key", io.BytesIO(b"object"))
        assert (answer.status, botocore.tries) == (200, 3)
        assert len(answer.headrace.attempts) == 1
        assert {one.body for one in server.requests} == {b"object"}
        assert None not in {one.header("X-Request-ID") for one in server.requests}

        server.always(Answer(503))
        with pytest.raises(SdkApiError):
            botocore.put("key", b"object")
        assert len(server.requests) == botocore.tries == 8  # its own five, and nothing of ours
        status = hr.status()["upstreams"]["billing"]
        assert (status["retry"]["delegated"], status["circuit_breaker"]["state"]) == (8, "open")
        with pytest.raises(SdkConnectionError) as caught:
            botocore.put("key", b"object")
        assert isinstance(caught.value.__cause__, headrace.CircuitOpenError)
        assert len(server.requests) == 8


# tenacity


def patient(**more: object) -> tenacity.Retrying:
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_exception_type(requests.RequestException),
        **more,  # type: ignore[arg-type]
    )


def test_a_decorated_call_is_paid_from_the_budget_and_raises_what_tenacity_raises(
    tmp_path: Path, server: FaultServer
) -> None:
    tries = 0

    @patient().wraps
    def invoice() -> requests.Response:
        nonlocal tries
        tries += 1
        response = requests.get(server.url)
        response.raise_for_status()
        return response

    with running(tmp_path, rules(server.url, STORM)) as hr:
        server.always(Answer(503))
        for _ in range(CALLS):
            with pytest.raises(tenacity.RetryError) as caught:
                invoice()
        last = caught.value.last_attempt.exception()
        assert isinstance(last, requests.HTTPError)
        assert last.response.headrace.denied.value == "budget"
        assert tries == CALLS * 3
        assert len(server.requests) <= tries * 1.2 + 10 < tries * 3
        assert hr.status()["upstreams"]["billing"]["requests"] == {"5xx": tries}

        server.always(Answer(200))
        assert invoice().status_code == 200


def test_reraised_by_tenacity_it_is_ours_with_the_story_of_the_last_call(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, FAST + "    circuit_breaker: {consecutive_failures: 2}\n")):
        server.always(Break("request"))
        with pytest.raises(requests.ConnectionError) as caught:
            patient(reraise=True)(requests.get, server.url)
        assert caught.value.headrace.upstream == "billing"  # type: ignore[attr-defined]
        # Two failed calls in a row open the circuit: the third found it so.
        assert isinstance(caught.value, headrace.CircuitOpenError)
        assert len(server.requests) == 6


def test_a_session_with_retries_under_tenacity_is_what_the_caller_made_it(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, STORM)) as hr, requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(2, status_forcelist=[503], backoff_factor=0)))
        server.always(Answer(503))
        with pytest.raises(requests.exceptions.RetryError) as caught:
            patient(reraise=True)(session.get, server.url)
        assert len(server.requests) == 3 * 3  # not 3 x 3 x 3
        assert len(caught.value.headrace.attempts) == 3  # type: ignore[attr-defined]
        status = hr.status()["upstreams"]["billing"]
        assert (status["requests"], status["retry"]["delegated"]) == ({"5xx": 3}, 9)


def test_a_file_given_to_a_decorated_call_is_whole_on_each_of_its_calls(
    tmp_path: Path, server: FaultServer
) -> None:
    """Stock would send what is left of it: nothing.

    failures.md 13.
    """
    body = "    retry: {methods: [PUT], backoff: {base: 1ms, throttled: 1ms}}\n    circuit_breaker: {mode: disabled}\n"
    with running(tmp_path, rules(server.url, body)):
        server.always(Break("request"))
        file = io.BytesIO(b"skip|whole")
        file.seek(5)
        with pytest.raises(requests.ConnectionError):
            patient(reraise=True)(requests.put, server.url, data=file)
        assert [one.body for one in server.requests] == [b"whole"] * 9
