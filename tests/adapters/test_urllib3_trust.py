"""Trust on the urllib3 surface: the rule's TLS holds, and a manager that brings its own is left alone."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certifi
import pytest
import requests
import trustme
import urllib3
from urllib3.poolmanager import PoolManager

from headrace.config.check.trust import BUNDLE_VARIABLES
from support.faultserver import Answer, FaultServer
from support.governed import reason_of, rules, running

ON = "install: {urllib3: true}\n"
ONLY = "install: {requests: false, urllib3: true}\n"


@pytest.fixture
def client(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "client.pem"
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture
def server(secure: FaultServer) -> FaultServer:
    return secure


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda ca: {}, id="nothing"),
        pytest.param(lambda ca: {"cert_reqs": "CERT_REQUIRED"}, id="required, as text"),
        pytest.param(lambda ca: {"cert_reqs": ssl.CERT_REQUIRED}, id="required"),
        pytest.param(lambda ca: {"ca_certs": str(ca)}, id="the rule's CA"),
        pytest.param(lambda ca: {"ca_certs": ca}, id="the rule's CA as a Path"),
        pytest.param(lambda ca: {"assert_hostname": "127.0.0.1"}, id="the origin's name"),
        pytest.param(lambda ca: {"server_hostname": "127.0.0.1"}, id="the origin's name for SNI"),
        pytest.param(lambda ca: {"ssl_minimum_version": ssl.TLSVersion.TLSv1_2}, id="the rule's minimum"),
    ],
)
def test_a_manager_without_a_trust_of_its_own_is_governed_with_the_rules_tls(
    tmp_path: Path, server: FaultServer, ca: Path, make: Callable[[Path], dict[str, Any]]
) -> None:
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr:
        with PoolManager(**make(ca)) as manager:
            for _ in range(2):
                assert manager.request("GET", server.url).headrace.upstream == "billing"
        assert server.connections == 1
        assert hr.status()["ungoverned"] == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda ca, other, client: {"cert_reqs": "CERT_NONE"}, id="no check"),
        pytest.param(
            lambda ca, other, client: {"cert_reqs": ssl.CERT_OPTIONAL, "ca_certs": str(ca)}, id="optional"
        ),
        pytest.param(lambda ca, other, client: {"ca_certs": str(other)}, id="another CA"),
        pytest.param(lambda ca, other, client: {"ca_cert_data": ca.read_text()}, id="a CA as text"),
        pytest.param(
            lambda ca, other, client: {"ca_certs": str(ca), "cert_file": str(client)},
            id="a client certificate",
        ),
        pytest.param(
            lambda ca, other, client: {"ca_certs": str(ca), "assert_hostname": False}, id="no hostname check"
        ),
        pytest.param(
            lambda ca, other, client: {"ssl_context": ssl.create_default_context(cafile=str(ca))},
            id="a context",
        ),
        pytest.param(
            lambda ca, other, client: {"ca_certs": str(ca), "ssl_minimum_version": ssl.TLSVersion.TLSv1_3},
            id="another minimum",
        ),
        pytest.param(
            lambda ca, other, client: {"ca_certs": str(ca), "ssl_maximum_version": ssl.TLSVersion.TLSv1_2},
            id="a maximum",
        ),
    ],
)
def test_a_manager_with_a_trust_of_its_own_passes_through_and_is_counted(
    tmp_path: Path,
    server: FaultServer,
    ca: Path,
    client: Path,
    make: Callable[[Path, Path, Path], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(ca.read_bytes() + b"\n")
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr:
        with PoolManager(**make(ca, other, client)) as manager:
            for _ in range(2):
                response = manager.request("GET", server.url)
                assert (response.status, hasattr(response, "headrace")) == (200, False)
        assert hr.status()["ungoverned"] == {"tls": 2}
        sites = [one.call_site for one in caplog.records if getattr(one, "event", "") == "call.ungoverned"]
        assert len(sites) == 1  # once per call site
        assert "test_urllib3_trust.py:" in sites[0]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize(
    "asked",
    [{"cert_reqs": "CERT_REQUIRED"}, {"cert_reqs": ssl.CERT_REQUIRED}, {"assert_hostname": "127.0.0.1"}],
    ids=["required, as text", "required", "a name to assert"],
)
def test_who_asks_for_a_check_gets_one_whatever_the_rule_says(
    tmp_path: Path, server: FaultServer, asked: dict[str, Any]
) -> None:
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body, more=ON)) as hr:
        with PoolManager(**asked) as manager, pytest.raises(urllib3.exceptions.MaxRetryError):
            manager.request("GET", server.url)
        assert hr.status()["ungoverned"] == {"tls": 1}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("more", [ON, ONLY], ids=["both", "urllib3 only"])
def test_who_asks_for_nothing_goes_by_the_rule(tmp_path: Path, server: FaultServer, more: str) -> None:
    """requests writes CERT_REQUIRED into every key, which is nobody's wish."""
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body, more=more)) as hr:
        for asked in ({}, {"cert_reqs": None}):
            with PoolManager(**asked) as manager:
                assert manager.request("GET", server.url).status == 200
        assert requests.get(server.url).status_code == 200
        assert hr.status()["ungoverned"] == {}


