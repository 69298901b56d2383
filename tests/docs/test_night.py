"""The table for the night: each thing that it says to do does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

import headrace
from headrace import cli
from headrace.observe import events
from support.faultserver import Answer, Break, FaultServer, server_context
from support.holes import address_of, closed_port, names
from support.pages import shows, text_of
from support.waiting import wait_until


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_the_switch_in_the_environment(
    mode: str,
    folder: Path,
    upstream: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    upstream.always(Answer(503))
    with headrace.install() as hr:
        assert not hasattr(requests.get(upstream.url), "headrace")
        assert len(upstream.requests) == 1
        counted = hr.status()["upstreams"]["billing"]["requests"]
    assert counted == ({} if mode == "off" else {"5xx": 1})
    assert events.ModeOverridden.name in [getattr(record, "event", "") for record in caplog.records]


def test_switching_off_by_an_edit_letting_through_and_undoing(
    hr: headrace.Headrace, folder: Path, upstream: FaultServer
) -> None:
    file = folder / "upstreams.yaml"
    original = file.read_text()

    def status() -> Any:
        return hr.status()["upstreams"]["billing"]

    upstream.always(Break())
    for _ in range(5):
        with pytest.raises(requests.ConnectionError):
            requests.get(upstream.url)
    with pytest.raises(headrace.CircuitOpenError):
        requests.get(upstream.url)
    upstream.always(Answer())

    file.write_text(original + "    circuit_breaker: {mode: disabled}\n")
    wait_until(lambda: status()["circuit_breaker"]["state"] == "closed")
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]

    file.write_text(original + "    mode: off\n")
    wait_until(lambda: status()["mode"] == "off")
    assert not hasattr(requests.get(upstream.url), "headrace")

    digest = hr.status()["digest"]
    file.write_text(original + "    mode: of\n")
    wait_until(lambda: hr.status()["rejected"] is not None)
    assert hr.status()["digest"] == digest

    file.write_text(original)
    wait_until(lambda: status()["mode"] == "enforce")
    assert hr.status()["rejected"] is None
    assert requests.get(upstream.url).headrace.reason == "success"  # type: ignore[attr-defined]


@shows("command-line: Is it there?/1")
def test_an_upstream_that_refuses_is_told_of_as_shown(
    tmp_path: Path,
    authority: trustme.CA,
    ca: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    name, shown = "billing.test", text_of("command-line: Is it there?/1")
    with (
        FaultServer(tls=server_context(authority, name, client_ca=trustme.CA())) as server,
        names(monkeypatch) as told,
    ):
        port = int(server.url.rpartition(":")[2])
        told.known[name] = [address_of(port), address_of(closed_port())]
        (tmp_path / "upstreams.yaml").write_text(
            f"upstreams: {{billing: {{base_url: 'https://{name}:{port}/v2', mode: enforce, tls: {{ca: '{ca}'}}}}}}"
        )
        assert cli.main(["check", "--connect", "billing"]) == 1
    said = capsys.readouterr().out.replace(f":{port}/v2", "/v2").replace(name, "billing.internal")

    def alike(output: str) -> list[str]:
        """Without what is of this machine: times, addresses, the certificate, the limits of the file."""
        for pattern, word in (
            (r"[\d.]+ ms", "N ms"),
            (r"\d+(\.\d+){3}:\d+", "A"),
            (r"chain  .*", "chain"),
            (r"enforce: .*", "enforce"),
        ):
            output = re.sub(pattern, word, output)
        return output.splitlines()

    assert alike(said) == alike(shown)
