"""Callers who retry themselves below the call: one attempt of ours per try, and theirs all the rest."""

from __future__ import annotations

import gc
import gzip
import io
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import trustme
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util.retry import Retry

import headrace
from headrace.policy.breaker.permit import Permit, Verdict
from headrace.policy.decision import EndReason
from headrace.transport.attempt import current_attempt
from support.faultserver import Answer, Break, FaultServer, Raw, Silence, on_reuse, server_context
from support.governed import reason_of, rules, running
from support.waiting import ends_within, wait_until

URLLIB3 = "install: {urllib3: true}\n"
OFF = "    circuit_breaker: {mode: disabled}\n"


def retry(total: int | None = 2, **kw: Any) -> Retry:
    return Retry(**{"total": total, "status_forcelist": [503], "backoff_factor": 0, **kw})


@dataclass
class Caller:
    """A caller that brings retries of its own, through requests or urllib3."""

    library: str
    call: Callable[..., Any]

    def status(self, answer: Any) -> int:
        return answer.status_code if self.library == "requests" else answer.status  # type: ignore[no-any-return]

    def content(self, answer: Any) -> bytes:
        return answer.content if self.library == "requests" else answer.data  # type: ignore[no-any-return]


def by_requests(method: str, url: str, own: Any, *, body: Any = None, **kw: Any) -> requests.Response:
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=own))
        return session.request(method, url, data=body, **kw)


def by_urllib3(method: str, url: str, own: Any, *, body: Any = None, **kw: Any) -> Any:
    with urllib3.PoolManager(retries=own) as manager:
        return manager.request(method, url, body=body, **kw)


