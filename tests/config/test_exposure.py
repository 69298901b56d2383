"""Findings about what others can read, on the wire and on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.config import Inspection, inspect
from headrace.config.check.exposure import plain_hints


def said(folder: Path, text: str) -> list[str]:
    return [f"{one.path}: {one.message}" for one in inspected(folder, text).findings]


def inspected(folder: Path, text: str) -> Inspection:
    (folder / "u.yaml").write_text(f"version: 1\n{text}")
    return inspect("u.yaml", env={}, cwd=folder)


def hinted(folder: Path, text: str) -> list[str]:
    found = inspected(folder, text)
    assert found.settings is not None
    assert found.written is not None
    return [f"{one.path}: {one.message}" for one in plain_hints(found.settings, found.written)]


AWAY = "upstreams: {a: {base_url: http://a.internal%s}}"


@pytest.mark.parametrize("header", ["Authorization: x", "cookie: x", "X-Api-Key: x"])
def test_a_secret_by_plain_http_is_a_finding(tmp_path: Path, header: str) -> None:
    text = AWAY % f", headers: {{{header}}}"
    (finding,) = said(tmp_path, text)
    assert finding.startswith("upstreams.a.base_url: http: whoever is on the way can read the secrets")
    assert hinted(tmp_path, text) == []


def test_whatever_comes_from_outside_is_a_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    os.chmod(tmp_path / "token", 0o600)
    assert len(said(tmp_path, AWAY % ", headers: {X-One: '${file:token}'}")) == 1


def test_plain_http_without_a_secret_is_a_hint_and_a_file_of_base_urls_has_no_finding(tmp_path: Path) -> None:
    """In a cluster where a proxy beside the application does the TLS, it is meant; each start would log it."""
    assert said(tmp_path, AWAY % "") == []
    (hint,) = hinted(tmp_path, AWAY % "")
    assert hint == "upstreams.a.base_url: http: whoever is on the way can read and change what is sent"
    assert hinted(tmp_path, AWAY % ", mode: off") == []


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "api.localhost"])
def test_on_this_machine_nobody_is_on_the_way(tmp_path: Path, host: str) -> None:
    text = f"upstreams: {{a: {{base_url: 'http://{host}', headers: {{Authorization: x}}}}}}"
    assert said(tmp_path, text) == hinted(tmp_path, text) == []


def test_of_several_prefixes_one_that_is_on_the_way_is_told(tmp_path: Path) -> None:
    text = (
        "upstreams: {a: {base_url: 'http://localhost', match: ['http://b.internal', 'http://c.internal'], "
        "headers: {Cookie: x}}}"
    )
    (finding,) = said(tmp_path, text)
    assert finding.startswith("upstreams.a.match[0]")


def pems(folder: Path) -> None:
    for name in ("c.pem", "k.pem"):
        (folder / name).write_text("-")
        os.chmod(folder / name, 0o600)


def test_an_upstream_without_the_client_certificate_of_the_defaults_is_a_finding(tmp_path: Path) -> None:
    pems(tmp_path)
    text = (
        "defaults: {tls: {cert: c.pem, key: k.pem}}\n"
        "upstreams: {a: {base_url: https://a.internal}, b: {base_url: https://b.internal, "
        "tls: {cert: null, key: null}}, c: {base_url: 'http://localhost'}}"
    )
    (finding,) = said(tmp_path, text)
    assert finding.startswith("upstreams.b.tls.cert: null: it is called without the client certificate")


def test_require_client_certificate_makes_an_error_of_it(tmp_path: Path) -> None:
    pems(tmp_path)
    text = (
        "defaults: {tls: {require_client_certificate: true, cert: c.pem, key: k.pem}}\n"
        "upstreams:\n  a: {base_url: https://a.internal}\n  b: {base_url: https://b.internal, "
        "tls: {cert: null, key: null}}\n  c: {base_url: 'http://localhost'}\n"
    )
    (problem,) = inspected(tmp_path, text).problems
    assert problem.path == "upstreams.b.tls.cert"
    assert "require_client_certificate" in problem.message


def test_it_is_an_error_where_there_is_none_at_all(tmp_path: Path) -> None:
    text = "upstreams: {a: {base_url: https://a.internal, tls: {require_client_certificate: true}}}"
    (problem,) = inspected(tmp_path, text).problems
    assert "wants a client certificate" in problem.message
    text = "defaults: {tls: {require_client_certificate: true}}\nupstreams: {a: {base_url: http://localhost}}"
    assert inspected(tmp_path, text).problems == ()


@pytest.mark.skipif(os.name == "nt", reason="what may be read is not in the mode there")
@pytest.mark.parametrize(
    ("mode", "owner", "who"),
    [
        pytest.param(0o600, 1000, None, id="its owner"),
        pytest.param(0o640, 1000, "the group of the file", id="group"),
        pytest.param(0o644, 1000, "everybody", id="all"),
        pytest.param(0o604, 1000, "everybody", id="all but the group"),
        pytest.param(0o640, 0, None, id="root's, handed out by its group"),
        pytest.param(0o644, 0, "everybody", id="root's, for all"),
    ],
)
@pytest.mark.parametrize("role", ["key", "cert"])
def test_a_key_that_others_may_read_is_a_finding(
    tmp_path: Path, mode: int, owner: int, who: str | None, role: str
) -> None:
    pems(tmp_path)
    named = tmp_path / ("k.pem" if role == "key" else "c.pem")
    os.chmod(named, mode)
    if os.geteuid() == 0:
        os.chown(named, owner, owner)
    elif owner != os.geteuid():
        pytest.skip("only root gives a file away")
    tls = "cert: c.pem, key: k.pem" if role == "key" else "cert: c.pem"
    found = said(tmp_path, f"upstreams: {{a: {{base_url: https://a.internal, tls: {{{tls}}}}}}}")
    assert found == (
        []
        if who is None
        else [f"upstreams.a.tls.{role}: {who} on this machine may read the key in {named.name}"]
    )


@pytest.mark.skipif(os.name == "nt", reason="what may be read is not in the mode there")
@pytest.mark.parametrize(("mode", "is_found"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_secret_that_everybody_may_read_is_a_finding(tmp_path: Path, mode: int, is_found: bool) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    os.chmod(token, mode)
    found = said(tmp_path, "upstreams: {a: {base_url: https://a.internal, headers: {A: 'B ${file:token}'}}}")
    assert bool(found) is is_found
    assert all("headers.A: everybody on this machine may read" in one for one in found)


@pytest.mark.skipif(os.name == "nt", reason="what may be read is not in the mode there")
def test_a_passphrase_that_everybody_may_read_is_a_finding(tmp_path: Path) -> None:
    pems(tmp_path)
    for name, mode in (("k.pem", 0o600), ("pass", 0o644)):
        (tmp_path / name).touch()
        os.chmod(tmp_path / name, mode)
    tls = "tls: {cert: c.pem, key: k.pem, key_passphrase: 'x${file:pass}'}"
    (one,) = said(tmp_path, f"upstreams: {{a: {{base_url: https://a.internal, {tls}}}}}")
    assert one == f"upstreams.a.tls.key_passphrase: everybody on this machine may read {tmp_path / 'pass'}"


@pytest.mark.skipif(os.name == "nt", reason="what may be read is not in the mode there")
def test_a_secret_that_the_kubelet_has_mounted_is_none(tmp_path: Path) -> None:
    """Its default mode is 0644, and who is in the container is who may read it."""
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "token").write_text("x")
    os.chmod(tmp_path / "..1" / "token", 0o644)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    assert (
        said(tmp_path, "upstreams: {a: {base_url: https://a.internal, headers: {A: '${file:token}'}}}") == []
    )
