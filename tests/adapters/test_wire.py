"""What a peer may do on the wire, and what must never come of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from support.faultserver import Answer, FaultServer, Raw
from support.governed import rules, running

pytestmark = pytest.mark.both_parsers


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize("status", [101, 103], ids=["switching protocols", "early hints"])
def test_a_connection_on_which_another_answer_may_follow_is_not_used_again(
    tmp_path: Path, server: FaultServer, parser: str, status: int
) -> None:
    """http.client takes any 1xx but 100 for the answer; what the peer sends later must not answer the next call."""
    if status == 103 and parser == "auto":
        pytest.skip("there, it is not taken for the answer")
    server.next(Raw(b"HTTP/1.1 %d Not The Last\r\n\r\n" % status, then="keep"))
    with running(tmp_path, rules(server.url)) as hr:
        assert requests.get(server.url).status_code == status
        assert requests.get(server.url).content == b"ok"

        assert [one.connection for one in server.requests] == [1, 2]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0


def test_what_comes_before_an_answer_is_not_taken_for_it(
    tmp_path: Path, server: FaultServer, parser: str
) -> None:
    """RFC 9110 §15.2: a client must be able to parse 1xx that it has not asked for. http.client is not."""
    if parser == "stdlib":
        pytest.skip("http.client takes it for the answer")
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    server.next(Raw(hints * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", then="keep"))
    with running(tmp_path, rules(server.url)) as hr:
        first = hr.upstream("billing").get("/")
        streamed = hr.upstream("billing").get("/", stream=True)

        assert (first.status_code, first.content, "Link" in first.headers) == (200, b"hello", False)
        assert streamed.content == b"ok"
        assert [one.connection for one in server.requests] == [1, 1]


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
def test_a_redirect_to_another_host_does_not_take_the_headers_of_the_rule_along(
    tmp_path: Path, server: FaultServer, mode: str
) -> None:
    """failures.md 52: what the file adds may be a secret, and it is meant for the upstream alone."""
    with FaultServer() as stranger:
        server.at("/moved", Answer(302, headers=(("Location", f"{stranger.url}/"),)))
        body = f"    mode: {mode}\n    headers: {{X-Api-Key: secret}}\n"
        with running(tmp_path, rules(server.url, body)) as hr:
            assert hr.upstream("billing").get("/moved", headers={"X-Own": "kept"}).status_code == 200

            assert server.requests[0].header("X-Api-Key") == "secret"
            assert stranger.requests[0].header("X-Own") == "kept"
            assert stranger.requests[0].header("X-Api-Key") is None
            assert stranger.requests[0].header("X-Request-ID") is None
