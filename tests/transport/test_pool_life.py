"""The life of connections over real sockets: warm ones, dropped ones, announced ends, the kernel's probes."""

from __future__ import annotations

import gc
import logging
import socket
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from headrace.policy.counters import UpstreamCounters
from headrace.transport.lease.pool import LeasePool
from headrace.transport.stock.connection import socket_options
from headrace.transport.stock.own_class import over_own_class
from headrace.transport.stock.pool import build_pool
from support.faultserver import Answer, FaultServer, server_context
from support.governed import rules, running
from support.plans import upstream_plan
from support.waiting import wait_until

pytestmark = pytest.mark.both_parsers


def leases_of(hr: Any) -> LeasePool[Any]:
    return hr.snapshot.upstream("billing").endpoint.pool.leases  # type: ignore[no-any-return]


def closed(hr: Any) -> dict[str, int]:
    return hr.status()["upstreams"]["billing"]["pool"]["closed"]  # type: ignore[no-any-return]


def test_idle_connections_are_made_at_the_start_and_made_again_when_they_go(tmp_path: Path) -> None:
    body = "    pool: {min_idle: 3, max_connections: 5, idle_timeout: 400ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        wait_until(lambda: leases_of(hr).view().idle == 3)
        assert server.first_lines == 0
        assert hr.status()["upstreams"]["billing"]["pool"]["acquires"] == {}
        wait_until(lambda: closed(hr).get("idle", 0) >= 3 and leases_of(hr).view().idle == 3)
        server.wait_for(lambda: server.connections >= 6)


def test_a_call_goes_out_over_a_warm_connection(tmp_path: Path) -> None:
    """Over TLS 1.3, where tickets wait to be read on a connection that was never used.

    failures.md 22.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    body = f"    tls: {{ca: '{tmp_path}/ca.pem'}}\n    pool: {{min_idle: 1, max_connections: 2, max_lifetime: 60s}}\n"
    with (
        FaultServer(tls=server_context(authority)) as server,
        running(tmp_path, rules(server.url, body)) as hr,
    ):
        wait_until(lambda: leases_of(hr).view().idle == 1)
        response = requests.post(server.url)

        assert response.headrace.attempts[0].connect_s is None
        assert server.requests[0].connection == 1
        assert hr.status()["upstreams"]["billing"]["pool"]["acquires"] == {"hit": 1}
        assert closed(hr) == {}


def test_an_upstream_that_is_down_is_warmed_quietly_and_blamed_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down, up = FaultServer(), FaultServer()
    down.refuse()
    with down, up:
        text = (
            "version: 1\ndefaults: {pool: {min_idle: 2}}\nupstreams:\n"
            f"  billing: {{base_url: '{down.url}'}}\n  other: {{base_url: '{up.url}'}}\n"
            f"  asleep: {{base_url: '{up.url}/x', mode: observe}}\n"
        )
        with caplog.at_level(logging.INFO, logger="headrace"), running(tmp_path, text) as hr:
            other = hr.snapshot.upstream("other").endpoint.pool.leases
            wait_until(lambda: other.view().idle == 2)
            status = hr.status()["upstreams"]["billing"]
            assert status["circuit_breaker"]["calls"] == 0
            assert status["attempts"] == {}
            up.wait_for(lambda: up.connections == 2)
            down.listen()
            wait_until(lambda: leases_of(hr).view().idle == 2)  # after a pause of a second
            assert up.connections == 2  # none for the upstream that is only observed
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_closing_ends_the_thread_that_warms(tmp_path: Path) -> None:
    with FaultServer() as server:
        with running(tmp_path, rules(server.url, "    pool: {min_idle: 50, max_connections: 50}\n")):
            server.wait_for(lambda: server.connections > 0)
        assert not [thread for thread in threading.enumerate() if thread.name == "headrace-warmup"]
        server.wait_for(lambda: server.open_connections == 0)


def test_a_response_dropped_unread_frees_its_slot_and_is_told_with_its_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 19."""
    body = "    pool: {max_connections: 1, leak_detection_threshold: 10s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(body=b"x" * 100_000))
        for _ in range(2):
            response: Any = requests.get(server.url, stream=True)
            del response
            gc.collect()
        assert leases_of(hr).view().inuse == 0
        assert closed(hr) == {"leaked": 2}
        wait_until(lambda: "pool.leaked" in caplog.text)

        with requests.get(server.url, stream=True):
            pass  # closed unread, by hand: not a leak
        assert closed(hr) == {"leaked": 2, "error": 1}
    (event,) = [record for record in caplog.records if record.getMessage().startswith("pool.leaked")]
    assert __file__ in event.getMessage()