def test_a_fingerprint_is_a_trust_of_its_own(tmp_path: Path, server: FaultServer, ca: Path) -> None:
    with (
        running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr,
        PoolManager(ca_certs=str(ca), assert_fingerprint="00" * 32) as manager,
        pytest.raises(urllib3.exceptions.MaxRetryError, match="ingerprint"),
    ):
        manager.request("GET", server.url)
    assert hr.status()["ungoverned"] == {"tls": 1}


def test_public_roots_by_their_usual_name_are_the_rules_public_roots(
    tmp_path: Path, server: FaultServer, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ca_certs=certifi.where()` means what a rule means that names no CA; where one does, it is another CA."""
    for variable in BUNDLE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with PoolManager(ca_certs=certifi.where()) as manager:
        with running(tmp_path, rules(server.url, more=ON)) as hr:
            with pytest.raises(urllib3.exceptions.MaxRetryError) as caught:
                manager.request("GET", server.url)
            assert reason_of(caught.value) == "certificate"
            assert hr.status()["ungoverned"] == {}
        with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=ON)) as hr:
            with pytest.raises(urllib3.exceptions.MaxRetryError):
                manager.request("GET", server.url)
            assert hr.status()["ungoverned"] == {"tls": 1}


def test_a_certificate_error_is_never_retried_and_is_an_ssl_error_within(
    tmp_path: Path, server: FaultServer
) -> None:
    with running(tmp_path, rules(server.url, more=ON)), PoolManager() as manager:
        with pytest.raises(urllib3.exceptions.MaxRetryError) as caught:
            manager.request("GET", server.url)
        assert isinstance(caught.value.reason, urllib3.exceptions.SSLError)
        assert reason_of(caught.value) == "certificate"
        assert len(caught.value.headrace.attempts) == 1  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("more", [ON, ONLY], ids=["both", "urllib3 only"])
def test_requests_on_top_is_judged_once_by_what_the_call_passed(
    tmp_path: Path, server: FaultServer, ca: Path, more: str
) -> None:
    """requests writes its own bundle to every pool it gets: that is not the call's wish, `verify=False` is."""
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=more)) as hr:
        assert requests.get(server.url).status_code == 200
        assert requests.get(server.url, verify=str(ca)).status_code == 200
        assert hr.status()["ungoverned"] == {}
        assert requests.get(server.url, verify=False).status_code == 200
        assert hr.status()["ungoverned"] == {"tls": 1}
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 2}


def test_a_bundle_of_the_environment_is_not_the_callers_own_wish(
    tmp_path: Path, server: FaultServer, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    with running(tmp_path, rules(server.url, more=ONLY)) as hr:
        assert requests.get(server.url).status_code == 200
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}


def test_a_proxied_https_call_passes_through_and_is_counted(tmp_path: Path) -> None:
    with FaultServer() as proxy, running(tmp_path, rules("https://billing.internal", more=ON)) as hr:
        proxy.always(Answer(403, close=True))
        with urllib3.ProxyManager(proxy.url) as manager, pytest.raises(urllib3.exceptions.MaxRetryError):
            manager.request("GET", "https://billing.internal/a", retries=0)

        assert hr.status()["ungoverned"] == {"proxy": 1}
