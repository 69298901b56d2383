"""Each way an upstream can fail, over real sockets, and the word it gets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import trustme
import urllib3

from headrace.policy.outcome import Fault
from headrace.transport.stock.faults import fault_of, phase_of
from support.faultserver import Answer, Break, FaultServer, Raw, Silence, server_context
from support.governed import rules, running

ONE = "    retry: {max_attempts: 1}\n    timeouts: {attempt: 1s, read: 1s, connect: 1s}\n"
URLLIB3 = "install: {urllib3: true}\n"


def refuse(server: FaultServer) -> None:
    server.refuse()


def answer(behaviour: object) -> Callable[[FaultServer], None]:
    return lambda server: server.always(behaviour)  # type: ignore[arg-type]


def meet(how: str) -> Callable[[FaultServer], None]:
    def set_up(server: FaultServer) -> None:
        server.on_accept = how  # type: ignore[assignment]

    return set_up


@pytest.mark.parametrize(
    ("set_up", "outcome"),
    [
        pytest.param(refuse, "connect_failure", id="refused"),
        pytest.param(meet("rst"), "reset|connect_failure", id="reset on accept"),
        pytest.param(answer(Break("request")), "reset", id="reset before the answer"),
        pytest.param(answer(Break("request", "fin")), "reset", id="closed before the answer"),
        pytest.param(answer(Break("head")), "reset", id="reset during the head"),
        pytest.param(answer(Break("body")), "reset", id="reset during the body"),
        pytest.param(answer(Break("body", "fin")), "reset", id="truncated body"),
        pytest.param(answer(Silence()), "timeout", id="no answer"),
        pytest.param(answer(Answer(body=b"x" * 3, drip_body_s=5.0)), "timeout", id="silence in the body"),
        pytest.param(answer(Raw()), "protocol_error", id="not HTTP"),
        pytest.param(
            answer(Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")),
            "protocol_error|reset",  # http.client says IncompleteRead for both
            id="bad chunk",
        ),
        pytest.param(
            answer(Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")),
            "reset",
            id="truncated chunks",
        ),
        pytest.param(
            answer(Answer(headers=(("Content-Encoding", "gzip"),), body=b"not gzip")),
            "protocol_error",
            id="bad gzip",
        ),
        pytest.param(answer(Answer(500)), "5xx", id="500"),
        pytest.param(answer(Answer(404)), "4xx", id="404"),
    ],
)
def test_a_failure_of_the_upstream_has_its_word_on_each_surface(
    tmp_path: Path, set_up: Callable[[FaultServer], None], outcome: str
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, ONE, more=URLLIB3)) as hr:
        set_up(server)
        for call in (
            lambda: requests.get(server.url),
            lambda: hr.upstream("billing").urlopen("GET", "/"),
            lambda: urllib3.request("GET", server.url),
        ):
            try:
                record = call().headrace  # type: ignore[no-untyped-call]
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                record = error.headrace  # type: ignore[union-attr]
            assert [attempt.outcome in outcome.split("|") for attempt in record.attempts] == [True], record
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        assert leases.view().inuse == 0


def test_a_name_that_does_not_resolve_is_a_dns_failure(tmp_path: Path) -> None:
    with (
        running(tmp_path, rules("http://no-such-host.invalid", ONE)),
        pytest.raises(requests.ConnectionError) as e,
    ):
        requests.post("http://no-such-host.invalid/", data=b"x")

    assert [attempt.outcome for attempt in e.value.headrace.attempts] == ["dns_failure"]  # type: ignore[attr-defined]


def test_connecting_is_bounded_over_all_addresses_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full backlog drops SYNs: three addresses of that kind take one limit, not three."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fillers.append(filler)
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [address] * 30)
    body = "    retry: {max_attempts: 1}\n    timeouts: {connect: 300ms, attempt: 10s}\n"
    try:
        with running(tmp_path, rules(f"http://many.test:{port}", body)):
            with pytest.raises(requests.ConnectTimeout) as caught:
                requests.get(f"http://many.test:{port}/")
    finally:
        for one in (*fillers, listener):
            one.close()

    (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
    assert attempt.outcome == "connect_failure"
    assert attempt.duration_s < 3.0  # not 9


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        pytest.param("silence", "tls_failure", id="timed out"),
        pytest.param("fin", "tls_failure", id="broken off"),
    ],
)
def test_a_handshake_that_does_not_come_about_is_a_tls_failure(
    tmp_path: Path, how: str, outcome: str
) -> None:
    with (
        FaultServer(tls=server_context(trustme.CA())) as server,
        running(tmp_path, rules(server.url, ONE)),
    ):
        server.on_accept = how  # type: ignore[assignment]
        with pytest.raises(requests.RequestException) as caught:
            requests.get(server.url)

        assert [attempt.outcome for attempt in caught.value.headrace.attempts] == [outcome]  # type: ignore[attr-defined]


def test_local_trouble_is_nobodys_fault_but_ours(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        with pytest.raises(requests.exceptions.InvalidHeader):
            requests.get(server.url, headers={"X-Bad": "a\r\nb"})
        with pytest.raises(ValueError):
            hr.upstream("billing").urlopen("GET", "/", headers={"X-Bad": "a\r\nb"})

        status = hr.status()["upstreams"]["billing"]
        assert status["attempts"] == {"local_error": 1}
        assert status["circuit_breaker"]["failures"] == 0
        assert requests.get(server.url).status_code == 200


@pytest.mark.parametrize(
    ("error", "phase", "fault", "cut"),
    [
        pytest.param(KeyboardInterrupt(), "sent", Fault.CANCELLED, False, id="interrupt"),
        pytest.param(
            OSError(24, "Too many open files"), "tcp", Fault.LOCAL_ERROR, False, id="no descriptors"
        ),
        pytest.param(
            TimeoutError(110, "ETIMEDOUT"), "tcp", Fault.CONNECT_FAILURE, False, id="kernel gave up"
        ),
        pytest.param(TimeoutError("timed out"), "tcp", Fault.CONNECT_FAILURE, True, id="our limit"),
        pytest.param(TimeoutError("timed out"), "tls", Fault.TLS_FAILURE, True, id="our limit, handshake"),
        pytest.param(TimeoutError("timed out"), "sent", Fault.TIMEOUT, True, id="our limit, answer"),
        pytest.param(OSError("no CA file"), "lease", Fault.LOCAL_ERROR, False, id="before anything"),
        pytest.param(RuntimeError("a bug"), "sent", Fault.LOCAL_ERROR, False, id="unknown"),
    ],
)
def test_an_exception_is_read_by_how_far_the_attempt_had_got(
    error: BaseException, phase: str, fault: Fault, cut: bool
) -> None:
    assert fault_of(error, phase) == (fault, cut)  # type: ignore[arg-type]


def test_a_cycle_of_causes_ends() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one

    assert fault_of(one, "sent") == (Fault.LOCAL_ERROR, False)
    assert phase_of(one) == "sent"
