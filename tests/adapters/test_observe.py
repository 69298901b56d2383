"""`mode: observe` and `off`: nothing changes, and observe says what the rules would have done."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

import headrace
from headrace.clock import monotonic
from headrace.engine import shadow as observe
from headrace.policy.retry import RetryAllowance
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running
from support.surfaces import (
    HANDLE,
    INSTALL,
    REQUESTS,
    URLOPEN,
    Surface,
    across,
    retrying_adapter,
    retrying_call,
    retrying_manager,
    status_of,
)


def test_observe_changes_no_call_and_counts_what_would_have_been_done(tmp_path: Path) -> None:
    body = "    mode: observe\n    headers: {X-Added: '1'}\n    circuit_breaker: {consecutive_failures: 2}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(503))
        for _ in range(4):
            assert requests.get(server.url).status_code == 503

        status = hr.status()["upstreams"]["billing"]
        assert len(server.requests) == 4  # no retry, no refusal
        assert server.requests[0].header("X-Request-ID") is None
        assert server.requests[0].header("X-Added") is None
        assert status["circuit_breaker"]["state"] == "open"
        assert status["circuit_breaker"]["refused"] == 0
        assert status["observed"] == {"retried": 4, "refused": 2}  # two calls, of three attempts each
        assert status["requests"] == status["attempts"] == {"5xx": 4}


def test_observe_raises_what_stock_raises_without_a_note(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: observe\n")) as hr:
        server.always(Break("request"))

        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)

        assert not hasattr(caught.value, "headrace")
        assert not getattr(caught.value, "__notes__", [])
        assert hr.status()["upstreams"]["billing"]["attempts"] == {"reset": 1}


def test_observe_tells_a_refused_connection_from_a_broken_one(tmp_path: Path) -> None:
    with FaultServer() as server:
        url = server.url
    with running(tmp_path, rules(url, "    mode: observe\n")) as hr:
        with pytest.raises(requests.ConnectionError):
            requests.post(url)
        status = hr.status()["upstreams"]["billing"]
        assert status["attempts"] == {"connect_failure": 1}
        assert status["observed"] == {"retried": 2}  # never sent: even a POST would have been


def test_observe_counts_calls_in_flight_beyond_the_pool(tmp_path: Path) -> None:
    body = "    mode: observe\n    pool: {max_connections: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:

        def nested(request: object) -> Answer:
            seen.append(hr.status()["upstreams"]["billing"]["pool"]["inuse"])
            return Answer()

        seen: list[int] = []
        server.always(nested)
        requests.get(server.url)
        assert seen == [1]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


@pytest.mark.parametrize(
    ("pool", "on_loop", "action"),
    [
        pytest.param("{max_connections: 1}", False, {"waited": 1}, id="it waits"),
        pytest.param("{max_connections: 1}", True, {"rejected": 1}, id="not on an event loop"),
        pytest.param(
            "{max_connections: 1, max_waiting: 0}", False, {"rejected": 1}, id="nor where nobody may"
        ),
        pytest.param("{max_connections: 1, when_full: reject}", False, {"rejected": 1}, id="nor by the rule"),
        pytest.param(
            "{max_connections: 1}\n    timeouts: {acquire: 0s}",
            False,
            {"rejected": 1},
            id="nor for no time at all",
        ),
        pytest.param("{max_connections: 1, when_full: new}", False, {}, id="a further connection is made"),
    ],
)
def test_observe_says_what_a_full_pool_would_make_of_a_call(
    tmp_path: Path, pool: str, on_loop: bool, action: dict[str, int]
) -> None:
    async def on_a_loop(url: str) -> None:
        requests.get(url)

    with FaultServer() as server:
        body = f"    mode: observe\n    pool: {pool}\n"
        with running(tmp_path, rules(server.url, body)) as hr:

            def meanwhile(_: object) -> Answer:
                server.at("/first", Answer())
                another = requests.get if not on_loop else lambda url: asyncio.run(on_a_loop(url))
                another(server.url)
                return Answer()

            server.at("/first", meanwhile)
            requests.get(f"{server.url}/first")

            assert foretold(hr) == action


def test_off_does_not_even_count(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: off\n")) as hr:
        response = requests.get(server.url)

        assert not hasattr(response, "headrace")
        assert hr.status()["upstreams"]["billing"]["requests"] == {}


def test_observe_judges_the_body_as_enforce_would(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, "    mode: observe\n")) as hr:
        server.always(Break("body", "fin"))
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            requests.get(server.url)

        assert hr.status()["upstreams"]["billing"]["attempts"] == {"reset": 1}


def test_observe_heeds_the_calls_own_timeout_and_retries(tmp_path: Path) -> None:
    body = "    mode: observe\n    timeouts: {read: 100ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.2))
        requests.get(server.url, timeout=5)
        assert hr.status()["upstreams"]["billing"]["observed"] == {}
        server.always(Answer(503))
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=2))
            session.get(server.url)
        assert hr.status()["upstreams"]["billing"]["observed"] == {}


@pytest.mark.parametrize(
    ("breaker", "observed"),
    [
        pytest.param("{mode: observe, consecutive_failures: 1}", {"refused": 2, "retried": 6}, id="observe"),
        pytest.param("{mode: forced_open}", {"refused": 3}, id="forced open"),
        pytest.param("{mode: disabled, consecutive_failures: 1}", {"retried": 6}, id="disabled"),
    ],
)
def test_observe_says_once_what_a_breaker_of_another_mode_would_have_done(
    tmp_path: Path, breaker: str, observed: dict[str, int]
) -> None:
    body = f"    mode: observe\n    circuit_breaker: {breaker}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(503))
        for _ in range(3):
            assert requests.get(server.url).status_code == 503

        assert hr.status()["upstreams"]["billing"]["observed"] == observed


def foretold(hr: headrace.Headrace) -> dict[str, int]:
    return hr.status()["upstreams"]["billing"]["observed"]  # type: ignore[no-any-return]


def test_observe_counts_a_refusal_wherever_enforce_refuses(tmp_path: Path, call: Surface) -> None:
    """failures.md 85. The retries that are not made count for the breaker as if they ended as the first attempt did."""

    def script(hr: headrace.Headrace, server: FaultServer) -> int:
        refused = 0
        for number in range(40):
            server.always(Answer(500 if number % 8 < 6 else 200))
            try:
                call(hr, server.url)
            except headrace.CircuitOpenError:
                refused += 1
        return refused

    breaker = "    retry: {backoff: {base: 1ms}}\n    circuit_breaker: {open_for: {base: 1m}}\n"
    told = []
    for mode in ("enforce", "observe"):
        body = f"    mode: {mode}\n{breaker}"
        with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
            refused = script(hr, server)
            status = hr.status()["upstreams"]["billing"]
            retries = sum(status["retry"]["retries"].values())
            told.append((refused, retries) if mode == "enforce" else foretold(hr))

    refused, retries = told[0]
    assert refused == 35
    assert told[1] == {"refused": refused, "retried": retries}


def test_observe_counts_what_the_deadline_would_cut_also_where_the_call_brings_its_own_timeout(
    tmp_path: Path, call: Surface
) -> None:
    """failures.md 85."""
    body = "    mode: observe\n    timeouts: {deadline: 500ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(delay_s=1.0))
        assert status_of(call(hr, server.url, timeout=20)) == 200
        assert foretold(hr) == {"timed_out": 1}


def test_observe_knows_of_idempotency_keys_made_or_brought(tmp_path: Path, call: Surface) -> None:
    """failures.md 85."""
    for keys, headers in (("idempotency_key: {}", {}), ("", {"Idempotency-Key": "k"})):
        body = f"    mode: observe\n    retry: {{backoff: {{base: 1ms}}, {keys}}}\n".replace(", }", "}")
        with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
            server.always(Answer(500))
            assert status_of(call(hr, server.url, "POST", headers=headers)) == 500
            assert len(server.requests) == 1
            assert server.requests[0].header("Idempotency-Key") == headers.get("Idempotency-Key")
            assert foretold(hr) == {"retried": 2}
            assert hr.status()["upstreams"]["billing"]["retry"]["denied"] == {"attempts": 1}


def test_observe_heeds_the_deadline_and_the_retries_of_the_inbound_request_and_spends_none(
    tmp_path: Path,
) -> None:
    """failures.md 85."""
    body = "    mode: observe\n    retry: {backoff: {base: 1ms, jitter: none}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(500))
        allowance = RetryAllowance([None] * 3)
        inbound = Inbound(hr, hr.snapshot, "id", allowance, deadline_at=monotonic() + 60.0)
        token = inbound_var.set(inbound)
        try:
            for _ in range(2):
                requests.get(server.url)
            assert foretold(hr) == {"retried": 3}  # of four
            assert len(allowance) == 3
            inbound.deadline_at = monotonic() - 1.0
            assert requests.get(server.url).status_code == 500
            assert foretold(hr) == {"retried": 3, "timed_out": 1}
        finally:
            inbound_var.reset(token)


@across(REQUESTS, HANDLE, URLOPEN)  # by URL, urllib3 itself would wait
@pytest.mark.parametrize(
    ("asks", "retry_after", "denied"),
    [
        pytest.param("60", "", "retry_after", id="more than max"),
        pytest.param("2", "", "deadline", id="more than the deadline"),
        pytest.param("60", ", retry_after: {headers: []}", "attempts", id="not heeded"),
    ],
)
def test_observe_heeds_what_the_upstream_asks_to_wait(
    tmp_path: Path, call: Surface, asks: str, retry_after: str, denied: str
) -> None:
    """failures.md 85."""
    told = []
    for mode in ("enforce", "observe"):
        body = (
            f"    mode: {mode}\n    timeouts: {{deadline: 1s, attempt: 1s}}\n"
            f"    retry: {{backoff: {{base: 1ms, throttled: 1ms}}{retry_after}}}\n"
        )
        with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
            server.always(Answer(503, headers=(("Retry-After", asks),)))
            assert status_of(call(hr, server.url)) == 503
            retry = hr.status()["upstreams"]["billing"]["retry"]
            made = sum(retry["retries"].values()) if mode == "enforce" else foretold(hr).get("retried", 0)
            told.append((made, retry["denied"]))

    assert told == [(2 if denied == "attempts" else 0, {denied: 1})] * 2


@across(retrying_adapter(1), retrying_manager(urllib3.Retry(1)), retrying_call(1))
def test_observe_tells_the_breaker_of_calls_that_bring_their_own_retries(
    tmp_path: Path, call: Surface
) -> None:
    """failures.md 85. They are one call, and no try of it is left to say how it ended."""
    told = []
    for mode in ("enforce", "observe"):
        body = f"    mode: {mode}\n"
        with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
            server.always(Answer(503))
            refused = 0
            for _ in range(8):
                try:
                    assert status_of(call(hr, server.url)) == 503
                except headrace.CircuitOpenError:
                    refused += 1
            told.append(refused if mode == "enforce" else foretold(hr))

    assert told == [3, {"refused": 3}]


def test_whatever_a_rehearsal_stumbles_over_the_call_is_as_it_was(
    tmp_path: Path, call: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 59."""

    def broken(*args: object, **kw: object) -> None:
        raise RuntimeError("the rehearsal is broken")

    body = "    mode: observe\n    retry: {backoff: {base: 1ms}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        server.always(Answer(500))
        for name in ("rehearse", "tally", "retry_after_s"):
            with monkeypatch.context() as patched:
                patched.setattr(observe, name, broken)
                assert status_of(call(hr, server.url)) == 500
            assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0
        before = foretold(hr).get("retried", 0)
        assert status_of(call(hr, server.url)) == 500
        assert foretold(hr)["retried"] == before + 2


