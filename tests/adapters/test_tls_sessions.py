"""TLS sessions of governed calls: which connections go on with one, as the server sees it, and which may not."""

from __future__ import annotations

import datetime
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3

import headrace
from headrace.policy.plan import TlsPlan
from headrace.transport.dial.client import TlsClient
from headrace.transport.dial.sessions import CONSUMED, MOST_MISSES
from headrace.transport.dial.tls import context_for
from support.faultserver import Answer, FaultServer, server_context
from support.governed import rules, running
from support.waiting import wait_until

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
each_version = pytest.mark.parametrize("version", VERSIONS)


def context_of(authority: trustme.CA, version: str, *names: str, **kw: Any) -> ssl.SSLContext:
    context = server_context(authority, *names, **kw)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def text_of(url: str, ca: Path, more: str = "", body: str = "") -> str:
    return rules(url, f"    tls: {{ca: '{ca}'{more}}}\n{body}", more="install: {urllib3: true}\n")


def seen(server: FaultServer) -> list[bool | None]:
    return [one.resumed for one in server.requests]


def handshakes(hr: headrace.Headrace) -> dict[str, int]:
    return hr.status()["upstreams"]["billing"]["pool"]["tls_handshakes"]  # type: ignore[no-any-return]


def client_of(hr: headrace.Headrace) -> TlsClient:
    client = hr.snapshot.upstreams["billing"].endpoint.tls
    assert client is not None
    return client


@pytest.fixture
def no_tickets(authority: trustme.CA) -> Iterator[FaultServer]:
    context = context_of(authority, "1.3")
    context.num_tickets = 0
    with FaultServer(tls=context) as server:
        yield server


def streamed(hr: headrace.Headrace, url: str) -> bytes:
    with requests.get(url, stream=True) as answer:
        return answer.content


def streamed_by_urllib3(hr: headrace.Headrace, url: str) -> bytes:
    answer = urllib3.request("GET", url, preload_content=False)
    return answer.read()


CALLS: dict[str, Callable[[headrace.Headrace, str], bytes]] = {
    "requests": lambda hr, url: requests.get(url).content,
    "requests, streamed": streamed,
    "urllib3": lambda hr, url: urllib3.request("GET", url).data,
    "urllib3, streamed": streamed_by_urllib3,
    "by name": lambda hr, url: hr.upstream("billing").urlopen("GET", "/").data,
    "by name, requests": lambda hr, url: hr.upstream("billing").get("/").content,
}
ANSWERS = {
    "closes": Answer(body=b"ok", close=True),
    "closes, no body": Answer(204, body=b"", close=True),
    "closes, large": Answer(body=b"x" * 600_000, close=True),
    "closes, without length": Answer(body=b"ok", close=True, framed=False),
    "hangs up": Answer(body=b"ok", then="fin"),
}


@pytest.mark.parametrize("parser", ["auto", "stdlib"])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("call", CALLS)
def test_whatever_reads_the_first_answer_keeps_the_session(
    tmp_path: Path, secure: FaultServer, ca: Path, call: str, answer: str, parser: str
) -> None:
    secure.always(ANSWERS[answer])
    with running(tmp_path, text_of(secure.url, ca, body=f"    pool: {{parser: {parser}}}\n")) as hr:
        for _ in range(3):
            assert CALLS[call](hr, secure.url) == ANSWERS[answer].body
            wait_until(lambda: hr.status()["upstreams"]["billing"]["pool"]["idle"] in (0, 1))
            if answer == "hangs up":
                secure.wait_for(lambda: secure.open_connections == 0)
        assert seen(secure) == [False, True, True]
        assert handshakes(hr) == {"no": 1, "yes": 2}


@each_version
def test_a_warm_connection_needs_no_handshake_and_keeps_one_session(
    tmp_path: Path, authority: trustme.CA, ca: Path, version: str
) -> None:
    with (
        FaultServer(tls=context_of(authority, version)) as server,
        running(tmp_path, text_of(server.url, ca)) as hr,
    ):
        for _ in range(5):
            requests.get(server.url)
        assert handshakes(hr) == {"no": 1}


