"""A bundle with the content of the one in force is no trust of its own, on each surface; its changes are noticed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certifi
import pytest
import requests
import trustme
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.poolmanager import PoolManager

import headrace
from headrace.adapters import bundles
from headrace.config.check.trust import BUNDLE_VARIABLES
from support.faultserver import FaultServer
from support.governed import rules, running
from support.surfaces import INSTALL

ONLY = "install: {requests: false, urllib3: true}\n"


@pytest.fixture
def server(secure: FaultServer) -> FaultServer:
    return secure


@pytest.fixture(autouse=True)
def _no_bundle_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in BUNDLE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


Call = Callable[[headrace.Headrace, str, Any], object]


def by_call(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    return requests.get(url, verify=bundle)


def by_session(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    with requests.Session() as session:
        session.verify = bundle
        return session.get(url)


def by_our_session(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    with hr.session() as session:
        return session.get(url, verify=bundle)


def by_handle(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    return hr.upstream("billing").get("/", verify=bundle)


def by_adapter(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    class Bundled(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kw: Any) -> None:
            super().init_poolmanager(*args, ca_certs=str(bundle), **kw)

    with requests.Session() as session:
        session.mount(url, Bundled())
        return session.get(url)


def by_manager(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    with PoolManager(ca_certs=bundle) as manager:
        return manager.request("GET", url)


EACH = pytest.mark.parametrize(
    "call",
    [by_call, by_session, by_our_session, by_handle, by_adapter, by_manager],
    ids=lambda call: call.__name__.removeprefix("by_"),
)


@EACH
@pytest.mark.parametrize("kind", [str, Path])
def test_a_copy_of_the_rules_bundle_is_governed(
    tmp_path: Path, server: FaultServer, ca: Path, call: Call, kind: type
) -> None:
    """failures.md 77."""
    copy = tmp_path / "copy.pem"
    copy.write_bytes(ca.read_bytes())
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=INSTALL)) as hr:
        for _ in range(2):
            assert call(hr, server.url, kind(copy)).headrace.upstream == "billing"  # type: ignore[attr-defined]
        assert hr.status()["ungoverned"] == {}
        assert server.connections == 1


@EACH
@pytest.mark.parametrize("mode", ["public", "a copy", "the system's"])
def test_public_roots_by_any_name_are_the_rules_public_roots(
    tmp_path: Path, server: FaultServer, call: Call, mode: str
) -> None:
    """failures.md 77."""
    bundle = certifi.where()
    if mode == "the system's":
        bundle = ssl.get_default_verify_paths().cafile or bundle
    elif mode == "a copy":
        bundle = str(tmp_path / "cacert.pem")
        Path(bundle).write_bytes(Path(certifi.where()).read_bytes())
    with running(tmp_path, rules(server.url, more=INSTALL)) as hr:
        with pytest.raises((requests.exceptions.SSLError, HTTPError)) as caught:
            call(hr, server.url, bundle)
        assert caught.value.headrace.reason.value == "certificate"  # type: ignore[union-attr]
        assert hr.status()["ungoverned"] == {}


@EACH
def test_public_roots_are_another_trust_where_the_rule_names_one(
    tmp_path: Path, server: FaultServer, ca: Path, call: Call
) -> None:
    """failures.md 77."""
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n", more=INSTALL)) as hr:
        with pytest.raises((requests.exceptions.SSLError, HTTPError)):
            call(hr, server.url, certifi.where())
        assert hr.status()["ungoverned"] == {"tls": 1}


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("more", [INSTALL, ONLY], ids=["both", "urllib3 only"])
def test_a_bundle_of_the_environment_is_no_wish(
    tmp_path: Path, server: FaultServer, ca: Path, variable: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it came after the start, and where the call repeats what another variable has said.

    failures.md 77.
    """
    copy = tmp_path / "copy.pem"
    copy.write_bytes(ca.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    with running(tmp_path, rules(server.url, more=more)) as hr:
        monkeypatch.setenv(variable, str(copy))
        assert requests.get(server.url).status_code == 200
        monkeypatch.delenv(variable)
        assert requests.get(server.url, verify=str(copy)).status_code == 200
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 2}
        assert hr.status()["ungoverned"] == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@EACH
def test_who_names_a_bundle_gets_a_check(tmp_path: Path, server: FaultServer, call: Call) -> None:
    """A rule that verifies nothing has no bundle in force."""
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        with pytest.raises((requests.exceptions.SSLError, HTTPError)):
            call(hr, server.url, certifi.where())
        assert hr.status()["ungoverned"] == {"tls": 1}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@EACH
