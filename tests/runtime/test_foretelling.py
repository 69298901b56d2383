"""`mode: observe` foretells a certificate that `enforce` would refuse and the stock library accepts."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import requests
import trustme

import headrace
from headrace.runtime.foretelling import Foreteller
from support.faultserver import FaultServer, server_context
from support.governed import rules, running
from support.waiting import wait_until

CORPORATE = trustme.CA(organization_name="Acme", organization_unit_name="Networks")
OTHER = trustme.CA()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A server that stock's trust store knows, as a certifi with the company's CA would."""
    CORPORATE.cert_pem.write_to_path(str(tmp_path / "corporate.pem"))
    OTHER.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "corporate.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "corporate.pem"))
    with FaultServer(tls=server_context(CORPORATE)) as server:
        yield server


def observed(folder: Path, ca: str, url: str, mode: str = "observe", more: str = "") -> str:
    return rules(url, f"    mode: {mode}\n    tls: {{ca: '{folder / ca}'}}\n{more}")


def foretold(hr: headrace.Headrace) -> int:
    return hr.status()["upstreams"]["billing"]["observed"].get("tls_refused", 0)  # type: ignore[no-any-return]


def tried(hr: headrace.Headrace) -> int:
    return len(hr._reloader._foreteller._tried)  # type: ignore[union-attr]


def over(hr: headrace.Headrace) -> bool:
    """Whether something was tried, and all that was begun is over."""
    life = hr._reloader._foreteller.life()  # type: ignore[union-attr]
    return tried(hr) > 0 and life["looked_ago"] is not None and not life["alive"]


def said(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if vars(record).get("event") == "tls.would_refuse"]


