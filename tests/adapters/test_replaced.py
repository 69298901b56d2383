"""Classes that others replace are looked up when they are used: in processes of their own, with the real libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from support.faultserver import Answer, FaultServer
from support.governed import rules

TRUSTS = """
import sys, truststore
def inject(now):
    if sys.argv[2] == now:
        truststore.inject_into_ssl()
inject("before the import")
import headrace, requests, urllib3
from prometheus_client import CollectorRegistry
inject("before the start")
url, file = sys.argv[1], sys.argv[3]
with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
    if sys.argv[2] == "before a reload":
        requests.get(url)
        inject("before a reload")
        with open(file, "a") as text:
            text.write("    retry: {max_attempts: 2}\\n")
        assert hr.reload() == "applied"
    for _ in range(2):
        answer = requests.get(url)
        assert answer.headrace.upstream == "billing", answer
    answer = urllib3.request("GET", url)
    assert answer.headrace.upstream == "billing", answer
    context = hr.snapshot.upstreams["billing"].endpoint.tls._now.context
    print("truststore" if truststore.SSLContext in type(context).__mro__ else "stock", context.minimum_version.name)
"""


@pytest.fixture
def system_store(ca: Path, tmp_path: Path) -> Path:
    """A directory that OpenSSL takes for the system's, with the authority in it."""
    directory = tmp_path / "store"
    directory.mkdir()
    asked = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(ca)], capture_output=True, text=True, check=True
    )
    (directory / f"{asked.stdout.strip()}.0").write_bytes(ca.read_bytes())
    return directory


def run(code: str, *arguments: object, **env: str) -> str:
    """What a process of its own prints."""
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_CA_BUNDLE", "SSL_CERT_FILE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**known, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WHEN = ["before the import", "before the start", "before a reload"]


@pytest.mark.parametrize("when", WHEN)
def test_truststore_verifies_where_the_file_names_no_ca(
    tmp_path: Path, secure: FaultServer, system_store: Path, when: str
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(secure.url, more="install: {urllib3: true}\n"))
    assert run(TRUSTS, secure.url, when, file, SSL_CERT_DIR=str(system_store)) == "truststore TLSv1_2"


@pytest.mark.parametrize("when", WHEN)
def test_with_truststore_the_ca_of_the_file_is_all_that_is_trusted(
    tmp_path: Path, secure: FaultServer, ca: Path, system_store: Path, when: str
) -> None:
    """failures.md 31."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(
        rules(secure.url, f"    tls: {{ca: '{ca}', min_version: '1.3'}}\n", more="install: {urllib3: true}\n")
    )
    assert run(TRUSTS, secure.url, when, file) == "stock TLSv1_3"
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    file.write_text(rules(secure.url, f"    tls: {{ca: '{other}'}}\n    retry: {{max_attempts: 1}}\n"))
    with pytest.raises(AssertionError, match="certificate verify failed"):
        run(TRUSTS, secure.url, when, file, SSL_CERT_DIR=str(system_store))


CASSETTE = """
import sys, urllib3, requests, vcr
import headrace
from prometheus_client import CollectorRegistry
url, file, cassette = sys.argv[1:]
headrace_ = headrace.Headrace(file, registry=CollectorRegistry())
with headrace_ as hr:
    def calls():
        for call in (
            lambda: requests.get(url + "/a"),
            lambda: requests.get(url + "/a", stream=True),
            lambda: requests.post(url + "/b", data=b"body", headers={"Idempotency-Key": "k"}),
            lambda: urllib3.request("GET", url + "/c"),
            lambda: urllib3.request("GET", url + "/c", preload_content=False),
            lambda: hr.upstream("billing").get("/d"),
            lambda: hr.session().get(url + "/e"),
        ):
            answer = call()
            body = answer.content if isinstance(answer, requests.Response) else answer.data
            assert body == b"ok", body
            assert answer.headrace.upstream == "billing"
            yield [(one.outcome, one.played) for one in answer.headrace.attempts]

    with vcr.use_cassette(cassette, allow_playback_repeats=False) as tape:
        print(list(calls()))
    with vcr.use_cassette(cassette, record_mode="none") as tape:
        print(list(calls()), tape.all_played)
        try:
            requests.get(url + "/unknown")
        except Exception as error:
            print(type(error).__name__, error.headrace.upstream)
    answer = requests.get(url + "/a")
    print([(one.outcome, one.played) for one in answer.headrace.attempts], hr.status()["ungoverned"])
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cassette_of_vcrpy_records_and_plays_governed_calls(
    tmp_path: Path, secure: FaultServer, ca: Path, scheme: str
) -> None:
    with FaultServer() as plain:
        server = secure if scheme == "https" else plain
        seen = len(server.requests)
        server.next(Answer(503))
        tls = f"    tls: {{ca: '{ca}'}}\n" if scheme == "https" else ""
        file = tmp_path / "upstreams.yaml"
        file.write_text(
            rules(
                server.url, f"    retry: {{backoff: {{base: 1ms}}}}\n{tls}", more="install: {urllib3: true}\n"
            )
        )
        said = run(CASSETTE, server.url, file, tmp_path / "cassette.yaml").splitlines()
        recorded = [[("5xx", False), ("2xx", False)], *[[("2xx", False)]] * 6]
        assert said[0] == str(recorded)
        assert said[1] == str([[(word, True) for word, _ in one] for one in recorded]) + " True"
        assert said[2] == "CannotOverwriteExistingCassetteException billing"
        assert said[-1] == "[('2xx', False)] {}"
        requests = server.requests[seen:]
        assert [one.target for one in requests] == ["/a", "/a", "/a", "/b", "/c", "/c", "/d", "/e", "/a"]
        assert None not in {one.header("X-Request-ID") for one in requests}