def test_the_ca_beside_verify_false_is_a_check_to_who_names_it(
    tmp_path: Path, server: FaultServer, call: Call
) -> None:
    """The rule trusts it no more than anything else; what the caller asked for is refused by the server's own CA."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    body = f"    tls: {{verify: false, insecure_skip_verify: true, ca: '{other}'}}\n"
    with running(tmp_path, rules(server.url, body, more=INSTALL)) as hr:
        with pytest.raises((requests.exceptions.SSLError, HTTPError)):
            call(hr, server.url, str(other))
        assert hr.status()["ungoverned"] == {"tls": 1}


def by_pool(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    with PoolManager(ca_certs=bundle) as manager:
        return manager.connection_from_url(url).request("GET", "/")


def by_directory(hr: headrace.Headrace, url: str, bundle: Any) -> object:
    with PoolManager(ca_cert_dir=bundle) as manager:
        return manager.request("GET", url)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("more", [INSTALL, ONLY], ids=["both", "urllib3 only"])
@pytest.mark.parametrize(
    "call", [by_adapter, by_manager, by_pool, by_directory], ids=lambda call: call.__name__
)
def test_the_bundle_of_the_environment_is_a_check_to_a_manager_that_names_it(
    tmp_path: Path, server: FaultServer, call: Call, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib3 reads no variable: what a manager has been given is its maker's wish, and never gets less."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    if call is by_directory:
        other = tmp_path / "other"
        other.mkdir()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body, more=more)) as hr:
        with pytest.raises((requests.exceptions.SSLError, HTTPError)):
            call(hr, server.url, str(other))
        assert hr.status()["ungoverned"] == {"tls": 1}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("more", [INSTALL, ONLY], ids=["both", "urllib3 only"])
def test_the_bundle_of_the_environment_does_not_undo_the_files_verify_false(
    tmp_path: Path, server: FaultServer, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Session puts it where nobody has asked for anything; requests' own `verify=False` is undone by it."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    body = "    tls: {verify: false, insecure_skip_verify: true}\n"
    with running(tmp_path, rules(server.url, body, more=more)) as hr:
        assert requests.get(server.url).status_code == 200
        assert hr.status()["ungoverned"] == {}


def test_a_bundle_that_changes_is_read_again(tmp_path: Path, server: FaultServer, ca: Path) -> None:
    """In place with the same size and time stamp, replaced, and gone; and the change of the rule's own.

    failures.md 77.
    """
    copy, other = tmp_path / "copy.pem", tmp_path / "other.pem"
    copy.write_bytes(ca.read_bytes())
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        requests.get(server.url, verify=str(copy))
        before = copy.stat()
        changed = bytearray(ca.read_bytes())
        changed[-1:] = b" "  # PEM does not mind, and we do
        copy.write_bytes(changed)
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
        requests.get(server.url, verify=str(copy))
        assert hr.status()["ungoverned"] == {"tls": 1}

        other.write_bytes(ca.read_bytes())
        other.replace(copy)
        requests.get(server.url, verify=str(copy))
        assert hr.status()["ungoverned"] == {"tls": 1}

        ca.write_bytes(bytes(changed))
        hr.reload()
        requests.get(server.url, verify=str(copy))
        assert hr.status()["ungoverned"] == {"tls": 2}

        copy.unlink()
        with pytest.raises(OSError, match="Could not find a suitable TLS CA certificate bundle"):
            requests.get(server.url, verify=str(copy))


def test_a_bundle_that_has_stood_for_a_while_is_read_once(
    tmp_path: Path, server: FaultServer, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A young one is read each time: it could change again under the same time stamps."""
    opened: list[str] = []

    def counting(path: str, mode: str) -> Any:
        opened.append(path)
        return open(path, mode)

    monkeypatch.setattr(bundles, "open", counting, raising=False)
    monkeypatch.setattr(bundles, "_SETTLED_S", 3600.0)  # however long this test takes, the file is young
    copy = tmp_path / "copy.pem"
    copy.write_bytes(ca.read_bytes())
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        for _ in range(2):
            requests.get(server.url, verify=str(copy))
        assert len(opened) == 2
        monkeypatch.setattr(bundles, "_SETTLED_S", 0.0)  # and now it is not
        for _ in range(3):
            requests.get(server.url, verify=str(copy))
        assert len(opened) == 3
        assert hr.status()["ungoverned"] == {}

        stood = copy.stat()
        copy.write_bytes(ca.read_bytes()[:-1] + b" ")
        os.utime(copy, ns=(stood.st_atime_ns, stood.st_mtime_ns))
        requests.get(server.url, verify=str(copy))
        assert hr.status()["ungoverned"] == {"tls": 1}