def test_sixteen_threads_that_connect_at_once_all_get_their_answers(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    secure.always(Answer(body=b"ok", close=True))
    with running(tmp_path, text_of(secure.url, ca)) as hr:
        with ThreadPoolExecutor(16) as threads:
            bodies = list(threads.map(lambda _: requests.get(secure.url).content, range(160)))
        assert bodies == [b"ok"] * 160
        counted = handshakes(hr)
        assert sum(counted.values()) == 160
        assert counted["no"] <= 16
        assert seen(secure).count(True) == counted["yes"]


def test_a_connection_made_ahead_of_need_keeps_its_session_once_it_has_an_answer(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    with running(tmp_path, text_of(secure.url, ca, body="    pool: {min_idle: 1}\n")) as hr:
        wait_until(lambda: hr.status()["upstreams"]["billing"]["pool"]["idle"] == 1)
        secure.always(Answer(close=True))
        requests.get(secure.url)
        wait_until(lambda: sum(handshakes(hr).values()) >= 2)
        assert handshakes(hr)["yes"] >= 1


def test_a_heartbeat_keeps_the_session_of_its_connection(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    body = "    pool: {min_idle: 1, heartbeat: {path: /alive, interval: 100ms}}\n"
    secure.at("/alive", Answer(close=True))
    with running(tmp_path, text_of(secure.url, ca, body=body)):
        secure.wait_for(lambda: len(secure.requests) >= 3)
        assert [one.target for one in secure.requests[:3]] == ["/alive"] * 3
        assert seen(secure)[:3] == [False, True, True]


def test_a_server_without_tickets_is_read_no_more(tmp_path: Path, no_tickets: FaultServer, ca: Path) -> None:
    no_tickets.always(Answer(close=True))
    with running(tmp_path, text_of(no_tickets.url, ca)) as hr:
        for _ in range(MOST_MISSES + 2):
            requests.get(no_tickets.url)
        assert handshakes(hr) == {"no": MOST_MISSES + 2}
        sessions = client_of(hr)._now.sessions
        assert sessions is not None
        (known,) = sessions._known.values()
        assert known.rests_until > 0


def test_a_server_that_takes_each_ticket_once_is_found_out(
    tmp_path: Path, authority: trustme.CA, ca: Path, require_program: Callable[[str], str]
) -> None:
    """OpenSSL's own server, with its guard against replays: it forgets a ticket when that is used."""
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "server.pem")
    )
    command = [require_program("openssl"), "s_server", "-accept", "127.0.0.1:0", "-www", "-tls1_3"]
    with subprocess.Popen(
        [*command, "-cert", str(tmp_path / "server.pem"), "-max_early_data", "16384"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = next(found[1] for line in process.stdout if (found := re.search(r"ACCEPT .*:(\d+)", line)))
            with running(tmp_path, text_of(f"https://localhost:{port}", ca)) as hr:
                pages = [requests.get(f"https://localhost:{port}/").text for _ in range(12)]
                found_out = [False, *[True, False] * CONSUMED]
                assert ["Reused, TLSv1.3" in page for page in pages] == [
                    *found_out,
                    *[True] * (12 - len(found_out)),
                ]
                assert handshakes(hr) == {"no": 1 + CONSUMED, "yes": 11 - CONSUMED}
        finally:
            process.terminate()


def test_a_session_ends_with_the_certificate_of_the_server(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    """failures.md 32. A resumed handshake would accept the certificate that has expired."""
    ends_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=6)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=ends_at).configure_cert(context)
    with FaultServer(tls=context) as server, running(tmp_path, text_of(server.url, ca)) as hr:
        server.always(Answer(close=True))
        for _ in range(2):
            assert requests.get(server.url).status_code == 200
        assert seen(server) == [False, True]
        wait_until(lambda: time.time() > ends_at.timestamp() + 1.5)
        with pytest.raises(requests.exceptions.SSLError, match="expired") as caught:
            requests.get(server.url)
        assert len(caught.value.headrace.attempts) == 1  # type: ignore[attr-defined]
        assert handshakes(hr) == {"no": 1, "yes": 1}


@each_version
def test_a_rotated_client_certificate_is_shown_at_once_and_not_the_one_of_a_session(
    tmp_path: Path, authority: trustme.CA, ca: Path, version: str
) -> None:
    """failures.md 33. A resumed connection would carry the identity of the first one."""

    def write(name: str) -> None:
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))

    def shown(server: FaultServer) -> list[str]:
        return [one.client_cert["subjectAltName"][0][1] for one in server.requests]  # type: ignore[index]

    write("old.test")
    more = f", cert: '{tmp_path}/cert.pem', key: '{tmp_path}/key.pem'"
    context = context_of(authority, version, client_ca=authority)
    with FaultServer(tls=context) as server, running(tmp_path, text_of(server.url, ca, more)) as hr:
        server.always(Answer(close=True))
        for _ in range(2):
            requests.get(server.url)
        write("new.test")
        hr.reload()
        for _ in range(2):
            requests.get(server.url)
        assert shown(server) == ["old.test", "old.test", "new.test", "new.test"]
        assert seen(server) == [False, True, False, True]


