"""What a peer may do on the wire, and what must never come of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from support.faultserver import FaultServer, Raw
from support.governed import rules, running


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize("status", [101, 103], ids=["switching protocols", "early hints"])
def test_a_connection_on_which_another_answer_may_follow_is_not_used_again(
    tmp_path: Path, server: FaultServer, status: int
) -> None:
    """http.client takes any 1xx but 100 for the answer; what the peer sends later must not answer the next call."""
    server.next(Raw(b"HTTP/1.1 %d Not The Last\r\n\r\n" % status, then="keep"))
    with running(tmp_path, rules(server.url)) as hr:
        assert requests.get(server.url).status_code == status
        assert requests.get(server.url).content == b"ok"

        assert [one.connection for one in server.requests] == [1, 2]
        assert hr.status()["upstreams"]["billing"]["pool"]["inuse"] == 0
