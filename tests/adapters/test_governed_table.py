"""Which calls found by URL are governed, and whose trust their connections have: one table over both surfaces.

A row says what a call passes, or what the environment holds. A governed call goes over a connection that presents the
rule's client certificate, to a server that only the rule's CA vouches for: the *server* says so. A call with a trust of
its own passes through untouched, presents what it brings or nothing, and is counted.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter

import headrace
from headrace.config.check.trust import BUNDLE_VARIABLES
from support.faultserver import FaultServer, server_context
from support.governed import rules, running
from support.surfaces import INSTALL

Whose = Literal["rule", "own", "none"]
"""Whose client certificate the server must see."""


@dataclass
class Scene:
    """A server that the rule's CA vouches for, and files of the rule, of the caller and of a stranger."""

    url: str
    folder: Path
    server: FaultServer
    ca: Path
    copy: Path
    """The rule's CA under another name."""
    wider: Path
    """Another trust in which the server passes: the rule's CA and a stranger's."""
    strange: Path
    """A CA that has nothing to do with the server."""
    rule: Path
    """The rule's client certificate with its key."""
    own: Path
    """The caller's."""


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return trustme.CA(), trustme.CA()


@pytest.fixture
def scene(authorities: tuple[trustme.CA, trustme.CA], tmp_path: Path) -> Iterator[Scene]:
    ca, stranger = authorities
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "copy", "wider", "strange", "rule", "own")}
    for name in ("ca", "copy"):
        files[name].write_bytes(ca.cert_pem.bytes())
    files["strange"].write_bytes(stranger.cert_pem.bytes())
    files["wider"].write_bytes(stranger.cert_pem.bytes() + ca.cert_pem.bytes())
    for name in ("rule", "own"):
        pem = ca.issue_cert(f"{name}.test").private_key_and_cert_chain_pem
        files[name].write_bytes(pem.bytes())
        files[name].chmod(0o600)
    context = server_context(ca)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    with FaultServer(tls=context) as server:
        yield Scene(server.url, tmp_path, server, **files)


Go = Callable[[Scene, headrace.Headrace], Any]
Get = Callable[[Scene], Any]


def call(**arguments: Get) -> Go:
    """One of `requests.get`."""
    return lambda scene, hr: requests.get(scene.url, **{name: of(scene) for name, of in arguments.items()})


def session(**settings: Get) -> Go:
    """One through a Session that has *settings* as attributes."""

    def go(scene: Scene, hr: headrace.Headrace) -> Any:
        with requests.Session() as made:
            for name, of in settings.items():
                setattr(made, name, of(scene))
            return made.get(scene.url)

    return go


def ours(**arguments: Get) -> Go:
    """One through a session of ours."""

    def go(scene: Scene, hr: headrace.Headrace) -> Any:
        with hr.session() as made:
            return made.get(scene.url, **{name: of(scene) for name, of in arguments.items()})

    return go


def adapter(**settings: Get) -> Go:
    """One through an adapter whose manager is made with *settings*."""

    def go(scene: Scene, hr: headrace.Headrace) -> Any:
        class Own(HTTPAdapter):
            def init_poolmanager(self, *args: Any, **kw: Any) -> None:
                super().init_poolmanager(*args, **kw, **{name: of(scene) for name, of in settings.items()})

        with requests.Session() as made:
            made.mount("https://", Own())
            return made.get(scene.url, verify=str(scene.ca))

    return go


def manager(**settings: Get) -> Go:
    """One of a PoolManager that is made with *settings*."""

    def go(scene: Scene, hr: headrace.Headrace) -> Any:
        with urllib3.PoolManager(**{name: of(scene) for name, of in settings.items()}) as made:
            return made.request("GET", scene.url)

    return go


def pool(*, written: dict[str, Get] | None = None, **settings: Get) -> Go:
    """One of a pool that a manager hands out for *settings*, with attributes *written* on it afterwards."""

    def go(scene: Scene, hr: headrace.Headrace) -> Any:
        with urllib3.PoolManager() as made:
            found: Any = made.connection_from_url(
                scene.url, pool_kwargs={name: of(scene) for name, of in settings.items()}
            )
            for name, of in (written or {}).items():
                setattr(found, name, of(scene))
            return found.request("GET", "/")

    return go


def by_name(scene: Scene, hr: headrace.Headrace) -> Any:
    return hr.upstream("billing").get("/")


def by_name_through_urllib3(scene: Scene, hr: headrace.Headrace) -> Any:
    return hr.upstream("billing").urlopen("GET", "/")


