"""Plain `urllib3` calls, governed by URL (`install: {urllib3: true}`), against real servers."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ClosedPoolError,
    EmptyPoolError,
    HostChangedError,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    ResponseError,
)
from urllib3.poolmanager import PoolManager
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, Break, FaultServer, Request, Silence
from support.governed import reason_of, rules, running
from support.waiting import ends_within, is_about, wait_until

ON = "install: {urllib3: true}\n"
ONLY = "install: {requests: false, urllib3: true}\n"
FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def manager() -> Iterator[PoolManager]:
    with PoolManager() as manager:
        yield manager


def governed(base_url: str, body: str = "") -> str:
    return rules(base_url, body, more=ON)


def leases_of(hr: headrace.Headrace, name: str = "billing") -> Any:
    return hr.snapshot.upstream(name).endpoint.pool.leases


def test_urllib3_request_is_governed_by_its_url(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, governed(f"{server.url}/v2")) as hr:
        response = urllib3.request("GET", f"{server.url}/v2/invoices/7", fields={"full": "1"})

        assert (response.status, response.data) == (200, b"ok")
        assert isinstance(response, urllib3.HTTPResponse)
        assert response.headrace.upstream == "billing"
        assert [attempt.outcome for attempt in response.headrace.attempts] == ["2xx"]
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}
        assert server.requests[0].target == "/v2/invoices/7?full=1"
        assert server.requests[0].header("X-Request-ID") == response.headrace.request_id


def test_managers_made_before_and_after_share_the_upstreams_connections(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    assert not hasattr(manager.request("GET", server.url), "headrace")
    manager.clear()
    with running(tmp_path, governed(server.url)), PoolManager() as later:
        for one in (manager, later, manager):
            assert one.request("GET", server.url).headrace.upstream == "billing"

        assert server.connections == 2  # the one from before, and ours
    assert not hasattr(manager.request("GET", server.url), "headrace")
    manager.clear()


def test_it_is_off_unless_the_file_says_so(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    stock = PoolManager.connection_from_pool_key
    with running(tmp_path, rules(server.url)):
        assert PoolManager.connection_from_pool_key is stock
        assert not hasattr(manager.request("GET", server.url), "headrace")


def test_a_path_that_no_route_names_goes_through_the_managers_own_pool(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    text = (
        f"version: 1\n{ON}upstreams:\n"
        f"  orders: {{base_url: '{server.url}/orders'}}\n  tokens: {{base_url: '{server.url}/tokens'}}\n"
    )
    with running(tmp_path, text) as hr:
        seen = [
            getattr(manager.request("GET", server.url + path), "headrace", None)
            for path in ("/orders/1", "/tokens?x=1", "/tokensx", "/orders/../a", "/")
        ]

        assert [None if one is None else one.upstream for one in seen] == [
            "orders",
            "tokens",
            None,
            None,
            None,
        ]
        assert server.requests[2].header("X-Request-ID") is None
        assert server.connections == 3  # one per upstream, one of the manager
        assert {"host": server.url.removeprefix("http://"), "calls": 3} in hr.status()["unknown_hosts"]


def test_a_host_that_the_file_does_not_name_passes_through_and_is_listed(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with FaultServer() as other, running(tmp_path, governed(server.url)) as hr:
        response = manager.request("GET", other.url)

        assert not hasattr(response, "headrace")
        assert type(manager.connection_from_url(other.url)) is HTTPConnectionPool
        assert {"host": other.url.removeprefix("http://"), "calls": 2} in hr.status()["unknown_hosts"]


def test_the_patch_is_undone_with_the_last_instance_and_other_patches_are_respected(
    tmp_path: Path, server: FaultServer, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = PoolManager.connection_from_pool_key
    (tmp_path / "a").mkdir()
    with FaultServer() as two, running(tmp_path, governed(server.url)):
        ours = PoolManager.connection_from_pool_key
        with running(tmp_path / "a", rules(two.url, name="inventory", more=ON)):
            assert PoolManager.connection_from_pool_key is ours
            assert manager.request("GET", two.url).headrace.upstream == "inventory"
        assert not hasattr(manager.request("GET", two.url), "headrace")
        assert manager.request("GET", server.url).headrace.upstream == "billing"
    assert PoolManager.connection_from_pool_key is stock

    hr = headrace.Headrace(tmp_path / "upstreams.yaml")
    hr.start()
    ours = PoolManager.connection_from_pool_key
    monkeypatch.setattr(PoolManager, "connection_from_pool_key", lambda *a, **kw: ours(*a, **kw))
    hr.close()
    assert not hasattr(manager.request("GET", server.url), "headrace")  # still called, passes through
    monkeypatch.undo()
    assert PoolManager.connection_from_pool_key is ours
    with running(tmp_path, governed(server.url)):
        assert manager.request("GET", server.url).headrace.upstream == "billing"
    assert PoolManager.connection_from_pool_key is stock


def test_a_reload_switches_it_on_and_off(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    with running(tmp_path, rules(server.url)) as hr:
        pool = manager.connection_from_url(server.url)
        for more, expected in ((ON, True), ("", False), (ON, True)):
            (tmp_path / "upstreams.yaml").write_text(rules(server.url, more=more))
            hr.reload()
            assert hasattr(manager.request("GET", server.url), "headrace") is expected
        assert not hasattr(pool.request("GET", "/"), "headrace")  # handed out before: stock's, and stays so


# Retries and what leaves


def test_a_failed_get_is_retried_by_the_rules_alone(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    """urllib3's default of 3 retries is nobody's wish: it does not multiply with the rule's attempts.

    failures.md 12.
    """
    with running(tmp_path, governed(server.url, FAST)) as hr:
        server.next(Answer(503), Break("head"))
        response = manager.request("GET", server.url)

        assert [attempt.outcome for attempt in response.headrace.attempts] == ["5xx", "reset", "2xx"]
        assert len({request.header("X-Request-ID") for request in server.requests}) == 1
        assert hr.status()["upstreams"]["billing"]["retry"]["retries"] == {"5xx": 1, "reset": 1}

        server.always(Break("head"))
        with pytest.raises(MaxRetryError) as caught:
            manager.request("GET", server.url)

        assert len(server.requests) == 3 + 3
        assert type(caught.value) is MaxRetryError
        assert isinstance(caught.value.reason, ProtocolError)
        assert reason_of(caught.value) == "attempts"
        assert len([note for note in caught.value.__notes__ if "reset" in note]) == 3
        assert not getattr(caught.value.reason, "__notes__", [])
        assert str(caught.value).startswith("HTTPConnectionPool(host='127.0.0.1', port=")
        assert hr.status()["upstreams"]["billing"]["retry"]["delegated"] == 0


@pytest.mark.parametrize("headers", [(), (("Retry-After", "0"),)], ids=["plain", "with Retry-After"])
def test_the_last_answer_is_returned_when_attempts_run_out(
    tmp_path: Path, server: FaultServer, manager: PoolManager, headers: Any
) -> None:
    with running(tmp_path, governed(server.url, FAST)):
        server.always(Answer(503, headers=headers, body=b"busy"))

        response = manager.request("GET", server.url)

        assert (response.status, response.data) == (503, b"busy")
        assert response.headrace.reason.value == "attempts"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("method", "retries", "expected"),
    [
        pytest.param("GET", None, MaxRetryError, id="default"),
        pytest.param("POST", None, ProtocolError, id="default, not idempotent"),
        pytest.param("GET", False, ProtocolError, id="False"),
        pytest.param("GET", 0, MaxRetryError, id="0"),
        pytest.param("GET", urllib3.Retry(0, read=False), ProtocolError, id="as requests has it"),
        pytest.param(
            "GET", urllib3.Retry(5, connect=0, read=0, status=0, other=0), MaxRetryError, id="redirects"
        ),
    ],
)
def test_what_leaves_is_what_stock_would_raise(
    tmp_path: Path, server: FaultServer, manager: PoolManager, method: str, retries: Any, expected: type
) -> None:
    server.always(Break("head"))
    raised = []
    for text in (rules(server.url), governed(server.url, FAST)):
        with running(tmp_path, text), pytest.raises(urllib3.exceptions.HTTPError) as caught:
            manager.request(method, server.url, retries=retries)
        raised.append(type(caught.value))

    assert raised == [expected, expected]
    assert reason_of(caught.value) == ("attempts" if method == "GET" else "method")


def test_a_refused_connection_is_a_new_connection_error_within(tmp_path: Path, manager: PoolManager) -> None:
    with FaultServer() as gone:
        url = gone.url
    with running(tmp_path, governed(url, FAST)), pytest.raises(MaxRetryError) as caught:
        manager.request("POST", url, body=b"x")

    assert isinstance(caught.value.reason, NewConnectionError)
    assert [one.outcome for one in caught.value.headrace.attempts] == ["connect_failure"] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["call", "manager"])
def test_a_callers_own_retries_are_kept_and_ours_stand_back(
    tmp_path: Path, server: FaultServer, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    own = urllib3.Retry(total=2, status_forcelist=[503], backoff_factor=0)
    at_manager, at_call = ({}, {"retries": own}) if where == "call" else ({"retries": own}, {})
    with running(tmp_path, governed(server.url, FAST)) as hr, PoolManager(**at_manager) as manager:
        server.next(Answer(503), Break("head"))
        assert manager.request("GET", server.url, **at_call).status == 200
        assert len(server.requests) == 3

        server.always(Answer(503))
        with pytest.raises(MaxRetryError) as caught:
            manager.request("GET", server.url, **at_call)
        assert isinstance(caught.value.reason, ResponseError)
        assert [one.outcome for one in caught.value.headrace.attempts] == ["5xx"] * 3  # type: ignore[attr-defined]
        assert len(server.requests) == 6  # not 3 x 3

        assert hr.status()["upstreams"]["billing"]["retry"]["delegated"] == 6
        said = [one.call_site for one in caplog.records if getattr(one, "event", "") == "retries.delegated"]
        assert len(said) == len(set(said)) == 2
        assert all("test_urllib3.py:" in site for site in said)


def test_the_own_retries_of_a_requests_session_are_counted_too(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, FAST)) as hr, requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=1))
        session.get(server.url)
        requests.get(server.url)
        assert hr.status()["upstreams"]["billing"]["retry"]["delegated"] == 1


def test_an_integer_of_retries_is_a_wish(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    with running(tmp_path, governed(server.url, FAST)):
        server.always(Break("head"))
        with pytest.raises(MaxRetryError):
            manager.request("GET", server.url, retries=1)
        assert len(server.requests) == 2


def test_refusals_leave_raw_and_in_urllib3s_family(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    """As stock raises EmptyPoolError: not wrapped in MaxRetryError, and not retried by a caller's own retries.

    failures.md 17.
    """
    body = FAST + "    pool: {max_connections: 1, when_full: reject}\n"
    with running(tmp_path, governed(server.url, body)) as hr:
        held = manager.request("GET", server.url, preload_content=False)
        for retries in (None, 5):
            with pytest.raises(EmptyPoolError) as full:
                manager.request("GET", server.url, retries=retries)
            assert isinstance(full.value, headrace.PoolRejected)
            assert reason_of(full.value) == "pool_rejected"
        held.close()
        server.always(Answer(503))
        for _ in range(5):
            manager.request("GET", server.url)
        before = len(server.requests)
        for retries in (None, 5):
            with pytest.raises(urllib3.exceptions.HTTPError) as refused:
                manager.request("GET", server.url, retries=retries)
            assert isinstance(refused.value, headrace.CircuitOpenError)
            assert refused.value.retry_after_s > 0
        assert len(server.requests) == before
        assert leases_of(hr).view().inuse == 0


def test_the_deadline_ends_the_call_raw(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    body = FAST + "    timeouts: {deadline: 1500ms, attempt: 1s}\n"
    with running(tmp_path, governed(server.url, body)):
        server.always(Silence())
        with pytest.raises(urllib3.exceptions.TimeoutError) as caught:
            manager.request("GET", server.url)

        assert isinstance(caught.value, headrace.DeadlineExceeded)
        assert caught.value.deadline_s == 1.5
        assert len(caught.value.attempts) == 2


def test_a_refusal_leaves_no_cycle_behind(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    stays_open = "    circuit_breaker: {open_for: {base: 60s}}\n"
    with running(tmp_path, governed(server.url, FAST + stays_open)):
        server.always(Answer(503))
        for _ in range(5):
            manager.request("GET", server.url)

        def refuse() -> weakref.ref[BaseException]:
            try:
                manager.request("GET", server.url)
            except headrace.CircuitOpenError as error:
                return weakref.ref(error)
            raise AssertionError("not refused")

        gc.collect()
        gc.disable()
        try:
            assert refuse()() is None
        finally:
            gc.enable()


# Timeouts


@pytest.mark.parametrize(
    ("rule", "at_manager", "at_call", "limit_s"),
    [
        pytest.param("200ms", {}, {}, 0.2, id="the rule's"),
        pytest.param("20s", {}, {"timeout": 0.1}, 0.1, id="a number"),
        pytest.param("20s", {}, {"timeout": urllib3.Timeout(connect=5, read=0.1)}, 0.1, id="a Timeout"),
        pytest.param("20s", {"timeout": 0.1}, {}, 0.1, id="the manager's"),
        pytest.param(
            "50ms", {"timeout": urllib3.Timeout(total=0.6)}, {}, 0.6, id="a total above the rule's, written"
        ),
        pytest.param("20s", {"timeout": 0.05}, {"timeout": 0.5}, 0.5, id="the call's before the manager's"),
        pytest.param("200ms", {}, {"timeout": urllib3.Timeout()}, 0.2, id="an empty Timeout is none"),
    ],
)
def test_the_timeout_of_call_or_manager_replaces_the_rules(
    tmp_path: Path, server: FaultServer, rule: str, at_manager: Any, at_call: Any, limit_s: float
) -> None:
    body = f"    timeouts: {{attempt: {rule}, read: 20s, deadline: 60s}}\n    retry: {{max_attempts: 1}}\n"
    with running(tmp_path, governed(server.url, body)), PoolManager(**at_manager) as manager:
        server.always(Silence())
        with pytest.raises(MaxRetryError) as caught:
            manager.request("GET", server.url, **at_call)

        assert isinstance(caught.value.reason, ReadTimeoutError)
        (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert is_about(attempt.duration_s, limit_s)


def test_the_default_timeout_of_urllib3_request_is_nobodys_wish(tmp_path: Path, server: FaultServer) -> None:
    """`urllib3.request()` always passes 3 seconds; a rule of 100 ms holds all the same, and an own wish does."""
    body = "    timeouts: {read: 100ms, connect: 100ms}\n    retry: {max_attempts: 1}\n"
    with running(tmp_path, governed(server.url, body)):
        server.always(Answer(delay_s=1.0))
        with pytest.raises(MaxRetryError):
            urllib3.request("GET", server.url)
        assert urllib3.request("GET", server.url, timeout=20).status == 200


def test_pool_timeout_is_the_longest_wait_for_a_connection(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    body = "    pool: {max_connections: 1}\n    timeouts: {acquire: 20s, deadline: 60s}\n"
    with running(tmp_path, governed(server.url, body)):
        with manager.request("GET", server.url, preload_content=False):
            with ends_within(0.05, not_before=0.05), pytest.raises(EmptyPoolError) as caught:
                manager.request("GET", server.url, pool_timeout=0.05)
            assert isinstance(caught.value, headrace.PoolTimeout)
            assert "1 in use, 0 idle, 0 waiting, max 1" in str(caught.value)


def test_the_limits_of_the_managers_pool_are_not_those_of_the_upstream(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, governed(server.url)) as hr, PoolManager(maxsize=1, block=True) as manager:
        first = manager.request("GET", server.url, preload_content=False)
        second = manager.request("GET", server.url, preload_content=False)  # would wait for ever
        assert leases_of(hr).view().inuse == 2
        first.close()
        second.close()


# Bodies


def test_an_unread_answer_holds_its_connection_until_it_is_read_released_or_closed(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    endings: list[Callable[[urllib3.BaseHTTPResponse], object]] = [
        lambda response: response.read(),
        lambda response: b"".join(response.stream(2)),
        lambda response: response.drain_conn(),
        lambda response: response.data,
        lambda response: response.release_conn(),
        lambda response: response.close(),
        lambda response: response.__exit__(None, None, None),
    ]
    with running(tmp_path, governed(server.url)) as hr:
        for end in endings:
            response = manager.request("GET", server.url, preload_content=False)
            assert response.headrace.upstream == "billing"
            assert leases_of(hr).view().inuse == 1
            end(response)
            assert leases_of(hr).view().inuse == 0, end
            assert manager.request("GET", server.url).data == b"ok"


def test_release_conn_with_an_unread_body_does_not_spoil_the_next_call_and_the_body_can_be_read(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    """Stock gives the connection back at once, and reads on from what it has lent to the next."""
    with running(tmp_path, governed(server.url)) as hr:
        for _ in range(2):  # over a new connection and over one that is idle
            server.next(Answer(body=b"x" * 1_000_000))
            response = manager.request("GET", server.url, preload_content=False, release_conn=True)
            assert manager.request("GET", server.url).data == b"ok"
            assert response.data == b"x" * 1_000_000
            assert leases_of(hr).view().inuse == 0
        response = hr.upstream("billing").urlopen("GET", "/", preload_content=False, release_conn=True)
        assert response.data == b"ok"
        assert not leases_of(hr).view().inuse
        assert leases_of(hr).view().idle == 2


def test_release_conn_false_keeps_the_connection_until_it_is_given_back(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url)) as hr:
        response = manager.request("GET", server.url, release_conn=False)
        assert response.data == b"ok"
        response.release_conn()
        assert leases_of(hr).view().inuse == 0
        assert manager.request("GET", server.url).status == 200
        assert server.connections == 1


def test_streamed_failures_are_kept_or_replaced(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url, FAST)) as hr:
        server.next(Answer(503, body=b"x" * 200_000))
        with manager.request("GET", server.url, preload_content=False) as again:
            assert again.read() == b"ok"
        server.always(Answer(503, body=b"busy"))
        kept = manager.request("GET", server.url, preload_content=False)
        assert (kept.status, kept.read(), kept.geturl()) == (503, b"busy", "/")
        assert leases_of(hr).view().inuse == 0


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: {"body": b"bytes"}, [b"bytes"] * 2, id="bytes"),
        pytest.param(lambda: {"body": bytearray(b"array")}, [b"array"] * 2, id="bytearray"),
        pytest.param(lambda: {"body": io.BytesIO(b"file")}, [b"file"] * 2, id="file"),
        pytest.param(
            lambda: {"body": _from(io.BytesIO(b"skip|file"), 5)}, [b"file"] * 2, id="file, from its middle"
        ),
        pytest.param(lambda: {"json": {"a": 1}}, [b'{"a":1}'] * 2, id="json"),
        pytest.param(lambda: {"fields": {"a": "1"}, "encode_multipart": False}, [b"a=1"] * 2, id="form"),
        pytest.param(lambda: {"body": iter([b"gener", b"ated"])}, [b"generated"], id="generator: sent once"),
        pytest.param(lambda: {"body": b"chunks", "chunked": True}, [b"chunks"] * 2, id="chunked"),
    ],
)
def test_a_body_is_sent_again_where_it_can_be(
    tmp_path: Path, server: FaultServer, manager: PoolManager, make: Callable[[], Any], expected: list[bytes]
) -> None:
    """What cannot be read again is never sent again as an empty body.

    failures.md 13.
    """
    with running(
        tmp_path, governed(server.url, "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [PUT]}\n")
    ):
        server.next(Answer(503))
        response = manager.request("PUT", server.url, **make())

        assert [request.body for request in server.requests] == expected
        assert response.status == (200 if len(expected) == 2 else 503)


def test_multipart_fields_are_sent_alike_each_time(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(
        tmp_path, governed(server.url, "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [POST]}\n")
    ):
        server.next(Answer(503))
        manager.request("POST", server.url, fields={"file": ("a.txt", b"content", "text/plain"), "n": "1"})

        first, second = server.requests
        assert first.body == second.body
        assert b'filename="a.txt"' in first.body
        assert first.header("Content-Type") == second.header("Content-Type")


def test_headers_of_call_and_manager_are_kept_and_the_rules_added(
    tmp_path: Path, server: FaultServer
) -> None:
    body = "    headers: {X-Team: orders}\n"
    with (
        running(tmp_path, governed(server.url, body)),
        PoolManager(headers={"X-Sdk": "1"}) as manager,
    ):
        manager.request("GET", server.url)
        manager.request("GET", server.url, headers={"Host": "virtual.test", "x-team": "mine"})

        first, second = server.requests
        assert (first.header("X-Sdk"), first.header("X-Team")) == ("1", "orders")
        assert (second.header("X-Sdk"), second.header("X-Team")) == (None, "mine")
        assert second.header("Host") == "virtual.test"


# Redirects


def test_redirects_are_followed_and_each_hop_is_governed_by_its_own_url(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with (
        FaultServer() as elsewhere,
        running(tmp_path, governed(server.url, "    headers: {X-Secret: s}\n")) as hr,
    ):
        server.at("/1", Answer(302, headers=(("Location", "/2"),)))
        server.at("/2", Answer(307, headers=(("Location", f"{elsewhere.url}/there"),)))

        response = manager.request("GET", f"{server.url}/1", headers={"Authorization": "secret"})

        assert response.geturl() == f"{elsewhere.url}/there"
        assert not hasattr(response, "headrace")
        assert hr.status()["upstreams"]["billing"]["requests"] == {"3xx": 2}
        (there,) = elsewhere.requests
        assert (there.header("Authorization"), there.header("X-Secret")) == (None, None)


@pytest.mark.parametrize("explicit", [{}, {"retries": None}], ids=["absent", "None"])
def test_after_a_redirect_the_rules_still_decide_about_attempts(
    tmp_path: Path, server: FaultServer, manager: PoolManager, explicit: Any
) -> None:
    """What is left of urllib3's default after a redirect does not look like a caller's own retries."""
    server.at("/1", Answer(302, headers=(("Location", "/2"),)))
    server.at("/2", Answer(503))
    stock = manager.request("GET", f"{server.url}/1", **explicit)
    with running(tmp_path, governed(server.url, FAST)) as hr:
        response = manager.request("GET", f"{server.url}/1", **explicit)

        assert (response.status, response.geturl()) == (503, stock.geturl())
        assert [request.target for request in server.requests[2:]] == ["/1", "/2", "/2", "/2"]
        assert hr.status()["upstreams"]["billing"]["retry"]["delegated"] == 0


def test_redirects_end_where_stock_ends_them(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    server.always(Answer(302, headers=(("Location", "/again"),)))
    counts = []
    for text in (rules(server.url), governed(server.url)):
        with running(tmp_path, text):
            before = len(server.requests)
            with pytest.raises(MaxRetryError, match="too many redirects"):
                manager.request("GET", server.url)
            counts.append(len(server.requests) - before)
            assert manager.request("GET", server.url, redirect=False).status == 302
            assert manager.request("GET", server.url, retries=False).status == 302

    assert counts == [4, 4]


def test_a_303_changes_the_method_and_drops_the_body(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url)):
        server.at("/form", Answer(303, headers=(("Location", "/done"),)))
        manager.request("POST", f"{server.url}/form", body=io.BytesIO(b"data"))

        assert [(one.method, one.body) for one in server.requests] == [("POST", b"data"), ("GET", b"")]


# Pools handed out


def test_a_pool_handed_out_is_what_its_holder_expects(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with FaultServer() as other, running(tmp_path, governed(f"{server.url}/v2")):
        pool = manager.connection_from_url(server.url)

        assert isinstance(pool, HTTPConnectionPool)
        assert pool is manager.connection_from_url(server.url)
        assert str(pool) == f"HTTPConnectionPool(host='127.0.0.1', port={pool.port})"
        assert pool.is_same_host(f"{server.url}/x")
        assert not pool.is_same_host(other.url)
        assert pool.request("GET", "/v2/a").headrace.upstream == "billing"
        assert pool.urlopen("GET", f"{server.url}/v2/b").headrace.upstream == "billing"
        assert not hasattr(pool.request("GET", "/v1"), "headrace")
        with pytest.raises(HostChangedError):
            pool.urlopen("GET", f"{other.url}/v2/b")

        server.at("/v2/1", Answer(302, headers=(("Location", "/v1/2"),)))
        server.at("/v1/2", Answer(302, headers=(("Location", "/v2/3"),)))
        assert not hasattr(pool.request("GET", "/v2/1"), "headrace")  # from /v1 on it is stock's own affair
        server.at("/v2/4", Answer(302, headers=(("Location", "/v2/5"),)))
        assert pool.request("GET", "/v2/4").headrace.upstream == "billing"
        server.at("/v2/6", Answer(302, headers=(("Location", f"{other.url}/"),)))
        with pytest.raises(HostChangedError):
            pool.request("GET", "/v2/6")


def test_what_is_set_on_the_pool_is_set_on_the_managers_own(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url)):
        pool = manager.connection_from_url(server.url)
        pool.cert_reqs = "CERT_REQUIRED"  # type: ignore[attr-defined]  # as SDKs do
    (own,) = (manager.pools[key] for key in manager.pools.keys())  # noqa: SIM118 - it cannot be iterated
    assert type(own) is HTTPConnectionPool
    assert own.cert_reqs == "CERT_REQUIRED"  # type: ignore[attr-defined]
    assert own is not pool


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("headers", {"X-Team": "billing"}, id="a header for each call"),
        pytest.param("retries", Retry(7), id="its retries"),
        pytest.param("timeout", urllib3.Timeout(3.0), id="its timeout"),
        pytest.param("num_connections", 7, id="a count"),
        pytest.param("ConnectionCls", HTTPSConnectionPool.ConnectionCls, id="an attribute of the class, too"),
        pytest.param("team", "billing", id="an attribute that urllib3 does not have"),
    ],
)
def test_a_setting_is_one_whichever_of_the_two_pools_it_is_written_on(
    tmp_path: Path, server: FaultServer, manager: PoolManager, name: str, value: object
) -> None:
    missing = object()
    with running(tmp_path, governed(server.url)):
        pool = manager.connection_from_url(server.url)
        own = manager.pools[next(iter(manager.pools.keys()))]
        before = getattr(own, name, missing)

        setattr(pool, name, value)
        assert getattr(own, name) is getattr(pool, name) is value
        delattr(pool, name)
        assert (
            getattr(own, name, missing) is getattr(pool, name, missing) is getattr(type(own), name, missing)
        )
        setattr(own, name, value)
        assert getattr(pool, name) is value
        if before is not missing:
            setattr(pool, name, before)
            assert getattr(own, name) is before


def test_what_is_set_on_the_pool_holds_for_its_next_call(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(f"{server.url}/v2")):
        pool = manager.connection_from_url(server.url)
        pool.headers = {"X-Team": "billing"}
        pool.request("GET", "/v2")
        pool.request("GET", "/v1")
        assert [one.header("X-Team") for one in server.requests] == ["billing", "billing"]

        server.at("/v2", Answer(503))
        pool.retries = Retry(1, status_forcelist=[503], raise_on_status=False)
        assert pool.request("GET", "/v2").status == 503
        assert len(server.requests) == 2 + 2  # the rules alone would make three attempts


def test_the_counts_of_a_pool_are_those_of_the_connections_that_stock_made(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(f"{server.url}/v2")):
        pool = manager.connection_from_url(server.url)
        pool.request("GET", "/v2")
        assert (pool.num_connections, pool.num_requests) == (0, 0)
        pool.request("GET", "/v1")
        assert (pool.num_connections, pool.num_requests) == (1, 1)
        connection = pool._get_conn()
        assert connection.sock is not None  # the very connection of that call
        pool._put_conn(connection)
        pool.close()
        assert pool.pool is None
        assert manager.pools[next(iter(manager.pools.keys()))].pool is None


def test_a_wrapper_around_the_pools_urlopen_sees_each_call_once(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    """Mocks and home-made instrumentation put it on the object."""
    seen: list[str] = []
    with running(tmp_path, governed(f"{server.url}/v2")):
        pool = manager.connection_from_url(server.url)
        original = pool.urlopen

        def urlopen(method: str, url: str, *args: Any, **kw: Any) -> BaseHTTPResponse:
            seen.append(url)
            return original(method, url, *args, **kw)

        with mock.patch.object(pool, "urlopen", urlopen):
            assert pool.request("GET", "/v2").headrace.upstream == "billing"
            assert not hasattr(manager.request("GET", f"{server.url}/v1"), "headrace")
        assert pool.request("GET", "/v2").status == 200
        assert seen == ["/v2", "/v1"]


def test_a_pool_handed_out_shows_what_stock_shows(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url)):
        pool = manager.connection_from_url(server.url)
        own = manager.pools[next(iter(manager.pools.keys()))]
        assert str(pool) == str(own)
        assert set(dir(own)) <= set(dir(pool))
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = pool.nonsense  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="nonsense"):
            del pool.nonsense  # type: ignore[attr-defined]
        for one in (own, pool):
            with pytest.raises((TypeError, pickle.PicklingError), match="pickle"):
                pickle.dumps(one)
        assert copy.copy(pool).request("GET", "/").headrace.upstream == "billing"
        assert pool.__dict__ is not own.__dict__


def test_closing_a_handed_out_pool_closes_no_connection_of_the_upstream(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url)) as hr:
        with manager.connection_from_url(server.url) as pool:
            pool.request("GET", "/")
        with pytest.raises(ClosedPoolError):
            pool.request("GET", "/")
        manager.clear()
        assert manager.request("GET", server.url).status == 200
        assert leases_of(hr).view().idle == server.connections == 1


def test_churn_of_a_managers_pools_never_closes_a_governed_connection(tmp_path: Path) -> None:
    """A manager that keeps one pool evicts with every host; the upstreams' connections live on.

    failures.md 24.
    """
    with FaultServer() as one, FaultServer() as two, FaultServer() as other:
        text = f"version: 1\n{ON}upstreams:\n  a: {{base_url: '{one.url}'}}\n  b: {{base_url: '{two.url}'}}\n"
        with running(tmp_path, text) as hr, PoolManager(num_pools=1) as manager:
            held = manager.request("GET", one.url, preload_content=False)
            for _ in range(5):
                for server in (one, two, other):
                    manager.request("GET", server.url)
            assert held.read() == b"ok"
            assert len(manager.pools) == 1
            assert (one.connections, two.connections) == (2, 1)  # one was held meanwhile
            assert leases_of(hr, "a").view().inuse == 0


def test_an_evicted_pool_is_freed_at_once(tmp_path: Path, server: FaultServer) -> None:
    """No cycle holds it: the sockets of its passed-through calls do not wait for a collection."""
    with running(tmp_path, governed(f"{server.url}/v2")), PoolManager() as manager:
        manager.request("GET", f"{server.url}/v1")
        gone = weakref.ref(manager.connection_from_url(server.url).stock)  # type: ignore[attr-defined]
        gc.disable()
        try:
            manager.clear()
            assert gone() is None
        finally:
            gc.enable()


def test_a_manager_with_pool_classes_that_do_more_hands_out_its_own(
    tmp_path: Path, server: FaultServer
) -> None:
    class OwnPool(HTTPConnectionPool):
        def _get_conn(self, timeout: float | None = None) -> Any:
            return super()._get_conn(timeout)

    with running(tmp_path, governed(server.url)), PoolManager() as manager:
        manager.pool_classes_by_scheme = {"http": OwnPool}
        assert not hasattr(manager.request("GET", server.url), "headrace")
        assert type(manager.connection_from_url(server.url)) is OwnPool


def test_a_proxied_call_passes_through_and_is_counted(tmp_path: Path) -> None:
    with FaultServer() as proxy, running(tmp_path, governed("http://billing.internal/v2")) as hr:
        with urllib3.ProxyManager(proxy.url) as manager:
            assert not hasattr(manager.request("GET", "http://billing.internal/v2/a"), "headrace")
            assert not hasattr(manager.request("GET", "http://other.internal/v2/a"), "headrace")

        assert [one.target for one in proxy.requests] == [
            "http://billing.internal/v2/a",
            "http://other.internal/v2/a",
        ]
        assert hr.status()["ungoverned"] == {"proxy": 1}


def test_a_match_on_another_origin_goes_there_under_the_same_rules(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    """Connections of its own: what was meant for another server must not arrive at `base_url`."""
    with FaultServer() as other:
        body = f"    match: ['{other.url}', '{server.url}/alias']\n"
        with running(tmp_path, governed(f"{server.url}/v2", body)) as hr, hr.session() as session:
            assert manager.request("GET", f"{server.url}/alias/a").headrace.upstream == "billing"
            for call in (
                lambda: manager.request("GET", f"{other.url}/a"),
                lambda: requests.get(f"{other.url}/a"),
                lambda: session.get(f"{other.url}/a"),
            ):
                assert call().headrace.upstream == "billing"  # type: ignore[no-untyped-call]
            assert (len(server.requests), len(other.requests)) == (1, 3)
            assert (server.connections, other.connections) == (1, 1)
            status = hr.status()["upstreams"]["billing"]
            assert (status["requests"], status["pool"]["idle"]) == ({"2xx": 4}, 2)

            other.always(Answer(503))
            for _ in range(20):
                requests.get(f"{other.url}/a")
                if hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == "open":
                    break
            with pytest.raises(headrace.CircuitOpenError):  # one circuit for all of the upstream
                requests.get(f"{server.url}/v2")


# Modes, and the two surfaces together


def test_observe_changes_nothing_and_counts_once(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    body = "    mode: observe\n    headers: {X-Added: '1'}\n    circuit_breaker: {consecutive_failures: 2}\n"
    with running(tmp_path, governed(server.url, body)) as hr:
        server.always(Answer(503))
        for call in (
            lambda: manager.request("GET", server.url).status,
            lambda: requests.get(server.url).status_code,
            lambda: hr.upstream("billing").get("/").status_code,
            lambda: hr.upstream("billing").urlopen("GET", "/").status,
        ):
            assert call() == 503  # type: ignore[no-untyped-call]

        assert server.requests[0].header("X-Added") is None
        status = hr.status()["upstreams"]["billing"]
        assert status["requests"] == status["attempts"] == {"5xx": 4}
        assert status["pool"]["acquires"] == {}
        server.always(Break("head"))
        with pytest.raises(MaxRetryError) as caught:
            manager.request("GET", server.url)
        assert not hasattr(caught.value, "headrace")


def test_off_does_not_even_count(tmp_path: Path, server: FaultServer, manager: PoolManager) -> None:
    with running(tmp_path, governed(server.url, "    mode: off\n")) as hr:
        assert not hasattr(manager.request("GET", server.url), "headrace")
        assert hr.status()["upstreams"]["billing"]["requests"] == {}


@pytest.mark.parametrize("more", [ON, ONLY, ""], ids=["both", "urllib3 only", "requests only"])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_requests_call_is_governed_exactly_once(
    tmp_path: Path, server: FaultServer, more: str, mode: str
) -> None:
    """Both surfaces on: the loop of one never runs within the loop of the other."""
    body = FAST + f"    mode: {mode}\n    circuit_breaker: {{mode: disabled}}\n"
    with running(tmp_path, rules(server.url, body, more=more)) as hr:
        server.always(Answer(503))
        assert requests.get(server.url).status_code == 503

        status = hr.status()["upstreams"]["billing"]
        attempts = 3 if mode == "enforce" else 1
        assert len(server.requests) == attempts
        assert status["requests"] == {"5xx": 1}
        assert status["attempts"] == {"5xx": attempts}
        assert hr.status()["unknown_hosts"] == [] or server.url[7:] not in {
            one["host"] for one in hr.status()["unknown_hosts"]
        }


def test_a_host_unknown_to_both_surfaces_is_counted_once(tmp_path: Path, server: FaultServer) -> None:
    with FaultServer() as other, running(tmp_path, governed(server.url)) as hr:
        requests.get(other.url)
        assert {"host": other.url.removeprefix("http://"), "calls": 1} in hr.status()["unknown_hosts"]


def test_an_adapter_that_picks_its_pool_itself_passes_through_both_surfaces(
    tmp_path: Path, server: FaultServer
) -> None:
    """failures.md 55: and is counted once."""

    class Own(HTTPAdapter):
        def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):  # type: ignore[no-untyped-def]
            return self.poolmanager.connection_from_url(request.url)

    with running(tmp_path, governed(server.url, FAST)) as hr, requests.Session() as session:
        session.mount("http://", Own())
        server.next(Answer(503))
        assert session.get(server.url).status_code == 503
        assert hr.status()["upstreams"]["billing"]["attempts"] == {}
        assert hr.status()["ungoverned"] == {"adapter": 1}


def test_a_token_fetched_through_urllib3_during_a_requests_attempt_is_a_call_of_its_own(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    class Refreshing(HTTPAdapter):
        def add_headers(self, request, **kw):  # type: ignore[no-untyped-def]
            request.headers["X-Token-By"] = manager.request("GET", f"{server.url}/token").headrace.upstream

    text = (
        f"version: 1\n{ON}upstreams:\n"
        f"  orders: {{base_url: '{server.url}/orders'}}\n  tokens: {{base_url: '{server.url}/token'}}\n"
    )
    with running(tmp_path, text), requests.Session() as session:
        session.mount("http://", Refreshing())
        response = session.get(f"{server.url}/orders/1")

        assert response.headrace.upstream == "orders"
        assert [one.header("X-Token-By") for one in server.requests] == [None, "tokens"]


def test_only_urllib3_on_requests_errors_stay_in_requests_family(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url, FAST, more=ONLY)):
        server.always(Break("head"))
        with pytest.raises(requests.ConnectionError):
            requests.get(server.url)
        assert len(server.requests) == 3


# As SDKs use it


class Sdk:
    """Made as SDKs make theirs: a manager of its own, streamed answers, own limits, retries above."""

    def __init__(self) -> None:
        self._manager = PoolManager(num_pools=4, maxsize=4, timeout=urllib3.Timeout(connect=1, read=2))

    def call(self, method: str, url: str, body: bytes | None = None) -> bytes:
        pool = self._manager.connection_from_url(url)
        response = pool.urlopen(
            method=method,
            url=urllib3.util.parse_url(url).request_uri,
            body=body,
            headers={"User-Agent": "sdk/1"},
            retries=urllib3.Retry(False),
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            chunked=False,
        )
        if response.status >= 400:
            raise RuntimeError(response.status, response.read())
        return b"".join(response.stream())

    def close(self) -> None:
        self._manager.clear()


def test_an_sdk_is_governed_without_a_change(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, governed(f"{server.url}/bucket", FAST)) as hr:
        sdk = Sdk()
        server.next(Answer(503), Break("head"))
        assert sdk.call("GET", f"{server.url}/bucket/key") == b"ok"
        assert sdk.call("POST", f"{server.url}/bucket/key", b"x" * 100_000) == b"ok"
        assert sdk.call("GET", f"{server.url}/other") == b"ok"

        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 2}
        assert leases_of(hr).view().inuse == 0
        sdk.close()


def test_threads_of_one_manager_share_max_connections(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    def slow(request: Request) -> Answer:
        wait_until(lambda: server.connections == 2)
        return Answer(delay_s=0.02)

    body = "    pool: {max_connections: 2}\n    timeouts: {acquire: 20s, deadline: 40s}\n"
    with running(tmp_path, governed(server.url, body)):
        server.always(slow)
        statuses: list[int] = []
        callers = [
            threading.Thread(target=lambda: statuses.append(manager.request("GET", server.url).status))
            for _ in range(12)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(20)

        assert statuses == [200] * 12
        assert server.connections == 2


def test_an_interrupt_is_not_eaten_and_frees_the_slot(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    class Interrupting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with running(tmp_path, governed(server.url)) as hr:
        with pytest.raises(KeyboardInterrupt):
            manager.request("PUT", server.url, body=Interrupting(b"x"))
        assert leases_of(hr).view().inuse == 0
        assert manager.request("GET", server.url).status == 200


def test_no_warning_of_a_retry_that_is_not_urllib3s(
    tmp_path: Path, server: FaultServer, manager: PoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, governed(server.url, FAST)), warnings.catch_warnings():
        warnings.simplefilter("error")
        server.next(Break("head"))
        manager.request("GET", server.url)
        assert not [one for one in caplog.records if one.name.startswith("urllib3") and "Retrying" in one.msg]


def test_what_is_left_of_a_limit_after_redirects_is_still_the_callers(
    tmp_path: Path, server: FaultServer, manager: PoolManager
) -> None:
    with running(tmp_path, governed(server.url, FAST)):
        server.at("/1", Answer(302, headers=(("Location", "/2"),)))
        server.at("/2", Break("head"))
        with pytest.raises(MaxRetryError):
            manager.request("GET", f"{server.url}/1", retries=urllib3.Retry(2))
        assert [one.target for one in server.requests] == ["/1", "/2", "/2"]


def _from(file: io.BytesIO, position: int) -> io.BytesIO:
    file.seek(position)
    return file