GEVENT = """
import sys, time
from gevent import monkey
import gevent
def patch(now):
    if sys.argv[2] == now:
        monkey.patch_all()
patch("before the import")
import logging
said = []
class Told(logging.Handler):
    def emit(self, record):
        if getattr(record, "event", "") == "gevent.late":
            said.append(record.levelname)
logging.getLogger().addHandler(Told())
import headrace, requests, urllib3
from headrace.transport.dial import tls  # an import of headrace alone does not load it
from prometheus_client import CollectorRegistry
patch("before the start")
url, when, file = sys.argv[1:]
with headrace.Headrace(file, registry=CollectorRegistry()) as hr:
    if when == "after the start":
        assert requests.get(url).headrace.upstream == "billing"
        patch("after the start")
    jobs = [gevent.spawn(lambda: requests.get(url).headrace.upstream) for _ in range(5)]
    gevent.joinall(jobs, raise_error=True)
    assert [one.value for one in jobs] == ["billing"] * 5
    assert urllib3.request("GET", url).headrace.upstream == "billing"
    ends_at = time.monotonic() + 20
    while when == "after the start" and not said and time.monotonic() < ends_at:
        time.sleep(0.1)
    print(said)
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("when", ["before the import", "before the start"])
def test_gevent_may_patch_up_to_the_start(
    tmp_path: Path, secure: FaultServer, ca: Path, when: str, scheme: str
) -> None:
    with FaultServer() as plain:
        server = secure if scheme == "https" else plain
        all_five = threading.Barrier(5)

        def all_at_once(_: object) -> Answer:  # nobody is answered before all are there
            if len(server.requests) <= 5:
                all_five.wait(60)
            return Answer()

        server.always(all_at_once)
        tls = f"    tls: {{ca: '{ca}'}}\n" if scheme == "https" else ""
        file = tmp_path / "upstreams.yaml"
        file.write_text(rules(server.url, tls, more="install: {urllib3: true}\n"))
        assert run(GEVENT, server.url, when, file) == "[]"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_gevent_that_patches_after_the_start_is_told_what_to_do(
    tmp_path: Path, secure: FaultServer, ca: Path, scheme: str
) -> None:
    with FaultServer() as plain:
        server = secure if scheme == "https" else plain
        tls = f"    tls: {{ca: '{ca}'}}\n" if scheme == "https" else ""
        file = tmp_path / "upstreams.yaml"
        file.write_text(rules(server.url, tls, more="install: {urllib3: true}\n"))
        assert run(GEVENT, server.url, "after the start", file).endswith("['WARNING']")