def test_without_a_threshold_a_leak_says_how_to_learn_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)):
        server.always(Answer(body=b"x" * 100_000))
        requests.get(server.url, stream=True)
        gc.collect()
        wait_until(lambda: "set pool.leak_detection_threshold to see where" in caplog.text)


def test_a_response_held_for_too_long_is_told_while_it_is_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = "    pool: {leak_detection_threshold: 100ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Answer(body=b"x" * 100_000))
        with requests.get(server.url, stream=True):
            wait_until(lambda: "pool.held" in caplog.text)
    assert f"taken at {__file__}:" in caplog.text


def test_a_connection_that_the_server_said_it_would_close_is_not_an_error(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        server.always(Answer(close=True))
        requests.get(server.url)
        requests.get(server.url, stream=True).content  # noqa: B018 - read
        hr.upstream("billing").urlopen("GET", "/")

        assert closed(hr) == {"dead": 3}


def test_a_connection_serves_so_many_requests(tmp_path: Path) -> None:
    body = "    pool: {max_requests_per_connection: 2}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        for _ in range(5):
            requests.get(server.url)

        assert [request.connection for request in server.requests] == [1, 1, 2, 2, 3]
        assert closed(hr) == {"lifetime": 2}


def test_a_busy_connection_beyond_lifetime_and_grace_is_broken_off(tmp_path: Path) -> None:
    body = "    pool: {max_lifetime: 100ms, max_lifetime_grace: 100ms}\n    retry: {max_attempts: 1}\n"
    body += "    timeouts: {attempt: 30s, deadline: 60s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=60.0))
        with pytest.raises(requests.ConnectionError):
            requests.post(server.url)
        assert closed(hr) == {"lifetime": 1}


def test_the_kernel_probes_silent_connections_if_the_file_says_so(tmp_path: Path) -> None:
    body = "    pool: {tcp_keepalive: {idle: 30s, interval: 5s, count: 4}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        requests.get(server.url)
        lease = leases_of(hr).acquire(0.0)
        sock = lease.conn.sock  # type: ignore[union-attr]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
        leases_of(hr).give_back(lease, reusable=True)


def test_without_keepalive_sockets_are_as_urllib3_makes_them() -> None:
    assert socket_options(None) == [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


def test_whatever_a_reload_changes_in_a_pool_changes_in_the_face_of_a_callers_own_class() -> None:
    """What a pool follows is in an object that both have: the face is made once, from a copy of the rest."""
    plan = upstream_plan()
    base = build_pool(plan, plan.base.origin, UpstreamCounters())
    face = over_own_class(base, HTTPConnectionPool("billing.internal"), type("Own", (HTTPConnection,), {}))
    assert face is not None
    before = asdict(base.in_force)

    limits = replace(plan.timeouts, acquire_s=9, connect_s=9, resolve_s=9, tls_handshake_s=9)
    pool = replace(plan.pool, parser="stdlib")
    base.follow(replace(plan, timeouts=limits, pool=pool, rooted=frozenset({plan.base.origin})))

    same = [name for name, value in asdict(base.in_force).items() if value == before[name]]
    assert same == ["fingerprint"]  # of TLS files: there is no TLS here
    own = {"base", "theirs", "ConnectionCls"}
    assert {name for name, value in vars(face).items() if value is not getattr(base, name, None)} == own
