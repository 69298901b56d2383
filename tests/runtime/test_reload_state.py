"""What an upstream has learned and holds survives a reload of its rules, all but a new origin."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import requests
import trustme
from prometheus_client import CollectorRegistry

import headrace
from headrace.runtime.upstream import Upstream
from support.faultserver import Answer, FaultServer
from support.governed import rules, running

FAILING = Answer(503)
ONCE = "    retry: {max_attempts: 1}\n"


def edit(hr: headrace.Headrace, text: str) -> Upstream:
    """Take *text* into force by hand; the upstream as it is then."""
    Path(hr.files[0]).write_text(text)
    hr.reload()  # the watcher may have been faster
    return hr.snapshot.upstream("billing")


def breaker(**keys: str) -> str:
    """Rules without retries, and these of the breaker."""
    return ONCE + f"    circuit_breaker: {{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}\n"


def status(hr: headrace.Headrace) -> dict[str, object]:
    return hr.status()["upstreams"]["billing"]["circuit_breaker"]  # type: ignore[no-any-return]


def test_a_threshold_is_live_and_what_was_counted_counts(tmp_path: Path) -> None:
    """failures.md 40."""
    with FaultServer() as server, running(tmp_path, rules(server.url, breaker())) as hr:
        server.always(FAILING)
        for _ in range(3):
            requests.get(server.url)
        before = hr.snapshot.upstream("billing")

        after = edit(hr, rules(server.url, breaker(consecutive_failures="4")))
        requests.get(server.url)

        assert (after.learned, after.endpoints) == (before.learned, before.endpoints)
        assert (status(hr)["state"], status(hr)["consecutive_failures"]) == ("open", 4)


def test_an_open_circuit_stays_open_and_disabling_it_lets_calls_through(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, breaker(consecutive_failures="1"))) as hr,
    ):
        server.next(FAILING)
        requests.get(server.url)

        edit(hr, rules(server.url, breaker(consecutive_failures="2", minimum_calls="7")))
        with pytest.raises(headrace.CircuitOpenError, match="1 failed call in a row"):
            requests.get(server.url)

        caplog.set_level("INFO", "headrace")
        edit(hr, rules(server.url, breaker(mode="disabled")))
        assert requests.get(server.url).status_code == 200
        assert (status(hr)["state"], status(hr)["mode"], status(hr)["failures"]) == ("closed", "disabled", 1)
        changes = [
            (record.from_state, record.to_state, record.reason)  # type: ignore[attr-defined]
            for record in caplog.records
            if getattr(record, "event", "").startswith("breaker.")
        ]
        assert changes[-2:] == [("open", "half_open", "disabled"), ("half_open", "closed", "disabled")]


def test_a_breaker_can_be_forced_open_and_let_go_again(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    file = tmp_path / "upstreams.yaml"
    with FaultServer() as server:
        file.write_text(rules(server.url, breaker()))
        with headrace.Headrace(file, registry=registry) as hr:
            requests.get(server.url)

            edit(hr, rules(server.url, breaker(mode="forced_open")))
            with pytest.raises(headrace.CircuitOpenError, match="forced open by the configuration") as caught:
                requests.get(server.url)

            assert caught.value.retry_after_s == 60.0
            labels = {"upstream": "billing", "state": "forced_open"}
            assert registry.get_sample_value("headrace_breaker_state", labels) == 1
            assert len(server.requests) == 1
            edit(hr, rules(server.url, breaker()))
            assert requests.get(server.url).status_code == 200
            assert status(hr)["calls"] == 2


def test_an_observing_breaker_refuses_nothing_counts_what_it_would_have_and_can_be_put_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observing = breaker(mode="observe", consecutive_failures="2")
    caplog.set_level("INFO", "headrace")
    with FaultServer() as server, running(tmp_path, rules(server.url, observing)) as hr:
        server.always(FAILING)
        for _ in range(5):
            assert requests.get(server.url).status_code == 503

        assert hr.status()["upstreams"]["billing"]["observed"] == {"refused": 3}
        assert (status(hr)["state"], status(hr)["refused"]) == ("open", 0)
        (opened,) = (record for record in caplog.records if getattr(record, "event", "") == "breaker.opened")
        assert opened.is_observed  # type: ignore[attr-defined]
        assert "would be open" in opened.getMessage()

        edit(hr, rules(server.url, breaker(consecutive_failures="2")))
        with pytest.raises(headrace.CircuitOpenError):
            requests.get(server.url)


def test_an_observing_breaker_does_not_keep_a_call_from_its_retries(tmp_path: Path) -> None:
    body = (
        "    retry: {max_attempts: 3, backoff: {base: 1ms, throttled: 1ms}}\n"
        "    circuit_breaker: {mode: observe, consecutive_failures: 1}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.next(FAILING, FAILING)

        assert requests.get(server.url).status_code == 200

        assert len(server.requests) == 3


def test_a_window_of_another_size_keeps_what_was_counted(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, breaker())) as hr:
        for _ in range(5):
            requests.get(server.url)

        edit(hr, rules(server.url, breaker(window="{size: 60s}")))
        assert status(hr)["calls"] == 5
        edit(hr, rules(server.url, breaker(window="{type: count, size: 3}")))
        assert status(hr)["calls"] == 3


def test_the_budget_keeps_what_was_earned_and_spent(tmp_path: Path) -> None:
    def body(ratio: str, ttl: str = "10s") -> str:
        budget = f"budget: {{ratio: {ratio}, min_per_second: 1, ttl: {ttl}}}"
        return f"    retry: {{max_attempts: 2, backoff: {{base: 1ms, throttled: 1ms}}, {budget}}}\n"

    def tokens(hr: headrace.Headrace) -> float:
        return hr.status()["upstreams"]["billing"]["retry"]["budget_tokens"]  # type: ignore[no-any-return]

    with FaultServer() as server, running(tmp_path, rules(server.url, body("0.5"))) as hr:
        server.next(FAILING)
        for _ in range(10):
            requests.get(server.url)
        assert tokens(hr) == pytest.approx(10 + 5 - 1)

        edit(hr, rules(server.url, body("0.1")))
        assert tokens(hr) == pytest.approx(10 + 1 - 1)
        edit(hr, rules(server.url, body("0.1", "30s")))
        assert tokens(hr) == pytest.approx(30 + 1 - 1)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("    timeouts: {attempt: 3s, acquire: 200ms}\n", id="timeouts"),
        pytest.param("    retry: {max_attempts: 2}\n", id="retry"),
        pytest.param("    headers: {X-One: one}\n", id="headers"),
        pytest.param("    circuit_breaker: {minimum_calls: 3}\n", id="breaker"),
        pytest.param("    pool: {max_connections: 9, idle_timeout: 30s, when_full: reject}\n", id="pool"),
        pytest.param("    mode: observe\n", id="mode"),
        pytest.param("    match: ['http://other.test']\n", id="another origin in match"),
    ],
)
def test_warm_connections_survive_a_change_of(tmp_path: Path, body: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        hr.upstream("billing").get("/")
        before = hr.snapshot.upstream("billing")

        after = edit(hr, rules(server.url, body))
        hr.upstream("billing").get("/")

        assert (after.endpoint.pool, after.learned.circuit, after.learned.budget) == (
            before.endpoint.pool,
            before.learned.circuit,
            before.learned.budget,
        )
        assert not before.endpoint.pool.leases.retired
        if "observe" not in body:  # that mode has connections of its own
            assert server.connections == 1


def test_a_pool_grows_and_shrinks_in_place_and_who_waits_is_served(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, "    pool: {max_connections: 1}\n")) as hr,
    ):
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        held = leases.acquire(0)
        got = []
        waiting = threading.Thread(target=lambda: got.append(leases.acquire(10)))
        waiting.start()
        while not leases.view().waiting:
            time.sleep(0.005)

        edit(hr, rules(server.url, "    pool: {max_connections: 2}\n"))
        waiting.join(10)

        assert len(got) == 1
        edit(hr, rules(server.url, "    pool: {max_connections: 1}\n"))
        assert leases.view().max_connections == 1
        assert hr.status()["upstreams"]["billing"]["pool"]["target_size"] == 1
        for lease in (held, *got):
            leases.give_back(lease, reusable=False)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("    pool: {tcp_keepalive: {idle: 30s}}\n", id="options of the socket"),
        pytest.param("    pool: {adaptive: {min: 2}}\n", id="a size that follows the load"),
    ],
)
def test_a_pool_that_cannot_follow_is_replaced_and_the_circuit_stays(tmp_path: Path, body: str) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        hr.upstream("billing").get("/")
        before = hr.snapshot.upstream("billing")

        after = edit(hr, rules(server.url, body))
        hr.upstream("billing").get("/")

        assert before.endpoint.pool.leases.retired
        assert after.endpoint.pool is not before.endpoint.pool
        assert (after.learned.circuit, after.learned.budget) == (
            before.learned.circuit,
            before.learned.budget,
        )
        assert status(hr)["calls"] == 2


def test_pool_and_circuit_follow_a_rotated_certificate(tmp_path: Path) -> None:
    """failures.md 33."""
    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    text = rules("https://a.test", f"    tls: {{ca: '{ca}'}}\n")
    with running(tmp_path, text) as hr:
        before = hr.snapshot.upstream("billing")
        trustme.CA().cert_pem.write_to_path(str(ca))

        after = edit(hr, text)

        assert after.endpoint.pool is before.endpoint.pool
        assert after.endpoint.pool.leases.generation == 1  # what is connected by the old file goes
        assert after.learned.circuit is before.learned.circuit


def test_at_a_new_origin_nothing_is_known(tmp_path: Path) -> None:
    with FaultServer() as first, FaultServer() as second:
        opens = breaker(consecutive_failures="1")
        with running(tmp_path, rules(first.url, opens)) as hr:
            first.always(FAILING)
            requests.get(first.url)
            before = hr.snapshot.upstream("billing")

            after = edit(hr, rules(second.url, opens))

            assert requests.get(second.url).status_code == 200
            assert (
                after.learned.circuit is before.learned.circuit,
                after.learned.budget is before.learned.budget,
            ) == (False, False)
            assert before.endpoint.pool.leases.retired


def test_a_rehearsal_under_way_teaches_nothing_to_the_rules_that_follow_it(tmp_path: Path) -> None:
    """It goes with the configuration that has learned it: a call keeps the circuit that it began with."""
    rehearsing = ONCE + "    mode: observe\n    circuit_breaker: {consecutive_failures: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, rehearsing)) as hr:
        held = threading.Event()
        server.next(lambda _: Answer(503) if held.wait(20) else Answer(500))
        before = hr.snapshot.upstream("billing")
        call = threading.Thread(target=requests.get, args=(server.url,))
        call.start()
        server.wait_for(lambda: len(server.requests) == 1)

        after = edit(hr, rules(server.url, rehearsing.replace("mode: observe", "mode: enforce")))
        held.set()
        call.join(20)

        assert before.learned.circuit.state == "open"
        assert status(hr)["state"] == "closed"
        assert after.endpoints == before.endpoints
        assert after.learned.counters is before.learned.counters


def test_what_is_forgotten_is_forgotten_at_every_origin_at_once(tmp_path: Path) -> None:
    with FaultServer() as base, FaultServer() as other:
        body = breaker(consecutive_failures="1") + f"    match: ['{other.url}']\n"
        with running(tmp_path, rules(base.url, body)) as hr:
            other.next(FAILING)
            requests.get(other.url)
            upstream = hr.snapshot.upstream("billing")
            for endpoint in upstream.endpoints:
                endpoint.misses, endpoint.suspect = 3, True
            with pytest.raises(headrace.CircuitOpenError):
                requests.get(base.url)

            upstream.forget_learned()

            assert [(one.misses, one.suspect) for one in upstream.endpoints] == [(0, False)] * 2
            assert [requests.get(url).status_code for url in (base.url, other.url)] == [200, 200]


def test_an_origin_that_leaves_match_takes_its_pool_with_it_and_the_others_stay(tmp_path: Path) -> None:
    with FaultServer() as base, FaultServer() as one, FaultServer() as other:
        body = f"    match: ['{one.url}', '{other.url}']\n"
        with running(tmp_path, rules(base.url, body)) as hr:
            for server in (base, one, other):
                requests.get(server.url)
            before = hr.snapshot.upstream("billing")

            after = edit(hr, rules(base.url, f"    match: ['{other.url}']\n"))
            for server in (base, other):
                requests.get(server.url)

            assert [server.connections for server in (base, one, other)] == [1, 1, 1]
            assert [one.pool.leases.retired for one in before.endpoints] == [False, True, False]
            assert after.learned.circuit is before.learned.circuit
            assert not hasattr(requests.get(one.url), "headrace")


def test_a_reload_that_is_refused_at_the_last_step_changes_no_threshold(tmp_path: Path) -> None:
    """What is in force is what it was, half of a file never takes force.

    failures.md 39.
    """
    other = tmp_path / "other"
    other.mkdir()
    with FaultServer() as server, FaultServer() as taken, running(other, rules(taken.url, name="taken")):
        with running(tmp_path, rules(server.url, breaker(consecutive_failures="1"))) as hr:
            before = hr.snapshot
            claims = f"    match: ['{taken.url}']\n    pool: {{max_connections: 3}}\n"
            (tmp_path / "upstreams.yaml").write_text(
                rules(server.url, breaker(consecutive_failures="9", mode="disabled") + claims)
            )
            with pytest.raises(headrace.ConfigError):
                hr.reload()

            assert hr.snapshot is before
            server.next(FAILING)
            requests.get(server.url)
            assert (status(hr)["state"], status(hr)["mode"]) == ("open", "enforce")
            assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().max_connections == 200


def test_no_verdict_is_lost_while_breaker_rules_are_edited_under_load(tmp_path: Path) -> None:
    def body(turn: int) -> str:
        window = ("{type: count, size: 100000}", "{size: 1h}")[turn % 2]
        return breaker(window=window, minimum_calls="10000", consecutive_failures=str(50 + turn))

    with FaultServer() as server, running(tmp_path, rules(server.url, body(0))) as hr:
        per_thread, threads = 60, []
        for _ in range(8):
            thread = threading.Thread(
                target=lambda: [hr.upstream("billing").get("/") for _ in range(per_thread)]
            )
            thread.start()
            threads.append(thread)
        turn = 0
        while any(thread.is_alive() for thread in threads):
            turn += 1
            edit(hr, rules(server.url, body(turn)))
        for thread in threads:
            thread.join()

        assert turn >= 2
        assert status(hr)["calls"] == 8 * per_thread
        assert server.connections <= 8