def test_observe_asks_nothing_of_a_request_that_is_over(tmp_path: Path) -> None:
    """failures.md 85. What a request has left running is held neither to its deadline nor to its retries."""
    body = "    mode: observe\n    retry: {backoff: {base: 1ms}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(500))
        inbound = Inbound(hr, hr.snapshot, "id", RetryAllowance(), deadline_at=monotonic() - 1.0)
        inbound.end()
        token = inbound_var.set(inbound)
        try:
            assert requests.get(server.url).status_code == 500
        finally:
            inbound_var.reset(token)
        assert foretold(hr) == {"retried": 2}


def test_observe_counts_the_fallback_of_calls_that_have_sent_nothing_whatever_their_body(
    tmp_path: Path, call: Surface
) -> None:
    """failures.md 85. Refused before its first attempt, a call goes elsewhere even if it can be sent only once."""
    told = []
    with FaultServer() as server, FaultServer() as other:
        server.always(Answer())
        other.always(Answer(203))
        for mode in ("enforce", "observe"):
            body = f"    mode: {mode}\n    circuit_breaker: {{mode: forced_open}}\n    fallback: {{upstream: spare}}\n"
            text = rules(server.url, f"{body}  spare:\n    base_url: {other.url}\n", more=INSTALL)
            with running(tmp_path, text) as hr:
                status = status_of(call(hr, server.url, "POST", data=iter([b"once"])))
                counted = hr.status()["upstreams"]["billing"]
                told.append((status, counted["circuit_breaker"]["fallbacks"], counted["observed"]))

    assert told == [(203, 1, {}), (200, 0, {"refused": 1, "fallback": 1})]


