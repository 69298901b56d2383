"""TLS sessions against nginx: what is resumed, as nginx sees it, and what is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
import trustme

import headrace
from headrace.transport.dial.sessions import MOST_MISSES
from support.governed import rules, running
from support.nginx import Nginx


class MakeNginx(Protocol):
    def __call__(self, server: str, *, http: str = "", ca: Any = None, tls: str = "") -> Nginx: ...


LOCATION = (
    "keepalive_timeout 0;\n"  # each request has a connection of its own
    "location / { add_header Resumed $ssl_session_reused; add_header Protocol $ssl_protocol; return 200 fine; }\n"
)
TICKETS = "ssl_session_tickets on;\nssl_session_cache none;\n"
IDS = "ssl_session_tickets off;\nssl_session_cache shared:ids:1m;\n"
NEITHER = "ssl_session_tickets off;\nssl_session_cache off;\n"
VERSIONS = {"1.2": "ssl_protocols TLSv1.2;\n", "1.3": "ssl_protocols TLSv1.3;\n"}


def text_of(server: Nginx, ca: Path, more: str = "") -> str:
    return rules(server.url, f"    tls: {{ca: '{ca}'{more}}}\n")


def resumed(answer: requests.Response) -> bool:
    return answer.headers["Resumed"] == "r"  # nginx: "r", or "."


def handshakes(hr: headrace.Headrace) -> dict[str, int]:
    return hr.status()["upstreams"]["billing"]["pool"]["tls_handshakes"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept", [pytest.param(TICKETS, id="tickets"), pytest.param(IDS, id="ids")])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_new_connection_goes_on_with_the_session_of_one_before(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path, version: str, kept: str
) -> None:
    server = nginx(LOCATION, ca=authority, tls=VERSIONS[version] + kept)
    with running(tmp_path, text_of(server, ca)) as hr:
        answers = [requests.get(server.url) for _ in range(6)]
        assert {one.headers["Protocol"] for one in answers} == {f"TLSv{version}"}
        assert [resumed(one) for one in answers] == [False, *[True] * 5]
        assert handshakes(hr) == {"no": 1, "yes": 5}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_with_neither_cache_nor_tickets_is_not_asked_for_ever(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path, version: str
) -> None:
    server = nginx(LOCATION, ca=authority, tls=VERSIONS[version] + NEITHER)
    with running(tmp_path, text_of(server, ca)) as hr:
        assert not any(resumed(requests.get(server.url)) for _ in range(MOST_MISSES + 3))
        client = hr.snapshot.upstreams["billing"].endpoint.tls
        assert client is not None
        (known,) = client._now.sessions._known.values()  # type: ignore[union-attr]
        assert known.kept is None
        assert known.rests_until > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_has_changed_its_ticket_key_gets_a_full_handshake_and_nobody_notices(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path, version: str
) -> None:
    key = tmp_path / "ticket.key"
    key.write_bytes(os.urandom(80))
    tickets = f"{TICKETS}ssl_session_ticket_key {key};\n"
    server = nginx(LOCATION, ca=authority, tls=VERSIONS[version] + tickets)
    with running(tmp_path, text_of(server, ca)) as hr:
        assert [resumed(requests.get(server.url)) for _ in range(3)] == [False, True, True]
        key.write_bytes(os.urandom(80))
        server.reload()
        answers = [requests.get(server.url) for _ in range(3)]
        assert [resumed(one) for one in answers] == [False, True, True]
        assert [len(one.headrace.attempts) for one in answers] == [1, 1, 1]  # type: ignore[attr-defined]
        assert handshakes(hr) == {"no": 2, "yes": 4}


def test_past_the_servers_hint_there_is_a_full_handshake(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path
) -> None:
    server = nginx(LOCATION, ca=authority, tls=VERSIONS["1.3"] + TICKETS + "ssl_session_timeout 600s;\n")
    with running(tmp_path, text_of(server, ca)) as hr:
        requests.get(server.url)
        client = hr.snapshot.upstreams["billing"].endpoint.tls
        assert client is not None
        (known,) = client._now.sessions._known.values()  # type: ignore[union-attr]
        assert known.kept is not None
        assert known.kept.ends_at - known.kept.renew_at == pytest.approx(300.0)


def test_a_session_never_outlives_the_tls_rules_that_it_was_made_by(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path
) -> None:
    """failures.md 32."""
    server = nginx(LOCATION, ca=authority, tls=VERSIONS["1.3"] + TICKETS)
    file = tmp_path / "upstreams.yaml"
    with running(tmp_path, text_of(server, ca)) as hr:
        assert [resumed(requests.get(server.url)) for _ in range(2)] == [False, True]
        with ca.open("a") as bundle:
            bundle.write("\n")  # other bytes: another generation
        assert hr.reload() == "applied"
        assert [resumed(requests.get(server.url)) for _ in range(2)] == [False, True]
        file.write_text(text_of(server, ca, ", server_name: localhost"))
        assert hr.reload() == "applied"
        assert [resumed(requests.get(server.url)) for _ in range(2)] == [False, True]
        file.write_text(text_of(server, ca, ", server_name: localhost, session_resumption: false"))
        assert hr.reload() == "applied"
        assert [resumed(requests.get(server.url)) for _ in range(3)] == [False] * 3


def test_the_keys_of_sessions_are_live_and_keep_the_connections(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path
) -> None:
    server = nginx("location / { return 200 fine; }", ca=authority, tls=VERSIONS["1.3"] + TICKETS)
    file = tmp_path / "upstreams.yaml"
    with running(tmp_path, text_of(server, ca)) as hr:
        requests.get(server.url)
        for edit in (
            ", session_resumption: false",
            ", session_resumption: true",
            ", session_cache: {size: 1, ttl: 1h}",
        ):
            file.write_text(text_of(server, ca, edit))
            assert hr.reload() == "applied"
            requests.get(server.url)
        assert hr.status()["upstreams"]["billing"]["pool"]["acquires"] == {"hit": 3, "miss": 1}
        client = hr.snapshot.upstreams["billing"].endpoint.tls
        assert client is not None
        sessions = client._now.sessions
        assert sessions is not None
        assert (sessions.size, sessions.ttl_s) == (1, 3600.0)
