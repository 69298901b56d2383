"""Trust: what the rule says holds, and a call with a trust of its own is left alone."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter

from support.faultserver import Endless, FaultServer, server_context
from support.governed import reason_of, rules, running


@pytest.fixture
def server(secure: FaultServer) -> FaultServer:
    return secure


def test_the_rules_ca_is_trusted_without_a_word_at_the_call_site(
    tmp_path: Path, server: FaultServer, ca: Path
) -> None:
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        for _ in range(3):
            assert requests.get(server.url).headrace.upstream == "billing"
        assert requests.get(server.url, verify=str(ca)).headrace.upstream == "billing"

        assert server.connections == 1
        assert hr.status()["ungoverned"] == {}


def test_a_certificate_error_is_an_ssl_error_and_never_retried(tmp_path: Path, server: FaultServer) -> None:
    with running(tmp_path, rules(server.url)), pytest.raises(requests.exceptions.SSLError) as caught:
        requests.get(server.url)

    assert reason_of(caught.value) == "certificate"
    assert len(caught.value.headrace.attempts) == 1  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_call_with_its_own_trust_passes_through_and_is_counted(
    tmp_path: Path, server: FaultServer, ca: Path, caplog: pytest.LogCaptureFixture, authority: trustme.CA
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(ca.read_bytes() + b"\n")
    client = tmp_path / "client.pem"
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(client))
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        for _ in range(2):
            response = requests.get(server.url, verify=False)
            assert not hasattr(response, "headrace")
        assert not hasattr(requests.get(server.url, verify=str(other)), "headrace")
        assert not hasattr(requests.get(server.url, verify=str(ca), cert=str(client)), "headrace")

        assert hr.status()["ungoverned"] == {"tls": 4}
        sites = [
            record.call_site for record in caplog.records if getattr(record, "event", "") == "call.ungoverned"
        ]
        assert len(sites) == len(set(sites)) == 3  # once per call site
        assert all("test_tls.py:" in site for site in sites)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_nothing_a_call_passes_changes_the_trust_of_a_governed_connection(
    tmp_path: Path, server: FaultServer
) -> None:
    """`verify=False` of one call must not loosen the next: the rule's context is sealed."""
    with running(tmp_path, rules(server.url)) as hr:
        assert requests.get(server.url, verify=False).status_code == 200
        pool = hr.snapshot.upstream("billing").endpoint.pool
        pool.cert_reqs = "CERT_NONE"  # what requests' cert_verify writes to a pool
        pool.assert_hostname = False

        with pytest.raises(requests.exceptions.SSLError):
            requests.get(server.url)


def test_a_bundle_of_the_environment_is_not_the_calls_own_wish(
    tmp_path: Path, server: FaultServer, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    with running(tmp_path, rules(server.url)):
        assert requests.get(server.url).headrace.upstream == "billing"


def test_a_wrong_server_name_is_refused(tmp_path: Path, server: FaultServer, ca: Path) -> None:
    body = f"    tls: {{ca: '{ca}', server_name: other.test}}\n"
    with running(tmp_path, rules(server.url, body)), pytest.raises(requests.exceptions.SSLError):
        requests.get(server.url)


def test_a_client_certificate_of_the_rule_is_presented(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    issued = authority.issue_cert("orders.test")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = server_context(authority)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    body = f"    tls: {{ca: '{ca}', cert: '{tmp_path}/cert.pem', key: '{tmp_path}/key.pem'}}\n"
    with FaultServer(tls=context) as server, running(tmp_path, rules(server.url, body)):
        assert requests.get(server.url).status_code == 200
        assert server.requests[0].client_cert


@pytest.mark.parametrize("mode", ["off", "observe"])
@pytest.mark.filterwarnings("error")
def test_the_kill_switch_leaves_the_trust_of_calls_by_name(
    tmp_path: Path, server: FaultServer, ca: Path, mode: str
) -> None:
    body = f"    mode: {mode}\n    tls: {{ca: '{ca}', server_name: localhost}}\n"
    with running(tmp_path, rules(server.url, body)) as hr:
        assert hr.upstream("billing").get("/").status_code == 200
        assert hr.upstream("billing").urlopen("GET", "/").status == 200
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(server.url)  # by URL the file gives nothing


def test_an_adapter_with_a_pinned_certificate_keeps_its_pin(
    tmp_path: Path, server: FaultServer, ca: Path
) -> None:
    class Pinned(HTTPAdapter):
        def init_poolmanager(self, *args, **kw):  # type: ignore[no-untyped-def]
            super().init_poolmanager(*args, **kw, assert_fingerprint="00" * 32)

    with (
        running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr,
        requests.Session() as session,
    ):
        session.mount("https://", Pinned())
        with pytest.raises(requests.exceptions.SSLError):
            session.get(server.url, verify=str(ca))
        assert hr.status()["ungoverned"] == {"tls": 1}


def test_verification_is_off_only_with_both_keys_and_says_so(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body)) as hr:
        assert hr.upstream("billing").get("/").status_code == 200
        assert [one for one in caplog.records if getattr(one, "event", "") == "tls.verification_disabled"]


def test_a_connection_that_is_broken_off_keeps_its_tls_layer(
    tmp_path: Path, server: FaultServer, ca: Path
) -> None:
    """failures.md 28."""
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        server.always(Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"))
        with hr.upstream("billing").urlopen("GET", "/", preload_content=False) as answer:
            sock = answer._connection.sock  # type: ignore[union-attr]

            hr.snapshot.upstream("billing").endpoint.pool.leases.stop()

            assert sock.version() is not None  # None is what an SSLSocket without its layer says
            with pytest.raises(OSError):
                sock.send(b"in plain text")
