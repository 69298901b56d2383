"""Heartbeats on idle connections: a dead one is found before a call needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from support.faultserver import Answer, Endless, FaultServer, Reply, Silence
from support.governed import rules, running
from support.waiting import wait_until


def body(heartbeat: str, more: str = "") -> str:
    return f"    pool: {{heartbeat: {{{heartbeat}}}, max_lifetime: null{more}}}\n"


def beats(server: FaultServer) -> int:
    return sum(request.target == "/healthz" for request in server.requests)


def test_an_answer_refreshes_the_last_use(tmp_path: Path) -> None:
    with FaultServer() as server:
        text = rules(server.url, body("path: /healthz, interval: 200ms, timeout: 20s", ", idle_timeout: 1m"))
        with running(tmp_path, text) as hr:
            requests.get(server.url)
            leases = hr.snapshot.upstream("billing").endpoint.pool.leases
            leases.view()  # what was given back is put away
            (connection,) = leases._idle
            used_at = connection.idle_since
            wait_until(lambda: beats(server) >= 2)
            wait_until(lambda: connection.idle_since > used_at + 0.2)
            wait_until(lambda: hr.status()["upstreams"]["billing"]["pool"]["idle"] == 1)  # back from the look

            requests.get(server.url)

            assert server.connections == 1
            status = hr.status()["upstreams"]["billing"]
            assert status["requests"] == status["attempts"] == {"2xx": 2}  # heartbeats are nobody's calls
            assert sum(status["pool"]["acquires"].values()) == 2
            assert not status["pool"]["suspect"]


def test_any_whole_answer_will_do(tmp_path: Path) -> None:
    with FaultServer() as server:
        server.at("/healthz", Answer(503, body=b"not well"))
        with running(
            tmp_path, rules(server.url, body("path: /healthz, interval: 100ms, timeout: 20s, failures: 1"))
        ) as hr:
            requests.get(server.url)
            wait_until(lambda: beats(server) >= 2)

            assert not hr.status()["upstreams"]["billing"]["pool"]["suspect"]
            assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["failures"] == 0


def test_the_longest_timeout_is_waited_for_like_any_other(tmp_path: Path) -> None:
    """Beyond 24.8 days epoll refuses to wait at all: its milliseconds are an int of C."""
    with FaultServer() as server:
        text = rules(server.url, body("path: /healthz, interval: 100ms, timeout: 720h, failures: 1"))
        with running(tmp_path, text) as hr:
            requests.get(server.url)
            wait_until(lambda: beats(server) >= 3)

            assert not hr.status()["upstreams"]["billing"]["pool"]["suspect"]


def test_misses_in_a_row_close_the_idle_connections_and_mark_the_upstream_until_it_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    with FaultServer() as server:
        server.at("/healthz", Silence())
        file = tmp_path / "upstreams.yaml"
        file.write_text(
            rules(server.url, body("path: /healthz, interval: 100ms, timeout: 700ms, failures: 2"))
        )
        with headrace.Headrace(file, registry=registry) as hr:

            def suspect() -> object:
                return registry.get_sample_value("headrace_pool_suspect", {"upstream": "billing"})

            responses = [requests.get(server.url, stream=True) for _ in range(3)]
            for response in responses:
                assert response.content == b"ok"

            def told() -> list[Any]:
                return [one for one in caplog.records if getattr(one, "event", "") == "pool.suspect"]

            wait_until(told)  # the last that is done of it

            assert hr.status()["upstreams"]["billing"]["pool"]["suspect"]
            assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 0
            assert suspect() == 1
            (said,) = told()
            assert said.misses == 2
            assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["failures"] == 0

            server.at("/healthz", Answer())
            requests.get(server.url)

            assert not hr.status()["upstreams"]["billing"]["pool"]["suspect"]
            assert suspect() == 0


def test_without_a_path_a_connection_that_the_peer_closed_is_found(tmp_path: Path) -> None:
    with FaultServer() as server:
        with running(tmp_path, rules(server.url, body("interval: 200ms"))) as hr:
            requests.get(server.url)
            server.drop_all()

            wait_until(
                lambda: hr.status()["upstreams"]["billing"]["pool"]["closed"].get("dead") == 1, timeout_s=10
            )

            assert hr.status()["upstreams"]["billing"]["pool"]["idle"] == 0
            assert server.first_lines == 1  # nothing was sent


def test_without_a_path_a_look_is_no_use(tmp_path: Path) -> None:
    """A connection that is merely looked at still leaves by its idle timeout."""
    with FaultServer() as server:
        text = rules(server.url, body("interval: 200ms", ", idle_timeout: 1s"))
        with running(tmp_path, text) as hr:
            requests.get(server.url)

            wait_until(
                lambda: hr.status()["upstreams"]["billing"]["pool"]["closed"].get("idle") == 1, timeout_s=10
            )


def test_an_upstream_that_hangs_delays_no_other(tmp_path: Path) -> None:
    with FaultServer() as hung, FaultServer() as fine:
        hung.at("/healthz", Silence())
        text = "upstreams:\n" + "".join(
            f"  {name}: {{base_url: '{server.url}', pool: {{heartbeat: {{path: /healthz, interval: 300ms, "
            f"timeout: 2s, failures: 100}}}}}}\n"
            for name, server in (("hung", hung), ("fine", fine))
        )
        with running(tmp_path, text) as hr:
            for _ in range(2):
                requests.get(hung.url)
                requests.get(fine.url)

            wait_until(lambda: beats(fine) >= 3)

            assert hr.status()["upstreams"]["fine"]["pool"]["closed"] == {}
            closed = hr.status()["upstreams"]["hung"]["pool"]["closed"]
            assert closed in (
                {"dead": 1},
                {"error": 1},
            )  # the latter where this process was late: it was cut off


def test_what_has_answered_goes_back_at_once_whatever_hangs_beside_it(tmp_path: Path) -> None:
    """Kept to the end of its round, it was cut off with those that hang: their limit was its own as well."""
    with FaultServer() as hung, FaultServer() as fine:
        hung.at("/healthz", Silence())
        text = "upstreams:\n" + "".join(
            f"  {name}: {{base_url: '{server.url}', pool: {{heartbeat: {{path: /healthz, interval: 300ms, "
            f"timeout: 20s, failures: 100}}}}}}\n"
            for name, server in (("hung", hung), ("fine", fine))
        )
        with running(tmp_path, text) as hr:
            requests.get(hung.url)
            requests.get(fine.url)
            wait_until(lambda: beats(hung) == 1 and beats(fine) >= 1)

            def pool(name: str) -> Any:
                return hr.status()["upstreams"][name]["pool"]

            wait_until(lambda: pool("fine")["idle"] == 1)
            assert pool("hung")["inuse"] == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(
            Endless(b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n", pause_s=0.1), id="headers without end"
        ),
        pytest.param(Endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), id="a body that ends with the connection"),
    ],
)
def test_a_peer_that_drips_is_a_miss_and_holds_no_slot(tmp_path: Path, behaviour: Reply) -> None:
    """failures.md 27."""
    with FaultServer() as server:
        server.at("/healthz", behaviour)
        text = rules(server.url, body("path: /healthz, interval: 300ms, timeout: 250ms, failures: 1"))
        with running(tmp_path, text) as hr:
            requests.get(server.url)

            wait_until(lambda: hr.status()["upstreams"]["billing"]["pool"]["suspect"])

            pool = hr.status()["upstreams"]["billing"]["pool"]
            assert (pool["inuse"], pool["closed"]) == (0, {"error": 1})  # broken off


def test_headers_of_the_rule_go_with_a_heartbeat(tmp_path: Path) -> None:
    with FaultServer() as server:
        text = rules(server.url, body("path: /healthz, interval: 100ms") + "    headers: {X-Token: t}\n")
        with running(tmp_path, text):
            requests.get(server.url)
            wait_until(lambda: beats(server) >= 1)

            assert server.requests[1].header("X-Token") == "t"


def test_a_small_pool_always_has_a_slot_for_a_call(tmp_path: Path) -> None:
    with FaultServer() as server:
        server.at("/healthz", Silence())
        more = ", max_connections: 2, when_full: reject"
        text = rules(server.url, body("path: /healthz, interval: 50ms, timeout: 500ms, failures: 100", more))
        with running(tmp_path, text):
            answers = [requests.get(server.url, stream=True) for _ in range(2)]
            assert [answer.content for answer in answers] == [b"ok", b"ok"]
            wait_until(lambda: beats(server) >= 1)

            assert requests.get(server.url).status_code == 200  # while the heartbeat waits for its answer


def test_a_peer_that_closes_by_its_own_idle_limit_is_not_suspect(tmp_path: Path) -> None:
    with FaultServer() as server:
        with running(
            tmp_path, rules(server.url, body("path: /healthz, interval: 200ms, timeout: 20s, failures: 1"))
        ) as hr:
            answers = [requests.get(server.url, stream=True) for _ in range(3)]
            assert [answer.content for answer in answers] == [b"ok"] * 3
            server.drop_all()

            wait_until(lambda: hr.status()["upstreams"]["billing"]["pool"]["idle"] == 0)

            assert not hr.status()["upstreams"]["billing"]["pool"]["suspect"]
