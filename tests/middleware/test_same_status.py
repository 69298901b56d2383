"""The same trouble gets the same answer, whichever way the call was made: the whole table."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

import headrace
from headrace.middleware.problems import answer
from headrace.policy.retry import RetryAllowance
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import Answer, Break, FaultServer, Raw, Silence, server_context
from support.governed import rules, running
from support.surfaces import HANDLE, INSTALL, MANAGER, REQUESTS, URLOPEN, Surface, across, read

ONCE = "    retry: {max_attempts: 1}\n"


@dataclass
class Scene:
    """What a trouble is made of."""

    hr: headrace.Headrace
    server: FaultServer
    url: str
    call: Surface
    held: ExitStack

    def send(self, **kw: Any) -> Any:
        return self.call(self.hr, self.url, **kw)


def plain(scene: Scene) -> None:
    scene.send()


def behaving(behaviour: Any, **kw: Any) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.server.always(behaviour)
        scene.send(**kw)

    return act


def on_accept(what: Any) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.server.on_accept = what
        scene.send()

    return act


def streamed(behaviour: Any) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.server.always(behaviour)
        read(scene.send(stream=True))

    return act


def with_the_circuit_open(scene: Scene) -> None:
    scene.server.always(Answer(503))
    scene.send()
    scene.send()


def with_the_pool_taken(scene: Scene) -> None:
    first = scene.send(stream=True)
    scene.held.callback(first.close)
    scene.send()


def cancelled(scene: Scene) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    inbound = Inbound(
        scene.hr, scene.hr.snapshot, "mine", RetryAllowance([None] * 10), cancellation=cancellation
    )
    token = inbound_var.set(inbound)
    scene.held.callback(inbound_var.reset, token)
    scene.send()


def with_a_body_that_raises(scene: Scene) -> None:
    def body() -> Iterator[bytes]:
        yield b"first"
        raise LookupError("the caller's own")

    scene.send(method="POST", data=body())


TROUBLES = [
    # words, status, word of the problem, keys of the upstream, what is done; "" is no problem of ours
    ("refused", 502, "upstream_failed", ONCE, plain),
    ("name not found", 502, "upstream_failed", ONCE, plain),
    ("connect timeout", 504, "timeout", ONCE + "    timeouts: {connect: 200ms}\n", plain),
    (
        "handshake timeout",
        504,
        "timeout",
        ONCE + "    timeouts: {tls_handshake: 200ms}\n",
        on_accept("silence"),
    ),
    ("handshake broken off", 502, "upstream_failed", ONCE, on_accept("rst")),
    ("certificate", 502, "upstream_failed", ONCE, plain),
    (
        "attempt",
        504,
        "timeout",
        ONCE + "    timeouts: {attempt: 300ms, connect: 200ms}\n",
        behaving(Silence()),
    ),
    ("timeout of the call", 504, "timeout", ONCE, behaving(Silence(), timeout=0.3)),
    (
        "deadline",
        504,
        "timeout",
        ONCE + "    timeouts: {deadline: 300ms, attempt: 300ms, connect: 200ms, acquire: 200ms}\n",
        behaving(Silence()),
    ),
    ("reset", 502, "upstream_failed", ONCE, behaving(Break("request"))),
    ("truncated body", 502, "upstream_failed", ONCE, behaving(Break("body", "fin"))),
    ("not HTTP", 502, "upstream_failed", ONCE, behaving(Raw())),
    (
        "circuit open",
        503,
        "circuit_open",
        ONCE + "    circuit_breaker: {consecutive_failures: 1}\n",
        with_the_circuit_open,
    ),
    (
        "pool timeout",
        503,
        "pool_full",
        ONCE + "    pool: {max_connections: 1}\n    timeouts: {acquire: 100ms}\n",
        with_the_pool_taken,
    ),
    (
        "pool full",
        503,
        "pool_full",
        ONCE + "    pool: {max_connections: 1, when_full: reject}\n",
        with_the_pool_taken,
    ),
    ("cancelled", 499, "cancelled", ONCE, cancelled),
    (
        "too large",
        502,
        "response_too_large",
        ONCE + "    pool: {max_response_body: 10B}\n",
        behaving(Answer(body=b"x" * 100)),
    ),
    (
        "streamed: too large",
        502,
        "response_too_large",
        ONCE + "    pool: {max_response_body: 10B}\n",
        streamed(Answer(body=b"x" * 100, chunked=True)),
    ),
    ("streamed: broken off", 502, "upstream_failed", ONCE, streamed(Break("body", "rst"))),
    (
        "streamed: silent",
        504,
        "timeout",
        ONCE + "    timeouts: {read: 300ms}\n",
        streamed(Answer(body=b"x" * 100, drip_body_s=30.0)),
    ),
    ("the caller's body", 0, "", ONCE, with_a_body_that_raises),
]


@across(REQUESTS, HANDLE, URLOPEN, MANAGER)
@pytest.mark.parametrize(
    ("words", "status", "word", "body", "act"), TROUBLES, ids=[words for words, *_ in TROUBLES]
)
def test_the_same_trouble_has_the_same_status_through_requests_and_urllib3(
    tmp_path: Path,
    call: Surface,
    words: str,
    status: int,
    word: str,
    body: str,
    act: Callable[[Scene], None],
) -> None:
    with ExitStack() as held:
        tls = server_context(trustme.CA()) if words.startswith(("handshake", "certificate")) else None
        server = held.enter_context(FaultServer(tls=tls))
        url = server.url
        if words in ("refused", "connect timeout"):
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            if words == "connect timeout":  # its queue is full, so that the kernel answers no further SYN
                taken.listen(0)
                waiting = held.enter_context(socket.create_connection(taken.getsockname()))
                assert waiting.getpeername() == taken.getsockname()
        if words == "name not found":
            url = "http://nowhere.invalid"
        hr = held.enter_context(running(tmp_path, rules(url, body, more=INSTALL)))
        scene = Scene(hr, server, url, call, held)

        with pytest.raises(LookupError if word == "" else call.error) as caught:
            act(scene)

        found = answer(caught.value)
        if word == "":
            assert found is None
            return
        assert found is not None
        problem = json.loads(found.body)
        assert (found.status, problem["type"]) == (status, f"urn:headrace:problem:{word}")
        assert problem["upstream"] == "billing"


@across(REQUESTS, HANDLE)
@pytest.mark.parametrize(
    ("status", "answered", "word"),
    [
        (500, 502, "upstream_error"),
        (504, 502, "upstream_error"),
        (503, 503, "upstream_busy"),
        (429, 503, "upstream_busy"),
        (404, None, ""),
        (403, None, ""),
    ],
)
def test_the_error_of_raise_for_status_is_answered_by_what_the_upstream_has_answered(
    tmp_path: Path, call: Surface, status: int, answered: int | None, word: str
) -> None:
    """A 4xx finds fault with the request, which is the application's matter."""
    with FaultServer() as server, running(tmp_path, rules(server.url, ONCE, more=INSTALL)) as hr:
        server.always(Answer(status, headers=(("Retry-After", "7"),)))
        with pytest.raises(requests.HTTPError) as caught:
            call(hr, server.url).raise_for_status()

    found = answer(caught.value)
    assert (None if found is None else found.status) == answered
    if found is not None:
        assert json.loads(found.body)["type"] == f"urn:headrace:problem:{word}"
        assert found.headers.get("Retry-After") == ("7" if answered == 503 else None)


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_without_a_record_the_error_of_raise_for_status_is_the_applications(
    tmp_path: Path, mode: str
) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, f"    mode: {mode}\n" + ONCE)):
        server.always(Answer(500))
        with pytest.raises(requests.HTTPError) as caught:
            requests.get(server.url).raise_for_status()
    assert answer(caught.value) is None