def test_two_upstreams_at_one_server_do_not_share_a_session(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    secure.always(Answer(close=True))
    text = text_of(f"{secure.url}/a", ca) + f"  other: {{base_url: '{secure.url}/b', tls: {{ca: '{ca}'}}}}\n"
    with running(tmp_path, text):
        for path in ("a", "b", "a", "b"):
            requests.get(f"{secure.url}/{path}")
        assert seen(secure) == [False, False, True, True]


def test_a_session_of_one_name_is_not_offered_under_another(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    """failures.md 32. A resumed handshake does not look at the name: the second would succeed."""
    with FaultServer(tls=context_of(authority, "1.3", "127.0.0.1")) as server:
        server.always(Answer(close=True))
        text = text_of(server.url, ca, body=f"    match: ['https://localhost:{server.port}']\n")
        with running(tmp_path, text):
            for _ in range(2):
                requests.get(server.url)
            with pytest.raises(requests.exceptions.SSLError, match="localhost"):
                requests.get(f"https://localhost:{server.port}")
            assert seen(server) == [False, True]


def test_a_session_of_another_context_ends_in_an_error_of_tls_and_only_once(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    """failures.md 34. CPython raises a bare ValueError. Nothing of ours offers one, so the test puts it there."""
    secure.always(Answer(close=True))
    with running(tmp_path, text_of(secure.url, ca, body="    retry: {max_attempts: 1}\n")) as hr:
        requests.get(secure.url)
        sessions = client_of(hr)._now.sessions
        assert sessions is not None
        (known,) = sessions._known.values()
        assert known.kept is not None
        strange = context_for(TlsPlan(True, str(ca), None, None, None, "1.3", "another"))
        known.kept.session = _session_of(secure, strange)
        with pytest.raises(requests.exceptions.SSLError, match="different SSLContext"):
            requests.get(secure.url)
        assert requests.get(secure.url).status_code == 200


def _session_of(server: FaultServer, context: ssl.SSLContext) -> Any:
    with (
        socket.create_connection((server.host, server.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(1000)
        return sock.session


def test_in_observe_a_certificate_is_foretold_by_a_full_handshake(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    """What was kept while the rules were in force says nothing of the certificate that the server has now."""
    with FaultServer(tls=context_of(authority, "1.3")) as server:
        server.always(Answer(close=True))
        with running(tmp_path, text_of(server.url, ca)) as hr:
            for _ in range(2):
                requests.get(server.url)
            pool = hr.snapshot.upstreams["billing"].endpoint.pool
            before = handshakes(hr)
            assert pool.try_connection()["subjectAltName"]
            assert handshakes(hr) == before
            requests.get(server.url)
            assert seen(server) == [False, True, True]


REPLACED = """
import sys
when, url, file, first = sys.argv[1:]
if first == "gevent":
    from gevent import monkey
    monkey.patch_all()
if first == "truststore":
    import truststore
    if when == "before":
        truststore.inject_into_ssl()
import headrace, requests
from prometheus_client import CollectorRegistry
if first == "truststore" and when == "after":
    truststore.inject_into_ssl()
with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
    for _ in range(4):
        assert requests.get(url).headrace.upstream == "billing"
    print(hr.status()["upstreams"]["billing"]["pool"]["tls_handshakes"])
"""


@pytest.mark.parametrize("first", ["truststore", "gevent"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_sessions_are_kept_where_others_replace_classes_of_ssl(
    tmp_path: Path, secure: FaultServer, ca: Path, first: str, when: str
) -> None:
    secure.always(Answer(close=True))
    file = tmp_path / "upstreams.yaml"
    file.write_text(text_of(secure.url, ca))
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, when, secure.url, str(file), first],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'no': 1, 'yes': 3}"
    assert seen(secure) == [False, True, True, True]


def test_a_class_that_verifies_by_itself_gets_whole_handshakes(
    tmp_path: Path, secure: FaultServer, ca: Path, require_program: Callable[[str], str]
) -> None:
    """Without `ca` truststore's class holds. It looks at the chain, which a session does not have."""
    secure.always(Answer(close=True))
    store = tmp_path / "store"
    store.mkdir()
    (store / "ca.pem").write_bytes(ca.read_bytes())
    subprocess.run([require_program("openssl"), "rehash", str(store)], check=True)
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(secure.url))
    known = {
        name: text for name, text in os.environ.items() if not name.endswith(("_CA_BUNDLE", "_CERT_FILE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, "before", secure.url, str(file), "truststore"],
        env={**known, "SSL_CERT_DIR": str(store)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'no': 4}"
    assert seen(secure) == [False] * 4


def test_a_forked_child_keeps_sessions_of_its_own(tmp_path: Path, secure: FaultServer, ca: Path) -> None:
    secure.always(Answer(close=True))
    with running(tmp_path, text_of(secure.url, ca)) as hr:
        for _ in range(2):
            requests.get(secure.url)
        sessions = client_of(hr)._now.sessions
        assert sessions is not None
        held = threading.Lock()
        with held, sessions._lock:
            client_of(hr).forget_inherited()  # what the renewal in a child does, while a thread held the lock
            for _ in range(2):
                requests.get(secure.url)
        assert seen(secure) == [False, True, False, True]