def is_(value: Any) -> Get:
    return lambda scene: value


def path(name: str) -> Get:
    return lambda scene: str(getattr(scene, name))


def own_context(scene: Scene) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(scene.ca))
    context.load_cert_chain(str(scene.own))
    return context


def fingerprint(scene: Scene) -> str:
    host, port = scene.server.host, scene.server.port
    pem = ssl.get_server_certificate((host, port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


NO = is_(False)
ROWS: dict[str, tuple[Go, Whose]] = {
    # requests: what a call passes
    "requests, nothing": (call(), "rule"),
    "requests, verify=True": (call(verify=is_(True)), "rule"),
    "requests, verify=None": (call(verify=is_(None)), "rule"),
    "requests, verify=the rule's path": (call(verify=path("ca")), "rule"),
    "requests, verify=the rule's path as a Path": (call(verify=lambda one: one.ca), "rule"),
    "requests, verify=the same content": (call(verify=path("copy")), "rule"),
    "requests, verify=another path": (call(verify=path("wider")), "none"),
    "requests, verify=False": (call(verify=NO), "none"),
    "requests, cert=its own": (call(verify=path("ca"), cert=path("own")), "own"),
    "requests, cert=a pair of its own": (
        call(verify=path("ca"), cert=lambda one: (str(one.own), str(one.own))),
        "own",
    ),
    # requests: what its session has
    "session, nothing": (session(), "rule"),
    "session.verify=True": (session(verify=is_(True)), "rule"),
    "session.verify=the rule's path": (session(verify=path("ca")), "rule"),
    "session.verify=the same content": (session(verify=path("copy")), "rule"),
    "session.verify=another path": (session(verify=path("wider")), "none"),
    "session.verify=False": (session(verify=NO), "none"),
    "session.cert=its own": (session(verify=path("ca"), cert=path("own")), "own"),
    "session.trust_env=False": (session(trust_env=NO), "rule"),
    "our session, nothing": (ours(), "rule"),
    "our session, verify=the same content": (ours(verify=path("copy")), "rule"),
    "our session, verify=another path": (ours(verify=path("wider")), "none"),
    "our session, verify=False": (ours(verify=NO), "none"),
    "our session, cert=its own": (ours(verify=path("ca"), cert=path("own")), "own"),
    # requests: what its adapter's manager has
    "adapter, nothing": (adapter(), "rule"),
    "adapter, ca_certs=the same content": (adapter(ca_certs=path("copy")), "rule"),
    "adapter, ca_certs=another path": (adapter(ca_certs=path("wider")), "none"),
    "adapter, cert_file=its own": (adapter(cert_file=path("own")), "own"),
    "adapter, ssl_context=": (adapter(ssl_context=own_context), "own"),
    "adapter, assert_hostname=False": (adapter(assert_hostname=NO), "none"),
    "adapter, assert_fingerprint=": (adapter(assert_fingerprint=fingerprint), "none"),
    "adapter, server_hostname=another": (adapter(server_hostname=is_("localhost")), "none"),
    # urllib3
    "urllib3, nothing": (manager(), "rule"),
    "urllib3, cert_reqs=CERT_REQUIRED": (manager(cert_reqs=is_("CERT_REQUIRED")), "rule"),
    "urllib3, cert_reqs=CERT_NONE": (manager(cert_reqs=is_("CERT_NONE")), "none"),
    "urllib3, ca_certs=the rule's path": (manager(ca_certs=path("ca")), "rule"),
    "urllib3, ca_certs=the same content": (manager(ca_certs=path("copy")), "rule"),
    "urllib3, ca_certs=another path": (manager(ca_certs=path("wider")), "none"),
    "urllib3, ca_cert_data=": (manager(ca_cert_data=lambda one: one.ca.read_text()), "none"),
    "urllib3, cert_file=its own": (manager(ca_certs=path("ca"), cert_file=path("own")), "own"),
    "urllib3, cert_file=the rule's": (manager(cert_file=path("rule")), "rule"),
    "urllib3, ssl_context=": (manager(ssl_context=own_context), "own"),
    "urllib3, assert_hostname=False": (manager(ca_certs=path("ca"), assert_hostname=NO), "none"),
    "urllib3, assert_hostname=the host": (manager(assert_hostname=is_("127.0.0.1")), "rule"),
    "urllib3, assert_hostname=another": (
        manager(ca_certs=path("ca"), assert_hostname=is_("localhost")),
        "none",
    ),
    "urllib3, assert_fingerprint=": (
        manager(ca_certs=path("ca"), assert_fingerprint=fingerprint),
        "none",
    ),
    "urllib3, server_hostname=the host": (manager(server_hostname=is_("127.0.0.1")), "rule"),
    "urllib3, server_hostname=another": (
        manager(ca_certs=path("ca"), server_hostname=is_("localhost")),
        "none",
    ),
    "urllib3, ssl_minimum_version=another": (
        manager(ca_certs=path("ca"), ssl_minimum_version=is_(ssl.TLSVersion.TLSv1_3)),
        "none",
    ),
    "urllib3, ssl_maximum_version=": (
        manager(ca_certs=path("ca"), ssl_maximum_version=is_(ssl.TLSVersion.TLSv1_3)),
        "none",
    ),
    # urllib3: what a pool is asked for with, and what is written on it afterwards
    "pool, nothing": (pool(), "rule"),
    "pool, ca_certs=the same content": (pool(ca_certs=path("copy")), "rule"),
    "pool, ca_certs=another path": (pool(ca_certs=path("wider")), "none"),
    "pool, cert_file=its own": (pool(ca_certs=path("ca"), cert_file=path("own")), "own"),
    "pool, ssl_context=": (pool(ssl_context=own_context), "own"),
    "pool.assert_hostname=False": (pool(ca_certs=path("ca"), written={"assert_hostname": NO}), "none"),
    "pool.assert_fingerprint=": (
        pool(ca_certs=path("ca"), written={"assert_fingerprint": fingerprint}),
        "none",
    ),
}


def names_of(certificate: dict[str, Any] | None) -> set[str]:
    return {name for _, name in (certificate or {}).get("subjectAltName", ())}


def check(scene: Scene, hr: headrace.Headrace, go: Go, whose: Whose) -> None:
    answer = go(scene, hr)
    assert getattr(answer, "status_code", None) == 200 or answer.status == 200
    (request,) = scene.server.requests
    assert names_of(request.client_cert) == (set() if whose == "none" else {f"{whose}.test"})
    assert hr.status()["ungoverned"] == ({} if whose == "rule" else {"tls": 1})
    assert hasattr(answer, "headrace") is (whose == "rule")


def rule_of(scene: Scene, *, ca: bool = True) -> str:
    named = f"ca: '{scene.ca}', " if ca else ""
    return rules(scene.url, f"    tls: {{{named}cert: '{scene.rule}'}}\n", more=INSTALL)


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*BUNDLE_VARIABLES, "SSL_CERT_DIR", "SSLKEYLOGFILE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("row", ROWS)
def test_a_call_is_governed_with_the_rules_trust_or_passes_with_its_own(
    tmp_path: Path, scene: Scene, row: str
) -> None:
    go, whose = ROWS[row]
    with running(tmp_path, rule_of(scene)) as hr:
        check(scene, hr, go, whose)


WAYS: dict[str, Go] = {
    "requests": call(),
    "session": session(),
    "our session": ours(),
    "adapter": adapter(),
    "urllib3": manager(),
    "pool": pool(),
    "handle": by_name,
    "urlopen": by_name_through_urllib3,
}
"""Calls that pass nothing: those in which the environment has its say. Calls by name as well."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("variable", "holds"),
    [
        *((variable, "strange") for variable in (*BUNDLE_VARIABLES, "SSL_CERT_DIR")),
        *((variable, "a path that does not exist") for variable in BUNDLE_VARIABLES),
        ("SSLKEYLOGFILE", "keys.log"),
        ("NETRC", "netrc"),
    ],
)
def test_nothing_that_the_environment_holds_after_the_load_changes_that_trust(
    tmp_path: Path, scene: Scene, way: str, variable: str, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    (tmp_path / "netrc").chmod(0o600)
    value = tmp_path / f"{holds}.pem" if holds == "strange" else tmp_path / holds
    with running(tmp_path, rule_of(scene)) as hr:
        monkeypatch.setenv(variable, str(tmp_path if variable == "SSL_CERT_DIR" else value))
        check(scene, hr, WAYS[way], "rule")
    # Who wants one for the connections of a rule says so before it is loaded, as for any context.
    assert not (tmp_path / "keys.log").exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variable", BUNDLE_VARIABLES)
def test_what_the_environment_holds_at_the_load_is_the_rules_trust_where_it_names_none(
    tmp_path: Path, scene: Scene, way: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(scene.ca))
    with running(tmp_path, rule_of(scene, ca=False)) as hr:
        monkeypatch.setenv(variable, str(scene.strange))
        check(scene, hr, WAYS[way], "rule")