@pytest.fixture(params=["requests", "urllib3"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param, by_requests if request.param == "requests" else by_urllib3)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def billing(hr: headrace.Headrace) -> dict[str, Any]:
    return hr.status()["upstreams"]["billing"]  # type: ignore[no-any-return]


def governed(server: FaultServer, body: str = "") -> str:
    return rules(server.url, body, more=URLLIB3)


# One call, many tries


def test_each_try_is_an_attempt_and_all_of_them_are_one_call(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    with running(tmp_path, governed(server)) as hr:
        server.next(Answer(503, close=True), Break("request"))
        answer = caller.call("GET", server.url, retry())

        assert (caller.status(answer), caller.content(answer)) == (200, b"ok")
        assert [one.outcome for one in answer.headrace.attempts] == ["5xx", "reset", "2xx"]
        assert [one.verdict for one in answer.headrace.attempts] == ["failure", "failure", "success"]
        assert answer.headrace.reason is EndReason.SUCCESS
        status = billing(hr)
        assert status["requests"] == {"2xx": 1}
        assert status["attempts"] == {"5xx": 1, "reset": 1, "2xx": 1}
        assert status["retry"]["retries"] == {"5xx": 1, "reset": 1}
        assert status["retry"]["delegated"] == 3
        assert status["retry"]["denied"] == {}


def test_one_request_id_one_idempotency_key_and_a_retry_sequence_over_all_tries(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    with running(tmp_path, governed(server, "    retry: {idempotency_key: {}}\n")):
        server.next(Answer(503), Answer(503))
        for _ in range(2):
            answer = caller.call("POST", server.url, retry(allowed_methods=None), body=b"order")
            assert caller.status(answer) == 200
            for name in ("X-Request-ID", "Idempotency-Key"):
                assert len({one.header(name) for one in server.requests}) == 1
                assert server.requests[0].header(name)
            expected = [None, "1", "2"] if len(server.requests) == 3 else [None]
            assert [one.header("X-Retry-Seq") for one in server.requests] == expected
            assert {one.body for one in server.requests} == {b"order"}
            server._requests.clear()


def test_when_they_run_out_the_exception_has_the_record_of_the_whole_call(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    with running(tmp_path, governed(server)):
        server.always(Answer(503))
        with pytest.raises((requests.exceptions.RetryError, MaxRetryError)) as caught:
            caller.call("GET", server.url, retry())

        assert len(server.requests) == 3  # not 3 x 3
        record = caught.value.headrace  # type: ignore[union-attr]
        assert [one.retry_seq for one in record.attempts] == [0, 1, 2]
        assert (record.reason, record.denied) == (EndReason.DELEGATED, None)
        assert [note.split(":")[1].split(",")[0] for note in caught.value.__notes__] == [
            ' upstream "billing" attempt 1',
            ' upstream "billing" attempt 2',
            ' upstream "billing" attempt 3',
            ' upstream "billing" further tries were up to the caller',
        ]


def test_an_error_is_told_once_on_what_leaves(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    with running(tmp_path, governed(server)):
        server.always(Break("request"))
        with pytest.raises((requests.ConnectionError, MaxRetryError)) as caught:
            caller.call("GET", server.url, retry())
        error: Any = caught.value
        assert len(error.__notes__) == 4
        within = error.args[0] if caller.library == "requests" else error
        assert not getattr(within, "__notes__", []) or within is error
        assert not getattr(within.reason, "__notes__", [])


def test_a_try_that_failed_holds_no_connection_during_the_callers_pause(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    with running(tmp_path, governed(server, "    pool: {max_connections: 1}\n")) as hr:
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        server.next(Answer(503), Answer(503, headers=(("Retry-After", "1"),)))
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(
                caller.call("GET", server.url, retry(respect_retry_after_header=True))
            )
        )
        thread.start()
        server.wait_for(lambda: len(server.requests) == 2)
        wait_until(lambda: leases.view().inuse == 0)
        assert requests.get(server.url).status_code == 200  # the only slot is free
        thread.join(10)
        assert caller.status(answers[0]) == 200
        assert answers[0].headrace.attempts[2].paused_s >= 1.0


def test_it_is_said_once_per_call_site(
    tmp_path: Path, server: FaultServer, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with running(tmp_path, governed(server)):
        server.next(Answer(503), Answer(503))
        for _ in range(3):
            caller.call("GET", server.url, retry())
        said = [one.call_site for one in caplog.records if getattr(one, "event", "") == "retries.delegated"]
        assert len(said) == 1
        assert "test_own_retries.py:" in said[0]


# What may end them


def opened_meanwhile(hr: headrace.Headrace) -> Answer:
    """A failed answer, while another call's failure opens the circuit."""
    circuit = hr.snapshot.upstream("billing").learned.circuit
    another_call = circuit.acquire(time.monotonic())
    assert isinstance(another_call, Permit)
    circuit.record(another_call, Verdict.FAILURE, time.monotonic())
    return Answer(503)


def test_the_tries_of_a_caller_are_one_call_to_the_circuit(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """failures.md 87."""
    with running(tmp_path, governed(server, "    circuit_breaker: {consecutive_failures: 2}\n")) as hr:
        server.next(Answer(503), Answer(503))
        caller.call("GET", server.url, retry(5))
        circuit = hr.snapshot.upstream("billing").learned.circuit
        assert (circuit.view(time.monotonic()).calls, circuit.view(time.monotonic()).failures) == (1, 0)

        server.always(Answer(503))
        for opened in (False, True):
            with pytest.raises((requests.RequestException, HTTPError)):
                caller.call("GET", server.url, retry(3))
            assert (circuit.state == "open") is opened


def test_the_circuit_is_asked_before_each_try_and_its_refusal_ends_them_all(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """A refusal of ours is not retried by the caller's retries either.

    failures.md 17.
    """
    with running(tmp_path, governed(server, "    circuit_breaker: {consecutive_failures: 1}\n")) as hr:
        server.next(Answer(503), lambda _: opened_meanwhile(hr))
        server.always(Answer(503))
        with pytest.raises(headrace.CircuitOpenError) as caught:
            caller.call("GET", server.url, retry(9))

        assert isinstance(
            caught.value, requests.ConnectionError if caller.library == "requests" else HTTPError
        )
        assert len(server.requests) == 2
        assert [one.outcome for one in caught.value.attempts] == ["5xx", "5xx"]
        assert reason_of(caught.value) == "circuit_open"
        assert (caught.value.request_id, caught.value.upstream) == (
            server.requests[0].header("X-Request-ID"),
            "billing",
        )
        assert caught.value.retry_after_s > 0
        status = billing(hr)
        assert status["requests"] == {"circuit_open": 1}
        assert status["circuit_breaker"]["refused"] == 1
        with pytest.raises(headrace.CircuitOpenError) as at_once:
            caller.call("GET", server.url, retry(9))
        assert at_once.value.attempts == ()


def test_a_full_pool_ends_them(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    with running(tmp_path, governed(server, "    pool: {max_connections: 1, when_full: reject}\n")) as hr:
        with requests.get(server.url, stream=True):
            with pytest.raises(headrace.PoolRejected) as caught:
                caller.call("GET", server.url, retry(9))
            family = requests.ConnectionError if caller.library == "requests" else HTTPError
            assert isinstance(caught.value, family)
            assert len(server.requests) == 1
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0


def test_one_deadline_holds_over_all_tries(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    limits = "    timeouts: {deadline: 1500ms, attempt: 500ms}\n" + OFF
    with running(tmp_path, governed(server, limits)):
        server.always(Silence())
        with ends_within(1.5), pytest.raises(headrace.DeadlineExceeded) as caught:
            caller.call("GET", server.url, retry(20))
        assert isinstance(
            caught.value,
            requests.Timeout if caller.library == "requests" else urllib3.exceptions.TimeoutError,
        )
        assert caught.value.deadline_s == 1.5
        assert 2 <= len(caught.value.attempts) <= 4


def test_further_tries_pay_from_the_budget_and_are_made_when_it_is_empty(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """The budget is what headrace adds to the load: others' retries give way to the caller's."""
    body = (
        "    retry: {backoff: {base: 1ms, throttled: 1ms}, budget: {ratio: 0.0, min_per_second: 0.5, ttl: 10s}}\n"
        + OFF
    )  # 5 retries
    with running(tmp_path, governed(server, body)) as hr:
        budget = hr.snapshot.upstream("billing").learned.budget
        server.always(Answer(503))
        for left in (3, 1, 0, 0):
            with pytest.raises((requests.RequestException, HTTPError)):
                caller.call("GET", server.url, retry())
            assert round(budget.balance(time.monotonic())) == left
        assert len(server.requests) == 12

        assert requests.get(server.url).headrace.reason is EndReason.BUDGET
        assert len(server.requests) == 13


def test_an_interrupt_during_the_callers_pause_is_counted_and_leaves_nothing(
    tmp_path: Path, server: FaultServer, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Retry, response: Any = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Retry, "sleep", interrupted)
    with running(tmp_path, governed(server)) as hr:
        server.always(Answer(503))
        with pytest.raises(KeyboardInterrupt):
            caller.call("GET", server.url, retry())
        assert billing(hr)["requests"] == {"cancelled": 1}
        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0
        assert current_attempt.get() is None


def test_a_refusal_leaves_no_cycle_behind(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    with running(tmp_path, governed(server, "    circuit_breaker: {consecutive_failures: 1}\n")) as hr:
        server.always(Answer(503))
        opened_meanwhile(hr)

        def refuse() -> weakref.ref[BaseException]:
            try:  # pytest.raises would be a cycle of its own
                caller.call("GET", server.url, retry())
            except headrace.CircuitOpenError as error:
                return weakref.ref(error)
            raise AssertionError("not refused")

        gc.collect()
        gc.disable()
        try:
            assert refuse()() is None
        finally:
            gc.enable()


def test_the_books_balance_whatever_happens_on_many_threads(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """Calls as the callers made them, attempts and resends as the server saw them, and no slot lost."""
    turns = itertools.count()
    kinds = (Answer(), Answer(503), Answer(), Break("request"), Answer(503, close=True), Break("body", "rst"))
    body = "    pool: {max_connections: 4}\n    timeouts: {acquire: 30s, deadline: 60s}\n" + OFF
    with running(tmp_path, governed(server, body)) as hr:
        server.always(lambda request: kinds[next(turns) % len(kinds)])
        ended: list[Any] = []

        def work() -> None:
            for _ in range(15):
                try:
                    ended.append(caller.call("GET", server.url, retry(1)))
                except (requests.RequestException, HTTPError) as error:
                    ended.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        status = billing(hr)
        assert len(ended) == sum(status["requests"].values()) == 90
        attempts = sum(status["attempts"].values())
        assert sum(len(one.headrace.attempts) for one in ended) == attempts
        assert attempts + status["retry"]["resent"] == server.first_lines
        assert attempts - 90 == sum(status["retry"]["retries"].values())
        assert status["retry"]["delegated"] == attempts
        assert status["pool"]["inuse"] == status["pool"]["waiting"] == 0


# Bodies


@pytest.mark.parametrize(
    ("make", "sent"),
    [
        pytest.param(lambda: b"whole", 3, id="bytes"),
        pytest.param(lambda: io.BytesIO(b"whole"), 3, id="file"),
        pytest.param(lambda: iter([b"who", b"le"]), 1, id="iterator"),
        pytest.param(lambda: (part for part in (b"who", b"le")), 1, id="generator"),
    ],
)
@pytest.mark.parametrize("raise_on_status", [True, False])
def test_a_used_up_body_is_never_sent_again_empty_by_the_callers_retries_either(
    tmp_path: Path,
    server: FaultServer,
    caller: Caller,
    make: Callable[[], Any],
    sent: int,
    raise_on_status: bool,
) -> None:
    """Stock urllib3 sends it again, as an empty body; what leaves is what leaves when retries are used up.

    failures.md 13.
    """
    own = retry(allowed_methods=None, raise_on_status=raise_on_status)
    with running(tmp_path, governed(server)):
        server.always(Answer(503, body=b"busy"))
        if raise_on_status:
            with pytest.raises((requests.exceptions.RetryError, MaxRetryError)) as caught:
                caller.call("PUT", server.url, own, body=make())
            record = caught.value.headrace  # type: ignore[union-attr]
        else:
            answer = caller.call("PUT", server.url, own, body=make())
            assert (caller.status(answer), caller.content(answer)) == (503, b"busy")
            record = answer.headrace
        assert [one.body for one in server.requests] == [b"whole"] * sent
        assert record.reason is (EndReason.DELEGATED if sent == 3 else EndReason.NOT_REPLAYABLE)


def test_a_file_that_will_not_go_back_is_not_sent_again(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """It could go back when the call began, so the caller's retries were left as they are.

    failures.md 13.
    """

    class ClosesItself(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            if not data:
                self.close()
            return data

    with running(tmp_path, governed(server)):
        server.always(Answer(503))
        with pytest.raises((requests.ConnectionError, MaxRetryError)) as caught:
            caller.call("PUT", server.url, retry(allowed_methods=None), body=ClosesItself(b"whole"))
        assert [one.body for one in server.requests] == [b"whole"]
        assert reason_of(caught.value) == "not_replayable"
        assert "sent only once" in str(caught.value)


def test_connecting_may_be_tried_again_whatever_the_body(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    with running(tmp_path, governed(server)):
        server.refuse()
        with pytest.raises((requests.ConnectionError, MaxRetryError)) as caught:
            caller.call("PUT", server.url, retry(), body=iter([b"a"]))
        assert len(caught.value.headrace.attempts) == 3  # type: ignore[union-attr]


# As without headrace


SCENES = [
    pytest.param([Answer(503)] * 3, retry(), id="statuses run out"),
    pytest.param([Answer(503)] * 3, retry(raise_on_status=False), id="statuses run out, returned"),
    pytest.param([Answer(503), Answer(404)], retry(), id="another answer"),
    pytest.param([Break("request")] * 3, retry(), id="resets run out"),
    pytest.param([Break("request")] * 3, retry(read=False), id="no retries of reads"),
    pytest.param([Break("request")] * 3, retry(read=1), id="one retry of a read"),
    pytest.param([Break("head")] * 3, retry(1), id="broken heads"),
    pytest.param([Break("body", "fin")], retry(), id="a truncated body is the reader's trouble"),
    pytest.param([Break("body", "rst")], retry(), id="so is a reset one"),
    pytest.param([Raw()] * 3, retry(), id="no HTTP"),
    pytest.param([Silence()] * 3, retry(1), id="silence"),
    pytest.param(
        [Answer(413, headers=(("Retry-After", "0"),)), Answer(429, headers=(("Retry-After", "0"),))],
        retry(status_forcelist=None),
        id="Retry-After",
    ),
    pytest.param(
        [Answer(429, headers=(("Retry-After", "0"),))],
        retry(status_forcelist=None, respect_retry_after_header=False),
        id="Retry-After not respected",
    ),
    pytest.param([Answer(302, headers=(("Location", "/there"),)), Answer(503)], retry(), id="a redirect"),
    pytest.param(
        [Answer(200, body=gzip.compress(b"packed"), headers=(("Content-Encoding", "gzip"),))],
        retry(),
        id="packed",
    ),
    pytest.param(
        [Answer(200, body=b"not packed", headers=(("Content-Encoding", "gzip"),))],
        retry(),
        id="packed badly",
    ),
    pytest.param([Answer(503), Answer(200, body=b"pieces", chunked=True)], retry(), id="chunked"),
    pytest.param([Answer(204, body=b"")], retry(), id="no content"),
    pytest.param([Answer(200, headers=(("Set-Cookie", "a=b"),))], retry(), id="cookies"),
    pytest.param([Answer(200, framed=False, close=True)], retry(), id="ends with the connection"),
]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("behaviours", "own"), SCENES)
def test_a_session_with_retries_is_served_as_without_headrace(
    tmp_path: Path, server: FaultServer, behaviours: list[Any], own: Retry, method: str, stream: bool
) -> None:
    """Answers, classes and texts of exceptions, the history of the retries, and what the server gets."""
    # What answers gets the time to: a try that a busy machine lets time out is one more in the history.
    timeout_s = 0.3 if any(isinstance(one, Silence) for one in behaviours) else 30.0

    def scene() -> list[Any]:
        server.next(*behaviours)
        before = len(server.requests)
        seen: list[Any] = []
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=own))
            try:
                answer = session.request(method, server.url, stream=stream, timeout=timeout_s)
                seen += [answer.status_code, answer.url, dict(answer.headers), answer.raw.version]
                seen += [[one.status for one in answer.raw.retries.history], dict(session.cookies)]
                seen += [answer.reason, answer.content]
                answer.close()
            except requests.RequestException as error:
                seen += [type(error), *[type(one) for one in error.args], error.request is not None]
                seen += [type(getattr(one, "reason", None)) for one in error.args]
        server._queue.clear()
        seen += [(one.method, one.target, one.body) for one in server.requests[before:]]
        return seen

    stock = scene()
    with running(tmp_path, rules(server.url, OFF)):
        assert scene() == stock


def test_a_body_that_breaks_off_is_judged_and_told_though_stock_hands_it_out(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url)) as hr:
        server.always(Break("body", "fin"))
        with pytest.raises(requests.exceptions.ChunkedEncodingError) as caught:
            by_requests("GET", server.url, retry())
        (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert (attempt.outcome, attempt.verdict) == ("reset", "failure")
        assert any("reset" in note for note in caught.value.__notes__)
        assert billing(hr)["requests"] == {"reset": 1}


def test_an_adapter_that_does_not_ask_for_a_pool_is_governed_as_one_attempt(
    tmp_path: Path, server: FaultServer
) -> None:
    with responses.RequestsMock() as mock, running(tmp_path, rules(server.url)) as hr:
        mock.get(f"{server.url}/", status=503)
        mock.get(f"{server.url}/", status=200)
        answer = by_requests("GET", f"{server.url}/", retry())
        assert (answer.status_code, len(answer.headrace.attempts)) == (200, 1)
        assert billing(hr)["retry"]["delegated"] == 1
        assert billing(hr)["requests"] == {"2xx": 1}
        assert len(server.requests) == 0


def test_an_adapter_that_picks_a_pool_of_its_own_retries_as_it_did(
    tmp_path: Path, server: FaultServer
) -> None:
    class Picky(HTTPAdapter):
        def get_connection_with_tls_context(self, request: Any, *args: Any, **kw: Any) -> Any:
            return self.poolmanager.connection_from_url(request.url)

    with running(tmp_path, rules(server.url)) as hr, requests.Session() as session:
        session.mount("http://", Picky(max_retries=retry()))
        server.next(Answer(503))
        assert (session.get(server.url).status_code, len(server.requests)) == (200, 2)
        assert hr.status()["ungoverned"] == {"adapter": 1}


def test_a_call_made_while_a_try_is_prepared_is_governed_by_its_own_rules(
    tmp_path: Path, server: FaultServer
) -> None:
    class Refreshing(HTTPAdapter):
        def add_headers(self, request: Any, **kw: Any) -> None:
            request.headers["X-Token-By"] = requests.get(f"{server.url}/token").headrace.upstream

    with running(tmp_path, rules(server.url)), requests.Session() as session:
        session.mount("http://", Refreshing(max_retries=retry()))
        answer = session.get(server.url)
        assert len(answer.headrace.attempts) == 1
        assert [one.header("X-Token-By") for one in server.requests] == [None, "billing"]


def test_a_redirect_is_a_call_of_its_own_between_tries(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, governed(server)) as hr, urllib3.PoolManager() as manager:
        server.at("/1", Answer(302, headers=(("Location", "/2"),)))
        server.next(Answer(503))
        pool = manager.connection_from_url(server.url)
        answer = pool.urlopen("GET", "/1", retries=retry(3))
        assert answer.status == 200
        assert [one.target for one in server.requests] == ["/1", "/1", "/2"]
        ids = [one.header("X-Request-ID") for one in server.requests]
        assert ids[0] == ids[1] != ids[2]
        assert len(answer.headrace.attempts) == 1  # type: ignore[attr-defined]
        assert billing(hr)["requests"] == {"3xx": 1, "2xx": 1}


def test_what_a_redirect_takes_is_not_counted_for_the_call_that_led_there(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, governed(server)) as hr, urllib3.PoolManager() as manager:
        server.at("/1", Answer(302, headers=(("Location", "/2"),)))
        server.at("/2", Answer(delay_s=2.0))
        manager.connection_from_url(server.url).urlopen("GET", "/1", retries=retry(3))
        assert 2.0 <= hr.snapshot.upstream("billing").learned.counters.duration.sum < 4.0


def test_after_silence_on_a_pooled_connection_the_next_try_takes_a_fresh_one(
    tmp_path: Path, server: FaultServer, caller: Caller
) -> None:
    """What dropped one idle connection silently has dropped its neighbours."""
    with running(tmp_path, governed(server)):
        with requests.get(server.url, stream=True) as one, requests.get(server.url, stream=True) as two:
            assert (one.content, two.content) == (b"ok", b"ok")
        server.always(on_reuse(Silence()))
        answer = caller.call("GET", server.url, retry(1), timeout=0.3)
        assert [one.outcome for one in answer.headrace.attempts] == ["timeout", "2xx"]


def test_a_streamed_body_that_breaks_off_later_turns_the_record_of_all_tries(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url)):
        server.next(Answer(503), Break("body", "fin"))
        answer = by_requests("GET", server.url, retry(), stream=True)
        record = answer.headrace  # type: ignore[attr-defined]
        assert [one.verdict for one in record.attempts] == ["failure", "success"]
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            answer.content  # noqa: B018
        assert [one.verdict for one in record.attempts] == ["failure", "failure"]


def test_a_refused_try_gets_the_fallback(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    body = (
        "    circuit_breaker: {consecutive_failures: 1}\n"
        "    fallback: {status: 200, headers: {Content-Type: text/plain}, body: later}\n"
    )
    with running(tmp_path, governed(server, body)) as hr:
        server.always(lambda _: opened_meanwhile(hr))
        answer = caller.call("GET", server.url, retry())
        assert (caller.status(answer), caller.content(answer)) == (200, b"later")
        assert answer.headrace.fallback_for == "billing"
        assert len(server.requests) == 1


def test_over_tls_each_try_has_the_rules_trust_and_the_upstreams_connections(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    with (
        FaultServer(tls=server_context(authority)) as server,
        running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")),
        requests.Session() as session,
    ):
        session.mount("https://", HTTPAdapter(max_retries=retry()))
        server.next(Answer(503), Answer(503))
        assert [one.outcome for one in session.get(server.url).headrace.attempts] == ["5xx", "5xx", "2xx"]
        assert requests.get(server.url).status_code == 200
        assert server.connections == 1


def test_observed_it_is_left_alone(tmp_path: Path, server: FaultServer, caller: Caller) -> None:
    with running(tmp_path, governed(server, "    mode: observe\n")) as hr:
        server.next(Answer(503))
        answer = caller.call("GET", server.url, retry())
        assert caller.status(answer) == 200
        assert not hasattr(answer, "headrace")
        assert len(server.requests) == 2
        assert (billing(hr)["retry"]["delegated"], billing(hr)["retry"]["denied"]) == (0, {})
