"""How a governed call gets its connection: all addresses of a name, the name itself, and who may end it. Real sockets.

The same on each surface: all of them dial in `transport.dial`.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
import urllib3.util.connection

from headrace.policy.dialling import MOST_YOUNG
from support.faultserver import FaultServer, server_context
from support.governed import rules, running
from support.holes import Names, address_of, black_hole, closed_port, names
from support.leaving import PATIENT, Request, assert_cancelled, assert_pool_is_whole
from support.surfaces import HANDLE, INSTALL, REQUESTS, URLOPEN, Surface, across, status_of
from support.waiting import ends_within, wait_until

ONCE = "    retry: {max_attempts: 1}\n"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def hole() -> Iterator[int]:
    with black_hole() as port:
        yield port


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    with names(monkeypatch) as told:
        yield told


@pytest.fixture
def url(server: FaultServer, told: Names) -> str:
    """That of the server, by a name with one address."""
    told.known["billing.test"] = [address_of(port_of(server))]
    return f"http://billing.test:{port_of(server)}"


def port_of(server: FaultServer) -> int:
    return int(server.url.rpartition(":")[2])


def attempt_of(error: Any) -> Any:
    (attempt,) = error.headrace.attempts
    return attempt


# Addresses


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_dead_address_costs_a_quarter_of_a_second_and_no_attempt(
    tmp_path: Path, call: Surface, told: Names, hole: int, secure: bool
) -> None:
    """failures.md 78. All of `connect` went to the first address, each time, and the breaker opened."""
    body = "    timeouts: {connect: 3s, attempt: 60s, deadline: 60s}\n" + ONCE
    context = None
    if secure:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = server_context(authority)
        body += f"    tls: {{ca: '{tmp_path / 'ca.pem'}', server_name: localhost}}\n"
    with FaultServer(tls=context) as server:
        told.known["billing.test"] = [address_of(hole), address_of(port_of(server))]
        base = f"http{'s' if secure else ''}://billing.test:{port_of(server)}"
        with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
            answer = call(hr, base)
            assert status_of(answer) == 200
            attempt = attempt_of(answer)
            assert 0.2 < attempt.connect_s < 2.5
    assert server.connections == 1


def test_connections_made_ahead_of_need_are_dialled_the_same_way(
    tmp_path: Path, server: FaultServer, told: Names, hole: int
) -> None:
    told.known["billing.test"] = [address_of(hole), address_of(port_of(server))]
    body = "    timeouts: {connect: 3s}\n    pool: {min_idle: 2}\n"
    with running(tmp_path, rules(f"http://billing.test:{port_of(server)}", body)) as hr:
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        wait_until(lambda: leases.view().idle == 2, what="two idle connections")


@pytest.mark.parametrize("family", [255, socket.AF_INET], ids=["a family that there is not", "refused"])
def test_whatever_ends_the_way_to_a_connection_is_a_connect_failure(
    tmp_path: Path, call: Surface, server: FaultServer, monkeypatch: pytest.MonkeyPatch, family: int
) -> None:
    address = (family, socket.SOCK_STREAM, 6, "", ("127.0.0.1", closed_port()))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [address])
    base = f"http://billing.test:{port_of(server)}"
    with running(tmp_path, rules(base, ONCE, more=INSTALL)) as hr, pytest.raises(call.error) as caught:
        call(hr, base)
    assert (attempt_of(caught.value).outcome, attempt_of(caught.value).sent) == ("connect_failure", False)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(5, "Input/output error"), id="of the system"),
        pytest.param(socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), id="of the name server"),
        pytest.param(None, id="no address"),
    ],
)
def test_whatever_ends_a_look_up_is_a_dns_failure(
    tmp_path: Path, call: Surface, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    def look_up(*args: Any) -> Any:
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    base = "http://billing.test"
    with running(tmp_path, rules(base, ONCE, more=INSTALL)) as hr, pytest.raises(call.error) as caught:
        call(hr, base)
    expected = "connect_failure" if error is None else "dns_failure"
    assert attempt_of(caught.value).outcome == expected


# Levers of urllib3


@across(REQUESTS, HANDLE, URLOPEN)
@pytest.mark.parametrize("lever", ["allowed_gai_family", "HAS_IPV6"])
def test_the_family_that_urllib3_may_use_is_the_one_that_is_asked_for(
    tmp_path: Path,
    call: Surface,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    told: Names,
    lever: str,
) -> None:
    """failures.md 78."""
    asked = []
    look_up = socket.getaddrinfo

    def spy(host: Any, port: Any, family: int = 0, *args: Any) -> Any:
        asked.append(family)
        return look_up(host, port, family, *args)

    value: Any = False if lever == "HAS_IPV6" else lambda: socket.AF_INET
    with running(tmp_path, rules(url, ONCE)) as hr:
        monkeypatch.setattr(socket, "getaddrinfo", spy)
        monkeypatch.setattr(urllib3.util.connection, lever, value)
        assert status_of(call(hr, url)) == 200
    assert asked == [socket.AF_INET]


@pytest.mark.parametrize("wrapped", [False, True], ids=["another", "wrapped"])
def test_a_replaced_create_connection_is_called(
    tmp_path: Path, call: Surface, server: FaultServer, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """People pin addresses by it, or dial through a tunnel."""
    given: list[Any] = []
    stock = urllib3.util.connection.create_connection

    def mine(address: Any, timeout: Any, **kw: Any) -> socket.socket:
        given.append((address, timeout, kw))
        return stock(("127.0.0.1", port_of(server)), timeout, **kw)

    base = "http://elsewhere.invalid"
    with running(tmp_path, rules(base, ONCE, more=INSTALL)) as hr:
        function = functools.wraps(stock)(mine) if wrapped else mine
        monkeypatch.setattr(urllib3.util.connection, "create_connection", function)
        assert status_of(call(hr, base)) == 200
    ((address, timeout, kw),) = given
    assert address == ("elsewhere.invalid", 80)
    assert 0 < timeout <= 2.0
    assert kw["source_address"] is None
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in kw["socket_options"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionRefusedError(111, "refused"), "connect_failure"),
        (TimeoutError("timed out"), "connect_failure"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "dns_failure"),
    ],
    ids=["refused", "late", "unknown"],
)
def test_what_a_replaced_create_connection_raises_is_what_it_would_be_of_stocks(
    tmp_path: Path, call: Surface, monkeypatch: pytest.MonkeyPatch, error: OSError, outcome: str
) -> None:
    def mine(*args: Any, **kw: Any) -> socket.socket:
        raise error

    base = "http://elsewhere.invalid"
    with running(tmp_path, rules(base, ONCE, more=INSTALL)) as hr:
        monkeypatch.setattr(urllib3.util.connection, "create_connection", mine)
        with pytest.raises(call.error) as caught:
            call(hr, base)
    assert attempt_of(caught.value).outcome == outcome


# Names


def test_a_name_that_hangs_ends_at_the_limit_and_says_so(
    tmp_path: Path, call: Surface, server: FaultServer, told: Names
) -> None:
    """failures.md 78."""
    told.hang("billing.test")
    base = f"http://billing.test:{port_of(server)}"
    body = "    timeouts: {resolve: 300ms}\n    circuit_breaker: {blame_after: 100ms}\n" + ONCE
    with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
        with ends_within(0.3, not_before=0.3), pytest.raises(call.error) as caught:
            call(hr, base)
        assert "ConnectTimeout" in repr(caught.value)
        attempt = attempt_of(caught.value)
        assert (attempt.outcome, attempt.verdict, attempt.sent) == ("resolve_timeout", "failure", False)
        assert "resolve timeout=0.3" in str(caught.value)
        status = hr.status()["upstreams"]["billing"]
        assert (status["attempts"], status["pool"]["inuse"]) == ({"resolve_timeout": 1}, 0)


@pytest.mark.parametrize(
    ("written", "asked", "limit_s"),
    [
        pytest.param("resolve: 20s", None, 0.4, id="connect ends it"),
        pytest.param("resolve: 300ms", 20.0, 0.3, id="a written limit stays"),
        pytest.param(
            "connect: 20s, attempt: 30s, deadline: 60s", 0.3, 0.3, id="a shorter timeout of the call"
        ),
        pytest.param("attempt: 60s, deadline: 60s", 4.0, None, id="a longer one raises the default"),
    ],
)
def test_the_limit_of_a_look_up_is_a_part_of_connect(
    tmp_path: Path,
    call: Surface,
    server: FaultServer,
    told: Names,
    written: str,
    asked: float | None,
    limit_s: float | None,
) -> None:
    gate = told.hang("billing.test")
    told.known["billing.test"] = [address_of(port_of(server))]
    base = f"http://billing.test:{port_of(server)}"
    body = f"    timeouts: {{{written}{', connect: 400ms' if asked is None else ''}}}\n" + ONCE
    kw = {} if asked is None else {"timeout": asked}
    with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
        if limit_s is None:
            timer = threading.Timer(2.3, gate.set)  # the default, 2 s, is over
            timer.start()
            assert status_of(call(hr, base, **kw)) == 200
            timer.join()
            return
        with ends_within(limit_s, not_before=limit_s), pytest.raises(call.error) as caught:
            call(hr, base, **kw)
        assert attempt_of(caught.value).outcome == "resolve_timeout"


def test_what_is_retried_may_be_said_for_names_alone(
    tmp_path: Path, call: Surface, server: FaultServer, told: Names
) -> None:
    base = f"http://billing.test:{port_of(server)}"
    body = "    retry: {max_attempts: 3, retry_on: [dns_failure], backoff: {base: 1ms, max: 1ms}}\n"
    with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
        with pytest.raises(call.error) as caught:
            call(hr, base)
        assert [one.outcome for one in caught.value.headrace.attempts] == ["dns_failure"] * 3  # type: ignore[attr-defined]
        told.known["billing.test"] = [address_of(closed_port())]
        with pytest.raises(call.error) as caught:
            call(hr, base)
        assert attempt_of(caught.value).outcome == "connect_failure"
        told.known["billing.test"] = [address_of(port_of(server))]
        assert status_of(call(hr, base)) == 200


@pytest.mark.parametrize("word", ["network", "connect_failure"])
def test_the_wider_words_go_for_names_too(tmp_path: Path, told: Names, word: str) -> None:
    body = f"    retry: {{max_attempts: 2, retry_on: [{word}], backoff: {{base: 1ms, max: 1ms}}}}\n"
    with (
        running(tmp_path, rules("http://none.test", body)),
        pytest.raises(requests.ConnectionError) as caught,
    ):
        requests.get("http://none.test")
    assert len(caught.value.headrace.attempts) == 2  # type: ignore[attr-defined]


def test_a_name_that_hangs_keeps_no_other_upstream_waiting(tmp_path: Path, url: str, told: Names) -> None:
    """failures.md 78."""
    told.hang("hangs.test")
    limits = "{deadline: 60s, attempt: 60s, connect: 60s, resolve: 60s}"
    more = f"  hanging:\n    base_url: http://hangs.test\n    timeouts: {limits}\n"
    with running(tmp_path, rules(url) + more) as hr:
        request = Request(hr)
        calls = [request.start(lambda: hr.upstream("hanging").get("/")) for _ in range(2 * MOST_YOUNG)]
        wait_until(lambda: told.count("hangs.test") == 1, what="the look-up")
        for _ in range(3):
            assert hr.upstream("billing").get("/", headers={"Connection": "close"}).status_code == 200
        assert told.count("hangs.test") == 1
        request.cancellation.cancel()
        for one in calls:
            one.outcome()


def test_an_edit_of_the_limit_is_in_force_for_the_next_call(
    tmp_path: Path, server: FaultServer, told: Names
) -> None:
    told.hang("billing.test")
    base = f"http://billing.test:{port_of(server)}"
    with running(tmp_path, rules(base, "    timeouts: {resolve: 2s}\n" + ONCE)) as hr:
        (tmp_path / "upstreams.yaml").write_text(rules(base, "    timeouts: {resolve: 100ms}\n" + ONCE))
        hr.reload()
        with ends_within(0.1, not_before=0.1), pytest.raises(requests.ConnectTimeout):
            requests.get(base)
        pool = hr.snapshot.upstream("billing").endpoint.pool
        with ends_within(0.1, not_before=0.1), pytest.raises(urllib3.exceptions.ConnectTimeoutError):
            pool.open_idle()  # ahead of need


# A final dot


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
@across(HANDLE, URLOPEN)
def test_a_final_dot_of_the_file_goes_to_dns_and_nowhere_else(
    tmp_path: Path, call: Surface, told: Names, mode: str
) -> None:
    """failures.md 78. It ends the search list of DNS; stock leaves it out of Host and SNI."""
    asked_for: list[str | None] = []
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = server_context(authority, "billing.test")
    context.sni_callback = lambda sock, name, context: asked_for.append(name)
    with FaultServer(tls=context) as server:
        port = port_of(server)
        told.known["billing.test."] = [address_of(port)]
        body = f"    mode: {mode}\n    tls: {{ca: '{tmp_path / 'ca.pem'}'}}\n" + ONCE
        with running(tmp_path, rules(f"https://billing.test.:{port}", body)) as hr:
            assert status_of(call(hr, "")) == 200
        assert server.requests[0].header("Host") == f"billing.test:{port}"
    assert set(asked_for) == {"billing.test"}  # once by the call, and in `mode: observe` by the look ahead
    assert {name for name, _ in told.asked} == {"billing.test."}


@pytest.mark.parametrize("written", ["billing.test", "billing.test."])
@pytest.mark.parametrize("called", ["billing.test", "billing.test."])
def test_a_rule_holds_with_and_without_it(
    tmp_path: Path, call: Surface, server: FaultServer, told: Names, written: str, called: str
) -> None:
    port = port_of(server)
    told.known[written] = [address_of(port)]
    with running(tmp_path, rules(f"http://{written}:{port}", ONCE, more=INSTALL)) as hr:
        answer = call(hr, f"http://{called}:{port}")
        assert status_of(answer) == 200
        assert answer.headrace.upstream == "billing"
    assert server.requests[0].header("Host") == f"billing.test:{port}"
    assert {name for name, _ in told.asked} == {written}


def test_an_edit_that_adds_it_is_in_force_for_the_next_connection(
    tmp_path: Path, server: FaultServer, told: Names
) -> None:
    port = port_of(server)
    told.known["billing.test"] = told.known["billing.test."] = [address_of(port)]
    with running(tmp_path, rules(f"http://billing.test:{port}", ONCE)) as hr:
        billing = hr.upstream("billing")
        assert billing.get("/", headers={"Connection": "close"}).status_code == 200
        (tmp_path / "upstreams.yaml").write_text(rules(f"http://billing.test.:{port}", ONCE))
        hr.reload()
        assert billing.get("/").status_code == 200
    assert [name for name, _ in told.asked] == ["billing.test", "billing.test."]


def test_an_edit_that_adds_it_reaches_a_connection_class_of_the_callers_own(
    tmp_path: Path, server: FaultServer, told: Names
) -> None:
    class Own(urllib3.connection.HTTPConnection):
        pass

    class Pool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = Own

    manager = urllib3.PoolManager()
    manager.pool_classes_by_scheme = {**manager.pool_classes_by_scheme, "http": Pool}
    port = port_of(server)
    told.known["billing.test"] = told.known["billing.test."] = [address_of(port)]
    with running(tmp_path, rules(f"http://billing.test:{port}", ONCE, more=INSTALL)) as hr:
        first = manager.request("GET", f"http://billing.test:{port}/", headers={"Connection": "close"})
        (tmp_path / "upstreams.yaml").write_text(rules(f"http://billing.test.:{port}", ONCE, more=INSTALL))
        hr.reload()
        second = manager.request("GET", f"http://billing.test:{port}/")
        assert [one.headrace.upstream for one in (first, second)] == ["billing"] * 2
    assert [name for name, _ in told.asked] == ["billing.test", "billing.test."]


def test_the_zone_of_an_address_is_not_asked_for_in_percent_encoding(
    tmp_path: Path, call: Surface, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def look_up(host: Any, *args: Any) -> Any:
        asked.append(host)
        return [address_of(port_of(server))]

    base = f"http://[fe80::1%25lo]:{port_of(server)}"
    with running(tmp_path, rules(f"'{base}'", ONCE, more=INSTALL)) as hr:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        assert status_of(call(hr, base)) == 200
    assert asked == ["fe80::1%lo"]


# Who may end it


@pytest.mark.parametrize("what", ["look-up", "tcp", "tls"])
def test_a_client_that_leaves_breaks_off_what_is_under_way(
    tmp_path: Path, call: Surface, server: FaultServer, told: Names, hole: int, what: str
) -> None:
    base, body = f"http://billing.test:{hole}", PATIENT
    if what == "look-up":
        told.hang("billing.test")
    elif what == "tcp":
        told.known["billing.test"] = [address_of(hole)] * 2
    else:
        server.on_accept = "silence"
        base = f"https://billing.test:{port_of(server)}"
        told.known["billing.test"] = [address_of(port_of(server))]
        body = PATIENT.replace("}", ", tls_handshake: 60s}")
    with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
        request = Request(hr)
        outbound = request.start(lambda: call(hr, base))
        wait_until(lambda: told.count("billing.test") == 1, what="the look-up")
        time.sleep(0.4)  # beyond the first address's turn
        request.cancellation.cancel()
        assert_cancelled(outbound.outcome(), call)
        assert_pool_is_whole(hr)


@pytest.mark.parametrize("what", ["look-up", "tcp"])
def test_the_deadline_ends_what_is_under_way(
    tmp_path: Path, call: Surface, told: Names, hole: int, what: str
) -> None:
    if what == "look-up":
        told.hang("billing.test")
    told.known["billing.test"] = [address_of(hole)] * 2
    base = f"http://billing.test:{hole}"
    body = "    timeouts: {deadline: 400ms, attempt: 400ms, connect: 400ms}\n" + ONCE
    with running(tmp_path, rules(base, body, more=INSTALL)) as hr:
        with ends_within(0.4, not_before=0.35), pytest.raises(call.error) as caught:
            call(hr, base)
        outcome = "resolve_timeout" if what == "look-up" else "connect_failure"
        assert attempt_of(caught.value).outcome == outcome
        assert_pool_is_whole(hr)