def test_observe_counts_the_fallback_that_a_refused_call_would_get(tmp_path: Path) -> None:
    """failures.md 85."""
    body = "    mode: observe\n    circuit_breaker: {mode: forced_open}\n    fallback: {status: 200, body: later}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(500))
        assert requests.get(server.url).status_code == 500
        assert foretold(hr) == {"refused": 1, "fallback": 1}


def test_a_steady_download_is_not_said_to_be_cut_by_attempt(tmp_path: Path) -> None:
    """failures.md 89."""
    body = "    mode: observe\n    timeouts: {attempt: 1s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(body=b"x" * 10, drip_body_s=0.15))
        assert requests.get(server.url).content == b"x" * 10
        assert foretold(hr) == {}


@pytest.mark.parametrize(
    ("method", "headers", "is_cut"),
    [
        pytest.param("GET", {}, True, id="one that would be retried"),
        pytest.param("POST", {}, False, id="not one that would not"),
        pytest.param("POST", {"Idempotency-Key": "1"}, True, id="but with a key it would"),
    ],
)
def test_attempt_bounds_the_body_of_a_bad_answer_only_where_it_would_be_retried(
    tmp_path: Path, method: str, headers: dict[str, str], is_cut: bool
) -> None:
    """failures.md 89. In a call that is made under the rules, and in one that is rehearsed."""
    told = []
    with FaultServer() as server:
        server.always(Answer(503, body=b"x" * 10, drip_body_s=0.1))
        for mode in ("enforce", "observe"):
            body = f"    mode: {mode}\n    timeouts: {{attempt: 500ms}}\n    retry: {{max_attempts: 1}}\n"
            with running(tmp_path, rules(server.url, body)) as hr:
                try:
                    outcome = requests.request(method, server.url, headers=headers).status_code
                except requests.ReadTimeout:
                    outcome = "cut"
                told.append((outcome, hr.status()["upstreams"]["billing"]["observed"]))

    assert told == ([("cut", {}), (503, {"timed_out": 1})] if is_cut else [(503, {}), (503, {})])


def test_enforce_does_not_begin_with_what_a_rehearsal_has_assumed(tmp_path: Path) -> None:
    """failures.md 88."""
    with FaultServer() as server:
        observing = rules(server.url, "    mode: observe\n    retry: {backoff: {base: 1ms}}\n")
        with running(tmp_path, observing) as hr:
            server.always(Answer(500))
            for _ in range(6):
                requests.get(server.url)
            assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "open"
            (tmp_path / "upstreams.yaml").write_text(observing.replace("mode: observe", "mode: enforce"))
            assert hr.reload()
            assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "closed"
            server.always(Answer())
            assert requests.get(server.url).status_code == 200
            # The other way the rehearsal goes on from what was learned.
            server.always(Answer(500))
            for _ in range(20):
                try:
                    requests.get(server.url)
                except headrace.CircuitOpenError:
                    break
            (tmp_path / "upstreams.yaml").write_text(observing)
            assert hr.reload()
            assert requests.get(server.url).status_code == 500
            assert foretold(hr)["refused"] >= 2