def test_a_certificate_that_enforce_would_refuse_is_told_once_with_its_issuer(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 85."""
    with running(tmp_path, observed(tmp_path, "other.pem", server.url)) as hr:
        wait_until(lambda: foretold(hr) == 1)
        wait_until(lambda: over(hr))
        assert requests.get(server.url).status_code == 200  # the calls of observe are as they were

        connections = server.connections
        hr.reload()
        hr._reloader.tick(headrace.clock.monotonic())  # type: ignore[union-attr]
        wait_until(lambda: over(hr))
        assert (server.connections, foretold(hr)) == (connections, 1)

    (record,) = said(caplog)
    assert record.levelno == logging.WARNING
    assert "O=Acme" in record.issuer
    assert "issued by" in record.getMessage()
    assert str(server.port) in record.host
    assert "certificate" in record.reason


@pytest.mark.skipif(
    not ssl.create_default_context().cert_store_stats()["x509_ca"], reason="needs a system store of its own"
)
def test_what_certifi_has_and_the_system_store_has_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 85."""
    CORPORATE.cert_pem.write_to_path(str(tmp_path / "certifi.pem"))
    monkeypatch.setattr(certifi, "where", lambda: str(tmp_path / "certifi.pem"))
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with (
        FaultServer(tls=server_context(CORPORATE)) as server,
        running(tmp_path, rules(server.url, "    mode: observe\n")) as hr,
    ):
        wait_until(lambda: foretold(hr) == 1)


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_what_enforce_would_accept_or_decides_itself_is_not_told(
    mode: str, server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = "corporate.pem" if mode == "observe" else "other.pem"
    with running(tmp_path, observed(tmp_path, ca, server.url, mode)) as hr:
        if mode == "observe":
            wait_until(lambda: over(hr))
        else:
            hr._reloader.tick(headrace.clock.monotonic())  # type: ignore[union-attr]
        assert (foretold(hr), said(caplog)) == (0, [])
        assert server.connections == (1 if mode == "observe" else 0)


def test_what_stock_refuses_as_well_is_nothing_that_enforce_would_change(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with running(tmp_path, observed(tmp_path, "other.pem", server.url)) as hr:
        wait_until(lambda: over(hr))
        server.wait_for(lambda: server.failed_handshakes == 2)  # it hears of the second a moment later
        assert (foretold(hr), said(caplog)) == (0, [])


def test_other_tls_rules_are_tried_again_and_other_keys_are_not(server: FaultServer, tmp_path: Path) -> None:
    with running(tmp_path, observed(tmp_path, "corporate.pem", server.url)) as hr:
        wait_until(lambda: over(hr))
        file = tmp_path / "upstreams.yaml"
        file.write_text(observed(tmp_path, "corporate.pem", server.url, more="    timeouts: {attempt: 7s}\n"))
        hr.reload()
        hr._reloader.tick(headrace.clock.monotonic())  # type: ignore[union-attr]
        wait_until(lambda: over(hr))
        assert server.connections == 1

        file.write_text(observed(tmp_path, "other.pem", server.url))
        hr.reload()
        wait_until(lambda: foretold(hr) == 1)


def test_an_upstream_that_cannot_be_reached_is_tried_again_later(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.on_accept = "rst"
    with running(tmp_path, observed(tmp_path, "other.pem", server.url)) as hr:
        foreteller = hr._reloader._foreteller  # type: ignore[union-attr]
        wait_until(lambda: bool(foreteller._pauses) and not foreteller.life()["alive"])
        assert (tried(hr), said(caplog)) == (0, [])
        connections = server.connections

        now = headrace.clock.monotonic()
        hr._reloader.tick(now + 30)  # type: ignore[union-attr]  # within the pause
        assert server.connections == connections

        server.on_accept = "serve"
        hr._reloader.tick(now + 70)  # type: ignore[union-attr]
        wait_until(lambda: foretold(hr) == 1)


def test_a_handshake_that_hangs_is_on_nobodys_path_and_ends_with_the_instance(
    server: FaultServer, tmp_path: Path
) -> None:
    server.on_accept = "silence"
    text = observed(
        tmp_path, "other.pem", server.url, more="    timeouts: {connect: 1s, tls_handshake: 1s}\n"
    )
    with running(tmp_path, text) as hr:
        wait_until(lambda: server.connections == 1)
        assert hr._reloader._foreteller.life()["alive"]  # type: ignore[union-attr]
        server.on_accept = "serve"
        assert requests.get(server.url).status_code == 200
    wait_until(lambda: "headrace-foretell" not in {thread.name for thread in threading.enumerate()})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_repeat_what_its_parent_has_tried(
    server: FaultServer, tmp_path: Path
) -> None:
    with running(tmp_path, observed(tmp_path, "other.pem", server.url)) as hr:
        wait_until(lambda: foretold(hr) == 1)
        foreteller: Callable[[], Foreteller] = lambda: hr._reloader._foreteller  # type: ignore[union-attr]  # noqa: E731
        parents = foreteller()
        hr._reloader.forget_inherited()  # type: ignore[union-attr]  # what a child does first
        assert foreteller() is not parents
        assert tried(hr) == 1
        wait_until(lambda: not parents.life()["alive"])
        connections = server.connections
        hr._reloader.tick(headrace.clock.monotonic())  # type: ignore[union-attr]
        assert not foreteller().life()["alive"]
        assert server.connections == connections


def test_without_verification_or_tls_nothing_is_tried(tmp_path: Path) -> None:
    with FaultServer(tls=server_context(CORPORATE)) as server:
        text = rules(server.url, "    mode: observe\n    tls: {verify: false, insecure_skip_verify: true}\n")
        with running(tmp_path, text) as hr:
            hr._reloader.tick(headrace.clock.monotonic())  # type: ignore[union-attr]
            assert tried(hr) == 0
        assert server.connections == 0


def test_a_version_that_the_server_does_not_speak_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    CORPORATE.cert_pem.write_to_path(str(tmp_path / "corporate.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "corporate.pem"))
    context = server_context(CORPORATE)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with FaultServer(tls=context) as server:
        text = rules(server.url, "    mode: observe\n    tls: {min_version: '1.3'}\n")
        with running(tmp_path, text) as hr:
            wait_until(lambda: foretold(hr) == 1)
    (record,) = said(caplog)
    assert "version" in record.reason
